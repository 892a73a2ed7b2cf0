# SPDX-License-Identifier: Apache-2.0
"""The functions over the operators, their errors, and what torch demands of every operator."""

from __future__ import annotations

import itertools

import oracle
import pytest
import sparsekern as sk
import torch
from compare import assert_close
from sparsekern import ops
from strategies import ACTIVATIONS, TORCH, Spec, activations, pack
from torch.autograd import forward_ad

ROWS, COLS = 37, 150


def packed(dtype: torch.dtype = torch.float32, block_rows: int = 1) -> sk.CSRTensor:
    w = activations((ROWS, COLS), seed=3)
    w[w.abs() < 1] = 0
    return sk.CSRTensor.from_dense(w, block_rows=block_rows, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int8])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_functions_agree_with_the_oracle(activation, dtype):
    w, bias = packed(dtype), activations((ROWS,))
    x, image = activations((2, 3, COLS)), activations((2, COLS, 5, 3))
    dense, mask = w.to_dense().double().numpy(), w.mask().numpy()
    y = ops.csr_linear(x, w, bias, activation)
    expected = oracle.linear(
        x.double().reshape(-1, COLS).numpy(), dense, mask, bias.double().numpy()
    )
    # to_dense rounds value * scale to float32, the kernels scale the sum: a rounding more
    c = 2.0 if dtype == torch.int8 else 1.0
    assert_close(y.double().reshape(-1, ROWS).numpy(), expected, "float32", activation, c=c)
    y = ops.csr_conv2d(image, w, bias, 2, activation)
    assert y.shape == (2, ROWS, 3, 2)
    pixels = image[:, :, ::2, ::2].permute(0, 2, 3, 1).reshape(-1, COLS)
    expected = oracle.linear(pixels.double().numpy(), dense, mask, bias.double().numpy())
    flat = y.permute(0, 2, 3, 1).reshape(-1, ROWS)
    assert_close(flat.double().numpy(), expected, "float32", activation, c=c)


def test_sddmm_function():
    w, grad, x = packed(), activations((9, ROWS)), activations((9, COLS), seed=1)
    values = ops.csr_sddmm(grad, x, w)
    dense = sk.CSRTensor(values, w.structure).to_dense()
    torch.testing.assert_close(dense, (grad.T @ x) * w.mask())


def test_paths_with_and_without_a_gradient_are_equal_to_the_bit():
    w, x, bias = packed(), activations((4, COLS)), activations((ROWS,))
    plain = ops.csr_linear(x, w, bias, "gelu")
    recorded = ops.csr_linear(x.clone().requires_grad_(), w, bias, "gelu")
    assert recorded.requires_grad
    assert not plain.requires_grad
    assert torch.equal(plain, recorded)
    with torch.inference_mode():
        assert torch.equal(ops.csr_linear(x, w, bias, "gelu"), plain)
    with torch.no_grad():
        assert not ops.csr_linear(x.clone().requires_grad_(), w).requires_grad


# --- errors: the text, and that fake kernels say no to the same calls -----------------------------

X, IMAGE = torch.zeros(2, COLS), torch.zeros(1, COLS, 4, 4)
LINEAR = {
    "x list": ({"x": [1.0]}, TypeError, "csr_linear: x must be a torch.Tensor, got list"),
    "x double": (
        {"x": X.double()},
        TypeError,
        "csr_linear: x must be float32, bfloat16 or float1",
    ),
    "x int": ({"x": X.int()}, TypeError, "csr_linear: x must be float32, bfloat16 or float16"),
    "x width": (
        {"x": X[:, 1:]},
        ValueError,
        r"csr_linear: x.shape\[-1\] must equal in_features \(150\), got 149",
    ),
    "x scalar": ({"x": torch.tensor(1.0)}, ValueError, "x must have 1 to 16 dimensions, got 0"),
    "w dense": ({"w": torch.ones(2, 2)}, TypeError, "w must be a CSRTensor, got Tensor"),
    "bias list": ({"bias": [1.0]}, TypeError, "csr_linear: bias must be a torch.Tensor, got list"),
    "bias size": ({"bias": torch.ones(36)}, ValueError, r"csr_linear: bias must .*37.*, got .*36"),
    "bias double": ({"bias": torch.ones(37).double()}, TypeError, "csr_linear: bias must be"),
    "activation": (
        {"activation": "tanh"},
        NotImplementedError,
        "activation must be one of none, relu, relu6, gelu, gelu_tanh, silu, hardswish, got 'tanh'",
    ),
    "activation type": ({"activation": 1}, TypeError, "activation must be a string, got int"),
    "int8 activations": (
        {"int8_activations": True},
        TypeError,
        "csr_linear: int8_activations needs int8 values, got float32",
    ),
}
CONV = {
    "x dimensions": ({"x": IMAGE[0]}, ValueError, "csr_conv2d: x must have 4 dimensions .* got 3"),
    "x channels": (
        {"x": IMAGE[:, 1:]},
        ValueError,
        r"csr_conv2d: x.shape\[1\] must equal in_channels \(150\), got 149",
    ),
    "int8 activations": (
        {"int8_activations": True},
        TypeError,
        "csr_conv2d: int8_activations needs int8 values, got float32",
    ),
    "stride": ({"stride": 0}, ValueError, "csr_conv2d: stride must be at least 1, got 0"),
    "x double": ({"x": IMAGE.double()}, TypeError, "csr_conv2d: x must be float32, bfloat16 or"),
    "bias size": ({"bias": torch.ones(36)}, ValueError, r"csr_conv2d: bias must .*37.*, got .*36"),
}


