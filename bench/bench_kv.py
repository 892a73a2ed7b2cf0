# SPDX-License-Identifier: Apache-2.0
"""Decode attention over pruned KV pages, caches cold in memory, against torch's dense attention."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle
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
from numpy.typing import NDArray
from sparsekern import BitmapKVPool, _core, ops
from sparsekern._bitmap_kv import kept_channels
from torch import Tensor
from torch.nn import functional

# Of all copies of a cache together, at least: several times what a last-level cache holds.
_COLD_BYTES = 256 << 20
# In units of the result's root mean square; results are bf16, and torch rounds weights to it too.
_TOLERANCE = 0.1


def _exact(q: Tensor, k: Tensor, v: Tensor) -> NDArray[Any]:
    heads, kv_heads = q.shape[1], k.shape[1]
    grouped = q.double().reshape(kv_heads, heads // kv_heads, -1)
    scores = grouped @ k[0].double().transpose(1, 2) * q.shape[-1] ** -0.5
    result: NDArray[Any] = (torch.softmax(scores, -1) @ v[0].double()).numpy()
    return result


def _copies(nbytes: int) -> int:
    return max(2, -(-_COLD_BYTES // nbytes))


def _candidate(
    name: str,
    run: Callable[[], Tensor],
    want: NDArray[Any],
    nbytes: int,
    **fields: Any,
) -> Candidate:
    def seconds(calls: int) -> float:
        with torch.inference_mode():
            return timed(run)(calls)

    def output() -> NDArray[Any]:
        with torch.inference_mode():
            result: NDArray[Any] = run().float().reshape(want.shape).numpy()
            return result

    return Candidate(name, seconds, output, want, _TOLERANCE, bytes=nbytes, **fields)


def _dense(q: Tensor, k: Tensor, v: Tensor) -> list[Candidate]:
    """q [1, heads, D]; k, v [1, kv_heads, tokens, D]."""
    want, nbytes = _exact(q, k, v), k.nbytes + v.nbytes
    kv_heads, group, scale = k.shape[1], q.shape[1] // k.shape[1], q.shape[2] ** -0.5
    folded = q.reshape(1, kv_heads, group, -1)
    pool = cycle([(k.clone(), v.clone()) for _ in range(_copies(nbytes))])

    def sdpa() -> Tensor:
        return functional.scaled_dot_product_attention(q[:, :, None], *next(pool), enable_gqa=True)

    def sdpa_folded() -> Tensor:
        return functional.scaled_dot_product_attention(folded, *next(pool))

    def products() -> Tensor:
        own_k, own_v = next(pool)
        scores = torch.matmul(folded, own_k.transpose(2, 3)) * scale
        return torch.matmul(torch.softmax(scores, -1, dtype=torch.float32).to(q.dtype), own_v)

    named = {
        "torch SDPA, enable_gqa": sdpa,
        "torch SDPA, heads folded": sdpa_folded,
        "torch two products and softmax": products,
    }
    return [_candidate(name, run, want, nbytes) for name, run in named.items()]


def _pruned(q: Tensor, k: Tensor, v: Tensor, sparsity: float) -> list[Candidate]:
    """Attention over all tokens, and appending one to that cache."""
    _, kv_heads, tokens, head_dim = k.shape
    keep = kept_channels(head_dim, sparsity)
    each = tokens // 64
    page_bytes = BitmapKVPool(1, kv_heads, head_dim, keep, keep, k.dtype).page_bytes
    copies = _copies(each * page_bytes)
    pages = BitmapKVPool(copies * each, kv_heads, head_dim, keep, keep, k.dtype).pages
    lengths, empty = torch.tensor([tokens]), torch.zeros(1, dtype=torch.int64)
    # A sequence's pages lie anywhere in the pool.
    order = torch.randperm(copies * each, generator=torch.Generator().manual_seed(0)).int()
    tables = [part[None].contiguous() for part in order.chunk(copies)]
    for table in tables:
        ops.bitmap_kv_append(k, v, pages, table, empty, keep, keep)
    stored = ops.bitmap_kv_unpack(pages, tables[0], lengths, head_dim, keep, keep, tokens)
    pool: Iterator[Tensor] = cycle(tables)
    last, one = lengths - 1, (k[:, :, -1:], v[:, :, -1:])

    def attend() -> Tensor:
        return ops.bitmap_attention(q, pages, next(pool), lengths, keep, keep)[0]

    attention = _candidate(
        OURS,
        attend,
        _exact(q, *stored),
        each * page_bytes,
        sparsity=sparsity,
        details={"kernel": _core.bitmap_attention_kernel("bfloat16")},
    )
    append = Candidate(
        f"{OURS} append",
        timed(lambda: ops.bitmap_kv_append(*one, pages, next(pool), last, keep, keep)),
        partial(_last_token, one, pages, tables[0], last, keep),
        _last_token(one, pages, tables[1], last, keep),
        0.0,
        sparsity,
        details={"kernel": _core.bitmap_kv_append_kernel("bfloat16")},
    )
    return [attention, append]


def _last_token(
    one: tuple[Tensor, Tensor], pages: Tensor, table: Tensor, last: Tensor, keep: int
) -> NDArray[Any]:
    """K of the token that is appended last, as it comes back."""
    head_dim, tokens = one[0].shape[3], int(last) + 1
    ops.bitmap_kv_append(*one, pages, table, last, keep, keep)
    dense = ops.bitmap_kv_unpack(pages, table, last + 1, head_dim, keep, keep, tokens)
    result: NDArray[Any] = dense[0][:, :, -1].double().numpy()
    return result


def main(options: Options) -> None:
    section = SHAPES["kv"]
    heads, kv_heads, head_dim = section["heads"], section["kv_heads"], section["head_dim"]
    recorder = Recorder("kv", options.results)
    generator = torch.Generator().manual_seed(1)
    for tokens in section["tokens"]:
        q = torch.randn(1, heads, head_dim, generator=generator).bfloat16()
        k, v = (
            torch.randn(1, kv_heads, tokens, head_dim, generator=generator).bfloat16()
            for _ in range(2)
        )
        cases = _dense(q, k, v)
        for sparsity in section["sparsities"]:
            cases += _pruned(q, k, v, sparsity)
        for threads in thread_counts():
            with_threads(threads)
            case = f"{tokens} tokens, {heads}/{kv_heads} heads of {head_dim}, bf16, cold"
            recorder.add(measure(case, threads, cases + bandwidth(threads), options.effort))
    recorder.save()


if __name__ == "__main__":
    main(options())
