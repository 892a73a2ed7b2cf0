# SPDX-License-Identifier: Apache-2.0
"""A model as a chain of blocks, run one after another on stored inputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ..prune.calibration import Forward, calibrating
from ..prune.layers import prunable_modules

_OPERATOR = "quantize_"


class _Reached(Exception):  # noqa: N818 (not an error: it ends a forward pass early)
    """The first block was called."""


@dataclass
class Call:
    """How one batch calls every block of a chain: with its own x, and the same other arguments."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    key: str | None = None  # of x among the keyword arguments; None: the first by position

    @property
    def x(self) -> Tensor:
        """The input that a block takes over from the one before."""
        found = self.args[0] if self.key is None else self.kwargs[self.key]
        if not isinstance(found, Tensor):
            raise TypeError(
                f"{_OPERATOR}: blocks must take a tensor first, got {type(found).__name__}"
            )
        return found

    def run(self, block: nn.Module, x: Tensor) -> Any:
        """The block's output for another x."""
        if self.key is None:
            return block(x, *self.args[1:], **self.kwargs)
        return block(*self.args, **{**self.kwargs, self.key: x})


def _call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    if args:
        return Call(args, kwargs)
    key = next((name for name, value in kwargs.items() if isinstance(value, Tensor)), None)
    if key is None:
        raise TypeError(f"{_OPERATOR}: blocks must be called with a tensor, got none")
    return Call(args, kwargs, key)


def moved(value: Any, device: torch.device | None) -> Any:
    """Tensors in tuples, lists and dicts on another device; None leaves all as it is."""
    if device is None:
        return value
    if isinstance(value, Tensor):
        return value.to(device)
    if type(value) in (tuple, list):
        return type(value)(moved(item, device) for item in value)
    if type(value) is dict:
        return {name: moved(item, device) for name, item in value.items()}
    return value


def outputs_of(output: Any) -> tuple[Tensor, ...]:
    """The floating-point tensors of a tensor, a sequence or a mapping, in order."""
    if isinstance(output, Tensor):
        found: Iterable[Any] = (output,)
    elif isinstance(output, Mapping):
        found = output.values()
    elif isinstance(output, (tuple, list)):
        found = output
    else:
        found = ()
    tensors = tuple(x for x in found if isinstance(x, Tensor) and x.is_floating_point())
    if not tensors:
        raise TypeError(
            f"{_OPERATOR}: a block must return a floating-point tensor, or several, "
            f"got {type(output).__name__}"
        )
    return tensors


def find_blocks(model: nn.Module, blocks: str | None) -> list[tuple[str, nn.Module]]:
    """Names and modules of the blocks, in module order.

    Args:
        model: any module.
        blocks: a glob over module names, of which the outermost matches count ("*.layer.*" does
            not mean what is inside a layer); "auto", the children of the ModuleList or Sequential
            that holds most weights of prunable layers, if they are at least two of one class, else
            the whole model; None, the whole model as one block.

    Raises:
        ValueError: a glob without match.
    """
    if blocks is None:
        return [("", model)]
    if blocks == "auto":
        return _largest_list(model) or [("", model)]
    found: list[tuple[str, nn.Module]] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer, _ in found)
        if name and not inside and fnmatchcase(name, blocks):
            found.append((name, module))
    if not found:
        raise ValueError(f"{_OPERATOR}: blocks {blocks!r} must match a module, got no match")
    return found


def _largest_list(model: nn.Module) -> list[tuple[str, nn.Module]]:
    best: list[tuple[str, nn.Module]] = []
    most = 0
    for name, module in model.named_modules():
        if not isinstance(module, (nn.ModuleList, nn.Sequential)):
            continue
        children = [(f"{name}.{key}" if name else key, m) for key, m in module.named_children()]
        alike = len({type(child) for _, child in children}) == 1 and len(children) > 1
        weights = [m._parameters.get("weight") for _, m in prunable_modules(module)]
        size = sum(weight.numel() for weight in weights if weight is not None)
        if alike and size > most:
            best, most = children, size
    return best


