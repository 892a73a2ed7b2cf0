# SPDX-License-Identifier: Apache-2.0
"""What pruning did, or found: sparsity per layer and in total, with a readable table."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .layers import Layer, is_reparametrized, prunable_modules


@dataclass(frozen=True)
class LayerResult:
    """One weight: `zeros` counts its entries equal to 0, so `achieved` is what a format can use."""

    name: str
    shape: tuple[int, ...]
    pattern: str
    requested: float | None  # None: nothing was asked for, only measured
    zeros: int

    @property
    def numel(self) -> int:
        """Weights in the layer."""
        return torch.Size(self.shape).numel()

    @property
    def achieved(self) -> float:
        """Share of zeros in [0, 1]; 0 for an empty weight."""
        return self.zeros / self.numel if self.numel else 0.0


@dataclass(frozen=True)
class PruneResult:
    """Results in module order; `print` it for a table.

    Attributes:
        layers: one `LayerResult` per pruned weight.
        masks: layer name -> bool mask of the weight's shape, True = kept. A kept weight may be 0.
    """

    layers: tuple[LayerResult, ...]
    masks: dict[str, Tensor] = field(default_factory=dict, repr=False, compare=False)

    @property
    def sparsity(self) -> float:
        """Zeros over all weights listed."""
        total = sum(layer.numel for layer in self.layers)
        return sum(layer.zeros for layer in self.layers) / total if total else 0.0

    def __getitem__(self, name: str) -> LayerResult:
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(name)

    def __str__(self) -> str:
        rows = [("layer", "shape", "pattern", "requested", "achieved")]
        for layer in self.layers:
            asked = "-" if layer.requested is None else f"{layer.requested:.2%}"
            shape = "x".join(map(str, layer.shape))
            name = layer.name or "(model)"
            rows.append((name, shape, layer.pattern, asked, f"{layer.achieved:.2%}"))
        total = sum(layer.numel for layer in self.layers)
        rows.append(("total", f"{total:,} weights", "", "", f"{self.sparsity:.2%}"))
        widths = [max(len(row[i]) for row in rows) for i in range(5)]
        lines = []
        for row in rows:
            left = [cell.ljust(width) for cell, width in zip(row[:3], widths[:3], strict=True)]
            right = [cell.rjust(width) for cell, width in zip(row[3:], widths[3:], strict=True)]
            lines.append("  ".join(left + right).rstrip())
        lines.insert(1, "  ".join("-" * width for width in widths))
        return "\n".join(lines)


def summarize(layers: list[Layer], masks: dict[str, Tensor]) -> PruneResult:
    """The result for layers just pruned."""
    results = []
    for layer in layers:
        weight = layer.weight
        label = layer.pattern.label
        results.append(
            LayerResult(layer.name, tuple(weight.shape), label, layer.sparsity, _zeros(weight))
        )
    return PruneResult(tuple(results), masks)


def from_pruned(model: nn.Module) -> PruneResult:
    """Measure the sparsity a model already has; nothing is changed.

    Lists every nn.Linear and nn.Conv2d (groups=1), a tied weight once. Weights masked by
    torch.nn.utils.prune or by a torch parametrization count with their effective value. The masks
    are the nonzero patterns.

    Raises:
        ValueError: a weight is on the meta device or not initialized.
    """
    results: list[LayerResult] = []
    masks: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, module in prunable_modules(model):
        key = id(module._parameters.get("weight", module))
        if key in seen:
            continue
        seen.add(key)
        weight = effective_weight(module)
        lazy = isinstance(weight, nn.parameter.UninitializedParameter)
        if lazy or weight.device.type == "meta":
            raise ValueError(
                f"from_pruned: layer {name!r} must hold data, got a weight "
                + ("not initialized" if lazy else "on the meta device")
            )
        masks[name] = weight != 0
        results.append(LayerResult(name, tuple(weight.shape), "found", None, _zeros(weight)))
    return PruneResult(tuple(results), masks)


def effective_weight(module: nn.Module) -> Tensor:
    """The weight a forward call would use, detached."""
    with torch.no_grad():
        if is_reparametrized(module) and hasattr(module, "weight_mask"):
            # torch.nn.utils.prune refreshes `weight` only in forward; it may be stale here.
            weight, mask = module.weight_orig, module.weight_mask
            assert isinstance(weight, Tensor)
            assert isinstance(mask, Tensor)
            return weight * mask
        weight = module.weight
        assert isinstance(weight, Tensor)
        return weight.detach()


def _zeros(weight: Tensor) -> int:
    return int((weight.detach() == 0).sum())
