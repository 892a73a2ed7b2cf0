# SPDX-License-Identifier: Apache-2.0
"""What a measurement was made on: processor, caches, versions, commit."""

from __future__ import annotations

import datetime
import functools
import os
import platform
import re
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"

# Flags that decide which kernels, ours and the peers', can run.
_X86 = ("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_vnni", "avx512_vbmi2")
_X86_16 = ("avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16")
_FLAGS = (*_X86, *_X86_16, "asimd", "asimdhp", "asimddp", "bf16", "i8mm", "sve")
_PACKAGES = ("torch", "numpy", "onnxruntime")


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _cpuinfo(*names: str) -> str:
    for line in _read("/proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in names:
            return value.strip()
    return ""


def cpu_name() -> str:
    """The processor's name without trademark signs."""
    name = _cpuinfo("model name", "CPU part") or platform.processor() or platform.machine()
    return " ".join(re.sub(r"\((R|TM)\)", "", name).split())


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cache_bytes(level: int) -> int:
    """Size of the first processor's data or unified cache; 0 where unknown."""
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        if _read(f"{folder}/level") == str(level) and _read(f"{folder}/type") != "Instruction":
            number, unit = re.fullmatch(r"(\d+)([KMG]?)", _read(f"{folder}/size")).groups()
            return int(number) * {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}[unit]
    return 0


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


def commit() -> str:
    """The commit, with "+changes" where sources differ from it; "unknown" outside a clone."""
    revision = _git("rev-parse", "--short=12", "HEAD") or "unknown"
    changed = _git("status", "--porcelain", "--", "csrc", "python", "bench/*.py", "bench/cpp")
    return revision + ("+changes" if changed else "")


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _busy() -> float | None:
    """Share of all processors' time that others use now (this process sleeps meanwhile)."""

    def times() -> tuple[int, int]:
        fields = _read("/proc/stat").partition("\n")[0].split()[1:9]
        ticks = [int(field) for field in fields]
        return sum(ticks), ticks[3] + ticks[4]  # all; idle and waiting for a disk

    if not _read("/proc/stat"):
        return None
    before, idle_before = times()
    time.sleep(0.5)
    after, idle_after = times()
    return round(1 - (idle_after - idle_before) / max(after - before, 1), 2)


@functools.cache
def describe() -> dict[str, Any]:
    """The whole description, for the first line of a results file."""
    from sparsekern import _core

    known = set(_cpuinfo("flags", "Features").split())
    return {
        "commit": commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": cpu_name(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": cores(),
        "l1_bytes": cache_bytes(1),
        "l2_bytes": cache_bytes(2),
        "l3_bytes": cache_bytes(3),
        "flags": [flag for flag in _FLAGS if flag in known],
        "isa": _core.active_isa(),
        "compiler": _core.compiler,
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or "unknown",
        "busy": _busy(),
        "python": platform.python_version(),
        **{package: _version(package) for package in _PACKAGES},
    }


def slug() -> str:
    """Name of this machine's folder in bench/results: results of machines are never mixed."""
    flags = describe()["flags"]
    marks = [m for m in ("avx512f", "avx512_bf16", "amx_bf16", "asimddp", "sve") if m in flags]
    name = f"{cpu_name()} {cores()} cores {' '.join(marks)}"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
