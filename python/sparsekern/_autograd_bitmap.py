# SPDX-License-Identifier: Apache-2.0
"""Gradients of `bitmap_linear`: of x and of the values, by way of the dense matrix.

At the sparsity that the format is for, 30 to 75 %, the dense product of a whole batch is as fast as
a sparse one, and W^T would need a bitmap of its own.
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
    return _core.bitmap_pack(dense, "float32", _core.bitmap_mask_of(structure))[0]


register(Family("bitmap", _core.bitmap_info, _core.bitmap_unpack, _repack), _library)
