# SPDX-License-Identifier: Apache-2.0
"""Short distillation: a pruned model learns to give its dense self's outputs again.

No labels are needed, only inputs of the kind the model will see. The student is trained on the
mean-squared error between its outputs and the teacher's, each divided by the variance of the
teacher's, so that 1 means "no better than the mean" whatever the scale. Matching hidden states of
each layer beside the final output (Romero et al. 2015, "FitNets", arXiv:1412.6550; Sanh et al.
2019, "DistilBERT", arXiv:1910.01108) gives every pruned layer a gradient of its own, which is what
makes a few hundred steps enough.

    dense = copy.deepcopy(model)
    result = sk.prune_(model, sk.Unstructured(0.8), score="sparsegpt", calibration=batches)
    sk.distill_(model, dense, batches, steps=1000, masks=result.masks,
                forward=lambda m, b: m(**b, output_hidden_states=True).hidden_states)
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .prune.calibration import feed
from .prune.masks import MaskKeeper

__all__ = ["DistillResult", "Step", "distill_", "neighbour_divergence", "normalized_error"]

Outputs = Tensor | Sequence[Tensor]
Forward = Callable[[nn.Module, Any], Outputs]
Error = Callable[[Tensor, Tensor], Tensor]
OnStep = Callable[["Step"], None]


@dataclass(frozen=True)
class Step:
    """One optimizer step, as `on_step` sees it.

    Attributes:
        number: steps done, from 1.
        progress: share of the run that is done, in (0, 1].
        loss: weighted sum of the errors.
        errors: the error of each matched output.
        learning_rate: the rate the step was made with.
    """

    number: int
    progress: float
    loss: float
    errors: tuple[float, ...]
    learning_rate: float


@dataclass(frozen=True)
class DistillResult:
    """What a run did.

    Attributes:
        steps: optimizer steps made; fewer than asked where `time_limit` ended the run.
        losses: the loss of each step.
        seconds: wall time.
        stopped_by: "steps" or "time_limit".
    """

    steps: int
    losses: tuple[float, ...]
    seconds: float
    stopped_by: str


def normalized_error(output: Tensor, target: Tensor) -> Tensor:
    """Mean-squared error over the target's variance, a scalar; 0 is equal.

    Both tensors have one shape. A constant target (variance 0) is compared without the division.
    For rows of norm 1 whose mean is near 0 this is 2 * (1 - cosine).
    """
    if output.shape != target.shape:
        raise ValueError(
            f"normalized_error: output must have the target's shape {list(target.shape)}, "
            f"got {list(output.shape)}"
        )
    target = target.detach()
    error = nn.functional.mse_loss(output.float(), target.float())
    variance = target.float().var(correction=0)
    return error / torch.where(variance > 0, variance, torch.ones_like(variance))


def neighbour_divergence(bank: Tensor, temperature: float = 0.05) -> Error:
    """An error for embeddings: does the student see the same nearest neighbours?

    The divergence KL(teacher || student) between softmax(e @ bank.T / temperature) of the two,
    averaged over rows, as in Fang et al. 2021, "SEED", arXiv:2101.04731, eq. 3. Retrieval depends
    on order among near neighbours only, which a squared error does not see.

    Args:
        bank: [n, width], the teacher's embeddings of n texts, rows of norm 1.
        temperature: smaller looks at nearer neighbours.

    Returns:
        A function of (output, target), both [rows, width] of norm 1, for `distill_`'s `errors`.
    """
    if bank.dim() != 2 or bank.shape[0] < 2:
        raise ValueError(
            f"neighbour_divergence: bank must be [n >= 2, width], got {list(bank.shape)}"
        )
    if not temperature > 0:
        raise ValueError(f"neighbour_divergence: temperature must be positive, got {temperature}")
    columns = bank.detach().T / temperature

    def error(output: Tensor, target: Tensor) -> Tensor:
        student = torch.log_softmax(output @ columns, dim=-1)
        teacher = torch.log_softmax(target.detach() @ columns, dim=-1)
        return nn.functional.kl_div(student, teacher, log_target=True, reduction="batchmean")

    return error


def distill_(
    student: nn.Module,
    teacher: nn.Module,
    batches: Iterable[Any],
    *,
    steps: int,
    masks: Mapping[str, Tensor] | None = None,
    forward: Forward | None = None,
    weights: Sequence[float] | None = None,
    errors: Sequence[Error] | None = None,
    learning_rate: float = 5e-4,
    warmup: int = 20,
    optimizer: torch.optim.Optimizer | None = None,
    time_limit: float | None = None,
    on_step: OnStep | None = None,
) -> DistillResult:
    """Train `student` to give `teacher`'s outputs, pruned weights staying zero; in place.

    All parameters of the student that require a gradient are trained with Adam; freeze others
    with `requires_grad_(False)` beforehand. The learning rate rises linearly over `warmup` steps
    and falls to zero along a half cosine. Modes (train or eval) are left as they are: with both in
    eval mode there is no dropout noise, which short runs want.

    Args:
        student: the pruned model.
        teacher: the dense model; runs without gradients and is not changed.
        batches: any iterable of batches, repeated until `steps` are made. Batches are not moved
            between devices.
        steps: optimizer steps, one batch each.
        masks: `PruneResult.masks`, True = kept. None keeps the zeros the student has now.
        forward: `forward(model, batch)` returns the outputs to match: a floating-point tensor or
            several (hidden states, without the padding). None passes a tensor as it is, a tuple
            or list by position, a mapping by keyword, and matches a tensor or tuple of tensors.
        weights: importance of each matched output; None: equal, summing to 1.
        errors: how each matched output is compared, a function of (output, target) that gives a
            scalar; None: `normalized_error` for all.
        learning_rate: the highest rate.
        warmup: steps of linear rise.
        optimizer: another optimizer, over the student's parameters; its rates are scheduled
            relative to those it has. `learning_rate` is then not used.
        time_limit: seconds; the schedule follows the clock where steps are slower than
            `time_limit / steps`, so that the run still ends at a low rate. Such a run depends on
            the speed of the machine.
        on_step: called after each step.

    Returns:
        Steps made, losses and time.

    Raises:
        TypeError: outputs are not floating-point tensors.
        ValueError: bad arguments; student and teacher outputs differ in number or shape; no
            batches; the loss is not finite (the student's weights are then those before the step).
    """
    _check(steps, learning_rate, warmup, time_limit)
    run = forward or feed
    trained = [p for p in student.parameters() if p.requires_grad]
    if not trained:
        raise ValueError("distill_: student must have a parameter that requires a gradient")
    if optimizer is None:
        # Fused: one pass over weights and moments, instead of one for each operation.
        fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in trained)
        optimizer = torch.optim.Adam(trained, lr=learning_rate, fused=fused)
    peaks = [float(group["lr"]) for group in optimizer.param_groups]
    begin = time.monotonic()
    losses: list[float] = []
    progress = 0.0
    stopped_by = "steps"
    with MaskKeeper(student, masks).attach(optimizer):
        for number, batch in enumerate(_repeat(batches, steps), start=1):
            scale = min(1.0, number / max(1, warmup)) * 0.5 * (1 + math.cos(math.pi * progress))
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * scale
            with torch.no_grad():
                targets = _outputs(run(teacher, batch), "teacher")
            found = _errors(_outputs(run(student, batch), "student"), targets, errors)
            loss = _weighted(found, weights)
            if not bool(torch.isfinite(loss)):
                raise ValueError(
                    f"distill_: loss must be finite, got {float(loss.detach())} at step {number}"
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(float(loss.detach()))
            progress = number / steps
            if time_limit is not None:
                progress = max(progress, (time.monotonic() - begin) / time_limit)
            progress = min(progress, 1.0)
            if on_step is not None:
                values = tuple(float(error.detach()) for error in found)
                rate = float(optimizer.param_groups[0]["lr"])
                on_step(Step(number, progress, losses[-1], values, rate))
            if progress >= 1.0 and number < steps:
                stopped_by = "time_limit"
                break
    optimizer.zero_grad(set_to_none=True)
    for group, peak in zip(optimizer.param_groups, peaks, strict=True):
        group["lr"] = peak
    return DistillResult(len(losses), tuple(losses), time.monotonic() - begin, stopped_by)


def _check(steps: int, learning_rate: float, warmup: int, time_limit: float | None) -> None:
    for name, value, least in (("steps", steps, 1), ("warmup", warmup, 0)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"distill_: {name} must be an integer, got {value!r}")
        if value < least:
            raise ValueError(f"distill_: {name} must be at least {least}, got {value}")
    if not (math.isfinite(learning_rate) and learning_rate > 0):
        raise ValueError(f"distill_: learning_rate must be positive, got {learning_rate}")
    if time_limit is not None and not time_limit > 0:
        raise ValueError(f"distill_: time_limit must be positive, got {time_limit}")


def _repeat(batches: Iterable[Any], steps: int) -> Iterator[Any]:
    """`steps` batches, starting over as often as needed."""
    made = 0
    while made < steps:
        before = made
        for batch in batches:
            yield batch
            made += 1
            if made == steps:
                return
        if made == before:
            what = "must not be empty" if made == 0 else "must be a list, not used up by one pass"
            raise ValueError(f"distill_: batches {what}: got {made} of {steps} steps")


def _outputs(outputs: Any, who: str) -> tuple[Tensor, ...]:
    """The tensors a forward returned, checked."""
    found = (outputs,) if isinstance(outputs, Tensor) else outputs
    if not isinstance(found, Sequence) or not found:
        raise TypeError(
            f"distill_: forward must return a tensor or several, got {type(outputs).__name__} "
            f"from the {who}"
        )
    for item in found:
        if not isinstance(item, Tensor) or not item.is_floating_point():
            got = item.dtype if isinstance(item, Tensor) else type(item).__name__
            raise TypeError(
                f"distill_: forward must return floating-point tensors, got {got} from the {who}"
            )
    return tuple(found)


def _errors(
    outputs: Sequence[Tensor], targets: Sequence[Tensor], functions: Sequence[Error] | None
) -> list[Tensor]:
    if len(outputs) != len(targets):
        raise ValueError(
            f"distill_: student must give as many outputs as the teacher ({len(targets)}), "
            f"got {len(outputs)}"
        )
    functions = functions if functions is not None else [normalized_error] * len(targets)
    if len(functions) != len(targets):
        raise ValueError(
            f"distill_: errors must have one entry per output ({len(targets)}), "
            f"got {len(functions)}"
        )
    return [f(x, y) for f, x, y in zip(functions, outputs, targets, strict=True)]


def _weighted(errors: Sequence[Tensor], weights: Sequence[float] | None) -> Tensor:
    if weights is None:
        weights = [1.0 / len(errors)] * len(errors)
    if len(weights) != len(errors):
        raise ValueError(
            f"distill_: weights must have one entry per output ({len(errors)}), got {len(weights)}"
        )
    total = errors[0] * weights[0]
    for error, weight in zip(errors[1:], weights[1:], strict=True):
        total = total + error * weight
    return total
