# SPDX-License-Identifier: Apache-2.0
"""Group-quantized weights of compressed-tensors: ``pack-quantized``, ``marlin-24``."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsekern import _memory
from sparsekern._compressed24 import read_marlin24
from sparsekern._cutlass24 import check_shape, check_tensor
from sparsekern._packed import check_matrix_size
from sparsekern.gqs import BITS, GROUPS, GQSTensor

PACK_QUANTIZED = ("weight_packed", "weight_scale", "weight_shape")
_FLOATS = (torch.float16, torch.bfloat16, torch.float32)
_WORD = 32  # bits


def _size_of(operator: str, shape: Tensor | tuple[int, int]) -> tuple[int, int]:
    if isinstance(shape, Tensor):
        check_tensor(operator, "weight_shape", shape, (torch.int64, torch.int32))
        shape = tuple(shape.flatten().tolist())
    if len(shape) != 2 or not all(type(size) is int for size in shape):
        raise ValueError(f"{operator}: weight_shape must be [rows, cols], got {list(shape)}")
    check_matrix_size(operator, shape)
    return shape[0], shape[1]


def _unpacked(words: Tensor, bits: int, count: int) -> Tensor:
    """The first `count` numbers of each row of int32 words, the lowest bits first, unsigned."""
    shifts = torch.arange(0, _WORD, bits, dtype=torch.int32)
    numbers = (words[:, :, None] >> shifts) & (2**bits - 1)
    flat: Tensor = numbers.flatten(1)
    return flat[:, :count]


def _group_of(operator: str, cols: int, groups: int) -> int:
    """The columns of a group where `groups` fill rows of `cols`."""
    group = next((g for g in GROUPS if g * groups == cols), None)
    if group is None:
        raise NotImplementedError(
            f"{operator}: groups must be of {GROUPS} columns, got {groups} groups for {cols} "
            "columns"
        )
    return group


def from_pack_quantized(
    weight_packed: Tensor,
    weight_scale: Tensor,
    weight_shape: Tensor | tuple[int, int],
    *,
    weight_zero_point: Tensor | None = None,
    bits: int = 4,
) -> GQSTensor:
    """Read a weight of a ``pack-quantized`` checkpoint of compressed-tensors: no group is pruned.

    Args:
        weight_packed: int32 [rows, ceil(cols * bits / 32)]: in each word the numbers of 32 / bits
            columns, from the lowest bits on, each plus 2^(bits-1).
        weight_scale: [rows, groups], floating point; cols / groups is the group: 16, 32, 64 or 128.
        weight_shape: rows and columns, as integers or as the checkpoint's tensor [2].
        weight_zero_point: of an asymmetric scheme: int32 [ceil(rows * bits / 32), groups], packed
            down the rows as weights are along them; or integers [rows, groups] as they are.
        bits: of a weight: 4 or 8.

    Returns:
        The matrix on the device of `weight_packed`, its codes and scales those of the checkpoint.
        A group of zeros is kept, as what it is.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: shapes that do not fit each other; a scale that is 0 or not finite.
        NotImplementedError: a group that the format does not have, a scale per channel among them.
    """
    operator = "from_pack_quantized"
    if bits not in (4, 8):
        raise NotImplementedError(f"{operator}: bits must be 4 or 8, got {bits}")
    check_tensor(operator, "weight_packed", weight_packed, (torch.int32,))
    check_tensor(operator, "weight_scale", weight_scale, _FLOATS)
    rows, cols = _size_of(operator, weight_shape)
    per_word = _WORD // bits
    check_shape(operator, "weight_packed", weight_packed, (rows, -(-cols // per_word)))
    if weight_scale.dim() != 2 or weight_scale.shape[0] != rows:
        raise ValueError(
            f"{operator}: weight_scale must be [{rows}, groups], got {list(weight_scale.shape)}"
        )
    groups = weight_scale.shape[1]
    group = _group_of(operator, cols, groups)
    assert bits in BITS
    _memory.require(operator, f"unpacking a matrix [{rows}, {cols}]", 12 * rows * cols)
    middle = 2 ** (bits - 1)
    codes = _unpacked(weight_packed.detach().cpu(), bits, cols) - middle
    zeros = None
    if weight_zero_point is not None:
        integers = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)
        check_tensor(operator, "weight_zero_point", weight_zero_point, integers)
        points = weight_zero_point.detach().cpu()
        if points.dtype == torch.int32 and points.shape == (-(-rows // per_word), groups):
            points = _unpacked(points.t().contiguous(), bits, rows).t() - middle
        check_shape(operator, "weight_zero_point", points, (rows, groups))
        zeros = points
    packed = GQSTensor.from_quantized(
        codes, weight_scale, None, zeros, bits=bits, group=group, scale_dtype=weight_scale.dtype
    )
    return packed.to(weight_packed.device)


def gqs_from_marlin24(weight_packed: Tensor, meta: Tensor, scale_packed: Tensor) -> GQSTensor:
    """Read a weight of a ``marlin-24`` checkpoint of compressed-tensors with the codes it has.

    Of every four weights two are kept, so no group is pruned; a weight that is not kept is code 0.

    Args:
        weight_packed: as `from_marlin24`.
        meta: as `from_marlin24`.
        scale_packed: as `from_marlin24`; cols / groups is the group: 16, 32, 64 or 128.

    Returns:
        The matrix on the device of `weight_packed`, its codes and scales those of the checkpoint:
        ``to_dense()`` is `from_marlin24`, bit for bit.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: what `from_marlin24` refuses; a scale that is 0 or not finite.
        NotImplementedError: a group that the format does not have, a scale per channel among them.
    """
    operator = "gqs_from_marlin24"
    read = read_marlin24(operator, weight_packed, meta, scale_packed)
    packed = GQSTensor.from_quantized(
        read.integers,
        read.scales,
        bits=read.bits,
        group=_group_of(operator, read.integers.shape[1], read.scales.shape[1]),
        scale_dtype=scale_packed.dtype,
    )
    return packed.to(weight_packed.device)
