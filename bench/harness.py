# SPDX-License-Identifier: Apache-2.0
"""Checks candidates, times them side by side, writes the records.

A candidate is checked before it is timed. All candidates of a case are interleaved: each round
times every one of them once, in a new order, so that a change of clock or load meets all. A ratio
is the median of the ratios within a round.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from environment import RESULTS, cores, describe, slug
from numpy.typing import NDArray

OURS = "sparsekern"
SHAPES: dict[str, Any] = json.loads((Path(__file__).parent / "shapes.json").read_text())


@dataclass
class Candidate:
    """Something that is timed.

    Attributes:
        name: what it is, e.g. "onnxruntime dense fp32".
        seconds: runs so many calls and returns the seconds they took.
        output: result of a call, compared with `reference`; None for a limit of the machine.
        reference: float64, what `output` must return.
        tolerance: largest error allowed, in units of the reference's root mean square.
        sparsity: of its weights; 0 for dense.
        flops: useful floating-point operations of a call: 2 * kept weights * rows of x.
        bytes: bytes that a call must read at least; None where memory does not matter.
        limit: "bandwidth" or "fma" for a measurement of the machine itself.
        details: further fields of the record: kernel, packed bytes.
    """

    name: str
    seconds: Callable[[int], float]
    output: Callable[[], NDArray[Any]] | None = None
    reference: NDArray[np.float64] | None = None
    tolerance: float = 1e-3
    sparsity: float = 0.0
    flops: float | None = None
    bytes: int | None = None
    limit: str | None = None
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return f"{self.name} {self.sparsity:.0%}" if self.sparsity else self.name


def timed(call: Callable[[], Any]) -> Callable[[int], float]:
    """`Candidate.seconds` of a Python callable."""

    def seconds(calls: int) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            call()
        return time.perf_counter() - start

    return seconds


@dataclass(frozen=True)
class Effort:
    """How long to measure: rounds, seconds of a sample, untimed seconds before it, of a case."""

    rounds: int = 21
    sample: float = 0.008
    warm: float = 0.002
    case: float = 20.0


FULL = Effort()
QUICK = Effort(rounds=2, sample=0.0, warm=0.0, case=0.0)  # does everything work? times are noise


def check(candidate: Candidate) -> float:
    """Largest error of the result in units of the reference's root mean square.

    Raises:
        AssertionError: the error is above the tolerance, or the shape is wrong.
    """
    if candidate.output is None or candidate.reference is None:
        return 0.0
    got = np.asarray(candidate.output(), np.float64)
    want = candidate.reference
    assert got.shape == want.shape, f"{candidate.label}: shape {got.shape}, expected {want.shape}"
    rms = float(np.sqrt(np.mean(want**2)))
    error = float(np.max(np.abs(got - want))) / rms
    assert error <= candidate.tolerance, (  # `not <=` also catches NaN
        f"{candidate.label}: error {error:.3g} of the root mean square, "
        f"allowed {candidate.tolerance:.3g}: the result is wrong, so it is not timed"
    )
    return error


def _calls_for(candidate: Candidate, seconds: float) -> tuple[int, float]:
    """Calls that take `seconds`, and the seconds of one; the first call is not counted."""
    candidate.seconds(1)
    calls = 1
    while True:
        took = candidate.seconds(calls)
        if took >= 0.5 * seconds or took >= 0.05:
            return max(1, round(calls * seconds / max(took, 1e-9))), took / calls
        calls *= 4


def interleave(candidates: Sequence[Candidate], effort: Effort, seed: int = 0) -> list[list[float]]:
    """Seconds of a call, for each candidate a list over the rounds."""
    plans = []
    for candidate in candidates:
        calls, each = _calls_for(candidate, effort.sample)
        plans.append((calls, max(1, round(effort.warm / max(each, 1e-9)))))
    samples: list[list[float]] = [[] for _ in candidates]
    order = list(range(len(candidates)))
    shuffle = random.Random(seed)
    begin = time.perf_counter()
    for done in range(effort.rounds):
        if done >= 5 and time.perf_counter() - begin > effort.case:
            break
        shuffle.shuffle(order)
        for i in order:
            calls, warm = plans[i]
            # Untimed: the caches and the thread pool become this candidate's, and the threads of
            # the one before it stop spinning.
            if effort.warm:
                candidates[i].seconds(warm)
            samples[i].append(candidates[i].seconds(calls) / calls)
    return samples


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, first and third quartile."""
    q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
    return median, q1, q3


