# SPDX-License-Identifier: Apache-2.0
"""A weight in group-quantized sparse form, as plain tensors: what calibration makes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from ..gqs import check_kind


def code_range(bits: int) -> tuple[int, int]:
    """The least and the largest code."""
    half = 1 << (bits - 1)
    return -half, half - 1


@dataclass(frozen=True, eq=False)
class GroupQuantized:
    """A matrix [out, in] whose rows are cut into groups that are pruned whole or quantized.

    A weight is `scale * (code - zero)`, or `scale * code` without zeros, or 0 where its group is
    pruned. A scale may be negative, which makes the longer of the two ends of a group's range the
    positive one. Where `group` does not divide `in_features`, the last group is padded.

    Attributes:
        codes: int8 [out, groups, group], in [-2^(bits - 1), 2^(bits - 1) - 1]; those of pruned
            groups and of padding do not count.
        scales: float16 [out, groups], finite and not 0.
        zeros: float16 [out, groups], finite, in units of a code, or None.
        mask: bool [out, groups], True = kept.
        bits: 2, 4 or 8.
        in_features: columns without padding.

    Raises:
        TypeError, ValueError: wrong dtypes, shapes or values.
        NotImplementedError: bits or a group that the format does not have.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor | None
    mask: Tensor
    bits: int
    in_features: int

    def __post_init__(self) -> None:
        owner = "GroupQuantized"
        if self.codes.dim() != 3:
            raise ValueError(
                f"{owner}: codes must have shape [out, groups, group], got {list(self.codes.shape)}"
            )
        check_kind(owner, self.bits, self.group)
        rows, groups, group = self.codes.shape
        if not 0 <= groups * group - self.in_features < group:
            raise ValueError(
                f"{owner}: in_features must fill {groups} groups of {group}, got {self.in_features}"
            )
        dtypes = {"codes": torch.int8, "scales": torch.float16, "mask": torch.bool}
        if self.zeros is not None:
            dtypes["zeros"] = torch.float16
        for name, dtype in dtypes.items():
            tensor = getattr(self, name)
            if tensor.dtype != dtype:
                raise TypeError(f"{owner}: {name} must be {dtype}, got {tensor.dtype}")
            if name != "codes" and tensor.shape != (rows, groups):
                raise ValueError(
                    f"{owner}: {name} must have shape {[rows, groups]}, got {list(tensor.shape)}"
                )
        low, high = code_range(self.bits)
        if bool(((self.codes < low) | (self.codes > high)).any()):
            raise ValueError(
                f"{owner}: codes must be in [{low}, {high}] for {self.bits} bits, got one beyond"
            )
        if not bool((self.scales.isfinite() & (self.scales != 0)).all()):
            raise ValueError(f"{owner}: scales must be finite and not 0, got NaN, Inf or 0")
        if self.zeros is not None and not bool(self.zeros.isfinite().all()):
            raise ValueError(f"{owner}: zeros must be finite, got NaN or Inf")

    @property
    def group(self) -> int:
        """Weights in a group."""
        return self.codes.shape[2]

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return self.codes.shape[0], self.in_features

    @property
    def symmetric(self) -> bool:
        """Whether there are no zero-points."""
        return self.zeros is None

    @property
    def sparsity(self) -> float:
        """Share of groups that are pruned; 0 for an empty weight."""
        return 1.0 - float(self.mask.double().mean()) if self.mask.numel() else 0.0

    @property
    def bits_per_weight(self) -> float:
        """Storage by count over out * in: codes, scales and zeros of kept groups, and the mask.

        A kept group takes bits * group (padding included) + 16, and 16 more with a zero-point;
        the mask a bit per group, none where nothing is pruned. 0 for an empty weight.
        """
        weights = self.codes.shape[0] * self.in_features
        if weights == 0:
            return 0.0
        kept = int(self.mask.sum())
        each = self.bits * self.group + 16 + (0 if self.zeros is None else 16)
        mask = self.mask.numel() if kept < self.mask.numel() else 0
        return (kept * each + mask) / weights

    def dequantize(self) -> Tensor:
        """The matrix, float32 [out, in]."""
        values = self.codes.float()
        if self.zeros is not None:
            values = values - self.zeros.float().unsqueeze(-1)
        values = values * self.scales.float().unsqueeze(-1)
        values = values.masked_fill(~self.mask.unsqueeze(-1), 0.0)
        matrix: Tensor = values.flatten(1)[:, : self.in_features].contiguous()
        return matrix

    def to(self, device: torch.device | str) -> GroupQuantized:
        """The same on another device."""
        moved = {name: tensor.to(device) for name, tensor in self.tensors().items()}
        return dataclasses.replace(self, **moved)  # type: ignore[arg-type]

    def tensors(self) -> dict[str, Tensor]:
        """codes, scales, mask and, where there are any, zeros by name."""
        found: dict[str, Tensor] = {"codes": self.codes, "scales": self.scales, "mask": self.mask}
        return found if self.zeros is None else {**found, "zeros": self.zeros}

    def equal(self, other: GroupQuantized) -> bool:
        """Whether both hold the same, bit for bit."""
        mine, theirs = self.tensors(), other.tensors()
        return (
            (self.bits, self.in_features) == (other.bits, other.in_features)
            and mine.keys() == theirs.keys()
            and all(torch.equal(mine[name], theirs[name]) for name in mine)
        )
