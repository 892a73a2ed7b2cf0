# SPDX-License-Identifier: Apache-2.0
"""Scales and zeros of groups of weights, and rounding to them.

A group w of numbers becomes integers q = clamp(round(w / s + z), -2^(bits - 1), 2^(bits - 1) - 1),
which stand for s * (q - z): uniform affine quantization (Jacob et al. 2018, arXiv:1712.05877,
eq. 1). Scales are rounded to float16 before anything is rounded to them, so that what is stored is
what was fitted.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .weight import code_range

_SHRINK = torch.linspace(1.0, 0.35, 14).tolist()  # of the range, by the clipped-range search


def to_codes(weight: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    """The nearest codes, as numbers of weight's dtype and shape; halves round to even."""
    return torch.round(weight / scale + zero).clamp_(*code_range(bits))


def stored_scale(scale: Tensor) -> Tensor:
    """The scale rounded to float16, in its dtype; 1 where that is 0 (w / s then rounds to 0).

    Raises:
        ValueError: beyond float16, NaN included.
    """
    rounded = scale.to(torch.float16)
    if not bool(rounded.isfinite().all()):
        raise ValueError(
            "quantize: scales must fit float16 (at most 65504), got "
            f"{float(scale.abs().nan_to_num(nan=torch.inf).max())}"
        )
    return rounded.to(scale.dtype).masked_fill(rounded == 0, 1.0)


def absmax_scale(weight: Tensor, bits: int, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Scale and zero whose range just holds the group.

    Symmetric: the weight of largest magnitude gets the integer -2^(bits - 1), whichever its sign,
    so the scale is negative where that weight is positive; one as large of the other sign is cut
    to 2^(bits - 1) - 1. With zero-points: the range runs from min(w, 0) to max(w, 0).

    Args:
        weight: [..., group], finite.
        bits: 2, 4 or 8.
        symmetric: without zero-points; the zero is then 0.

    Returns:
        Scale and zero, each [..., 1] in weight's dtype, the scale as stored in float16.
    """
    *_, last = _candidates(weight, bits, symmetric, [1.0], flips=False)
    return last


def searched_scale(
    weight: Tensor, bits: int, symmetric: bool, importance: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Scale and zero of least sum of importance * (w - rounded w)^2 among clipped ranges.

    The ranges are that of `absmax_scale` times 14 factors from 1 down to 0.35; symmetric ones also
    with the sign of the scale turned, and widened so that no weight is cut (which at 2 bits is
    twice as wide). Ties keep the wider range.

    Args:
        weight: [..., group], finite.
        bits: 2, 4 or 8.
        symmetric: without zero-points.
        importance: of each weight, at least 0, broadcastable to weight; None: 1.

    Returns:
        As `absmax_scale`.
    """
    best: tuple[Tensor, Tensor] | None = None
    least = weight.new_zeros(())
    for scale, zero in _candidates(weight, bits, symmetric, _SHRINK, flips=True):
        lost = (weight - (to_codes(weight, scale, zero, bits) - zero) * scale).square_()
        error = (lost if importance is None else lost * importance).sum(dim=-1, keepdim=True)
        if best is None:
            best, least = (scale, zero), error
            continue
        better = error < least
        best = (torch.where(better, scale, best[0]), torch.where(better, zero, best[1]))
        least = torch.where(better, error, least)
    assert best is not None
    return best


def _candidates(
    weight: Tensor, bits: int, symmetric: bool, factors: list[float], *, flips: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    if symmetric:
        half = 2 ** (bits - 1)
        place = weight.abs().argmax(dim=-1, keepdim=True)
        extreme = weight.gather(-1, place)
        zero = torch.zeros_like(extreme)
        widest = [half / (half - 1)] if flips else []
        for factor in widest + factors:
            scale = stored_scale(extreme * (-factor / half))
            yield scale, zero
            if flips:
                yield -scale, zero
        return
    low = weight.amin(dim=-1, keepdim=True).clamp_max(0.0)
    high = weight.amax(dim=-1, keepdim=True).clamp_min(0.0)
    for factor in factors:
        scale = stored_scale((high - low) * (factor / (2**bits - 1)))
        least, most = code_range(bits)
        yield scale, (least - torch.round(low * factor / scale)).clamp_(least, most)
