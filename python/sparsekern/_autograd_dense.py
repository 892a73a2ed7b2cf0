# SPDX-License-Identifier: Apache-2.0
"""Gradients of linear layers by way of the dense matrix, for formats without a transposed kernel.

A backward pass needs W^T. Where no kernel multiplies with it, and so many weights are kept that a
dense product is as fast, these operators unpack W: ``<family>_linear_transposed`` (x W) and
``<family>_sddmm`` (the entries of grad^T x at the kept weights). Both are differentiable.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparsekern._fakes import check_parts, register_fake, sddmm
from sparsekern._packed import DTYPE_NAMES, from_numpy, to_numpy
from sparsekern.autograd import linear_backward, linear_transposed_backward, save, save_transposed

_ops = torch.ops.sparsekern
_Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Family:
    """A format's functions at NumPy level.

    Attributes:
        name: of the operators, "nm" of ``nm_linear``.
        info: the header of a structure, with rows and cols.
        unpack: values, structure and dtype to the dense matrix.
        repack: a dense float32 matrix and a structure to the values at its kept weights.
    """

    name: str
    info: Callable[[_Bytes], Any]
    unpack: Callable[[NDArray[Any], _Bytes, str], NDArray[Any]]
    repack: Callable[[NDArray[Any], _Bytes], NDArray[Any]]


def _dense(family: Family, values: Tensor, structure: Tensor, scale: Tensor | None) -> Tensor:
    stored = values.detach().cpu()
    if stored.is_floating_point():
        stored = stored + 0.0  # -0 becomes 0, as a format may have it where there is no weight
    array = family.unpack(to_numpy(stored), to_numpy(structure.cpu()), DTYPE_NAMES[values.dtype])
    dense = from_numpy(array, values.dtype).to(values.device)
    return dense if scale is None else dense.float() * scale[:, None]


def _linear_transposed(
    family: Family,
    x: Tensor,
    values: Tensor,
    structure: Tensor,
    scale: Tensor | None,
    cols: int,
) -> Tensor:
    """Product x W: x [..., rows], result [..., cols]; in float32, rounded to the dtype of x."""
    operator = f"{family.name}_linear_transposed"
    check_parts(operator, x, values, structure, scale, None, x.shape[-1])
    dense = _dense(family, values, structure, scale)
    if tuple(dense.shape) != (x.shape[-1], cols):
        raise ValueError(
            f"{operator}: x.shape[-1] and cols must be the structure's {list(dense.shape)}, got "
            f"{[x.shape[-1], cols]}"
        )
    with torch.autocast(x.device.type, enabled=False):
        return (x.float() @ dense.float()).to(x.dtype)


def _sddmm(family: Family, grad: Tensor, x: Tensor, structure: Tensor, numel: int) -> Tensor:
    """The entries of grad^T x at the stored weights, in the order of values; float32."""
    operator = f"{family.name}_sddmm"
    info = family.info(to_numpy(structure.cpu()))
    shape = (info["rows"], info["cols"])
    same_rows = grad.dim() == 2 and x.dim() == 2 and grad.shape[0] == x.shape[0]
    if not same_rows or (grad.shape[1], x.shape[1]) != shape:
        raise ValueError(
            f"{operator}: grad and x must be [m, {shape[0]}] and [m, {shape[1]}], got "
            f"{list(grad.shape)} and {list(x.shape)}"
        )
    if grad.dtype != x.dtype:
        raise TypeError(f"{operator}: grad must have the dtype of x ({x.dtype}), got {grad.dtype}")
    with torch.autocast(x.device.type, enabled=False):
        product = (grad.float().T @ x.float()).cpu().contiguous()
    values = family.repack(product.numpy(), to_numpy(structure.cpu()))
    if values.size != numel:
        raise ValueError(f"{operator}: numel must be that of values ({values.size}), got {numel}")
    return torch.from_numpy(values).to(x.device)


def _linear_transposed_fake(
    operator: str, x: Tensor, values: Tensor, structure: Tensor, scale: Tensor | None, cols: int
) -> Tensor:
    check_parts(operator, x, values, structure, scale, None, x.shape[-1])
    return x.new_empty((*x.shape[:-1], cols))


def _save_linear(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    save(ctx, (*inputs, False), output)


def _save_sddmm(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])


def _sddmm_backward(family: str, ctx: Any, grad_values: Tensor) -> tuple[Tensor | None, ...]:
    linear, transposed, sampled = (
        getattr(_ops, f"{family}_{name}") for name in ("linear", "linear_transposed", "sddmm")
    )
    grad, x, structure = ctx.saved_tensors
    # What arrives for padding entries is not the gradient of a weight: only stored ones count.
    ones = grad.new_ones((1, grad.shape[1])), x.new_ones((1, x.shape[1]))
    stored = sampled(*ones, structure, grad_values.numel())
    weights = torch.where(stored > 0, grad_values, 0.0)
    grad_grad = grad_x = None
    if ctx.needs_input_grad[0]:
        grad_grad = linear(x, weights, structure, None, None, grad.shape[1])
    if ctx.needs_input_grad[1]:
        grad_x = transposed(grad, weights, structure, None, x.shape[1])
    return grad_grad, grad_x, None, None


def register(family: Family, library: Any) -> None:
    """Define both operators in `library` and give ``<family>_linear`` and them gradients."""
    name = family.name
    library.define(
        f"{name}_linear_transposed(Tensor x, Tensor values, Tensor structure, Tensor? scale,"
        " int cols) -> Tensor"
    )
    library.define(f"{name}_sddmm(Tensor grad, Tensor x, Tensor structure, int numel) -> Tensor")
    transposed = f"{name}_linear_transposed"
    library.impl(transposed, partial(_linear_transposed, family), "CompositeExplicitAutograd")
    library.impl(f"{name}_sddmm", partial(_sddmm, family), "CompositeExplicitAutograd")
    register_fake(transposed)(partial(_linear_transposed_fake, transposed))
    register_fake(f"{name}_sddmm")(partial(sddmm, f"{name}_sddmm"))
    for operator, backward, setup in (
        (f"{name}_linear", linear_backward(name, 7), _save_linear),
        (transposed, linear_transposed_backward(name), save_transposed),
        (f"{name}_sddmm", partial(_sddmm_backward, name), _save_sddmm),
    ):
        torch.library.register_autograd(f"sparsekern::{operator}", backward, setup_context=setup)
