# SPDX-License-Identifier: Apache-2.0
"""Which recipe makes the best N:M model? Trains small models and records hard-mask loss.

    python bench/nm_recipes.py                     # every cell that is not recorded yet; hours
    python bench/nm_recipes.py --patterns 2:4 --recipes "S-STE" "SR-STE 2e-3" --seeds 0 --steps 500
    python bench/nm_recipes.py --list              # what would run, in order
    python bench/nm_recipes.py --report            # docs/recipes.md and its plot, from the records

A cell is written as soon as it is done, so a run can be stopped at any time and goes on where it
was; several can run at once, on other cells.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from environment import RESULTS, ROOT, commit, cpu_name
from recipe_cells import FROM_DENSE, ONE_SHOT, RECIPES, RETRAIN, SCRATCH, Cell, possible, run

RECORDS = RESULTS / "nm_recipes.jsonl"
CACHE = ROOT / "build" / "nm_recipes"
PATTERNS = ("2:4", "2:8", "1:8", "1:16")
ONE_SHOT_PATTERNS = ("2:4", "4:8", "1:4", "2:8")
LONG, SHORT = 3000, 1000  # steps; a model that others start from is trained long


def plan() -> list[Cell]:
    """Every cell, the most telling first."""
    cells: list[Cell] = []

    def add(recipes, patterns, seeds, steps, task="lm"):
        for seed, pattern, recipe in itertools.product(seeds, patterns, recipes):
            cells.append(_cell(task, recipe, pattern, seed, steps))

    add(["dense"], ["dense"], [0], LONG)
    add(ONE_SHOT, ["2:4", "1:4"], [0], LONG)
    hard = ["SR-STE 2e-3", "S-STE", "MdGf chain", "SR-STE 2e-4", "MdGf STE"]
    for seed in (0, 1):
        add(hard, ["1:16"], [seed], LONG)
        add(["dense"], ["dense"], [seed], LONG)
    add(["BDWP", "SR-STE 2e-4"], ["2:4", "2:8"], [0, 1, 2], SHORT)
    add(RETRAIN, ["2:4"], [0], LONG)
    add(ONE_SHOT, ONE_SHOT_PATTERNS, [0, 1], LONG)
    add(RETRAIN, ["2:4"], [1], LONG)
    add(["dense"], ["dense"], [0, 1], SHORT)
    add([*SCRATCH, "prune at end"], PATTERNS, [0, 1], SHORT)
    for seed in (0, 1, 2):
        add(["dense"], ["dense"], [seed], SHORT, "digits")
        add([*SCRATCH, "prune at end", *RETRAIN], PATTERNS, [seed], SHORT, "digits")
    add(["dense"], ["dense"], [2], LONG)
    add(ONE_SHOT, ONE_SHOT_PATTERNS, [2], LONG)
    add(RETRAIN, ["2:4"], [2], LONG)
    add(hard, ["1:16"], [2], LONG)
    add(["MdGf linear chain", "SdGf geometric", "STE"], ["1:16"], [0, 1], LONG)
    add(hard, ["2:4", "1:8"], [0, 1], LONG)
    return [cell for cell in dict.fromkeys(cells) if possible(cell)]


def _cell(task: str, recipe: str, pattern: str, seed: int, steps: int) -> Cell:
    return Cell(task, recipe, pattern, seed, steps, SHORT if recipe in RETRAIN else 0)


def chosen(given: argparse.Namespace) -> list[Cell]:
    """The plan, or every combination of what was named."""
    if not any((given.recipes, given.patterns, given.seeds, given.steps, given.tasks)):
        return plan()
    cells = []
    named = itertools.product(
        given.tasks or ["lm"],
        given.seeds or [0, 1],
        given.patterns or ["dense", *PATTERNS],
        given.recipes or RECIPES,
    )
    for task, seed, pattern, recipe in named:
        steps = given.steps or (LONG if recipe in FROM_DENSE and task == "lm" else SHORT)
        place = "dense" if recipe == "dense" else pattern
        if place == "dense" and recipe != "dense":
            continue
        cells.append(_cell(task, recipe, place, seed, steps))
    return [cell for cell in dict.fromkeys(cells) if possible(cell)]


def read(path: Path, kind: type = Cell) -> Iterator[tuple[Any, dict]]:
    """Every recorded cell with its record; a last line that was cut off is left out."""
    fields = kind.__dataclass_fields__
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            print(f"{path}: a line is not JSON and does not count", file=sys.stderr)
            continue
        yield kind(**{name: record[name] for name in fields}), record


def write(path: Path, cell: Any, found: dict, loaded: str, bench: str = "nm_recipes") -> None:
    """Append one record; `loaded` is the commit of the code that ran."""
    now = datetime.datetime.now(datetime.timezone.utc)
    record = {
        "bench": bench,
        **asdict(cell),
        **found,
        "commit": loaded,
        "machine": cpu_name(),
        "date": now.strftime("%Y-%m-%d %H:%M UTC"),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:  # one write of one line: other runs may append too
        file.write(json.dumps(record) + "\n")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", choices=("lm", "digits"))
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, metavar="RECIPE")
    parser.add_argument("--patterns", nargs="+", metavar="N:M")
    parser.add_argument("--seeds", nargs="+", type=int)
    parser.add_argument("--steps", type=int, help="of training; of the dense model for others")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, default=RECORDS)
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="for --report")
    parser.add_argument("--list", action="store_true", help="print the cells, run nothing")
    parser.add_argument("--report", action="store_true", help="only write the table and the plot")
    return parser.parse_args()


def main() -> None:
    given = _parse()
    if given.report:
        import recipe_report

        recipe_report.write(list(read(given.results)), given.docs)
        return
    cells = chosen(given)
    if given.list:
        done = {cell for cell, _ in read(given.results)}
        for cell in cells:
            print("done" if cell in done else "    ", *asdict(cell).values())
        return
    torch.set_num_threads(given.threads)
    loaded = commit()
    for i, cell in enumerate(cells):
        if cell in {cell for cell, _ in read(given.results)}:
            continue
        found = run(cell, CACHE)
        write(given.results, cell, found, loaded)
        print(f"[{i + 1}/{len(cells)}]", *asdict(cell).values(), found, flush=True)


if __name__ == "__main__":
    main()
