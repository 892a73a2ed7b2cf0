# SPDX-License-Identifier: Apache-2.0
"""`BitmapTensor`: a packed matrix with a bit for every weight, validated once."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparsekern import _core
from sparsekern._packed import (
    DTYPE_NAMES,
    PackedTensor,
    check_dense,
    require_memory,
    stored_dtype,
    stored_elements,
    to_numpy,
)

__all__ = ["BitmapTensor"]


def _packing_bytes(w: Tensor, mask: Tensor | None, dtype: torch.dtype) -> float:
    """What the packed parts need while they are made: themselves, and once more to be aligned."""
    kept = int(torch.count_nonzero(w if mask is None else mask))
    rows, cols = w.shape
    return 2 * (kept * dtype.itemsize + -(-rows // 16) * (-(-cols // 64) * 128 + 8))


class BitmapTensor(PackedTensor):
    """A matrix [rows, cols] in the format ``bitmap`` of ``docs/formats.md``: any weight is kept.

    A bit for every weight and the kept ones behind each other: 30 to 75 % sparsity. Immutable in
    shape and pattern; the kept values may be trained. What the constructor is given is checked
    completely, as untrusted input, once; operators then rely on it.

    Attributes:
        values: 1-D, float32, bfloat16, float16 or int8: the kept weights, in the format's order.
        structure: 1-D uint8: shape, offsets and bits. Not to be written to.
        scale: float32 [rows], int8 only: the weight is ``value * scale[row]``. Otherwise None.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: data that break the format, or that lie on different devices.
    """

    _kept: int

    @staticmethod
    def _validate(values: NDArray[Any], structure: NDArray[np.uint8], dtype: str) -> None:
        _core.bitmap_validate(values, structure, dtype)

    @staticmethod
    def _unpack(values: NDArray[Any], structure: NDArray[np.uint8], dtype: str) -> NDArray[Any]:
        return _core.bitmap_unpack(values, structure, dtype)

    @staticmethod
    def _mask_of(structure: NDArray[np.uint8]) -> NDArray[np.bool_]:
        return _core.bitmap_mask_of(structure)

    def _read_header(self, structure: NDArray[np.uint8]) -> tuple[int, int]:
        info = _core.bitmap_info(structure)
        self._kept = info["kept"]
        return info["rows"], info["cols"]

    def _pattern(self) -> str:
        return "bitmap"

    @classmethod
    def from_dense(
        cls, w: Tensor, *, mask: Tensor | None = None, dtype: torch.dtype | None = None
    ) -> BitmapTensor:
        """Pack a dense matrix.

        Args:
            w: [rows, cols], any floating-point dtype, strides and device.
            mask: bool [rows, cols], True = kept, so that explicit zeros can be kept (training
                moves through 0). Default: what is not zero after conversion to `dtype`.
            dtype: float32, bfloat16, float16 or int8; default the dtype of `w`, float32 for
                those that the format does not have. int8 is symmetric per row: scale = max|w| /
                127, rounded to the nearest, ties to even; 1 for a row of zeros.

        Returns:
            The packed matrix on the device of `w`. NaN and infinities are kept.

        Raises:
            TypeError: a wrong type or dtype.
            ValueError: an empty matrix, one beyond the format's limits, one on the meta device;
                NaN or infinity with int8.
            MemoryError: what packing needs is not available; raised before the work starts.
        """
        name = "BitmapTensor.from_dense"
        source = check_dense(name, w, mask)
        dtype = stored_dtype(name, source, dtype)
        require_memory(name, source, mask, dtype, _packing_bytes(source, mask, dtype))
        kept = None if mask is None else mask.detach().cpu().contiguous()
        array, scale = stored_elements(name, source, kept, dtype)
        values, structure = _core.bitmap_pack(
            array, DTYPE_NAMES[dtype], None if kept is None else to_numpy(kept)
        )
        return cls._packed(values, structure, scale, dtype, w.device)

    @classmethod
    def from_packed(cls, packed: object) -> BitmapTensor:
        """The same matrix from another format, bit for bit: what was kept stays kept.

        Args:
            packed: a `CSRTensor` or `NMTensor`. Of csr in blocks, each row keeps what its block
                keeps.

        Returns:
            The matrix in `packed.dtype` with the same scale, on its device.

        Raises:
            TypeError: `packed` is not a packed tensor.
        """
        name = "BitmapTensor.from_packed"
        if not isinstance(packed, PackedTensor):
            got = type(packed).__name__
            raise TypeError(f"{name}: packed must be a CSRTensor or NMTensor, got {got}")
        structure = to_numpy(packed.structure.cpu())
        dtype = DTYPE_NAMES[packed.dtype]
        dense = packed._unpack(to_numpy(packed.values.detach().cpu()), structure, dtype)
        values, bits = _core.bitmap_pack(dense, dtype, packed._mask_of(structure))
        scale = None if packed.scale is None else packed.scale.detach().clone()
        return cls._packed(values, bits, scale, packed.dtype, packed.device)

    @property
    def nnz(self) -> int:
        """Number of kept weights, explicit zeros included."""
        return self._kept
