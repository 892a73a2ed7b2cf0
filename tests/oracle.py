# SPDX-License-Identifier: Apache-2.0
"""What the packed formats and the operators mean, in NumPy float64.

Written from ``docs/formats.md`` alone: nothing here is shared with the packers or the kernels, and
nothing here is fast. Every result comes with ``magnitude``, the sum of the absolute values of the
terms that were added, and ``terms``, their number: what ``compare.py`` needs to bound an error.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

LANES = 16
BLOCK = 128
ALIGNMENT = 64
_ELEMENT = {"float32": np.float32, "bfloat16": np.uint16, "float16": np.float16, "int8": np.int8}


class FormatError(ValueError):
    """The bytes are not what the specification demands."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise FormatError(message)


@dataclass(frozen=True)
class Csr:
    """A decoded ``csr`` matrix.

    Attributes:
        dense: float64 [rows, cols]; what is not kept is 0.
        mask: bool [rows, cols]; kept, explicit zeros included.
        positions: int64 [rows, cols]; where in ``values`` an element lies, -1 where not kept.
        tiles: number of tiles; ``steps``, ``kept`` and ``panel_groups`` as in the header.
    """

    dense: Array
    mask: NDArray[np.bool_]
    positions: NDArray[np.int64]
    block_rows: int
    panel_groups: int
    steps: int
    kept: int
    tiles: int


def elements(values: NDArray, dtype: str) -> Array:
    """Decode stored elements (bf16 and f16 may travel as uint16) to float64."""
    if dtype == "bfloat16":
        wide = values.view(np.uint16).astype(np.uint32) << 16
        return wide.view(np.float32).astype(np.float64)
    return values.view(_ELEMENT[dtype]).astype(np.float64)


