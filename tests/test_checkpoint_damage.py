# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that are damaged, forged, newer or of another model: refused, nothing changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import sparsekern as sk
import torch
from checkpoint_models import (
    converted,
    dense,
    equal_states,
    rewrite,
    state_of,
)
from sparsekern import _memory
from sparsekern.nn import CSRLinear
from torch import nn


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def only_file(path: Path) -> bool:
    return [entry.name for entry in path.parent.iterdir()] == [path.name]


def refuse(path: Path, text: str, error: type[Exception] = sk.CheckpointError) -> None:
    """Loading fails in every way in, and leaves the model as it was."""
    model = dense()
    before = state_of(model)
    with pytest.raises(error, match=text):
        sk.load_file(model, path)
    assert equal_states(state_of(model), before)
    assert not any(isinstance(module, sk.nn.CSRLayer) for module in model.modules())


def test_not_a_checkpoint(path, tmp_path):
    with pytest.raises(FileNotFoundError):
        sk.load_file(dense(), path)
    with pytest.raises(IsADirectoryError, match="path must be a file, got the folder"):
        sk.load_file(dense(), tmp_path)
    path.write_bytes(b"")
    refuse(path, "must be a whole safetensors file")
    path.write_bytes(b"PK\3\4" + b"\0" * 100)
    refuse(path, "must be a whole safetensors file")
    safetensors.torch.save_file(dict(nn.Linear(2, 2).state_dict()), path)
    refuse(path, "must be a checkpoint of sparsekern.save_file, got a safetensors file without")
    with pytest.raises(TypeError, match=r"load_file: model must be an nn\.Module, got str"):
        sk.load_file("model", path)


def test_truncated_anywhere(path):
    sk.save_file(converted(), path)
    whole = path.read_bytes()
    for length in (1, 7, 8, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        refuse(path, "must be a whole safetensors file")
    path.write_bytes(whole + b"\0")
    refuse(path, "must be a whole safetensors file")


def test_any_flipped_bit_is_found_or_harmless(path):
    model = converted(dtype=torch.int8)
    sk.save_file(model, path)
    whole = path.read_bytes()
    expected = state_of(sk.load_file(dense(), path))
    rng = np.random.default_rng(0)
    header = 8 + int.from_bytes(whole[:8], "little")
    places = [*range(16), *rng.integers(0, header, 150), *rng.integers(header, len(whole), 150)]
    found = 0
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(bytes(damaged))
        other = dense()
        before = state_of(other)
        try:
            sk.load_file(other, path)
        except sk.CheckpointError:
            found += 1
            assert equal_states(state_of(other), before)
        else:  # such as the spaces that fill the header up
            assert place < header
            assert equal_states(state_of(other), expected)
    assert found > 0.9 * len(places)


def test_a_newer_version_says_upgrade(path):
    sk.save_file(converted(), path)
    rewrite(path, lambda d: d.update(version=2, layers="in another way"))
    refuse(path, f"has checkpoint version 2, sparsekern {sk.__version__} reads up to 1; upgrade")


CHANGED = {
    "version 0": (lambda d: d.update(version=0), "version of .* must be 1, got 0"),
    "version text": (lambda d: d.update(version="1"), "version of .* must be 1, got '1'"),
    "version true": (lambda d: d.update(version=True), "version of .* must be 1, got True"),
    "no version": (lambda d: d.pop("version"), "metadata that are damaged"),
    "no layers": (lambda d: d.pop("layers"), "bad field 'layers'"),
    "aliases": (lambda d: d.update(aliases={"a": 1}), "bad field 'aliases'"),
    "crc": (lambda d: d.update(crc32=[]), "bad field 'crc32'"),
    "fewer crcs": (
        lambda d: d["crc32"].pop("conv.bias"),
        "must hold the tensors that its metadata",
    ),
    "tie to nothing": (lambda d: d["aliases"].update(x="nowhere"), "has a tie 'x' to 'nowhere'"),
    "tie twice": (
        lambda d: d["aliases"].update({"conv.bias": "conv.bias"}),
        "has a tie 'conv.bias'",
    ),
    "kind": (
        lambda d: d["layers"]["conv"].update(kind="csr_conv3d"),
        "kind of layer 'conv' must be",
    ),
    "dtype": (
        lambda d: d["layers"]["conv"].update(dtype="float8"),
        "dtype of layer 'conv' must be",
    ),
    "wrong dtype": (
        lambda d: d["layers"]["conv"].update(dtype="float16"),
        "'conv' must have .*float16",
    ),
    "wrong shape": (
        lambda d: d["layers"]["conv"].update(shape=[24, 4]),
        "'conv' must have .*24, 4",
    ),
    "shape": (
        lambda d: d["layers"]["conv"].update(shape=[24, -3]),
        "shape of layer 'conv' must be",
    ),
    "shape type": (lambda d: d["layers"]["conv"].update(shape=24), "shape of layer 'conv' must be"),
    "stride": (
        lambda d: d["layers"]["conv"].update(stride=1),
        r"'conv' must have \(shape, stride, b",
    ),
    "stride 2.0": (
        lambda d: d["layers"]["conv"].update(stride=2.0),
        "stride of layer 'conv' must be",
    ),
    "block_rows": (
        lambda d: d["layers"]["conv"].update(block_rows=1),
        "'conv' must have .*, 1, 'flo",
    ),
    "bias": (lambda d: d["layers"]["conv"].update(bias=False), "'conv' must have"),
    "layer": (lambda d: d["layers"].update(conv=None), "layer 'conv' must be an object"),
    "kind for module": (
        lambda d: d["layers"]["conv"].update(kind="csr_linear"),
        r"layer 'conv' must be an nn\.Linear or CSRLinear or NMLinear or BitmapLinear",
    ),
    "cast": (
        lambda d: d["casts"].update(norm="bfloat16"),
        "layer 'norm' must be a Linear or Conv2d",
    ),
    "cast dtype": (
        lambda d: d["casts"].update(head="int8"),
        "layer 'head' must compute in a known",
    ),
}


@pytest.mark.parametrize("case", CHANGED)
def test_metadata_are_not_trusted(case, path):
    change, text = CHANGED[case]
    sk.save_file(converted(), path)
    rewrite(path, change)
    refuse(path, text)


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd",
        "/etc/passwd",
        "body.9",
        "body..0",
        "conv.weight",
        "__class__",
        "a\0b",
        ".",
    ],
)
def test_names_lead_nowhere_but_to_modules(name, path, tmp_path):
    sk.save_file(converted(), path)

    def add(described: dict) -> None:
        described["layers"][name] = described["layers"]["body.2"]
        for part in ("values", "structure"):
            described["aliases"][f"{name}.{part}"] = f"body.2.{part}"

    rewrite(path, add)
    refuse(path, "must be a module of the model, got none")
    assert only_file(path)


