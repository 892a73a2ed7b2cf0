# SPDX-License-Identifier: Apache-2.0
"""Share one sparsity budget among layers.

Every function prunes `sparsity` of all weights given, up to the rounding of counts in each layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ..patterns import Pattern, keep_largest
from .scores import keep_nonfinite

Curve = Sequence[tuple[float, float]]  # (sparsity, error) with rising sparsity, from (0, 0)

_GRID = (0.25, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


def erk(shapes: Sequence[Sequence[int]], sparsity: float) -> list[float]:
    """Erdos-Renyi-Kernel ratios: density proportional to (sum of dimensions) / (their product).

    Evci et al. 2020, "Rigging the Lottery", arXiv:1911.11134, section 3. A layer whose density
    would pass 1 stays dense, and the others share what is left. `shapes` are weight shapes,
    [out, in] or [out, in, kh, kw]. Returns one sparsity per shape.
    """
    sizes = [torch.Size(shape).numel() for shape in shapes]
    raw = [sum(shape) / size if size else 0.0 for shape, size in zip(shapes, sizes, strict=True)]
    dense: set[int] = set()
    scale = 0.0
    while len(dense) < len(shapes):
        free = [i for i in range(len(shapes)) if i not in dense]
        kept = (1.0 - sparsity) * sum(sizes) - sum(sizes[i] for i in dense)
        share = sum(raw[i] * sizes[i] for i in free)
        scale = kept / share if share else 0.0
        # The slack keeps rounding from making layers dense that only just reach density 1.
        full = [i for i in free if scale * raw[i] > 1.0 + 1e-12]
        if not full:
            break
        dense.update(full)
    return [
        0.0 if i in dense else min(1.0, max(0.0, 1.0 - scale * raw[i])) for i in range(len(shapes))
    ]


def pooled(unit_scores: Sequence[Tensor], sparsity: float) -> list[float]:
    """Ratios from one comparison of all layers' units (global pruning).

    `unit_scores`: per layer, a matrix of scores of one pattern's units. Exactly
    `round(sparsity * total units)` are dropped; ties keep the earlier layer.
    """
    device = unit_scores[0].device
    flat = torch.cat([score.reshape(1, -1).to(device) for score in unit_scores], dim=1)
    keep = keep_largest(flat, round(sparsity * flat.numel()), per_row=False)[0]
    ratios = []
    for part in torch.split(keep, [score.numel() for score in unit_scores]):
        ratios.append(1.0 - int(part.sum()) / part.numel() if part.numel() else 0.0)
    return ratios


def sensitivity_grid(sparsity: float) -> list[float]:
    """Sparsities to measure: a fixed ladder, the target, and a cap.

    The cap, 1 - (1 - sparsity) / 4, leaves each layer at least a quarter of the mean density:
    one layer's relative error cannot pass 1, so a pure minimum of the sum could erase a layer.
    """
    cap = 1.0 - (1.0 - sparsity) / 4.0
    return sorted({0.0, sparsity, cap, *(s for s in _GRID if s < cap)})


def sensitivity_curve(
    weight: Tensor, score: Tensor, gram: Tensor, pattern: Pattern, scope: str, grid: Sequence[float]
) -> list[tuple[float, float]]:
    """Relative output error ||X (W - W_s)^T||^2 / ||X W^T||^2 of one layer at each sparsity s.

    Exact on the calibration inputs, through X^T X (`gram`, [in, in]). Kept weights are not
    updated, also for SparseGPT scores.
    """
    finite = weight.masked_fill(~weight.isfinite(), 0.0)
    gram = gram.to(finite.dtype)
    norm = float(((finite @ gram) * finite).sum())
    curve = []
    for s in grid:
        mask = keep_nonfinite(weight, pattern.with_sparsity(s).mask(score, scope), pattern)
        lost = finite.masked_fill(mask, 0.0)
        error = float(((lost @ gram) * lost).sum())
        curve.append((s, max(0.0, error) / norm if norm > 0.0 else 0.0))
    return curve


def equalize(curves: Sequence[Curve], sizes: Sequence[int], sparsity: float) -> list[float]:
    """Ratios with the least total error under the budget, by equal marginal error.

    Each curve is replaced by its lower convex hull; hull segments of all layers are then taken in
    the order of added error per pruned weight (ties: earlier layer) until `sparsity` of all
    weights is pruned, the last one in part. For convex curves this greedy order is optimal: it is
    the Lagrangian solution, where every partly pruned layer has the same marginal error.
    """
    segments = []
    for layer, curve in enumerate(curves):
        hull = _lower_hull(curve)
        for (s0, e0), (s1, e1) in pairwise(hull):
            count = (s1 - s0) * sizes[layer]
            if count > 0:
                segments.append(((e1 - e0) / count, layer, count))
    left = sparsity * sum(sizes)
    pruned = [0.0] * len(curves)
    for _, layer, count in sorted(segments, key=lambda segment: segment[:2]):
        taken = min(count, left)
        pruned[layer] += taken
        left -= taken
    return [min(1.0, p / n) if n else 0.0 for p, n in zip(pruned, sizes, strict=True)]


def _lower_hull(curve: Curve) -> list[tuple[float, float]]:
    hull: list[tuple[float, float]] = []
    for s, e in curve:
        while len(hull) >= 2:
            (s0, e0), (s1, e1) = hull[-2:]
            if (e1 - e0) * (s - s0) < (e - e0) * (s1 - s0):
                break
            hull.pop()
        hull.append((s, e))
    return hull
