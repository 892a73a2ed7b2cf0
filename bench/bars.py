# SPDX-License-Identifier: Apache-2.0
"""The goals of all families (bars.json), and how far the records of a machine meet them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OURS = "sparsekern"

Record = dict[str, Any]


@dataclass(frozen=True)
class Bar:
    """One goal: a ratio, a share or a rate, at some numbers of threads.

    Attributes:
        what, against: as the table shows them.
        bench: name of the records.
        cases, sparsities: where to look; several are taken together by their geometric mean.
        goal: at least this.
        of: our candidate.
        over: candidates, or beginnings of their names; the fastest of them counts.
        threads: where the goal must be met; other figures are shown all the same.
        kind: "speedup"; "share" of the read bandwidth; "gbps"; or "cost", our time over theirs, at
            most `goal`.
    """

    what: str
    against: str
    bench: str
    cases: tuple[str, ...]
    sparsities: tuple[float, ...]
    goal: float
    of: str
    over: tuple[str, ...]
    threads: tuple[int, ...]
    kind: str

    def met_by(self, value: float) -> bool:
        return value <= self.goal if self.kind == "cost" else value >= self.goal


def _read() -> Iterator[Bar]:
    """The rows of bars.json: a goal for each case and sparsity, or one ("mean") for all of them."""
    for row in json.loads((Path(__file__).parent / "bars.json").read_text()):
        common = {
            "against": row["against"],
            "bench": row["bench"],
            "of": row.get("of", OURS),
            "over": tuple(row.get("over", ())),
            "threads": tuple(row.get("threads", (1, 2))),
            "kind": row.get("kind", "speedup"),
        }
        what, cases = row["what"], row["cases"]
        if "mean" in row:
            yield Bar(
                what,
                cases=tuple(cases),
                sparsities=tuple(row["sparsities"]),
                goal=row["mean"],
                **common,
            )
            continue
        for case in cases:
            for sparsity, goal in row["goals"].items():
                text = f"{what}, {case}" + (f", {float(sparsity):.0%}" if float(sparsity) else "")
                yield Bar(text, cases=(case,), sparsities=(float(sparsity),), goal=goal, **common)


BARS = tuple(_read())


def _speedup(record: Record, bar: Bar, sparsity: float) -> float | None:
    found = [
        ratio["median"]
        for ratio in record["speedups"]
        if ratio["of"] == bar.of
        and ratio["sparsity"] == sparsity
        and ratio["over"].startswith(bar.over)
    ]
    return min(found, default=None)  # over the fastest


def _rate(record: Record, bar: Bar, sparsity: float) -> float | None:
    return next(
        (
            row["gbps"]
            for row in record["candidates"]
            if row["name"] == bar.of and row["sparsity"] == sparsity
        ),
        None,
    )


def bandwidth(record: Record) -> float | None:
    """The best read bandwidth measured beside this case, GB/s."""
    rates = [row["gbps"] for row in record["candidates"] if row.get("limit") == "bandwidth"]
    return max(rates, default=None)


def _value(record: Record, bar: Bar, sparsity: float) -> float | None:
    if bar.kind in ("speedup", "cost"):
        ratio = _speedup(record, bar, sparsity)
        return ratio if ratio is None or bar.kind == "speedup" else 1.0 / ratio
    rate = _rate(record, bar, sparsity)
    if bar.kind == "gbps" or rate is None:
        return rate
    limit = bandwidth(record)
    return None if limit is None else rate / limit


def measured(bar: Bar, records: Sequence[Record], threads: int) -> float | None:
    """The bar's figure at this number of threads; None where something of it was not measured."""
    values = []
    for case in bar.cases:
        record = next(
            (
                r
                for r in records
                if (r["bench"], r["case"], r["threads"]) == (bar.bench, case, threads)
            ),
            None,
        )
        if record is None:
            return None
        values += [_value(record, bar, sparsity) for sparsity in bar.sparsities]
    if not values or any(value is None for value in values):
        return None
    if bar.kind == "gbps":
        return min(values)
    return math.exp(sum(math.log(value) for value in values) / len(values))
