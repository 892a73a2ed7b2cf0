# SPDX-License-Identifier: Apache-2.0
"""bench/nm_recipes.py: its cells and records, a recipe of each kind, the report."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "bench"))

import nm_recipes
import recipe_cells
import recipe_report
import recipe_tasks
from recipe_cells import Cell
from recipe_tasks import LENGTH, VOCABULARY, Task


@pytest.fixture
def task(monkeypatch: pytest.MonkeyPatch) -> Iterator[Task]:
    """The language model on a few repeated bytes, smaller, instead of the real text; one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for name, value in {"WIDTH": 16, "LAYERS": 1, "HEADS": 2, "CALIBRATION": 2}.items():
        monkeypatch.setattr(recipe_tasks, name, value)
    text = torch.arange(40 * LENGTH) * 7 % 31 % VOCABULARY
    held_out = (text[: 8 * LENGTH].reshape(8, LENGTH), text[1 : 8 * LENGTH + 1].reshape(8, LENGTH))
    small = Task("lm", ("blocks.*",), (), 2e-3, (text[:-1], text[1:]), held_out)
    monkeypatch.setattr(recipe_cells, "load", lambda name: small)
    yield small
    torch.set_num_threads(threads)


def test_the_plan_holds_each_cell_once_and_only_possible_ones():
    cells = nm_recipes.plan()
    assert len(set(cells)) == len(cells)
    assert all(map(recipe_cells.possible, cells))
    assert {cell.recipe for cell in cells} == set(recipe_cells.RECIPES)
    assert cells[0].recipe == "dense"  # others start from it
    for question in recipe_report._QUESTIONS:
        steps = (1000, 3000)
        for recipe in (*question[1], *question[2]):
            found = [c for c in cells if (c.recipe, c.pattern) == (recipe, question[3])]
            assert any(c.task == "lm" and c.steps in steps for c in found), recipe


@pytest.mark.parametrize("recipe", recipe_cells.RECIPES)
def test_every_recipe_runs_and_leaves_its_pattern(recipe: str, task: Task, tmp_path: Path):
    """`run` itself raises where a group keeps too many."""
    cell = Cell("lm", recipe, "dense" if recipe == "dense" else "1:8", 0, 20, 4)
    found = recipe_cells.run(cell, tmp_path)
    assert 0 < found["loss"] < 10
    assert 0 <= found["accuracy"] <= 1
    assert recipe_cells.run(cell, tmp_path)["loss"] == found["loss"]  # also from the cached model


def test_a_wrong_pattern_stops_the_run(task: Task):
    with pytest.raises(RuntimeError, match=r"blocks.0.qkv must be NM\(1:8\), got 8 in a group"):
        recipe_cells._check(task.model(0), task, recipe_cells.NM(1, 8), whole_rows=True)


def test_records_are_appended_and_a_cut_line_does_not_count(tmp_path: Path, capsys):
    path = tmp_path / "results" / "r.jsonl"
    first, second = (Cell("lm", "STE", "2:4", seed, 10) for seed in (0, 1))
    nm_recipes.write(path, first, {"loss": 1.5}, "abc")
    nm_recipes.write(path, second, {"loss": 2.5}, "abc")
    assert [cell for cell, _ in nm_recipes.read(path)] == [first, second]
    line = json.loads(path.read_text().splitlines()[0])
    assert (line["bench"], line["loss"], line["commit"]) == ("nm_recipes", 1.5, "abc")
    with path.open("a") as file:
        file.write('{"bench": "nm_rec')
    assert [cell for cell, _ in nm_recipes.read(path)] == [first, second]
    assert "does not count" in capsys.readouterr().err
    assert list(nm_recipes.read(tmp_path / "none")) == []


def test_what_is_recorded_is_not_run_again(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "r.jsonl"
    named = ["--recipes", "STE", "S-STE", "--patterns", "2:4", "--seeds", "0", "--steps", "4"]
    monkeypatch.setattr(sys, "argv", ["nm_recipes.py", *named, "--results", str(path)])
    monkeypatch.setattr(nm_recipes, "CACHE", tmp_path)
    nm_recipes.write(path, Cell("lm", "STE", "2:4", 0, 4), {"loss": 1.5}, "abc")
    nm_recipes.main()
    found = {cell.recipe: record["loss"] for cell, record in nm_recipes.read(path)}
    assert found.keys() == {"STE", "S-STE"}
    assert found["STE"] == 1.5
    before = path.read_text()
    nm_recipes.main()
    assert path.read_text() == before


def test_the_report_says_what_the_records_say(tmp_path: Path):
    values = {
        "dense": [1.0, 1.2],
        "MdGf chain": [2.0, 2.2],
        "SR-STE 2e-3": [2.1, 2.4],
        "SR-STE 2e-4": [3.0, 3.0],
        "S-STE": [2.0, 2.5],
    }
    records = [
        (
            Cell("lm", recipe, "dense" if recipe == "dense" else "1:16", seed, 3000),
            {"loss": losses[seed]},
        )
        for recipe, losses in values.items()
        for seed in (0, 1)
    ]
    recipe_report.write(records, tmp_path)
    page = (tmp_path / "recipes.md").read_text()
    assert "Dense: 1.100 +- 0.100 (2)." in page
    assert "| MdGf chain | 2.100 +- 0.100 (2) |" in page
    assert (
        "| Do decaying masks beat a tuned SR-STE at 1:16? | MdGf chain: 2.100 +- 0.100 (2) | "
        "SR-STE 2e-3: 2.250 +- 0.150 (2) | -0.100, -0.200 | yes |" in page
    )
    assert "-0.100, +0.100 | undecided |" in page  # S-STE
    assert "ALPS" not in page
    assert (tmp_path / "images" / "nm-recipes.png").stat().st_size > 10_000
    with pytest.raises(SystemExit, match="no records"):
        recipe_report.write([], tmp_path)
