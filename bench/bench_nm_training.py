# SPDX-License-Identifier: Apache-2.0
"""A training step (forward, backward, optimizer, masks) of a transformer block with 2:8 weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from harness import (
    OURS,
    SHAPES,
    Candidate,
    Options,
    Recorder,
    measure,
    options,
    thread_counts,
    timed,
    with_threads,
)
from limits import multiply_adds
from sparsekern import NM
from sparsekern import training as tr
from torch import Tensor, nn
from torch.nn import functional


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, -1).unbind(2)
        y = functional.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True
        )
        x = x + self.out(y.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class MaskedReference(nn.Module):
    """A linear layer whose products use given weights, in float64: what the result must be."""

    def __init__(self, layer: tr.NMTrainingLinear) -> None:
        super().__init__()
        mask = layer.mask
        self.weight = nn.Parameter(torch.where(mask, layer.weight.detach(), 0.0).double())
        back = layer.mask if layer.mask_back is None else layer.mask_back.t()
        self.back = torch.where(back, layer.weight.detach(), 0.0).double()
        self.bias = nn.Parameter(layer.bias.detach().double())

    def forward(self, x: Tensor) -> Tensor:
        return _Product.apply(x, self.weight, self.back) + self.bias


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(x, back)
        return x @ w.t()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, back = ctx.saved_tensors
        return grad @ back, grad.flatten(0, -2).t() @ x.flatten(0, -2), None


def _block(width: int, heads: int) -> Block:
    torch.manual_seed(1)
    return Block(width, heads)


def _gradients(block: nn.Module, x: Tensor, names: list[str]) -> np.ndarray:
    """Gradients of x and of some weights for the loss of the steps, each in units of its rms."""
    x = x.clone().requires_grad_()
    block.zero_grad(set_to_none=True)
    block(x).pow(2).mean().backward()
    found = [x.grad, *(block.get_submodule(name).weight.grad for name in names)]
    block.zero_grad(set_to_none=True)
    return torch.cat([(g / g.square().mean().sqrt()).flatten() for g in found]).double().numpy()


def _step(block: Block, x: Tensor) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(block.parameters(), lr=1e-4, fused=True)
    if any(isinstance(module, tr.NMTrainingLayer) for module in block.modules()):
        tr.Training(block).attach(optimizer)

    def step() -> None:
        block(x).pow(2).mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _sparse(name: str, width: int, heads: int, x: Tensor, recipe: tr.Recipe) -> Candidate:
    names = ["qkv", "out", "up", "down"]
    checked = _block(width, heads)
    tr.prepare_(checked, NM(2, 8), recipe)
    exact = _block(width, heads)
    for layer in names:
        setattr(exact, layer, MaskedReference(getattr(checked, layer)))
    # Checked on fewer rows, since float64 takes long.
    few = x[:4]
    reference = _gradients(exact.double(), few.double(), names)
    trained = _block(width, heads)
    tr.prepare_(trained, NM(2, 8), recipe)
    return Candidate(
        name,
        timed(_step(trained, x)),
        lambda: _gradients(checked, few, names),
        reference,
        tolerance=1e-2,
        sparsity=0.75,
    )


def main(options: Options) -> None:
    recorder = Recorder("nm_training", options.results)
    section = SHAPES["nm_training"]
    for width, heads, sequences, length in section["blocks"]:
        if options.quick:
            sequences = 4
        x = torch.randn(sequences, length, width, generator=torch.Generator().manual_seed(2))
        for threads in thread_counts():
            with_threads(threads)
            cases = [
                _sparse(OURS, width, heads, x, tr.Recipe(input_gradient="own")),
                _sparse(f"{OURS} SR-STE", width, heads, x, tr.Recipe(gradient=tr.SRSTE())),
                _sparse(
                    f"{OURS} masks in torch's products",
                    width,
                    heads,
                    x,
                    tr.Recipe(input_gradient="own", kernel="never"),
                ),
                Candidate("torch dense fp32", timed(_step(_block(width, heads), x))),
                multiply_adds(threads),
            ]
            case = f"2:8 block of width {width}, {sequences} x {length} tokens"
            recorder.add(measure(case, threads, cases, options.effort))
    recorder.save()


if __name__ == "__main__":
    main(options())
