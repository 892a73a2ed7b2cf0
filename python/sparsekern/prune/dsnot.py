# SPDX-License-Identifier: Apache-2.0
"""DSnoT: improve a mask by swaps, without training and without changing kept weights.

Zhang et al. 2024, "Dynamic Sparse No Training: Training-Free Fine-tuning for Sparse LLMs",
arXiv:2310.08915. The mean output error of a row is e = sum of W_j E[X_j] over its
pruned weights. Growing a pruned weight of the sign of e takes W_j E[X_j] from it; pruning another
of the same group keeps the counts.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MOST_SWAPS = 50
# A row is done when its mean error is that small beside the deviation of its error: the mean's
# share of the squared error is then below 1 %. (The paper's 0.1 is in units of the outputs.)
_NEGLIGIBLE = 0.1


def dsnot(
    weight: Tensor,
    mask: Tensor,
    column_norms: Tensor,
    mean: Tensor,
    variance: Tensor,
    group: int | None,
) -> Tensor:
    """A mask with the same count in every group, whose rows' mean errors are not larger.

    In each round every row grows the pruned weight of largest |W_j E[X_j]| / Var[X_j] among those
    that lower |e|, and prunes the kept weight of least |W_k| ||X_k||_2 of the same group. A swap
    that does not lower |e| is not made and ends its row, so a row without error, a row of zeros
    and a dead input gain nothing.

    Args:
        weight: [out, in], float32 or float64.
        mask: bool [out, in], True = kept.
        column_norms: ||X_j||_2, [in].
        mean: E[X_j], [in].
        variance: Var[X_j], [in].
        group: consecutive inputs that are swapped among themselves (m of `NM`); None: the row.

    Returns:
        bool [out, in].
    """
    rows, columns = weight.shape
    broken = ~weight.isfinite()
    values = weight.masked_fill(broken, 0.0)
    effect = values * mean  # what the weight adds to its row's mean output
    cost = (values.abs() * column_norms).masked_fill(broken, torch.inf)
    urgency = effect.abs() / variance.clamp_min(torch.finfo(weight.dtype).tiny)
    noise = values.square() * variance
    width = columns if group is None else group
    owner = torch.arange(columns, device=weight.device) // max(width, 1)
    mask = mask.clone()
    active = torch.arange(rows if columns else 0, device=weight.device)
    for _ in range(_MOST_SWAPS):
        kept = mask[active]
        error = effect[active].masked_fill(kept, 0.0).sum(dim=1)
        deviation = noise[active].masked_fill(kept, 0.0).sum(dim=1).sqrt()
        going = error.abs() > _NEGLIGIBLE * deviation
        active, kept, error = active[going], kept[going], error[going]
        helps = ~kept & (effect[active] * error.sign()[:, None] > 0.0)
        grown = urgency[active].masked_fill(~helps, -1.0).argmax(dim=1, keepdim=True)
        # All kept weights of the grown one's group; none where nothing helps.
        near = kept & (owner == owner[grown])
        least = cost[active].masked_fill(~near, torch.inf)
        cut = least.argmin(dim=1, keepdim=True)
        change = effect[active].gather(1, cut) - effect[active].gather(1, grown)
        better = (error[:, None] + change).abs() < error.abs()[:, None]
        made = (better & helps.gather(1, grown) & least.gather(1, cut).isfinite())[:, 0]
        active, grown, cut = active[made], grown[made], cut[made]
        if active.numel() == 0:
            break
        mask[active[:, None], grown] = True
        mask[active[:, None], cut] = False
    return mask
