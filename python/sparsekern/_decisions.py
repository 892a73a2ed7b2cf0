# SPDX-License-Identifier: Apache-2.0
"""What `convert_` decided, layer by layer, with a readable table."""

from __future__ import annotations

from dataclasses import dataclass

from sparsekern import _table


@dataclass(frozen=True)
class LayerDecision:
    """What became of one weight.

    Attributes:
        name: of the first module that uses it.
        shape: of the dense weight.
        sparsity: share of zeros; None where the layer was not looked into.
        decision: "csr", "nm", "bitmap", "gqs" or "dense".
        reason: why, in words.
        format: such as "csr float32", "csr r4 int8" (4 rows share a pattern), "gqs w4g16", "dense
            bfloat16".
        bytes_before: of the dense weight.
        bytes_after: of what stands for it now.
        dense_us: time in the dense model, microseconds per pass over all example inputs, all
            calls together; None where it was not measured.
        sparse_us: the same for the fastest packed form.
    """

    name: str
    shape: tuple[int, ...]
    sparsity: float | None
    decision: str
    reason: str
    format: str
    bytes_before: int
    bytes_after: int
    dense_us: float | None = None
    sparse_us: float | None = None


@dataclass(frozen=True)
class ConvertResult:
    """All decisions, in module order; `print` it for a table.

    Attributes:
        policy: what was asked for.
        layers: one `LayerDecision` per Linear and Conv2d weight.
        dense_seconds: median time of one pass over all example inputs before, the whole model;
            None where it was not measured.
        converted_seconds: the same after.
        fused: names of the layers that took in the activation after them.
        note: what else is to be said; empty mostly.
    """

    policy: str
    layers: tuple[LayerDecision, ...]
    dense_seconds: float | None = None
    converted_seconds: float | None = None
    fused: tuple[str, ...] = ()
    note: str = ""

    def __getitem__(self, name: str) -> LayerDecision:
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(name)

    @property
    def packed(self) -> tuple[str, ...]:
        """Names of the layers that are packed now."""
        return tuple(layer.name for layer in self.layers if layer.decision != "dense")

    @property
    def bytes_before(self) -> int:
        """Of all weights listed."""
        return sum(layer.bytes_before for layer in self.layers)

    @property
    def bytes_after(self) -> int:
        """Of all weights listed."""
        return sum(layer.bytes_after for layer in self.layers)

    def __str__(self) -> str:
        head = ("layer", "shape", "sparsity", "format", "before", "after", "dense", "packed", "why")
        rows = [head]
        for layer in self.layers:
            rows.append(
                (
                    layer.name,
                    "x".join(map(str, layer.shape)),
                    _table.percent(layer.sparsity),
                    layer.format,
                    _table.size(layer.bytes_before),
                    _table.size(layer.bytes_after),
                    _table.duration(None if layer.dense_us is None else layer.dense_us / 1e6),
                    _table.duration(None if layer.sparse_us is None else layer.sparse_us / 1e6),
                    layer.reason,
                )
            )
        total = f"{len(self.packed)} of {len(self.layers)} packed"
        before, after = _table.size(self.bytes_before), _table.size(self.bytes_after)
        rows.append(("total", "", "", total, before, after, "", "", ""))
        text = _table.aligned(rows, left=(0, 1, 3, 8))
        if self.dense_seconds is not None and self.converted_seconds is not None:
            text += (
                f"\nwhole model: dense {_table.duration(self.dense_seconds)}, "
                f"now {_table.duration(self.converted_seconds)} "
                f"({_table.ratio(self.dense_seconds / max(self.converted_seconds, 1e-12))})"
            )
        if self.fused:
            text += f"\nactivation fused into: {', '.join(self.fused)}"
        return f"{text}\n{self.note}" if self.note else text
