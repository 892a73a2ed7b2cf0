# SPDX-License-Identifier: Apache-2.0
"""gqs_linear on CUDA against the oracle. Its index arithmetic is tested in tests/cpp."""

from __future__ import annotations

import copy

import pytest
import sparsekern as sk
import torch
from cuda_checks import check_streams_and_graphs
from sparsekern.gqs import SCALE_NAMES
from strategies import ACTIVATIONS, X_DTYPES, activations
from test_gqs_linear import check_result, random_gqs

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU"),
]


def on_cuda(w: sk.GQSTensor) -> tuple[torch.Tensor, ...]:
    return w.values.cuda(), w.structure.cuda(), w.scale.detach().cuda()


def run(w: sk.GQSTensor, x: torch.Tensor, bias=None, activation: str = "none") -> torch.Tensor:
    code = ACTIVATIONS.index(activation)
    return torch.ops.sparsekern.gqs_linear(x, *on_cuda(w), bias, w.shape[0], code)


def check(w: sk.GQSTensor, x: torch.Tensor, bias=None, activation: str = "none") -> None:
    y = run(w, x.cuda(), None if bias is None else bias.cuda(), activation)
    assert y.is_cuda
    # Tensor cores add up with truncation, and take weights rounded to the dtype of x.
    check_result(y.cpu(), w, x, bias, activation, c=3.0)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("group", [16, 32, 64, 128])
@pytest.mark.parametrize("x_dtype", X_DTYPES)
def test_kinds(bits, group, x_dtype):
    for scale in SCALE_NAMES:
        for zeros in (False, True)[: 1 if scale == torch.uint8 else 2]:
            w = random_gqs(70, 300, bits, group, scale, zeros)
            for x_rows in (1, 2, 3, 16, 20, 65, 200):
                check(w, activations((x_rows, 300), x_dtype, x_rows))


@pytest.mark.parametrize("x_dtype", X_DTYPES)
def test_tiny_and_ragged_shapes(x_dtype):
    for shape in ((1, 1), (1, 3000), (130, 1), (64, 128), (129, 65), (257, 1000), (3, 17)):
        for density in (0.0, 0.4, 2.0):  # 2: all rows full or nearly so
            w = random_gqs(*shape, density=density)
            for x_rows in (1, 4, 9, 63, 65, 130):
                x = activations((x_rows, shape[1]), x_dtype, x_rows)
                check(w, x, activations((shape[0],)))


def test_rows_that_span_tasks_and_blocks_of_threads():
    for bits, group in ((2, 16), (4, 16), (4, 128), (8, 32)):
        for shape in ((5, 20000), (2, 50000), (40, 9000), (3000, 4096)):
            w = random_gqs(*shape, bits, group, density=0.7)
            for x_rows in (1, 2, 4, 11):
                check(w, activations((x_rows, shape[1]), "bfloat16", x_rows))


def test_wide_matrices():
    for cols in (13000, 29000, 60000, 130000):
        w = random_gqs(20, cols, zeros=True)
        for x_rows in (1, 2, 4):
            check(w, activations((x_rows, cols), "float16", x_rows))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("x_dtype", X_DTYPES)
def test_bias_and_activation(activation, x_dtype):
    for scale in (torch.float16, torch.uint8):
        w = random_gqs(77, 140, scale=scale, seed=6)
        bias = activations((77,), seed=1)
        for x_rows in (1, 5, 70):
            x = activations((x_rows, 140), x_dtype, x_rows) * 2
            check(w, x, bias, activation)
            check(w, x, bias.to(x.dtype), activation)


def test_shapes_and_strides_of_x():
    w = random_gqs(33, 64)
    for shape in ((64,), (0, 64), (2, 0, 64), (3, 5, 64), (2, 3, 4, 64)):
        check(w, activations(shape, "bfloat16"))
    parts = on_cuda(w)
    x = activations((80, 128), "bfloat16").cuda()
    for part in (x[:, ::2], x[:, 1:65], x[::2, :64], x[:, :64]):
        y = torch.ops.sparsekern.gqs_linear(part, *parts, None, 33)
        assert torch.equal(y, torch.ops.sparsekern.gqs_linear(part.clone(), *parts, None, 33))


def test_parts_that_begin_anywhere():
    parts = on_cuda(random_gqs(64, 128))
    moved = [torch.cat([t.new_zeros(3), t])[3:] for t in parts]
    for x_rows in (1, 80):
        x = activations((x_rows, 128), "bfloat16").cuda()
        y = torch.ops.sparsekern.gqs_linear(x, *moved, None, 64)
        assert torch.equal(y, torch.ops.sparsekern.gqs_linear(x, *parts, None, 64))


def test_decode_multiplies_kept_groups_only():
    w = random_gqs(40, 96, seed=4)
    x = activations((3, 96))
    x[0, 5], x[1, 50], x[2, 95] = float("inf"), float("nan"), -float("inf")
    check(w, x)


