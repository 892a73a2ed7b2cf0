# SPDX-License-Identifier: Apache-2.0
"""The products of a layer in training, and where the N:M kernels do them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from sparsekern import ops
from sparsekern._nm_mask import nm_mask
from sparsekern.patterns import NM

from .mvue import MVUE

__all__ = ["kernel_pays", "masked_conv2d", "masked_linear"]

KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

_nm_pack = torch.ops.sparsekern.nm_pack.default
_nm_select_pack = torch.ops.sparsekern.nm_select_pack.default


def kernel_pays(pattern: NM, x_rows: int, dtype: torch.dtype) -> bool:
    """Whether packing W and multiplying by the kernel is faster than a dense product.

    Packing costs the same whatever the rows of x, so it takes some to pay for it. Measured on
    AVX-512 without bfloat16 instructions; docs/training.md has the reasons.
    """
    if dtype == torch.float32:
        return x_rows >= 512 and 4 * pattern.n <= pattern.m
    return x_rows >= 64 and not _fast_bfloat16()


def _fast_bfloat16() -> bool:
    """Whether dense products of 16-bit floats have instructions of their own."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def use_kernel(choice: str, pattern: NM, x: Tensor, x_rows: int) -> bool:
    """Whether the kernel multiplies, by a recipe's `kernel`."""
    if choice == "never" or x.device.type != "cpu" or x.dtype not in KERNEL_DTYPES:
        return False
    return choice == "always" or kernel_pays(pattern, x_rows, x.dtype)


def _product(x: Tensor, w: Tensor, mask: Tensor | None, pattern: NM, bias: Tensor | None) -> Tensor:
    """X (w * mask)^T + bias by the kernel; without a mask that of the largest magnitudes."""
    if mask is None:
        values, structure = _nm_select_pack(w, pattern.n, pattern.m)
    else:
        values, structure = _nm_pack(w, mask, pattern.n, pattern.m)
    return ops.linear_nm(x, values, structure, None, bias, w.shape[0], 0)


class _MaskedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        w: Tensor,
        mask: Tensor | None,
        w_back: Tensor | None,
        mask_back: Tensor | None,
        bias: Tensor | None,
        pattern: NM | None,
        kernel: str,
        prune: MVUE | None,
        select: bool,
    ) -> Tensor:
        ctx.save_for_backward(x, w, mask, w_back, mask_back)
        ctx.pattern, ctx.kernel, ctx.prune, ctx.select = pattern, kernel, prune, select
        ctx.bias_dtype = None if bias is None else bias.dtype
        if select:
            assert pattern is not None
            return _product(x, w, None, pattern, bias)
        if mask is None:
            return functional.linear(x, w, bias)
        assert pattern is not None
        if use_kernel(kernel, pattern, x, x.numel() // max(1, x.shape[-1])):
            return _product(x, w, mask, pattern, bias)
        return functional.linear(x, torch.where(mask, w, 0.0), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, w, mask, w_back, mask_back = ctx.saved_tensors
        flat = grad.reshape(-1, grad.shape[-1])
        grad_x = grad_w = grad_bias = None
        if ctx.needs_input_grad[0]:
            used = w if w_back is None else w_back
            pattern: NM | None = ctx.pattern
            if mask_back is None and not ctx.select:
                if w_back is None and mask is not None:
                    used = torch.where(mask, used, 0.0)
                grad_x = grad @ used
            elif use_kernel(ctx.kernel, pattern, grad, flat.shape[0]):  # type: ignore[arg-type]
                grad_x = _product(grad, used.t(), mask_back, pattern, None)  # type: ignore[arg-type]
            else:
                if mask_back is None:
                    kept = nm_mask(used, pattern.n, pattern.m, dim=0)  # type: ignore[union-attr]
                else:
                    kept = mask_back.t()
                grad_x = grad @ torch.where(kept, used, 0.0)
        if ctx.needs_input_grad[1]:
            rows = flat if ctx.prune is None else ctx.prune(flat, 0)
            grad_w = rows.t() @ x.reshape(-1, x.shape[-1])
        if ctx.bias_dtype is not None and ctx.needs_input_grad[5]:
            grad_bias = flat.sum(0, dtype=torch.float32).to(ctx.bias_dtype)
        return grad_x, grad_w, None, None, None, grad_bias, None, None, None, None


def masked_linear(
    x: Tensor,
    w: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    *,
    w_back: Tensor | None = None,
    mask_back: Tensor | None = None,
    pattern: NM | None = None,
    kernel: str = "auto",
    prune: MVUE | None = None,
    select: bool = False,
) -> Tensor:
    """X (w * mask)^T + bias, with the gradients that a recipe asks for. Differentiable once.

    Args:
        x: [..., in].
        w: [out, in], the dtype of x. Its gradient is dY^T x, whatever the mask.
        mask: bool [out, in], N:M along the inputs, or None: dense.
        bias: [out] or None.
        w_back: [out, in], multiplies dY for the gradient of x instead of w; a constant.
        mask_back: bool [in, out], N:M along the outputs: the mask of that product. Where both are
            None, it is the forward weight.
        pattern: of the masks.
        kernel: of `Recipe`.
        prune: applied to dY before its product with x, or None.
        select: choose the largest magnitudes of w and of w_back while they are packed; both masks
            are None then, and the kernel multiplies.

    Returns:
        [..., out], the dtype of x.
    """
    y: Tensor = _MaskedLinear.apply(  # type: ignore[no-untyped-call]
        x, w, mask, w_back, mask_back, bias, pattern, kernel, prune, select
    )
    return y


class _MaskedConv2d(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        w: Tensor,
        w_back: Tensor | None,
        bias: Tensor | None,
        stride: tuple[int, int],
        padding: tuple[int, int],
        dilation: tuple[int, int],
        prune: MVUE | None,
    ) -> Tensor:
        ctx.save_for_backward(x, w, w_back)
        ctx.geometry, ctx.prune = (stride, padding, dilation), prune
        ctx.has_bias = bias is not None
        return functional.conv2d(x, w, bias, stride, padding, dilation)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, w, w_back = ctx.saved_tensors
        needs_x, needs_w = ctx.needs_input_grad[:2]
        grad_x = grad_w = grad_bias = None
        if needs_x:
            used = w if w_back is None else w_back
            grad_x = _conv_backward(grad, x, used, ctx.geometry, (True, False, False))[0]
        if needs_w:
            rows = grad if ctx.prune is None else ctx.prune(grad.flatten(2), 2).view_as(grad)
            grad_w = _conv_backward(rows, x, w, ctx.geometry, (False, True, False))[1]
        if ctx.has_bias and ctx.needs_input_grad[3]:
            grad_bias = grad.sum((0, 2, 3))
        return grad_x, grad_w, None, grad_bias, None, None, None, None


def _conv_backward(
    grad: Tensor, x: Tensor, w: Tensor, geometry: Any, wanted: tuple[bool, bool, bool]
) -> tuple[Tensor | None, ...]:
    stride, padding, dilation = geometry
    result: tuple[Tensor | None, ...] = torch.ops.aten.convolution_backward(
        grad, x, w, None, stride, padding, dilation, False, (0, 0), 1, wanted
    )
    return result


def masked_conv2d(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    *,
    w_back: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    prune: MVUE | None,
) -> Tensor:
    """A convolution, dense, whose gradients use `w_back` and `prune` as `masked_linear` does.

    `prune` works along the pixels of each channel. w is the forward weight, masked already.
    """
    y: Tensor = _MaskedConv2d.apply(  # type: ignore[no-untyped-call]
        x, w, w_back, bias, stride, padding, dilation, prune
    )
    return y
