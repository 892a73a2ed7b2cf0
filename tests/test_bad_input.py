# SPDX-License-Identifier: Apache-2.0
"""Untrusted structures and wrong arguments: a clear error or the right answer, never a crash."""

from __future__ import annotations

import re
import struct

import corruption
import numpy as np
import oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sparsekern import _core
from sparsekern._library import translated
from strategies import Packed, Spec, activations, pack, run_conv2d, run_linear, specs, stored


def arrays(packed: Packed) -> tuple[np.ndarray, np.ndarray]:
    return stored(packed.values).copy(), packed.structure.numpy().copy()


def put(structure: np.ndarray, offset: int, kind: str, value: int) -> np.ndarray:
    """A copy of the structure with one integer of the header replaced."""
    data = bytearray(structure.tobytes())
    struct.pack_into("<" + kind, data, offset, value)
    return np.frombuffer(bytes(data), np.uint8).copy()


def sections(structure: np.ndarray) -> dict[str, int]:
    """Where each section starts."""
    info = _core.csr_info(structure)
    lanes = info["tiles"] * info["panel_groups"]
    starts, end = {}, 64
    for name, length in (
        ("tile_ptr", 8 * (info["tiles"] + 1)),
        ("order", lanes),
        ("count", lanes),
        ("index", info["steps"] * 16),
    ):
        starts[name] = -(-end // 64) * 64
        end = starts[name] + length
    return starts


def same_verdict(values: np.ndarray, structure: np.ndarray, dtype: str) -> None:
    """csr_validate accepts exactly what the oracle accepts, and reads the same in it."""
    readers = (oracle.read_csr, _core.csr_validate, _core.csr_unpack, _core.csr_mask)
    corruption.same_verdict("csr", *readers, (values, structure, dtype))


# --- corrupt structures and values ----------------------------------------------------------------


@settings(max_examples=300)
@given(specs(140), st.data())
def test_flipped_bits(spec, data):
    values, structure = arrays(pack(spec))
    corruption.flip_bits(data, structure)
    same_verdict(values, structure, spec.dtype)


@settings(max_examples=300)
@given(specs(140), st.data())
def test_replaced_bytes(spec, data):
    values, structure = arrays(pack(spec))
    corruption.replace_bytes(data, structure)
    same_verdict(values, structure, spec.dtype)


@given(specs(140), st.data())
def test_swapped_bytes(spec, data):
    """Swaps keep sums and permutations whole: what only a check of each entry can see."""
    values, structure = arrays(pack(spec))
    starts = sorted(sections(structure).values())
    start = data.draw(st.sampled_from([s for s in starts if s < structure.size]))
    i, j = (data.draw(st.integers(start, min(start + 40, structure.size) - 1)) for _ in range(2))
    structure[[i, j]] = structure[[j, i]]
    same_verdict(values, structure, spec.dtype)


@given(specs(140), st.data())
def test_values_where_none_may_be(spec, data):
    """Any change of a kept value is another matrix; a change of padding is an error."""
    values, structure = arrays(pack(spec))
    corruption.change_a_value(data, values)
    same_verdict(values, structure, spec.dtype)


@given(specs(100), st.data())
def test_truncated_and_extended(spec, data):
    values, structure = arrays(pack(spec))
    for changed in corruption.other_lengths(data, values, structure):
        same_verdict(*changed, spec.dtype)


@settings(max_examples=100)
@given(st.binary(max_size=400), st.booleans())
def test_random_bytes(data, with_magic):
    structure = corruption.bytes_after(b"SKCR\x01\0\0\0" if with_magic else b"", data)
    same_verdict(np.zeros(16, np.float32), structure, "float32")


HEADERS = [
    (0, "4s", b"SKCX", "must begin with SKCR"),
    (4, "I", 0, "version must be 1, got 0"),
    (4, "I", 2, "version must be 1, got 2; a newer sparsekern wrote it"),
    (8, "Q", 0, r"rows and cols must be in \[1, 2\^31\), got 0 x 40"),
    (8, "Q", 2**31, "rows and cols must be in"),
    (8, "Q", 2**64 - 1, "rows and cols must be in"),
    (16, "Q", 0, "rows and cols must be in"),
    (16, "Q", 2**63, "rows and cols must be in"),
    (8, "Q", 2**31 - 1, "length must match its header"),
    (16, "Q", 2**31 - 1, "length must match its header"),
    (24, "I", 0, "block_rows must be 1, 2 or 4, got 0"),
    (24, "I", 3, "block_rows must be 1, 2 or 4, got 3"),
    (28, "I", 0, "panel groups must be a multiple of 16"),
    (28, "I", 24, "panel groups must be a multiple of 16"),
    (28, "I", 272, "panel groups must be a multiple of 16"),
    (32, "Q", 2**60, "counts must be consistent"),
    (32, "Q", 2**64 - 1, "counts must be consistent"),
    (40, "Q", 0, "counts must be consistent"),
    (48, "Q", 1, "bytes between sections must be 0"),
]


@pytest.mark.parametrize(("offset", "kind", "value", "text"), HEADERS)
def test_each_field_of_the_header_is_checked(offset, kind, value, text):
    values, structure = arrays(pack(Spec(30, 40, 0.3)))
    bad = put(structure, offset, kind, value)
    with pytest.raises(ValueError, match=r"^csr.*" + text):
        _core.csr_validate(values, bad, "float32")
    if "between" not in text:  # what memory safety needs, the operators check on every call
        packed = pack(Spec(30, 40, 0.3))
        with pytest.raises(ValueError, match=r"^csr_linear: structure.*" + text):
            run_linear(packed, torch.ones(1, 40), structure=torch.from_numpy(bad))


def corrupt(section: str, offset: int, value: int):
    def damage(values: np.ndarray, structure: np.ndarray) -> None:
        structure[sections(structure)[section] + offset] = value

    return damage


def padding_value(values: np.ndarray, structure: np.ndarray) -> None:
    values[values == 0] = 1.0


def lane_not_ascending(values: np.ndarray, structure: np.ndarray) -> None:
    index = sections(structure)["index"]
    structure[[index, index + 16]] = structure[[index + 16, index]]


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (corrupt("tile_ptr", 0, 1), "tile_ptr must rise from 0"),
        (corrupt("tile_ptr", 15, 0x80), "tile_ptr must rise from 0"),
        (corrupt("order", 0, 255), "order"),
        (corrupt("order", 3, 3), "order"),
        (corrupt("count", 0, 129), "count"),
        (corrupt("count", 1, 128), "count"),
        (corrupt("index", 0, 127), "index|ascending|column"),
        (corrupt("index", 0, 255), "index|ascending|column"),
        (lane_not_ascending, "index|ascending|column"),
        (padding_value, "padding"),
    ],
)
def test_each_section_is_checked(damage, text):
    packed = pack(Spec(30, 40, 0.3, seed=2))
    values, structure = arrays(packed)
    damage(values, structure)
    with pytest.raises(oracle.FormatError):
        oracle.read_csr(values, structure, "float32")
    with pytest.raises(ValueError, match=f"^csr.*({text})"):
        _core.csr_validate(values, structure, "float32")
    with pytest.raises(ValueError, match=r"^csr"):
        _core.csr_unpack(values, structure, "float32")


