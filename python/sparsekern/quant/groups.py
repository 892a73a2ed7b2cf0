# SPDX-License-Identifier: Apache-2.0
"""Groups of consecutive weights of a row: what they are worth, and which are kept."""

from __future__ import annotations

import torch
from torch import Tensor

from ..gqs import grouped
from ..patterns import keep_largest
from ..prune.scores import obs_saliency

SALIENCIES = ("magnitude", "wanda", "hessian", "block")


def group_saliency(
    weight: Tensor,
    kind: str,
    group: int,
    *,
    column_norms: Tensor | None = None,
    inverse: Tensor | None = None,
) -> Tensor:
    """What removing each group costs, [out, groups]; a short last group has fewer terms.

    "magnitude", sum of w_j^2. "wanda", sum of (|w_j| ||X_j||_2)^2: Wanda's score (Sun et al. 2024,
    arXiv:2306.11695, eq. 1) squared, so that a sum is the output error if inputs are uncorrelated.
    "hessian", sum of w_j^2 / [H^-1]_jj: the cost of each weight by the optimal brain surgeon
    (Hassibi & Stork 1993) summed over the group, as GQSA does (arXiv:2412.17560). "block",
    w^T ([H^-1] restricted to the group)^-1 w: the same for all weights of the group at once, with
    the optimal update of the rest (Kurtic et al. 2022, "The Optimal BERT Surgeon",
    arXiv:2203.07259, eq. 5).

    Args:
        weight: [out, in], finite.
        kind: one of the four.
        group: weights in a group.
        column_norms: ||X_j||_2, [in], for "wanda".
        inverse: (X^T X + damping)^-1, [in, in], for "hessian" and "block".
    """
    if kind == "magnitude":
        return grouped(weight.square(), group).sum(dim=-1)
    if kind == "wanda":
        assert column_norms is not None
        return grouped((weight * column_norms).square(), group).sum(dim=-1)
    assert inverse is not None
    if kind == "hessian":
        return grouped(obs_saliency(weight, inverse.diagonal()), group).sum(dim=-1)
    costs = []
    for begin in range(0, weight.shape[1], group):
        end = min(begin + group, weight.shape[1])
        part = weight[:, begin:end].to(inverse.dtype)
        factor = torch.linalg.cholesky(inverse[begin:end, begin:end])
        solved = torch.linalg.solve_triangular(factor, part.t(), upper=False)
        costs.append(solved.square().sum(dim=0))
    return torch.stack(costs, dim=1).to(weight.dtype) if costs else weight.new_zeros(len(weight), 0)


def keep_groups(saliency: Tensor, sparsity: float, scope: str) -> Tensor:
    """Mask of the groups that stay, bool [out, groups]: exact counts, ties keep the lower index.

    `scope` "row" prunes `round(sparsity * groups)` of every row, "layer" as many of the matrix.
    """
    per_row = scope == "row"
    count = round(sparsity * (saliency.shape[1] if per_row else saliency.numel()))
    return keep_largest(saliency, count, per_row=per_row)
