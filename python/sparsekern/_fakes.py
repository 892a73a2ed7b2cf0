# SPDX-License-Identifier: Apache-2.0
"""Fake kernels, for ``torch.compile`` and ``torch.export``: shapes and dtypes without data."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from sparsekern import _activations

_F = TypeVar("_F", bound=Callable[..., Any])
_X_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_VALUE_DTYPES = (*_X_DTYPES, torch.int8)


def register_fake(name: str) -> Callable[[_F], _F]:
    """`torch.library.register_fake` for an operator of this library, typed."""
    decorator: Callable[[_F], _F] = torch.library.register_fake(f"sparsekern::{name}")
    return decorator


def check_parts(
    operator: str,
    x: Tensor,
    values: Tensor,
    structure: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    rows: int,
) -> None:
    """What can be checked of an operator's arguments without their data."""
    if x.dtype not in _X_DTYPES:
        raise TypeError(f"{operator}: x must be float32, bfloat16 or float16, got {x.dtype}")
    if values.dtype not in _VALUE_DTYPES:
        raise TypeError(
            f"{operator}: values must be float32, bfloat16, float16 or int8, got {values.dtype}"
        )
    if structure.dtype != torch.uint8:
        raise TypeError(f"{operator}: structure must be uint8, got {structure.dtype}")
    for name, part in (("values", values), ("structure", structure)):
        if part.dim() != 1:
            raise ValueError(f"{operator}: {name} must be 1-D, got shape {list(part.shape)}")
    if (scale is not None) != (values.dtype == torch.int8):
        got = "none" if scale is None else "one"
        raise ValueError(f"{operator}: scale must come with int8 values and no others, got {got}")
    if scale is not None and scale.dtype != torch.float32:
        raise TypeError(f"{operator}: scale must be float32, got {scale.dtype}")
    if bias is not None and bias.dtype not in _X_DTYPES:
        raise TypeError(f"{operator}: bias must be float32 or {x.dtype}, got {bias.dtype}")
    for name, vector in (("scale", scale), ("bias", bias)):
        if vector is not None and (vector.dim() != 1 or vector.shape[0] != rows):
            raise ValueError(f"{operator}: {name} must be [{rows}], got {list(vector.shape)}")
    for name, vector in (("values", values), ("structure", structure), ("bias", bias)):
        if vector is not None and vector.device != x.device:
            raise ValueError(
                f"{operator}: {name} must be on {x.device} like x, got {vector.device}"
            )


def check_activation(operator: str, activation: int) -> None:
    """Raise ValueError unless `activation` is a code."""
    last = len(_activations.ACTIVATIONS) - 1
    if not 0 <= activation <= last:
        raise ValueError(f"{operator}: activation must be in [0, {last}], got {activation}")


def check_int8_activations(operator: str, values: Tensor, int8_activations: bool) -> None:
    """Raise TypeError where x would meet other than int8 values in int8."""
    if int8_activations and values.dtype != torch.int8:
        dtype = str(values.dtype).removeprefix("torch.")
        raise TypeError(f"{operator}: int8_activations needs int8 values, got {dtype}")


def _linear(
    operator: str,
    x: Tensor,
    values: Tensor,
    structure: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    rows: int,
    activation: int = 0,
    int8_activations: bool = False,
) -> Tensor:
    check_parts(operator, x, values, structure, scale, bias, rows)
    check_int8_activations(operator, values, int8_activations)
    check_activation(operator, activation)
    if x.dim() < 1:
        raise ValueError(f"{operator}: x must have 1 to 16 dimensions, got 0")
    return x.new_empty((*x.shape[:-1], rows))


for _operator in ("_bitmap_linear_by_torch", "bitmap_linear", "csr_linear", "nm_linear"):
    register_fake(_operator)(partial(_linear, _operator))


def check_gqs_parts(
    operator: str,
    x: Tensor,
    values: Tensor,
    structure: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    rows: int,
) -> None:
    """`check_parts` for group-quantized weights: a scale a group, of several dtypes."""
    if values.dtype != torch.int8:
        raise TypeError(f"{operator}: values must be int8, got {values.dtype}")
    if scale.dtype not in (*_X_DTYPES, torch.uint8):
        raise TypeError(
            f"{operator}: scale must be float32, bfloat16, float16 or uint8, got {scale.dtype}"
        )
    if scale.dim() != 1:
        raise ValueError(f"{operator}: scale must be 1-D, got shape {list(scale.shape)}")
    if scale.device != x.device:
        raise ValueError(f"{operator}: scale must be on {x.device} like x, got {scale.device}")
    row_scale = torch.empty(rows, device="meta")  # stands for the scale of int8 rows
    check_parts(operator, x, values, structure, row_scale, bias, rows)


