# SPDX-License-Identifier: Apache-2.0
"""Times pruned KV caches on CUDA: decode attention beside torch's dense attention, and appending.

Writes one JSON whatever happens, and ends with 1 when a case failed or a result was wrong.
`gpu_check.sh` runs it.
"""

from __future__ import annotations

import argparse
import json
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sparsekern as sk
import torch
from gpu_bench import DTYPE, copies_for, copy_bandwidth, seconds
from sparsekern._bitmap_kv import kept_channels
from torch.nn import functional

HEADS, KV_HEADS, HEAD_DIM = 32, 8, 128
# Batch and tokens of each sequence.
SIZES = ((32, 4096), (8, 32768), (1, 32768), (1, 4096))
QUICK_SIZES = ((2, 512),)
SPARSITIES = (0.5, 0.7)


class Pages:
    """Random K and V [batch, KV_HEADS, tokens, HEAD_DIM], and their pages."""

    def __init__(self, batch: int, tokens: int, sparsity: float) -> None:
        generator = torch.Generator(device="cuda").manual_seed(1)

        def random(*shape: int) -> torch.Tensor:
            return torch.randn(shape, dtype=DTYPE, device="cuda", generator=generator)

        self.keep = kept_channels(HEAD_DIM, sparsity)
        each = -(-tokens // 64)
        sizes = (batch * each, KV_HEADS, HEAD_DIM, self.keep, self.keep, DTYPE, "cuda")
        self.pages = sk.BitmapKVPool(*sizes).pages
        self.table = torch.arange(batch * each, dtype=torch.int32, device="cuda").view(batch, each)
        self.lengths = torch.zeros(batch, dtype=torch.int64, device="cuda")
        self.q = random(batch, HEADS, HEAD_DIM)
        self.k, self.v = (random(batch, KV_HEADS, tokens, HEAD_DIM) for _ in range(2))
        self.append(self.k, self.v)
        self.lengths += tokens

    def append(self, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Behind the tokens that are there; returns the pages."""
        keeps = (self.keep, self.keep)
        sk.ops.bitmap_kv_append(k, v, self.pages, self.table, self.lengths, *keeps)
        return self.pages

    def attend(self, pages: torch.Tensor) -> torch.Tensor:
        keeps = (self.keep, self.keep)
        return sk.ops.bitmap_attention(self.q, pages, self.table, self.lengths, *keeps)[0]

    def expected(self) -> torch.Tensor:
        """In fp32, over the dense K and V of the pages."""
        sizes = (HEAD_DIM, self.keep, self.keep, self.k.shape[2])
        k, v = sk.ops.bitmap_kv_unpack(self.pages, self.table, self.lengths, *sizes)
        out = []
        for b in range(k.shape[0]):
            q = self.q[b].float().view(KV_HEADS, HEADS // KV_HEADS, HEAD_DIM)
            scores = q @ k[b].float().transpose(1, 2) * HEAD_DIM**-0.5
            out.append((scores.softmax(-1) @ v[b].float()).view(HEADS, HEAD_DIM))
        return torch.stack(out)


def attention(result: dict[str, Any], batch: int, tokens: int, sparsity: float) -> None:
    made = Pages(batch, tokens, sparsity)
    q, k, v = made.q, made.k, made.v
    folded = q.view(batch, KV_HEADS, HEADS // KV_HEADS, HEAD_DIM)
    entry: dict[str, Any] = {"batch": batch, "tokens": tokens, "sparsity": sparsity}
    entry["candidates"] = {}
    result["attention"].append(entry)
    expected = made.expected()
    error = float((made.attend(made.pages).float() - expected).abs().max())
    scale = float(expected.square().mean().sqrt())
    entry["error"] = error / scale
    if not entry["error"] < 0.05:
        raise AssertionError(f"error must be below 0.05 of the result's rms, got {entry['error']}")

    def dense(query: torch.Tensor) -> Callable[[Any], Callable[[], torch.Tensor]]:
        grouped = query.shape[1] != KV_HEADS
        run = functional.scaled_dot_product_attention
        return lambda kv: lambda: run(query, *kv, enable_gqa=grouped)

    for name, first, call in (
        ("sparsekern", (made.pages,), lambda pages: lambda: made.attend(*pages)),
        ("sdpa, enable_gqa", (k, v), dense(q[:, :, None])),
        ("sdpa, query heads as tokens", (k, v), dense(folded)),
    ):
        nbytes = sum(t.nbytes for t in first)
        copies = [first]
        copies += [tuple(t.clone() for t in first) for _ in range(copies_for(nbytes) - 1)]
        time = seconds([call(each) for each in copies])
        limit = nbytes / result["copy"]["bytes_per_s"]
        entry["candidates"][name] = {
            **time,
            "bytes": nbytes,
            "limit_s": limit,
            "share_of_limit": limit / time["median_s"],
        }
        label = f"attention {batch} x {tokens} tokens, {sparsity:.0%}, {name}"
        print(f"{label}: {time['median_s'] * 1e6:.1f} us", flush=True)


def appending(result: dict[str, Any], batch: int, tokens: int, sparsity: float) -> None:
    made = Pages(batch, 64, sparsity) if tokens == 1 else Pages(batch, tokens, sparsity)
    made.lengths.zero_()
    k, v = made.k[:, :, :tokens], made.v[:, :, :tokens]
    time = seconds([lambda: made.append(k, v)] * 8)
    result["append"].append({"batch": batch, "tokens": tokens, "sparsity": sparsity, **time})
    label = f"append {batch} x {tokens} tokens, {sparsity:.0%}"
    print(f"{label}: {time['median_s'] * 1e6:.1f} us", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--quick", action="store_true", help="small shapes: does it all work?")
    options = parser.parse_args()
    result: dict[str, Any] = {"attention": [], "append": [], "failures": []}
    try:
        result["copy"] = copy_bandwidth()
    except Exception as error:
        traceback.print_exc()
        result["failures"].append(f"{type(error).__name__}: {error}")
    for batch, tokens in QUICK_SIZES if options.quick else SIZES:
        for sparsity in SPARSITIES:
            for run, count in ((attention, tokens), (appending, 1), (appending, tokens)):
                if result["failures"]:  # an error of the device leaves nothing to go on with
                    break
                try:
                    run(result, batch, count, sparsity)
                except Exception as error:
                    traceback.print_exc()
                    text = f"{run.__name__} {batch} x {count}, {sparsity}: {error}"
                    result["failures"].append(text)
                options.output.write_text(json.dumps(result, indent=1))
    options.output.write_text(json.dumps(result, indent=1))
    return 1 if result["failures"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
