# SPDX-License-Identifier: Apache-2.0
"""Several Python threads in the operators at once; the interpreter goes on meanwhile."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from sparsekern import _core
from strategies import Spec, activations, pack, run_conv2d, run_linear, stored

CALLERS = 4


def together(work):
    """work(caller) in several threads that start at the same moment; raises what they raise."""
    barrier = threading.Barrier(CALLERS)

    def run(caller: int):
        barrier.wait(timeout=30)
        return work(caller)

    with ThreadPoolExecutor(CALLERS) as pool:
        return [future.result() for future in [pool.submit(run, i) for i in range(CALLERS)]]


def test_one_matrix_many_callers(isa, threads):
    packed = pack(Spec(400, 300, 0.1, seed=1))
    bias = activations((400,))
    inputs = [activations((rows, 300), seed=rows) for rows in (1, 3, 17, 80)]
    expected = [run_linear(packed, x, bias, "gelu") for x in inputs]

    def work(caller: int) -> None:
        for turn in range(20):
            i = (caller + turn) % len(inputs)
            assert torch.equal(run_linear(packed, inputs[i], bias, "gelu"), expected[i])

    together(work)


def test_many_matrices_and_operators(isa):
    kinds = [("float32", 1), ("bfloat16", 2), ("float16", 4), ("int8", 1)]
    matrices = [pack(Spec(130 + i, 100, 0.2, d, r, seed=i)) for i, (d, r) in enumerate(kinds)]
    x, image = activations((20, 100)), activations((2, 100, 5, 7))
    grads = [activations((20, p.spec.rows)) for p in matrices]

    def all_of(caller: int) -> list[torch.Tensor]:
        p = matrices[caller]
        return [
            run_linear(p, x),
            run_conv2d(p, image, stride=2),
            torch.ops.sparsekern.csr_sddmm(grads[caller], x, p.structure, p.values.numel()),
        ]

    expected = [all_of(i) for i in range(CALLERS)]

    def work(caller: int) -> None:
        for _ in range(20):
            for got, want in zip(all_of(caller), expected[caller], strict=True):
                assert torch.equal(got, want)

    together(work)


def test_packing_and_reading_from_many_threads():
    packed = pack(Spec(200, 200, 0.2, seed=2))
    values, structure = stored(packed.values), packed.structure.numpy()
    dense = _core.csr_unpack(values, structure, "float32")

    def work(_: int) -> None:
        for _ in range(10):
            again = _core.csr_pack(dense, "float32", None, 1)
            assert (again[0] == values).all()
            assert (again[1] == structure).all()
            _core.csr_validate(*again, "float32")
            _core.csr_transpose(structure)

    together(work)


def _ticks_during(work) -> tuple[int, float]:
    """How often another Python thread woke up while ``work`` ran, and how long that took."""
    stop = threading.Event()
    started = threading.Event()
    ticks = 0

    def tick() -> None:
        nonlocal ticks
        started.set()
        while not stop.is_set():
            ticks += 1
            time.sleep(0.001)

    other = threading.Thread(target=tick)
    other.start()
    started.wait()
    ticks, begin = 0, time.perf_counter()
    work()
    seen, seconds = ticks, time.perf_counter() - begin
    stop.set()
    other.join()
    return seen, seconds


@pytest.mark.parametrize("operator", ["linear", "pack"])
def test_the_interpreter_goes_on(operator):
    """A single long call, during which a thread that only needs the interpreter makes progress.

    Holding the lock, a call of any length would let it wake up no more than once or twice.
    """
    torch.set_num_threads(1)
    packed = pack(Spec(1024, 1024, 0.5, seed=3))
    x = activations((512, 1024))
    dense = activations((1024, 1024)).numpy()
    for size in (1, 4, 16, 64):  # until one call takes long enough to tell
        if operator == "linear":
            batch = x.repeat(size, 1)
            ticks, seconds = _ticks_during(lambda batch=batch: run_linear(packed, batch))
        else:
            tall = dense.repeat(size, axis=0)
            ticks, seconds = _ticks_during(
                lambda tall=tall: _core.csr_pack(tall, "float32", None, 1)
            )
        if seconds > 0.1:
            break
    assert seconds > 0.05, "no call was long enough to tell"
    assert ticks >= 10, f"{ticks} ticks in {seconds:.2f} s"