@pytest.mark.parametrize("records", [False, True], ids=["plain", "recording"])
@pytest.mark.parametrize("case", LINEAR)
def test_linear_refuses(case, records):
    changes, error, text = LINEAR[case]
    w = packed()
    w.values.requires_grad_(records)
    with pytest.raises(error, match=text):
        ops.csr_linear(**{"x": X, "w": w, **changes})


@pytest.mark.parametrize("case", CONV)
def test_conv2d_refuses(case):
    changes, error, text = CONV[case]
    with pytest.raises(error, match=text):
        ops.csr_conv2d(**{"x": IMAGE, "w": packed(), **changes})


def test_sddmm_refuses():
    w = packed()
    with pytest.raises(ValueError, match="csr_sddmm: grad and x must be"):
        ops.csr_sddmm(torch.zeros(2, ROWS), torch.zeros(3, COLS), w)
    with pytest.raises(TypeError, match=r"csr_sddmm: grad must be a torch\.Tensor, got NoneType"):
        ops.csr_sddmm(None, X, w)


def test_a_device_without_kernels_is_named():
    if torch.version.cuda is not None:
        pytest.skip("this torch has more devices")
    w = packed()
    parts = (w.values.to("meta"), w.structure.to("meta"), None, None, ROWS, 0)
    assert ops.linear(X.to("meta"), *parts).device.type == "meta"  # meta is the fake kernel
    error = NotImplementedError("Could not run 'op' with arguments from the 'X' backend")
    assert str(ops._explained(error, "csr_linear", x=X.to("meta"))) == (
        "csr_linear: x must be on a device with kernels (cpu), got meta"
    )


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch's own use of it
@pytest.mark.parametrize("op", [ops.csr_linear, ops.csr_conv2d])
def test_forward_mode_gradients_are_refused(op):
    x = X if op is ops.csr_linear else IMAGE
    with forward_ad.dual_level():
        op(x, packed())  # not dual: fine
        with pytest.raises(NotImplementedError, match=r"reverse mode .*got a forward-mode dual"):
            op(forward_ad.make_dual(x, x), packed())


def test_fake_kernels_refuse_what_the_kernels_refuse():
    w = packed()
    good = {
        "x": X,
        "values": w.values,
        "structure": w.structure,
        "scale": None,
        "bias": None,
        "rows": ROWS,
        "activation": 0,
    }
    changes = [
        {"x": X.double()},
        {"x": torch.tensor(1.0)},
        {"values": w.values.double()},
        {"values": w.values[None]},
        {"structure": w.structure.short()},
        {"scale": torch.ones(ROWS)},
        {"values": w.values.to(torch.int8)},
        {"values": w.values.to(torch.int8), "scale": torch.ones(ROWS).half()},
        {"values": w.values.to(torch.int8), "scale": torch.ones(ROWS - 1)},
        {"bias": torch.ones(ROWS - 1)},
        {"bias": torch.ones(ROWS).double()},
        {"activation": 7},
        {"activation": -1},
        {"int8_activations": True},
    ]
    op = torch.ops.sparsekern.csr_linear
    assert op(**good).shape == (2, ROWS)
    for change in changes:
        arguments = good | change
        with pytest.raises((RuntimeError, TypeError, ValueError)):
            op(**arguments)
        meta = {k: v.to("meta") if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}
        with pytest.raises((TypeError, ValueError)):
            op(**meta)


# --- opcheck over all operators -------------------------------------------------------------------


