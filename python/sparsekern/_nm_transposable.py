# SPDX-License-Identifier: Apache-2.0
"""Masks that are N:M along rows and along columns, so that W and W^T both run on N:M kernels."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from sparsekern._nm_mask import check_float, check_group

__all__ = ["nm_mask_transposable"]

# Elements of the largest temporary, [tiles, m, m, m]: 64 MB of float64.
_CHUNK = 1 << 23
# A move must gain this much, in units of a tile's largest score: more than rounding, so that equal
# sums do not go round and round.
_LEAST = 1e-12
# Rows in an exchange. Up to m = 8 this is all, and the result is optimal.
_LONGEST_RING = 8


def nm_mask_transposable(w: Tensor, n: int, m: int, score: Tensor | None = None) -> Tensor:
    """An N:M mask in both directions: every m x m tile keeps n of each row and n of each column.

    "N:M" says how many are KEPT (see `nm_mask`). Backward multiplies by W^T: with such a mask both
    products of training are N:M (Hubara et al. 2021, "Accelerated Sparse Neural Training",
    arXiv:2102.08124, which solves each tile as a min-cost flow). Here: take the largest scores that
    still fit (their greedy 2-approximation), complete rows and columns by the best exchange, as
    TSENOR rounds its solutions (Meng et al. 2025, arXiv:2505.23949), then cancel cycles: as long as
    it gains, move one kept weight of a row to another row within its column, at once for up to 8
    rows in a ring, which leaves every count as it is. Up to m = 8 the result has the largest sum
    that there is (up to rounding); beyond, exchanges among more rows are not tried. In torch, in
    float64, many tiles at a time; the work per weight grows as m^2.

    Args:
        w: [rows, cols], floating point, both multiples of m; any device.
        n: weights to keep of each row and each column of a tile, in [1, m - 1].
        m: side of a tile: 2, 4, 8, 16 or 32.
        score: what to maximize the sum of instead of |w|, the shape of w. A NaN counts as the
            tile's least finite score, an infinity as its largest or least.

    Returns:
        bool, the shape of w, on its device: True = kept.

    Raises:
        TypeError, ValueError, NotImplementedError: as `nm_mask`; ValueError also when w is not a
            matrix of whole tiles.
    """
    operator = "nm_mask_transposable"
    check_group(operator, n, m)
    check_float(operator, "w", w)
    if w.dim() != 2 or w.shape[0] % m or w.shape[1] % m:
        raise ValueError(
            f"{operator}: w must be [rows, cols], multiples of m ({m}), got {list(w.shape)}"
        )
    if score is not None:
        check_float(operator, "score", score)
        if score.shape != w.shape:
            raise ValueError(
                f"{operator}: score must have the shape of w ({list(w.shape)}), "
                f"got {list(score.shape)}"
            )
    values = (w.abs() if score is None else score).detach()
    rows, cols = w.shape[0] // m, w.shape[1] // m
    tiles = values.reshape(rows, m, cols, m).transpose(1, 2).reshape(-1, m, m)
    parts = torch.split(tiles, max(1, _CHUNK // m**3))
    kept = [_mask_tiles(part, n) for part in parts]
    mask = torch.cat(kept)
    return mask.reshape(rows, cols, m, m).transpose(1, 2).reshape(w.shape).contiguous()


def _mask_tiles(tiles: Tensor, n: int) -> Tensor:
    """Masks of tiles, [tiles, m, m]."""
    if tiles.numel() == 0:
        return torch.zeros_like(tiles, dtype=torch.bool)
    score = _finite(tiles)
    mask = _greedy(score, n)
    _complete(score, mask, n)
    _cancel_cycles(score, mask)
    return mask


def _finite(tiles: Tensor) -> Tensor:
    """Scores as float64, in units of the largest of each tile, non-finite ones brought inside."""
    score = tiles.double()
    finite = score.isfinite()
    low = score.masked_fill(~finite, torch.inf).amin((1, 2), keepdim=True)
    high = score.masked_fill(~finite, -torch.inf).amax((1, 2), keepdim=True)
    none = low > high  # nothing finite at all
    low, high = low.masked_fill(none, 0.0), high.masked_fill(none, 1.0)
    score = torch.where(score.isnan(), low, score).minimum(high).maximum(low)
    unit = torch.maximum(low.abs(), high.abs())
    return score / unit.masked_fill(unit == 0, 1.0)


def _greedy(score: Tensor, n: int) -> Tensor:
    """In the order of the scores, keep what row and column still take."""
    count, m = score.shape[:2]
    order = score.reshape(count, m * m).sort(dim=1, descending=True, stable=True).indices
    mask = torch.zeros(count, m * m, dtype=torch.bool, device=score.device)
    left_in_row = torch.full((count, m), n, device=score.device)
    left_in_column = left_in_row.clone()
    for place in order.unbind(1):
        at = place[:, None]
        row, column = at // m, at % m
        fits = (left_in_row.gather(1, row) > 0) & (left_in_column.gather(1, column) > 0)
        mask.scatter_(1, at, fits)
        left_in_row.scatter_add_(1, row, -fits.long())
        left_in_column.scatter_add_(1, column, -fits.long())
    return mask.reshape(count, m, m)


def _complete(score: Tensor, mask: Tensor, n: int) -> None:
    """Fill the rows and columns that greedy left short, one exchange a tile and turn, in place.

    For a short row i and a short column j whose entry (i, j) is kept already: drop a kept (a, b)
    and keep (i, b) and (a, j), which were not kept. Such an (a, b) exists: column j has a row a
    without it, which is not short or (a, j) would be taken; so it keeps n, of which row i keeps
    n - 1 at most.
    """
    m = mask.shape[1]
    while True:
        row_short, column_short = mask.sum(2) < n, mask.sum(1) < n
        open_tiles = row_short.any(1).nonzero()[:, 0]
        if len(open_tiles) == 0:
            return
        s, k = score[open_tiles], mask[open_tiles]
        each = torch.arange(len(open_tiles), device=mask.device)
        short = row_short[open_tiles][:, :, None] & column_short[open_tiles][:, None, :]
        direct = (short & ~k).flatten(1)
        # A free entry between a short row and a short column is taken as it is.
        at = torch.where(direct.any(1), direct.int().argmax(1), short.flatten(1).int().argmax(1))
        i, j = at // m, at % m
        free = ~k[each, i, j]
        gain = s[each, i][:, None, :] + s[each, :, j][:, :, None] - s
        allowed = k & ~k[each, i][:, None, :] & ~k[each, :, j][:, :, None]
        best = gain.masked_fill(~allowed, -torch.inf).flatten(1).argmax(1)
        a, b = best // m, best % m
        mask[open_tiles[free], i[free], j[free]] = True
        t, swap = open_tiles[~free], ~free
        mask[t, a[swap], b[swap]] = False
        mask[t, i[swap], b[swap]] = True
        mask[t, a[swap], j[swap]] = True


def _cancel_cycles(score: Tensor, mask: Tensor) -> None:
    """Exchange among rows while the sum of kept scores rises, in place.

    Moving a kept entry of column c from row i to row k gains score[k, c] - score[i, c]; the best
    column gives the arcs of a graph over the rows, and a cycle of positive sum is an improvement
    (Klein 1967, for min-cost flows). Its moves do not touch each other's entries: a column that row
    i gives to row k is not one that row k can give. Pairs of rows come first, as many of a tile at
    a time as there are disjoint ones; where none is left, one longer ring.
    """
    active = torch.arange(len(mask), device=mask.device)
    while len(active):
        arc, column = _arcs(score[active], mask[active])
        moves = _pairs(arc)
        moved = torch.zeros_like(active, dtype=torch.bool)
        moved[moves[0]] = True
        rest = (~moved).nonzero()[:, 0]
        for tile, source, target in _rings(arc[rest]):
            moved[rest[tile]] = True
            more = (rest[tile], source, target)
            moves = [torch.cat(both) for both in zip(moves, more, strict=True)]
        tile, source, target = moves
        c = column[tile, source, target]
        mask[active[tile], source, c] = False
        mask[active[tile], target, c] = True
        active = active[moved]


def _arcs(score: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The best move from each row to each other, [tile, from, to]: its gain and its column."""
    gain = score[:, None, :, :] - score[:, :, None, :]  # [tile, from, to, column]
    allowed = mask[:, :, None, :] & ~mask[:, None, :, :]
    arc, column = gain.masked_fill_(~allowed, -torch.inf).max(dim=3)
    itself = torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)
    return arc.masked_fill(itself, 0.0), column


