# SPDX-License-Identifier: Apache-2.0
"""bench/gqs_quality.py: its plan, a form of each kind on a small model, the report."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "bench"))

import gqs_cells
import gqs_quality
import gqs_report
from gqs_cells import DENSE, PRUNED, STAGES, Cell, Subject


@pytest.fixture
def subject(monkeypatch: pytest.MonkeyPatch) -> Subject:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Sequential(nn.Linear(32, 32), nn.ReLU()), nn.Linear(32, 32))
    batches = [torch.randn(20, 32) for _ in range(2)]
    dense = [model(x).detach() for x in batches]

    def evaluate(other: nn.Module) -> dict[str, float]:
        with torch.no_grad():
            pairs = zip(batches, dense, strict=True)
            return {"loss": sum(float((other(x) - y).square().mean()) for x, y in pairs)}

    small = Subject(model, "*", batches, lambda m, x: m(x), (20, 20), evaluate)
    monkeypatch.setattr(gqs_cells, "subject", lambda task, seed, cache: small)
    return small


def test_the_plan_holds_each_form_once_and_can_answer_every_question():
    cells = gqs_quality.plan()
    assert len(set(cells)) == len(cells)
    for _, first, second in gqs_report._QUESTIONS:
        for task in gqs_quality.TASKS:
            assert {(task, first, 0), (task, second, 0)} <= set(cells)
    for _, form, _ in cells:
        if form not in (DENSE, PRUNED):
            gqs_cells.form_of(form)


def test_forms():
    pattern, symmetric = gqs_cells.form_of("W2z G64")
    assert (pattern.bits, pattern.group, pattern.sparsity, symmetric) == (2, 64, 0.0, False)
    pattern, symmetric = gqs_cells.form_of("W8S30 G16")
    assert (pattern.bits, pattern.group, pattern.sparsity, symmetric) == (8, 16, 0.3, True)
    with pytest.raises(ValueError, match="form must be such as"):
        gqs_cells.form_of("W4S50")


def test_every_kind_of_form_runs(subject: Subject, tmp_path: Path):
    found = {}
    for form in (DENSE, PRUNED, "W4S50 G16", "W4z G32"):
        rows = dict(gqs_cells.run("lm", form, 0, tmp_path))
        assert set(rows) == gqs_quality.rows("lm", form, 0)
        found |= {(cell.form, cell.method): row for cell, row in rows.items()}
    assert found[PRUNED, "ALPS"]["bits_per_weight"] == 9.0
    assert found["W4S50 G16", STAGES[0]]["bits_per_weight"] == 0.5 * (4 + 1) + 1 / 16
    assert found["W4z G32", STAGES[2]]["bits_per_weight"] == 4 + 32 / 32
    assert 0 < found[DENSE, ""]["loss"] < found["W4z G32", STAGES[0]]["loss"]
    first, second, third = (found["W4S50 G16", stage]["loss"] for stage in STAGES)
    assert third < second < first


def test_what_is_recorded_is_not_run_again(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "r.jsonl"
    named = ["--tasks", "lm", "--forms", DENSE, "--seeds", "0", "--results", str(path)]
    monkeypatch.setattr(sys, "argv", ["gqs_quality.py", *named])
    gqs_quality.main()
    before = path.read_text()
    assert '"bench": "gqs_quality"' in before
    gqs_quality.main()
    assert path.read_text() == before


def test_the_report_says_what_the_records_say(tmp_path: Path):
    rows = {
        (DENSE, ""): (16.0, [0.9, 0.9]),
        (PRUNED, "ALPS"): (9.0, [0.8, 0.6]),
        ("W4S50 G16", "GPTQ"): (2.5, [0.3, 0.4]),
        ("W4S50 G16", "+ BQPO"): (2.5, [0.5, 0.7]),
        ("W2 G32", "GPTQ"): (2.5, [0.2, 0.3]),
    }
    records = [
        (
            Cell("embedding", form, method, seed),
            {"bits_per_weight": bits, "recall_at_1": values[seed]},
        )
        for (form, method), (bits, values) in rows.items()
        for seed in (0, 1)
    ]
    gqs_report.write(records, tmp_path)
    page = (tmp_path / "gqs-quality.md").read_text()
    assert "| 2:4 fp16 | 9.00 | ALPS | 0.700 +- 0.100 (2) |" in page
    assert "| W4S50 G16 | 2.50 | 0.350 +- 0.050 (2) | 0.600 +- 0.100 (2) |  |" in page
    assert "-0.300, +0.100 | undecided |" in page
    assert "+0.300, +0.400 | yes |" in page
    assert "W8S50" not in page.split("## ")[1]
    assert (tmp_path / "images" / "gqs-quality.png").stat().st_size > 5_000
    with pytest.raises(SystemExit, match="no records"):
        gqs_report.write([], tmp_path)
