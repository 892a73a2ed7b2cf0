# SPDX-License-Identifier: Apache-2.0
"""The installed wheel, outside the source tree: imports, and multiplies right on each kernel set.

Usage: python smoke.py KERNEL_SET...   (the sets that this processor has, as in kernels.inc)
"""

from __future__ import annotations

import sys

import numpy as np
import sparsekern
import torch
from sparsekern import _core

ISA_OF = {"scalar": "scalar", "x86_avx2": "avx2", "x86_avx512": "avx512", "arm_neon": "neon"}
BITMAP_ISA_OF = {"x86_avx512vbmi2": "avx512vbmi2"}
INT8_ISA_OF = {"x86_avx512vnni": "avx512vnni", "arm_neon_dotprod": "neondotprod"}


def check_bitmap(kernel_set: str, weight: torch.Tensor, x: torch.Tensor) -> None:
    """Multiply by a bitmap matrix and compare with torch."""
    _core.set_isa(BITMAP_ISA_OF[kernel_set])
    w = sparsekern.BitmapTensor.from_dense(weight, dtype=torch.bfloat16)
    name = _core.bitmap_kernel(w.structure.numpy(), "bfloat16", 1)
    assert name.endswith(f"__{kernel_set}"), name
    y = sparsekern.ops.bitmap_linear(x[:1], w)
    np.testing.assert_allclose(y.numpy(), (x[:1] @ w.to_dense().float().T).numpy(), atol=1e-3)
    print(f"sparsekern {sparsekern.__version__}, torch {torch.__version__}: {name} is right")


def main(kernel_sets: list[str]) -> None:
    """Multiply once on each kernel set and compare with torch."""
    assert kernel_sets, "name at least one kernel set"
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(300, 200, generator=generator)
    weight *= torch.rand(300, 200, generator=generator) < 0.2
    x = torch.randn(17, 200, generator=generator)
    for kernel_set in kernel_sets:
        if kernel_set in BITMAP_ISA_OF:  # sets that bitmap products alone make use of
            check_bitmap(kernel_set, weight, x)
            continue
        int8 = kernel_set in INT8_ISA_OF  # sets that int8 products alone make use of
        _core.set_isa((ISA_OF | INT8_ISA_OF)[kernel_set])
        w = sparsekern.CSRTensor.from_dense(weight, dtype=torch.int8 if int8 else torch.float32)
        dtype = "int8" if int8 else "float32"
        name = _core.csr_kernel(w.structure.numpy(), dtype, len(x), int8_activations=int8)
        assert name.endswith(f"__{kernel_set}"), name
        y = sparsekern.ops.csr_linear(x, w, int8_activations=int8)
        expected = (x @ w.to_dense().T).numpy()
        np.testing.assert_allclose(y.numpy(), expected, atol=0.3 if int8 else 1e-4)
        print(f"sparsekern {sparsekern.__version__}, torch {torch.__version__}: {name} is right")


if __name__ == "__main__":
    main(sys.argv[1:])
