# SPDX-License-Identifier: Apache-2.0
"""CAST: steps of AdamS and folding by hand, the distillation loss, a whole run, what is refused."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from sparsekern.patterns import NM, Unstructured
from sparsekern.training import AdamS, WeightScale, cast_, distillation_loss, finish_cast_
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrize

HALVES = {"lr": 0.1, "betas": (0.5, 0.75), "eps": 0.0}


def weight(*values: float) -> nn.Parameter:
    return nn.Parameter(torch.tensor([values], dtype=torch.float64))


def test_two_steps_by_hand():
    """W = (1, -3), 1 of 2 kept: the second. g = (.4, .8) twice, 4 steps in all, decay .2.

    t = 0: u = (.2, .4); no pull yet; v = .25 u^2 = (.01, .04). Corrected: u / .5 = (.4, .8),
       v / .25 = (.2, .4)^2, so W -= .1 (2, 2).
    t = 1: u = (.3, .6), a = 1/4: u'_0 = .75 * .3 + .25 * .2 = .275; v = .75 (.01, .04)
       + .25 (.275, .6)^2 = (.02640625, .12). Corrections .75 and .4375.
    """
    w = weight(1.0, -3.0)
    optimizer = AdamS([{"params": [w], "pattern": NM(1, 2)}], total_steps=4, decay=0.2, **HALVES)
    w.grad = torch.tensor([[0.4, 0.8]], dtype=torch.float64)
    optimizer.step()
    torch.testing.assert_close(w.detach(), weight(0.8, -3.2).detach())
    optimizer.step()
    first = 0.8 - 0.1 * (0.275 / 0.75) / math.sqrt(0.02640625 / 0.4375)
    second = -3.2 - 0.1 * (0.6 / 0.75) / math.sqrt(0.12 / 0.4375)
    torch.testing.assert_close(w.detach(), weight(first, second).detach())
    # The kept part alone: a group without pattern.
    plain = weight(1.0, -3.0)
    optimizer = AdamS([plain], total_steps=4, decay=0.2, **HALVES)
    plain.grad = w.grad.clone()
    optimizer.step()
    optimizer.step()
    torch.testing.assert_close(plain[0, 1], w[0, 1])
    assert abs(float((plain - w).detach()[0, 0])) > 1e-3


def test_the_pull_goes_to_zero_from_both_sides():
    """Without gradient only the pull moves a weight: at t = 1, .5 decay, of 2 steps."""
    w = weight(0.5, -0.5, 2.0, 2.0)
    options = {**HALVES, "total_steps": 2, "decay": 1.0}
    optimizer = AdamS([{"params": [w], "pattern": NM(2, 4)}], **{**options, "eps": 1e-30})
    w.grad = torch.zeros_like(w)
    optimizer.step()
    assert w.tolist() == [[0.5, -0.5, 2.0, 2.0]]  # a = 0
    optimizer.step()  # u' = .5 s, v = .25 * .25: .1 (.5 / .75) / sqrt(.0625 / .4375)
    moved = 0.1 * (0.5 / 0.75) / math.sqrt(0.0625 / 0.4375)
    expected = weight(0.5 - moved, -0.5 + moved, 2.0, 2.0)
    torch.testing.assert_close(w.detach(), expected.detach())


def test_masks_are_renewed_every_so_often():
    w = weight(1.0, 1.1)
    optimizer = AdamS([{"params": [w], "pattern": NM(1, 2)}], 0.0, total_steps=9, refresh=3)
    seen = []
    for _ in range(7):
        w.grad = torch.ones_like(w)
        optimizer.step()
        seen.append(optimizer.state[w]["mask"].tolist())
        with torch.no_grad():
            w.copy_(weight(2.0, 1.1))
    assert seen == [[[False, True]]] * 3 + [[[True, False]]] * 4


def test_groups_run_along_the_input_channels_of_a_convolution():
    w = nn.Parameter(torch.tensor([1.0, -4.0, 3.0, 2.0]).reshape(1, 4, 1, 1).repeat(1, 1, 1, 2))
    optimizer = AdamS([{"params": [w], "pattern": NM(2, 4)}], 0.1, total_steps=2)
    w.grad = torch.zeros_like(w)
    optimizer.step()
    assert optimizer.state[w]["mask"][0, :, 0, 1].tolist() == [False, True, True, False]


def test_weight_scale_and_folding_by_hand():
    model = nn.Sequential(nn.Linear(4, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -2.0, 3.0, 0.5], [4.0, 1.0, -1.0, 2.0]]))
    master, bias = model[0].weight, model[0].bias.detach().clone()
    optimizer = cast_(model, NM(2, 4), total_steps=3, lr=0.1)
    scale = model[0].parametrizations.weight[0].scale
    assert scale.tolist() == [[1.0, 1.0], [1.0, 1.0]]
    assert torch.equal(model[0].weight, master)
    with torch.no_grad():
        scale.copy_(torch.tensor([[10.0, 2.0], [3.0, -1.0]]))
    assert model[0].weight.tolist() == [[10.0, -20.0, 6.0, 1.0], [12.0, 3.0, 1.0, -2.0]]
    assert finish_cast_(model, optimizer) is model
    # Pruned by the master: (-2, 3) and (4, 2) stay; then times the factors of their halves.
    assert model[0].weight.tolist() == [[0.0, -20.0, 6.0, 0.0], [12.0, 0.0, 0.0, -2.0]]
    assert model[0].weight is master
    assert type(model[0]) is nn.Linear
    assert not parametrize.is_parametrized(model[0])
    assert torch.equal(model[0].bias, bias)


def test_weight_scale_parts_of_unequal_size():
    scale = WeightScale(torch.zeros(1, 5), 2)
    with torch.no_grad():
        scale.scale.copy_(torch.tensor([[1.0, 2.0]]))
    assert scale(torch.ones(1, 5)).tolist() == [[1.0, 1.0, 1.0, 2.0, 2.0]]
    assert WeightScale(torch.zeros(2, 4, 3, 3))(torch.ones(2, 4, 3, 3)).shape == (2, 4, 3, 3)


def test_distillation_loss_by_hand():
    """P = (1/2, 1/2), P_t = (3/4, 1/4), target 0; a second token does not count."""
    logits = torch.tensor([[0.0, 0.0], [5.0, -1.0]], requires_grad=True)
    teacher = torch.tensor([[math.log(3.0), 0.0], [1.0, 2.0]], requires_grad=True)
    targets = torch.tensor([0, -100])
    loss = distillation_loss(logits, teacher, targets, share=0.25)
    divergence = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert loss.item() == pytest.approx(0.25 * divergence + 0.75 * math.log(2.0))
    loss.backward()
    assert teacher.grad is None
    # Of logits: P - .25 P_t - .75 (1, 0), and nothing of what does not count.
    expected = [[0.5 - 0.25 * 0.75 - 0.75, 0.5 - 0.25 * 0.25], [0.0, 0.0]]
    torch.testing.assert_close(logits.grad, torch.tensor(expected))


def test_distillation_loss_ends():
    generator = torch.Generator().manual_seed(0)
    logits, teacher = torch.randn(2, 3, 4, 5, generator=generator)
    targets = torch.randint(5, (3, 4), generator=generator)
    plain = distillation_loss(logits, teacher, targets, share=0.0)
    torch.testing.assert_close(plain, functional.cross_entropy(logits.mT, targets))
    assert float(distillation_loss(logits, logits, targets, share=1.0)) == pytest.approx(
        0, abs=1e-6
    )


def problem() -> tuple[nn.Module, nn.Module, torch.Tensor]:
    """A trained model, its dense self, inputs."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    x = torch.randn(256, 16, generator=torch.Generator().manual_seed(1))
    targets = (x[:, :4] + x[:, 4:8] * x[:, 8:12]).argmax(dim=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(150):
        optimizer.zero_grad()
        functional.cross_entropy(model(x), targets).backward()
        optimizer.step()
    return model, copy.deepcopy(model), x


def test_a_run_loses_less_than_pruning_at_once_and_ends_sparse():
    model, teacher, x = problem()
    with torch.no_grad():
        expected = teacher(x)
    targets = expected.argmax(dim=1)
    pruned = copy.deepcopy(model)
    finish_cast_(pruned, cast_(pruned, NM(1, 4), total_steps=1, lr=0.0))
    optimizer = cast_(model, NM(1, 4), total_steps=600, lr=0.003, decay=0.1)
    for _ in range(600):
        optimizer.zero_grad()
        distillation_loss(model(x), expected, targets).backward()
        optimizer.step()
    with torch.no_grad():
        before = functional.cross_entropy(model(x), targets)
    finish_cast_(model, optimizer)
    with torch.no_grad():
        after, at_once = (functional.cross_entropy(m(x), targets) for m in (model, pruned))
    for index in (0, 2):
        assert ((model[index].weight.reshape(-1, 4) != 0).sum(1) == 1).all()
    assert after < 0.2 * at_once
    assert after < before + 0.1  # what was cut had died out


def test_state_resumes_with_its_masks():
    x = torch.randn(32, 16, generator=torch.Generator().manual_seed(2))

    def make() -> tuple[nn.Module, AdamS]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 8))
        return model, cast_(model, NM(2, 4), total_steps=20, lr=0.01, decay=0.1)

    def train(model: nn.Module, optimizer: AdamS, steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()

    model, optimizer = make()
    train(model, optimizer, 13)  # between two updates of the mask
    other, resumed = make()
    other.load_state_dict(model.state_dict())
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(model, optimizer, 7)
    train(other, resumed, 7)
    assert torch.equal(model[0].weight, other[0].weight)
    with pytest.raises(RuntimeError) as caught:
        train(model, optimizer, 1)
    text = "AdamS.step: total_steps must not be exceeded, got 20 before"
    assert str(caught.value) == text


def test_closures_and_weights_without_gradient():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    optimizer = cast_(model, {"0": NM(2, 4), "1": None}, total_steps=5, lr=0.1)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(held) == 5  # two weights, two biases, a scale
    assert not parametrize.is_parametrized(model[1])
    still = model[1].weight.detach().clone()

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model[0](torch.ones(1, 4)).sum()
        loss.backward()
        return loss.detach()

    expected = model[0](torch.ones(1, 4)).sum().detach()
    assert torch.equal(optimizer.step(closure), expected)  # the loss before the step
    assert float(closure()) < float(expected)
    assert torch.equal(model[1].weight, still)


SHARED = nn.Linear(4, 4)


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (
            lambda: cast_(nn.Linear(4, 4).bfloat16(), NM(2, 4), total_steps=1, lr=0.1),
            TypeError,
            "AdamS: a masked weight must be float32 or float64, since 16 bits round the pull to "
            "zero away, got torch.bfloat16; use autocast over float32 weights",
        ),
        (
            lambda: AdamS(
                [{"params": [nn.Parameter(torch.ones(8))], "pattern": NM(2, 4)}], 0.1, total_steps=1
            ),
            ValueError,
            "AdamS: a masked weight must have at least 2 dimensions, got shape [8]; keep its shape "
            "where weights are sharded or flattened",
        ),
        (
            lambda: AdamS([{"params": [weight(1.0)], "pattern": "2:4"}], 0.1, total_steps=1),
            TypeError,
            "AdamS: pattern must be an NM or None, got str",
        ),
        (
            lambda: AdamS([weight(1.0)], -0.1, total_steps=1),
            ValueError,
            "AdamS: lr must be >= 0, got -0.1",
        ),
        (
            lambda: AdamS([weight(1.0)], 0.1, total_steps=1, decay=math.nan),
            ValueError,
            "AdamS: decay must be >= 0, got nan",
        ),
        (
            lambda: AdamS([weight(1.0)], 0.1, total_steps=0),
            ValueError,
            "AdamS: total_steps must be a positive integer, got 0",
        ),
        (
            lambda: AdamS([weight(1.0)], 0.1, total_steps=1, refresh=2.0),
            ValueError,
            "AdamS: refresh must be a positive integer, got 2.0",
        ),
        (
            lambda: AdamS([weight(1.0)], 0.1, total_steps=1, betas=(0.9, 1.0)),
            ValueError,
            "AdamS: betas must be in [0, 1), got (0.9, 1.0)",
        ),
        (
            lambda: cast_(nn.Linear(4, 4), Unstructured(0.5), total_steps=1, lr=0.1),
            TypeError,
            "cast_: the pattern of layer '' must be an NM, got Unstructured",
        ),
        (
            lambda: cast_(nn.Sequential(SHARED, SHARED), NM(2, 4), total_steps=1, lr=0.1),
            ValueError,
            "cast_: the weight of layer '0' must be its own to get factors, got a shared one; give "
            "its name the pattern None, or parts=0 to all",
        ),
        (
            lambda: cast_(nn.Linear(4, 4), NM(2, 4), total_steps=1, lr=0.1, parts=5),
            ValueError,
            "WeightScale: parts must be in [1, 4], got 5",
        ),
        (
            lambda: finish_cast_(nn.Linear(4, 4), AdamS([weight(1.0)], 0.1, total_steps=1)),
            ValueError,
            "finish_cast_: model must hold a masked weight of the optimizer, got none of 0",
        ),
        (
            lambda: distillation_loss(torch.ones(2, 3), torch.ones(2, 4), torch.ones(2).long()),
            ValueError,
            "distillation_loss: teacher_logits must have the shape of logits ([2, 3]) and targets "
            "that without the last, got [2, 4] and [2]",
        ),
        (
            lambda: distillation_loss(
                torch.ones(2, 3), torch.ones(2, 3), torch.ones(2).long(), share=1.5
            ),
            ValueError,
            "distillation_loss: share must be in [0, 1], got 1.5",
        ),
    ],
)
def test_what_is_refused(make, error, text):
    with pytest.raises(error) as caught:
        make()
    assert str(caught.value) == text


def test_weights_cast_to_16_bits_later_are_refused():
    model = nn.Sequential(nn.Linear(4, 4))
    optimizer = cast_(model, NM(2, 4), total_steps=5, lr=0.1)
    model.bfloat16()
    model(torch.ones(1, 4, dtype=torch.bfloat16)).sum().backward()
    with pytest.raises(TypeError, match="must be float32 or float64"):
        optimizer.step()


def test_a_shared_weight_trains_without_factors():
    layer = nn.Linear(4, 4)
    model = nn.Sequential(layer, layer)
    optimizer = cast_(model, NM(2, 4), total_steps=2, lr=0.1, parts=0)
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    finish_cast_(model, optimizer)
    assert ((layer.weight != 0).sum(1) == 2).all()
