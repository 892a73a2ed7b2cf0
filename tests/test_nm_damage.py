# SPDX-License-Identifier: Apache-2.0
"""Untrusted nm structures: the library refuses what the oracle does, and reads the rest alike."""

from __future__ import annotations

import struct

import corruption
import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sparsekern import _core
from strategies import NM_PATTERNS, NmSpec, nm_specs, pack_nm, stored


def arrays(spec: NmSpec) -> tuple[np.ndarray, np.ndarray]:
    packed = pack_nm(spec)
    return stored(packed.values).copy(), packed.structure.numpy().copy()


def same_verdict(values: np.ndarray, structure: np.ndarray, dtype: str) -> None:
    """nm_validate accepts exactly what the oracle accepts, and reads the same in it."""
    readers = (oracle.read_nm, _core.nm_validate, _core.nm_unpack, _core.nm_mask_of)
    read = corruption.same_verdict("nm", *readers, (values, structure, dtype))
    if read is None:
        return
    # What is accepted is the one packed form of what was read.
    dense = _core.nm_unpack(values, structure, dtype)
    again = _core.nm_pack(dense, dtype, read.n, read.m, read.mask)
    np.testing.assert_array_equal(again[0].view(np.uint8), values.view(np.uint8))
    np.testing.assert_array_equal(again[1], structure)


