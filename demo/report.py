# SPDX-License-Identifier: Apache-2.0
"""The results as tables for the terminal and as one HTML file that needs nothing beside it."""

from __future__ import annotations

import html
from collections.abc import Sequence

from results import KEEP, Layer, Point, Results
from rich.console import Console
from rich.table import Table


def share(value: float | None) -> str:
    """A share in percent, or a dash."""
    return "-" if value is None else f"{100 * value:.0f} %"


def microseconds(seconds: float | None) -> str:
    """A time, or a dash."""
    return "-" if seconds is None else f"{seconds * 1e6:,.0f}"


def point_header(results: Results) -> list[str]:
    """Column titles of the main table."""
    times = [f"ms, {shape}" for shape in results.shapes]
    return ["sparsity", "recall@1", "recall@10", "kept", *times, "MB disk", "MB memory",
            "sparse layers", "largest error"]  # fmt: skip


def point_row(results: Results, point: Point) -> list[str]:
    """One line of the main table; ratios in brackets are against dense float32 torch."""
    times = []
    for shape in results.shapes:
        milliseconds = point.timings[shape].median * 1e3
        ratio = "" if point is results.dense else f" ({results.speedup(point, shape):.2f}x)"
        times.append(f"{milliseconds:.2f}{ratio}")
    dense = point is results.dense
    return [
        "dense" if dense else f"{point.sparsity} %",
        f"{100 * point.recall.at_1:.1f} %",
        f"{100 * point.recall.at_10:.1f} %",
        "" if dense else share(point.recall.kept_of(results.dense.recall)),
        *times,
        f"{point.disk_bytes / 1e6:.1f}",
        f"{point.memory_bytes / 1e6:.1f}",
        "" if dense else f"{point.converted} of {point.prunable}",
        "" if dense else f"{point.largest_error:.1e}",
    ]


def contestant_rows(results: Results) -> list[list[str]]:
    """The other dense baselines: name, times, remark."""
    rows = []
    for contestant in results.contestants:
        times = []
        for shape in results.shapes:
            timing = contestant.timings.get(shape)
            if timing is None:
                times.append("-")
                continue
            ratio = results.dense.timings[shape].median / timing.median
            times.append(f"{timing.median * 1e3:.2f} ({ratio:.2f}x)")
        rows.append([contestant.name, *times, contestant.note])
    return rows


LAYER_HEADER = ["layer", "format", "kernel", "us", "dense us", "faster", "of the limit", "limit"]


def layer_row(layer: Layer) -> list[str]:
    """One line of the table of layers."""
    ratio = "-"
    if layer.seconds and layer.dense_seconds:
        ratio = f"{layer.dense_seconds / layer.seconds:.2f}x"
    return [
        layer.name.removeprefix("0.").removeprefix("auto_model.").removeprefix("model."),
        layer.format,
        layer.kernel,
        microseconds(layer.seconds),
        microseconds(layer.dense_seconds),
        ratio,
        share(layer.limit_share),
        layer.limit,
    ]


def conclusion(results: Results) -> list[str]:
    """The named point, then who wins where."""
    winner = results.winner()
    if winner is None:
        best = results.closest()
        first = (
            f"No sparse point keeps {100 * KEEP:.0f} % of the dense recall; {best.sparsity} % "
            f"comes closest with {share(best.recall.kept_of(results.dense.recall))}."
        )
    else:
        speeds = " and ".join(
            f"{results.speedup(winner, shape):.2f}x at {shape}" for shape in results.shapes
        )
        first = (
            f"Fastest point that keeps {100 * KEEP:.0f} % of the dense recall@1 and @10: "
            f"{winner.sparsity} % sparse, {speeds} against dense torch float32."
        )
    lines = [first]
    if winner is not None and winner.converted == 0:
        lines.append(
            f"At {winner.sparsity} % no layer was faster packed, so all stayed dense: the named "
            "point is no gain on this machine."
        )
    return [*lines, *results.verdicts(), *notes(results)]


def notes(results: Results) -> list[str]:
    """Limits a reader should know."""
    lines = [
        "Unstructured sparsity in float32 competes with dense float32. On a CPU with bf16 matrix "
        "units (AMX), dense bf16 is usually faster at large batches: "
        + (
            "this machine has them, see the bf16 line."
            if results.machine.get("amx") == "yes"
            else "this machine has none, so its bf16 line says nothing about such servers."
        )
    ]
    if results.fast:
        lines.append("--fast: distillation was cut short, so recall is lower than in a full run.")
    cut = [str(p.sparsity) for p in results.points if "time limit" in p.training]
    if cut:
        lines.append(
            f"Training reached its time limit at {', '.join(cut)} %: a faster or less busy "
            "machine makes more steps and reaches a higher recall."
        )
    return lines


