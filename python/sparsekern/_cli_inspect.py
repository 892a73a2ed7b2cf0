# SPDX-License-Identifier: Apache-2.0
"""What `sparsekern inspect` and `sparsekern info` show."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from torch import nn

from sparsekern import _core, _table
from sparsekern._candidates import describe_dtype
from sparsekern._checkpoint_format import read
from sparsekern._compressed24 import compressed_layers
from sparsekern._hf import CHECKPOINT, ModelDirectory
from sparsekern._nm_mask import GROUP_SIZES
from sparsekern._packed import DTYPE_NAMES
from sparsekern._sites import packed_layers


@dataclass(frozen=True)
class TensorLine:
    """One tensor or packed layer of a file; `density` is the share kept, or not zero."""

    name: str
    format: str
    shape: tuple[int, ...]
    density: float | None
    nbytes: int
    dense_nbytes: int


@dataclass(frozen=True)
class FileContent:
    """A file, its metadata in words, and its lines."""

    path: str
    kind: str
    lines: tuple[TensorLine, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain types only."""
        return asdict(self)

    def __str__(self) -> str:
        rows = [("tensor", "format", "shape", "density", "bytes", "dense bytes")]
        for line in self.lines:
            rows.append(
                (
                    line.name,
                    line.format,
                    "x".join(map(str, line.shape)),
                    _table.percent(line.density),
                    _table.size(line.nbytes),
                    _table.size(line.dense_nbytes),
                )
            )
        stored = _table.size(sum(line.nbytes for line in self.lines))
        dense = _table.size(sum(line.dense_nbytes for line in self.lines))
        rows.append(("total", "", "", "", stored, dense))
        return f"{self.path}: {self.kind}\n{_table.aligned(rows, left=(0, 1, 2))}"


def files_of(path: Path) -> list[Path]:
    """The weight files of a directory, or the file itself."""
    if not path.exists():
        raise FileNotFoundError(f"{path} must exist, got nothing there")
    if path.is_file():
        return [path]
    if (path / CHECKPOINT).is_file():
        return [path / CHECKPOINT]
    if (path / "config.json").is_file() or (path / "modules.json").is_file():
        directory = ModelDirectory.open(path)
        return sorted(f for d in directory.weight_folders for f in (path / d).glob("*.safetensors"))
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{path} must hold safetensors files, got none")
    return files


def inspect_file(path: Path) -> FileContent:
    """Read and check a checkpoint of this library, or list any safetensors file."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            if "sparsekern" not in (file.metadata() or {}):
                lines = _plain_lines(file)
                return FileContent(str(path), "safetensors", tuple(lines))
    except (OSError, MemoryError, TypeError, ValueError):
        raise
    except Exception as error:
        raise ValueError(f"{path} must be a safetensors file, got: {error}") from error
    return _checkpoint(path)


def _plain_lines(file: Any) -> list[TensorLine]:
    """The tensors of an open file; those of a compressed 2:4 weight as one, where all are here."""
    names = list(file.keys())
    layers = [
        layer for layer in compressed_layers(names).values() if set(layer.names) <= set(names)
    ]
    hidden = {name for layer in layers for name in layer.names}
    lines = [_dense_line(name, file.get_tensor(name)) for name in names if name not in hidden]
    for layer in layers:
        parts = {name: file.get_tensor(name) for name in layer.names}
        line = _dense_line(layer.weight, layer.dense(parts, "inspect"))
        nbytes = sum(part.nbytes for part in parts.values())
        lines.append(replace(line, format=f"{layer.format} {line.format}", nbytes=nbytes))
    return sorted(lines, key=lambda line: line.name)


def _checkpoint(path: Path) -> FileContent:
    content = read(path, "inspect")
    lines: list[TensorLine] = []
    hidden: set[str] = set()
    for name, packed in content.packed.items():
        spec = content.layers[name]
        prefix = f"{name}." if name else ""
        hidden.update(prefix + part for part in ("values", "structure", "scale"))
        rows = f" r{spec.block_rows}" if spec.block_rows > 1 else ""
        rows += f" {spec.pattern}" if spec.pattern else ""
        int8_x = ", int8 x" if spec.int8_activations else ""
        activation = "" if spec.activation == "none" else f" + {spec.activation}"
        item = 4 if packed.dtype == torch.int8 else packed.dtype.itemsize
        lines.append(
            TensorLine(
                prefix + "weight",
                f"{spec.kind}{rows} {spec.dtype}{int8_x}{activation}",
                tuple(packed.shape),
                packed.density,
                packed.nbytes,
                packed.shape.numel() * item,
            )
        )
    lines += [_dense_line(n, t) for n, t in content.tensors.items() if n not in hidden]
    kind = f"sparsekern checkpoint, {len(content.layers)} packed layers, checksums right"
    return FileContent(str(path), kind, tuple(sorted(lines, key=lambda line: line.name)))


def _dense_line(name: str, tensor: torch.Tensor) -> TensorLine:
    kept = int(torch.count_nonzero(tensor)) / tensor.numel() if tensor.numel() else None
    shape = tuple(tensor.shape)
    return TensorLine(name, describe_dtype(tensor.dtype), shape, kept, tensor.nbytes, tensor.nbytes)


def is_converted(model: nn.Module) -> bool:
    """Whether a model has a packed layer."""
    return bool(packed_layers(model))


def facts() -> dict[str, Any]:
    """Versions, instruction sets and kernels of this installation, as plain types."""
    return {
        "sparsekern": _core.__version__,
        "compiler": _core.compiler,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "processors": os.cpu_count() or 1,
        "machine": platform.machine(),
        "isa detected": _core.detected_isa(),
        "isa active": _core.active_isa(),
        "SPARSEKERN_ISA": os.environ.get("SPARSEKERN_ISA", ""),
        "cuda": torch.version.cuda or "none",
        "kernels": _kernels(),
    }


def _kernels() -> list[str]:
    """The kernels that selection picks here, over dtypes, block and group sizes and rows of x."""
    weight = np.ones((4, 16), np.float32)
    found: dict[str, None] = {}
    for dtype in DTYPE_NAMES.values():
        kind = {"float32": np.float32, "int8": np.int8}.get(dtype, np.uint16)
        for block_rows in (1, 2, 4):
            _, structure = _core.csr_pack(weight.astype(kind), dtype, None, block_rows)
            for x_rows in (1, 16, 1024):
                for int8_x in {False, dtype == "int8"}:
                    found[_core.csr_kernel(structure, dtype, x_rows, False, int8_x)] = None
                    found[_core.csr_kernel(structure, dtype, x_rows, True, int8_x)] = None
        _, structure = _core.bitmap_pack(weight.astype(kind), dtype)
        for x_rows in (1, 1024):
            found[_core.bitmap_kernel(structure, dtype, x_rows)] = None
        for m in GROUP_SIZES:
            _, structure = _core.nm_pack(np.zeros((16, 32), kind), dtype, 1, m)
            for x_rows in (1, 1024):
                found[_core.nm_kernel(structure, dtype, x_rows)] = None
            if dtype != "int8":
                found[_core.nm_mask_kernel(m, dtype)] = None
    return sorted(found)