@dataclass
class Chain:
    """Blocks, and the inputs of the one that is next: dense ones, and those of the model so far.

    Inputs are kept where the batches were (on the CPU, if a device is given); a block and one
    batch at a time are on the device.
    """

    blocks: list[tuple[str, nn.Module]]
    calls: list[Call | Any]  # a batch itself where the whole model is the one block
    forward: Forward
    device: torch.device | None
    dense: list[Tensor] = field(default_factory=list)
    quantized: list[Tensor] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        """Whether the model is one block."""
        return self.blocks[0][0] == ""

    def run(self, block: nn.Module, batch: int, inputs: list[Tensor]) -> tuple[Tensor, ...]:
        """A block's outputs for one batch, on the device."""
        call = self.calls[batch]
        if self.whole:
            return outputs_of(self.forward(block, moved(call, self.device)))
        here = Call(moved(call.args, self.device), moved(call.kwargs, self.device), call.key)
        return outputs_of(here.run(block, moved(inputs[batch], self.device)))

    def outputs(self, block: nn.Module, inputs: list[Tensor]) -> list[tuple[Tensor, ...]]:
        """A block's outputs for every batch, stored."""
        home = None if self.device is None else torch.device("cpu")
        with calibrating(block):
            return [moved(self.run(block, i, inputs), home) for i in range(len(self.calls))]


@contextmanager
def placed(block: nn.Module, device: torch.device | None) -> Iterator[None]:
    """The block on a device, and afterwards where its first parameter was."""
    first = next(block.parameters(), None)
    if device is None or first is None:
        yield
        return
    home = first.device
    block.to(device)
    try:
        yield
    finally:
        block.to(home)


def make_chain(
    model: nn.Module,
    blocks: list[tuple[str, nn.Module]],
    batches: Iterable[Any],
    forward: Forward,
    device: torch.device | None,
) -> Chain:
    """Run every batch up to the first block, the first batch to the end, and check the chain.

    Raises:
        ValueError: no batch; a block is not called just once, or not on the output of the one
            before with the same other arguments.
    """
    if blocks[0][0] == "":
        chain = Chain(blocks, list(batches), forward, device)
    else:
        chain = Chain(blocks, _reach(model, blocks, batches, forward, device), forward, device)
        chain.dense = [call.x for call in chain.calls]
        chain.quantized = list(chain.dense)
    if not chain.calls:
        raise ValueError(f"{_OPERATOR}: calibration must yield at least one batch, got none")
    return chain


def _reach(
    model: nn.Module,
    blocks: list[tuple[str, nn.Module]],
    batches: Iterable[Any],
    forward: Forward,
    device: torch.device | None,
) -> list[Call]:
    calls: list[Call] = []
    home = None if device is None else torch.device("cpu")

    def stop(module: nn.Module, args: Any, kwargs: Any) -> None:
        call = _call(args, kwargs)
        calls.append(Call(moved(call.args, home), moved(call.kwargs, home), call.key))
        raise _Reached

    first = True
    with calibrating(model):
        for batch in batches:
            if first:
                _check_chain(model, blocks, batch, forward)
                first = False
            handle = blocks[0][1].register_forward_pre_hook(stop, with_kwargs=True)
            try:
                forward(model, batch)
            except _Reached:
                pass
            finally:
                handle.remove()
    return calls


def _check_chain(
    model: nn.Module, blocks: list[tuple[str, nn.Module]], batch: Any, forward: Forward
) -> None:
    seen: list[tuple[str, Call, Tensor]] = []
    handles = []
    for name, block in blocks:

        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any, name: str = name) -> None:
            seen.append((name, _call(args, kwargs), outputs_of(output)[0]))

        handles.append(block.register_forward_hook(hook, with_kwargs=True))
    try:
        forward(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    wanted = [name for name, _ in blocks]
    called = [name for name, _, _ in seen]
    if called != wanted:
        raise ValueError(
            f"{_OPERATOR}: blocks must be called once each in module order, {wanted}, got {called}"
        )
    for (before, first, output), (name, call, _) in pairwise(seen):
        if call.x is not output or not _same(first, call):
            raise ValueError(
                f"{_OPERATOR}: blocks must be a chain, each called on the output of the one before "
                f"and the same other arguments, got other inputs of {name!r} behind {before!r}; "
                "blocks=None takes the model as one block"
            )


def _same(a: Call, b: Call) -> bool:
    """Whether two calls agree in all but x."""
    if a.key != b.key or len(a.args) != len(b.args) or a.kwargs.keys() != b.kwargs.keys():
        return False
    pairs = list(zip(a.args, b.args, strict=True))[0 if a.key else 1 :]
    pairs += [(a.kwargs[key], b.kwargs[key]) for key in a.kwargs if key != a.key]
    return all(_equal(x, y) for x, y in pairs)


def _equal(x: Any, y: Any) -> bool:
    if isinstance(x, Tensor) and isinstance(y, Tensor):
        return x is y or (x.shape == y.shape and x.dtype == y.dtype and torch.equal(x, y))
    if type(x) in (tuple, list) and type(x) is type(y):
        return len(x) == len(y) and all(map(_equal, x, y))
    return x is y or (not isinstance(x, Tensor) and bool(x == y))
