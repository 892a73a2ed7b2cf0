# SPDX-License-Identifier: Apache-2.0
"""Every example runs, and what the documents show and point to is there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
GENERATED = {"docs/performance.md"}  # by make bench, and committed
_SKIPPED = {"build", "third_party", "node_modules"}
DOCUMENTS = sorted(
    path
    for path in ROOT.rglob("*.md")
    if not any(p.startswith(".") or p in _SKIPPED for p in path.relative_to(ROOT).parts)
)


def run(arguments: list[str], folder: Path) -> str:
    # One thread: what an example shows does not depend on it, and tests share the machine.
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning:__main__", *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(path, tmp_path):
    """It asserts its claims itself; here only that it says something and leaves nothing behind."""
    assert run([str(path)], tmp_path).strip()
    assert not list(tmp_path.iterdir())


def test_examples_are_listed():
    listed = set(re.findall(r"\]\((\w+\.py)\)", (ROOT / "examples" / "README.md").read_text()))
    assert listed == {path.name for path in EXAMPLES}


def code_blocks(language: str) -> list[str]:
    text = (ROOT / "README.md").read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def test_readme_python_runs(tmp_path):
    (block,) = code_blocks("python")
    assert "whole model" in run(["-c", block], tmp_path)  # the report's last line
    assert (tmp_path / "model.safetensors").is_file()


def test_readme_cpp_is_the_example():
    """Each statement stands in examples/cpp/multiply.cc, which .ci/run builds and runs."""
    (block,) = code_blocks("cpp")
    source = "".join((ROOT / "examples" / "cpp" / "multiply.cc").read_text().split())
    statements = [line for line in block.splitlines() if not line.lstrip().startswith("//")]
    assert len(statements) >= 6
    for statement in statements:
        assert "".join(statement.split()) in source, statement


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path):
    """Relative links name files that exist, and `#` ends of them headings."""
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if target.startswith(("http://", "https://")):
            continue
        name, _, _ = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        if str(file.relative_to(ROOT)) not in GENERATED:
            assert file.exists(), f"{path.name}: {target}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_named_files_exist(path):
    """A path in backquotes, such as `csrc/base/isa.cc`, exists from the root or from there."""
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    pattern = r"`((?:csrc|docs|tests|python|cmake|bench|demo|examples)/[\w./-]+\.\w+)`"
    for name in re.findall(pattern, text):
        if name not in GENERATED:
            assert (ROOT / name).exists(), f"{path.name}: {name}"
