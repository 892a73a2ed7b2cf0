# SPDX-License-Identifier: Apache-2.0
"""bitmap_linear on CUDA against the oracle."""

from __future__ import annotations

import math

import pytest
import sparsekern as sk
import torch
from cuda_checks import check_streams_and_graphs, on_cuda
from products import check_product
from strategies import (
    ACTIVATIONS,
    DTYPES,
    X_DTYPES,
    Packed,
    Spec,
    activations,
    pack_bitmap,
    with_special,
)

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU"),
]

# Rows of x of each kernel, chunks of it and their tails.
X_ROWS = (1, 2, 4, 5, 8, 9, 16, 17, 40, 64, 65, 130)


def run(packed: Packed, x: torch.Tensor, bias=None, activation: str = "none") -> torch.Tensor:
    code = ACTIVATIONS.index(activation)
    return torch.ops.sparsekern.bitmap_linear(x, *on_cuda(packed), bias, packed.spec.rows, code)


def check(packed: Packed, x: torch.Tensor, bias=None, activation: str = "none") -> None:
    y = run(packed, x.cuda(), None if bias is None else bias.cuda(), activation)
    assert y.is_cuda
    # Tensor cores add up with truncation, not to the nearest.
    check_product(y.cpu(), packed, x, bias, activation, c=2.0)


