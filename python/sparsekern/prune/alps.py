# SPDX-License-Identifier: Apache-2.0
"""ALPS: find the mask and the kept weights together, as one least-squares problem.

Meng et al. 2024, "ALPS: Improved Optimization for Highly Sparse One-Shot Pruning for Large Language
Models", arXiv:2406.07831. ||X W^T - X W0^T||^2 is minimized over the weights that a pattern allows:
ADMM with a rising penalty settles the mask, then conjugate gradients fit the kept weights to it.
All in units in which each input has norm 1, so that magnitudes compare across columns and the
gradients are preconditioned by the diagonal.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..patterns import Pattern
from .scores import keep_nonfinite
from .sparsegpt import damped

_FIRST_PENALTY = 0.1
_PERIOD = 3  # iterations between two updates of the penalty
# Share of the kept weights that changed since the last update, and the factor from there on.
_FACTORS = ((0.1, 1.3), (0.005, 1.2), (0.0, 1.1))
_MOST_ITERATIONS = 300
_GRADIENT_STEPS = 10


def alps(
    weight: Tensor, gram: Tensor, damping: float, pattern: Pattern, scope: str
) -> tuple[Tensor, Tensor]:
    """Prune one matrix and fit what is kept.

    No factorization can fail: a Hessian that is not positive definite is taken as positive
    semidefinite. Weights of inputs that were always zero are pruned first and never fitted.

    Args:
        weight: [out, in], float32 or float64.
        gram: X^T X, [in, in].
        damping: share of its mean diagonal that is added to the diagonal.
        pattern: what shares a mask, and the sparsity.
        scope: "layer" or "row".

    Returns:
        The new weight [out, in] (pruned entries 0) and its mask (bool, True = kept).
    """
    broken = ~weight.isfinite()
    dead = gram.diagonal() <= 0.0
    dead = dead & ~dead.all()  # no input at all: every column is equal
    hessian = damped(gram, damping)
    scale = hessian.diagonal().clamp_min(0.0).sqrt()
    scale = scale.masked_fill(scale == 0.0, 1.0)
    unit = hessian / scale / scale[:, None]
    eigenvalues, vectors = torch.linalg.eigh(unit)
    eigenvalues = eigenvalues.clamp_min(0.0)
    dtype = weight.dtype
    scale, unit = scale.to(dtype), unit.to(dtype)
    # A weight of a dead input costs nothing; with NaN and infinity the rest could not be fitted.
    start = (weight * scale).masked_fill(broken | dead, 0.0)
    target = start @ unit
    sparse, mask = _support(
        start, target, eigenvalues.to(dtype), vectors.to(dtype), broken, pattern, scope
    )
    fitted = _fit(sparse, target, unit, mask) / scale
    mask = keep_nonfinite(weight, mask, pattern)
    new = torch.where(broken | dead, weight, fitted)
    return new.masked_fill(~mask, 0.0), mask


def refit(weight: Tensor, gram: Tensor, damping: float, mask: Tensor) -> Tensor:
    """What is kept, fitted to the outputs that the whole weight gives, by conjugate gradients.

    The second half of `alps`, for a mask from elsewhere: per row, least ||X w - X w_0||^2 over the
    weights that the mask keeps. Weights of inputs that were always zero stay as they are.

    Args:
        weight: [out, in], finite, float32 or float64.
        gram: X^T X, [in, in].
        damping: share of its mean diagonal that is added to the diagonal.
        mask: bool [out, in], True = kept.

    Returns:
        The new weight [out, in], pruned entries 0.
    """
    hessian = damped(gram, damping)
    scale = hessian.diagonal().clamp_min(0.0).sqrt()
    scale = scale.masked_fill(scale == 0.0, 1.0)
    unit = (hessian / scale / scale[:, None]).to(weight.dtype)
    scale = scale.to(weight.dtype)
    dead = gram.diagonal() <= 0.0
    start = (weight * scale).masked_fill(dead, 0.0)
    fitted = _fit(start.masked_fill(~mask, 0.0), start @ unit, unit, mask & ~dead) / scale
    return torch.where(dead, weight, fitted).masked_fill(~mask, 0.0)


def _support(
    start: Tensor,
    target: Tensor,
    eigenvalues: Tensor,
    vectors: Tensor,
    broken: Tensor,
    pattern: Pattern,
    scope: str,
) -> tuple[Tensor, Tensor]:
    """ADMM until the mask has settled: D and its mask, [out, in].

    B = (H W0 - V + rho D) (H + rho I)^-1, D = the projection of B + V / rho on the pattern,
    V += rho (B - D), of weights as rows [out, in]; H = vectors diag(eigenvalues) vectors^T.
    """
    penalty = _FIRST_PENALTY
    sparse, dual = start, torch.zeros_like(start)
    mask = torch.ones_like(broken)
    before = mask
    for iteration in range(1, _MOST_ITERATIONS + 1):
        solved = (target - dual + penalty * sparse) @ vectors
        free = (solved / (eigenvalues + penalty)) @ vectors.t()
        shifted = free + dual / penalty
        mask = _largest(shifted, broken, pattern, scope)
        sparse = shifted.masked_fill(~mask, 0.0)
        dual = dual + penalty * (free - sparse)
        if iteration % _PERIOD == 0:
            # The first update compares with everything kept, as the paper begins with D = W0.
            changed = int((mask != before).sum()) / max(int(mask.sum()), 1)
            if changed == 0.0:
                break
            penalty *= next(factor for least, factor in _FACTORS if changed > least)
            before = mask
    return sparse, mask


def _largest(value: Tensor, broken: Tensor, pattern: Pattern, scope: str) -> Tensor:
    """The mask of the nearest matrix that the pattern allows."""
    # Rows that share a mask are judged by their squared norm; one row alone by magnitude, which
    # ranks the same and cannot underflow.
    score = value.abs() if pattern.group_rows == 1 else value.square()
    return pattern.mask(score.masked_fill(broken, torch.inf), scope)


def _fit(weight: Tensor, target: Tensor, hessian: Tensor, mask: Tensor) -> Tensor:
    """Conjugate gradients for (W H)_kept = target_kept, each row its own system, [out, in]."""
    residual = (target - weight @ hessian).masked_fill(~mask, 0.0)
    direction = residual
    norm = residual.square().sum(dim=1, keepdim=True)
    for _ in range(_GRADIENT_STEPS):
        image = (direction @ hessian).masked_fill(~mask, 0.0)
        curvature = (direction * image).sum(dim=1, keepdim=True)
        # A row that is solved, or whose direction costs nothing, stays where it is.
        step = torch.where(curvature > 0.0, norm / curvature, 0.0)
        weight = weight + step * direction
        residual = residual - step * image
        following = residual.square().sum(dim=1, keepdim=True)
        direction = residual + torch.where(norm > 0.0, following / norm, 0.0) * direction
        norm = following
    return weight
