# SPDX-License-Identifier: Apache-2.0
"""Distillation: it recovers, keeps the masks, leaves the teacher alone, and refuses bad input."""

from __future__ import annotations

import copy

import pytest
import torch
from sparsekern import Unstructured, prune_
from sparsekern.distill import Step, distill_, neighbour_divergence, normalized_error
from torch import Tensor, nn


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 48), nn.GELU(), nn.Linear(48, 8)).eval()


def inputs(count: int = 8) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(32, 24, generator=generator) for _ in range(count)]


def error(student: nn.Module, teacher: nn.Module) -> float:
    x = torch.randn(256, 24, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        return float(normalized_error(student(x), teacher(x)))


def pruned_pair() -> tuple[nn.Sequential, nn.Sequential, dict[str, Tensor]]:
    teacher = network()
    student = copy.deepcopy(teacher)
    return student, teacher, prune_(student, Unstructured(0.7)).masks


def test_recovers_on_unseen_inputs_and_keeps_the_masks() -> None:
    student, teacher, masks = pruned_pair()
    state = {k: v.clone() for k, v in teacher.state_dict().items()}
    before = error(student, teacher)
    result = distill_(student, teacher, inputs(), steps=200, masks=masks, learning_rate=1e-2)
    assert error(student, teacher) < 0.5 * before
    assert result.steps == len(result.losses) == 200
    assert result.stopped_by == "steps"
    assert sum(result.losses[-10:]) < 0.5 * sum(result.losses[:10])
    for name, mask in masks.items():
        weight = student.get_submodule(name).weight
        assert bool((weight[~mask] == 0).all())
        assert bool((weight[mask] != 0).any())
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, state[name])
    assert all(p.grad is None for p in [*student.parameters(), *teacher.parameters()])


def test_masks_default_to_the_zeros_of_now() -> None:
    student, teacher, masks = pruned_pair()
    distill_(student, teacher, inputs(), steps=5, learning_rate=1e-2)
    for name, mask in masks.items():
        assert bool((student.get_submodule(name).weight[~mask] == 0).all())


def test_matches_several_outputs_with_weights() -> None:
    student, teacher, masks = pruned_pair()

    def both(model: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
        hidden = model[0](x)  # type: ignore[index]
        return hidden, model[2](model[1](hidden))  # type: ignore[index]

    seen: list[Step] = []
    result = distill_(
        student, teacher, inputs(), steps=6, masks=masks, forward=both, weights=[2.0, 0.5],
        learning_rate=1e-2, warmup=4, on_step=seen.append,
    )  # fmt: skip
    assert [s.number for s in seen] == [1, 2, 3, 4, 5, 6]
    assert seen[-1].progress == 1.0
    assert seen[0].learning_rate == pytest.approx(0.25e-2)
    assert 0 < seen[-1].learning_rate < 0.2e-2
    for step in seen:
        assert step.loss == pytest.approx(2.0 * step.errors[0] + 0.5 * step.errors[1], rel=1e-5)
    assert result.losses == tuple(s.loss for s in seen)


def test_frozen_parameters_do_not_move() -> None:
    student, teacher, masks = pruned_pair()
    student[0].requires_grad_(False)
    frozen = student[0].weight.detach().clone()
    free = student[2].weight.detach().clone()
    distill_(student, teacher, inputs(), steps=3, masks=masks)
    assert torch.equal(student[0].weight, frozen)
    assert not torch.equal(student[2].weight, free)


def test_own_optimizer_keeps_its_rate_afterwards() -> None:
    student, teacher, masks = pruned_pair()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    distill_(student, teacher, inputs(), steps=3, masks=masks, optimizer=optimizer)
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_time_limit_ends_the_run_early(monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher, masks = pruned_pair()
    now = [0.0]

    def clock() -> float:
        now[0] += 1.0
        return now[0]

    monkeypatch.setattr("sparsekern.distill.time.monotonic", clock)
    rates: list[float] = []
    result = distill_(
        student, teacher, inputs(), steps=1000, masks=masks, time_limit=20.0, warmup=0,
        on_step=lambda step: rates.append(step.learning_rate),
    )  # fmt: skip
    assert result.steps == 20
    assert result.stopped_by == "time_limit"
    assert rates[-1] < 0.05 * rates[0]  # the schedule followed the clock


def test_normalized_error_by_hand() -> None:
    target = torch.tensor([[1.0, 3.0]])  # variance 1
    assert float(normalized_error(target, target)) == 0.0
    assert float(normalized_error(torch.tensor([[2.0, 3.0]]), target)) == pytest.approx(0.5)
    assert float(normalized_error(torch.full((1, 2), 2.0), target)) == pytest.approx(1.0)
    constant = torch.full((3,), 5.0)
    assert float(normalized_error(constant + 2.0, constant)) == pytest.approx(4.0)


def test_neighbour_divergence_by_hand() -> None:
    bank = torch.eye(2)
    same = torch.tensor([[0.6, 0.8], [1.0, 0.0]])
    assert float(neighbour_divergence(bank)(same, same)) == pytest.approx(0.0, abs=1e-6)
    divergence = neighbour_divergence(bank, temperature=1.0)
    found = float(divergence(torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]])))
    p = torch.softmax(torch.tensor([1.0, 0.0]), 0)
    assert found == pytest.approx(float((p * (p / p.flip(0)).log()).sum()), rel=1e-5)
    with pytest.raises(ValueError, match=r"bank must be \[n >= 2, width\], got \[1, 4\]"):
        neighbour_divergence(torch.ones(1, 4))
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        neighbour_divergence(bank, temperature=0.0)


