# SPDX-License-Identifier: Apache-2.0
"""Unstructured weights of compressed-tensors checkpoints: ``sparse-bitmask``."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sparsekern import _core, _memory
from sparsekern._compressed24 import FLOAT8, VALUES, size_of
from sparsekern._cutlass24 import bits_of, check_shape, check_tensor
from sparsekern._packed import DTYPE_NAMES, to_numpy
from sparsekern.bitmap import BitmapTensor


def dense_of_sparse_bitmask(
    operator: str, shape: object, compressed: Tensor, bitmask: Tensor, row_offsets: Tensor
) -> tuple[Tensor, Tensor]:
    """The dense matrix, in the dtype of `compressed`, and its pattern; both on the CPU."""
    rows, cols = size_of(operator, shape)
    check_tensor(operator, "compressed", compressed, VALUES)
    check_tensor(operator, "bitmask", bitmask, (torch.uint8,))
    check_tensor(operator, "row_offsets", row_offsets, (torch.int64, torch.int32))
    if compressed.dim() != 1:
        raise ValueError(f"{operator}: compressed must be 1-D, got {list(compressed.shape)}")
    check_shape(operator, "bitmask", bitmask, (rows, -(-cols // 8)))
    check_shape(operator, "row_offsets", row_offsets, (rows,))
    _memory.require(
        operator,
        f"unpacking a matrix [{rows}, {cols}]",
        rows * cols * (compressed.element_size() + 3),
    )
    bits = np.unpackbits(bitmask.detach().cpu().contiguous().numpy(), axis=1, bitorder="little")
    if bits[:, cols:].any():
        raise ValueError(f"{operator}: bitmask must be 0 beyond the last column")
    mask = torch.from_numpy(bits[:, :cols].astype(bool))
    counts = mask.sum(1)
    kept = int(counts.sum())
    if kept != compressed.numel():
        raise ValueError(
            f"{operator}: bitmask must name as many weights as compressed holds "
            f"({compressed.numel()}), got {kept}"
        )
    wrong = (row_offsets.detach().cpu() != counts.cumsum(0) - counts).nonzero()
    if wrong.numel():
        row = int(wrong[0])
        raise ValueError(
            f"{operator}: row_offsets must count the bits of the rows before, "
            f"got {int(row_offsets[row])} for row {row}"
        )
    values = bits_of(compressed.detach().cpu().contiguous())
    dense = torch.zeros(rows, cols, dtype=values.dtype)
    dense[mask] = values
    return dense.view(compressed.dtype), mask


def from_sparse_bitmask(
    shape: Tensor | tuple[int, int] | list[int],
    compressed: Tensor,
    bitmask: Tensor,
    row_offsets: Tensor,
    *,
    scale: Tensor | None = None,
) -> BitmapTensor:
    """Read a weight of a ``sparse-bitmask`` checkpoint of compressed-tensors.

    Args:
        shape: rows and columns, as integers or as the checkpoint's int64 [2].
        compressed: 1-D, floating point or int8: the kept values, row by row.
        bitmask: uint8 [rows, ceil(cols / 8)]: bit c % 8 of byte c / 8 says that column c is kept.
        row_offsets: int64 [rows]: how many values come before each row.
        scale: float32 [rows], for int8 alone: the weight is ``value * scale[row]``; default 1.

    Returns:
        The matrix on the device of `compressed`, with every value bit by bit: NaN, infinities, -0
        and explicit zeros too. float64 and float8 become float32.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: shapes, numbers of bits and values, or offsets that do not fit each other; bits
            beyond the last column.
    """
    name = "from_sparse_bitmask"
    dense, mask = dense_of_sparse_bitmask(name, shape, compressed, bitmask, row_offsets)
    if dense.dtype in (*FLOAT8, torch.float64):
        dense = dense.float()
    if dense.dtype != torch.int8:
        if scale is not None:
            raise ValueError(f"{name}: scale must be None unless compressed is int8, got a scale")
        return BitmapTensor.from_dense(dense, mask=mask).to(compressed.device)
    if scale is None:
        scale = torch.ones(dense.shape[0])
    values, structure = _core.bitmap_pack(to_numpy(dense), DTYPE_NAMES[dense.dtype], to_numpy(mask))
    packed = BitmapTensor(
        torch.from_numpy(values), torch.from_numpy(structure), scale.detach().cpu()
    )
    return packed.to(compressed.device)


def to_sparse_bitmask(weight: BitmapTensor) -> dict[str, Tensor]:
    """Write a weight as ``sparse-bitmask``.

    Returns:
        ``shape``, ``compressed``, ``bitmask`` and ``row_offsets`` on the CPU, as
        `from_sparse_bitmask` takes them. int8: without the scale.

    Raises:
        TypeError: not a `BitmapTensor`.
    """
    if not isinstance(weight, BitmapTensor):
        raise TypeError(
            f"to_sparse_bitmask: weight must be a BitmapTensor, got {type(weight).__name__}"
        )
    structure = to_numpy(weight.structure.cpu())
    mask = _core.bitmap_mask_of(structure)
    values = to_numpy(weight.values.detach().cpu().contiguous())
    dense = _core.bitmap_unpack(values, structure, DTYPE_NAMES[weight.dtype])
    kept = torch.from_numpy(dense[mask].view(f"i{dense.itemsize}")).view(weight.dtype)
    counts = torch.from_numpy(mask.sum(axis=1, dtype=np.int64))
    return {
        "shape": torch.tensor(list(weight.shape)),
        "compressed": kept,
        "bitmask": torch.from_numpy(np.packbits(mask, axis=1, bitorder="little")),
        "row_offsets": counts.cumsum(0) - counts,
    }
