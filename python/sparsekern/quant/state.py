# SPDX-License-Identifier: Apache-2.0
"""A folder with what an interrupted run has done: a JSON file and a safetensors file per block."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .weight import GroupQuantized

_VERSION = 1
_SETTINGS = "quantize.json"


def digest(tensors: Iterable[Tensor]) -> str:
    """Changes with any bit, shape or dtype of any tensor."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(f"{tensor.dtype}{list(tensor.shape)}".encode())
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        found.update(raw.numpy().tobytes())
    return found.hexdigest()


class Form(NamedTuple):
    """What a layer looks like that a state file holds."""

    rows: int
    columns: int
    bits: int
    group: int


class StateFolder:
    """Finished blocks of a run with certain settings.

    Args:
        path: made if it is not there.
        settings: all that the result depends on, as JSON values.

    Raises:
        ValueError: the folder holds a run with other settings, or something else.
    """

    def __init__(self, path: str | os.PathLike[str], settings: Mapping[str, Any]) -> None:
        self._path = Path(path)
        self._path.mkdir(parents=True, exist_ok=True)
        # Through JSON, so that tuples compare as what is read back.
        wanted = json.loads(json.dumps({"version": _VERSION, **settings}))
        file = self._path / _SETTINGS
        if file.is_file():
            self._compare(file, wanted)
            return
        if any(self._path.iterdir()):
            raise ValueError(
                f"quantize_: state must be a new folder or one of an earlier run, got {path} with "
                "other files"
            )
        partial = file.with_suffix(".tmp")
        partial.write_text(json.dumps(wanted, indent=2) + "\n")
        partial.replace(file)

    def _compare(self, file: Path, wanted: dict[str, Any]) -> None:
        try:
            found = json.loads(file.read_text())
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise ValueError(f"quantize_: state must hold a readable {_SETTINGS}, got {file}")
        names = sorted(wanted.keys() | found.keys())
        other = [name for name in names if wanted.get(name) != found.get(name)]
        if other:
            raise ValueError(
                f"quantize_: state must be of a run with the same arguments, got {self._path} of "
                f"one with another {', '.join(other)}"
            )

    def _file(self, block: int) -> Path:
        return self._path / f"block-{block:04d}.safetensors"

    def save(
        self, block: int, values: Mapping[str, GroupQuantized], errors: tuple[float, float] | None
    ) -> None:
        """Keep a block's layers and its errors; all or nothing, also if the machine stops."""
        tensors, form = {}, {}
        for i, (name, value) in enumerate(values.items()):
            form[name] = [value.bits, value.in_features]
            for part, tensor in value.tensors().items():
                tensors[f"{i}.{part}"] = tensor.cpu().contiguous()
        partial = self._file(block).with_suffix(".tmp")
        said = {"layers": json.dumps(form), "errors": json.dumps(errors)}
        save_file(tensors, partial, metadata=said)
        partial.replace(self._file(block))

    def load(
        self, block: int, wanted: Mapping[str, Form]
    ) -> tuple[dict[str, GroupQuantized], tuple[float, float] | None] | None:
        """What `save` kept, or None.

        Args:
            block: its index.
            wanted: layer name -> what it must look like.

        Raises:
            ValueError: the file is damaged, or holds other layers.
        """
        path = self._file(block)
        if not path.is_file():
            return None
        try:
            with safe_open(path, "pt") as file:
                said = file.metadata()
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            values = {}
            for i, (name, (bits, columns)) in enumerate(json.loads(said["layers"]).items()):
                values[name] = GroupQuantized(
                    tensors[f"{i}.codes"],
                    tensors[f"{i}.scales"],
                    tensors.get(f"{i}.zeros"),
                    tensors[f"{i}.mask"],
                    bits,
                    columns,
                )
            errors = json.loads(said["errors"])
            forms = {name: Form(*v.shape, v.bits, v.group) for name, v in values.items()}
            if forms != wanted:
                raise ValueError(f"expected {dict(wanted)}, got {forms}")
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"quantize_: state must hold whole files, got a damaged {path}; remove it to do "
                f"that block again ({error})"
            ) from None
        return values, None if errors is None else (errors[0], errors[1])