def _sections(data: bytes, lengths: list[int]) -> list[bytes]:
    """Cut ``data`` into sections, each at the next multiple of 64, and check the bytes between."""
    out, end = [], 0
    for length in lengths:
        start = -(-end // ALIGNMENT) * ALIGNMENT
        _require(start + length <= len(data), "structure: too short")
        _require(not any(data[end:start]), "structure: bytes between sections are not 0")
        out.append(data[start : start + length])
        end = start + length
    _require(end == len(data), "structure: too long")
    return out


def read_csr(values: NDArray, structure: NDArray[np.uint8], dtype: str) -> Csr:
    """Read ``csr`` version 1, checking all that the specification says a reader checks.

    Raises:
        FormatError: on any breach.
    """
    data = structure.tobytes()
    _require(len(data) >= 64, "structure: shorter than its header")
    magic, version, rows, cols, r, h, steps, kept = struct.unpack_from("<4sIQQIIQQ", data)
    _require(magic == b"SKCR", "header: magic")
    _require(version == 1, "header: version")
    _require(1 <= rows < 2**31 and 1 <= cols < 2**31, "header: rows, cols")
    _require(r in (1, 2, 4), "header: R")
    _require(h % 16 == 0 and 16 <= h <= 256, "header: H")
    _require(not any(data[48:64]), "header: reserved bytes are not 0")

    groups = -(-rows // r)
    panels, blocks = -(-groups // h), -(-cols // BLOCK)
    tiles = panels * blocks
    # Python's integers do not overflow, so an absurd header fails here by its length.
    parts = _sections(data, [64, 8 * (tiles + 1), tiles * h, tiles * h, steps * LANES])
    tile_ptr = np.frombuffer(parts[1], "<u8")
    order = np.frombuffer(parts[2], np.uint8).reshape(tiles, h).astype(np.int64)
    count = np.frombuffer(parts[3], np.uint8).reshape(tiles, h).astype(np.int64)
    index = np.frombuffer(parts[4], np.uint8).reshape(steps, LANES).astype(np.int64)
    _require(values.ndim == 1 and values.size == steps * LANES * r, "values: length")
    bits = values.view({1: np.uint8, 2: np.uint16, 4: np.uint32}[values.itemsize])
    bits = bits.reshape(steps, r, LANES)
    weights = elements(values, dtype).reshape(steps, r, LANES)

    dense = np.zeros((rows, cols))
    positions = np.full((rows, cols), -1, np.int64)
    step = 0
    for tile in range(tiles):
        panel, block = divmod(tile, blocks)
        width = min(BLOCK, cols - block * BLOCK)
        _require(int(tile_ptr[tile]) == step, "tile_ptr: not the sum of the counts")
        _require(sorted(order[tile]) == list(range(h)), "order: not a permutation")
        rise = np.diff(count[tile])
        tied = np.diff(order[tile])[rise == 0]
        _require(bool((rise <= 0).all()) and bool((tied > 0).all()), "count: not sorted")
        _require(int(count[tile].max()) <= width, "count: more than the columns")
        for first in range(0, h, LANES):
            lanes = count[tile, first : first + LANES]
            here = int(lanes[0])
            _require(step + here <= steps, "steps: fewer than the counts demand")
            columns = index[step : step + here]
            used = np.arange(here)[:, None] < lanes
            _require(not columns[~used].any(), "index: padding is not 0")
            _require(bool((columns[used] < width).all()), "index: outside the matrix")
            rising = np.diff(columns, axis=0) > 0
            _require(bool(rising[used[1:]].all()), "index: not ascending")
            _require(not bits[step : step + here].swapaxes(0, 1)[:, ~used].any(), "values: padding")
            for lane in np.flatnonzero(lanes):
                group = panel * h + int(order[tile, first + lane])
                _require(group < groups, "count: a group beyond the matrix")
                at = np.arange(step, step + int(lanes[lane]))
                where = block * BLOCK + columns[: len(at), lane]
                for i in range(r):
                    row = group * r + i
                    if row < rows:
                        dense[row, where] = weights[at, i, lane]
                        positions[row, where] = (at * r + i) * LANES + lane
                    else:
                        _require(not bits[at, i, lane].any(), "values: a row beyond the matrix")
            step += here
    _require(step == steps and int(tile_ptr[tiles]) == steps, "steps: not the sum of the counts")
    _require(int(count.sum()) == kept, "header: kept is not the sum of the counts")
    return Csr(dense, positions >= 0, positions, r, h, steps, kept, tiles)


@dataclass(frozen=True)
class Nm:
    """A decoded ``nm`` matrix; ``dense``, ``mask`` and ``positions`` as in `Csr`."""

    dense: Array
    mask: NDArray[np.bool_]
    positions: NDArray[np.int64]
    n: int
    m: int
    steps: int


_WINDOW_AND_BITS = {2: (4, 2), 4: (4, 2), 8: (16, 4), 16: (16, 4), 32: (32, 8)}


def read_nm(values: NDArray, structure: NDArray[np.uint8], dtype: str) -> Nm:
    """Read ``nm`` version 1, checking all that the specification says a reader checks.

    Raises:
        FormatError: on any breach.
    """
    data = structure.tobytes()
    _require(len(data) >= 64, "structure: shorter than its header")
    magic, version, rows, cols, n, m, steps = struct.unpack_from("<4sIQQIIQ", data)
    _require(magic == b"SKNM", "header: magic")
    _require(version == 1, "header: version")
    _require(1 <= rows < 2**31 and 1 <= cols < 2**31, "header: rows, cols")
    _require(m in _WINDOW_AND_BITS, "header: M")
    _require(1 <= n < m, "header: N")
    _require(not any(data[40:64]), "header: reserved bytes are not 0")
    window, bits = _WINDOW_AND_BITS[m]
    windows = -(-cols // window)
    _require(steps == windows * (window // m) * n, "header: S")
    fields = 32 // bits
    panels, words = -(-rows // LANES), -(-steps // fields)
    _require(len(data) == 64 + panels * words * 64, "structure: length")
    _require(values.ndim == 1 and values.size == panels * steps * LANES, "values: length")

    packed = np.frombuffer(data, "<u4", offset=64).reshape(panels, words, LANES)
    shifts = np.arange(fields, dtype=np.uint32) * np.uint32(bits)
    field = (packed[:, :, None, :] >> shifts[:, None]) & np.uint32(2**bits - 1)
    field = field.reshape(panels, words * fields, LANES).astype(np.int64)
    _require(not field[:, steps:].any(), "words: a field beyond the last step is not 0")
    # One line for each row, its groups of N side by side.
    groups = windows * (window // m)
    field = field[:, :steps].transpose(0, 2, 1).reshape(panels * LANES, groups, n)
    inside = field - (np.arange(groups) * m % window)[None, :, None]  # 0 .. M-1 of the group
    _require(bool(((inside >= 0) & (inside < m)).all()), "words: a column outside its group")
    _require(bool((np.diff(inside, axis=2) > 0).all()), "words: not ascending")
    column = np.arange(groups)[None, :, None] * m + inside
    absent = column >= cols
    absent[rows:] = True
    lowest = (inside == np.arange(n)).all(axis=2, keepdims=True)
    _require(bool((lowest | ~absent.any(axis=2, keepdims=True)).all()), "words: beyond the matrix")

    place = np.arange(values.size).reshape(panels, steps, LANES)
    place = place.transpose(0, 2, 1).reshape(column.shape)
    raw = values.view({1: np.uint8, 2: np.uint16, 4: np.uint32}[values.itemsize])
    _require(not raw[place[absent]].any(), "values: beyond the matrix")
    row = np.broadcast_to(np.arange(panels * LANES)[:, None, None], column.shape)
    positions = np.full((rows, cols), -1, np.int64)
    positions[row[~absent], column[~absent]] = place[~absent]
    mask = positions >= 0
    dense = np.where(mask, elements(values, dtype)[positions], 0.0)
    return Nm(dense, mask, positions, n, m, steps)


@dataclass(frozen=True)
class Gqs:
    """A decoded ``gqs`` matrix; ``dense`` and ``mask`` as in `Csr`, a row of ``kept`` per row."""

    dense: Array
    mask: NDArray[np.bool_]
    kept: NDArray[np.bool_]
    codes: NDArray[np.int64]
    group: int
    bits: int
    task_groups: int


def _padded(data: bytes, at: int, count: int, kind: str) -> tuple[NDArray, int]:
    """A section of ``count`` numbers, and where the next one begins."""
    end = at + count * np.dtype(kind).itemsize
    following = -(-end // 64) * 64
    _require(following <= len(data), "structure: length")
    _require(not any(data[end:following]), "structure: bytes between sections")
    return np.frombuffer(data, kind, count, at), following


def read_gqs(values: NDArray, structure: NDArray[np.uint8], scale: NDArray, dtype: str) -> Gqs:
    """Read ``gqs`` version 1, checking all that the specification says a reader checks.

    ``dtype`` is that of the scales: float32, bfloat16, float16 or uint8.

    Raises:
        FormatError: on any breach.
    """
    data = structure.tobytes()
    _require(len(data) >= 64, "structure: shorter than its header")
    head = struct.unpack_from("<4sIQQIIQII", data)
    magic, version, rows, cols, group, bits, count, task, flags = head
    _require(magic == b"SKGQ", "header: magic")
    _require(version == 1, "header: version")
    _require(1 <= rows < 2**31 and 1 <= cols < 2**25, "header: rows, cols")
    _require(group in (16, 32, 64, 128), "header: G")
    _require(bits in (2, 4, 8), "header: b")
    row_groups, per_group = -(-cols // group), group // 16
    _require(count < 2**32 and count <= rows * row_groups, "header: K")
    _require(task >= 1 and task * per_group <= 2048, "header: T")
    _require(flags in (0, 1, 2), "header: flags")
    _require(not any(data[48:64]), "header: reserved bytes are not 0")
    words = -(-row_groups // 16)
    offsets, at = _padded(data, 64, rows + 1, "<u4")
    task_rows, at = _padded(data, at, -(-count // task), "<u4")
    masks, at = _padded(data, at, rows * words, "<u2")
    factors = np.ones(rows)
    if flags == 2:
        stored, at = _padded(data, at, rows, "<f4")
        factors = stored.astype(np.float64)
        _require(bool(np.isfinite(factors).all() and (factors > 0).all()), "factors")
    _require(at == len(data), "structure: length")
    offsets = offsets.astype(np.int64)
    steps = np.diff(offsets)
    _require(offsets[0] == 0 and offsets[-1] == count, "offsets: ends")
    _require(bool(((steps >= 0) & (steps <= row_groups)).all()), "offsets: steps")
    firsts = np.arange(len(task_rows)) * task
    holders = np.searchsorted(offsets, firsts, side="right") - 1
    _require(np.array_equal(holders, task_rows), "tasks")
    ones = np.unpackbits(masks.view(np.uint8), bitorder="little").reshape(rows, words * 16)
    _require(not ones[:, row_groups:].any(), "masks: beyond the last group")
    kept = ones[:, :row_groups].astype(bool)
    _require(np.array_equal(kept.sum(axis=1), steps), "masks: counts")

    fields = 32 // bits
    units = count * per_group
    blocks = -(-units // fields)
    _require(values.ndim == 1 and values.nbytes == blocks * 64, "values: length")
    word = values.view(np.uint8).view("<u4").reshape(blocks, 16)
    shifts = np.arange(fields, dtype=np.uint32) * np.uint32(bits)
    field = (word[:, None, :] >> shifts[:, None]) & np.uint32(2**bits - 1)
    field = field.reshape(blocks * fields, 16).astype(np.int64)
    _require(not field[units:].any(), "values: beyond the last unit")
    signed = field[:units] - (field[:units] >= 2 ** (bits - 1)) * 2**bits
    per_kept = signed.reshape(count, group)
    codes = np.zeros((rows, row_groups, group), np.int64)
    codes[kept] = per_kept
    codes = codes.reshape(rows, row_groups * group)
    _require(not codes[:, cols:].any(), "values: beyond the columns")

    _require((flags == 2) == (dtype == "uint8"), "scale: dtype")
    _require(scale.ndim == 1 and scale.size == count * (2 if flags == 1 else 1), "scale: length")
    numbers = scale.astype(np.float64) if dtype == "uint8" else elements(scale, dtype)
    _require(bool(np.isfinite(numbers).all()), "scale: not finite")
    _require(bool((numbers[:count] != 0).all()), "scale: 0")
    of_group = np.zeros((2, rows, row_groups))
    of_group[0, kept] = numbers[:count]
    if flags == 1:
        of_group[1, kept] = numbers[count:]
    ratio, zero = np.repeat(of_group, group, axis=2)
    dense = ((codes - zero) * ratio * factors[:, None])[:, :cols]
    mask = np.repeat(kept, group, axis=1)[:, :cols]
    return Gqs(dense, mask, kept, codes[:, :cols], group, bits, task)


@dataclass(frozen=True)
class Expected:
    """A result, the sum of absolute terms behind each element, and how many terms there were."""

    value: Array
    magnitude: Array
    terms: NDArray[np.int64]


_SQRT_2_OVER_PI = math.sqrt(2.0 / math.pi)
_erf = np.vectorize(math.erf, otypes=[np.float64])


def activate(z: Array, name: str) -> Array:
    """Apply an activation as its formula says; NaN stays NaN, and so do 0 * inf and inf - inf."""
    with np.errstate(all="ignore"):
        if name == "none":
            return z
        if name == "relu":
            return np.maximum(z, 0.0)
        if name == "relu6":
            return np.minimum(np.maximum(z, 0.0), 6.0)
        if name == "gelu":
            return 0.5 * z * (1.0 + _erf(z / math.sqrt(2.0)))
        if name == "gelu_tanh":
            return 0.5 * z * (1.0 + np.tanh(_SQRT_2_OVER_PI * (z + 0.044715 * z**3)))
        if name == "silu":
            return z / (1.0 + np.exp(-z))
        if name == "hardswish":
            return z * np.minimum(np.maximum(z + 3.0, 0.0), 6.0) / 6.0
    raise KeyError(name)


def linear(x: Array, dense: Array, mask: NDArray[np.bool_], bias: Array | None = None) -> Expected:
    """y[m, n] = sum over the kept k of x[m, k] * w[n, k], plus bias[n]; no activation.

    A weight that is not kept takes no part, whatever x holds; a kept zero times infinity is NaN.
    x: [M, cols]; dense, mask: [rows, cols]; bias: [rows]. Result: [M, rows].
    """
    x, dense = np.asarray(x, np.float64), np.where(mask, dense, 0.0)
    with np.errstate(all="ignore"):
        if np.isfinite(x).all() and np.isfinite(dense).all():
            value = x @ dense.T
            magnitude = np.abs(x) @ np.abs(dense).T
        else:
            value = np.empty((x.shape[0], dense.shape[0]))
            magnitude = np.empty_like(value)
            for m, row in enumerate(x):
                products = np.where(mask, row * dense, 0.0)
                value[m] = products.sum(axis=1)
                magnitude[m] = np.abs(products).sum(axis=1)
        if bias is not None:
            value = value + bias
            magnitude = magnitude + np.abs(bias)
    terms = np.broadcast_to(mask.sum(axis=1) + (bias is not None), value.shape)
    return Expected(value, magnitude, terms)


def conv2d(
    x: Array,
    dense: Array,
    mask: NDArray[np.bool_],
    bias: Array | None = None,
    stride: int = 1,
) -> Expected:
    """1x1 convolution without padding: a linear map of the channels of every ``stride``-th pixel.

    x: [B, cols, H, W]. Result: [B, rows, ceil(H / stride), ceil(W / stride)].
    """
    taken = np.asarray(x, np.float64)[:, :, ::stride, ::stride]
    batch, cols, height, width = taken.shape
    flat = linear(taken.transpose(0, 2, 3, 1).reshape(-1, cols), dense, mask, bias)

    def back(a: NDArray) -> NDArray:
        return a.reshape(batch, height, width, dense.shape[0]).transpose(0, 3, 1, 2)

    return Expected(back(flat.value), back(flat.magnitude), back(flat.terms))


def sddmm(grad: Array, x: Array, matrix: Csr | Nm, values: int) -> Expected:
    """Gradient of the kept values, in the order of ``values`` (its length); padding 0.

    grad: [M, rows]; x: [M, cols].
    """
    grad, x = np.asarray(grad, np.float64), np.asarray(x, np.float64)
    rows, cols = np.nonzero(matrix.mask)
    with np.errstate(all="ignore"):
        products = grad[:, rows] * x[:, cols]
    value, magnitude = np.zeros(values), np.zeros(values)
    terms = np.zeros(values, np.int64)
    at = matrix.positions[rows, cols]
    value[at] = products.sum(axis=0)
    magnitude[at] = np.abs(products).sum(axis=0)
    terms[at] = grad.shape[0]
    return Expected(value, magnitude, terms)


def nm_mask(score: Array, n: int, m: int) -> NDArray[np.bool_]:
    """The n largest of every m along the last axis, group by group, by sorting (value, index)."""
    score = np.asarray(score, np.float64)
    rows = score.reshape(-1, score.shape[-1])
    kept = np.zeros(rows.shape, np.bool_)
    for row, out in zip(rows, kept, strict=True):
        for begin in range(0, len(row), m):
            group = [(math.isnan(v), 0.0 if math.isnan(v) else -v) for v in row[begin : begin + m]]
            for i in sorted(range(len(group)), key=lambda i: (group[i], i))[:n]:
                out[begin + i] = True
    return kept.reshape(score.shape)
