# SPDX-License-Identifier: Apache-2.0
"""Gradients against dense float64, gradients of gradients, and the compilers of torch."""

from __future__ import annotations

import itertools
import shutil

import pytest
import sparsekern as sk
import torch
from sparsekern import ops
from sparsekern._activations import ACTIVATIONS as TABLE
from strategies import ACTIVATIONS, activations
from torch import nn

ROWS, COLS = 37, 70
TOLERANCE = {"atol": 3e-5, "rtol": 3e-5}
MODULES = {activation.name: activation.module() for activation in TABLE}


def packed(dtype: torch.dtype = torch.float32, block_rows: int = 1) -> sk.CSRTensor:
    w = activations((ROWS, COLS), seed=3)
    w[w.abs() < 1] = 0
    w = sk.CSRTensor.from_dense(w, block_rows=block_rows, dtype=dtype)
    w.values.requires_grad_(dtype != torch.int8)
    return w


def dense_twin(w: sk.CSRTensor) -> torch.Tensor:
    return w.to_dense().detach().double().requires_grad_()


def as_matrix(values: torch.Tensor, w: sk.CSRTensor) -> torch.Tensor:
    """A gradient of values as a matrix; CSRTensor checks that its padding is 0."""
    return sk.CSRTensor(values.detach(), w.structure).to_dense()


def compare(w, kept, got, expected, tolerance=TOLERANCE) -> None:
    """Gradients of (x, values, bias): the dense weight's gradient counts where weights are kept."""
    for mine, theirs in zip(got, expected, strict=True):
        if mine is not None and mine.dim() == 1 and mine.shape == w.values.shape:
            mine, theirs = as_matrix(mine, w), theirs * kept
        torch.testing.assert_close(mine.double(), theirs, **tolerance)


@pytest.mark.parametrize("block_rows", [1, 2, 4])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_linear_gradients(activation, block_rows):
    w = packed(block_rows=block_rows)
    x, bias = activations((2, 5, COLS)), activations((ROWS,), seed=1)
    grad = activations((2, 5, ROWS), seed=2)
    x1, b1 = x.clone().requires_grad_(), bias.clone().requires_grad_()
    y = ops.csr_linear(x1, w, b1, activation)
    x2, b2, w2 = x.double().requires_grad_(), bias.double().requires_grad_(), dense_twin(w)
    y2 = MODULES[activation](nn.functional.linear(x2, w2, b2))
    torch.testing.assert_close(y.double(), y2, **TOLERANCE)
    got = torch.autograd.grad(y, (x1, w.values, b1), grad)
    compare(w, w.mask(), got, torch.autograd.grad(y2, (x2, w2, b2), grad.double()))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_conv2d_gradients(activation, stride):
    w = packed(block_rows=2)
    x, bias = activations((2, COLS, 5, 4)), activations((ROWS,), seed=1)
    x1, b1 = x.clone().requires_grad_(), bias.clone().requires_grad_()
    y = ops.csr_conv2d(x1, w, b1, stride, activation)
    x2, b2, w2 = x.double().requires_grad_(), bias.double().requires_grad_(), dense_twin(w)
    convolved = nn.functional.conv2d(x2, w2[:, :, None, None], b2, stride=stride)
    y2 = MODULES[activation](convolved)
    torch.testing.assert_close(y.double(), y2, **TOLERANCE)
    grad = activations(tuple(y.shape), seed=2)
    got = torch.autograd.grad(y, (x1, w.values, b1), grad)
    compare(w, w.mask(), got, torch.autograd.grad(y2, (x2, w2, b2), grad.double()))


@pytest.mark.parametrize("activation", ["none", "relu", "gelu", "gelu_tanh", "silu", "hardswish"])
def test_gradients_of_gradients(activation):
    w = packed()
    x, grad = activations((4, COLS)), activations((4, ROWS), seed=2)
    x1, g1 = x.clone().requires_grad_(), grad.clone().requires_grad_()
    x2, g2, w2 = x.double().requires_grad_(), grad.double().requires_grad_(), dense_twin(w)
    kept = w.mask()
    sums = []
    for x_, g_, weight, apply in (
        (x1, g1, w.values, lambda: ops.csr_linear(x1, w, None, activation)),
        (x2, g2, w2, lambda: MODULES[activation](nn.functional.linear(x2, w2))),
    ):
        first = torch.autograd.grad(apply(), (x_, weight), g_, create_graph=True)
        on_weight = first[1] * kept if weight is w2 else first[1]
        total = first[0].sin().sum() + on_weight.square().sum()
        sums.append(torch.autograd.grad(total, (x_, weight, g_)))
    got, expected = sums
    tolerance = {"atol": 2e-3, "rtol": 2e-4}
    torch.testing.assert_close(got[0].double(), expected[0], **tolerance)
    torch.testing.assert_close(as_matrix(got[1], w).double(), expected[1] * kept, **tolerance)
    torch.testing.assert_close(got[2].double(), expected[2], **tolerance)


