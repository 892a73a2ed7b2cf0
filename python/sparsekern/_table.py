# SPDX-License-Identifier: Apache-2.0
"""Aligned plain-text tables, and the way numbers are written in them."""

from __future__ import annotations

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]], left: Sequence[int]) -> str:
    """Rows of equal length as text; the first is the header. Columns not in `left` end right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def size(bytes_: float) -> str:
    """Bytes with a binary unit: "1.5 MiB"."""
    for unit in ("B", "KiB", "MiB"):
        if abs(bytes_) < 1024:
            return f"{bytes_:.0f} {unit}" if unit == "B" else f"{bytes_:.1f} {unit}"
        bytes_ /= 1024
    return f"{bytes_:.1f} GiB"


def duration(seconds: float | None) -> str:
    """Seconds with a fitting unit: "12.3 us"; "-" for None."""
    if seconds is None:
        return "-"
    if seconds < 1e-3:
        return f"{seconds * 1e6:.1f} us"
    return f"{seconds * 1e3:.2f} ms" if seconds < 1 else f"{seconds:.2f} s"


def ratio(value: float | None) -> str:
    """A quotient: "1.83x"; "-" for None."""
    return "-" if value is None else f"{value:.2f}x"


def percent(value: float | None) -> str:
    """A share in [0, 1]: "12.3 %"; "-" for None."""
    return "-" if value is None else f"{value * 100:.1f} %"
