# SPDX-License-Identifier: Apache-2.0
"""The bitmap format: what the packer writes, the oracle reads; what either refuses, both refuse."""

from __future__ import annotations

import re
import struct

import corruption
import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sparsekern import _core
from strategies import DTYPES, Spec, draw, pack_bitmap, specs, stored

SHAPES = [(1, 1), (1, 300), (40, 1), (16, 64), (15, 63), (17, 65), (32, 128), (5, 7), (50, 130)]


def golden() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bytes written by hand from docs/formats.md: 18 x 70, so two panels and two words a row.

    In the order of the format: row 0 keeps 1 at column 5; row 1 keeps 2 at column 63; row 0 keeps
    3 at column 65; row 17 keeps 4 at column 0 and -0 at column 1.
    """
    header = struct.pack("<4sIQQQ32x", b"SKBM", 1, 18, 70, 5)
    offsets = struct.pack("<3Q40x", 0, 3, 5)
    words = np.zeros((2, 2, 16), "<u8")
    words[0, 0, 0] = 1 << 5
    words[0, 0, 1] = 1 << 63
    words[0, 1, 0] = 1 << 1
    words[1, 0, 1] = 0b11
    values = np.array([1, 2, 3, 4, -0.0], np.float32)
    dense = np.zeros((18, 70), np.float32)
    dense[0, 5], dense[1, 63], dense[0, 65], dense[17, 0], dense[17, 1] = values
    data = header + offsets + words.tobytes()
    return values, np.frombuffer(data, np.uint8).copy(), dense


def test_hand_written_bytes_are_read_and_written():
    values, structure, dense = golden()
    read = oracle.read_bitmap(values, structure, "float32")
    np.testing.assert_array_equal(read.dense, dense)
    _core.bitmap_validate(values, structure, "float32")
    np.testing.assert_array_equal(_core.bitmap_unpack(values, structure, "float32"), dense)
    mask = dense != 0
    mask[17, 1] = True
    np.testing.assert_array_equal(read.mask, mask)
    np.testing.assert_array_equal(_core.bitmap_mask_of(structure), mask)
    packed = _core.bitmap_pack(dense, "float32", mask)
    np.testing.assert_array_equal(packed[0].view(np.uint32), values.view(np.uint32))
    np.testing.assert_array_equal(packed[1], structure)


def check_pack(spec: Spec) -> None:
    weights, mask = draw(spec)
    weights = stored(weights)
    values, structure = _core.bitmap_pack(weights, spec.dtype, mask)
    read = oracle.read_bitmap(values, structure, spec.dtype)
    np.testing.assert_array_equal(read.mask, mask)
    kept = np.where(mask, weights, weights.dtype.type(0))
    flat = oracle.elements(kept.ravel(), spec.dtype)
    np.testing.assert_array_equal(read.dense, flat.reshape(kept.shape))
    _core.bitmap_validate(values, structure, spec.dtype)
    np.testing.assert_array_equal(_core.bitmap_unpack(values, structure, spec.dtype), kept)
    np.testing.assert_array_equal(_core.bitmap_mask_of(structure), mask)
    assert _core.bitmap_info(structure) == {
        "version": 1,
        "rows": spec.rows,
        "cols": spec.cols,
        "kept": int(mask.sum()),
        "panels": -(-spec.rows // 16),
        "words": -(-spec.cols // 64),
    }
    # One packed form; what draw() draws has no zeros, so that no mask is needed.
    for again in (mask, None):
        other = _core.bitmap_pack(kept, spec.dtype, again)
        np.testing.assert_array_equal(other[0], values)
        np.testing.assert_array_equal(other[1], structure)


@pytest.mark.parametrize("dtype", DTYPES)
def test_round_trip_at_the_edges(dtype):
    for shape in SHAPES:
        for density in (0.0, 0.5, 1.0):
            check_pack(Spec(*shape, density, dtype))


@settings(max_examples=100)
@given(specs(150))
def test_round_trip(spec):
    check_pack(Spec(spec.rows, spec.cols, spec.density, spec.dtype, seed=spec.seed))


@pytest.mark.parametrize(("sparsity", "share"), [(0.5, 0.57), (0.6, 0.47), (0.7, 0.37)])
@pytest.mark.parametrize("shape", [(1024, 1024), (1000, 4096)])
def test_bytes_of_16_bit_values(shape, sparsity, share):
    mask = np.zeros(shape[0] * shape[1], bool)
    mask[: round(mask.size * (1 - sparsity))] = True
    np.random.default_rng(0).shuffle(mask)
    ones = np.ones(shape, np.uint16)
    values, structure = _core.bitmap_pack(ones, "bfloat16", mask.reshape(shape))
    assert values.nbytes + structure.nbytes <= share * ones.nbytes


def test_without_a_mask_what_differs_from_zero_is_kept():
    dense = np.array([[0.0, -0.0, 1.0, np.nan], [0.0, -0.0, 0.0, np.inf]], np.float32)
    values, structure = _core.bitmap_pack(dense, "float32")
    expected = [[False, False, True, True], [False, False, False, True]]
    np.testing.assert_array_equal(_core.bitmap_mask_of(structure), expected)
    np.testing.assert_array_equal(_core.bitmap_unpack(values, structure, "float32"), dense)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_every_bit_pattern_of_a_weight_survives(dtype):
    """NaN payloads, infinities, subnormals: packing copies, it does not compute."""
    if dtype == "float32":
        bits = np.random.default_rng(3).integers(1, 2**32, (64, 64), dtype=np.uint32)
        bits[0, :4] = [0x7FC00001, 0x7F800001, 0xFF800000, 1]
        dense = bits.view(np.float32)
    else:
        dense = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    values, structure = _core.bitmap_pack(dense, dtype, np.ones(dense.shape, bool))
    out = _core.bitmap_unpack(values, structure, dtype)
    np.testing.assert_array_equal(out.view(np.uint8), dense.view(np.uint8))


# --- what is refused ------------------------------------------------------------------------------

ONES = np.ones((4, 4), np.float32)
FINE = np.ones((4, 4), bool)
PACK = [
    (ONES, "float64", FINE, TypeError, "bitmap_pack: dtype must be float32, bfloat16, float16"),
    (np.ones((4, 4)), "float32", FINE, TypeError, "bitmap_pack: dense must have 4 byte"),
    (ONES[0], "float32", None, ValueError, "bitmap_pack: dense must have 2 dimension(s), got 1"),
    (ONES[:0], "float32", None, ValueError, "bitmap: rows and cols must be in [1, 2^31), got 0"),
    (ONES[:, :0].copy(), "float32", None, ValueError, "bitmap: rows and cols must be in [1,"),
    (ONES[:, ::2], "float32", None, ValueError, "bitmap_pack: dense must be C-contiguous"),
    (ONES, "float32", FINE[:2], ValueError, "bitmap_pack: mask must have the shape of dense"),
]


@pytest.mark.parametrize(("dense", "dtype", "mask", "kind", "text"), PACK)
def test_pack_refuses(dense, dtype, mask, kind, text):
    with pytest.raises(kind, match="^" + re.escape(text)):
        _core.bitmap_pack(dense, dtype, mask)


# --- damage ---------------------------------------------------------------------------------------


def arrays(spec: Spec) -> tuple[np.ndarray, np.ndarray]:
    packed = pack_bitmap(Spec(spec.rows, spec.cols, spec.density, spec.dtype, seed=spec.seed))
    return stored(packed.values).copy(), packed.structure.numpy().copy()


def same_verdict(values: np.ndarray, structure: np.ndarray, dtype: str) -> None:
    """bitmap_validate accepts exactly what the oracle accepts, and reads the same in it."""
    readers = (
        oracle.read_bitmap,
        _core.bitmap_validate,
        _core.bitmap_unpack,
        _core.bitmap_mask_of,
    )
    read = corruption.same_verdict("bitmap", *readers, (values, structure, dtype))
    if read is None:
        return
    dense = _core.bitmap_unpack(values, structure, dtype)
    again = _core.bitmap_pack(dense, dtype, read.mask)
    np.testing.assert_array_equal(again[0].view(np.uint8), values.view(np.uint8))
    np.testing.assert_array_equal(again[1], structure)


def test_every_flipped_bit():
    values, structure = arrays(Spec(18, 70, 0.5, "int8"))
    for bit in range(structure.size * 8):
        bad = structure.copy()
        bad[bit // 8] ^= 1 << bit % 8
        if bit < 1024 or bit % 7 == 0:
            same_verdict(values, bad, "int8")


@given(specs(70), st.data())
def test_damage(spec, data):
    values, structure = arrays(spec)
    for damage in (corruption.flip_bits, corruption.replace_bytes):
        bad = structure.copy()
        damage(data, bad)
        same_verdict(values, bad, spec.dtype)
    for changed in corruption.other_lengths(data, values, structure):
        same_verdict(*changed, spec.dtype)


@given(specs(70), st.data())
def test_swapped_words(spec, data):
    """As many bits as before, in another place: another matrix, or bits beyond its edge."""
    values, structure = arrays(spec)
    words = structure[structure.size % 128 :].view(np.uint64)
    i, j = (data.draw(st.integers(0, words.size - 1)) for _ in range(2))
    words[[i, j]] = words[[j, i]]
    same_verdict(values, structure, spec.dtype)


@given(st.binary(max_size=400), st.booleans())
def test_random_bytes(data, with_magic):
    structure = corruption.bytes_after(b"SKBM\x01\0\0\0" if with_magic else b"", data)
    same_verdict(np.zeros(16, np.float32), structure, "float32")


HEADERS = [
    (0, "4s", b"SKNM", "must begin with SKBM"),
    (4, "I", 0, "version must be 1, got 0"),
    (4, "I", 2, "version must be 1, got 2; a newer sparsekern wrote it"),
    (8, "Q", 0, r"rows and cols must be in \[1, 2\^31\), got 0 x 70"),
    (8, "Q", 2**64 - 1, "rows and cols must be in"),
    (16, "Q", 2**63, "rows and cols must be in"),
    (8, "Q", 2**31 - 1, "length must match its header"),
    (16, "Q", 2**31 - 1, "length must match its header"),
    (24, "Q", 2**64 - 1, r"kept must be in \[0, rows \* cols\], got -1"),
    (24, "Q", 18 * 70 + 1, r"kept must be in \[0, rows \* cols\], got 1261"),
    (24, "Q", 4, r"panel offsets must ascend from 0 to kept \(4\), got 5 for panel 2"),
    (32, "Q", 1, "bytes 32 to 63 must be 0"),
    (64, "Q", 1, "panel offsets must ascend from 0 to kept .5., got 1 for panel 0"),
    (72, "Q", 2**63, "panel offsets must ascend"),
    (72, "Q", 2, "panel 0 must have as many values as bits .3., got 2"),
    (88, "Q", 1, "bytes behind the panel offsets must be 0"),
    (128 + 16 * 8, "Q", 2**6, "bits beyond the matrix must be 0 .row 0, columns from 64."),
    (128 + 34 * 8, "Q", 1, "bits beyond the matrix must be 0 .row 18, columns from 0."),
]


@pytest.mark.parametrize(("offset", "kind", "value", "text"), HEADERS)
def test_refusals_say_what_is_wrong(offset, kind, value, text):
    values, structure, _ = golden()
    struct.pack_into("<" + kind, structure.data, offset, value)
    with pytest.raises(ValueError, match=text):
        _core.bitmap_validate(values, structure, "float32")
    with pytest.raises(oracle.FormatError):
        oracle.read_bitmap(values, structure, "float32")
