# SPDX-License-Identifier: Apache-2.0
"""Pruning: choose which weights become zero, and keep them zero in training.

Changes only masks and values, never a module's type; calls torch alone, and the compiled core
only for `NM` masks.
"""

from .gradual import GradualPruner, GradualSchedule
from .masks import MaskKeeper
from .oneshot import prune_
from .permanent import make_permanent_
from .result import LayerResult, PruneResult, from_pruned

__all__ = [
    "GradualPruner",
    "GradualSchedule",
    "LayerResult",
    "MaskKeeper",
    "PruneResult",
    "from_pruned",
    "make_permanent_",
    "prune_",
]
