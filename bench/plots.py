# SPDX-License-Identifier: Apache-2.0
"""Plots of docs/performance.md: speed-up against sparsity, and shares of the limits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import matplotlib as mpl
from bars import OURS, Record, bandwidth

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

_SPEEDUPS = {
    "conv2d": "1x1 convolution",
    "mobilenet": "MobileNet v1, 1x1 layers",
    "linear": "Linear, 128 rows",
    "decode": "Decode, cold weights",
}


def _speedup(axis: Axes, record: Record) -> None:
    ratios = [r for r in record["speedups"] if r["of"] == OURS]
    for over in dict.fromkeys(r["over"] for r in ratios):
        if over.startswith(OURS):
            continue
        points = sorted((r["sparsity"], r) for r in ratios if r["over"] == over)
        x = [100 * sparsity for sparsity, _ in points]
        y = [r["median"] for _, r in points]
        low = [max(0.0, r["median"] - r["q1"]) for _, r in points]
        high = [max(0.0, r["q3"] - r["median"]) for _, r in points]
        axis.errorbar(x, y, yerr=[low, high], marker="o", markersize=3, capsize=2, label=over)
    axis.axhline(1.0, color="black", linewidth=0.8)
    axis.set_yscale("log", base=2)
    axis.yaxis.set_major_formatter("{x:g}")
    axis.set_title(record["case"], fontsize=9)
    axis.set_xlabel("sparsity, %")


def _grid(records: Sequence[Record], title: str, path: Path) -> None:
    columns = min(len(records), 4)
    rows = -(-len(records) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(3.6 * columns + 1.0, 3.2 * rows + 1.0), squeeze=False
    )
    for axis, record in zip(axes.flat, records, strict=False):
        _speedup(axis, record)
        axis.set_ylabel(f"speed-up, {record['threads']} thread(s)")
    for axis in list(axes.flat)[len(records) :]:
        axis.set_visible(False)
    labels = {}
    for axis in axes.flat:
        labels |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    figure.legend(labels.values(), labels.keys(), loc="lower center", ncols=4, fontsize=8)
    figure.suptitle(f"{title}: sparsekern against ...")
    figure.tight_layout(rect=(0, 0.05 + 0.25 / figure.get_figheight(), 1, 1))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _shares(records: Sequence[Record], path: Path) -> bool:
    """Bars of the share of the limit, for our fp32 candidates; whether there was anything."""
    labels, values, colors = [], [], []
    for record in records:
        fma = [r["gflops"] for r in record["candidates"] if r.get("limit") == "fma"]
        limit = bandwidth(record)
        for row in record["candidates"]:
            if row["name"] != OURS:
                continue
            # One row of x is bound by bytes; more rows by multiply-adds.
            if limit:
                share, color = row["gbps"] / limit, "tab:blue"
            elif fma:
                share, color = row["gflops"] / fma[0], "tab:orange"
            else:
                continue
            labels.append(f"{record['case']}, {row['sparsity']:.0%}, {record['threads']}T")
            values.append(100 * share)
            colors.append(color)
    if not values:
        return False
    figure, axis = plt.subplots(figsize=(8, 0.18 * len(values) + 1.2))
    axis.barh(range(len(values)), values, color=colors)
    axis.set_yticks(range(len(values)), labels, fontsize=6)
    axis.invert_yaxis()
    axis.margins(y=0.01)
    axis.set_xlabel("% of the measured limit: reading memory (blue), multiply-adds (orange)")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return True


def write(records: Sequence[Record], folder: Path, machine: str) -> Iterator[tuple[str, str]]:
    """Write the plots of one machine; yields each file's name and title."""
    folder.mkdir(parents=True, exist_ok=True)
    for bench, title in _SPEEDUPS.items():
        found = [r for r in records if r["bench"] == bench and r["speedups"]]
        if found:
            name = f"performance-{bench}-{machine}.png"
            _grid(found, title, folder / name)
            yield name, f"{title}: speed-up against sparsity"
    shown = [r for r in records if r["bench"] in ("conv2d", "linear")]
    shown += [r for r in records if r["bench"] == "decode" and r["case"].startswith("1 row,")]
    name = f"performance-limits-{machine}.png"
    if _shares(shown, folder / name):
        yield name, "Share of the machine's limit"
