# SPDX-License-Identifier: Apache-2.0
"""The layers of csrc/: base <- formats <- ops <- bind. Never upward, never sideways between ops."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parent.parent / "csrc"
BASE, FORMATS, OPS, BIND = range(4)
LAYER_OF_FOLDER = {"base": BASE, "formats": FORMATS, "ops": OPS, "bind": BIND}
SUFFIXES = {".h", ".cc", ".inc", ".cu", ".cuh"}

INCLUDE = re.compile(r'^\s*#\s*include\s*(["<])([^">]+)[">]', re.MULTILINE)
COMMENT_OR_STRING = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"', re.DOTALL)
# Only bind may include these ...
FOREIGN_INCLUDE = re.compile(
    r"^(torch/|ATen/|c10/|pybind11/|Python\.h|iostream$|cstdio$|stdio\.h$)"
)
# ... or call these.
FORBIDDEN_CALL = re.compile(
    r"\b(printf|fprintf|puts|fputs|putchar|perror|abort|exit|_exit|quick_exit|terminate|assert)\s*\("
    r"|\bstd::(cout|cerr|clog)\b|\bthrow\b|\bstd::function\b"
)


def sources() -> list[Path]:
    return sorted(p for p in CSRC.rglob("*") if p.suffix in SUFFIXES)


def op_names() -> set[str]:
    return {p.name for p in (CSRC / "ops").iterdir() if p.is_dir()}


def place(path: str) -> tuple[int, str | None]:
    """Layer of a file below csrc/, and its op where it belongs to one.

    A public header belongs to the op or the format of the same name, else to base.
    """
    parts = Path(path).parts
    if parts[0] == "include":
        parts = parts[1:]
    if parts[0] == "sparsekern":
        name = Path(parts[1]).stem
        if name in op_names():
            return OPS, name
        if (CSRC / "formats" / f"{name}.cc").exists():
            return FORMATS, None
        return BASE, None
    layer = LAYER_OF_FOLDER[parts[0]]
    return layer, parts[1] if layer == OPS else None


def breaches(path: str, text: str) -> list[str]:
    """What the file `path` (relative to csrc/) of content `text` does against the rule."""
    layer, op = place(path)
    found = []
    for quote, name in INCLUDE.findall(text):
        if quote == '"' or name.startswith("sparsekern/"):
            if name.split("/")[0] not in {*LAYER_OF_FOLDER, "sparsekern"}:
                found.append(f'includes "{name}": write the path from csrc/ or sparsekern/')
                continue
            other_layer, other_op = place(name)
            if other_layer > layer:
                found.append(f"includes {name}, which is of a higher layer")
            if op is not None and other_op is not None and op != other_op:
                found.append(f"includes {name}, which is of another op")
        elif layer < BIND and FOREIGN_INCLUDE.match(name):
            found.append(f"includes <{name}>")
    if layer < BIND:
        code = COMMENT_OR_STRING.sub('""', text)
        found += [f"uses {match[0]}" for match in FORBIDDEN_CALL.finditer(code)]
    return found


def test_every_source_obeys() -> None:
    files = sources()
    assert {place(str(p.relative_to(CSRC)))[0] for p in files} == {BASE, FORMATS, OPS, BIND}
    found = {
        str(p.relative_to(CSRC)): breaches(str(p.relative_to(CSRC)), p.read_text()) for p in files
    }
    assert {path: what for path, what in found.items() if what} == {}


def test_every_source_names_its_license() -> None:
    line = "SPDX-License-Identifier: Apache-2.0"
    missing = [str(p) for p in sources() if line not in p.read_text()[:200]]
    assert missing == []


@pytest.mark.parametrize(
    ("path", "text", "breach"),
    [
        ("base/x.cc", '#include "ops/csr_spmm/kernels.h"', "higher layer"),
        ("base/x.cc", '#include "sparsekern/csr.h"', "higher layer"),
        ("include/sparsekern/status.h", '#include "sparsekern/csr_spmm.h"', "higher layer"),
        ("formats/x.cc", '#include "bind/register.h"', "higher layer"),
        ("formats/x.cc", "#include <sparsekern/csr_spmm.h>", "higher layer"),
        ("ops/other/x.cc", '#include "ops/csr_spmm/kernels.h"', "another op"),
        ("ops/other/x.cc", '#include "sparsekern/csr_spmm.h"', "another op"),
        ("ops/csr_spmm/x.cc", '#include "generic.h"', "write the path"),
        ("ops/csr_spmm/x.cc", "#include <torch/csrc/stable/tensor.h>", "includes <torch"),
        ("formats/x.cc", "#include <pybind11/pybind11.h>", "includes <pybind11"),
        ("base/x.cc", "#include <iostream>", "includes <iostream>"),
        ("base/x.cc", 'void F() { std::printf("x"); }', "printf"),
        ("formats/x.cc", "void F() { std::abort(); }", "abort"),
        ("formats/x.cc", "void F() { throw 1; }", "throw"),
    ],
)
def test_the_check_itself_finds_breaches(path: str, text: str, breach: str) -> None:
    assert any(breach in what for what in breaches(path, text)), breaches(path, text)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("ops/csr_spmm/x.cc", '#include "ops/csr_spmm/kernels.h"\n#include "sparsekern/csr.h"'),
        ("bind/x.cc", "#include <pybind11/pybind11.h>\nvoid F() { throw 1; }"),
        ("base/x.cc", '// printf("x"), abort()\nconst char* f = "exit(1)";'),
        ("base/x.cc", "void F() { my_exit_code(1); }"),
    ],
)
def test_the_check_itself_lets_the_rest_pass(path: str, text: str) -> None:
    assert breaches(path, text) == []
