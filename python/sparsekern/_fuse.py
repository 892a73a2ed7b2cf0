# SPDX-License-Identifier: Apache-2.0
"""Folds the activation that follows a packed layer into the layer."""

from __future__ import annotations

from collections.abc import Callable

import torch.fx
from torch import nn

from sparsekern.nn import PackedLayer

_NAMES: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.SiLU: "silu",
    nn.Hardswish: "hardswish",
}
# By name: transformers is optional.
_TRANSFORMERS_NAMES = {
    "GELUActivation": "gelu",
    "GELUTanh": "gelu_tanh",
    "PytorchGELUTanh": "gelu_tanh",
    "NewGELUActivation": "gelu_tanh",
    "SiLUActivation": "silu",
}


def fused_name(module: nn.Module) -> str | None:
    """Name of the kernel's activation that computes what this module does, or None."""
    kind = type(module)
    if isinstance(module, nn.GELU) and kind is nn.GELU:
        return {"none": "gelu", "tanh": "gelu_tanh"}.get(module.approximate)
    if kind.__module__ == "transformers.activations":
        return _TRANSFORMERS_NAMES.get(kind.__name__)
    return _NAMES.get(kind)


class _Children(torch.fx.Tracer):
    """Records which children a module's forward calls, without looking into them."""

    def is_leaf_module(self, _module: nn.Module, _name: str) -> bool:
        return True


def next_module(
    root: nn.Module, name: str, wanted: Callable[[nn.Module], bool]
) -> tuple[nn.Module, str] | None:
    """What takes the named module's output, and alone takes it: (parent, child's name), or None.

    Both modules must be children of one parent whose forward torch.fx can trace, called once
    there, the following one with that output as its only argument. None too where no child of the
    parent is `wanted`; then nothing is traced.
    """
    prefix, _, last = name.rpartition(".")
    parent = root.get_submodule(prefix)
    if not any(child is not None and wanted(child) for child in parent._modules.values()):
        return None
    try:
        graph = _Children().trace(parent)
    except Exception:  # a forward may do anything; what cannot be traced is not certain
        return None
    calls: dict[object, list[torch.fx.Node]] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            calls.setdefault(node.target, []).append(node)
    if len(calls.get(last, [])) != 1:
        return None
    layer = calls[last][0]
    if len(layer.users) != 1:
        return None
    user = next(iter(layer.users))
    alone = user.op == "call_module" and len(calls[user.target]) == 1
    if not alone or user.args != (layer,) or user.kwargs:
        return None
    following = str(user.target)
    child = parent._modules.get(following)
    return (parent, following) if child is not None and wanted(child) else None


def fuse_(model: nn.Module) -> list[str]:
    """Fold activations into the packed layers before them, in place; returns the layers' names.

    Only where what follows a layer is certain (see next_module). The activation's place takes an
    nn.Identity, so that names and positions stay. A layer that hangs in several places, has an
    activation or hooks already, or an activation with hooks, is left as it is.
    """
    places: dict[int, int] = {}
    for parent in model.modules():
        for child in parent._modules.values():
            if child is not None:
                places[id(child)] = places.get(id(child), 0) + 1
    fused = []
    for name, layer in list(model.named_modules()):
        if not isinstance(layer, PackedLayer) or layer.activation != "none":
            continue
        if places.get(id(layer)) != 1 or _has_hooks(layer):
            continue
        found = next_module(model, name, lambda child: fused_name(child) is not None)
        if found is None:
            continue
        parent, following = found
        activation = parent.get_submodule(following)
        kind = fused_name(activation)
        if kind is None or _has_hooks(activation):
            continue
        layer.activation = kind
        setattr(parent, following, nn.Identity())
        fused.append(name)
    return fused


def _has_hooks(module: nn.Module) -> bool:
    """Whether a call does more than the class's forward."""
    return "forward" in module.__dict__ or bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )
