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


def main(kernel_sets: list[str]) -> None:
    """Multiply once on each kernel set and compare with torch."""
    assert kernel_sets, "name at least one kernel set"
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(300, 200, generator=generator)
    weight *= torch.rand(300, 200, generator=generator) < 0.2
    x = torch.randn(17, 200, generator=generator)
    values, structure = _core.csr_pack(weight.numpy(), "float32", None, 1)
    for kernel_set in kernel_sets:
        _core.set_isa(ISA_OF[kernel_set])
        name = _core.csr_kernel(structure, "float32", len(x))
        assert name.endswith(f"__{kernel_set}"), name
        y = torch.ops.sparsekern.csr_linear(
            x, torch.from_numpy(values), torch.from_numpy(structure), None, None, len(weight)
        )
        np.testing.assert_allclose(y.numpy(), (x @ weight.T).numpy(), atol=1e-4)
        print(f"sparsekern {sparsekern.__version__}, torch {torch.__version__}: {name} is right")


if __name__ == "__main__":
    main(sys.argv[1:])
