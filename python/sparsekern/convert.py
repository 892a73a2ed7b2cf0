# SPDX-License-Identifier: Apache-2.0
"""`convert_`: replaces a pruned model's dense layers by packed ones where that pays."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from sparsekern import _table
from sparsekern._candidates import Candidate, candidates_for, describe_dtype
from sparsekern._decisions import ConvertResult, LayerDecision
from sparsekern._examples import as_examples
from sparsekern._fuse import fuse_
from sparsekern._packed import DTYPE_NAMES
from sparsekern._sites import Places, Site, as_globs, find_sites
from sparsekern._trial import Trial, run_trials
from sparsekern.checkpoint import unwrapped
from sparsekern.csr import check_block_rows
from sparsekern.patterns import GQS
from sparsekern.prune.calibration import Forward, feed
from sparsekern.prune.progress import ProgressCallback

__all__ = ["ConvertResult", "LayerDecision", "convert_"]

_POLICIES = ("fastest", "smallest", "always")
MARGIN = 0.02  # a layer must be this much faster than dense, so that noise does not decide
# Where a layer that stays dense remembers why, for `report`.
REASON = "sparsekern_reason"


def convert_(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    policy: str = "fastest",
    allow_dtypes: Collection[torch.dtype] | None = None,
    int8_activations: bool = False,
    quantize: GQS | None = None,
    block_rows: int | str = "auto",
    min_sparsity: float = 0.3,
    include: str | Iterable[str] = "*",
    exclude: str | Iterable[str] = (),
    fuse: bool = False,
    forward: Forward | None = None,
    progress: bool | ProgressCallback = False,
    seconds: float = 5.0,
) -> ConvertResult:
    """Replace nn.Linear and 1x1 nn.Conv2d layers by packed ones, in place, where it pays.

    Takes any module: a SentenceTransformer, a Hugging Face model, one pruned by
    torch.nn.utils.prune (its masks are made permanent where there are enough zeros to pack), or
    one that simply has zeros in its weights. Two layers that share a weight share the packed one;
    a layer whose weight another kind of module uses too (such as an embedding) stays dense, and so
    do those whose weight nn.MultiheadAttention reads by itself. Only the exact classes nn.Linear
    and nn.Conv2d (kernel 1, stride 1 or 2, no padding, groups 1) are replaced.

    Args:
        model: on the CPU, with data.
        example_inputs: what the model will be used on, needed by policy "fastest": a tensor, a
            tuple (by position), a mapping (by keyword), or a list of such, whose total time then
            counts. For a SentenceTransformer also a list of sentences, one batch.
        policy: "fastest" runs the model on the examples, dense and packed in turn, times each
            layer in it (at torch's current number of threads), and packs a layer only where that
            is more than 2 % faster; then it measures the whole model, and where that did not
            become faster leaves all dense. "smallest" packs where that takes fewer bytes.
            "always" packs every layer from `min_sparsity` on, in the largest
            blocks that its zeros have.
        allow_dtypes: dtypes that weights may be rounded to besides their own: torch.bfloat16 or
            torch.float16 (packed, or dense with x cast to it) and torch.int8 (packed). Without
            it nothing is rounded, and the result only says where dense bfloat16 would have won.
        int8_activations: layers packed in int8, with torch.int8 among `allow_dtypes`, (as csr; nm
            and bitmap cannot) round x to int8 as well, row by row (`sparsekern.ops.csr_linear`),
            and those that `quantize` makes group by group (`sparsekern.ops.gqs_linear`).
        quantize: `GQS(bits, group)`: weights of linear layers may be rounded to codes of so many
            bits in such groups, each by its largest magnitude (`GQSTensor.from_dense`; GQSA's
            calibration rounds better). Groups of zeros are pruned, as many as there are. With
            `min_sparsity=0` layers without zeros too.
        block_rows: 1, 2 or 4 outputs that share a pattern, or "auto": those whose blocks the
            weight's zeros already have.
        min_sparsity: share of zeros, in [0, 1], below which (the layer's rounded to a percent) a
            layer is left dense unmeasured.
        include: glob or globs over module names; other layers stay dense.
        exclude: glob or globs of layers that stay dense.
        fuse: fold ReLU, ReLU6, GELU, SiLU or Hardswish (torch's or transformers') into the packed
            layer before it, where torch.fx can trace the forward of the module that holds both
            and nothing else takes the layer's output; an nn.Identity takes the activation's place.
        forward: `forward(model, example)` runs one example its own way.
        progress: True writes a line to standard error; or a callable given (done, total, text).
        seconds: about how long to measure; at least 5 passes are made.

    Returns:
        What was decided for each layer, and why.

    Raises:
        TypeError, ValueError: bad arguments; a glob without match; a weight on the meta device.
            Nothing has changed then.
        RuntimeError: the model does not run with packed layers; it is as it was.
        MemoryError: packing does not fit.
    """
    root = unwrapped(model, "convert_")
    _check_arguments(policy, min_sparsity, block_rows)
    allowed = _check_dtypes(allow_dtypes)
    if int8_activations and torch.int8 not in allowed and quantize is None:
        raise ValueError(
            "convert_: int8_activations needs torch.int8 among allow_dtypes, or quantize, got "
            f"{[describe_dtype(dtype) for dtype in allowed]}"
        )
    if quantize is not None and not isinstance(quantize, GQS):
        raise TypeError(f"convert_: quantize must be a GQS, got {type(quantize).__name__}")
    globs = as_globs("convert_", "include", include), as_globs("convert_", "exclude", exclude)
    examples = as_examples("convert_", model, example_inputs)
    if policy == "fastest" and not examples:
        raise ValueError("convert_: example_inputs must be given for policy 'fastest', got None")
    sites = find_sites("convert_", root, *globs)
    forms = partial(
        candidates_for,
        allowed=allowed,
        block_rows=block_rows,
        policy=policy,
        int8_activations=int8_activations,
        quantize=quantize,
    )
    run = _Run(root, sites, policy, min_sparsity, forms, _sink(progress))
    run.prepare()
    note = ""
    totals: tuple[float | None, float | None] = (None, None)
    if policy == "fastest":
        note, totals = run.choose_fastest(examples, forward or feed, seconds)
    else:
        run.choose_unmeasured()
    run.put()
    fused = tuple(fuse_(root)) if fuse else ()
    layers = tuple(run.decision(site) for site in sites)
    return ConvertResult(policy, layers, *totals, fused=fused, note=note)


def _check_arguments(policy: object, min_sparsity: object, block_rows: object) -> None:
    if policy not in _POLICIES:
        raise ValueError(f"convert_: policy must be one of {_POLICIES}, got {policy!r}")
    if isinstance(min_sparsity, bool) or not isinstance(min_sparsity, (int, float)):
        raise TypeError(
            f"convert_: min_sparsity must be a number, got {type(min_sparsity).__name__}"
        )
    if not 0.0 <= min_sparsity <= 1.0:
        raise ValueError(f"convert_: min_sparsity must be in [0, 1], got {min_sparsity}")
    if block_rows != "auto":
        check_block_rows("convert_", block_rows)


def _check_dtypes(allow_dtypes: Collection[torch.dtype] | None) -> list[torch.dtype]:
    if allow_dtypes is None:
        return []
    if isinstance(allow_dtypes, (str, torch.dtype)):
        raise TypeError(f"convert_: allow_dtypes must be a collection, got {allow_dtypes!r}")
    for dtype in allow_dtypes:
        if dtype not in DTYPE_NAMES:
            names = ", ".join(map(str, DTYPE_NAMES))
            raise TypeError(f"convert_: allow_dtypes must be among {names}, got {dtype!r}")
    return [dtype for dtype in DTYPE_NAMES if dtype in allow_dtypes]


def _sink(progress: bool | ProgressCallback) -> ProgressCallback:
    if callable(progress):
        return progress
    if not progress:
        return lambda done, total, text: None

    def write(done: int, total: int, text: str) -> None:
        import sys

        sys.stderr.write(f"\r\x1b[Kconvert_: {text} ({done}/{total})")
        if done == total:
            sys.stderr.write("\n")
        sys.stderr.flush()

    return write


class _Run:
    """The state of one `convert_` call."""

    def __init__(
        self,
        root: nn.Module,
        sites: Sequence[Site],
        policy: str,
        min_sparsity: float,
        forms: Callable[..., list[Candidate]],
        report: ProgressCallback,
    ) -> None:
        self.root, self.sites, self.policy = root, sites, policy
        self.min_sparsity, self.forms, self.report = min_sparsity, forms, report
        self.sparsity: dict[Site, float] = {}
        self.candidates: dict[Site, list[Candidate]] = {}
        self.chosen: dict[Site, Candidate] = {}
        self.times: dict[Site, dict[str, float]] = {}
        self.reasons: dict[Site, str] = {}

    def prepare(self) -> None:
        """Make what each site could become."""
        for done, site in enumerate(self.sites, 1):
            self.chosen[site] = Candidate.unchanged(site)
            self.reasons[site] = site.reason
            self.candidates[site] = []
            if not site.reason:
                self.sparsity[site] = site.sparsity()
                enough = round(self.sparsity[site], 2) >= self.min_sparsity
                if not enough:
                    self.reasons[site] = f"fewer than {self.min_sparsity:.0%} zeros"
                if enough:
                    site.make_permanent()
                self.candidates[site] = self.forms(site, packed=enough)
            self.report(done, len(self.sites), f"packing {site.name}")

    def choose_unmeasured(self) -> None:
        """Policies "smallest" and "always"."""
        for site, candidates in self.candidates.items():
            dense = self.chosen[site]
            pool = [c for c in candidates if c.format != "dense" or self.policy == "smallest"]
            if not pool:
                continue
            # Blocks that the zeros have make the faster kernels.
            best = min(pool, key=lambda c: c.nbytes)
            if self.policy == "always":
                best = min(pool, key=lambda c: (-c.block_rows, c.nbytes))
            if self.policy == "always" or best.nbytes < dense.nbytes:
                self.chosen[site] = best
                saved = 1 - best.nbytes / dense.nbytes
                more = f"{saved:.0%} fewer bytes" if saved > 0 else f"{-saved:.0%} more bytes"
                self.reasons[site] = more
            else:
                self.reasons[site] = f"packed takes {_table.size(best.nbytes)}"

    def choose_fastest(
        self, examples: Sequence[Any], forward: Forward, seconds: float
    ) -> tuple[str, tuple[float | None, float | None]]:
        """Policy "fastest": measure, choose, and measure what was chosen."""
        labels = {c.label: c.allowed for cs in self.candidates.values() for c in cs}
        variants: dict[str, dict[nn.Module, nn.Module]] = {"dense": {}}
        for label in labels:
            variants[label] = self._variant(
                {s: c for s, cs in self.candidates.items() for c in cs if c.label == label}
            )
        watched = [m for site, cs in self.candidates.items() if cs for m in site.modules]
        informative = [label for label, allowed in labels.items() if not allowed]
        trials = run_trials(
            self.root,
            examples,
            forward,
            variants,
            watched,
            seconds=seconds,
            informative=informative,
            on_round=self._on_round("measuring layers"),
        )
        for site, candidates in self.candidates.items():
            if candidates:
                self._choose(site, candidates, trials)
        chosen = {site: c for site, c in self.chosen.items() if c.label != "dense"}
        before = trials["dense"].total.median
        if not chosen:
            return "", (before, before)
        totals = run_trials(
            self.root,
            examples,
            forward,
            {"dense": {}, "chosen": self._variant(chosen)},
            [],
            seconds=seconds,
            on_round=self._on_round("measuring the model"),
        )
        before, after = (totals[name].total.median for name in ("dense", "chosen"))
        if after <= before:
            return "", (before, after)
        for site in chosen:
            self.chosen[site] = Candidate.unchanged(site)
            self.reasons[site] += ", but the whole model did not become faster"
        note = (
            f"all layers stay dense: with the faster ones replaced the model took "
            f"{_table.duration(after)}, dense {_table.duration(before)}"
        )
        return note, (before, before)

    def _choose(
        self, site: Site, candidates: Sequence[Candidate], trials: Mapping[str, Trial]
    ) -> None:
        """The fastest form of one weight, and the reason in words."""
        if not any(m in trials["dense"].layers for m in site.modules):
            self.reasons[site] = "example_inputs do not reach it"
            return
        times = {
            label: sum(trials[label].layers[m].median for m in site.modules if m in trial.layers)
            for label, trial in trials.items()
            if label == "dense" or any(c.label == label for c in candidates)
        }
        self.times[site] = times
        dense = times["dense"]
        known = [c for c in candidates if c.label in times]
        allowed = [c for c in known if c.allowed]
        reason = self.reasons[site]  # "fewer than ... zeros" where nothing was packed
        fastest = dense
        if allowed:
            best = min(allowed, key=lambda c: times[c.label])
            if times[best.label] < (1 - MARGIN) * dense:
                self.chosen[site] = best
                fastest = times[best.label]
                reason = f"{dense / fastest:.2f}x as fast as dense"
            elif best.format != "dense":
                reason = f"packed takes {times[best.label] / dense:.2f}x the time of dense"
        for other in known:
            if not other.allowed and times[other.label] < (1 - MARGIN) * fastest:
                gain = fastest / times[other.label]
                reason += f"; {other.label} would be {gain:.2f}x as fast (allow_dtypes)"
        self.reasons[site] = reason

    def _variant(self, choice: Mapping[Site, Candidate]) -> dict[nn.Module, nn.Module]:
        return {
            old: new
            for site, candidate in choice.items()
            for old, new in zip(site.modules, candidate.modules, strict=True)
        }

    def _on_round(self, text: str) -> Callable[[int, int], None]:
        return lambda done, total: self.report(done, total, text)

    def put(self) -> None:
        """Hang what was chosen into the model."""
        chosen = {site: c for site, c in self.chosen.items() if c.label != "dense"}
        places = Places(self.root, {m for site in chosen for m in site.modules})
        places.put(self._variant(chosen))
        for site, candidate in self.chosen.items():
            for module in candidate.modules:
                # A plain attribute, so that copies and pickles of the model keep it.
                setattr(module, REASON, self.reasons[site])

    def decision(self, site: Site) -> LayerDecision:
        """What to tell of a site."""
        chosen = self.chosen[site]
        times = self.times.get(site, {})
        packed = [t for label, t in times.items() if not label.startswith("dense")]
        label = chosen.label
        if label == "dense" and site.dense is not None:
            label = f"dense {describe_dtype(site.dense.dtype)}"
        return LayerDecision(
            site.name,
            site.shape,
            self.sparsity.get(site),
            chosen.format,
            self.reasons[site],
            label,
            site.nbytes,
            chosen.nbytes,
            times["dense"] * 1e6 if times else None,
            min(packed) * 1e6 if packed else None,
        )
