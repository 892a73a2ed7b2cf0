# SPDX-License-Identifier: Apache-2.0
"""What the tests of linear operators on CUDA share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from strategies import Packed


def on_cuda(packed: Packed) -> tuple[torch.Tensor | None, ...]:
    """Values, structure and scale on the GPU."""
    scale = None if packed.scale is None else packed.scale.cuda()
    return packed.values.cuda(), packed.structure.cuda(), scale


def check_streams_and_graphs(
    multiply: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, other: torch.Tensor
) -> None:
    """Equal results on another stream, and of a captured graph after x became `other`."""
    expected = multiply(x)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        y = multiply(x)
    stream.synchronize()
    assert torch.equal(y, expected)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = multiply(x)
    x.copy_(other)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(y, multiply(other))
