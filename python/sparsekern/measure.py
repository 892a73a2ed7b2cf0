# SPDX-License-Identifier: Apache-2.0
"""Timing that compares fairly, and the machine's limits that times are held against."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from sparsekern import _memory

__all__ = ["Timing", "compare", "fma_peak", "read_bandwidth"]

# Everything in the library that times reads this clock (seconds), so that one can be put in place.
clock: Callable[[], float] = time.perf_counter

_SAMPLE_SECONDS = 1e-4  # one sample is at least this long: the clock's own cost is 1e-7
_BANDWIDTH_BYTES = 512 << 20
_PEAK_SIZE = 1024


@dataclass(frozen=True)
class Timing:
    """Times of one thing, in seconds per call.

    Attributes:
        best: the least of all samples.
        median: of all samples.
        low: 25th percentile.
        high: 75th percentile.
        samples: how many there were.
    """

    best: float
    median: float
    low: float
    high: float
    samples: int

    @classmethod
    def of(cls, samples: Sequence[float]) -> Timing:
        """Summarize at least one sample."""
        ordered = sorted(samples)
        last = len(ordered) - 1
        return cls(
            ordered[0],
            statistics.median(ordered),
            ordered[round(0.25 * last)],
            ordered[round(0.75 * last)],
            len(ordered),
        )

    @property
    def spread(self) -> float:
        """Width of the middle half of the samples, relative to the median."""
        return (self.high - self.low) / self.median if self.median else 0.0


def compare(
    functions: Mapping[str, Callable[[], object]],
    *,
    seconds: float = 1.0,
    rounds: int = 5,
    max_rounds: int = 200,
) -> dict[str, Timing]:
    """Time functions against each other, interleaved.

    Every round calls each function in turn, beginning with another one each time, so that a
    machine that slows down or speeds up does so for all. A function too short for the clock is
    called several times per sample.

    Args:
        functions: name -> function without arguments; called once before anything is timed.
        seconds: about how long to go on.
        rounds: at least this many, however long they take.
        max_rounds: at most this many.

    Returns:
        name -> Timing.

    Raises:
        ValueError: no function, or fewer than one round.
    """
    if not functions:
        raise ValueError("compare: functions must have at least one entry, got none")
    if not 1 <= rounds <= max_rounds:
        raise ValueError(f"compare: rounds must be in [1, max_rounds], got {rounds}")
    names = list(functions)
    calls: dict[str, int] = {}
    for name in names:
        functions[name]()
        once = _sample(functions[name], 1)
        calls[name] = 1 if once >= _SAMPLE_SECONDS else int(_SAMPLE_SECONDS / max(once, 1e-7)) + 1
    samples: dict[str, list[float]] = {name: [] for name in names}
    begin = clock()
    for done in range(max_rounds):
        if done >= rounds and clock() - begin >= seconds:
            break
        for name in rotated(names, done):
            samples[name].append(_sample(functions[name], calls[name]))
    return {name: Timing.of(times) for name, times in samples.items()}


def rotated(items: Sequence[str], by: int) -> list[str]:
    """The items, beginning with another one for each `by`."""
    start = by % len(items)
    return [*items[start:], *items[:start]]


def _sample(function: Callable[[], object], calls: int) -> float:
    begin = clock()
    for _ in range(calls):
        function()
    return (clock() - begin) / calls


def read_bandwidth() -> float:
    """Bytes per second that torch's current number of threads read from memory.

    Measured once per number of threads: the fastest of a few sums and matrix-vector products over
    512 MiB of float32 (less where memory is short), so that caches do not serve it. It is what
    torch reached, a lower bound of what the machine can do.
    """
    return _read_bandwidth(torch.get_num_threads())


def fma_peak() -> float:
    """Floating-point operations per second of float32 with torch's current number of threads.

    Measured once per number of threads: the fastest of a few products of 1024 x 1024 matrices
    with torch.mm; a multiply-add counts as 2. It is what torch reached, a lower bound of what the
    machine can do.
    """
    return _fma_peak(torch.get_num_threads())


@functools.cache
def _read_bandwidth(threads: int) -> float:
    size = _BANDWIDTH_BYTES
    available = _memory.available_bytes()
    if available is not None:
        size = min(size, available // 4)
    columns = 4096
    data = torch.ones(max(size // (4 * columns), 1), columns)
    x = torch.ones(columns)
    with torch.no_grad():
        times = compare(
            {"sum": data.sum, "product": lambda: torch.mv(data, x)}, seconds=0.5, rounds=3
        )
    return data.nbytes / max(min(timing.best for timing in times.values()), 1e-9)


@functools.cache
def _fma_peak(threads: int) -> float:
    a, b = torch.rand(2, _PEAK_SIZE, _PEAK_SIZE)
    with torch.no_grad():
        times = compare({"mm": lambda: torch.mm(a, b)}, seconds=0.5, rounds=5)
    return float(2 * _PEAK_SIZE**3 / max(times["mm"].best, 1e-9))
