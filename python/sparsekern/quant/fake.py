# SPDX-License-Identifier: Apache-2.0
"""Group-quantized weights inside a model in training: codes, scales and zeros as parameters.

Rounding passes the gradient straight through (Bengio et al. 2013, arXiv:1308.3432); the scale's
gradient is then (q - z) - w / s for a weight inside the range, as in LSQ (Esser et al. 2020,
arXiv:1902.08153, eq. 3).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .weight import GroupQuantized, code_range

_LEAST_SCALE = 2.0**-24  # of float16's numbers that are not 0


def _straight_through(value: Tensor, rounded: Tensor) -> Tensor:
    return value + (rounded - value).detach()


class FakeQuantized(nn.Module):
    """The parametrization of one weight: (codes, ratio, zeros) -> weight.

    Codes are rounded in every forward pass; `ratio` multiplies the scale that it began with, so
    that one learning rate fits scales of any size. Scales and zeros are rounded to float16, as
    stored.
    """

    base: Tensor
    mask: Tensor

    def __init__(self, value: GroupQuantized, weight: Tensor) -> None:
        super().__init__()
        self.bits, self.symmetric, self.columns = value.bits, value.symmetric, value.in_features
        self._value, self._shape, self._dtype = value, weight.shape, weight.dtype
        self.register_buffer("base", value.scales.float())
        self.register_buffer("mask", value.mask)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The parameters to begin with, whatever the weight."""
        zeros = self._value.zeros
        return (
            self._value.codes.float(),
            torch.ones_like(self.base),
            torch.zeros_like(self.base) if zeros is None else zeros.float(),
        )

    def scale(self, ratio: Tensor) -> Tensor:
        """The scale as stored, float32 [out, groups]."""
        scale = self.base * ratio
        least = torch.copysign(torch.full_like(scale, _LEAST_SCALE), scale)
        scale = torch.where(scale.abs() < _LEAST_SCALE, least, scale)
        return _straight_through(scale, scale.half().float())

    def forward(self, codes: Tensor, ratio: Tensor, zeros: Tensor) -> Tensor:
        """The weight, in its shape and dtype."""
        codes = codes.clamp(*code_range(self.bits))
        codes = _straight_through(codes, codes.round())
        zeros = _straight_through(zeros, zeros.half().float())
        offsets = (codes - zeros.unsqueeze(-1)) * self.mask.unsqueeze(-1)
        weight = (offsets * self.scale(ratio).unsqueeze(-1)).flatten(1)[:, : self.columns]
        return weight.reshape(self._shape).to(self._dtype)

    def value(self, codes: Tensor, ratio: Tensor, zeros: Tensor) -> GroupQuantized:
        """What the parameters stand for."""
        outside = (~self.mask).unsqueeze(-1).repeat(1, 1, codes.shape[2])
        outside.flatten(1)[:, self.columns :] = True
        codes = codes.clamp(*code_range(self.bits)).round().masked_fill(outside, 0.0)
        zeros = zeros.half().masked_fill(~self.mask, 0.0)
        return GroupQuantized(
            codes.to(torch.int8),
            self.scale(ratio).half().masked_fill(~self.mask, 1.0),
            None if self.symmetric else zeros,
            self.mask,
            self.bits,
            self.columns,
        )


@dataclass
class Tunable:
    """A layer under `tunable`: its parameters, and the value they stand for.

    `zeros` is constant where the weight has no zero-points.
    """

    fake: FakeQuantized
    codes: nn.Parameter
    ratio: nn.Parameter
    zeros: nn.Parameter

    def value(self) -> GroupQuantized:
        """The weight as it stands."""
        with torch.no_grad():
            return self.fake.value(self.codes, self.ratio, self.zeros)


@contextmanager
def tunable(
    modules: Mapping[str, list[nn.Module]], values: Mapping[str, GroupQuantized]
) -> Iterator[dict[str, Tunable]]:
    """Within it, each layer's weight is computed from the parameters of its `Tunable`.

    Afterwards every module has its own Parameter again, with the value that it had before.

    Args:
        modules: layer name -> the modules that share its weight.
        values: layer name -> what its weight is made of.
    """
    with ExitStack() as stack:
        found = {}
        for name, shared in modules.items():
            weight = shared[0].weight
            assert isinstance(weight, nn.Parameter)
            fake = FakeQuantized(values[name].to(weight.device), weight)
            for module in shared:
                order = list(module._parameters)
                parametrize.register_parametrization(module, "weight", fake)
                stack.callback(_restore, module, weight, order)
            # Modules that share a weight share its parameters.
            first: Any = _parametrizations(shared[0])["weight"]
            for module in shared[1:]:
                _parametrizations(module)["weight"] = first
            found[name] = Tunable(fake, first.original0, first.original1, first.original2)
        yield found


def _parametrizations(module: nn.Module) -> nn.ModuleDict:
    found = module.parametrizations
    assert isinstance(found, nn.ModuleDict)
    return found


def _restore(module: nn.Module, weight: nn.Parameter, order: list[str]) -> None:
    parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
    del module.weight  # a plain tensor where no parameter asked for a gradient
    module.register_parameter("weight", weight)
    for key in order:  # behind it come those that were behind it: optimizers go by the order
        module._parameters[key] = module._parameters.pop(key)


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No parameter that the model has now asks for a gradient; afterwards those that did, do."""
    asking = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in asking:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)
