# SPDX-License-Identifier: Apache-2.0
"""Masks that are N:M in both directions: exact counts, near the optimum, errors."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sparsekern.ops import nm_mask_transposable

SIZES = [2, 4, 8, 16, 32]


def tiles_of(t: torch.Tensor, m: int) -> torch.Tensor:
    rows, cols = t.shape[0] // m, t.shape[1] // m
    return t.reshape(rows, m, cols, m).transpose(1, 2).reshape(-1, m, m)


def check_counts(mask: torch.Tensor, n: int, m: int) -> None:
    tiles = tiles_of(mask, m)
    assert (tiles.sum(1) == n).all()
    assert (tiles.sum(2) == n).all()


def optimum(score: np.ndarray, n: int) -> float:
    """The largest sum, by a linear program; its vertices are masks (a transportation problem)."""
    m = len(score)
    rows = np.kron(np.eye(m), np.ones(m))
    columns = np.kron(np.ones(m), np.eye(m))
    solved = scipy.optimize.linprog(
        -score.ravel(), A_eq=np.vstack([rows, columns]), b_eq=np.full(2 * m, n), bounds=(0, 1)
    )
    assert solved.status == 0
    return -solved.fun


@pytest.mark.parametrize("m", SIZES)
def test_counts_are_exact_for_every_pattern(m):
    generator = torch.Generator().manual_seed(m)
    w = torch.randn(m, 2 * m, generator=generator)
    for n in range(1, m) if m <= 8 else (1, 3, m // 2, m - 1):
        mask = nm_mask_transposable(w, n, m)
        assert mask.dtype == torch.bool
        check_counts(mask, n, m)


numbers = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-30, 1e30, math.nan, math.inf, -math.inf])


@settings(deadline=None)
@given(data=st.data(), m=st.sampled_from([2, 4, 8]), own=st.booleans())
def test_counts_are_exact_for_any_values(data, m, own):
    n = data.draw(st.integers(1, m - 1))
    flat = data.draw(st.lists(numbers | st.floats(-3, 3), min_size=m * m, max_size=m * m))
    w = torch.tensor(flat, dtype=torch.float64).reshape(m, m)
    check_counts(nm_mask_transposable(w, n, m, score=w if own else None), n, m)


@pytest.mark.parametrize(("n", "m"), [(1, 2), (1, 4), (2, 4), (3, 4), (2, 8), (4, 8), (1, 8)])
@pytest.mark.parametrize("kind", ["normal", "uniform", "heavy"])
def test_the_kept_sum_is_the_optimum(n, m, kind):
    generator = np.random.default_rng(n * 100 + m)
    shape = (40 * m, m)
    w = {
        "normal": generator.normal(size=shape),
        "uniform": generator.uniform(size=shape),
        "heavy": generator.standard_cauchy(shape),
    }[kind]
    mask = nm_mask_transposable(torch.from_numpy(w), n, m).numpy()
    for tile, kept in zip(np.abs(w).reshape(-1, m, m), mask.reshape(-1, m, m), strict=True):
        best = optimum(tile, n)
        assert math.isclose(tile[kept].sum(), best, rel_tol=1e-8)


def test_by_all_ninety_masks_of_two_of_four():
    rows = [np.isin(np.arange(4), pair) for pair in itertools.combinations(range(4), 2)]
    masks = [np.array(m) for m in itertools.product(rows, repeat=4)]
    masks = np.array([m for m in masks if (m.sum(0) == 2).all()])
    assert len(masks) == 90
    w = np.random.default_rng(0).integers(0, 9, (200 * 4, 4)).astype(np.float64)
    kept = nm_mask_transposable(torch.from_numpy(w), 2, 4).numpy().reshape(-1, 4, 4)
    tiles = w.reshape(-1, 4, 4)
    best = np.einsum("tij,kij->tk", tiles, masks).max(1)
    got = (tiles * kept).sum((1, 2))
    assert np.array_equal(got, best)


@pytest.mark.parametrize(("n", "m"), [(1, 16), (8, 16), (4, 32)])
def test_larger_tiles_are_within_a_percent_of_the_optimum(n, m):
    w = np.random.default_rng(m).normal(size=(3 * m, m))
    mask = nm_mask_transposable(torch.from_numpy(w), n, m).numpy()
    check_counts(torch.from_numpy(mask), n, m)
    for tile, kept in zip(np.abs(w).reshape(-1, m, m), mask.reshape(-1, m, m), strict=True):
        assert tile[kept].sum() >= 0.99 * optimum(tile, n)


def test_where_greedy_falls_short():
    # The largest entry costs more than it brings: 9 + 1 against 8 + 8.
    w = torch.tensor([[9.0, 8.0], [8.0, 1.0]])
    assert nm_mask_transposable(w, 1, 2).tolist() == [[False, True], [True, False]]


def test_score_sign_layout_and_input_stay():
    w = torch.randn(16, 24, generator=torch.Generator().manual_seed(0))
    before = w.clone()
    mask = nm_mask_transposable(w, 2, 8)
    assert torch.equal(w, before)
    assert torch.equal(mask, nm_mask_transposable(-w, 2, 8))
    assert torch.equal(mask, nm_mask_transposable(w, 2, 8, score=w.abs()))
    assert torch.equal(mask, nm_mask_transposable(1e-3 * w.double(), 2, 8, score=w.abs().double()))
    kept = nm_mask_transposable(w.t(), 2, 8).t()
    assert math.isclose(float(w.abs()[kept].sum()), float(w.abs()[mask].sum()), rel_tol=0.01)
    assert nm_mask_transposable(torch.zeros(0, 8), 2, 8).shape == (0, 8)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (
            (torch.zeros(4, 6), 2, 4),
            ValueError,
            "w must be [rows, cols], multiples of m (4), got [4, 6]",
        ),
        (
            (torch.zeros(4), 2, 4),
            ValueError,
            "w must be [rows, cols], multiples of m (4), got [4]",
        ),
        ((torch.zeros(4, 4), 4, 4), ValueError, "n must be in [1, m - 1] = [1, 3], got 4"),
        (
            (torch.zeros(6, 6), 2, 6),
            NotImplementedError,
            "m must be one of 2, 4, 8, 16, 32, got 6",
        ),
        ((None, 2, 4), TypeError, "w must be a floating-point tensor, got NoneType"),
        (
            (torch.zeros(4, 4), 2, 4, torch.zeros(4, 8)),
            ValueError,
            "score must have the shape of w ([4, 4]), got [4, 8]",
        ),
    ],
)
def test_refuses(arguments, error, text):
    with pytest.raises(error) as caught:
        nm_mask_transposable(*arguments)
    assert str(caught.value) == "nm_mask_transposable: " + text
