# SPDX-License-Identifier: Apache-2.0
"""csr_linear on CUDA against the CPU operator."""

from __future__ import annotations

import pytest
import torch
from strategies import ACTIVATIONS, DTYPES, X_DTYPES, Packed, Spec, activations, pack

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU"),
]
_TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2, "float16": 2e-3}


def parts(packed: Packed, device: str) -> tuple[torch.Tensor | None, ...]:
    tensors = packed.values, packed.structure, packed.scale
    return tuple(None if t is None else t.to(device) for t in tensors)


def check(packed: Packed, x: torch.Tensor, bias=None, activation: str = "none") -> None:
    code = ACTIVATIONS.index(activation)
    op, rows = torch.ops.sparsekern.csr_linear, packed.spec.rows
    moved = None if bias is None else bias.cuda()
    y = op(x.cuda(), *parts(packed, "cuda"), moved, rows, code)
    expected = op(x.float(), *parts(packed, "cpu"), bias, rows, code)
    assert y.dtype == x.dtype
    tolerance = _TOLERANCE[str(x.dtype).removeprefix("torch.")]
    scale = float(expected.abs().max()) if expected.numel() else 1.0
    torch.testing.assert_close(
        y.float().cpu(), expected, rtol=tolerance, atol=tolerance * max(scale, 1.0)
    )


@pytest.mark.parametrize("block_rows", [1, 2, 4])
@pytest.mark.parametrize("dtype", DTYPES)
def test_shapes_and_dtypes(dtype, block_rows):
    for rows, cols in ((1, 1), (17, 130), (300, 257)):
        packed = pack(Spec(rows, cols, 0.2, dtype, block_rows))
        for x_rows in (0, 1, 3, 8, 20):
            for x_dtype in X_DTYPES:
                check(packed, activations((x_rows, cols), x_dtype, x_rows))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_bias_and_activation(activation):
    packed = pack(Spec(77, 140, 0.2, "bfloat16"))
    check(packed, activations((5, 140)) * 2, activations((77,), seed=1), activation)


def test_streams_and_graphs():
    packed = pack(Spec(200, 256, 0.2, "float32"))
    w = parts(packed, "cuda")
    x = activations((4, 256)).cuda()
    op = torch.ops.sparsekern.csr_linear
    expected = op(x, *w, None, 200)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        y = op(x, *w, None, 200)
    stream.synchronize()
    assert torch.equal(y, expected)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = op(x, *w, None, 200)
    x.mul_(2)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(y, op(x, *w, None, 200))


def test_bad_arguments():
    packed = pack(Spec(40, 64, 0.2, "float32"))
    values, structure, _ = parts(packed, "cuda")
    x = activations((3, 64)).cuda()
    op = torch.ops.sparsekern.csr_linear
    with pytest.raises(ValueError, match=r"csr_linear: values must be on x's device.*got cpu"):
        op(x, values.cpu(), structure, None, None, 40)
    with pytest.raises(ValueError, match=r"csr_linear: bias must have rows \(40\) elements"):
        op(x, values, structure, None, torch.zeros(39, device="cuda"), 40)
    with pytest.raises(ValueError, match=r"csr_linear: activation must be in \[0, 6\], got 7"):
        op(x, values, structure, None, None, 40, 7)
