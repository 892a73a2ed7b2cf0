# SPDX-License-Identifier: Apache-2.0
"""The WebAssembly figures (bench/wasm) as records, where Node and both modules are at hand."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import Any

from environment import ROOT
from harness import OURS, Options, Recorder, options

_MODULES = (ROOT / "wasm" / "dist", ROOT / "wasm" / "node_modules" / "onnxruntime-web")
_DENSE = "onnxruntime-web"


def _times(summary: dict[str, float]) -> dict[str, float]:
    """The middle, and the ends for want of quartiles."""
    fields = (("median_us", "median_ms"), ("q1_us", "min_ms"), ("q3_us", "max_ms"))
    return {key: round(summary[field] * 1e3, 3) for key, field in fields}


def _ours(row: dict[str, Any], repeats: int) -> dict[str, Any]:
    rates = {"gflops": round(row["sparse_gflops"], 2), "kernel": row["kernel"]}
    return (
        {"name": OURS, "sparsity": row["sparsity"], "rounds": repeats}
        | _times(row["sparse"])
        | rates
    )


def _speedup(row: dict[str, Any]) -> dict[str, Any]:
    """Of medians: sparse and dense runs alternate, but single rounds are not kept."""
    ratio = round(row["ratio"], 3)
    who = {"of": OURS, "sparsity": row["sparsity"], "over": _DENSE}
    return who | {"median": ratio, "q1": ratio, "q3": ratio}


def main(options: Options) -> None:
    node = shutil.which("node")
    if node is None or not all(path.exists() for path in _MODULES):
        print("no Node, module or onnxruntime-web: bench/wasm/README.md says how to make them")
        return
    repeats = 3 if options.quick else 40
    command = [node, str(ROOT / "bench" / "wasm" / "bench.mjs"), "--repeats", str(repeats)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    recorder = Recorder("wasm", options.results)
    rows = [json.loads(line) for line in lines.splitlines()]
    cases: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        cases.setdefault(row["case"], []).append(row)
    for case, found in cases.items():
        dense = {"name": _DENSE, "sparsity": 0.0, "rounds": repeats} | _times(found[0]["dense"])
        recorder.add(
            {
                "case": case,
                "threads": 1,
                "candidates": [*(_ours(row, repeats) for row in found), dense],
                "speedups": [_speedup(row) for row in found],
                "engine": found[0]["engine"],
                "isa": found[0]["isa"],
                "dense_runtime": found[0]["dense_runtime"],
            }
        )
    recorder.save()


if __name__ == "__main__":
    main(options())
