# SPDX-License-Identifier: Apache-2.0
"""Writes docs/gqs-quality.md and its plot from the records of gqs_quality.py; nothing is typed."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from gqs_cells import DENSE, ONE_SHOT, PRUNED, STAGES, Cell
from gqs_quality import FIRST, MORE

mpl.use("Agg")
import matplotlib.pyplot as plt

Record = tuple[Cell, dict[str, Any]]

_INTRODUCTION = """# Quality of group-quantized sparse weights

<!-- Written by bench/gqs_quality.py --report from bench/results/gqs_quality.jsonl. Do not edit. -->

What a model is still worth after its matrices became group-quantized and sparse
([quantization.md](quantization.md)), beside 2:4 weights in float16 and beside fewer bits without
zeros. `W4S50 G16` means 4 bits, half of the groups of 16 pruned; `z` means with zero-points, the
others go without. Bits per weight count codes, float16 scales, zero-points and masks of the
quantized matrices; 2:4 in float16 takes 2 of 4 values and 2 bits for the place of each. GPTQ is one
shot; BQPO goes on from it block by block; E2E-OQP goes on from BQPO with scales and zero-points
alone. Quality is that of the dense model with the dequantized weights. A cell is the mean over
seeds and, behind +-, half the distance of the extreme ones; the number of seeds is in brackets.
Both models are small, and small models lose more by pruning than large ones do: the table orders
forms, it does not foretell what a large model loses.
"""
_TASKS = {
    "embedding": (
        "Sentence embeddings",
        "recall_at_1",
        "recall@1",
        """all-MiniLM-L6-v2: its 36 encoder matrices are compressed. recall@1 of 1,024 docstring
bodies of Python's standard library by their summary lines, higher is better; calibrated on 128
sequences of 64 tokens from other modules (the seed chooses them), 40 steps of BQPO per block, 60 of
E2E-OQP. recall@10 is in the records.""",
    ),
    "lm": (
        "Language model",
        "perplexity",
        "perplexity",
        """A decoder of 3 blocks of width 128 over bytes of the standard library's docstrings,
