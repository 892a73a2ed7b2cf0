# SPDX-License-Identifier: Apache-2.0
"""bitmap_linear against the oracle on every instruction set; BitmapLinear and what keeps it."""

from __future__ import annotations

import copy
import json
import math
import pickle

import pytest
import safetensors
import sparsekern as sk
import torch
from checkpoint_models import rewrite
from conftest import BITMAP_ISAS
from hypothesis import given, settings
from products import check_product, run_packed
from sparsekern import _core
from sparsekern._candidates import bitmap_fits
from strategies import (
    ACTIVATIONS,
    DTYPES,
    X_DTYPES,
    Packed,
    Spec,
    activations,
    pack_bitmap,
    specs,
    with_special,
)
from torch import nn


def run(packed: Packed, x: torch.Tensor, bias=None, activation: str = "none") -> torch.Tensor:
    return run_packed("bitmap_linear", packed, x, bias, activation)


def check(packed: Packed, x: torch.Tensor, bias=None, activation: str = "none") -> None:
    check_product(run(packed, x, bias, activation), packed, x, bias, activation)


@pytest.mark.parametrize("dtype", DTYPES)
def test_densities_and_dtypes(bitmap_isa, dtype):
    for density in (0.0, 0.05, 0.3, 0.5, 0.8, 1.0):
        packed = pack_bitmap(Spec(70, 200, density, dtype, seed=3))
        for x_rows in (1, 2, 5, 20):
            check(packed, activations((x_rows, 200), seed=x_rows))


def test_row_counts(bitmap_isa, threads):
    packed = pack_bitmap(Spec(300, 300, 0.5, "bfloat16", seed=4))
    for x_rows in (1, 2, 3, 4, 7, 15, 16, 17, 33, 64, 65, 80, 100, 129, 200):
        check(packed, activations((x_rows, 300), seed=x_rows), activations((300,)))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("x_dtype", X_DTYPES)
def test_bias_and_activation(bitmap_isa, activation, x_dtype):
    packed = pack_bitmap(Spec(77, 140, 0.5, "bfloat16", seed=6))
    bias = activations((77,), seed=1)
    for x_rows in (1, 5, 40):
        x = activations((x_rows, 140), x_dtype, x_rows) * 2
        check(packed, x, bias, activation)
        check(packed, x, bias.to(x.dtype), activation)


@settings(max_examples=40)
@given(spec=specs(200))
def test_any_matrix(bitmap_isa, spec):
    packed = pack_bitmap(Spec(spec.rows, spec.cols, spec.density, spec.dtype, seed=spec.seed))
    for x_rows in (1, 6, 40):
        check(packed, activations((x_rows, spec.cols), seed=spec.seed))


@pytest.mark.parametrize("x_rows", [1, 33])
def test_by_torch(bitmap_isa, x_rows):
    """The way of batches on processors with AMX (BitmapSelectionTest in C++)."""
    operator = "_bitmap_linear_by_torch"
    packed = pack_bitmap(Spec(77, 140, 0.5, "bfloat16", seed=6))
    x = activations((x_rows, 140), "bfloat16", 3)
    bias = activations((77,), seed=1)
    for given_x in (x, x[None], activations((x_rows, 160), "bfloat16", 3)[:, 7:147]):
        y = run_packed(operator, packed, given_x)
        check_product(y, packed, given_x, None, "none")
        with torch.autocast("cpu", torch.float16):
            assert torch.equal(run_packed(operator, packed, given_x), y)
    product = run_packed(operator, packed, x).float()  # rounded before bias and activation
    for activation, function in (("relu", torch.relu), ("silu", nn.functional.silu)):
        y = run_packed(operator, packed, x, bias, activation).float()
        torch.testing.assert_close(y, function(product + bias), rtol=2**-8, atol=1e-6)
    x[0, 7] = math.inf
    check_product(run_packed(operator, packed, x), packed, x, None, "none")
    assert run_packed(operator, packed, x[:0]).shape == (0, 77)
    with pytest.raises(ValueError, match="scale"):
        torch.ops.sparsekern._bitmap_linear_by_torch(
            x, packed.values, packed.structure, torch.ones(77), None, 77
        )


