# SPDX-License-Identifier: Apache-2.0
"""2:4 weights of compressed-tensors checkpoints: ``sparse-24-bitmask`` and ``marlin-24``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sparsekern import _memory
from sparsekern._checkpoint_format import key
from sparsekern._cutlass24 import (
    bits_of,
    check_exportable,
    check_shape,
    check_tensor,
    codes_of,
    from_torch,
    pack,
    place,
    stored,
)
from sparsekern._packed import check_matrix_size
from sparsekern.nm import NMTensor

FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
VALUES = (torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.float64, *FLOAT8)
_TILE = 16  # marlin: of rows and columns
_TILES = 4  # that are permuted together

BITMASK = ("shape", "compressed", "bitmask")
MARLIN = ("weight_packed", "meta", "scale_packed")
SPARSE_BITMASK = ("shape", "compressed", "bitmask", "row_offsets")


# --- sparse-24-bitmask ----------------------------------------------------------------------------


def size_of(operator: str, shape: object) -> tuple[int, int]:
    """The two numbers of `shape`: a tensor [2] or [2, 1], or a sequence."""
    if isinstance(shape, Tensor):
        check_tensor(operator, "shape", shape, (torch.int64, torch.int32))
        if shape.numel() != 2 or shape.dim() > 2:
            raise ValueError(
                f"{operator}: shape must have shape [2, 1] or [2], got {list(shape.shape)}"
            )
        shape = shape.flatten().tolist()
    if (
        not isinstance(shape, (list, tuple))
        or len(shape) != 2
        or not all(type(size) is int for size in shape)
    ):
        raise TypeError(f"{operator}: shape must be [rows, cols], got {shape!r}")
    check_matrix_size(operator, shape)
    return shape[0], shape[1]


def _dense_of_bitmask(
    operator: str, shape: object, compressed: Tensor, bitmask: Tensor
) -> tuple[Tensor, Tensor]:
    """The dense matrix, in the dtype of `compressed`, and its pattern; both on the CPU."""
    rows, cols = size_of(operator, shape)
    check_tensor(operator, "compressed", compressed, VALUES)
    check_tensor(operator, "bitmask", bitmask, (torch.uint8,))
    if cols % 2:
        raise ValueError(f"{operator}: shape must have an even number of columns, got {cols}")
    check_shape(operator, "compressed", compressed, (rows, cols // 2))
    check_shape(operator, "bitmask", bitmask, (rows, -(-cols // 8)))
    _memory.require(
        operator,
        f"unpacking a matrix [{rows}, {cols}]",
        rows * cols * (compressed.element_size() + 3),
    )
    bits = np.unpackbits(bitmask.detach().cpu().contiguous().numpy(), axis=1, bitorder="little")
    if bits[:, cols:].any():
        raise ValueError(f"{operator}: bitmask must be 0 beyond the last column")
    mask = torch.from_numpy(bits[:, :cols].astype(bool))
    kept = int(mask.sum())
    if kept != compressed.numel():
        raise ValueError(
            f"{operator}: bitmask must name as many weights as compressed holds "
            f"({compressed.numel()}), got {kept}"
        )
    values = bits_of(compressed.detach().cpu().contiguous()).flatten()
    dense = torch.zeros(rows, cols, dtype=values.dtype)
    dense[mask] = values
    return dense.view(compressed.dtype), mask


def from_bitmask(
    shape: Tensor | tuple[int, int] | list[int],
    compressed: Tensor,
    bitmask: Tensor,
    *,
    scale: Tensor | None = None,
) -> NMTensor:
    """Read a weight of a ``sparse-24-bitmask`` checkpoint of compressed-tensors.

    Args:
        shape: rows and columns, as integers or as the checkpoint's int64 [2, 1].
        compressed: [rows, cols / 2], floating point or int8: the kept values, row by row.
        bitmask: uint8 [rows, ceil(cols / 8)]: bit c % 8 of byte c / 8 says that column c is kept.
        scale: float32 [rows], for int8 alone: the weight is ``value * scale[row]``; default 1.

    Returns:
        The matrix, 2:4, on the device of `compressed`, with every value bit by bit: NaN,
        infinities, -0 and explicit zeros too. float64 and float8 become float32.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: shapes, or numbers of bits and values, that do not fit each other; bits beyond
            the last column; a group of more than two, named by row and columns.
    """
    dense, mask = _dense_of_bitmask("from_bitmask", shape, compressed, bitmask)
    if dense.dtype in FLOAT8:
        dense = dense.float()
    return pack("from_bitmask", dense, mask, (2, 4), scale).to(compressed.device)


def to_bitmask(weight: NMTensor) -> dict[str, Tensor]:
    """Write a weight as ``sparse-24-bitmask``.

    Args:
        weight: 2:4, columns a multiple of 4.

    Returns:
        ``shape``, ``compressed`` and ``bitmask`` on the CPU, as `from_bitmask` takes them. int8:
        without the scale.

    Raises:
        TypeError: not an `NMTensor`.
        ValueError: another pattern, or a row that ends in a part of a group.
    """
    check_exportable("to_bitmask", weight, {})
    rows, cols = weight.shape
    dense, mask = stored("to_bitmask", weight)
    return {
        "shape": torch.tensor([[rows], [cols]]),
        "compressed": bits_of(dense)[mask].view(weight.dtype).reshape(rows, cols // 2),
        "bitmask": torch.from_numpy(np.packbits(mask.numpy(), axis=1, bitorder="little")),
    }


# --- marlin-24 ------------------------------------------------------------------------------------


def _marlin_integers(packed: Tensor, rows: int, half: int, bits: int) -> Tensor:
    """The signed integers [rows, half] of ``weight_packed``: the kept values of each row.

    Rows of words are tiles of 16 kept columns; in them lie, 64 rows at a time, the fields in the
    order in which the lanes of a tensor-core instruction load them (PTX ISA, fragments of
    mma.m16n8k16). With column = 16 i + 8 h + 2 t + l and row = 64 b + 16 s + 8 a + 4 p + j that is
    i, b, s, a, t, j and then l, p, h with 4 bits and p, l, h with 8; the first field is the lowest.
    """
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    fields = (packed[:, :, None] >> shifts) & (2**bits - 1)
    blocks = rows // (_TILE * _TILES)
    view = fields.reshape(half // _TILE, blocks, _TILES, 2, 4, 4, 2, 2, 2)
    at_p, at_l = (7, 6) if bits == 4 else (6, 7)  # where these axes are
    kept = view.permute(1, 2, 3, at_p, 5, 0, 8, 4, at_l).reshape(rows, half)
    return torch.sub(kept, 2 ** (bits - 1))


def _marlin_words(meta: Tensor, rows: int, columns: int) -> Tensor:
    """The words [rows, columns] of ``meta``.

    Memory runs over column / 2, row / 64, bit 1 of the row, bits 5 to 3, bit 0, bit 0 of the
    column, bit 2 of the row. This is not the order of CUTLASS.
    """
    view = meta.reshape(columns // 2, rows // 64, 2, 8, 2, 2, 2)
    return view.permute(1, 3, 6, 2, 4, 0, 5).reshape(rows, columns)


def _marlin_scales(packed: Tensor, rows: int) -> Tensor:
    """The scales [rows, groups] of ``scale_packed`` [groups, rows].

    Of every 8 rows those of groups lie in the order 0 4 1 5 2 6 3 7, those of whole rows as they
    are. The writer compares the size of a group with the kept columns, so two groups are whole.
    """
    groups = packed.shape[0]
    if groups > 2:
        packed = packed.reshape(groups, rows // 8, 4, 2).transpose(2, 3)
    return packed.reshape(groups, rows).t().contiguous()


@dataclass(frozen=True)
class Marlin24:
    """What the three tensors of a ``marlin-24`` weight say."""

    integers: Tensor  # [rows, cols], 0 where pruned
    scales: Tensor  # float32 [rows, groups]
    bits: int


def read_marlin24(name: str, weight_packed: Tensor, meta: Tensor, scale_packed: Tensor) -> Marlin24:
    """What the tensors that `from_marlin24` describes hold; errors begin with `name`."""
    check_tensor(name, "weight_packed", weight_packed, (torch.int32,))
    check_tensor(name, "meta", meta, (torch.int16,))
    floats = (torch.float16, torch.bfloat16, torch.float32)
    check_tensor(name, "scale_packed", scale_packed, floats)
    for what, tensor in (
        ("weight_packed", weight_packed),
        ("meta", meta),
        ("scale_packed", scale_packed),
    ):
        if tensor.dim() != 2 or tensor.numel() == 0:
            raise ValueError(
                f"{name}: {what} must have two dimensions and data, got {list(tensor.shape)}"
            )
    rows, cols = meta.shape[1] // 2, meta.shape[0] * 32
    check_matrix_size(name, (rows, cols))
    if rows % (_TILE * _TILES) or meta.shape[1] % 2:
        raise ValueError(f"{name}: meta must be of a multiple of 64 rows, got {meta.shape[1] / 2}")
    bits = {rows * 2: 4, rows * 4: 8}.get(weight_packed.shape[1])
    if bits is None or weight_packed.shape[0] != cols // 32:
        raise ValueError(
            f"{name}: weight_packed must have shape [{cols // 32}, {rows * 2}] (4 bits) or "
            f"[{cols // 32}, {rows * 4}] (8 bits), got {list(weight_packed.shape)}"
        )
    groups = scale_packed.shape[0]
    if scale_packed.shape[1] != rows or cols % groups or cols // groups % 4:
        raise ValueError(
            f"{name}: scale_packed must have {rows} columns, and rows that divide the {cols} "
            f"columns of the weight into groups, got {list(scale_packed.shape)}"
        )
    _memory.require(name, f"unpacking a matrix [{rows}, {cols}]", rows * cols * 24)
    kept = _marlin_integers(weight_packed.detach().cpu(), rows, cols // 2, bits)
    codes = codes_of(_marlin_words(meta.detach().cpu(), rows, cols // 16))
    integers, _ = place(name, kept, codes)
    scales = _marlin_scales(scale_packed.detach().cpu().float(), rows)
    return Marlin24(integers, scales, bits)


def from_marlin24(weight_packed: Tensor, meta: Tensor, scale_packed: Tensor) -> Tensor:
    """Read a weight of a ``marlin-24`` checkpoint of compressed-tensors.

    Args:
        weight_packed: int32 [cols / 32, rows * bits / 2], 4 or 8 bits: the kept integers.
        meta: int16 [cols / 32, rows * 2]: their columns.
        scale_packed: float16, bfloat16 or float32 [groups, rows]: one scale for each row, or for
            each group of columns of it.

    Returns:
        The dense matrix [rows, cols], float32, on the CPU: integer times scale, exactly.
        ``NMTensor.from_dense(result, 2, 4, dtype=...)`` packs it; `gqs_from_marlin24` keeps the
        integers.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: shapes that do not fit each other or the layout, or columns that no writer
            makes.
    """
    read = read_marlin24("from_marlin24", weight_packed, meta, scale_packed)
    rows, groups = read.scales.shape
    return (read.integers.reshape(rows, groups, -1) * read.scales[:, :, None]).flatten(1)


# --- whole checkpoints ----------------------------------------------------------------------------


@dataclass(frozen=True)
class CompressedLayer:
    """A module whose weight is compressed in one of the ways."""

    module: str
    format: str
    names: tuple[str, ...]  # of its tensors

    @property
    def weight(self) -> str:
        """The name of its weight in a state dict."""
        return key(self.module, "weight")

    def dense(self, state: Mapping[str, Tensor], operator: str) -> Tensor:
        """The weight; errors name the module."""
        parts = [state[name] for name in self.names]
        try:
            if self.format == "marlin-24":
                return from_marlin24(*parts)
            if self.format == "sparse-bitmask":
                from sparsekern._compressed_bitmap import dense_of_sparse_bitmask

                return dense_of_sparse_bitmask(operator, *parts)[0]
            dense, _ = _dense_of_bitmask(operator, *parts)
        except (TypeError, ValueError) as error:
            text = str(error).split(": ", 1)[1]
            raise type(error)(f"{operator}: module {self.module!r}: {text}") from None
        return dense


def compressed_layers(names: Iterable[str]) -> dict[str, CompressedLayer]:
    """The layers that a file or state dict with these names has, by the name of their weight.

    One tensor of each kind is enough: the others may be missing.
    """
    formats = {
        "bitmask": ("sparse-24-bitmask", BITMASK),
        "scale_packed": ("marlin-24", MARLIN),
        "row_offsets": ("sparse-bitmask", SPARSE_BITMASK),
    }
    found: dict[str, CompressedLayer] = {}
    names = list(names)
    known = set(names)
    for name in names:
        module, _, last = name.rpartition(".")
        if last == "bitmask" and key(module, "row_offsets") in known:
            continue  # of sparse-bitmask, which has this part too
        if last in formats:
            format_, parts = formats[last]
            layer = CompressedLayer(module, format_, tuple(key(module, part) for part in parts))
            found[layer.weight] = layer
    return found


def dense_state_dict(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with compressed 2:4 weights made dense, for ``model.load_state_dict``.

    ``<module>.weight`` takes the place of the three tensors of ``sparse-24-bitmask`` (as
    `from_bitmask`, dense and in the dtype stored), of the four of ``sparse-bitmask`` (as
    `from_sparse_bitmask`), of the three of ``marlin-24`` (as `from_marlin24`), and of a
    ``torch.sparse.SparseSemiStructuredTensor``. All else stays as it is: so does a quantization
    beside a bitmask (``weight_scale``). `sparsekern.convert_` then finds the pattern and packs.

    Args:
        state: names and tensors, as of ``safetensors.torch.load_file``.

    Returns:
        A new dict, in the order of `state`.

    Raises:
        TypeError: not a mapping of names to tensors, or a wrong dtype.
        ValueError: parts that are missing, do not fit each other, or are damaged; the module is
            named.
    """
    name = "dense_state_dict"
    if not isinstance(state, Mapping):
        raise TypeError(f"{name}: state must be a mapping, got {type(state).__name__}")
    for known, value in state.items():
        if not isinstance(known, str) or not isinstance(value, Tensor):
            raise TypeError(
                f"{name}: state must hold names and tensors, got {known!r}: {type(value).__name__}"
            )
    part_of: dict[str, CompressedLayer] = {}
    for layer in compressed_layers(state).values():
        for part in layer.names:
            if part not in state:
                raise ValueError(f"{name}: {part!r} must be there beside {layer.format} tensors")
            part_of[part] = layer
        if layer.weight in state:
            raise ValueError(f"{name}: module {layer.module!r} must have one weight, got two")
    result: dict[str, Tensor] = {}
    for known, value in state.items():
        if known not in part_of:
            is_packed = isinstance(value, torch.sparse.SparseSemiStructuredTensor)
            result[known] = from_torch(value).to_dense() if is_packed else value
        elif part_of[known].weight not in result:  # else another part of it came before
            result[part_of[known].weight] = part_of[known].dense(state, name)
    return result
