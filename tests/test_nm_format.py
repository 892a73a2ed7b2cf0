# SPDX-License-Identifier: Apache-2.0
"""The nm format: what the packer writes, the oracle reads; what either refuses, both refuse."""

from __future__ import annotations

import re
import struct

import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from sparsekern import _core
from strategies import DTYPES, NM_PATTERNS, NmSpec, draw_nm, nm_specs, pack_nm, stored

# Panels and windows, and their neighbours; fewer columns than a group and than N.
SHAPES = [(1, 1), (1, 300), (40, 1), (16, 32), (15, 31), (17, 33), (32, 64), (5, 7), (50, 130)]


def golden() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bytes written by hand from docs/formats.md: 2 x 6, 2:4, so two windows and four steps.

    Row 0 holds 1 and 2 at columns 1 and 3, and 3 at column 5, where column 4 fills up.
    Row 1 holds nothing at 0 to 3, where columns 0 and 1 fill up, and 4 and 5 at columns 4 and 5.
    Fields, the first step lowest: row 0 is 1, 3, 0, 1; all others are 0, 1, 0, 1.
    """
    header = struct.pack("<4sIQQIIQ24x", b"SKNM", 1, 2, 6, 2, 4, 4)
    words = [0b01_00_11_01] + [0b01_00_01_00] * 15
    values = np.zeros((4, 16), np.float32)
    values[:, 0] = [1, 2, 0, 3]
    values[:, 1] = [0, 0, 4, 5]
    dense = np.zeros((2, 6), np.float32)
    dense[0, [1, 3, 5]] = [1, 2, 3]
    dense[1, [4, 5]] = [4, 5]
    data = header + struct.pack("<16I", *words)
    return values.ravel(), np.frombuffer(data, np.uint8).copy(), dense


def test_hand_written_bytes_are_read():
    values, structure, dense = golden()
    read = oracle.read_nm(values, structure, "float32")
    np.testing.assert_array_equal(read.dense, dense)
    _core.nm_validate(values, structure, "float32")
    np.testing.assert_array_equal(_core.nm_unpack(values, structure, "float32"), dense)
    mask = [[False, True, False, True, True, True], [True, True, False, False, True, True]]
    np.testing.assert_array_equal(read.mask, mask)
    np.testing.assert_array_equal(_core.nm_mask_of(structure), mask)


def test_the_packer_writes_the_hand_written_bytes():
    values, structure, dense = golden()
    packed_values, packed_structure = _core.nm_pack(dense, "float32", 2, 4)
    np.testing.assert_array_equal(packed_values, values)
    np.testing.assert_array_equal(packed_structure, structure)


def filled(mask: np.ndarray, n: int, m: int) -> np.ndarray:
    """The pattern that is stored: short groups keep their lowest other columns too."""
    out = mask.copy()
    rows, cols = mask.shape
    for row in range(rows):
        for first in range(0, cols, m):
            group = out[row, first : first + m]
            free = np.flatnonzero(~group)
            group[free[: n - int(group.sum())]] = True
    return out


def check_pack(spec: NmSpec) -> None:
    weights, mask = draw_nm(spec)
    weights = stored(weights)
    values, structure = _core.nm_pack(weights, spec.dtype, spec.n, spec.m, mask)
    read = oracle.read_nm(values, structure, spec.dtype)
    pattern = filled(mask, spec.n, spec.m)
    np.testing.assert_array_equal(read.mask, pattern)
    kept = np.where(mask, weights, weights.dtype.type(0))
    np.testing.assert_array_equal(
        read.dense, oracle.elements(kept.ravel(), spec.dtype).reshape(kept.shape)
    )
    _core.nm_validate(values, structure, spec.dtype)
    np.testing.assert_array_equal(_core.nm_unpack(values, structure, spec.dtype), kept)
    np.testing.assert_array_equal(_core.nm_mask_of(structure), pattern)
    window, field_bits = {2: (4, 2), 4: (4, 2), 8: (16, 4), 16: (16, 4), 32: (32, 8)}[spec.m]
    assert _core.nm_info(structure) == {
        "version": 1,
        "rows": spec.rows,
        "cols": spec.cols,
        "n": spec.n,
        "m": spec.m,
        "window": window,
        "field_bits": field_bits,
        "steps": read.steps,
        "words": -(-read.steps * field_bits // 32),
        "panels": -(-spec.rows // 16),
    }
    # One packed form: of the unpacked matrix with the stored pattern, and without a mask.
    for again in (pattern, mask, None):
        other = _core.nm_pack(kept, spec.dtype, spec.n, spec.m, again)
        np.testing.assert_array_equal(other[0], values)
        np.testing.assert_array_equal(other[1], structure)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "m"), NM_PATTERNS)
def test_round_trip_at_the_edges(n, m, dtype):
    for shape in SHAPES:
        for short in (0.0, 0.5, 1.0):
            check_pack(NmSpec(*shape, n, m, dtype, short))


@settings(max_examples=200)
@given(nm_specs())
def test_round_trip(spec):
    check_pack(spec)


@pytest.mark.parametrize(("n", "m"), NM_PATTERNS)
def test_a_matrix_of_zeros_keeps_the_lowest_columns(n, m):
    dense = np.zeros((17, 70), np.float32)
    values, structure = _core.nm_pack(dense, "float32", n, m)
    read = oracle.read_nm(values, structure, "float32")
    np.testing.assert_array_equal(read.mask, np.broadcast_to(np.arange(70) % m < n, dense.shape))
    assert not values.any()


@pytest.mark.parametrize(("dtype", "bits"), [("bfloat16", 9), ("float32", 17), ("int8", 5)])
def test_bits_of_a_weight_at_2_of_4(dtype, bits):
    packed = pack_nm(NmSpec(48, 96, 2, 4, dtype))
    assert (packed.values.nbytes + packed.structure.nbytes - 64) * 8 == bits * 48 * 96


def test_without_a_mask_what_differs_from_zero_is_kept():
    dense = np.array([[0.0, -0.0, 1.0, np.nan], [0.0, -0.0, 0.0, np.inf]], np.float32)
    values, structure = _core.nm_pack(dense, "float32", 2, 4)
    expected = [[False, False, True, True], [True, False, False, True]]
    np.testing.assert_array_equal(_core.nm_mask_of(structure), expected)
    np.testing.assert_array_equal(_core.nm_unpack(values, structure, "float32"), dense)


def test_a_slot_that_fills_up_holds_what_the_matrix_holds_unless_the_mask_leaves_it_out():
    dense = np.array([[-0.0, 0.0, 0.0, 5.0]], np.float32)
    values, _ = _core.nm_pack(dense, "float32", 2, 4)
    assert np.signbit(values[0])
    values, structure = _core.nm_pack(dense, "float32", 2, 4, np.array([[False] * 3 + [True]]))
    assert not np.signbit(values[0])
    dense[0, 0] = 7
    values, structure = _core.nm_pack(dense, "float32", 2, 4, np.array([[False] * 3 + [True]]))
    np.testing.assert_array_equal(_core.nm_unpack(values, structure, "float32"), [[0, 0, 0, 5]])


def test_an_explicit_zero_is_kept_with_its_sign():
    dense = np.zeros((4, 8), np.float32)
    dense[:, 2] = -0.0
    mask = np.zeros((4, 8), bool)
    mask[:, 2::4] = True
    values, structure = _core.nm_pack(dense, "float32", 1, 4, mask)
    np.testing.assert_array_equal(_core.nm_mask_of(structure), mask)
    read = oracle.read_nm(values, structure, "float32")
    assert np.signbit(read.dense[:, 2]).all()
    assert not np.signbit(read.dense[:, 6]).any()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_every_bit_pattern_of_a_weight_survives(dtype):
    """NaN payloads, infinities, subnormals: packing copies, it does not compute."""
    if dtype == "float32":
        bits = np.random.default_rng(3).integers(1, 2**32, (64, 64), dtype=np.uint32)
        bits[0, :4] = [0x7FC00001, 0x7F800001, 0xFF800000, 1]
        dense = bits.view(np.float32)
    else:
        dense = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    for phase in (0, 1):  # every second column, so 2 of 4
        mask = np.zeros(dense.shape, bool)
        mask[:, phase::2] = True
        values, structure = _core.nm_pack(dense, dtype, 2, 4, mask)
        out = _core.nm_unpack(values, structure, dtype)
        kept = np.where(mask.repeat(dense.itemsize, axis=1), dense.view(np.uint8), 0)
        np.testing.assert_array_equal(out.view(np.uint8), kept)


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "m"), NM_PATTERNS)
def test_a_group_that_keeps_too_much_is_named(n, m, dtype):
    weights, mask = draw_nm(NmSpec(20, 75, n, m, dtype))
    weights = stored(weights)
    first = 75 // m // 2 * m
    mask[:7, first : first + m] = False  # the rows above keep less, and are fine
    mask[7, first : first + m] = np.arange(m) <= n
    text = (
        f"nm: row 7, columns {first} to {first + m - 1} must keep at most {n} of {m}, got {n + 1}"
    )
    with pytest.raises(ValueError, match=f"^{text}$"):
        _core.nm_pack(weights, dtype, n, m, mask)
    with pytest.raises(ValueError, match=f"^{text}$"):
        _core.nm_pack(np.where(mask, weights, weights.dtype.type(0)), dtype, n, m)


def test_a_last_group_that_is_short_is_named_by_its_columns():
    with pytest.raises(ValueError, match="row 0, columns 4 to 5 must keep at most 1 of 4, got 2"):
        _core.nm_pack(np.array([[0, 0, 0, 1, 1, 1]], np.float32), "float32", 1, 4)


ONES = np.ones((4, 4), np.float32)
FINE = np.tile([[False, True, False, True]], (4, 1))
PACK = [
    (ONES, "float64", 2, 4, FINE, TypeError, "nm_pack: dtype must be float32, bfloat16, float16"),
    (np.ones((4, 4)), "float32", 2, 4, FINE, TypeError, "nm_pack: dense must have 4 byte"),
    (ONES[0], "float32", 2, 4, None, ValueError, "nm_pack: dense must have 2 dimension(s), got 1"),
    (ONES[:0], "float32", 2, 4, None, ValueError, "nm: rows and cols must be in [1, 2^31), got 0"),
    (ONES[:, :0].copy(), "float32", 2, 4, None, ValueError, "nm: rows and cols must be in [1,"),
    (ONES[:, ::2], "float32", 2, 4, None, ValueError, "nm_pack: dense must be C-contiguous"),
    (ONES, "float32", 2, 4, FINE[:2], ValueError, "nm_pack: mask must have the shape of dense"),
    (ONES, "float32", 2, 4, FINE[0], ValueError, "nm_pack: mask must have 2 dimension"),
    *(
        (ONES, "float32", 1, m, FINE, ValueError, f"nm: m must be 2, 4, 8, 16 or 32, got {m}")
        for m in (-4, 0, 1, 3, 6, 12, 64)
    ),
    *(
        (ONES, "float32", n, 4, FINE, ValueError, f"nm: n must be in [1, 3] for m = 4, got {n}")
        for n in (-1, 0, 4, 5)
    ),
]


@pytest.mark.parametrize(("dense", "dtype", "n", "m", "mask", "kind", "text"), PACK)
def test_pack_refuses(dense, dtype, n, m, mask, kind, text):
    with pytest.raises(kind, match="^" + re.escape(text)):
        _core.nm_pack(dense, dtype, n, m, mask)
