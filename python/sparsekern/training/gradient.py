# SPDX-License-Identifier: Apache-2.0
"""What of G, the gradient of the forward weight, reaches the master weight W.

k is the mask, beta the share of the weights outside it that the forward pass keeps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["SRSTE", "ChainRule", "GradientRule", "Masked", "StraightThrough"]


class GradientRule:
    """Base of the rules. `decay` is the factor of (1 - k) W that the gradient gets besides."""

    decay: float = 0.0

    def connect(self, w: Tensor, effective: Tensor, mask: Tensor) -> Tensor:
        """`effective`, connected to w so that backward follows the rule.

        Args:
            w: the master weight.
            effective: the forward weight, computed from w under autograd; or w itself where it is
                the product that applies the mask.
            mask: bool, the shape of w.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class StraightThrough(GradientRule):
    """G: the mask counts as the identity (Bengio et al. 2013, arXiv:1308.3432)."""

    def connect(self, w: Tensor, effective: Tensor, mask: Tensor) -> Tensor:
        """G, whatever the forward weight."""
        if effective is w:
            return w
        connected: Tensor = _Straight.apply(w, effective)  # type: ignore[no-untyped-call]
        return connected


@dataclass(frozen=True)
class SRSTE(StraightThrough):
    """G + decay (1 - k) W: straight through, and pruned weights shrink.

    Zhou et al. 2021, "Learning N:M Fine-grained Structured Sparse Neural Networks From Scratch",
    arXiv:2102.04010, eq. 9. The term is part of the gradient, so it enters the optimizer's moments.
    `Training.attach` adds it right before the optimizer's step: once, however many backward passes
    the gradient is the sum of, and after it was clipped.

    Args:
        decay: lambda, 2e-4 in the paper; not negative. It needs tuning.

    Raises:
        ValueError: a decay that is negative or not finite.
    """

    decay: float = 2e-4

    def __post_init__(self) -> None:
        if not (math.isfinite(self.decay) and self.decay >= 0):
            raise ValueError(f"SRSTE: decay must be >= 0, got {self.decay}")


@dataclass(frozen=True)
class ChainRule(GradientRule):
    """G * (k + (1 - k) beta): the true derivative of `Decaying`; of `Hard`, G * k.

    The gradient flow that Bambhaniya et al. 2024, arXiv:2402.04744, restrict progressively.
    """

    def connect(self, w: Tensor, effective: Tensor, mask: Tensor) -> Tensor:
        """What autograd gives."""
        return _masked(w, mask) if effective is w else effective


@dataclass(frozen=True)
class Masked(GradientRule):
    """G * k: pruned weights get no gradient.

    For a mask that is fixed: Mishra et al. 2021 (ASP), arXiv:2104.08378; Mozaffari et al. 2024
    (SLoPe), arXiv:2405.15913. Optimizer state that weights had before, and weight decay, still move
    pruned weights; they do not count in the forward pass.
    """

    def connect(self, w: Tensor, effective: Tensor, mask: Tensor) -> Tensor:
        """G * k."""
        if effective is not w:
            effective = _Straight.apply(w, effective)  # type: ignore[no-untyped-call]
        return _masked(effective, mask)


class _Straight(torch.autograd.Function):
    """`effective` forward, G to w backward."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, effective: Tensor) -> Tensor:
        return effective.detach().clone() if effective is w else effective.view_as(effective)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class _MaskedGradient(torch.autograd.Function):
    """`w` forward, G * k backward."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, mask: Tensor) -> Tensor:
        ctx.save_for_backward(mask)
        return w.view_as(w)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (mask,) = ctx.saved_tensors
        return torch.where(mask, grads[0], 0.0), None


def _masked(w: Tensor, mask: Tensor) -> Tensor:
    connected: Tensor = _MaskedGradient.apply(w, mask)  # type: ignore[no-untyped-call]
    return connected
