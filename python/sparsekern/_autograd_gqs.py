# SPDX-License-Identifier: Apache-2.0
"""Gradients of `gqs_linear`: of x, the scales and the zero-points, by way of the dense matrix.

Codes are constants: E2E-OQP of GQSA (arXiv 2412.17560, section 3.3) trains scales and zero-points
alone. With w = (q - z) s in a group and D = dL/dW = grad^T x: dL/ds = sum D (q - z) and
dL/dz = -s sum D. Rounding of x to int8 counts as none. W^T has no groups along its rows, so that
no kernel here multiplies with it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsekern._activations import ACTIVATIONS, Activation
from sparsekern._fakes import check_gqs_parts, register_fake
from sparsekern.gqs import GQSTensor, grouped, to_columns

_library: Any = torch.library.Library("sparsekern", "FRAGMENT")  # type: ignore[no-untyped-call]
_library.define(
    "gqs_linear_transposed(Tensor x, Tensor values, Tensor structure, Tensor scale, int cols)"
    " -> Tensor"
)
_library.define(
    "gqs_scale_gradient(Tensor grad, Tensor x, Tensor values, Tensor structure, Tensor scale)"
    " -> Tensor"
)
_ops = torch.ops.sparsekern
_Grads = tuple[Tensor | None, ...]


def _gqs_linear_transposed(
    x: Tensor, values: Tensor, structure: Tensor, scale: Tensor, cols: int
) -> Tensor:
    """Product x W: x [..., rows], result [..., cols]; in float32, rounded to the dtype of x."""
    operator = "gqs_linear_transposed"
    check_gqs_parts(operator, x, values, structure, scale, None, x.shape[-1])
    dense = GQSTensor.trusted(values.detach(), structure, scale.detach()).to_dense()
    if tuple(dense.shape) != (x.shape[-1], cols):
        raise ValueError(
            f"{operator}: x.shape[-1] and cols must be the structure's {list(dense.shape)}, got "
            f"{[x.shape[-1], cols]}"
        )
    with torch.autocast(x.device.type, enabled=False):
        return (x.float() @ dense).to(x.dtype)


def _gqs_scale_gradient(
    grad: Tensor, x: Tensor, values: Tensor, structure: Tensor, scale: Tensor
) -> Tensor:
    """The gradient of what `scale` holds, in float32, of grad [m, rows] and x [m, cols]."""
    w = GQSTensor.trusted(values.detach(), structure, scale.detach())
    rows, cols = w.shape
    if grad.dim() != 2 or x.dim() != 2 or (grad.shape[1], x.shape[1]) != (rows, cols):
        raise ValueError(
            f"gqs_scale_gradient: grad and x must be [m, {rows}] and [m, {cols}], got "
            f"{list(grad.shape)} and {list(x.shape)}"
        )
    if not scale.is_floating_point():
        raise TypeError(f"gqs_scale_gradient: scale must be floating-point, got {scale.dtype}")
    with torch.autocast(x.device.type, enabled=False):
        of_dense = grad.float().T @ x.float()
    mask = w.group_mask()
    codes = w.codes().float()
    if w.zeros is not None:
        codes -= to_columns(w.spread(w.zeros), w.group, cols)
    parts = [grouped(of_dense * codes, w.group).sum(2)[mask]]
    if w.zeros is not None:
        parts.append(grouped(of_dense, w.group).sum(2)[mask] * -w.scales.float())
    return torch.cat(parts)


_library.impl("gqs_linear_transposed", _gqs_linear_transposed, "CompositeExplicitAutograd")
_library.impl("gqs_scale_gradient", _gqs_scale_gradient, "CompositeExplicitAutograd")


@register_fake("gqs_linear_transposed")
def _gqs_linear_transposed_fake(
    x: Tensor, values: Tensor, structure: Tensor, scale: Tensor, cols: int
) -> Tensor:
    check_gqs_parts("gqs_linear_transposed", x, values, structure, scale, None, x.shape[-1])
    return x.new_empty((*x.shape[:-1], cols))


@register_fake("gqs_scale_gradient")
def _gqs_scale_gradient_fake(
    grad: Tensor, x: Tensor, values: Tensor, structure: Tensor, scale: Tensor
) -> Tensor:
    return scale.new_empty(scale.shape, dtype=torch.float32)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, values, structure, scale, bias, rows, activation, _ = inputs  # the last: int8_activations
    known: Activation = ACTIVATIONS[activation]
    result = output if known.saves_result and known.name != "none" else None
    uses_x = scale.requires_grad or not known.saves_result
    ctx.save_for_backward(x if uses_x else None, values, structure, scale, bias, result)
    ctx.shape, ctx.rows, ctx.activation = x.shape, rows, activation


def _backward(ctx: Any, grad: Tensor) -> _Grads:
    x, values, structure, scale, bias, result = ctx.saved_tensors
    activation: Activation = ACTIVATIONS[ctx.activation]
    if not activation.saves_result:
        result = _ops.gqs_linear(x, values, structure, scale, bias, ctx.rows)
    grad = activation.gradient(grad, result)
    grads: list[Tensor | None] = [None] * 8
    cols = ctx.shape[-1]
    if ctx.needs_input_grad[0]:
        grads[0] = _ops.gqs_linear_transposed(grad, values, structure, scale, cols)
    flat = grad.reshape(-1, ctx.rows)
    if ctx.needs_input_grad[3]:
        parts = (values, structure, scale)
        grads[3] = _ops.gqs_scale_gradient(flat, x.reshape(-1, cols), *parts).to(scale.dtype)
    if bias is not None and ctx.needs_input_grad[4]:
        grads[4] = flat.sum(0, dtype=torch.float32).to(bias.dtype)
    return tuple(grads)


def _save_transposed(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, values, structure, scale, _ = inputs
    ctx.save_for_backward(x if scale.requires_grad else None, values, structure, scale)
    ctx.rows = x.shape[-1]


def _transposed_backward(ctx: Any, grad: Tensor) -> _Grads:
    x, values, structure, scale = ctx.saved_tensors
    grad_x = grad_scale = None
    if ctx.needs_input_grad[0]:
        grad_x = _ops.gqs_linear(grad, values, structure, scale, None, ctx.rows)
    if ctx.needs_input_grad[3]:
        flat = grad.reshape(-1, grad.shape[-1])
        parts = (values, structure, scale)
        grad_scale = _ops.gqs_scale_gradient(x.reshape(-1, ctx.rows), flat, *parts)
        grad_scale = grad_scale.to(scale.dtype)
    return grad_x, None, None, grad_scale, None


def _no_second_gradient(ctx: Any, grad: Tensor) -> _Grads:
    raise NotImplementedError("gqs_linear: scales and zero-points have no second gradients")


torch.library.register_autograd("sparsekern::gqs_linear", _backward, setup_context=_save)
torch.library.register_autograd(
    "sparsekern::gqs_linear_transposed", _transposed_backward, setup_context=_save_transposed
)
torch.library.register_autograd("sparsekern::gqs_scale_gradient", _no_second_gradient)
