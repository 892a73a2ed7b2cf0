# SPDX-License-Identifier: Apache-2.0
"""The recipes of nm_recipes.py: what one cell trains, prunes and measures."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from recipe_tasks import Task, classification_loss, load
from sparsekern import training as tr
from sparsekern.patterns import NM
from sparsekern.prune import prune_
from torch import Tensor, nn

FADE = 8.0  # rate of decaying masks times steps: exp(-4) remains where the hard mask begins
Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Cell:
    """One number: a recipe at a pattern with a seed.

    Attributes:
        steps: of training; for a method that starts from a trained model, those of that model.
        more: steps of training on, for such a method; else 0.
    """

    task: str
    recipe: str
    pattern: str
    seed: int
    steps: int
    more: int = 0


def _scratch(target: NM, steps: int) -> dict[str, Callable[[], tr.Recipe]]:
    """Recipes that train from the first step on; made late, as some have no such pattern."""
    half, rate = steps // 2, FADE / steps
    frames = 4
    while frames > 1 and target.m << (frames - 1) > 32:
        frames -= 1
    never: dict[str, Any] = {"kernel": "never"}
    return {
        "ASP": lambda: tr.Recipe(
            gradient=tr.Masked(),
            frames=tr.Frames(((0, None), (half, target))),
            fixed_after=0,
            **never,
        ),
        "STE": lambda: tr.Recipe(**never),
        "SR-STE 2e-4": lambda: tr.Recipe(gradient=tr.SRSTE(2e-4), **never),
        "SR-STE 2e-3": lambda: tr.Recipe(gradient=tr.SRSTE(2e-3), **never),
        "S-STE": lambda: tr.Recipe(forward=tr.SoftThreshold(), **never),
        "MdGf chain": lambda: tr.Recipe(
            forward=tr.Decaying(rate, end=half), gradient=tr.ChainRule(), **never
        ),
        "MdGf STE": lambda: tr.Recipe(forward=tr.Decaying(rate, end=half), **never),
        "MdGf linear chain": lambda: tr.Recipe(
            forward=tr.Decaying(1 / half, end=half, kind="linear"),
            gradient=tr.ChainRule(),
            **never,
        ),
        "SdGf geometric": lambda: tr.Recipe(
            frames=tr.geometric_frames(target, 0, half, frames), **never
        ),
        "SdGf stepwise": lambda: tr.Recipe(frames=tr.stepwise_frames(target, 0, half), **never),
        "STEP": lambda: tr.Recipe(  # with an optimizer of its own: _step_adam
            gradient=tr.SRSTE(2e-4),
            frames=tr.Frames(((0, None), (max(1, steps // 4), target))),
            **never,
        ),
        "BDWP": lambda: tr.Recipe(gradient=tr.SRSTE(2e-4), input_gradient="own", **never),
        "transposable": lambda: tr.Recipe(
            gradient=tr.SRSTE(2e-4), input_gradient="transposable", refresh=40, **never
        ),
    }


SCRATCH = tuple(_scratch(NM(2, 4), 100))
ONE_SHOT = {
    "one-shot magnitude": {"score": "magnitude"},
    "one-shot Wanda": {"score": "wanda"},
    "one-shot RIA": {"score": "ria"},
    "one-shot DSnoT": {"score": "wanda", "refine": "dsnot"},
    "one-shot SparseGPT": {"score": "sparsegpt"},
    "one-shot ALPS": {"score": "alps"},
}
CAST_DECAYS = (1e-3, 1e-2, 1e-1)
CAST = tuple(f"CAST {decay:g}" for decay in CAST_DECAYS)
RETRAIN = (
    "retrain ASP",
    "retrain ASP, distilled",
    "retrain SR-STE 2e-4",
    "retrain SR-STE 2e-3",
    "retrain SR-STE 2e-4, distilled",
    "retrain SR-STE 2e-3, distilled",
    *CAST,
    *(f"{name}, distilled" for name in CAST),
)
RECIPES = ("dense", "prune at end", *SCRATCH, *RETRAIN, *ONE_SHOT)
FROM_DENSE = ("prune at end", *RETRAIN, *ONE_SHOT)


def possible(cell: Cell) -> bool:
    """Whether the recipe exists for the task and the pattern."""
    if (cell.recipe == "dense") != (cell.pattern == "dense"):
        return False
    if cell.recipe == "dense":
        return True
    target = _pattern(cell.pattern)
    if cell.recipe == "SdGf geometric":
        return 2 * target.m <= 32
    # prune_ groups a convolution's patches, training its channels: not one pattern.
    return not (cell.task == "digits" and cell.recipe in (*ONE_SHOT, "transposable"))


def _pattern(text: str) -> NM:
    n, m = map(int, text.split(":"))
    return NM(n, m)


def _patterns(task: Task, target: NM) -> dict[str, NM | None]:
    return dict.fromkeys(task.dense) | dict.fromkeys(task.sparse, target)


def _train(
    model: nn.Module,
    task: Task,
    optimizer: torch.optim.Optimizer,
    steps: int,
    seed: int,
    loss_of: Loss,
) -> None:
    """Rates rise over a twentieth of the steps, then fall along a half cosine."""
    warmup = max(1, steps // 20)

    def share(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
    for x, y in task.batches(seed, steps):
        optimizer.zero_grad(set_to_none=True)
        loss_of(model, x, y).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def _plain_loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return classification_loss(model(x), y)


def _distilled(teacher: nn.Module) -> Loss:
    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            expected = teacher(x)
        return tr.distillation_loss(model(x), expected, y)

    return loss


def _dense(task: Task, seed: int, steps: int, cache: Path) -> nn.Module:
    """The trained dense model, kept in `cache`: many cells start from it."""
    model = task.model(seed)
    path = cache / f"{task.name}-{seed}-{steps}.pt"
    if path.is_file():
        model.load_state_dict(torch.load(path))
        return model
    optimizer = torch.optim.Adam(model.parameters(), lr=task.rate, fused=True)
    _train(model, task, optimizer, steps, seed, _plain_loss)
    cache.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{time.time_ns()}.tmp")
    torch.save(model.state_dict(), partial)
    partial.replace(path)
    return model


def _step_adam(model: nn.Module, rate: float, steps: int) -> torch.optim.Optimizer:
    """That of STEP, which freezes the weights of products; an embedding may lack gradients."""
    products = {id(m.weight) for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))}
    frozen = [p for p in model.parameters() if id(p) in products]
    others = [p for p in model.parameters() if id(p) not in products]
    groups = [{"params": frozen}, {"params": others, "freeze": False}]
    return tr.StepAdam(groups, lr=rate, freeze_at=max(1, steps // 4))


def _masked(
    model: nn.Module, task: Task, target: NM, recipe: tr.Recipe, step: bool = False, **how: Any
) -> None:
    """Train under a recipe and make the masks permanent."""
    rate = how.pop("rate")
    optimizer: torch.optim.Optimizer
    if step:
        optimizer = _step_adam(model, rate, how["steps"])
    else:
        optimizer = torch.optim.Adam(model.parameters(), lr=rate, fused=True)
    tr.prepare_(model, _patterns(task, target), recipe).attach(optimizer)
    _train(model, task, optimizer, **how)
    tr.finish_(model)


def _retrain(model: nn.Module, task: Task, target: NM, cell: Cell) -> None:
    """Train a dense model on: under a mask, or by CAST; the same steps and rates for all."""
    name, _, distilled = cell.recipe.partition(", ")
    how: dict[str, Any] = {"steps": cell.more, "seed": 100 + cell.seed}
    how["loss_of"] = _distilled(copy.deepcopy(model)) if distilled else _plain_loss
    rate = task.rate / 4
    if name.startswith("CAST"):
        decay = float(name.split()[1])
        patterns = _patterns(task, target)
        optimizer = tr.cast_(model, patterns, total_steps=cell.more, lr=rate, decay=decay)
        _train(model, task, optimizer, **how)
        tr.finish_cast_(model, optimizer)
        return
    if name == "retrain ASP":
        recipe = tr.Recipe(gradient=tr.Masked(), fixed_after=0, kernel="never")
    else:
        recipe = tr.Recipe(gradient=tr.SRSTE(float(name.split()[2])), kernel="never")
    _masked(model, task, target, recipe, rate=rate, **how)


def _check(model: nn.Module, task: Task, target: NM, whole_rows: bool) -> None:
    """Stop where a group keeps more than its n: the figure would be of another pattern."""
    for name, module in model.named_modules():
        if not isinstance(module, (nn.Linear, nn.Conv2d)) or name in task.dense:
            continue
        if task.name == "lm" and not name.startswith("blocks."):
            continue
        weight = module.weight.flatten(1) if whole_rows else module.weight.movedim(1, -1)
        kept = (weight.reshape(-1, target.m) != 0).sum(1)
        if int(kept.max()) > target.n:
            raise RuntimeError(f"{name} must be {target.label}, got {int(kept.max())} in a group")


def run(cell: Cell, cache: Path) -> dict[str, Any]:
    """Train or prune as the cell says; loss, accuracy and seconds."""
    task = load(cell.task)
    begin = time.monotonic()
    if cell.recipe == "dense":
        model = _dense(task, cell.seed, cell.steps, cache)
        return {**task.evaluate(model), "seconds": round(time.monotonic() - begin, 1)}
    target = _pattern(cell.pattern)
    if cell.recipe in FROM_DENSE:
        model = _dense(task, cell.seed, cell.steps, cache)
        begin = time.monotonic()
        if cell.recipe in ONE_SHOT:
            options = ONE_SHOT[cell.recipe]
            prune_(model, _patterns(task, target), calibration=task.calibration(), **options)
        elif cell.recipe == "prune at end":
            tr.prepare_(model, _patterns(task, target))
            tr.finish_(model)
        else:
            _retrain(model, task, target, cell)
    else:
        model = task.model(cell.seed)
        recipe = _scratch(target, cell.steps)[cell.recipe]()
        how: dict[str, Any] = {"rate": task.rate, "steps": cell.steps, "seed": cell.seed}
        step = cell.recipe == "STEP"
        _masked(model, task, target, recipe, step, loss_of=_plain_loss, **how)
    seconds = round(time.monotonic() - begin, 1)
    _check(model, task, target, cell.recipe in ONE_SHOT)
    return {**task.evaluate(model), "seconds": seconds}