@pytest.mark.parametrize(("n", "m"), NM_PATTERNS)
def test_every_flipped_bit(n, m):
    values, structure = arrays(NmSpec(18, 37, n, m, "int8"))
    for bit in range(structure.size * 8):
        bad = structure.copy()
        bad[bit // 8] ^= 1 << bit % 8
        if bit < 512 or bit % 7 == 0:
            same_verdict(values, bad, "int8")


@settings(max_examples=300)
@given(nm_specs(70), st.data())
def test_flipped_bits(spec, data):
    values, structure = arrays(spec)
    corruption.flip_bits(data, structure)
    same_verdict(values, structure, spec.dtype)


@settings(max_examples=300)
@given(nm_specs(70), st.data())
def test_replaced_bytes(spec, data):
    values, structure = arrays(spec)
    corruption.replace_bytes(data, structure)
    same_verdict(values, structure, spec.dtype)


@given(nm_specs(70), st.data())
def test_swapped_words(spec, data):
    """A row's word in another place holds valid fields of a wrong group, or a wrong row's."""
    values, structure = arrays(spec)
    words = structure[64:].view(np.uint32)
    i, j = (data.draw(st.integers(0, words.size - 1)) for _ in range(2))
    words[[i, j]] = words[[j, i]]
    same_verdict(values, structure, spec.dtype)


@given(nm_specs(70), st.data())
def test_values_where_none_may_be(spec, data):
    """Any change of a kept value is another matrix; one beyond the matrix is an error."""
    values, structure = arrays(spec)
    corruption.change_a_value(data, values)
    same_verdict(values, structure, spec.dtype)


@given(nm_specs(70), st.data())
def test_truncated_and_extended(spec, data):
    values, structure = arrays(spec)
    for changed in corruption.other_lengths(data, values, structure):
        same_verdict(*changed, spec.dtype)


@settings(max_examples=100)
@given(st.binary(max_size=400), st.booleans())
def test_random_bytes(data, with_magic):
    structure = corruption.bytes_after(b"SKNM\x01\0\0\0" if with_magic else b"", data)
    same_verdict(np.zeros(16, np.float32), structure, "float32")


HEADERS = [
    (0, "4s", b"SKCR", "must begin with SKNM"),
    (4, "I", 0, "version must be 1, got 0"),
    (4, "I", 2, "version must be 1, got 2; a newer sparsekern wrote it"),
    (8, "Q", 0, r"rows and cols must be in \[1, 2\^31\), got 0 x 40"),
    (8, "Q", 2**31, "rows and cols must be in"),
    (8, "Q", 2**64 - 1, "rows and cols must be in"),
    (16, "Q", 0, "rows and cols must be in"),
    (16, "Q", 2**63, "rows and cols must be in"),
    (8, "Q", 2**31 - 1, "length must match its header"),
    (8, "Q", 33, "length must match its header"),
    (16, "Q", 2**31 - 1, "steps must be 1073741824 for its columns, got 20"),
    (16, "Q", 36, "steps must be 18 for its columns, got 20"),
    (24, "I", 0, r"n must be in \[1, 3\] for m = 4, got 0"),
    (24, "I", 1, "steps must be 10 for its columns, got 20"),
    (24, "I", 4, r"n must be in \[1, 3\] for m = 4, got 4"),
    (24, "I", 2**32 - 1, r"n must be in \[1, 3\] for m = 4, got 4294967295"),
    (28, "I", 0, "m must be 2, 4, 8, 16 or 32, got 0"),
    (28, "I", 3, "m must be 2, 4, 8, 16 or 32, got 3"),
    (28, "I", 64, "m must be 2, 4, 8, 16 or 32, got 64"),
    (28, "I", 2, r"n must be in \[1, 1\] for m = 2, got 2"),
    (32, "Q", 2**60, "steps must be 20 for its columns"),
    (32, "Q", 2**64 - 1, "steps must be 20 for its columns"),
    (40, "Q", 1, "bytes 40 to 63 must be 0"),
    (56, "Q", 2**63, "bytes 40 to 63 must be 0"),
]


@pytest.mark.parametrize(("offset", "kind", "value", "text"), HEADERS)
def test_each_field_of_the_header_is_checked(offset, kind, value, text):
    values, structure = arrays(NmSpec(30, 40))
    struct.pack_into("<" + kind, structure, offset, value)
    with pytest.raises(oracle.FormatError):
        oracle.read_nm(values, structure, "float32")
    with pytest.raises(ValueError, match=r"^nm: structure.*" + text):
        _core.nm_validate(values, structure, "float32")
    for reader in (_core.nm_info, _core.nm_mask_of):
        with pytest.raises(ValueError, match=rf"^{reader.__name__}: structure.*" + text):
            reader(structure)


# 17 x 6 at 2:4: two windows, the last of two columns; lane 1 of the second panel does not exist.
# (word, its new value, text)
WORDS = [
    (0, 0b01_00_01_01, r"columns must ascend in a group and be in \[0, 4\), got 1 after 1"),
    (0, 0b01_00_01_11, r"columns must ascend in a group and be in \[0, 4\), got 1 after 3"),
    (0, 0b00_01_01_00, r"columns must ascend in a group and be in \[4, 8\), got 4 after 5"),
    (0, 0b10_00_01_00, "a group beyond the matrix must keep its lowest columns .row 0, step 3"),
    (0, 0b11_10_01_00, "a group beyond the matrix must keep its lowest columns"),
    (0, 0b01_01_00_01_00, "fields beyond the last step must be 0 .row 0, step 4"),
    (5, 1 << 31 | 0b01_00_01_00, "fields beyond the last step must be 0 .row 5, step 4"),
    (16, 0b01_00_10_01, None),
    (17, 0b01_00_10_01, "a group beyond the matrix must keep its lowest columns .row 17, step 0"),
]


@pytest.mark.parametrize(("word", "bits", "text"), WORDS)
def test_each_word_is_checked(word, bits, text):
    values, structure = _core.nm_pack(np.zeros((17, 6), np.int8), "int8", 2, 4)
    structure[64:].view(np.uint32)[word] = bits
    same_verdict(values, structure, "int8")
    if text is None:
        _core.nm_validate(values, structure, "int8")
        return
    with pytest.raises(ValueError, match=f"^nm: {text}"):
        _core.nm_validate(values, structure, "int8")
    with pytest.raises(ValueError, match=r"^nm: "):
        _core.nm_unpack(values, structure, "int8")
    with pytest.raises(ValueError, match=r"^nm: "):
        _core.nm_mask_of(structure)


def test_a_group_of_two_stays_in_its_half_of_the_window():
    values, structure = _core.nm_pack(np.zeros((1, 4), np.int8), "int8", 1, 2)
    structure[64:].view(np.uint32)[0] = 0b00_01  # the second group names column 0
    text = r"columns must ascend in a group and be in \[2, 4\), got 0 after 1"
    with pytest.raises(ValueError, match=text):
        _core.nm_validate(values, structure, "int8")
    same_verdict(values, structure, "int8")


@pytest.mark.parametrize("value", [1.0, -0.0])
def test_values_beyond_the_matrix_are_refused(value):
    values, structure = _core.nm_pack(np.ones((17, 5), np.float32), "float32", 7, 8)
    for place in (6 * 16, 14 * 16 + 1):  # column 6 of row 0; column 0 of row 17
        bad = values.copy()
        bad[place] = value
        with pytest.raises(ValueError, match="values beyond the matrix must be 0"):
            _core.nm_validate(bad, structure, "float32")
        same_verdict(bad, structure, "float32")
