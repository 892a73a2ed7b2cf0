# SPDX-License-Identifier: Apache-2.0
"""Tuning what is quantized by gradients: a block at a time (BQPO), or scales alone (E2E-OQP).

GQSA (arXiv:2412.17560) tunes in these two stages. Of its full text only the outline was at hand:
block by block, with pruned groups fixed, weights and quantization parameters are adjusted; then
all integers are frozen and only quantization parameters are trained end to end. What is here
beyond that outline is our reading, and close to EfficientQAT (Chen et al. 2024, arXiv:2407.11062):
the error (mean-squared, over the variance of what is wanted), Adam, the schedule, the inputs of a
block (those that the quantized blocks before it give; wanted is what the dense model gives there),
that biases and norms stay, and that of two states the one of less error is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..distill import DistillResult, Error, Outputs, distill_, normalized_error
from ..prune.calibration import feed
from ..prune.layers import prunable_modules
from .blocks import outputs_of
from .fake import Tunable, frozen, tunable
from .weight import GroupQuantized


@dataclass(frozen=True)
class Rates:
    """The highest learning rates of Adam, in units that fit weights of any size.

    Attributes:
        codes: of weights, in steps of their group's scale.
        ratio: of scales, in shares of the scale.
        zeros: of zero-points, in steps of the scale.
    """

    codes: float = 0.1
    ratio: float = 2e-3
    zeros: float = 0.01

    def __post_init__(self) -> None:
        for name in ("codes", "ratio", "zeros"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"Rates: {name} must be a number, got {type(value).__name__}")
            if not 0.0 <= value < float("inf"):
                raise ValueError(f"Rates: {name} must be finite and >= 0, got {value}")

    def optimizer(self, layers: Iterable[Tunable], codes: bool) -> torch.optim.Optimizer:
        """Adam over all that may move; what may not asks for no gradient."""
        groups: dict[str, list[nn.Parameter]] = {"codes": [], "ratio": [], "zeros": []}
        for layer in layers:
            for name, able in (
                ("codes", codes),
                ("ratio", True),
                ("zeros", not layer.fake.symmetric),
            ):
                parameter: nn.Parameter = getattr(layer, name)
                able = able and getattr(self, name) > 0
                parameter.requires_grad_(able)
                if able:
                    groups[name].append(parameter)
        chosen = [
            {"params": parameters, "lr": getattr(self, name)}
            for name, parameters in groups.items()
            if parameters
        ]
        return torch.optim.Adam(chosen)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, gradients as they are; every module's own mode is restored."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def tune_block(
    block: nn.Module,
    modules: Mapping[str, list[nn.Module]],
    values: Mapping[str, GroupQuantized],
    run: Callable[[int], Sequence[Tensor]],
    wanted: Callable[[int], Sequence[Tensor]],
    count: int,
    steps: int,
    rates: Rates,
) -> tuple[dict[str, GroupQuantized], float, float]:
    """BQPO: adjust codes, scales and zeros of a block's layers until it gives `wanted`.

    Each step is made with one batch, in turn. Pruned groups stay pruned. The block's own weights
    are not written; what is tuned is kept only if the mean error over all batches has become less.

    Args:
        block: with the quantized weights in it.
        modules: layer name -> modules of the block that share its weight.
        values: layer name -> what to begin with.
        run: `run(i)` gives the block's outputs for batch i.
        wanted: `wanted(i)` gives the outputs it is to have, on the same device.
        count: of batches.
        steps: at least 1.
        rates: learning rates.

    Returns:
        The values, and the mean error before and after.
    """
    batches = range(count)
    nobody = nn.Module()  # stands for the dense block, whose outputs are at hand

    def forward(model: nn.Module, i: int) -> Outputs:
        return wanted(i) if model is nobody else run(i)

    def error() -> float:
        with torch.no_grad():
            errors = [
                float(normalized_error(x, y))
                for i in batches
                for x, y in zip(run(i), wanted(i), strict=True)
            ]
        return sum(errors) / len(errors)

    with evaluating(block), frozen(block), tunable(modules, values) as layers:
        before = error()
        optimizer = rates.optimizer(layers.values(), codes=True)
        distill_(
            block, nobody, batches, steps=steps, masks={}, forward=forward, optimizer=optimizer
        )
        after = error()
        if not after < before:
            return dict(values), before, before
        return {name: layer.value() for name, layer in layers.items()}, before, after


def tune_scales_(
    model: nn.Module,
    values: Mapping[str, GroupQuantized],
    dense: nn.Module,
    batches: Iterable[Any],
    *,
    steps: int,
    forward: Callable[[nn.Module, Any], Outputs] | None = None,
    errors: Sequence[Error] | None = None,
    weights: Sequence[float] | None = None,
    rates: Rates | None = None,
) -> tuple[dict[str, GroupQuantized], DistillResult]:
    """E2E-OQP: train only scales and zero-points until the model gives its dense self's outputs.

    Codes and masks stay as they are, bit for bit, and so do all other parameters. The model's
    weights are written: afterwards they are the dequantized values that are returned.

    Args:
        model: as `quantize_` left it, on one device.
        values: `QuantizeResult.values`.
        dense: the model before, not changed.
        batches: an iterable that can be gone through several times; not moved between devices.
        steps: of Adam, one batch each.
        forward: `forward(model, batch)` gives the outputs to match; None passes the batch as
            `quantize_` does and matches all floating-point tensors that come out.
        errors: how each output is compared (see `sparsekern.distill`).
        weights: importance of each output.
        rates: learning rates; `codes` has no effect.

    Returns:
        The new values, and what the training did.

    Raises:
        TypeError, ValueError: bad arguments; a name without layer; a layer whose weight is not
            what its value says. Nothing has changed then.
    """
    modules = layers_of("tune_scales_", model, values)

    def matched(which: nn.Module, batch: Any) -> Outputs:
        return outputs_of(feed(which, batch))

    with evaluating(model), frozen(model):
        with evaluating(dense), tunable(modules, values) as layers:
            result = distill_(
                model,
                dense,
                batches,
                steps=steps,
                masks={},
                forward=forward or matched,
                weights=weights,
                errors=errors,
                optimizer=(rates or Rates()).optimizer(layers.values(), codes=False),
            )
            tuned = {name: layer.value() for name, layer in layers.items()}
        for name, value in tuned.items():
            write_(modules[name][0], value)
    return tuned, result


def write_(module: nn.Module, value: GroupQuantized) -> None:
    """Write the dequantized matrix into a layer's weight."""
    weight = module.weight
    assert isinstance(weight, nn.Parameter)
    with torch.no_grad():
        weight.copy_(value.dequantize().reshape(weight.shape))


def layers_of(
    operator: str, model: nn.Module, values: Mapping[str, GroupQuantized]
) -> dict[str, list[nn.Module]]:
    """Layer name -> every module that uses its weight, checked against the values.

    Raises:
        ValueError: no name; a name without layer; a layer that holds another weight.
    """
    named = list(prunable_modules(model))
    found: dict[str, list[nn.Module]] = {}
    for name, value in values.items():
        module = dict(named).get(name)
        weight = None if module is None else module._parameters.get("weight")
        if weight is None:
            raise ValueError(
                f"{operator}: values must name Linear or Conv2d (groups=1) layers of the model, "
                f"got {name!r}"
            )
        expected = value.dequantize().to(weight.device, weight.dtype)
        if weight.flatten(1).shape != expected.shape or not torch.equal(
            weight.detach().flatten(1), expected
        ):
            raise ValueError(
                f"{operator}: layer {name!r} must hold the weight that values say, got another"
            )
        sharing = [m for _, m in named if m._parameters.get("weight") is weight]
        found[name] = list(dict.fromkeys(sharing))
    if not found:
        raise ValueError(f"{operator}: values must have at least one layer, got none")
    return found
