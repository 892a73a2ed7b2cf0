# SPDX-License-Identifier: Apache-2.0
"""`prepare_`, `Training` and `finish_`: a whole model into training with N:M weights and out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from sparsekern.patterns import NM
from sparsekern.prune.layers import Patterns, select_layers

from .layers import NMTrainingConv2d, NMTrainingLayer, NMTrainingLinear
from .recipe import Recipe

__all__ = ["Training", "finish_", "prepare_"]

_Model = TypeVar("_Model", bound=nn.Module)


class Training:
    """Keeps the schedules of all N:M training layers of a model.

        training = prepare_(model, sk.NM(2, 8), Recipe(gradient=SRSTE())).attach(optimizer)
        for batch in data:
            loss(model, batch).backward()
            optimizer.step()
            optimizer.zero_grad()
        finish_(model)

    `attach` does the rest. Without it call `add_decay` before each step of the optimizer and `step`
    after it. There is no state here but in the layers: model and optimizer are what to save, and
    ``Training(model)`` finds the layers of a model that is being trained.

    Raises:
        TypeError: `model` is not a module.
        ValueError: it has no N:M training layers.
    """

    def __init__(self, model: nn.Module) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"Training: model must be an nn.Module, got {type(model).__name__}")
        self.layers = dict(_layers(model))
        if not self.layers:
            raise ValueError("Training: model must have N:M training layers, got none")
        self._decayed = False
        self._handles: list[RemovableHandle] = []

    @torch.no_grad()
    def add_decay(self) -> None:
        """Add what `SRSTE` adds, decay (1 - k) W, to the gradients; before the optimizer's step.

        Weights without gradient are left out.
        """
        seen: set[int] = set()
        for layer in self.layers.values():
            weight, decay = layer.weight, layer.recipe.gradient.decay
            if decay and weight.grad is not None and id(weight) not in seen:
                seen.add(id(weight))  # a tied weight once
                pruned = torch.where(layer.mask, 0.0, weight)
                weight.grad.add_(pruned, alpha=decay)
        self._decayed = True

    def step(self) -> None:
        """Count one optimizer step, in every layer; masks are updated where they are due.

        Raises:
            RuntimeError: a layer has an `SRSTE`, and `add_decay` was not called since last time.
        """
        if not self._decayed and any(
            layer.recipe.gradient.decay and layer.weight.grad is not None
            for layer in self.layers.values()
        ):
            raise RuntimeError(
                "Training.step: add_decay must be called before the optimizer's step, got no call; "
                "attach(optimizer) does it"
            )
        self._decayed = False
        for layer in self.layers.values():
            layer.advance()

    def attach(self, optimizer: torch.optim.Optimizer) -> Training:
        """Do both with every ``optimizer.step()`` from now on; returns self.

        Raises:
            TypeError: not an optimizer.
            ValueError: attached already.
        """
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(
                "Training.attach: optimizer must be a torch.optim.Optimizer, got "
                f"{type(optimizer).__name__}"
            )
        if self._handles:
            raise ValueError("Training.attach: must be called once, got a second optimizer")

        def before(*_: Any) -> None:
            self.add_decay()

        def after(*_: Any) -> None:
            self.step()

        self._handles = [
            optimizer.register_step_pre_hook(before),
            optimizer.register_step_post_hook(after),
        ]
        return self

    def detach(self) -> None:
        """Leave the optimizer alone again."""
        for handle in self._handles:
            handle.remove()
        self._handles = []


def prepare_(model: nn.Module, patterns: Patterns, recipe: Recipe | None = None) -> Training:
    """Let the linear layers and convolutions of a model train with N:M weights, in place.

    Modules and Parameters stay the same objects, so that optimizers, hooks and ties made before
    stay valid; modules become `NMTrainingLinear` or `NMTrainingConv2d`. Call it again for layers
    with another recipe; ``Training(model)`` then has them all.

    Args:
        model: any module.
        patterns: an `NM` for every nn.Linear and nn.Conv2d (groups=1), or an ordered mapping from a
            glob over module names to an `NM`, or to None for "leave alone", as in `prune_`.
        recipe: for all of them; default `Recipe()`.

    Returns:
        The `Training` of all N:M training layers in the model.

    Raises:
        TypeError: a pattern that is not an `NM`; wrong types.
        ValueError: a layer that cannot be trained so (a subclass, a reparametrized weight); and as
            `prune_` for patterns. Nothing is changed then.
    """
    made: list[tuple[nn.Module, NMTrainingLayer]] = []
    for layer in select_layers("prepare_", model, patterns):
        if not isinstance(layer.pattern, NM):
            raise TypeError(
                f"prepare_: the pattern of layer {layer.name!r} must be an NM, got "
                f"{layer.pattern.label}"
            )
        for module in layer.modules:
            n, m = layer.pattern.n, layer.pattern.m
            if type(module) is nn.Linear:
                made.append((module, NMTrainingLinear.from_dense(module, n, m, recipe)))
            elif type(module) is nn.Conv2d:
                made.append((module, NMTrainingConv2d.from_dense(module, n, m, recipe)))
            else:
                raise ValueError(
                    f"prepare_: layer {layer.name!r} must be an nn.Linear or nn.Conv2d itself, got "
                    f"{type(module).__name__}; give its name the pattern None"
                )
    for module, new in made:
        _become(module, new)
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            _without_fast_path(module)
    return Training(model)


def finish_(model: _Model) -> _Model:
    """Make the masks permanent: plain dense layers again, with zeros, in place; returns the model.

    `convert_` then packs them. A weight outside the mask becomes 0 even where a `Decaying` has not
    faded it out.

    Raises:
        TypeError, ValueError: as `Training`; ValueError also for a layer in a dense phase. Nothing
            is changed then.
    """
    layers = Training(model).layers
    for name, layer in layers.items():
        if layer.pattern is None:
            raise ValueError(
                f"finish_: layer {name!r} must have reached a pattern, got a dense phase at step "
                f"{layer.step_count}"
            )
    weights = {id(layer.weight): (layer.weight, layer.sparse_weight()) for layer in layers.values()}
    with torch.no_grad():
        for weight, sparse in weights.values():
            weight.copy_(sparse)
    for layer in layers.values():
        _become_dense(layer)
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            _with_fast_path(module)
    return model


def _layers(model: nn.Module) -> Iterator[tuple[str, NMTrainingLayer]]:
    for name, module in model.named_modules():
        if isinstance(module, NMTrainingLayer):
            yield name, module


# Modules change their class, as torch's own parametrizations do: so a model that is itself a layer
# can be treated, and what others hold of a module stays valid.
_OWN = (
    "target",
    "recipe",
    "_step",
    "_pattern",
    "_fades",
    "_mask_waits",
    "_back_waits",
    "_refreshed",
)
_BUFFERS = ("mask", "mask_back", "progress", "scale", "beta")


def _become(module: nn.Module, new: NMTrainingLayer) -> None:
    module.__class__ = type(new)
    for name in _OWN:
        setattr(module, name, getattr(new, name))
    for name in _BUFFERS:
        module._buffers[name] = new._buffers[name]  # some are read by a property
        if name in new._non_persistent_buffers_set:
            module._non_persistent_buffers_set.add(name)


def _become_dense(layer: NMTrainingLayer) -> None:
    for name in (*_OWN, *_BUFFERS):
        delattr(layer, name)
    dense: type[nn.Module] = nn.Conv2d if isinstance(layer, nn.Conv2d) else nn.Linear
    layer.__class__ = dense  # type: ignore[assignment]


def _python_path(module: nn.Module, arguments: Any) -> None:
    """A hook that does nothing: with one, an encoder layer in eval mode calls its submodules."""


def _without_fast_path(module: nn.Module) -> None:
    """Keep nn.TransformerEncoderLayer from multiplying by its linear layers' weights itself."""
    trains = any(isinstance(child, NMTrainingLayer) for child in module.modules())
    if trains and _python_path not in module._forward_pre_hooks.values():
        module.register_forward_pre_hook(_python_path)


def _with_fast_path(module: nn.Module) -> None:
    for key, hook in list(module._forward_pre_hooks.items()):
        if hook is _python_path:
            del module._forward_pre_hooks[key]
