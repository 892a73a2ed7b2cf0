# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: one safetensors file that holds the packed layers and everything else of a model.

The file's metadata carry, under ``sparsekern``, a JSON text: the version of this layout; for each
packed layer its kind, shape, pattern, block rows, dtype, activation and whether that was fused,
bias, stride and whether x is rounded to int8; the dense layers that compute in a dtype of their
own; the names that are ties of other names (stored once); and a CRC-32 of every tensor's name,
dtype, shape and bytes. Under ``sparsekern.crc32`` is the CRC-32 of that text. What is read is
untrusted: all is checked before a model changes, and a flipped bit is found.

Three ways in: `load_file` into a model, `load_tensors` without one, and, as the file is ordinary
safetensors, any reader that knows ``docs/formats.md``.
"""

from __future__ import annotations

import json
import os
import secrets
import zlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from sparsekern import _core
from sparsekern._cast import CastConv2d, CastLinear
from sparsekern._checkpoint_format import (
    CRC_KEY,
    KEY,
    PARTS,
    VERSION,
    CheckpointError,
    LayerSpec,
    checksum,
    key,
)
from sparsekern._checkpoint_format import (
    read as read,  # the command line reads files too
)
from sparsekern._packed import PackedTensor
from sparsekern._restore import restore
from sparsekern.nn import PackedLayer

__all__ = ["CheckpointError", "load_file", "load_tensors", "save_file"]


def unwrapped(model: object, operator: str) -> nn.Module:
    """The model inside DistributedDataParallel, DataParallel and torch.compile's wrapper."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"{operator}: model must be an nn.Module, got {type(model).__name__}")
    while True:
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        elif "_orig_mod" in model._modules:
            model = model._modules["_orig_mod"]
        else:
            return model
        assert isinstance(model, nn.Module)


# --- save -----------------------------------------------------------------------------------------


def save_file(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write all of a model's state to one safetensors file.

    A tensor under several names is stored once. The file appears whole or not at all: it is
    written beside `path`, flushed to the disk and then renamed, so that an interrupted save
    leaves what was there. Wrappers (DistributedDataParallel, torch.compile) are looked through.

    Args:
        model: any module; its packed layers are checked before anything is written.
        path: of the file; its folder must exist.

    Raises:
        TypeError: not a module, or a state that is not all tensors.
        ValueError: a tensor on the meta device, or a packed layer that breaks its format.
        OSError: the file cannot be written.
    """
    root = unwrapped(model, "save_file")
    destination = Path(path)
    if destination.is_dir():
        raise IsADirectoryError(f"save_file: path must be a file, got the folder {destination}")
    if not destination.parent.is_dir():
        raise FileNotFoundError(f"save_file: the folder of path must exist, got {destination}")
    layers: dict[str, LayerSpec] = {}
    casts: dict[str, str] = {}
    for name, module in root.named_modules(remove_duplicate=False):
        if isinstance(module, PackedLayer):
            try:
                packed = module._TENSOR(module.values.detach(), module.structure, module.scale)
            except (TypeError, ValueError) as error:
                raise type(error)(f"save_file: layer {name!r} cannot be saved: {error}") from None
            layers[name] = LayerSpec.of(root, name, module, packed)
        elif isinstance(module, (CastLinear, CastConv2d)):
            casts[name] = str(module.weight.dtype).removeprefix("torch.")
    tensors, aliases = _unique(root.state_dict())
    text = json.dumps(
        {
            "version": VERSION,
            "library": _core.__version__,
            "layers": {name: asdict(spec) for name, spec in layers.items()},
            "casts": casts,
            "aliases": aliases,
            "crc32": {name: checksum(name, tensor) for name, tensor in tensors.items()},
        },
        sort_keys=True,
    )
    # "pt" is what other readers of safetensors files ask for.
    metadata = {"format": "pt", KEY: text, CRC_KEY: f"{zlib.crc32(text.encode()):08x}"}
    _write_whole(destination, tensors, metadata)


def _unique(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors to store, on the CPU and contiguous, and for each other name its stored one."""
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[tuple[Any, ...], str] = {}
    seen: set[tuple[torch.device, int]] = set()
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise TypeError(
                f"save_file: model.state_dict() must hold tensors only, got "
                f"{type(value).__name__} for {name!r}"
            )
        if value.device.type == "meta":
            raise ValueError(f"save_file: {name!r} must hold data, got the meta device")
        value = value.detach()
        memory = (value.device, value.untyped_storage().data_ptr())
        identity = (
            *memory,
            value.storage_offset(),
            value.shape,
            value.stride(),
            value.dtype,
        )
        if value.numel() > 0 and identity in first:
            aliases[name] = first[identity]
            continue
        first[identity] = name
        # Other views of one memory are stored as if they had their own; so a file has no views.
        shares = memory in seen or value.untyped_storage().nbytes() != value.nbytes
        seen.add(memory)
        tensors[name] = value.cpu().contiguous().clone() if shares else value.cpu().contiguous()
    return tensors, aliases


def _write_whole(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    temporary = path.with_name(f".sparsekern-{secrets.token_hex(8)}.tmp")
    try:
        safetensors.torch.save_file(tensors, temporary, metadata)
        _flush(temporary)
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, safetensors.SafetensorError):
            raise OSError(f"save_file: {path} cannot be written: {error}") from error
        raise
    if os.name == "posix":
        _flush(path.parent)  # the new name; elsewhere a folder cannot be opened


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- load -----------------------------------------------------------------------------------------


def load_file(model: nn.Module, path: str | os.PathLike[str]) -> nn.Module:
    """Load a file of `save_file` into a model, dense or already converted.

    The modules that the file holds packed are replaced by sparse layers, sparse layers that it
    holds dense by dense ones; everything else is copied into the model's tensors. Tensors on the
    meta device get the file's. Nothing of the model changes unless all of the file fits.

    Args:
        model: of the architecture that was saved.
        path: of the file.

    Returns:
        The model.

    Raises:
        CheckpointError: not a checkpoint, a newer version, a damaged file, or names, kinds and
            shapes that do not fit the model.
        MemoryError: less memory than the file needs, before it is read.
        OSError: the file cannot be read.
    """
    root = unwrapped(model, "load_file")
    restore(root, read(path, "load_file"))
    return model


def load_tensors(path: str | os.PathLike[str]) -> dict[str, Tensor | PackedTensor]:
    """Read a file of `save_file` without a model.

    Returns:
        What the dense model's state dict would hold, with ``<layer>.weight`` a `CSRTensor` or
        `NMTensor` for each packed layer: ``to_dense()`` on those gives a dense state dict
        (convolutions as [out, in]). Ties are one object.

    Raises:
        CheckpointError, MemoryError, OSError: as `load_file`.
    """
    checkpoint = read(path, "load_tensors")
    hidden = {key(layer, part) for layer in checkpoint.layers for part in PARTS}
    copies: dict[int, Tensor] = {}
    result: dict[str, Tensor | PackedTensor] = {}
    for name, tensor in checkpoint.tensors.items():
        if name not in hidden:
            result[name] = copies.setdefault(id(tensor), tensor.clone())
    for layer, packed in checkpoint.packed.items():
        result[key(layer, "weight")] = packed
    return result
