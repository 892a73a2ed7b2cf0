# SPDX-License-Identifier: Apache-2.0
"""The pattern NM, alone and in prune_: scores, SparseGPT, short groups, what it refuses."""

from __future__ import annotations

import math

import pytest
import sparsekern as sk
import torch
from sparsekern.patterns import NM, Block, Unstructured
from sparsekern.prune import GradualPruner, GradualSchedule, MaskKeeper, prune_
from sparsekern.prune.scores import obs_saliency, wanda
from sparsekern.prune.sparsegpt import inverse_factor, sparsegpt
from torch import nn

SCORES = ["magnitude", "wanda", "sparsegpt"]


def counts(mask: torch.Tensor, m: int) -> torch.Tensor:
    """Kept weights of each group, [out, groups]; a short last group is filled with zeros."""
    flat = mask.flatten(1).int()
    return nn.functional.pad(flat, (0, -flat.shape[1] % m)).reshape(len(flat), -1, m).sum(2)


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 10), nn.Linear(10, 4)
    )


def images() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(40, 3, 4, 4, generator=generator) for _ in range(3)]


def test_pattern_is_a_value():
    assert sk.NM(2, 4) == NM(n=2, m=4)
    assert hash(NM(2, 4)) == hash(NM(2, 4))
    assert NM(2, 4) != NM(1, 4)
    assert repr(NM(1, 8)) == "NM(n=1, m=8)"
    assert (NM(1, 8).sparsity, NM(1, 8).group_rows, NM(1, 8).group_columns) == (0.875, 1, 8)
    labels = [p.label for p in (NM(2, 4), Block(4, 0.5), Block(1, 0.5), Unstructured(0.5))]
    assert labels == ["NM(2:4)", "Block(4)", "Block", "Unstructured"]
    assert Unstructured(0.5).group_columns is None


@pytest.mark.parametrize("scope", ["layer", "row"])
def test_mask_keeps_the_largest_scores_of_each_group(scope):
    score = torch.tensor([[-3.0, 2.0, -5.0, 1.0, math.nan, 0.0], [1.0, 1.0, 1.0, 1.0, -1.0, -2.0]])
    mask = NM(1, 4).mask(score, scope)
    assert mask.int().tolist() == [[0, 1, 0, 0, 0, 1], [1, 0, 0, 0, 1, 0]]
    assert torch.equal(NM(1, 4).mask(score.double(), scope), mask)
    assert NM(1, 4).mask(torch.ones(0, 8)).shape == (0, 8)


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: NM(4, 4), ValueError, "NM: n must be in [1, m - 1] = [1, 3], got 4"),
        (lambda: NM(0, 4), ValueError, "NM: n must be in [1, m - 1] = [1, 3], got 0"),
        (lambda: NM(2, 5), NotImplementedError, "NM: m must be one of 2, 4, 8, 16, 32, got 5"),
        (lambda: NM(0.5, 4), TypeError, "NM: n must be an integer, got float"),
        (
            lambda: NM(2, 4).with_sparsity(0.75),
            ValueError,
            "NM: sparsity must stay 1 - n / m = 0.5, got 0.75; choose other n and m",
        ),
        (
            lambda: NM(2, 4).mask(torch.ones(3)),
            ValueError,
            "NM: score must have shape [out, in], got [3]",
        ),
        (
            lambda: NM(2, 4).mask(torch.ones(2, 2), "global"),
            ValueError,
            "NM: scope must be one of ('layer', 'row'), got 'global'",
        ),
        (
            lambda: NM(2, 4).mask(torch.ones(2, 2, dtype=torch.int32)),
            TypeError,
            "NM: score must be a floating-point tensor, got torch.int32",
        ),
        (
            lambda: NM(2, 4).mask(torch.ones(2, 2, device="meta")),
            ValueError,
            "NM: score must hold data, got a tensor on the meta device",
        ),
    ],
)
def test_pattern_refuses(make, error, text):
    with pytest.raises(error) as caught:
        make()
    assert str(caught.value) == text


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (3, 8), (1, 16)])
def test_prune_with_every_score(score, n, m):
    """27, 24 and 10 inputs: most have a short last group."""
    net = model()
    result = prune_(net, NM(n, m), score=score, calibration=images())
    for layer in result.layers:
        weight, mask = net.get_submodule(layer.name).weight, result.masks[layer.name]
        inputs = weight.flatten(1).shape[1]
        kept = counts(mask, m)
        assert (kept[:, : inputs // m] == n).all()
        if inputs % m:
            assert (kept[:, -1] == min(n, inputs % m)).all()
        assert (weight[~mask] == 0).all()
        assert (weight[mask] != 0).all()
        assert layer.pattern == f"NM({n}:{m})"
        assert layer.requested == 1 - n / m


def test_scores_choose_the_mask():
    torch.manual_seed(0)
    layer = nn.Linear(16, 5, bias=False)
    before, x = layer.weight.detach().clone(), torch.randn(30, 16) * torch.logspace(-1, 1, 16)
    result = prune_(layer, NM(2, 4), score="wanda", calibration=[x])
    expected = NM(2, 4).mask(wanda(before, x.norm(dim=0)))
    assert torch.equal(result.masks[""], expected)
    assert not torch.equal(expected, NM(2, 4).mask(before.abs()))
    assert torch.equal(layer.weight, before * expected)


def sparsegpt_by_the_book(w: torch.Tensor, gram: torch.Tensor, n: int, m: int) -> torch.Tensor:
    """Algorithm 1 with one column a block: a mask at i = 0 mod m, then remove and compensate."""
    upper = inverse_factor(gram, 0.01, "w")
    w = w.double().clone()
    keep = torch.ones_like(w, dtype=torch.bool)
    for i in range(w.shape[1]):
        if i % m == 0:
            block = slice(i, min(i + m, w.shape[1]))
            cost = w[:, block] ** 2 / upper.diagonal()[block] ** 2
            prune = max(0, cost.shape[1] - n)
            keep[:, block].scatter_(1, cost.topk(prune, dim=1, largest=False).indices, False)
        error = torch.where(keep[:, i], 0.0, w[:, i] / upper[i, i])
        w[:, i:] -= error[:, None] * upper[i, i:]
    return w * keep


@pytest.mark.parametrize("blocksize", [1, 5, 8, 128])
@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 8)])
def test_sparsegpt_follows_the_paper_whatever_the_blocksize(n, m, blocksize):
    torch.manual_seed(0)
    x = torch.randn(50, 22, dtype=torch.float64) @ torch.randn(22, 22, dtype=torch.float64)
    w, gram = torch.randn(6, 22, dtype=torch.float64), x.t() @ x
    factor = inverse_factor(gram, 0.01, "w")
    new, mask = sparsegpt(w, factor, NM(n, m), "layer", blocksize)
    torch.testing.assert_close(new, sparsegpt_by_the_book(w, gram, n, m))
    assert torch.equal(mask, new != 0)
    # Later groups are chosen by updated weights, not by those at the start.
    start = NM(n, m).mask(obs_saliency(w, factor.diagonal().square()))
    assert torch.equal(mask[:, :m], start[:, :m])
    assert not torch.equal(mask, start)
    lost = ((new - w) @ gram * (new - w)).sum()
    plain = w * NM(n, m).mask(w.abs())
    assert lost < ((plain - w) @ gram * (plain - w)).sum()


