# SPDX-License-Identifier: Apache-2.0
"""The comparison itself: it accepts what rounding explains and nothing else."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
from compare import EPS, assert_close, bound

ROWS, COLS, M = 1024, 256, 32


@pytest.fixture(scope="module")
def case() -> tuple[np.ndarray, oracle.Expected]:
    rng = np.random.default_rng(5)
    dense = rng.standard_normal((ROWS, COLS)).astype(np.float32)
    mask = rng.random((ROWS, COLS)) < 0.1
    x = rng.standard_normal((M, COLS)).astype(np.float32)
    expected = oracle.linear(x, dense, mask, rng.standard_normal(ROWS))
    return expected.value.astype(np.float32), expected


def test_accepts_the_rounded_result(case):
    got, expected = case
    assert_close(got, expected)


def test_accepts_an_fp32_sum_in_any_order():
    rng = np.random.default_rng(6)
    weights = rng.standard_normal((1, 4096)).astype(np.float32)
    x = rng.standard_normal((1, 4096)).astype(np.float32)
    expected = oracle.linear(x, weights, np.ones_like(weights, bool))
    for _ in range(20):
        total = np.float32(0)
        for product in (weights * x)[0][rng.permutation(4096)]:
            total += product
        assert_close(np.array([[total]]), expected)


def zeroed_row(y):
    y[7] = 0


def zeroed_column(y):
    y[:, 1000] = 0


def zeroed_element(y):
    y[31, 1023] = 0


def flipped_sign(y):
    y[3, 5] = -y[3, 5]


def shifted_element(y):
    y[4, 1:9] = y[4, 0:8].copy()


def swapped_rows(y):
    y[[1, 2]] = y[[2, 1]]


def swapped_columns(y):
    y[:, [100, 101]] = y[:, [101, 100]]


def one_bias_missing(y):
    y[:, 17] += 1e-3


def slightly_scaled(y):
    y *= 1 + 1e-3


def nan_element(y):
    y[0, 0] = np.nan


def infinite_element(y):
    y[0, 0] = np.inf


@pytest.mark.parametrize(
    "damage",
    [
        zeroed_row,
        zeroed_column,
        zeroed_element,
        flipped_sign,
        shifted_element,
        swapped_rows,
        swapped_columns,
        one_bias_missing,
        slightly_scaled,
        nan_element,
        infinite_element,
    ],
    ids=lambda f: f.__name__,
)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_rejects_damage(case, damage, dtype):
    got = case[0].astype(dtype).astype(np.float32)
    assert_close(got, case[1], dtype)
    damage(got)
    with pytest.raises(AssertionError):
        assert_close(got, case[1], dtype)


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu", "hardswish"])
def test_rejects_a_missing_activation(case, activation):
    got, expected = case
    assert_close(oracle.activate(expected.value, activation), expected, activation=activation)
    with pytest.raises(AssertionError):
        assert_close(got, expected, activation=activation)


def test_rejects_gelu_for_its_tanh_form(case):
    expected = case[1]
    with pytest.raises(AssertionError):
        assert_close(oracle.activate(expected.value, "gelu_tanh"), expected, activation="gelu")


def test_rejects_another_shape(case):
    got, expected = case
    with pytest.raises(AssertionError, match="shape must be"):
        assert_close(got.T, expected)


def test_rejects_coarser_rounding_than_the_dtype_says(case):
    half = case[0].astype(np.float16).astype(np.float32)
    assert_close(half, case[1], "float16")
    with pytest.raises(AssertionError, match="elements are off; worst at"):
        assert_close(half, case[1], "float32")


def exact(value: list[float]) -> oracle.Expected:
    array = np.array(value)
    return oracle.Expected(array, np.abs(array), np.ones(array.shape, np.int64))


@pytest.mark.parametrize(
    ("want", "got"),
    [
        (np.nan, 1.0),
        (np.nan, np.inf),
        (1.0, np.nan),
        (np.inf, np.nan),
        (np.inf, 3e38),
        (np.inf, -np.inf),
        (0.0, np.inf),
    ],
)
def test_infinity_and_nan_must_stand_where_expected(want, got):
    assert_close(np.array([0.0, want]), exact([0.0, want]))
    with pytest.raises(AssertionError):
        assert_close(np.array([0.0, got]), exact([0.0, want]))


def test_overflow_of_the_stored_dtype():
    assert_close(np.array([np.inf]), exact([70000.0]), "float16")
    assert_close(np.array([np.inf]), exact([65520.0]), "float16")
    assert_close(np.array([65504.0]), exact([65519.9]), "float16")
    for got in (65504.0, -np.inf):
        with pytest.raises(AssertionError):
            assert_close(np.array([got]), exact([70000.0]), "float16")


def test_the_bound_grows_with_the_terms_and_not_with_other_elements():
    value = np.array([1.0, 1.0])
    few = oracle.Expected(value, np.array([1.0, 1e6]), np.array([1, 1000]))
    assert bound(few)[0] == pytest.approx(2 * EPS)
    assert_close(np.array([1.0, 1.5]), few)
    with pytest.raises(AssertionError):
        assert_close(np.array([1.00001, 1.0]), few)


def test_an_infinity_among_the_terms_widens_no_bound():
    want = oracle.Expected(np.array([-np.inf]), np.array([np.inf]), np.array([3]))
    assert_close(np.array([0.0]), want, activation="relu")
    with pytest.raises(AssertionError):
        assert_close(np.array([1e-3]), want, activation="relu")


def test_empty_results_agree():
    weights = np.ones((3, 2))
    assert_close(np.empty((0, 3)), oracle.linear(np.empty((0, 2)), weights, weights > 0))
