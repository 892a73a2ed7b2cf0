# SPDX-License-Identifier: Apache-2.0
"""The pruned models of the demo: one path from dense to 90 %, with a stop at each sparsity.

Each stage prunes further with SparseGPT (calibrated on the training text) and then distills from
the dense model. What a stage made is kept in the cache folder under a name that changes with the
settings, the text and the code, so a second run trains nothing.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import sparsekern as sk
import torch
from batches import Batch, pad, plan
from model import PRUNED, embed, hidden_states, run
from safetensors import safe_open
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer
from sparsekern.distill import (
    DistillResult,
    Step,
    distill_,
    neighbour_divergence,
    normalized_error,
)
from torch import Tensor

REPOSITORY = Path(__file__).resolve().parent.parent
CODE = ("demo/train.py", "demo/batches.py", "demo/model.py", "python/sparsekern/distill.py",
        "python/sparsekern/patterns.py", "python/sparsekern/prune/*.py")  # fmt: skip


@dataclass(frozen=True)
class Stage:
    """Prune to `sparsity` (in percent), then distill `steps` steps, for at most `seconds`.

    The less is pruned, the smaller the learning rate that does not undo more than it repairs.
    """

    sparsity: int
    steps: int
    seconds: float
    learning_rate: float


@dataclass(frozen=True)
class Settings:
    """One training path.

    `tokens` are those of a batch: 512 keep two cores busy. `calibration` and `bank` are counted in
    sequences. The weights are those of the errors: the embedding's squared error, its divergence
    from the teacher's neighbours, the layers' mean.
    """

    stages: tuple[Stage, ...]
    tokens: int = 512
    calibration: int = 700
    bank: int = 2000
    embedding_weight: float = 2.5
    neighbour_weight: float = 0.25
    hidden_weight: float = 1.0
    seed: int = 0


FULL = Settings(
    (
        Stage(50, 60, 28.0, 2e-4),
        Stage(70, 450, 155.0, 6e-4),
        Stage(80, 800, 265.0, 1e-3),
        Stage(90, 300, 105.0, 1e-3),
    )
)
FAST = Settings(
    (
        Stage(50, 0, 0.0, 2e-4),
        Stage(70, 25, 9.0, 4e-4),
        Stage(80, 50, 18.0, 8e-4),
        Stage(90, 30, 12.0, 1e-3),
    ),
    calibration=200,
    bank=300,
)


@dataclass(frozen=True)
class Trained:
    """A pruned model's trained tensors and how they came about."""

    sparsity: int
    state: dict[str, Tensor]
    steps: int
    seconds: float
    cached: bool
    stopped_by: str

    @property
    def remark(self) -> str:
        """What a reader of the report should know of it."""
        parts = ["stopped by the time limit"] if self.stopped_by == "time_limit" else []
        return ", ".join([*parts, "from the cache"] if self.cached else parts)


