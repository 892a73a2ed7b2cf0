# SPDX-License-Identifier: Apache-2.0
"""A real model pruned, converted and faster, end to end, on this machine's CPU.

    python demo/run.py [--fast] [--out DIR] [--threads N]

Writes report.html, report.png, results.json and model.safetensors into DIR (default: .demo).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import contest
import data
import model as minilm
import plots
import report
import speed
import torch
import train
from quality import Recall, recall
from results import Point, Results
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from sentence_transformers import SentenceTransformer
from sparse import Sparse, converted, machine, reload_equal, saved_bytes

PAIRS = 1024  # evaluated: a sample of the pairs found, the same for every model


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="demo/run.py", description="Prune, distill, convert, check and measure a real model."
    )
    parser.add_argument("--fast", action="store_true", help="short training: under 6 minutes")
    parser.add_argument("--out", type=Path, default=Path(".demo"), help="where to write")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: torch's)")
    parser.add_argument("--retrain", action="store_true", help="ignore what was trained before")
    return parser.parse_args(arguments)


class Demo:
    """The state of one run, step by step."""

    def __init__(self, options: argparse.Namespace, console: Console) -> None:
        self.console = console
        self.out: Path = options.out
        self.fast: bool = options.fast
        self.retrain: bool = options.retrain
        self.shapes = speed.FAST if self.fast else speed.FULL
        self.begin = time.monotonic()
        (self.out / "cache").mkdir(parents=True, exist_ok=True)

    def say(self, text: str) -> None:
        """One line with the time since the start."""
        self.console.print(f"[dim]{time.monotonic() - self.begin:5.0f} s[/]  {text}")

    def read(self) -> None:
        """The model and its text."""
        self.dense = minilm.load_dense()
        corpus = data.collect()
        pairs = data.sample(corpus.pairs, PAIRS)
        self.fingerprint = corpus.fingerprint()
        self.sequences = minilm.training_sequences(self.dense, corpus.texts)
        self.summaries = minilm.evaluation_sequences(self.dense, [p.summary for p in pairs])
        self.bodies = minilm.evaluation_sequences(self.dense, [p.body for p in pairs])
        tokens = sum(map(len, self.sequences))
        self.say(
            f"text: {len(corpus.texts):,} docstrings ({tokens:,} tokens) to calibrate and train "
            f"on; {len(pairs):,} pairs of other modules to evaluate on"
        )

    def evaluate(self, model: SentenceTransformer) -> Recall:
        """Retrieval over the held-out pairs."""
        return recall(minilm.embed(model, self.summaries), minilm.embed(model, self.bodies))

    def train(self) -> list[train.Trained]:
        """The pruned, distilled models."""
        settings = train.FAST if self.fast else train.FULL
        total = sum(stage.steps for stage in settings.stages)
        before = dict(
            zip(
                (stage.sparsity for stage in settings.stages),
                _running_sum([stage.steps for stage in settings.stages]),
                strict=True,
            )
        )
        steps = {stage.sparsity: stage.steps for stage in settings.stages}
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("left:"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
        ) as bar:
            task = bar.add_task("training", total=total)

            def update(sparsity: int, what: str, share: float) -> None:
                done = before[sparsity] + share * steps[sparsity]
                bar.update(task, completed=done, description=f"{sparsity} %: {what}")

            trainer = train.Trainer(self.dense, self.sequences, settings, update)
            return trainer.run(self.out / "cache", self.fingerprint, reuse=not self.retrain)

    def points(self) -> tuple[list[Point], dict[int, Sparse]]:
        """Each sparsity trained, converted and checked; not yet timed."""
        dense = Point(
            0,
            self.evaluate(self.dense),
            {},
            minilm.dense_file().stat().st_size,
            speed.bytes_in_memory(self.dense),
        )
        self.say(f"dense: recall@1 {_percent(dense.recall.at_1)}, "
                 f"recall@10 {_percent(dense.recall.at_10)}")  # fmt: skip
        points, models = [dense], {}
        examples = [speed.workload(self.sequences, shape) for shape in self.shapes.convert]
        for trained in self.train():
            pruned = train.restored(self.dense, trained.state)
            with self.console.status(f"{trained.sparsity} %: converting and checking"):
                sparse = converted(pruned, examples, self.shapes.convert[-1].seconds)
            with self.console.status(f"{trained.sparsity} %: evaluating"):
                found = self.evaluate(sparse.model)
            how = "from the cache" if trained.cached else f"{trained.seconds:.0f} s"
            self.say(
                f"{trained.sparsity} %: {trained.steps} steps ({how}), recall@1 "
                f"{_percent(found.at_1)}, recall@10 {_percent(found.at_10)}; "
                f"{sparse.converted} of {sparse.prunable} layers sparse; largest error "
                f"{sparse.largest_error:.1e}"
            )
            points.append(
                Point(
                    trained.sparsity,
                    found,
                    {},
                    saved_bytes(sparse.model, self.out / "cache"),
                    speed.bytes_in_memory(sparse.model),
                    sparse.largest_error,
                    sparse.converted,
                    sparse.prunable,
                    trained.steps,
                    trained.seconds,
                    trained.remark,
                    sparse.layers,
                )
            )
            models[trained.sparsity] = sparse
        return points, models

    def measure(self, points: list[Point], models: dict[int, Sparse]) -> Results:
        """All contestants on all shapes, interleaved."""
        shapes = self.shapes.measure
        self.say("measuring: dense, sparse and other dense baselines, interleaved")
        with self.console.status("measuring"):
            timed, contestants = contest.run(
                self.dense,
                {sparsity: sparse.model for sparsity, sparse in models.items()},
                {shape: speed.workload(self.sequences, shape) for shape in shapes},
                self.out / "cache",
            )
        return Results(
            tuple(p.with_timings(timed[p.sparsity]) for p in points),
            tuple(contestants),
            tuple(shape.label for shape in shapes),
            self.shapes.convert[-1].label,
            len(self.summaries),
            machine(),
            self.fast,
        )

    def write(self, results: Results) -> None:
        """The report's files."""
        figure = plots.figure(results)
        (self.out / "report.png").write_bytes(plots.png(figure))
        text = report.to_html(results, plots.svg(figure))
        (self.out / "report.html").write_text(text, encoding="utf-8")
        (self.out / "results.json").write_text(json.dumps(results.to_dict(), indent=1) + "\n")

    def save(self, results: Results, models: dict[int, Sparse]) -> bool:
        """The winner's checkpoint, and whether a new process computes the same with it."""
        chosen = results.winner() or results.closest()
        sparse = models[chosen.sparsity]
        path = self.out / "model.safetensors"
        batch = speed.workload(self.sequences, self.shapes.measure[-1])
        same = reload_equal(sparse.model, batch, path)
        self.console.print(
            f"\n{chosen.sparsity} % saved as {path} ({path.stat().st_size / 1e6:.1f} MB; the dense "
            f"file has {results.dense.disk_bytes / 1e6:.1f} MB) and loaded again in a new process: "
            f"{same.text}",
            highlight=False,
        )
        return same.equal

    def run(self) -> int:
        """Everything; returns the exit status."""
        self.console.rule("sparsekern: a real model pruned, converted and faster")
        facts = machine()
        self.say(f"{facts['cpu']}, {facts['threads']} threads, kernels for {facts['kernels']}")
        self.read()
        points, models = self.points()
        results = self.measure(points, models)
        self.write(results)
        self.console.print()
        report.print_results(self.console, results)
        equal = self.save(results, models)
        self.console.print(f"Report: {self.out / 'report.html'} and {self.out / 'report.png'}")
        self.console.print(f"Finished after {time.monotonic() - self.begin:.0f} s.")
        return 0 if equal else 1


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _running_sum(values: Sequence[int]) -> list[int]:
    return [sum(values[:i]) for i in range(len(values))]


def main(arguments: Sequence[str]) -> int:
    """Run the demo."""
    options = parse(arguments)
    if options.threads > 0:
        torch.set_num_threads(options.threads)
    wide = None if sys.stdout.isatty() else 150
    return Demo(options, Console(width=wide)).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
