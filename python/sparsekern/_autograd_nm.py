# SPDX-License-Identifier: Apache-2.0
"""Gradients of `nm_linear`: of x and of the values, by way of the dense matrix.

A backward pass needs W^T, whose columns are N:M and whose rows are not: no kernel here multiplies
with it (a transposable mask would make it one). So these products unpack W. Layers that train from
scratch do not come here: they keep dense weights and masks.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from sparsekern import _core
from sparsekern._fakes import check_parts, register_fake, sddmm
from sparsekern._packed import DTYPE_NAMES, from_numpy, to_numpy
from sparsekern.autograd import linear_backward, linear_transposed_backward, save, save_transposed

_library: Any = torch.library.Library("sparsekern", "FRAGMENT")  # type: ignore[no-untyped-call]
_library.define(
    "nm_linear_transposed(Tensor x, Tensor values, Tensor structure, Tensor? scale, int cols)"
    " -> Tensor"
)
_library.define("nm_sddmm(Tensor grad, Tensor x, Tensor structure, int numel) -> Tensor")
_ops = torch.ops.sparsekern
_Grads = tuple[Tensor | None, ...]


def _dense(values: Tensor, structure: Tensor, scale: Tensor | None) -> Tensor:
    stored = values.detach().cpu()
    if stored.is_floating_point():
        stored = stored + 0.0  # -0 becomes 0, as the format has it where there is no weight
    array = _core.nm_unpack(to_numpy(stored), to_numpy(structure.cpu()), DTYPE_NAMES[values.dtype])
    dense = from_numpy(array, values.dtype).to(values.device)
    return dense if scale is None else dense.float() * scale[:, None]


def _nm_linear_transposed(
    x: Tensor, values: Tensor, structure: Tensor, scale: Tensor | None, cols: int
) -> Tensor:
    """Product x W: x [..., rows], result [..., cols]; in float32, rounded to the dtype of x."""
    operator = "nm_linear_transposed"
    check_parts(operator, x, values, structure, scale, None, x.shape[-1])
    dense = _dense(values, structure, scale)
    if tuple(dense.shape) != (x.shape[-1], cols):
        raise ValueError(
            f"{operator}: x.shape[-1] and cols must be the structure's {list(dense.shape)}, got "
            f"{[x.shape[-1], cols]}"
        )
    with torch.autocast(x.device.type, enabled=False):
        return (x.float() @ dense.float()).to(x.dtype)


def _nm_sddmm(grad: Tensor, x: Tensor, structure: Tensor, numel: int) -> Tensor:
    """The entries of grad^T x at the stored weights, in the order of values; float32."""
    info = _core.nm_info(to_numpy(structure.cpu()))
    shape = (info["rows"], info["cols"])
    same_rows = grad.dim() == 2 and x.dim() == 2 and grad.shape[0] == x.shape[0]
    if not same_rows or (grad.shape[1], x.shape[1]) != shape:
        raise ValueError(
            f"nm_sddmm: grad and x must be [m, {shape[0]}] and [m, {shape[1]}], got "
            f"{list(grad.shape)} and {list(x.shape)}"
        )
    if grad.dtype != x.dtype:
        raise TypeError(f"nm_sddmm: grad must have the dtype of x ({x.dtype}), got {grad.dtype}")
    with torch.autocast(x.device.type, enabled=False):
        product = (grad.float().T @ x.float()).cpu().contiguous()
    kept = _core.nm_mask_of(to_numpy(structure.cpu()))
    values, _ = _core.nm_pack(product.numpy(), "float32", info["n"], info["m"], kept)
    if values.size != numel:
        raise ValueError(f"nm_sddmm: numel must be that of values ({values.size}), got {numel}")
    return torch.from_numpy(values).to(x.device)


_library.impl("nm_linear_transposed", _nm_linear_transposed, "CompositeExplicitAutograd")
_library.impl("nm_sddmm", _nm_sddmm, "CompositeExplicitAutograd")


@register_fake("nm_linear_transposed")
def _nm_linear_transposed_fake(
    x: Tensor, values: Tensor, structure: Tensor, scale: Tensor | None, cols: int
) -> Tensor:
    check_parts("nm_linear_transposed", x, values, structure, scale, None, x.shape[-1])
    return x.new_empty((*x.shape[:-1], cols))


register_fake("nm_sddmm")(partial(sddmm, "nm_sddmm"))


def _save_linear(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    save(ctx, (*inputs, False), output)


def _save_sddmm(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])


def _nm_sddmm_backward(ctx: Any, grad_values: Tensor) -> _Grads:
    grad, x, structure = ctx.saved_tensors
    # What arrives for padding entries is not the gradient of a weight: only stored ones count.
    ones = grad.new_ones((1, grad.shape[1])), x.new_ones((1, x.shape[1]))
    stored = _ops.nm_sddmm(*ones, structure, grad_values.numel())
    weights = torch.where(stored > 0, grad_values, 0.0)
    grad_grad = grad_x = None
    if ctx.needs_input_grad[0]:
        grad_grad = _ops.nm_linear(x, weights, structure, None, None, grad.shape[1])
    if ctx.needs_input_grad[1]:
        grad_x = _ops.nm_linear_transposed(grad, weights, structure, None, x.shape[1])
    return grad_grad, grad_x, None, None


for _name, _backward, _setup in (
    ("nm_linear", linear_backward("nm", 7), _save_linear),
    ("nm_linear_transposed", linear_transposed_backward("nm"), save_transposed),
    ("nm_sddmm", _nm_sddmm_backward, _save_sddmm),
):
    torch.library.register_autograd(f"sparsekern::{_name}", _backward, setup_context=_setup)