@pytest.mark.parametrize("reader", [_core.csr_mask, _core.csr_transpose])
def test_every_reader_of_a_structure_validates_it(reader):
    _, structure = arrays(pack(Spec(30, 40, 0.3, seed=2)))
    structure[sections(structure)["index"]] = 200
    with pytest.raises(ValueError, match=r"^csr"):
        reader(structure)


@settings(max_examples=40)
@given(spec=specs(150), seed=st.integers(0, 2**32 - 1))
def test_operators_survive_structures_that_nobody_validated(isa, spec, seed):
    """Random bytes in order, count and index: results are wrong, but memory stays whole.

    A crash ends the test run; tests/cpp repeats this under AddressSanitizer.
    """
    packed = pack(spec)
    rng = np.random.default_rng(seed)
    structure = packed.structure.numpy().copy()
    start = sections(structure)
    structure[start["order"] :] = rng.integers(0, 256, structure.size - start["order"])
    bad = torch.from_numpy(structure)
    for x_rows in (1, 3, 20, 70):
        y = run_linear(packed, activations((x_rows, spec.cols)), structure=bad)
        assert y.shape == (x_rows, spec.rows)
        grad = torch.ops.sparsekern.csr_sddmm(
            y, y.new_ones(x_rows, spec.cols), bad, packed.values.numel()
        )
        assert grad.shape == packed.values.shape
    run_conv2d(packed, activations((2, spec.cols, 5, 3)), structure=bad)


