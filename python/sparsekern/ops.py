# SPDX-License-Identifier: Apache-2.0
"""Functions over the operators ``torch.ops.sparsekern.*``.

The functions take a packed tensor and names; the operators take its parts and codes,
and are what ``torch.compile`` and ``torch.export`` see. Products are differentiable
(`sparsekern.autograd`).

With csr and bitmap, a pruned weight contributes nothing, whatever x holds there, infinities and NaN
too; a kept weight, an explicit zero too, multiplies as IEEE 754 says, and so does every weight that
an N:M matrix stores. Sums are in float32. On CUDA, kernels for more than a few rows of x multiply
zeros as well (docs/kernels-cuda.md says which).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from sparsekern import _activations, _fakes  # noqa: F401  # the fakes register themselves
from sparsekern._bitmap_kv import bitmap_attention, bitmap_kv_append, bitmap_kv_unpack
from sparsekern._library import translated
from sparsekern._nm_mask import nm_mask
from sparsekern._nm_transposable import nm_mask_transposable
from sparsekern.bitmap import BitmapTensor
from sparsekern.csr import CSRTensor
from sparsekern.gqs import GQSTensor
from sparsekern.nm import NMTensor

__all__ = [
    "bitmap_attention",
    "bitmap_kv_append",
    "bitmap_kv_unpack",
    "bitmap_linear",
    "csr_conv2d",
    "csr_linear",
    "csr_sddmm",
    "gqs_linear",
    "nm_linear",
    "nm_mask",
    "nm_mask_transposable",
]

_ON_CUDA = (  # operators with kernels there
    "bitmap_linear",
    "csr_linear",
    "gqs_linear",
    "nm_linear",
)
_linear = torch.ops.sparsekern.csr_linear.default
_conv2d = torch.ops.sparsekern.csr_conv2d.default
_unpack_dual: Any = forward_ad.unpack_dual
_sddmm = torch.ops.sparsekern.csr_sddmm.default
_nm = torch.ops.sparsekern.nm_linear.default
_gqs = torch.ops.sparsekern.gqs_linear.default
_bitmap = torch.ops.sparsekern.bitmap_linear.default
# With no gradient to record, the kernel registered for autograd, which is Python, would only cost
# time: this guard goes past it, and past nothing else (modes, functorch and fake tensors remain).
_below_autograd: Any = torch._C._AutoDispatchBelowAutograd


def csr_linear(
    x: Tensor,
    w: CSRTensor,
    bias: Tensor | None = None,
    activation: str = "none",
    int8_activations: bool = False,
) -> Tensor:
    """activation(x W^T + bias).

    Args:
        x: [..., cols], float32, bfloat16 or float16; any leading dimensions and strides.
        w: [rows, cols].
        bias: [rows], float32 or the dtype of x.
        activation: none, relu, relu6, gelu, gelu_tanh, silu or hardswish.
        int8_activations: with int8 values, round each row of x to the nearest multiples of
            max |row| / 127 and multiply integers, with AVX-512 VNNI or NEON dotprod where the
            processor has them. A row with a NaN or an infinity answers NaN. Gradients are those
            of the product without the rounding.

    Returns:
        [..., rows] in the dtype of x, contiguous.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: shapes that do not fit.
        NotImplementedError: an activation or device that has no kernel.
    """
    code = _activations.code_of("csr_linear", activation)
    _check_packed("csr_linear", w, CSRTensor)
    parts = (w.values, w.structure, w.scale)
    return linear(x, *parts, bias, w._shape[0], code, int8_activations)


def csr_conv2d(
    x: Tensor,
    w: CSRTensor,
    bias: Tensor | None = None,
    stride: int = 1,
    activation: str = "none",
    int8_activations: bool = False,
) -> Tensor:
    """1x1 convolution without padding and groups: activation(conv(x, W) + bias).

    Args:
        x: [batch, cols, height, width], float32, bfloat16 or float16. NCHW memory is taken as it
            is; anything else is copied into it first.
        w: [rows, cols]: output and input channels.
        bias: [rows], float32 or the dtype of x.
        stride: in both directions, 1 or more.
        activation: as in `csr_linear`.
        int8_activations: as in `csr_linear`, each pixel being a row.

    Returns:
        [batch, rows, ceil(height / stride), ceil(width / stride)] in the dtype of x, NCHW.

    Raises:
        TypeError, ValueError, NotImplementedError: as `csr_linear`.
    """
    code = _activations.code_of("csr_conv2d", activation)
    _check_packed("csr_conv2d", w, CSRTensor)
    parts = (w.values, w.structure, w.scale)
    return conv2d(x, *parts, bias, w._shape[0], stride, code, int8_activations)


def csr_sddmm(grad: Tensor, x: Tensor, w: CSRTensor) -> Tensor:
    """The entries of grad^T x at the kept weights of w: the gradient of its values.

    Args:
        grad: [m, rows], float32, bfloat16 or float16.
        x: [m, cols], the dtype of grad.
        w: gives the pattern only.

    Returns:
        float32, in the order of ``w.values``; padding entries are 0.

    Raises:
        TypeError, ValueError: as `csr_linear`.
    """
    _check_packed("csr_sddmm", w, CSRTensor)
    try:
        result: Tensor = _sddmm(grad, x, w.structure, w.values.numel())
        return result
    except RuntimeError as error:
        raise _explained(error, "csr_sddmm", grad=grad, x=x) from None


def nm_linear(
    x: Tensor, w: NMTensor, bias: Tensor | None = None, activation: str = "none"
) -> Tensor:
    """activation(x W^T + bias) with an N:M matrix.

    Every stored weight takes part, a zero that fills up a group too: 0 times infinity is NaN.

    Args:
        x: [..., cols], float32, bfloat16 or float16; any leading dimensions and strides.
        w: [rows, cols].
        bias: [rows], float32 or the dtype of x.
        activation: none, relu, relu6, gelu, gelu_tanh, silu or hardswish.

    Returns:
        [..., rows] in the dtype of x, contiguous.

    Raises:
        TypeError, ValueError, NotImplementedError: as `csr_linear`.
    """
    code = _activations.code_of("nm_linear", activation)
    _check_packed("nm_linear", w, NMTensor)
    return linear_nm(x, w.values, w.structure, w.scale, bias, w.shape[0], code)


def bitmap_linear(
    x: Tensor, w: BitmapTensor, bias: Tensor | None = None, activation: str = "none"
) -> Tensor:
    """activation(x W^T + bias) with a bitmap matrix.

    Args:
        x: [..., cols], float32, bfloat16 or float16; any leading dimensions and strides.
        w: [rows, cols].
        bias: [rows], float32 or the dtype of x.
        activation: none, relu, relu6, gelu, gelu_tanh, silu or hardswish.

    Returns:
        [..., rows] in the dtype of x, contiguous.

    Raises:
        TypeError, ValueError, NotImplementedError: as `csr_linear`.
    """
    code = _activations.code_of("bitmap_linear", activation)
    _check_packed("bitmap_linear", w, BitmapTensor)
    _check_width("bitmap_linear", x, w.shape[1])
    return linear_bitmap(x, w.values, w.structure, w.scale, bias, w.shape[0], code)


def linear_bitmap(
    x: Tensor,
    values: Tensor,
    structure: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    rows: int,
    activation: int,
) -> Tensor:
    """`bitmap_linear` from the parts of a packed matrix and an activation's code."""
    return _called("bitmap_linear", _bitmap, x, values, structure, scale, bias, rows, activation)


