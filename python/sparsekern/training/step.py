# SPDX-License-Identifier: Apache-2.0
"""STEP: Adam whose variances are learned densely, then frozen while the mask is learned.

    optimizer = StepAdam(model.parameters(), lr=1e-3)
    training = None
    for x, targets in data:
        loss(model(x), targets).backward()
        optimizer.step()
        optimizer.zero_grad()
        if training is None and optimizer.settled(at_least=len(data) // 10, at_most=len(data) // 2):
            optimizer.freeze()
            training = prepare_(model, NM(2, 4), Recipe(gradient=SRSTE())).attach(optimizer)
    finish_(model)

Lu et al. 2023, "STEP: Learning N:M Structured Sparsity Masks from Scratch with Precondition",
arXiv:2302.01172. Gradients of masked weights are noisy, and Adam's estimate of their variance
follows the noise; so the estimate of a dense phase is kept as a preconditioner.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

__all__ = ["StepAdam"]


class StepAdam(torch.optim.Optimizer):
    """Adam up to `freeze`; from then on its second moment stays as it is.

    With g the gradient, t = 1, 2, ... and s the steps before `freeze`:

        m = beta1 m + (1 - beta1) g
        v = beta2 v + (1 - beta2) g^2                      up to step s
        W -= lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^min(t, s))) + e)
        e = eps up to step s, then eps^(3/4)

    `settled` is the paper's AutoSwitch: Z_t, the mean of |v_t - v_{t-1}| over all weights, averaged
    over the last floor(1 / (1 - beta2)) steps, is below eps.

    Where the paper leaves a choice, this is how it is read here: v is corrected for its beginning,
    with the s at which it stopped, and e is added to the root, as torch's Adam does. e grows at the
    switch because v no longer can: a weight that had hardly a gradient before it would be divided
    by 1e-8, and small convolution nets diverged. By 1e-6 they learn, but steps of weights without
    any gradient before the switch are still large: put such (rows of an embedding that the dense
    phase may not meet) into a group with ``"freeze": False``, which goes on as Adam.

    Args:
        params: Parameters, or groups as of every optimizer, perhaps with `freeze`.
        lr: rate.
        betas: of the moments.
        eps: see above; also the threshold of `settled`.
        freeze_at: steps, at least 1, after which `freeze` happens by itself (later, if none of them
            found a gradient); None: when it is called.

    Raises:
        ValueError: a value out of range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        freeze_at: int | None = None,
    ) -> None:
        for name, value in (("lr", lr), ("eps", eps)):
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"StepAdam: {name} must be >= 0, got {value}")
        if not all(0.0 <= beta < 1.0 for beta in betas):
            raise ValueError(f"StepAdam: betas must be in [0, 1), got {betas}")
        _check_steps("freeze_at", freeze_at, least=1)
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "freeze": True,
            "freeze_at": freeze_at,
            # Of the optimizer, not of a group; but these are what a state dict keeps.
            "frozen": False,
            "steps": 0,
            "changes": (),
        }
        super().__init__(params, defaults)

    @property
    def frozen(self) -> bool:
        """Whether the second moments stay as they are."""
        return bool(self.param_groups[0]["frozen"])

    def freeze(self) -> None:
        """Keep the second moments from now on.

        Raises:
            RuntimeError: there are none yet, or they are kept already.
        """
        if not self.state or self.frozen:
            got = "a second call" if self.frozen else "no step"
            raise RuntimeError(f"StepAdam.freeze: must be called once, after a step, got {got}")
        for group in self.param_groups:
            group["frozen"], group["changes"] = True, ()

    def settled(self, at_least: int = 0, at_most: int | None = None) -> bool:
        """Whether it is time to freeze.

        Args:
            at_least: not before so many steps (T_min of the paper).
            at_most: after so many steps in any case (T_max); None: never in any case.

        Raises:
            ValueError: numbers of steps that are none, or contradict each other.
        """
        _check_steps("at_least", at_least)
        _check_steps("at_most", at_most)
        if at_most is not None and at_most < at_least:
            raise ValueError(
                f"StepAdam.settled: at_most must be at least at_least ({at_least}), got {at_most}"
            )
        group = self.param_groups[0]
        if group["steps"] < max(1, at_least):
            return False
        if at_most is not None and group["steps"] >= at_most:
            return True
        changes = group["changes"]
        return len(changes) == _window(group) and sum(changes) / len(changes) < group["eps"]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; returns what the closure does."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        changed, count = torch.zeros((), dtype=torch.float64), 0
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    change = self._update(weight, group)
                    if change is not None:
                        changed += change.abs().sum(dtype=torch.float64).cpu()
                        count += change.numel()
        first = self.param_groups[0]
        first["steps"] += 1
        if self.frozen:
            return loss
        if count:
            kept = (*first["changes"], float(changed) / count)
            first["changes"] = kept[-_window(first) :]
        # Not before there is a second moment to keep.
        if first["freeze_at"] is not None and first["steps"] >= first["freeze_at"] and self.state:
            self.freeze()
        return loss

    def _update(self, weight: Tensor, group: dict[str, Any]) -> Tensor | None:
        """Move a weight; answers how its second moment changed, or None where that is frozen."""
        state, gradient = self.state[weight], weight.grad
        assert gradient is not None
        if not state:
            state["step"] = state["seen"] = 0  # steps, and those that exp_avg_sq is made of
            state["exp_avg"] = torch.zeros_like(weight)
            state["exp_avg_sq"] = torch.zeros_like(weight)
        first, second = group["betas"]
        state["step"] += 1
        moment = state["exp_avg"].lerp_(gradient, 1.0 - first)
        square, change = state["exp_avg_sq"], None
        frozen = group["frozen"] and group["freeze"]
        # One without any gradient before the switch takes its first.
        if not frozen or state["seen"] == 0:
            change = (gradient * gradient).sub_(square).mul_(1.0 - second)
            square.add_(change)
            state["seen"] += 1
        least = group["eps"] ** 0.75 if frozen else group["eps"]
        root = (square / (1.0 - second ** state["seen"])).sqrt_().add_(least)
        weight.addcdiv_(moment, root, value=-group["lr"] / (1.0 - first ** state["step"]))
        return change


def _window(group: dict[str, Any]) -> int:
    """Steps that `settled` looks at: floor(1 / (1 - beta2)), less what rounding takes from it."""
    beta: float = group["betas"][1]
    return max(1, math.floor(1.0 / (1.0 - beta) + 1e-6))


def _check_steps(name: str, steps: object, least: int = 0) -> None:
    if steps is None:
        return
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < least:
        raise ValueError(
            f"StepAdam: {name} must be a number of steps, at least {least}, got {steps!r}"
        )
