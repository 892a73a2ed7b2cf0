# SPDX-License-Identifier: Apache-2.0
"""Element-by-element comparison with the oracle.

A dot product of n terms a_i * b_i, added in any order in fp32, is off by at most about
n * eps * sum |a_i * b_i| (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1).
So each element has a bound of its own; one wrong element fails, however many are right. Infinities
and NaN must stand exactly where the oracle has them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from oracle import Array, Expected, activate

EPS = 2.0**-23  # of float32: twice its unit roundoff, so c = 1 already has room for any order
_TINY = float(np.finfo(np.float32).tiny)  # sums in the subnormal range may be flushed to 0
# Rounding to the stored dtype: relative (half a unit in the last place), absolute (subnormals),
# and the first magnitude that becomes infinity.
_STORED = {
    "float32": (2.0**-24, 2.0**-150, float(np.finfo(np.float32).max) * (1 + 2.0**-25)),
    "bfloat16": (2.0**-8, 2.0**-134, float(np.finfo(np.float32).max) * (1 - 2.0**-9)),
    "float16": (2.0**-11, 2.0**-25, 65520.0),
}
# No activation here is steeper than this (hardswish at 3).
_SLOPE = 1.5
# exp, erf and tanh in fp32 are polynomials: some units of the argument's own rounding.
_SMOOTH = ("gelu", "gelu_tanh", "silu", "hardswish")


def bound(expected: Expected, c: float = 1.0) -> Array:
    """Largest error of an fp32 sum: c * eps * (terms + 1) * sum of absolute terms."""
    with np.errstate(all="ignore"):
        return (c * EPS * expected.magnitude + _TINY) * (expected.terms + 1)


def assert_close(
    got: NDArray,
    expected: Expected,
    dtype: str = "float32",
    activation: str = "none",
    c: float = 1.0,
    extra: Array | float = 0.0,
    what: str = "",
) -> None:
    """Fail unless every element of ``got`` is as near to ``expected`` as its rounding explains.

    Args:
        got: result as float (any width), the shape of ``expected.value``.
        expected: from the oracle, before the activation.
        dtype: what the operator stored its result in.
        activation: applied to ``expected.value`` here.
        c: factor on the summation's bound.
        extra: further error allowed per element before the activation (quantized activations).
        what: begins the failure's text.

    Raises:
        AssertionError: names the worst element, its value, the expected one and the bound.
    """
    got = np.asarray(got, np.float64)
    want = activate(expected.value, activation)
    assert got.shape == want.shape, f"{what}: shape must be {want.shape}, got {got.shape}"
    if got.size == 0:
        return
    relative, absolute, overflow = _STORED[dtype]
    with np.errstate(all="ignore"):
        # With an infinity among the terms nothing is rounded: relu(-inf) is 0 and nothing near it.
        allowed = np.where(np.isfinite(expected.magnitude), bound(expected, c) + extra, 0.0)
        if activation != "none":
            allowed = _SLOPE * allowed
        if activation in _SMOOTH:
            finite = np.isfinite(expected.value)
            allowed = allowed + np.where(finite, 8 * EPS * (1.0 + np.abs(expected.value)), 0.0)
        rounding = np.where(np.isfinite(want), relative * (np.abs(want) + allowed), 0.0)
        # Near the overflow of the stored dtype both the largest value and infinity are right.
        must_overflow = np.abs(want) - allowed >= overflow
        may_overflow = (np.abs(want) + allowed >= overflow) & ~must_overflow
        allowed = allowed + rounding + absolute
        stored = np.where(must_overflow, np.copysign(np.inf, want), want)

    _same_where(np.isnan(got), np.isnan(stored), got, stored, f"{what}: NaN")
    infinite = np.isinf(stored) & ~may_overflow
    _same_where(np.isinf(got) & ~may_overflow, infinite, got, stored, f"{what}: infinity")
    wrong_sign = infinite & (got != stored)
    assert not wrong_sign.any(), f"{what}: infinity of the wrong sign at {_first(wrong_sign)}"
    edge = np.isinf(got) & may_overflow
    assert (np.sign(got[edge]) == np.sign(want[edge])).all(), f"{what}: overflow of the wrong sign"

    finite = np.isfinite(stored) & np.isfinite(got)
    excess = np.zeros(got.shape)
    with np.errstate(all="ignore"):
        excess[finite] = np.abs(got - stored)[finite] / allowed[finite]
    if (excess > 1.0).any():
        worst = np.unravel_index(int(np.argmax(excess)), excess.shape)
        raise AssertionError(
            f"{what}: {int((excess > 1.0).sum())} of {got.size} elements are off; worst at "
            f"{tuple(map(int, worst))}: expected {stored[worst]!r}, got {got[worst]!r}, "
            f"error {abs(got[worst] - stored[worst]):.3g}, allowed {allowed[worst]:.3g}"
        )


def _first(where: NDArray[np.bool_]) -> tuple[int, ...]:
    return tuple(int(i) for i in np.argwhere(where)[0])


def _same_where(
    got: NDArray[np.bool_], want: NDArray[np.bool_], g: NDArray, w: NDArray, what: str
) -> None:
    differ = got != want
    if differ.any():
        at = _first(differ)
        raise AssertionError(
            f"{what} must stand where expected; at {at}: expected {w[at]!r}, got {g[at]!r}"
        )
