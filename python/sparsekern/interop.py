# SPDX-License-Identifier: Apache-2.0
"""Sparse weights of other libraries, read and written: ``docs/interop.md``.

All of it runs on the CPU, in torch and NumPy, and trusts nothing of what it reads.
"""

from __future__ import annotations

from sparsekern._compressed24 import dense_state_dict, from_bitmask, from_marlin24, to_bitmask
from sparsekern._compressed_bitmap import from_sparse_bitmask, to_sparse_bitmask
from sparsekern._compressed_int4 import from_pack_quantized, gqs_from_marlin24
from sparsekern._cutlass24 import from_cutlass, from_torch, to_cutlass, to_torch

__all__ = [
    "dense_state_dict",
    "from_bitmask",
    "from_cutlass",
    "from_marlin24",
    "from_pack_quantized",
    "from_sparse_bitmask",
    "from_torch",
    "gqs_from_marlin24",
    "to_bitmask",
    "to_cutlass",
    "to_sparse_bitmask",
    "to_torch",
]
