# SPDX-License-Identifier: Apache-2.0
"""2:4 and INT4 weights of other libraries, read, and 2:4 written: ``docs/interop.md``.

All of it runs on the CPU, in torch and NumPy, and trusts nothing of what it reads.
"""

from __future__ import annotations

from sparsekern._compressed24 import dense_state_dict, from_bitmask, from_marlin24, to_bitmask
from sparsekern._compressed_int4 import from_pack_quantized
from sparsekern._cutlass24 import from_cutlass, from_torch, to_cutlass, to_torch

__all__ = [
    "dense_state_dict",
    "from_bitmask",
    "from_cutlass",
    "from_marlin24",
    "from_pack_quantized",
    "from_torch",
    "to_bitmask",
    "to_cutlass",
    "to_torch",
]
