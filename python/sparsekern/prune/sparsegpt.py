# SPDX-License-Identifier: Apache-2.0
"""SparseGPT: prune column by column and let the kept weights absorb the error.

Frantar & Alistarh 2023, "SparseGPT: Massive Language Models Can Be Accurately Pruned in
One-Shot", arXiv:2301.00774, algorithm 1. With H = X^T X + damping and U the upper Cholesky factor
of H^-1 (H^-1 = U^T U), U[j, j:] holds the row of the inverse Hessian of the columns not yet
visited, scaled by U[j, j]. Pruning w_j therefore costs (w_j / U[j, j])^2 and is compensated by
w_{j:} -= (w_j / U[j, j]) * U[j, j:].
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..patterns import Pattern, keep_largest
from .scores import keep_nonfinite, protect_nonfinite


def damped(gram: Tensor, damping: float) -> Tensor:
    """X^T X plus `damping` times its mean diagonal on the diagonal, [in, in], float64.

    An input column that was always zero gets a small curvature, so its weights are pruned first.
    """
    hessian = gram.double()
    mean = float(hessian.diagonal().mean()) if hessian.numel() else 0.0
    shift = damping * mean if mean > 0.0 else 1.0  # no input at all: every column is equal
    return hessian + shift * torch.eye(hessian.shape[0], dtype=torch.float64, device=gram.device)


def inverse_hessian(gram: Tensor, damping: float, name: str, operator: str = "prune_") -> Tensor:
    """(X^T X + damping)^-1, [in, in], float64.

    Raises:
        ValueError: the damped matrix is not positive definite (naming the layer).
    """
    factor, info = torch.linalg.cholesky_ex(damped(gram, damping))
    if int(info) != 0:
        raise ValueError(
            f"{operator}: damping must make the Hessian of {name!r} positive definite, "
            f"got {damping}"
        )
    inverse: Tensor = torch.cholesky_inverse(factor)
    return inverse


def inverse_factor(gram: Tensor, damping: float, name: str, operator: str = "prune_") -> Tensor:
    """U, upper triangular, with U^T U = (X^T X + damping)^-1; [in, in], float64."""
    factor, info = torch.linalg.cholesky_ex(
        inverse_hessian(gram, damping, name, operator), upper=True
    )
    if int(info) != 0:
        raise ValueError(
            f"{operator}: damping must make the Hessian of {name!r} positive definite, "
            f"got {damping}"
        )
    upper: Tensor = factor
    return upper


def sparsegpt(
    weight: Tensor, factor: Tensor, pattern: Pattern, scope: str, blocksize: int
) -> tuple[Tensor, Tensor]:
    """Prune one matrix and update what is kept.

    The mask is chosen for `blocksize` columns at a time, from the weights as updated so far, over
    all rows ("layer", as in the paper) or within each ("row"). Counts are exact: each block takes
    its share of the running total. `Block` patterns average the cost over their rows; the update
    needs no change, since H is common to all rows. `NM` patterns choose at every m-th column, for
    the m columns from there on (section 3.4 of the paper): in each row the m - n of least
    (w_j / U[j, j])^2 are pruned, by the weights as updated up to that column.

    Args:
        weight: [out, in], float32 or float64.
        factor: U from `inverse_factor`, [in, in].
        pattern: what shares a mask, and the sparsity.
        scope: "layer" or "row".
        blocksize: columns per mask decision, at least 1; with `NM`, columns per update of those
            behind, rounded down to whole groups (one at least).

    Returns:
        The new weight [out, in] (pruned entries 0) and its mask (bool, True = kept).
    """
    rows, columns = weight.shape
    work = weight.t().contiguous()  # [in, out]: a column's update then writes whole rows
    keep = torch.ones_like(work, dtype=torch.bool)
    upper = factor.to(weight.dtype)
    per_row = scope == "row"
    unit_rows = 1 if per_row else -(-rows // pattern.group_rows)
    rate = pattern.sparsity * unit_rows
    group = pattern.group_columns
    if group is not None:
        blocksize = max(group, blocksize - blocksize % group)
    for begin in range(0, columns, blocksize):
        end = min(begin + blocksize, columns)
        block = work[begin:end]
        local = upper[begin:end, begin:end]
        if group is None:
            old = block.t()
            score = protect_nonfinite(old, (old / local.diagonal()).square())
            count = round(rate * end) - round(rate * begin)
            chosen = keep_largest(pattern.unit_scores(score), count, per_row=per_row)
            mask = keep_nonfinite(old, pattern.expand(chosen, rows), pattern).t()
        else:
            mask = torch.ones_like(block, dtype=torch.bool)
        errors = torch.zeros_like(block)
        for j in range(end - begin):
            if group is not None and j % group == 0:
                old = block[j : j + group].t()
                score = (old / local.diagonal()[j : j + group]).square()
                chosen = pattern.mask(protect_nonfinite(old, score))
                mask[j : j + group] = keep_nonfinite(old, chosen, pattern).t()
            error = (block[j] / local[j, j]).masked_fill(mask[j], 0.0)
            errors[j] = error
            block[j + 1 :].addr_(local[j, j + 1 :], error, alpha=-1.0)
        block.masked_fill_(~mask, 0.0)
        keep[begin:end] = mask
        work[end:].addmm_(upper[begin:end, end:].t(), errors, alpha=-1.0)
    return work.t().contiguous(), keep.t().contiguous()
