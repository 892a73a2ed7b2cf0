# SPDX-License-Identifier: Apache-2.0
"""GQSTensor, GQSLinear, the pattern, and what converts, keeps and reports them."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import sparsekern as sk
import torch
from safetensors import safe_open
from safetensors.torch import save_file as save_raw
from sparsekern.gqs import SCALE_NAMES
from strategies import activations
from torch import nn

W = activations((40, 200))
HALF = torch.rand(40, 13, generator=torch.Generator().manual_seed(0)) < 0.5


# --- quantizing -----------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("group", [16, 32, 64, 128])
@pytest.mark.parametrize("scale_dtype", SCALE_NAMES)
def test_each_weight_gets_the_nearest_code(bits, group, scale_dtype):
    packed = sk.GQSTensor.from_dense(W, bits, group, scale_dtype=scale_dtype)
    dense = packed.to_dense()
    pad = -200 % group
    blocks = nn.functional.pad(W, (0, pad)).reshape(40, -1, group)
    step = blocks.abs().amax(2, keepdim=True) / (2 ** (bits - 1) - 1)
    error = (nn.functional.pad(dense, (0, pad)).reshape(blocks.shape) - blocks).abs()
    # half a step of the rounded scale, and what the rounded scale no longer reaches
    slack = {torch.uint8: 0.02, torch.bfloat16: 0.005}.get(scale_dtype, 0.001)
    reach = slack * blocks.abs().amax(2, keepdim=True)
    if scale_dtype == torch.uint8:
        reach = reach + blocks.abs().amax((1, 2), keepdim=True) / 255
    assert (error <= step / 2 * (1 + slack) + reach).all()


def test_zero_points_use_all_codes():
    positive = W.abs() + 1
    symmetric = sk.GQSTensor.from_dense(positive, 4, 16).to_dense()
    packed = sk.GQSTensor.from_dense(positive, 4, 16, symmetric=False)
    assert packed.zeros is not None
    assert (packed.to_dense() - positive).square().sum() < (symmetric - positive).square().sum()


def test_given_scales_and_zeros_are_kept_exactly():
    scales = torch.full((40, 13), 0.25)
    zeros = torch.full((40, 13), 1.5)
    packed = sk.GQSTensor.from_dense(W, 4, 16, mask=HALF, scales=scales, zeros=zeros)
    assert torch.equal(packed.scales, torch.full_like(packed.scales, 0.25))
    assert torch.equal(packed.zeros, torch.full_like(packed.zeros, 1.5))
    codes = (W / 0.25 + 1.5).round().clamp(-8, 7)
    kept = packed.mask()
    assert torch.equal(packed.codes().float(), codes * kept)
    assert torch.equal(packed.to_dense(), (codes - 1.5) * 0.25 * kept)
    assert torch.equal(packed.group_mask(), HALF)
    again = sk.GQSTensor.from_quantized(codes.to(torch.int8), scales.half(), HALF, zeros)
    for part in ("values", "structure", "scale"):
        assert torch.equal(getattr(again, part), getattr(packed, part))


def test_groups_of_zeros_are_pruned_and_kept_ones_may_be_zero():
    w = W.clone()
    w[:, 16:32] = 0
    assert not sk.GQSTensor.from_dense(w).group_mask()[:, 1].any()
    everything = sk.GQSTensor.from_dense(w, mask=torch.ones(40, 13, dtype=torch.bool))
    assert everything.group_mask().all()
    assert everything.nnz == w.numel()
    assert not everything.to_dense()[:, 16:32].any()
    none = sk.GQSTensor.from_dense(torch.zeros(3, 40))
    assert none.nnz == 0
    assert torch.equal(sk.ops.gqs_linear(torch.ones(2, 40), none), torch.zeros(2, 3))


BAD = torch.zeros(40, 13)
REFUSED = {
    "nan": ({"w": W / W.new_zeros(())}, ValueError, "w must be finite where it is kept"),
    "integer": ({"w": W.int()}, TypeError, "w must have a floating-point dtype"),
    "vector": ({"w": W[0]}, ValueError, r"w must have shape \[rows, cols\]"),
    "bits": ({"bits": 3}, NotImplementedError, r"bits must be one of \(2, 4, 8\), got 3"),
    "bits type": ({"bits": 4.0}, TypeError, "bits must be an integer, got float"),
    "group": ({"group": 24}, NotImplementedError, "group must be one of .* got 24"),
    "mask shape": ({"mask": HALF[:, 1:]}, ValueError, r"mask must have shape \[40, 13\]"),
    "mask dtype": ({"mask": HALF.int()}, TypeError, "mask must be a torch.bool tensor"),
    "scale 0": ({"scales": BAD}, ValueError, "scales must be finite and not 0"),
    "scale nan": ({"scales": BAD / 0}, ValueError, "scales must be finite and not 0"),
    "scale underflow": ({"scales": BAD + 1e-9}, ValueError, "must be numbers of torch.float16"),
    "scale overflow": ({"w": W * 1e7}, ValueError, "must be numbers of torch.float16"),
    "scale shape": ({"scales": BAD[:, 1:]}, ValueError, r"scales must have shape \[40, 13\]"),
    "scale dtype": ({"scale_dtype": torch.int8}, TypeError, "scale_dtype must be one of"),
    "scale type": ({"scales": 1.0}, TypeError, "scales must be a torch.Tensor, got float"),
    "zeros alone": ({"zeros": BAD}, ValueError, "zeros must come with scales"),
    "zeros nan": ({"zeros": BAD / 0, "scales": BAD + 1}, ValueError, "zeros must be finite"),
    "narrow zeros": (
        {"symmetric": False, "scale_dtype": torch.uint8},
        NotImplementedError,
        "must be a floating-point one with zero-points, got uint8",
    ),
    "narrow below": (
        {"scales": BAD - 1, "scale_dtype": torch.uint8},
        ValueError,
        "8-bit scales must be above 0",
    ),
    "meta": ({"w": W.to("meta")}, ValueError, "w must hold data"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_from_dense_refuses(case):
    changes, error, text = REFUSED[case]
    with pytest.raises(error, match="^GQSTensor.from_dense: .*" + text):
        sk.GQSTensor.from_dense(**{"w": W, **changes})


def test_nan_in_a_pruned_group_does_not_matter():
    w = W.clone()
    w[:, 3] = torch.nan
    mask = torch.ones(40, 13, dtype=torch.bool)
    mask[:, 0] = False
    assert sk.GQSTensor.from_dense(w, mask=mask).to_dense().isfinite().all()


def test_from_quantized_refuses():
    ones = torch.ones(40, 13)
    with pytest.raises(ValueError, match=r"codes must be in \[-8, 7\] for 4 bits"):
        sk.GQSTensor.from_quantized(torch.full((40, 200), 8), ones)
    outside = torch.full((40, 200), 8)
    pruned = sk.GQSTensor.from_quantized(outside, ones, torch.zeros(40, 13, dtype=torch.bool))
    assert pruned.nnz == 0  # codes of pruned groups do not matter
    with pytest.raises(TypeError, match=r"codes must have an integer dtype, got torch\.float32"):
        sk.GQSTensor.from_quantized(W, ones)
    with pytest.raises(ValueError, match=r"codes must be \[rows, cols\], got \[5\]"):
        sk.GQSTensor.from_quantized(torch.zeros(5, dtype=torch.int8), ones)


PACKED = sk.GQSTensor.from_dense(W, mask=HALF)


def test_the_constructor_checks_everything():
    values, structure, scale = PACKED.values, PACKED.structure, PACKED.scale
    good = sk.GQSTensor(values, structure, scale)
    assert torch.equal(good.to_dense(), PACKED.to_dense())
    cases = [
        ((values.float(), structure, scale), TypeError, "values must have dtype int8"),
        ((values[64:], structure, scale), ValueError, "gqs: values must have"),
        ((values, structure[1:], scale), ValueError, "gqs_info: structure"),
        ((values, structure, scale[1:]), ValueError, "gqs: scale must have"),
        ((values, structure, None), TypeError, "scale must be a torch.Tensor, got NoneType"),
        ((values, structure, scale.double()), TypeError, "scale must have dtype"),
        ((values, structure, scale[None]), ValueError, "scale must be 1-D"),
        ((values, structure, scale.byte()), TypeError, "8 bits where rows have a factor"),
        ((values, structure, scale * torch.nan), ValueError, "scales must be finite and not 0"),
        ((values, structure, scale * 0), ValueError, "scales must be finite and not 0"),
        ((values, structure, scale.to("meta")), ValueError, "scale must be on the device"),
        ((values.to("meta"), structure, scale), ValueError, "values must hold data"),
    ]
    for parts, error, text in cases:
        with pytest.raises(error, match=text):
            sk.GQSTensor(*parts)
    mixed = structure.clone()
    mixed[-64] ^= 255
    with pytest.raises(ValueError, match="gqs: the mask of row"):
        sk.GQSTensor(values, mixed, scale)


def test_copies():
    for packed in (PACKED, sk.GQSTensor.from_dense(W, scale_dtype=torch.uint8)):
        for other in (copy.deepcopy(packed), pickle.loads(pickle.dumps(packed)), packed.to("cpu")):
            assert torch.equal(other.to_dense(), packed.to_dense())
    assert repr(PACKED) == (
        f"GQSTensor(shape=[40, 200], dtype=int8, bits=4, group=16, scale=float16, "
        f"density={PACKED.density:.4f})"
    )
    with pytest.raises(TypeError, match="dtype must be a floating-point one"):
        PACKED.to(dtype=torch.float16)


# --- the pattern ----------------------------------------------------------------------------------


def test_pattern_prunes_whole_groups():
    score = torch.rand(10, 70, generator=torch.Generator().manual_seed(1))
    for scope in ("layer", "row"):
        mask = sk.GQS(4, 16, 0.4).mask(score, scope)
        units = torch.stack([part.float().mean(1) for part in mask.split(16, 1)], 1)
        assert ((units == 0) | (units == 1)).all()
        assert int((units == 0).sum()) == (20 if scope == "layer" else 10 * 2)
        means = torch.stack([part.mean(1) for part in score.split(16, 1)], 1)
        if scope == "layer":
            assert means[units == 1].min() >= means[units == 0].max()
    assert sk.GQS().label == "GQS(w4g16)"
    assert sk.GQS().with_sparsity(0.75).sparsity == 0.75
    with pytest.raises(NotImplementedError, match="GQS: group must be one of"):
        sk.GQS(4, 8)
    with pytest.raises(ValueError, match=r"GQS: sparsity must be in \[0, 1\]"):
        sk.GQS(4, 16, 1.5)


def test_prune_then_pack():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(96, 64), nn.ReLU(), nn.Linear(64, 32))
    sk.prune_(model, sk.GQS(4, 16, 0.5))
    for layer in (model[0], model[2]):
        assert sk.GQSTensor.from_dense(layer.weight).density == pytest.approx(0.5)


# --- the layer ------------------------------------------------------------------------------------


def made(**changes) -> tuple[nn.Linear, sk.nn.GQSLinear]:
    torch.manual_seed(0)
    dense = nn.Linear(200, 40)
    return dense, sk.nn.GQSLinear.from_dense(dense, mask=HALF, **changes)


def test_layer_computes_and_trains():
    _, layer = made(symmetric=False, scale_dtype=torch.float32)
    x = activations((6, 200)).requires_grad_()
    y = layer(x)
    torch.testing.assert_close(y, layer.to_dense()(x), atol=1e-4, rtol=1e-4)
    assert [name for name, p in layer.named_parameters() if p.requires_grad] == ["bias", "scale"]
    optimizer = torch.optim.SGD(layer.parameters(), lr=1e-4)
    codes = layer.weight.codes()
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = layer(x).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses == sorted(losses, reverse=True)
    assert x.grad is not None
    assert torch.equal(layer.weight.codes(), codes)
    assert "bits=4, group=16, scale=float32, zeros" in repr(layer)


def test_conversions_of_dtype_leave_the_scales():
    _, layer = made()
    before = layer.scale.detach().clone()
    for convert in (nn.Module.half, nn.Module.float, nn.Module.bfloat16):
        convert(layer)
        assert layer.scale.dtype == torch.float16
        assert torch.equal(layer.scale, before)
    assert layer.bias.dtype == torch.bfloat16
    assert layer(torch.ones(2, 200, dtype=torch.bfloat16)).dtype == torch.bfloat16
    frozen = made(scale_dtype=torch.uint8)[1]
    assert not frozen.scale.requires_grad
    assert frozen.float().scale.dtype == torch.uint8


def test_state_of_another_pattern_loads():
    _, layer = made()
    for scale_dtype, bits in ((torch.float16, 4), (torch.uint8, 8)):
        new = sk.nn.GQSLinear(200, 40, scale_dtype=scale_dtype)
        assert torch.equal(new(torch.ones(2, 200)), torch.zeros(2, 40))
        other = made(scale_dtype=scale_dtype, bits=bits)[1]
        new.load_state_dict(other.state_dict())
        x = activations((3, 200))
        assert torch.equal(new(x), other(x))
    state = layer.state_dict()
    state["scale"] = state["scale"] * 0
    with pytest.raises(RuntimeError, match="scales must be finite and not 0"):
        sk.nn.GQSLinear(200, 40).load_state_dict(state)
    with pytest.raises(RuntimeError, match="structure must have shape"):
        sk.nn.GQSLinear(100, 40).load_state_dict(layer.state_dict())
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    again = torch.load(buffer, weights_only=False)
    assert torch.equal(again(x), layer(x))
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))


def test_layer_refuses():
    with pytest.raises(TypeError, match=r"module must be an nn\.Linear, got ReLU"):
        sk.nn.GQSLinear.from_dense(nn.ReLU())
    with pytest.raises(TypeError, match="packed must be a GQSTensor, got NMTensor"):
        sk.nn.GQSLinear.from_packed(sk.NMTensor.from_dense(W, 2, 4, strict=False))
    with pytest.raises(NotImplementedError, match="bits must be one of"):
        sk.nn.GQSLinear(4, 4, bits=5)


# --- convert, report, checkpoint ------------------------------------------------------------------


def pruned_model() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(128, 96), nn.GELU(), nn.Linear(96, 64)).eval()
    sk.prune_(model, sk.GQS(4, 16, 0.5))
    return model


def test_convert_report_and_checkpoint(tmp_path):
    model = pruned_model()
    x = activations((4, 128))
    expected = model(x)
    result = sk.convert_(model, x, policy="smallest", quantize=sk.GQS(4, 16))
    assert all(isinstance(model[i], sk.nn.GQSLinear) for i in (0, 2))
    assert "gqs" in str(result)
    y = model(x)
    assert (y - expected).norm() < 0.2 * expected.norm()  # INT4 by the largest magnitude
    text = str(sk.report(model, x))
    assert "gqs w4g16" in text
    assert "gqs_linear_w4g16_decode" in text
    path = tmp_path / "model.safetensors"
    sk.save_file(model, path)
    fresh = pruned_model()
    sk.load_file(fresh, path)
    assert torch.equal(fresh(x), y)
    assert fresh[0].scale.requires_grad
    sk.load_file(model, path)  # onto a packed one
    assert torch.equal(model(x), y)
    tensors = sk.load_tensors(path)
    assert any(isinstance(t, sk.GQSTensor) for t in tensors.values())


def test_convert_without_permission_does_not_quantize():
    model = pruned_model()
    sk.convert_(model, activations((4, 128)), policy="smallest")
    assert not any(isinstance(m, sk.nn.GQSLinear) for m in model.modules())
    with pytest.raises(TypeError, match="quantize must be a GQS, got str"):
        sk.convert_(model, activations((4, 128)), quantize="int4")


def test_a_damaged_checkpoint_is_refused(tmp_path):
    model = pruned_model()
    sk.convert_(model, activations((4, 128)), policy="smallest", quantize=sk.GQS(4, 16))
    path = tmp_path / "model.safetensors"
    sk.save_file(model, path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    tensors["0.scale"][0] = 0
    save_raw(tensors, path, metadata)
    with pytest.raises(sk.CheckpointError, match="damaged"):
        sk.load_file(pruned_model(), path)


# --- pack-quantized -------------------------------------------------------------------------------


def words_of(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes [rows, cols] as compressed-tensors packs them."""
    per_word = 32 // bits
    unsigned = nn.functional.pad(codes.long() + 2 ** (bits - 1), (0, -codes.shape[1] % per_word))
    shifts = torch.arange(0, 32, bits)
    words = (unsigned.reshape(len(codes), -1, per_word) << shifts).sum(2)
    return torch.where(words >= 2**31, words - 2**32, words).int()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group", [16, 128])
