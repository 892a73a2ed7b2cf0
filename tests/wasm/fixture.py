# SPDX-License-Identifier: Apache-2.0
"""A checkpoint and inputs that every host of the module multiplies, and what the oracle expects.

`write` makes a folder with model.safetensors, cases.json and one file of raw elements for each
input; a host adds one file of raw elements for each result; `check` compares those.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import compare
import oracle
from sparsekern import BitmapTensor, CSRTensor, GQSTensor, NMTensor, save_file
from sparsekern._packed import PackedTensor, to_numpy
from sparsekern.gqs import SCALE_NAMES
from sparsekern.nn import BitmapLinear, CSRConv2d, CSRLinear, GQSLinear, NMLinear

TORCH = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Case:
    """One product. `shape` is x's: [rows, cols], or [batch, cols, height, width]."""

    name: str
    layer: str
    dtype: str
    shape: tuple[int, ...]


def _packed(rows: int, cols: int, dtype: torch.dtype, block_rows: int, seed: int) -> CSRTensor:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, cols, generator=generator)
    groups = torch.rand(-(-rows // block_rows), cols, generator=generator) < 0.25
    mask = groups.repeat_interleave(block_rows, 0)[:rows]
    return CSRTensor.from_dense(weight, mask=mask, block_rows=block_rows, dtype=dtype)


def _nm(rows: int, cols: int, dtype: torch.dtype, n: int, m: int, seed: int) -> NMTensor:
    weight = torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed))
    return NMTensor.from_dense(weight, n, m, strict=False, dtype=dtype)


def _bitmap(rows: int, cols: int, dtype: torch.dtype, seed: int) -> BitmapTensor:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(rows, cols, generator=generator) < 0.5
    return BitmapTensor.from_dense(
        torch.randn(rows, cols, generator=generator), mask=mask, dtype=dtype
    )


