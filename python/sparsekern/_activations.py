# SPDX-License-Identifier: Apache-2.0
"""The activations that kernels apply to a result while it is still in registers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_aten = torch.ops.aten


@dataclass(frozen=True)
class Activation:
    """One fused activation.

    Attributes:
        name: what users write.
        module: makes the torch module that computes the same.
        gradient: (gradient of the result, saved tensor) -> gradient of the pre-activation, with
            torch operators only, so that it can be traced and differentiated again.
        saves_result: the saved tensor is the result itself; otherwise it is the pre-activation,
            which backward computes again.
    """

    name: str
    module: Callable[[], nn.Module]
    gradient: Callable[[Tensor, Tensor], Tensor]
    saves_result: bool = False


def _silu_gradient(grad: Tensor, z: Tensor) -> Tensor:
    # Written out, since aten's silu_backward cannot be differentiated again; in float32, as that.
    wide = z.float()
    sigmoid = wide.sigmoid()
    return (grad * sigmoid * (1 + wide * (1 - sigmoid))).to(grad.dtype)


# The position is the operators' integer code, so the order is part of their interface.
ACTIVATIONS: tuple[Activation, ...] = (
    Activation("none", nn.Identity, lambda grad, _: grad, saves_result=True),
    # At 0 the gradient is 0 and a NaN passes it on, as torch's own operators have it.
    Activation("relu", nn.ReLU, lambda g, y: _aten.threshold_backward(g, y, 0), saves_result=True),
    Activation(
        "relu6", nn.ReLU6, lambda g, y: _aten.hardtanh_backward(g, y, 0, 6), saves_result=True
    ),
    Activation("gelu", nn.GELU, lambda g, z: _aten.gelu_backward(g, z)),
    Activation(
        "gelu_tanh",
        lambda: nn.GELU(approximate="tanh"),
        lambda g, z: _aten.gelu_backward(g, z, approximate="tanh"),
    ),
    Activation("silu", nn.SiLU, _silu_gradient),
    Activation("hardswish", nn.Hardswish, lambda g, z: _aten.hardswish_backward(g, z)),
)
NAMES: tuple[str, ...] = tuple(activation.name for activation in ACTIVATIONS)
_CODES: dict[str, int] = {name: code for code, name in enumerate(NAMES)}


def code_of(operator: str, name: object) -> int:
    """The operators' code of an activation's name.

    Raises:
        TypeError: `name` is not a string.
        NotImplementedError: no kernel fuses this activation; the text lists what exists.
    """
    code = _CODES.get(name) if isinstance(name, str) else None
    if code is None:
        if not isinstance(name, str):
            raise TypeError(f"{operator}: activation must be a string, got {type(name).__name__}")
        raise NotImplementedError(
            f"{operator}: activation must be one of {', '.join(NAMES)}, got {name!r}"
        )
    return code
