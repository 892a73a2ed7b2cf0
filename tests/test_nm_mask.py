# SPDX-License-Identifier: Apache-2.0
"""N:M masks against the oracle, on every instruction set; the fallback in torch; errors."""

from __future__ import annotations

import math

import numpy as np
import oracle
import pytest
import torch
from conftest import ISAS
from hypothesis import given, settings
from hypothesis import strategies as st
from sparsekern import _core, ops
from sparsekern._nm_mask import _in_torch
from strategies import activations

SIZES = [2, 4, 8, 16, 32]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHORT = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}
NAN, INF = math.nan, math.inf
operator = torch.ops.sparsekern.nm_mask


def expected(score: torch.Tensor, n: int, m: int) -> torch.Tensor:
    return torch.from_numpy(oracle.nm_mask(score.detach().double().numpy(), n, m))


def special(rows: int, cols: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Few different values, so full of ties: infinities, zeros of both signs, denormals, NaN."""
    tiny = torch.finfo(dtype).smallest_normal / 4
    largest = torch.finfo(dtype).max
    values = [NAN, -INF, -largest, -1.5, -tiny, -0.0, 0.0, tiny, 1.0, 1.5, largest, INF]
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(values), (rows, cols), generator=generator)
    return torch.tensor(values, dtype=dtype)[drawn]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m", SIZES)
def test_every_pattern_equals_the_oracle(isa, m, dtype):
    for n in range(1, m):
        # whole blocks of every vector width and a rest; rows of whole groups
        score = activations((3, 37 * m), seed=n).to(dtype)
        score[1] = special(1, score.shape[1], dtype, n)[0]
        assert torch.equal(operator(score, n, m), expected(score, n, m)), n
        assert torch.equal(operator(score, n, m, True), expected(score.abs(), n, m)), n


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m", SIZES)
def test_short_groups_and_every_width(isa, m, dtype):
    for cols in range(1, 2 * m + 2):
        score = special(4, cols, dtype, cols)
        for n in {1, m // 2, m - 1}:
            assert torch.equal(operator(score, n, m), expected(score, n, m)), (cols, n)
    for rest in (1, m - 1):
        cols = 32 * m + rest  # short groups behind whole blocks, in the middle of the matrix
        score = activations((3, cols)).to(dtype)
        mask = operator(score, m // 2, m)
        assert torch.equal(mask, expected(score, m // 2, m))
        assert (mask[:, -rest:].sum(1) == min(m // 2, rest)).all()


values = st.sampled_from([NAN, -INF, -2.5, -0.0, 0.0, 1e-42, 1.0, 1.5, INF]) | st.floats(width=32)


@settings(deadline=None)
@given(data=st.data(), m=st.sampled_from(SIZES), rows=st.integers(0, 3), cols=st.integers(1, 70))
def test_any_values(isa, data, m, rows, cols):
    n = data.draw(st.integers(1, m - 1))
    flat = data.draw(st.lists(values, min_size=rows * cols, max_size=rows * cols))
    score = torch.tensor(flat, dtype=torch.float32).reshape(rows, cols)
    assert torch.equal(operator(score, n, m), expected(score, n, m))


def test_rules_by_hand(isa):
    def mask(row: list[float], n: int, m: int) -> list[int]:
        return operator(torch.tensor([row], dtype=torch.float32), n, m)[0].int().tolist()

    assert mask([1, 1, 1, 1], 2, 4) == [1, 1, 0, 0]
    assert mask([0, 1, 1, 1], 2, 4) == [0, 1, 1, 0]
    assert mask([-0.0, 0.0, -0.0, 0.0], 1, 4) == [1, 0, 0, 0]
    assert mask([NAN, -INF, NAN, NAN], 1, 4) == [0, 1, 0, 0]
    assert mask([NAN, NAN, NAN, NAN], 3, 4) == [1, 1, 1, 0]
    assert mask([-3, 2, -5, 1], 2, 4) == [0, 1, 0, 1]  # numbers, not magnitudes
    assert mask([5, 4, 3, 2, 1, 0], 1, 4) == [1, 0, 0, 0, 1, 0]
    assert mask([NAN, 1, 2, 3, NAN, NAN], 3, 4) == [0, 1, 1, 1, 1, 1]
    negative_nan = torch.tensor([[-1, 0xFF800000 - 2**32]], dtype=torch.int32).view(torch.float32)
    assert operator(negative_nan, 1, 2).tolist() == [[False, True]]
    assert operator(negative_nan, 1, 2, True).tolist() == [[False, True]]


def test_denormals_are_told_apart_where_the_caller_flushes_them(isa):
    score = torch.tensor([[3e-45, 6e-45, 0.0, 9e-45]])
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush denormals")
    try:
        mask = operator(score, 2, 4)
    finally:
        torch.set_flush_denormal(False)
    assert mask.tolist() == [[False, True, False, True]]


def test_threads_change_nothing(isa, threads):
    for cols in (8192, 1023):  # one long row in pieces; row by row, with short groups
        score = activations((65, cols))
        score[score.abs() < 0.3] = 0.0
        assert torch.equal(operator(score, 3, 8), _in_torch(score, 3, 8, False))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_forced_kernel_is_the_one_named(isa, dtype):
    name = _core.nm_mask_kernel(8, str(dtype).removeprefix("torch."))
    assert name == f"nm_mask_m8_{SHORT[dtype]}__{ISAS[isa]}"


# --- the function ---------------------------------------------------------------------------------


def test_scores_default_to_magnitudes():
    w = activations((6, 40))
    assert torch.equal(ops.nm_mask(w, 2, 4), expected(w.abs(), 2, 4))
    assert torch.equal(ops.nm_mask(w, 2, 4, score=w), expected(w, 2, 4))
    assert torch.equal(ops.nm_mask(w, 2, 4, score=w.double()), expected(w, 2, 4))


@pytest.mark.parametrize("dim", [-4, -3, -2, -1, 0, 1, 2, 3])
def test_groups_run_along_any_dimension(dim):
    w = activations((5, 6, 7, 9))
    mask = ops.nm_mask(w, 1, 4, dim)
    along = expected(w.abs().movedim(dim, -1).contiguous(), 1, 4)
    assert torch.equal(mask, along.movedim(-1, dim))
    assert mask.is_contiguous()


def test_strides_and_one_dimension():
    w = activations((12, 20))
    for view in (w.t(), w[::2, 1:], w[:, ::3], w.flip(0), w[3]):
        assert torch.equal(ops.nm_mask(view, 2, 4), expected(view.abs().contiguous(), 2, 4))
    assert torch.equal(operator(w.t(), 1, 4), expected(w.t().contiguous(), 1, 4))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("m", SIZES)
def test_the_implementation_in_torch_keeps_the_same(m, dtype):
    for cols in (4 * m, 4 * m + 1, 5):
        score = special(9, cols, dtype, cols)
        for n in {1, m // 2, m - 1}:
            assert torch.equal(_in_torch(score, n, m, False), expected(score, n, m))
            assert torch.equal(_in_torch(score, n, m, True), expected(score.abs(), n, m))


def test_float64_is_compared_exactly():
    w = torch.tensor([[1.0, 1.0 + 1e-12, 1.0, 1.0]], dtype=torch.float64)
    assert ops.nm_mask(w, 1, 4).tolist() == [[False, True, False, False]]


def test_other_devices_have_an_implementation():
    composite = torch._C._dispatch_has_kernel_for_dispatch_key
    assert composite("sparsekern::nm_mask", "CompositeExplicitAutograd")
    meta = ops.nm_mask(torch.zeros(3, 8, device="meta"), 2, 4)
    assert (meta.shape, meta.dtype, meta.device.type) == ((3, 8), torch.bool, "meta")
    if torch.cuda.is_available():
        w = activations((33, 70))
        assert torch.equal(ops.nm_mask(w.cuda(), 2, 4).cpu(), ops.nm_mask(w, 2, 4))


@pytest.mark.parametrize("shape", [(0,), (0, 8), (3, 0), (2, 0, 4)])
def test_empty_tensors(shape):
    for dtype in (torch.float32, torch.float64):
        mask = ops.nm_mask(torch.zeros(shape, dtype=dtype), 2, 4)
        assert mask.shape == shape
        assert mask.dtype == torch.bool


def test_no_gradient_and_no_change_of_the_weights():
    w = activations((4, 8)).requires_grad_()
    before = w.detach().clone()
    assert not ops.nm_mask(w, 2, 4).requires_grad
    assert torch.equal(w, before)


def test_masks_match_torch_where_nothing_is_equal():
    w = torch.from_numpy(np.random.default_rng(0).permutation(4096).astype(np.float32))
    groups = w.reshape(-1, 8)
    plain = torch.zeros_like(groups, dtype=torch.bool)
    plain.scatter_(1, groups.topk(3, dim=1).indices, True)
    assert torch.equal(ops.nm_mask(w, 3, 8), plain.reshape(-1))


W = torch.zeros(4, 8)
ERRORS = {
    "m": ((W, 2, 6), {}, NotImplementedError, "m must be one of 2, 4, 8, 16, 32, got 6"),
    "n is m": ((W, 4, 4), {}, ValueError, "n must be in [1, m - 1] = [1, 3], got 4"),
    "n above": ((W, 5, 4), {}, ValueError, "n must be in [1, m - 1] = [1, 3], got 5"),
    "n zero": ((W, 0, 4), {}, ValueError, "n must be in [1, m - 1] = [1, 3], got 0"),
    "n type": ((W, 2.0, 4), {}, TypeError, "n must be an integer, got float"),
    "m type": ((W, 2, True), {}, TypeError, "m must be an integer, got bool"),
    "w int": ((W.int(), 2, 4), {}, TypeError, "w must be a floating-point tensor, got torch.int32"),
    "w list": (([1.0], 2, 4), {}, TypeError, "w must be a floating-point tensor, got list"),
    "score": (
        (W, 2, 4),
        {"score": W[:3]},
        ValueError,
        "score must have the shape of w ([4, 8]), got [3, 8]",
    ),
    "score int": (
        (W, 2, 4),
        {"score": W.int()},
        TypeError,
        "score must be a floating-point tensor, got torch.int32",
    ),
    "dim": ((W, 2, 4, 2), {}, ValueError, "dim must be in [-2, 1] for 2 dimensions, got 2"),
    "scalar": (
        (torch.tensor(1.0), 2, 4),
        {},
        ValueError,
        "dim must be in [0, -1] for 0 dimensions, got -1",
    ),
    "dim type": ((W, 2, 4, "in"), {}, TypeError, "dim must be an integer, got str"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_function_refuses(case):
    arguments, named, error, text = ERRORS[case]
    with pytest.raises(error) as caught:
        ops.nm_mask(*arguments, **named)
    assert str(caught.value) == "nm_mask: " + text


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((W.double(), 2, 4), "TypeError: nm_mask: score must be float32, bfloat16 or float16"),
        ((W, 2, 6), "NotImplementedError: nm_mask: m must be one of 2, 4, 8, 16, 32, got 6"),
        ((W, 4, 4), r"nm_mask: n must be in \[1, m - 1\] = \[1, 3\], got 4"),
        ((W[0], 2, 4), r"nm_mask: score must be \[rows, cols\], got 1 dimensions"),
    ],
)
def test_operator_refuses_and_so_does_its_fake(arguments, text):
    with pytest.raises((RuntimeError, ValueError), match=text):
        operator(*arguments)
    with pytest.raises((TypeError, NotImplementedError, ValueError), match="nm_mask: "):
        operator(arguments[0].to("meta"), *arguments[1:])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own
def test_compiles_into_one_graph():
    @torch.compile(backend="aot_eager", fullgraph=True)
    def masked(w: torch.Tensor) -> torch.Tensor:
        return w * ops.nm_mask(w, 2, 4, 0)

    w = activations((10, 6))
    assert torch.equal(masked(w), w * ops.nm_mask(w, 2, 4, 0))
