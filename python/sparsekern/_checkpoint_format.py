# SPDX-License-Identifier: Apache-2.0
"""How a checkpoint's metadata are written, and the reader that trusts nothing of a file."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor, nn

from sparsekern import _activations, _core, _memory
from sparsekern._fuse import next_module
from sparsekern._packed import DTYPE_NAMES, PackedTensor
from sparsekern.csr import CSRTensor
from sparsekern.gqs import GQSTensor
from sparsekern.nm import NMTensor
from sparsekern.nn import BitmapLinear, CSRConv2d, CSRLinear, GQSLinear, NMLinear, PackedLayer

VERSION = 1
KEY, CRC_KEY = "sparsekern", "sparsekern.crc32"
PARTS = ("values", "structure", "scale")
_KINDS: dict[str, type[PackedLayer]] = {
    "csr_linear": CSRLinear,
    "csr_conv2d": CSRConv2d,
    "nm_linear": NMLinear,
    "bitmap_linear": BitmapLinear,
    "gqs_linear": GQSLinear,
}


class CheckpointError(ValueError):
    """A file that is not a checkpoint, is damaged, or does not fit the model."""


def block_rows_of(packed: PackedTensor) -> int:
    """Rows that share one pattern; 1 where the format has no blocks."""
    return packed.block_rows if isinstance(packed, CSRTensor) else 1


def pattern_of(packed: PackedTensor) -> str:
    """What a matrix keeps of each group, "2:4", or how groups are quantized, "w4g16"; or empty."""
    if isinstance(packed, GQSTensor):
        return f"w{packed.bits}g{packed.group}"
    return f"{packed.n}:{packed.m}" if isinstance(packed, NMTensor) else ""


@dataclass(frozen=True)
class LayerSpec:
    """What the metadata say of one packed layer."""

    kind: str
    shape: tuple[int, int]
    block_rows: int
    dtype: str
    activation: str
    stride: int
    bias: bool
    fused: bool  # the activation was the next module's, an nn.Identity since
    int8_activations: bool = False
    pattern: str = ""  # of nm: "2:4", of gqs: "w4g16"

    @classmethod
    def of(cls, root: nn.Module, name: str, layer: PackedLayer, packed: PackedTensor) -> LayerSpec:
        """Describe a layer of a model."""
        fused = layer.activation != "none" and bool(
            next_module(root, name, lambda child: isinstance(child, nn.Identity))
        )
        kind = next(name for name, class_ in _KINDS.items() if isinstance(layer, class_))
        rows, cols = packed.shape
        stride = layer.stride if isinstance(layer, CSRConv2d) else 1
        return cls(
            kind,
            (rows, cols),
            block_rows_of(packed),
            DTYPE_NAMES[packed.dtype],
            layer.activation,
            stride,
            layer.bias is not None,
            fused,
            layer.int8_activations,
            pattern_of(packed),
        )

    @classmethod
    def parse(cls, name: str, raw: Any) -> LayerSpec:
        """Read one from JSON; CheckpointError says which field is wrong."""
        if not isinstance(raw, dict):
            raise CheckpointError(f"checkpoint: layer {name!r} must be an object, got {raw!r}")
        choices: dict[str, tuple[Any, ...]] = {
            "kind": tuple(_KINDS),
            "block_rows": (1, 2, 4),
            "dtype": tuple(DTYPE_NAMES.values()),
            "activation": _activations.NAMES,
            "stride": (1, 2),
            "bias": (True, False),
            "fused": (True, False),
            "int8_activations": (True, False),
        }
        raw = {"int8_activations": False, "pattern": "", **raw}  # not in files of before
        for field, allowed in choices.items():
            got = raw.get(field)
            if not any(type(got) is type(value) and got == value for value in allowed):
                raise CheckpointError(
                    f"checkpoint: {field} of layer {name!r} must be one of "
                    f"{', '.join(map(str, allowed))}, got {got!r}; a newer sparsekern may read it"
                )
        if raw["int8_activations"] and (
            raw["dtype"] != "int8" or not raw["kind"].startswith(("csr_", "gqs_"))
        ):
            raise CheckpointError(
                f"checkpoint: int8_activations of layer {name!r} must come with int8 values of "
                f"csr or gqs, got {raw['dtype']} of {raw['kind']}"
            )
        shape = raw.get("shape")
        if (
            not isinstance(shape, list)
            or len(shape) != 2
            or not all(type(size) is int and size > 0 for size in shape)
        ):
            raise CheckpointError(
                f"checkpoint: shape of layer {name!r} must be [rows, cols], got {shape!r}"
            )
        pattern = raw["pattern"]
        if not isinstance(pattern, str) or bool(pattern) != (
            raw["kind"] in ("nm_linear", "gqs_linear")
        ):
            raise CheckpointError(
                f"checkpoint: pattern of layer {name!r} must be n:m for nm, w4g16 or the like "
                f"for gqs and empty for others, "
                f"got {pattern!r}"
            )
        fields = {field: raw[field] for field in choices}
        return cls(shape=(shape[0], shape[1]), pattern=pattern, **fields)


@dataclass(frozen=True)
class Checkpoint:
    """A checked file: its tensors under all their names, ties as one object, and its layers."""

    tensors: dict[str, Tensor]
    layers: dict[str, LayerSpec]
    packed: dict[str, PackedTensor]  # by layer; tied layers share one
    casts: dict[str, torch.dtype]  # dense layers that compute in this dtype, by name


def key(layer: str, part: str) -> str:
    """Name of a layer's tensor in a state dict; the layer may be the model itself, ""."""
    return f"{layer}.{part}" if layer else part