def gqs_linear(
    x: Tensor,
    w: GQSTensor,
    bias: Tensor | None = None,
    activation: str = "none",
    int8_activations: bool = False,
) -> Tensor:
    """activation(x W^T + bias) with a group-quantized sparse matrix.

    Weights are made float32 and multiply x in float32. Pruned groups contribute nothing, whatever x
    holds there.

    Args:
        x: [..., cols], float32, bfloat16 or float16; any leading dimensions and strides.
        w: [rows, cols].
        bias: [rows], float32 or the dtype of x.
        activation: none, relu, relu6, gelu, gelu_tanh, silu or hardswish.
        int8_activations: round each group of x (as wide as those of W) to the nearest multiples of
            its max |x| / 127 and multiply integers, with AVX-512 VNNI or NEON dotprod where the
            processor has them (W without zero-points; 3 to 16 rows of x, 3 to 8 with NEON; else
            the products are those of the rounded numbers). A group with a NaN or an infinity
            counts as NaN. Gradients are those of the product without the rounding.

    Returns:
        [..., rows] in the dtype of x, contiguous.

    Raises:
        TypeError, ValueError, NotImplementedError: as `csr_linear`.
    """
    code = _activations.code_of("gqs_linear", activation)
    _check_packed("gqs_linear", w, GQSTensor)
    _check_width("gqs_linear", x, w.shape[1])
    parts = (w.values, w.structure, w.scale)
    return linear_gqs(x, *parts, bias, w.shape[0], code, int8_activations)


