# SPDX-License-Identifier: Apache-2.0
"""Group-quantized sparse weights: the value, rounding, saliency and GPTQ, by hand."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sparsekern.prune.alps import refit
from sparsekern.prune.sparsegpt import inverse_factor, inverse_hessian
from sparsekern.quant import (
    GroupQuantized,
    Rounding,
    gptq,
    group_saliency,
    keep_groups,
    round_to_nearest,
)
from sparsekern.quant.rounding import absmax_scale, searched_scale, stored_scale, to_codes
from torch import Tensor


def correlated(rows: int, columns: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    basis = torch.randn(columns // 4, columns, generator=generator)
    x = torch.randn(rows, columns // 4, generator=generator) @ basis
    return x + 0.3 * torch.randn(rows, columns, generator=generator)


def normal(out: int, columns: int, seed: int) -> Tensor:
    return torch.randn(out, columns, generator=torch.Generator().manual_seed(seed))


def everything(out: int, columns: int, group: int = 16) -> Tensor:
    return torch.ones(out, -(-columns // group), dtype=torch.bool)


def value(**changes: object) -> GroupQuantized:
    """One row of 20 weights in two groups of 16, the second pruned."""
    codes = torch.zeros(1, 2, 16, dtype=torch.int8)
    codes[0, 0, :3] = torch.tensor([-8, 1, 7])
    parts = {
        "codes": codes,
        "scales": torch.tensor([[0.5, 1.0]], dtype=torch.float16),
        "zeros": None,
        "mask": torch.tensor([[True, False]]),
        "bits": 4,
        "in_features": 20,
    }
    return GroupQuantized(**(parts | changes))  # type: ignore[arg-type]


# --- the value ------------------------------------------------------------------------------------


def test_a_value_by_hand():
    found = value()
    assert (found.shape, found.group, found.symmetric) == ((1, 20), 16, True)
    # -8 * 0.5, 1 * 0.5, 7 * 0.5; the second group is pruned.
    assert found.dequantize().tolist() == [[-4.0, 0.5, 3.5] + [0.0] * 17]
    assert found.sparsity == 0.5
    # One group of 16 integers of 4 bits and a scale of 16, two bits of mask, over 20 weights.
    assert found.bits_per_weight == (16 * 4 + 16 + 2) / 20
    shifted = value(zeros=torch.tensor([[1.5, 0.0]]).half())
    assert shifted.dequantize().tolist() == [[-4.75, -0.25, 2.75] + [-0.75] * 13 + [0.0] * 4]
    assert shifted.bits_per_weight == (16 * 4 + 16 + 16 + 2) / 20
    assert not shifted.equal(found)
    assert found.equal(value())
    assert found.equal(found.to("cpu"))


def test_nothing_pruned_needs_no_mask():
    codes = torch.ones(2, 1, 128, dtype=torch.int8)
    scales = torch.ones(2, 1, dtype=torch.float16)
    found = GroupQuantized(codes, scales, None, everything(2, 128, 128), 2, 128)
    assert found.bits_per_weight == 2 + 16 / 128


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        (
            {"codes": torch.zeros(2, 16)},
            ValueError,
            r"codes must have shape \[out, groups, group\]",
        ),
        ({"codes": torch.zeros(1, 2, 16)}, TypeError, "codes must be torch.int8, got torch.float"),
        ({"bits": 3}, NotImplementedError, r"bits must be one of \(2, 4, 8\), got 3"),
        ({"bits": True}, TypeError, "bits must be an integer, got bool"),
        (
            {"codes": torch.zeros(1, 2, 24, dtype=torch.int8)},
            NotImplementedError,
            "group must be one",
        ),
        ({"in_features": 16}, ValueError, "in_features must fill 2 groups of 16, got 16"),
        ({"in_features": 33}, ValueError, "in_features must fill 2 groups of 16, got 33"),
        ({"scales": torch.ones(1, 3).half()}, ValueError, r"scales must have shape \[1, 2\], got"),
        ({"scales": torch.ones(1, 2)}, TypeError, "scales must be torch.float16"),
        ({"scales": torch.tensor([[0.0, 1.0]]).half()}, ValueError, "finite and not 0"),
        ({"scales": torch.tensor([[1.0, math.nan]]).half()}, ValueError, "finite and not 0"),
        ({"mask": torch.ones(1, 2)}, TypeError, "mask must be torch.bool"),
        (
            {"codes": torch.full((1, 2, 16), 8).char()},
            ValueError,
            r"codes must be in \[-8, 7\] for 4",
        ),
        ({"codes": torch.full((1, 2, 16), -9).char()}, ValueError, r"codes must be in \[-8, 7\]"),
        ({"zeros": torch.ones(1, 2)}, TypeError, "zeros must be torch.float16"),
        ({"zeros": torch.tensor([[0.0, math.inf]]).half()}, ValueError, "zeros must be finite"),
    ],
)
def test_a_value_is_checked(changes: dict, error: type[Exception], text: str):
    with pytest.raises(error, match=text):
        value(**changes)


# --- rounding -------------------------------------------------------------------------------------


def test_absmax_by_hand():
    weight = torch.tensor([[4.0, -1.0, 0.3, 3.9]])
    scale, zero = absmax_scale(weight, 4, symmetric=True)
    # The largest is positive, so the scale is negative: 4 / -0.5 = -8 is the lowest integer.
    assert (scale.item(), zero.item()) == (-0.5, 0.0)
    # 3.9 / -0.5 = -7.8 rounds to -8, -1 to +2, 0.3 to -1.
    assert to_codes(weight, scale, zero, 4).tolist() == [[-8.0, 2.0, -1.0, -8.0]]
    scale, zero = absmax_scale(weight, 2, symmetric=False)
    # From -1 to 4 in 3 steps, as float16; 1 / 1.667 = 0.6 rounds to 1, from -2 on.
    assert scale.item() == torch.tensor(5 / 3).half().item()
    assert zero.item() == -1.0
    assert to_codes(weight, scale, zero, 2).tolist() == [[1.0, -2.0, -1.0, 1.0]]
    # What is all positive keeps its zero: the range begins at 0.
    scale, zero = absmax_scale(torch.tensor([[3.0, 6.0]]), 2, symmetric=False)
    assert (scale.item(), zero.item()) == (2.0, -2.0)


def test_the_search_by_hand():
    # At 2 bits, 1 and -1: the integers -2 and 1 of the absmax scale -0.5 cut -1 to -0.5. Twice as
    # wide, the scale is -1 and both are exact.
    weight = torch.tensor([[1.0, -1.0, 0.0, 0.0]])
    assert absmax_scale(weight, 2, symmetric=True)[0].item() == -0.5
    assert searched_scale(weight, 2, symmetric=True)[0].item() == -1.0
    # A single outlier that counts for nothing is cut, so that the others are met better.
    weight = torch.tensor([[10.0, 1.0, 2.0, 3.0]])
    scale, zero = searched_scale(weight, 2, False, torch.tensor([0.0, 1.0, 1.0, 1.0]))
    assert scale.item() == pytest.approx(10 / 3 * 0.35, rel=1e-3)
    assert zero.item() == -2.0


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([2, 4, 8]),
    st.booleans(),
    st.integers(0, 10_000),
    st.floats(0.1, 1e3),
)
def test_rounding_is_near_and_searching_is_never_worse(
    bits: int, symmetric: bool, seed: int, size: float
):
    weight = normal(5, 40, seed) * size
    weight[1] = 0.0
    mask = everything(5, 40)
    near, searched = (
        round_to_nearest(weight, mask, Rounding(bits, 16, symmetric, search))
        for search in (False, True)
    )
    lost = [(v.dequantize() - weight).square().sum(dim=1) for v in (near, searched)]
    assert (lost[1] <= lost[0] * (1 + 1e-5)).all()
    assert lost[0][1] == 0.0  # a row of zeros, whose scale would be 0
    if not symmetric:
        # Nothing is cut but by the zero's own rounding: within a step and what float16 loses.
        step = near.scales.float().repeat_interleave(16, dim=1)[:, :40]
        assert ((near.dequantize() - weight).abs() <= step * (1.01 + 2 ** (bits - 10))).all()


def test_scales_beyond_float16():
    assert stored_scale(torch.tensor([1e-9, 0.0, -2.0])).tolist() == [1.0, 1.0, -2.0]
    for broken in (1e6, math.inf, math.nan):
        with pytest.raises(ValueError, match=r"scales must fit float16 \(at most 65504\), got"):
            stored_scale(torch.tensor([broken]))
    tiny = round_to_nearest(torch.full((1, 16), 1e-9), everything(1, 16), Rounding(4, 16, True))
    assert not tiny.dequantize().any()


# --- saliency -------------------------------------------------------------------------------------


def test_saliencies_by_hand():
    weight = torch.tensor([[1.0] * 16 + [3.0, 2.0], [0.0] * 16 + [1.0, 1.0]])
    norms = torch.tensor([1.0] * 16 + [2.0, 1.0])
    found = group_saliency(weight, "magnitude", 16)
    assert found.tolist() == [[16.0, 13.0], [0.0, 2.0]]
    found = group_saliency(weight, "wanda", 16, column_norms=norms)
    assert found.tolist() == [[16.0, 36.0 + 4.0], [0.0, 5.0]]
    inverse = torch.eye(18, dtype=torch.float64)
    inverse[16:, 16:] = torch.tensor([[2.0, 1.0], [1.0, 1.0]])
    found = group_saliency(weight, "hessian", 16, inverse=inverse)
    assert found.tolist() == [[16.0, 9 / 2 + 4], [0.0, 1 / 2 + 1]]
    # The inverse of [[2, 1], [1, 1]] is [[1, -1], [-1, 2]]: 9 - 2 * 6 + 2 * 4 = 5, 1 - 2 + 2 = 1.
    found = group_saliency(weight, "block", 16, inverse=inverse)
    torch.testing.assert_close(found, torch.tensor([[16.0, 5.0], [0.0, 1.0]]))


def test_the_block_saliency_is_the_cost_of_the_group():
    """That is, ||X (w - w')^T||^2 with the group 0 and the rest fitted by least squares."""
    weight, x = normal(3, 48, 0).double(), correlated(200, 48, 1).double()
    gram = x.t() @ x
    found = group_saliency(weight, "block", 16, inverse=torch.linalg.inv(gram))
    for place in range(3):
        kept = torch.ones(48, dtype=torch.bool)
        kept[16 * place : 16 * place + 16] = False
        target = x @ weight.t()
        fitted = torch.linalg.lstsq(x[:, kept], target).solution
        cost = (x[:, kept] @ fitted - target).square().sum(dim=0)
        torch.testing.assert_close(found[:, place], cost)


def test_groups_are_kept_by_row_or_free():
    saliency = torch.tensor([[5.0, 6.0, 7.0, 8.0], [1.0, 2.0, 2.0, 2.0]])
    by_row = keep_groups(saliency, 0.5, "row")
    assert by_row.int().tolist() == [[0, 0, 1, 1], [0, 1, 1, 0]]  # ties keep the lower index
    free = keep_groups(saliency, 0.5, "layer")
    assert free.int().tolist() == [[1, 1, 1, 1], [0, 0, 0, 0]]


# --- GPTQ -----------------------------------------------------------------------------------------


def test_gptq_by_hand():
    """H = [[2, 1], [1, 1]] on the first two columns, 1 on the rest, no damping.

    H^-1 = [[1, -1], [-1, 2]] = U^T U with U = [[1, -1], [0, 1]]. -16 makes the scale 2. 8.9
    becomes 2 * 4 = 8, its error is 0.9 / U_00, and w_1 -= 0.9 * U_01 makes -3.6 to -2.7: -1 step,
    where rounding by itself gives -2.
    """
    gram = torch.eye(16, dtype=torch.float64)
    gram[:2, :2] = torch.tensor([[2.0, 1.0], [1.0, 1.0]])
    factor = inverse_factor(gram, 0.0, "by hand")
    torch.testing.assert_close(factor[0, :2], torch.tensor([1.0, -1.0], dtype=torch.float64))
    how = Rounding(4, 16, symmetric=True, search=False)
    weight = torch.tensor([[8.9, -3.6, -16.0] + [0.0] * 13])
    found = gptq(weight, factor, everything(1, 16), how)
    assert found.scales.item() == 2.0
    assert found.codes[0, 0].tolist() == [4, -1, -8] + [0] * 13
    near = round_to_nearest(weight, everything(1, 16), how)
    assert near.codes[0, 0].tolist() == [4, -2, -8] + [0] * 13


def test_a_pruned_group_is_taken_over():
    """Two groups whose inputs are equal pairwise: what is pruned moves to the other group."""
    x = normal(100, 16, 0)
    x = torch.cat([x, x + 0.01 * normal(100, 16, 1)], dim=1)
    weight = normal(4, 32, 2)
    mask = torch.tensor([[False, True]] * 4)
    factor = inverse_factor((x.t() @ x), 1e-4, "twins")
    found = gptq(weight, factor, mask, Rounding(8, 16, True)).dequantize()
    assert not found[:, :16].any()
    torch.testing.assert_close(found[:, 16:], weight[:, :16] + weight[:, 16:], atol=0.1, rtol=0.1)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "sparsity"), [(4, 0.0), (2, 0.0), (4, 0.5)])