def test_metadata_text_is_not_trusted(path):
    for text in ("", "{", "[]", "1", '"version"', "[" * 100_000, '{"version": NaN}'):
        sk.save_file(converted(), path)
        rewrite(path, sparsekern=text)
        refuse(path, "metadata that are damaged|version of .* must be 1, got nan")
    sk.save_file(converted(), path)
    rewrite(path, **{"sparsekern.crc32": "00000000"})
    refuse(path, "metadata that are damaged")


def put(name: str, change):
    return lambda tensors: tensors.update({name: change(tensors[name])})


def raised(tensor: torch.Tensor, at: int) -> torch.Tensor:
    tensor = tensor.clone()
    tensor[at] += 1
    return tensor


TENSORS = {
    "values": (put("conv.values", lambda t: t[:-1]), "layer 'conv' is damaged: .*values"),
    "magic": (put("conv.structure", lambda t: raised(t, 0)), "layer 'conv' is damaged"),
    "version": (
        put("conv.structure", lambda t: raised(t, 4)),
        "layer 'conv' is damaged: .*version",
    ),
    "kept": (put("conv.structure", lambda t: raised(t, 40)), "layer 'conv' is damaged: .*kept"),
    "scale": (put("body.0.scale", lambda t: t[1:]), "layer 'body.0' is damaged: .*scale"),
    "scale dtype": (put("body.0.scale", lambda t: t.half()), "'body.0' is damaged: .*scale"),
    "bias": (put("conv.bias", lambda t: t[1:]), r"bias of layer 'conv' must be .*\[24\], got"),
    "bias dtype": (put("conv.bias", lambda t: t.long()), "bias of layer 'conv' must be floating"),
    "dense": (
        put("norm.weight", lambda t: t[1:]),
        r"'norm.weight' must have shape \[24\], got \[23",
    ),
}


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_are_not_trusted(case, path):
    change, text = TENSORS[case]
    sk.save_file(converted(dtype=torch.int8), path)
    rewrite(path, tensors=change)
    refuse(path, text)


def test_missing_and_unexpected_names(path):
    model = converted()
    model.more = nn.Linear(2, 2)
    sk.save_file(model, path)
    refuse(path, r"got missing \[\], unexpected \['more.bias', 'more.weight'\] \(0 and 2 in all\)")
    fewer = converted()
    del fewer.norm
    sk.save_file(fewer, path)
    refuse(path, r"got missing \['norm.bias'.*unexpected \[\] \(5 and 0")
    larger = converted()
    larger.body[0] = CSRLinear(24, 41)
    sk.save_file(larger, path)
    refuse(path, r"layer 'body.0' must have \(shape, stride, bias\) \(\(40, 24\), 1, True\)")


def test_too_little_memory_is_said_before_reading(path, monkeypatch):
    sk.save_file(converted(), path)
    monkeypatch.setattr(_memory, "available_bytes", lambda: 1000)
    monkeypatch.setattr(safetensors, "safe_open", lambda *_: pytest.fail("the work has started"))
    refuse(path, "load_file: loading .* needs about", MemoryError)
    with pytest.raises(MemoryError, match="load_tensors: loading"):
        sk.load_tensors(path)
