# SPDX-License-Identifier: Apache-2.0
"""The command kv-demo: its text, its measurement, what it writes."""

from __future__ import annotations

import json
import math

import pytest
import torch
from sparsekern import _kv_demo
from sparsekern.cli import app
from typer.testing import CliRunner

transformers = pytest.importorskip("transformers")
FUNCTION = (
    'def f{i}():\n    """Text number {i} of {name}, long enough for the corpus to take it."""\n'
)


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A small standard library."""
    root = tmp_path / "lib"
    names = [f"module{i}" for i in range(24)] + ["twin", "_pytwin", "test/skipped"]
    for name in names:
        path = root / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(FUNCTION.format(i=i, name=name) for i in range(8)))
    (root / "broken.py").write_text("def :")
    monkeypatch.setattr(_kv_demo.sysconfig, "get_path", lambda _: str(root))
    return root


def test_no_module_is_on_both_sides(library):
    train, held_out = _kv_demo.docstrings()
    assert train.count("Text number") + held_out.count("Text number") == 26 * 8
    for i in range(24):
        assert (f"of module{i}," in train) != (f"of module{i}," in held_out)
    assert ("of twin," in train) == ("of _pytwin," in train)
    assert "skipped" not in train + held_out
    assert held_out


def test_the_demo_runs_and_keeps_its_model(library, tmp_path, monkeypatch):
    monkeypatch.setattr(_kv_demo, "LENGTH", 48)
    monkeypatch.setattr(_kv_demo, "_NEW_TOKENS", 4)
    arguments = ["kv-demo", "-o", str(tmp_path / "out"), "--steps", "3", "--sequences", "2"]
    first = CliRunner().invoke(app, arguments)
    assert first.exit_code == 0, first.output
    rows = json.loads((tmp_path / "out" / "rows.json").read_text())
    assert [row["sparsity"] for row in rows] == [None, 0.0, 0.3, 0.5, 0.7]
    assert math.isclose(rows[0]["perplexity"], rows[1]["perplexity"], rel_tol=1e-4)
    assert rows[4]["perplexity"] != rows[1]["perplexity"]  # pruned tokens were attended to
    assert all(1.0 < row["perplexity"] < 200 for row in rows)
    assert len({row["nbytes"] for row in rows}) == 5
    assert all(row["text"].startswith("Return the") for row in rows)
    for row in rows:
        assert row["cache"] in first.output
    made = tmp_path / "out" / "model-3" / "config.json"
    before = made.stat().st_mtime_ns
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 0, again.output
    assert made.stat().st_mtime_ns == before
    second = json.loads((tmp_path / "out" / "rows.json").read_text())
    assert [r["perplexity"] for r in second] == [r["perplexity"] for r in rows]


def test_teacher_forced_perplexity_is_the_models_own(library):
    model = _kv_demo._new_model().eval()
    ids = torch.randint(1, 128, (2, 40), generator=torch.Generator().manual_seed(0))
    row = _kv_demo._measure(model, ids, None, lambda: None)
    with torch.no_grad():
        logits = model(ids).logits[:, :-1]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    assert math.isclose(row.perplexity, math.exp(float(loss)), rel_tol=1e-4)
    assert row.nbytes == 2 * 2 * 2 * 2 * 39 * 64 * 4