@pytest.mark.parametrize("x_dtype", X_DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_densities_and_dtypes(dtype, x_dtype):
    for density in (0.0, 0.05, 0.5, 1.0):
        packed = pack_bitmap(Spec(70, 200, density, dtype, seed=3))
        for x_rows in X_ROWS:
            check(packed, activations((x_rows, 200), x_dtype, x_rows))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_ragged_shapes_of_tiles(dtype):
    for rows, cols in ((1, 64), (15, 63), (128, 64), (129, 65), (300, 40), (257, 1000), (512, 513)):
        packed = pack_bitmap(Spec(rows, cols, 0.5, dtype, seed=rows))
        for x_rows in (1, 3, 9, 63, 64, 65, 129, 300):
            check(packed, activations((x_rows, cols), dtype, x_rows), activations((rows,)))


def test_tiny_matrices():
    for rows, cols in ((1, 1), (5, 2), (17, 3), (2, 70)):
        for dtype in DTYPES:
            packed = pack_bitmap(Spec(rows, cols, 0.5, dtype, seed=cols))
            for x_rows in (1, 6, 70):
                check(packed, activations((x_rows, cols), "bfloat16", 1))


def test_wide_matrices_are_split():
    for dtype in ("float32", "float16", "int8"):
        packed = pack_bitmap(Spec(40, 20000, 0.4, dtype, seed=9))
        for x_dtype in ("float32", "float16"):
            for x_rows in (1, 3, 8, 20):
                check(packed, activations((x_rows, 20000), x_dtype, x_rows), activations((40,)))


def test_one_dense_slice_among_empty_ones():
    w = torch.zeros(48, 1024)
    w[16:32, 64:128] = activations((16, 64))
    w[47, 1023] = 1.0
    for mask in (w != 0, (w != 0).flip(0, 1)):
        packed = sk.BitmapTensor.from_dense(activations((48, 1024), seed=2), mask=mask)
        dense = packed.to_dense()
        values, structure = packed.values.cuda(), packed.structure.cuda()
        for x_rows in (1, 8, 70):
            x = activations((x_rows, 1024))
            y = torch.ops.sparsekern.bitmap_linear(x.cuda(), values, structure, None, None, 48)
            torch.testing.assert_close(y.cpu(), x @ dense.T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("x_dtype", X_DTYPES)
def test_bias_and_activation(activation, x_dtype):
    for dtype in ("int8", x_dtype):
        packed = pack_bitmap(Spec(77, 140, 0.5, dtype, seed=6))
        bias = activations((77,), seed=1)
        for x_rows in (1, 5, 70):
            x = activations((x_rows, 140), x_dtype, x_rows) * 2
            check(packed, x, bias, activation)
            check(packed, x, bias.to(x.dtype), activation)


def test_shapes_and_strides_of_x():
    packed = pack_bitmap(Spec(33, 64, 0.5, "bfloat16"))
    for shape in ((64,), (0, 64), (2, 0, 64), (3, 5, 64), (2, 3, 4, 64)):
        check(packed, activations(shape, "bfloat16"))
    parts = on_cuda(packed)
    x = activations((80, 128), "bfloat16").cuda()
    for part in (x[:, ::2], x[:, 1:65], x[::2, :64], x[:3, 1:65], x[:9, :64]):
        y = torch.ops.sparsekern.bitmap_linear(part, *parts, None, 33)
        same = torch.ops.sparsekern.bitmap_linear(part.clone(), *parts, None, 33)
        assert torch.equal(y, same)


def test_parts_that_begin_anywhere():
    packed = pack_bitmap(Spec(64, 128, 0.5, "bfloat16"))
    values, structure, _ = on_cuda(packed)
    moved = [torch.cat([t.new_zeros(3), t])[3:] for t in (values, structure)]
    for x_rows in (1, 8, 70):
        x = activations((x_rows, 128), "bfloat16").cuda()
        args = (None, None, 64)
        y = torch.ops.sparsekern.bitmap_linear(x, *moved, *args)
        assert torch.equal(y, torch.ops.sparsekern.bitmap_linear(x, values, structure, *args))


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_decode_multiplies_kept_weights_only(value):
    for x_rows in (1, 3, 9):  # float32: multiply-adds
        packed = pack_bitmap(Spec(40, 150, 0.5, seed=9))
        x = activations((x_rows, 150))
        x[0, 7] = value
        check(packed, x)
        row, col = packed.matrix.mask.nonzero()
        place = int(row[33]), int(col[33])
        check(with_special(packed, place, value), activations((x_rows, 150)))
        x = activations((x_rows, 150))
        x[-1, place[1]] = value
        check(with_special(packed, place, 0.0), x)  # kept: 0 * inf is NaN


@pytest.mark.parametrize("x_rows", [1, 9, 70])
def test_results_are_deterministic(x_rows):
    packed = pack_bitmap(Spec(530, 3000, 0.5, "bfloat16"))
    parts = on_cuda(packed)
    x = activations((x_rows, 3000), "bfloat16").cuda()
    first = torch.ops.sparsekern.bitmap_linear(x, *parts, None, 530)
    for _ in range(5):
        assert torch.equal(torch.ops.sparsekern.bitmap_linear(x, *parts, None, 530), first)


@pytest.mark.parametrize("x_rows", [1, 16, 70])
def test_streams_and_graphs(x_rows):
    packed = pack_bitmap(Spec(200, 250, 0.5, "bfloat16"))
    parts = on_cuda(packed)
    x, other = (activations((x_rows, 250), "bfloat16", seed).cuda() for seed in (0, 5))
    check_streams_and_graphs(
        lambda x: torch.ops.sparsekern.bitmap_linear(x, *parts, None, 200), x, other
    )


def test_a_header_that_contradicts_gives_nan():
    packed = pack_bitmap(Spec(33, 256, 0.5, "bfloat16"))
    values, structure, _ = on_cuda(packed)
    structure[8] += 1  # rows; the panels stay as many
    for x_rows in (1, 9, 70):
        x = activations((x_rows, 256), "bfloat16").cuda()
        assert (
            torch.ops.sparsekern.bitmap_linear(x, values, structure, None, None, 33).isnan().all()
        )


def test_any_bytes_are_safe():
    """Panel offsets and bits that nobody validated: numbers, and no wild access (memcheck)."""
    generator = torch.Generator().manual_seed(0)
    for dtype in DTYPES:
        packed = pack_bitmap(Spec(40, 300, 0.2, dtype))
        values, structure, scale = on_cuda(packed)
        noise = torch.randint(256, structure.shape, generator=generator, dtype=torch.uint8)
        structure[64:] = noise[64:].cuda()
        for x_dtype in ("float32", "bfloat16"):
            for x_rows in (1, 9, 70):
                x = activations((x_rows, 300), x_dtype).cuda()
                y = torch.ops.sparsekern.bitmap_linear(x, values, structure, scale, None, 40)
                torch.cuda.synchronize()
                assert y.shape == (x_rows, 40)


def test_layer_and_gradients():
    layer = sk.nn.BitmapLinear.from_dense(torch.nn.Linear(64, 48))
    x = activations((20, 64)).requires_grad_()
    y = layer(x)
    y.square().sum().backward()
    expected = y.detach(), x.grad.clone(), layer.values.grad.clone()
    layer.zero_grad()
    on_device = layer.cuda()
    moved = x.detach().cuda().requires_grad_()
    out = on_device(moved)
    out.square().sum().backward()
    got = out.detach(), moved.grad, on_device.values.grad
    for g, e in zip(got, expected, strict=True):
        assert g.is_cuda
        torch.testing.assert_close(g.cpu(), e, rtol=1e-5, atol=1e-5)


def test_bad_arguments():
    packed = pack_bitmap(Spec(40, 64, 0.5, "bfloat16"))
    values, structure, _ = on_cuda(packed)
    x = activations((3, 64), "bfloat16").cuda()
    op = torch.ops.sparsekern.bitmap_linear
    with pytest.raises(ValueError, match=r"bitmap_linear: values must be on x's device.*got cpu"):
        op(x, values.cpu(), structure, None, None, 40)
    with pytest.raises(ValueError, match=r"bitmap_linear: structure must be on x's device.*cpu"):
        op(x, values, structure.cpu(), None, None, 40)
    with pytest.raises(ValueError, match=r"bitmap_linear: bias must be on x's device.*got cpu"):
        op(x, values, structure, None, torch.zeros(40), 40)
    with pytest.raises(ValueError, match=r"bitmap_linear: bias must have rows \(40\) .*got 39"):
        op(x, values, structure, None, torch.zeros(39, device="cuda"), 40)
    for rows in (60, 0, -1, 2**40):
        with pytest.raises(ValueError, match="bitmap_linear: values and structure must have the"):
            op(x, values, structure, None, None, rows)
    with pytest.raises(ValueError, match="bitmap_linear: values and structure must have the sizes"):
        op(x.repeat(1, 2), values, structure, None, None, 40)
    with pytest.raises(ValueError, match=r"bitmap_linear: activation must be in \[0, 6\], got 7"):
        op(x, values, structure, None, None, 40, 7)
    with pytest.raises(ValueError, match="bitmap_linear: scale must be given for int8"):
        op(x, values, structure, torch.ones(40, device="cuda"), None, 40)
    with pytest.raises(RuntimeError, match="x must be float32, bfloat16 or float16"):
        op(x.double(), values, structure, None, None, 40)
