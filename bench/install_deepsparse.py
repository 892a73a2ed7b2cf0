# SPDX-License-Identifier: Apache-2.0
"""Installs DeepSparse 1.8 in an environment of its own, where that works."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from environment import ROOT

_VENV = ROOT / ".venv-deepsparse"
_WORKER = ROOT / "bench" / "peers" / "deepsparse_worker.py"
_PYTHONS = ("python3.11", "python3.10", "python3.9", "python3.8")  # deepsparse needs < 3.12


def _python() -> str | None:
    for name in _PYTHONS:
        path = shutil.which(name)
        # A name on the path may be a version manager's stub for a Python that is not there.
        if path and subprocess.run([path, "-c", ""], capture_output=True).returncode == 0:
            return path
    return None


def _failed(done: subprocess.CompletedProcess[str], what: str) -> str | None:
    if done.returncode == 0:
        return None
    lines = (done.stderr or done.stdout).strip().splitlines()
    errors = [line for line in lines if "error" in line.lower()] or lines
    return f"{what}: {errors[-1] if errors else f'status {done.returncode}'}"


def command() -> tuple[list[str] | None, str]:
    """The worker's command line, or None; and what is installed, or why not."""
    python = _VENV / "bin" / "python"
    if not (_VENV / ".done").exists():
        found = _python()
        if found is None:
            return None, f"not installed: it needs one of {', '.join(_PYTHONS)}"
        print("DeepSparse 1.8: installing into its own environment (some minutes, once)")
        steps: list[tuple[list[str | Path], str]] = [
            ([found, "-m", "venv", "--clear", _VENV], "venv"),
            ([python, "-m", "pip", "install", "-q", "deepsparse==1.8.0"], "pip"),
            ([python, "-c", "import deepsparse"], "import"),
        ]
        for words, what in steps:
            done = subprocess.run(words, capture_output=True, text=True)
            reason = _failed(done, what)
            if reason:
                return None, f"not installed: {reason}"
        (_VENV / ".done").touch()
    return [str(python), str(_WORKER)], "installed"
