# SPDX-License-Identifier: Apache-2.0
"""csr_conv2d against the oracle, on every instruction set of this processor."""

from __future__ import annotations

import oracle
import pytest
import torch
from compare import assert_close
from hypothesis import given
from hypothesis import strategies as st
from strategies import (
    ACTIVATIONS,
    DTYPES,
    X_DTYPES,
    Packed,
    Spec,
    activations,
    pack,
    run_conv2d,
    specs,
)

# Height x width: one pixel, odd, a multiple of no vector, the maps of convolution nets.
MAPS = [(1, 1), (1, 7), (5, 9), (7, 7), (8, 8), (14, 14), (1, 65), (28, 28)]


def check(
    packed: Packed,
    x: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: int = 1,
    activation: str = "none",
) -> None:
    y = run_conv2d(packed, x, bias, stride, activation)
    assert y.dtype == x.dtype
    assert y.is_contiguous()
    expected = oracle.conv2d(
        x.double().numpy(),
        packed.dense,
        packed.matrix.mask,
        None if bias is None else bias.double().numpy(),
        stride,
    )
    name = str(x.dtype).removeprefix("torch.")
    what = f"{packed.spec}, x {tuple(x.shape)} {name}, stride {stride}, {activation}"
    assert_close(y.double().numpy(), expected, name, activation, what=what)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("block_rows", [1, 2, 4])
@pytest.mark.parametrize("dtype", DTYPES)
def test_map_sizes(isa, dtype, block_rows, stride):
    packed = pack(Spec(67, 131, 0.15, dtype, block_rows, seed=1))
    for height, width in MAPS:
        check(packed, activations((2, 131, height, width)), activations((67,)), stride)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("x_dtype", ["bfloat16", "float16"])
def test_half_precision_activations(isa, x_dtype, stride):
    for dtype in DTYPES:
        packed = pack(Spec(70, 130, 0.2, dtype, seed=2))
        for height, width in ((1, 1), (7, 7), (14, 13)):
            check(packed, activations((1, 130, height, width), x_dtype), None, stride)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_bias_and_activation(isa, activation):
    packed = pack(Spec(40, 60, 0.3, seed=3))
    bias = activations((40,))
    for x_dtype in X_DTYPES:
        x = activations((2, 60, 9, 7), x_dtype) * 2
        check(packed, x, bias, 1, activation)
        check(packed, x, bias.to(x.dtype), 2, activation)


def test_several_panels_blocks_and_images(isa, threads):
    for block_rows in (1, 4):
        packed = pack(Spec(300 * block_rows, 400, 0.05, "float32", block_rows, seed=4))
        for batch in (1, 3):
            check(packed, activations((batch, 400, 13, 11)), activations((300 * block_rows,)))


@pytest.mark.parametrize("shape", [(0, 20, 3, 3), (2, 20, 0, 3), (2, 20, 3, 0)])
def test_empty_maps(isa, shape):
    for stride in (1, 2):
        check(pack(Spec(33, 20, 0.3)), activations(shape), None, stride)


def test_layouts(isa):
    packed = pack(Spec(33, 20, 0.3))
    whole = activations((2, 20, 6, 5))
    for stride in (1, 2):
        check(packed, whole.to(memory_format=torch.channels_last), None, stride)
        check(packed, whole.transpose(2, 3), None, stride)
        check(packed, activations((2, 23, 8, 9))[:, 3:, 1:7, ::2], None, stride)
        check(packed, whole[:1].expand(3, 20, 6, 5), None, stride)


@pytest.mark.parametrize("block_rows", [1, 4])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_pruned_weight_meets_no_infinity(isa, dtype, block_rows):
    packed = pack(Spec(60, 200, 0.1, dtype, block_rows, seed=5))
    for stride in (1, 2):
        x = activations((2, 200, 7, 9))
        x[:, 0, 2, 2] = torch.inf
        x[1, 128, 4, 4] = torch.nan
        x[0, 3, 6, 8] = -torch.inf
        check(packed, x, activations((60,)), stride)


@given(
    spec=specs(200),
    batch=st.integers(1, 3),
    height=st.integers(1, 17),
    width=st.integers(1, 17),
    stride=st.sampled_from([1, 2]),
    x_dtype=st.sampled_from(X_DTYPES),
)
def test_any_matrix_and_map(isa, spec, batch, height, width, stride, x_dtype):
    x = activations((batch, spec.cols, height, width), x_dtype, spec.seed)
    check(pack(spec), x, activations((spec.rows,)), stride, "relu6")
