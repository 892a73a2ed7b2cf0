# SPDX-License-Identifier: Apache-2.0
"""The operators nm_pack and nm_select_pack against `NMTensor.from_dense`; their errors."""

from __future__ import annotations

import pytest
import sparsekern as sk
import torch
from test_nm_mask import special

nm_pack = torch.ops.sparsekern.nm_pack
nm_select_pack = torch.ops.sparsekern.nm_select_pack


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("n", "m"), [(1, 2), (2, 4), (3, 4), (2, 8), (5, 8), (1, 16), (3, 32)])
@pytest.mark.parametrize("shape", [(1, 1), (16, 64), (17, 33), (40, 5), (33, 130)])
def test_equals_from_dense(isa, dtype, n, m, shape):
    generator = torch.Generator().manual_seed(n * m)
    w = torch.randn(shape, generator=generator).to(dtype)
    mask = sk.ops.nm_mask(w, n, m)
    want = sk.NMTensor.from_dense(w, n, m, mask=mask)
    # as it is, transposed in memory, with a stride between rows
    wide = torch.zeros(shape[0], shape[1] + 3, dtype=dtype)
    wide[:, : shape[1]] = w
    for dense in (w, w.t().contiguous().t(), wide[:, : shape[1]]):
        values, structure = nm_pack(dense, mask, n, m)
        assert torch.equal(values, want.values)
        assert torch.equal(structure, want.structure)
        assert torch.equal(sk.NMTensor(values, structure).to_dense(), want.to_dense())
    values, structure = nm_pack(w, mask.t().contiguous().t(), n, m)
    assert torch.equal(values, want.values)
    assert torch.equal(structure, want.structure)


def bits(values):
    return values.view(torch.int32 if values.dtype == torch.float32 else torch.int16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("m", [2, 4, 8, 16, 32])
def test_selection_is_that_of_nm_mask_to_the_bit(isa, m, dtype):
    for n in range(1, m):
        # Ties, both zeros, infinities, NaN; a short group, a short panel, more than a block.
        w = special(35, 65 + n, dtype, n)
        w[:20] = torch.randn(20, 65 + n).to(dtype)
        for dense in (w, w.t()):
            mask = sk.ops.nm_mask(dense, n, m)
            assert torch.equal(mask, sk.ops.nm_mask(dense.contiguous(), n, m))
            want = sk.NMTensor.from_dense(dense, n, m, mask=mask)
            for values, structure in (nm_select_pack(dense, n, m), nm_pack(dense, mask, n, m)):
                assert torch.equal(bits(values), bits(want.values.detach()))
                assert torch.equal(structure, want.structure)


def test_selection_by_hand(isa):
    nan, inf = float("nan"), float("inf")
    w = torch.tensor([[1.0, -3.0, 3.0, nan, -0.0, 0.0, nan, nan, inf, nan]])
    values, structure = nm_select_pack(w, 2, 4)
    kept = sk.NMTensor(values, structure).mask()[0].nonzero()[:, 0].tolist()
    assert kept == [1, 2, 4, 5, 8, 9]
    assert values[::16][:5].tolist() == [-3.0, 3.0, 0.0, 0.0, inf]
    assert str(values[32].item()) == "-0.0"


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_change_nothing(threads):
    w = torch.randn(1100, 200, generator=torch.Generator().manual_seed(1))
    want = [nm_select_pack(dense, 2, 8) for dense in (w, w.t())]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for dense, (values, structure) in zip((w, w.t()), want, strict=True):
            got = nm_select_pack(dense, 2, 8)
            assert torch.equal(got[0], values)
            assert torch.equal(got[1], structure)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_mask_that_keeps_fewer(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        w = torch.randn(100, 48)
        mask = sk.ops.nm_mask(w, 2, 8) & (torch.rand(100, 48) < 0.5)
        values, structure = nm_pack(w, mask, 3, 8)
        assert torch.equal(sk.NMTensor(values, structure).to_dense(), w * mask)
    finally:
        torch.set_num_threads(before)


def test_errors():
    w = torch.randn(64, 8)
    mask = sk.ops.nm_mask(w, 2, 8)
    mask[40] = True
    with pytest.raises(ValueError, match="row 40, columns 0 to 7 must keep at most 2 of 8, got 8"):
        nm_pack(w, mask, 2, 8)
    mask = sk.ops.nm_mask(w, 2, 8)
    with pytest.raises(ValueError, match="both the same"):
        nm_pack(w, mask[1:], 2, 8)
    with pytest.raises(ValueError, match="both the same"):
        nm_pack(w[0], mask[0], 2, 8)
    with pytest.raises(RuntimeError, match="TypeError: nm_pack: mask must be bool"):
        nm_pack(w, mask.int(), 2, 8)
    with pytest.raises(RuntimeError, match="TypeError: nm_pack: w must be float32"):
        nm_pack(w.double(), mask, 2, 8)
    with pytest.raises(ValueError, match="m must be 2, 4, 8, 16 or 32, got 6"):
        nm_pack(w, mask, 2, 6)
    with pytest.raises(ValueError, match="at most 32, got 2 and 4096"):
        nm_pack(w, mask, 2, 4096)
    with pytest.raises(ValueError, match=r"n must be in \[1, 7\]"):
        nm_pack(w, mask, 8, 8)
    with pytest.raises(ValueError, match="rows"):
        nm_pack(w[:0], mask[:0], 2, 8)
    with pytest.raises(ValueError, match="nm_select_pack: w must be"):
        nm_select_pack(w[0], 2, 8)
    with pytest.raises(RuntimeError, match="TypeError: nm_select_pack: w must be float32"):
        nm_select_pack(w.double(), 2, 8)
    with pytest.raises(ValueError, match="m must be 2, 4, 8, 16 or 32, got 6"):
        nm_select_pack(w, 2, 6)
    with pytest.raises(ValueError, match="nm_select_pack: n and m must be at most 32"):
        nm_select_pack(w, 2, 4096)
    with pytest.raises(ValueError, match="rows"):
        nm_select_pack(w[:0], 2, 8)
