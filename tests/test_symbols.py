# SPDX-License-Identifier: Apache-2.0
"""The objects of the core: what each defines, and that one ISA's code cannot leak into another's.

A function with weak linkage (an inline function or template, a member function defined in its
class) is merged by the linker. Compiled with -mavx512f in one file and without in another, the
AVX-512 copy can become the one that the scalar path calls, and an older processor stops at an
illegal instruction.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ISA_FILE = re.compile(r"^(scalar|x86_\w+?|arm_\w+?|wasm_\w+?)(__\w+)?\.cc\.o(bj)?$")


@dataclass(frozen=True)
class Symbol:
    name: str
    kind: str  # nm's letter
    section: str


def build_folder() -> Path:
    """The folder of the installed build; SPARSEKERN_BUILD_DIR names another (a cross build)."""
    if "SPARSEKERN_BUILD_DIR" in os.environ:
        return Path(os.environ["SPARSEKERN_BUILD_DIR"])
    python = sysconfig.get_config_var("py_version_nodot")
    folders = sorted((ROOT / "build").glob(f"cp{python}-*"))
    assert folders, f"no build of this Python under {ROOT / 'build'}: run make build"
    return folders[-1]


def core_objects() -> list[Path]:
    folder = build_folder() / "csrc" / "CMakeFiles" / "sparsekern.dir"
    objects = [path for suffix in ("*.o", "*.obj") for path in folder.rglob(suffix)]
    # What CMake left behind from sources that are gone does not count.
    sources = {path: (ROOT / "csrc" / path.relative_to(folder)).with_suffix("") for path in objects}
    return sorted(path for path, source in sources.items() if source.exists())


def isa_objects() -> list[Path]:
    return [path for path in core_objects() if ISA_FILE.match(path.name)]


def defined_symbols(path: Path) -> list[Symbol]:
    nm = shutil.which("nm")
    assert nm is not None, "nm (binutils) must be on PATH"
    run = subprocess.run([nm, "-f", "sysv", str(path)], capture_output=True, text=True, check=True)
    return parse(run.stdout)


def parse(table: str) -> list[Symbol]:
    symbols = []
    for line in table.splitlines():
        fields = [field.strip() for field in line.split("|")]
        if len(fields) == 7 and len(fields[2]) == 1 and fields[2] not in "Uwv":
            symbols.append(Symbol(fields[0], fields[2], fields[6]))
    return symbols


def weak(symbols: list[Symbol]) -> list[str]:
    return [s.name for s in symbols if s.kind in "WVuC"]


def writable(symbols: list[Symbol]) -> list[str]:
    return [
        s.name
        for s in symbols
        if s.section.startswith((".data", ".bss", ".tdata", ".tbss", "*COM*"))
        and not s.section.startswith(".data.rel.ro")
        # The compiler's pointer to its exception handler, and variables of namespace std.
        and not re.match(r"DW\.ref\.|_ZG?V?Z*NSt", s.name)
    ]


def stem_of(path: Path) -> str:
    match = ISA_FILE.match(path.name)
    assert match is not None
    return match[1]


def test_the_build_holds_kernels_of_each_file() -> None:
    found = {stem_of(path) for path in isa_objects()}
    assert "scalar" in found
    assert len(found) >= 2, f"only {found}: which folder was searched?"


def test_isa_objects_define_no_weak_symbol() -> None:
    leaks = {path.name: weak(defined_symbols(path)) for path in isa_objects()}
    assert {name: symbols for name, symbols in leaks.items() if symbols} == {}


def test_isa_objects_export_only_what_carries_their_name() -> None:
    for path in isa_objects():
        stem = stem_of(path)
        exported = [s.name for s in defined_symbols(path) if s.kind in "TDRB"]
        assert exported, path
        assert [name for name in exported if stem not in name] == [], path


def test_the_isa_mask_is_the_only_global() -> None:
    found = {path.name: writable(defined_symbols(path)) for path in core_objects()}
    mask = found.pop("isa.cc.o")
    assert any("g_override" in name for name in mask), "the search finds globals at all"
    # Beside it only what caches the detected and the environment's mask, with the locks of both.
    rest = [n for n in mask if not re.search(r"g_override|detected|environment", n)]
    assert rest == []
    assert {name: symbols for name, symbols in found.items() if symbols} == {}


CONTROL = """
template <typename T> T Shared(T x) { return x * x + T(1); }
struct Held { int Member(int x) { return x + 1; } };
int counter;
static int hidden_counter;
extern "C" int Entry(int x) { hidden_counter += x; counter += Held().Member(x); return Shared(x); }
extern "C" int* Address() { return &hidden_counter; }
"""


def test_the_check_itself_finds_leaks(tmp_path: Path) -> None:
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    compiler = compiler or shutil.which("clang++")
    assert compiler is not None, "a C++ compiler must be on PATH"
    source = tmp_path / "control.cc"
    source.write_text(CONTROL)
    target = tmp_path / "control.cc.o"
    subprocess.run([compiler, "-O0", "-c", str(source), "-o", str(target)], check=True)
    symbols = defined_symbols(target)
    assert any("Shared" in name for name in weak(symbols))
    assert any("Member" in name for name in weak(symbols))
    assert {"counter", "_ZL14hidden_counter"} <= set(writable(symbols))
    assert "Entry" not in weak(symbols)


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("scalar.cc.o", "scalar"),
        ("x86_avx512.cc.o", "x86_avx512"),
        ("x86_avx512__decode.cc.o", "x86_avx512"),
        ("arm_neon.cc.obj", "arm_neon"),
        ("select.cc.o", None),
    ],
)
def test_isa_file_names(name: str, stem: str | None) -> None:
    match = ISA_FILE.match(name)
    assert (match[1] if match else None) == stem
