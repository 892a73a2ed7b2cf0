# SPDX-License-Identifier: Apache-2.0
"""`report`: what each layer of a model is now, what it costs, and how near it is to the limit."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparsekern import _table, measure
from sparsekern._candidates import describe_dtype
from sparsekern._checkpoint_format import pattern_of
from sparsekern._examples import as_examples
from sparsekern._sites import Site, find_sites, packed_layers
from sparsekern._trial import Call, Trial, run_trials
from sparsekern.checkpoint import unwrapped
from sparsekern.convert import REASON
from sparsekern.csr import CSRTensor
from sparsekern.gqs import GQSTensor
from sparsekern.nn import CSRConv2d, PackedLayer
from sparsekern.prune.calibration import Forward, feed

__all__ = ["LayerReport", "Report", "report"]


@dataclass(frozen=True)
class LayerReport:
    """One layer.

    Attributes:
        name: in the model.
        format: "csr", "nm", "gqs" or "dense".
        dtype: of the weight's values; "w4g16" or the like for gqs.
        block_rows: outputs that share a pattern; 0 for dense.
        shape: of the dense weight; [out, in] for packed convolutions.
        density: share of weights kept (packed) or not zero (dense); None where it holds no data.
        kernel: the name that selection gives on this machine, for the rows of x that the
            examples have, one row without examples; "torch" for dense.
        nbytes: of the weight as it is.
        dense_nbytes: of the weight dense, in the dtype of its values (float32 for int8).
        reason: why `convert_` left it dense or packed it, as far as known.
        rows: rows of x (pixels of a convolution) in one pass over the examples; this and what
            follows is None where the examples do not reach the layer.
        seconds: median time of all its calls in one pass, inside the running model.
        dense_seconds: the same with the dense weight instead; equal to `seconds` for dense.
        share: of the machine's limit, see `Report`; None where it was not measured.
        bound: which limit that is, "memory" or "arithmetic"; empty where not measured.
    """

    name: str
    format: str
    dtype: str
    block_rows: int
    shape: tuple[int, ...]
    density: float | None
    kernel: str
    nbytes: int
    dense_nbytes: int
    reason: str = ""
    rows: int | None = None
    seconds: float | None = None
    dense_seconds: float | None = None
    share: float | None = None
    bound: str = ""

    @property
    def ratio(self) -> float | None:
        """Dense time over time; above 1 the layer is faster than dense."""
        if not self.seconds or self.dense_seconds is None:
            return None
        return self.dense_seconds / self.seconds


@dataclass(frozen=True)
class Report:
    """All Linear, Conv2d and packed layers, in module order; `print` it for a table.

    A layer's least possible time is the larger of two: its weight's bytes over the read bandwidth
    (each call reads the weight once), and the useful floating-point operations, 2 per kept weight
    and row of x, over the peak. Its share of the limit is that over its time. It can exceed 1
    where the weight stays in a cache between calls.

    Attributes:
        layers: one `LayerReport` each.
        threads: torch's number of threads.
        seconds: median time of one pass over the examples, whole model; None without examples.
        dense_seconds: the same with every packed layer dense.
        read_bandwidth: bytes per second, see `measure.read_bandwidth`; None without examples.
        fma_peak: operations per second, see `measure.fma_peak`; None without examples.
    """

    layers: tuple[LayerReport, ...]
    threads: int
    seconds: float | None = None
    dense_seconds: float | None = None
    read_bandwidth: float | None = None
    fma_peak: float | None = None

    def __getitem__(self, name: str) -> LayerReport:
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(name)

    @property
    def nbytes(self) -> int:
        """Of all weights listed."""
        return sum(layer.nbytes for layer in self.layers)

    @property
    def dense_nbytes(self) -> int:
        """Of all weights listed, dense."""
        return sum(layer.dense_nbytes for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, with the totals and each layer's ratio."""
        layers = [{**asdict(layer), "ratio": layer.ratio} for layer in self.layers]
        totals = {"nbytes": self.nbytes, "dense_nbytes": self.dense_nbytes}
        return {**asdict(self), **totals, "layers": layers}

    def to_json(self, indent: int | None = 2) -> str:
        """`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=indent)

    def __str__(self) -> str:
        timed = self.seconds is not None
        head = ["layer", "format", "shape", "density", "kernel", "bytes", "dense bytes"]
        rows = [[*head, *(["time", "dense", "ratio", "limit"] if timed else []), "note"]]
        for layer in self.layers:
            row = [
                layer.name,
                _format(layer),
                "x".join(map(str, layer.shape)),
                _table.percent(layer.density),
                layer.kernel,
                _table.size(layer.nbytes),
                _table.size(layer.dense_nbytes),
            ]
            if timed:
                row += [
                    _table.duration(layer.seconds),
                    _table.duration(layer.dense_seconds),
                    _table.ratio(layer.ratio),
                    "-" if layer.share is None else f"{layer.share * 100:.0f} % {layer.bound}",
                ]
            rows.append([*row, layer.reason])
        rows.append(self._totals(timed))
        text = _table.aligned(rows, left=(0, 1, 2, 4, len(rows[0]) - 1))
        if self.read_bandwidth is not None and self.fma_peak is not None:
            text += (
                f"\nlimits measured by torch on {self.threads} thread(s): "
                f"{self.read_bandwidth / 1e9:.1f} GB/s read, {self.fma_peak / 1e9:.0f} GFLOP/s"
            )
        return text

    def _totals(self, timed: bool) -> list[str]:
        row = ["total", "", "", "", "", _table.size(self.nbytes), _table.size(self.dense_nbytes)]
        if timed:
            ratio = None
            if self.seconds and self.dense_seconds is not None:
                ratio = self.dense_seconds / self.seconds
            times = [_table.duration(self.seconds), _table.duration(self.dense_seconds)]
            row += [*times, _table.ratio(ratio), ""]
        return [*row, "whole model" if timed else ""]


def report(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    forward: Forward | None = None,
    seconds: float = 2.0,
) -> Report:
    """Describe every layer; with examples, time each in the running model against dense.

    For the timing, the packed layers are made dense beside, all at once, and given up after: it
    takes the dense weights' memory. torch's current number of threads is used.

    Args:
        model: any module, converted or not.
        example_inputs: as `convert_` takes them; None: nothing is run.
        forward: `forward(model, example)` runs one example its own way.
        seconds: about how long to measure; at least 5 passes are made.

    Raises:
        TypeError, ValueError: bad arguments, weights without data.
        MemoryError: the dense weights do not fit.
    """
    root = unwrapped(model, "report")
    examples = as_examples("report", model, example_inputs)
    packed = packed_layers(root)
    sites = [] if isinstance(root, (nn.Linear, nn.Conv2d)) else find_sites("report", root, "*", ())
    if not examples:
        layers = [_packed_report(name, layer) for name, layer in packed]
        layers += [_dense_report(site) for site in sites]
        return Report(_ordered(root, layers), torch.get_num_threads())
    bandwidth, peak = measure.read_bandwidth(), measure.fma_peak()
    dense: dict[nn.Module, nn.Module] = {layer: layer.to_dense() for _, layer in packed}
    watched = [layer for _, layer in packed] + [m for site in sites for m in site.modules]
    variants = {"now": {}, "dense": dense} if dense else {"now": {}}
    trials = run_trials(root, examples, forward or feed, variants, watched, seconds=seconds)
    trials.setdefault("dense", trials["now"])
    limits = (bandwidth, peak)
    layers = [_packed_report(name, layer, trials, limits) for name, layer in packed]
    layers += [_dense_report(site, trials, limits) for site in sites]
    return Report(
        _ordered(root, layers),
        torch.get_num_threads(),
        trials["now"].total.median,
        trials["dense"].total.median,
        bandwidth,
        peak,
    )


def _ordered(root: nn.Module, layers: Sequence[LayerReport]) -> tuple[LayerReport, ...]:
    position = {name: i for i, (name, _) in enumerate(root.named_modules(remove_duplicate=False))}
    return tuple(sorted(layers, key=lambda layer: position[layer.name]))


def _format(layer: LayerReport) -> str:
    rows = f" r{layer.block_rows}" if layer.block_rows > 1 else ""
    return f"{layer.format}{rows} {layer.dtype}".rstrip()


def _rows(module: nn.Module, call: Call) -> int:
    """Rows of x in one call: what each kept weight is multiplied with."""
    if not isinstance(module, (nn.Conv2d, CSRConv2d)):
        return math.prod(call.shape[:-1])
    step = module.stride if isinstance(module.stride, tuple) else (module.stride, module.stride)
    batch, (height, width) = math.prod(call.shape[:-3]), call.shape[-2:]
    return batch * math.ceil(height / step[0]) * math.ceil(width / step[1])


def _timing(
    module_names: Sequence[nn.Module],
    trials: dict[str, Trial] | None,
    limits: tuple[float, float] | None,
    nbytes: int,
    kept: int | None,
) -> dict[str, Any]:
    """The measured fields of a layer; `kept` None: no limit is known for it."""
    if trials is None or limits is None:
        return {}
    now, dense = trials["now"], trials["dense"]
    modules = [m for m in module_names if m in now.layers]
    if not modules:
        return {}
    calls = [(m, call) for m in modules for call in now.calls.get(m, [])]
    rows = sum(_rows(m, call) for m, call in calls)
    seconds = sum(now.layers[m].median for m in modules)
    result: dict[str, Any] = {
        "rows": rows,
        "seconds": seconds,
        "dense_seconds": sum(dense.layers[m].median for m in modules),
    }
    if kept is not None and seconds > 0:
        memory, arithmetic = len(calls) * nbytes / limits[0], 2.0 * kept * rows / limits[1]
        result["share"] = max(memory, arithmetic) / seconds
        result["bound"] = "memory" if memory >= arithmetic else "arithmetic"
    return result


def _packed_report(
    name: str,
    layer: PackedLayer,
    trials: dict[str, Trial] | None = None,
    limits: tuple[float, float] | None = None,
) -> LayerReport:
    weight = layer.weight
    item = 4 if weight.dtype == torch.int8 else weight.dtype.itemsize
    timing = _timing([layer], trials, limits, weight.nbytes, weight.nnz)
    calls = trials["now"].calls.get(layer, []) if trials is not None else []
    names = dict.fromkeys(layer.kernel(_rows(layer, call)) for call in calls)
    fields = {
        "name": name,
        "format": type(weight).__name__.removesuffix("Tensor").lower(),
        "dtype": pattern_of(weight)
        if isinstance(weight, GQSTensor)
        else describe_dtype(weight.dtype),
        "block_rows": weight.block_rows if isinstance(weight, CSRTensor) else 1,
        "shape": tuple(weight.shape),
        "density": weight.density,
        "kernel": ", ".join(names) or layer.kernel(),
        "nbytes": weight.nbytes,
        "dense_nbytes": math.prod(weight.shape) * item,
        "reason": getattr(layer, REASON, ""),
    }
    return LayerReport(**{**fields, **timing})


def _dense_report(
    site: Site,
    trials: dict[str, Trial] | None = None,
    limits: tuple[float, float] | None = None,
) -> LayerReport:
    weight = site.modules[0]._parameters.get("weight")
    density = None if site.dense is None else 1.0 - site.sparsity()
    # Only products of float32 weights as torch.mm makes them have the limits that were measured.
    comparable = site.dense is not None and site.dense.dtype == torch.float32
    kept = math.prod(site.shape) if comparable else None
    reason = getattr(site.modules[0], REASON, site.reason)
    fields = {
        "name": site.name,
        "format": "dense",
        "dtype": describe_dtype(weight.dtype) if isinstance(weight, Tensor) else "",
        "block_rows": 0,
        "shape": site.shape,
        "density": density,
        "kernel": "torch",
        "nbytes": site.nbytes,
        "dense_nbytes": site.nbytes,
        "reason": reason,
    }
    timing = _timing(site.modules, trials, limits, site.nbytes, kept)
    if timing:
        timing["dense_seconds"] = timing["seconds"]  # one and the same, not two measurements of it
    return LayerReport(**{**fields, **timing})
