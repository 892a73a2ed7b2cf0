# SPDX-License-Identifier: Apache-2.0
"""The cells of gqs_quality.py: two trained models, compressed in a number of ways, and measured."""

from __future__ import annotations

import copy
import math
import random
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from environment import ROOT
from recipe_cells import _dense
from recipe_tasks import load
from sparsekern.patterns import GQS, NM
from sparsekern.prune import prune_
from sparsekern.quant import quantize_, tune_scales_
from torch import nn

sys.path.insert(0, str(ROOT / "demo"))

DENSE, PRUNED = "dense fp16", "2:4 fp16"
ONE_SHOT = {"SparseGPT": "sparsegpt", "ALPS": "alps"}
GPTQ, BQPO, OQP = "GPTQ", "+ BQPO", "+ E2E-OQP"
STAGES = (GPTQ, BQPO, OQP)
PAIRS = 1024  # of summaries and bodies, to retrieve among
SEQUENCES, TOGETHER = 128, 4  # to calibrate the embedding model, of 64 tokens
LM_STEPS = 3000  # of training the language model


@dataclass(frozen=True)
class Cell:
    """One row: a task's model in a form, made by a method.

    Attributes:
        task: "embedding" or "lm".
        form: "dense fp16", "2:4 fp16", or such as "W4S50 G16": 4 bits, half of the groups of 16
            pruned; "W2z G64": none pruned, with zero-points.
        method: "", a one-shot method of pruning, or how far quantization went.
        seed: of the calibration text, and of the language model.
    """

    task: str
    form: str
    method: str
    seed: int


@dataclass(frozen=True)
class Subject:
    """A dense model and what it takes to compress and to judge it.

    `tuned` gives the outputs that E2E-OQP matches; `steps` are those of BQPO and of E2E-OQP.
    """

    model: nn.Module
    layers: str
    batches: list[Any]
    tuned: Callable[[nn.Module, Any], Any]
    steps: tuple[int, int]
    evaluate: Callable[[nn.Module], dict[str, float]]


def form_of(text: str) -> tuple[GQS, bool]:
    """The pattern of a form, and whether it goes without zero-points."""
    parts = re.fullmatch(r"W(\d)(z?)(?:S(\d+))? G(\d+)", text)
    if parts is None:
        raise ValueError(f"form must be such as 'W4S50 G16' or 'W2z G64', got {text!r}")
    bits, zeros, sparsity, group = parts.groups()
    return GQS(int(bits), int(group), int(sparsity or 0) / 100), not zeros


def language_model(seed: int, cache: Path) -> Subject:
    """The decoder over bytes of recipe_tasks.py, trained."""
    task = load("lm")

    def evaluate(model: nn.Module) -> dict[str, float]:
        loss = task.evaluate(model)["loss"]
        return {"loss": loss, "perplexity": round(math.exp(loss), 4)}

    dense = _dense(task, seed, LM_STEPS, cache)
    return Subject(dense, "blocks.*", task.calibration(), lambda m, x: m(x), (150, 150), evaluate)


def embedding(seed: int) -> Subject:
    """all-MiniLM-L6-v2, judged by retrieval as in the demo."""
    import data
    import model as minilm
    from batches import pad
    from quality import recall
    from sparse import features

    dense = minilm.load_dense()
    corpus = data.collect()
    pairs = data.sample(corpus.pairs, PAIRS)
    summaries = minilm.evaluation_sequences(dense, [p.summary for p in pairs])
    bodies = minilm.evaluation_sequences(dense, [p.body for p in pairs])
    sequences = minilm.training_sequences(dense, corpus.texts)
    whole = [s for s in sequences if len(s) == minilm.MAX_TOKENS]  # no padding
    chosen = random.Random(seed).sample(whole, SEQUENCES)
    batches = [features(pad(chosen[i : i + TOGETHER])) for i in range(0, SEQUENCES, TOGETHER)]

    def tuned(model: nn.Module, batch: Any) -> Any:
        found = model(dict(batch))
        return found["sentence_embedding"], found["token_embeddings"]

    def evaluate(model: nn.Module) -> dict[str, float]:
        found = recall(minilm.embed(model, summaries), minilm.embed(model, bodies))
        return {"recall_at_1": round(found.at_1, 5), "recall_at_10": round(found.at_10, 5)}

    return Subject(dense, minilm.PRUNED, batches, tuned, (40, 60), evaluate)


def subject(task: str, seed: int, cache: Path) -> Subject:
    """The dense model of a task."""
    return embedding(seed) if task == "embedding" else language_model(seed, cache)


def run(task: str, form: str, seed: int, cache: Path) -> Iterator[tuple[Cell, dict[str, Any]]]:
    """Every method's row of a form, each as soon as it is done.

    Quality is that of the dense model with the dequantized weights.
    """
    start = subject(task, seed, cache)
    begin = time.monotonic()

    def row(method: str, model: nn.Module, bits: float) -> tuple[Cell, dict[str, Any]]:
        seconds = round(time.monotonic() - begin, 1)
        found = {"bits_per_weight": round(bits, 4), **start.evaluate(model), "seconds": seconds}
        return Cell(task, form, method, seed), found

    if form == DENSE:
        yield row("", _rounded_(copy.deepcopy(start.model)), 16)
        return
    if form == PRUNED:
        for name, score in ONE_SHOT.items():
            model = copy.deepcopy(start.model)
            begin = time.monotonic()
            prune_(model, {start.layers: NM(2, 4)}, score=score, calibration=start.batches)
            # Two of four numbers of 16 bits, and the 2 bits of each one's place.
            yield row(name, _rounded_(model), (2 * 16 + 2 * 2) / 4)
        return
    pattern, symmetric = form_of(form)
    for method, steps in ((GPTQ, 0), (BQPO, start.steps[0])):
        model = copy.deepcopy(start.model)
        begin = time.monotonic()
        result = quantize_(
            model,
            {start.layers: pattern},
            calibration=start.batches,
            symmetric=symmetric,
            tune_steps=steps,
        )
        yield row(method, model, result.bits_per_weight)
    tune_scales_(
        model,
        result.values,
        start.model,
        start.batches,
        steps=start.steps[1],
        forward=start.tuned,
    )
    yield row(OQP, model, result.bits_per_weight)


def _rounded_(model: nn.Module) -> nn.Module:
    """Linear layers' weights rounded to float16, as they would be stored."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.weight.copy_(module.weight.half())
    return model
