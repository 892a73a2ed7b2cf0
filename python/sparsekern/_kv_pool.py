# SPDX-License-Identifier: Apache-2.0
"""Pages of pruned KV caches: a pool that many sequences share."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsekern._bitmap_kv import check_channels, check_kernels, page_elements

__all__ = ["BitmapKVPool"]


class BitmapKVPool:
    """A fixed number of pages, each 64 tokens of all KV heads of one layer.

    A page is handed out with `allocate`, shared with `retain` and given back with `release`; it is
    free when all its owners have given it back. The memory is taken once, untouched until it is
    written to, and never grows.

    Args:
        pages: how many.
        kv_heads: of a layer.
        head_dim: a multiple of 8, 8 to 256.
        k_keep: channels kept of each K.
        v_keep: channels kept of each V.
        dtype: float32, bfloat16 or float16.
        device: where the pages are: the CPU or a CUDA device.

    Attributes:
        pages: [pages, kv_heads, elements]: what the operators take.
    """

    def __init__(
        self,
        pages: int,
        kv_heads: int,
        head_dim: int,
        k_keep: int,
        v_keep: int,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str = "cpu",
    ) -> None:
        if pages < 1 or kv_heads < 1:
            raise ValueError(
                f"BitmapKVPool: pages and kv_heads must be at least 1, got {pages} and {kv_heads}"
            )
        check_channels("BitmapKVPool", head_dim, k_keep, v_keep)
        if dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise TypeError(
                f"BitmapKVPool: dtype must be float32, bfloat16 or float16, got {dtype}"
            )
        check_kernels("BitmapKVPool", "device", torch.device(device))
        elements = page_elements(head_dim, k_keep, v_keep, dtype)
        self.pages = torch.empty((pages, kv_heads, elements), dtype=dtype, device=device)
        self.kv_heads, self.head_dim = kv_heads, head_dim
        self.k_keep, self.v_keep, self.dtype = k_keep, v_keep, dtype
        self._owners = [0] * pages
        self._free = list(range(pages - 1, -1, -1))

    @property
    def device(self) -> torch.device:
        """Where the pages are."""
        return self.pages.device

    @property
    def free(self) -> int:
        """Pages that nobody owns."""
        return len(self._free)

    @property
    def used(self) -> int:
        """Pages that somebody owns."""
        return len(self._owners) - len(self._free)

    @property
    def page_bytes(self) -> int:
        """Of one page, all KV heads."""
        return self.pages[0].numel() * self.pages.element_size()

    @property
    def nbytes(self) -> int:
        """Of the pages that are owned."""
        return self.used * self.page_bytes

    def owners(self, page: int) -> int:
        """How many own a page."""
        return self._owners[page]

    def allocate(self, count: int) -> list[int]:
        """Take pages.

        Raises:
            MemoryError: fewer than `count` are free; none is taken then.
        """
        if count > len(self._free):
            raise MemoryError(
                f"BitmapKVPool: {count} pages must be free, got {len(self._free)} of "
                f"{len(self._owners)}; make the pool larger or free sequences"
            )
        taken = [self._free.pop() for _ in range(count)]
        for page in taken:
            self._owners[page] = 1
        return taken

    def retain(self, pages: list[int]) -> None:
        """Own pages once more. Raises ValueError for one that nobody owns."""
        self._check(pages)
        for page in pages:
            self._owners[page] += 1

    def release(self, pages: list[int]) -> None:
        """Give pages back. Raises ValueError for one that nobody owns."""
        self._check(pages)
        for page in pages:
            if self._owners[page] < 1:
                raise ValueError(f"BitmapKVPool: page {page} must be owned, got it released twice")
            self._owners[page] -= 1
            if self._owners[page] == 0:
                self._free.append(page)

    def _check(self, pages: list[int]) -> None:
        for page in pages:
            if not 0 <= page < len(self._owners) or self._owners[page] < 1:
                raise ValueError(f"BitmapKVPool: page {page} must be owned by somebody")

    def owned_copy(self, page: int) -> int:
        """A page with the content of `page` that the caller alone owns, instead of that one."""
        if self._owners[page] == 1:
            return page
        (copy,) = self.allocate(1)
        self.pages[copy] = self.pages[page]
        self.release([page])
        return copy

    def describe(self) -> dict[str, object]:
        """What a cache's saved state must agree in."""
        return {
            "kv_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "k_keep": self.k_keep,
            "v_keep": self.v_keep,
            "dtype": str(self.dtype),
        }


def table_of(rows: list[list[int]], columns: int, device: torch.device) -> Tensor:
    """A page table [sequences, columns], filled up with 0."""
    table = torch.zeros((len(rows), columns), dtype=torch.int32)
    for i, row in enumerate(rows):
        table[i, : len(row)] = torch.tensor(row, dtype=torch.int32)
    return table.to(device)