def test_leading_dimensions_and_strides(bitmap_isa):
    packed = pack_bitmap(Spec(20, 33, 0.5))
    x = activations((2, 3, 33))
    check(packed, x)
    check(packed, activations((33,)))
    check(packed, activations((9, 66))[:, ::2])
    check(packed, activations((9, 40))[1:, 3:36])
    assert run(packed, torch.zeros(0, 33)).shape == (0, 20)


@pytest.mark.parametrize("x_rows", [1, 3, 40])
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_a_pruned_weight_meets_nothing_and_a_kept_one_all(bitmap_isa, value, x_rows):
    """In x, and among the kept weights: what is kept is kept, what is not contributes nothing."""
    packed = pack_bitmap(Spec(40, 150, 0.5, seed=9))
    x = activations((x_rows, 150))
    x[0, 7] = value
    check(packed, x)
    row, col = packed.matrix.mask.nonzero()
    check(with_special(packed, (int(row[33]), int(col[33])), value), activations((x_rows, 150)))
    zero = with_special(packed, (int(row[33]), int(col[33])), 0.0)  # kept: 0 * inf is NaN
    x = activations((x_rows, 150))
    x[-1, int(col[33])] = value
    check(zero, x)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "int8"])
def test_every_byte_of_bits(bitmap_isa, dtype):
    """All 256 patterns of eight columns, in every place of a word; whole numbers, so exact."""
    generator = torch.Generator().manual_seed(11)
    w = torch.randint(1, 9, (512, 192), generator=generator).float()
    w[:, 0] = 127.0  # the scale of int8 is then 1
    byte = torch.arange(256).repeat(2)[:, None] >> torch.arange(8) & 1
    mask = byte.bool().repeat(1, 24)
    mask[256:, 64:128] = torch.rand(256, 64, generator=generator) < 0.5
    mask[:, 0] = True
    packed = sk.BitmapTensor.from_dense(w, mask=mask, dtype=getattr(torch, dtype))
    dense = packed.to_dense().double()
    assert torch.equal(dense, (w * mask).double())
    for x_rows in (1, 3):
        x = torch.randint(-9, 10, (x_rows, 192), generator=generator).float()
        y = sk.ops.bitmap_linear(x, packed)
        assert torch.equal(y.double(), x.double() @ dense.T)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_large_and_tiny_numbers(bitmap_isa, dtype):
    """On both sides of 2^64, from where pruned weights are no longer multiplied as zeros."""
    packed = pack_bitmap(Spec(40, 150, 0.5, dtype, seed=9))
    if dtype == "bfloat16":
        row, col = packed.matrix.mask.nonzero()
        packed = with_special(packed, (int(row[33]), int(col[33])), 1e-39)
    for value in (1e-40, 1e19, 1e30, math.inf):
        for x_rows in (1, 3):
            x = activations((x_rows, 150))
            x[-1, 70] = value
            check(packed, x)


def test_one_dense_slice_among_empty_ones(bitmap_isa):
    """Counts from 0 to 1024 in a slice, at the end of the values and in their middle."""
    w = torch.zeros(48, 256)
    w[16:32, 64:128] = activations((16, 64))
    w[47, 255] = 1.0
    for mask in (w != 0, (w != 0).flip(0, 1)):
        packed = sk.BitmapTensor.from_dense(activations((48, 256), seed=2), mask=mask)
        dense = packed.to_dense()
        for x_rows in (1, 2, 33):
            x = activations((x_rows, 256))
            y = sk.ops.bitmap_linear(x, packed)
            torch.testing.assert_close(y, x @ dense.T, rtol=1e-4, atol=1e-4)


def test_names(bitmap_isa):
    packed = pack_bitmap(Spec(32, 32, 0.5, "bfloat16"))
    for x_rows, kind in ((1, "decode"), (1000, "batch")):
        name = _core.bitmap_kernel(packed.structure.numpy(), "bfloat16", x_rows)
        assert name == f"bitmap_linear_bf16_{kind}__{BITMAP_ISAS[bitmap_isa]}"


