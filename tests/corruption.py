# SPDX-License-Identifier: Apache-2.0
"""Damage that every format's reader has to meet, and the verdict that it has to give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import oracle
from hypothesis import strategies as st


def refusal_of(reader: Callable[..., Any], *arguments: object) -> str | None:
    """The text with which a reader refuses its arguments, None when it accepts them."""
    try:
        reader(*arguments)
    except ValueError as refusal:
        return str(refusal)
    return None


def same_verdict(
    prefix: str,
    read: Callable[..., Any],
    validate: Callable[..., Any],
    unpack: Callable[..., Any],
    mask_of: Callable[..., Any],
    parts: tuple[np.ndarray, np.ndarray, str],
) -> Any:
    """The library accepts exactly what the oracle's `read` accepts, and reads the same in it.

    Returns what the oracle read, None where both refuse; the library's text begins with `prefix`.
    """
    expected = refusal_of(read, *parts)
    refusal = refusal_of(validate, *parts)
    assert (refusal is None) == (expected is None), f"oracle: {expected}, library: {refusal}"
    if refusal is not None:
        assert refusal.startswith(prefix)
        return None
    matrix = read(*parts)
    dense = unpack(*parts)
    flat = oracle.elements(dense.ravel(), parts[2])
    np.testing.assert_array_equal(flat.reshape(dense.shape), matrix.dense)
    np.testing.assert_array_equal(mask_of(parts[1]), matrix.mask)
    return matrix


def flip_bits(data: st.DataObject, structure: np.ndarray) -> None:
    """One to three bits, in place."""
    for _ in range(data.draw(st.integers(1, 3))):
        bit = data.draw(st.integers(0, structure.size * 8 - 1))
        structure[bit // 8] ^= 1 << bit % 8


def replace_bytes(data: st.DataObject, structure: np.ndarray) -> None:
    """Up to 20 neighbouring bytes, in place."""
    at = data.draw(st.integers(0, structure.size - 1))
    new = data.draw(st.binary(min_size=1, max_size=20))
    structure[at : at + len(new)] = np.frombuffer(new, np.uint8)[: structure.size - at]


def change_a_value(data: st.DataObject, values: np.ndarray) -> None:
    """One byte of the values, in place; nothing where there is none."""
    raw = values.view(np.uint8)
    if raw.size:
        raw[data.draw(st.integers(0, raw.size - 1))] ^= data.draw(st.integers(1, 255))


def other_lengths(
    data: st.DataObject, values: np.ndarray, structure: np.ndarray
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Parts that are cut off or too long."""
    length = data.draw(st.integers(0, structure.size + 70).filter(lambda n: n != structure.size))
    changed = [
        (values, np.resize(structure, length)),
        (values, structure[: structure.size - structure.size % 64]),
        (values, np.append(structure, np.zeros(64, np.uint8))),
    ]
    sizes = (values.size + change for change in (-1, 1, 16))
    return changed + [(np.resize(values, size), structure) for size in sizes if size >= 0]


def bytes_after(magic: bytes, data: bytes) -> np.ndarray:
    """A structure of these bytes."""
    return np.frombuffer(magic + data, np.uint8).copy()