def samples() -> dict[str, list[tuple]]:
    """Arguments for every operator; a new operator without a line here fails the test."""
    linear, conv, down, conv_down, sddmm, nm = [], [], [], [], [], []
    kinds = (("float32", 1, "gelu"), ("bfloat16", 2, "relu"), ("int8", 4, "none"))
    for dtype, block_rows, activation in kinds:
        p = pack(Spec(21, 34, 0.3, dtype, block_rows))
        x_dtype = "float32" if dtype == "int8" else dtype
        x, image = activations((5, 34), x_dtype), activations((1, 34, 3, 5), x_dtype)
        y, y_image = activations((5, 21), x_dtype), activations((1, 21, 3, 5), x_dtype)
        bias = None if dtype == "int8" else activations((21,)).requires_grad_(dtype == "float32")
        code = ACTIVATIONS.index(activation)
        values = p.values
        if dtype != "int8":
            values = values.requires_grad_()
        parts = (values, p.structure, p.scale)
        linear.append((x.clone().requires_grad_(), *parts, bias, 21, code))
        if dtype == "int8":
            linear.append((x.clone().requires_grad_(), *parts, bias, 21, code, True))
            conv.append((image.clone().requires_grad_(), *parts, bias, 21, 1, code, True))
        conv.append((image.requires_grad_(), *parts, bias, 21, 2, code))
        down.append((y.requires_grad_(), *parts, 34))
        conv_down.append((y_image.requires_grad_(), *parts, 34))
        if dtype != "int8":
            nm += [(x.detach(), 2, 4), (x.detach().t(), 1, 8, True), (x, 3, 16)]
        sddmm.append((y, x.requires_grad_(), p.structure, p.values.numel()))
    nm_linear, nm_down = [], []
    for dtype, (n, m), activation in (
        (torch.float32, (2, 4), "gelu"),
        (torch.bfloat16, (1, 16), "relu"),
        (torch.int8, (3, 8), "none"),
    ):
        w = sk.NMTensor.from_dense(activations((21, 34)), n, m, strict=False, dtype=dtype)
        x_dtype = "bfloat16" if dtype == torch.bfloat16 else "float32"
        values = w.values if dtype == torch.int8 else w.values.requires_grad_()
        bias = activations((21,)).requires_grad_() if dtype == torch.float32 else None
        x, y = activations((5, 34), x_dtype), activations((5, 21), x_dtype)
        parts = (values, w.structure, w.scale)
        nm_linear.append((x.requires_grad_(), *parts, bias, 21, ACTIVATIONS.index(activation)))
        nm_down.append((y.requires_grad_(), *parts, 34))
    w = sk.NMTensor.from_dense(activations((21, 34)), 2, 4, strict=False)
    pair = (activations((5, 21)).requires_grad_(), activations((5, 34)).requires_grad_())
    nm_sddmm = [(*pair, w.structure, w.values.numel())]
    bitmap_linear, bitmap_down = [], []
    for dtype, activation in (
        (torch.float32, "gelu"),
        (torch.bfloat16, "relu"),
        (torch.int8, "none"),
    ):
        w = activations((21, 70))
        b = sk.BitmapTensor.from_dense(w, mask=w > 0, dtype=dtype)
        x_dtype = "bfloat16" if dtype == torch.bfloat16 else "float32"
        values = b.values if dtype == torch.int8 else b.values.requires_grad_()
        bias = activations((21,)).requires_grad_() if dtype == torch.float32 else None
        x, y = activations((5, 70), x_dtype), activations((5, 21), x_dtype)
        parts = (values, b.structure, b.scale)
        bitmap_linear.append((x.requires_grad_(), *parts, bias, 21, ACTIVATIONS.index(activation)))
        bitmap_down.append((y.requires_grad_(), *parts, 70))
    pair = (activations((5, 21)).requires_grad_(), activations((5, 70)).requires_grad_())
    bitmap_sddmm = [(*pair, b.structure, b.values.numel())]
    dense = activations((21, 34))
    kept = [sk.ops.nm_mask(dense, n, m) for n, m in ((2, 4), (1, 16), (3, 32))]
    nm_pack = [
        (dense, kept[0], 2, 4),
        (dense.t().contiguous().t(), kept[1], 1, 16),
        (dense.bfloat16(), kept[2], 3, 32),
    ]
    nm_select_pack = [
        (dense, 2, 4),
        (dense.t(), 1, 16),
        (dense.bfloat16(), 3, 32),
    ]
    gqs_linear, gqs_down, gqs_scale = [], [], []
    for scale, zeros, activation in (
        (torch.float32, True, "gelu"),
        (torch.bfloat16, False, "relu"),
        (torch.uint8, False, "none"),
    ):
        g = sk.GQSTensor.from_dense(
            activations((21, 34)), 4, 16, symmetric=not zeros, scale_dtype=scale
        )
        if g.scale.is_floating_point():
            g.scale.requires_grad_()
        bias = activations((21,)).requires_grad_() if zeros else None
        x, y = activations((5, 34)).requires_grad_(), activations((5, 21)).requires_grad_()
        parts = (g.values, g.structure, g.scale)
        gqs_linear.append((x, *parts, bias, 21, ACTIVATIONS.index(activation)))
        gqs_down.append((y, *parts, 34))
        if g.scale.is_floating_point():
            gqs_scale.append((y.detach(), x.detach(), *(part.detach() for part in parts)))
    return {
        "gqs_linear": gqs_linear,
        "gqs_linear_transposed": gqs_down,
        "gqs_scale_gradient": gqs_scale,
        "_bitmap_linear_by_torch": [
            tuple(a.detach() if isinstance(a, torch.Tensor) else a for a in arguments)
            for arguments in bitmap_linear
            if arguments[0].dtype == torch.bfloat16
        ],
        "bitmap_linear": bitmap_linear,
        "bitmap_linear_transposed": bitmap_down,
        "bitmap_sddmm": bitmap_sddmm,
        **kv_samples(),
        "nm_pack": nm_pack,
        "nm_select_pack": nm_select_pack,
        "nm_linear": nm_linear,
        "nm_linear_transposed": nm_down,
        "nm_sddmm": nm_sddmm,
        "csr_linear": linear,
        "csr_conv2d": conv,
        "csr_linear_transposed": down,
        "csr_conv2d_transposed": conv_down,
        "csr_sddmm": sddmm,
        "nm_mask": [*nm, (dense.t(), 2, 8, True)],
    }


