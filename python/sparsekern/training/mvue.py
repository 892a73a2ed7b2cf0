# SPDX-License-Identifier: Apache-2.0
"""Unbiased random N:M pruning, for the gradient of a layer's output."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from sparsekern._nm_mask import check_float, nm_mask

__all__ = ["MVUE", "mvue"]


@dataclass(frozen=True)
class MVUE:
    """Prune the output gradient at random, without bias, before it is multiplied with x for dW.

    dW = MVUE(dY^T) X, groups running along the rows of dY (tokens): Hu et al. 2024, "Accelerating
    Transformer Pre-training with 2:4 Sparsity", arXiv:2404.01847, eq. 6; `mvue` says how. The
    product itself is dense: random zeros change in every step and are not worth packing here.

    Args:
        n: 1 or 2 to keep ...
        m: ... of each group of m: 2, 4, 8, 16 or 32; n < m.
        generator: of the random numbers, on the device of the gradients; None takes torch's. A
            generator of one's own is not for torch.compile.

    Raises:
        ValueError: another n or m.
    """

    n: int = 2
    m: int = 4
    generator: torch.Generator | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        _check("MVUE", self.n, self.m)

    def __call__(self, a: Tensor, dim: int) -> Tensor:
        """`mvue` of a."""
        return mvue(a, self.n, self.m, dim, generator=self.generator)


def _check(operator: str, n: int, m: int) -> None:
    if m not in (2, 4, 8, 16, 32) or n not in (1, 2) or n >= m:
        raise ValueError(
            f"{operator}: n:m must be 1 or 2 of 2, 4, 8, 16 or 32, and n < m, got {n}:{m}"
        )


def mvue(
    a: Tensor, n: int = 2, m: int = 4, dim: int = -1, *, generator: torch.Generator | None = None
) -> Tensor:
    """Keep n of every m at random and scale them so that the mean is `a`.

    n entries are drawn one after the other without replacement, with probabilities in proportion
    to |a|, and divided by the probability p with which they come to be kept. With t = |a| / sum|a|,
    p_i = t_i for n = 1, which has the least variance of all unbiased estimators (Chmiel et al.
    2022, "Minimum Variance Unbiased N:M Sparsity for the Neural Gradients", arXiv:2203.10991), and
    p_i = t_i + |a_i| sum over j != i of t_j / (sum|a| - |a_j|) for n = 2, its approximation there.

    Args:
        a: any shape with at least one dimension, float32, bfloat16 or float16; finite. Computed in
            float32.
        n: 1 or 2 to keep ...
        m: ... of each group of m: 2, 4, 8, 16 or 32; n < m.
        dim: the dimension that groups run along; a short last group keeps at most n.
        generator: of the random numbers; None takes torch's.

    Returns:
        The shape and dtype of a; zero but for n of every m.

    Raises:
        TypeError: a is not a floating-point tensor.
        ValueError: n or m that it is not defined for.
    """
    check_float("mvue", "a", a)
    _check("mvue", n, m)
    moved = a.detach().movedim(dim, -1).float()
    length = moved.shape[-1]
    padded = torch.nn.functional.pad(moved, (0, -length % m))
    groups = padded.reshape(*padded.shape[:-1], padded.shape[-1] // m, m)
    # In units of the group's largest: nothing overflows, and what is denormal becomes 0.
    largest = groups.abs().amax(-1, keepdim=True)
    share = groups.abs() / torch.where(largest > 0, largest, 1.0)
    kept_with = _inclusion(share, n)
    # The first n of a race of exponential clocks are such a drawing (Plackett-Luce).
    clock = torch.empty_like(share).exponential_(generator=generator)
    chosen = nm_mask(share, n, m, score=share / clock.clamp_min(torch.finfo(clock.dtype).tiny))
    chosen &= kept_with > 0
    scaled = groups / torch.where(chosen, kept_with, 1.0)
    pruned = torch.where(chosen, scaled, 0.0).flatten(-2)[..., :length]
    return pruned.movedim(-1, dim).to(a.dtype)


def _inclusion(share: Tensor, n: int) -> Tensor:
    """Probability of each entry of a group to be kept; 0 for a zero. `share` [..., m], >= 0."""
    total = share.sum(-1, keepdim=True)
    first = share / torch.where(total > 0, total, 1.0)
    if n == 1:
        return first
    # Sums of the others, not total - share: that would lose them beside one large entry.
    m = share.shape[-1]
    others = share @ (1.0 - torch.eye(m, dtype=share.dtype, device=share.device))
    given = torch.where(others > 0, first / torch.where(others > 0, others, 1.0), 0.0)
    rest = given @ (1.0 - torch.eye(m, dtype=share.dtype, device=share.device))
    return first + share * rest
