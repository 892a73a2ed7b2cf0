# SPDX-License-Identifier: Apache-2.0
"""torch's semi-structured tensors (the layout of CUTLASS) to and from `NMTensor`."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsekern import _core, _memory
from sparsekern._packed import DTYPE_NAMES, check_matrix_size, from_numpy, to_numpy
from sparsekern.nm import NMTensor

# Rows of a tile and the dtype of its words. A word holds the positions of a row's next groups.
_LAYOUTS = {
    torch.float16: (32, torch.int16),
    torch.bfloat16: (32, torch.int16),
    torch.float32: (32, torch.int16),
    torch.int8: (16, torch.int32),
}
_PATTERNS = {torch.float32: (1, 2)}  # of all others 2:4
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_FIRST, _SECOND = 0b0100, 0b1110  # of 1:2 float32: which half of the pair is kept

Pattern = tuple[int, int]


def bits_of(tensor: Tensor) -> Tensor:
    """The same memory as integers, which copy NaN, -0 and float8 as they are."""
    return tensor.view(_INTEGERS[tensor.element_size()])


def check_tensor(operator: str, name: str, value: object, dtypes: tuple[torch.dtype, ...]) -> None:
    """Raise unless `value` is a dense tensor with data and of one of the dtypes."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{operator}: {name} must be a torch.Tensor, got {type(value).__name__}")
    if value.dtype not in dtypes:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise TypeError(f"{operator}: {name} must have dtype {names}, got {value.dtype}")
    if value.layout != torch.strided or value.device.type == "meta":
        raise ValueError(f"{operator}: {name} must be a dense tensor that holds data")


