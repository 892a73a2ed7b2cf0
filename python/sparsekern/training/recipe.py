# SPDX-License-Identifier: Apache-2.0
"""`Recipe`: one choice of each piece, checked together."""

from __future__ import annotations

from dataclasses import dataclass, field

from sparsekern.patterns import NM

from .forward import Forward, Hard, SoftThreshold
from .gradient import ChainRule, GradientRule, StraightThrough
from .mvue import MVUE
from .schedule import Frames

__all__ = ["Recipe"]

_INPUT_GRADIENTS = ("same", "own", "transposable")
_KERNELS = ("auto", "always", "never")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a layer trains. The defaults are the plain straight-through estimator.

    Args:
        forward: `Hard`, `Decaying` or `SoftThreshold`.
        gradient: `StraightThrough`, `SRSTE`, `ChainRule` or `Masked`.
        input_gradient: the weight that dY is multiplied with for the gradient of x. "same": the
            forward weight (N:M along the inputs, so this product is dense). "own": with a mask of
            its own along the outputs, N:M there, so that the kernel multiplies (BDWP, Fang et al.
            2023, arXiv:2309.13015). "transposable": one mask, N:M along both axes (Hubara et al.
            2021, arXiv:2102.08124).
        output_gradient: prunes dY for the gradient of W; None does not.
        refresh: steps between two updates of the mask.
        fixed_after: the last step at which the mask is updated; None: always. A change of pattern
            (`frames`) updates it too.
        frames: the patterns over the steps, ending in the layer's own; None: that one always.
        kernel: "auto" multiplies by the N:M kernels where they are measured to be faster than
            dense, "always" wherever the weight is N:M (on the CPU), "never" densely. It changes
            rounding only.

    Raises:
        TypeError: a piece of another type.
        ValueError: a value out of range, or pieces that contradict each other.
    """

    forward: Forward = field(default_factory=Hard)
    gradient: GradientRule = field(default_factory=StraightThrough)
    input_gradient: str = "same"
    output_gradient: MVUE | None = None
    refresh: int = 1
    fixed_after: int | None = None
    frames: Frames | None = None
    kernel: str = "auto"

    def __post_init__(self) -> None:
        kinds: tuple[tuple[str, object, type], ...] = (
            ("forward", self.forward, Forward),
            ("gradient", self.gradient, GradientRule),
            ("output_gradient", self.output_gradient, MVUE),
            ("frames", self.frames, Frames),
        )
        for name, value, kind in kinds:
            optional = name in ("output_gradient", "frames")
            if not isinstance(value, kind) and not (optional and value is None):
                raise TypeError(
                    f"Recipe: {name} must be a {kind.__name__}, got {type(value).__name__}"
                )
        for name, text, allowed in (
            ("input_gradient", self.input_gradient, _INPUT_GRADIENTS),
            ("kernel", self.kernel, _KERNELS),
        ):
            if text not in allowed:
                raise ValueError(f"Recipe: {name} must be one of {allowed}, got {text!r}")
        for name, number, least in (
            ("refresh", self.refresh, 1),
            ("fixed_after", self.fixed_after, 0),
        ):
            if number is None and name == "fixed_after":
                continue
            if isinstance(number, bool) or not isinstance(number, int):
                raise TypeError(f"Recipe: {name} must be an integer, got {type(number).__name__}")
            if number < least:
                raise ValueError(f"Recipe: {name} must be at least {least}, got {number}")
        if isinstance(self.forward, SoftThreshold):
            if isinstance(self.gradient, ChainRule):
                raise ValueError(
                    "Recipe: gradient must be StraightThrough, SRSTE or Masked with a "
                    "SoftThreshold, got ChainRule"
                )
            if self.input_gradient == "transposable":
                raise ValueError(
                    "Recipe: input_gradient must be 'same' or 'own' with a SoftThreshold, whose "
                    "mask is that of the largest weights, got 'transposable'"
                )

    def pattern_at(self, target: NM, step: int) -> NM | None:
        """The pattern of a layer whose own is `target`; None: dense."""
        return target if self.frames is None else self.frames.at(step)

    def refreshes(self, step: int) -> bool:
        """Whether the mask is updated after a step, counted from 1, the pattern staying."""
        return step % self.refresh == 0 and (self.fixed_after is None or step <= self.fixed_after)