def test_gptq_beats_rounding_on_correlated_inputs(bits: int, sparsity: float, symmetric: bool):
    x, weight = correlated(500, 64, 0), normal(32, 64, 1)
    gram = x.t() @ x
    inverse = inverse_hessian(gram, 0.01, "layer")
    saliency = group_saliency(weight, "hessian", 16, inverse=inverse)
    mask = keep_groups(saliency, sparsity, "row")
    how = Rounding(bits, 16, symmetric)
    factor = inverse_factor(gram, 0.01, "layer")
    found = {
        "nearest": round_to_nearest(weight, mask, how, gram.diagonal()),
        "gptq": gptq(weight, factor, mask, how),
    }
    if sparsity:
        kept = mask.repeat_interleave(16, dim=1)
        found["fitted"] = gptq(refit(weight, gram, 0.01, kept), factor, mask, how)
    errors = [float((x @ (v.dequantize() - weight).t()).square().sum()) for v in found.values()]
    assert errors == sorted(errors, reverse=True)
    assert errors[1] < 0.8 * errors[0]
    for v in found.values():
        assert torch.equal(v.mask, mask)
        assert v.symmetric == symmetric


@pytest.mark.parametrize("columns", [1, 15, 16, 17, 40, 200])
def test_gptq_of_uneven_widths_and_any_blocksize(columns: int):
    x, weight = correlated(300, max(columns, 4), 3)[:, :columns], normal(5, columns, 4)
    factor = inverse_factor(x.t() @ x, 0.01, "layer")
    mask = everything(5, columns)
    mask[0, -1] = False
    found = [gptq(weight, factor, mask, Rounding(8, 16, True), size) for size in (16, 100, 512)]
    assert all(v.shape == (5, columns) for v in found)
    for v in found[1:]:
        torch.testing.assert_close(v.dequantize(), found[0].dequantize(), atol=0.05, rtol=0)
    lost = (x @ (found[0].dequantize() - weight)[1:].t()).norm()
    assert lost < 0.02 * (x @ weight[1:].t()).norm()


