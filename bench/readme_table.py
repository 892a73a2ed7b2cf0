# SPDX-License-Identifier: Apache-2.0
"""Puts a short table of speed-ups between the README's performance markers, from the records.

`python bench/readme_table.py`; bench/report.py writes the long form, docs/performance.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from bars import OURS, Record
from environment import RESULTS, ROOT
from report import _load

BEGIN, END = "<!-- performance:begin -->", "<!-- performance:end -->"
SPARSITIES = (0.7, 0.8, 0.9, 0.95)
_CASES = {
    "mobilenet": "1x1 convolutions of",
    "conv2d": "1x1 convolution",
    "linear": "linear layer,",
    "decode": "linear layer,",
    "model": "all-MiniLM-L6-v2, end to end,",
}
_SHOWN = {"conv2d": ("28x28x256", "7x7x1024"), "linear": ("128 rows, 1024-1024",)}
_NM_PATTERNS = ("2:4", "1:4", "2:8", "1:8", "1:16")
# What follows the pattern in a case's name, the row's title, and whom it is compared with.
_NM_CASES = (
    ("128 rows, 1024-1024", "N:M layer, 128 rows, 1024-1024", ("dense fp32",)),
    ("1 row, 4096-4096, cold", "the same in bf16, 1 row, 4096-4096, cold", ("dense bf16",)),
    ("16 rows, 4096-4096, cold", "the same in bf16, 16 rows", ("dense fp32", "dense bf16")),
)
# Formats for less sparsity: bench, case, the row's title, and whom it is compared with.
_LOW_SPARSITIES = (0.5, 0.6, 0.7)
_LOW_CASES = (
    (
        "bitmap",
        "1 row, 4096-4096, cold",
        "bitmap layer, bf16, 1 row, 4096-4096, cold",
        "dense bf16",
    ),
    ("bitmap", "16 rows, 4096-4096, cold", "the same, 16 rows", "dense bf16"),
    ("gqs", "1 row, 4096-4096, cold", "int4 groups of 16, 1 row, 4096-4096, cold", "dense bf16"),
    ("gqs", "1 row, 4096-4096, cold", "the same", "torch _weight_int4pack_mm"),
    ("kv", "4096 tokens, 32/8 heads of 128, bf16, cold", "pruned KV cache, 4096 tokens", "torch "),
)


def _speedups(record: Record, over: str, sparsities: Sequence[float] = SPARSITIES) -> list[str]:
    """Ours over the fastest of the dense candidates whose name holds `over`, per sparsity."""
    cells = []
    for sparsity in sparsities:
        found = [
            ratio["median"]
            for ratio in record["speedups"]
            if ratio["of"] == OURS and ratio["sparsity"] == sparsity and over in ratio["over"]
        ]
        cells.append(f"{min(found):.2f}" if found else "-")
    return cells


def table(records: Sequence[Record]) -> Iterator[str]:
    """Two lines per case: against the best dense fp32, and against dense bf16."""
    yield "| | speed-up over | " + " | ".join(f"{s:.0%}" for s in SPARSITIES) + " |"
    yield "|---|---|" + "---|" * len(SPARSITIES)
    for bench, title in _CASES.items():
        cases = [r for r in records if r["bench"] == bench]
        threads = max((r["threads"] for r in cases), default=0)
        for record in cases:
            case = record["case"]
            if record["threads"] != threads or case not in _SHOWN.get(bench, (case,)):
                continue
            name = f"{title} {case}"
            for over, label in (("dense fp32", "best dense fp32"), ("dense bf16", "dense bf16")):
                cells = _speedups(record, over)
                if any(cell != "-" for cell in cells):
                    yield f"| {name} | {label} | " + " | ".join(cells) + " |"
                    name = ""


def nm_table(records: Sequence[Record]) -> Iterator[str]:
    """A line per case of N:M layers, with all threads; a column per pattern."""
    found = {(r["case"], r["threads"]): r["speedups"] for r in records if r["bench"] == "nm"}
    threads = max((threads for _, threads in found), default=0)
    yield "| | speed-up over | " + " | ".join(_NM_PATTERNS) + " |"
    yield "|---|---|" + "---|" * len(_NM_PATTERNS)
    for case, title, over in _NM_CASES:
        cells = []
        for pattern in _NM_PATTERNS:
            ratios = [
                ratio["median"]
                for ratio in found.get((f"{pattern}, {case}", threads), ())
                if ratio["of"] == OURS and any(name in ratio["over"] for name in over)
            ]
            cells.append(f"{min(ratios):.2f}" if ratios else "-")
        if any(cell != "-" for cell in cells):
            yield f"| {title} | best {' or '.join(over)} | " + " | ".join(cells) + " |"


def low_table(records: Sequence[Record]) -> Iterator[str]:
    """A line per case of the formats for less sparsity, with all threads."""
    found = {(r["bench"], r["case"], r["threads"]): r for r in records}
    threads = max((threads for _, _, threads in found), default=0)
    yield "| | speed-up over | " + " | ".join(f"{s:.0%}" for s in _LOW_SPARSITIES) + " |"
    yield "|---|---|" + "---|" * len(_LOW_SPARSITIES)
    for bench, case, title, over in _LOW_CASES:
        record = found.get((bench, case, threads))
        if record is not None:
            cells = _speedups(record, over, _LOW_SPARSITIES)
            name = "the best of torch's dense" if over == "torch " else over
            yield f"| {title} | {name} | " + " | ".join(cells) + " |"


def fill(readme: Path, results: Path) -> None:
    """Replace what is between the markers."""
    lines = []
    for folder in sorted({path.parent for path in results.glob("*/*.jsonl")}):
        records, environment = _load(folder)
        body = list(table(records))
        if len(body) <= 2:
            continue
        flags = set(environment["flags"])
        amx = "with AMX" if "amx_bf16" in flags else "without AMX: its dense bf16 is slow"
        where = f"{environment['machine']}, all {environment['cores']} cores, {amx}"
        lines += [
            f"{where}. Above 1, sparse fp32 is faster.",
            "",
            *body,
            "",
        ]
        for more in (list(nm_table(records)), list(low_table(records))):
            lines += [*more, ""] if len(more) > 2 else []
    if not lines:
        raise SystemExit(f"readme_table: {results} must hold records, got none; run `make bench`")
    before, begin, rest = readme.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"readme_table: {readme} must hold {BEGIN} and {END}")
    text = "\n".join(lines).rstrip()
    readme.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")
    print(f"filled {readme}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    given = parser.parse_args()
    fill(given.readme, given.results)


if __name__ == "__main__":
    main()
