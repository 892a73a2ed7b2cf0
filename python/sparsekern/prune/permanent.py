# SPDX-License-Identifier: Apache-2.0
"""Turn reparametrized weights of a model pruned elsewhere into plain parameters."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils import prune as torch_prune


def make_permanent_(model: nn.Module) -> list[str]:
    """Remove torch.nn.utils.prune masks and torch parametrizations, keeping effective values.

    After it, `weight_orig` and `weight_mask` (or `parametrizations.weight`) are gone and `weight`
    is a Parameter with the value the forward call used. All tensors of all modules are treated,
    biases too. Works in place.

    Returns:
        Names of the tensors made permanent, such as "encoder.0.weight".
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"make_permanent_: model must be an nn.Module, got {type(model).__name__}")
    names: list[str] = []
    for prefix, module in list(model.named_modules()):
        found = []
        for hook in list(module._forward_pre_hooks.values()):
            if isinstance(hook, torch_prune.BasePruningMethod):
                found.append(hook._tensor_name)
        for name in found:
            torch_prune.remove(module, name)  # type: ignore[no-untyped-call]
        if parametrize.is_parametrized(module):
            for name in list(module.parametrizations):
                with torch.no_grad():
                    parametrize.remove_parametrizations(module, name, leave_parametrized=True)
                found.append(name)
        names += [f"{prefix}.{name}" if prefix else name for name in found]
    return names
