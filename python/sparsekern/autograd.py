# SPDX-License-Identifier: Apache-2.0
"""Gradients of the operators, and the products with the transposed matrix that they need.

Of `csr_linear` and `csr_conv2d`: with respect to x and bias always, to the values when they are
floating-point. int8 values and their scale are constants, and the rounding of x to int8 counts as
none (a straight-through estimate). Every formula below is made of operators that have one here too,
so gradients of gradients work. All of it is deterministic.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sparsekern import ops
from sparsekern._activations import ACTIVATIONS, Activation
from sparsekern._fakes import check_parts, register_fake
from sparsekern._transpose import TransposedPattern, transposed

_library: Any = torch.library.Library("sparsekern", "FRAGMENT")  # type: ignore[no-untyped-call]
_library.define(
    "csr_linear_transposed(Tensor x, Tensor values, Tensor structure, Tensor? scale, int cols)"
    " -> Tensor"
)
_library.define(
    "csr_conv2d_transposed(Tensor x, Tensor values, Tensor structure, Tensor? scale, int cols)"
    " -> Tensor"
)
_ops = torch.ops.sparsekern
_Grads = tuple[Tensor | None, ...]


# --- x W ------------------------------------------------------------------------------------------
# Operators of their own, because the size of the transposed pattern depends on data, which a
# traced graph could not express: inside an operator it is nobody's business.


def _pattern(
    operator: str, x: Tensor, axis: int, values: Tensor, structure: Tensor, cols: int
) -> TransposedPattern:
    pattern = transposed(structure)
    if x.shape[axis] != pattern.shape[0]:
        raise ValueError(
            f"{operator}: x.shape[{axis}] must equal rows ({pattern.shape[0]}), got {x.shape[axis]}"
        )
    if cols != pattern.shape[1]:
        raise ValueError(
            f"{operator}: cols must equal the structure's ({pattern.shape[1]}), got {cols}"
        )
    if values.numel() != pattern.value_count:
        raise ValueError(
            f"{operator}: values must have {pattern.value_count} elements, got {values.numel()}"
        )
    return pattern


def _csr_linear_transposed(
    x: Tensor, values: Tensor, structure: Tensor, scale: Tensor | None, cols: int
) -> Tensor:
    """Product x W: x [..., rows], result [..., cols]; `scale` as in csr_linear."""
    check_parts("csr_linear_transposed", x, values, structure, scale, None, x.shape[-1])
    pattern = _pattern("csr_linear_transposed", x, -1, values, structure, cols)
    kept = pattern.gather(values)
    if scale is None:
        return ops.linear(x, kept, pattern.structure, None, None, cols, 0)
    # The scale belongs to rows, which are summed over here: x takes it, in float32.
    ones = scale.new_ones(cols)
    y = ops.linear(x.float() * scale, kept, pattern.structure, ones, None, cols, 0)
    return y.to(x.dtype)


def _csr_conv2d_transposed(
    x: Tensor, values: Tensor, structure: Tensor, scale: Tensor | None, cols: int
) -> Tensor:
    """1x1 convolution with W^T: x [batch, rows, h, w], result [batch, cols, h, w]."""
    check_parts("csr_conv2d_transposed", x, values, structure, scale, None, x.shape[1])
    pattern = _pattern("csr_conv2d_transposed", x, 1, values, structure, cols)
    kept = pattern.gather(values)
    if scale is None:
        return ops.conv2d(x, kept, pattern.structure, None, None, cols, 1, 0)
    ones = scale.new_ones(cols)
    scaled = x.float() * scale[:, None, None]
    y = ops.conv2d(scaled, kept, pattern.structure, ones, None, cols, 1, 0)
    return y.to(x.dtype)


_library.impl("csr_linear_transposed", _csr_linear_transposed, "CompositeExplicitAutograd")
_library.impl("csr_conv2d_transposed", _csr_conv2d_transposed, "CompositeExplicitAutograd")


@register_fake("csr_linear_transposed")
def _csr_linear_transposed_fake(
    x: Tensor, values: Tensor, structure: Tensor, scale: Tensor | None, cols: int
) -> Tensor:
    check_parts("csr_linear_transposed", x, values, structure, scale, None, x.shape[-1])
    return x.new_empty((*x.shape[:-1], cols))


@register_fake("csr_conv2d_transposed")
def _csr_conv2d_transposed_fake(
    x: Tensor, values: Tensor, structure: Tensor, scale: Tensor | None, cols: int
) -> Tensor:
    if x.dim() != 4:
        raise ValueError(f"csr_conv2d_transposed: x must have 4 dimensions, got {x.dim()}")
    check_parts("csr_conv2d_transposed", x, values, structure, scale, None, x.shape[1])
    batch, _, height, width = x.shape
    return x.new_empty((batch, cols, height, width))


# --- csr_linear and csr_conv2d --------------------------------------------------------------------


def save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Keep what backward needs and nothing else: x, often the largest, only where it is used."""
    x, values, structure, scale, bias, rows, *rest, _ = inputs  # the last: int8_activations
    if scale is not None and scale.requires_grad:
        raise NotImplementedError(
            "gradients exist for x, bias and floating-point values, got a scale that requires one"
        )
    activation = ACTIVATIONS[rest[-1]]
    result = output if activation.saves_result and activation.name != "none" else None
    uses_x = values.requires_grad or not activation.saves_result
    ctx.save_for_backward(x if uses_x else None, values, structure, scale, bias, result)
    ctx.shape = x.shape
    ctx.rows = rows
    ctx.stride = rest[0] if len(rest) == 2 else 1
    ctx.activation = rest[-1]