def test_gradients_of_gradients_of_conv2d():
    w = packed()
    x = activations((1, COLS, 3, 5))
    x1, x2, w2 = x.clone().requires_grad_(), x.double().requires_grad_(), dense_twin(w)
    kept = w.mask()
    first = torch.autograd.grad(ops.csr_conv2d(x1, w, stride=2).sin().sum(), x1, create_graph=True)
    y2 = nn.functional.conv2d(x2, w2[:, :, None, None], stride=2).sin().sum()
    second = torch.autograd.grad(y2, x2, create_graph=True)
    got = torch.autograd.grad(first[0].square().sum(), (x1, w.values))
    expected = torch.autograd.grad(second[0].square().sum(), (x2, w2))
    tolerance = {"atol": 2e-3, "rtol": 2e-4}
    torch.testing.assert_close(got[0].double(), expected[0], **tolerance)
    torch.testing.assert_close(as_matrix(got[1], w).double(), expected[1] * kept, **tolerance)


def test_sddmm_gradient_ignores_what_arrives_for_padding():
    w = packed()
    grad, x = activations((5, ROWS)), activations((5, COLS), seed=1)
    g1, x1 = grad.clone().requires_grad_(), x.clone().requires_grad_()
    ops.csr_sddmm(g1, x1, w).sum().backward()  # ones everywhere, on padding too
    kept = w.mask().float()
    torch.testing.assert_close(g1.grad, x @ kept.T, **TOLERANCE)
    torch.testing.assert_close(x1.grad, grad @ kept, **TOLERANCE)


@pytest.mark.parametrize("op", ["linear", "conv2d"])
def test_int8_has_gradients_of_x_and_bias_only(op):
    w = packed(torch.int8)
    dense = w.to_dense().double()
    bias = torch.zeros(ROWS, requires_grad=True)
    if op == "linear":
        x = activations((3, COLS)).requires_grad_()
        ops.csr_linear(x, w, bias).sum().backward()
        expected = dense.sum(0).expand(3, -1)
    else:
        x = activations((1, COLS, 3, 1)).requires_grad_()
        ops.csr_conv2d(x, w, bias).sum().backward()
        expected = dense.sum(0)[None, :, None, None].expand(1, -1, 3, 1)
    torch.testing.assert_close(x.grad.double(), expected, **TOLERANCE)
    torch.testing.assert_close(bias.grad, torch.full((ROWS,), 3.0))
    w.scale.requires_grad_()
    with pytest.raises(NotImplementedError, match="got a scale that requires one"):
        ops.csr_linear(activations((3, COLS)).requires_grad_(), w)
    with pytest.raises(NotImplementedError, match="got a scale that requires one"):
        ops.csr_linear(activations((3, COLS)), w)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_of_16_bit(dtype):
    w = packed(dtype)
    x = activations((6, COLS)).to(dtype).requires_grad_()
    bias = torch.zeros(ROWS, requires_grad=True)  # float32 beside 16-bit x
    y = ops.csr_linear(x, w, bias)
    grad = activations((6, ROWS), seed=2).to(dtype)
    gx, gv, gb = torch.autograd.grad(y, (x, w.values, bias), grad)
    assert (gx.dtype, gv.dtype, gb.dtype) == (dtype, dtype, torch.float32)
    # one rounding to the dtype of an fp32 sum, that is all
    tolerance = {"atol": 1e-3, "rtol": float(torch.finfo(dtype).eps)}
    wide = w.to_dense().detach().double()
    torch.testing.assert_close(gx.double(), grad.double() @ wide, **tolerance)
    expected = (grad.double().T @ x.detach().double()) * w.mask()
    torch.testing.assert_close(as_matrix(gv, w).double(), expected, **tolerance)
    torch.testing.assert_close(gb.double(), grad.double().sum(0), **TOLERANCE)


def test_infinities_under_pruned_weights_do_not_reach_the_gradient():
    w = packed()
    x = activations((2, COLS)).requires_grad_()
    y = ops.csr_linear(x, w)
    grad = torch.ones_like(y)
    grad[0, 0] = float("inf")
    (gx,) = torch.autograd.grad(y, x, grad)
    touched = w.mask()[0]
    assert (~gx[0, touched].isfinite()).all()
    assert gx[0, ~touched].isfinite().all()
    assert gx[1].isfinite().all()


