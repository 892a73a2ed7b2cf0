# SPDX-License-Identifier: Apache-2.0
"""Find the layers that can be pruned, and match them with patterns by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..patterns import Pattern

Patterns = Pattern | Mapping[str, Pattern | None]


@dataclass(eq=False)
class Layer:
    """One weight to prune, with every module that uses it (several when the weight is tied)."""

    name: str
    modules: list[nn.Module]
    pattern: Pattern
    entry: int  # position of the patterns entry it matched: layers of an entry share a budget
    sparsity: float = field(init=False)  # what this layer is asked for, set by the allocation

    def __post_init__(self) -> None:
        self.sparsity = self.pattern.sparsity

    @property
    def weight(self) -> nn.Parameter:
        """The parameter itself, shared by all `modules`."""
        weight = self.modules[0].weight
        assert isinstance(weight, nn.Parameter)
        return weight

    def matrix(self) -> Tensor:
        """The weight as float32 (float64 stays) [out, in], detached; do not write into it."""
        weight = self.weight.detach().flatten(1)
        return weight if weight.dtype == torch.float64 else weight.float()

    def chosen(self) -> Pattern:
        """The pattern at this layer's sparsity, which `NM` alone does not leave open."""
        if self.pattern.group_columns is not None:
            return self.pattern
        return self.pattern.with_sparsity(self.sparsity)

    def mask(self, score: Tensor, scope: str) -> Tensor:
        """The pattern's mask at this layer's sparsity, bool [out, in]."""
        return self.chosen().mask(score, scope)


def is_prunable(module: nn.Module) -> bool:
    """True for nn.Linear and nn.Conv2d with groups=1, subclasses included."""
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)


def prunable_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every prunable module under each of its names (a shared module has several)."""
    for name, module in model.named_modules(remove_duplicate=False):
        if is_prunable(module):
            yield name, module


def is_reparametrized(module: nn.Module) -> bool:
    """True when `weight` is computed from other tensors, so writing to it would be lost."""
    return parametrize.is_parametrized(module, "weight") or "weight" not in module._parameters


def check_weight(operator: str, name: str, module: nn.Module) -> None:
    """Raise unless the module's weight is a plain floating-point Parameter with data."""
    if is_reparametrized(module):
        raise ValueError(
            f"{operator}: layer {name!r} must hold its weight as a plain Parameter, got a "
            "reparametrized weight; call make_permanent_(model) first"
        )
    weight = module.weight
    if isinstance(weight, nn.parameter.UninitializedParameter):
        raise ValueError(
            f"{operator}: layer {name!r} must be initialized, got a lazy weight; run the model once"
        )
    assert isinstance(weight, Tensor)
    if weight.device.type == "meta":
        raise ValueError(
            f"{operator}: layer {name!r} must hold data, got a weight on the meta device; "
            "load its checkpoint first"
        )
    if not weight.is_floating_point():
        raise TypeError(
            f"{operator}: layer {name!r} must have a floating-point weight, got {weight.dtype}"
        )


def select_layers(operator: str, model: nn.Module, patterns: Patterns) -> list[Layer]:
    """Layers to prune, in module order, each weight once.

    Args:
        operator: the name that errors begin with.
        model: any module.
        patterns: one Pattern for every prunable layer, or an ordered mapping from a glob over
            module names (case-sensitive) to a Pattern, or to None for "leave alone". The first
            glob that matches a name decides; a name that none matches is left alone.

    Raises:
        TypeError: wrong types.
        ValueError: a glob matches no prunable layer; two names of one weight match different
            entries; a weight that cannot be written (meta device, reparametrized, lazy).
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"{operator}: model must be an nn.Module, got {type(model).__name__}")
    entries = _entries(operator, patterns)
    matched = [False] * len(entries)
    by_weight: dict[int, Layer | None] = {}
    first_name: dict[int, tuple[str, int]] = {}
    layers: list[Layer] = []
    for name, module in prunable_modules(model):
        hits = [i for i, (glob, _) in enumerate(entries) if fnmatchcase(name, glob)]
        for i in hits:
            matched[i] = True
        if not hits:
            continue
        pattern = entries[hits[0]][1]
        if pattern is not None:
            check_weight(operator, name, module)
        key = id(module._parameters.get("weight", module))
        if key in first_name:
            other, entry = first_name[key]
            if entry != hits[0]:
                raise ValueError(
                    f"{operator}: patterns must give a tied weight one entry, got "
                    f"{entries[entry][0]!r} for {other!r} and {entries[hits[0]][0]!r} for {name!r}"
                )
            layer = by_weight[key]
            if layer is not None and module not in layer.modules:
                layer.modules.append(module)
            continue
        first_name[key] = (name, hits[0])
        by_weight[key] = None
        if pattern is not None:
            layer = Layer(name, [module], pattern, hits[0])
            by_weight[key] = layer
            layers.append(layer)
    for (glob, _), hit in zip(entries, matched, strict=True):
        if not hit:
            what = "model" if isinstance(patterns, Pattern) else f"patterns key {glob!r}"
            raise ValueError(
                f"{operator}: {what} must match a Linear or Conv2d (groups=1) layer, got no match"
            )
    return layers


def _entries(operator: str, patterns: Patterns) -> list[tuple[str, Pattern | None]]:
    if isinstance(patterns, Pattern):
        return [("*", patterns)]
    if not isinstance(patterns, Mapping):
        raise TypeError(
            f"{operator}: patterns must be a Pattern or a mapping from glob to Pattern, "
            f"got {type(patterns).__name__}"
        )
    if not patterns:
        raise ValueError(f"{operator}: patterns must have at least one entry, got none")
    for glob, pattern in patterns.items():
        if not isinstance(glob, str):
            raise TypeError(f"{operator}: patterns keys must be strings, got {type(glob).__name__}")
        if pattern is not None and not isinstance(pattern, Pattern):
            raise TypeError(
                f"{operator}: patterns[{glob!r}] must be a Pattern or None, "
                f"got {type(pattern).__name__}"
            )
    return list(patterns.items())
