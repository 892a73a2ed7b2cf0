# SPDX-License-Identifier: Apache-2.0
"""Sparsity patterns: which weights of a matrix may be pruned together, and how many.

A pattern turns a score per weight into a boolean mask (True = kept). It holds no tensors, so one
pattern object serves every layer. Masks follow three rules:

* **Exact counts.** With ``scope="layer"``, ``round(sparsity * units)`` units of the matrix are
  pruned; with ``scope="row"``, ``round(sparsity * in)`` of every row of units. A unit is one weight
  (`Unstructured`) or one column of a group of rows (`Block`). Halves round to even, as in Python.
  `NM` keeps n of every m weights of a row, whatever the scope. A unit of `GQS` is a group of a row.
* **Ties.** Between equal scores, the lower row-major index is kept. -0.0 equals 0.0.
* **NaN.** A NaN score ranks below every number, -inf included: it is pruned first and never beats
  a number. This is a rule about scores. `sparsekern.prune` gives a weight that is itself NaN or
  infinite the score +inf and keeps it whatever the sparsity, so that a broken weight stays visible.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from sparsekern._nm_mask import check_group, nm_mask
from sparsekern._order import sort_keys
from sparsekern.gqs import check_kind, to_columns

__all__ = ["GQS", "NM", "Block", "Pattern", "Unstructured"]

_SCOPES = ("layer", "row")
_P = TypeVar("_P", bound="Pattern")


def _check_sparsity(owner: str, sparsity: object) -> None:
    if isinstance(sparsity, bool) or not isinstance(sparsity, (int, float)):
        raise TypeError(f"{owner}: sparsity must be a number, got {type(sparsity).__name__}")
    if not (math.isfinite(sparsity) and 0.0 <= sparsity <= 1.0):
        raise ValueError(f"{owner}: sparsity must be in [0, 1], got {sparsity}")


def keep_largest(score: Tensor, pruned: int, *, per_row: bool) -> Tensor:
    """Mask that drops the `pruned` lowest scores of the whole matrix, or of each row.

    `score` is [rows, columns], floating point. Returns bool of the same shape. Selection, not
    sorting: the threshold comes from a k-th value, then ties keep the lower index.
    """
    rows, columns = score.shape
    keys = sort_keys(score) if per_row else sort_keys(score).reshape(1, rows * columns)
    total = keys.shape[1]
    if not 0 <= pruned <= total:
        raise ValueError(f"keep_largest: pruned must be in [0, {total}], got {pruned}")
    if pruned == 0 or keys.numel() == 0:
        return torch.ones_like(score, dtype=torch.bool)
    if pruned == total:
        return torch.zeros_like(score, dtype=torch.bool)
    threshold = keys.kthvalue(pruned, dim=1, keepdim=True).values
    keep = keys > threshold
    ties = keys == threshold
    tied_kept = (total - pruned) - keep.sum(dim=1, keepdim=True)
    if per_row:
        keep |= ties & (ties.cumsum(dim=1, dtype=torch.int64) <= tied_kept)
    else:
        keep[0, ties[0].nonzero()[: int(tied_kept), 0]] = True
    return keep.reshape(rows, columns)


@dataclass(frozen=True)
class Pattern:
    """Base of all patterns: a frozen value with a `sparsity` and a `mask` method.

    Weights are seen as a matrix [out, in]; a convolution's weight is flattened after its first
    axis. Subclasses say what a unit is through `group_rows`.
    """

    if TYPE_CHECKING:  # a dataclass would take a property here for the field's default

        @property
        def sparsity(self) -> float:
            """Share of units to prune, in [0, 1]."""
            ...

    def __post_init__(self) -> None:
        if type(self) is Pattern:
            raise TypeError("Pattern: is abstract; choose Unstructured, Block, NM or GQS")
        _check_sparsity(type(self).__name__, self.sparsity)

    @property
    def group_rows(self) -> int:
        """Consecutive output rows that share one column pattern."""
        return 1

    @property
    def group_columns(self) -> int | None:
        """Inputs that a fixed number of weights is kept of; None where any number may be."""
        return None

    @property
    def label(self) -> str:
        """The pattern without its sparsity, for tables."""
        return type(self).__name__

    def with_sparsity(self: _P, sparsity: float) -> _P:
        """The same pattern at another sparsity in [0, 1]."""
        return dataclasses.replace(self, sparsity=sparsity)  # type: ignore[call-arg]

    def unit_scores(self, score: Tensor) -> Tensor:
        """Mean score of each unit, [ceil(out / group_rows), in] from [out, in].

        The mean, not the sum, so that a short last group competes on equal terms.
        """
        step = self.group_rows
        if step == 1:
            return score
        rows, columns = score.shape
        full = rows - rows % step
        units = score[:full].reshape(full // step, step, columns).mean(dim=1)
        if full < rows:
            units = torch.cat([units, score[full:].mean(dim=0, keepdim=True)])
        return units

    def expand(self, units: Tensor, rows: int) -> Tensor:
        """Repeat each row of a unit mask over its group: [out = rows, in]."""
        if self.group_rows == 1:
            return units
        return units.repeat_interleave(self.group_rows, dim=0)[:rows]

    def mask(self, score: Tensor, scope: str = "layer") -> Tensor:
        """Choose what to keep.

        Args:
            score: [out, in], floating point; larger is more important.
            scope: "layer" compares all units of the matrix, "row" those of one row (of one group
                of rows for `Block`), so that every row keeps equally many.

        Returns:
            bool [out, in] on the score's device, True = kept; counts and ties as the module says.

        Raises:
            TypeError: `score` is not a floating-point tensor.
            ValueError: `score` is not a matrix, or `scope` is unknown.
        """
        self._check_mask_arguments(score, scope)
        score = score.detach()
        units = self.unit_scores(score)
        per_row = scope == "row"
        count = round(self.sparsity * (units.shape[1] if per_row else units.numel()))
        return self.expand(keep_largest(units, count, per_row=per_row), score.shape[0])

    def _check_mask_arguments(self, score: Tensor, scope: str) -> None:
        owner = type(self).__name__
        if not isinstance(score, Tensor) or not score.is_floating_point():
            got = score.dtype if isinstance(score, Tensor) else type(score).__name__
            raise TypeError(f"{owner}: score must be a floating-point tensor, got {got}")
        if score.dim() != 2:
            raise ValueError(f"{owner}: score must have shape [out, in], got {list(score.shape)}")
        if scope not in _SCOPES:
            raise ValueError(f"{owner}: scope must be one of {_SCOPES}, got {scope!r}")
        if score.device.type == "meta":
            raise ValueError(f"{owner}: score must hold data, got a tensor on the meta device")


@dataclass(frozen=True)
class Unstructured(Pattern):
    """Any weight may be pruned. `sparsity`: share of weights to prune, in [0, 1]."""

    sparsity: float


@dataclass(frozen=True)
class Block(Pattern):
    """Groups of `rows` consecutive output rows share one column pattern.

    A kernel then reads one index, and loads one activation, for `rows` multiply-adds. When `rows`
    does not divide the number of outputs, the last group is short.

    Args:
        rows: 1, 2 or 4. `Block(1, s)` masks as `Unstructured(s)` does.
        sparsity: share of column groups to prune, in [0, 1].
    """

    rows: int
    sparsity: float

    def __post_init__(self) -> None:
        if isinstance(self.rows, bool) or not isinstance(self.rows, int):
            raise TypeError(f"Block: rows must be an integer, got {type(self.rows).__name__}")
        if self.rows not in (1, 2, 4):
            raise ValueError(f"Block: rows must be 1, 2 or 4, got {self.rows}")
        super().__post_init__()

    @property
    def group_rows(self) -> int:
        """Consecutive output rows that share one column pattern: `rows`."""
        return self.rows

    @property
    def label(self) -> str:
        """Block, or Block(2) and Block(4)."""
        return f"Block({self.rows})" if self.rows > 1 else "Block"


@dataclass(frozen=True)
class NM(Pattern):
    """N:M: of every m consecutive inputs of an output row, n weights are KEPT.

    So `NM(2, 4)` is the 2:4 of the GPUs that have it. Wanda and its descendants mean N zeros in M:
    their 1:4 is `NM(3, 4)`. Groups begin at the first input of each row; when m does not divide the
    number of inputs, the last group of k keeps min(n, k), and the layer's sparsity is that much
    below `sparsity`.

    Args:
        n: weights to keep of each group, in [1, m - 1].
        m: size of a group: 2, 4, 8, 16 or 32.

    Raises:
        TypeError: n or m is not an integer.
        ValueError: n out of range.
        NotImplementedError: another m.
    """

    n: int
    m: int

    def __post_init__(self) -> None:
        check_group("NM", self.n, self.m)
        super().__post_init__()

    @property
    def sparsity(self) -> float:
        """1 - n / m, the share pruned of a whole group."""
        return 1.0 - self.n / self.m

    @property
    def group_columns(self) -> int:
        """Inputs that n weights are kept of: `m`."""
        return self.m

    @property
    def label(self) -> str:
        """NM(2:4)."""
        return f"NM({self.n}:{self.m})"

    def with_sparsity(self, sparsity: float) -> NM:
        """Refused: n and m are the sparsity.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            f"NM: sparsity must stay 1 - n / m = {self.sparsity:g}, got {sparsity}; choose other n "
            "and m"
        )

    def mask(self, score: Tensor, scope: str = "layer") -> Tensor:
        """Choose what to keep: the n largest scores of each group, by `sparsekern.ops.nm_mask`.

        Args:
            score: [out, in], floating point; larger is more important.
            scope: "layer" or "row"; both give the same mask, since only a group is compared.

        Returns:
            bool [out, in] on the score's device, True = kept; ties and NaN as the module says.

        Raises:
            TypeError, ValueError: as `Pattern.mask`.
        """
        self._check_mask_arguments(score, scope)
        return nm_mask(score, self.n, self.m, score=score)


