# SPDX-License-Identifier: Apache-2.0
"""Which kernel runs: by instruction set, dtype, pattern and rows of x; and that forcing works.

Masks of other processors are the C++ tests' part: selection is a pure function there.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
import torch
from conftest import (
    BITMAP_ISAS,
    BITMAP_KERNEL_FILES,
    INT8_ISAS,
    INT8_KERNEL_FILES,
    ISAS,
    KERNEL_FILES,
)
from sparsekern import _core
from strategies import DTYPES, Spec, activations, pack, run_linear

SHORT = {"float32": "f32", "bfloat16": "bf16", "float16": "f16", "int8": "i8"}
_PREPARE = """
import numpy as np, torch
from sparsekern import _core
v, s = _core.csr_pack(np.ones((8, 8), np.float32), "float32", None, 1)
v, csr_linear = torch.from_numpy(v), torch.ops.sparsekern.csr_linear
"""


def kernel(
    dtype: str, block_rows: int, x_rows: int, conv: bool = False, int8_activations: bool = False
) -> str:
    packed = pack(Spec(64, 64, 0.3, dtype, block_rows))
    return _core.csr_kernel(packed.structure.numpy(), dtype, x_rows, conv, int8_activations)


def run_python(isa: str, code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _PREPARE + code],
        env={**os.environ, "SPARSEKERN_ISA": isa},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_library_finds_what_the_operating_system_reports():
    """What conftest reads from /proc/cpuinfo and tests, the library detects; and nothing more."""
    files = (KERNEL_FILES, INT8_KERNEL_FILES, BITMAP_KERNEL_FILES)
    known = {"scalar"}.union(*(names for file in files for names in file.values()))
    found = {name for name in _core.detected_isa() if name in known}
    assert found == {*ISAS, *INT8_ISAS, *BITMAP_ISAS}


def test_int8_activations_take_dot_products_for_batches(int8_isa):
    file = INT8_ISAS.get(int8_isa)
    assert kernel("int8", 2, 1, int8_activations=True).startswith("csr_linear_r2_i8_decode__")
    for conv, operator in ((False, "csr_linear"), (True, "csr_conv2d")):
        name = kernel("int8", 2, 1000, conv, int8_activations=True)
        expected = f"dot__{file}" if file else f"batch__{ISAS[int8_isa]}"
        assert name == f"{operator}_r2_i8_{expected}"


@pytest.mark.parametrize("block_rows", [1, 2, 4])
@pytest.mark.parametrize("dtype", DTYPES)
def test_names(isa, dtype, block_rows):
    """The name says operator, rows of a block, dtype, regime and the kernel file."""
    assert _core.active_isa()[-1] == isa
    ending = f"__{ISAS[isa]}"
    start = f"_r{block_rows}_{SHORT[dtype]}_"
    assert kernel(dtype, block_rows, 1) == f"csr_linear{start}decode{ending}"
    assert kernel(dtype, block_rows, 1000) == f"csr_linear{start}batch{ending}"
    for x_rows in (1, 1000):
        assert kernel(dtype, block_rows, x_rows, conv=True) == f"csr_conv2d{start}batch{ending}"


def test_there_is_one_switch_from_decode_to_batch(isa):
    kinds = [re.search("decode|batch", kernel("float32", 1, n))[0] for n in range(1, 130)]
    switch = kinds.index("batch")
    assert switch >= 1
    assert kinds == ["decode"] * switch + ["batch"] * (129 - switch)


def test_the_widest_set_is_the_default():
    assert kernel("float32", 1, 1).endswith(f"__{list(ISAS.values())[-1]}")
    assert _core.active_isa() == _core.detected_isa()


@pytest.mark.skipif(len(ISAS) < 2, reason="this processor has the scalar kernels only")
def test_fused_multiply_add_shows_in_the_bits():
    """The x86 scalar kernels have no fused multiply-add, every wider set has: equal bits in all of
    512 x 33 sums would mean that one kernel ran under both names."""
    packed = pack(Spec(512, 512, 0.3, seed=1))
    x = activations((33, 512))
    results = {}
    try:
        for name in ("scalar", list(ISAS)[-1]):
            _core.set_isa(name)
            results[name] = run_linear(packed, x)
    finally:
        _core.set_isa(None)
    first, second = results.values()
    assert not torch.equal(first, second)
    assert torch.allclose(first, second, atol=1e-4)


def test_the_environment_forces_a_set():
    for name, file in ISAS.items():
        done = run_python(name, "print(_core.csr_kernel(s, 'float32', 1))")
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip().endswith(f"__{file}")


def test_an_unknown_name_in_the_environment_stops_every_call():
    code = """
x, s = torch.ones(1, 8), torch.from_numpy(s)
for call in (
    lambda: _core.csr_kernel(s.numpy(), "float32", 1),
    lambda: csr_linear(x, v, s, None, None, 8),
):
    try:
        call()
    except ValueError as error:
        print(error)
"""
    done = run_python("AVX512", code)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 2, done.stdout
    for line in lines:
        assert line.startswith("SPARSEKERN_ISA: isa: name must be one of scalar")
        assert 'got "AVX512"' in line
