# SPDX-License-Identifier: Apache-2.0
"""Layers that replace torch's and hold packed sparse weights."""

from sparsekern.nn._layer import CSRLayer, PackedLayer
from sparsekern.nn.conv2d import CSRConv2d
from sparsekern.nn.gqs import GQSLinear
from sparsekern.nn.linear import CSRLinear, NMLinear
from sparsekern.training.layers import NMTrainingConv2d, NMTrainingLinear

__all__ = [
    "CSRConv2d",
    "CSRLayer",
    "CSRLinear",
    "GQSLinear",
    "NMLinear",
    "NMTrainingConv2d",
    "NMTrainingLinear",
    "PackedLayer",
]
