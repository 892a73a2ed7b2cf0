# SPDX-License-Identifier: Apache-2.0
"""One-shot pruning of a whole model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from . import allocation as ratios
from .alps import alps
from .calibration import Forward, InputStatistics, call_order, feed, repeatable
from .dsnot import dsnot
from .layers import Layer, Patterns, select_layers
from .progress import Progress, ProgressCallback
from .result import PruneResult, summarize
from .scores import keep_nonfinite, magnitude, obs_saliency, protect_nonfinite, ria, wanda
from .sparsegpt import inverse_factor, inverse_hessian, sparsegpt

# What each score must know of the inputs.
_SCORES = {
    "magnitude": "none",
    "wanda": "squares",
    "ria": "squares",
    "sparsegpt": "gram",
    "alps": "gram",
}
_REFINEMENTS = ("dsnot",)
_SCOPES = ("layer", "row", "global")
_ALLOCATIONS = ("uniform", "erk", "sensitivity")


def prune_(
    model: nn.Module,
    patterns: Patterns,
    *,
    score: str = "magnitude",
    refine: str | None = None,
    calibration: Iterable[Any] | None = None,
    scope: str | None = None,
    allocation: str = "uniform",
    forward: Forward | None = None,
    progress: bool | ProgressCallback = False,
    blocksize: int = 128,
    damping: float = 0.01,
    sequential: bool = False,
    hessian_bytes: int = 4 << 30,
) -> PruneResult:
    """Set weights of Linear and Conv2d (groups=1) layers to zero, in place.

    Only values change: modules, parameters and their types stay. A convolution's weight is pruned
    as `weight.flatten(1)`. A tied weight or shared module is pruned once, with the statistics of
    all its uses. A NaN or infinite weight is never pruned (nor the rest of its `Block` unit), so
    such a layer may stay below its sparsity, and such a group of `NM` keep more than n. Biases are
    left alone.

    Args:
        model: any module on any device (not meta).
        patterns: a `Pattern` for every prunable layer, or an ordered mapping from a glob over
            module names to a `Pattern` or None (leave alone). The first match decides; a layer
            that no glob matches is left alone. Layers of one entry share its budget.
        score: "magnitude", |W|; "wanda", |W| * ||X_j||_2 (Sun et al. 2024); "ria", the share of
            |W| in its row and column times ||X_j||_2^0.5 (Zhang et al. 2024); "sparsegpt", the
            optimal-brain-surgeon cost, with update of the kept weights (Frantar & Alistarh 2023);
            "alps", kept weights and mask found together by ADMM (Meng et al. 2024): slower than
            "sparsegpt", with less output error.
        refine: None, or "dsnot": swap kept and pruned weights of a row (of a group of `NM`) while
            that brings the row's mean output nearer the dense one (Zhang et al. 2024). For
            "magnitude", "wanda" and "ria", which leave kept weights alone; not for `Block`.
        calibration: iterable of batches; needed by every score but "magnitude", by `refine` and by
            "sensitivity". A tensor is passed as it is, a tuple or list by position, a mapping by
            keyword (by position to a SentenceTransformer). Batches are not moved between devices.
            Padding tokens count like any other input, so batches of equal length calibrate best.
        scope: what is compared: "layer", "row" (each row, or group of rows, keeps equally many)
            or "global" (all layers of an entry). None: "row" for "wanda" and "ria", else "layer".
            `NM` compares within its groups under "layer" and "row", and refuses "global".
        allocation: "uniform"; "erk" (Evci et al. 2020); "sensitivity" (measured output error, see
            `sparsekern.prune.allocation.equalize`). "global" chooses ratios by itself. `NM`, whose
            ratio is n / m, takes "uniform" only.
        forward: `forward(model, batch)` runs one batch its own way.
        progress: True writes a line to standard error; or a callable given (done, total, name).
        blocksize: columns per mask decision of "sparsegpt"; with `NM` a decision is per group, and
            this only says how many columns are updated at once.
        damping: share of the mean diagonal added to the Hessian of "sparsegpt" and "alps".
        sequential: False: statistics of all layers come from the dense model in one pass (more
            passes only where `hessian_bytes` demands it; then later layers see earlier ones
            pruned). True: one pass per layer in call order, each seeing the pruned layers before
            it, as in the SparseGPT paper; layers that share an input go together.
        hessian_bytes: most bytes of X^T X matrices (float32) held at once.

    Returns:
        Sparsity per layer and in total, and the masks.

    Raises:
        TypeError, ValueError: bad arguments; a glob without match; weights without data; a layer
            that calibration does not reach. All but the last are raised before any change.
    """
    if score not in _SCORES:
        raise ValueError(f"prune_: score must be one of {tuple(_SCORES)}, got {score!r}")
    if refine is not None and refine not in _REFINEMENTS:
        raise ValueError(f"prune_: refine must be None or one of {_REFINEMENTS}, got {refine!r}")
    if refine is not None and _SCORES[score] == "gram":
        raise ValueError(
            f"prune_: refine must be None with score={score!r}, which fits the kept weights to "
            f"its mask, got {refine!r}"
        )
    scope = scope if scope is not None else ("row" if score in ("wanda", "ria") else "layer")
    if scope not in _SCOPES:
        raise ValueError(f"prune_: scope must be one of {_SCOPES}, got {scope!r}")
    if allocation not in _ALLOCATIONS:
        raise ValueError(f"prune_: allocation must be one of {_ALLOCATIONS}, got {allocation!r}")
    if scope == "global" and allocation != "uniform":
        raise ValueError(
            f"prune_: allocation must be 'uniform' with scope='global', got {allocation!r}"
        )
    if isinstance(blocksize, bool) or not isinstance(blocksize, int) or blocksize < 1:
        raise ValueError(f"prune_: blocksize must be a positive integer, got {blocksize!r}")
    if not 0.0 <= damping < float("inf"):
        raise ValueError(f"prune_: damping must be finite and >= 0, got {damping}")
    if isinstance(calibration, (Tensor, Mapping)):
        raise TypeError(
            "prune_: calibration must be an iterable of batches, got one "
            f"{type(calibration).__name__}; put it in a list"
        )
    if calibration is None:
        for needed, by in (
            (_SCORES[score] != "none", f"score={score!r}"),
            (refine is not None, f"refine={refine!r}"),
            (allocation == "sensitivity", f"allocation={allocation!r}"),
        ):
            if needed:
                raise ValueError(f"prune_: calibration must be given for {by}, got None")
    layers = select_layers("prune_", model, patterns)
    check_fixed("prune_", layers, scope, allocation)
    for layer in layers:
        if refine is not None and layer.pattern.group_rows > 1:
            raise ValueError(
                f"prune_: refine must be None with {layer.pattern.label}, whose rows share a mask "
                f"(layer {layer.name!r}), got {refine!r}"
            )
    run = OneShot(model, layers, score, refine, calibration, forward or feed, damping, sequential)
    run.check_memory(hessian_bytes, allocation == "sensitivity")
    with torch.no_grad():
        if scope == "global":
            run.allocate_global()
            scope = "layer"
        elif allocation == "erk":
            run.allocate_erk()
        elif allocation == "sensitivity":
            run.allocate_sensitivity(scope)
        masks = {}
        meter = Progress(progress, len(layers))
        for layer, statistics in run.visit(run.kind):
            masks[layer.name] = run.prune(layer, statistics, scope, blocksize)
            meter.advance(layer.name)
    ordered = {layer.name: masks[layer.name] for layer in layers}
    return summarize(layers, ordered)


def check_fixed(operator: str, layers: list[Layer], scope: str, allocation: str) -> None:
    """Raise where ratios would be chosen for a pattern that has one already."""
    for layer in layers:
        if layer.pattern.group_columns is None:
            continue
        fixed = f"with {layer.pattern.label}, whose sparsity is fixed (layer {layer.name!r})"
        if scope == "global":
            raise ValueError(f"{operator}: scope must be 'layer' or 'row' {fixed}, got 'global'")
        if allocation != "uniform":
            raise ValueError(
                f"{operator}: allocation must be 'uniform' {fixed}, got {allocation!r}"
            )


class OneShot:
    """The state of one `prune_` call, or of an allocation for another one."""

    def __init__(
        self,
        model: nn.Module,
        layers: list[Layer],
        score: str,
        refine: str | None,
        calibration: Iterable[Any] | None,
        forward: Forward,
        damping: float,
        sequential: bool,
        operator: str = "prune_",
    ) -> None:
        self.model = model
        self.operator = operator
        self.layers = layers
        self.score = score
        self.refine = refine
        self.kind = _SCORES[score] if refine is None else "moments"
        self.batches = () if calibration is None else repeatable(calibration)
        self.forward = forward
        self.damping = damping
        self.sequential = sequential
        self.hessian_bytes = 0
        self._small: InputStatistics | None = None  # of all layers, where they are no matrices

    def check_memory(self, hessian_bytes: int, sensitivity: bool) -> None:
        """Raise unless X^T X of each layer fits alone; hold at most so many bytes of them."""
        self.hessian_bytes = hessian_bytes
        if self.kind == "gram" or sensitivity:
            for layer in self.layers:
                if _gram_bytes(layer) > hessian_bytes:
                    raise ValueError(
                        f"{self.operator}: hessian_bytes must be at least {_gram_bytes(layer)} for "
                        f"{layer.name!r}, got {hessian_bytes}"
                    )

    def visit(
        self, kind: str, sequential: bool | None = None
    ) -> Iterator[tuple[Layer, InputStatistics | None]]:
        """Each layer with statistics of its inputs, collected stage by stage as it is consumed."""
        if kind == "none":
            for layer in self.layers:
                yield layer, None
            return
        sequential = self.sequential if sequential is None else sequential
        if kind != "gram" and not sequential:
            if self._small is None:
                self._small = InputStatistics(self.layers, kind, self.operator)
                self._small.collect(self.model, self.batches, self.forward)
            for layer in self.layers:
                yield layer, self._small
            return
        for stage in self._stages(kind, sequential):
            statistics = InputStatistics(stage, kind, self.operator)
            statistics.collect(self.model, self.batches, self.forward)
            for layer in stage:
                yield layer, statistics
                del statistics.total[layer]

    def _stages(self, kind: str, sequential: bool) -> list[list[Layer]]:
        fits = sum(map(_gram_bytes, self.layers)) <= self.hessian_bytes
        if not sequential and (kind != "gram" or fits):
            return [self.layers]
        stages: list[list[Layer]] = []
        for group in call_order(self.model, self.layers, self.batches, self.forward):
            fresh = sequential or not stages
            for layer in group:
                held = 0 if fresh else sum(map(_gram_bytes, stages[-1]))
                if fresh or (kind == "gram" and held + _gram_bytes(layer) > self.hessian_bytes):
                    stages.append([])
                stages[-1].append(layer)
                fresh = False
        return stages

    def scores(self, layer: Layer, statistics: InputStatistics | None) -> Tensor:
        """The score matrix that masks are chosen by, [out, in]."""
        weight = layer.matrix()
        if statistics is None or self.score == "magnitude":
            score = magnitude(weight)
        elif self.score == "ria":
            score = ria(weight, statistics.column_norms(layer))
        elif self.score in ("wanda", "alps"):  # what the first projection of ALPS compares
            score = wanda(weight, statistics.column_norms(layer))
        else:
            inverse = inverse_hessian(
                statistics.total[layer], self.damping, layer.name, self.operator
            )
            score = obs_saliency(weight, inverse.diagonal())
        return protect_nonfinite(weight, score)

    def prune(
        self, layer: Layer, statistics: InputStatistics | None, scope: str, blocksize: int
    ) -> Tensor:
        """Write the pruned weight; returns its mask in the weight's shape."""
        weight = layer.matrix()
        if self.score == "sparsegpt":
            assert statistics is not None
            factor = inverse_factor(statistics.total[layer], self.damping, layer.name)
            new, mask = sparsegpt(weight, factor, layer.chosen(), scope, blocksize)
            layer.weight.copy_(new.reshape(layer.weight.shape))
        elif self.score == "alps":
            assert statistics is not None
            gram = statistics.total[layer]
            new, mask = alps(weight, gram, self.damping, layer.chosen(), scope)
            layer.weight.copy_(new.reshape(layer.weight.shape))
        else:
            mask = layer.mask(self.scores(layer, statistics), scope)
            if self.refine == "dsnot":
                assert statistics is not None
                mean, variance = statistics.moments(layer)
                norms = statistics.column_norms(layer)
                mask = dsnot(weight, mask, norms, mean, variance, layer.pattern.group_columns)
            mask = keep_nonfinite(weight, mask, layer.pattern)
            layer.weight.masked_fill_(~mask.reshape(layer.weight.shape), 0.0)
        return mask.reshape(layer.weight.shape)

    def _entries(self) -> Iterator[list[Layer]]:
        for entry in sorted({layer.entry for layer in self.layers}):
            yield [layer for layer in self.layers if layer.entry == entry]

    def allocate_erk(self) -> None:
        """Ratios by the shapes of the layers."""
        for group in self._entries():
            shapes = [tuple(layer.weight.shape) for layer in group]
            chosen = ratios.erk(shapes, group[0].pattern.sparsity)
            for layer, s in zip(group, chosen, strict=True):
                layer.sparsity = s

    def allocate_global(self) -> None:
        """Ratios by one comparison of all scores."""
        units: dict[Layer, Tensor] = {}
        for layer, statistics in self.visit(self.kind, sequential=False):
            units[layer] = layer.pattern.unit_scores(self.scores(layer, statistics))
        for group in self._entries():
            scores = [units[layer] for layer in group]
            chosen = ratios.pooled(scores, group[0].pattern.sparsity)
            for layer, s in zip(group, chosen, strict=True):
                layer.sparsity = s

    def allocate_sensitivity(self, scope: str) -> None:
        """Ratios by measured output errors."""
        curves: dict[Layer, list[tuple[float, float]]] = {}
        for layer, statistics in self.visit("gram", sequential=False):
            assert statistics is not None
            curves[layer] = ratios.sensitivity_curve(
                layer.matrix(),
                self.scores(layer, statistics),
                statistics.total[layer],
                layer.pattern,
                scope,
                ratios.sensitivity_grid(layer.pattern.sparsity),
            )
        for group in self._entries():
            sizes = [layer.weight.numel() for layer in group]
            chosen = ratios.equalize(
                [curves[layer] for layer in group], sizes, group[0].pattern.sparsity
            )
            for layer, s in zip(group, chosen, strict=True):
                layer.sparsity = s


def _gram_bytes(layer: Layer) -> int:
    columns = layer.weight.flatten(1).shape[1]
    return 4 * columns * columns