# --- arguments of the operators -------------------------------------------------------------------


def refused(kind: type[Exception], text: str, call, *args, **kwargs) -> None:
    with pytest.raises((ValueError, RuntimeError)) as caught:
        call(*args, **kwargs)
    error = caught.value
    if isinstance(error, RuntimeError):
        error = translated(error)
    assert type(error) is kind, repr(error)
    assert text in str(error)


@pytest.fixture(scope="module")
def matrix() -> Packed:
    return pack(Spec(30, 40, 0.3))


NO_BYTES = torch.zeros(0, dtype=torch.uint8)
FLOATS = "must be float32, bfloat16 or float16"

# Argument, its bad value, the exception, and its text after "csr_linear: ".
LINEAR = [
    ("x", torch.ones(2, 39), ValueError, "x.shape[-1] must equal in_features (40), got 39"),
    ("x", torch.ones(2, 41), ValueError, "x.shape[-1] must equal in_features (40), got 41"),
    ("x", torch.ones(0), ValueError, "x.shape[-1] must equal in_features (40), got 0"),
    ("x", torch.tensor(1.0), ValueError, "x must have 1 to 16 dimensions, got 0"),
    ("x", torch.ones(2, 40).double(), TypeError, f"x {FLOATS}"),
    ("x", torch.ones(2, 40).int(), TypeError, f"x {FLOATS}"),
    ("x", torch.ones(2, 40).to(torch.int8), TypeError, f"x {FLOATS}"),
    ("rows", 29, ValueError, "rows must equal the structure's (30), got 29"),
    ("rows", -1, ValueError, "rows must equal the structure's (30), got -1"),
    ("bias", torch.ones(29), ValueError, "bias must have rows (30) elements, got 29"),
    ("bias", torch.ones(30, 1), ValueError, "bias must have rows (30) elements, got 30"),
    ("bias", torch.ones(30).double(), TypeError, f"bias {FLOATS}"),
    ("scale", torch.ones(30), ValueError, "scale must be given for int8 values and for no others"),
    ("values", torch.ones(3), ValueError, "values must be contiguous with"),
    ("structure", torch.ones(640).int(), TypeError, "structure must be a contiguous uint8 vector"),
    ("structure", NO_BYTES, ValueError, "structure must have at least 64 bytes, got 0"),
    ("activation", 7, ValueError, "activation must be in [0, 6], got 7"),
    ("activation", -1, ValueError, "activation must be in [0, 6], got -1"),
]

CONV2D = [
    ("x", torch.ones(2, 39, 3, 3), ValueError, "x.shape[1] must equal in_channels (40), got 39"),
    ("x", torch.ones(40, 3, 3), ValueError, "x must have 4 dimensions"),
    ("x", torch.ones(1, 40, 3, 3).double(), TypeError, f"x {FLOATS}"),
    ("stride", 0, ValueError, "stride must be at least 1, got 0"),
    ("stride", -1, ValueError, "stride must be at least 1, got -1"),
    ("rows", 31, ValueError, "rows must equal the structure's (30), got 31"),
    ("bias", torch.ones(31), ValueError, "bias must have rows (30) elements, got 31"),
    ("activation", 9, ValueError, "activation must be in [0, 6], got 9"),
]


