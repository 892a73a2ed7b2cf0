# SPDX-License-Identifier: Apache-2.0
"""Candidates of ours that the benches of several formats share: decode, and a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from bench_decode import BF16, FP32, NAMES, candidate
from harness import OURS, Candidate, timed
from torch import Tensor
from weights import Network, cold_packed, flat

Kernel = Callable[[Any, str, int], str]  # of `_core`: structure, dtype, rows of x -> name


def _kernel(name: Kernel, w: Any, x_rows: int) -> dict[str, str]:
    dtype = str(w.dtype).removeprefix("torch.")
    return {"kernel": name(w.structure.numpy(), dtype, x_rows)}


def decode(
    w: Any, x: Tensor, multiply: Callable[..., Tensor], kernel: Kernel, sparsity: float
) -> Candidate:
    """`multiply(x, w)`, cold. bf16 weights, with x in bf16 too, are what the name stands for."""
    plain = w.dtype == torch.bfloat16
    x = x.to(torch.bfloat16) if plain else x
    pool = cold_packed(w)
    return candidate(
        OURS if plain else f"{OURS} {NAMES[w.dtype]} weights",
        lambda: multiply(x, next(pool)),
        x,
        w.to_dense(),
        w.nbytes,
        sparsity=sparsity,
        tolerance=BF16 if plain else FP32,
        details=_kernel(kernel, w, x.shape[0]),
    )


def batch(
    network: Network,
    pack: Callable[[Tensor], Any],
    multiply: Callable[..., Tensor],
    kernel: Kernel,
) -> Candidate:
    """The network's layers one after the other, `multiply(x, w, bias)` each."""
    chain = network.chains[0]
    layers = [(pack(layer.weight), layer.bias) for layer in chain.layers]

    def run() -> list[Any]:
        y = chain.x
        for w, bias in layers:
            y = multiply(y, w, bias)
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
        details=_kernel(kernel, layers[0][0], chain.x.shape[0]),
    )
