# SPDX-License-Identifier: Apache-2.0
"""RIA, ALPS and DSnoT: by hand, against definitions, and where inputs are awkward."""

from __future__ import annotations

import math

import pytest
import torch
from sparsekern.patterns import NM, Block, Pattern, Unstructured
from sparsekern.prune import alps as alps_module
from sparsekern.prune import prune_
from sparsekern.prune.alps import alps
from sparsekern.prune.dsnot import dsnot
from sparsekern.prune.scores import ria
from sparsekern.prune.sparsegpt import damped
from torch import Tensor, nn

METHODS = {
    "magnitude": {"score": "magnitude"},
    "wanda": {"score": "wanda"},
    "ria": {"score": "ria"},
    "sparsegpt": {"score": "sparsegpt"},
    "alps": {"score": "alps"},
    "dsnot": {"score": "wanda", "refine": "dsnot"},
}
NEW = ["ria", "alps", "dsnot"]


def correlated(rows: int, columns: int, seed: int) -> Tensor:
    """Rows whose columns share some directions, with means that are not zero."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.randn(columns // 4, columns, generator=generator)
    x = torch.randn(rows, columns // 4, generator=generator) @ basis
    return x + 0.5 * torch.randn(rows, columns, generator=generator) + 0.3


def seeded(out: int, columns: int, seed: int) -> nn.Linear:
    layer = nn.Linear(columns, out, bias=False)
    generator = torch.Generator().manual_seed(seed)
    layer.weight.data = torch.randn(out, columns, generator=generator)
    return layer


def output_error(layer: nn.Linear, dense: Tensor, x: Tensor) -> float:
    lost = x @ (layer.weight.detach() - dense).t()
    return float(lost.norm() / (x @ dense.t()).norm())


def counts(mask: Tensor, m: int) -> Tensor:
    flat = mask.flatten(1).int()
    return nn.functional.pad(flat, (0, -flat.shape[1] % m)).reshape(len(flat), -1, m).sum(2)


# --- RIA ------------------------------------------------------------------------------------------


def test_ria_by_hand():
    weight = torch.tensor([[1.0, -3.0], [2.0, 2.0]])
    # Columns sum to 3 and 5, rows to 4 and 4; square roots of the norms are 2 and 3.
    score = ria(weight, torch.tensor([4.0, 9.0]))
    expected = [[(1 / 3 + 1 / 4) * 2, (3 / 5 + 3 / 4) * 3], [(2 / 3 + 2 / 4) * 2, 2.7]]
    torch.testing.assert_close(score, torch.tensor(expected))


def test_ria_chooses_the_mask_and_changes_nothing_else():
    layer = seeded(6, 16, 0)
    before, x = layer.weight.detach().clone(), correlated(40, 16, 1)
    result = prune_(layer, NM(2, 4), score="ria", calibration=[x[:20], x[20:]])
    expected = NM(2, 4).mask(ria(before, x.norm(dim=0)))
    assert torch.equal(result.masks[""], expected)
    assert torch.equal(layer.weight, before * expected)
    assert not torch.equal(expected, NM(2, 4).mask(before.abs()))
    row = prune_(seeded(6, 16, 0), Unstructured(0.25), score="ria", calibration=[x]).masks[""]
    assert (row.sum(dim=1) == 12).all()  # within rows, as Wanda


def test_ria_leaves_zeros_and_broken_weights_out():
    weight = torch.tensor([[0.0, 0.0, 0.0], [0.0, 2.0, math.nan], [0.0, 2.0, 4.0]])
    score = ria(weight, torch.ones(3))
    assert score[0].tolist() == [0.0, 0.0, 0.0]
    assert score[1, :2].tolist() == [0.0, 2 / 4 + 2 / 2]
    torch.testing.assert_close(score[2], torch.tensor([0.0, 2 / 4 + 2 / 6, 4 / 4 + 4 / 6]))


# --- ALPS -----------------------------------------------------------------------------------------


def test_alps_by_hand():
    # H = X^T X = [[2, 1], [1, 1]]. Removing w_0 costs w_0^2 / [H^-1]_00 = 1, removing w_1
    # 9 / 2, and w_1 takes over H_10 w_0 / H_11 = 1.
    layer = nn.Linear(2, 1, bias=False)
    layer.weight.data = torch.tensor([[1.0, 3.0]])
    x = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    prune_(layer, NM(1, 2), score="alps", calibration=[x], damping=0.0)
    torch.testing.assert_close(layer.weight.detach(), torch.tensor([[0.0, 4.0]]))


def test_alps_first_iterations_by_hand(monkeypatch):
    """H = [[1, .5], [.5, 1]], W0 = (1, 1.1), rho = .1, one of two kept.

    1: B = W0, D = (0, 1.1), V = .1 (1, 0).
    2: (H + .1)^-1 = [[1.1, -.5], [-.5, 1.1]] / .96, H W0 - V + .1 D = (1.45, 1.71), so that
       B = (.740, 1.156) / .96 and B + V / rho = (1.7708, 1.2042): the mask turns.
    """
    hessian = torch.tensor([[1.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    weight = torch.tensor([[1.0, 1.1]], dtype=torch.float64)
    for iterations, expected in ((1, [[False, True]]), (2, [[True, False]])):
        monkeypatch.setattr(alps_module, "_MOST_ITERATIONS", iterations)
        new, mask = alps(weight, hessian, 0.0, NM(1, 2), "layer")
        assert mask.tolist() == expected
        # The kept one takes over half of the other.
        fitted = [[0.0, 1.1 + 0.5 * 1.0]] if iterations == 1 else [[1.0 + 0.5 * 1.1, 0.0]]
        torch.testing.assert_close(new, torch.tensor(fitted, dtype=torch.float64))


def test_alps_one_gradient_step_by_hand(monkeypatch):
    """Kept (1, 1, 0): the residual of the third, (H_02, H_12) w_2 = (.5, 0), is the direction.

    Its curvature is .25 * H_00 = .25, equal to its square: step 1, so w_0 = 1 + .5.
    """
    monkeypatch.setattr(alps_module, "_GRADIENT_STEPS", 1)
    hessian = torch.eye(3, dtype=torch.float64)
    hessian[0, 2] = hessian[2, 0] = 0.5
    hessian[0, 1] = hessian[1, 0] = 0.25
    start = torch.tensor([[1.0, 1.0, 1.0]], dtype=torch.float64)
    kept = torch.tensor([[True, True, False]])
    found = alps_module._fit(start * kept, start @ hessian, hessian, kept)
    torch.testing.assert_close(found, torch.tensor([[1.5, 1.0, 0.0]], dtype=torch.float64))


def alps_by_the_book(w: Tensor, hessian: Tensor, pattern: Pattern) -> Tensor:
    """Algorithms 1 and 2 on columns, with solved systems; the kept weights by least squares."""
    scale = hessian.diagonal().sqrt()
    h = hessian / scale / scale[:, None]
    w0 = (w * scale).t()
    eye = torch.eye(len(h), dtype=h.dtype)
    d, v, rho, old = w0, torch.zeros_like(w0), 0.1, torch.ones_like(w0, dtype=torch.bool)
    for iteration in range(1, 301):
        b = torch.linalg.solve(h + rho * eye, h @ w0 - v + rho * d)
        keep = pattern.mask((b + v / rho).t().abs()).t()
        d = (b + v / rho) * keep
        v = v + rho * (b - d)
        if iteration % 3 == 0:
            share = int((keep != old).sum()) / int(keep.sum())
            if share == 0:
                break
            rho *= 1.3 if share > 0.1 else 1.2 if share > 0.005 else 1.1
            old = keep
    assert iteration < 300
    fitted = torch.zeros_like(w0)
    for i in range(w0.shape[1]):
        k = keep[:, i]
        fitted[k, i] = torch.linalg.solve(h[k][:, k], (h @ w0)[k, i])
    return fitted.t() / scale


@pytest.mark.parametrize("pattern", [NM(2, 4), NM(1, 8), Unstructured(0.6)])
def test_alps_follows_the_paper(pattern, monkeypatch):
    monkeypatch.setattr(alps_module, "_GRADIENT_STEPS", 200)  # until solved
    x, w = correlated(80, 20, 0).double(), seeded(6, 20, 1).weight.detach().double()
    gram = x.t() @ x
    new, mask = alps(w, gram, 0.01, pattern, "layer")
    expected = alps_by_the_book(w, damped(gram, 0.01), pattern)
    torch.testing.assert_close(new, expected, rtol=1e-5, atol=1e-7)
    assert torch.equal(mask, new != 0)


@pytest.mark.parametrize(
    "pattern", [NM(2, 4), NM(1, 4), NM(2, 8), NM(1, 16), Unstructured(0.7), Block(4, 0.6)]
)
def test_alps_beats_sparsegpt_and_wanda_on_correlated_inputs(pattern):
    x, errors = correlated(512, 96, 5), {}
    for name in ("wanda", "ria", "sparsegpt", "alps"):
        layer = seeded(32, 96, 6)
        dense = layer.weight.detach().clone()
        result = prune_(layer, pattern, calibration=[x], **METHODS[name])
        errors[name] = output_error(layer, dense, x)
        assert abs(result.sparsity - pattern.sparsity) < 0.01
    assert errors["alps"] < 0.8 * errors["sparsegpt"], errors
    assert errors["sparsegpt"] < min(errors["wanda"], errors["ria"]), errors


def test_alps_takes_a_hessian_that_is_not_positive_definite():
    """Inputs of rank 2 and no damping: SparseGPT has no factor to work with, ALPS needs none."""
    x = correlated(2, 16, 0)
    with pytest.raises(ValueError, match="damping must make the Hessian"):
        prune_(seeded(4, 16, 1), NM(2, 4), score="sparsegpt", calibration=[x], damping=0.0)
    layer = seeded(4, 16, 1)
    dense = layer.weight.detach().clone()
    result = prune_(layer, NM(2, 4), score="alps", calibration=[x], damping=0.0)
    assert (counts(result.masks[""], 4) == 2).all()
    assert output_error(layer, dense, x) < 1e-3  # eight weights a row fit two samples
    indefinite = torch.diag(torch.tensor([1.0, 1.0, -1e-3, 1.0], dtype=torch.float64))
    ones = torch.ones(2, 4, dtype=torch.float64)
    new, mask = alps(ones, indefinite, 0.0, NM(2, 4), "layer")
    assert torch.equal(new, mask.double())


# --- DSnoT ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variance", "expected"),
    [
        # e = 1 + 6 = 7. Grow the 6, prune the 4: e = 5. Back again would be 7: done.
        ([1.0, 1.0, 1.0, 1.0], [False, True, True, False]),
        # The third varies so much that the first is grown before it: e = 6 - 2 = 4, above a tenth
        # of sqrt(4 + 900). Then the third for the fourth: e = -2 + 4 = 2, and back would be 4.
        ([1.0, 1.0, 100.0, 1.0], [True, False, True, False]),
        # A tenth of sqrt(1 + 9 * 999) is 9.48: the mean is no matter.
        ([1.0, 1.0, 999.0, 1.0], [False, True, False, True]),
    ],
)
def test_dsnot_by_hand(variance, expected):
    weight = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    mask = NM(1, 2).mask(weight)
    mean = torch.tensor([1.0, -1.0, 2.0, 1.0])
    found = dsnot(weight, mask, torch.ones(4), mean, torch.tensor(variance), 2)
    assert found.tolist() == [expected]
    assert mask.tolist() == [[False, True, False, True]]  # the argument is left alone


@pytest.mark.parametrize("pattern", [NM(2, 4), NM(1, 8), Unstructured(0.5)])
@pytest.mark.parametrize("score", ["magnitude", "wanda", "ria"])
def test_dsnot_lowers_the_mean_error_of_rows(pattern, score):
    x = correlated(200, 42, 2) + 1.0
    plain, refined = seeded(12, 42, 3), seeded(12, 42, 3)
    dense = plain.weight.detach().clone()
    before = prune_(plain, pattern, score=score, calibration=[x])
    result = prune_(refined, pattern, score=score, refine="dsnot", calibration=[x])
    mask = result.masks[""]
    assert torch.equal(refined.weight, dense * mask)
    old = (x @ (plain.weight.detach() - dense).t()).mean(dim=0).abs()
    new = (x @ (refined.weight.detach() - dense).t()).mean(dim=0).abs()
    assert (new <= old + 1e-4).all()
    assert new.mean() < 0.9 * old.mean()
    m = pattern.group_columns or 42
    assert torch.equal(counts(mask, m), counts(before.masks[""], m))


def test_dsnot_gives_dead_rows_and_inputs_nothing():
    x = correlated(50, 16, 4) + 1.0
    x[:, 4:8] = 0.0
    layer = seeded(6, 16, 5)
    layer.weight.data[1] = 0.0
    result = prune_(layer, NM(2, 4), score="wanda", refine="dsnot", calibration=[x])
    mask = result.masks[""]
    assert (counts(mask, 4) == 2).all()
    start = NM(2, 4).mask(torch.zeros(1, 16))[0]
    assert torch.equal(mask[1], start)  # ties keep the lower index, nothing is swapped
    assert torch.equal(mask[:, 4:8], start[4:8].expand(6, 4))


@pytest.mark.parametrize(
    "options",
    [{"sequential": True}, {"scope": "global"}, {"allocation": "sensitivity"}, {"scope": "layer"}],
)
def test_dsnot_keeps_the_counts_that_were_chosen(options):
    x = correlated(60, 16, 17)
    masks = []
    for refine in (None, "dsnot"):
        net = nn.Sequential(seeded(12, 16, 13), nn.ReLU(), seeded(6, 12, 14))
        options = {"score": "magnitude", "refine": refine, "calibration": [x], **options}
        masks.append(prune_(net, Unstructured(0.5), **options).masks)
        options.pop("refine")
    for name, mask in masks[0].items():
        assert torch.equal(mask.sum(dim=1), masks[1][name].sum(dim=1))
    assert any(not torch.equal(mask, masks[1][name]) for name, mask in masks[0].items())


# --- all of them ----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", NEW)
@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 8), (1, 16)])
def test_short_groups_and_convolutions(method, n, m):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 10))
    generator = torch.Generator().manual_seed(1)
    images = [torch.randn(40, 3, 4, 4, generator=generator) for _ in range(2)]
    result = prune_(net, NM(n, m), calibration=images, **METHODS[method])
    for layer in result.layers:  # 27 and 24 inputs
        weight, mask = net.get_submodule(layer.name).weight, result.masks[layer.name]
        inputs = weight.flatten(1).shape[1]
        kept = counts(mask, m)
        assert (kept[:, : inputs // m] == n).all()
        if inputs % m:
            assert (kept[:, -1] == min(n, inputs % m)).all()
        assert torch.equal(weight != 0, mask)


@pytest.mark.parametrize("method", NEW)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(method, dtype, monkeypatch):
    # Until solved: ten steps of float32 and of float64 end at different distances.
    monkeypatch.setattr(alps_module, "_GRADIENT_STEPS", 100)
    x = correlated(100, 24, 6)
    layer, exact = seeded(8, 24, 7), seeded(8, 24, 7)
    layer.weight.data = layer.weight.data.to(dtype)
    exact.weight.data = layer.weight.data.float()
    # The module multiplies in its own dtype; statistics are float32 in either case.
    x = x.to(dtype)
    mask = prune_(layer, NM(2, 4), calibration=[x], **METHODS[method]).masks[""]
    expected = prune_(exact, NM(2, 4), calibration=[x.float()], **METHODS[method]).masks[""]
    assert layer.weight.dtype == dtype
    assert torch.equal(mask, expected)
    torch.testing.assert_close(
        layer.weight.detach().double(),
        exact.weight.detach().double(),
        rtol=max(torch.finfo(dtype).eps, 1e-4),
        atol=1e-5,
    )


@pytest.mark.parametrize("method", NEW)
def test_dead_inputs_are_pruned_first_and_constant_weights_have_an_answer(method):
    x = correlated(60, 16, 8)
    x[:, [0, 5, 12, 13, 14]] = 0.0
    for damping in (0.01, 0.0):
        layer = seeded(5, 16, 9)
        before = layer.weight.detach().clone()
        options = {"calibration": [x], "damping": damping, **METHODS[method]}
        mask = prune_(layer, NM(2, 4), **options).masks[""]
        assert (counts(mask, 4) == 2).all()
        assert not mask[:, [0, 5]].any()
        assert mask[:, 15].all()  # the only live input of its group
        dead = mask.clone()
        dead[:, [1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 15]] = False
        torch.testing.assert_close(layer.weight[dead], before[dead])  # kept, and not fitted
    same = nn.Linear(16, 5, bias=False)
    same.weight.data.fill_(0.5)
    mask = prune_(same, NM(2, 4), calibration=[x], **METHODS[method]).masks[""]
    assert (counts(mask, 4) == 2).all()
    assert same.weight.isfinite().all()


@pytest.mark.parametrize("method", NEW)
def test_inputs_that_are_all_zero(method):
    layer = seeded(3, 8, 10)
    before = layer.weight.detach().clone()
    mask = prune_(layer, NM(2, 4), calibration=[torch.zeros(4, 8)], **METHODS[method]).masks[""]
    assert (counts(mask, 4) == 2).all()
    torch.testing.assert_close(layer.weight.detach(), before * mask)


@pytest.mark.parametrize("method", NEW)
def test_broken_weights_stay_and_spoil_nothing_else(method):
    x = correlated(60, 8, 11)
    layer = seeded(3, 8, 12)
    whole = prune_(seeded(3, 8, 12), NM(2, 4), calibration=[x], **METHODS[method]).masks[""]
    layer.weight.data[0, :3] = torch.tensor([math.nan, math.inf, -math.inf])
    mask = prune_(layer, NM(2, 4), calibration=[x], **METHODS[method]).masks[""]
    assert mask[0, :4].tolist() == [True, True, True, False]
    assert not layer.weight[0, :3].isfinite().any()
    assert layer.weight[1:].isfinite().all()
    assert (counts(mask[1:], 4) == 2).all()
    if method != "ria":  # whose columns' sums lack the broken row
        assert torch.equal(mask[1:], whole[1:])


@pytest.mark.parametrize("score", ["ria", "alps"])
@pytest.mark.parametrize("options", [{"scope": "global"}, {"allocation": "sensitivity"}])
def test_ratios_chosen_with_the_new_scores(score, options):
    net = nn.Sequential(seeded(12, 16, 13), nn.ReLU(), seeded(6, 12, 14))
    x = correlated(60, 16, 15)
    result = prune_(net, Unstructured(0.5), score=score, calibration=[x], **options)
    assert abs(result.sparsity - 0.5) < 0.03
    shares = {round(layer.achieved, 3) for layer in result.layers}
    assert len(shares) == (2 if "scope" in options else 1)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"score": "luck"},
            "score must be one of ('magnitude', 'wanda', 'ria', 'sparsegpt', 'alps'), got 'luck'",
        ),
        ({"refine": "luck"}, "refine must be None or one of ('dsnot',), got 'luck'"),
        (
            {"score": "alps", "refine": "dsnot"},
            "refine must be None with score='alps', which fits the kept weights to its mask, got "
            "'dsnot'",
        ),
        (
            {"score": "sparsegpt", "refine": "dsnot"},
            "refine must be None with score='sparsegpt', which fits the kept weights to its mask, "
            "got 'dsnot'",
        ),
        ({"score": "ria"}, "calibration must be given for score='ria', got None"),
        ({"score": "alps"}, "calibration must be given for score='alps', got None"),
        ({"refine": "dsnot"}, "calibration must be given for refine='dsnot', got None"),
        (
            {"refine": "dsnot", "calibration": [torch.ones(2, 8)]},
            "refine must be None with Block(4), whose rows share a mask (layer '0'), got 'dsnot'",
        ),
    ],
)
def test_what_is_not_possible(options, text):
    net = nn.Sequential(seeded(8, 8, 16))
    before = net[0].weight.detach().clone()
    with pytest.raises(ValueError, match="prune_") as caught:
        prune_(net, Block(4, 0.5), **options)
    assert str(caught.value) == "prune_: " + text
    assert torch.equal(net[0].weight, before)
