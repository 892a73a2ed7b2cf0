# SPDX-License-Identifier: Apache-2.0
"""Models for the tests of checkpoints, and how to change what a file says."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import safetensors.torch
import sparsekern as sk
import torch
from sparsekern.nn import CSRConv2d, CSRLinear
from strategies import activations
from torch import nn


class Net(nn.Module):
    """Every kind of layer there is, with a shared module and an embedding tied to a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(20, 24)
        self.conv = nn.Conv2d(3, 24, 1, stride=2)
        self.norm = nn.BatchNorm1d(24)
        self.body = nn.Sequential(nn.Linear(24, 40), nn.GELU(), nn.Linear(40, 24, bias=False))
        self.again = self.body[2]
        self.twin = nn.Linear(40, 24, bias=False)
        self.twin.weight = self.again.weight
        self.head = nn.Linear(24, 20, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.conv(image).mean((2, 3)))
        wide = self.body[1](self.body[0](x))
        return self.head(self.body(x) + self.again(wide) + self.twin(wide))


def dense(sparsity: float = 0.8) -> Net:
    net = Net().eval()
    with torch.no_grad():
        for layer in (net.conv, net.body[0], net.again):
            layer.weight[torch.rand_like(layer.weight) < sparsity] = 0
    return net


def converted(sparsity: float = 0.8, dtype: torch.dtype = torch.float32) -> Net:
    net = dense(sparsity)
    net.conv = CSRConv2d.from_dense(net.conv, block_rows=2)
    net.body[0] = CSRLinear.from_dense(net.body[0], dtype=dtype)
    net.again = net.body[2] = CSRLinear.from_dense(net.again)
    net.twin = CSRLinear.from_packed(net.again.weight)
    return net


IMAGE = activations((2, 3, 6, 6))


def metadata_of(path: Path) -> dict[str, str]:
    with safetensors.safe_open(path, framework="pt") as file:
        return dict(file.metadata())


def rewrite(path: Path, change=None, tensors=None, **raw: str) -> None:
    """The file again with changed metadata and tensors, its checksums made right again."""
    metadata = metadata_of(path)
    described = json.loads(metadata["sparsekern"])
    held = safetensors.torch.load_file(path)
    if tensors is not None:
        tensors(held)
    for name in held:
        described["crc32"][name] = sk._checkpoint_format.checksum(name, held[name])
    if change is not None:
        change(described)
    text = json.dumps(described)
    metadata["sparsekern"] = text
    metadata["sparsekern.crc32"] = f"{zlib.crc32(text.encode()):08x}"
    safetensors.torch.save_file(held, path, metadata | raw)


def state_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def equal_states(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