@dataclass(frozen=True)
class GQS(Pattern):
    """Group-quantized sparsity: groups of consecutive inputs of a row are pruned whole.

    Masks choose groups by the mean of their scores; `bits` says what `convert_` and `GQSTensor` are
    to make of those that stay. A row's last group may be short and competes on equal terms.

    Args:
        bits: of a quantized weight: 2, 4 or 8.
        group: consecutive inputs of a group: 16, 32, 64 or 128.
        sparsity: share of groups to prune, in [0, 1].

    Raises:
        TypeError: bits or group is not an integer, or sparsity not a number.
        ValueError: a sparsity out of range.
        NotImplementedError: bits or a group that the format does not have.
    """

    bits: int = 4
    group: int = 16
    sparsity: float = 0.5

    def __post_init__(self) -> None:
        check_kind("GQS", self.bits, self.group)
        super().__post_init__()

    @property
    def label(self) -> str:
        """GQS(w4g16)."""
        return f"GQS(w{self.bits}g{self.group})"

    def mask(self, score: Tensor, scope: str = "layer") -> Tensor:
        """Choose what to keep.

        Args:
            score: [out, in], floating point; larger is more important.
            scope: "layer" compares all groups of the matrix, "row" those of one row.

        Returns:
            bool [out, in] on the score's device, True = kept; whole groups. Ties as the module
            says; a group with a NaN score is pruned first.

        Raises:
            TypeError, ValueError: as `Pattern.mask`.
        """
        self._check_mask_arguments(score, scope)
        score = score.detach()
        columns = score.shape[1]
        full = columns - columns % self.group
        units = score[:, :full].reshape(len(score), -1, self.group).mean(dim=2)
        if full < columns:
            units = torch.cat([units, score[:, full:].mean(dim=1, keepdim=True)], dim=1)
        per_row = scope == "row"
        count = round(self.sparsity * (units.shape[1] if per_row else units.numel()))
        kept = keep_largest(units, count, per_row=per_row)
        return to_columns(kept, self.group, columns)
