# SPDX-License-Identifier: Apache-2.0
"""Refuses work that cannot fit into memory before it starts."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def _cgroup_bytes() -> int | None:
    """What the container's own limit (cgroup v2) leaves, or None where there is no limit."""
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        if limit == "max":
            return None
        used = int((_CGROUP / "memory.current").read_text())
        stat = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        # The page cache counts as used and is given up on demand.
        return int(limit) - used + int(stat.get("inactive_file", 0))
    except (OSError, ValueError):
        return None


def available_bytes() -> int | None:
    """Bytes that can be allocated without swapping; None where the system does not say."""
    system: int | None = None
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                system = int(line.split()[1]) * 1024
    if system is None:
        with contextlib.suppress(AttributeError, OSError, ValueError):
            system = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    known = [bytes_ for bytes_ in (system, _cgroup_bytes()) if bytes_ is not None]
    return min(known) if known else None


def require(operator: str, what: str, needed: int) -> None:
    """Raise MemoryError unless `needed` more bytes can be allocated for `what`."""
    available = available_bytes()
    if available is not None and needed > available:
        raise MemoryError(
            f"{operator}: {what} needs about {needed / 2**20:.0f} MiB of memory, "
            f"got {available / 2**20:.0f} MiB available"
        )