def cache_key(settings: Settings, stages: Sequence[Stage], corpus: str) -> str:
    """Changes with anything a stage's result depends on, but for the machine."""
    digest = hashlib.sha256()
    chosen = dataclasses.replace(settings, stages=tuple(stages))
    digest.update(json.dumps(dataclasses.asdict(chosen), sort_keys=True).encode())
    digest.update(corpus.encode())
    for pattern in CODE:
        for path in sorted(REPOSITORY.glob(pattern)):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def select_parameters_(model: SentenceTransformer) -> None:
    """Train the encoder's layers; the word vectors and the unused pooler stay as they are."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("encoder.layer." in name)


def trained_state(model: SentenceTransformer) -> dict[str, Tensor]:
    """Copies of what `select_parameters_` left trainable."""
    return {
        name: parameter.detach().clone().contiguous()
        for name, parameter in model.named_parameters()
        if "encoder.layer." in name
    }


def restored(dense: SentenceTransformer, state: dict[str, Tensor]) -> SentenceTransformer:
    """A copy of the dense model with trained tensors in place."""
    model = copy.deepcopy(dense)
    result = model.load_state_dict(state, strict=False)
    if result.unexpected_keys:
        raise ValueError(f"restored: state must fit the model, got {result.unexpected_keys[:3]}")
    return model.eval()


def batches_for(
    sequences: Sequence[Sequence[int]], steps: int, tokens: int, rng: random.Random
) -> list[Batch]:
    """`steps` batches over the shuffled text, epoch after epoch."""
    out: list[Batch] = []
    while len(out) < steps:
        for rows in plan(sequences, tokens, rng):
            out.append(pad([sequences[i] for i in rows]))
            if len(out) == steps:
                break
    return out


def calibration_batches(
    sequences: Sequence[Sequence[int]], count: int, rng: random.Random
) -> list[Batch]:
    """A sample of the training text; equal lengths together, so there is little padding."""
    sample = rng.sample(list(sequences), min(count, len(sequences)))
    return [pad([sample[i] for i in rows]) for rows in plan(sample, 2048)]


class Trainer:
    """Runs a path; what does not change from stage to stage is kept here.

    Args:
        dense: the teacher; not changed.
        sequences: framed token ids to calibrate and train on.
        settings: the path.
        report: called with (sparsity, what is being done, share of the stage in [0, 1]).
    """

    def __init__(
        self,
        dense: SentenceTransformer,
        sequences: Sequence[Sequence[int]],
        settings: Settings,
        report: Callable[[int, str, float], None],
    ) -> None:
        self.dense = dense
        self.sequences = sequences
        self.settings = settings
        self.report = report
        self._errors: list[Callable[[Tensor, Tensor], Tensor]] | None = None

    def run(self, cache: Path, corpus: str, reuse: bool = True) -> list[Trained]:
        """All stages in order, from the cache where they are there.

        Args:
            cache: folder for results.
            corpus: fingerprint of the text.
            reuse: False trains even what is in the cache.
        """
        results: list[Trained] = []
        student: SentenceTransformer | None = None
        stages = self.settings.stages
        for index, stage in enumerate(stages):
            key = cache_key(self.settings, stages[: index + 1], corpus)
            path = cache / f"minilm_{stage.sparsity}_{key}.safetensors"
            found = load_cached(path, stage) if reuse else None
            if found is None:
                if student is None:
                    student = restored(self.dense, results[-1].state if results else {})
                found = self.stage(student, index)
                store(path, found)
            else:
                student = None
            self.report(stage.sparsity, "from the cache" if found.cached else "done", 1.0)
            results.append(found)
        return results

    def stage(self, student: SentenceTransformer, index: int) -> Trained:
        """Prune `student` to the stage's sparsity and distill it, in place."""
        settings, stage = self.settings, self.settings.stages[index]
        rng = random.Random(settings.seed * 1000 + index)
        begin = time.monotonic()
        self.report(stage.sparsity, "calibrating and pruning", 0.0)
        masks = sk.prune_(
            student,
            {PRUNED: sk.Unstructured(stage.sparsity / 100)},
            score="sparsegpt",
            calibration=calibration_batches(self.sequences, settings.calibration, rng),
            forward=run,
        ).masks
        steps, stopped_by = 0, "steps"
        if stage.steps:
            result = self.distill(student, stage, masks, rng)
            steps, stopped_by = result.steps, result.stopped_by
        seconds = time.monotonic() - begin
        state = trained_state(student)
        return Trained(stage.sparsity, state, steps, seconds, False, stopped_by)

    def distill(
        self,
        student: SentenceTransformer,
        stage: Stage,
        masks: dict[str, Tensor],
        rng: random.Random,
    ) -> DistillResult:
        """The second half of a stage."""
        settings = self.settings
        errors = self.errors()
        layers = len(errors) - 2
        select_parameters_(student)

        def on_step(step: Step) -> None:
            self.report(stage.sparsity, f"distilling, error {step.errors[0]:.3f}", step.progress)

        return distill_(
            student,
            self.dense,
            batches_for(self.sequences, stage.steps, settings.tokens, rng),
            steps=stage.steps,
            masks=masks,
            forward=matched,
            errors=errors,
            weights=[
                settings.embedding_weight,
                settings.neighbour_weight,
                *[settings.hidden_weight / layers] * layers,
            ],
            learning_rate=stage.learning_rate,
            time_limit=stage.seconds,
            on_step=on_step,
        )

    def errors(self) -> list[Callable[[Tensor, Tensor], Tensor]]:
        """One per output of `matched`; the bank of neighbours is embedded at the first call."""
        if self._errors is None:
            rng = random.Random(self.settings.seed)
            count = min(self.settings.bank, len(self.sequences))
            bank = embed(self.dense, rng.sample(list(self.sequences), count))
            with torch.no_grad():
                layers = len(hidden_states(self.dense, pad([self.sequences[0]]))) - 1
            near = neighbour_divergence(bank.clone())
            self._errors = [normalized_error, near, *[normalized_error] * layers]
        return self._errors


def matched(model: SentenceTransformer, batch: Batch) -> tuple[Tensor, ...]:
    """The embedding twice, for its two errors, and the layers' outputs."""
    embedding, *states = hidden_states(model, batch)
    return (embedding, embedding, *states)


def store(path: Path, trained: Trained) -> None:
    """Write through a temporary name, so that an interrupted run leaves no half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    notes = {
        "steps": str(trained.steps),
        "seconds": f"{trained.seconds:.1f}",
        "stopped_by": trained.stopped_by,
    }
    partial = path.with_suffix(".partial")
    save_file(trained.state, str(partial), metadata=notes)
    os.replace(partial, path)


def load_cached(path: Path, stage: Stage) -> Trained | None:
    """What `store` wrote, or None."""
    if not path.is_file():
        return None
    with safe_open(str(path), framework="pt") as file:
        notes = file.metadata()
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    seconds, steps = float(notes["seconds"]), int(notes["steps"])
    return Trained(stage.sparsity, state, steps, seconds, True, notes["stopped_by"])