def test_sums_have_one_order_whatever_the_threads(bitmap_isa):
    packed = pack_bitmap(Spec(530, 300, 0.5, "bfloat16"))
    before = torch.get_num_threads()
    try:
        for x_rows in (1, 5, 150):
            x = activations((x_rows, 300))
            results = []
            for threads in (1, 2):
                torch.set_num_threads(threads)
                results.append(run(packed, x))
            assert torch.equal(*results)
    finally:
        torch.set_num_threads(before)


def test_gradients_are_those_of_the_dense_layer():
    torch.manual_seed(0)
    dense_weight = torch.randn(21, 70)
    w = sk.BitmapTensor.from_dense(dense_weight, mask=torch.rand(21, 70) < 0.5)
    x, bias = torch.randn(6, 70), torch.randn(21)
    values = w.values.clone().requires_grad_()
    dense = w.to_dense().requires_grad_()
    mask = w.mask()
    for activation, function in (("none", lambda y: y), ("gelu", nn.functional.gelu)):
        ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
        values.grad = dense.grad = None
        packed = sk.BitmapTensor.trusted(values, w.structure, None)
        sk.ops.bitmap_linear(ours, packed, bias, activation).square().sum().backward()
        function(nn.functional.linear(theirs, dense, bias)).square().sum().backward()
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4)
        got = sk.BitmapTensor.trusted(values.grad, w.structure, None).to_dense()
        torch.testing.assert_close(got, dense.grad * mask, rtol=1e-4, atol=1e-4)


