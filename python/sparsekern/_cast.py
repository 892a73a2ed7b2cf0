# SPDX-License-Identifier: Apache-2.0
"""Dense layers that compute in another dtype than the model around them."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from typing_extensions import Self

_M = TypeVar("_M", bound=nn.Module)


class CastLinear(nn.Linear):
    """nn.Linear with weights in a dtype of its own: x is cast to it, the result back."""

    @classmethod
    def of(cls, module: nn.Linear, dtype: torch.dtype) -> Self:
        """Copy a dense layer, rounded to `dtype`."""
        shape = (module.in_features, module.out_features)
        return _filled(cls(*shape, module.bias is not None, "meta"), module, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply x [..., in_features]; the result is [..., out_features] in the dtype of x."""
        return functional.linear(x.to(self.weight.dtype), self.weight, self.bias).to(x.dtype)


class CastConv2d(nn.Conv2d):
    """1x1 nn.Conv2d with weights in a dtype of its own: x is cast to it, the result back."""

    @classmethod
    def of(cls, module: nn.Conv2d, dtype: torch.dtype) -> Self:
        """Copy a dense 1x1 convolution without padding and groups, rounded to `dtype`."""
        stride = (module.stride[0], module.stride[1])
        bias = module.bias is not None
        new = cls(module.in_channels, module.out_channels, 1, stride, bias=bias, device="meta")
        return _filled(new, module, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve x [batch, in_channels, height, width]; the result has the dtype of x."""
        return super().forward(x.to(self.weight.dtype)).to(x.dtype)


def _filled(new: _M, old: nn.Module, dtype: torch.dtype) -> _M:
    for name, parameter in old.named_parameters(recurse=False):
        copy = parameter.detach().to(dtype)
        setattr(new, name, nn.Parameter(copy, requires_grad=parameter.requires_grad))
    return new.train(old.training)
