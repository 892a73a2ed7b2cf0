# SPDX-License-Identifier: Apache-2.0
"""One step of each rule of training with N:M weights, against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import sparsekern as sk
import torch
from sparsekern import training as tr
from torch import Tensor

# Two groups of four in each of two rows; 2:4 keeps the entries marked *.
#                *           *             *     *
W = [[1.0, -0.5, 2.0, 0.25, -4.0, 3.0, 1.0, 0.5], [0.5, 1.5, -2.5, 1.0, 8.0, -1.0, 2.0, -4.0]]
#                                                       *     *           *           *
K = [[1, 0, 1, 0, 1, 1, 0, 0], [0, 1, 1, 0, 1, 0, 0, 1]]
X = [[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]]
# With the loss sum(y * DY), the gradient of the forward weight is DY^T X.
DY = [[1.0, -2.0]]
G = [[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0], [-2.0, -4.0, -6.0, -8.0, -10.0, -12.0, -14.0, -16.0]]


def layer_of(recipe: tr.Recipe, n: int = 2, m: int = 4, w: list[list[float]] = W):
    dense = torch.nn.Linear(len(w[0]), len(w), bias=False)
    dense.weight.data = torch.tensor(w)
    return tr.NMTrainingLinear.from_dense(dense, n, m, recipe)


def one_pass(layer: tr.NMTrainingLinear) -> tuple[list, list, list]:
    """(y, gradient of x, gradient of weight) for X and DY."""
    x = torch.tensor(X, requires_grad=True)
    y = layer(x)
    (y * torch.tensor(DY)).sum().backward()
    return y.tolist(), x.grad.tolist(), layer.weight.grad.tolist()


@pytest.fixture(params=["always", "never"])
def kernel(request):
    return request.param


def test_hard_mask_and_straight_through(kernel):
    layer = layer_of(tr.Recipe(kernel=kernel))
    assert layer.mask.tolist() == [[bool(k) for k in row] for row in K]
    y, grad_x, grad_w = one_pass(layer)
    # 1*1 + 3*2 + 5*-4 + 6*3 = 5; 2*1.5 + 3*-2.5 + 5*8 + 8*-4 = 3.5
    assert y == [[5.0, 3.5]]
    # first row of W*k minus twice the second
    assert grad_x == [[1.0, -3.0, 7.0, 0.0, -20.0, 3.0, 0.0, 8.0]]
    assert grad_w == G


def test_masked_gradient(kernel):
    y, grad_x, grad_w = one_pass(layer_of(tr.Recipe(kernel=kernel, gradient=tr.Masked())))
    assert y == [[5.0, 3.5]]
    assert grad_x == [[1.0, -3.0, 7.0, 0.0, -20.0, 3.0, 0.0, 8.0]]
    assert grad_w == [[1, 0, 3, 0, 5, 6, 0, 0], [0, -4, -6, 0, -10, 0, 0, -16]]


def test_chain_rule_of_a_hard_mask_is_the_masked_gradient(kernel):
    layer = layer_of(tr.Recipe(kernel=kernel, gradient=tr.ChainRule()))
    assert one_pass(layer)[2] == [[1, 0, 3, 0, 5, 6, 0, 0], [0, -4, -6, 0, -10, 0, 0, -16]]


def test_sr_ste_adds_its_term_once_before_the_optimizers_step():
    layer = layer_of(tr.Recipe(gradient=tr.SRSTE(0.5)))
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    tr.Training(layer).attach(optimizer)
    assert one_pass(layer)[2] == G  # backward alone is straight through
    optimizer.step()
    # G + 0.5 (1-k) W
    expected = [
        [1.0, 1.75, 3.0, 4.125, 5.0, 6.0, 7.5, 8.25],
        [-1.75, -4.0, -6.0, -7.5, -10.0, -12.5, -13.0, -16.0],
    ]
    assert layer.weight.grad.tolist() == expected
    assert torch.equal(layer.weight, torch.tensor(W) - torch.tensor(expected))


def test_sr_ste_does_not_depend_on_how_the_batch_is_cut():
    grads = []
    for parts in (1, 4):
        torch.manual_seed(0)
        layer = tr.NMTrainingLinear(16, 8, 2, 4, recipe=tr.Recipe(gradient=tr.SRSTE(0.1)))
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
        tr.Training(layer).attach(optimizer)
        for x in torch.randn(8, 16).split(8 // parts):
            layer(x).pow(2).sum().backward()
        optimizer.step()
        grads.append(layer.weight.grad)
    assert torch.allclose(*grads, atol=1e-5)


def test_sr_ste_enters_adams_moments():
    layer = layer_of(tr.Recipe(gradient=tr.SRSTE(0.5)))
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    tr.Training(layer).attach(optimizer)
    one_pass(layer)
    optimizer.step()
    # exp_avg = 0.1 * gradient after the first step
    assert math.isclose(optimizer.state[layer.weight]["exp_avg"][0, 1].item(), 0.175, rel_tol=1e-6)


@pytest.mark.parametrize(("kind", "beta"), [("linear", 0.5), ("exponential", math.exp(-0.5))])
def test_decaying_mask(kind, beta):
    layer = layer_of(tr.Recipe(forward=tr.Decaying(0.25, begin=1, kind=kind)))
    for _ in range(3):
        layer.advance()  # t = 2: beta = 1 - 0.5 or exp(-0.5)
    y, grad_x, grad_w = one_pass(layer)
    # outside the mask: -1 + 1 + 7 + 4 = 11; 0.5 + 4 - 6 + 14 = 12.5
    assert y[0] == pytest.approx([5.0 + 11.0 * beta, 3.5 + 12.5 * beta], abs=1e-5)
    # column 1: -0.5 beta * 1 + 1.5 * -2
    assert grad_x[0][1] == pytest.approx(-0.5 * beta - 3.0, abs=1e-6)
    assert grad_w == G


def test_chain_rule_of_a_decaying_mask():
    recipe = tr.Recipe(forward=tr.Decaying(0.25, kind="linear"), gradient=tr.ChainRule())
    layer = layer_of(recipe)
    layer.advance()
    layer.advance()  # beta = 0.5
    assert one_pass(layer)[2] == [
        [1.0, 1.0, 3.0, 2.0, 5.0, 6.0, 3.5, 4.0],
        [-1.0, -4.0, -6.0, -4.0, -10.0, -6.0, -7.0, -16.0],
    ]


def test_decay_over_the_steps():
    linear = tr.Decaying(0.25, begin=2, end=5, kind="linear")
    assert [linear.beta(t) for t in range(8)] == [1, 1, 1, 0.75, 0.5, 0, 0, 0]
    assert [tr.Decaying(0.5, kind="linear").beta(t) for t in range(4)] == [1, 0.5, 0, 0]
    slow = tr.Decaying(1.0, begin=1, end=4)
    assert [slow.beta(t) for t in range(6)] == pytest.approx(
        [1, 1, math.exp(-1), math.exp(-2), 0, 0]
    )


def test_soft_threshold(kernel):
    layer = layer_of(tr.Recipe(kernel=kernel, forward=tr.SoftThreshold()))
    # tau is the second smallest magnitude: 0.5, 1; 1, 2
    soft = [[0.5, 0, 1.5, 0, -3, 2, 0, 0], [0, 0.5, -1.5, 0, 6, 0, 0, -2]]
    # <W, S> = .5+3+12+6 + .75+3.75+48+8 = 82; <S, S> = .25+2.25+9+4 + .25+2.25+36+4 = 58
    assert layer.scale.item() == pytest.approx(82 / 58)
    y, grad_x, grad_w = one_pass(layer)
    # X S^T = .5 + 4.5 - 15 + 12 = 2; 1 - 4.5 + 30 - 16 = 10.5
    assert y[0] == pytest.approx([2 * 82 / 58, 10.5 * 82 / 58])
    assert grad_x[0] == pytest.approx(
        [82 / 58 * (a - 2 * b) for a, b in zip(*soft, strict=True)], abs=1e-6
    )
    assert grad_w == G  # without beta
    before = layer.scale.item()
    layer.weight.data.mul_(-3.0).add_(0.1)
    layer.advance()
    assert layer.scale.item() == before  # frozen


def test_soft_threshold_of_1_of_4_takes_the_third_smallest():
    layer = layer_of(tr.Recipe(forward=tr.SoftThreshold()), 1, 4, [[1.0, -4.0, 2.0, 3.5]])
    assert layer.sparse_weight().tolist() == [pytest.approx([0.0, -4.0, 0.0, 0.0])]  # 8 * 0.5


def test_soft_threshold_of_3_of_4_takes_the_smallest():
    layer = layer_of(tr.Recipe(forward=tr.SoftThreshold()), 3, 4, [[1.0, -4.0, 2.0, 3.0]])
    # S = 0, -3, 1, 2; beta = (12 + 2 + 6) / 14
    scaled = [v * 20 / 14 for v in (0.0, -3.0, 1.0, 2.0)]
    assert layer.sparse_weight().tolist() == [pytest.approx(scaled)]


def test_soft_threshold_of_equal_weights_is_zero_and_finite():
    layer = layer_of(tr.Recipe(forward=tr.SoftThreshold()), 2, 4, [[2.0, -2.0, 2.0, 2.0]])
    assert layer.scale.item() == 1.0
    y, grad_x, grad_w = (t for t in _pass_of(layer, torch.ones(1, 4)))
    assert y.tolist() == [[0.0]]
    assert grad_x.tolist() == [[0.0] * 4]
    assert grad_w.tolist() == [[1.0] * 4]


def _pass_of(layer: tr.NMTrainingLinear, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x = x.clone().requires_grad_()
    y = layer(x)
    y.sum().backward()
    return y, x.grad, layer.weight.grad


def test_a_short_last_group_keeps_what_it_has():
    w = [[1.0, 2.0, 3.0, 4.0, 5.0, -6.0]]
    layer = layer_of(tr.Recipe(forward=tr.SoftThreshold()), 2, 4, w)
    assert layer.mask.tolist() == [[False, False, True, True, True, True]]
    # tau 2 in the first group; 0 in the second, which keeps all
    s = [0.0, 0.0, 1.0, 2.0, 5.0, -6.0]
    beta = (3 + 8 + 25 + 36) / (1 + 4 + 25 + 36)
    assert layer.sparse_weight().tolist() == [pytest.approx([beta * v for v in s])]


def test_input_gradient_with_a_mask_of_its_own(kernel):
    # 1:2 along the inputs: rows keep -3, 4 / 2, 1; along the outputs: columns keep 2, -3, 5, 4
    w = [[1.0, -3.0, 5.0, 4.0], [2.0, 0.5, -1.0, 1.0]]
    layer = layer_of(tr.Recipe(kernel=kernel, input_gradient="own"), 1, 2, w)
    assert layer.mask.tolist() == [[False, True, True, False], [True, False, True, False]]
    assert layer.mask_back.t().tolist() == [[False, True, True, True], [True, False, False, False]]
    x = torch.tensor([[1.0, 2.0, 3.0, 4.0]], requires_grad=True)
    y = layer(x)
    (y * torch.tensor([[10.0, 100.0]])).sum().backward()
    assert y.tolist() == [[9.0, -1.0]]  # -6 + 15; 2 - 3
    assert x.grad.tolist() == [[200.0, -30.0, 50.0, 40.0]]
    assert layer.weight.grad.tolist() == [[10, 20, 30, 40], [100, 200, 300, 400]]


def test_own_mask_of_a_soft_threshold_and_of_a_decaying_mask():
    w = [[1.0, -3.0], [2.0, 0.5]]
    layer = layer_of(tr.Recipe(forward=tr.SoftThreshold(), input_gradient="own"), 1, 2, w)
    # along the outputs: tau 1 and 0.5, S = [[0, -2.5], [1, 0]]; beta of the forward mask:
    # S = [[0, -2], [1.5, 0]], (6 + 3) / (4 + 2.25) = 1.44
    x = torch.ones(1, 2, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad.tolist() == [pytest.approx([1.44, -3.6])]
    recipe = tr.Recipe(forward=tr.Decaying(0.5, kind="linear"), input_gradient="own")
    layer = layer_of(recipe, 1, 2, w)
    layer.advance()  # beta 0.5
    x = torch.ones(1, 2, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad.tolist() == [pytest.approx([0.5 + 2.0, -3.0 + 0.25])]


def test_transposable_mask(kernel):
    torch.manual_seed(0)
    layer = tr.NMTrainingLinear(
        16, 8, 2, 4, bias=False, recipe=tr.Recipe(kernel=kernel, input_gradient="transposable")
    )
    assert (layer.mask.reshape(8, 4, 4).sum(2) == 2).all()
    assert (layer.mask.t().reshape(16, 2, 4).sum(2) == 2).all()
    x, dy = torch.randn(5, 16, requires_grad=True), torch.randn(5, 8)
    (layer(x) * dy).sum().backward()
    expected = dy @ (layer.weight * layer.mask)
    assert torch.allclose(x.grad, expected, atol=1e-5)
    assert torch.allclose(layer.weight.grad, dy.t() @ x.detach(), atol=1e-5)


def test_frames_of_the_papers():
    nm = sk.NM
    assert tr.stepwise_frames(nm(2, 8), 10, 40).frames == (
        (10, nm(7, 8)),
        (20, nm(4, 8)),
        (30, nm(2, 8)),
    )
    assert tr.stepwise_frames(nm(3, 8), 0, 20).frames == (
        (0, nm(7, 8)),
        (10, nm(4, 8)),
        (20, nm(3, 8)),
    )
    assert tr.stepwise_frames(nm(1, 2), 0, 5).frames == ((0, nm(1, 2)),)
    assert tr.geometric_frames(nm(1, 4), 0, 40).frames == (
        (0, nm(8, 32)),
        (10, nm(4, 16)),
        (20, nm(2, 8)),
        (30, nm(1, 4)),
    )
    gradual = tr.cubic_frames(nm(1, 4), 0, 8)
    # 1 + 3 (1 - t/8)^3 rounded up: 3 at most, 3 at t=1 (3.0097 -> 4 -> 3), 2 at t=3 (1.73)
    assert gradual.frames == ((0, nm(3, 4)), (3, nm(2, 4)), (8, nm(1, 4)))
    assert [tr.Frames(((2, None), (4, nm(2, 4)))).at(t) for t in (0, 2, 4, 9)] == [
        None,
        None,
        nm(2, 4),
        nm(2, 4),
    ]


def test_masks_follow_the_schedule():
    frames = tr.Frames(((0, None), (2, sk.NM(3, 4)), (3, sk.NM(1, 4))))
    recipe = tr.Recipe(frames=frames, refresh=2, fixed_after=6)
    layer = layer_of(recipe, 1, 4)
    kept = []
    for _ in range(9):
        kept.append(layer.mask.sum().item())
        layer.advance()
    assert kept == [16, 16, 12, 4, 4, 4, 4, 4, 4]
    layer = layer_of(recipe, 1, 4)
    changed = []
    for _ in range(10):
        before = layer.mask.clone()
        layer.weight.data = layer.weight.data.roll(1, 1)
        layer.advance()
        changed.append(not torch.equal(before, layer.mask))
    # steps 2 and 3 change the pattern, 4 and 6 refresh, 5 does not, after 6 nothing does
    assert changed == [False, True, True, True, False, True, False, False, False, False]


@pytest.mark.parametrize(
    ("make", "kind", "text"),
    [
        (lambda: tr.Decaying(0.0), ValueError, "rate must be positive, got 0.0"),
        (lambda: tr.Decaying(1.0, kind="cosine"), ValueError, "kind must be"),
        (lambda: tr.Decaying(1.0, begin=3, end=2), ValueError, "0 <= begin <= end, got 3 and 2"),
        (lambda: tr.SRSTE(-1.0), ValueError, "decay must be >= 0, got -1.0"),
        (lambda: tr.SRSTE(math.nan), ValueError, "decay must be >= 0, got nan"),
        (lambda: tr.MVUE(3, 8), ValueError, "got 3:8"),
        (lambda: tr.MVUE(2, 2), ValueError, "got 2:2"),
        (lambda: tr.mvue(torch.zeros(4, dtype=torch.int32)), TypeError, "floating-point"),
        (lambda: tr.Frames(()), ValueError, "at least one entry"),
        (lambda: tr.Frames(((0, sk.NM(2, 4)), (0, sk.NM(1, 4)))), ValueError, "rise strictly"),
        (lambda: tr.Frames(((0, None),)), ValueError, "last entry must have a pattern"),
        (lambda: tr.Frames(((0.5, None),)), TypeError, "must be an integer, got float"),
        (lambda: tr.Frames(((0, sk.Unstructured(0.5)),)), TypeError, "got Unstructured"),
        (lambda: tr.stepwise_frames(sk.NM(1, 16), 0, 3), ValueError, "each of 5 frames"),
        (lambda: tr.geometric_frames(sk.NM(2, 8), 0, 9), ValueError, "groups up to 64"),
        (lambda: tr.cubic_frames(sk.NM(2, 8), 5, 5), ValueError, "0 <= begin < end"),
        (lambda: tr.Recipe(forward="hard"), TypeError, "forward must be a Forward, got str"),
        (lambda: tr.Recipe(gradient=None), TypeError, "must be a GradientRule, got NoneType"),
        (lambda: tr.Recipe(input_gradient="both"), ValueError, "got 'both'"),
        (lambda: tr.Recipe(kernel="fast"), ValueError, "got 'fast'"),
        (lambda: tr.Recipe(refresh=0), ValueError, "refresh must be at least 1, got 0"),
        (lambda: tr.Recipe(refresh=1.5), TypeError, "refresh must be an integer, got float"),
        (lambda: tr.Recipe(fixed_after=-1), ValueError, "fixed_after must be at least 0"),
        (
            lambda: tr.Recipe(forward=tr.SoftThreshold(), gradient=tr.ChainRule()),
            ValueError,
            "got ChainRule",
        ),
        (
            lambda: tr.Recipe(forward=tr.SoftThreshold(), input_gradient="transposable"),
            ValueError,
            "got 'transposable'",
        ),
        (
            lambda: layer_of(tr.Recipe(frames=tr.Frames(((0, sk.NM(1, 4)),)))),
            ValueError,
            r"must end in NM\(2:4\), got NM\(1:4\)",
        ),
        (
            lambda: tr.NMTrainingLinear(
                12, 8, 2, 8, recipe=tr.Recipe(input_gradient="transposable")
            ),
            ValueError,
            r"multiples of m \(8\), got \[8, 12\]",
        ),
        (lambda: tr.NMTrainingLinear(8, 8, 4, 4), ValueError, "n must be in"),
        (lambda: tr.NMTrainingLinear(8, 8, 2, 4, recipe="ste"), TypeError, "must be a Recipe"),
    ],
)
def test_bad_arguments(make, kind, text):
    with pytest.raises(kind, match=text):
        make()
