# SPDX-License-Identifier: Apache-2.0
"""Times layers where they work: inside the running model, one variant of it against another.

A layer timed alone finds its weights and inputs in the cache, or not, as the benchmark happens to
leave them. Here every variant of the model (all dense, all packed, ...) runs whole, in turn, and
each layer's own calls are timed in it, so caches, shapes and call counts are the real ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sparsekern import measure
from sparsekern._sites import Places
from sparsekern.measure import Timing, rotated
from sparsekern.prune.calibration import Forward, calibrating

Variant = Mapping[nn.Module, nn.Module]  # module of the model -> what to put in its place
OnRound = Callable[[int, int], None]
_MAX_ROUNDS = 200


class VariantError(RuntimeError):
    """The model runs as it is, but not with its layers replaced."""


@dataclass(frozen=True)
class Call:
    """One call of a layer: what it was given."""

    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass
class Trial:
    """Times of one variant, in seconds per pass over all example inputs.

    Attributes:
        total: of the whole model.
        layers: of each original module that was called, all of its calls together.
        calls: what each original module was given in one pass.
    """

    total: Timing
    layers: dict[nn.Module, Timing] = field(default_factory=dict)
    calls: dict[nn.Module, list[Call]] = field(default_factory=dict)


def run_trials(
    model: nn.Module,
    inputs: Sequence[Any],
    forward: Forward,
    variants: Mapping[str, Variant],
    watched: Sequence[nn.Module],
    *,
    seconds: float,
    rounds: int = 5,
    informative: Sequence[str] = (),
    on_round: OnRound | None = None,
) -> dict[str, Trial]:
    """Run the variants of a model in turn; the model is put back as it was, whatever happens.

    Args:
        model: with the original modules in place.
        inputs: example inputs; one pass runs all of them.
        forward: runs one of them.
        variants: name -> replacements of original modules; the first is the baseline.
        watched: original modules whose calls, or whose replacements' calls, are timed.
        seconds: about how long to measure.
        rounds: passes per variant at least.
        informative: variants that are dropped when they fail, or when their first pass takes
            twice the baseline's.
        on_round: called with the passes done and those expected in all.

    Returns:
        name -> Trial, without the variants that were dropped.

    Raises:
        VariantError: a variant other than the baseline and the informative ones fails.
    """
    places = Places(model, {m for variant in variants.values() for m in variant})
    originals = {m: m for variant in variants.values() for m in variant}
    recorders: dict[str, _Recorder] = {}
    try:
        with calibrating(model):
            names: list[str] = []
            for name, variant in variants.items():  # what is set up at a first call is not timed
                recorders[name] = _Recorder(watched, variant)
                places.put({**originals, **variant})
                try:
                    recorders[name].one_pass(model, inputs, forward, sample=False)
                except Exception as error:
                    if not names:  # the model itself
                        raise
                    if name in informative:
                        continue
                    raise VariantError(
                        f"convert_: model must run with {name} layers, got "
                        f"{type(error).__name__}: {error}; exclude the layers whose weight it "
                        "reads itself"
                    ) from error
                names.append(name)
            begin = measure.clock()
            done = 0
            while done < rounds or (done < _MAX_ROUNDS and measure.clock() - begin < seconds):
                for name in rotated(names, done):
                    places.put({**originals, **variants[name]})
                    recorders[name].one_pass(model, inputs, forward)
                if done == 0:
                    limit = 2 * recorders[names[0]].totals[-1]
                    for name in set(informative) & set(names):
                        if recorders[name].totals[-1] > limit:
                            names.remove(name)
                done += 1
                if on_round is not None:
                    elapsed = measure.clock() - begin
                    expected = math.ceil(seconds * done / elapsed) if elapsed > 0 else rounds
                    on_round(done, max(rounds, done, min(expected, _MAX_ROUNDS)))
    finally:
        places.put(originals)
    return {name: recorders[name].trial() for name in names}


class _Recorder:
    """The samples of one variant."""

    def __init__(self, watched: Sequence[nn.Module], variant: Variant) -> None:
        self._active = {original: variant.get(original, original) for original in watched}
        self.totals: list[float] = []
        self._layers: dict[nn.Module, list[float]] = {}
        self._calls: dict[nn.Module, list[Call]] = {}

    def one_pass(
        self, model: nn.Module, inputs: Sequence[Any], forward: Forward, sample: bool = True
    ) -> None:
        """Run all inputs once, and keep the times as a sample."""
        spent: dict[nn.Module, float] = {}
        self._calls = {}
        handles = []
        try:
            for original, active in self._active.items():
                handles += self._watch(original, active, spent)
            begin = measure.clock()
            for one in inputs:
                forward(model, one)
            total = measure.clock() - begin
        finally:
            for handle in handles:
                handle.remove()
        if sample:
            self.totals.append(total)
            for original, time in spent.items():
                self._layers.setdefault(original, []).append(time)

    def _watch(
        self, original: nn.Module, active: nn.Module, spent: dict[nn.Module, float]
    ) -> list[Any]:
        begun: list[float] = []
        calls = self._calls

        # The stamps are the last thing before and the first thing after the forward.
        def before(module: nn.Module, args: Any, kwargs: Any) -> None:
            x = args[0] if args else next(iter(kwargs.values()))
            if isinstance(x, Tensor):
                calls.setdefault(original, []).append(Call(tuple(x.shape), x.dtype))
            begun.append(measure.clock())

        def after(module: nn.Module, args: Any, result: Any) -> None:
            end = measure.clock()
            spent[original] = spent.get(original, 0.0) + end - begun.pop()

        return [
            active.register_forward_pre_hook(before, with_kwargs=True),
            active.register_forward_hook(after),
        ]

    def trial(self) -> Trial:
        """Summarize the samples."""
        layers = {original: Timing.of(samples) for original, samples in self._layers.items()}
        return Trial(Timing.of(self.totals), layers, self._calls)