def linear_backward(family: str, inputs: int) -> Callable[[Any, Tensor], _Grads]:
    """Backward of ``<family>_linear``, an operator of so many inputs, by the family's products."""
    product, transposed_product, sddmm = (
        getattr(_ops, f"{family}_{name}") for name in ("linear", "linear_transposed", "sddmm")
    )

    def backward(ctx: Any, grad: Tensor) -> _Grads:
        x, values, structure, scale, bias, result = ctx.saved_tensors
        activation: Activation = ACTIVATIONS[ctx.activation]
        if not activation.saves_result:
            result = product(x, values, structure, scale, bias, ctx.rows)
        grad = activation.gradient(grad, result)
        grads: list[Tensor | None] = [None] * inputs
        cols = ctx.shape[-1]
        if ctx.needs_input_grad[0]:
            grads[0] = transposed_product(grad, values, structure, scale, cols)
        if ctx.needs_input_grad[1]:
            flat, x_rows = grad.reshape(-1, ctx.rows), x.reshape(-1, cols)
            grads[1] = sddmm(flat, x_rows, structure, values.numel()).to(values.dtype)
        if bias is not None and ctx.needs_input_grad[4]:
            grads[4] = grad.reshape(-1, ctx.rows).sum(0, dtype=torch.float32).to(bias.dtype)
        return tuple(grads)

    return backward


def _upsampled(small: Tensor, height: int, width: int, stride: int) -> Tensor:
    """Zeros [batch, channels, height, width] with `small` at every stride-th place."""
    if stride == 1:
        return small
    batch, channels, small_height, _ = small.shape
    wide = small.new_zeros((batch, channels, small_height, width))
    wide = torch.slice_scatter(wide, small, 3, 0, width, stride)
    tall = small.new_zeros((batch, channels, height, width))
    return torch.slice_scatter(tall, wide, 2, 0, height, stride)