def print_results(console: Console, results: Results) -> None:
    """All tables and the conclusion."""
    table = Table(title="The model, end to end", title_justify="left", header_style="bold")
    winner = results.winner()
    for i, title in enumerate(point_header(results)):
        table.add_column(title, justify="left" if i == 0 else "right")
    for point in results.points:
        table.add_row(*point_row(results, point), style="bold green" if point is winner else None)
    console.print(table)
    if results.contestants:
        other = Table(title="Other dense baselines", title_justify="left", header_style="bold")
        for i, title in enumerate(["baseline", *point_header(results)[4:6], "remark"]):
            other.add_column(title, justify="right" if i in (1, 2) else "left")
        for row in contestant_rows(results):
            other.add_row(*row)
        console.print(other)
    shown = winner or results.points[-1]
    if shown.layers:
        layers = Table(
            title=f"Layers at {shown.sparsity} %, {results.layer_shape}",
            title_justify="left",
            header_style="bold",
        )
        for i, title in enumerate(LAYER_HEADER):
            layers.add_column(title, justify="right" if 3 <= i <= 6 else "left")
        for layer in shown.layers:
            layers.add_row(*layer_row(layer))
        console.print(layers)
    for line in conclusion(results):
        console.print(f"- {line}", highlight=False)


STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff;
       max-width: 1100px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child, td.text, th.text { text-align: left; }
tr.named { background: #e5f5ee; font-weight: 600; }
.wide { overflow-x: auto; } svg { max-width: 100%; height: auto; }
.lead { font-size: 1.1rem; border-left: 4px solid #009E73; padding-left: .8rem; }
summary { cursor: pointer; font-weight: 600; margin: .6rem 0; }
"""


def html_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], text: Sequence[int] = (), named: int = -1
) -> str:
    """A table; columns in `text` are left-aligned, row `named` is highlighted."""

    def cells(tag: str, values: Sequence[str]) -> str:
        return "".join(
            f"<{tag}{' class=text' if i in text else ''}>{html.escape(value)}</{tag}>"
            for i, value in enumerate(values)
        )

    lines = ["<div class=wide><table>", f"<thead><tr>{cells('th', header)}</tr></thead><tbody>"]
    for i, row in enumerate(rows):
        mark = " class=named" if i == named else ""
        lines.append(f"<tr{mark}>{cells('td', row)}</tr>")
    return "\n".join([*lines, "</tbody></table></div>"])


def to_html(results: Results, svg: str) -> str:
    """The whole report."""
    winner = results.winner()
    named = results.points.index(winner) if winner else -1
    first, *rest = conclusion(results)
    rows = [point_row(results, p) for p in results.points]
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        "<meta name=viewport content='width=device-width'>",
        f"<title>sparsekern: a real model, pruned and faster</title><style>{STYLE}</style>",
        "<h1>A real model, pruned and faster</h1>",
        f"<p class=lead>{html.escape(first)}</p>",
        "<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in rest) + "</ul>",
        svg,
        "<h2>The model, end to end</h2>",
        html_table(point_header(results), rows, named=named),
        f"<p>Recall: a docstring's body is found from its summary line, {results.pairs:,} pairs "
        "of the standard library that were neither calibrated nor trained on. kept: the smaller "
        "of the two recalls relative to dense. Times: medians of interleaved calls. largest "
        "error: between the converted model's embeddings and the pruned dense model's.</p>",
    ]
    if results.contestants:
        parts += ["<h2>Other dense baselines</h2>"]
        header = ["baseline", *point_header(results)[4:6], "remark"]
        parts += [html_table(header, contestant_rows(results), text=(3,))]
    parts.append(f"<h2>Layers, {results.layer_shape}</h2>")
    for point in results.points:
        if point.layers:
            opened = " open" if point is (winner or results.points[-1]) else ""
            table = html_table(LAYER_HEADER, [layer_row(x) for x in point.layers], text=(1, 2, 7))
            parts.append(f"<details{opened}><summary>{point.sparsity} %</summary>{table}</details>")
    parts.append("<h2>Training</h2>")
    training = [
        [f"{p.sparsity} %", f"{p.steps}", f"{p.train_seconds:.0f}", p.training]
        for p in results.points[1:]
    ]
    parts.append(html_table(["stop", "steps", "seconds", "remark"], training, text=(3,)))
    parts.append("<h2>Machine</h2>")
    parts.append(html_table(["what", "value"], [list(i) for i in results.machine.items()], (1,)))
    return "\n".join(parts) + "</html>\n"
