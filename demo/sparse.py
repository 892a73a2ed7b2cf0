# SPDX-License-Identifier: Apache-2.0
"""From a pruned model to a converted, checked and saved one."""

from __future__ import annotations

import copy
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import sparsekern as sk
import torch
from batches import Batch
from model import PRUNED, run
from results import Layer
from sentence_transformers import SentenceTransformer
from sparsekern import _core
from sparsekern.report import LayerReport

# Rounding of float32 through 6 layers in another order of summation; seen are some 1e-7.
LARGEST_ERROR = 1e-4


@dataclass(frozen=True)
class Sparse:
    """A converted model, and how far its embeddings are from the pruned dense model's."""

    model: SentenceTransformer
    converted: int
    prunable: int
    largest_error: float
    layers: tuple[Layer, ...]


@dataclass(frozen=True)
class Reloaded:
    """Outcome of the comparison with a new process."""

    equal: bool
    text: str


def features(batch: Batch) -> dict[str, torch.Tensor]:
    """A batch as the model's one argument."""
    return {"input_ids": batch.ids, "attention_mask": batch.mask}


def converted(pruned: SentenceTransformer, examples: Sequence[Batch], seconds: float) -> Sparse:
    """Convert a copy of `pruned` with policy "fastest" and check it against `pruned`.

    Args:
        pruned: not changed.
        examples: what the model will be used on; their total time decides, and the layers are
            reported for the last of them.
        seconds: about how long to measure, twice.

    Raises:
        RuntimeError: an embedding differs by more than LARGEST_ERROR.
    """
    model = copy.deepcopy(pruned)
    inputs = [features(batch) for batch in examples]
    result = sk.convert_(model, inputs, include=PRUNED, fuse=True, seconds=seconds)
    with torch.inference_mode():
        error = max(float((run(model, b) - run(pruned, b)).abs().max()) for b in examples)
    if not error <= LARGEST_ERROR:
        raise RuntimeError(
            f"the converted model must give the pruned model's embeddings within {LARGEST_ERROR}, "
            f"got {error}"
        )
    found = sk.report(model, inputs[-1], seconds=seconds)
    layers = tuple(describe(x) for x in found.layers if fnmatchcase(x.name, PRUNED))
    return Sparse(model, len(result.packed), len(layers), error, layers)


def describe(layer: LayerReport) -> Layer:
    """A line of the report's table."""
    blocks = f" r{layer.block_rows}" if layer.block_rows > 1 else ""
    return Layer(
        layer.name,
        f"{layer.format}{blocks} {layer.dtype}",
        layer.kernel,
        layer.seconds,
        layer.dense_seconds,
        layer.share,
        layer.bound,
    )


def saved_bytes(model: SentenceTransformer, scratch: Path) -> int:
    """Size of the model's checkpoint."""
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        path = Path(folder) / "size.safetensors"
        sk.save_file(model, path)
        return path.stat().st_size


def reload_equal(model: SentenceTransformer, batch: Batch, path: Path) -> Reloaded:
    """Save to `path`, load in a new Python process, and compare the embeddings of `batch`."""
    sk.save_file(model, path)
    with torch.inference_mode():
        expected = run(model, batch)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        inputs, outputs = Path(folder) / "inputs.pt", Path(folder) / "outputs.pt"
        torch.save({"ids": batch.ids, "mask": batch.mask}, inputs)
        script = Path(__file__).with_name("reload.py")
        threads = str(torch.get_num_threads())
        subprocess.run(
            [sys.executable, script, path, inputs, outputs, threads], check=True, cwd=Path.cwd()
        )
        found: torch.Tensor = torch.load(outputs, weights_only=True)
    return compared(found, expected)


def compared(found: torch.Tensor, expected: torch.Tensor) -> Reloaded:
    """Bitwise if so, else the largest difference against LARGEST_ERROR."""
    if found.shape == expected.shape and torch.equal(found, expected):
        return Reloaded(True, f"all {found.numel():,} output values are equal, bit for bit.")
    if found.shape != expected.shape:
        text = f"outputs differ in shape: {list(found.shape)}, not {list(expected.shape)}."
        return Reloaded(False, text)
    error = float((found - expected).abs().max())
    equal = error <= LARGEST_ERROR
    verdict = "within" if equal else "NOT within"
    text = f"largest difference {error:.1e}, {verdict} the tolerance of {LARGEST_ERROR:.0e}."
    return Reloaded(equal, text)


def machine() -> dict[str, str]:
    """What the figures depend on."""
    return {
        "cpu": cpu_name(),
        "threads": str(torch.get_num_threads()),
        "kernels": " ".join(_core.active_isa()),
        "amx": "yes" if "amx_bf16" in cpu_flags() else "no",
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "sparsekern": sk.__version__,
    }


def cpu_name() -> str:
    """The processor as the system names it."""
    for line in _cpuinfo():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cpu_flags() -> set[str]:
    """Feature names of the first processor; empty where the system does not say."""
    for line in _cpuinfo():
        if line.startswith(("flags", "Features")):
            return set(line.partition(":")[2].split())
    return set()


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.is_file() else []
