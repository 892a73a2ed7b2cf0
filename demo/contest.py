# SPDX-License-Identifier: Apache-2.0
"""Who is timed against whom: dense torch, each sparsity, dense bf16, dense onnxruntime."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from batches import Batch
from quality import cosine_distance
from results import Contestant
from sentence_transformers import SentenceTransformer
from sparsekern.measure import Timing, compare
from speed import Shape, export_onnx, onnxruntime_call, torch_call

BF16, ORT = "torch bfloat16", "onnxruntime float32"
WORST_COSINE_DISTANCE = 1e-2  # of a baseline's embeddings: beyond it, its time means nothing


def run(
    dense: SentenceTransformer,
    sparse: Mapping[int, SentenceTransformer],
    batches: Mapping[Shape, Batch],
    scratch: Path,
) -> tuple[dict[int, dict[str, Timing]], list[Contestant]]:
    """Time everyone on every shape.

    Args:
        dense: the float32 baseline, and what bf16 and onnxruntime are made from.
        sparse: converted models by sparsity.
        batches: the input of each shape.
        scratch: an existing folder for a temporary file.

    Returns:
        sparsity (0: dense) -> shape's label -> timing, and the other dense baselines.
    """
    half = copy.deepcopy(dense).bfloat16()
    timings: dict[int, dict[str, Timing]] = {s: {} for s in (0, *sparse)}
    others: dict[str, dict[str, Timing]] = {BF16: {}, ORT: {}}
    remarks: dict[str, str] = {BF16: "", ORT: ""}
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        file = Path(folder) / "dense.onnx"
        remarks[ORT] = _exported(dense, file)
        for shape, batch in batches.items():
            calls: dict[str, Callable[[], Any]] = {"0": torch_call(dense, batch)}
            calls |= {str(s): torch_call(model, batch) for s, model in sparse.items()}
            calls[BF16] = torch_call(half, batch)
            if not remarks[ORT]:
                calls[ORT] = onnxruntime_call(file, batch)
            _check(calls)
            for name, timing in compare(calls, seconds=shape.seconds, rounds=3).items():
                place = others[name] if name in others else timings[int(name)]
                place[shape.label] = timing
    return timings, [Contestant(name, others[name], remarks[name]) for name in (BF16, ORT)]


def _check(calls: Mapping[str, Callable[[], Any]]) -> None:
    """A baseline that computes something else is not timed."""
    expected = calls["0"]()
    for name in (BF16, ORT):
        if name in calls:
            distance = cosine_distance(torch.as_tensor(calls[name]()).float(), expected)
            if not distance < WORST_COSINE_DISTANCE:
                raise RuntimeError(
                    f"{name} must compute the dense model's embeddings, got cosine distance "
                    f"{distance:.3g}"
                )


def _exported(dense: SentenceTransformer, file: Path) -> str:
    """Write the ONNX file; returns why there is none, or an empty text."""
    try:
        import onnx  # noqa: F401  # the exporter's need
        import onnxruntime  # noqa: F401
    except ImportError as error:
        return f"not measured: {error.name} is not installed (pip install onnx onnxruntime)"
    export_onnx(dense, file)
    return ""