def submodule(root: nn.Module, name: str) -> nn.Module | None:
    """The module of a name that may come from a file: looked up among modules only."""
    module: nn.Module | None = root
    for part in name.split(".") if name else ():
        module = module._modules.get(part) if module is not None else None
    return module


def checksum(name: str, tensor: Tensor) -> str:
    """CRC-32 of a tensor's name, dtype, shape and bytes, in hexadecimal."""
    head = f"{name}|{tensor.dtype}|{list(tensor.shape)}|".encode()
    data = tensor.reshape(-1).view(torch.uint8).numpy().data
    return f"{zlib.crc32(data, zlib.crc32(head)):08x}"


def read(path: str | os.PathLike[str], operator: str) -> Checkpoint:
    """Read and check a file. Tensors that are not packed may still be its mapped memory."""
    source = Path(path)
    if source.is_dir():
        raise IsADirectoryError(f"{operator}: path must be a file, got the folder {source}")
    _memory.require(operator, f"loading {source}", source.stat().st_size)
    try:
        with safetensors.safe_open(source, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except OSError:
        raise
    except Exception as error:  # SafetensorError, and what torch says of sizes that lie
        raise CheckpointError(
            f"{operator}: {source} must be a whole safetensors file, got: {error}"
        ) from error
    described = _describe(source, operator, metadata)
    crcs, aliases = described["crc32"], described["aliases"]
    if set(crcs) != set(tensors):
        raise CheckpointError(f"{operator}: {source} must hold the tensors that its metadata name")
    for name, tensor in tensors.items():
        if crcs[name] != checksum(name, tensor):
            raise CheckpointError(
                f"{operator}: {source} is damaged: tensor {name!r} has not the checksum it had "
                "when it was saved"
            )
    for name, stored in aliases.items():
        if name in tensors or stored not in crcs:
            raise CheckpointError(f"{operator}: {source} has a tie {name!r} to {stored!r}, no name")
        tensors[name] = tensors[stored]
    layers = {name: LayerSpec.parse(name, raw) for name, raw in described["layers"].items()}
    packed: dict[tuple[int, ...], PackedTensor] = {}
    by_layer: dict[str, PackedTensor] = {}
    for name, spec in layers.items():
        parts = [tensors.get(key(name, part)) for part in PARTS]
        identity = tuple(id(part) for part in parts)
        if identity not in packed:
            packed[identity] = _packed(name, _KINDS[spec.kind]._TENSOR, parts)
        by_layer[name] = packed[identity]
        _check_layer(name, spec, by_layer[name], tensors.get(key(name, "bias")))
    casts = {name: _cast_dtype(name, raw) for name, raw in described["casts"].items()}
    return Checkpoint(tensors, layers, by_layer, casts)


def _describe(source: Path, operator: str, metadata: Mapping[str, str]) -> dict[str, Any]:
    """The JSON text of the metadata, with its version, checksum and types checked."""
    text = metadata.get(KEY)
    if text is None:
        raise CheckpointError(
            f"{operator}: {source} must be a checkpoint of sparsekern.save_file, got a safetensors "
            f"file without {KEY!r} in its metadata"
        )
    try:
        described = json.loads(text)
        version = described["version"]
    except (ValueError, RecursionError, TypeError, KeyError) as error:
        raise CheckpointError(f"{operator}: {source} has metadata that are damaged") from error
    if type(version) is int and version > VERSION:
        raise CheckpointError(
            f"{operator}: {source} has checkpoint version {version}, sparsekern "
            f"{_core.__version__} reads up to {VERSION}; upgrade sparsekern"
        )
    if type(version) is not int or version != VERSION:
        raise CheckpointError(f"{operator}: version of {source} must be {VERSION}, got {version!r}")
    if metadata.get(CRC_KEY) != f"{zlib.crc32(text.encode()):08x}":
        raise CheckpointError(f"{operator}: {source} has metadata that are damaged")
    for field in ("layers", "casts", "aliases", "crc32"):
        value = described.get(field)
        if not isinstance(value, dict) or not (
            field == "layers" or all(isinstance(text, str) for text in value.values())
        ):
            raise CheckpointError(f"{operator}: {source} has metadata with a bad field {field!r}")
    result: dict[str, Any] = described
    return result


def _cast_dtype(name: str, raw: str) -> torch.dtype:
    for dtype, known in DTYPE_NAMES.items():
        if known == raw and dtype.is_floating_point:
            return dtype
    raise CheckpointError(f"checkpoint: layer {name!r} must compute in a known dtype, got {raw!r}")


def _packed(name: str, kind: type[PackedTensor], parts: list[Tensor | None]) -> PackedTensor:
    values, structure, scale = parts
    if values is None or structure is None:
        raise CheckpointError(f"checkpoint: layer {name!r} must have values and structure")
    try:
        packed = kind(values, structure, scale)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"checkpoint: layer {name!r} is damaged: {error}") from error
    # Memory of its own: the file may be mapped, and may change after.
    return kind.trusted(
        packed.values.clone(),
        packed.structure.clone(),
        None if packed.scale is None else packed.scale.clone(),
    )


def _check_layer(name: str, spec: LayerSpec, packed: PackedTensor, bias: Tensor | None) -> None:
    found = (
        tuple(packed.shape),
        block_rows_of(packed),
        DTYPE_NAMES[packed.dtype],
        bias is not None,
        pattern_of(packed),
    )
    expected = (spec.shape, spec.block_rows, spec.dtype, spec.bias, spec.pattern)
    if found != expected:
        raise CheckpointError(
            f"checkpoint: layer {name!r} must have (shape, block_rows, dtype, bias, pattern) "
            f"{expected}, got {found}"
        )
    if bias is not None and (bias.shape != spec.shape[:1] or not bias.is_floating_point()):
        raise CheckpointError(
            f"checkpoint: bias of layer {name!r} must be floating-point [{spec.shape[0]}], "
            f"got {bias.dtype} {list(bias.shape)}"
        )
