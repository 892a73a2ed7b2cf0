# SPDX-License-Identifier: Apache-2.0
"""Gradients of `nm_linear`: of x and of the values, by way of the dense matrix.

A backward pass needs W^T, whose columns are N:M and whose rows are not: no kernel here multiplies
with it (a transposable mask would make it one). So these products unpack W. Layers that train from
scratch do not come here: they keep dense weights and masks.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sparsekern import _core
from sparsekern._autograd_dense import Family, register

_library: Any = torch.library.Library("sparsekern", "FRAGMENT")  # type: ignore[no-untyped-call]


def _repack(dense: NDArray[Any], structure: NDArray[np.uint8]) -> NDArray[Any]:
    info = _core.nm_info(structure)
    values, _ = _core.nm_pack(dense, "float32", info["n"], info["m"], _core.nm_mask_of(structure))
    return values


register(Family("nm", _core.nm_info, _core.nm_unpack, _repack), _library)
