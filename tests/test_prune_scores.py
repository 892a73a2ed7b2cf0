# SPDX-License-Identifier: Apache-2.0
"""Scores by hand, statistics against direct computation, and SparseGPT against definitions."""

from __future__ import annotations

import math

import pytest
import torch
from sparsekern.patterns import Block, Unstructured
from sparsekern.prune import prune_
from sparsekern.prune.scores import obs_saliency
from sparsekern.prune.sparsegpt import inverse_factor, inverse_hessian
from torch import nn

SCORES = ["magnitude", "wanda", "sparsegpt"]


def linear(weight: list[list[float]]) -> nn.Linear:
    layer = nn.Linear(len(weight[0]), len(weight), bias=False)
    layer.weight.data = torch.tensor(weight)
    return layer


def correlated(rows: int, columns: int, seed: int) -> torch.Tensor:
    """Gaussian rows whose columns share a few strong directions."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.randn(columns // 8, columns, generator=generator)
    x = torch.randn(rows, columns // 8, generator=generator) @ basis
    return x + 0.1 * torch.randn(rows, columns, generator=generator)


def seeded(out: int, columns: int, seed: int) -> nn.Linear:
    layer = nn.Linear(columns, out, bias=False)
    generator = torch.Generator().manual_seed(seed)
    layer.weight.data = torch.randn(out, columns, generator=generator)
    return layer


def test_magnitude_by_hand():
    layer = linear([[1.0, -4.0, 3.0], [-2.0, 0.5, 6.0]])
    result = prune_(layer, Unstructured(0.5))
    assert layer.weight.tolist() == [[0.0, -4.0, 3.0], [0.0, 0.0, 6.0]]
    assert result.masks[""].tolist() == [[False, True, True], [False, False, True]]
    assert result.sparsity == 0.5


def test_wanda_by_hand_compares_within_rows():
    layer = linear([[1.0, -4.0, 3.0], [-2.0, 0.5, 6.0]])
    # column norms 5, 0.5, 1: scores [[5, 2, 3], [10, .25, 6]]
    x = torch.tensor([[3.0, 0.5, 0.0], [4.0, 0.0, 1.0]])
    prune_(layer, Unstructured(1 / 3), score="wanda", calibration=[x[:1], x[1:]])
    assert layer.weight.tolist() == [[1.0, 0.0, 3.0], [-2.0, 0.0, 6.0]]
    layer = linear([[1.0, -4.0, 3.0], [-2.0, 0.5, 6.0]])
    prune_(layer, Unstructured(0.5), score="wanda", calibration=[x], scope="layer")
    assert layer.weight.tolist() == [[1.0, 0.0, 0.0], [-2.0, 0.0, 6.0]]


def test_sparsegpt_by_hand():
    # H = X^T X = [[2, 1], [1, 1]]; H^-1 = [[1, -1], [-1, 2]]; U = [[1, -1], [0, 1]].
    # Costs (w / U_jj)^2 = (1, 9): prune w_0, and w_1 += w_0 / U_00 = 1, which is the least-squares
    # answer: H_10 w_0 / H_11 = 1.
    layer = linear([[1.0, 3.0]])
    x = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    prune_(layer, Unstructured(0.5), score="sparsegpt", calibration=[x], damping=0.0)
    assert torch.allclose(layer.weight, torch.tensor([[0.0, 4.0]]), atol=1e-6)


def test_obs_saliency_is_the_true_least_error():
    x = correlated(64, 16, 0).double()
    gram = x.t() @ x
    w = torch.randn(1, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    saliency = obs_saliency(w, inverse_hessian(gram, 0.0, "w").diagonal())
    for j in range(16):  # refit the other weights by least squares
        others = [i for i in range(16) if i != j]
        fit = torch.linalg.lstsq(x[:, others], x @ w[0]).solution
        error = (x[:, others] @ fit - x @ w[0]).square().sum()
        assert math.isclose(float(error), float(saliency[0, j]), rel_tol=1e-6)


def test_inverse_factor_is_upper_cholesky_of_the_inverse():
    x = correlated(64, 16, 0)
    gram = x.t() @ x
    factor = inverse_factor(gram, 0.01, "w")
    damped = gram.double() + 0.01 * gram.diagonal().mean() * torch.eye(16, dtype=torch.float64)
    assert torch.equal(factor, factor.triu())
    assert torch.allclose(factor.t() @ factor @ damped, torch.eye(16).double(), atol=1e-5)


def test_sparsegpt_prunes_last_column_updates_match_least_squares():
    """With one column left to absorb, the update equals refitting that column exactly."""
    x = correlated(64, 8, 3)
    layer = linear([[0.01] * 7 + [5.0]])
    dense = x @ layer.weight.t()
    prune_(layer, Unstructured(7 / 8), score="sparsegpt", calibration=[x], damping=0.0)
    best = (x[:, 7:].t() @ dense) / x[:, 7].square().sum()
    assert (layer.weight[0, :7] == 0).all()
    assert math.isclose(layer.weight[0, 7].item(), best.item(), rel_tol=1e-3)


@pytest.mark.parametrize("pattern", [Unstructured(0.6), Block(4, 0.6)])
@pytest.mark.parametrize("scope", ["layer", "row"])
def test_sparsegpt_beats_magnitude_and_wanda_on_correlated_inputs(pattern, scope):
    x = correlated(512, 96, 5)
    errors = {}
    for score in SCORES:
        layer = seeded(32, 96, 6)
        dense = x @ layer.weight.detach().t()
        result = prune_(layer, pattern, score=score, calibration=[x], scope=scope, blocksize=32)
        errors[score] = float((x @ layer.weight.detach().t() - dense).norm() / dense.norm())
        assert abs(result.sparsity - 0.6) < 0.01
    assert errors["sparsegpt"] < 0.5 * min(errors["magnitude"], errors["wanda"]), errors


@pytest.mark.parametrize("blocksize", [1, 7, 32, 500])
@pytest.mark.parametrize("pattern", [Unstructured(0.37), Block(2, 0.37), Block(4, 0.9)])
@pytest.mark.parametrize("scope", ["layer", "row"])
def test_sparsegpt_exact_counts(blocksize, pattern, scope):
    layer = seeded(10, 33, 7)
    result = prune_(
        layer,
        pattern,
        score="sparsegpt",
        calibration=[correlated(64, 33, 8)],
        scope=scope,
        blocksize=blocksize,
    )
    units = result.masks[""][:: pattern.group_rows]
    if scope == "row":
        assert ((~units).sum(1) == round(pattern.sparsity * 33)).all()
    else:
        assert int((~units).sum()) == round(pattern.sparsity * units.numel())
    assert torch.equal(result.masks[""], layer.weight != 0)
    expanded = units.repeat_interleave(pattern.group_rows, 0)[:10]
    assert torch.equal(result.masks[""], expanded)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("pattern", [Unstructured(0.5), Block(2, 0.5), Unstructured(1.0)])
def test_nonfinite_weights_are_never_pruned(score, pattern):
    layer = seeded(6, 8, 9)
    with torch.no_grad():
        layer.weight[1, 2] = math.nan
        layer.weight[4, 7] = -math.inf
    x = correlated(32, 8, 10)
    x[:, 7] = 0.0  # 0 * inf would be NaN
    result = prune_(layer, pattern, score=score, calibration=[x])
    assert bool(layer.weight[1, 2].isnan())
    assert layer.weight[4, 7] == -math.inf
    finite = layer.weight.isfinite()
    assert int(finite.sum()) == 46  # nothing else was poisoned
    units = result.masks[""][:: pattern.group_rows]
    if pattern.sparsity < 1.0:
        assert int((~units).sum()) == units.numel() // 2
    else:
        assert int(units.sum()) == 2


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("scope", ["layer", "row", "global"])
def test_deterministic(score, scope):
    weights = []
    for _ in range(2):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 8))
        prune_(model, Unstructured(0.5), score=score, scope=scope, calibration=[torch.ones(4, 16)])
        weights.append(torch.cat([p.flatten() for p in model.parameters()]))
    assert torch.equal(weights[0], weights[1])


@pytest.mark.parametrize("score", ["wanda", "sparsegpt"])
@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 1, "stride": 2},
        {"kernel_size": 3, "padding": 1, "stride": 2},
        {"kernel_size": (3, 2), "padding": "same", "dilation": 2},
        {"kernel_size": 3, "padding": 2, "padding_mode": "circular"},
    ],
)
def test_convolution_equals_linear_on_patches(score, options):
    """A convolution is pruned as the linear layer over its patches, found by basis filters."""
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 6, bias=False, **options)
    x = torch.randn(2, 3, 7, 6)
    taps = conv.weight[0].numel()
    probe = nn.Conv2d(3, taps, bias=False, **options)
    probe.weight.data = torch.eye(taps).reshape(probe.weight.shape)
    patches = probe(x).permute(0, 2, 3, 1).reshape(-1, taps).detach()
    dense = nn.Linear(taps, 6, bias=False)
    dense.weight.data = conv.weight.data.flatten(1).clone()
    prune_(conv, Unstructured(0.5), score=score, calibration=[x])
    prune_(dense, Unstructured(0.5), score=score, calibration=[patches])
    assert torch.allclose(conv.weight.flatten(1), dense.weight, atol=1e-4)
    assert torch.equal(conv.weight.flatten(1) == 0, dense.weight == 0)


def test_half_precision_weights_stay_half():
    layer = seeded(8, 16, 1).to(torch.bfloat16)
    x = correlated(32, 16, 2).to(torch.bfloat16)
    result = prune_(layer, Unstructured(0.5), score="sparsegpt", calibration=[x])
    assert layer.weight.dtype == torch.bfloat16
    assert result.sparsity == 0.5