def check_shape(operator: str, name: str, value: Tensor, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless `value` has the shape."""
    if tuple(value.shape) != shape:
        raise ValueError(
            f"{operator}: {name} must have shape {list(shape)}, got {list(value.shape)}"
        )


def pack(
    operator: str, dense: Tensor, mask: Tensor, pattern: Pattern, scale: Tensor | None
) -> NMTensor:
    """`NMTensor` of what `mask` keeps; int8 as it is, with scale 1 where none is given."""
    n, m = pattern
    if dense.dtype != torch.int8:
        if scale is not None:
            raise ValueError(f"{operator}: scale must be None unless values are int8, got a scale")
        try:
            return NMTensor.from_dense(dense, n, m, mask=mask)
        except ValueError as error:
            text = str(error).removeprefix("NMTensor.from_dense: ").split(";")[0]
            raise ValueError(f"{operator}: {text}") from None
    try:
        values, structure = _core.nm_pack(to_numpy(dense), "int8", n, m, to_numpy(mask))
    except ValueError as error:
        raise ValueError(f"{operator}: {str(error).removeprefix('nm: ')}") from None
    if scale is None:
        scale = torch.ones(dense.shape[0])
    elif isinstance(scale, Tensor):
        scale = scale.detach().cpu()
    return NMTensor(torch.from_numpy(values), torch.from_numpy(structure), scale)


def stored(operator: str, weight: NMTensor) -> tuple[Tensor, Tensor]:
    """The dense matrix, in the dtype of the values (int8 without the scale), and the pattern.

    Both are on the CPU. Raises MemoryError before the work where they and a copy do not fit.
    """
    rows, cols = weight.shape
    _memory.require(
        operator, f"a dense matrix [{rows}, {cols}]", rows * cols * (weight.dtype.itemsize + 16)
    )
    array = _core.nm_unpack(
        to_numpy(weight.values.cpu()), to_numpy(weight.structure.cpu()), DTYPE_NAMES[weight.dtype]
    )
    return from_numpy(array, weight.dtype), weight.mask().cpu()


def check_exportable(operator: str, weight: object, patterns: dict[torch.dtype, Pattern]) -> None:
    """Raise unless `weight` is a matrix of whole groups of its dtype's pattern, default 2:4."""
    if not isinstance(weight, NMTensor):
        raise TypeError(f"{operator}: weight must be an NMTensor, got {type(weight).__name__}")
    n, m = patterns.get(weight.dtype, (2, 4))
    if (weight.n, weight.m) != (n, m):
        raise ValueError(
            f"{operator}: weight must keep {n}:{m} as {DTYPE_NAMES[weight.dtype]}, "
            f"got {weight.n}:{weight.m}"
        )
    if weight.shape[1] % m:
        raise ValueError(
            f"{operator}: weight must have a multiple of {m} columns, got {weight.shape[1]}"
        )


# --- the words ------------------------------------------------------------------------------------


def _words_to_rows(words: Tensor, rows: int, columns: int) -> Tensor:
    """The words [rows, columns] from the order of CUTLASS, in which a warp's are side by side.

    Memory runs over column / 2, row / tile, row % 8, with tiles of 32 rows bit 4 of the row, bit 0
    of the column, bit 3 of the row: a ColumnMajorInterleaved<2> matrix (cutlass/layout/matrix.h) of
    rows reordered as `reorder_meta` of cutlass/util/host_reorder.h says.
    """
    tile = 16 if words.dtype == torch.int32 else 32
    view = words.reshape(columns // 2, rows // tile, 8, tile // 16, 2, 2)
    return view.permute(1, 3, 5, 2, 0, 4).reshape(rows, columns)


def _words_from_rows(words: Tensor) -> Tensor:
    """The inverse of `_words_to_rows`."""
    rows, columns = words.shape
    tile = 16 if words.dtype == torch.int32 else 32
    view = words.reshape(rows // tile, tile // 16, 2, 8, columns // 2, 2)
    return view.permute(4, 0, 3, 1, 5, 2).contiguous().view(rows, columns)


def codes_of(words: Tensor) -> Tensor:
    """The 4-bit codes [rows, groups] of the words [rows, columns], lowest bits first."""
    shifts = torch.arange(0, words.element_size() * 8, 4, dtype=words.dtype)
    return ((words[:, :, None] >> shifts) & 15).flatten(1).to(torch.uint8)


def _words_of(codes: Tensor, dtype: torch.dtype) -> Tensor:
    """The words of codes [rows, groups]."""
    count = dtype.itemsize * 2
    fields = codes.reshape(codes.shape[0], -1, count).to(dtype)
    words = torch.zeros(fields.shape[:2], dtype=dtype)
    for i in range(count):
        words |= fields[:, :, i] << (4 * i)
    return words


def place(operator: str, packed: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """The dense matrix and the kept pattern of packed 2:4 rows and the codes of their groups.

    Of a code i0 | i1 << 2 the first value belongs to column i0 of the group, the second to i1. Some
    writers leave i0 = i1, or i0 > i1, where a group keeps fewer than two: the other value is 0.
    """
    rows, groups = codes.shape
    index = torch.stack([codes & 3, codes >> 2], 2).long()
    pair = packed.reshape(rows, groups, 2)
    first, second = pair.unbind(2)
    one_place = index[..., 0] == index[..., 1]
    clash = one_place & (first != 0) & (second != 0)
    if clash.any():
        row, group = clash.nonzero()[0].tolist()
        raise ValueError(
            f"{operator}: meta must name two columns for two values, got one in row {row}, "
            f"columns {4 * group} to {4 * group + 3}"
        )
    single = torch.where(first != 0, bits_of(first), bits_of(second))
    bits = torch.where(one_place[..., None], single[..., None], bits_of(pair))
    dense = torch.zeros(rows, groups, 4, dtype=bits.dtype).scatter_(2, index, bits)
    mask = torch.zeros(rows, groups, 4, dtype=torch.bool).scatter_(2, index, True)
    return dense.view(packed.dtype).flatten(1), mask.flatten(1)


def _place_pairs(operator: str, packed: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """As `place`, of 1:2 float32."""
    wrong = (codes != _FIRST) & (codes != _SECOND)
    if wrong.any():
        row, group = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"{operator}: meta must hold codes 4 and 14 for float32, got {codes[row, group]} in "
            f"row {row}, columns {2 * group} and {2 * group + 1}"
        )
    mask = torch.stack([codes == _FIRST, codes == _SECOND], 2).flatten(1)
    bits = torch.zeros(mask.shape, dtype=torch.int32)
    bits[mask] = bits_of(packed).flatten()
    return bits.view(torch.float32), mask


# --- public ---------------------------------------------------------------------------------------


def from_cutlass(
    packed: Tensor,
    meta: Tensor,
    shape: tuple[int, int] | torch.Size | None = None,
    *,
    scale: Tensor | None = None,
) -> NMTensor:
    """Read the 2:4 layout of CUTLASS, which torch's semi-structured tensors hold.

    Args:
        packed: [rows, cols / 2], float16, bfloat16 or int8 (2:4), or float32 (1:2): kept values.
        meta: their columns, int16 (int32 for int8): [rows, words] as `from_dense` of torch makes
            it, or [rows, 2, words / 2] in the strides of ``prune_dense_static_sort``.
        shape: [rows, cols] of the matrix where `packed` is padded; default: it is not.
        scale: float32 [rows], for int8 alone: the weight is ``value * scale[row]``; default 1.

    Returns:
        The matrix on the device of `packed`, 2:4, or 1:2 for float32, with every value bit by
        bit: NaN, infinities, -0 and explicit zeros too.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: shapes that do not fit each other or the layout, or columns that no writer
            makes.
    """
    name = "from_cutlass"
    check_tensor(name, "packed", packed, tuple(_LAYOUTS))
    tile, word = _LAYOUTS[packed.dtype]
    check_tensor(name, "meta", meta, (word,))
    if packed.dim() != 2:
        raise ValueError(f"{name}: packed must have shape [rows, cols / 2], got {packed.dim()}-D")
    rows, cols = packed.shape[0], packed.shape[1] * 2
    check_matrix_size(name, (rows, cols))
    pattern = _PATTERNS.get(packed.dtype, (2, 4))
    columns_of_a_word = pattern[1] * word.itemsize * 2
    if rows % tile or cols % (2 * columns_of_a_word):
        raise ValueError(
            f"{name}: packed must have a multiple of {tile} rows and {columns_of_a_word} columns "
            f"for {packed.dtype}, got {list(packed.shape)}"
        )
    words = cols // columns_of_a_word
    if meta.dim() == 3:  # its memory is [words / 2, rows, 2]
        check_shape(name, "meta", meta, (rows, 2, words // 2))
        meta = meta.permute(2, 0, 1)
    else:
        check_shape(name, "meta", meta, (rows, words))
    size = (rows, cols) if shape is None else tuple(shape)
    check_matrix_size(name, size)
    if size[0] > rows or size[1] > cols or size[1] % pattern[1]:
        raise ValueError(
            f"{name}: shape must be at most [{rows}, {cols}] in whole groups, got {list(size)}"
        )
    _memory.require(name, f"unpacking a matrix [{rows}, {cols}]", rows * cols * 20)
    codes = codes_of(_words_to_rows(meta.detach().cpu(), rows, words))
    # What is beyond the matrix may hold anything.
    kept = packed.detach().cpu()[: size[0], : size[1] // 2].contiguous()
    codes = codes[: size[0], : size[1] // pattern[1]]
    place_ = _place_pairs if packed.dtype == torch.float32 else place
    dense, mask = place_(name, kept, codes)
    return pack(name, dense, mask, pattern, scale).to(packed.device)


def to_cutlass(weight: NMTensor) -> tuple[Tensor, Tensor]:
    """Write the 2:4 layout of CUTLASS.

    Args:
        weight: 2:4 float16, bfloat16 or int8, or 1:2 float32; rows a multiple of 32 (int8: 16),
            columns one of 32 (int8: 64, float32: 16).

    Returns:
        packed [rows, cols / 2] and meta [rows, words], on the device of `weight`: what
        ``SparseSemiStructuredTensorCUTLASS.from_dense`` of torch makes of the same matrix, up to
        the columns that it names in groups with zeros. int8: without the scale.

    Raises:
        TypeError: not an `NMTensor`.
        ValueError: another pattern, or a shape that the layout does not have.
    """
    name = "to_cutlass"
    check_exportable(name, weight, _PATTERNS)
    tile, word = _LAYOUTS[weight.dtype]
    rows, cols = weight.shape
    multiple = 2 * weight.m * word.itemsize * 2
    if rows % tile or cols % multiple:
        raise ValueError(
            f"{name}: weight must have a multiple of {tile} rows and {multiple} columns as "
            f"{DTYPE_NAMES[weight.dtype]}, got {[rows, cols]}"
        )
    dense, mask = stored(name, weight)
    packed = bits_of(dense)[mask].view(weight.dtype).reshape(rows, cols // 2)
    if weight.m == 2:
        codes = torch.where(mask[:, ::2], _FIRST, _SECOND)
    else:
        first, second, third, fourth = mask.reshape(rows, -1, 4).unbind(2)
        low = torch.where(first, 0, torch.where(second, 1, 2))
        high = torch.where(fourth, 3, torch.where(third, 2, 1))
        codes = low | high << 2
    meta = _words_from_rows(_words_of(codes, word))
    return packed.to(weight.device), meta.to(weight.device)


def from_torch(tensor: Tensor) -> NMTensor:
    """`NMTensor` of a ``torch.sparse.SparseSemiStructuredTensor``.

    CUTLASS tensors are read on the CPU, wherever they lie. cuSPARSELt's layout is not public: such
    a tensor is multiplied by the identity, on its CUDA device.

    Args:
        tensor: float16, bfloat16 or int8 (2:4, scale 1), or float32 (1:2).

    Returns:
        The matrix on the device of `tensor`.

    Raises:
        TypeError: no semi-structured tensor.
        ValueError: a transposed one; one of cuSPARSELt that is not on a CUDA device, or that holds
            NaN or infinity, which the product would spread; else as `from_cutlass`.
    """
    name = "from_torch"
    if not isinstance(tensor, torch.sparse.SparseSemiStructuredTensor):
        raise TypeError(
            f"{name}: tensor must be a torch.sparse.SparseSemiStructuredTensor, "
            f"got {type(tensor).__name__}"
        )
    packed, meta = tensor.packed, tensor.meta
    if packed is None:
        raise ValueError(
            f"{name}: tensor must hold packed rows, got a transposed one; pass its t()"
        )
    if meta is not None:
        rows, cols = tensor.shape
        return from_cutlass(packed, meta, (rows, cols))
    if packed.device.type != "cuda":
        raise ValueError(
            f"{name}: tensor must be on a CUDA device for cuSPARSELt's layout, got {packed.device}"
        )
    dense = tensor.detach().to_dense()
    if not dense.isfinite().all():
        raise ValueError(f"{name}: tensor must be finite for cuSPARSELt's layout")
    pattern = _PATTERNS.get(dense.dtype, (2, 4))
    on_cpu = dense.cpu().contiguous()
    return pack(name, on_cpu, on_cpu != 0, pattern, None).to(dense.device)


def to_torch(weight: NMTensor) -> Tensor:
    """``torch.sparse.SparseSemiStructuredTensorCUTLASS`` of a matrix.

    torch multiplies with it on CUDA devices of compute capability 8.x, and asks there for multiples
    of 32 x 64 (int8: 16 x 128, float32: 32 x 32).

    Args:
        weight: as for `to_cutlass`; int8 with a scale of 1 only, since torch's tensor has none.

    Returns:
        The tensor, on the device of `weight`.

    Raises:
        TypeError, ValueError: as `to_cutlass`; an int8 scale other than 1.
    """
    packed, meta = to_cutlass(weight)
    if weight.scale is not None and bool((weight.scale != 1).any()):
        raise ValueError(
            "to_torch: weight must have a scale of 1 as int8; to_cutlass leaves it out"
        )
    made: Tensor = torch.sparse.SparseSemiStructuredTensorCUTLASS(
        weight.shape,
        packed=packed,
        meta=meta,
        packed_t=None,
        meta_t=None,
        compressed_swizzled_bitmask=None,
    )
    return made
