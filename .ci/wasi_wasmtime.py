# SPDX-License-Identifier: Apache-2.0
"""Runs a WASI program under wasmtime and exits with its status: wasi_wasmtime.py FILE [ARGS...]."""

from __future__ import annotations

import os
import sys

from wasmtime import Engine, ExitTrap, Linker, Module, Store, WasiConfig


def main(arguments: list[str]) -> int:
    """Run the program and return its exit status."""
    engine = Engine()
    wasi = WasiConfig()
    wasi.argv = arguments
    wasi.env = list(os.environ.items())
    wasi.inherit_stdout()
    wasi.inherit_stderr()
    store = Store(engine)
    store.set_wasi(wasi)
    linker = Linker(engine)
    linker.define_wasi()
    instance = linker.instantiate(store, Module.from_file(engine, arguments[0]))
    try:
        instance.exports(store)["_start"](store)
    except ExitTrap as stop:
        return stop.code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
