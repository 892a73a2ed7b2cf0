# SPDX-License-Identifier: Apache-2.0
"""save_file and load_file: round trips, ties, interrupted saves."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import oracle
import pytest
import safetensors.torch
import sparsekern as sk
import torch
from checkpoint_models import (
    IMAGE,
    Net,
    converted,
    dense,
    equal_states,
    metadata_of,
    state_of,
)
from sparsekern._cast import CastLinear
from sparsekern.nn import CSRConv2d, CSRLinear
from torch import nn


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


# --- round trips ----------------------------------------------------------------------------------

TARGETS = {
    "dense": lambda: dense(),
    "dense in training": lambda: Net().train(),
    "converted": lambda: converted(),
    "converted with another pattern": lambda: converted(0.5),
    "in float64": lambda: Net().eval(),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("target", TARGETS)
def test_round_trip(target, dtype, path):
    model = converted(dtype=dtype)
    sk.save_file(model, path)
    other = TARGETS[target]()
    training = other.training
    assert sk.load_file(other, path) is other
    assert other.training is training
    other.eval()
    if target.startswith("converted") and dtype == torch.bfloat16:
        other.body[0].bfloat16()  # a layer keeps its own dtype
        model.body[0].bias.data = model.body[0].bias.data.bfloat16()
    assert torch.equal(other(IMAGE), model(IMAGE))
    assert type(other.conv) is CSRConv2d
    assert other.conv.weight.block_rows == 2
    assert other.again is other.body[2]
    assert other.twin.values is other.again.values
    assert other.head.weight is other.embedding.weight


def test_round_trip_onto_meta(path):
    model = converted()
    sk.save_file(model, path)
    with torch.device("meta"):
        other = Net().eval()
    other.head.weight = other.embedding.weight
    sk.load_file(other, path)
    assert all(t.device.type == "cpu" for t in other.state_dict().values())
    assert other.head.weight is other.embedding.weight
    assert torch.equal(other(IMAGE), model(IMAGE))
    sk.save_file(other, path)  # and again


def test_a_new_process_gives_equal_outputs(path, tmp_path):
    model = converted()
    sk.save_file(model, path)
    torch.save((IMAGE, model(IMAGE).detach()), tmp_path / "expected.pt")
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import torch, sparsekern as sk, checkpoint_models as t\n"
        "x, y = torch.load(sys.argv[3])\n"
        "net = sk.load_file(t.Net().eval(), sys.argv[2])\n"
        "assert torch.equal(net(x), y)\n"
    )
    arguments = [str(Path(__file__).parent), str(path), str(tmp_path / "expected.pt")]
    subprocess.run([sys.executable, "-c", program, *arguments], check=True, timeout=120)


def test_what_a_file_holds(path):
    model = converted(dtype=torch.int8)
    sk.save_file(model, path)
    held = safetensors.torch.load_file(path)
    described = json.loads(metadata_of(path)["sparsekern"])
    assert metadata_of(path)["format"] == "pt"
    assert described["version"] == 1
    assert described["aliases"]["head.weight"] == "embedding.weight"
    assert described["aliases"]["twin.structure"] == "body.2.structure"
    assert not held.keys() & described["aliases"].keys()  # stored once
    assert described["layers"]["conv"] == {
        "kind": "csr_conv2d",
        "shape": [24, 3],
        "block_rows": 2,
        "dtype": "float32",
        "activation": "none",
        "stride": 2,
        "bias": True,
        "fused": False,
        "int8_activations": False,
        "pattern": "",
    }
    parts = held["body.0.values"].numpy(), held["body.0.structure"].numpy()
    levels = oracle.read_csr(*parts, "int8").dense
    weights = levels * held["body.0.scale"].double().numpy()[:, None]
    assert np.abs(weights - model.body[0].weight.to_dense().double().numpy()).max() < 1e-7


def test_load_tensors(path):
    model = converted(dtype=torch.int8)
    sk.save_file(model, path)
    tensors = sk.load_tensors(path)
    assert tensors.keys() == dense().state_dict().keys()
    assert isinstance(tensors["body.0.weight"], sk.CSRTensor)
    assert tensors["body.2.weight"] is tensors["twin.weight"]
    assert tensors["head.weight"] is tensors["embedding.weight"]
    state = {
        name: t.to_dense().reshape(model_shape(name)) if isinstance(t, sk.CSRTensor) else t
        for name, t in tensors.items()
    }
    plain = dense()
    plain.load_state_dict(state)
    torch.testing.assert_close(plain(IMAGE), model(IMAGE), atol=1e-5, rtol=1e-5)


def model_shape(name: str) -> torch.Size:
    return dense().state_dict()[name].shape


def test_packed_in_the_model_and_dense_in_the_file(path):
    model = dense()
    sk.save_file(model, path)
    other = converted(0.5)
    sk.load_file(other, path)
    assert type(other.conv) is nn.Conv2d
    assert type(other.body[2]) is nn.Linear
    assert torch.equal(other(IMAGE), model(IMAGE))


def test_fused_activations_find_their_place(path):
    model = converted()
    model.body[0].activation = "gelu"
    model.body[1] = nn.Identity()
    sk.save_file(model, path)
    for other in (dense(), converted(), copy.deepcopy(model)):
        sk.load_file(other, path)
        assert other.body[0].activation == "gelu"
        assert type(other.body[1]) is nn.Identity
        assert torch.equal(other.body(torch.ones(1, 24)), model.body(torch.ones(1, 24)))
    wrong = dense()
    wrong.body[1] = nn.ReLU()
    with pytest.raises(sk.CheckpointError, match=r"of layer .body\.0. must be none as in"):
        sk.load_file(wrong, path)
    fused = copy.deepcopy(model)
    sk.save_file(converted(), path)
    with pytest.raises(sk.CheckpointError, match=r"must be gelu as in the model, got none"):
        sk.load_file(fused, path)


def test_dense_layers_in_a_dtype_of_their_own(path):
    model = converted()
    model.body[0] = CastLinear.of(dense().body[0], torch.bfloat16)
    sk.save_file(model, path)
    for other in (dense(), converted()):
        sk.load_file(other, path)
        assert type(other.body[0]) is CastLinear
        assert torch.equal(other(IMAGE), model(IMAGE))
    plain = converted()
    sk.save_file(plain, path)
    sk.load_file(model, path)
    assert torch.equal(model(IMAGE), plain(IMAGE))
    sk.save_file(dense(), path)
    model.body[0] = CastLinear.of(dense().body[0], torch.bfloat16)
    sk.load_file(model, path)
    assert type(model.body[0]) is nn.Linear
    assert torch.equal(model(IMAGE), dense()(IMAGE))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_wrappers_are_looked_through(path):
    model = converted()
    sk.save_file(nn.DataParallel(model), path)
    assert "conv.values" in safetensors.torch.load_file(path)
    other = torch.compile(dense(), backend="eager")
    sk.load_file(other, path)
    assert torch.equal(other._orig_mod(IMAGE), model(IMAGE))


def test_views_and_strides_and_kinds_of_tensor(path):
    class Odd(nn.Module):
        def __init__(self, fill: float) -> None:
            super().__init__()
            whole = torch.full((4, 6), fill)
            self.register_buffer("whole", whole)
            self.register_buffer("part", whole[1:3])
            self.register_buffer("flat", whole.view(-1))
            self.register_buffer("turned", torch.full((5, 3), fill).T)
            self.register_buffer("scalar", torch.tensor(fill).long())
            self.register_buffer("empty", torch.zeros(0, 3))
            self.register_buffer("truth", torch.tensor([fill > 0]))

    sk.save_file(Odd(2), path)
    other = sk.load_file(Odd(0), path)
    assert equal_states(state_of(other), state_of(Odd(2)))


def test_a_layer_alone(path):
    layer = converted().body[0]
    sk.save_file(layer, path)
    other = CSRLinear(24, 40)
    sk.load_file(other, path)
    x = torch.ones(2, 24)
    assert torch.equal(other(x), layer(x))
    with pytest.raises(sk.CheckpointError, match="got the layer itself"):
        sk.load_file(nn.Linear(24, 40), path)


def test_a_saved_file_is_read_only_once_and_not_held(path):
    model = converted()
    sk.save_file(model, path)
    other = sk.load_file(dense(), path)
    tensors = sk.load_tensors(path)
    expected = other(IMAGE)
    path.write_bytes(b"\0" * path.stat().st_size)  # a mapped file would change under the model
    assert torch.equal(other(IMAGE), expected)
    assert tensors["conv.weight"].to_dense().abs().sum() > 0
    assert tensors["norm.weight"].sum() == 24


# --- an interrupted save --------------------------------------------------------------------------


def only_file(path: Path) -> bool:
    return [entry.name for entry in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("where", ["write", "flush", "rename"])
def test_a_save_that_fails_leaves_the_old_file(where, path, monkeypatch):
    model = converted()
    sk.save_file(model, path)
    old = path.read_bytes()

    def fail(*arguments: object) -> None:
        if where == "write":
            Path(arguments[1]).write_bytes(b"half")
        raise OSError("no space left")

    owner, name = {
        "write": (safetensors.torch, "save_file"),
        "flush": (os, "fsync"),
        "rename": (os, "replace"),
    }[where]
    monkeypatch.setattr(owner, name, fail)
    with pytest.raises(OSError, match="no space left"):
        sk.save_file(converted(0.2), path)
    assert path.read_bytes() == old
    assert only_file(path)


def test_a_killed_save_leaves_a_whole_file(path):
    program = (
        "import sys, torch, sparsekern as sk\n"
        "layer = sk.nn.CSRLinear.from_dense(torch.nn.Linear(512, 512))\n"
        "while True:\n"
        "    layer.bias.data.add_(1)\n"
        "    sk.save_file(layer, sys.argv[1])\n"
        "    print('saved', flush=True)\n"
    )
    for delay in (0.0, 0.007):
        with subprocess.Popen(
            [sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"saved\n"
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
        sk.load_file(CSRLinear(512, 512), path)


def test_save_refuses(path, tmp_path):
    with pytest.raises(TypeError, match=r"save_file: model must be an nn\.Module, got dict"):
        sk.save_file({}, path)
    with pytest.raises(IsADirectoryError, match="path must be a file, got the folder"):
        sk.save_file(converted(), tmp_path)
    with pytest.raises(FileNotFoundError):
        sk.save_file(converted(), tmp_path / "absent" / "m.safetensors")
    with pytest.raises(ValueError, match=r"'weight' must hold data, got the meta device"):
        sk.save_file(nn.Linear(2, 2, device="meta"), path)
    broken = converted()
    broken.conv.structure[0] += 1
    with pytest.raises(ValueError, match="save_file: layer 'conv' cannot be saved"):
        sk.save_file(broken, path)

    class Strange(nn.Module):
        def get_extra_state(self) -> dict[str, int]:
            return {"a": 1}

    with pytest.raises(TypeError, match=r"must hold tensors only, got dict for '_extra_state'"):
        sk.save_file(Strange(), path)
    assert list(tmp_path.iterdir()) == []
