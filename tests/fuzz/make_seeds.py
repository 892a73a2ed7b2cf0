# SPDX-License-Identifier: Apache-2.0
"""Writes the fuzzer's first inputs: small valid csr matrices, in the layout that
``tests/fuzz/csr_reader.cc`` reads.

Usage: python tests/fuzz/make_seeds.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from sparsekern import _core

# Number of a dtype, its name here, and how a weight is stored.
KINDS = [(0, "float32", np.float32), (1, "bfloat16", np.uint16), (2, "float16", np.uint16),
         (3, "int8", np.int8)]  # fmt: skip
SHAPES = [(1, 1), (3, 5), (16, 16), (20, 129), (70, 12), (9, 260)]


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    count = 0
    for number, dtype, element in KINDS:
        for rows, cols in SHAPES:
            for block_rows in (1, 2, 4):
                mask = rng.random((rows, cols)) < rng.choice([0.0, 0.1, 0.5, 1.0])
                dense = rng.integers(1, 100, (rows, cols)).astype(element)
                values, structure = _core.csr_pack(dense, dtype, mask, block_rows)
                head = bytes([number]) + structure.size.to_bytes(3, "little")
                seed = head + structure.tobytes() + values.tobytes()
                (folder / f"{dtype}-{rows}x{cols}-r{block_rows}").write_bytes(seed)
                count += 1
    print(f"{count} seeds in {folder}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