trained 3,000 steps (one model per seed); its 12 block matrices are compressed. Perplexity per byte
on held-out docstrings, lower is better; calibrated on 64 batches of 8 x 48 bytes, 150 steps of BQPO
per block, 150 of E2E-OQP.""",
    ),
}
# Question, first form, second form: whether the first is better, by the best method of each.
_QUESTIONS = (
    ("Does W4S50 beat 2:4 in float16?", "W4S50 G16", PRUNED),
    ("Does W4S50 beat W2 at about its bits (G32)?", "W4S50 G16", "W2 G32"),
    ("And W2 with more bits than it (G16)?", "W4S50 G16", "W2 G16"),
    ("Does W4S30 beat 2:4 in float16?", "W4S30 G16", PRUNED),
    ("Does W8S50 beat W4S50?", "W8S50 G16", "W4S50 G16"),
    ("Does W4 without sparsity beat 2:4 in float16?", "W4 G16", PRUNED),
)


def _values(
    records: Sequence[Record], task: str, form: str, method: str, key: str
) -> dict[int, float]:
    return {
        cell.seed: record[key]
        for cell, record in records
        if (cell.task, cell.form, cell.method) == (task, form, method)
    }


def _text(values: dict[int, float], digits: int) -> str:
    if not values:
        return ""
    spread = (max(values.values()) - min(values.values())) / 2
    behind = f" +- {spread:.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values.values()):.{digits}f}{behind} ({len(values)})"


def _bits(records: Sequence[Record], task: str, form: str) -> float:
    found = [r["bits_per_weight"] for c, r in records if (c.task, c.form) == (task, form)]
    return statistics.mean(found) if found else 0.0


def _methods(form: str) -> Sequence[str]:
    return [""] if form == DENSE else list(ONE_SHOT) if form == PRUNED else STAGES


def _best(records: Sequence[Record], task: str, form: str) -> tuple[str, dict[int, float]]:
    """The best method of a form by its mean, among those that all its seeds have."""
    key, lower = _TASKS[task][1], task == "lm"
    found = [(m, _values(records, task, form, m, key)) for m in _methods(form)]
    most = max(len(values) for _, values in found)
    found = [pair for pair in found if len(pair[1]) == most and pair[1]] or [("", {})]
    return min(
        found,
        key=lambda pair: (1 if lower else -1) * statistics.mean(pair[1].values() or [0.0]),
    )


def _table(records: Sequence[Record], task: str) -> Iterator[str]:
    _, key, _, _ = _TASKS[task]
    forms = [form for form in FIRST + MORE if _bits(records, task, form)]
    forms.sort(key=lambda form: -_bits(records, task, form))
    plain = [form for form in forms if form in (DENSE, PRUNED)]
    yield "| form | bits/weight | method | quality |"
    yield "|---|---|---|---|"
    for form in plain:
        for method in _methods(form):
            text = _text(_values(records, task, form, method, key), 3)
            if text:
                yield f"| {form} | {_bits(records, task, form):.2f} | {method or '-'} | {text} |"
    yield ""
    yield "| form | bits/weight | " + " | ".join(STAGES) + " |"
    yield "|---|---|" + "---|" * len(STAGES)
    for form in forms:
        if form not in plain:
            cells = [_text(_values(records, task, form, stage, key), 3) for stage in STAGES]
            yield f"| {form} | {_bits(records, task, form):.2f} | " + " | ".join(cells) + " |"
    yield ""


def _answers(records: Sequence[Record], task: str) -> Iterator[str]:
    """By the best method of each form, seed by seed."""
    lower = task == "lm"
    yield "| question | first | second | difference per seed | answer |"
    yield "|---|---|---|---|---|"
    for question, first, second in _QUESTIONS:
        (one, a), (two, b) = (_best(records, task, form) for form in (first, second))
        both = sorted(a.keys() & b.keys())
        if not both:
            continue
        gaps = [a[seed] - b[seed] for seed in both]
        gains = [-gap if lower else gap for gap in gaps]
        answer = "yes" if min(gains) > 0 else "no" if max(gains) < 0 else "undecided"
        answer += ", of one seed" if len(gaps) == 1 else ""
        shown = ", ".join(f"{gap:+.3f}" for gap in gaps)
        yield (
            f"| {question} | {first}, {one}: {_text(a, 3)} | {second}, {two}: {_text(b, 3)} | "
            f"{shown} | {answer} |"
        )
    yield ""


def _plot(records: Sequence[Record], path: Path) -> None:
    tasks = [task for task in _TASKS if any(cell.task == task for cell, _ in records)]
    figure, axes = plt.subplots(
        1, len(tasks), figsize=(5.5 * len(tasks), 4.2), layout="constrained", squeeze=False
    )
    for axis, task in zip(axes[0], tasks, strict=True):
        title, _, name, _ = _TASKS[task]
        for form in FIRST + MORE:
            values = list(_best(records, task, form)[1].values())
            if not values:
                continue
            bits, mean = _bits(records, task, form), statistics.mean(values)
            if form == DENSE:
                axis.axhline(mean, color="black", linewidth=0.8, label=DENSE)
                continue
            marker = "s" if form == PRUNED else "^" if "S" in form else "o"
            color = "tab:red" if form == PRUNED else "tab:blue" if "S" in form else "tab:orange"
            spread = [[mean - min(values)], [max(values) - mean]]
            axis.errorbar([bits], [mean], yerr=spread, fmt=marker, color=color, capsize=2)
            axis.annotate(form, (bits, mean), fontsize=7, xytext=(4, 3), textcoords="offset points")
        axis.set_xlabel("bits per weight")
        axis.set_ylabel(name)
        axis.set_title(f"{title}: best method of each form", fontsize=10)
        axis.legend(fontsize=7)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def write(records: Sequence[Record], docs: Path) -> None:
    """The page and the plot."""
    if not records:
        raise SystemExit("no records yet")
    lines = [_INTRODUCTION]
    for task, (title, _, name, what) in _TASKS.items():
        if not any(cell.task == task for cell, _ in records):
            continue
        lines += [f"## {title}: {name}", "", what, "", *_table(records, task)]
        answers = list(_answers(records, task))
        if len(answers) > 3:
            lines += ["By the best method of each form:", "", *answers]
    lines += ["![Quality by bits per weight](images/gqs-quality.png)", ""]
    folder = docs / "images"
    folder.mkdir(parents=True, exist_ok=True)
    _plot(records, folder / "gqs-quality.png")
    (docs / "gqs-quality.md").write_text("\n".join(lines).replace("\n\n\n", "\n\n"))
    print(f"wrote {docs / 'gqs-quality.md'}: {len(records)} rows")
