# SPDX-License-Identifier: Apache-2.0
"""Unbiased random pruning: exact probabilities by enumeration, statistics, edge cases."""

from __future__ import annotations

import itertools

import pytest
import sparsekern as sk
import torch
from sparsekern import training as tr
from sparsekern.training.mvue import _inclusion

GROUPS = [
    [1.0, 2.0, 3.0, 4.0],
    [0.1, -5.0, 0.1, 0.3],
    [1.0, 1.0, 1.0, 1.0],
    [0.0, 2.0, 0.0, -1.0],
    [0.0, 0.0, -3.0, 0.0],
    [1.0, 1e-8, 0.0, 1e-9],
]


def enumerated(group: list[float], n: int) -> list[float]:
    """The probability of each entry to be among n drawn in turn in proportion to |a|."""
    size = [abs(a) for a in group]
    kept = [0.0] * len(size)
    for order in itertools.permutations(range(len(size)), n):
        probability, left = 1.0, sum(size)
        for place, i in enumerate(order):
            left = sum(size[j] for j in range(len(size)) if j not in order[:place])
            probability *= size[i] / left if left else 0.0
        for i in order:
            kept[i] += probability
    return kept


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("n", [1, 2])
def test_inclusion_probabilities_are_exact(group, n):
    expected = enumerated(group, n)
    if n == 2 and sum(a != 0 for a in group) == 1:
        expected = [float(a != 0) for a in group]  # nothing is left to draw: it is kept for sure
    got = _inclusion(torch.tensor([group]).abs(), n)[0].tolist()
    assert got == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (1, 2)])
def test_unbiased(group, n, m):
    draws = 40_000
    a = torch.tensor(group[:m] if n == 1 and m == 2 else group).repeat(draws, 1)
    got = tr.mvue(a, n, m, generator=torch.Generator().manual_seed(3))
    assert ((got != 0).reshape(draws, -1, m).sum(2) <= n).all()
    p = torch.tensor(enumerated(a[0].tolist(), n), dtype=torch.float64).clamp(1e-12, 1.0)
    exact = a[0].double()
    # five standard deviations of the mean, and the rounding of float32
    room = 5 * exact.abs() * ((1 - p) / p / draws).sqrt() + 1e-6 * exact.abs()
    assert ((got.double().mean(0) - exact).abs() <= room).all()


def test_kept_values_are_divided_by_their_probability():
    group = [1.0, 2.0, 3.0, 4.0]
    p = enumerated(group, 2)
    got = tr.mvue(torch.tensor(group).repeat(1000, 1), generator=torch.Generator().manual_seed(0))
    allowed = [{0.0, round(a / q, 4)} for a, q in zip(group, p, strict=True)]
    for column, values in enumerate(allowed):
        assert {round(v, 4) for v in got[:, column].tolist()} == values
    assert ((got != 0).sum(1) == 2).all()
    # 1:2 keeps the sum of magnitudes
    one = tr.mvue(torch.tensor([[1.0, -3.0]]).repeat(100, 1), 1, 2)
    assert {tuple(v) for v in one.tolist()} <= {(4.0, 0.0), (0.0, -4.0)}


def test_any_dimension_dtype_and_length():
    generator = torch.Generator().manual_seed(1)
    a = torch.randn(10, 6, 3, generator=generator).bfloat16()
    got = tr.mvue(a, 2, 4, dim=0)
    assert got.dtype == torch.bfloat16
    assert got.shape == a.shape
    for group in got.split(4, 0):
        assert ((group != 0).sum(0) == 2).all()
    assert tr.mvue(torch.zeros(3, 4)).eq(0).all()
    assert tr.mvue(torch.empty(0, 4)).shape == (0, 4)
    huge = tr.mvue(torch.tensor([[3e38, 1e38, 1e-30, 0.0]]))
    assert huge[0, :2].tolist() == pytest.approx([3e38, 1e38])


def test_generator_repeats():
    a = torch.randn(64, 64)
    first = tr.mvue(a, generator=torch.Generator().manual_seed(5))
    assert torch.equal(first, tr.mvue(a, generator=torch.Generator().manual_seed(5)))
    assert not torch.equal(first, tr.mvue(a, generator=torch.Generator().manual_seed(6)))


@pytest.mark.parametrize("pattern", [(2, 4), (1, 2)])
def test_weight_gradient_of_a_layer_is_unbiased(pattern):
    torch.manual_seed(0)
    prune = tr.MVUE(*pattern, generator=torch.Generator().manual_seed(1))
    recipe = tr.Recipe(output_gradient=prune)
    layer = tr.NMTrainingLinear(8, 4, 2, 4, recipe=recipe)
    x, dy = torch.randn(6, 8), torch.randn(6, 4)
    draws = []
    for _ in range(2000):
        layer.zero_grad()
        x.requires_grad_()
        x.grad = None
        (layer(x) * dy).sum().backward()
        draws.append(layer.weight.grad)
    exact = dy.t() @ x.detach()
    got = torch.stack(draws)
    assert not torch.allclose(got[0], exact, atol=1e-2)
    room = 5 * got.std(0) / len(draws) ** 0.5 + 1e-5
    assert ((got.mean(0) - exact).abs() <= room).all()
    # neither the gradient of x nor that of the bias is pruned
    assert torch.allclose(x.grad, dy @ (layer.weight * layer.mask), atol=1e-5)
    assert torch.allclose(layer.bias.grad, dy.sum(0), atol=1e-5)


def test_convolution_prunes_along_the_pixels():
    conv = torch.nn.Conv2d(4, 3, 1, bias=False)
    recipe = tr.Recipe(output_gradient=tr.MVUE(1, 2))
    layer = tr.NMTrainingConv2d.from_dense(conv, 2, 4, recipe)
    x, dy = torch.ones(1, 4, 2, 2), torch.tensor([1.0, 3.0, 2.0, 2.0]).reshape(1, 1, 2, 2)
    (layer(x) * dy).sum().backward()
    # each pair of pixels keeps the sum of its magnitudes, and x is 1 everywhere
    assert layer.weight.grad.flatten().tolist() == pytest.approx([8.0] * 12)
    assert sk.training.MVUE(1, 2) == recipe.output_gradient
