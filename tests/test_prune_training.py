# SPDX-License-Identifier: Apache-2.0
"""Masks under optimizers, and the gradual schedule."""

from __future__ import annotations

import copy

import pytest
import torch
from sparsekern.patterns import Block, Unstructured
from sparsekern.prune import GradualPruner, GradualSchedule, MaskKeeper, from_pruned, prune_
from torch import nn


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 4))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        optimizer.zero_grad()
        x = torch.randn(8, 12, generator=generator)
        (model(x) - x[:, :4]).square().mean().backward()
        optimizer.step()


OPTIMIZERS = {
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, weight_decay=0.1, nesterov=True),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("mask_gradients", [False, True])
def test_pruned_weights_stay_exactly_zero(name, mask_gradients):
    model = small()
    optimizer = OPTIMIZERS[name](model.parameters())
    train(model, optimizer, 3)  # moments exist before pruning
    result = prune_(model, Unstructured(0.6))
    before = copy.deepcopy(model.state_dict())
    keeper = MaskKeeper(model, result.masks, mask_gradients=mask_gradients).attach(optimizer)
    train(model, optimizer, 5)
    for key in ("0", "2"):
        weight = model.get_submodule(key).weight
        mask = result.masks[key]
        assert (weight[~mask] == 0).all()
        assert (weight[mask] != before[f"{key}.weight"][mask]).all()  # the kept ones train
        if mask_gradients:
            assert (weight.grad[~mask] == 0).all()
    keeper.detach()
    train(model, optimizer, 1)
    assert any((model.get_submodule(k).weight[~result.masks[k]] != 0).any() for k in ("0", "2"))


def test_masks_from_zeros_and_context_manager():
    model = small()
    prune_(model, {"0": Block(2, 0.5)})
    with torch.no_grad():
        model[2].weight.zero_()  # zero-initialized, not pruned: must stay free
    zeros = model[0].weight == 0
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    with MaskKeeper(model).attach(optimizer):
        train(model, optimizer, 3)
        assert torch.equal(model[0].weight == 0, zeros)
        assert (model[2].weight != 0).any()
    train(model, optimizer, 1)
    assert not torch.equal(model[0].weight == 0, zeros)


def test_keeper_update_replaces_masks():
    model = small()
    optimizer = OPTIMIZERS["adam"](model.parameters())
    keeper = MaskKeeper(model, {}).attach(optimizer)
    mask = torch.ones(16, 12, dtype=torch.bool)
    mask[3] = False
    keeper.update({"0": mask})
    assert (model[0].weight[3] == 0).all()
    train(model, optimizer, 2)
    assert (model[0].weight[3] == 0).all()
    assert (model[0].weight[2] != 0).all()


def test_keeper_resets_nan_at_pruned_places():
    model = small()
    result = prune_(model, Unstructured(0.5))
    keeper = MaskKeeper(model, result.masks)
    with torch.no_grad():
        model[0].weight.fill_(float("nan"))
    keeper.apply_()
    assert torch.equal(model[0].weight == 0, ~result.masks["0"])


def test_keeper_error_texts():
    model = small()
    good = torch.ones(16, 12, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"^MaskKeeper: masks must name .* layers .* got '1'$"):
        MaskKeeper(model, {"1": good})
    with pytest.raises(TypeError, match=r"^MaskKeeper: masks\['0'\] must be bool, got torch.f"):
        MaskKeeper(model, {"0": good.float()})
    with pytest.raises(
        ValueError, match=r"masks\['0'\] must have shape \[16, 12\], got \[12, 16\]$"
    ):
        MaskKeeper(model, {"0": good.t()})
    other = torch.optim.SGD(small().parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"optimizer must hold a masked weight .* got none of 1$"):
        MaskKeeper(model, {"0": good}).attach(other)


def test_schedule_by_hand():
    schedule = GradualSchedule(0.2, 0.8, begin_step=10, end_step=30, every=8)
    assert schedule.at(0) == schedule.at(10) == pytest.approx(0.2)
    assert schedule.at(20) == pytest.approx(0.8 - 0.6 * 0.125)
    assert schedule.at(30) == schedule.at(10**9) == 0.8
    assert [s for s in range(60) if schedule.updates(s)] == [10, 18, 26, 30]
    assert GradualSchedule(0.0, 0.8, 0, 10, 1, power=1).at(5) == pytest.approx(0.4)


