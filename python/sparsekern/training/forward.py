# SPDX-License-Identifier: Apache-2.0
"""What the forward pass multiplies with instead of the dense weight W.

Each piece is a frozen value with two methods: `beta(step)`, which share of a weight outside the
mask remains, and `effective(w, mask, dim, m, beta, scale)`, the weight that is multiplied. k is the
mask of the n largest magnitudes in each group of m.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Decaying", "Forward", "Hard", "SoftThreshold"]


class Forward:
    """Base of the pieces that make the forward weight."""

    def beta(self, step: int) -> float:
        """Share of the weights outside the mask that remains at a step: 0 is N:M."""
        raise NotImplementedError

    def effective(
        self, w: Tensor, mask: Tensor, dim: int, m: int, beta: Tensor, scale: Tensor | None
    ) -> Tensor:
        """The forward weight.

        Args:
            w: the master weight, any shape.
            mask: bool, the shape of w.
            dim: axis of the mask's groups.
            m: their size.
            beta: float32, no dimensions: `beta(step)`.
            scale: float32, no dimensions: of `SoftThreshold`, else None.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Hard(Forward):
    """W * k: what is outside the mask counts as 0 (Zhou et al. 2021, arXiv:2102.04010, eq. 1)."""

    def beta(self, step: int) -> float:
        """Nothing remains."""
        return 0.0

    def effective(
        self, w: Tensor, mask: Tensor, dim: int, m: int, beta: Tensor, scale: Tensor | None
    ) -> Tensor:
        """W * k."""
        return torch.where(mask, w, 0.0)


@dataclass(frozen=True)
class Decaying(Forward):
    """W * (k + (1 - k) beta_t): weights outside the mask fade away.

    Kao et al. 2022, "Training Recipe for N:M Structured Sparsity with Decaying Pruning Mask",
    arXiv:2209.07617 (MdGf), and Bambhaniya et al. 2024, "Progressive Gradient Flow for Robust N:M
    Sparsity Training in Transformers", arXiv:2402.04744. beta_t is 1 before step `begin`, then
    max(0, 1 - rate t) or exp(-rate t), t = step - begin, and 0 from step `end` on.

    Args:
        rate: c, positive. Linear reaches 0 at begin + 1 / rate.
        begin: first step at which weights fade; the forward pass is dense before.
        end: first step of the hard mask: the steps of the run less the last f. None: never for
            exponential; where it reaches 0 for linear.
        kind: "exponential" or "linear".

    Raises:
        ValueError: a rate that is not positive, end < begin, an unknown kind.
    """

    rate: float
    begin: int = 0
    end: int | None = None
    kind: str = "exponential"

    def __post_init__(self) -> None:
        if self.kind not in ("exponential", "linear"):
            raise ValueError(f"Decaying: kind must be 'exponential' or 'linear', got {self.kind!r}")
        if not (math.isfinite(self.rate) and self.rate > 0):
            raise ValueError(f"Decaying: rate must be positive, got {self.rate}")
        if self.begin < 0 or (self.end is not None and self.end < self.begin):
            raise ValueError(
                f"Decaying: steps must satisfy 0 <= begin <= end, got {self.begin} and {self.end}"
            )

    def beta(self, step: int) -> float:
        """beta_t."""
        if self.end is not None and step >= self.end:
            return 0.0
        t = max(0, step - self.begin)
        if self.kind == "linear":
            return max(0.0, 1.0 - self.rate * t)
        return math.exp(-self.rate * t)

    def effective(
        self, w: Tensor, mask: Tensor, dim: int, m: int, beta: Tensor, scale: Tensor | None
    ) -> Tensor:
        """W * (k + (1 - k) beta)."""
        return torch.where(mask, w, w * beta.to(w.dtype))


@dataclass(frozen=True)
class SoftThreshold(Forward):
    """beta sign(w) max(|w| - tau, 0): continuous in W, also where the mask changes.

    Hu et al. 2024, "S-STE: Continuous Pruning Function for Efficient 2:4 Sparse Pre-training",
    arXiv:2409.09099. tau is the (M-N)-th smallest magnitude of the group, that is the largest one
    outside the mask (0 in a group that keeps all); beta = <W, S> / <S, S> makes up for the
    shrinking and is computed once, with the first mask; 1 where S is all zero.
    """

    def beta(self, step: int) -> float:
        """Nothing remains outside the mask."""
        return 0.0

    def effective(
        self, w: Tensor, mask: Tensor, dim: int, m: int, beta: Tensor, scale: Tensor | None
    ) -> Tensor:
        """Beta S(W)."""
        shrunk = soft_threshold(w, mask, dim, m)
        return shrunk if scale is None else shrunk * scale.to(w.dtype)


def soft_threshold(w: Tensor, mask: Tensor, dim: int, m: int) -> Tensor:
    """S(W): sign(w) max(|w| - tau, 0) where `mask` is set, 0 elsewhere; see `SoftThreshold`."""
    magnitude = w.abs()
    dropped = torch.where(mask, 0.0, magnitude).movedim(dim, -1)
    length = dropped.shape[-1]
    padded = torch.nn.functional.pad(dropped, (0, -length % m))
    groups = padded.reshape(*padded.shape[:-1], padded.shape[-1] // m, m)
    tau = groups.amax(-1, keepdim=True).expand(groups.shape).flatten(-2)[..., :length]
    less = (magnitude - tau.movedim(-1, dim)).clamp_min(0.0)
    return torch.where(mask, w.sign() * less, 0.0)


def soft_scale(w: Tensor, mask: Tensor, dim: int, m: int) -> Tensor:
    """Beta of `SoftThreshold`: <W, S> / <S, S>, float32, no dimensions; 1 for 0 / 0."""
    w = w.detach().double()
    shrunk = soft_threshold(w, mask, dim, m)
    square = (shrunk * shrunk).sum()
    ratio = (w * shrunk).sum() / torch.where(square > 0, square, 1.0)
    return torch.where(square > 0, ratio, 1.0).float()
