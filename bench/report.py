# SPDX-License-Identifier: Apache-2.0
"""Writes docs/performance.md and its plots from the records; nothing in them is typed by hand."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import plots
from bars import BARS, OURS, Bar, Record, bandwidth, measured
from environment import RESULTS, ROOT

_INTRODUCTION = """# Performance

<!-- Written by bench/report.py from bench/results/*/*.jsonl. Do not edit. -->

Times are medians over interleaved rounds; a speed-up is the median, over the rounds, of the ratio
of two times of one round, with its quartiles. Every result was checked before it was timed. GFLOP/s
count only kept weights: 2 * kept weights * rows of x. [bench/README.md](../bench/README.md) says
how each figure is measured and how to repeat it: `make bench`.
"""
# The one figure here that is not from the records: a server with AMX, torch 2.13.
_AMX = (
    "On a server with AMX, dense bf16 ran 2 times (1x1 layers of MobileNet v1) to 6.5 times (128 "
    "rows, 1024-1024) as fast as dense fp32: there, at large batch, unstructured fp32 sparsity "
    "loses to it up to about 90 %."
)
_HONEST = {
    "amx": (
        "This processor has AMX, which dense bf16 uses. Where the speed-up over dense bf16 is "
        "below 1, dense bf16 is the better choice at that shape."
    ),
    "none": (
        "This processor has neither AMX nor AVX512-BF16: its dense bf16 is emulated, so the bf16 "
        f"rows say nothing about servers that have them. {_AMX}"
    ),
    "avx512_bf16": f"This processor has AVX512-BF16 but no AMX. {_AMX}",
    "arm": (
        "Where the speed-up over dense bf16 is below 1, dense bf16 is the better choice at that "
        "shape."
    ),
}
_TITLES = {
    "conv2d": "1x1 convolution, fp32, batch 1",
    "mobilenet": "All 1x1 layers of MobileNet v1 at 224, fp32, batch 1",
    "linear": "Linear layer, 128 rows, fp32",
    "decode": "Decode, 4096-4096, cold weights",
    "model": "The real model, end to end (`make demo`)",
    "wasm": "WebAssembly in Node: all 1x1 layers of MobileNet v1 at 224, and N:M layers",
    "isa": "Instruction sets, forced",
    "isa_avx2": "AVX2 against dense fp32 held to AVX2",
    "pack": "Packing, 1 thread",
    "nm": "N:M linear layers; decode in bf16 with cold weights, batches in fp32",
    "gqs": "Group-quantized sparse linear layers: 4 bits, half of the groups, bf16 x, cold weights",
    "bitmap": "Bitmap linear layers; decode with cold weights, batches in fp32",
    "nm_mask": "N:M masks (N of M are kept), fp32",
    "nm_training": "A training step of a transformer block with N:M weights, fp32",
    "kv": "Decode attention over a pruned KV cache, bf16, cold",
    "overhead": "Cost of a call, 1 thread",
    "cpp": "From C++",
}


def _load(folder: Path) -> tuple[list[Record], dict[str, Any]]:
    """The records of one machine, and the newest complete environment among them."""
    records, environments = [], []
    for file in sorted(folder.glob("*.jsonl")):
        for line in file.read_text().splitlines():
            record = json.loads(line)
            if "environment" in record:
                if "machine" in record["environment"]:
                    environments.append(record["environment"])
            else:
                records.append(record)
    return _merged(records), max(environments, key=lambda e: e["date"], default={})


def _merged(records: Sequence[Record]) -> list[Record]:
    """One record per case and threads: peers measured elsewhere join the case that we have."""
    cases: dict[tuple[Any, ...], Record] = {}
    for record in records:
        first = cases.setdefault((record["bench"], record["case"], record["threads"]), record)
        if first is not record:
            first["candidates"] += record["candidates"]
            first["speedups"] += record["speedups"]
    return list(cases.values())


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield "| " + " | ".join(row) + " |"
    yield ""


def _number(value: float) -> str:
    if value == 0:
        return "0"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _figure(bar: Bar, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0%}" if bar.kind == "share" else f"{value:.2f}"


def _verdict(bar: Bar, values: dict[int, float | None]) -> str:
    judged = [values[threads] for threads in bar.threads if threads in values]
    if not judged or any(value is None for value in judged):
        return "not measured"
    if all(bar.met_by(value) for value in judged if value is not None):
        return "yes"
    worst = (max if bar.kind == "cost" else min)(value for value in judged if value is not None)
    gap = abs(worst / bar.goal - 1)
    return f"**no**, {gap:.0%} {'above' if bar.kind == 'cost' else 'below'}"


def _bars(records: Sequence[Record]) -> Iterator[str]:
    rows, met, known = [], 0, 0
    for bar in BARS:
        values = {threads: measured(bar, records, threads) for threads in (1, 2)}
        verdict = _verdict(bar, values)
        met += verdict == "yes"
        known += verdict != "not measured"
        sign = "<=" if bar.kind == "cost" else ">="
        goal = f"{bar.goal:.0%}" if bar.kind == "share" else f"{bar.goal:g}"
        threads = "" if len(bar.threads) > 1 else f" ({bar.threads[0]} thread)"
        if bar.threads == (2,):
            threads = " (2 threads)"
        rows.append(
            [
                bar.what,
                bar.against,
                f"{sign} {goal}{threads}",
                _figure(bar, values[1]),
                _figure(bar, values[2]),
                verdict,
            ]
        )
    missing = len(BARS) - known
    yield f"{met} of the {known} goals measured here are met; {missing} were not measured."
    yield ""
    head = ("what", "against", "goal", "1 thread", "2 threads", "met")
    yield from _table(head, rows)


def _row(row: dict[str, Any], record: Record) -> list[str]:
    """A candidate: time, spread, rate, share of the limit, and our speed-up over it."""
    name = row["name"] + (f", {row['sparsity']:.0%}" if row["sparsity"] else "")
    spread = (row["q3_us"] - row["q1_us"]) / 2 / row["median_us"]
    share = ""
    fma = max((r["gflops"] for r in record["candidates"] if r.get("limit") == "fma"), default=None)
    limit = bandwidth(record)
    if limit and "gbps" in row:
        share = f"{row['gbps'] / limit:.0%} of reading"
    elif fma and "gflops" in row:
        share = f"{row['gflops'] / fma:.0%} of multiply-adds"
    rate = f"{_number(row['gflops'])} GFLOP/s" if "gflops" in row else ""
    if "gbps" in row:
        rate = f"{rate}, {_number(row['gbps'])} GB/s".lstrip(", ")
    return [name, _number(row["median_us"]), f"{spread:.0%}", rate, share, row.get("kernel", "")]


def _speedups(record: Record) -> Iterator[str]:
    """Ours against each other candidate, a column per sparsity."""
    ours = [r for r in record["speedups"] if r["of"] == OURS and r["over"].split(" ")[0] != OURS]
    sparsities = sorted({r["sparsity"] for r in ours})
    rows = []
    for over in dict.fromkeys(r["over"] for r in ours):
        by = {r["sparsity"]: r for r in ours if r["over"] == over}
        cells = [
            f"{by[s]['median']:.2f} ({by[s]['q1']:.2f}-{by[s]['q3']:.2f})" if s in by else "-"
            for s in sparsities
        ]
        rows.append([over, *cells])
    if rows:
        head = ["speed-up over", *(f"{s:.0%}" if s else "dense" for s in sparsities)]
        yield from _table(head, rows)


def _section(bench: str, records: Sequence[Record], note: str) -> Iterator[str]:
    yield f"### {_TITLES.get(bench, bench)}"
    yield ""
    if note:
        yield note
        yield ""
    for record in records:
        threads = record["threads"]
        yield f"**{record['case']}**, {threads} thread{'s' * (threads > 1)}"
        yield ""
        yield from _speedups(record)
        yield "<details><summary>times</summary>"
        yield ""
        head = ("candidate", "us", "spread", "rate", "share of the limit", "kernel")
        yield from _table(head, [_row(row, record) for row in record["candidates"]])
        yield "</details>"
        yield ""


def _share(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.0%} of the cores' time, before the last part"


def _machine(environment: dict[str, Any]) -> Iterator[str]:
    caches = ", ".join(
        f"L{level} {environment[f'l{level}_bytes'] / 2**20:.3g} MB"
        for level in (1, 2, 3)
        if environment[f"l{level}_bytes"]
    )
    versions = ", ".join(f"{name} {environment[name]}" for name in ("torch", "onnxruntime"))
    yield from _table(
        ("", ""),
        [
            ["processor", f"{environment['machine']}, {environment['cores']} cores, {caches}"],
            ["flags", " ".join(environment["flags"])],
            ["frequency governor", environment["governor"]],
            ["busy with other work", _share(environment["busy"])],
            ["versions", f"{versions}, {environment['compiler']}, {environment['system']}"],
            ["commit, date", f"{environment['commit']}, {environment['date']}"],
        ],
    )


def _note(environment: dict[str, Any]) -> str:
    flags = environment["flags"]
    if "asimd" in flags:
        return _HONEST["arm"]
    if "amx_bf16" in flags:
        return _HONEST["amx"]
    return _HONEST["avx512_bf16" if "avx512_bf16" in flags else "none"]


def _of_machine(folder: Path, docs: Path) -> Iterator[str]:
    records, environment = _load(folder)
    yield f"## {environment['machine']}, {environment['cores']} cores"
    yield ""
    yield from _machine(environment)
    yield "### Goals"
    yield ""
    yield from _bars(records)
    for name, title in plots.write(records, docs / "images", folder.name):
        yield f"![{title}](images/{name})"
        yield ""
    dense = ("conv2d", "mobilenet", "linear", "decode", "nm", "gqs", "model")
    order = [*_TITLES, *sorted({r["bench"] for r in records} - set(_TITLES))]
    for bench in order:
        found = [r for r in records if r["bench"] == bench]
        if found:
            yield from _section(bench, found, _note(environment) if bench in dense else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--docs", type=Path, default=ROOT / "docs")
    given = parser.parse_args()
    machines = sorted(path.parent for path in given.results.glob("*/*.jsonl"))
    if not machines:
        raise SystemExit(f"report: {given.results} must hold records, got none; run `make bench`")
    lines = [_INTRODUCTION]
    for folder in dict.fromkeys(machines):
        lines += _of_machine(folder, given.docs)
    given.docs.mkdir(parents=True, exist_ok=True)
    path = given.docs / "performance.md"
    path.write_text("\n".join(lines).rstrip() + "\n")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
