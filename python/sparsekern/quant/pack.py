# SPDX-License-Identifier: Apache-2.0
"""From calibrated weights to packed layers."""

from __future__ import annotations

import glob
from collections.abc import Mapping

from torch import nn

from .._sites import Places, find_sites
from ..gqs import GQSTensor
from ..nn import GQSLinear
from ..nn.gqs import trainable_scales
from .tune import layers_of
from .weight import GroupQuantized


def packed(value: GroupQuantized) -> GQSTensor:
    """The same weight in the format `gqs`, bit for bit; on the device of the value."""
    return GQSTensor.from_quantized(
        value.codes.flatten(1)[:, : value.in_features],
        value.scales,
        value.mask,
        value.zeros,
        bits=value.bits,
        group=value.group,
    )


def pack_(model: nn.Module, values: Mapping[str, GroupQuantized]) -> list[str]:
    """Replace quantized nn.Linear layers by `GQSLinear` ones that hold the same weights, in place.

    Layers that share a weight share the packed one. What cannot be replaced stays dense, with the
    dequantized weight: convolutions, subclasses of nn.Linear, a weight that another kind of module
    uses too (see `convert_`).

    Args:
        model: as `quantize_` or `tune_scales_` left it.
        values: layer name -> weight, as they returned them.

    Returns:
        Names of the layers that are packed now, in module order.

    Raises:
        ValueError: a name without layer; a layer whose weight is not what its value says. Nothing
            has changed then.
    """
    layers_of("pack_", model, values)
    replaced: dict[nn.Module, nn.Module] = {}
    names = []
    for site in find_sites("pack_", model, [glob.escape(name) for name in values], ()):
        if site.reason or site.is_conv:
            continue
        weight = site.modules[0].weight
        assert isinstance(weight, nn.Parameter)
        tensor = packed(values[site.name].to(weight.device))
        tensor = trainable_scales(tensor, weight.requires_grad)
        tensor.values = nn.Parameter(tensor.values, requires_grad=False)  # one object for all ties
        for module in site.modules:
            bias = module.bias
            assert bias is None or isinstance(bias, nn.Parameter)
            replaced[module] = GQSLinear.from_packed(tensor, bias).train(module.training)
        names.append(site.name)
    Places(model, replaced).put(replaced)
    return names
