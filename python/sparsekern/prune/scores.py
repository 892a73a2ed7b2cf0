# SPDX-License-Identifier: Apache-2.0
"""Scores of weights: how much is lost when one is set to zero."""

from __future__ import annotations

import torch
from torch import Tensor

from ..patterns import Pattern


def magnitude(weight: Tensor) -> Tensor:
    """|W|, [out, in] (Zhu & Gupta 2017, "To prune, or not to prune", arXiv:1710.01878)."""
    return weight.abs()


def wanda(weight: Tensor, column_norms: Tensor) -> Tensor:
    """|W_ij| * ||X_j||_2, [out, in], from weight [out, in] and norms [in].

    Sun et al. 2024, "A Simple and Effective Pruning Approach for Large Language Models",
    arXiv:2306.11695, eq. 1. The paper compares within a row.
    """
    return weight.abs() * column_norms


def ria(weight: Tensor, column_norms: Tensor) -> Tensor:
    """(|W_ij| / sum_i |W_ij| + |W_ij| / sum_j |W_ij|) * ||X_j||_2^0.5, [out, in].

    Zhang et al. 2024, "Plug-and-Play: An Efficient Post-training Pruning Method for Large Language
    Models", ICLR (with their a = 0.5): a weight counts by its share of its column and row, so
    that no channel loses all. From weight [out, in] and norms [in]. A row or column of zeros
    scores 0, and what is NaN or infinite is left out of the sums.
    """
    size = weight.abs()
    finite = size.masked_fill(~weight.isfinite(), 0.0)
    share = torch.zeros_like(size)
    for dim in (0, 1):
        total = finite.sum(dim=dim, keepdim=True)
        share += size / total.masked_fill(total == 0.0, 1.0)
    return share * column_norms.sqrt()


def obs_saliency(weight: Tensor, inverse_diagonal: Tensor) -> Tensor:
    """w_ij^2 / [H^-1]_jj, [out, in]: the output error of removing one weight.

    That is, after the optimal update of the others in its row; weight [out, in], diagonal [in]
    (Frantar & Alistarh 2023, "SparseGPT", arXiv:2301.00774, eq. 3). Up
    to the factor 2 of their H = 2 X^T X, which changes no ranking.
    """
    return weight.square() / inverse_diagonal.to(weight.dtype)


def protect_nonfinite(weight: Tensor, score: Tensor) -> Tensor:
    """The score with +inf where the weight is NaN or infinite."""
    return score.masked_fill(~weight.isfinite(), torch.inf)


def keep_nonfinite(weight: Tensor, mask: Tensor, pattern: Pattern) -> Tensor:
    """The mask with every unit that holds a NaN or infinite weight kept, whatever the counts."""
    broken = ~weight.isfinite()
    if not bool(broken.any()):
        return mask
    return mask | pattern.expand(pattern.unit_scores(broken.float()) > 0, weight.shape[0])
