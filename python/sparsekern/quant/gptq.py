# SPDX-License-Identifier: Apache-2.0
"""Rounding a matrix to group-quantized form: each weight by itself, or GPTQ with error feedback.

Frantar et al. 2022, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers", arXiv:2210.17323, algorithm 1, with scales fitted per group from the weights as
updated so far (their section 4, "additional tricks": grouping). With H = X^T X + damping and U the
upper Cholesky factor of H^-1 (H^-1 = U^T U), the error of column j, (w_j - q_j) / U_jj, is taken
over by the columns behind: w_{j:} -= error * U_{j, j:}. A column of a pruned group is rounded to
0, which is SparseGPT's update (arXiv:2301.00774): joining the two is our reading of GQSA.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..gqs import grouped
from .rounding import absmax_scale, searched_scale, to_codes
from .weight import GroupQuantized


@dataclass(frozen=True)
class Rounding:
    """How numbers become integers.

    Attributes:
        bits: 2, 4 or 8.
        group: weights that share a scale: 16, 32, 64 or 128.
        symmetric: without zero-points.
        search: fit the range to the weights (`searched_scale`) instead of to the largest.
    """

    bits: int
    group: int
    symmetric: bool
    search: bool = True

    def scale(self, weight: Tensor, importance: Tensor | None) -> tuple[Tensor, Tensor]:
        """Scale and zero of groups [..., group]."""
        if self.search:
            return searched_scale(weight, self.bits, self.symmetric, importance)
        return absmax_scale(weight, self.bits, self.symmetric)

    def assemble(
        self, codes: Tensor, scales: Tensor, zeros: Tensor, mask: Tensor, columns: int
    ) -> GroupQuantized:
        """The value of codes [out, groups, group], scales, zeros and mask [out, groups].

        Codes of what is pruned or padding become 0, scales of pruned groups 1, their zeros 0.
        """
        outside = (~mask).unsqueeze(-1).repeat(1, 1, self.group)
        outside.flatten(1)[:, columns:] = True
        return GroupQuantized(
            codes.masked_fill(outside, 0).to(torch.int8),
            scales.masked_fill(~mask, 1.0).to(torch.float16),
            None if self.symmetric else zeros.masked_fill(~mask, 0.0).to(torch.float16),
            mask,
            self.bits,
            columns,
        )


def round_to_nearest(
    weight: Tensor, mask: Tensor, how: Rounding, importance: Tensor | None = None
) -> GroupQuantized:
    """Round every kept weight by itself.

    Args:
        weight: [out, in], finite.
        mask: of groups, bool [out, groups], True = kept.
        how: the rounding.
        importance: of each column's error in the search for a range, [in]; None: 1.
    """
    groups = grouped(weight, how.group)
    if importance is not None:
        importance = grouped(importance[None], how.group)
    scale, zero = how.scale(groups, importance)
    codes = to_codes(groups, scale, zero, how.bits)
    return how.assemble(codes, scale.squeeze(-1), zero.squeeze(-1), mask, weight.shape[1])


def gptq(
    weight: Tensor, factor: Tensor, mask: Tensor, how: Rounding, blocksize: int = 128
) -> GroupQuantized:
    """Round column by column, the columns behind taking over each error.

    A group's range is fitted when its first column is reached; the search weighs errors by
    1 / U_jj^2, what they cost.

    Args:
        weight: [out, in], finite, float32 or float64.
        factor: U from `sparsekern.prune.sparsegpt.inverse_factor`, [in, in].
        mask: of groups, bool [out, groups], True = kept.
        how: the rounding.
        blocksize: columns per update of those behind, rounded down to whole groups (one at
            least); changes the result by rounding only.
    """
    rows, columns = weight.shape
    work = weight.t().clone(memory_format=torch.contiguous_format)  # [in, out]: rows are written
    upper = factor.to(weight.dtype)
    codes = torch.zeros(mask.shape[1] * how.group, rows, dtype=weight.dtype, device=weight.device)
    scales, zeros = (torch.ones(mask.shape, dtype=weight.dtype, device=weight.device) for _ in "sz")
    blocksize = max(how.group, blocksize - blocksize % how.group)
    scale = zero = kept = work.new_empty(0)
    for begin in range(0, columns, blocksize):
        end = min(begin + blocksize, columns)
        block = work[begin:end]
        local = upper[begin:end, begin:end]
        errors = torch.zeros_like(block)
        for j in range(end - begin):
            if j % how.group == 0:
                place = (begin + j) // how.group
                cost = local.diagonal()[j : j + how.group].square().reciprocal()
                fitted = how.scale(block[j : j + how.group].t(), cost)
                scales[:, place], zeros[:, place] = (part[:, 0] for part in fitted)
                scale, zero, kept = scales[:, place], zeros[:, place], mask[:, place]
            code = to_codes(block[j], scale, zero, how.bits)
            codes[begin + j] = code
            error = (block[j] - ((code - zero) * scale).masked_fill(~kept, 0.0)) / local[j, j]
            errors[j] = error
            block[j + 1 :].addr_(local[j, j + 1 :], error, alpha=-1.0)
        work[end:].addmm_(upper[begin:end, end:].t(), errors, alpha=-1.0)
    codes = codes.t().reshape(rows, mask.shape[1], how.group)
    return how.assemble(codes, scales, zeros, mask, columns)
