# SPDX-License-Identifier: Apache-2.0
"""Patterns: exact counts, ties, NaN, short groups, errors."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sparsekern.patterns import Block, Pattern, Unstructured

NAN = math.nan
INF = math.inf


def reference_mask(units: np.ndarray, count: int) -> np.ndarray:
    """Drop `count` of a flat list: NaN first, then lowest, then highest index; by sorting."""
    rank = sorted(
        range(units.size),
        key=lambda i: (not math.isnan(units[i]), 0 if math.isnan(units[i]) else units[i], -i),
    )
    keep = np.ones(units.size, dtype=bool)
    keep[rank[:count]] = False
    return keep


values = st.sampled_from([-INF, -2.5, -1.0, -0.0, 0.0, 1e-42, 1.0, 1.5, INF, NAN])


@st.composite
def matrices(draw: st.DrawFn) -> torch.Tensor:
    rows, columns = draw(st.integers(0, 9)), draw(st.integers(0, 9))
    flat = draw(st.lists(values, min_size=rows * columns, max_size=rows * columns))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    return torch.tensor(flat, dtype=dtype).reshape(rows, columns)


sparsities = st.floats(0, 1) | st.sampled_from([0.0, 0.5, 1.0])


@settings(deadline=None, max_examples=150)
@given(matrices(), sparsities, st.sampled_from(["layer", "row"]))
def test_unstructured_mask_equals_sorting(score, sparsity, scope):
    mask = Unstructured(sparsity).mask(score, scope).numpy()
    rows, columns = score.shape
    if scope == "layer":
        expected = reference_mask(score.numpy().ravel(), round(sparsity * score.numel()))
    else:
        count = round(sparsity * columns)
        expected = np.array([reference_mask(row, count) for row in score.numpy()])
    assert np.array_equal(mask, expected.reshape(rows, columns))


@settings(deadline=None, max_examples=100)
@given(
    st.integers(1, 13), st.integers(1, 9), st.sampled_from([1, 2, 4]), sparsities, st.integers(0, 9)
)
def test_block_counts_and_shared_columns(rows, columns, group, sparsity, seed):
    score = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed))
    mask = Block(rows=group, sparsity=sparsity).mask(score)
    units = [mask[i : i + group] for i in range(0, rows, group)]
    for unit in units:
        assert (unit == unit[:1]).all()
    pruned = sum(int((~unit[0]).sum()) for unit in units)
    assert pruned == round(sparsity * len(units) * columns)
    by_row = Block(rows=group, sparsity=sparsity).mask(score, "row")
    assert (by_row.sum(1) == columns - round(sparsity * columns)).all()


def test_ties_keep_the_lower_index():
    mask = Unstructured(0.5).mask(torch.ones(2, 3))
    assert mask.tolist() == [[True, True, True], [False, False, False]]
    mask = Unstructured(2 / 3).mask(torch.ones(2, 3), "row")
    assert mask.tolist() == [[True, False, False]] * 2
    # -0.0 and 0.0 are one value
    assert Unstructured(0.5).mask(torch.tensor([[-0.0, 0.0]])).tolist() == [[True, False]]


def test_nan_score_never_beats_a_number():
    score = torch.tensor([[NAN, -INF, 0.0, 3.0]])
    assert Unstructured(0.25).mask(score).tolist() == [[False, True, True, True]]
    assert Unstructured(0.5).mask(score).tolist() == [[False, False, True, True]]
    negative_nan = torch.tensor([[-1, 0xFF800000 - 2**32]], dtype=torch.int32).view(torch.float32)
    assert negative_nan.isnan().tolist() == [[True, False]]
    assert Unstructured(0.5).mask(negative_nan).tolist() == [[False, True]]


def test_block_by_hand_with_short_group():
    score = torch.tensor([[5.0, 1.0], [1.0, 1.5], [2.0, 9.0]])
    # groups of 2: means (3.0, 1.25); the last group has one row: (2.0, 9.0)
    mask = Block(2, 0.5).mask(score)
    assert mask.tolist() == [[True, False], [True, False], [False, True]]
    # summed, the short group's 2.0 would lose to 2.5; the mean keeps it
    assert Block(2, 0.25).mask(score).tolist() == [[True, False], [True, False], [True, True]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes_and_strides(dtype):
    score = torch.arange(12, dtype=dtype).reshape(3, 4).t()
    assert not score.is_contiguous()
    mask = Unstructured(0.5).mask(score)
    assert torch.equal(mask, score >= 6)


def test_deterministic_and_leaves_score_alone():
    score = torch.rand(33, 17, generator=torch.Generator().manual_seed(1)).round(decimals=1)
    before = score.clone()
    masks = [Unstructured(0.7).mask(score) for _ in range(3)]
    assert torch.equal(score, before)
    assert torch.equal(masks[0], masks[1])
    assert torch.equal(masks[0], masks[2])


def test_patterns_are_values():
    assert Unstructured(0.5) == Unstructured(0.5)
    assert hash(Block(2, 0.5)) == hash(Block(2, 0.5))
    assert Block(4, 0.5).with_sparsity(0.75) == Block(rows=4, sparsity=0.75)
    assert repr(Unstructured(0.8)) == "Unstructured(sparsity=0.8)"
    assert repr(Block(4, 0.8)) == "Block(rows=4, sparsity=0.8)"
    assert (Unstructured(0.5).group_rows, Block(4, 0.5).group_rows) == (1, 4)
    with pytest.raises(dataclasses.FrozenInstanceError):
        Unstructured(0.5).sparsity = 0.6


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (
            lambda: Unstructured(1.5),
            ValueError,
            "Unstructured: sparsity must be in [0, 1], got 1.5",
        ),
        (
            lambda: Unstructured(NAN),
            ValueError,
            "Unstructured: sparsity must be in [0, 1], got nan",
        ),
        (lambda: Block(2, -0.1), ValueError, "Block: sparsity must be in [0, 1], got -0.1"),
        (lambda: Unstructured("x"), TypeError, "Unstructured: sparsity must be a number, got str"),
        (
            lambda: Unstructured(True),
            TypeError,
            "Unstructured: sparsity must be a number, got bool",
        ),
        (lambda: Block(3, 0.5), ValueError, "Block: rows must be 1, 2 or 4, got 3"),
        (lambda: Block(0.5, 2), TypeError, "Block: rows must be an integer, got float"),
        (
            lambda: Pattern(),
            TypeError,
            "Pattern: is abstract; choose Unstructured, Block, NM or GQS",
        ),
        (
            lambda: Unstructured(0.5).mask(torch.ones(3)),
            ValueError,
            "Unstructured: score must have shape [out, in], got [3]",
        ),
        (
            lambda: Unstructured(0.5).mask(torch.ones(2, 2, dtype=torch.int32)),
            TypeError,
            "Unstructured: score must be a floating-point tensor, got torch.int32",
        ),
        (
            lambda: Block(2, 0.5).mask(torch.ones(2, 2), "global"),
            ValueError,
            "Block: scope must be one of ('layer', 'row'), got 'global'",
        ),
        (
            lambda: Unstructured(0.5).mask(torch.ones(2, 2, device="meta")),
            ValueError,
            "Unstructured: score must hold data, got a tensor on the meta device",
        ),
        (
            lambda: Unstructured(0.5).with_sparsity(2),
            ValueError,
            "Unstructured: sparsity must be in [0, 1], got 2",
        ),
    ],
)
def test_error_texts(make, error, text):
    with pytest.raises(error) as caught:
        make()
    assert str(caught.value) == text
