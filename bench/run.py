# SPDX-License-Identifier: Apache-2.0
"""Runs the benchmarks: `make bench`, or `python bench/run.py --only decode`.

Builds the C++ part, runs each benchmark in a process of its own, and writes docs/performance.md
from the records.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import install_deepsparse
from environment import RESULTS, ROOT

BENCH = ROOT / "bench"
BUILD = ROOT / "build" / "bench"
# In this order; what a reader waits for first comes first.
PROGRAMS = {
    "conv2d": "bench_conv2d.py",
    "linear": "bench_linear.py",
    "decode": "bench_decode.py",
    "nm": "bench_nm.py",
    "bitmap": "bench_bitmap.py",
    "kv": "bench_kv.py",
    "gqs": "bench_gqs.py",
    "isa": "bench_isa.py",
    "pack": "bench_pack.py",
    "nm_mask": "bench_nm_mask.py",
    "nm_training": "bench_nm_training.py",
    "overhead": "bench_overhead.py",
    "cpp": "cpp_records.py",
    "model": "model_records.py",
    "wasm": "wasm_records.py",
}
_WITH_PEERS = ("conv2d", "linear")
_WITH_COLD_PEERS = ("gqs",)  # DeepSparse does not walk through copies of weights


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [*PROGRAMS, "report"]
    parser.add_argument(
        "--only", nargs="+", choices=names, metavar="NAME", help=f"of {', '.join(names)}"
    )
    parser.add_argument(
        "--quick", action="store_true", help="does it all work? one call each, kept in build/"
    )
    parser.add_argument(
        "--peer", action="append", default=[], metavar="NAME=COMMAND", help="bench/peers/README.md"
    )
    parser.add_argument("--no-deepsparse", action="store_true", help="leave DeepSparse out")
    return parser.parse_args()


def build() -> None:
    """The machine's limits and the google-benchmark programs; a second call costs a second."""
    BUILD.mkdir(parents=True, exist_ok=True)
    log = BUILD / "build.log"
    print(f"building the C++ part (log: {log.relative_to(ROOT)})", flush=True)
    configure = ["cmake", "-S", ROOT, "-B", BUILD, "-G", "Ninja", "-DSPARSEKERN_BENCHES=ON"]
    with log.open("w") as out:
        for command in (configure, ["cmake", "--build", BUILD]):
            if subprocess.run(command, stdout=out, stderr=subprocess.STDOUT).returncode != 0:
                sys.exit(log.read_text()[-4000:])


def main() -> None:
    given = _parse()
    names = given.only or [*PROGRAMS, "report"]
    results = BUILD / "quick-results" if given.quick else RESULTS
    arguments = ["--results", str(results)] + ["--quick"] * given.quick
    failed = []
    peers = list(given.peer)
    if any(name in PROGRAMS for name in names):
        build()
    if any(name in _WITH_PEERS for name in names) and not given.no_deepsparse:
        command, state = install_deepsparse.command()
        print(f"DeepSparse 1.8: {state}")
        if command:
            peers.append(f"DeepSparse={' '.join(command)}")
    environment = {**os.environ, "SPARSEKERN_BENCH_BUILD": str(BUILD)}
    begin = time.monotonic()
    for i, name in enumerate(name for name in names if name in PROGRAMS):
        done = time.monotonic() - begin
        print(f"\n=== [{i + 1}/{len(names)}] {name} ({done:.0f} s so far)", flush=True)
        beside = peers if name in _WITH_PEERS else given.peer if name in _WITH_COLD_PEERS else []
        extra = [f"--peer={peer}" for peer in beside]
        command_line = [sys.executable, BENCH / PROGRAMS[name], *arguments, *extra]
        if subprocess.run(command_line, env=environment).returncode != 0:
            failed.append(name)
    if "report" in names:
        docs = BUILD / "quick-docs" if given.quick else ROOT / "docs"
        writers: list[list[str | Path]] = [
            [BENCH / "report.py", "--results", results, "--docs", docs]
        ]
        if not given.quick:  # the short table between the README's markers
            writers.append([BENCH / "readme_table.py", "--results", results])
        if any(subprocess.run([sys.executable, *writer]).returncode for writer in writers):
            failed.append("report")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}; their older figures, if any, were kept")
    print(f"\ndone in {time.monotonic() - begin:.0f} s")


if __name__ == "__main__":
    main()
