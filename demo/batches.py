# SPDX-License-Identifier: Apache-2.0
"""Token ids as batches of similar length, so that little is spent on padding."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Tokens = Sequence[int]


@dataclass(frozen=True)
class Batch:
    """Token ids, [texts, tokens] int64, and the mask of real ones, 1 or 0, of the same shape."""

    ids: Tensor
    mask: Tensor

    @property
    def tokens(self) -> int:
        """Real tokens."""
        return int(self.mask.sum())


def windows(ids: Tokens, length: int) -> Iterator[Tokens]:
    """Consecutive pieces of at most `length`; a last piece under 4 tokens is dropped."""
    for begin in range(0, len(ids), length):
        piece = ids[begin : begin + length]
        if begin == 0 or len(piece) >= 4:
            yield piece


def plan(
    sequences: Sequence[Tokens], tokens: int, shuffle: random.Random | None = None
) -> list[list[int]]:
    """Indices into batches of at most `tokens` (padding counted): similar lengths go together.

    With `shuffle`, texts of one length are mixed and the batches come in random order.
    """
    noise = [shuffle.random() if shuffle else 0.0 for _ in sequences]
    order = sorted(range(len(sequences)), key=lambda i: (len(sequences[i]), noise[i]))
    batches: list[list[int]] = [[]]
    for i in order:
        if batches[-1] and (len(batches[-1]) + 1) * len(sequences[i]) > tokens:
            batches.append([])
        batches[-1].append(i)
    if shuffle:
        shuffle.shuffle(batches)
    return [batch for batch in batches if batch]


def pad(sequences: Sequence[Tokens]) -> Batch:
    """Sequences of unequal length as one batch; padding has id 0."""
    width = max(map(len, sequences))
    ids = torch.zeros(len(sequences), width, dtype=torch.int64)
    mask = torch.zeros(len(sequences), width, dtype=torch.int64)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.tensor(sequence)
        mask[row, : len(sequence)] = 1
    return Batch(ids, mask)
