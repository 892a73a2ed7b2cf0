# SPDX-License-Identifier: Apache-2.0
"""Where N:M goes wrong elsewhere: what N counts, signs, float8, ends of rows, sizes.

Other rules have their tests beside the code: ties and NaN in test_nm_mask.py, groups of more than
N, strides and masks in test_nm_tensor.py, int8 -128 in test_interop_torch.py.
"""

from __future__ import annotations

import struct

import numpy as np
import pytest
import sparsekern as sk
import torch
from sparsekern import NMTensor, ops
from sparsekern.patterns import NM
from torch import nn

FLOAT8 = [torch.float8_e4m3fn, torch.float8_e5m2]
SCORES = ["magnitude", "wanda", "sparsegpt"]


def pruned(weight: torch.Tensor, pattern: NM, score: str = "magnitude") -> torch.Tensor:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight = nn.Parameter(weight.clone())
    x = torch.randn(64, weight.shape[1], generator=torch.Generator().manual_seed(0))
    calibration = None if score == "magnitude" else [x]
    sk.prune_(nn.Sequential(layer), pattern, score=score, calibration=calibration)
    return layer.weight.detach()


def test_n_counts_what_is_kept():
    w = torch.randn(16, 64, generator=torch.Generator().manual_seed(1))
    assert (NM(1, 4).sparsity, NM(3, 4).sparsity) == (0.75, 0.25)
    for n in (1, 2, 3):
        assert (pruned(w, NM(n, 4)) != 0).double().mean() == n / 4
        assert ops.nm_mask(w, n, 4).double().mean() == n / 4
        assert NMTensor.from_dense(w, n, 4, strict=False).density == n / 4


def test_large_negative_weights_are_large():
    w = torch.tensor([[-9.0, 1, -8, 2, -7, -6, -5, -4]])
    kept = torch.tensor([[True, False, True, False, True, True, False, False]])
    assert torch.equal(ops.nm_mask(w, 2, 4), kept)
    assert torch.equal(pruned(w, NM(2, 4)), w * kept)
    assert torch.equal(NMTensor.from_dense(w, 2, 4, strict=False).to_dense(), w * kept)


@pytest.mark.parametrize("dtype", FLOAT8)
def test_float8_is_ranked_by_value(dtype):
    # As bytes, the sign bit makes negative numbers the largest, or the smallest.
    largest = torch.finfo(dtype).max
    w = torch.tensor([[1.0, -largest, -2, 0.5, -0.0, 0, -0.25, 0.125]]).to(dtype)
    kept = torch.tensor([[False, True, True, False, False, False, True, True]])
    assert torch.equal(ops.nm_mask(w, 2, 4), kept)
    packed = NMTensor.from_dense(w, 2, 4, strict=False)
    assert torch.equal(packed.mask(), kept)
    assert torch.equal(packed.to_dense(), w.float() * kept)


@pytest.mark.parametrize("score", SCORES)
def test_groups_end_with_their_row(score):
    # 6 columns: a group of four and one of two in each row, though 6 * 2 divides by 4
    w = torch.randn(2, 6, generator=torch.Generator().manual_seed(2)) + 3
    result = pruned(w, NM(2, 4), score)
    assert (result[:, :4] != 0).sum(1).tolist() == [2, 2]
    assert (result[:, 4:] != 0).all()  # not more than may be kept
    assert torch.equal(NMTensor.from_dense(result, 2, 4).to_dense(), result)
    assert ops.nm_mask(w, 2, 4)[:, 4:].all()


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("value", [0.0, 2.0, -3.0])
def test_groups_of_equal_weights(score, value):
    result = pruned(torch.full((4, 16), value), NM(2, 4), score)
    assert result.isfinite().all()
    groups = (result != 0).reshape(4, 4, 4).sum(2)
    assert (groups == (2 if value else 0)).all()
    packed = NMTensor.from_dense(torch.full((4, 16), value), 2, 4, strict=False)
    assert packed.mask().reshape(-1, 4).tolist() == [[True, True, False, False]] * 16


def test_nothing_at_all():
    for shape in ((0, 8), (4, 0), (0, 0)):
        assert ops.nm_mask(torch.ones(shape), 2, 4).shape == shape
        for strict in (True, False):
            with pytest.raises(ValueError, match="at least one row and column, got"):
                NMTensor.from_dense(torch.ones(shape), 2, 4, strict=strict)
    weight = NMTensor.from_dense(torch.eye(3, 8), 2, 4)
    assert ops.nm_linear(torch.ones(0, 8), weight).shape == (0, 3)
    assert ops.nm_linear(torch.ones(2, 0, 8), weight).shape == (2, 0, 3)


def test_more_than_2_to_the_31_weights():
    rows, cols, m = 2**16 + 16, 2**16, 32  # 1:32, so that it fits: 128 MiB each of both parts
    assert rows * cols > 2**32
    steps = cols // m
    structure = np.zeros(64 + rows * steps, np.uint8)
    structure[:64] = np.frombuffer(
        struct.pack("<4sIQQIIQ24x", b"SKNM", 1, rows, cols, 1, m, steps), np.uint8
    )
    structure[-1] = 7  # the last weight: column 7 of the last group of the last row
    values = np.zeros(rows * steps, np.int8)
    values[-1] = -128
    values[0] = 3
    packed = NMTensor(
        torch.from_numpy(values), torch.from_numpy(structure), torch.full((rows,), 0.5)
    )
    assert packed.shape == (rows, cols)
    assert packed.nnz == rows * steps
    assert packed.density == 1 / 32
    x = torch.arange(1.0, cols + 1)
    y = ops.nm_linear(x, packed)
    expected = torch.zeros(rows)
    expected[0] = 3 * 0.5 * x[0]
    expected[-1] = -128 * 0.5 * x[-m + 7]
    assert torch.equal(y, expected)
