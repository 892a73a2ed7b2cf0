# SPDX-License-Identifier: Apache-2.0
"""`convert_`'s choices, on a clock that the layers themselves move: no real time is measured."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import sparsekern as sk
import torch
from sparsekern import measure
from sparsekern._cast import CastConv2d, CastLinear
from sparsekern.convert import convert_
from sparsekern.nn import BitmapLinear, CSRConv2d, CSRLinear
from torch import Tensor, nn

Cost = Callable[[nn.Module, Tensor], float]


class Clock:
    """Time is what the layers say they take."""

    def __init__(self) -> None:
        self.now = 0.0
        self.cost: Cost = lambda layer, x: 1.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(measure, "clock", clock)
    for kind in (
        nn.Linear,
        nn.Conv2d,
        CSRLinear,
        CSRConv2d,
        BitmapLinear,
        CastLinear,
        CastConv2d,
    ):

        def forward(self: nn.Module, x: Tensor, real: Any = kind.forward, kind: Any = kind):
            result = real(self, x)
            if type(self) is kind:
                clock.now += clock.cost(self, x)
            return result

        monkeypatch.setattr(kind, "forward", forward)
    return clock


def size(layer: nn.Module) -> int:
    """Outputs, by which the tests tell layers apart."""
    return layer.weight.shape[0]


def model_of(*sizes: int, sparsity: float = 0.8, pattern: Any = None) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
    model = nn.Sequential(*layers)
    sk.prune_(model, pattern or sk.Unstructured(sparsity))
    return model.eval()


def packed_speed(**factors: float) -> Cost:
    """Dense layers take 1, packed ones 1 over the factor given for their number of outputs."""

    def cost(layer: nn.Module, x: Tensor) -> float:
        if isinstance(layer, CSRLinear):
            return 1.0 / factors[f"n{size(layer)}"]
        return 100.0 if isinstance(layer, (BitmapLinear, CastLinear)) else 1.0

    return cost


def test_only_layers_that_win_are_packed(clock: Clock):
    model = model_of(16, 32, 48)
    clock.cost = packed_speed(n32=2.0, n48=0.5)
    result = convert_(model, torch.randn(3, 16), seconds=0)
    assert [type(layer) for layer in model] == [CSRLinear, nn.Linear]
    assert (result["0"].dense_us, result["0"].sparse_us) == pytest.approx((1e6, 0.5e6))
    assert result["0"].reason == "2.00x as fast as dense"
    assert result["1"].reason == "packed takes 2.00x the time of dense"
    assert (result.dense_seconds, result.converted_seconds) == pytest.approx((2.0, 1.5))
    assert result["1"].bytes_after == result["1"].bytes_before
    assert result["0"].bytes_after == model[0].weight.nbytes


@pytest.mark.parametrize(("factor", "wins"), [(1.01, False), (1.03, True)])
def test_a_gain_within_the_margin_is_none(clock: Clock, factor: float, wins: bool):
    model = model_of(16, 32)
    clock.cost = packed_speed(n32=factor)
    convert_(model, torch.randn(3, 16), seconds=0)
    assert isinstance(model[0], CSRLinear) == wins


def test_a_model_that_does_not_become_faster_stays_dense(clock: Clock):
    class Slowed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = model_of(16, 32, 48)

        def forward(self, x):
            packed = sum(isinstance(layer, CSRLinear) for layer in self.layers)
            clock.now += 5.0 * packed
            return self.layers(x)

    model = Slowed().eval()
    clock.cost = packed_speed(n32=2.0, n48=2.0)
    result = convert_(model, torch.randn(3, 16), seconds=0)
    assert [type(layer) for layer in model.layers] == [nn.Linear, nn.Linear]
    assert result.packed == ()
    assert "all layers stay dense" in result.note
    assert "but the whole model did not become faster" in result["layers.0"].reason
    assert result.converted_seconds == result.dense_seconds


@pytest.mark.parametrize(("long", "wins"), [(2.0, True), (5.0, False)])
def test_several_examples_count_with_their_total_time(clock: Clock, long: float, wins: bool):
    def cost(layer: nn.Module, x: Tensor) -> float:
        if not isinstance(layer, CSRLinear):
            return 3.0
        return 1.0 if len(x) == 1 else long

    model = model_of(16, 32)
    clock.cost = cost
    convert_(model, [torch.randn(1, 16), torch.randn(9, 16)], seconds=0)
    assert isinstance(model[0], CSRLinear) == wins


def test_layers_called_more_than_once_count_all_calls(clock: Clock):
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = model_of(16, 16)[0]

        def forward(self, x):
            return self.layer(self.layer(x))

    clock.cost = packed_speed(n16=4.0)
    result = convert_(Twice().eval(), torch.randn(3, 16), seconds=0)
    assert result["layer"].dense_us == pytest.approx(2e6)
    assert result["layer"].sparse_us == pytest.approx(0.5e6)


def test_a_layer_that_the_examples_do_not_reach_stays(clock: Clock):
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = model_of(16, 16, 16)

        def forward(self, x):
            return self.used(x)

    model = Half().eval()
    clock.cost = packed_speed(n16=4.0)
    result = convert_(model, torch.randn(3, 16), seconds=0)
    assert result["unused"].reason == "example_inputs do not reach it"
    assert result.packed == ("used",)


def test_a_layer_with_few_zeros_is_not_measured(clock: Clock):
    model = model_of(16, 32, sparsity=0.2)
    clock.cost = packed_speed(n32=10.0)
    result = convert_(model, torch.randn(3, 16), seconds=0)
    assert result["0"].reason == "fewer than 30% zeros"
    assert result["0"].dense_us is None
    result = convert_(model, torch.randn(3, 16), seconds=0, min_sparsity=0.2)
    assert result.packed == ("0",)


@pytest.mark.parametrize(("rows", "tried"), [(1, {1}), (2, {1, 2}), (4, {1, 2, 4})])
def test_block_rows_that_the_zeros_have_are_tried(clock: Clock, rows: int, tried: set[int]):
    seen = set()

    def cost(layer: nn.Module, x: Tensor) -> float:
        if isinstance(layer, CSRLinear):
            seen.add(layer.weight.block_rows)
            return 1.0 / (1 + layer.weight.block_rows)
        return 100.0 if isinstance(layer, (BitmapLinear, CastLinear)) else 1.0

    model = model_of(16, 30, pattern=sk.Block(rows, 0.75))
    clock.cost = cost
    result = convert_(model, torch.randn(3, 16), seconds=0)
    assert seen == tried
    assert model[0].weight.block_rows == rows
    assert ("r" in result["0"].format.split()[1]) == (rows > 1)


def test_block_rows_can_be_given(clock: Clock):
    model = model_of(16, 32)
    clock.cost = packed_speed(n32=2.0)
    convert_(model, torch.randn(3, 16), seconds=0, block_rows=4)
    assert model[0].weight.block_rows == 4


def bfloat16_wins(layer: nn.Module, x: Tensor) -> float:
    if isinstance(layer, (CastLinear, CastConv2d)):
        return 0.25
    return 0.5 if isinstance(layer, (CSRLinear, CSRConv2d)) else 1.0


def test_dense_bfloat16_is_told_of_but_not_taken(clock: Clock):
    model = model_of(16, 32)
    clock.cost = bfloat16_wins
    result = convert_(model, torch.randn(3, 16), seconds=0)
    assert isinstance(model[0], CSRLinear)
    assert result["0"].reason == (
        "2.00x as fast as dense; dense bfloat16 would be 2.00x as fast (allow_dtypes)"
    )


def test_dense_bfloat16_is_taken_where_allowed(clock: Clock):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 16, 1, stride=2), nn.Flatten(2), nn.Linear(4, 8)).eval()
    sk.prune_(model, sk.Unstructured(0.8))
    x = torch.randn(2, 8, 4, 4)
    with torch.no_grad():
        before = model(x)
    clock.cost = bfloat16_wins
    result = convert_(model, x, seconds=0, allow_dtypes={torch.bfloat16})
    assert [type(model[0]), type(model[2])] == [CastConv2d, CastLinear]
    assert result["0"].format == "dense bfloat16"
    assert result["0"].decision == "dense"
    assert result["0"].bytes_after * 2 == result["0"].bytes_before
    with torch.no_grad():
        after = model(x)
    assert after.dtype == torch.float32
    torch.testing.assert_close(after, before, rtol=2e-2, atol=2e-2)


def test_a_dense_layer_is_cast_where_allowed(clock: Clock):
    model = model_of(16, 32, sparsity=0.0)
    clock.cost = bfloat16_wins
    result = convert_(model, torch.randn(3, 16), seconds=0, allow_dtypes=[torch.bfloat16])
    assert type(model[0]) is CastLinear
    assert result["0"].sparse_us is None


def test_bfloat16_that_is_slow_here_is_dropped_after_one_pass(clock: Clock):
    passes = 0

    def cost(layer: nn.Module, x: Tensor) -> float:
        nonlocal passes
        if isinstance(layer, CastLinear):
            passes += 1
            return 50.0
        return 0.5 if isinstance(layer, CSRLinear) else 1.0

    model = model_of(16, 32)
    clock.cost = cost
    result = convert_(model, torch.randn(3, 16), seconds=0)
    assert passes == 2  # the warm-up and one sample
    assert result["0"].reason == "2.00x as fast as dense"


def test_packed_dtypes_that_are_allowed_compete(clock: Clock):
    def cost(layer: nn.Module, x: Tensor) -> float:
        if isinstance(layer, CSRLinear):
            return {torch.float32: 0.5, torch.int8: 0.1}[layer.values.dtype]
        return 1.0

    model = model_of(16, 32)
    clock.cost = cost
    result = convert_(model, torch.randn(3, 16), seconds=0, allow_dtypes=[torch.int8])
    assert model[0].values.dtype == torch.int8
    assert result["0"].format == "csr int8"


def test_int8_is_not_tried_on_weights_that_are_not_finite():
    model = model_of(16, 32)
    with torch.no_grad():
        model[0].weight[0, 0] = float("inf")
    convert_(model, policy="smallest", allow_dtypes=[torch.int8])
    assert model[0].values.dtype == torch.float32


def test_tied_layers_are_decided_together(clock: Clock):
    model = model_of(16, 16, 16)
    model[1].weight = model[0].weight
    clock.cost = packed_speed(n16=2.0)
    result = convert_(model, torch.randn(3, 16), seconds=0)
    assert model[0].values is model[1].values
    assert result["0"].dense_us == pytest.approx(2e6)


def test_tied_layers_that_are_cast_stay_tied(clock: Clock):
    model = model_of(16, 16, 16)
    model[1].weight = model[0].weight
    clock.cost = bfloat16_wins
    convert_(model, torch.randn(3, 16), seconds=0, allow_dtypes=[torch.bfloat16])
    assert type(model[1]) is CastLinear
    assert model[1].weight is model[0].weight


def test_measuring_goes_on_for_the_time_given(clock: Clock):
    totals: list[tuple[int, int, str]] = []
    model = model_of(16, 32)
    clock.cost = packed_speed(n32=2.0)
    convert_(model, torch.randn(3, 16), seconds=150.0, progress=lambda *step: totals.append(step))
    layers = [(done, total) for done, total, text in totals if text == "measuring layers"]
    # dense 1, packed 0.5 in each pass, bfloat16 100 in the first one only
    assert layers[-1] == (34, 34)
    assert all(done <= total for done, total in layers)
    assert totals[0] == (1, 1, "packing 0")


def test_the_baseline_is_in_eval_mode_without_gradients_and_modes_come_back(clock: Clock):
    seen = set()

    def cost(layer: nn.Module, x: Tensor) -> float:
        seen.add((layer.training, torch.is_grad_enabled()))
        return packed_speed(n32=2.0)(layer, x)

    model = model_of(16, 32).train()
    clock.cost = cost
    convert_(model, torch.randn(3, 16), seconds=0)
    assert model.training
    assert model[0].training
    assert all(not grad for _, grad in seen)


def test_inputs_of_all_kinds_and_a_forward_of_ones_own(clock: Clock):
    class Takes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = model_of(16, 32)[0]

        def forward(self, x, scale):
            return self.layer(x) * scale

    x = torch.randn(3, 16)
    clock.cost = packed_speed(n32=2.0)
    for example in ((x, 2.0), {"x": x, "scale": 2.0}, [{"x": x, "scale": 1.0}, (x, 2.0)]):
        assert convert_(Takes().eval(), example, seconds=0).packed == ("layer",)
    own = convert_(Takes().eval(), x, seconds=0, forward=lambda model, one: model(one, 3.0))
    assert own.packed == ("layer",)


# --- the policies that do not measure -------------------------------------------------------------


def test_smallest_packs_where_it_saves_bytes():
    model = nn.Sequential(*model_of(64, 96, sparsity=0.9), *model_of(96, 64, sparsity=0.31))
    result = convert_(model, policy="smallest", block_rows=4)
    assert result.packed == ("0",)
    assert result["0"].bytes_after == model[0].weight.nbytes < result["0"].bytes_before
    assert result["1"].reason.startswith("packed takes ")
    assert result.dense_seconds is None


def test_smallest_takes_a_smaller_dtype_only_where_allowed():
    for allowed, dtype in ((None, torch.float32), ([torch.int8, torch.bfloat16], torch.int8)):
        model = model_of(64, 96)
        convert_(model, policy="smallest", allow_dtypes=allowed)
        assert model[0].values.dtype == dtype


def test_always_packs_from_min_sparsity_on():
    model = model_of(64, 96, sparsity=0.25)
    assert convert_(model, policy="always").packed == ()
    assert convert_(model, policy="always", min_sparsity=0.25).packed == ("0",)


def test_the_table_names_all_that_matters(clock: Clock):
    model = model_of(16, 32, 48)
    clock.cost = packed_speed(n32=2.0, n48=0.5)
    lines = str(convert_(model, torch.randn(3, 16), seconds=0)).splitlines()
    assert lines[0].split() == [
        "layer", "shape", "sparsity", "format", "before", "after", "dense", "packed", "why"
    ]  # fmt: skip
    assert "32x16" in lines[2]
    assert "csr float32" in lines[2]
    assert "1 of 2 packed" in lines[4]
    assert lines[5].startswith("whole model: dense 2.00 s, now 1.50 s (1.33x)")


def test_a_real_run_gives_equal_outputs_whatever_is_faster():
    model = model_of(16, 32, 48)
    x = torch.randn(3, 16)
    with torch.no_grad():
        before = model(x)
        convert_(model, x, seconds=0)
        torch.testing.assert_close(model(x), before, rtol=1e-5, atol=1e-5)
