# SPDX-License-Identifier: Apache-2.0
"""Calibration for group-quantized sparse weights: prune groups, quantize the rest, tune.

`quantize_` does a whole model; its pieces (saliency, rounding, GPTQ, tuning) work on matrices.
Calls torch alone; the weights it makes are plain tensors, `GroupQuantized`, which
`pack_` puts into `sparsekern.nn.GQSLinear` layers.
"""

from __future__ import annotations

from .gptq import Rounding, gptq, round_to_nearest
from .groups import group_saliency, keep_groups
from .pack import pack_, packed
from .quantize import QuantizeResult, quantize_
from .tune import Rates, tune_block, tune_scales_
from .weight import GroupQuantized

__all__ = [
    "GroupQuantized",
    "QuantizeResult",
    "Rates",
    "Rounding",
    "gptq",
    "group_saliency",
    "keep_groups",
    "pack_",
    "packed",
    "quantize_",
    "round_to_nearest",
    "tune_block",
    "tune_scales_",
]
