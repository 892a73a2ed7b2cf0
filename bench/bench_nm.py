# SPDX-License-Identifier: Apache-2.0
"""N:M linear layers: decode with cold weights, and batches."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from bench_decode import BF16, candidate, torch_dense, torch_int8
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
from sparsekern import NMTensor, _core, ops
from torch import Tensor
from weights import Chain, Layer, Network, copies, nm_layer


def _decode(layer: Layer, n: int, m: int, x: Tensor, dtype: torch.dtype) -> Candidate:
    w = NMTensor.from_dense(layer.weight, n, m, dtype=dtype)
    return decode(w, x, ops.nm_linear, _core.nm_kernel, 1 - n / m)


def prepacked_bf16(layer: Layer, x: Tensor) -> Candidate:
    """oneDNN with a weight in the layout of its choice, as a frozen compiled model has it."""
    w, x_cast = layer.weight.to(torch.bfloat16), x.to(torch.bfloat16)
    onednn: Any = torch.ops.mkldnn
    # As many as clones of the plain weight would be.
    pool = itertools.cycle(
        [onednn._reorder_linear_weight(w, x.shape[0]) for _ in range(copies(w.nbytes))]
    )
    return candidate(
        "torch prepacked dense bf16",
        lambda: onednn._linear_pointwise(x_cast, next(pool), None, "none", [], ""),
        x_cast,
        w,
        w.nbytes,
        tolerance=BF16,
    )


def _batch(network: Network, n: int, m: int) -> Candidate:
    def pack(weight: Tensor) -> NMTensor:
        return NMTensor.from_dense(weight, n, m)

    return batch(network, pack, ops.nm_linear, _core.nm_kernel)


def main(options: Options) -> None:
    recorder = Recorder("nm", options.results)
    generator = torch.Generator().manual_seed(1)
    for section in SHAPES["nm"]["decode"]:
        rows, cols = section["rows"], section["cols"]
        for (n, m), x_rows in itertools.product(section["ratios"], section["x_rows"]):
            layer = nm_layer(rows, cols, n, m, generator)
            x = torch.randn(x_rows, cols, generator=generator)
            cases = [
                *(_decode(layer, n, m, x, d) for d in (torch.bfloat16, torch.float32, torch.int8)),
                *(torch_dense(layer, x, dtype) for dtype in (torch.float32, torch.bfloat16)),
                prepacked_bf16(layer, x),
                torch_int8(layer, x, torch.bfloat16),
            ]
            for threads in thread_counts():
                with_threads(threads)
                case = f"{n}:{m}, {x_rows} row{'s' * (x_rows > 1)}, {cols}-{rows}, cold"
                recorder.add(measure(case, threads, cases + bandwidth(threads), options.effort))
    section = SHAPES["nm"]["batch"]
    x_rows, features = section["x_rows"], section["features"]
    for n, m in section["ratios"]:
        x = torch.randn(x_rows, features[0], generator=generator)
        made = [nm_layer(b, a, n, m, generator) for a, b in itertools.pairwise(features)]
        network = Network([Chain(x, made)], 1 - n / m)
        dense = Network(
            [Chain(x, [nm_layer(b, a, m, m, generator) for a, b in itertools.pairwise(features)])],
            0.0,
        )
        for threads in thread_counts():
            with_threads(threads)
            cases = [
                _batch(network, n, m),
                onnxruntime(dense, threads),
                torch_linear(dense),
                torch_linear(dense, torch.bfloat16),
                multiply_adds(threads),
            ]
            case = f"{n}:{m}, {x_rows} rows, {features[0]}-{features[1]}"
            recorder.add(measure(case, threads, cases, options.effort))
    recorder.save()


if __name__ == "__main__":
    main(options())
