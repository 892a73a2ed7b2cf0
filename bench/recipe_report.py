# SPDX-License-Identifier: Apache-2.0
"""Writes docs/recipes.md and its plot from the records of nm_recipes.py; nothing is typed."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from recipe_cells import CAST, ONE_SHOT, RECIPES, RETRAIN, Cell

mpl.use("Agg")
import matplotlib.pyplot as plt

Record = tuple[Cell, dict[str, Any]]

_INTRODUCTION = """# N:M recipes compared

<!-- Written by bench/nm_recipes.py --report from bench/results/nm_recipes.jsonl. Do not edit. -->

Loss on held-out data of the N:M model that is left at the end (hard mask): lower is better. A cell
is the mean over seeds and, behind +-, half the distance of the extreme ones; the number of seeds is
in brackets. All recipes of a table see the same batches, rates and steps. Language model: 3 layers
of width 128, bytes of the standard library's docstrings, 8 sequences of 48, Adam 2e-3; the linear
layers of the blocks are N:M. Digits: 3 convolutions and 2 linear layers on scikit-learn's 8x8
images. Small models order recipes, they do not size the differences of large ones. What has no
number behind its name was not tuned.
"""
_TASKS = {"lm": "Language model", "digits": "Digits"}
_SRSTE = ("SR-STE 2e-4", "SR-STE 2e-3")
_RETRAINED = ("retrain SR-STE 2e-4", "retrain SR-STE 2e-3")
_DISTILLED = tuple(f"{name}, distilled" for name in CAST)
# Question, recipes of which the better counts, recipes that it is compared with, pattern.
_QUESTIONS: tuple[tuple[str, Sequence[str], Sequence[str], str], ...] = (
    ("Do decaying masks beat a tuned SR-STE at 1:16?", ["MdGf chain"], _SRSTE, "1:16"),
    ("And with a straight-through backward pass?", ["MdGf STE"], _SRSTE, "1:16"),
    ("Does S-STE beat a tuned SR-STE at 1:16?", ["S-STE"], _SRSTE, "1:16"),
    ("Does BDWP lose to SR-STE at 2:4?", ["SR-STE 2e-4"], ["BDWP"], "2:4"),
    ("And at 2:8?", ["SR-STE 2e-4"], ["BDWP"], "2:8"),
    ("Does ALPS beat SparseGPT at 2:4?", ["one-shot ALPS"], ["one-shot SparseGPT"], "2:4"),
    ("And at 1:4?", ["one-shot ALPS"], ["one-shot SparseGPT"], "1:4"),
    ("Does DSnoT improve Wanda at 2:4?", ["one-shot DSnoT"], ["one-shot Wanda"], "2:4"),
    ("Does CAST beat retraining with SR-STE at 2:4?", CAST, _RETRAINED, "2:4"),
    (
        "And where both are distilled?",
        _DISTILLED,
        ["retrain SR-STE 2e-4, distilled", "retrain SR-STE 2e-3, distilled"],
        "2:4",
    ),
    ("Does CAST beat retraining under a fixed mask at 2:4?", CAST, ["retrain ASP"], "2:4"),
    ("And where both are distilled?", _DISTILLED, ["retrain ASP, distilled"], "2:4"),
)


def _values(records: Sequence[Record], task: str, recipe: str, pattern: str, steps: int):
    return {
        cell.seed: record["loss"]
        for cell, record in records
        if (cell.task, cell.recipe, cell.pattern, cell.steps) == (task, recipe, pattern, steps)
    }


def _best(records: Sequence[Record], recipes: Sequence[str], pattern: str, steps: int):
    """The recipe of least mean loss, and its values."""
    found = [(name, _values(records, "lm", name, pattern, steps)) for name in recipes]
    found = [pair for pair in found if pair[1]] or [("", {})]
    return min(found, key=lambda pair: statistics.mean(pair[1].values()) if pair[1] else 0.0)


def _text(values: dict[int, float]) -> str:
    if not values:
        return ""
    spread = (max(values.values()) - min(values.values())) / 2
    mean = statistics.mean(values.values())
    behind = f" +- {spread:.3f}" if len(values) > 1 else ""
    return f"{mean:.3f}{behind} ({len(values)})"


def _patterns(records: Sequence[Record]) -> list[str]:
    found = {cell.pattern for cell, _ in records if cell.pattern != "dense"}

    def kept(pattern: str) -> tuple[float, int]:
        n, m = map(int, pattern.split(":"))
        return -n / m, -m

    return sorted(found, key=kept)


def _table(records: Sequence[Record], recipes: Sequence[str]) -> Iterator[str]:
    patterns = _patterns(records)
    yield "| recipe | " + " | ".join(patterns) + " |"
    yield "|---|" + "---|" * len(patterns)
    task, steps = records[0][0].task, records[0][0].steps
    for recipe in recipes:
        cells = [_text(_values(records, task, recipe, pattern, steps)) for pattern in patterns]
        if any(cells):
            yield f"| {recipe} | " + " | ".join(cells) + " |"
    yield ""


def _answers(records: Sequence[Record], steps: int) -> Iterator[str]:
    yield "| question | first | second | difference per seed | answer |"
    yield "|---|---|---|---|---|"
    for question, first, second, pattern in _QUESTIONS:
        one, a = _best(records, first, pattern, steps)
        two, b = _best(records, second, pattern, steps)
        both = sorted(a.keys() & b.keys())
        if not both:
            continue
        gaps = [a[seed] - b[seed] for seed in both]
        answer = "yes" if max(gaps) < 0 else "no" if min(gaps) > 0 else "undecided"
        answer += ", of one seed" if len(gaps) == 1 else ""
        shown = ", ".join(f"{gap:+.3f}" for gap in gaps)
        yield f"| {question} | {one}: {_text(a)} | {two}: {_text(b)} | {shown} | {answer} |"
    yield ""


def _plot(records: Sequence[Record], path: Path) -> None:
    """Loss against pattern, a panel per table; bars reach from the lowest seed to the highest."""
    panels = []
    for task, steps in _runs(records):
        for title, recipes in _groups():
            of_panel = [
                (cell, record)
                for cell, record in records
                if (cell.task, cell.steps) == (task, steps) and cell.recipe in recipes
            ]
            if of_panel:
                panels.append((f"{_TASKS[task]}, {steps} steps: {title}", of_panel, recipes))
    figure, axes = plt.subplots(
        len(panels), 1, figsize=(9, 4.2 * len(panels)), squeeze=False, layout="constrained"
    )
    for axis, (title, of_panel, recipes) in zip(axes[:, 0], panels, strict=True):
        patterns = _patterns(of_panel)
        task, steps = of_panel[0][0].task, of_panel[0][0].steps
        shown = [r for r in recipes if any(cell.recipe == r for cell, _ in of_panel)]
        for i, recipe in enumerate(shown):
            points = []
            for x, pattern in enumerate(patterns):
                values = list(_values(of_panel, task, recipe, pattern, steps).values())
                if values:
                    shift = 0.6 * (i / max(1, len(shown) - 1) - 0.5)
                    points.append((x + shift, statistics.mean(values), min(values), max(values)))
            x, mean, low, high = zip(*points, strict=True)
            down = [a - b for a, b in zip(mean, low, strict=True)]
            up = [a - b for a, b in zip(high, mean, strict=True)]
            axis.errorbar(x, mean, yerr=[down, up], fmt="o", markersize=4, capsize=2, label=recipe)
        dense = list(_values(records, task, "dense", "dense", steps).values())
        if dense:
            axis.axhline(statistics.mean(dense), color="black", linewidth=0.8, label="dense")
        axis.set_xticks(range(len(patterns)), patterns)
        axis.set_ylabel("validation loss")
        axis.set_title(title, fontsize=10)
        axis.legend(fontsize=7, bbox_to_anchor=(1.01, 1), loc="upper left")
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _groups() -> tuple[tuple[str, Sequence[str]], ...]:
    other = {"dense", *RETRAIN, *ONE_SHOT}
    return (
        ("trained from the start", [recipe for recipe in RECIPES if recipe not in other]),
        ("the trained dense model, trained on", RETRAIN),
        ("the trained dense model, pruned in one shot", tuple(ONE_SHOT)),
    )


def _runs(records: Sequence[Record]) -> list[tuple[str, int]]:
    found = {(cell.task, cell.steps) for cell, _ in records}
    return sorted(found, key=lambda run: (list(_TASKS).index(run[0]), -run[1]))


def write(records: Sequence[Record], docs: Path) -> None:
    """The page and the plot."""
    if not records:
        raise SystemExit("no records yet")
    lines = [_INTRODUCTION]
    answers = {steps: list(_answers(records, steps)) for _, steps in _runs(records)}
    for steps in sorted(answers, reverse=True):
        if len(answers[steps]) > 3:
            lines += [f"## Questions, language model, {steps} steps", "", *answers[steps]]
    for task, steps in _runs(records):
        of_run = [(c, r) for c, r in records if (c.task, c.steps) == (task, steps)]
        lines += [f"## {_TASKS[task]}, {steps} steps", ""]
        dense = _text(_values(of_run, task, "dense", "dense", steps))
        lines += [f"Dense: {dense}." if dense else "", ""]
        for title, recipes in _groups():
            table = list(_table(of_run, recipes))
            if len(table) > 3:
                lines += [f"### {title[0].upper()}{title[1:]}", "", *table]
                if recipes == RETRAIN:
                    more = max(c.more for c, _ in of_run)
                    lines += [f"For {more} more steps at a quarter of the rate.", ""]
    lines += ["![Loss by recipe and pattern](images/nm-recipes.png)", ""]
    folder = docs / "images"
    folder.mkdir(parents=True, exist_ok=True)
    _plot(records, folder / "nm-recipes.png")
    text = "\n".join(lines)
    (docs / "recipes.md").write_text(text.replace("\n\n\n", "\n\n"))
    print(f"wrote {docs / 'recipes.md'}: {len(records)} cells")
