# SPDX-License-Identifier: Apache-2.0
"""Bitmap linear layers: decode with cold weights, and batches."""

from __future__ import annotations

from typing import Any

import torch
from bench_decode import BF16, FP32, NAMES, candidate, torch_dense, torch_int8
from bench_nm import prepacked_bf16
from candidates import onnxruntime, torch_linear
from harness import (
    OURS,
    SHAPES,
    Candidate,
    Options,
    Recorder,
    measure,
    options,
    thread_counts,
    timed,
    with_threads,
)
from limits import bandwidth, multiply_adds
from sparsekern import BitmapTensor, _core, ops
from torch import Tensor
from weights import Layer, Network, cold_packed, flat, linear_network, random_layer


def _kernel(w: BitmapTensor, x_rows: int) -> str:
    dtype = str(w.dtype).removeprefix("torch.")
    return _core.bitmap_kernel(w.structure.numpy(), dtype, x_rows)


def _decode(layer: Layer, sparsity: float, x: Tensor, dtype: torch.dtype) -> Candidate:
    """bf16 weights, with x in bf16 too, are what the name stands for; others are named."""
    w = BitmapTensor.from_dense(layer.weight, dtype=dtype)
    x = x.to(torch.bfloat16) if dtype == torch.bfloat16 else x
    pool = cold_packed(w)
    return candidate(
        OURS if dtype == torch.bfloat16 else f"{OURS} {NAMES[dtype]} weights",
        lambda: ops.bitmap_linear(x, next(pool)),
        x,
        w.to_dense(),
        w.nbytes,
        sparsity=sparsity,
        tolerance=BF16 if dtype == torch.bfloat16 else FP32,
        details={"kernel": _kernel(w, x.shape[0])},
    )


def _batch(network: Network) -> Candidate:
    chain = network.chains[0]
    layers = [(BitmapTensor.from_dense(layer.weight), layer.bias) for layer in chain.layers]

    def run() -> list[Any]:
        y = chain.x
        for w, bias in layers:
            y = ops.bitmap_linear(y, w, bias)
        return [y]

    def seconds(calls: int) -> float:
        with torch.inference_mode():
            return timed(run)(calls)

    def output() -> Any:
        with torch.inference_mode():
            return flat(run())

    return Candidate(
        OURS,
        seconds,
        output,
        network.reference,
        sparsity=network.sparsity,
        flops=network.flops,
        details={"kernel": _kernel(layers[0][0], chain.x.shape[0])},
    )


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