def _pairs(arc: Tensor) -> list[Tensor]:
    """Moves (tile, from, to) between rows that gain most by exchange with each other."""
    gain, partner = (arc + arc.transpose(1, 2)).max(dim=2)
    own = torch.arange(arc.shape[1], device=arc.device)
    tile, source = ((partner.gather(1, partner) == own) & (gain > 2 * _LEAST)).nonzero().unbind(1)
    return [tile, source, partner[tile, source]]


def _rings(arc: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Moves (tile, from, to) along one ring of rows a tile, the shortest that gains.

    By walks of 2, 3, ... arcs. A closed walk that gains and visits a row twice holds a shorter one
    that gains, so the first found is a ring.
    """
    tiles = torch.arange(len(arc), device=arc.device)
    walk, before = arc, []  # the best walk from each row to each, and its last row but one
    for length in range(2, min(arc.shape[1], _LONGEST_RING) + 1):
        if len(tiles) == 0:
            return
        walk, via = (walk[:, :, :, None] + arc[:, None, :, :]).max(dim=2)
        before.append(via)
        gain, start = walk.diagonal(dim1=1, dim2=2).max(dim=1)
        found = gain > length * _LEAST
        at, begin = found.nonzero()[:, 0], start[found]
        ring = [begin]
        for last in reversed(before):
            ring.append(last[at, begin, ring[-1]])
        ring.append(begin)
        rows = torch.stack(ring[:-1], dim=1).sort(dim=1).values
        sound = (rows.diff(dim=1) != 0).all(dim=1)  # whatever rounding may do, counts stay
        for target, source in pairwise(ring):
            yield tiles[found][sound], source[sound], target[sound]
        tiles, arc, walk = tiles[~found], arc[~found], walk[~found]
        before = [last[~found] for last in before]