@pytest.mark.parametrize("zeros", [False, True])
def test_pack_quantized(bits, group, zeros):
    g = torch.Generator().manual_seed(2)
    codes = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (20, 256), generator=g)
    scales = (torch.rand(20, 256 // group, generator=g) + 0.1).bfloat16()
    points = torch.randint(-8, 8, scales.shape, generator=g) if zeros else None
    shape = torch.tensor([20, 256])
    for given in [points] if points is None else [points, words_of(points.T, bits).T]:
        w = sk.interop.from_pack_quantized(
            words_of(codes, bits), scales, shape, weight_zero_point=given, bits=bits
        )
        zero = 0 if points is None else points.repeat_interleave(group, 1)
        expected = (codes - zero) * scales.float().repeat_interleave(group, 1)
        assert torch.equal(w.to_dense(), expected)
        assert (w.bits, w.group, w.nnz) == (bits, group, codes.numel())
        assert w.scale.dtype == torch.bfloat16


def test_pack_quantized_refuses():
    words, scales = torch.zeros(4, 16, dtype=torch.int32), torch.ones(4, 8)
    read = sk.interop.from_pack_quantized
    with pytest.raises(ValueError, match=r"weight_packed must have shape \[4, 15\]"):
        read(words, scales, (4, 120))
    with pytest.raises(NotImplementedError, match=r"groups must be of .* got 1 groups for 256"):
        read(torch.zeros(4, 32, dtype=torch.int32), scales[:, :1], (4, 256))
    with pytest.raises(TypeError, match="weight_packed must have dtype int32"):
        read(words.long(), scales, (4, 128))
    with pytest.raises(ValueError, match="scales must be finite and not 0"):
        read(words, scales * 0, (4, 128))
    with pytest.raises(ValueError, match=r"weight_scale must be \[4, groups\]"):
        read(words, scales[1:], (4, 128))
    with pytest.raises(NotImplementedError, match="bits must be 4 or 8, got 3"):
        read(words, scales, (4, 128), bits=3)
