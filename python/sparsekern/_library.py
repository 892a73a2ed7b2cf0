# SPDX-License-Identifier: Apache-2.0
"""Loads the operator libraries and translates their errors."""

from __future__ import annotations

from pathlib import Path

import torch

from sparsekern import _core

_PREFIXES: tuple[tuple[str, type[Exception]], ...] = (
    ("TypeError: ", TypeError),
    ("NotImplementedError: ", NotImplementedError),
)


def _shared_object(stem: str) -> Path:
    """Path of the shared object ``stem`` beside the extension module.

    In an editable installation that is not the folder of this file.
    """
    folder = Path(_core.__file__).parent
    for suffix in (".so", ".dylib"):
        path = folder / f"lib{stem}{suffix}"
        if path.exists():
            return path
    raise ImportError(f"sparsekern: lib{stem} must lie in {folder}, got nothing there")


def _register(path: Path) -> None:
    torch.ops.load_library(str(path))  # type: ignore[no-untyped-call]


def load() -> None:
    """Register ``torch.ops.sparsekern.*``; the CUDA kernels only beside a CUDA build of torch.

    Raises:
        ImportError: when a library is missing, or belongs to another version than ``_core``.
    """
    _register(_shared_object("sparsekern_torch"))
    version = torch.ops.sparsekern.version()
    if version != _core.__version__:
        raise ImportError(
            f"sparsekern: libsparsekern_torch must have version {_core.__version__}, got {version}"
        )
    if torch.version.cuda is not None:
        try:
            path = _shared_object("sparsekern_cuda")
        except ImportError:
            return  # built without nvcc; a CUDA tensor then raises NotImplementedError
        _register(path)


def translated(error: RuntimeError) -> Exception:
    """Return the exception that an operator meant by ``error``.

    libtorch's stable ABI cannot raise ``TypeError`` or ``NotImplementedError``: the operators put
    the name before the text instead (``csrc/bind/torch_errors.h``). Use it as::

        try:
            return torch.ops.sparsekern.op(x)
        except RuntimeError as error:
            raise translated(error) from None
    """
    text = str(error)
    for prefix, kind in _PREFIXES:
        if text.startswith(prefix):
            return kind(text.removeprefix(prefix))
    return error
