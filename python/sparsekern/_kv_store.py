# SPDX-License-Identifier: Apache-2.0
"""The pruned K and V of one layer: pages out of a pool, and a window of recent tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsekern._bitmap_kv import PAGE_TOKENS, bitmap_attention, bitmap_kv_append, bitmap_kv_unpack
from sparsekern._kv_pool import BitmapKVPool, table_of

__all__ = ["PrunedKV"]


def pages_of(tokens: int) -> int:
    """Pages that so many tokens take."""
    return -(-tokens // PAGE_TOKENS)


class PrunedKV:
    """K and V of a batch of sequences, all of one length.

    The most recent `window` tokens stay dense, token p in slot p % window; a token that leaves the
    window is pruned and appended to the sequence's pages. Sequences may share pages; one is copied
    when somebody writes to it.

    Args:
        pool: where the pages come from.
        batch: sequences.
        max_length: tokens that a sequence may have.
        window: dense tokens, at least 1.
    """

    def __init__(self, pool: BitmapKVPool, batch: int, max_length: int, window: int) -> None:
        self.pool, self.max_length, self.window = pool, max_length, window
        self.length = self.packed = 0  # tokens; of them in pages
        self.rows: list[list[int]] = [[] for _ in range(batch)]
        shape = (batch, pool.kv_heads, window, pool.head_dim)
        self.window_k = torch.zeros(shape, dtype=pool.dtype, device=pool.device)
        self.window_v = torch.zeros(shape, dtype=pool.dtype, device=pool.device)
        self._counts(batch)

    def _counts(self, batch: int) -> None:
        """The table and the lengths as the operators take them, from rows and numbers."""
        device = self.pool.device
        self.table = table_of(self.rows, pages_of(self.max_length), device)
        self.packed_lengths = torch.full((batch,), self.packed, device=device)
        self.window_lengths = torch.full((batch,), self.length - self.packed, device=device)

    @property
    def batch(self) -> int:
        """Number of sequences."""
        return len(self.rows)

    @property
    def nbytes(self) -> int:
        """Of the pages (one that sequences share counts once), the window and the table."""
        pages = len({page for row in self.rows for page in row})
        dense = (self.window_k, self.window_v, self.table)
        return pages * self.pool.page_bytes + sum(t.nbytes for t in dense)

    @property
    def dense_nbytes(self) -> int:
        """Of a dense cache with these tokens."""
        elements = 2 * self.batch * self.pool.kv_heads * self.length * self.pool.head_dim
        return elements * self.pool.dtype.itemsize

    def append(self, k: Tensor, v: Tensor) -> None:
        """Add tokens: [batch, kv_heads, tokens, head_dim], the dtype of the pool.

        Raises:
            ValueError: wrong shapes, another device, more tokens than max_length.
            TypeError: another dtype.
            MemoryError: the pool has no page left; nothing is appended then.
        """
        tokens = self._check(k, v)
        k, v = k.detach(), v.detach()  # inference only: no history in the window
        before, after = self.length, self.length + tokens
        packed = max(self.packed, after - self.window)
        self._reserve(packed)
        leaving = min(packed, before) - self.packed
        if leaving > 0:
            slots = [(self.packed + i) % self.window for i in range(leaving)]
            if leaving == 1:
                at = slice(slots[0], slots[0] + 1)
                self._pack(self.window_k[:, :, at], self.window_v[:, :, at])
            else:
                self._pack(self.window_k[:, :, slots], self.window_v[:, :, slots])
        direct = packed - max(self.packed, before)
        if direct > 0:
            self._pack(k[:, :, :direct], v[:, :, :direct])
        first = max(before, packed)
        if after - first == 1:
            slot = first % self.window
            self.window_k[:, :, slot] = k[:, :, -1]
            self.window_v[:, :, slot] = v[:, :, -1]
        elif after > first:
            slots = [(first + i) % self.window for i in range(after - first)]
            self.window_k[:, :, slots] = k[:, :, first - before :]
            self.window_v[:, :, slots] = v[:, :, first - before :]
        self.length = after
        self.window_lengths.fill_(self.length - self.packed)

    def _check(self, k: Tensor, v: Tensor) -> int:
        pool = self.pool
        for name, x in (("K", k), ("V", v)):
            if x.dtype != pool.dtype:
                raise TypeError(f"BitmapKVCache: {name} must be {pool.dtype}, got {x.dtype}")
            if x.device != pool.device:
                raise ValueError(f"BitmapKVCache: {name} must be on {pool.device}, got {x.device}")
            want = [self.batch, pool.kv_heads, k.shape[-2], pool.head_dim]
            if list(x.shape) != want:
                raise ValueError(f"BitmapKVCache: {name} must be {want}, got {list(x.shape)}")
        tokens = k.shape[2]
        if self.length + tokens > self.max_length:
            raise ValueError(
                f"BitmapKVCache: a sequence must have at most max_length ({self.max_length}) "
                f"tokens, got {self.length + tokens}"
            )
        return tokens

    def _pack(self, k: Tensor, v: Tensor) -> None:
        pool = self.pool
        keeps = (pool.k_keep, pool.v_keep)
        bitmap_kv_append(k, v, pool.pages, self.table, self.packed_lengths, *keeps)
        self.packed += k.shape[2]
        self.packed_lengths.fill_(self.packed)

    def _reserve(self, packed: int) -> None:
        """Pages for so many tokens, and the page that is written to next for us alone."""
        if packed == self.packed:
            return
        at = self.packed // PAGE_TOKENS
        shared = self.packed % PAGE_TOKENS != 0 and any(
            self.pool.owners(row[at]) > 1 for row in self.rows
        )
        more = pages_of(packed) - pages_of(self.packed)
        if more == 0 and not shared:
            return
        new = self.pool.allocate(more * self.batch)
        try:
            if shared:
                for row in self.rows:
                    row[at] = self.pool.owned_copy(row[at])
        except MemoryError:
            self.pool.release(new)
            raise
        finally:
            self.table = table_of(self.rows, self.table.shape[1], self.pool.device)
        for i, row in enumerate(self.rows):
            row += new[i * more : (i + 1) * more]
        self.table = table_of(self.rows, self.table.shape[1], self.pool.device)

    def attend(
        self, q: Tensor, starts: Tensor | None, scale: float, softcap: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """`bitmap_attention` of q [batch, heads, head_dim] over all tokens."""
        pool = self.pool
        return bitmap_attention(
            q,
            pool.pages,
            self.table,
            self.packed_lengths,
            pool.k_keep,
            pool.v_keep,
            (self.window_k, self.window_v, self.window_lengths),
            starts,
            scale,
            softcap,
        )

    def dense(self) -> tuple[Tensor, Tensor]:
        """K and V [batch, kv_heads, length, head_dim], zeros where pruned."""
        pool = self.pool
        k, v = bitmap_kv_unpack(
            pool.pages,
            self.table,
            self.packed_lengths,
            pool.head_dim,
            pool.k_keep,
            pool.v_keep,
            self.length,
        )
        slots = [p % self.window for p in range(self.packed, self.length)]
        k[:, :, self.packed :] = self.window_k[:, :, slots]
        v[:, :, self.packed :] = self.window_v[:, :, slots]
        return k, v

    def select(self, sequences: list[int]) -> None:
        """Go on with these sequences, some perhaps several times. Shares their pages."""
        rows = [list(self.rows[i]) for i in sequences]
        for row in rows:
            self.pool.retain(row)
        for row in self.rows:
            self.pool.release(row)
        self.rows = rows
        self.window_k = self.window_k[sequences]
        self.window_v = self.window_v[sequences]
        self._counts(len(rows))

    def crop(self, length: int) -> None:
        """Forget the tokens from `length` on. Pruned ones before it stay pruned."""
        if not 0 <= length <= self.length:
            raise ValueError(
                f"BitmapKVCache: length must be in [0, {self.length}] to crop to, got {length}"
            )
        self.length, self.packed = length, min(self.packed, length)
        keep = pages_of(self.packed)
        for row in self.rows:
            self.pool.release(row[keep:])
            del row[keep:]
        self._counts(self.batch)

    def state(self) -> dict[str, Any]:
        """All that `restore` needs; tensors are copies, on the CPU."""
        pages = [page for row in self.rows for page in row]
        return {
            **self.pool.describe(),
            "batch": self.batch,
            "length": self.length,
            "packed": self.packed,
            "window": self.window,
            "pages": self.pool.pages[pages].cpu(),
            "window_k": self.window_k.detach().to("cpu", copy=True),
            "window_v": self.window_v.detach().to("cpu", copy=True),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take the tokens of a saved state in place of these, which are forgotten.

        Raises:
            ValueError: a state of another shape or dtype, lengths that do not fit, masks that keep
                another number of channels than they must; the cache is empty then.
            MemoryError: the pool has too few pages; the same.
        """
        self.crop(0)
        self._check_state(state)
        length, packed = state["length"], state["packed"]
        each = pages_of(packed)
        new = self.pool.allocate(each * self.batch)
        self.rows = [new[i * each : (i + 1) * each] for i in range(self.batch)]
        self.length, self.packed = length, packed
        try:
            self._check_pages(state["pages"], packed)
            self.pool.pages[new] = state["pages"].to(self.pool.device)
            self.window_k.copy_(state["window_k"])
            self.window_v.copy_(state["window_v"])
            self._counts(self.batch)
        except BaseException:
            self.crop(0)
            raise

    def _check_pages(self, pages: Tensor, packed: int) -> None:
        """Masks must keep as many channels as they say: on the CPU, where that can be raised."""
        pool = self.pool
        table = torch.arange(pages.shape[0], dtype=torch.int32).reshape(self.batch, -1)
        if pages.shape[0] == 0:
            table = table.new_empty((self.batch, 0))
        bitmap_kv_unpack(
            pages.contiguous(),
            table,
            torch.full((self.batch,), packed),
            pool.head_dim,
            pool.k_keep,
            pool.v_keep,
            packed,
        )

    def _check_state(self, state: dict[str, Any]) -> None:
        own = {**self.pool.describe(), "batch": self.batch, "window": self.window}
        for name, value in own.items():
            got = state.get(name)
            if type(got) is not type(value) or got != value:
                raise ValueError(f"BitmapKVCache: saved {name} must be {value}, got {got}")
        length, packed = state.get("length"), state.get("packed")
        if type(length) is not int or type(packed) is not int:
            raise ValueError(
                "BitmapKVCache: saved length and packed must be integers, got "
                f"{type(length).__name__} and {type(packed).__name__}"
            )
        if not (0 <= packed <= length <= self.max_length and length - packed <= self.window):
            raise ValueError(
                "BitmapKVCache: saved lengths must be 0 <= packed <= length <= max_length "
                f"({self.max_length}) with length - packed <= window ({self.window}), got packed "
                f"{packed} and length {length}"
            )
        shapes = {
            "pages": (self.batch * pages_of(packed), *self.pool.pages.shape[1:]),
            "window_k": tuple(self.window_k.shape),
            "window_v": tuple(self.window_v.shape),
        }
        for name, shape in shapes.items():
            x = state.get(name)
            if not isinstance(x, Tensor):
                got = type(x).__name__
                raise ValueError(f"BitmapKVCache: saved {name} must be a torch.Tensor, got {got}")
            if x.device.type != "cpu":
                raise ValueError(f"BitmapKVCache: saved {name} must be on the CPU, got {x.device}")
            if tuple(x.shape) != shape or x.dtype != self.pool.dtype:
                raise ValueError(
                    f"BitmapKVCache: saved {name} must be {list(shape)} {self.pool.dtype}, got "
                    f"{list(x.shape)} {x.dtype}"
                )

    def __del__(self) -> None:
        for row in getattr(self, "rows", []):
            self.pool.release(row)
