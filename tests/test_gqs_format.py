# SPDX-License-Identifier: Apache-2.0
"""The gqs format: what the packer writes, read by the oracle; and damage, which both refuse."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
import sparsekern as sk
import torch
from corruption import flip_bits, refusal_of, replace_bytes
from hypothesis import given, settings
from hypothesis import strategies as st
from sparsekern import _core
from sparsekern._packed import to_numpy
from sparsekern.gqs import SCALE_NAMES

SCALES = list(SCALE_NAMES)


def random_tensor(
    rows: int, cols: int, bits: int, group: int, scale: torch.dtype, zeros: bool, seed: int = 0
) -> tuple[sk.GQSTensor, torch.Tensor, torch.Tensor]:
    """A packed matrix with its codes and group mask."""
    g = torch.Generator().manual_seed(seed)
    shape = (rows, -(-cols // group))
    codes = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (rows, cols), generator=g)
    mask = torch.rand(shape, generator=g) < torch.rand(rows, 1, generator=g)
    scales = torch.rand(shape, generator=g) + 0.01
    points = torch.randint(-4, 4, shape, generator=g) if zeros else None
    packed = sk.GQSTensor.from_quantized(
        codes, scales, mask, points, bits=bits, group=group, scale_dtype=scale
    )
    return packed, codes, mask


def parts(packed: sk.GQSTensor) -> tuple[np.ndarray, np.ndarray, np.ndarray, str]:
    """What the oracle reads."""
    name = SCALE_NAMES[packed.scale.dtype]
    return packed.values.numpy(), packed.structure.numpy(), to_numpy(packed.scale), name


kinds = st.tuples(
    st.integers(1, 40),
    st.integers(1, 300),
    st.sampled_from([2, 4, 8]),
    st.sampled_from([16, 32, 64, 128]),
    st.sampled_from(SCALES),
    st.booleans(),
    st.integers(0, 2**16),
)


@settings(deadline=None, max_examples=80)
@given(kinds)
def test_the_oracle_reads_what_was_packed(kind):
    rows, cols, bits, group, scale, zeros, seed = kind
    zeros = zeros and scale != torch.uint8
    packed, codes, mask = random_tensor(rows, cols, bits, group, scale, zeros, seed)
    read = oracle.read_gqs(*parts(packed))
    np.testing.assert_array_equal(read.kept, mask.numpy())
    np.testing.assert_array_equal(read.mask, packed.mask().numpy())
    np.testing.assert_array_equal(read.codes, np.where(read.mask, codes.numpy(), 0))
    np.testing.assert_array_equal(packed.codes().numpy(), read.codes)
    np.testing.assert_allclose(packed.to_dense().numpy(), read.dense, rtol=3e-7, atol=0)
    assert packed.nnz == read.mask.sum()


@settings(deadline=None, max_examples=250)
@given(st.data())
def test_damage_is_refused_or_harmless(data):
    rows, cols, bits, group, scale, zeros, seed = data.draw(kinds)
    packed, _, _ = random_tensor(
        rows, cols, bits, group, scale, zeros and scale != torch.uint8, seed
    )
    values, structure, scales, name = (p.copy() if hasattr(p, "copy") else p for p in parts(packed))
    victims = [structure, structure[:64], values.view(np.uint8), scales.view(np.uint8)]
    victim = data.draw(st.sampled_from([v for v in victims if v.size]))
    data.draw(st.sampled_from([flip_bits, replace_bytes]))(data, victim)
    expected = refusal_of(oracle.read_gqs, values, structure, scales, name)
    refusal = None
    try:
        _core.gqs_validate(values, structure, scales, name)
    except (TypeError, ValueError) as error:
        refusal = str(error)
    assert (refusal is None) == (expected is None), f"oracle: {expected}, library: {refusal}"
    if refusal is not None:
        assert refusal.startswith("gqs: ")
        return
    read = oracle.read_gqs(values, structure, scales, name)
    np.testing.assert_array_equal(_core.gqs_unpack(values, structure), read.codes)
    np.testing.assert_array_equal(_core.gqs_mask_of(structure), read.kept)


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("scope", ["layer", "row"])
def test_bits_per_weight(scope, narrow):
    """W4, half of the groups of 16: everything included."""
    w = torch.randn(1024, 4096, generator=torch.Generator().manual_seed(0))
    w *= sk.GQS(4, 16, 0.5).mask(w.abs(), scope)
    scale = torch.uint8 if narrow else torch.float16
    packed = sk.GQSTensor.from_dense(w, scale_dtype=scale)
    assert packed.density == pytest.approx(0.5)
    assert packed.bits_per_weight <= (2.35 if narrow else 2.6)
    assert packed.bits_per_weight == packed.nbytes * 8 / w.numel()


def test_unvalidated_parts_are_refused_by_what_walks_them():
    packed, _, _ = random_tensor(5, 100, 4, 16, torch.float16, False)
    structure = packed.structure.numpy().copy()
    masks = structure.size - 64
    structure[masks] ^= 0xFF
    with pytest.raises(ValueError, match="gqs_mask_of: structure must keep"):
        _core.gqs_mask_of(structure)
    with pytest.raises(ValueError, match="gqs: the mask of row 0 must keep"):
        _core.gqs_unpack(packed.values.numpy(), structure)
    with pytest.raises(ValueError, match="gqs_info: structure must have at least 64 bytes"):
        _core.gqs_info(structure[:10])
