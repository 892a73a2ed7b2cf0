# SPDX-License-Identifier: Apache-2.0
"""What `import sparsekern` brings in, and the names that it gives."""

from __future__ import annotations

import subprocess
import sys

import pytest
import sparsekern as sk

PUBLIC = {
    "GQS",
    "NM",
    "BitmapKVPool",
    "Block",
    "Bitmap",
    "BitmapTensor",
    "CSRTensor",
    "CheckpointError",
    "ConvertResult",
    "GQSTensor",
    "NMTensor",
    "Unstructured",
    "__version__",
    "autograd",
    "convert_",
    "distill",
    "interop",
    "load_file",
    "load_pretrained",
    "load_tensors",
    "nn",
    "ops",
    "prune_",
    "quant",
    "report",
    "save_file",
    "training",
}
HEAVY = ("transformers", "sentence_transformers", "matplotlib", "rich", "typer", "scipy", "pandas")


def run(program: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", program], check=True, timeout=120, capture_output=True, text=True
    )
    return result.stdout.strip()


def test_public_names():
    assert set(sk.__all__) == PUBLIC
    for name in PUBLIC:
        assert getattr(sk, name) is not None
    assert "BitmapKVCache" not in sk.__all__  # needs transformers, which is optional
    with pytest.raises(AttributeError):
        _ = sk.no_such_name


def test_import_is_light():
    program = f"import sys, sparsekern; print([m for m in {HEAVY!r} if m in sys.modules])"
    assert run(program) == "[]"


@pytest.mark.parametrize(
    "first", ["sparsekern.report", "sparsekern.convert", "sparsekern.cli", "sparsekern.nn"]
)
def test_report_is_the_function_whatever_is_imported_first(first):
    program = f"import {first}, sparsekern; print(sparsekern.report.__name__)"
    assert run(program) == "report"
