# SPDX-License-Identifier: Apache-2.0
"""The demo's figures: retrieval, who is named the winner, and what the report says."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "demo"))

import plots
import report
from quality import Recall, cosine_distance, ranks, recall
from results import Contestant, Layer, Point, Results
from rich.console import Console
from sparsekern.measure import Timing

SMALL, LARGE = "1 x 16 tokens", "32 x 128 tokens"


def unit(rows: list[list[float]]) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.tensor(rows), dim=1)


def test_ranks_by_hand() -> None:
    queries = unit([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    bodies = unit([[1.0, 0.1], [1.0, 0.0], [0.9, 1.0]])
    # query 1 is nearest to body 2, then body 0, then its own body 1
    assert ranks(queries, bodies).tolist() == [1, 2, 0]


def test_a_tie_and_a_nan_count_against_the_model() -> None:
    same = unit([[1.0, 0.0]] * 3)
    assert ranks(same, same).tolist() == [2, 2, 2]
    broken = torch.full((3, 2), float("nan"))
    assert recall(broken, broken).at_1 == 0.0


def test_recall_counts_first_and_first_ten() -> None:
    n = 40
    bodies = torch.eye(n)
    queries = bodies.clone()
    queries[0] = bodies[1]  # its own body ties with all others but one: last
    for other in range(5):
        queries[20, other] = 2.0  # five bodies come before its own
    found = recall(torch.nn.functional.normalize(queries, dim=1), bodies)
    assert found.at_1 == pytest.approx(38 / 40)
    assert found.at_10 == pytest.approx(39 / 40)


def test_ranks_refuses_unequal_shapes() -> None:
    with pytest.raises(ValueError, match=r"must both be \[n, width\], got \[2, 3\] and \[3, 3\]"):
        ranks(torch.zeros(2, 3), torch.zeros(3, 3))


def test_kept_is_the_smaller_ratio() -> None:
    assert Recall(0.30, 0.70).kept_of(Recall(0.40, 0.70)) == pytest.approx(0.75)
    assert Recall(0.40, 0.35).kept_of(Recall(0.40, 0.70)) == pytest.approx(0.5)


def test_cosine_distance() -> None:
    a = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    b = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    assert cosine_distance(a, b) == pytest.approx(0.5)


def timing(milliseconds: float) -> Timing:
    seconds = milliseconds / 1e3
    return Timing.of([seconds] * 5)


def point(sparsity: int, at_1: float, at_10: float, small: float, large: float) -> Point:
    layer = Layer(
        "encoder.layer.0.<x>", "csr float32", "csr_linear__scalar", 1e-3, 2e-3, 0.5, "peak"
    )
    return Point(
        sparsity=sparsity,
        recall=Recall(at_1, at_10),
        timings={SMALL: timing(small), LARGE: timing(large)},
        disk_bytes=90_000_000 - 400_000 * sparsity,
        memory_bytes=91_000_000 - 400_000 * sparsity,
        largest_error=1e-7,
        converted=36 if sparsity else 0,
        prunable=36,
        steps=100 if sparsity else 0,
        train_seconds=10.0,
        training="stopped by the time limit" if sparsity == 90 else "",
        layers=(layer,) if sparsity else (),
    )


@pytest.fixture
def results() -> Results:
    points = (
        point(0, 0.40, 0.70, 6.0, 600.0),
        point(50, 0.40, 0.70, 5.5, 590.0),
        point(70, 0.39, 0.69, 4.0, 400.0),
        point(80, 0.385, 0.68, 3.0, 300.0),
        point(90, 0.32, 0.60, 2.0, 200.0),
    )
    others = (
        Contestant("torch bfloat16", {SMALL: timing(2.5), LARGE: timing(150.0)}),
        Contestant("onnxruntime float32", {}, "not measured: onnx is not installed"),
    )
    machine = {"cpu": "Test & CPU", "threads": "2", "amx": "yes"}
    return Results(points, others, (SMALL, LARGE), LARGE, 1024, machine, fast=False)


def test_winner_is_the_fastest_that_keeps_enough(results: Results) -> None:
    winner = results.winner()
    assert winner is not None
    assert winner.sparsity == 80
    slower = point(80, 0.385, 0.68, 3.0, 450.0)
    points = (*results.points[:3], slower, results.points[4])
    assert dataclasses.replace(results, points=points).winner() is points[2]


def test_recall_at_10_alone_can_disqualify(results: Results) -> None:
    points = (results.points[0], point(80, 0.41, 0.60, 3.0, 300.0))
    changed = dataclasses.replace(results, points=points)
    assert changed.winner() is None
    assert "No sparse point keeps 95 %" in report.conclusion(changed)[0]
    assert "80 % comes closest with 86 %" in report.conclusion(changed)[0]


def test_verdicts_say_where_dense_wins(results: Results) -> None:
    small, large = results.verdicts()
    assert small == (
        "1 x 16 tokens: dense wins here. torch bfloat16 (2.50 ms) is 1.20 x faster than "
        "80 % sparse in float32."
    )
    assert "dense wins here. torch bfloat16 (150.00 ms) is 2.00 x faster" in large
    alone = dataclasses.replace(results, contestants=())
    assert alone.verdicts()[1] == (
        "32 x 128 tokens: 80 % sparse is 2.00 x faster than the best dense "
        "(torch float32, 600.00 ms)."
    )


def test_a_winner_without_sparse_layers_is_called_no_gain(results: Results) -> None:
    assert not any("no gain" in line for line in report.conclusion(results))
    kept_dense = dataclasses.replace(results.points[1], converted=0)
    changed = dataclasses.replace(results, points=(results.points[0], kept_dense))
    assert "At 50 % no layer was faster packed" in report.conclusion(changed)[1]


def test_notes_name_amx_fast_runs_and_time_limits(results: Results) -> None:
    text = " ".join(report.notes(results))
    assert "this machine has them" in text
    assert "time limit at 90 %" in text
    assert "--fast" not in text
    other = dataclasses.replace(results, fast=True, machine={"amx": "no"})
    assert "this machine has none" in " ".join(report.notes(other))
    assert "--fast" in " ".join(report.notes(other))


def test_terminal_tables_hold_the_figures(results: Results) -> None:
    stream = io.StringIO()
    report.print_results(Console(file=stream, width=170), results)
    text = stream.getvalue()
    for expected in ("300.00 (2.00x)", "38.5 %", "96 %", "36 of 36", "csr_linear__scalar",
                     "onnx is not installed", "2.50 (2.40x)"):  # fmt: skip
        assert expected in text


def test_html_is_whole_and_needs_nothing_beside_it(results: Results) -> None:
    figure = plots.figure(results)
    text = report.to_html(results, plots.svg(figure))
    assert plots.png(figure).startswith(b"\x89PNG")
    assert "80 % sparse, 2.00x at 1 x 16 tokens and 2.00x at 32 x 128 tokens" in text
    assert "layer.0.&lt;x&gt;" in text
    assert "<x>" not in text
    assert text.count("<tr class=named>") == 1
    assert text.count("<details") == 4
    assert text.count("<details open>") == 1
    links = re.findall(
        r"(?:src|href)=[\"']?(?!#)[^\"'> ]+", re.sub(r"<svg.*</svg>", "", text, flags=re.S)
    )
    assert links == []
    assert ElementTree.fromstring(plots.svg(figure)).tag.endswith("svg")


def test_results_become_json(results: Results) -> None:
    found = json.loads(json.dumps(results.to_dict()))
    assert found["points"][3]["recall"]["at_1"] == 0.385
    assert found["points"][3]["timings"][LARGE]["median"] == 0.3
