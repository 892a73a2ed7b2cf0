# SPDX-License-Identifier: Apache-2.0
"""nm_linear and nm_mask on CUDA against the oracle; what of them can be checked without a GPU."""

from __future__ import annotations

import numpy as np
import pytest
import sparsekern as sk
import torch
from cuda_checks import check_streams_and_graphs, on_cuda
from products import check_product
from sparsekern import ops
from strategies import (
    ACTIVATIONS,
    DTYPES,
    NM_PATTERNS,
    X_DTYPES,
    NmSpec,
    Packed,
    activations,
    pack_nm,
)

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")


def run(packed: Packed, x: torch.Tensor, bias=None, activation: str = "none") -> torch.Tensor:
    code = ACTIVATIONS.index(activation)
    return torch.ops.sparsekern.nm_linear(x, *on_cuda(packed), bias, packed.spec.rows, code)


def check(packed: Packed, x: torch.Tensor, bias=None, activation: str = "none") -> None:
    y = run(packed, x.cuda(), None if bias is None else bias.cuda(), activation)
    assert y.is_cuda
    # Tensor cores add up with truncation, not to the nearest.
    check_product(y.cpu(), packed, x, bias, activation, c=2.0)


@pytest.fixture(params=["1", "0"], ids=["wgmma", "mma"])
def sparse_kernel(request, monkeypatch):
    """Both kernels of 2:4 where the GPU is a Hopper; elsewhere the same one twice."""
    monkeypatch.setenv("SPARSEKERN_CUDA_WGMMA", request.param)
    return request.param


