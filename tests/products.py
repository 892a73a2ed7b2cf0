# SPDX-License-Identifier: Apache-2.0
"""What every linear operator's tests ask of a product."""

from __future__ import annotations

import oracle
import torch
from compare import assert_close
from strategies import ACTIVATIONS, Packed


def run_packed(
    operator: str,
    packed: Packed,
    x: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str = "none",
) -> torch.Tensor:
    """``torch.ops.sparsekern.<operator>`` of a format of values, structure and scale."""
    parts = (packed.values, packed.structure, packed.scale)
    call = getattr(torch.ops.sparsekern, operator)
    return call(x, *parts, bias, packed.spec.rows, ACTIVATIONS.index(activation))


def check_product(
    y: torch.Tensor,
    packed: Packed,
    x: torch.Tensor,
    bias: torch.Tensor | None,
    activation: str,
    c: float = 1.0,
) -> None:
    """Shape, dtype and every element of y, the product with x; `c` as in `assert_close`."""
    assert y.shape == (*x.shape[:-1], packed.spec.rows)
    assert y.dtype == x.dtype
    assert y.is_contiguous()
    expected = oracle.linear(
        x.double().reshape(-1, x.shape[-1]).numpy(),
        packed.dense,
        packed.matrix.mask,
        None if bias is None else bias.double().numpy(),
    )
    name = str(x.dtype).removeprefix("torch.")
    what = f"{packed.spec}, x {tuple(x.shape)} {name}, {activation}"
    got = y.double().reshape(-1, packed.spec.rows).numpy()
    assert_close(got, expected, name, activation, c=c, what=what)
