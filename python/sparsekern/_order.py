# SPDX-License-Identifier: Apache-2.0
"""The order of scores that every mask of this library goes by."""

from __future__ import annotations

import torch
from torch import Tensor


def sort_keys(score: Tensor) -> Tensor:
    """Integers in the order of `score`, NaN lowest: the bits of an IEEE number, made monotone."""
    if score.dtype not in (torch.float32, torch.float64):
        score = score.float()
    integer = torch.int32 if score.dtype == torch.float32 else torch.int64
    info = torch.iinfo(integer)
    bits = (score + 0.0).view(integer)  # + 0.0 turns -0.0 into 0.0
    keys = torch.where(bits >= 0, bits, bits ^ info.max)
    return keys.masked_fill_(score.isnan(), info.min)
