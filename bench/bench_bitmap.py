# SPDX-License-Identifier: Apache-2.0
"""Bitmap linear layers: decode with cold weights, and batches."""

from __future__ import annotations

import torch
from bench_decode import torch_dense, torch_int8
from bench_nm import prepacked_bf16
from candidates import onnxruntime, torch_linear
from harness import (
    SHAPES,
    Candidate,
    Options,
    Recorder,
    measure,
    options,
    thread_counts,
    with_threads,
)
from limits import bandwidth, multiply_adds
from packed_cases import batch, decode
from sparsekern import BitmapTensor, _core, ops
from torch import Tensor
from weights import Layer, Network, linear_network, random_layer


def _decode(layer: Layer, sparsity: float, x: Tensor, dtype: torch.dtype) -> Candidate:
    w = BitmapTensor.from_dense(layer.weight, dtype=dtype)
    return decode(w, x, ops.bitmap_linear, _core.bitmap_kernel, sparsity)


def _batch(network: Network) -> Candidate:
    return batch(network, BitmapTensor.from_dense, ops.bitmap_linear, _core.bitmap_kernel)


def main(options: Options) -> None:
    recorder = Recorder("bitmap", options.results)
    generator = torch.Generator().manual_seed(1)
    for section in SHAPES["bitmap"]["decode"]:
        rows, cols = section["rows"], section["cols"]
        dense = random_layer(rows, cols, 0.0, generator)
        pruned = {s: random_layer(rows, cols, s, generator) for s in section["sparsities"]}
        for x_rows in section["x_rows"]:
            x = torch.randn(x_rows, cols, generator=generator)
            cases = [
                *(_decode(layer, s, x, torch.bfloat16) for s, layer in pruned.items()),
                *(
                    _decode(pruned[s], s, x, torch.int8)
                    for s in section["sparsities"]
                    if s in (0.5, 0.8)
                ),
                *(torch_dense(dense, x, dtype) for dtype in (torch.float32, torch.bfloat16)),
                prepacked_bf16(dense, x),
                torch_int8(dense, x, torch.bfloat16),
            ]
            for threads in thread_counts():
                with_threads(threads)
                case = f"{x_rows} row{'s' * (x_rows > 1)}, {cols}-{rows}, cold"
                recorder.add(measure(case, threads, cases + bandwidth(threads), options.effort))
    section = SHAPES["bitmap"]["batch"]
    x_rows, features = section["x_rows"], section["features"]
    networks = [linear_network(x_rows, features, s) for s in section["sparsities"]]
    plain = linear_network(x_rows, features, 0.0)
    for threads in thread_counts():
        with_threads(threads)
        cases = [
            *(_batch(network) for network in networks),
            onnxruntime(plain, threads),
            torch_linear(plain),
            torch_linear(plain, torch.bfloat16),
            multiply_adds(threads),
        ]
        case = f"{x_rows} rows, {features[0]}-{features[1]}"
        recorder.add(measure(case, threads, cases, options.effort))
    recorder.save()


if __name__ == "__main__":
    main(options())