@pytest.mark.parametrize("score", ["magnitude", "sparsegpt"])
def test_broken_weights_stay_visible(score):
    layer = nn.Linear(8, 2, bias=False)
    with torch.no_grad():
        layer.weight[0, :3] = torch.tensor([math.nan, math.inf, -math.inf])
    x = torch.randn(20, 8, generator=torch.Generator().manual_seed(0))
    mask = prune_(layer, NM(2, 4), score=score, calibration=[x]).masks[""]
    assert mask[0, :4].tolist() == [True, True, True, False]  # more than two of four
    assert counts(mask[1:], 4).tolist() == [[2, 2]]


def test_mixed_patterns_and_training_under_the_masks():
    net = model()
    result = prune_(net, {"3": NM(2, 4), "*": Unstructured(0.5)})
    assert [layer.pattern for layer in result.layers] == ["Unstructured", "NM(2:4)", "Unstructured"]
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    with MaskKeeper(net, result.masks).attach(optimizer):
        net(images()[0]).square().mean().backward()
        optimizer.step()
    assert (counts(net[3].weight != 0, 4) == 2).all()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"scope": "global"}, "scope must be 'layer' or 'row' with NM(2:4), whose sparsity is "),
        ({"allocation": "erk"}, "allocation must be 'uniform' with NM(2:4), whose sparsity is "),
        ({"allocation": "sensitivity", "calibration": []}, "allocation must be 'uniform' with NM("),
    ],
)
def test_prune_refuses_to_choose_ratios(options, text):
    net = model()
    before = net[3].weight.detach().clone()
    with pytest.raises(ValueError, match="prune_") as caught:
        prune_(net, {"3": NM(2, 4), "*": Unstructured(0.5)}, **options)
    assert str(caught.value).startswith("prune_: " + text)
    assert "(layer '3')" in str(caught.value)
    assert torch.equal(net[3].weight, before)


def test_gradual_pruning_takes_one_of_m_at_a_time():
    """The schedule to .75 in 6 linear steps: 0, .125, .25, .375, .5, .625, .75 of 4 columns."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(10, 6), nn.ReLU(), nn.Linear(6, 8))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    schedule = GradualSchedule(0.0, 0.75, 0, 6, 1, power=1.0)
    patterns = {"0": NM(1, 4), "2": NM(2, 4)}
    pruner = GradualPruner(net, patterns, schedule, optimizer)
    assert (net[0].weight != 0).all()  # 4:4
    previous: dict[str, torch.Tensor] = {}
    x = torch.randn(20, 10, generator=torch.Generator().manual_seed(1))
    # Pruned of four, halves to even: .5 -> 0, 1, 1.5 -> 2, 2, 2.5 -> 2, 3; and a third less.
    for first, second in ((0, 0), (1, 1), (2, 1), (2, 1), (2, 2), (3, 2)):
        net(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        result = pruner.step()
        assert result is not None
        kept = {"0": 4 - first, "2": 4 - second}
        for name, n in kept.items():
            found = counts(net.get_submodule(name).weight != 0, 4)
            inputs = net.get_submodule(name).in_features
            assert (found[:, : inputs // 4] == n).all()
            assert (found[:, inputs // 4 :] == min(n, inputs % 4)).all()
            if name in previous:
                assert not (result.masks[name] & ~previous[name]).any()
        previous = result.masks
    assert [layer.pattern for layer in result.layers] == ["NM(1:4)", "NM(2:4)"]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"scope": "global"}, "scope must be 'layer' or 'row' with NM(2:4), whose sparsity is "),
        ({"allocation": "erk"}, "allocation must be 'uniform' with NM(2:4), whose sparsity is "),
    ],
)
def test_gradual_pruning_refuses_to_choose_ratios(options, text):
    net = model()
    schedule = GradualSchedule(0.0, 0.5, 2, 10, 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="GradualPruner") as caught:
        GradualPruner(net, NM(2, 4), schedule, optimizer, **options)
    assert str(caught.value).startswith("GradualPruner: " + text)
