# SPDX-License-Identifier: Apache-2.0
"""Retrieval quality: is a docstring's body found from its summary line?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Recall:
    """Share of queries, in [0, 1], whose own body ranks first, or among the first ten."""

    at_1: float
    at_10: float

    def kept_of(self, dense: Recall) -> float:
        """The smaller of the two ratios to `dense`."""
        return min(self.at_1 / dense.at_1, self.at_10 / dense.at_10)


def ranks(queries: Tensor, bodies: Tensor) -> Tensor:
    """Place of body i for query i by cosine similarity, 0 = first.

    Both are [n, width], rows of norm 1. A tie counts against the model, and so does a NaN.
    """
    if queries.shape != bodies.shape or queries.dim() != 2:
        raise ValueError(
            f"ranks: queries and bodies must both be [n, width], got {list(queries.shape)} and "
            f"{list(bodies.shape)}"
        )
    similarity = queries.double() @ bodies.double().T
    own = similarity.diagonal().unsqueeze(1)
    return (~(similarity < own)).sum(dim=1) - 1


def recall(queries: Tensor, bodies: Tensor) -> Recall:
    """recall@1 and recall@10 over n queries among n bodies."""
    place = ranks(queries, bodies)
    return Recall(*(float((place < k).double().mean()) for k in (1, 10)))


def cosine_distance(a: Tensor, b: Tensor) -> float:
    """Mean of 1 - cosine between corresponding rows."""
    return float(1.0 - torch.nn.functional.cosine_similarity(a, b, dim=1).mean())
