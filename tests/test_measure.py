# SPDX-License-Identifier: Apache-2.0
"""Timing: the arithmetic and the order of calls, on a clock that the tests move."""

from __future__ import annotations

import pytest
import torch
from sparsekern import measure


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(measure, "clock", clock)
    return clock


def test_timing_of_samples():
    timing = measure.Timing.of([5.0, 1.0, 2.0, 4.0, 3.0])
    assert (timing.best, timing.low, timing.median, timing.high) == (1.0, 2.0, 3.0, 4.0)
    assert timing.samples == 5
    assert timing.spread == pytest.approx(2.0 / 3.0)


def test_compare_interleaves_and_begins_with_another_each_round(clock: Clock):
    order: list[str] = []

    def make(name: str, cost: float):
        def call() -> None:
            order.append(name)
            clock.now += cost

        return call

    costs = {"a": 1.0, "b": 2.0, "c": 3.0}
    result = measure.compare(
        {name: make(name, cost) for name, cost in costs.items()}, seconds=0, rounds=3
    )
    assert {name: timing.median for name, timing in result.items()} == costs
    assert "".join(order) == "aabbcc" + "abc" + "bca" + "cab"


def test_compare_goes_on_for_the_time_given_but_not_beyond_max_rounds(clock: Clock):
    def call() -> None:
        clock.now += 1.0

    assert measure.compare({"a": call}, seconds=12.5, rounds=2)["a"].samples == 13
    assert measure.compare({"a": call}, seconds=1e9, rounds=2, max_rounds=7)["a"].samples == 7


def test_compare_repeats_what_is_too_short_for_the_clock(clock: Clock):
    calls = 0

    def call() -> None:
        nonlocal calls
        calls += 1
        clock.now += 1e-5

    timing = measure.compare({"a": call}, seconds=0, rounds=5)["a"]
    assert timing.median == pytest.approx(1e-5)
    assert calls >= 5 * 10


def test_compare_takes_the_median_of_uneven_samples(clock: Clock):
    costs = iter([1.0, 1.0, 1.0, 9.0, 2.0])  # the first two: warm-up and the trial call

    def call() -> None:
        clock.now += next(costs)

    assert measure.compare({"a": call}, seconds=0, rounds=3)["a"].median == 2.0


def test_compare_refuses_nothing_to_do():
    with pytest.raises(ValueError, match=r"compare: functions must have at least one entry, got n"):
        measure.compare({})
    with pytest.raises(ValueError, match=r"compare: rounds must be in \[1, max_rounds\], got 0"):
        measure.compare({"a": int}, rounds=0)


def test_limits_are_measured_once_per_number_of_threads(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(measure, "_BANDWIDTH_BYTES", 1 << 20)
    monkeypatch.setattr(measure, "_PEAK_SIZE", 32)
    kept = {}
    real = measure.compare

    def quick(functions, **_):
        kept["calls"] = kept.get("calls", 0) + 1
        return real(functions, seconds=0, rounds=2)

    monkeypatch.setattr(measure, "compare", quick)
    measure._read_bandwidth.cache_clear()
    measure._fma_peak.cache_clear()
    before = torch.get_num_threads()
    try:
        for _ in range(2):
            # No machine reads a megabyte slower or faster than this.
            assert 1e7 < measure.read_bandwidth() < 1e13
            assert 1e6 < measure.fma_peak() < 1e15
        assert kept["calls"] == 2
        torch.set_num_threads(before + 1)
        measure.fma_peak()
        assert kept["calls"] == 3
    finally:
        torch.set_num_threads(before)
        measure._read_bandwidth.cache_clear()
        measure._fma_peak.cache_clear()


def test_bandwidth_is_bytes_over_the_fastest_time(clock: Clock, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(measure, "_BANDWIDTH_BYTES", 4 * 4096 * 10)
    timing = measure.Timing(best=0.5, median=2.0, low=1.0, high=3.0, samples=9)
    monkeypatch.setattr(measure, "compare", lambda *_, **__: {"sum": timing, "mm": timing})
    measure._read_bandwidth.cache_clear()
    measure._fma_peak.cache_clear()
    try:
        assert measure.read_bandwidth() == 4 * 4096 * 10 / 0.5
        assert measure.fma_peak() == 2 * 1024**3 / 0.5
    finally:
        measure._read_bandwidth.cache_clear()
        measure._fma_peak.cache_clear()
