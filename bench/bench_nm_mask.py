# SPDX-License-Identifier: Apache-2.0
"""N:M masks of a matrix that no cache holds, against torch's topk and scatter."""

from __future__ import annotations

from functools import partial

import torch
from harness import (
    OURS,
    SHAPES,
    Candidate,
    Options,
    Recorder,
    measure,
    options,
    thread_counts,
    timed,
    with_threads,
)
from limits import bandwidth
from sparsekern import _core
from sparsekern.ops import nm_mask
from torch import Tensor

# Of the matrix, for the check before the timing.
_CHECKED_ROWS = 64
_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


def _weights(rows: int, cols: int) -> Tensor:
    """Positive, and different within a row: topk answers ties as it likes."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randperm(cols, generator=generator).float()
    shifts = torch.randint(cols, (rows, 1), generator=generator)
    return first[(torch.arange(cols) + shifts) % cols]


def _topk(w: Tensor, n: int, m: int) -> Tensor:
    groups = w.reshape(-1, m)
    mask = torch.zeros_like(groups, dtype=torch.bool)
    return mask.scatter_(1, groups.topk(n, dim=1).indices, True).reshape(w.shape)


def _cases(w: Tensor, n: int, m: int) -> list[Candidate]:
    few = w[:_CHECKED_ROWS]
    expected = _topk(few.double(), n, m).double().numpy()
    ours = []
    for dtype in _NAMES:
        full = dtype == torch.float32
        scores = w.to(dtype)
        ours.append(
            Candidate(
                OURS if full else f"{OURS} {_NAMES[dtype]}",
                timed(partial(nm_mask, scores, n, m)),
                # Rounding to bfloat16 makes ties, which topk does not settle as we do.
                (lambda: nm_mask(few, n, m).double().numpy()) if full else None,
                expected if full else None,
                sparsity=1 - n / m,
                bytes=w.numel() * (dtype.itemsize + 1),  # a score read, a byte of mask written
                details={"kernel": _core.nm_mask_kernel(m, _NAMES[dtype])},
            )
        )
    theirs = Candidate(
        "torch topk and scatter",
        timed(lambda: _topk(w, n, m)),
        lambda: _topk(few, n, m).double().numpy(),
        expected,
        bytes=w.numel() * 5,
    )
    # The mask is new memory in each call; to be given it by the system costs more than to fill it.
    new = Candidate(
        "filling a new mask",
        timed(lambda: torch.empty(w.shape, dtype=torch.bool).fill_(True)),
        bytes=w.numel(),
    )
    return [*ours, theirs, new]


def main(options: Options) -> None:
    section = SHAPES["nm_mask"]
    w = _weights(section["rows"], section["cols"])
    recorder = Recorder("nm_mask", options.results)
    for threads in thread_counts():
        with_threads(threads)
        for n, m in section["patterns"]:
            case = f"{n}:{m} of {section['rows']}x{section['cols']}"
            cases = _cases(w, n, m) + bandwidth(threads)
            recorder.add(measure(case, threads, cases, options.effort))
    recorder.save()


if __name__ == "__main__":
    main(options())
