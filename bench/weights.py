# SPDX-License-Identifier: Apache-2.0
"""Random pruned layers, their reference results, and their packed forms."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from environment import cache_bytes
from numpy.typing import NDArray
from sparsekern import BitmapTensor, CSRTensor, NMTensor, _core
from torch import Tensor

PackedT = TypeVar("PackedT", CSRTensor, NMTensor, BitmapTensor)

torch.sparse.check_sparse_tensor_invariants.disable()  # said explicitly, torch does not warn


@dataclass
class Layer:
    """weight [out, in] float32 with zeros, bias [out]."""

    weight: Tensor
    bias: Tensor

    @property
    def nnz(self) -> int:
        return int(torch.count_nonzero(self.weight))


@dataclass
class Chain:
    """Layers one after another. x: [rows, in] for linear layers, [1, in, H, W] for convolutions."""

    x: Tensor
    layers: list[Layer]

    def reference(self) -> NDArray[np.float64]:
        """The result in float64."""
        y = self.x.double()
        for layer in self.layers:
            w, b = layer.weight.double(), layer.bias.double()
            if y.dim() == 2:
                y = y @ w.T + b
            else:
                batch, _, height, width = y.shape
                y = (w @ y.flatten(2) + b[:, None]).reshape(batch, -1, height, width)
        return y.numpy()


@dataclass
class Network:
    """Chains that run one after another; their outputs, flattened, are the result."""

    chains: list[Chain]
    sparsity: float
    _reference: NDArray[np.float64] | None = field(default=None, repr=False)

    @property
    def reference(self) -> NDArray[np.float64]:
        if self._reference is None:
            self._reference = flat([chain.reference() for chain in self.chains])
        return self._reference

    @property
    def flops(self) -> float:
        """Useful operations: two per kept weight and row (or pixel) of x."""
        total = 0.0
        for chain in self.chains:
            positions = chain.x.numel() // chain.x.shape[1]
            total += sum(2.0 * layer.nnz * positions for layer in chain.layers)
        return total


def flat(outputs: Sequence[Any]) -> NDArray[Any]:
    """Arrays or tensors as one vector; a channels-last tensor in its logical order."""
    parts = [o.float().numpy() if isinstance(o, Tensor) else np.asarray(o) for o in outputs]
    return np.concatenate([part.reshape(-1) for part in parts])


def random_layer(out: int, in_: int, sparsity: float, generator: torch.Generator) -> Layer:
    """Normal weights, each pruned with probability `sparsity`; outputs keep the inputs' scale."""
    weight = torch.randn(out, in_, generator=generator)
    weight *= (in_ * (1 - sparsity)) ** -0.5
    if sparsity:
        weight[torch.rand(out, in_, generator=generator) < sparsity] = 0.0
    return Layer(weight, torch.randn(out, generator=generator))


def nm_layer(out: int, in_: int, n: int, m: int, generator: torch.Generator) -> Layer:
    """Normal weights, n of every m along the inputs kept at random."""
    weight = torch.randn(out, in_, generator=generator) * (in_ * n / m) ** -0.5
    ranks = torch.rand(out, in_ // m, m, generator=generator).argsort(-1)
    weight[(ranks >= n).reshape(out, in_)] = 0.0
    return Layer(weight, torch.randn(out, generator=generator))


def linear_network(x_rows: int, features: Sequence[int], sparsity: float) -> Network:
    generator = torch.Generator().manual_seed(int(sparsity * 1000))
    x = torch.randn(x_rows, features[0], generator=generator)
    layers = [random_layer(b, a, sparsity, generator) for a, b in itertools.pairwise(features)]
    return Network([Chain(x, layers)], sparsity)


def conv_network(size: int, channels: int, layers: int, sparsity: float) -> Network:
    """A stack of 1x1 convolutions with equal channels: what a call costs is shared by `layers`."""
    generator = torch.Generator().manual_seed(int(sparsity * 1000))
    x = torch.randn(1, channels, size, size, generator=generator)
    made = [random_layer(channels, channels, sparsity, generator) for _ in range(layers)]
    return Network([Chain(x, made)], sparsity)


def conv_list(layers: Sequence[dict[str, int]], sparsity: float) -> Network:
    """1x1 convolutions of a network, each on an input of its own."""
    generator = torch.Generator().manual_seed(int(sparsity * 1000))
    chains = []
    for shape in layers:
        x = torch.randn(1, shape["in"], shape["size"], shape["size"], generator=generator)
        chains.append(Chain(x, [random_layer(shape["out"], shape["in"], sparsity, generator)]))
    return Network(chains, sparsity)


def packed(layer: Layer, dtype: torch.dtype = torch.float32) -> CSRTensor:
    return CSRTensor.from_dense(layer.weight, dtype=dtype)


def kernel_name(w: CSRTensor, x_rows: int, conv: bool = False, int8_x: bool = False) -> str:
    """The kernel that selection picks under the active ISA mask."""
    dtype = str(w.dtype).removeprefix("torch.")
    return _core.csr_kernel(w.structure.numpy(), dtype, x_rows, conv, int8_x)


def mkl_csr(weight: Tensor) -> Tensor:
    """torch's CSR with 32-bit indices, which MKL multiplies."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(beta|invariant)", category=UserWarning)
        w = weight.to_sparse_csr()
    crow, col = w.crow_indices().int(), w.col_indices().int()
    return torch.sparse_csr_tensor(crow, col, w.values(), size=w.shape)


# --- cold: as many copies as no cache holds ------------------------------------------------------


def cold_bytes() -> int:
    """Three times the last-level cache, within 128 MB and 512 MB.

    A virtual machine may name a cache of some 100 MB that it shares with many others; together with
    the copies of the other candidates, which run in between, 512 MB come from memory there too.
    """
    return min(max(3 * max(cache_bytes(3), cache_bytes(2)), 128 << 20), 512 << 20)


def copies(nbytes: int) -> int:
    """How many copies of something of so many bytes are cold."""
    return max(2, -(-cold_bytes() // nbytes))


def cold_tensors(tensor: Tensor) -> Iterator[Tensor]:
    """Endlessly walks through copies of `tensor`."""
    pool = [tensor.clone() for _ in range(copies(tensor.nbytes))]
    return itertools.cycle(pool)


def cold_packed(w: PackedT) -> Iterator[PackedT]:
    pool = [
        type(w).trusted(
            w.values.clone(), w.structure.clone(), None if w.scale is None else w.scale.clone()
        )
        for _ in range(copies(w.nbytes))
    ]
    return itertools.cycle(pool)


def cold_mkl_csr(w: Tensor) -> tuple[Iterator[Tensor], int]:
    """The copies and the bytes of one."""
    parts = (w.crow_indices(), w.col_indices(), w.values())
    nbytes = sum(part.nbytes for part in parts)
    pool = [
        torch.sparse_csr_tensor(*(part.clone() for part in parts), size=w.shape)
        for _ in range(copies(nbytes))
    ]
    return itertools.cycle(pool), nbytes
