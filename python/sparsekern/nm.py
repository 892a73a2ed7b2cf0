# SPDX-License-Identifier: Apache-2.0
"""`NMTensor`: a packed matrix that keeps N of every M consecutive columns, validated once."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparsekern import _core
from sparsekern._nm_mask import check_group, nm_mask
from sparsekern._packed import (
    DTYPE_NAMES,
    PackedTensor,
    check_dense,
    require_memory,
    stored_dtype,
    stored_elements,
    to_numpy,
)

__all__ = ["NMTensor"]

_ROWS_OF_A_PANEL = 16  # docs/formats.md
_SELECTED_AT_ONCE = 2**20  # weights: what selection needs beside them, 40 bytes each, stays small


def _packing_bytes(w: Tensor, n: int, m: int, dtype: torch.dtype) -> float:
    """What the packed parts need while they are made: themselves, and once more to be aligned."""
    rows, cols = w.shape
    slots = -(-rows // _ROWS_OF_A_PANEL) * _ROWS_OF_A_PANEL * -(-cols // 32) * (32 // m) * n
    return 2 * slots * (dtype.itemsize + (0.25 if m <= 4 else 0.5 if m <= 16 else 1))


def _largest(w: Tensor, n: int, m: int, mask: Tensor | None) -> Tensor:
    """The mask of the N largest magnitudes in each group; ties to the lowest column.

    What `mask` leaves out is never kept; NaN only where there are fewer than N numbers.
    """
    rows, cols = w.shape
    kept = torch.empty(rows, cols, dtype=torch.bool)
    step = max(1, _SELECTED_AT_ONCE // cols)
    for first in range(0, rows, step):
        part = slice(first, first + step)
        if mask is None:
            kept[part] = nm_mask(w[part], n, m)
            continue
        size = w[part].float() if w.element_size() == 1 else w[part]  # float8 has no abs
        allowed = mask[part].to(w.device)
        size = torch.where(size.isnan(), -1, size.abs()).masked_fill(~allowed, -math.inf)
        kept[part] = nm_mask(size, n, m, score=size).logical_and_(allowed)
    return kept


class NMTensor(PackedTensor):
    """A matrix [rows, cols] in the format ``nm`` of ``docs/formats.md``: N of every M are kept.

    Every group of M consecutive columns of a row keeps exactly N weights, explicit zeros among
    them. Immutable in shape and pattern; the kept values may be trained. What the constructor is
    given is checked completely, as untrusted input, once; operators then rely on it.

    Attributes:
        values: 1-D, float32, bfloat16, float16 or int8: the kept weights, in the format's order.
        structure: 1-D uint8: shape and column indices. Not to be written to.
        scale: float32 [rows], int8 only: the weight is ``value * scale[row]``. Otherwise None.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: data that break the format, or that lie on different devices.
    """

    _n: int
    _m: int

    @staticmethod
    def _validate(values: NDArray[Any], structure: NDArray[np.uint8], dtype: str) -> None:
        _core.nm_validate(values, structure, dtype)

    @staticmethod
    def _unpack(values: NDArray[Any], structure: NDArray[np.uint8], dtype: str) -> NDArray[Any]:
        return _core.nm_unpack(values, structure, dtype)

    @staticmethod
    def _mask_of(structure: NDArray[np.uint8]) -> NDArray[np.bool_]:
        return _core.nm_mask_of(structure)

    def _read_header(self, structure: NDArray[np.uint8]) -> tuple[int, int]:
        info = _core.nm_info(structure)
        self._n, self._m = info["n"], info["m"]
        return info["rows"], info["cols"]

    def _pattern(self) -> str:
        return f"n={self._n}, m={self._m}"

    @classmethod
    def from_dense(
        cls,
        w: Tensor,
        n: int,
        m: int,
        *,
        mask: Tensor | None = None,
        strict: bool = True,
        dtype: torch.dtype | None = None,
    ) -> NMTensor:
        """Pack a dense matrix.

        Args:
            w: [rows, cols], any floating-point dtype, strides and device.
            n: weights that each group of `m` consecutive columns keeps, 1 to m - 1.
            m: 2, 4, 8, 16 or 32. A row's last group may be short.
            mask: bool [rows, cols], True = kept, so that explicit zeros can be kept (training
                moves through 0). Default: what is not zero after conversion to `dtype`. A group
                that keeps fewer than `n` gets its lowest other columns, as explicit zeros.
            strict: True refuses a matrix with a group that keeps more than `n`. False keeps the
                `n` of largest magnitude in each group, of those in `mask` where it is given: ties
                to the lowest column, infinity before any number, NaN after all of them. The
                magnitudes are those of `w`, before conversion to `dtype`.
            dtype: float32, bfloat16, float16 or int8; default the dtype of `w`, float32 for
                those that the format does not have. int8 is symmetric per row: scale = max|w| /
                127 of what is kept, rounded to the nearest, ties to even; 1 for a row of zeros.

        Returns:
            The packed matrix on the device of `w`. NaN and infinities are kept.

        Raises:
            TypeError: a wrong type or dtype.
            NotImplementedError: an `m` that the format does not have.
            ValueError: `n` out of [1, m - 1]; with `strict` a group of more than `n`, named by row
                and columns; an empty matrix, one beyond the format's limits, one on the meta
                device; NaN or infinity with int8.
            MemoryError: what packing needs is not available; raised before the work starts.
        """
        name = "NMTensor.from_dense"
        source = check_dense(name, w, mask)
        check_group(name, n, m)
        dtype = stored_dtype(name, source, dtype)
        packing = _packing_bytes(source, n, m, dtype)
        if not strict:  # the mask, and the choice in some rows
            packing += source.numel() + 40 * max(source.shape[1], _SELECTED_AT_ONCE)
        require_memory(name, source, mask, dtype, packing)
        kept = None if mask is None else mask.detach()
        if not strict:
            kept = _largest(source, n, m, kept)
        if kept is not None:
            kept = kept.cpu().contiguous()
        array, scale = stored_elements(name, source, kept, dtype)
        try:
            values, structure = _core.nm_pack(
                array, DTYPE_NAMES[dtype], n, m, None if kept is None else to_numpy(kept)
            )
        except ValueError as error:  # all else was checked: a group keeps too much
            text = str(error).removeprefix("nm: ")
            raise ValueError(f"{name}: {text}; strict=False keeps the {n} largest") from None
        return cls._packed(values, structure, scale, dtype, w.device)

    @property
    def n(self) -> int:
        """Weights that each group keeps."""
        return self._n

    @property
    def m(self) -> int:
        """Columns of a group: 2, 4, 8, 16 or 32."""
        return self._m

    @property
    def nnz(self) -> int:
        """Number of kept weights, explicit zeros included."""
        rows, cols = self._shape
        return rows * (cols // self._m * self._n + min(self._n, cols % self._m))
