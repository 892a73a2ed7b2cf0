# SPDX-License-Identifier: Apache-2.0
"""The figure of the report: quality, speed and size against sparsity."""

from __future__ import annotations

import io
from collections.abc import Sequence

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from results import KEEP, Results

# Okabe & Ito's palette: told apart with any colour vision; markers differ as well.
BLUE, ORANGE, GREEN, GREY, RED = "#0072B2", "#D55E00", "#009E73", "#595959", "#CC3311"


def figure(results: Results) -> Figure:
    """Four panels, 11 x 7.5 inches."""
    with plt.rc_context({"font.size": 10, "axes.titlesize": 11, "axes.titleweight": "bold"}):
        fig, axes = plt.subplots(2, 2, figsize=(11, 7.8), constrained_layout=True)
        _quality(axes[0, 0], results)
        _speed(axes[0, 1], results)
        _trade(axes[1, 0], results)
        _bytes(axes[1, 1], results)
        for axis in axes.flat:
            axis.spines[["top", "right"]].set_visible(False)
            axis.grid(axis="y", color="#dddddd", linewidth=0.7)
            axis.set_axisbelow(True)
        fig.suptitle(
            "all-MiniLM-L6-v2, pruned, distilled and converted: "
            f"{results.machine.get('cpu', 'CPU')}, threads: {results.machine.get('threads', '?')}",
            fontsize=12,
        )
    return fig


def _ticks(axis: Axes, results: Results) -> list[float]:
    places = [float(i) for i in range(len(results.points))]
    axis.set_xticks(places, [_name(p.sparsity) for p in results.points])
    axis.set_xlim(-0.5, len(places) - 0.5)
    axis.set_xlabel("sparsity of the encoder's matrices")
    return places


def _name(sparsity: int) -> str:
    return f"{sparsity} %" if sparsity else "dense"


def _quality(axis: Axes, results: Results) -> None:
    x = _ticks(axis, results)
    dense = results.dense.recall
    series = (
        ("recall@10", [p.recall.at_10 for p in results.points], dense.at_10, BLUE, "o"),
        ("recall@1", [p.recall.at_1 for p in results.points], dense.at_1, ORANGE, "s"),
    )
    for label, values, base, color, marker in series:
        percent = [100 * v for v in values]
        axis.plot(x, percent, color=color, marker=marker, label=label)
        axis.axhline(100 * KEEP * base, color=color, linestyle=":", linewidth=1)
        _annotate(axis, x, percent, color, "{:.1f}")
    axis.set_ylim(0, 100 * dense.at_10 * 1.2)
    axis.set_ylabel("found, %")
    axis.set_title(f"Retrieval over {results.pairs:,} unseen pairs (dotted: 95 % of dense)")
    axis.legend(loc="lower left", frameon=False)


def _speed(axis: Axes, results: Results) -> None:
    x = _ticks(axis, results)
    top = 1.0
    for shape, color, marker in zip(results.shapes, (GREEN, BLUE), "so", strict=False):
        ratios = [results.speedup(p, shape) for p in results.points]
        axis.plot(x, ratios, color=color, marker=marker, label=shape)
        _annotate(axis, x[1:], ratios[1:], color, "{:.2f}")
        base = results.dense.timings[shape].median
        for contestant, dashes in zip(results.contestants, ((4, 2), (1, 2)), strict=False):
            if shape in contestant.timings:
                ratio = base / contestant.timings[shape].median
                ratios.append(ratio)
                label = f"dense {contestant.name}, {shape}"
                axis.axhline(ratio, color=color, linewidth=1.2, dashes=dashes, label=label)
        top = max(top, *ratios)
    axis.axhline(1, color=GREY, linewidth=1)
    axis.set_ylim(0, top * 1.65)  # room for the legend
    axis.set_ylabel("times faster than dense torch float32")
    axis.set_title("Whole model, end to end")
    axis.legend(loc="upper left", frameon=False, fontsize=8)


def _trade(axis: Axes, results: Results) -> None:
    large = results.shapes[-1]
    winner = results.winner()
    quality = 100 * results.dense.recall.at_1
    slowest = max(p.timings[large].median for p in results.points)
    for point in results.points:
        milliseconds, found = point.timings[large].median * 1e3, 100 * point.recall.at_1
        chosen = point is winner
        color, marker, size = (ORANGE, "*", 170) if chosen else (BLUE, "o", 50)
        axis.scatter(milliseconds, found, s=size, color=color, marker=marker, zorder=3)
        label = _name(point.sparsity) + (" (named)" if chosen else "")
        shift = (0, -16) if point is not results.dense else (0, 8)
        axis.annotate(label, (milliseconds, found), shift, textcoords="offset points",
                      fontsize=9, ha="center")  # fmt: skip
    for contestant in results.contestants:
        if large in contestant.timings and contestant.timings[large].median < 3 * slowest:
            milliseconds = contestant.timings[large].median * 1e3
            slowest = max(slowest, milliseconds / 1e3)
            axis.scatter(milliseconds, quality, s=45, color=GREY, marker="D", zorder=2)
            axis.annotate(f"dense {contestant.name}", (milliseconds, quality), (0, 22),
                          textcoords="offset points", fontsize=8, ha="center", color=GREY,
                          arrowprops={"arrowstyle": "-", "color": GREY, "lw": 0.6})  # fmt: skip
    axis.axhline(KEEP * quality, color=RED, linestyle=":", linewidth=1)
    axis.set_ylim(0, quality * 1.4)
    axis.set_xlim(0, slowest * 1e3 * 1.15)
    axis.set_xlabel(f"milliseconds, {large} (left is better)")
    axis.set_ylabel("recall@1, %")
    axis.set_title("Quality against time (dotted: 95 % of dense)")


def _bytes(axis: Axes, results: Results) -> None:
    x = _ticks(axis, results)
    disk = [p.disk_bytes / 1e6 for p in results.points]
    memory = [p.memory_bytes / 1e6 for p in results.points]
    width = 0.36
    series = (("on disk", disk, BLUE, -width / 2), ("in memory", memory, GREEN, width / 2))
    for label, values, color, shift in series:
        places = [place + shift for place in x]
        axis.bar(places, values, width=width, color=color, label=label)
        _annotate(axis, places, values, "black", "{:.0f}")
    axis.set_ylim(0, max(memory) * 1.3)
    axis.set_ylabel("megabytes")
    axis.set_title("Size (47 MB of it are word vectors, never pruned)")
    axis.legend(loc="upper right", frameon=False)


def _annotate(
    axis: Axes, places: Sequence[float], values: Sequence[float], color: str, text: str
) -> None:
    for place, value in zip(places, values, strict=True):
        axis.annotate(text.format(value), (place, value), (0, 5), textcoords="offset points",
                      ha="center", fontsize=8, color=color)  # fmt: skip


def png(fig: Figure) -> bytes:
    """As PNG, 130 dots per inch."""
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def svg(fig: Figure) -> str:
    """As an SVG element to put into HTML."""
    buffer = io.StringIO()
    fig.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