def kv_samples() -> dict[str, list[tuple]]:
    """Of the operators of pruned KV caches: K, V, q, pages with a table, a window, starts."""
    append, unpack, attention = [], [], []
    for dtype, head_dim, keep in ((torch.float32, 16, (8, 5)), (torch.bfloat16, 72, (72, 1))):
        k, v, q = (activations((2, 2, 5, head_dim), seed=i).to(dtype) for i in range(3))
        elements = 64 * sum(keep) + 16 * head_dim // dtype.itemsize
        pages = torch.zeros(3, 2, elements, dtype=dtype)
        table, lengths = torch.tensor([[2], [0]], dtype=torch.int32), torch.tensor([0, 3])
        sk.ops.bitmap_kv_append(k, v, pages, table, torch.zeros(2, dtype=torch.int64), *keep)
        append.append((k, v, pages.clone(), table, lengths, *keep))
        unpack.append((pages, table, lengths, head_dim, *keep, 4))
        window = (k, v, torch.tensor([5, 0]))
        attention.append((q[:, :, 0], pages, table, lengths, *keep, *window, lengths // 2, 0.5))
        attention.append((q[:, 0, :4], pages, table, lengths, *keep, *[None] * 4, 0.1, 5.0))
    return {
        "bitmap_kv_append": append,
        "bitmap_kv_unpack": unpack,
        "bitmap_attention": attention,
    }


WITHOUT_TENSORS = {"active_isa", "version"}  # nothing of theirs can be traced


def registered() -> set[str]:
    names = torch._C._dispatch_get_all_op_names()
    return {name.split("::")[1].split(".")[0] for name in names if name.startswith("sparsekern::")}


def test_every_operator_has_samples():
    assert registered() - WITHOUT_TENSORS == set(samples())
    for name in WITHOUT_TENSORS:
        schema = getattr(torch.ops.sparsekern, name).default._schema
        assert not any(isinstance(a.type, torch.TensorType) for a in schema.arguments)


@pytest.mark.parametrize("name", sorted(registered() - WITHOUT_TENSORS))
def test_opcheck(name):
    op = getattr(torch.ops.sparsekern, name).default
    for arguments in samples()[name]:
        # Values and padding differ in meaning: gradients are compared in test_autograd.
        torch.library.opcheck(op, arguments)


def test_operators_take_codes_of_all_activations():
    w, x = packed(), activations((3, COLS))
    dense = torch.nn.functional.linear(x, w.to_dense())
    assert len(ACTIVATIONS) == len(sk.ops._activations.ACTIVATIONS)
    for code, activation in enumerate(sk.ops._activations.ACTIVATIONS):
        assert activation.name == ACTIVATIONS[code]
        got = torch.ops.sparsekern.csr_linear(x, w.values, w.structure, None, None, ROWS, code)
        torch.testing.assert_close(got, activation.module()(dense), atol=2e-5, rtol=2e-5)


def test_empty_batches_have_the_right_shape():
    for leading, dtype in itertools.product([(0,), (2, 0, 3)], TORCH.values()):
        if dtype == torch.int8:
            continue
        y = ops.csr_linear(torch.zeros(*leading, COLS, dtype=dtype), packed())
        assert y.shape == (*leading, ROWS)
        assert y.dtype == dtype
