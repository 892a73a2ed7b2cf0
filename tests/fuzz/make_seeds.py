# SPDX-License-Identifier: Apache-2.0
"""Writes the fuzzers' first inputs: small valid matrices, in the layout that
``tests/fuzz/<format>_reader.cc`` reads.

Usage: python tests/fuzz/make_seeds.py FOLDER [csr|nm|gqs]
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sparsekern import _core

# Number of a dtype, its name here, and how a weight is stored.
KINDS = [(0, "float32", np.float32), (1, "bfloat16", np.uint16), (2, "float16", np.uint16),
         (3, "int8", np.int8)]  # fmt: skip
SHAPES = [(1, 1), (3, 5), (16, 16), (20, 129), (70, 12), (9, 260)]
Packed = tuple[str, NDArray, NDArray[np.uint8]]


def csr(dense: NDArray, dtype: str, rng: np.random.Generator) -> Iterator[Packed]:
    for block_rows in (1, 2, 4):
        mask = rng.random(dense.shape) < rng.choice([0.0, 0.1, 0.5, 1.0])
        yield f"r{block_rows}", *_core.csr_pack(dense, dtype, mask, block_rows)


def nm(dense: NDArray, dtype: str, rng: np.random.Generator) -> Iterator[Packed]:
    for n, m in ((1, 2), (2, 4), (3, 8), (2, 16), (31, 32)):
        columns = (np.arange(dense.shape[1]) + rng.integers(m)) % m < n  # n of any m in a row
        mask = columns & (rng.random(dense.shape) < rng.choice([0.0, 0.9, 1.0]))
        yield f"{n}of{m}", *_core.nm_pack(dense, dtype, n, m, mask)


def gqs(dense: NDArray, dtype: str, rng: np.random.Generator) -> Iterator[Packed]:
    """The dtype is that of the scales; "int8" stands for uint8."""
    rows, cols = dense.shape
    for bits, group in ((2, 16), (4, 16), (4, 64), (8, 128)):
        codes = rng.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (rows, cols)).astype(np.int8)
        mask = rng.random((rows, -(-cols // group))) < rng.choice([0.0, 0.5, 1.0])
        narrow = dtype == "int8"
        zeros = not narrow and bits == 8
        factor = np.ones(rows, np.float32) if narrow else None
        values, structure = _core.gqs_pack(codes, mask, bits, group, zeros, factor)
        halves = {"bfloat16": np.uint16(0x3F80), "float16": np.uint16(0x3C00)}
        one = np.uint8(1) if narrow else halves.get(dtype, np.float32(1))
        scale = np.full(mask.sum() * (2 if zeros else 1), one)
        rest = np.frombuffer(values.tobytes() + scale.tobytes(), np.uint8)
        yield f"w{bits}g{group}", rest, structure


FORMATS = {"csr": csr, "nm": nm, "gqs": gqs}


def main(folder: Path, name: str = "csr") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    count = 0
    for number, dtype, element in KINDS:
        for rows, cols in SHAPES:
            dense = rng.integers(1, 100, (rows, cols)).astype(element)
            for kind, values, structure in FORMATS[name](dense, dtype, rng):
                head = bytes([number]) + structure.size.to_bytes(3, "little")
                seed = head + structure.tobytes() + values.tobytes()
                (folder / f"{dtype}-{rows}x{cols}-{kind}").write_bytes(seed)
                count += 1
    print(f"{count} seeds in {folder}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
