# SPDX-License-Identifier: Apache-2.0
"""Sharing a budget among layers: by hand, under budget, and through prune_."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sparsekern.patterns import Block, Unstructured
from sparsekern.prune import prune_
from sparsekern.prune.allocation import equalize, erk, pooled, sensitivity_curve, sensitivity_grid
from torch import nn


def chain(*widths: int, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(*(nn.Linear(a, b, bias=False) for a, b in pairwise(widths)))


def test_erk_by_hand():
    # raw densities 20/100 and 30/200; (0.2 * 100 + 0.15 * 200) * scale = 0.25 * 300 -> scale 1.5
    assert erk([(10, 10), (20, 10)], 0.75) == pytest.approx([0.7, 0.775])
    # kernel dimensions count: raw (4 + 4 + 3 + 3) / 144
    assert erk([(4, 4, 3, 3)], 0.5) == pytest.approx([0.5])


def test_erk_caps_at_dense():
    # raw 1.0 and 0.2; scale = 52/24 makes the small layer 2.17 dense: it stays dense, and the
    # large one keeps the remaining 48 of 100
    assert erk([(2, 2), (10, 10)], 0.5) == pytest.approx([0.0, 0.52])


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=6),
    st.floats(0, 1),
)
def test_erk_meets_the_budget(shapes, sparsity):
    ratios = erk(shapes, sparsity)
    sizes = [a * b for a, b in shapes]
    assert all(0.0 <= s <= 1.0 for s in ratios)
    pruned = sum(s * n for s, n in zip(ratios, sizes, strict=True))
    assert math.isclose(pruned, sparsity * sum(sizes), rel_tol=1e-9, abs_tol=1e-9)


def test_pooled_by_hand():
    a, b = torch.tensor([[1.0, 5.0]]), torch.tensor([[2.0, 3.0], [4.0, 6.0]])
    assert pooled([a, b], 0.5) == pytest.approx([0.5, 0.5])
    assert pooled([a, b + 10], 0.5) == pytest.approx([1.0, 0.25])
    ties = [torch.ones(1, 2), torch.ones(1, 2)]
    assert pooled(ties, 0.25) == [0.0, 0.5]  # the earlier layer is kept


def test_equalize_by_hand():
    # slopes per weight: layer 0: 0.1/5, 0.9/5; layer 1: 0.2/5, 0.3/5. Budget 12 of 20 weights.
    curves = [[(0.0, 0.0), (0.5, 0.1), (1.0, 1.0)], [(0.0, 0.0), (0.5, 0.2), (1.0, 0.5)]]
    assert equalize(curves, [10, 10], 0.6) == pytest.approx([0.5, 0.7])
    # a layer four times larger costs a quarter per weight
    assert equalize([curves[1], curves[1]], [10, 40], 0.5) == pytest.approx([0.0, 0.625])


def test_equalize_uses_the_convex_hull():
    # the bump at 0.5 is not worth stopping at; the hull goes straight to (1, 0.2)
    bump = [(0.0, 0.0), (0.5, 0.5), (1.0, 0.2)]
    flat = [(0.0, 0.0), (0.5, 0.15), (1.0, 0.3)]
    assert equalize([bump, flat], [10, 10], 0.5) == pytest.approx([1.0, 0.0])


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.lists(st.floats(0, 1), min_size=3, max_size=3), min_size=1, max_size=5),
    st.floats(0, 1),
    st.integers(1, 50),
)
def test_equalize_meets_the_budget(errors, sparsity, size):
    curves = [[(0.0, 0.0)] + [((i + 1) / 3, e) for i, e in enumerate(row)] for row in errors]
    sizes = [size + i for i in range(len(curves))]
    ratios = equalize(curves, sizes, sparsity)
    pruned = sum(s * n for s, n in zip(ratios, sizes, strict=True))
    assert math.isclose(pruned, sparsity * sum(sizes), rel_tol=1e-9, abs_tol=1e-9)


def test_sensitivity_curve_is_the_measured_output_error():
    torch.manual_seed(0)
    x, w = torch.randn(50, 12), torch.randn(8, 12)
    curve = sensitivity_curve(
        w, w.abs(), x.t() @ x, Unstructured(0.5), "layer", [0.0, 0.4, 0.8, 1.0]
    )
    for s, error in curve:
        pruned = w * Unstructured(s).mask(w.abs())
        direct = (x @ (w - pruned).t()).square().sum() / (x @ w.t()).square().sum()
        assert math.isclose(error, float(direct), rel_tol=1e-4, abs_tol=1e-7)
    assert curve[0][1] == 0.0
    assert math.isclose(curve[-1][1], 1.0, rel_tol=1e-6)


def test_sensitivity_grid_holds_target_and_cap():
    grid = sensitivity_grid(0.8)
    assert grid == sorted(grid)
    assert grid[0] == 0.0
    assert 0.8 in grid
    assert grid[-1] == pytest.approx(0.95)
    assert sensitivity_grid(1.0)[-1] == 1.0


def test_prune_erk_matches_ratios():
    model = chain(8, 32, 32, 4)
    result = prune_(model, Unstructured(0.7), allocation="erk")
    wanted = erk([(32, 8), (32, 32), (4, 32)], 0.7)
    for layer, s in zip(result.layers, wanted, strict=True):
        assert layer.requested == pytest.approx(s)
        assert layer.zeros == round(s * layer.numel)
    assert abs(result.sparsity - 0.7) < 0.002


def test_prune_global_is_one_exact_threshold():
    model = chain(9, 21, 5)
    weights = torch.cat([layer.weight.detach().abs().flatten() for layer in model])
    result = prune_(model, Unstructured(0.6), scope="global")
    kept = torch.cat([result.masks[name].flatten() for name in ("0", "1")])
    assert int((~kept).sum()) == round(0.6 * weights.numel())
    assert weights[kept].min() > weights[~kept].max()
    assert result.layers[0].achieved != result.layers[1].achieved


@pytest.mark.parametrize("score", ["wanda", "sparsegpt"])
@pytest.mark.parametrize("pattern", [Unstructured(0.6), Block(4, 0.6)])
def test_prune_global_counts_with_calibration(score, pattern):
    model = chain(16, 24, 8)
    x = torch.randn(64, 16)
    result = prune_(model, pattern, score=score, scope="global", calibration=[x])
    units = sum(int((~m[:: pattern.group_rows]).sum()) for m in result.masks.values())
    assert units == round(0.6 * (24 * 16 + 8 * 24) / pattern.group_rows)


@pytest.mark.parametrize("score", ["magnitude", "wanda", "sparsegpt"])
def test_prune_sensitivity_spares_the_sensitive_layer(score):
    model = chain(16, 64, 64)
    with torch.no_grad():
        # nine tenths of the second layer's weights are tiny, so pruning them is nearly free
        tiny = torch.rand(64, 64, generator=torch.Generator().manual_seed(2)) < 0.9
        model[1].weight[tiny] *= 0.01
    x = torch.randn(256, 16, generator=torch.Generator().manual_seed(1))
    dense = model(x)
    uniform = chain(16, 64, 64)
    uniform.load_state_dict(model.state_dict())
    prune_(uniform, Unstructured(0.5), score=score, calibration=[x], scope="layer")
    result = prune_(
        model,
        Unstructured(0.5),
        score=score,
        calibration=iter([x[:100], x[100:]]),  # two passes from a one-shot iterator
        scope="layer",
        allocation="sensitivity",
    )
    assert abs(result.sparsity - 0.5) < 0.002
    assert result["0"].achieved < 0.3
    assert result["1"].achieved > 0.5
    assert (model(x) - dense).norm() < 0.5 * (uniform(x) - dense).norm()


def test_each_entry_has_its_own_budget():
    model = chain(8, 16, 16, 16, 8)
    result = prune_(model, {"0": Unstructured(0.25), "*": Unstructured(0.75)}, scope="global")
    assert result["0"].zeros == 32
    assert sum(result[n].zeros for n in "123") == round(0.75 * (256 + 256 + 128))
