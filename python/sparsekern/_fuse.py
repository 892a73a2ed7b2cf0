# SPDX-License-Identifier: Apache-2.0
"""Folds the activation that follows a packed layer in an nn.Sequential into the layer."""

from __future__ import annotations

import itertools

from torch import nn

from sparsekern.nn import CSRLayer

_NAMES: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.SiLU: "silu",
    nn.Hardswish: "hardswish",
}


def fused_name(module: nn.Module) -> str | None:
    """Name of the kernel's activation that computes what this module does, or None."""
    if type(module) is nn.GELU:
        return {"none": "gelu", "tanh": "gelu_tanh"}.get(module.approximate)
    return _NAMES.get(type(module))


def fuse_(model: nn.Module) -> list[str]:
    """Fold activations into the packed layers before them, in place; returns the layers' names.

    Only inside nn.Sequential (and subclasses that keep its forward), where what follows a layer is
    certain: the activation's place takes an nn.Identity, so that names and positions stay. A
    layer that hangs in several places, has an activation or hooks already, or an activation with
    hooks, is left as it is.
    """
    places: dict[int, int] = {}
    for parent in model.modules():
        for child in parent._modules.values():
            if child is not None:
                places[id(child)] = places.get(id(child), 0) + 1
    fused = []
    for prefix, parent in model.named_modules():
        if getattr(type(parent), "forward", None) is not nn.Sequential.forward:
            continue
        children = list(parent._modules.items())
        for (name, layer), (next_name, activation) in itertools.pairwise(children):
            if not isinstance(layer, CSRLayer) or activation is None:
                continue
            kind = fused_name(activation)
            free = layer.activation == "none" and places[id(layer)] == 1
            if kind is None or not free or _has_hooks(layer) or _has_hooks(activation):
                continue
            layer.activation = kind
            parent._modules[next_name] = nn.Identity()
            fused.append(f"{prefix}.{name}" if prefix else name)
    return fused


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)
