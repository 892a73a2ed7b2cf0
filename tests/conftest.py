# SPDX-License-Identifier: Apache-2.0
"""Instruction sets under test, and settings that every test shares."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch
from sparsekern import _core

# The examples are the same on every run; HYPOTHESIS_PROFILE=explore draws new and more ones.
# A fixture that only forces an instruction set may be shared by the examples of a test.
_CHECKS = [hypothesis.HealthCheck.function_scoped_fixture, hypothesis.HealthCheck.too_slow]
hypothesis.settings.register_profile(
    "repeatable",
    derandomize=True,
    deadline=None,
    max_examples=60,
    print_blob=True,
    suppress_health_check=_CHECKS,
)
hypothesis.settings.register_profile(
    "explore", deadline=None, max_examples=1000, print_blob=True, suppress_health_check=_CHECKS
)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

# The tests force instruction sets themselves, each that this processor has.
os.environ.pop("SPARSEKERN_ISA", None)

# What each kernel file of the csr operators needs, in the words of Linux's /proc/cpuinfo.
KERNEL_FILES = {
    "x86_64": {
        "avx2": ("x86_avx2", {"avx2", "fma", "f16c", "bmi2"}),
        "avx512": ("x86_avx512", {"avx2", "fma", "avx512f", "avx512bw", "avx512dq", "avx512vl"}),
    },
    "aarch64": {"neon": ("arm_neon", {"asimd"})},
}
# The same for the kernel files that have int8 dot products and nothing else.
INT8_KERNEL_FILES = {
    "x86_64": {"avx512vnni": ("x86_avx512vnni", {"avx512f", "avx512_vnni"})},
    "aarch64": {"neondotprod": ("arm_neon_dotprod", {"asimddp"})},
}
# The same for the kernel files that bitmap_linear and bitmap_attention alone have.
BITMAP_KERNEL_FILES = {
    "x86_64": {"avx512vbmi2": ("x86_avx512vbmi2", {"avx512f", "avx512bw", "avx512_vbmi2"})},
}


def processor_flags() -> set[str]:
    """Flags of the first processor, read from the operating system and not from the library."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("flags", "Features")):
            return set(line.split(":", 1)[1].split())
    raise AssertionError("/proc/cpuinfo names no flags")


def expected_isas(files: dict[str, dict[str, tuple[str, set[str]]]]) -> dict[str, str]:
    """The sets of these that this processor must be tested with: ISA name -> kernel file."""
    flags = processor_flags()
    own = files.get(platform.machine(), {})
    return {name: file for name, (file, needed) in own.items() if needed <= flags}


ISAS = {"scalar": "scalar"} | expected_isas(KERNEL_FILES)
INT8_ISAS = expected_isas(INT8_KERNEL_FILES)
BITMAP_ISAS = ISAS | expected_isas(BITMAP_KERNEL_FILES)


@pytest.fixture(params=[*ISAS, *INT8_ISAS])
def int8_isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """As `isa`, with the sets that only x in int8 makes use of."""
    _core.set_isa(request.param)
    yield request.param
    _core.set_isa(None)


@pytest.fixture(params=list(BITMAP_ISAS))
def bitmap_isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """As `isa`, with the sets that only bitmap products make use of."""
    _core.set_isa(request.param)
    yield request.param
    _core.set_isa(None)


@pytest.fixture(params=list(ISAS))
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Forces each instruction set of this processor in turn; an unsupported one is an error."""
    _core.set_isa(request.param)
    yield request.param
    _core.set_isa(None)


@pytest.fixture(params=[1, 2, 3], ids=lambda n: f"{n}threads")
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)
