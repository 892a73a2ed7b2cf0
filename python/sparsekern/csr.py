# SPDX-License-Identifier: Apache-2.0
"""`CSRTensor`: a packed sparse matrix, validated once, that the operators multiply with."""

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
from sparsekern._transpose import transposed

__all__ = ["CSRTensor"]

BLOCK_ROWS = (1, 2, 4)


def check_block_rows(operator: str, block_rows: object) -> int:
    """Raise unless `block_rows` is 1, 2 or 4."""
    if isinstance(block_rows, bool) or not isinstance(block_rows, int):
        raise TypeError(
            f"{operator}: block_rows must be an integer, got {type(block_rows).__name__}"
        )
    if block_rows not in BLOCK_ROWS:
        raise ValueError(f"{operator}: block_rows must be 1, 2 or 4, got {block_rows}")
    return block_rows


def _packing_bytes(w: Tensor, mask: Tensor | None, block_rows: int, dtype: torch.dtype) -> float:
    """Estimate what the packed parts need while they are made, from the number of kept weights."""
    numel = w.numel()
    kept = int(torch.count_nonzero(w if mask is None else mask))
    stored = min(kept * block_rows, numel) * 1.1  # padding is 2 to 7 % in ordinary matrices
    return 2 * stored * dtype.itemsize + 2 * stored / block_rows + numel / 64 / block_rows


class CSRTensor(PackedTensor):
    """A sparse matrix [rows, cols] in the format ``csr`` of ``docs/formats.md``.

    Immutable in shape and pattern; the kept values may be trained. What the constructor is given
    is checked completely, as untrusted input, once; operators then rely on it.

    Attributes:
        values: 1-D, float32, bfloat16, float16 or int8: the kept weights, in the format's order.
        structure: 1-D uint8: shape, column indices and counts. Not to be written to.
        scale: float32 [rows], int8 only: the weight is ``value * scale[row]``. Otherwise None.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: data that break the format, or that lie on different devices.
    """

    _block_rows: int
    _kept: int
    _nnz: int | None

    @staticmethod
    def _validate(values: NDArray[Any], structure: NDArray[np.uint8], dtype: str) -> None:
        _core.csr_validate(values, structure, dtype)

    @staticmethod
    def _unpack(values: NDArray[Any], structure: NDArray[np.uint8], dtype: str) -> NDArray[Any]:
        return _core.csr_unpack(values, structure, dtype)

    @staticmethod
    def _mask_of(structure: NDArray[np.uint8]) -> NDArray[np.bool_]:
        return _core.csr_mask(structure)

    def _read_header(self, structure: NDArray[np.uint8]) -> tuple[int, int]:
        info = _core.csr_info(structure)
        self._block_rows = info["block_rows"]
        self._kept = info["kept"]
        self._nnz = None
        return info["rows"], info["cols"]

    def _pattern(self) -> str:
        return f"block_rows={self._block_rows}"

    @classmethod
    def from_dense(
        cls,
        w: Tensor,
        *,
        mask: Tensor | None = None,
        block_rows: int = 1,
        dtype: torch.dtype | None = None,
    ) -> CSRTensor:
        """Pack a dense matrix.

        Args:
            w: [rows, cols], any floating-point dtype, strides and device.
            mask: bool [rows, cols], True = kept, so that explicit zeros can be kept (training
                moves through 0). Default: what is not zero after conversion to `dtype`.
            block_rows: 1, 2 or 4 consecutive rows share one pattern; a column is kept for a group
                when any of its rows keeps it, and the others store what `w` holds there.
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
        name = "CSRTensor.from_dense"
        source = check_dense(name, w, mask)
        check_block_rows(name, block_rows)
        dtype = stored_dtype(name, source, dtype)
        require_memory(name, source, mask, dtype, _packing_bytes(source, mask, block_rows, dtype))
        kept = None if mask is None else mask.detach().cpu().contiguous()
        array, scale = stored_elements(name, source, kept, dtype)
        values, structure = _core.csr_pack(
            array, DTYPE_NAMES[dtype], None if kept is None else to_numpy(kept), block_rows
        )
        return cls._packed(values, structure, scale, dtype, w.device)

    @property
    def block_rows(self) -> int:
        """Rows that share one pattern: 1, 2 or 4."""
        return self._block_rows

    @property
    def nnz(self) -> int:
        """Number of kept weights, explicit zeros included."""
        if self._nnz is None:
            rows, step = self._shape[0], self._block_rows
            # A last group that is short keeps fewer weights than the header's count of pairs says.
            self._nnz = self._kept * step if rows % step == 0 else int(self.mask().sum())
        return self._nnz

    def transpose(self) -> CSRTensor:
        """The transposed matrix [cols, rows], block_rows 1; differentiable in `values`.

        The transposed pattern is built once per structure and kept while the structure lives.

        Raises:
            NotImplementedError: int8, whose scale belongs to rows and would belong to columns.
        """
        if self.scale is not None:
            raise NotImplementedError(
                "CSRTensor.transpose: dtype must be float32, bfloat16 or float16, got int8"
            )
        pattern = transposed(self.structure)
        return CSRTensor.trusted(pattern.gather(self.values), pattern.structure, None)

    @classmethod
    def __torch_function__(
        cls,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Let `torch.nn.functional.linear` multiply; tell every other function of torch no."""
        if func is torch.nn.functional.linear:
            from sparsekern import ops

            return ops.csr_linear(*args, **(kwargs or {}))
        name = getattr(func, "__name__", str(func))
        raise TypeError(
            f"CSRTensor: torch functions must be torch.nn.functional.linear, got {name}; "
            "use to_dense()"
        )
