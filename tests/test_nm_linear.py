# SPDX-License-Identifier: Apache-2.0
"""nm_linear against the oracle on every instruction set; NMLinear and what makes and keeps it."""

from __future__ import annotations

import copy
import json
import pickle

import pytest
import safetensors
import sparsekern as sk
import torch
from conftest import ISAS
from hypothesis import given
from products import check_product, run_packed
from sparsekern import _core
from sparsekern._candidates import nm_patterns
from strategies import (
    ACTIVATIONS,
    DTYPES,
    NM_PATTERNS,
    X_DTYPES,
    NmSpec,
    Packed,
    activations,
    nm_specs,
    pack_nm,
)
from torch import nn


def run(packed: Packed, x: torch.Tensor, bias=None, activation: str = "none") -> torch.Tensor:
    return run_packed("nm_linear", packed, x, bias, activation)


def check(packed: Packed, x: torch.Tensor, bias=None, activation: str = "none") -> None:
    check_product(run(packed, x, bias, activation), packed, x, bias, activation)


@pytest.mark.parametrize(("n", "m"), NM_PATTERNS)
def test_patterns_and_dtypes(isa, n, m):
    for dtype in DTYPES:
        packed = pack_nm(NmSpec(70, 200, n, m, dtype, short=0.1, seed=3))
        for x_rows in (1, 2, 3, 5, 20):
            check(packed, activations((x_rows, 200), seed=x_rows))


def test_row_counts(isa, threads):
    packed = pack_nm(NmSpec(300, 300, 2, 8, seed=4))
    for x_rows in (1, 2, 4, 7, 15, 16, 17, 33, 64, 65, 80, 100, 129, 200):
        check(packed, activations((x_rows, 300), seed=x_rows), activations((300,)))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("x_dtype", X_DTYPES)
def test_bias_and_activation(isa, activation, x_dtype):
    packed = pack_nm(NmSpec(77, 140, 2, 4, "bfloat16", seed=6))
    bias = activations((77,), seed=1)
    for x_rows in (1, 5, 40):
        x = activations((x_rows, 140), x_dtype, x_rows) * 2
        check(packed, x, bias, activation)
        check(packed, x, bias.to(x.dtype), activation)


@given(spec=nm_specs())
def test_any_matrix(isa, spec):
    packed = pack_nm(spec)
    for x_rows in (1, 6, 40):
        check(packed, activations((x_rows, spec.cols), seed=spec.seed))


def test_leading_dimensions_and_strides(isa):
    packed = pack_nm(NmSpec(20, 33, 1, 4))
    x = activations((2, 3, 33))
    check(packed, x)
    check(packed, activations((33,)))
    check(packed, activations((9, 66))[:, ::2])
    check(packed, activations((9, 40))[1:, 3:36])
    assert run(packed, torch.zeros(0, 33)).shape == (0, 20)


def test_a_filled_slot_multiplies_and_nothing_beyond_the_matrix_does():
    w = torch.zeros(3, 10)
    w[0, 1] = 2.0
    packed = sk.NMTensor.from_dense(w, 2, 4)
    assert packed.mask()[0].nonzero().flatten().tolist() == [0, 1, 4, 5, 8, 9]
    x = torch.ones(1, 10)
    x[0, 0] = float("inf")  # a filled slot: 0 * inf
    assert sk.ops.nm_linear(x, packed).isnan().all()
    x[0, 0], x[0, 3] = 1.0, float("inf")  # nobody keeps column 3
    assert torch.equal(sk.ops.nm_linear(x, packed), torch.tensor([[2.0, 0.0, 0.0]]))


def test_names(isa):
    packed = pack_nm(NmSpec(32, 32, 1, 16, "bfloat16"))
    for x_rows, kind in ((1, "decode"), (1000, "batch")):
        name = _core.nm_kernel(packed.structure.numpy(), "bfloat16", x_rows)
        assert name == f"nm_linear_1of16_bf16_{kind}__{ISAS[isa]}"