def numbered(table: list) -> list:
    return [pytest.param(*row, id=f"{i}-{row[0]}") for i, row in enumerate(table)]


@pytest.mark.parametrize(("argument", "value", "kind", "text"), numbered(LINEAR))
def test_linear_refuses(matrix, argument, value, kind, text):
    arguments = {"x": torch.ones(2, 40)} | {argument: value}
    refused(kind, f"csr_linear: {text}", run_linear, matrix, **arguments)


@pytest.mark.parametrize(("argument", "value", "kind", "text"), numbered(CONV2D))
def test_conv2d_refuses(matrix, argument, value, kind, text):
    arguments = {"x": torch.ones(1, 40, 3, 3)} | {argument: value}
    refused(kind, f"csr_conv2d: {text}", run_conv2d, matrix, **arguments)


@pytest.mark.parametrize(
    ("grad", "x", "extra", "kind", "text"),
    [
        ((2, 29), torch.ones(2, 40), 0, ValueError, "grad and x must be [m, 30] and [m, 40]"),
        ((2, 30), torch.ones(3, 40), 0, ValueError, "grad and x must be [m, 30] and [m, 40]"),
        ((30,), torch.ones(40), 0, ValueError, "grad and x must be [m, 30] and [m, 40]"),
        ((2, 30), torch.ones(2, 40).half(), 0, TypeError, "grad and x must have one dtype"),
        ((2, 30), torch.ones(2, 40), 16, ValueError, "numel must be that of values"),
    ],
)
def test_sddmm_refuses(matrix, grad, x, extra, kind, text):
    sddmm = torch.ops.sparsekern.csr_sddmm
    numel = matrix.values.numel() + extra
    refused(kind, f"csr_sddmm: {text}", sddmm, torch.ones(grad), x, matrix.structure, numel)


def test_int8_needs_its_scale():
    packed = pack(Spec(30, 40, 0.3, "int8"))
    x = torch.ones(2, 40)
    text = "csr_linear: scale must"
    refused(ValueError, text, run_linear, packed, x, scale=None)
    refused(ValueError, text, run_linear, packed, x, scale=torch.ones(29))
    refused(TypeError, text, run_linear, packed, x, scale=torch.ones(30).half())


# --- arguments of the packer ----------------------------------------------------------------------


ONES = np.ones((4, 4), np.float32)
PACK = [
    (
        ONES,
        "float64",
        None,
        1,
        TypeError,
        "dtype must be float32, bfloat16, float16 or int8, got f",
    ),
    (np.ones((4, 4)), "float32", None, 1, TypeError, "dense must have 4 byte"),
    (ONES[0], "float32", None, 1, ValueError, "dense must have 2 dimension(s), got 1"),
    (ONES[:0], "float32", None, 1, ValueError, "rows and cols must be in [1, 2^31), got 0 x 4"),
    (np.ones((4, 0), "f4"), "float32", None, 1, ValueError, "rows and cols must be in [1, 2^31)"),
    (ONES, "float32", None, 3, ValueError, "block_rows must be 1, 2 or 4, got 3"),
    (ONES, "float32", None, 0, ValueError, "block_rows must be 1, 2 or 4, got 0"),
    (ONES, "float32", np.ones((4, 5), bool), 1, ValueError, "mask must have the shape of dense"),
    (ONES, "float32", np.ones(4, bool), 1, ValueError, "mask must have 2 dimension"),
]


@pytest.mark.parametrize(("dense", "dtype", "mask", "block_rows", "kind", "text"), PACK)
def test_pack_refuses(dense, dtype, mask, block_rows, kind, text):
    with pytest.raises(kind, match="^" + re.escape(f"csr_pack: {text}")):
        _core.csr_pack(dense, dtype, mask, block_rows)