def linear_gqs(
    x: Tensor,
    values: Tensor,
    structure: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    rows: int,
    activation: int,
    int8_activations: bool = False,
) -> Tensor:
    """`gqs_linear` from the parts of a packed matrix and an activation's code."""
    arguments = (x, values, structure, scale, bias, rows, activation, int8_activations)
    return _called("gqs_linear", _gqs, *arguments)


def linear_nm(
    x: Tensor,
    values: Tensor,
    structure: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    rows: int,
    activation: int,
) -> Tensor:
    """`nm_linear` from the parts of a packed matrix and an activation's code."""
    return _called("nm_linear", _nm, x, values, structure, scale, bias, rows, activation)


def linear(
    x: Tensor,
    values: Tensor,
    structure: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    rows: int,
    activation: int,
    int8_activations: bool = False,
) -> Tensor:
    """`csr_linear` from the parts of a packed matrix and an activation's code."""
    arguments = (x, values, structure, scale, bias, rows, activation, int8_activations)
    return _called("csr_linear", _linear, *arguments)


def conv2d(
    x: Tensor,
    values: Tensor,
    structure: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    rows: int,
    stride: int,
    activation: int,
    int8_activations: bool = False,
) -> Tensor:
    """`csr_conv2d` from the parts of a packed matrix and an activation's code."""
    arguments = (x, values, structure, scale, bias, rows, stride, activation, int8_activations)
    return _called("csr_conv2d", _conv2d, *arguments)


def _called(
    operator: str,
    op: Callable[..., Any],
    x: Tensor,
    values: Tensor,
    structure: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    *rest: object,
) -> Tensor:
    """Call an operator, past Python where no gradient is recorded; its errors in Python's words."""
    result: Tensor
    if torch.compiler.is_compiling():
        result = op(x, values, structure, scale, bias, *rest)
        return result
    try:
        if _autograd_would_idle(x, values, scale, bias):
            with _below_autograd():
                result = op(x, values, structure, scale, bias, *rest)
        else:
            result = op(x, values, structure, scale, bias, *rest)
        return result
    except (AttributeError, RuntimeError) as error:
        raise _explained(error, operator, x=x, bias=bias) from None


def _autograd_would_idle(
    x: Tensor, values: Tensor, scale: Tensor | None, bias: Tensor | None
) -> bool:
    """Whether the autograd kernel would run and record nothing (inference mode has none)."""
    if forward_ad._current_level >= 0 and any(
        _unpack_dual(t).tangent is not None for t in (x, values, bias) if t is not None
    ):
        raise NotImplementedError(
            "gradients must be in reverse mode (backward), got a forward-mode dual tensor"
        )
    if torch.is_grad_enabled():
        return not (
            x.requires_grad
            or values.requires_grad
            or (bias is not None and bias.requires_grad)
            or (scale is not None and scale.requires_grad)
        )
    return not torch.is_inference_mode_enabled()


def _explained(error: Exception, operator: str, **arguments: object) -> Exception:
    """The exception that the user shall see for one that an operator raised."""
    for name, argument in arguments.items():
        if not isinstance(argument, Tensor) and (argument is not None or name != "bias"):
            got = type(argument).__name__
            return TypeError(f"{operator}: {name} must be a torch.Tensor, got {got}")
    if isinstance(error, NotImplementedError) and "backend" in str(error):  # torch's own
        devices = {str(a.device) for a in arguments.values() if isinstance(a, Tensor)}
        on_cuda = operator in _ON_CUDA and torch.version.cuda is not None
        existing = "cpu and cuda" if on_cuda else "cpu"
        return NotImplementedError(
            f"{operator}: x must be on a device with kernels ({existing}), "
            f"got {' and '.join(sorted(devices))}"
        )
    return translated(error) if isinstance(error, RuntimeError) else error


def _check_width(operator: str, x: object, cols: int) -> None:
    """On CUDA the operator sees sizes only: some other widths would pass there, and answer NaN."""
    if isinstance(x, Tensor) and x.dim() > 0 and x.shape[-1] != cols:
        raise ValueError(
            f"{operator}: x.shape[-1] must equal in_features ({cols}), got {x.shape[-1]}"
        )


def _check_packed(operator: str, w: object, kind: type) -> None:
    if not isinstance(w, kind):
        raise TypeError(f"{operator}: w must be a {kind.__name__}, got {type(w).__name__}")