def test_words_are_the_metadata_of_sparse_tensor_cores():
    """The lanes' metadata, as csrc/ops/nm_linear/cuda_index.h composes it, is CUTLASS's.

    torch's conversion for CUTLASS, which runs on real devices, stores the register of lane 4 g + t
    of each 32 x 32 tile of W as word 4 g + t of the tile.
    """
    conversions = pytest.importorskip("torch.sparse._semi_structured_conversions")
    rows, cols = 96, 128
    generator = torch.Generator().manual_seed(1)
    w = torch.randn(rows, cols, generator=generator).to(torch.bfloat16)
    w = torch.where(ops.nm_mask(w, 2, 4), w, 0)
    packed = sk.NMTensor.from_dense(w, 2, 4)
    _, meta = conversions.sparse_semi_structured_from_dense_cutlass(w)
    tiles = meta.contiguous().view(-1).numpy().view(np.uint32).reshape(cols // 32, rows // 32, 32)

    words = packed.structure[64:].numpy().view(np.uint32).reshape(rows // 16, cols // 32, 16)
    for q in range(cols // 32):
        for tile in range(rows // 32):
            for lane in range(32):
                panel = 2 * tile + (lane >> 1 & 1)
                upper, lower = words[panel, q, lane // 4], words[panel, q, lane // 4 + 8]
                half = 16 * (lane & 1)
                register = (int(upper) >> half & 0xFFFF) | (int(lower) >> half & 0xFFFF) << 16
                assert register == tiles[q, tile, lane], (q, tile, lane)


@needs_cuda
@pytest.mark.cuda
@pytest.mark.parametrize(("n", "m"), NM_PATTERNS)
@pytest.mark.parametrize("x_dtype", X_DTYPES)
def test_patterns_and_dtypes(n, m, x_dtype):
    for dtype in DTYPES:
        packed = pack_nm(NmSpec(70, 200, n, m, dtype, short=0.1, seed=3))
        for x_rows in (1, 2, 3, 5, 16, 20, 70, 200):
            check(packed, activations((x_rows, 200), x_dtype, x_rows))


@needs_cuda
@pytest.mark.cuda
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(("n", "m"), [(1, 2), (2, 4), (2, 8)])
def test_ragged_shapes_of_tiles(n, m, dtype, sparse_kernel):
    for rows, cols in ((1, 64), (15, 63), (128, 64), (129, 65), (300, 40), (257, 1000), (512, 513)):
        packed = pack_nm(NmSpec(rows, cols, n, m, dtype, seed=rows))
        for x_rows in (1, 9, 17, 63, 64, 65, 129, 300):
            check(packed, activations((x_rows, cols), dtype, x_rows), activations((rows,)))


@needs_cuda
@pytest.mark.cuda
@pytest.mark.parametrize("cols", [264, 840])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_large_tiles(dtype, cols, sparse_kernel):
    packed = pack_nm(NmSpec(4100, cols, 2, 4, dtype, seed=2))
    check(packed, activations((2060, cols), dtype, 1), activations((4100,)), "relu")


@needs_cuda
@pytest.mark.cuda
@pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability() != (9, 0),
    reason="the GPU is no Hopper",
)
def test_hopper_takes_its_own_kernel(sparse_kernel):
    packed = pack_nm(NmSpec(256, 512, 2, 4, "bfloat16"))
    x = activations((65, 512), "bfloat16").cuda()
    run(packed, x)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run(packed, x)
        torch.cuda.synchronize()
    name = {"1": "SparseWgmmaKernel", "0": "SparseMmaKernel"}[sparse_kernel]
    assert any(name in event.key for event in profile.key_averages())


@needs_cuda
@pytest.mark.cuda
def test_kernels_that_there_are_not(monkeypatch):
    monkeypatch.setenv("SPARSEKERN_CUDA_WGMMA", "yes")
    packed = pack_nm(NmSpec(16, 64, 2, 4, "bfloat16"))
    with pytest.raises(ValueError, match="SPARSEKERN_CUDA_WGMMA must be 0 or 1, got yes"):
        run(packed, activations((65, 64), "bfloat16").cuda())


@needs_cuda
@pytest.mark.cuda
def test_tiny_matrices_whose_sizes_fit_several_patterns():
    for n, m in NM_PATTERNS:
        for cols in (1, 2, 5, 8, 17):
            packed = pack_nm(NmSpec(5, cols, n, m, "bfloat16", seed=cols))
            for x_rows in (1, 20):
                check(packed, activations((x_rows, cols), "bfloat16", 1))


@needs_cuda
@pytest.mark.cuda
def test_wide_matrices_are_split():
    for n, m in ((2, 4), (1, 8), (5, 32)):
        packed = pack_nm(NmSpec(40, 20000, n, m, "float16", seed=9))
        for x_rows in (1, 2, 4, 8, 11):
            check(packed, activations((x_rows, 20000), "float32", x_rows))


@needs_cuda
@pytest.mark.cuda
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("x_dtype", X_DTYPES)
def test_bias_and_activation(activation, x_dtype, sparse_kernel):
    for dtype in ("int8", x_dtype):
        packed = pack_nm(NmSpec(77, 140, 2, 4, dtype, seed=6))
        bias = activations((77,), seed=1)
        for x_rows in (1, 5, 40, 70):
            x = activations((x_rows, 140), x_dtype, x_rows) * 2
            check(packed, x, bias, activation)
            check(packed, x, bias.to(x.dtype), activation)


@needs_cuda
@pytest.mark.cuda
def test_shapes_and_strides_of_x():
    packed = pack_nm(NmSpec(33, 64, 2, 4, "bfloat16"))
    for shape in ((64,), (0, 64), (2, 0, 64), (3, 5, 64), (2, 3, 4, 64)):
        check(packed, activations(shape, "bfloat16"))
    parts = on_cuda(packed)
    x = activations((40, 128), "bfloat16").cuda()
    for part in (x[:, ::2], x[:, 1:65], x[::2, :64], x[:, :64]):
        y = torch.ops.sparsekern.nm_linear(part, *parts, None, 33)
        same = torch.ops.sparsekern.nm_linear(part.clone(), *parts, None, 33)
        assert torch.equal(y, same)


@needs_cuda
@pytest.mark.cuda
def test_parts_that_begin_anywhere(sparse_kernel):
    packed = pack_nm(NmSpec(64, 128, 2, 4, "bfloat16"))
    values, structure, _ = on_cuda(packed)
    moved = [torch.cat([t.new_zeros(3), t])[3:] for t in (values, structure)]
    for x_rows in (1, 40, 70):
        x = activations((x_rows, 128), "bfloat16").cuda()
        args = (None, None, 64)
        y = torch.ops.sparsekern.nm_linear(x, *moved, *args)
        assert torch.equal(y, torch.ops.sparsekern.nm_linear(x, values, structure, *args))


@needs_cuda
@pytest.mark.cuda
def test_decode_multiplies_kept_weights_only():
    packed = pack_nm(NmSpec(40, 96, 2, 4, "float32", seed=4))
    x = activations((3, 96))
    x[0, 5], x[1, 50], x[2, 95] = float("inf"), float("nan"), -float("inf")
    check(packed, x)


@needs_cuda
@pytest.mark.cuda
@pytest.mark.parametrize("x_rows", [1, 16, 70])
def test_streams_and_graphs(x_rows, sparse_kernel):
    packed = pack_nm(NmSpec(200, 256, 2, 4, "bfloat16"))
    parts = on_cuda(packed)
    for call in (
        lambda x: torch.ops.sparsekern.nm_linear(x, *parts, None, 200),
        lambda x: ops.nm_mask(x, 2, 4),
    ):
        x, other = (activations((x_rows, 256), "bfloat16", seed).cuda() for seed in (0, 5))
        check_streams_and_graphs(call, x, other)


@needs_cuda
@pytest.mark.cuda
def test_a_header_that_contradicts_gives_nan(sparse_kernel):
    packed = pack_nm(NmSpec(33, 256, 2, 4, "bfloat16"))
    values, structure, _ = on_cuda(packed)
    structure[8] += 1  # rows; the panels stay as many
    for x_rows in (1, 40, 70):
        x = activations((x_rows, 256), "bfloat16").cuda()
        assert torch.ops.sparsekern.nm_linear(x, values, structure, None, None, 33).isnan().all()


@needs_cuda
@pytest.mark.cuda
def test_layer_and_gradients():
    layer = sk.nn.NMLinear.from_dense(torch.nn.Linear(64, 48), 2, 4, strict=False)
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
        torch.testing.assert_close(g.cpu(), e, rtol=1e-5, atol=1e-5)


@needs_cuda
@pytest.mark.cuda
def test_bad_arguments():
    packed = pack_nm(NmSpec(40, 64, 2, 4, "bfloat16"))
    values, structure, _ = on_cuda(packed)
    x = activations((3, 64), "bfloat16").cuda()
    op = torch.ops.sparsekern.nm_linear
    with pytest.raises(ValueError, match=r"nm_linear: values must be on x's device.*got cpu"):
        op(x, values.cpu(), structure, None, None, 40)
    with pytest.raises(ValueError, match=r"nm_linear: structure must be on x's device.*got cpu"):
        op(x, values, structure.cpu(), None, None, 40)
    with pytest.raises(ValueError, match=r"nm_linear: bias must be on x's device.*got cpu"):
        op(x, values, structure, None, torch.zeros(40), 40)
    with pytest.raises(ValueError, match=r"nm_linear: bias must have rows \(40\) elements, got 39"):
        op(x, values, structure, None, torch.zeros(39, device="cuda"), 40)
    with pytest.raises(ValueError, match="nm_linear: values and structure must have the sizes"):
        op(x, values, structure, None, None, 60)
    with pytest.raises(ValueError, match="nm_linear: values and structure must have the sizes"):
        op(x[:, :60].contiguous(), values, structure, None, None, 40)
    with pytest.raises(ValueError, match=r"nm_linear: activation must be in \[0, 6\], got 7"):
        op(x, values, structure, None, None, 40, 7)
    with pytest.raises(ValueError, match="nm_linear: scale must be given for int8"):
        op(x, values, structure, torch.ones(40, device="cuda"), None, 40)
    with pytest.raises(RuntimeError, match="x must be float32, bfloat16 or float16"):
        op(x.double(), values, structure, None, None, 40)


@needs_cuda
@pytest.mark.cuda
@pytest.mark.parametrize("dtype", X_DTYPES)
@pytest.mark.parametrize("m", [2, 4, 8, 16, 32])
def test_masks(m, dtype):
    special = torch.tensor([0.0, -0.0, 1.0, -1.0, torch.inf, -torch.inf, torch.nan])
    for shape in ((0, 8), (1, 1), (33, 70), (64, 64), (3, 5, 37), (1000, 513)):
        w = activations(shape, dtype, m)
        generator = torch.Generator().manual_seed(m)
        chosen = special[torch.randint(7, shape, generator=generator)].to(w.dtype)
        w = torch.where(torch.rand(shape, generator=generator) < 0.4, chosen, w)
        for n in {1, m // 2, m - 1}:
            for dim in range(len(shape)):
                for score in (None, w):
                    moved = None if score is None else score.cuda()
                    got = ops.nm_mask(w.cuda(), n, m, dim, moved)
                    assert torch.equal(got.cpu(), ops.nm_mask(w, n, m, dim, score))