def test_gradients_are_those_of_the_dense_layer():
    torch.manual_seed(0)
    w = sk.NMTensor.from_dense(torch.randn(21, 35), 2, 4, strict=False)
    x, bias = torch.randn(6, 35), torch.randn(21)
    values = w.values.clone().requires_grad_()
    dense = w.to_dense().requires_grad_()
    mask = w.mask()
    for activation, function in (("none", lambda y: y), ("gelu", nn.functional.gelu)):
        ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
        values.grad = dense.grad = None
        packed = sk.NMTensor.trusted(values, w.structure, None)
        sk.ops.nm_linear(ours, packed, bias, activation).square().sum().backward()
        function(nn.functional.linear(theirs, dense, bias)).square().sum().backward()
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4)
        got = sk.NMTensor.trusted(values.grad, w.structure, None).to_dense()
        torch.testing.assert_close(got, dense.grad * mask, rtol=1e-4, atol=1e-4)


def test_gradients_under_autocast_and_with_negative_zeros():
    """bf16 autocast reaches no product of backward; padding may have become -0 in training."""
    layer = sk.nn.NMLinear.from_dense(nn.Linear(33, 21), 2, 4, strict=False)
    x = torch.randn(5, 33, requires_grad=True)
    layer.values.data.neg_()
    with torch.autocast("cpu", torch.bfloat16):
        layer(x).square().sum().backward()
    x_plain = x.detach().clone().requires_grad_()
    found = [x.grad.clone(), layer.values.grad.clone()]
    layer.values.grad = None
    layer(x_plain).square().sum().backward()
    torch.testing.assert_close(found[0], x_plain.grad)
    torch.testing.assert_close(found[1], layer.values.grad)