@pytest.mark.parametrize("x_rows", [1, 16, 70])
def test_streams_and_graphs(x_rows):
    parts = on_cuda(random_gqs(200, 3000))
    x, other = (activations((x_rows, 3000), "bfloat16", seed).cuda() for seed in (0, 5))
    expected = torch.ops.sparsekern.gqs_linear(x, *parts, None, 200)
    assert torch.equal(torch.ops.sparsekern.gqs_linear(x, *parts, None, 200), expected)
    check_streams_and_graphs(
        lambda x: torch.ops.sparsekern.gqs_linear(x, *parts, None, 200), x, other
    )


@pytest.mark.parametrize("x_dtype", ["float32", "bfloat16"])
def test_a_header_that_contradicts_gives_nan(x_dtype):
    values, structure, scale = on_cuda(random_gqs(33, 256))
    for byte in (0, 4, 8, 16, 24, 28, 32, 44):
        broken = structure.clone()
        broken[byte] ^= 64
        for x_rows in (1, 80):
            x = activations((x_rows, 256), x_dtype).cuda()
            y = torch.ops.sparsekern.gqs_linear(x, values, broken, scale, None, 33)
            assert y.isnan().all()


def test_tiny_corrupt_structures_stay_inside_the_arrays():
    """Whatever offsets, tasks and masks say: compute-sanitizer looks on."""
    values, structure, scale = on_cuda(random_gqs(33, 256))
    for seed in range(8):
        g = torch.Generator().manual_seed(seed)
        broken = structure.clone()
        noise = torch.randint(256, (len(structure) - 64,), generator=g, dtype=torch.uint8)
        broken[64:] = noise.cuda() if seed > 1 else 255 * seed
        for x_dtype, x_rows in (("float32", 1), ("float32", 80), ("bfloat16", 4), ("bfloat16", 80)):
            x = activations((x_rows, 256), x_dtype).cuda()
            y = torch.ops.sparsekern.gqs_linear(x, values, broken, scale, None, 33)
            assert y.shape == (x_rows, 33)
    torch.cuda.synchronize()


def test_layer_and_gradients():
    layer = sk.nn.GQSLinear.from_packed(random_gqs(48, 64, zeros=True), activations((48,)))
    layer.scale.requires_grad_()
    on_device = copy.deepcopy(layer).cuda()
    x = activations((20, 64)).requires_grad_()
    layer(x).square().sum().backward()
    moved = x.detach().cuda().requires_grad_()
    on_device(moved).square().sum().backward()
    pairs = (
        (on_device(moved), layer(x)),
        (moved.grad, x.grad),
        (on_device.scale.grad, layer.scale.grad),
        (on_device.bias.grad, layer.bias.grad),
    )
    for got, expected in pairs:
        torch.testing.assert_close(got.cpu(), expected, rtol=1e-2, atol=1e-2)


def test_bad_arguments():
    values, structure, scale = on_cuda(random_gqs(40, 640))
    x = activations((3, 640), "bfloat16").cuda()
    op = torch.ops.sparsekern.gqs_linear
    for name, parts in (
        ("values", (values.cpu(), structure, scale)),
        ("structure", (values, structure.cpu(), scale)),
        ("scale", (values, structure, scale.cpu())),
    ):
        with pytest.raises(ValueError, match=rf"gqs_linear: {name} must be on x's dev.*got cpu"):
            op(x, *parts, None, 40)
    with pytest.raises(ValueError, match=r"gqs_linear: bias must be on x's device.*got cpu"):
        op(x, values, structure, scale, torch.zeros(40), 40)
    with pytest.raises(ValueError, match=r"bias must have rows \(40\) elements, got 39"):
        op(x, values, structure, scale, torch.zeros(39, device="cuda"), 40)
    sizes = "gqs_linear: values, structure and scale must have the sizes"
    with pytest.raises(ValueError, match=sizes):
        op(x, values, structure, scale, None, 4000)
    with pytest.raises(ValueError, match=sizes):
        op(x, values, structure, scale[:1], None, 40)
    with pytest.raises(ValueError, match=r"gqs_linear: activation must be in \[0, 6\], got 7"):
        op(x, values, structure, scale, None, 40, 7)
    with pytest.raises(ValueError, match="gqs_linear: int8_activations exist on the CPU only"):
        op(x, values, structure, scale, None, 40, 0, True)
    with pytest.raises(RuntimeError, match="values must be int8"):
        op(x, values.float(), structure, scale, None, 40)
    with pytest.raises(RuntimeError, match="scale must be float32, bfloat16, float16 or uint8"):
        op(x, values, structure, scale.double(), None, 40)
    with pytest.raises(RuntimeError, match="x must be float32, bfloat16 or float16"):
        op(x.double(), values, structure, scale, None, 40)
