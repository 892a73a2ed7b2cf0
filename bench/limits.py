# SPDX-License-Identifier: Apache-2.0
"""Candidates that measure the machine: reading memory, multiply-adds on registers."""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path

import torch
from environment import ROOT
from harness import Candidate, timed
from weights import cold_bytes

# Where bench/run.py builds the C++ part.
BUILD = Path(os.environ.get("SPARSEKERN_BENCH_BUILD", ROOT / "build" / "bench"))
_FMA_STEPS = 500_000


@functools.cache
def _library() -> ctypes.CDLL:
    path = BUILD / "bench" / "libmachine_limits.so"
    if not path.exists():
        raise SystemExit(f"{path} is missing: run bench/run.py, which builds it")
    library = ctypes.CDLL(str(path))
    library.sparsekern_bench_read.argtypes = [
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_int,
    ]
    library.sparsekern_bench_read.restype = None
    library.sparsekern_bench_fma.argtypes = [ctypes.c_int64, ctypes.c_int]
    library.sparsekern_bench_fma.restype = ctypes.c_double
    return library


@functools.cache
def _memory() -> torch.Tensor:
    return torch.zeros(cold_bytes() // 4 + 16).add_(1)  # written, so that it has pages of its own


def bandwidth(threads: int) -> list[Candidate]:
    """Reading memory once, as one and as four streams a thread: the better one is the limit."""
    library, memory = _library(), _memory()
    start = -(-memory.data_ptr() // 64) * 64
    size = cold_bytes()
    return [
        Candidate(
            f"read {streams} stream(s) a thread",
            timed(lambda s=streams: library.sparsekern_bench_read(start, size, s, threads)),
            bytes=size,
            limit="bandwidth",
        )
        for streams in (1, 4)
    ]


def multiply_adds(threads: int) -> Candidate:
    """fp32 multiply-adds on registers with the widest vectors."""
    library = _library()
    return Candidate(
        "multiply-adds on registers",
        timed(lambda: library.sparsekern_bench_fma(_FMA_STEPS, threads)),
        flops=library.sparsekern_bench_fma(1, threads) * _FMA_STEPS,
        limit="fma",
    )