def quantized(name: str) -> tuple[torch.Tensor, dict[str, Any]]:
    """A dense matrix with whole groups of zeros, and how `GQSTensor.from_dense` is to round it."""
    rows, cols, bits, group, scale, symmetric = QUANTIZED[name]
    generator = torch.Generator().manual_seed(rows)
    kept = torch.rand(rows, -(-cols // group), generator=generator) < 0.5
    dense = torch.randn(rows, cols, generator=generator)
    dense *= kept.repeat_interleave(group, 1)[:, :cols]
    return dense, {"bits": bits, "group": group, "scale_dtype": scale, "symmetric": symmetric}


QUANTIZED = {
    "gqs2": (40, 130, 2, 16, torch.bfloat16, True),
    "gqs4": (130, 257, 4, 16, torch.float16, True),
    "gqs4zero": (33, 300, 4, 64, torch.float32, False),
    "gqs4row": (65, 96, 4, 32, torch.uint8, True),
    "gqs8": (77, 300, 8, 128, torch.float32, True),
}


def _layer(kind: type, packed: PackedTensor, activation: str, **options: int) -> nn.Module:
    generator = torch.Generator().manual_seed(packed.shape[0])
    return kind.from_packed(
        packed, torch.randn(packed.shape[0], generator=generator), activation, **options
    )


def model() -> nn.ModuleDict:
    """Layers of every dtype, block height, group size and activation; some are tied."""
    layers = nn.ModuleDict(
        {
            "relu": _layer(CSRLinear, _packed(130, 257, torch.float32, 1, 0), "relu"),
            "gelu": _layer(CSRLinear, _packed(301, 96, torch.bfloat16, 2, 1), "gelu"),
            "silu": _layer(CSRLinear, _packed(65, 128, torch.float16, 4, 2), "silu"),
            "hardswish": _layer(CSRLinear, _packed(77, 200, torch.int8, 1, 3), "hardswish"),
            "tanh": _layer(CSRLinear, _packed(64, 64, torch.float32, 4, 4), "gelu_tanh"),
            "conv": _layer(CSRConv2d, _packed(48, 150, torch.float32, 1, 5), "relu6", stride=2),
            "flat": _layer(CSRConv2d, _packed(33, 20, torch.float32, 2, 6), "none"),
            "nm2": _layer(NMLinear, _nm(33, 65, torch.float32, 1, 2, 7), "none"),
            "nm4": _layer(NMLinear, _nm(130, 250, torch.float32, 2, 4, 8), "relu"),
            "nm8": _layer(NMLinear, _nm(77, 200, torch.bfloat16, 2, 8, 9), "gelu"),
            "nm16": _layer(NMLinear, _nm(64, 130, torch.int8, 1, 16, 10), "silu"),
            "nm32": _layer(NMLinear, _nm(16, 70, torch.float16, 3, 32, 11), "hardswish"),
        }
    )
    for name, (dtype, shape, activation) in {
        "bitmap": (torch.float32, (130, 257), "relu"),
        "bitmap-bf16": (torch.bfloat16, (33, 64), "gelu"),
        "bitmap-f16": (torch.float16, (17, 65), "silu"),
        "bitmap-int8": (torch.int8, (64, 130), "none"),
    }.items():
        layers[name] = _layer(BitmapLinear, _bitmap(*shape, dtype, shape[0]), activation)
    for name in QUANTIZED:
        dense, how = quantized(name)
        layers[name] = _layer(GQSLinear, GQSTensor.from_dense(dense, **how), "silu")
    layers["gqs4int8"] = GQSLinear.from_packed(layers["gqs4"].weight, None, "none")
    layers["gqs4int8"].int8_activations = True
    relu = layers["relu"].weight  # one pattern, other values
    twice = CSRTensor(2 * relu.values.detach(), relu.structure)
    layers["twice"] = CSRLinear.from_packed(twice, None, "none")
    layers["bitmap-tied"] = BitmapLinear.from_packed(layers["bitmap"].weight, None, "none")
    layers["nm"] = NMLinear.from_packed(layers["nm4"].weight, None, "none")
    layers["one"] = CSRLinear.from_packed(layers["tanh"].weight, None, "none")
    return layers.eval()


def cases(layers: nn.ModuleDict) -> list[Case]:
    """Row counts on both sides of every width of the batch kernels, and both kinds of 16 bits."""
    found = []
    for name, layer in layers.items():
        _, cols = layer.weight.shape
        shapes = [(m, cols) for m in (1, 2, 3, 9, 33, 70)]
        if isinstance(layer, CSRConv2d):
            shapes = [(2, cols, 7, 9), (1, cols, 14, 14), (1, cols, 1, 1)]
        found += [Case(f"{name}-{i}", name, "float32", shape) for i, shape in enumerate(shapes)]
        found += [
            Case(f"{name}-{dtype}", name, dtype, shapes[-2]) for dtype in ("bfloat16", "float16")
        ]
    found += [
        Case("special-" + name, name, "float32", (5, layers[name].weight.shape[1]))
        for name in ("relu", "silu", "nm4", "nm8", "bitmap", "gqs4", "gqs4zero", "gqs4int8")
    ]
    return found


def _input(case: Case) -> torch.Tensor:
    generator = torch.Generator().manual_seed(len(case.name) + sum(case.shape))
    x = torch.randn(case.shape, generator=generator)
    if case.name.startswith("special"):
        x[1, 3], x[2, 5], x[3, 7] = float("nan"), float("inf"), float("-inf")
    return x.to(TORCH[case.dtype])


def _raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def write(folder: Path) -> None:
    """Make the folder's files."""
    folder.mkdir(parents=True, exist_ok=True)
    layers = model()
    save_file(layers, folder / "model.safetensors")
    for name in QUANTIZED:
        (folder / f"{name}.dense").write_bytes(_raw(quantized(name)[0]))
    made = cases(layers)
    for case in made:
        (folder / f"{case.name}.x").write_bytes(_raw(_input(case)))
    (folder / "cases.json").write_text(json.dumps([asdict(case) for case in made]))


def _read(packed: PackedTensor) -> tuple[oracle.Array, NDArray[np.bool_]]:
    """The weights and which are kept, as the oracle reads them."""
    structure = packed.structure.numpy()
    if isinstance(packed, GQSTensor):
        name = SCALE_NAMES[packed.scale.dtype]
        groups = oracle.read_gqs(
            packed.values.numpy(), structure, to_numpy(packed.scale.detach()), name
        )
        return groups.dense, groups.mask
    read = {CSRTensor: oracle.read_csr, NMTensor: oracle.read_nm, BitmapTensor: oracle.read_bitmap}
    dtype = str(packed.dtype).removeprefix("torch.")
    values = packed.values.detach()
    stored = values.view(torch.uint16).numpy() if dtype == "bfloat16" else values.numpy()
    matrix = read[type(packed)](stored, structure, dtype)
    if packed.scale is None:
        return matrix.dense, matrix.mask
    return matrix.dense * packed.scale.double().numpy()[:, None], matrix.mask


def _rounded(x: oracle.Array, group: int) -> oracle.Array:
    """Groups of x as multiples of their largest magnitude / 127, rounded in float32; or NaN."""
    rows, cols = x.shape
    wide = np.pad(x, ((0, 0), (0, -cols % group))).astype(np.float32).reshape(rows, -1, group)
    with np.errstate(all="ignore"):
        most = np.abs(wide).max(axis=2, keepdims=True)
        inverse = np.where(most > 2.0**-100, np.float32(127) / most, np.float32(0))
        whole = np.rint(wide * inverse) * (most / np.float32(127)).astype(np.float64)
    whole = np.where(np.isfinite(most), whole, np.nan)
    return whole.reshape(rows, -1)[:, :cols]


def check(folder: Path, host: str) -> int:
    """Compare every result that `host` left in the folder; the number of results."""
    layers = model()
    made = cases(layers)
    for case in made:
        layer = layers[case.layer]
        dense, mask = _read(layer.weight)
        bias = None if layer.bias is None else layer.bias.detach().double().numpy()
        x = _input(case).double().numpy()
        if layer.int8_activations:
            x = _rounded(x, layer.weight.group)
        if isinstance(layer, CSRConv2d):
            expected = oracle.conv2d(x, dense, mask, bias, layer.stride)
        else:
            expected = oracle.linear(x, dense, mask, bias)
        raw = np.frombuffer((folder / f"{case.name}.{host}").read_bytes(), np.uint8)
        got = oracle.elements(
            raw.view(np.float32 if case.dtype == "float32" else np.uint16).copy(), case.dtype
        )
        assert got.size == expected.value.size, f"{case.name}: {got.size} elements"
        compare.assert_close(
            got.reshape(expected.value.shape),
            expected,
            case.dtype,
            layer.activation,
            c=2.0 if layer.int8_activations else 1.0,  # the steps of x are rounded too
            what=f"{host} {case.name}",
        )
    return len(made)


if __name__ == "__main__":
    command, place, *hosts = sys.argv[1:]
    if command == "write":
        write(Path(place))
    else:
        for name in hosts:
            print(f"{name}: {check(Path(place), name)} results agree with the oracle")
