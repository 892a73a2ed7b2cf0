# SPDX-License-Identifier: Apache-2.0
"""N:M masks: the function over the operator, and the operator on devices other than the CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsekern._library import translated
from sparsekern._order import sort_keys

__all__ = ["nm_mask"]

GROUP_SIZES = (2, 4, 8, 16, 32)
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

_nm_mask = torch.ops.sparsekern.nm_mask.default


def check_group(operator: str, n: object, m: object) -> None:
    """Raise unless N:M is something that can be kept.

    Raises:
        TypeError: not integers.
        NotImplementedError: an m that no kernel and no format has.
        ValueError: n out of [1, m - 1].
    """
    for name, value in (("n", n), ("m", m)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{operator}: {name} must be an integer, got {type(value).__name__}")
    assert isinstance(n, int)
    assert isinstance(m, int)
    if m not in GROUP_SIZES:
        sizes = ", ".join(map(str, GROUP_SIZES))
        raise NotImplementedError(f"{operator}: m must be one of {sizes}, got {m}")
    if not 1 <= n < m:
        raise ValueError(f"{operator}: n must be in [1, m - 1] = [1, {m - 1}], got {n}")


def check_float(operator: str, name: str, value: object) -> None:
    """Raise TypeError unless `value` is a floating-point tensor."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        got = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{operator}: {name} must be a floating-point tensor, got {got}")


def nm_mask(w: Tensor, n: int, m: int, dim: int = -1, score: Tensor | None = None) -> Tensor:
    """Which weights an N:M pattern keeps: the n largest of every m consecutive ones.

    "N:M" here says how many are KEPT, as the hardware that made 2:4 known does (Mishra et al. 2021,
    "Accelerating Sparse Deep Neural Networks", arXiv:2104.08378). Wanda and its descendants write
    N:M for N zeros in M: their 1:4 is this library's 3:4.

    Groups run along `dim` and begin anew in every row; a short last group of k keeps min(n, k).
    Ties keep the lower index, -0.0 equals 0.0, and a NaN is never kept over a number, not even over
    -inf. Not differentiable.

    Args:
        w: any shape with at least one dimension, float32, bfloat16 or float16 (by the kernel on a
            CPU) or another floating-point dtype (in torch, exactly); any strides, any device.
        n: weights to keep of each group, in [1, m - 1].
        m: size of a group: 2, 4, 8, 16 or 32.
        dim: the dimension that groups run along.
        score: what to compare instead of |w|, the shape of w, floating point; compared as numbers,
            not by magnitude.

    Returns:
        bool, the shape of w, on the score's device, contiguous: True = kept.

    Raises:
        TypeError: w or score is not a floating-point tensor; n or m is not an integer.
        ValueError: n >= m or n < 1; no such dim; a score of another shape.
        NotImplementedError: an m without kernel.
    """
    check_group("nm_mask", n, m)
    check_float("nm_mask", "w", w)
    values = w
    if score is not None:
        check_float("nm_mask", "score", score)
        if score.shape != w.shape:
            raise ValueError(
                f"nm_mask: score must have the shape of w ({list(w.shape)}), "
                f"got {list(score.shape)}"
            )
        values = score
    if isinstance(dim, bool) or not isinstance(dim, int):
        raise TypeError(f"nm_mask: dim must be an integer, got {type(dim).__name__}")
    if not -w.dim() <= dim < w.dim():
        raise ValueError(
            f"nm_mask: dim must be in [{-w.dim()}, {w.dim() - 1}] for {w.dim()} dimensions, got "
            f"{dim}"
        )
    along = values.detach().movedim(dim, -1)
    rows = along.reshape(-1, along.shape[-1]) if along.numel() else along.reshape(0, 1)
    if rows.dtype in _DTYPES:
        try:
            mask: Tensor = _nm_mask(rows, n, m, score is None)
        except RuntimeError as error:
            raise translated(error) from None
    else:
        mask = _in_torch(rows, n, m, score is None)
    kept = mask.reshape(along.shape).movedim(-1, dim)
    return kept.contiguous()


def _in_torch(score: Tensor, n: int, m: int, magnitude: bool) -> Tensor:
    """The operator for any device and floating-point dtype: a stable sort within the groups."""
    rows, cols = score.shape
    if score.dtype not in (torch.float32, torch.float64):
        score = score.float()
    keys = sort_keys(score.abs() if magnitude else score)
    # Padding is lowest and comes last, so it beats nothing.
    keys = torch.nn.functional.pad(keys, (0, -cols % m), value=torch.iinfo(keys.dtype).min)
    groups = keys.reshape(rows * (keys.shape[1] // m), m)
    best = groups.sort(dim=1, descending=True, stable=True).indices[:, :n]
    mask = torch.zeros(groups.shape, dtype=torch.bool, device=score.device)
    return mask.scatter_(1, best, True).reshape(keys.shape)[:, :cols].contiguous()


def _check(score: Tensor, n: int, m: int) -> None:
    check_group("nm_mask", n, m)
    if score.dtype not in _DTYPES:
        raise TypeError(f"nm_mask: score must be float32, bfloat16 or float16, got {score.dtype}")
    if score.dim() != 2:
        raise ValueError(f"nm_mask: score must be [rows, cols], got {score.dim()} dimensions")


@torch.library.impl("sparsekern::nm_mask", "CompositeExplicitAutograd")
def _nm_mask_elsewhere(score: Tensor, n: int, m: int, magnitude: bool = False) -> Tensor:
    _check(score, n, m)
    return _in_torch(score, n, m, magnitude)


@torch.library.register_fake("sparsekern::nm_mask")  # type: ignore[untyped-decorator]
def _nm_mask_fake(score: Tensor, n: int, m: int, magnitude: bool = False) -> Tensor:
    _check(score, n, m)
    rows, cols = score.shape
    if _lies_transposed(score):
        return score.new_empty((cols, rows), dtype=torch.bool).t()
    return score.new_empty((rows, cols), dtype=torch.bool)


def _lies_transposed(score: Tensor) -> bool:
    """Whether the kernel takes a matrix as the transposed of what is contiguous; CPU only."""
    if score.device.type != "cpu" or score.is_contiguous():
        return False
    return score.stride() == (1, score.shape[0])