def test_own_errors_are_used() -> None:
    student, teacher, masks = pruned_pair()
    result = distill_(
        student, teacher, inputs(), steps=1, masks=masks, errors=[lambda x, y: (x * 0 + 7).mean()]
    )
    assert result.losses == (7.0,)


@pytest.mark.parametrize(
    ("change", "error_type", "text"),
    [
        ({"steps": 0}, ValueError, "distill_: steps must be at least 1, got 0"),
        ({"steps": 1.5}, TypeError, "distill_: steps must be an integer, got 1.5"),
        ({"warmup": -1}, ValueError, "distill_: warmup must be at least 0, got -1"),
        ({"learning_rate": 0.0}, ValueError, "distill_: learning_rate must be positive, got 0.0"),
        ({"time_limit": 0.0}, ValueError, "distill_: time_limit must be positive, got 0.0"),
        ({"weights": [1.0, 1.0]}, ValueError, r"one entry per output \(1\), got 2"),
        ({"errors": []}, ValueError, r"errors must have one entry per output \(1\), got 0"),
        ({"batches": []}, ValueError, "batches must not be empty: got 0 of 3 steps"),
        ({"batches": iter(inputs(2))}, ValueError, "not used up by one pass: got 2 of 3 steps"),
        ({"forward": lambda m, b: b.int()}, TypeError, "got torch.int32 from the teacher"),
        ({"forward": lambda m, b: "text"}, TypeError, "tensors, got str from the teacher"),
        ({"batches": [torch.full((2, 24), float("nan"))]}, ValueError, "finite, got nan at step 1"),
    ],
)
def test_bad_input_is_refused(
    change: dict[str, object], error_type: type[Exception], text: str
) -> None:
    student, teacher, masks = pruned_pair()
    arguments: dict[str, object] = {"batches": inputs(), "steps": 3, "masks": masks, **change}
    batches = arguments.pop("batches")
    with pytest.raises(error_type, match=text):
        distill_(student, teacher, batches, **arguments)  # type: ignore[arg-type]


def test_unequal_outputs_are_refused() -> None:
    student, _, masks = pruned_pair()
    wide = nn.Sequential(nn.Linear(24, 9))
    with pytest.raises(ValueError, match=r"target's shape \[32, 9\], got \[32, 8\]"):
        distill_(student, wide, inputs(), steps=1, masks=masks)


def test_a_student_without_free_parameters_is_refused() -> None:
    student, teacher, masks = pruned_pair()
    student.requires_grad_(False)
    with pytest.raises(ValueError, match="student must have a parameter that requires a gradient"):
        distill_(student, teacher, inputs(), steps=1, masks=masks)
