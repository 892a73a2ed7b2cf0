# SPDX-License-Identifier: Apache-2.0
"""Stream statistics of layer inputs over calibration batches, without storing activations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .layers import Layer

Forward = Callable[[nn.Module, Any], Any]


def feed(model: nn.Module, batch: Any) -> Any:
    """Call `model` on one batch: a mapping by keyword, a tuple or list by position, else as is.

    sentence_transformers' SentenceTransformer takes its one mapping by position (and writes into
    it, so it gets a copy).
    """
    if isinstance(batch, Mapping):
        for base in type(model).__mro__:
            if base.__name__ == "SentenceTransformer" and base.__module__.startswith(
                "sentence_transformers"
            ):
                return model(dict(batch))
        return model(**batch)
    if isinstance(batch, (tuple, list)):
        return model(*batch)
    return model(batch)


def repeatable(calibration: Iterable[Any]) -> Iterable[Any]:
    """Something that can be iterated several times: a one-shot iterator's batches are listed."""
    return list(calibration) if iter(calibration) is calibration else calibration


def input_columns(module: nn.Module, x: Tensor) -> Iterator[Tensor]:
    """The input as float32 rows [samples, in] that multiply `weight.flatten(1)` transposed.

    A convolution's patches are unfolded one image at a time, since a k x k kernel makes k^2
    copies of the input.
    """
    x = x.detach().float()
    if not isinstance(module, nn.Conv2d):
        yield x.reshape(-1, x.shape[-1])
        return
    if x.dim() == 3:
        x = x.unsqueeze(0)
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    x = functional.pad(x, module._reversed_padding_repeated_twice, mode=mode)
    if tuple(module.kernel_size) == (1, 1):
        x = x[:, :, :: module.stride[0], :: module.stride[1]]
        yield x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
        return
    for image in torch.split(x, 1):
        patches = functional.unfold(
            image, module.kernel_size, dilation=module.dilation, stride=module.stride
        )
        yield patches[0].t()


class InputStatistics:
    """Accumulates over the inputs x of some layers, in float32 on the layer's device.

    `total[layer]` holds the sum of x_j^2, [in] (kind "squares"); X^T X, [in, in] (kind "gram"); or
    the sums of x_j and of x_j^2, [2, in], with the number of samples in `samples` (kind "moments").
    Errors begin with `operator`.
    """

    def __init__(self, layers: list[Layer], kind: str, operator: str = "prune_") -> None:
        self.layers = layers
        self._operator = operator
        self.total: dict[Layer, Tensor] = {}
        for layer in layers:
            columns = layer.weight.flatten(1).shape[1]
            shape = {"gram": (columns, columns), "moments": (2, columns)}.get(kind, (columns,))
            self.total[layer] = torch.zeros(shape, device=layer.weight.device)
        self.samples = dict.fromkeys(layers, 0)
        self._kind = kind
        self._seen: set[Layer] = set()

    def add(self, layer: Layer, module: nn.Module, x: Tensor) -> None:
        """Take in one call's input."""
        self._seen.add(layer)
        total = self.total[layer]
        for rows in input_columns(module, x):
            self.samples[layer] += rows.shape[0]
            if self._kind == "gram":
                total.addmm_(rows.t(), rows)
            elif self._kind == "moments":
                total += torch.stack((rows.sum(dim=0), rows.square().sum(dim=0)))
            else:
                total += rows.square().sum(dim=0)

    def collect(self, model: nn.Module, batches: Iterable[Any], forward: Forward) -> None:
        """Run every batch and check that each layer saw finite inputs."""
        count = 0
        with calibrating(model), watching(self.layers, self.add):
            for batch in batches:
                forward(model, batch)
                count += 1
        if count == 0:
            raise ValueError(
                f"{self._operator}: calibration must yield at least one batch, got none"
            )
        for layer in self.layers:
            if layer not in self._seen:
                raise ValueError(
                    f"{self._operator}: calibration must reach every layer to prune, got no call "
                    f"of {layer.name!r}; map its name to None to leave it alone"
                )
            if not bool(self.total[layer].isfinite().all()):
                raise ValueError(
                    f"{self._operator}: calibration must give finite inputs, got NaN or Inf at the "
                    f"input of {layer.name!r}"
                )

    def column_norms(self, layer: Layer) -> Tensor:
        """||X_j||_2 over all calibration samples, [in]."""
        total = self.total[layer]
        if self._kind == "gram":
            total = total.diagonal()
        elif self._kind == "moments":
            total = total[1]
        return total.sqrt()

    def moments(self, layer: Layer) -> tuple[Tensor, Tensor]:
        """Mean and variance of each input over all samples, [in] each (kind "moments")."""
        first, second = self.total[layer] / max(self.samples[layer], 1)
        return first, (second - first.square()).clamp_min(0.0)


@contextmanager
def calibrating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; every module's own mode is restored."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def watching(
    layers: list[Layer], see: Callable[[Layer, nn.Module, Tensor], None]
) -> Iterator[None]:
    """Call `see(layer, module, x)` before each forward call of the layers' modules."""
    handles = []
    try:
        for layer in layers:
            for module in layer.modules:

                def hook(module: nn.Module, args: Any, kwargs: Any, layer: Layer = layer) -> None:
                    see(layer, module, args[0] if args else kwargs["input"])

                handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def call_order(
    model: nn.Module, layers: list[Layer], batches: Iterable[Any], forward: Forward
) -> list[list[Layer]]:
    """Layers in the order of their first call on the first batch, in groups.

    Layers called one after another on the same input tensor (query, key and value) form a group.
    Layers not called come last, each alone.
    """
    groups: list[list[Layer]] = []
    seen: set[Layer] = set()
    last: list[Tensor] = []  # kept alive, so that its address cannot be reused

    def see(layer: Layer, module: nn.Module, x: Tensor) -> None:
        shared = bool(last) and last[0] is x
        last[:] = [x]
        if layer in seen:
            return
        seen.add(layer)
        if shared and groups:
            groups[-1].append(layer)
        else:
            groups.append([layer])

    with calibrating(model), watching(layers, see):
        for batch in batches:
            forward(model, batch)
            break
    return groups + [[layer] for layer in layers if layer not in seen]
