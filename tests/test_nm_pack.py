# SPDX-License-Identifier: Apache-2.0
"""The operator nm_pack: what it packs is what `NMTensor.from_dense` packs; its errors."""

from __future__ import annotations

import pytest
import sparsekern as sk
import torch

nm_pack = torch.ops.sparsekern.nm_pack


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("n", "m"), [(1, 2), (2, 4), (3, 4), (2, 8), (5, 8), (1, 16), (3, 32)])
@pytest.mark.parametrize("shape", [(1, 1), (16, 64), (17, 33), (40, 5), (33, 130)])
def test_equals_from_dense(dtype, n, m, shape):
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