ERRORS = {
    "w": ({"w": torch.ones(2, 2)}, TypeError, "bitmap_linear: w must be a BitmapTensor, got Ten"),
    "x list": ({"x": [1.0]}, TypeError, r"bitmap_linear: x must be a torch\.Tensor, got list"),
    "x double": ({"x": torch.zeros(2, 30).double()}, TypeError, "bitmap_linear: x must be float"),
    "x width": (
        {"x": torch.zeros(2, 29)},
        ValueError,
        r"bitmap_linear: x.shape\[-1\] must equal in_features \(30\), got 29",
    ),
    "bias size": (
        {"bias": torch.ones(9)},
        ValueError,
        r"bitmap_linear: bias must .*10.*, got .*9",
    ),
    "activation": ({"activation": "tanh"}, NotImplementedError, "activation must be one of none"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_refuses(case):
    changes, error, text = ERRORS[case]
    good = {"x": torch.zeros(2, 30), "w": sk.BitmapTensor.from_dense(torch.zeros(10, 30))}
    with pytest.raises(error, match=text):
        sk.ops.bitmap_linear(**{**good, **changes})


def test_parts_that_do_not_fit_are_refused():
    w = sk.BitmapTensor.from_dense(activations((10, 30)))
    op, x = torch.ops.sparsekern.bitmap_linear, torch.zeros(2, 30)
    for parts, text in (
        ((w.values[1:], w.structure, None, None, 10), "values must be contiguous with 300"),
        (
            (w.values, w.structure, None, None, 11),
            r"must equal the structure's \(10\), got 11",
        ),
        ((w.values, w.structure[:-1], None, None, 10), "length must match its header"),
        ((w.values.to(torch.int8), w.structure, None, None, 10), "scale must be given for int8"),
        ((w.values, w.structure, torch.ones(10), None, 10), "scale must be given for int8"),
    ):
        with pytest.raises(ValueError, match=text):
            op(x, *parts)


# --- the packed tensor ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_from_other_formats_bit_for_bit(dtype):
    w = activations((37, 90))
    w[w.abs() < 0.7] = 0
    dtype = getattr(torch, dtype)
    csr = sk.CSRTensor.from_dense(w, mask=(w != 0) | (activations((37, 90)) > 2), dtype=dtype)
    nm = sk.NMTensor.from_dense(w, 2, 4, strict=False, dtype=dtype)
    for other in (csr, nm, sk.CSRTensor.from_dense(w, block_rows=2, dtype=dtype)):
        packed = sk.BitmapTensor.from_packed(other)
        assert torch.equal(packed.mask(), other.mask())
        assert torch.equal(packed.to_dense(), other.to_dense())
        assert (packed.dtype, packed.nnz) == (dtype, other.nnz)
    with pytest.raises(TypeError, match="packed must be a CSRTensor or NMTensor, got Tensor"):
        sk.BitmapTensor.from_packed(w)


def test_tensor_attributes_copies_and_damage():
    w = activations((37, 90))
    mask = activations((37, 90), seed=1) > 0
    packed = sk.BitmapTensor.from_dense(w, mask=mask)
    assert (packed.shape, packed.nnz, packed.dtype) == ((37, 90), int(mask.sum()), torch.float32)
    assert packed.density == pytest.approx(float(mask.float().mean()))
    assert "bitmap" in repr(packed)
    for again in (copy.deepcopy(packed), pickle.loads(pickle.dumps(packed)), packed.to("cpu")):
        assert torch.equal(again.to_dense(), w * mask)
    assert packed.to(dtype=torch.bfloat16).dtype == torch.bfloat16
    damaged = packed.structure.clone()
    damaged[-1] ^= 1
    with pytest.raises(ValueError, match="bitmap"):
        sk.BitmapTensor(packed.values, damaged)
    with pytest.raises(ValueError, match="values must have"):
        sk.BitmapTensor(packed.values[1:], packed.structure)
    with pytest.raises(TypeError, match="values must have dtype"):
        sk.BitmapTensor(packed.values.double(), packed.structure)
    with pytest.raises(TypeError, match="scale must be a float32 tensor"):
        sk.BitmapTensor(packed.values.to(torch.int8), packed.structure)
    with pytest.raises(TypeError, match="mask must be"):
        sk.BitmapTensor.from_dense(w, mask=w)
    with pytest.raises(ValueError, match="must be finite"):
        sk.BitmapTensor.from_dense(w * math.inf, dtype=torch.int8)
    with pytest.raises(TypeError, match="dtype must be one of"):
        sk.BitmapTensor.from_dense(w, dtype=torch.float64)


# --- layers ---------------------------------------------------------------------------------------


def model(sparsity: float = 0.5) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(96, 160), nn.ReLU(), nn.Linear(160, 96, bias=False)).eval()
    sk.prune_(net, sk.Bitmap(sparsity))
    return net


def packed_model(dtype: torch.dtype | None = None) -> nn.Module:
    net = model()
    for name in ("0", "2"):
        net[int(name)] = sk.nn.BitmapLinear.from_dense(net[int(name)], dtype=dtype)
    return net


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_checkpoints_copies_and_reports(dtype, tmp_path):
    net = packed_model(dtype)
    x = torch.randn(5, 96)
    y = net(x)
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(y, model()(x), rtol=tolerance, atol=tolerance)
    assert torch.equal(copy.deepcopy(net)(x), y)
    assert torch.equal(pickle.loads(pickle.dumps(net))(x), y)
    path = tmp_path / "model.safetensors"
    sk.save_file(net, path)
    with safetensors.safe_open(path, "pt") as file:
        described = json.loads(file.metadata()["sparsekern"])["layers"]["0"]
    assert (described["kind"], described["pattern"]) == ("bitmap_linear", "")
    fresh = model()
    sk.load_file(fresh, path)
    assert isinstance(fresh[0], sk.nn.BitmapLinear)
    assert torch.equal(fresh(x), y)
    packed_as_csr = model()  # a layer of another format is replaced
    packed_as_csr[0] = sk.nn.CSRLinear.from_dense(packed_as_csr[0])
    sk.load_file(packed_as_csr, path)
    assert torch.equal(packed_as_csr(x), y)
    loaded = sk.load_tensors(path)["0.weight"]
    assert isinstance(loaded, sk.BitmapTensor)
    assert torch.equal(loaded.to_dense(), net[0].weight.to_dense())
    assert [layer.format for layer in sk.report(net).layers] == ["bitmap", "bitmap"]
    assert "bitmap" in repr(net)


def test_a_damaged_checkpoint_is_refused(tmp_path):
    net = packed_model()
    path = tmp_path / "model.safetensors"
    sk.save_file(net, path)

    def damage(tensors: dict[str, torch.Tensor]) -> None:
        tensors["0.structure"][-1] ^= 1  # checksums become right again, but it is no bitmap

    rewrite(path, tensors=damage)
    with pytest.raises(sk.CheckpointError, match="layer '0' is damaged: bitmap"):
        sk.load_file(model(), path)


def test_convert_finds_what_a_bitmap_is_for():
    net = model(0.6)
    x = torch.randn(5, 96)
    expected = net(x)
    result = sk.convert_(net, policy="smallest", allow_dtypes=[torch.bfloat16])
    assert [d.decision for d in result.layers] == ["bitmap", "bitmap"]
    assert isinstance(net[0], sk.nn.BitmapLinear)
    assert net[0].values.dtype == torch.bfloat16
    assert (net(x) - expected).norm() < 0.02 * expected.norm()
    weight = torch.randn(64, 64)
    for sparsity, fits in ((0.0, False), (0.3, True), (0.7, True), (0.95, False)):
        assert bitmap_fits(weight * sk.Unstructured(sparsity).mask(weight)) is fits
    net = nn.Sequential(nn.Linear(64, 64)).eval()
    sk.prune_(net, sk.NM(2, 4))  # a structure has a format of its own
    sk.convert_(net, policy="smallest")
    assert isinstance(net[0], sk.nn.NMLinear)


def test_a_new_layer_takes_a_state_of_any_pattern():
    net = model()
    source = sk.nn.BitmapLinear.from_dense(net[0])
    layer = sk.nn.BitmapLinear(96, 160)
    x = torch.randn(3, 96)
    assert torch.equal(layer(x), torch.zeros(3, 160))
    layer.load_state_dict(source.state_dict())
    assert torch.equal(layer(x), source(x))
    torch.testing.assert_close(source.to_dense()(x), net[0](x))
    with pytest.raises(RuntimeError, match="structure"):
        layer.load_state_dict(sk.nn.CSRLinear.from_dense(net[0]).state_dict())
    with pytest.raises(TypeError, match=r"must be an nn\.Linear, got ReLU"):
        sk.nn.BitmapLinear.from_dense(nn.ReLU())
    with pytest.raises(TypeError, match="packed must be a BitmapTensor, got CSRTensor"):
        sk.nn.BitmapLinear.from_packed(sk.CSRTensor.from_dense(net[0].weight))


def test_a_layer_trains_its_kept_values():
    torch.manual_seed(0)
    layer = sk.nn.BitmapLinear.from_dense(model()[0])
    mask = layer.weight.mask()
    x, target = torch.randn(64, 96), torch.randn(64, 160)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    losses = []
    for _ in range(5):
        loss = (layer(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]
    assert not layer.weight.to_dense()[~mask].any()


def test_pattern():
    score = torch.randn(33, 70)
    assert torch.equal(sk.Bitmap(0.4).mask(score), sk.Unstructured(0.4).mask(score))
    assert sk.Bitmap(0.4).label == "Bitmap"
    assert sk.Bitmap(0.4).with_sparsity(0.5) == sk.Bitmap(0.5)
    with pytest.raises(ValueError, match=r"Bitmap: sparsity must be in \[0, 1\], got 1.5"):
        sk.Bitmap(1.5)
    with pytest.raises(TypeError, match="Bitmap: sparsity must be a number"):
        sk.Bitmap("half")


def test_compiled_and_exported():
    net = packed_model()
    x = torch.randn(8, 96)
    exported = torch.export.export(net, (x,))
    assert torch.equal(exported.module()(x), net(x))
