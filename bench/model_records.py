# SPDX-License-Identifier: Apache-2.0
"""The demo's end-to-end times as records, where `make demo` has been run on this machine."""

from __future__ import annotations

import json
from typing import Any

from environment import ROOT, cpu_name
from harness import OURS, Options, Recorder, options

_DEMO = ROOT / ".demo" / "results.json"
_NAMES = {"torch bfloat16": "torch dense bf16", "onnxruntime float32": "onnxruntime dense fp32"}


def _row(name: str, sparsity: float, timing: dict[str, float]) -> dict[str, Any]:
    fields = (("median_us", "median"), ("q1_us", "low"), ("q3_us", "high"))
    times = {key: round(timing[field] * 1e6, 3) for key, field in fields}
    return {"name": name, "sparsity": sparsity, **times, "rounds": timing["samples"]}


def _speedup(ours: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Of medians: the demo times all contestants interleaved but keeps no single rounds."""
    return {
        "of": ours["name"],
        "sparsity": ours["sparsity"],
        "over": other["name"],
        "median": round(other["median_us"] / ours["median_us"], 3),
        "q1": round(other["q1_us"] / ours["q3_us"], 3),
        "q3": round(other["q3_us"] / ours["q1_us"], 3),
    }


def main(options: Options) -> None:
    if not _DEMO.exists():
        print(f"{_DEMO} is missing: run `make demo` for the end-to-end rows")
        return
    demo = json.loads(_DEMO.read_text())
    recorder = Recorder("model", options.results)
    for shape in demo["shapes"]:
        rows = []
        for point in demo["points"]:
            sparsity = point["sparsity"] / 100
            name = OURS if sparsity else "torch dense fp32"
            rows.append(_row(name, sparsity, point["timings"][shape]))
        for contestant in demo["contestants"]:
            if shape in contestant["timings"]:
                name = _NAMES.get(contestant["name"], contestant["name"])
                rows.append(_row(name, 0.0, contestant["timings"][shape]))
        ratios = [_speedup(a, b) for a in rows for b in rows if a["sparsity"] and not b["sparsity"]]
        recorder.add(
            {
                "case": shape,
                "threads": int(demo["machine"].get("threads", 0)),
                "candidates": rows,
                "speedups": ratios,
                "measured_on": demo["machine"].get("cpu", cpu_name()),
                "short_training": demo["fast"],
            }
        )
    recorder.save()


if __name__ == "__main__":
    main(options())
