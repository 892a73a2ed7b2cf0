# SPDX-License-Identifier: Apache-2.0
"""Calls the module's C functions under wasmtime, on the fixture's checkpoint.

Usage: wasmtime_host.py MODULE FOLDER HOST: writes FOLDER/<case>.HOST for each case.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from wasmtime import Engine, Linker, Module, Store, WasiConfig

DTYPES = ["float32", "bfloat16", "float16", "int8"]
SCALES = [torch.float32, torch.bfloat16, torch.float16, torch.uint8]
ACTIVATIONS = ["none", "relu", "relu6", "gelu", "gelu_tanh", "silu", "hardswish"]


class Host:
    """One instance of the module."""

    def __init__(self, path: Path) -> None:
        engine = Engine()
        self.store = Store(engine)
        self.store.set_wasi(WasiConfig())
        linker = Linker(engine)
        linker.define_wasi()
        self.exports = linker.instantiate(self.store, Module.from_file(engine, str(path))).exports(
            self.store
        )
        self.memory = self.exports["memory"]
        self("_initialize")

    def __call__(self, name: str, *arguments: int) -> Any:
        """Call an export; i32 results as unsigned."""
        result = self.exports[name](self.store, *arguments)
        return result & 0xFFFFFFFF if isinstance(result, int) else result

    def put(self, data: bytes) -> int:
        """Copy bytes into memory of the module."""
        pointer = self("sk_malloc", len(data))
        assert pointer != 0
        assert pointer % 64 == 0
        self.memory.write(self.store, data, pointer)
        return pointer

    def get(self, pointer: int, length: int) -> bytes:
        """Copy bytes out."""
        return bytes(self.memory.read(self.store, pointer, pointer + length))

    def text(self, pointer: int) -> str:
        """A C string."""
        data = self.get(pointer, 400)
        return data[: data.index(0)].decode()


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def prefix_of(spec: dict[str, Any]) -> str:
    """What the names of the functions of a layer's matrix begin with."""
    return "sk_" + spec["kind"].split("_")[0]


def run(module: Path, folder: Path, host_name: str) -> None:
    host = Host(module)
    with safetensors.safe_open(folder / "model.safetensors", framework="pt") as file:
        described = json.loads(file.metadata()["sparsekern"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    tensors.update({name: tensors[stored] for name, stored in described["aliases"].items()})
    matrices: dict[str, int] = {}
    for name, spec in described["layers"].items():
        values, structure = tensors[f"{name}.values"], tensors[f"{name}.structure"]
        scale = tensors.get(f"{name}.scale")
        prefix = prefix_of(spec)
        gqs = prefix == "sk_gqs"
        matrices[name] = host(
            f"{prefix}_new",
            host.put(raw(structure)),
            structure.numel(),
            host.put(raw(values)),
            values.numel(),
            SCALES.index(scale.dtype) if gqs else DTYPES.index(spec["dtype"]),
            0 if scale is None else host.put(raw(scale)),
            0 if scale is None else scale.numel(),
        )
        assert matrices[name] != 0, host.text(host("sk_error"))
        shape = [host(f"{prefix}_{size}", matrices[name]) for size in ("rows", "cols")]
        assert shape == spec["shape"]
    for case in json.loads((folder / "cases.json").read_text()):
        spec = described["layers"][case["layer"]]
        rows, cols = spec["shape"]
        bias = tensors.get(f"{case['layer']}.bias")
        tail = [0 if bias is None else host.put(raw(bias)), ACTIVATIONS.index(spec["activation"])]
        if spec["kind"] == "gqs_linear":
            tail.append(spec["int8_activations"])
        x = host.put((folder / f"{case['name']}.x").read_bytes())
        dtype, matrix = DTYPES.index(case["dtype"]), matrices[case["layer"]]
        if spec["kind"] != "csr_conv2d":
            elements = case["shape"][0] * rows
            arguments = (dtype, case["shape"][0], cols, rows)
        else:
            batch, _, height, width = case["shape"]
            stride = spec["stride"]
            elements = batch * rows * -(-height // stride) * -(-width // stride)
            arguments = (dtype, batch, height, width, stride)
        length = elements * (4 if case["dtype"] == "float32" else 2)
        y = host.put(bytes(length))
        status = host("sk_" + spec["kind"], matrix, x, y, *arguments, *tail)
        assert status == 0, host.text(host("sk_error"))
        (folder / f"{case['name']}.{host_name}").write_bytes(host.get(y, length))
        host("sk_free", x)
        host("sk_free", y)
    # What is wrong is refused with the number of a StatusCode and a message.
    for name in ("relu", "nm4", "bitmap", "gqs4"):
        prefix = prefix_of(described["layers"][name])
        sizes = (0, 0, 0, 1, 1 << 20, 1 << 20, 0)
        more = [0] * (prefix == "sk_gqs")
        assert host(f"{prefix}_linear", matrices[name], *sizes, 99, *more) == 2
        assert "activation must be in [0, 6], got 99" in host.text(host("sk_error"))
        assert host(f"{prefix}_new", host.put(bytes(64)), 64, host.put(bytes(64)), 16, 0, 0, 0) == 0
        assert host.text(host("sk_error")) != ""
    for name, matrix in matrices.items():
        host(f"{prefix_of(described['layers'][name])}_delete", matrix)
    assert host("sk_gqs_quantize", 0, 1, 1, 3, 16, 0, 0, 0, 0, 0) == 2
    assert "bits must be 2, 4 or 8" in host.text(host("sk_error"))
    print(f"wasmtime: {module.name} ({host.text(host('sk_isa'))}) ran {host_name}")


if __name__ == "__main__":
    run(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