def _row(candidate: Candidate, samples: Sequence[float], error: float) -> dict[str, Any]:
    median, q1, q3 = quartiles(samples)
    row: dict[str, Any] = {"name": candidate.name, "sparsity": candidate.sparsity}
    for key, value in (("median_us", median), ("q1_us", q1), ("q3_us", q3)):
        row[key] = round(value * 1e6, 3)
    row["rounds"] = len(samples)
    if candidate.limit:
        row["limit"] = candidate.limit
    if candidate.flops is not None:
        row["gflops"] = round(candidate.flops / median / 1e9, 2)
    if candidate.bytes is not None:
        row["bytes"] = candidate.bytes
        row["gbps"] = round(candidate.bytes / median / 1e9, 2)
    if candidate.output is not None:
        row["error"] = float(f"{error:.3g}")
    return {**row, **candidate.details}


def measure(case: str, threads: int, candidates: Sequence[Candidate], effort: Effort) -> dict:
    """Check, time and summarize; the record of one case at one number of threads."""
    errors = [check(candidate) for candidate in candidates]
    samples = interleave(candidates, effort)
    ratios = []
    for i, ours in enumerate(candidates):
        if not ours.name.startswith(OURS):
            continue
        for j, other in enumerate(candidates):
            same = other.sparsity in (0.0, ours.sparsity)
            if i == j or other.limit or not same:
                continue
            paired = [b / a for a, b in zip(samples[i], samples[j], strict=True)]
            median, q1, q3 = quartiles(paired)
            ratios.append(
                {
                    "of": ours.name,
                    "sparsity": ours.sparsity,
                    "over": other.name,
                    "median": round(median, 3),
                    "q1": round(q1, 3),
                    "q3": round(q3, 3),
                }
            )
    rows = [_row(*row) for row in zip(candidates, samples, errors, strict=True)]
    return {"case": case, "threads": threads, "candidates": rows, "speedups": ratios}


class Recorder:
    """Writes the records of one benchmark, a JSON object per line, and shows them."""

    def __init__(self, bench: str, folder: Path) -> None:
        self.bench = bench
        self.path = folder / slug() / f"{bench}.jsonl"
        self._lines = [json.dumps({"bench": bench, "environment": describe()})]

    def add(self, record: dict[str, Any]) -> None:
        environment = describe()
        brief = {key: environment[key] for key in ("commit", "machine", "isa", "date")}
        self._lines.append(json.dumps({"bench": self.bench, **record, **brief}))
        print(f"\n{self.bench} {record['case']}, {record['threads']} thread(s)")
        for row in record["candidates"]:
            label = row["name"] + (f" {row['sparsity']:.0%}" if row["sparsity"] else "")
            spread = (row["q3_us"] - row["q1_us"]) / row["median_us"]
            rates = [
                f"{row[k]:.1f} {u}"
                for k, u in (("gflops", "GFLOP/s"), ("gbps", "GB/s"))
                if k in row
            ]
            time_text = f"{row['median_us']:11.1f} us +-{spread / 2:4.0%}"
            print(f"  {label:44} {time_text}  {'  '.join(rates)}")
        sys.stdout.flush()

    def save(self) -> None:
        """Replace the file; only a benchmark that ran to its end replaces older figures."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text("\n".join(self._lines) + "\n")


@dataclass(frozen=True)
class Options:
    """What every benchmark program is told."""

    effort: Effort
    results: Path
    peers: dict[str, list[str]]

    @property
    def quick(self) -> bool:
        return self.effort is QUICK


def options(arguments: Sequence[str] | None = None) -> Options:
    """Parse the command line that all the programs share."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="one call each: checks, no figures")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the records")
    parser.add_argument(
        "--peer",
        action="append",
        default=[],
        metavar="NAME=COMMAND",
        help="a program that speaks the protocol of bench/peers/README.md",
    )
    known = parser.parse_args(arguments)
    peers = {}
    for peer in known.peer:
        name, separator, command = peer.partition("=")
        if not separator:
            parser.error(f"--peer must be NAME=COMMAND, got {peer}")
        peers[name] = command.split()
    return Options(QUICK if known.quick else FULL, known.results, peers)


def thread_counts() -> list[int]:
    """1 and 2 threads, or only 1 on a machine with one core."""
    return [1, 2][: cores()]


def with_threads(threads: int) -> None:
    """Threads of torch, which sparsekern's operators obey."""
    torch.set_num_threads(threads)
