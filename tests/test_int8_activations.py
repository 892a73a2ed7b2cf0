# SPDX-License-Identifier: Apache-2.0
"""x in int8: the rounding, the products against the oracle, the layers that keep the option."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import oracle
import pytest
import sparsekern as sk
import torch
from compare import assert_close
from conftest import INT8_ISAS
from hypothesis import given
from strategies import Packed, Spec, activations, pack, run_conv2d, run_linear, specs
from torch import nn


def rounded(x: torch.Tensor) -> np.ndarray:
    """Rows of x as multiples of max |row| / 127, in float32 as the specification has them."""
    rows = x.float().numpy()
    most = np.abs(rows).max(axis=1, keepdims=True)
    with np.errstate(divide="ignore"):
        inverse = np.where(most > 2.0**-100, np.float32(127) / most, np.float32(0))
    whole = np.rint(rows * inverse.astype(np.float32))
    return whole.astype(np.float64) * (most / np.float32(127)).astype(np.float64)


def check(packed: Packed, x: torch.Tensor, y: torch.Tensor, activation: str = "none") -> None:
    expected = oracle.linear(rounded(x), packed.dense, packed.matrix.mask)
    name = str(y.dtype).removeprefix("torch.")
    what = f"{packed.spec}, x {tuple(x.shape)} {name}"
    assert_close(y.double().numpy(), expected, name, activation, c=2.0, what=what)


@pytest.mark.parametrize("block_rows", [1, 2, 4])
def test_linear(int8_isa, threads, block_rows):
    packed = pack(Spec(273, 200, 0.15, "int8", block_rows, seed=4))
    for x_rows in (1, 3, 8, 31, 64, 65, 130):
        for x_dtype in ("float32", "bfloat16", "float16"):
            x = activations((x_rows, 200), x_dtype, x_rows)
            check(packed, x, run_linear(packed, x, int8_activations=True))


@given(spec=specs(dtypes=("int8",)))
def test_linear_of_any_shape(int8_isa, spec):
    packed = pack(spec)
    for x_rows in (2, 40):
        x = activations((x_rows, spec.cols), seed=spec.seed) * 3
        y = run_linear(packed, x, activation="relu", int8_activations=True)
        check(packed, x, y, "relu")


@pytest.mark.parametrize("stride", [1, 2])
def test_conv2d(int8_isa, stride):
    packed = pack(Spec(40, 130, 0.2, "int8", 1, seed=5))
    x = activations((2, 130, 9, 7))
    y = run_conv2d(packed, x, stride=stride, int8_activations=True)
    pixels = x[:, :, ::stride, ::stride].permute(0, 2, 3, 1).reshape(-1, 130)
    check(packed, pixels, y.permute(0, 2, 3, 1).reshape(-1, 40))


@pytest.mark.parametrize("x_rows", [3, 50])
def test_a_row_that_is_not_finite_answers_nan_and_no_other_does(int8_isa, x_rows):
    packed = pack(Spec(70, 90, 0.2, "int8"))
    x = activations((x_rows, 90))
    expected = run_linear(packed, x, int8_activations=True)
    x[0, 5], x[1, 7], x[2] = float("inf"), float("nan"), 0.0
    y = run_linear(packed, x, int8_activations=True)
    assert y[:2].isnan().all()
    assert torch.equal(y[2], torch.zeros(70))
    assert torch.equal(y[3:], expected[3:])


def test_gradients_are_those_without_the_rounding():
    packed = pack(Spec(30, 50, 0.3, "int8"))
    x, grad = activations((6, 50)), activations((6, 30), seed=1)
    found = []
    for int8_activations in (False, True):
        leaf = x.clone().requires_grad_()
        run_linear(packed, leaf, int8_activations=int8_activations).backward(grad)
        found.append(leaf.grad)
    assert torch.equal(*found)


def model() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(96, 160), nn.ReLU(), nn.Linear(160, 96)).eval()
    sk.prune_(net, sk.Unstructured(0.8))
    return net


def test_layers_keep_the_option(tmp_path):
    net = model()
    result = sk.convert_(net, policy="always", allow_dtypes=[torch.int8], int8_activations=True)
    assert all(d.format == "csr int8, int8 x" for d in result.layers)
    assert all(layer.int8_activations for layer in (net[0], net[2]))
    assert "int8_activations=True" in repr(net)
    assert ("_dot__" in net[0].kernel(64)) == bool(INT8_ISAS)
    x = torch.randn(33, 96)
    y = net(x)
    net[0].int8_activations = net[2].int8_activations = False
    assert not torch.equal(net(x), y)
    net[0].int8_activations = net[2].int8_activations = True
    assert torch.equal(copy.deepcopy(net)(x), y)
    assert torch.equal(pickle.loads(pickle.dumps(net))(x), y)
    sk.save_file(net, tmp_path / "model.safetensors")
    fresh = model()
    sk.load_file(fresh, tmp_path / "model.safetensors")
    assert torch.equal(fresh(x), y)
    again = model()  # layers that are packed already take over the option as well
    sk.convert_(again, policy="always", allow_dtypes=[torch.int8])
    sk.load_file(again, tmp_path / "model.safetensors")
    assert torch.equal(again(x), y)


def test_a_layer_refuses_the_option_without_int8_values():
    layer = sk.nn.CSRLinear.from_dense(nn.Linear(20, 30))
    with pytest.raises(TypeError, match="CSRLinear: int8_activations needs int8 values, got float"):
        layer.int8_activations = True
    assert not layer.int8_activations
    with pytest.raises(ValueError, match=r"int8_activations needs torch\.int8 among allow_dtypes"):
        sk.convert_(model(), policy="always", int8_activations=True)


def test_compiled_and_exported():
    net = model()
    sk.convert_(net, policy="always", allow_dtypes=[torch.int8], int8_activations=True)
    x = torch.randn(8, 96)
    exported = torch.export.export(net, (x,))
    assert torch.equal(exported.module()(x), net(x))