def test_schedule_errors():
    for arguments in [(0.9, 0.5, 0, 10, 1), (0.0, 1.5, 0, 10, 1)]:
        with pytest.raises(ValueError, match="0 <= initial <= final <= 1, got"):
            GradualSchedule(*arguments)
    with pytest.raises(ValueError, match="0 <= begin_step < end_step, got 5 and 5"):
        GradualSchedule(0.0, 0.5, 5, 5, 1)
    with pytest.raises(ValueError, match="every must be at least 1, got 0"):
        GradualSchedule(0.0, 0.5, 0, 5, 0)
    with pytest.raises(ValueError, match="power must be positive, got 0"):
        GradualSchedule(0.0, 0.5, 0, 5, 1, power=0)


@pytest.mark.parametrize("allocation", ["uniform", "erk"])
def test_gradual_pruner_follows_the_schedule(allocation):
    model = small()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    schedule = GradualSchedule(0.0, 0.75, begin_step=2, end_step=10, every=3)
    pruner = GradualPruner(model, Unstructured(0.75), schedule, optimizer, allocation=allocation)
    previous = {}
    for step in range(1, 14):
        train(model, optimizer, 1)
        result = pruner.step()
        assert (result is not None) == (step in (2, 5, 8, 10))
        reached = max(s for s in (0, 2, 5, 8, 10) if s <= step)
        assert abs(from_pruned(model).sparsity - schedule.at(reached)) < 0.005
        if result is not None:
            for name, mask in result.masks.items():
                assert not (mask & ~previous.get(name, mask)).any()  # once pruned, always pruned
            previous = result.masks
    assert abs(from_pruned(model).sparsity - 0.75) < 0.005


def test_gradual_pruner_prunes_at_step_zero_and_scales_entries():
    model = small()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    patterns = {"0": Unstructured(0.8), "2": Block(2, 0.4)}
    pruner = GradualPruner(model, patterns, GradualSchedule(0.4, 0.8, 0, 4, 2), optimizer)
    found = from_pruned(model)
    assert found["0"].achieved == pytest.approx(0.4, abs=0.01)
    assert found["2"].achieved == pytest.approx(0.2, abs=0.02)
    for _ in range(4):
        train(model, optimizer, 1)
        pruner.step()
    found = from_pruned(model)
    assert found["0"].achieved == pytest.approx(0.8, abs=0.01)
    assert found["2"].achieved == pytest.approx(0.4, abs=0.02)


def test_gradual_pruner_resumes():
    schedule = GradualSchedule(0.0, 0.75, 0, 8, 2)
    model = small()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    pruner = GradualPruner(model, Unstructured(0.75), schedule, optimizer)
    for _ in range(5):
        train(model, optimizer, 1)
        pruner.step()
    other = small()
    other.load_state_dict(model.state_dict())
    other_optimizer = OPTIMIZERS["sgd"](other.parameters())
    resumed = GradualPruner(other, Unstructured(0.75), schedule, other_optimizer)
    resumed.load_state_dict(pruner.state_dict())
    other_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for _ in range(5):
        for m, o, p in ((model, optimizer, pruner), (other, other_optimizer, resumed)):
            train(m, o, 1)
            p.step()
    assert torch.equal(model[0].weight, other[0].weight)
    assert resumed.count == 10


def test_gradual_pruner_errors():
    model = small()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    schedule = GradualSchedule(0.0, 0.9, 0, 8, 2)
    with pytest.raises(
        ValueError, match=r"schedule.final must equal the largest .* \(0.8\), got 0.9$"
    ):
        GradualPruner(model, Unstructured(0.8), schedule, optimizer)
    with pytest.raises(ValueError, match="allocation must be 'uniform' or 'erk', got 'sens"):
        GradualPruner(model, Unstructured(0.9), schedule, optimizer, allocation="sensitivity")