def test_empty_and_all_pruned():
    for shape in ((0, 32), (3, 0)):
        weight, mask = torch.zeros(shape), torch.ones(shape[0], shape[1] // 16, dtype=torch.bool)
        factor = torch.eye(shape[1], dtype=torch.float64)
        found = gptq(weight, factor, mask, Rounding(4, 16, True))
        assert found.shape == shape
        assert found.dequantize().shape == shape
        assert (found.bits_per_weight, found.sparsity) == (0.0, 0.0)
    nothing = ~everything(2, 32)
    found = round_to_nearest(normal(2, 32, 0), nothing, Rounding(2, 16, False))
    assert not found.dequantize().any()
    assert found.bits_per_weight == 1 / 16


def test_refit_is_least_squares_on_what_is_kept():
    x, weight = correlated(200, 20, 5).double(), normal(3, 20, 6).double()
    mask = torch.rand(3, 20, generator=torch.Generator().manual_seed(0)) < 0.3
    found = refit(weight, x.t() @ x, 0.0, mask)
    assert not found[~mask].any()
    for row in range(3):
        kept = mask[row]
        expected = torch.linalg.lstsq(x[:, kept], x @ weight[row][:, None]).solution[:, 0]
        torch.testing.assert_close(found[row, kept], expected, atol=1e-2, rtol=1e-2)


def test_equal_needs_the_same_parts():
    zeros = torch.zeros(1, 2).half()
    assert not value().equal(dataclasses.replace(value(), zeros=zeros))
