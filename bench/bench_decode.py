# SPDX-License-Identifier: Apache-2.0
"""Decode: few rows of x, weights cold in memory, so that bytes decide."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
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
from limits import bandwidth
from sparsekern import CSRTensor, ops
from torch import Tensor
from torch.nn import functional
from weights import (
    Layer,
    cold_mkl_csr,
    cold_packed,
    cold_tensors,
    kernel_name,
    mkl_csr,
    random_layer,
)

NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.int8: "int8"}
# Errors allowed, in units of the result's root mean square. int8 and bf16 weights are compared with
# the weights as stored; what is left is the rounding of bf16 activations and results.
FP32, BF16 = 1e-3, 0.05


def candidate(
    name: str, run: Callable[[], Tensor], x: Tensor, w: Tensor, nbytes: int, **fields: Any
) -> Candidate:
    """`w`: the matrix as stored, dense, for the check and for counting the kept weights."""

    def seconds(calls: int) -> float:
        with torch.inference_mode():
            return timed(run)(calls)

    def output() -> Any:
        with torch.inference_mode():
            return run().float().numpy()

    return Candidate(
        name,
        seconds,
        output,
        (x.double() @ w.double().T).numpy(),
        flops=2.0 * int(torch.count_nonzero(w)) * x.shape[0],
        bytes=nbytes,
        **fields,
    )


def _ours(layer: Layer, sparsity: float, x: Tensor, dtype: torch.dtype) -> Candidate:
    w = CSRTensor.from_dense(layer.weight, dtype=dtype)
    pool = cold_packed(w)
    name = OURS if dtype == torch.float32 else f"{OURS} {NAMES[dtype]} weights"
    return candidate(
        name,
        lambda: ops.csr_linear(x, next(pool)),
        x,
        w.to_dense(),
        w.nbytes,
        sparsity=sparsity,
        tolerance=FP32,
        details={"kernel": kernel_name(w, x.shape[0])},
    )


def _mkl(layer: Layer, sparsity: float, x: Tensor) -> Candidate:
    pool, nbytes = cold_mkl_csr(mkl_csr(layer.weight))
    columns = x[0] if x.shape[0] == 1 else x.T.contiguous()

    def run() -> Tensor:
        y = next(pool) @ columns
        return y[None] if y.dim() == 1 else y.T

    return candidate("torch CSR (MKL)", run, x, layer.weight, nbytes, sparsity=sparsity)


def torch_dense(layer: Layer, x: Tensor, dtype: torch.dtype) -> Candidate:
    w, x_cast = layer.weight.to(dtype), x.to(dtype)
    pool = cold_tensors(w)
    return candidate(
        f"torch dense {NAMES[dtype]}",
        lambda: functional.linear(x_cast, next(pool)),
        x_cast,
        w,
        w.nbytes,
        tolerance=FP32 if dtype == torch.float32 else BF16,
    )


def torch_int8(layer: Layer, x: Tensor, dtype: torch.dtype) -> Candidate:
    """`torch._weight_int8pack_mm` with activations of `dtype`."""
    scale = layer.weight.abs().amax(dim=1) / 127
    q = (layer.weight / scale[:, None]).round().to(torch.int8)
    pool, x_cast, scale_cast = cold_tensors(q), x.to(dtype), scale.to(dtype)
    return candidate(
        f"torch _weight_int8pack_mm, {NAMES[dtype]} x",
        lambda: torch._weight_int8pack_mm(x_cast, next(pool), scale_cast),
        x_cast,
        q.float() * scale_cast.float()[:, None],
        q.nbytes,
        tolerance=FP32 if dtype == torch.float32 else BF16,
    )


def main(options: Options) -> None:
    section = SHAPES["decode"]
    rows, cols = section["rows"], section["cols"]
    generator = torch.Generator().manual_seed(1)
    dense = random_layer(rows, cols, 0.0, generator)
    pruned = {s: random_layer(rows, cols, s, generator) for s in section["sparsities"]}
    recorder = Recorder("decode", options.results)
    for x_rows in section["x_rows"]:
        x = torch.randn(x_rows, cols, generator=generator)
        cases = [_ours(layer, s, x, torch.float32) for s, layer in pruned.items()]
        cases += [torch_dense(dense, x, dtype) for dtype in (torch.float32, torch.bfloat16)]
        cases += [_mkl(layer, s, x) for s, layer in pruned.items()]
        for s in (0.8, 0.9):
            cases += [_ours(pruned[s], s, x, dtype) for dtype in (torch.bfloat16, torch.int8)]
        cases.append(torch_int8(dense, x, torch.bfloat16))
        if x_rows == 1:  # with more rows torch's float32 path is a hundred times slower
            cases.append(torch_int8(dense, x, torch.float32))
        for threads in thread_counts():
            with_threads(threads)
            recorder.add(
                measure(
                    f"{x_rows} row{'s' * (x_rows > 1)}, {cols}-{rows}, cold",
                    threads,
                    cases + bandwidth(threads),
                    options.effort,
                )
            )
    recorder.save()


if __name__ == "__main__":
    main(options())
