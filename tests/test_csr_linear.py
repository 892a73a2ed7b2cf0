# SPDX-License-Identifier: Apache-2.0
"""csr_linear against the oracle, on every instruction set of this processor."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from products import check_product
from strategies import (
    ACTIVATIONS,
    DTYPES,
    X_DTYPES,
    X_ROWS,
    Packed,
    Spec,
    activations,
    pack,
    run_linear,
    specs,
    strided,
    with_special,
)


def check(
    packed: Packed,
    x: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str = "none",
) -> None:
    check_product(run_linear(packed, x, bias, activation), packed, x, bias, activation)


@pytest.mark.parametrize("block_rows", [1, 2, 4])
@pytest.mark.parametrize("dtype", DTYPES)
def test_row_counts(isa, dtype, block_rows):
    """Every tail of the decode kernel and every width of the batch kernel."""
    packed = pack(Spec(273, 200, 0.15, dtype, block_rows, seed=4))
    for x_rows in X_ROWS:
        check(packed, activations((x_rows, 200), seed=x_rows))


@pytest.mark.parametrize("x_dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_half_precision_activations(isa, dtype, x_dtype):
    for block_rows in (1, 4):
        packed = pack(Spec(130, 257, 0.2, dtype, block_rows, seed=5))
        for x_rows in (1, 4, 7, 16, 33, 65):
            check(packed, activations((x_rows, 257), x_dtype, x_rows))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("x_dtype", X_DTYPES)
def test_bias_and_activation(isa, activation, x_dtype):
    packed = pack(Spec(77, 140, 0.3, seed=6))
    int8 = pack(Spec(77, 140, 0.3, "int8", 2, seed=6))
    bias = activations((77,), seed=1)
    for x_rows in (1, 5, 40, 129):
        x = activations((x_rows, 140), x_dtype, x_rows) * 2
        check(packed, x, bias, activation)
        check(packed, x, None, activation)
        check(int8, x, bias.to(x.dtype), activation)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation_over_its_whole_range(isa, activation):
    """The identity as weight: the pre-activation is x itself, from 1e-30 to 1e4, both signs."""
    n = 130
    weights = torch.eye(n)
    packed = _from_dense(weights)
    magnitudes = torch.logspace(-30, 4, 3 * n // 2)
    dense_range = torch.linspace(-12, 12, 37 * n)
    x = torch.cat([-magnitudes, magnitudes, dense_range])
    x = torch.cat([x, torch.zeros(-len(x) % n)]).reshape(-1, n)
    for batch in (x, x[:1], x[-1:]):
        check(packed, batch, None, activation)


@pytest.mark.parametrize("block_rows", [1, 2, 4])
def test_several_panels_and_blocks(isa, threads, block_rows):
    packed = pack(Spec(1100 * block_rows, 700, 0.05, "float32", block_rows, seed=7))
    for x_rows in (1, 3, 16, 70, 200):
        check(packed, activations((x_rows, 700), seed=x_rows), activations((1100 * block_rows,)))


@pytest.mark.parametrize("density", [0.0, 0.01, 1.0])
@pytest.mark.parametrize("shape", [(1, 1), (1, 129), (129, 1), (16, 128), (257, 127)])
def test_empty_and_full_matrices(isa, shape, density):
    for dtype in ("float32", "int8"):
        packed = pack(Spec(*shape, density, dtype, 2, seed=8))
        for x_rows in (1, 2, 31):
            check(packed, activations((x_rows, shape[1])), activations((shape[0],)))


@given(spec=specs(), x_rows=st.sampled_from(X_ROWS), data=st.data())
def test_any_matrix_and_layout(isa, spec, x_rows, data):
    x_dtype = data.draw(st.sampled_from(X_DTYPES))
    x = data.draw(strided(x_rows, spec.cols, x_dtype, spec.seed))
    bias = data.draw(st.sampled_from([None, activations((spec.rows,))]))
    check(pack(spec), x, bias, data.draw(st.sampled_from(["none", "relu", "silu"])))


@pytest.mark.parametrize("lead", [(), (1,), (0,), (2, 3), (2, 0, 3), (1, 2, 1, 5), (7, 150)])
def test_leading_dimensions(isa, lead):
    check(pack(Spec(33, 20, 0.3)), activations((*lead, 20)), activations((33,)))


def test_non_contiguous_leading_dimensions(isa):
    packed = pack(Spec(33, 20, 0.3))
    check(packed, activations((5, 4, 20)).transpose(0, 1))
    check(packed, activations((5, 20, 4)).transpose(1, 2))
    check(packed, activations((5, 1, 20)).expand(5, 7, 20))
    check(packed, activations((9, 41))[::3, 1::2])
    check(packed, activations((20,)).flip(0))


@pytest.mark.parametrize("block_rows", [1, 2, 4])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_pruned_weight_meets_no_infinity(isa, dtype, block_rows):
    """Padding names column 0 of its block: infinities stand exactly there, and elsewhere."""
    packed = pack(Spec(95, 260, 0.1, dtype, block_rows, seed=9))
    for x_rows in (1, 2, 5, 16, 40, 70):
        for x_dtype in X_DTYPES:
            x = activations((x_rows, 260), x_dtype, x_rows)
            x[:, 0] = torch.inf
            x[0, 128] = torch.nan
            x[-1, 256] = -torch.inf
            x[x_rows // 2, 77] = torch.inf
            check(packed, x, activations((95,)))
            check(packed, x, None, "relu")
            check(packed, x, None, "relu6")


def test_everything_infinite_and_nothing_kept(isa):
    packed = pack(Spec(40, 130, 0.0))
    for x_rows in (1, 17):
        for value in (torch.inf, torch.nan):
            y = run_linear(packed, torch.full((x_rows, 130), value))
            assert torch.equal(y, torch.zeros(x_rows, 40))


@pytest.mark.parametrize("value", [0.0, -0.0, np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_special_weights(isa, dtype, value):
    """A kept zero times an infinity is NaN; NaN and infinities in weights are kept."""
    packed = pack(Spec(50, 131, 0.2, dtype, 2, seed=10))
    row, column = (int(i) for i in np.argwhere(packed.matrix.mask)[37])
    packed = with_special(packed, (row, column), value)
    for x_rows in (1, 3, 33):
        x = activations((x_rows, 131))
        check(packed, x)
        x[0, column] = torch.inf
        y = run_linear(packed, x)
        assert torch.isnan(y[0, row]) == (not value or np.isnan(value))
        check(packed, x)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_nan_and_infinity_pass_through_activations(isa, activation):
    packed = _from_dense(torch.eye(40))
    for x_rows in (1, 33):
        x = activations((x_rows, 40))
        x[:, 3] = torch.nan
        x[:, 7] = torch.inf
        check(packed, x, None, activation)


def test_a_power_of_two_scales_the_result_exactly(isa):
    packed = pack(Spec(100, 150, 0.2, seed=11))
    for x_rows in (1, 40):
        x = activations((x_rows, 150))
        assert torch.equal(run_linear(packed, x * 8), run_linear(packed, x) * 8)


def test_rows_of_x_do_not_influence_each_other(isa):
    """A row gives the same bits whatever stands around it, infinities included."""
    packed = pack(Spec(100, 150, 0.2, seed=12))
    for x_rows in (4, 40, 100):
        x = activations((x_rows, 150))
        alone = torch.full_like(x, torch.inf)
        for row in (0, 1, x_rows // 2, x_rows - 1):
            alone[row] = x[row]
            assert torch.equal(run_linear(packed, alone)[row], run_linear(packed, x)[row])
            alone[row] = torch.nan


def test_the_result_is_the_same_on_every_call(isa, threads):
    packed = pack(Spec(600, 300, 0.1, seed=13))
    for x_rows in (1, 8, 70):
        x = activations((x_rows, 300))
        first = run_linear(packed, x)
        assert all(torch.equal(run_linear(packed, x), first) for _ in range(5))


def _from_dense(weights: torch.Tensor) -> Packed:
    from sparsekern import _core

    values, structure = _core.csr_pack(weights.numpy(), "float32", None, 1)
    return Packed(
        Spec(*weights.shape),
        torch.from_numpy(values),
        torch.from_numpy(structure),
        None,
        oracle.read_csr(values, structure, "float32"),
    )