@register_fake("gqs_linear")
def _gqs_linear_fake(
    x: Tensor,
    values: Tensor,
    structure: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    rows: int,
    activation: int = 0,
    int8_activations: bool = False,
) -> Tensor:
    check_gqs_parts("gqs_linear", x, values, structure, scale, bias, rows)
    check_activation("gqs_linear", activation)
    if x.dim() < 1:
        raise ValueError("gqs_linear: x must have 1 to 16 dimensions, got 0")
    return x.new_empty((*x.shape[:-1], rows))


@register_fake("csr_conv2d")
def _csr_conv2d_fake(
    x: Tensor,
    values: Tensor,
    structure: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    rows: int,
    stride: int = 1,
    activation: int = 0,
    int8_activations: bool = False,
) -> Tensor:
    check_parts("csr_conv2d", x, values, structure, scale, bias, rows)
    check_int8_activations("csr_conv2d", values, int8_activations)
    check_activation("csr_conv2d", activation)
    if x.dim() != 4:
        raise ValueError(
            f"csr_conv2d: x must have 4 dimensions (batch, channels, height, width), got {x.dim()}"
        )
    if stride < 1:
        raise ValueError(f"csr_conv2d: stride must be at least 1, got {stride}")
    batch, _, height, width = x.shape
    return x.new_empty(
        (batch, rows, (height + stride - 1) // stride, (width + stride - 1) // stride)
    )


def sddmm(operator: str, grad: Tensor, x: Tensor, structure: Tensor, numel: int) -> Tensor:
    """The fake kernel of a sampled product."""
    for name, tensor in (("grad", grad), ("x", x)):
        if tensor.dtype not in _X_DTYPES:
            raise TypeError(
                f"{operator}: {name} must be float32, bfloat16 or float16, got {tensor.dtype}"
            )
        if tensor.dim() != 2:
            raise ValueError(f"{operator}: {name} must be 2-D, got shape {list(tensor.shape)}")
    if grad.dtype != x.dtype:
        raise TypeError(f"{operator}: grad must have the dtype of x ({x.dtype}), got {grad.dtype}")
    if structure.dtype != torch.uint8 or structure.dim() != 1:
        raise TypeError(f"{operator}: structure must be a 1-D uint8 tensor")
    if grad.shape[0] != x.shape[0]:
        raise ValueError(
            f"{operator}: grad and x must have equal rows, got {grad.shape[0]} and {x.shape[0]}"
        )
    return x.new_empty((numel,), dtype=torch.float32)


register_fake("csr_sddmm")(partial(sddmm, "csr_sddmm"))


@register_fake("nm_pack")
def _nm_pack_fake(w: Tensor, mask: Tensor, n: int, m: int) -> tuple[Tensor, Tensor]:
    if w.dtype not in _X_DTYPES or mask.dtype != torch.bool:
        raise TypeError(
            f"nm_pack: w must be float32, bfloat16 or float16 and mask bool, got {w.dtype} and "
            f"{mask.dtype}"
        )
    if w.dim() != 2 or w.shape != mask.shape:
        raise ValueError(
            f"nm_pack: w and mask must be [rows, cols], both the same, got {list(w.shape)} and "
            f"{list(mask.shape)}"
        )
    return _packed_parts(w, n, m)


@register_fake("nm_select_pack")
def _nm_select_pack_fake(w: Tensor, n: int, m: int) -> tuple[Tensor, Tensor]:
    if w.dtype not in _X_DTYPES:
        raise TypeError(f"nm_select_pack: w must be float32, bfloat16 or float16, got {w.dtype}")
    if w.dim() != 2:
        raise ValueError(f"nm_select_pack: w must be [rows, cols], got {w.dim()} dimensions")
    return _packed_parts(w, n, m)


def _packed_parts(w: Tensor, n: int, m: int) -> tuple[Tensor, Tensor]:
    """Empty values and structure of w in the format nm."""
    rows, cols = w.shape
    window = 4 if m <= 4 else 16 if m <= 16 else 32
    field_bits = 2 if m <= 4 else 4 if m <= 16 else 8
    steps = -(-cols // window) * (window // m) * n
    words = -(-steps * field_bits // 32)
    panels = -(-rows // 16)
    values = w.new_empty((panels * steps * 16,))
    return values, w.new_empty((64 + panels * words * 16 * 4,), dtype=torch.uint8)
