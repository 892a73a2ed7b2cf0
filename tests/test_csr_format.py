# SPDX-License-Identifier: Apache-2.0
"""The csr format: what the packer writes, the oracle reads; what either refuses, both refuse."""

from __future__ import annotations

import struct

import numpy as np
import oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sparsekern import _core
from strategies import DTYPES, Spec, draw, pack, specs, stored

# Panels, groups and blocks of every size that the packer may choose, and their neighbours.
SHAPES = [
    (1, 1),
    (1, 300),
    (300, 1),
    (16, 128),
    (17, 129),
    (63, 127),
    (255, 256),
    (256, 255),
    (257, 257),
    (513, 130),
    (1025, 65),
    (2049, 33),
]


def align(data: bytes) -> bytes:
    return data + bytes(-len(data) % 64)


def golden() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bytes written by hand from docs/formats.md: 2 x 130, R = 1, H = 16, two blocks of columns.

    Row 0 holds 1 at column 5. Row 1 holds 2, 3, 4 at columns 0, 127 and 129. So tile 0 has row 1
    (two columns) before row 0 (one column), in two steps; tile 1 has row 1 in one step.
    """
    header = struct.pack("<4sIQQIIQQ16x", b"SKCR", 1, 2, 130, 1, 16, 3, 4)
    tile_ptr = struct.pack("<3Q", 0, 2, 3)
    order = bytes([1, 0, *range(2, 16)]) + bytes([1, 0, *range(2, 16)])
    count = bytes([2, 1] + [0] * 14) + bytes([1] + [0] * 15)
    index = bytes([0, 5] + [0] * 14) + bytes([127, 0] + [0] * 14) + bytes([1] + [0] * 15)
    data = align(align(align(align(header) + tile_ptr) + order) + count) + index
    values = np.zeros(48, np.float32)
    values[[0, 1, 16, 32]] = [2, 1, 3, 4]
    dense = np.zeros((2, 130), np.float32)
    dense[0, 5] = 1
    dense[1, [0, 127, 129]] = [2, 3, 4]
    return values, np.frombuffer(data, np.uint8).copy(), dense


def test_hand_written_bytes_are_read():
    values, structure, dense = golden()
    np.testing.assert_array_equal(oracle.read_csr(values, structure, "float32").dense, dense)
    _core.csr_validate(values, structure, "float32")
    np.testing.assert_array_equal(_core.csr_unpack(values, structure, "float32"), dense)


def test_the_packer_writes_the_hand_written_bytes():
    values, structure, dense = golden()
    packed_values, packed_structure = _core.csr_pack(dense, "float32", None, 1)
    np.testing.assert_array_equal(packed_values, values)
    np.testing.assert_array_equal(packed_structure, structure)


def check_pack(spec: Spec) -> None:
    weights, mask = draw(spec)
    weights = stored(weights)
    values, structure = _core.csr_pack(weights, spec.dtype, mask, spec.block_rows)
    read = oracle.read_csr(values, structure, spec.dtype)
    np.testing.assert_array_equal(read.mask, mask)
    kept = np.where(mask, weights, weights.dtype.type(0))
    np.testing.assert_array_equal(
        read.dense, oracle.elements(kept.ravel(), spec.dtype).reshape(kept.shape)
    )
    _core.csr_validate(values, structure, spec.dtype)
    np.testing.assert_array_equal(_core.csr_unpack(values, structure, spec.dtype), kept)
    np.testing.assert_array_equal(_core.csr_mask(structure), mask)
    info = _core.csr_info(structure)
    assert info == {
        "version": 1,
        "rows": spec.rows,
        "cols": spec.cols,
        "block_rows": spec.block_rows,
        "panel_groups": read.panel_groups,
        "steps": read.steps,
        "kept": read.kept,
        "tiles": read.tiles,
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block_rows", [1, 2, 4])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s[0]}x{s[1]}")
def test_round_trip_at_the_edges(shape, block_rows, dtype):
    for density in (0.0, 0.1, 1.0):
        check_pack(Spec(*shape, density, dtype, block_rows))


@given(specs())
def test_round_trip(spec):
    check_pack(spec)


@given(specs(150))
def test_packing_is_deterministic_and_canonical(spec):
    weights, mask = draw(spec)
    values, structure = _core.csr_pack(stored(weights), spec.dtype, mask, spec.block_rows)
    again = _core.csr_pack(
        _core.csr_unpack(values, structure, spec.dtype), spec.dtype, mask, spec.block_rows
    )
    np.testing.assert_array_equal(again[0], values)
    np.testing.assert_array_equal(again[1], structure)
    tiles, h = (_core.csr_info(structure)[key] for key in ("tiles", "panel_groups"))
    start = 64 + -(-8 * (tiles + 1) // 64) * 64
    order = structure[start : start + tiles * h].astype(int).reshape(tiles, h)
    start += -(-tiles * h // 64) * 64
    count = structure[start : start + tiles * h].astype(int).reshape(tiles, h)
    tied = np.diff(count, axis=1) == 0
    assert (np.diff(order, axis=1)[tied] > 0).all(), "ties must be in the order of the groups"


def test_without_a_mask_what_differs_from_zero_is_kept():
    dense = np.array([[0.0, -0.0, 1.0], [np.nan, 0.0, np.inf]], np.float32)
    values, structure = _core.csr_pack(dense, "float32", None, 1)
    expected = [[False, False, True], [True, False, True]]
    np.testing.assert_array_equal(_core.csr_mask(structure), expected)
    unpacked = _core.csr_unpack(values, structure, "float32")
    np.testing.assert_array_equal(unpacked, dense)
    assert not np.signbit(unpacked[0, 1]), "what is not kept is +0"


@pytest.mark.parametrize("block_rows", [1, 2, 4])
def test_an_explicit_zero_is_kept_with_its_sign(block_rows):
    dense = np.zeros((4, 3), np.float32)
    dense[:, 1] = -0.0
    mask = np.zeros((4, 3), bool)
    mask[:, 1] = True
    values, structure = _core.csr_pack(dense, "float32", mask, block_rows)
    np.testing.assert_array_equal(_core.csr_mask(structure), mask)
    read = oracle.read_csr(values, structure, "float32")
    assert np.signbit(read.dense[mask]).all()


@given(st.integers(0, 2**16), st.sampled_from([2, 4]))
def test_a_group_is_kept_where_any_of_its_rows_is(seed, block_rows):
    rng = np.random.default_rng(seed)
    rows, cols = int(rng.integers(1, 40)), int(rng.integers(1, 140))
    mask = rng.random((rows, cols)) < 0.2
    dense = rng.standard_normal((rows, cols)).astype(np.float32)
    values, structure = _core.csr_pack(dense, "float32", mask, block_rows)
    grouped = np.zeros((-(-rows // block_rows) * block_rows, cols), bool)
    grouped[:rows] = mask
    grouped = grouped.reshape(-1, block_rows, cols).any(axis=1).repeat(block_rows, axis=0)[:rows]
    np.testing.assert_array_equal(_core.csr_mask(structure), grouped)
    # A weight that the mask prunes stays pruned, though its group is kept.
    read = oracle.read_csr(values, structure, "float32")
    np.testing.assert_array_equal(read.dense, np.where(mask, dense, 0))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_every_bit_pattern_of_a_weight_survives(dtype):
    """NaN payloads, infinities, subnormals: packing copies, it does not compute."""
    rng = np.random.default_rng(3)
    if dtype == "float32":
        bits = rng.integers(1, 2**32, (64, 64), dtype=np.uint32)
        bits[0, :4] = [0x7FC00001, 0x7F800001, 0xFF800000, 1]
        dense, mask = bits.view(np.float32), np.ones((64, 64), bool)
    else:
        dense = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
        mask = np.ones((256, 256), bool)
    values, structure = _core.csr_pack(dense, dtype, mask, 1)
    out = _core.csr_unpack(values, structure, dtype)
    np.testing.assert_array_equal(out.view(np.uint8), dense.view(np.uint8))


@given(specs(dtypes=("float32", "int8")))
def test_transpose(spec):
    packed = pack(spec)
    structure, permutation = _core.csr_transpose(packed.structure.numpy())
    values = np.append(packed.values.numpy(), 0).astype(packed.values.numpy().dtype)[permutation]
    read = oracle.read_csr(values, structure, spec.dtype)
    np.testing.assert_array_equal(read.dense, packed.matrix.dense.T)
    np.testing.assert_array_equal(read.mask, packed.matrix.mask.T)
    assert permutation.dtype == np.int64
    used = permutation[permutation >= 0]
    assert len(np.unique(used)) == len(used)
    assert set(np.unique(permutation[permutation < 0])) <= {-1}


def test_only_contiguous_arrays_pack():
    with pytest.raises(ValueError, match="csr_pack: dense must be C-contiguous"):
        _core.csr_pack(np.ones((8, 8), np.float32)[::2], "float32", None, 1)
    with pytest.raises(ValueError, match="csr_pack: mask must be C-contiguous"):
        _core.csr_pack(np.ones((8, 8), np.float32), "float32", np.ones((8, 16), bool)[:, ::2], 1)


def test_padding_is_small_for_uniform_patterns():
    """The reason for sorting inside a tile: docs/formats.md promises 2 to 7 % at H = 256."""
    mask = np.random.default_rng(1).random((4096, 1024))
    for density in (0.05, 0.1, 0.2, 0.3):
        _, structure = _core.csr_pack((mask < density).astype(np.float32), "float32", None, 1)
        info = _core.csr_info(structure)
        assert info["panel_groups"] == 256
        assert 1.0 < info["steps"] * 16 / info["kept"] < 1.075, density
