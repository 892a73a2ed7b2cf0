# SPDX-License-Identifier: Apache-2.0
"""Gradual magnitude pruning while a model trains."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..patterns import NM, Pattern
from .layers import Patterns, select_layers
from .masks import MaskKeeper
from .oneshot import check_fixed, prune_
from .result import PruneResult


@dataclass(frozen=True)
class GradualSchedule:
    """Sparsity as a function of the optimizer step.

    s(t) = final + (initial - final) * (1 - (t - begin_step) / (end_step - begin_step))^power,
    constant outside, from Zhu & Gupta 2017, "To prune, or not to prune", arXiv:1710.01878, eq. 1.

    Args:
        initial, final: sparsities in [0, 1], initial <= final.
        begin_step, end_step: steps at which pruning begins and reaches `final`; begin < end.
        every: steps between two updates of the masks; `end_step` is always one.
        power: 3 in the paper; 1 is linear.
    """

    initial: float
    final: float
    begin_step: int
    end_step: int
    every: int
    power: float = 3.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.initial <= self.final <= 1.0:
            raise ValueError(
                "GradualSchedule: sparsities must satisfy 0 <= initial <= final <= 1, "
                f"got {self.initial} and {self.final}"
            )
        if not 0 <= self.begin_step < self.end_step:
            raise ValueError(
                "GradualSchedule: steps must satisfy 0 <= begin_step < end_step, "
                f"got {self.begin_step} and {self.end_step}"
            )
        if self.every < 1:
            raise ValueError(f"GradualSchedule: every must be at least 1, got {self.every}")
        if not self.power > 0.0:
            raise ValueError(f"GradualSchedule: power must be positive, got {self.power}")

    def at(self, step: int) -> float:
        """Sparsity at a step."""
        if step >= self.end_step:
            return self.final
        done = max(0, step - self.begin_step) / (self.end_step - self.begin_step)
        return self.final + (self.initial - self.final) * math.pow(1.0 - done, self.power)

    def updates(self, step: int) -> bool:
        """True when masks are renewed at a step."""
        if not self.begin_step <= step <= self.end_step:
            return False
        return step == self.end_step or (step - self.begin_step) % self.every == 0


class GradualPruner:
    """Prunes by magnitude along a schedule and keeps the masks under the optimizer.

        pruner = GradualPruner(model, Unstructured(0.9), schedule, optimizer)
        for batch in data:
            loss(model, batch).backward()
            optimizer.step()
            optimizer.zero_grad()
            pruner.step()

    Weights already pruned are zero and so rank last: once pruned, always pruned. An `NM(n, m)`
    begins at m:m, dense, and keeps one fewer of every m at a time, always as many as come nearest
    to the schedule, down to n:m.

    Args:
        patterns: as in `prune_`. The largest sparsity among them must equal `schedule.final`; a
            layer with a smaller one follows the schedule scaled to end at its own.
        optimizer: gets a `MaskKeeper` (`self.keeper`).
        scope, allocation: as in `prune_` ("sensitivity" needs calibration and is not offered).

    Raises:
        ValueError: the patterns end elsewhere than the schedule; and as in `prune_`.
    """

    def __init__(
        self,
        model: nn.Module,
        patterns: Patterns,
        schedule: GradualSchedule,
        optimizer: torch.optim.Optimizer,
        *,
        scope: str = "layer",
        allocation: str = "uniform",
    ) -> None:
        if allocation not in ("uniform", "erk"):
            raise ValueError(
                f"GradualPruner: allocation must be 'uniform' or 'erk', got {allocation!r}"
            )
        layers = select_layers("GradualPruner", model, patterns)
        check_fixed("GradualPruner", layers, scope, allocation)
        target = max((layer.pattern.sparsity for layer in layers), default=schedule.final)
        if target != schedule.final:
            raise ValueError(
                f"GradualPruner: schedule.final must equal the largest sparsity of the patterns "
                f"({target}), got {schedule.final}"
            )
        self.schedule = schedule
        self.count = 0  # optimizer steps seen
        self._model = model
        self._patterns = patterns
        self._scope = scope
        self._allocation = allocation
        self._masks: dict[str, torch.Tensor] = {}
        self.keeper = MaskKeeper(model, {}).attach(optimizer)
        if schedule.updates(0):
            self._prune()

    def step(self) -> PruneResult | None:
        """Count one optimizer step; at an update step, prune further and return the result."""
        self.count += 1
        return self._prune() if self.schedule.updates(self.count) else None

    def detach(self) -> None:
        """Stop keeping the masks."""
        self.keeper.detach()

    def state_dict(self) -> dict[str, Any]:
        """The step and the masks, to resume training."""
        return {"count": self.count, "masks": dict(self._masks)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume: restores the step and applies the masks to the model."""
        self.keeper.update(state["masks"])
        self._masks = dict(state["masks"])
        self.count = int(state["count"])

    def _prune(self) -> PruneResult:
        final = self.schedule.final
        factor = self.schedule.at(self.count) / final if final else 0.0
        result = prune_(
            self._model,
            _scaled(self._patterns, factor),
            scope=self._scope,
            allocation=self._allocation,
        )
        self.keeper.update(result.masks)
        self._masks = result.masks
        return result


def _scaled(patterns: Patterns, factor: float) -> Patterns:
    """The patterns at a share of their sparsities; None where an `NM` still keeps all."""
    if isinstance(patterns, Pattern):
        patterns = {"*": patterns}
    return {
        glob: None if pattern is None else _part(pattern, factor)
        for glob, pattern in patterns.items()
    }


def _part(pattern: Pattern, factor: float) -> Pattern | None:
    sparsity = pattern.sparsity * factor
    if not isinstance(pattern, NM):
        return pattern.with_sparsity(sparsity)
    pruned = round(sparsity * pattern.m)
    return NM(pattern.m - pruned, pattern.m) if pruned else None