def _pixels(x: Tensor) -> Tensor:
    """[batch, channels, height, width] as one row of channels per pixel."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _csr_conv2d_backward(ctx: Any, grad: Tensor) -> _Grads:
    x, values, structure, scale, bias, result = ctx.saved_tensors
    activation: Activation = ACTIVATIONS[ctx.activation]
    stride = ctx.stride
    if not activation.saves_result:
        result = _ops.csr_conv2d(x, values, structure, scale, bias, ctx.rows, stride)
    grad = activation.gradient(grad, result)
    grad_x = grad_values = grad_bias = None
    _, cols, height, width = ctx.shape
    if ctx.needs_input_grad[0]:
        small = _ops.csr_conv2d_transposed(grad, values, structure, scale, cols)
        grad_x = _upsampled(small, height, width, stride)
    if ctx.needs_input_grad[1]:
        used = _pixels(x[:, :, ::stride, ::stride])
        grad_values = _ops.csr_sddmm(_pixels(grad), used, structure, values.numel())
        grad_values = grad_values.to(values.dtype)
    if bias is not None and ctx.needs_input_grad[4]:
        grad_bias = grad.sum((0, 2, 3), dtype=torch.float32).to(bias.dtype)
    return grad_x, grad_values, None, None, grad_bias, None, None, None, None


# --- gradients of gradients -----------------------------------------------------------------------


def save_transposed(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Keep what the backward of ``<family>_linear_transposed`` needs."""
    x, values, structure, scale, _ = inputs
    ctx.save_for_backward(x if values.requires_grad else None, values, structure, scale)
    ctx.x_shape = x.shape


def linear_transposed_backward(family: str) -> Callable[[Any, Tensor], _Grads]:
    """Backward of ``<family>_linear_transposed``."""
    product, sddmm = (getattr(_ops, f"{family}_{name}") for name in ("linear", "sddmm"))

    def backward(ctx: Any, grad: Tensor) -> _Grads:
        x, values, structure, scale = ctx.saved_tensors
        rows = ctx.x_shape[-1]
        grad_x = grad_values = None
        if ctx.needs_input_grad[0]:
            grad_x = product(grad, values, structure, scale, None, rows)
        if ctx.needs_input_grad[1]:
            flat = grad.reshape(-1, grad.shape[-1])
            grad_values = sddmm(x.reshape(-1, rows), flat, structure, values.numel())
            grad_values = grad_values.to(values.dtype)
        return grad_x, grad_values, None, None, None

    return backward


def _csr_conv2d_transposed_backward(ctx: Any, grad: Tensor) -> _Grads:
    x, values, structure, scale = ctx.saved_tensors
    grad_x = grad_values = None
    if ctx.needs_input_grad[0]:
        grad_x = _ops.csr_conv2d(grad, values, structure, scale, None, ctx.x_shape[1])
    if ctx.needs_input_grad[1]:
        grad_values = _ops.csr_sddmm(_pixels(x), _pixels(grad), structure, values.numel())
        grad_values = grad_values.to(values.dtype)
    return grad_x, grad_values, None, None, None


def _save_sddmm(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])


def _csr_sddmm_backward(ctx: Any, grad_values: Tensor) -> _Grads:
    grad, x, structure = ctx.saved_tensors
    rows, cols = grad.shape[1], x.shape[1]
    # What arrives for padding entries is not the gradient of a weight: only kept ones count.
    kept = _ops.csr_sddmm(
        grad.new_ones((1, rows)), x.new_ones((1, cols)), structure, grad_values.numel()
    )
    weights = torch.where(kept > 0, grad_values, 0.0)
    grad_grad = grad_x = None
    if ctx.needs_input_grad[0]:
        grad_grad = _ops.csr_linear(x, weights, structure, None, None, rows)
    if ctx.needs_input_grad[1]:
        grad_x = _ops.csr_linear_transposed(grad, weights, structure, None, cols)
    return grad_grad, grad_x, None, None


for _name, _backward, _setup in (
    ("csr_linear", linear_backward("csr", 8), save),
    ("csr_conv2d", _csr_conv2d_backward, save),
    ("csr_linear_transposed", linear_transposed_backward("csr"), save_transposed),
    ("csr_conv2d_transposed", _csr_conv2d_transposed_backward, save_transposed),
    ("csr_sddmm", _csr_sddmm_backward, _save_sddmm),
):
    torch.library.register_autograd(f"sparsekern::{_name}", _backward, setup_context=_setup)
