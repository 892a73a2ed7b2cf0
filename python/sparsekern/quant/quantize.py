# SPDX-License-Identifier: Apache-2.0
"""Group-quantized sparse weights for a whole model, block by block."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .. import _table
from ..gqs import to_columns
from ..patterns import GQS
from ..prune.alps import refit
from ..prune.calibration import Forward, InputStatistics, call_order, feed, repeatable
from ..prune.layers import Layer, select_layers
from ..prune.oneshot import OneShot
from ..prune.progress import Progress, ProgressCallback
from ..prune.sparsegpt import inverse_factor, inverse_hessian
from .blocks import Call, Chain, find_blocks, make_chain, moved, placed
from .gptq import Rounding, gptq, round_to_nearest
from .groups import SALIENCIES, group_saliency, keep_groups
from .state import Form, StateFolder, digest
from .tune import Rates, tune_block, write_
from .weight import GroupQuantized

_OPERATOR = "quantize_"
_METHODS = ("gptq", "nearest")
_SCOPES = ("row", "layer")
_ALLOCATIONS = ("uniform", "sensitivity")
# What the scores of `OneShot`, which measures sensitivity, are called here.
_SCORES = {"magnitude": "magnitude", "wanda": "wanda", "hessian": "sparsegpt", "block": "sparsegpt"}

Patterns = GQS | Mapping[str, GQS | None]


@dataclass(frozen=True)
class QuantizeResult:
    """What `quantize_` made; `print` it for a table.

    Attributes:
        values: layer name -> its weight, in the order of the model, on the CPU.
        errors: block name -> mean error of its outputs (over their variance) before and after
            BQPO, where that was asked for.
    """

    values: dict[str, GroupQuantized] = field(repr=False)
    errors: dict[str, tuple[float, float]]

    @property
    def bits_per_weight(self) -> float:
        """Of all layers together, counted as `GroupQuantized.bits_per_weight`."""
        sizes = [value.shape[0] * value.shape[1] for value in self.values.values()]
        each = [value.bits_per_weight for value in self.values.values()]
        total = sum(sizes)
        return sum(b * n for b, n in zip(each, sizes, strict=True)) / total if total else 0.0

    def __str__(self) -> str:
        rows = [("layer", "shape", "bits", "group", "groups pruned", "bits/weight")]
        for name, value in self.values.items():
            rows.append(
                (
                    name or "(model)",
                    "x".join(map(str, value.shape)),
                    str(value.bits),
                    str(value.group),
                    f"{value.sparsity:.2%}",
                    f"{value.bits_per_weight:.3f}",
                )
            )
        rows.append(("total", "", "", "", "", f"{self.bits_per_weight:.3f}"))
        return _table.aligned(rows, left=(0, 1))


def quantize_(
    model: nn.Module,
    patterns: Patterns,
    *,
    calibration: Iterable[Any],
    blocks: str | None = "auto",
    method: str = "gptq",
    symmetric: bool = True,
    search: bool = True,
    saliency: str = "hessian",
    scope: str = "row",
    allocation: str = "uniform",
    fit: bool = True,
    tune_steps: int = 0,
    rates: Rates | None = None,
    damping: float = 0.01,
    sequential: bool = True,
    forward: Forward | None = None,
    state: str | os.PathLike[str] | None = None,
    device: torch.device | str | None = None,
    progress: bool | ProgressCallback = False,
) -> QuantizeResult:
    """Prune groups of weights and quantize the rest, in place: weights become dequantized ones.

    Works block after block: a block's inputs are those that the quantized blocks before it give,
    stored for all batches; its layers are pruned and rounded, then, with `tune_steps`, trained to
    give the dense model's outputs (BQPO). Only values change: modules, parameters and their types
    stay, and so do biases. Tied weights are done once; a convolution's (groups=1) as
    `weight.flatten(1)`.

    Args:
        model: any module with finite weights.
        patterns: a `GQS` for every Linear and Conv2d (groups=1) inside the blocks,
            or an ordered mapping from a glob over module names to one, or to None (leave alone).
            The first match decides; layers of one entry share its sparsity.
        calibration: batches, as for `prune_`; gone through twice with allocation "sensitivity".
        blocks: "auto", a glob over module names, or None for the model as one block: see
            `sparsekern.quant.blocks.find_blocks`. Blocks must be a chain: each is called once, on
            the output of the one before and the same other arguments (decoder and encoder stacks).
        method: "gptq", column by column with error feedback; "nearest", each weight by itself.
        symmetric: without zero-points.
        search: fit each group's range to its weights; False: to the largest of them.
        saliency: what decides which groups are pruned: "magnitude", "wanda", "hessian" or "block",
            see `sparsekern.quant.groups.group_saliency`.
        scope: "row" prunes equally many groups of every row, "layer" compares all of a layer.
        allocation: "uniform", or "sensitivity": sparsity per layer by its measured output error
            (of pruning by the magnitude, wanda or hessian saliency), as in `prune_`. Needs the
            whole model on one device, and holds all layers' X^T X at once.
        fit: with "gptq", before rounding, fit what is kept to the dense outputs (least squares by
            conjugate gradients, as ALPS does) where a layer has pruned groups.
        tune_steps: of BQPO for each block, one batch each; 0: none.
        rates: learning rates of BQPO.
        damping: share of the mean diagonal added to the Hessian X^T X.
        sequential: collect a layer's statistics with the layers before it in its block quantized,
            which takes a pass over the batches for each; False: one pass per block.
        forward: `forward(model, batch)` runs one batch its own way.
        state: folder that keeps finished blocks. A run that was interrupted goes on behind them
            when it is called again with the same arguments and the dense model, and comes to the
            same result, bit for bit (on the same machine with as many threads).
        device: where to compute: one block and one batch at a time are moved there. None: where
            they are. The model's inputs up to the first block are computed where the model is.
        progress: True writes a line to standard error; or a callable given (done, total, name).

    Returns:
        The quantized weights; the packed layers are made of them.

    Raises:
        TypeError, ValueError: bad arguments; a glob without match; NaN or Inf in a weight or an
            input; weights beyond float16 scales; blocks that are no chain; a layer outside of the
            blocks or in two of them; a state folder of another run.
    """
    _check(method, saliency, scope, allocation, tune_steps, damping, calibration, patterns)
    found = find_blocks(model, blocks)
    layers = _in_blocks(select_layers(_OPERATOR, model, patterns), found, patterns)
    for layer in (layer for inside in layers for layer in inside):
        if not isinstance(layer.pattern, GQS):
            raise TypeError(
                f"{_OPERATOR}: patterns must be GQS, got {layer.pattern.label} for {layer.name!r}"
            )
        if not bool(layer.weight.isfinite().all()):
            raise ValueError(
                f"{_OPERATOR}: layer {layer.name!r} must have finite weights, got NaN or Inf"
            )
    run = _Quantize(
        method, symmetric, search, saliency, scope, fit, tune_steps, rates or Rates(), damping,
        sequential,
    )  # fmt: skip
    batches = repeatable(calibration)
    where = None if device is None else torch.device(device)
    chain = make_chain(model, found, batches, forward or feed, where)
    folder = None
    if state is not None:
        folder = StateFolder(state, run.settings(chain, layers, allocation))
    if allocation == "sensitivity":
        _allocate(model, layers, batches, forward or feed, saliency, scope, damping)
    values: dict[str, GroupQuantized] = {}
    errors: dict[str, tuple[float, float]] = {}
    meter = Progress(progress, len(found), _OPERATOR, "blocks")
    for i, (name, block) in enumerate(found):
        with placed(block, where):
            saved = None if folder is None else folder.load(i, _forms(layers[i]))
            last = i + 1 == len(found)
            targets = []
            if not last or (saved is None and tune_steps):
                targets = chain.outputs(block, chain.dense)
            if saved is None:
                saved = run.block(chain, block, layers[i], targets)
                if folder is not None:
                    folder.save(i, *saved)
            for layer in layers[i]:
                write_(layer.modules[0], saved[0][layer.name].to(layer.weight.device))
            values |= {key: value.to("cpu") for key, value in saved[0].items()}
            if saved[1] is not None:
                errors[name] = saved[1]
            if not last:
                chain.quantized = [out[0] for out in chain.outputs(block, chain.quantized)]
                chain.dense = [out[0] for out in targets]
        meter.advance(name)
    order = [name for name, _ in model.named_modules() if name in values]
    return QuantizeResult({name: values[name] for name in order}, errors)


@dataclass
class _Quantize:
    """How one `quantize_` call treats a block."""

    method: str
    symmetric: bool
    search: bool
    saliency: str
    scope: str
    fit: bool
    tune_steps: int
    rates: Rates
    damping: float
    sequential: bool

    def settings(self, chain: Chain, layers: list[list[Layer]], allocation: str) -> dict[str, Any]:
        """All that the result depends on."""
        blocks = [tensor for _, block in chain.blocks for tensor in block.state_dict().values()]
        return {
            **asdict(self),
            "allocation": allocation,
            "patterns": {layer.name: repr(layer.pattern) for inside in layers for layer in inside},
            "blocks": [name for name, _ in chain.blocks],
            "weights": digest(t for t in blocks if isinstance(t, Tensor)),
            "calibration": digest(_tensors(chain.calls)),
        }

    def block(
        self,
        chain: Chain,
        block: nn.Module,
        layers: list[Layer],
        targets: list[tuple[Tensor, ...]],
    ) -> tuple[dict[str, GroupQuantized], tuple[float, float] | None]:
        """Quantize the layers of a block; its weights are the dequantized ones then."""
        batches = range(len(chain.calls))

        def forward(module: nn.Module, i: int) -> Any:
            return chain.run(module, i, chain.quantized)

        stages = [layers] if layers else []
        if self.sequential and self.method == "gptq":
            stages = call_order(block, layers, batches, forward)
        values: dict[str, GroupQuantized] = {}
        for stage in stages:
            statistics = InputStatistics(stage, "gram", _OPERATOR)
            statistics.collect(block, batches, forward)
            for layer in stage:
                values[layer.name] = self.layer(layer, statistics.total.pop(layer))
            for layer in stage:
                write_(layer.modules[0], values[layer.name])
        if not self.tune_steps or not layers:
            return values, None
        modules = {layer.name: layer.modules for layer in layers}

        def outputs(i: int) -> tuple[Tensor, ...]:
            return chain.run(block, i, chain.quantized)

        def wanted(i: int) -> tuple[Tensor, ...]:
            found: tuple[Tensor, ...] = moved(targets[i], chain.device)
            return found

        tuned, before, after = tune_block(
            block, modules, values, outputs, wanted, len(targets), self.tune_steps, self.rates
        )
        return tuned, (before, after)

    def layer(self, layer: Layer, gram: Tensor) -> GroupQuantized:
        """Prune and round one matrix, given X^T X [in, in]."""
        pattern = layer.pattern
        assert isinstance(pattern, GQS)
        weight = layer.matrix()
        how = Rounding(pattern.bits, pattern.group, self.symmetric, self.search)
        inverse = None
        if self.saliency in ("hessian", "block"):
            inverse = inverse_hessian(gram, self.damping, layer.name, _OPERATOR)
        saliency = group_saliency(
            weight,
            self.saliency,
            pattern.group,
            column_norms=gram.diagonal().sqrt().to(weight.dtype),
            inverse=inverse,
        )
        mask = keep_groups(saliency, layer.sparsity, self.scope)
        if self.method == "nearest":
            importance = gram.diagonal().to(weight.dtype)
            # An input that never was: all weights of the layer count alike.
            importance = importance if bool(importance.any()) else torch.ones_like(importance)
            return round_to_nearest(weight, mask, how, importance)
        if self.fit and not bool(mask.all()):
            kept = to_columns(mask, pattern.group, weight.shape[1])
            weight = refit(weight, gram, self.damping, kept)
        factor = inverse_factor(gram, self.damping, layer.name, _OPERATOR)
        return gptq(weight, factor, mask, how)


def _check(
    method: str,
    saliency: str,
    scope: str,
    allocation: str,
    tune_steps: int,
    damping: float,
    calibration: object,
    patterns: object,
) -> None:
    for name, value, among in (
        ("method", method, _METHODS),
        ("saliency", saliency, SALIENCIES),
        ("scope", scope, _SCOPES),
        ("allocation", allocation, _ALLOCATIONS),
    ):
        if value not in among:
            raise ValueError(f"{_OPERATOR}: {name} must be one of {among}, got {value!r}")
    if isinstance(tune_steps, bool) or not isinstance(tune_steps, int):
        raise TypeError(
            f"{_OPERATOR}: tune_steps must be an integer, got {type(tune_steps).__name__}"
        )
    if tune_steps < 0:
        raise ValueError(f"{_OPERATOR}: tune_steps must be at least 0, got {tune_steps}")
    if not 0.0 <= damping < float("inf"):
        raise ValueError(f"{_OPERATOR}: damping must be finite and >= 0, got {damping}")
    if isinstance(calibration, (Tensor, Mapping)) or not isinstance(calibration, Iterable):
        raise TypeError(
            f"{_OPERATOR}: calibration must be an iterable of batches, got one "
            f"{type(calibration).__name__}; put it in a list"
        )


def _in_blocks(
    layers: list[Layer], blocks: list[tuple[str, nn.Module]], patterns: Patterns
) -> list[list[Layer]]:
    """The layers of each block. What lies outside is left alone where no glob names it."""
    owners = [set(block.modules()) for _, block in blocks]
    found: list[list[Layer]] = [[] for _ in blocks]
    for layer in layers:
        at = sorted({i for m in layer.modules for i, inside in enumerate(owners) if m in inside})
        outside = any(not any(m in inside for inside in owners) for m in layer.modules)
        if not at and not isinstance(patterns, Mapping):
            continue
        if len(at) != 1 or outside:
            raise ValueError(
                f"{_OPERATOR}: layer {layer.name!r} must be used inside one block alone, got uses "
                f"in {[blocks[i][0] for i in at]}{' and outside' if outside else ''}; map its name "
                "to None, or choose other blocks"
            )
        found[at[0]].append(layer)
    if not any(found):
        raise ValueError(
            f"{_OPERATOR}: blocks must hold a Linear or Conv2d (groups=1) layer, got none"
        )
    return found


def _allocate(
    model: nn.Module,
    layers: list[list[Layer]],
    batches: Iterable[Any],
    forward: Forward,
    saliency: str,
    scope: str,
    damping: float,
) -> None:
    """Sparsity per layer with the least total output error, as `prune_` does it."""
    flat = [layer for inside in layers for layer in inside]
    score = _SCORES[saliency]
    run = OneShot(model, flat, score, None, batches, forward, damping, False, _OPERATOR)
    run.hessian_bytes = 4 << 62  # one pass, all with dense weights
    with torch.no_grad():
        run.allocate_sensitivity(scope)


def _forms(layers: list[Layer]) -> dict[str, Form]:
    """What a block's quantized layers must look like."""
    found = {}
    for layer in layers:
        assert isinstance(layer.pattern, GQS)
        rows, columns = layer.weight.flatten(1).shape
        found[layer.name] = Form(rows, columns, layer.pattern.bits, layer.pattern.group)
    return found


def _tensors(value: Any) -> Iterable[Tensor]:
    """All tensors in nested tuples, lists, mappings and calls of blocks, and numbers as such."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (int, float)):
        yield torch.tensor(value, dtype=torch.float64)
    elif isinstance(value, Call):
        yield from _tensors((value.args, value.kwargs))
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)
