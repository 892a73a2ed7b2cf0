# SPDX-License-Identifier: Apache-2.0
"""gqs_linear against the oracle on every instruction set; its gradients and its errors."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
import sparsekern as sk
import torch
from compare import assert_close
from sparsekern import ops
from sparsekern._packed import to_numpy
from sparsekern.gqs import SCALE_NAMES
from strategies import ACTIVATIONS, activations
from torch.nn.functional import gelu, linear


def random_gqs(
    rows: int,
    cols: int,
    bits: int = 4,
    group: int = 16,
    scale: torch.dtype = torch.float16,
    zeros: bool = False,
    density: float = 0.5,
    seed: int = 0,
) -> sk.GQSTensor:
    """A matrix whose rows keep from nothing to everything."""
    g = torch.Generator().manual_seed(seed)
    shape = (rows, -(-cols // group))
    codes = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (rows, cols), generator=g)
    mask = torch.rand(shape, generator=g) < torch.rand(rows, 1, generator=g) * 2 * density
    scales = torch.rand(shape, generator=g) + 0.01
    points = torch.randint(-4, 4, shape, generator=g) if zeros else None
    return sk.GQSTensor.from_quantized(
        codes, scales, mask, points, bits=bits, group=group, scale_dtype=scale
    )


def check(w: sk.GQSTensor, x: torch.Tensor, bias=None, activation: str = "none") -> None:
    check_result(ops.gqs_linear(x, w, bias, activation), w, x, bias, activation)


def check_result(
    y: torch.Tensor,
    w: sk.GQSTensor,
    x: torch.Tensor,
    bias: torch.Tensor | None,
    activation: str,
    c: float = 1.0,
) -> None:
    """Shape, dtype and every element of y, the product with x; `c` as in `assert_close`."""
    rows, cols = w.shape
    assert y.shape == (*x.shape[:-1], rows)
    assert y.dtype == x.dtype
    assert y.is_contiguous()
    read = oracle.read_gqs(
        w.values.numpy(), w.structure.numpy(), to_numpy(w.scale), SCALE_NAMES[w.scale.dtype]
    )
    expected = oracle.linear(
        x.double().reshape(-1, cols).numpy(),
        read.dense,
        read.mask,
        None if bias is None else bias.double().numpy(),
    )
    name = str(x.dtype).removeprefix("torch.")
    what = f"{w}, x {tuple(x.shape)} {name}, {activation}"
    assert_close(y.double().reshape(-1, rows).numpy(), expected, name, activation, c=c, what=what)


def rounded(x: torch.Tensor, group: int) -> torch.Tensor:
    """Groups of x as multiples of max |group| / 127, in float32 as the specification has them."""
    wide = torch.nn.functional.pad(x.float(), (0, -x.shape[-1] % group)).unflatten(-1, (-1, group))
    most = wide.abs().amax(-1, keepdim=True)
    inverse = torch.where(most > 2.0**-100, torch.full_like(most, 127) / most, 0.0)
    whole = (wide * inverse).round()
    return (whole.double() * (most / 127).double()).flatten(-2)[..., : x.shape[-1]]


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize(("bits", "group"), [(2, 16), (4, 16), (4, 64), (8, 128)])
def test_int8_activations(int8_isa, threads, bits, group, zeros):
    w = random_gqs(40, 300, bits, group, zeros=zeros)
    dense = w.to_dense().double().numpy()
    mask = w.group_mask().repeat_interleave(group, 1)[:, :300].numpy()
    for x_rows in (1, 4, 7, 9, 33):
        for dtype in ("float32", "bfloat16"):
            x = activations((x_rows, 300), dtype, x_rows)
            expected = oracle.linear(rounded(x, group).numpy(), dense, mask)
            y = ops.gqs_linear(x, w, int8_activations=True)
            assert_close(y.double().numpy(), expected, dtype, c=2.0, what=f"{w}, {x_rows} rows")


def test_the_layer_keeps_int8_activations(tmp_path):
    layer = sk.nn.GQSLinear.from_dense(torch.nn.Linear(64, 20))
    assert not layer.int8_activations
    layer.int8_activations = True
    assert "int8_activations=True" in repr(layer)
    model = torch.nn.Sequential(layer)
    sk.save_file(model, tmp_path / "m.safetensors")
    loaded = torch.nn.Sequential(torch.nn.Linear(64, 20))
    sk.load_file(loaded, tmp_path / "m.safetensors")
    assert loaded[0].int8_activations
    x = activations((5, 64))
    assert torch.equal(loaded(x), model(x))
    assert not torch.equal(loaded(x), ops.gqs_linear(x, layer.weight, layer.bias))


def test_gradients_pass_the_rounding(isa):
    w = random_gqs(20, 70)
    grads = []
    for on in (False, True):
        x = activations((4, 70)).requires_grad_()
        ops.gqs_linear(x, w, None, "gelu", int8_activations=on).sum().backward()
        grads.append(x.grad)
    assert torch.equal(*grads)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("group", [16, 32, 64, 128])
def test_kinds(isa, bits, group):
    for scale in SCALE_NAMES:
        for zeros in (False, True)[: 1 if scale == torch.uint8 else 2]:
            w = random_gqs(40, 300, bits, group, scale, zeros)
            for x_rows in (1, 2, 3, 16, 20):
                check(w, activations((x_rows, 300), seed=x_rows))


def test_row_counts(isa, threads):
    w = random_gqs(150, 300, density=0.3)
    for x_rows in (0, 1, 2, 4, 5, 7, 8, 9, 15, 16, 17, 33, 64, 65, 100, 129):
        check(w, activations((x_rows, 300), seed=x_rows), activations((150,)))


@pytest.mark.parametrize("shape", [(1, 1), (1, 3000), (130, 1), (64, 128), (257, 129), (3, 17)])
def test_shapes(isa, shape):
    for density in (0.0, 0.4, 2.0):  # 2: all rows full or nearly so
        w = random_gqs(*shape, density=density)
        for x_rows in (1, 6, 40):
            check(w, activations((x_rows, shape[1])), activations(shape[:1]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_x_dtypes_and_activations(isa, dtype, activation):
    w = random_gqs(40, 130, zeros=True)
    for x_rows in (1, 30):
        x = activations((x_rows, 130)).to(dtype)
        check(w, x, activations((40,)), activation)
    strided = activations((5, 200)).to(dtype)[:, 3:133]
    check(w, strided)
    check(w, activations((2, 3, 130)).to(dtype))


def test_sums_do_not_depend_on_the_threads():
    w = random_gqs(7, 30000, density=1.0)
    x = activations((2, 30000))
    before = torch.get_num_threads()
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append(ops.gqs_linear(x, w))
    torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_pruned_groups_take_no_part(isa):
    w = random_gqs(30, 160)
    kept = w.group_mask()
    for x_rows in (1, 40):
        x = torch.ones(x_rows, 160)
        x[:, 33], x[:, 150] = torch.inf, torch.nan
        y = ops.gqs_linear(x, w)
        touched = kept[:, 2] | kept[:, 9]
        assert torch.equal(y.isfinite(), ~touched.expand_as(y))


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("activation", ["none", "gelu", "relu"])
def test_gradients(activation, zeros):
    w = random_gqs(20, 70, scale=torch.float32, zeros=zeros)
    w.scale.requires_grad_()
    x, bias = activations((9, 70)).requires_grad_(), activations((20,)).requires_grad_()
    ops.gqs_linear(x, w, bias, activation).square().sum().backward()

    scale = w.scale.detach().double().requires_grad_()
    count = w.scales.numel()
    mask = w.group_mask()
    ratio = torch.zeros(mask.shape, dtype=torch.float64).masked_scatter(mask, scale[:count])
    codes = w.codes().double()
    if zeros:
        points = torch.zeros(mask.shape, dtype=torch.float64).masked_scatter(mask, scale[count:])
        codes = codes - points.repeat_interleave(16, 1)[:, :70]
    dense = codes * ratio.repeat_interleave(16, 1)[:, :70]
    reference = (x.detach().double().requires_grad_(), bias.detach().double().requires_grad_())
    y = linear(reference[0], dense, reference[1])
    y = {"none": lambda v: v, "gelu": gelu, "relu": torch.relu}[activation](y)
    y.square().sum().backward()
    for got, want in ((x, reference[0]), (bias, reference[1]), (w.scale, scale)):
        torch.testing.assert_close(got.grad.double(), want.grad, rtol=1e-4, atol=1e-3)


def test_second_gradients_of_x_exist_and_of_scales_are_refused():
    w = random_gqs(20, 70, scale=torch.float32)
    x = activations((3, 70)).requires_grad_()
    dense = w.to_dense()
    (first,) = torch.autograd.grad(ops.gqs_linear(x, w).pow(3).sum(), x, create_graph=True)
    y = x.detach().double().requires_grad_()
    (want,) = torch.autograd.grad(linear(y, dense.double()).pow(3).sum(), y, create_graph=True)
    second = torch.autograd.grad(first.sum(), x)[0]
    torch.testing.assert_close(
        second.double(), torch.autograd.grad(want.sum(), y)[0], rtol=1e-3, atol=1e-2
    )
    w.scale.requires_grad_()
    y = ops.gqs_linear(x, w).pow(3).sum()
    (of_scale,) = torch.autograd.grad(y, w.scale, create_graph=True)
    with pytest.raises(NotImplementedError, match="scales and zero-points have no second"):
        of_scale.sum().backward()


W = random_gqs(20, 70)
X = torch.zeros(2, 70)
REFUSED = {
    "x list": ({"x": [1.0]}, TypeError, "gqs_linear: x must be a torch.Tensor, got list"),
    "x double": ({"x": X.double()}, TypeError, "gqs_linear: x must be float32, bfloat16 or float1"),
    "x width": (
        {"x": X[:, 1:]},
        ValueError,
        r"gqs_linear: x.shape\[-1\] must equal in_features \(70\), got 69",
    ),
    "x scalar": ({"x": torch.tensor(1.0)}, ValueError, "x must have 1 to 16 dimensions, got 0"),
    "w dense": ({"w": torch.ones(2, 2)}, TypeError, "w must be a GQSTensor, got Tensor"),
    "bias size": ({"bias": torch.ones(19)}, ValueError, r"gqs_linear: bias must .*20.*, got .*19"),
    "activation": ({"activation": "tanh"}, NotImplementedError, "activation must be one of"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case):
    changes, error, text = REFUSED[case]
    with pytest.raises(error, match=text):
        ops.gqs_linear(**{"x": X, "w": W, **changes})


def test_the_operator_and_its_fake_refuse_the_same():
    good = {
        "x": X,
        "values": W.values,
        "structure": W.structure,
        "scale": W.scale,
        "bias": None,
        "rows": 20,
        "activation": 0,
    }
    changes = [
        {"x": X.double()},
        {"x": torch.tensor(1.0)},
        {"values": W.values.float()},
        {"values": W.values[None]},
        {"structure": W.structure.short()},
        {"scale": W.scale.double()},
        {"scale": W.scale[None]},
        {"bias": torch.ones(19)},
        {"activation": 7},
    ]
    op = torch.ops.sparsekern.gqs_linear
    assert op(**good).shape == (2, 20)
    for change in changes:
        arguments = good | change
        with pytest.raises((RuntimeError, TypeError, ValueError)):
            op(**arguments)
        meta = {k: v.to("meta") if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}
        with pytest.raises((TypeError, ValueError)):
            op(**meta)
    for change in (
        {"values": W.values[:-64]},
        {"scale": W.scale[:-1]},
        {"scale": W.scale.float().byte()},  # 8-bit scales without factors
        {"rows": 21},
        {"structure": W.structure[:-1].clone()},
    ):
        with pytest.raises((RuntimeError, TypeError, ValueError), match="gqs_linear: "):
            op(**(good | change))


@pytest.mark.parametrize("at", [4, 40, 64, 68, 192])
def test_corrupt_offsets_are_refused_on_each_call(at):
    structure = W.structure.clone()
    structure[at : at + 4] = torch.tensor([255, 255, 255, 127], dtype=torch.uint8)
    with pytest.raises((RuntimeError, ValueError), match="gqs_linear: structure"):
        torch.ops.sparsekern.gqs_linear(X, W.values, structure, W.scale, None, 20)


def test_compile():
    x = activations((3, 70))
    w = random_gqs(20, 70)

    def f(x):
        return ops.gqs_linear(x, w, None, "relu") + 1

    torch.testing.assert_close(torch.compile(f, backend="aot_eager", fullgraph=True)(x), f(x))


def test_kernel_names(isa):
    from conftest import ISAS

    name = sk._core.gqs_kernel(W.structure.numpy(), 1)
    assert name == f"gqs_linear_w4g16_decode__{ISAS[isa]}"
    assert sk._core.gqs_kernel(W.structure.numpy(), 999) == f"gqs_linear_w4g16_batch__{ISAS[isa]}"
    assert np.asarray(W.values).dtype == np.int8