ERRORS = {
    "w": ({"w": torch.ones(2, 2)}, TypeError, "nm_linear: w must be a NMTensor, got Tensor"),
    "x list": ({"x": [1.0]}, TypeError, r"nm_linear: x must be a torch\.Tensor, got list"),
    "x double": ({"x": torch.zeros(2, 30).double()}, TypeError, "nm_linear: x must be float32"),
    "x width": (
        {"x": torch.zeros(2, 29)},
        ValueError,
        r"nm_linear: x.shape\[-1\] must equal in_features \(30\), got 29",
    ),
    "bias size": ({"bias": torch.ones(9)}, ValueError, r"nm_linear: bias must .*10.*, got .*9"),
    "activation": ({"activation": "tanh"}, NotImplementedError, "activation must be one of none"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_refuses(case):
    changes, error, text = ERRORS[case]
    good = {"x": torch.zeros(2, 30), "w": sk.NMTensor.from_dense(torch.zeros(10, 30), 2, 4)}
    with pytest.raises(error, match=text):
        sk.ops.nm_linear(**{**good, **changes})


# --- layers ---------------------------------------------------------------------------------------


def model(n: int = 2, m: int = 4) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(96, 160), nn.ReLU(), nn.Linear(160, 96, bias=False)).eval()
    sk.prune_(net, sk.NM(n, m))
    return net


@pytest.mark.parametrize(("n", "m"), [(2, 4), (2, 8), (1, 16), (4, 16)])
def test_convert_finds_the_pattern_and_checkpoints_keep_it(n, m, tmp_path):
    net = model(n, m)
    x = torch.randn(5, 96)
    expected = net(x)
    result = sk.convert_(net, policy="always")
    assert [d.format for d in result.layers] == [f"nm {n}:{m} float32"] * 2
    assert result.packed == ("0", "2")
    assert isinstance(net[0], sk.nn.NMLinear)
    y = net(x)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(copy.deepcopy(net)(x), y)
    assert torch.equal(pickle.loads(pickle.dumps(net))(x), y)
    path = tmp_path / "model.safetensors"
    sk.save_file(net, path)
    with safetensors.safe_open(path, "pt") as file:
        described = json.loads(file.metadata()["sparsekern"])["layers"]["0"]
    assert (described["kind"], described["pattern"]) == ("nm_linear", f"{n}:{m}")
    fresh = model(n, m)
    sk.load_file(fresh, path)
    assert torch.equal(fresh(x), y)
    packed_as_csr = model(n, m)  # a layer of another format is replaced
    packed_as_csr[0] = sk.nn.CSRLinear.from_dense(packed_as_csr[0])
    sk.load_file(packed_as_csr, path)
    assert torch.equal(packed_as_csr(x), y)
    torch.testing.assert_close(
        sk.load_tensors(path)["0.weight"].to_dense(), net[0].weight.to_dense()
    )
    assert f"n={n}, m={m}" in repr(net)
    report = sk.report(net)
    assert [layer.format for layer in report.layers] == ["nm", "nm"]


def test_a_new_layer_takes_a_state_of_any_pattern():
    net = model(1, 4)
    source = sk.nn.NMLinear.from_dense(net[0], 1, 4)
    layer = sk.nn.NMLinear(96, 160, 2, 4)
    x = torch.randn(3, 96)
    assert torch.equal(layer(x), torch.zeros(3, 160))
    layer.load_state_dict(source.state_dict())
    assert (layer.weight.n, layer.weight.m) == (1, 4)
    assert torch.equal(layer(x), source(x))
    torch.testing.assert_close(source.to_dense()(x), net[0](x))
    with pytest.raises(RuntimeError, match="structure"):
        layer.load_state_dict(sk.nn.CSRLinear.from_dense(net[0]).state_dict())


def test_int8_activations_are_for_csr(tmp_path):
    net = model()
    sk.convert_(net, policy="always", allow_dtypes=[torch.int8], int8_activations=True)
    assert all(
        layer.values.dtype != torch.int8 or layer.int8_activations for layer in (net[0], net[2])
    )
    net = model()
    sk.convert_(net, policy="always")
    with pytest.raises(AttributeError):
        net[0].int8_activations = True


def test_int8_layers():
    net = model()
    x = torch.randn(4, 96)
    expected = net(x)
    sk.convert_(net, policy="smallest", allow_dtypes=[torch.int8])
    assert net[0].values.dtype == torch.int8
    assert (net(x) - expected).norm() < 0.02 * expected.norm()


def test_layers_refuse():
    linear = nn.Linear(12, 6)
    with pytest.raises(ValueError, match=r"row 0, columns 0 to 3 must keep at most 2 of 4, got 4"):
        sk.nn.NMLinear.from_dense(linear, 2, 4)
    layer = sk.nn.NMLinear.from_dense(linear, 2, 4, strict=False)
    assert layer.weight.nnz == 36
    with pytest.raises(TypeError, match=r"must be an nn\.Linear, got ReLU"):
        sk.nn.NMLinear.from_dense(nn.ReLU(), 2, 4)
    with pytest.raises(TypeError, match="packed must be a NMTensor, got CSRTensor"):
        sk.nn.NMLinear.from_packed(sk.CSRTensor.from_dense(linear.weight))
    with pytest.raises(ValueError, match="NMLinear"):
        sk.nn.NMLinear(12, 6, 4, 4)


def test_patterns_are_found_only_where_they_do_not_waste():
    assert nm_patterns(model(2, 4)[0].weight.detach()) == [(2, 4)]
    assert nm_patterns(model(1, 2)[0].weight.detach()) == [(1, 2)]
    assert nm_patterns(torch.randn(32, 64) * (torch.rand(32, 64) < 0.2)) == []
    assert nm_patterns(torch.zeros(4, 8)) == []
    assert nm_patterns(torch.ones(4, 8)) == []


def test_compiled_and_exported():
    net = model()
    sk.convert_(net, policy="always")
    x = torch.randn(8, 96)
    exported = torch.export.export(net, (x,))
    assert torch.equal(exported.module()(x), net(x))
