# SPDX-License-Identifier: Apache-2.0
"""STEP: two phases by hand, the switch point, and a run with masks."""

from __future__ import annotations

import copy
import math

import pytest
import sparsekern as sk
import torch
from sparsekern import training as tr
from torch import nn


def weight(*values: float) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values, dtype=torch.float64))


def stepped(optimizer, w, *gradients: float) -> float:
    w.grad = torch.tensor(gradients, dtype=torch.float64)
    optimizer.step()
    return w[0].item()


def test_both_phases_by_hand():
    w = weight(1.0)
    optimizer = tr.StepAdam([w], lr=0.1, betas=(0.5, 0.75), eps=0.01)
    # m = 0.5 * 2, v = 0.25 * 4; both corrected: 2 and 4.
    first = 1.0 - 0.1 * 2.0 / (2.0 + 0.01)
    assert stepped(optimizer, w, 2.0) == pytest.approx(first, rel=1e-12)
    # m = 0.5 * 1 - 0.5 * 1 = 0; v = 0.75 + 0.25 = 1.
    assert stepped(optimizer, w, -1.0) == pytest.approx(first, rel=1e-12)
    optimizer.freeze()
    assert optimizer.frozen
    # m = 0 + 0.5 * 8 = 4, over 1 - 0.5^3; v stays 1, over 1 - 0.75^2.
    second = first - 0.1 * (4.0 / 0.875) / (math.sqrt(1.0 / 0.4375) + 0.01**0.75)
    assert stepped(optimizer, w, 8.0) == pytest.approx(second, rel=1e-12)
    assert optimizer.state[w]["exp_avg_sq"].item() == 1.0


def test_before_the_switch_it_is_adam():
    torch.manual_seed(0)
    a = nn.Parameter(torch.randn(5, 7))
    b = nn.Parameter(a.detach().clone())
    ours = tr.StepAdam([a], lr=0.01, betas=(0.8, 0.95), eps=1e-6)
    torchs = torch.optim.Adam([b], lr=0.01, betas=(0.8, 0.95), eps=1e-6)
    for _ in range(6):
        a.grad = torch.randn(5, 7)
        b.grad = a.grad.clone()
        ours.step()
        torchs.step()
    torch.testing.assert_close(a, b)


def test_the_switch_point_by_hand():
    w = weight(0.0, 0.0)
    optimizer = tr.StepAdam([w], lr=0.0, betas=(0.0, 0.5), eps=0.2)  # the last two steps count
    assert not optimizer.settled()
    stepped(optimizer, w, 1.0, 0.0)  # v = 0.5, 0: Z = 0.25
    assert not optimizer.settled()  # one step only
    stepped(optimizer, w, 1.0, 0.0)  # v = 0.75, 0: Z = 0.125, mean 0.1875
    assert optimizer.settled()
    assert not optimizer.settled(at_least=3)
    stepped(optimizer, w, 2.0, 0.0)  # v = 2.375, 0: Z = 0.8125
    assert not optimizer.settled()
    assert optimizer.settled(at_most=3)
    assert not optimizer.settled(at_most=4)


def test_groups_that_do_not_freeze_and_a_switch_by_number():
    kept, going, late = weight(0.0), weight(0.0), weight(0.0)
    groups = [{"params": [kept, late]}, {"params": [going], "freeze": False}]
    optimizer = tr.StepAdam(groups, lr=0.1, betas=(0.9, 0.5), freeze_at=2)
    for _ in range(4):
        going.grad = torch.ones(1, dtype=torch.float64)
        stepped(optimizer, kept, 1.0)
    assert optimizer.frozen
    assert optimizer.state[kept]["exp_avg_sq"].item() == 0.75
    assert optimizer.state[going]["exp_avg_sq"].item() == 1 - 0.5**4
    kept.grad = None
    stepped(optimizer, late, 3.0)
    stepped(optimizer, late, 1.0)
    assert optimizer.state[late]["exp_avg_sq"].item() == 4.5  # of its first gradient
    assert torch.isfinite(late).all()


@pytest.mark.parametrize("empty", [1, 3])
def test_a_switch_by_number_where_steps_find_no_gradient(empty: int):
    w = weight(1.0)
    optimizer = tr.StepAdam([w], lr=0.1, freeze_at=2)
    if empty == 1:  # the second of two
        stepped(optimizer, w, 1.0)
        w.grad = None
        optimizer.step()
    else:  # the first three: only then is there a moment to keep
        for _ in range(empty):
            optimizer.step()
        assert not optimizer.frozen
        stepped(optimizer, w, 1.0)
    assert optimizer.frozen
    kept = optimizer.state[w]["exp_avg_sq"].item()
    stepped(optimizer, w, 5.0)
    assert optimizer.state[w]["exp_avg_sq"].item() == kept


def test_a_run_resumes_and_ends_sparse():
    torch.manual_seed(0)
    data = [torch.randn(32, 16) for _ in range(30)]
    target = torch.randn(16, 16)

    def begin():
        torch.manual_seed(1)
        net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16))
        return net, tr.StepAdam(net.parameters(), lr=0.01)

    def run(net, optimizer, batches):
        losses = []
        for x in batches:
            loss = (net(x) - x @ target).pow(2).mean()
            losses.append(loss.item())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return losses

    net, optimizer = begin()
    losses = run(net, optimizer, data[:10])
    optimizer.freeze()
    recipe = tr.Recipe(gradient=tr.SRSTE())
    tr.prepare_(net, sk.NM(2, 4), recipe).attach(optimizer)
    run(net, optimizer, data[10:15])
    state = copy.deepcopy((net.state_dict(), optimizer.state_dict()))
    losses += run(net, optimizer, data[15:])
    again, resumed = begin()
    tr.prepare_(again, sk.NM(2, 4), recipe).attach(resumed)
    again.load_state_dict(state[0])
    resumed.load_state_dict(state[1])
    assert resumed.frozen
    assert run(again, resumed, data[15:]) == losses[10:]
    assert losses[-1] < losses[0]
    tr.finish_(net)
    assert (net[0].weight.reshape(-1, 4) != 0).sum(1).max() <= 2


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda w: tr.StepAdam([w], lr=-1.0), ValueError, "lr must be >= 0, got -1.0"),
        (lambda w: tr.StepAdam([w], lr=math.nan), ValueError, "lr must be >= 0, got nan"),
        (lambda w: tr.StepAdam([w], lr=1.0, eps=-1), ValueError, "eps must be >= 0, got -1"),
        (lambda w: tr.StepAdam([w], lr=1.0, betas=(0.9, 1.0)), ValueError, "betas must be in"),
        (lambda w: tr.StepAdam([w], lr=1.0, freeze_at=-1), ValueError, "freeze_at must be a num"),
        (lambda w: tr.StepAdam([w], lr=1.0, freeze_at=0), ValueError, "at least 1, got 0"),
        (lambda w: tr.StepAdam([w], lr=1.0).freeze(), RuntimeError, "after a step, got no step"),
        (lambda w: tr.StepAdam([w], lr=1.0).settled(2.0), ValueError, "at_least must be a number"),
        (lambda w: tr.StepAdam([w], lr=1.0).settled(3, 2), ValueError, "at_most must be at least"),
    ],
)
def test_what_is_refused(make, error, text):
    with pytest.raises(error, match=text):
        make(weight(1.0))


def test_freezing_twice_is_refused():
    w = weight(1.0)
    optimizer = tr.StepAdam([w], lr=0.1)
    stepped(optimizer, w, 1.0)
    optimizer.freeze()
    with pytest.raises(RuntimeError, match="got a second call"):
        optimizer.freeze()
