# SPDX-License-Identifier: Apache-2.0
"""CSRLinear and CSRConv2d in the places where torch's own layers stand."""

from __future__ import annotations

import copy
import io
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from sparsekern.nn import CSRConv2d, CSRLinear
from strategies import activations
from torch import nn

TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}


def pruned(module: nn.Module, sparsity: float = 0.8, seed: int = 0) -> nn.Module:
    """The module with new weights, of which this share is zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        drawn = torch.rand(module.weight.shape, generator=generator)
        module.weight[drawn < sparsity] = 0
    return module


def layer(sparsity: float = 0.8, seed: int = 0, **options) -> CSRLinear:
    return CSRLinear.from_dense(pruned(nn.Linear(70, 37), sparsity, seed), **options)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int8])
@pytest.mark.parametrize("block_rows", [1, 2, 4])
def test_linear_from_dense_and_back(block_rows, dtype, bias):
    dense = pruned(nn.Linear(70, 37, bias=bias)).eval()
    sparse = CSRLinear.from_dense(dense, block_rows=block_rows, dtype=dtype)
    assert sparse.weight.block_rows == block_rows
    assert sparse.values.dtype == dtype
    assert sparse.training is False
    assert sparse.values.requires_grad is (dtype != torch.int8)
    x = activations((2, 3, 70))
    back = sparse.to_dense()
    assert type(back) is nn.Linear
    assert back.training is False
    torch.testing.assert_close(sparse(x), back.float()(x), **TOLERANCE)
    if dtype == torch.float32:
        assert torch.equal(back.weight, dense.weight)
        torch.testing.assert_close(sparse(x), dense(x), **TOLERANCE)
    if bias:
        assert torch.equal(sparse.bias, dense.bias)
        assert sparse.bias is not dense.bias
    else:
        assert sparse.bias is None
        assert back.bias is None


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("batched", [True, False])
def test_conv2d_from_dense_and_back(stride, batched):
    dense = pruned(nn.Conv2d(70, 37, 1, stride=stride))
    sparse = CSRConv2d.from_dense(dense)
    x = activations((2, 70, 7, 5)) if batched else activations((70, 7, 5))
    torch.testing.assert_close(sparse(x), dense(x), **TOLERANCE)
    torch.testing.assert_close(sparse(x.to(memory_format=torch.preserve_format)), dense(x))
    if batched:
        last = x.contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(sparse(last), dense(last), **TOLERANCE)
    back = sparse.to_dense()
    assert type(back) is nn.Conv2d
    assert back.stride == (stride, stride)
    assert torch.equal(back.weight, dense.weight)


@pytest.mark.parametrize("activation", ["relu", "relu6", "gelu", "gelu_tanh", "silu", "hardswish"])
def test_activation_is_kept_by_to_dense(activation):
    x = activations((5, 70))
    sparse = layer(activation=activation)
    back = sparse.to_dense()
    assert isinstance(back, nn.Sequential)
    torch.testing.assert_close(back(x), sparse(x), **TOLERANCE)
    sparse.activation = "none"
    torch.testing.assert_close(back[0](x), sparse(x), **TOLERANCE)
    with pytest.raises(
        NotImplementedError, match="CSRLinear: activation must be one of none, relu"
    ):
        sparse.activation = "selu"


def test_mask_keeps_zeros_trainable():
    dense = nn.Linear(6, 4)
    mask = torch.zeros(4, 6, dtype=torch.bool)
    mask[:, 2] = True
    dense.weight.data[:, 2] = 0
    assert CSRLinear.from_dense(dense).weight.nnz == 20
    sparse = CSRLinear.from_dense(dense, mask=mask)
    assert sparse.weight.nnz == 4
    conv = nn.Conv2d(6, 4, 1)
    assert CSRConv2d.from_dense(conv, mask=mask[:, :, None, None]).weight.nnz == 4


def test_frozen_stays_frozen():
    dense = nn.Linear(6, 4).requires_grad_(False)
    sparse = CSRLinear.from_dense(dense)
    assert not any(p.requires_grad for p in sparse.parameters())
    assert not any(p.requires_grad for p in sparse.to_dense().parameters())


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("device", [None, "meta"])
def test_new_layers_keep_no_weight(dtype, device):
    linear = CSRLinear(300, 40, dtype=dtype, block_rows=2, device=device)
    conv = CSRConv2d(300, 40, 1, stride=(2, 2), bias=False, dtype=dtype, device=device)
    if device is None:
        assert linear.weight.nnz == 0
        assert torch.equal(linear(torch.ones(2, 300)), torch.zeros(2, 40))
        assert torch.equal(conv(torch.ones(1, 300, 3, 3)), torch.zeros(1, 40, 2, 2))
    else:
        assert all(t.device.type == "meta" for t in linear.state_dict().values())
        assert linear(torch.ones(2, 300, device="meta")).shape == (2, 40)
        assert "device=meta" in repr(conv)


REFUSED = {
    "kernel": (
        lambda: CSRConv2d(4, 4, 3),
        "CSRConv2d: must have kernel_size 1, stride 1 or 2, padd",
    ),
    "stride": (lambda: CSRConv2d(4, 4, 1, stride=3), "groups 1, got stride 3"),
    "strides": (lambda: CSRConv2d(4, 4, 1, stride=(1, 2)), r"got stride \(1, 2\)"),
    "padding": (lambda: CSRConv2d(4, 4, 1, padding=1), "got padding 1"),
    "groups": (lambda: CSRConv2d(4, 4, 1, groups=2), "got groups 2"),
    "dense 3x3": (lambda: CSRConv2d.from_dense(nn.Conv2d(4, 4, 3)), r"got kernel_size \(3, 3\)"),
    "activation": (lambda: CSRLinear(4, 4, activation="tanh"), "activation must be one of none"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_exist_is_listed(case):
    make, text = REFUSED[case]
    with pytest.raises(NotImplementedError, match=text):
        make()


def test_wrong_arguments():
    with pytest.raises(TypeError, match=r"module must be an nn\.Linear, got Conv2d"):
        CSRLinear.from_dense(nn.Conv2d(4, 4, 1))
    with pytest.raises(TypeError, match=r"module must be an nn\.Conv2d, got Linear"):
        CSRConv2d.from_dense(nn.Linear(4, 4))
    with pytest.raises(TypeError, match="packed must be a CSRTensor, got Tensor"):
        CSRLinear.from_packed(torch.ones(2, 2))
    with pytest.raises(ValueError, match=r"bias must have shape \[37\], got \[36\]"):
        CSRLinear.from_packed(layer().weight, torch.ones(36))
    with pytest.raises(ValueError, match="at least one row and column"):
        CSRLinear(0, 3)
    with pytest.raises(TypeError, match=r"dtype must be one of .*, got torch\.float64"):
        CSRLinear(3, 3, dtype=torch.float64)
    with pytest.raises(ValueError, match="must hold data"):
        CSRLinear.from_dense(nn.Linear(3, 3, device="meta"))
    with pytest.raises(TypeError, match=r"csr_linear: x must be a torch\.Tensor, got list"):
        layer()([1.0])
    with pytest.raises(
        ValueError, match=r"csr_linear: x.shape\[-1\] must equal in_features \(70\)"
    ):
        layer()(torch.ones(3, 71))


def test_repr():
    text = repr(layer(activation="relu", block_rows=2))
    assert text.startswith("CSRLinear(in_features=70, out_features=37, bias=True, activation=relu,")
    assert "block_rows=2, dtype=float32, kernel=csr_linear_r2_f32_" in text
    conv = CSRConv2d.from_dense(pruned(nn.Conv2d(8, 4, 1, stride=2, bias=False)))
    text = repr(conv)
    assert text.startswith("CSRConv2d(8, 4, kernel_size=1, stride=2, bias=False, density=")
    assert "kernel=csr_conv2d_r1_f32_" in text


# --- conversions and copies -----------------------------------------------------------------------


def test_conversions_of_dtype_touch_values_and_bias_only():
    sparse, x = layer(), activations((3, 70))
    expected = sparse(x)
    structure = sparse.structure.clone()
    sparse.half()
    assert (sparse.values.dtype, sparse.bias.dtype) == (torch.float16, torch.float16)
    assert torch.equal(sparse.structure, structure)
    torch.testing.assert_close(sparse(x.half()).float(), expected, atol=0.05, rtol=0.01)
    sparse.bfloat16().float()
    assert sparse(x).dtype == torch.float32
    sparse.double()
    with pytest.raises(TypeError, match="csr_linear: values must be float32, bfloat16, float16 or"):
        sparse(x)
    sparse.float()
    assert sparse(x).isfinite().all()


def test_the_scale_of_int8_stays_float32():
    sparse, x = layer(dtype=torch.int8), activations((3, 70))
    scale, expected = sparse.scale.clone(), sparse(x)
    sparse.half()
    assert sparse.values.dtype == torch.int8
    assert sparse.bias.dtype == torch.float16
    assert torch.equal(sparse.scale, scale)  # no rounding on the way
    torch.testing.assert_close(sparse(x.half()).float(), expected, atol=0.1, rtol=0.01)
    assert sparse.to("meta").scale.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8])
def test_copies_are_equal_and_independent(dtype):
    sparse, x = layer(dtype=dtype, activation="gelu"), activations((3, 70))
    expected = sparse(x)
    file = io.BytesIO()
    torch.save(sparse, file)
    file.seek(0)
    for other in (
        copy.deepcopy(sparse),
        pickle.loads(pickle.dumps(sparse)),
        torch.load(file, weights_only=False),
    ):
        assert torch.equal(other(x), expected)
        assert repr(other) == repr(sparse)
        with torch.no_grad():
            other.bias.add_(1)
    assert torch.equal(sparse(x), expected)


def test_share_memory():
    sparse, x = layer(), activations((3, 70))
    expected = sparse(x)
    sparse.share_memory()
    assert all(t.is_shared() for t in sparse.state_dict().values())
    assert torch.equal(sparse(x), expected)


def test_ties():
    first = layer()
    second = CSRLinear.from_packed(first.weight, first.bias, "relu")
    pair = nn.ModuleList([first, second])
    assert len(list(pair.parameters())) == 2
    x = activations((3, 70))
    assert torch.equal(second(x), first(x).relu())
    first.load_state_dict(layer(0.5, seed=1).state_dict())  # another number of weights
    assert torch.equal(second(x), first(x).relu())
    twin = copy.deepcopy(pair)
    assert twin[0].values is twin[1].values


# --- state dicts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8])
@pytest.mark.parametrize("assign", [False, True])
def test_state_dict_round_trip_into_another_pattern(assign, dtype):
    source, x = layer(0.5, seed=2, dtype=dtype, block_rows=2), activations((3, 70))
    expected_names = {"values", "structure", "bias"} | ({"scale"} if dtype == torch.int8 else set())
    assert set(source.state_dict()) == expected_names
    target = layer(0.9, dtype=dtype)
    values = target.values
    assert (
        str(target.load_state_dict(source.state_dict(), assign=assign))
        == "<All keys matched successfully>"
    )
    assert torch.equal(target(x), source(x))
    assert target.weight.block_rows == 2
    assert (target.values is values) is not assign
    fresh = CSRLinear(70, 37, dtype=dtype)
    fresh.load_state_dict(source.state_dict())
    assert torch.equal(fresh(x), source(x))


def test_load_converts_to_the_layers_dtype():
    target = CSRLinear(70, 37, dtype=torch.bfloat16)
    target.load_state_dict(layer().state_dict())
    assert target.values.dtype == torch.bfloat16


def test_load_onto_meta_with_assign():
    with torch.device("meta"):
        target = nn.Sequential(CSRLinear(70, 37, device="meta"))
    source = nn.Sequential(layer())
    target.load_state_dict(source.state_dict(), assign=True)
    x = activations((3, 70))
    assert torch.equal(target(x), source(x))


def flipped(tensor: torch.Tensor, at: int) -> torch.Tensor:
    tensor = tensor.clone()
    tensor[at] += 1
    return tensor


BAD_STATES = {
    "shape": (lambda s: {**s, **layer_state(71)}, r"shape \[37, 70\], got \[37, 71\]"),
    "magic": (lambda s: {**s, "structure": flipped(s["structure"], 0)}, "structure"),
    "version": (lambda s: {**s, "structure": flipped(s["structure"], 4)}, "version"),
    "counts": (lambda s: {**s, "structure": flipped(s["structure"], 40)}, "kept"),
    "short values": (lambda s: {**s, "values": s["values"][:-16]}, "values"),
    "kind": (
        lambda s: {**s, "values": s["values"].to(torch.int8)},
        "scale must be a float32 tensor",
    ),
    "int8": (lambda s: layer(dtype=torch.int8).state_dict(), "values must be floating-point like"),
    "no structure": (
        lambda s: {k: v for k, v in s.items() if k != "structure"},
        "Missing key.*struc",
    ),
    "no values": (lambda s: {k: v for k, v in s.items() if k != "values"}, "Missing key.*values"),
    "no bias": (lambda s: {k: v for k, v in s.items() if k != "bias"}, "Missing key.*bias"),
    "dense": (lambda s: nn.Linear(70, 37).state_dict(), "Missing key.*values.*structure"),
    "more": (lambda s: {**s, "extra": s["bias"]}, "Unexpected key.*extra"),
    "bias": (lambda s: {**s, "bias": s["bias"][1:]}, "size mismatch for .*bias"),
}


def layer_state(cols: int) -> dict[str, torch.Tensor]:
    state = CSRLinear.from_dense(pruned(nn.Linear(cols, 37))).state_dict()
    return {"values": state["values"], "structure": state["structure"]}


@pytest.mark.parametrize("case", BAD_STATES)
def test_bad_states_are_refused_and_the_packed_matrix_stays(case):
    change, text = BAD_STATES[case]
    target = layer(seed=5)
    before = target.weight.to_dense()
    with pytest.raises(
        RuntimeError, match=f"(?s)Error.* in loading state_dict for CSRLinear.*{text}"
    ):
        target.load_state_dict(change(layer(0.5).state_dict()))
    if case not in ("more", "bias", "no bias"):  # there the packed matrix itself was good
        assert torch.equal(target.weight.to_dense(), before)
    target.load_state_dict(layer(0.5).state_dict())


def test_not_strict_leaves_what_is_not_given():
    target = layer()
    x = activations((3, 70))
    expected = target(x)
    target.load_state_dict({}, strict=False)
    assert torch.equal(target(x), expected)


def test_data_parallel_states():
    model, other = nn.Sequential(layer(0.5)), nn.Sequential(layer(0.9))
    state = nn.DataParallel(model).state_dict()
    assert set(state) == {"module.0.values", "module.0.structure", "module.0.bias"}
    nn.DataParallel(other).load_state_dict(state)
    x = activations((3, 70))
    assert torch.equal(model(x), other(x))
    torch.nn.modules.utils.consume_prefix_in_state_dict_if_present(state, "module.")
    nn.Sequential(layer(0.7)).load_state_dict(state)


def test_distributed_data_parallel(tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        model = nn.Sequential(layer(0.5), layer_of(37, torch.int8))
        ddp = nn.parallel.DistributedDataParallel(model)
        x = activations((3, 70))
        ddp(x).square().sum().backward()
        expected = copy.deepcopy(model)
        expected.zero_grad()
        expected(x).square().sum().backward()
        assert torch.equal(model[0].values.grad, expected[0].values.grad)
        other = nn.parallel.DistributedDataParallel(
            nn.Sequential(layer(0.9), layer_of(37, torch.int8, seed=4))
        )
        other.load_state_dict(ddp.state_dict())
        assert torch.equal(other(x), ddp(x))
    finally:
        torch.distributed.destroy_process_group()


def layer_of(size: int, dtype: torch.dtype, seed: int = 0) -> CSRLinear:
    return CSRLinear.from_dense(pruned(nn.Linear(size, size), seed=seed), dtype=dtype)


# --- inside torch's own modules, and from many threads --------------------------------------------


@pytest.mark.parametrize("training", [False, True])
def test_inside_a_transformer_encoder_layer(training):
    dense = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True).train(training)
    for linear in (dense.linear1, dense.linear2):
        pruned(linear)
    sparse = copy.deepcopy(dense)
    sparse.linear1 = CSRLinear.from_dense(dense.linear1)
    sparse.linear2 = CSRLinear.from_dense(dense.linear2)
    x = activations((2, 5, 64))
    with torch.set_grad_enabled(training):  # without, torch takes a path that reads the weights
        torch.testing.assert_close(sparse(x), dense(x), atol=1e-4, rtol=1e-4)


def test_functional_call_and_autocast():
    sparse, x = layer(), activations((3, 70))
    doubled = {"values": sparse.values * 2, "bias": sparse.bias * 2}
    got = torch.func.functional_call(sparse, doubled, (x,))
    torch.testing.assert_close(got, sparse(x) * 2, **TOLERANCE)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(sparse(x), sparse(x))
        assert sparse(nn.functional.linear(x, torch.eye(70))).dtype == torch.bfloat16


def test_many_threads_forward_and_backward_at_once():
    sparse, barrier = layer(), threading.Barrier(4)
    inputs = [activations((rows, 70), seed=rows) for rows in (1, 5, 40, 90)]

    def gradients(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = x.clone().requires_grad_()
        y = sparse(x)
        return (y, *torch.autograd.grad(y.square().sum(), (x, sparse.values, sparse.bias)))

    def work(caller: int) -> list[tuple[torch.Tensor, ...]]:
        barrier.wait(timeout=30)
        return [gradients(inputs[(caller + turn) % 4]) for turn in range(8)]

    with ThreadPoolExecutor(4) as pool:
        results = [future.result() for future in [pool.submit(work, i) for i in range(4)]]
    expected = [gradients(x) for x in inputs]
    for caller, turns in enumerate(results):
        for turn, got in enumerate(turns):
            for a, b in zip(got, expected[(caller + turn) % 4], strict=True):
                assert torch.equal(a, b)
