# SPDX-License-Identifier: Apache-2.0
"""The pattern of the transposed matrix, which backward multiplies with: built once, on demand."""

from __future__ import annotations

import threading
import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from sparsekern import _core


@dataclass(frozen=True)
class TransposedPattern:
    """Structure of W^T and where each of its values lies in the values of W.

    Attributes:
        shape: [rows, cols] of W.
        value_count: number of values of W, padding included.
        structure: uint8, block_rows 1.
        source: int32 (int64 beyond 2^31) [number of values of W^T]: position in W's values.
        padding: int64: the values of W^T that are padding and stay 0.
    """

    shape: tuple[int, int]
    value_count: int
    structure: Tensor
    source: Tensor
    padding: Tensor

    def gather(self, values: Tensor) -> Tensor:
        """The values of W^T from those of W."""
        return values.index_select(0, self.source).index_fill(0, self.padding, 0)


@dataclass(frozen=True)
class _Entry:
    storage: Any  # StorageWeakRef; also keeps the address, the key, from being given out again
    state: tuple[int, int, int]
    pattern: TransposedPattern


_cache: dict[int, _Entry] = {}
_lock = threading.Lock()


def _state(structure: Tensor) -> tuple[int, int, int]:
    version = 0 if structure.is_inference() else structure._version
    return int(structure.storage_offset()), structure.numel(), version


def _purge() -> None:
    """Drop the patterns of structures that no longer exist."""
    if _lock.acquire(blocking=False):  # a garbage collection may come while this thread holds it
        try:
            for key in [key for key, entry in _cache.items() if entry.storage.expired()]:
                del _cache[key]
        finally:
            _lock.release()


def _build(structure: Tensor) -> TransposedPattern:
    array = structure.detach().cpu().numpy()
    transposed_structure, source = _core.csr_transpose(array)
    info = _core.csr_info(array)
    positions = torch.from_numpy(source)
    padding = torch.nonzero(positions < 0)[:, 0]
    largest = int(positions.max()) if len(positions) else 0
    narrow = torch.int32 if largest < 2**31 else torch.int64
    return TransposedPattern(
        (info["rows"], info["cols"]),
        info["steps"] * 16 * info["block_rows"],
        torch.from_numpy(transposed_structure).to(structure.device),
        positions.clamp_(min=0).to(narrow).to(structure.device),
        padding.to(structure.device),
    )


def transposed(structure: Tensor) -> TransposedPattern:
    """The transposed pattern of a validated structure; safe from several threads.

    Remembered for the memory that holds the structure, so that aliases (as autograd and compiled
    code make) find it, and built again when the tensor was written to. Writing through ``.data``
    or NumPy is not seen.
    """
    key = structure.untyped_storage()._cdata
    state = _state(structure)
    entry = _cache.get(key)
    if entry is not None and entry.state == state and not entry.storage.expired():
        return entry.pattern
    _purge()
    with _lock:
        entry = _cache.get(key)
        if entry is not None and entry.state == state and not entry.storage.expired():
            return entry.pattern
        pattern = _build(structure)
        storage = StorageWeakRef(structure.untyped_storage())  # type: ignore[no-untyped-call]
        _cache[key] = _Entry(storage, state, pattern)
    weakref.finalize(structure, _purge).atexit = False
    return pattern
