# SPDX-License-Identifier: Apache-2.0
"""The instruction-set mask as Python sees it; its rules are tested in tests/cpp/isa_test.cc."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version

import pytest
import sparsekern
import torch
from sparsekern import _core, _library


@pytest.fixture(autouse=True)
def restore_isa() -> Iterator[None]:
    yield
    _core.set_isa(None)


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_version_is_the_packages() -> None:
    assert sparsekern.__version__ == version("sparsekern") == torch.ops.sparsekern.version()


def test_set_isa_reaches_the_operators() -> None:
    for name in _core.detected_isa():
        _core.set_isa(name)
        assert _core.active_isa()[-1] == name
        assert torch.ops.sparsekern.active_isa() == ",".join(_core.active_isa())


def test_set_isa_none_goes_back() -> None:
    before = _core.active_isa()
    _core.set_isa("scalar")
    assert _core.active_isa() == ["scalar"]
    _core.set_isa(None)
    assert _core.active_isa() == before


def test_unknown_name() -> None:
    with pytest.raises(ValueError, match=r'^isa: name must be one of scalar, .*, got "sse9"$'):
        _core.set_isa("sse9")


def test_set_of_another_processor() -> None:
    foreign = "avx2" if "neon" in _core.detected_isa() else "neon"
    message = rf'must be a set that this processor has \(scalar.*\), got "{foreign}"$'
    with pytest.raises(ValueError, match=message):
        _core.set_isa(foreign)


def test_environment_variable_forces() -> None:
    code = "from sparsekern import _core; print(_core.active_isa())"
    assert run_python(code, SPARSEKERN_ISA="scalar").stdout.strip() == "['scalar']"


def test_environment_variable_with_a_bad_name_is_an_error() -> None:
    code = """
import torch
from sparsekern import _core
for ask in (_core.active_isa, torch.ops.sparsekern.active_isa):
    try:
        ask()
    except ValueError as error:
        print(error)
"""
    run = run_python(code, SPARSEKERN_ISA="avx9")
    lines = run.stdout.splitlines()
    assert len(lines) == 2, run.stderr
    for line in lines:
        assert re.fullmatch(
            r'SPARSEKERN_ISA: isa: name must be one of scalar, .*, got "avx9"', line
        )


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("TypeError: op: x must be float32", TypeError, "op: x must be float32"),
        ("NotImplementedError: op: no kernel", NotImplementedError, "op: no kernel"),
        ("op: TypeError: inside", RuntimeError, "op: TypeError: inside"),
    ],
)
def test_translated(text: str, kind: type[Exception], message: str) -> None:
    error = _library.translated(RuntimeError(text))
    assert type(error) is kind
    assert str(error) == message
