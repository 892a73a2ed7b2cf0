# SPDX-License-Identifier: Apache-2.0
"""How good are group-quantized sparse weights, against 2:4 and against fewer bits? Records quality.

    python bench/gqs_quality.py                    # every row that is not recorded yet
    python bench/gqs_quality.py --tasks lm --forms "W4S50 G16" "W2 G32" --seeds 0
    python bench/gqs_quality.py --list             # what would run, in order
    python bench/gqs_quality.py --report           # docs/gqs-quality.md and its plot

A row is written as soon as it is done, so a run can be stopped at any time and goes on behind the
last form that is complete. Quality only: what the packed layers take in time is measured elsewhere.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path

import torch
from environment import RESULTS, ROOT, commit
from gqs_cells import DENSE, ONE_SHOT, PRUNED, STAGES, Cell, run
from nm_recipes import CACHE, read, write

RECORDS = RESULTS / "gqs_quality.jsonl"
FIRST = (DENSE, PRUNED, "W4S50 G16", "W2 G32", "W2 G16")
MORE = ("W2z G64", "W4 G16", "W8S50 G16", "W4S30 G16", "W4S60 G16", "W4S50 G32", "W2 G64")
TASKS = ("embedding", "lm")


def plan() -> list[tuple[str, str, int]]:
    """(task, form, seed), the most telling first."""
    found = []
    for seed, forms in ((0, FIRST), (0, MORE), (1, FIRST), (2, FIRST), (1, MORE)):
        found += list(itertools.product(TASKS, forms, [seed]))
    return found


def rows(task: str, form: str, seed: int) -> set[Cell]:
    """What a run of a form records."""
    methods = [""] if form == DENSE else ONE_SHOT if form == PRUNED else STAGES
    return {Cell(task, form, method, seed) for method in methods}


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--forms", nargs="+", metavar="FORM")
    parser.add_argument("--seeds", nargs="+", type=int)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, default=RECORDS)
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="for --report")
    parser.add_argument("--list", action="store_true", help="print the cells, run nothing")
    parser.add_argument("--report", action="store_true", help="only write the table and the plot")
    return parser.parse_args()


def main() -> None:
    given = _parse()
    if given.report:
        import gqs_report

        gqs_report.write(list(read(given.results, Cell)), given.docs)
        return
    cells = [cell for cell in plan() if cell[0] in given.tasks]
    if given.forms or given.seeds:
        named = itertools.product(given.tasks, given.forms or FIRST + MORE, given.seeds or [0])
        cells = list(named)
    done = {cell for cell, _ in read(given.results, Cell)}
    if given.list:
        for cell in cells:
            print("done" if rows(*cell) <= done else "    ", *cell)
        return
    torch.set_num_threads(given.threads)
    loaded = commit()
    for cell in cells:
        if rows(*cell) <= {cell for cell, _ in read(given.results, Cell)}:
            continue
        for row, found in run(*cell, CACHE):
            if row not in done:
                write(given.results, row, found, loaded, "gqs_quality")
                done.add(row)
            print(*cell, row.method, found, flush=True, file=sys.stdout)


if __name__ == "__main__":
    main()
