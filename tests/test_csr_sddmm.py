# SPDX-License-Identifier: Apache-2.0
"""csr_sddmm, the gradient of the kept values, against the oracle."""

from __future__ import annotations

import oracle
import pytest
import torch
from compare import assert_close
from hypothesis import given
from hypothesis import strategies as st
from strategies import X_DTYPES, X_ROWS, Packed, Spec, activations, pack, specs


def run(packed: Packed, grad: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return torch.ops.sparsekern.csr_sddmm(grad, x, packed.structure, packed.values.numel())


def check(packed: Packed, grad: torch.Tensor, x: torch.Tensor) -> None:
    got = run(packed, grad, x)
    assert got.dtype == torch.float32
    expected = oracle.sddmm(
        grad.double().numpy(), x.double().numpy(), packed.matrix, packed.values.numel()
    )
    assert_close(got.double().numpy(), expected, what=f"{packed.spec}, {x.dtype} {tuple(x.shape)}")
    assert not got[torch.from_numpy(expected.terms == 0)].any(), "padding must be 0"


@pytest.mark.parametrize("block_rows", [1, 2, 4])
@pytest.mark.parametrize("x_dtype", X_DTYPES)
def test_row_counts(isa, x_dtype, block_rows):
    packed = pack(Spec(149, 200, 0.15, "float32", block_rows, seed=1))
    for rows in X_ROWS:
        check(packed, activations((rows, 149), x_dtype, 1), activations((rows, 200), x_dtype, 2))


def test_several_panels_and_blocks(isa, threads):
    for block_rows in (1, 4):
        packed = pack(Spec(530 * block_rows, 300, 0.05, "float32", block_rows, seed=2))
        grad = activations((40, 530 * block_rows), seed=3)
        check(packed, grad, activations((40, 300), seed=4))


def test_the_result_does_not_depend_on_the_threads(isa):
    packed = pack(Spec(530, 300, 0.1, seed=5))
    grad, x = activations((200, 530), seed=6), activations((200, 300), seed=7)
    before = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3, 5):
            torch.set_num_threads(count)
            results += [run(packed, grad, x), run(packed, grad, x)]
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], other) for other in results)


def test_infinities_reach_only_the_weights_that_meet_them(isa):
    packed = pack(Spec(60, 150, 0.2, "float32", 2, seed=8))
    for rows in (1, 40):
        grad, x = activations((rows, 60), seed=9), activations((rows, 150), seed=10)
        x[0, 0] = torch.inf
        grad[0, 5] = torch.nan
        grad[-1, 7] = 0.0
        check(packed, grad, x)


def test_layouts(isa):
    packed = pack(Spec(33, 20, 0.3))
    check(packed, activations((33, 9)).T, activations((9, 41))[:, 1::2])
    check(packed, activations((1, 33)).expand(9, 33), activations((18, 20))[::2])


@given(spec=specs(200, ("float32",)), rows=st.sampled_from(X_ROWS))
def test_any_matrix(isa, spec, rows):
    packed = pack(spec)
    check(packed, activations((rows, spec.rows), seed=1), activations((rows, spec.cols), seed=2))
