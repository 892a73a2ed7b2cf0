# SPDX-License-Identifier: Apache-2.0
"""The two tasks of nm_recipes.py: a small language model on docstrings, a small net on digits."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from environment import ROOT
from torch import Tensor, nn
from torch.nn import functional

sys.path.insert(0, str(ROOT / "demo"))

WIDTH, HEADS, LAYERS = 128, 4, 3
LENGTH, BATCH = 48, 8
VOCABULARY = 128  # bytes; what is not ASCII counts as 127
WINDOWS = 512  # of LENGTH, to evaluate on
CALIBRATION = 64
DIGITS_BATCH = 32


class Block(nn.Module):
    """Attention and two layers, each behind a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        parts = self.qkv(self.norm1(x)).reshape(batch, length, 3, HEADS, WIDTH // HEADS)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, WIDTH))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class LanguageModel(nn.Module):
    """A decoder over bytes; ids [batch, length] to logits [batch, length, VOCABULARY]."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Embedding(VOCABULARY, WIDTH)
        self.position = nn.Parameter(torch.zeros(LENGTH, WIDTH))
        self.blocks = nn.Sequential(*[Block() for _ in range(LAYERS)])
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.token(ids) + self.position[: ids.shape[1]]
        return self.head(self.norm(self.blocks(x)))


def digits_net() -> nn.Sequential:
    """Images [batch, 1, 8, 8] to logits [batch, 10]."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


@dataclass(frozen=True)
class Task:
    """What is trained, and on what.

    Attributes:
        name: "lm" or "digits".
        sparse: globs over the layers that become N:M.
        dense: globs, before those, of layers that stay dense.
        rate: of Adam from scratch; a quarter of it where a trained model is trained on.
        train: (inputs, targets).
        validation: (inputs, targets).
    """

    name: str
    sparse: tuple[str, ...]
    dense: tuple[str, ...]
    rate: float
    train: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]

    def model(self, seed: int) -> nn.Module:
        """A new one; the same for the same seed."""
        torch.manual_seed(seed)
        return LanguageModel() if self.name == "lm" else digits_net()

    def batches(self, seed: int, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Random batches; the same for the same seed, whatever the recipe."""
        generator = torch.Generator().manual_seed(1000 + seed)
        for _ in range(steps):
            yield self.batch(generator)

    def batch(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        x, y = self.train
        if self.name == "digits":
            chosen = torch.randint(len(x), (DIGITS_BATCH,), generator=generator)
            return x[chosen], y[chosen]
        starts = torch.randint(len(x) - LENGTH, (BATCH, 1), generator=generator)
        places = starts + torch.arange(LENGTH)
        return x[places], y[places]

    def calibration(self) -> list[Tensor]:
        """Inputs for the one-shot methods, the same for all."""
        generator = torch.Generator().manual_seed(7)
        return [self.batch(generator)[0] for _ in range(CALIBRATION)]

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Mean validation loss, and the share of right answers."""
        model.eval()
        x, y = self.validation
        loss = right = 0.0
        for inputs, targets in zip(x.split(64), y.split(64), strict=True):
            logits = model(inputs)
            loss += float(classification_loss(logits, targets)) * len(inputs)
            right += float((logits.argmax(-1) == targets).float().mean()) * len(inputs)
        model.train()
        return {"loss": round(loss / len(x), 5), "accuracy": round(right / len(x), 5)}


def classification_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy over all but the last dimension."""
    return functional.cross_entropy(logits.flatten(0, -2), targets.flatten())


def _bytes(text: str) -> Tensor:
    return torch.tensor([min(code, 127) for code in map(ord, text)], dtype=torch.int64)


@functools.cache
def load(name: str) -> Task:
    """A task with its data."""
    if name == "lm":
        from data import collect

        corpus = collect()
        train = _bytes("\n".join(corpus.texts))
        held_out = _bytes("\n".join(f"{pair.summary}\n{pair.body}" for pair in corpus.pairs))
        starts = torch.linspace(0, len(held_out) - LENGTH - 1, WINDOWS).long()[:, None]
        places = starts + torch.arange(LENGTH)
        validation = (held_out[places], held_out[places + 1])
        return Task(name, ("blocks.*",), (), 2e-3, (train[:-1], train[1:]), validation)
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(0))
    x = torch.tensor(digits.images, dtype=torch.float32)[order, None] / 16
    y = torch.tensor(digits.target)[order]
    # The first convolution has one input channel, the last layer the ten classes.
    return Task(name, ("*",), ("0", "11"), 2e-3, (x[500:], y[500:]), (x[:500], y[:500]))
