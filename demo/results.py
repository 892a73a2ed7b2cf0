# SPDX-License-Identifier: Apache-2.0
"""What the demo found, and the rule that names a winner."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from quality import Recall
from sparsekern.measure import Timing

KEEP = 0.95  # share of the dense recall that a point must keep to be named


@dataclass(frozen=True)
class Layer:
    """One converted or kept layer; seconds for the larger shape, None where not measured."""

    name: str
    format: str
    kernel: str
    seconds: float | None
    dense_seconds: float | None
    limit_share: float | None
    limit: str


@dataclass(frozen=True)
class Point:
    """One sparsity, measured end to end. `timings` are by the shape's label."""

    sparsity: int
    recall: Recall
    timings: dict[str, Timing]
    disk_bytes: int
    memory_bytes: int
    largest_error: float = 0.0
    converted: int = 0
    prunable: int = 0
    steps: int = 0
    train_seconds: float = 0.0
    training: str = ""
    layers: tuple[Layer, ...] = ()

    def with_timings(self, timings: Mapping[str, Timing]) -> Point:
        """The same point, timed."""
        return dataclasses.replace(self, timings=dict(timings))


@dataclass(frozen=True)
class Contestant:
    """A dense baseline beside float32 torch: a name and its timings, or why it has none."""

    name: str
    timings: dict[str, Timing] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Results:
    """The first point is the dense model in float32 torch; `shapes` go from small to large;
    layers are reported for `layer_shape`.
    """

    points: tuple[Point, ...]
    contestants: tuple[Contestant, ...]
    shapes: tuple[str, ...]
    layer_shape: str
    pairs: int
    machine: dict[str, str]
    fast: bool

    @property
    def dense(self) -> Point:
        """The baseline."""
        return self.points[0]

    def speedup(self, point: Point, shape: str) -> float:
        """Times faster than dense float32 torch."""
        return self.dense.timings[shape].median / point.timings[shape].median

    def best_dense(self, shape: str) -> tuple[str, Timing]:
        """The fastest dense contestant at a shape, any data type."""
        times = [("torch float32", self.dense.timings[shape])]
        times += [(c.name, c.timings[shape]) for c in self.contestants if shape in c.timings]
        return min(times, key=lambda item: item[1].median)

    def winner(self) -> Point | None:
        """The fastest sparse point, at the large shape, that keeps KEEP of both dense recalls."""
        large = self.shapes[-1]
        able = [p for p in self.points[1:] if p.recall.kept_of(self.dense.recall) >= KEEP]
        return min(able, key=lambda p: p.timings[large].median, default=None)

    def closest(self) -> Point:
        """The sparse point that keeps most."""
        return max(self.points[1:], key=lambda p: p.recall.kept_of(self.dense.recall))

    def verdicts(self) -> list[str]:
        """Plain sentences: who wins at each shape, sparse or dense, and by how much."""
        lines = []
        winner = self.winner()
        for shape in self.shapes:
            name, best = self.best_dense(shape)
            point = winner or min(self.points[1:], key=lambda p: p.timings[shape].median)
            ratio = best.median / point.timings[shape].median
            who = f"{point.sparsity} % sparse"
            milliseconds = f"{best.median * 1e3:.2f} ms"
            if ratio >= 1.0:
                lines.append(
                    f"{shape}: {who} is {ratio:.2f} x faster than the best dense "
                    f"({name}, {milliseconds})."
                )
            else:
                lines.append(
                    f"{shape}: dense wins here. {name} ({milliseconds}) is {1 / ratio:.2f} x "
                    f"faster than {who} in float32."
                )
        return lines

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self)