def test_gradients_repeat_to_the_bit():
    w, grads = packed(), []
    for threads in (1, 2, 2):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            x = activations((300, COLS)).requires_grad_()
            y = ops.csr_linear(x, w, None, "gelu")
            grads.append(torch.autograd.grad(y.square().sum(), (x, w.values)))
        finally:
            torch.set_num_threads(before)
    for other in grads[1:]:
        assert all(torch.equal(a, b) for a, b in zip(grads[0], other, strict=True))


def test_x_is_kept_for_backward_only_where_it_is_used():
    w = packed()
    w.values.requires_grad_(False)
    for activation, expected in (("none", False), ("relu", False), ("gelu", True)):
        saved = []
        x = activations((3, COLS)).requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, saved=saved: saved.append(t.shape) or t, lambda t: t
        ):
            ops.csr_linear(x, w, None, activation)
        assert (x.shape in saved) is expected


def test_training_reaches_what_dense_training_reaches():
    torch.manual_seed(0)
    dense = nn.Linear(COLS, ROWS)
    with torch.no_grad():
        dense.weight[dense.weight.abs() < 0.06] = 0
    kept = dense.weight != 0
    sparse = sk.nn.CSRLinear.from_dense(dense)
    x, target = activations((64, COLS)), activations((64, ROWS), seed=1)
    for model, mask in ((dense, kept), (sparse, None)):
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(20):
            optimizer.zero_grad()
            (model(x) - target).square().mean().backward()
            if mask is not None:
                model.weight.grad *= mask
            optimizer.step()
    torch.testing.assert_close(sparse.to_dense().weight, dense.weight, atol=1e-4, rtol=1e-3)
    assert torch.equal(sparse.weight.mask(), kept)
    sk.CSRTensor(sparse.values.detach(), sparse.structure)  # padding stayed 0


# --- torch.compile and torch.export ---------------------------------------------------------------


class Net(nn.Module):
    """Both operators, a fused activation, dense layers between."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        conv, linear = nn.Conv2d(8, 24, 1, stride=2), nn.Linear(24, 10)
        for layer in (conv, linear):
            layer.weight.data[layer.weight.abs() < 0.1] = 0
        self.conv = sk.nn.CSRConv2d.from_dense(conv, "gelu")
        self.linear = sk.nn.CSRLinear.from_dense(linear, "relu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(torch.relu(self.conv(x)).mean((2, 3)))


def gradients(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    y = model(x)
    wanted = [x, *(p for p in model.parameters() if p.requires_grad)]
    return [y, *torch.autograd.grad(y.square().sum(), wanted)]


BACKENDS = ["aot_eager", pytest.param("inductor", id="inductor")]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("backend", BACKENDS)
def test_compile_forward_and_backward(backend):
    net, x = Net(), activations((2, 8, 6, 6)).requires_grad_()
    if backend == "inductor":  # takes a minute on a slow machine, so the smaller half
        assert any(shutil.which(name) for name in ("c++", "g++", "clang++")), "no C++ compiler"
        net, x = net.linear, activations((4, 24)).requires_grad_()
    torch._dynamo.reset()
    compiled = torch.compile(net, fullgraph=True, backend=backend)
    for mine, theirs in zip(gradients(compiled, x), gradients(net, x), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), net(x), atol=1e-6, rtol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_compile_takes_a_packed_tensor_and_dynamic_shapes():
    torch._dynamo.reset()
    w = packed()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")

    @torch.compile(fullgraph=True, backend=counter, dynamic=True)
    def run(x: torch.Tensor) -> torch.Tensor:
        return ops.csr_linear(x * 2, w, None, "relu") + 1

    for rows in (3, 5, 9):
        x = activations((rows, COLS), seed=rows)
        torch.testing.assert_close(run(x), ops.csr_linear(x * 2, w, None, "relu") + 1)
    assert counter.frame_count == 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("strict", [False, True])
def test_export(strict):
    net = Net().eval()
    x = activations((2, 8, 6, 6))
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(net, (x,), dynamic_shapes=({0: batch},), strict=strict)
    names = [str(node.target) for node in program.graph.nodes]
    assert sum("sparsekern.csr_linear" in name for name in names) == 1
    assert sum("sparsekern.csr_conv2d" in name for name in names) == 1
    for size in (2, 7):
        x = activations((size, 8, 6, 6), seed=size)
        torch.testing.assert_close(program.module()(x), net(x))


def test_compiled_backward_finds_the_transposed_pattern_that_eager_built(monkeypatch):
    torch._dynamo.reset()
    built = []
    real = sk._core.csr_transpose
    monkeypatch.setattr(sk._core, "csr_transpose", lambda s: built.append(1) or real(s))
    layer = Net().linear
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = activations((4, 24)).requires_grad_()
    for model in itertools.islice(itertools.cycle((layer, compiled)), 4):
        gradients(model, x)
    assert len(built) == 1
