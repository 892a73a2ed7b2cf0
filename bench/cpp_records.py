# SPDX-License-Identifier: Apache-2.0
"""Runs the google-benchmark programs and turns their JSON into records."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from harness import OURS, Options, Recorder, options, quartiles
from limits import BUILD

_PROGRAMS = ("bench_csr_linear", "bench_csr_conv2d")


def _rows(benchmarks: list[dict[str, Any]]) -> dict[tuple[str, int], list[dict[str, Any]]]:
    """By case and threads. Names are op/shape/sparsity/threads/kernel set."""
    samples: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for entry in benchmarks:
        if entry.get("run_type") != "iteration":
            continue
        if entry.get("error_occurred"):
            raise SystemExit(f"{entry['name']}: {entry['error_message']}")
        samples.setdefault(tuple(entry["name"].split("/")[:5]), []).append(entry)
    cases: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for (op, shape, sparsity, threads, kernels), entries in samples.items():
        times = [entry["real_time"] / 1e9 for entry in entries]
        median, q1, q3 = quartiles(times) if len(times) > 1 else (times[0],) * 3
        # Counters are rates over the time of their own repetition.
        flops = entries[0]["flops"] * times[0]
        nbytes = entries[0]["bytes"] * times[0]
        row = {
            "name": f"{OURS} {kernels}",
            "sparsity": int(sparsity) / 100,
            "median_us": round(median * 1e6, 3),
            "q1_us": round(q1 * 1e6, 3),
            "q3_us": round(q3 * 1e6, 3),
            "rounds": len(times),
            "gflops": round(flops / median / 1e9, 2),
            "bytes": round(nbytes),
            "gbps": round(nbytes / median / 1e9, 2),
            "kernel": entries[0].get("label", ""),
        }
        cases.setdefault((f"{op} {shape}", int(threads)), []).append(row)
    return cases


def main(options: Options) -> None:
    recorder = Recorder("cpp", options.results)
    repetitions, seconds = (1, 0.001) if options.quick else (5, 0.03)
    for program in _PROGRAMS:
        path = BUILD / "bench" / program
        if not path.exists():
            sys.exit(
                f"{path} is missing: google-benchmark was not found when it was built "
                "(Debian: libbenchmark-dev; or SPARSEKERN_BENCHMARK_DIR)"
            )
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder, "out.json")
            command = [
                str(path),
                f"--benchmark_min_time={seconds}",
                f"--benchmark_repetitions={repetitions}",
                "--benchmark_enable_random_interleaving=true",
                f"--benchmark_out={out}",
                "--benchmark_out_format=json",
            ]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode != 0:
                sys.exit(f"{program} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
            benchmarks = json.loads(out.read_text())["benchmarks"]
        for (case, threads), rows in sorted(_rows(benchmarks).items()):
            rows.sort(key=lambda row: (row["sparsity"], row["median_us"]))
            recorder.add({"case": case, "threads": threads, "candidates": rows, "speedups": []})
    recorder.save()


if __name__ == "__main__":
    main(options())
