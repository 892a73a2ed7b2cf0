# SPDX-License-Identifier: Apache-2.0
"""Packing a dense matrix, one thread: bytes of dense input per second."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from harness import (
    OURS,
    SHAPES,
    Candidate,
    Options,
    Recorder,
    measure,
    options,
    timed,
    with_threads,
)
from sparsekern import CSRTensor
from torch import Tensor
from weights import random_layer


def _packing(w: Tensor, sparsity: float, **how: Any) -> Candidate:
    def pack() -> CSRTensor:
        return CSRTensor.from_dense(w, **how)

    words = [f"{key}={str(value).removeprefix('torch.')}" for key, value in how.items()]
    largest = float(w.abs().max())
    rms = float(w.double().square().mean().sqrt())
    return Candidate(
        " ".join([f"{OURS} from_dense", *words]),
        timed(pack),
        lambda: pack().to_dense().float().numpy(),
        w.double().numpy(),
        # Packing is exact; int8 rounds to half a step of 1/127 of a row's largest weight.
        tolerance=largest / 254 / rms * 1.01 if how.get("dtype") == torch.int8 else 0.0,
        sparsity=sparsity,
        bytes=w.nbytes,
        details={"packed_bytes": pack().nbytes},
    )


def main(options: Options) -> None:
    section = SHAPES["pack"]
    with_threads(1)
    recorder = Recorder("pack", options.results)
    cases = []
    for sparsity in section["sparsities"]:
        generator = torch.Generator().manual_seed(int(sparsity * 1000))
        w = random_layer(section["rows"], section["cols"], sparsity, generator).weight
        cases += [_packing(w, sparsity), _packing(w, sparsity, dtype=torch.int8)]
    copied = np.empty_like(w.numpy())
    cases.append(
        Candidate(
            "NumPy copy of the dense matrix",
            timed(lambda: np.copyto(copied, w.numpy())),
            bytes=w.nbytes,
        )
    )
    case = f"{section['rows']}x{section['cols']}"
    recorder.add(measure(case, 1, cases, options.effort))
    recorder.save()


if __name__ == "__main__":
    main(options())
