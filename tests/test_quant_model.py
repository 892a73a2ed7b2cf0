# SPDX-License-Identifier: Apache-2.0
"""quantize_ on whole models: the chain of blocks, BQPO, E2E-OQP, resuming, bad input."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from sparsekern.nn import GQSLinear
from sparsekern.patterns import GQS, Unstructured
from sparsekern.quant import (
    QuantizeResult,
    Rates,
    Rounding,
    pack_,
    packed,
    quantize_,
    round_to_nearest,
    tune_scales_,
)
from sparsekern.quant.blocks import find_blocks, make_chain
from sparsekern.quant.fake import frozen, tunable
from sparsekern.quant.tune import tune_block
from torch import Tensor, nn

W4 = GQS(4, 16, 0.5)


class Block(nn.Module):
    """Takes a second argument, as a mask would be, and returns a tuple."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 48), nn.Linear(48, width)

    def forward(self, x: Tensor, gain: float = 1.0) -> tuple[Tensor, None]:
        return x + gain * self.down(torch.relu(self.up(x))), None


class Stack(nn.Module):
    """An embedding, blocks in a list, a head outside of them."""

    def __init__(self, width: int = 24, depth: int = 3) -> None:
        super().__init__()
        self.first = nn.Linear(8, width)
        self.layers = nn.ModuleList([Block(width) for _ in range(depth)])
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for layer in self.layers:
            x = layer(x, gain=0.5)[0]
        return self.head(x)


def stack() -> Stack:
    torch.manual_seed(0)
    return Stack()


def batches(count: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(30, 8, generator=generator) for _ in range(count)]


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def error(model: nn.Module, dense: nn.Module) -> float:
    with torch.no_grad():
        return sum(float((model(x) - dense(x)).square().mean()) for x in batches())


def same(a: QuantizeResult, b: QuantizeResult) -> bool:
    return a.values.keys() == b.values.keys() and all(
        a.values[name].equal(b.values[name]) for name in a.values
    )


# --- the whole of it ------------------------------------------------------------------------------


def test_weights_are_the_dequantized_values_and_nothing_else_changes():
    model = stack()
    before, parameters = state_of(model), list(model.parameters())
    result = quantize_(model, W4, calibration=batches())
    assert list(result.values) == [f"layers.{i}.{n}" for i in range(3) for n in ("up", "down")]
    for name, tensor in model.state_dict().items():
        layer = name.removesuffix(".weight")
        expected = result.values[layer].dequantize() if layer in result.values else before[name]
        assert torch.equal(tensor, expected), name
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert all(p.requires_grad for p in parameters)
    for name, value in result.values.items():
        # 24 inputs are two groups, of which one is pruned in every row; 48 are three.
        pruned = 0.5 if name.endswith("up") else 2 / 3
        assert value.sparsity == pytest.approx(pruned)
        assert (value.mask.sum(dim=1) == 1).all()
    kept = sum(48 + 24 for _ in range(3)) * (16 * 4 + 16) + 3 * (48 * 2 + 24 * 3)
    assert result.bits_per_weight == pytest.approx(kept / (3 * 2 * 48 * 24))
    table = str(result)
    assert "layers.2.down" in table
    assert f"{result.bits_per_weight:.3f}" in table.splitlines()[-1]


@pytest.mark.parametrize(
    "options",
    [
        {"saliency": "magnitude"},
        {"saliency": "wanda"},
        {"saliency": "block"},
        {"symmetric": False},
        {"search": False},
        {"sequential": False},
        {"blocks": None},
        {"blocks": "layers.*"},
        {"device": "cpu"},
    ],
)
def test_gptq_beats_rounding_by_every_option(options: dict[str, Any]):
    dense = stack()
    found = {}
    for method in ("nearest", "gptq"):
        model = stack()
        quantize_(model, W4, calibration=batches(), method=method, **options)
        found[method] = error(model, dense)
    assert found["gptq"] < found["nearest"]


def test_fitting_what_is_kept_lowers_the_error():
    dense, found = stack(), []
    for fit in (True, False):
        model = stack()
        quantize_(model, W4, calibration=batches(), fit=fit)
        found.append(error(model, dense))
    assert found[0] < found[1]


def test_blocks_one_by_one_or_the_model_as_one_block_round_the_same_first_layer():
    options: dict[str, Any] = {"calibration": batches()}
    patterns = {"layers.0.up": W4}
    models = [stack(), stack()]
    by_block = quantize_(models[0], patterns, **options)
    whole = quantize_(models[1], patterns, blocks=None, **options)
    assert same(by_block, whole)


def test_later_blocks_see_what_the_quantized_blocks_give():
    """The second layer's weight is exact on its own inputs; only the first is rounded coarsely."""
    model = stack()
    patterns = {"layers.0.*": GQS(2, 16, 0.5), "layers.1.up": W4}
    result = quantize_(model, patterns, calibration=batches(), method="gptq")
    dense = stack()
    alone = quantize_(dense, {"layers.1.up": W4}, calibration=batches())
    assert not result.values["layers.1.up"].equal(alone.values["layers.1.up"])
    # From the quantized first block on, the second is what it is in the whole run.
    third = stack()
    third.layers[0].load_state_dict(model.layers[0].state_dict())
    again = quantize_(third, {"layers.1.up": W4}, calibration=batches())
    assert again.values["layers.1.up"].equal(result.values["layers.1.up"])


def test_sparsity_goes_where_it_costs_least():
    dense = stack()
    with torch.no_grad():
        dense.layers[0].up.weight[:, :16] *= 1e-4  # a group in every row that can go for nothing
    pattern = GQS(8, 16, 0.25)
    found = {}
    for allocation in ("uniform", "sensitivity"):
        model = copy.deepcopy(dense)
        result = quantize_(
            model, pattern, calibration=batches(), allocation=allocation, scope="layer"
        )
        found[allocation] = error(model, dense)
        shares = {name: value.sparsity for name, value in result.values.items()}
        if allocation == "uniform":
            assert max(shares.values()) - min(shares.values()) < 0.02
        else:
            assert shares["layers.0.up"] == max(shares.values()) > 0.3
        total = sum(int((~value.mask).sum()) for value in result.values.values())
        assert total == pytest.approx(0.25 * sum(v.mask.numel() for v in result.values.values()), 4)
    assert found["sensitivity"] < found["uniform"]


def test_a_layer_that_is_never_called():
    model = stack()
    model.layers[1].unused = nn.Linear(24, 48)
    with pytest.raises(
        ValueError, match=r"^quantize_: calibration must reach .* 'layers.1.unused'"
    ):
        quantize_(model, W4, calibration=batches())


def test_shared_weights_stay_shared_through_tuning():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 16)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.relu(self.a(x)))

    torch.manual_seed(0)
    model = Twice()
    x = [torch.randn(40, 16) for _ in range(2)]
    pattern = GQS(2, 16, 0.0)
    result = quantize_(model, pattern, calibration=x, blocks=None, tune_steps=20)
    assert list(result.values) == ["a"]
    assert model.a.weight is model.b.weight
    assert torch.equal(model.b.weight, result.values["a"].dequantize())
    before, after = result.errors[""]
    assert after < before


def test_convolutions_as_matrices():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3))
    x = [torch.randn(2, 3, 9, 9) for _ in range(2)]
    result = quantize_(model, GQS(4, 16, 0.0), calibration=x, tune_steps=4)
    assert result.values["0"].shape == (6, 27)
    assert torch.equal(model[0].weight.flatten(1), result.values["0"].dequantize())


def test_other_dtypes_keep_theirs():
    model = stack().bfloat16()
    x = [batch.bfloat16() for batch in batches()]
    result = quantize_(model, W4, calibration=x, tune_steps=2)
    weight = model.layers[0].up.weight
    assert weight.dtype == torch.bfloat16
    assert torch.equal(weight, result.values["layers.0.up"].dequantize().bfloat16())


def test_progress_counts_blocks(capsys: pytest.CaptureFixture[str]):
    seen = []
    quantize_(stack(), W4, calibration=batches(), progress=lambda *args: seen.append(args))
    assert seen == [(i + 1, 3, f"layers.{i}") for i in range(3)]
    quantize_(stack(), W4, calibration=batches(), progress=True)
    assert "quantize_: 3/3 blocks" in capsys.readouterr().err


# --- BQPO -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("symmetric", [True, False])
def test_bqpo_lowers_the_error_of_every_block(symmetric: bool):
    dense, plain, tuned = stack(), stack(), stack()
    options: dict[str, Any] = {"calibration": batches(), "symmetric": symmetric}
    first = quantize_(plain, W4, **options)
    second = quantize_(tuned, W4, tune_steps=60, **options)
    assert list(second.errors) == ["layers.0", "layers.1", "layers.2"]
    assert all(after < before for before, after in second.errors.values())
    assert error(tuned, dense) < error(dense, Stack())
    one = "layers.0.up"
    assert torch.equal(first.values[one].mask, second.values[one].mask)
    assert not torch.equal(first.values[one].codes, second.values[one].codes)


def test_a_step_of_bqpo_by_hand():
    """One weight of scale 2 and code 2, input 1, wanted output 1.5.

    The output is 4, the error 2.5^2 over a variance that is 0, so undivided. Its gradient by the
    code is 2 * 2.5 * 2, by the ratio 2 * 2.5 * 4, both positive, so that the first step of Adam
    takes its whole rate off each: the code goes from 2 to 1.4, which rounds to 1, and the scale
    from 2 to 2 * 0.9.
    """
    layer = nn.Linear(1, 1, bias=False)
    value = round_to_nearest(
        torch.tensor([[-16.0]]), torch.tensor([[True]]), Rounding(4, 16, True, search=False)
    )
    value.codes[0, 0, 0] = 2
    assert value.dequantize().item() == 4.0
    layer.weight.data = value.dequantize()
    x, target = torch.ones(1, 1), torch.tensor([[1.5]])
    values, before, after = tune_block(
        layer, {"w": [layer]}, {"w": value}, lambda i: (layer(x),), lambda i: (target,), 1, 1,
        Rates(codes=0.6 * 20, ratio=0.1 * 20),  # the first of 20 steps of warm-up
    )  # fmt: skip
    found = values["w"]
    assert found.codes[0, 0, 0] == 1
    assert found.scales.item() == torch.tensor(1.8).half().item()
    assert (before, after) == (6.25, pytest.approx(0.3**2, rel=1e-2))


def test_bqpo_keeps_the_better_of_two_states():
    model = stack()
    result = quantize_(
        model, W4, calibration=batches(), tune_steps=3, rates=Rates(codes=50.0, ratio=1.0)
    )
    plain = quantize_(stack(), W4, calibration=batches())
    assert all(after == before for before, after in result.errors.values())
    assert same(result, plain)


def test_tunable_leaves_the_model_as_it_was():
    model = stack()
    result = quantize_(model, W4, calibration=batches())
    before, parameters = state_of(model), list(model.parameters())
    modules = {name: [model.get_submodule(name)] for name in result.values}
    with (  # noqa: PT012
        pytest.raises(RuntimeError, match="stop"),
        frozen(model),
        tunable(modules, result.values),
    ):
        # The fake-quantized weights are the dequantized ones.
        torch.testing.assert_close(model(batches()[0]), _with(before, batches()[0]))
        raise RuntimeError("stop")
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(p.requires_grad for p in parameters)
    assert type(model.layers[0].up) is nn.Linear


def _with(state: dict[str, Tensor], x: Tensor) -> Tensor:
    model = stack()
    model.load_state_dict(state)
    return model(x)


# --- E2E-OQP --------------------------------------------------------------------------------------


@pytest.mark.parametrize("symmetric", [True, False])
def test_e2e_oqp_touches_scales_and_zeros_only(symmetric: bool):
    dense, model = stack(), stack()
    result = quantize_(model, W4, calibration=batches(), symmetric=symmetric)
    before, start = error(model, dense), state_of(model)
    values, found = tune_scales_(
        model, result.values, dense, batches(), steps=60, rates=Rates(ratio=0.01, zeros=0.1)
    )
    assert found.steps == 60
    assert error(model, dense) < before
    for name, value in values.items():
        old = result.values[name]
        assert torch.equal(value.mask, old.mask)
        kept = value.mask
        assert torch.equal(value.codes[kept][:, :8], old.codes[kept][:, :8])
        assert not torch.equal(value.scales, old.scales)
        assert torch.equal(model.get_submodule(name).weight, value.dequantize())
    if not symmetric:
        moved = [not torch.equal(values[n].zeros, result.values[n].zeros) for n in values]
        assert any(moved)
    for name, tensor in model.state_dict().items():
        if name.removesuffix(".weight") not in values:
            assert torch.equal(tensor, start[name]), name


def test_e2e_oqp_checks_its_arguments():
    dense, model = stack(), stack()
    result = quantize_(model, W4, calibration=batches())
    with pytest.raises(ValueError, match=r"values must name Linear or Conv2d .* got 'other'"):
        tune_scales_(model, {"other": result.values["layers.0.up"]}, dense, batches(), steps=1)
    with pytest.raises(ValueError, match=r"layer 'layers\.0\.up' must hold the weight that values"):
        tune_scales_(stack(), result.values, dense, batches(), steps=1)
    with pytest.raises(ValueError, match="at least one layer, got none"):
        tune_scales_(model, {}, dense, batches(), steps=1)
    with pytest.raises(ValueError, match="Rates: ratio must be finite and >= 0, got -1"):
        Rates(ratio=-1)


# --- resuming -------------------------------------------------------------------------------------


class StopError(Exception):
    """Interrupts a run."""


@pytest.mark.parametrize("allocation", ["uniform", "sensitivity"])
def test_a_resumed_run_equals_a_whole_one_bit_for_bit(allocation: str, tmp_path: Path):
    options: dict[str, Any] = {
        "calibration": batches(), "tune_steps": 5, "symmetric": False, "allocation": allocation,
    }  # fmt: skip
    whole = stack()
    expected = quantize_(whole, W4, **options)

    def stop(done: int, total: int, name: str) -> None:
        if done == 2:
            raise StopError

    folder = tmp_path / "state"
    with pytest.raises(StopError):
        quantize_(stack(), W4, state=folder, progress=stop, **options)
    files = sorted(path.name for path in folder.iterdir())
    assert files == ["block-0000.safetensors", "block-0001.safetensors", "quantize.json"]
    times = (folder / files[0]).stat().st_mtime_ns
    resumed = stack()
    result = quantize_(resumed, W4, state=folder, **options)
    assert (folder / files[0]).stat().st_mtime_ns == times  # not done again
    assert same(result, expected)
    assert result.errors == expected.errors
    wanted = whole.state_dict()
    assert all(torch.equal(wanted[name], tensor) for name, tensor in resumed.state_dict().items())


def test_a_state_folder_of_another_run_is_refused(tmp_path: Path):
    quantize_(stack(), W4, calibration=batches(), state=tmp_path / "s")
    with pytest.raises(ValueError, match="with another symmetric"):
        quantize_(stack(), W4, calibration=batches(), state=tmp_path / "s", symmetric=False)
    with pytest.raises(ValueError, match="with another calibration"):
        quantize_(stack(), W4, calibration=batches(3), state=tmp_path / "s")
    other = stack()
    with torch.no_grad():
        other.layers[2].up.weight[0, 0] += 1
    with pytest.raises(ValueError, match="with another weights"):
        quantize_(other, W4, calibration=batches(), state=tmp_path / "s")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(ValueError, match="state must be a new folder"):
        quantize_(stack(), W4, calibration=batches(), state=tmp_path / "full")
    (tmp_path / "s" / "quantize.json").write_text("{")
    with pytest.raises(ValueError, match=r"state must hold a readable quantize.json"):
        quantize_(stack(), W4, calibration=batches(), state=tmp_path / "s")


class Masked(Stack):
    """Blocks take a mask beside x."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.first(x)
        for layer in self.layers:
            x = layer(x, gain=mask)[0]
        return self.head(x)


@pytest.mark.parametrize("blocks", ["auto", None])
def test_a_state_folder_of_another_mask_is_refused(blocks: str | None, tmp_path: Path):
    def run(mask: Tensor) -> QuantizeResult:
        torch.manual_seed(0)
        return quantize_(
            Masked(), W4, calibration=[(x, mask) for x in batches()], blocks=blocks, state=tmp_path
        )

    mask = torch.ones(30, 1)
    run(mask)
    run(mask.clone())
    mask[3] = 0.0
    with pytest.raises(ValueError, match="with another calibration"):
        run(mask)


def test_a_state_folder_of_another_number_is_refused(tmp_path: Path):
    def run(gain: float) -> None:
        model = stack()
        for layer in model.layers:
            layer.register_forward_pre_hook(
                lambda module, args, kwargs: (args, {"gain": gain}), with_kwargs=True, prepend=True
            )
        quantize_(model, W4, calibration=batches(), state=tmp_path)

    run(0.5)
    with pytest.raises(ValueError, match="with another calibration"):
        run(0.25)


@pytest.mark.parametrize("width", [None, 40])
def test_a_state_file_of_other_layers_is_named(width: int | None, tmp_path: Path):
    quantize_(stack(), W4, calibration=batches(), state=tmp_path / "s")
    other = tmp_path / "s"
    if width is not None:  # same names, other shapes
        other = tmp_path / "other"
        quantize_(Stack(width), W4, calibration=batches(), state=other)
    source = other / f"block-000{0 if width is None else 1}.safetensors"
    (tmp_path / "s" / "block-0001.safetensors").write_bytes(source.read_bytes())
    model = stack()
    with pytest.raises(ValueError, match=r"got a damaged .*block-0001.safetensors; remove it"):
        quantize_(model, W4, calibration=batches(), state=tmp_path / "s")


def test_a_damaged_state_file_is_named(tmp_path: Path):
    quantize_(stack(), W4, calibration=batches(), state=tmp_path)
    path = tmp_path / "block-0001.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ValueError, match=r"got a damaged .*block-0001.safetensors; remove it"):
        quantize_(stack(), W4, calibration=batches(), state=tmp_path)
    path.unlink()
    quantize_(stack(), W4, calibration=batches(), state=tmp_path)
    assert json.loads((tmp_path / "quantize.json").read_text())["version"] == 1


# --- blocks and bad input -------------------------------------------------------------------------


def test_blocks_are_found():
    model = stack()
    assert [name for name, _ in find_blocks(model, "auto")] == [f"layers.{i}" for i in range(3)]
    assert [name for name, _ in find_blocks(model, "layers.*")] == [f"layers.{i}" for i in range(3)]
    assert [name for name, _ in find_blocks(model, None)] == [""]
    mixed = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    assert [name for name, _ in find_blocks(mixed, "auto")] == [""]
    with pytest.raises(ValueError, match=r"blocks 'none.\*' must match a module"):
        find_blocks(model, "none.*")


def test_blocks_that_are_no_chain():
    class Skips(Stack):
        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            return self.head(self.layers[2](self.layers[1](x)[0] + self.layers[0](x)[0])[0])

    class Backwards(Stack):
        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            for layer in reversed(self.layers):
                x = layer(x)[0]
            return self.head(x)

    class Gains(Stack):
        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            for i, layer in enumerate(self.layers):
                x = layer(x, gain=0.5 + i)[0]
            return self.head(x)

    for kind, text in (
        (Skips, "blocks must be called once each in module order"),
        (Backwards, "blocks must be called once each in module order"),
        (Gains, "blocks must be a chain, .* got other inputs of 'layers.1' behind 'layers.0'"),
    ):
        with pytest.raises(ValueError, match=text):
            quantize_(kind(), W4, calibration=batches())
    result = quantize_(Gains(), W4, calibration=batches(), blocks=None)
    assert "first" in result.values  # the model as one block takes them all


def test_blocks_called_by_keyword():
    class Named(Stack):
        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            for layer in self.layers:
                x = layer(gain=0.5, x=x)[0]
            return self.head(x)

    torch.manual_seed(0)
    model = Named()
    assert same(
        quantize_(model, W4, calibration=batches()),
        quantize_(stack(), W4, calibration=batches()),
    )
    chain = make_chain(stack(), find_blocks(model, None), batches(), lambda m, x: m(x), None)
    assert chain.whole


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_weights_and_inputs_that_are_not_finite(broken: float):
    model = stack()
    with torch.no_grad():
        model.layers[1].down.weight[2, 3] = broken
    before = state_of(model)
    with pytest.raises(ValueError, match=r"layer 'layers\.1\.down' must have finite weights"):
        quantize_(model, W4, calibration=batches())
    torch.testing.assert_close(model.state_dict(), before, equal_nan=True)
    x = batches()
    x[2][0, 0] = broken
    with pytest.raises(ValueError, match=r"^quantize_: calibration must give finite inputs"):
        quantize_(stack(), W4, calibration=x)


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        (
            {"method": "best"},
            ValueError,
            r"method must be one of \('gptq', 'nearest'\), got 'best'",
        ),
        ({"saliency": "x"}, ValueError, "saliency must be one of"),
        ({"scope": "global"}, ValueError, "scope must be one of"),
        ({"allocation": "erk"}, ValueError, "allocation must be one of"),
        ({"tune_steps": -1}, ValueError, "tune_steps must be at least 0, got -1"),
        ({"tune_steps": 1.0}, TypeError, "tune_steps must be an integer, got float"),
        ({"damping": math.nan}, ValueError, "damping must be finite and >= 0, got nan"),
        ({"calibration": batches()[0]}, TypeError, "calibration must be an iterable of batches"),
        ({"calibration": []}, ValueError, "calibration must yield at least one batch, got none"),
        ({"calibration": [], "blocks": None}, ValueError, "at least one batch, got none"),
        ({"patterns": Unstructured(0.5)}, TypeError, "patterns must be GQS, got Un"),
        ({"patterns": {"head": W4}}, ValueError, "layer 'head' must be used inside one block"),
        ({"patterns": {"none": W4}}, ValueError, "key 'none' must match"),
    ],
)
def test_arguments_are_checked(options: dict[str, Any], kind: type[Exception], text: str):
    model = stack()
    before = state_of(model)
    patterns = options.pop("patterns", W4)
    with pytest.raises(kind, match=text) as caught:
        quantize_(model, patterns, **{"calibration": batches(), **options})
    assert str(caught.value).startswith("quantize_: ")
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_inputs_that_are_always_zero():
    model = nn.Sequential(nn.Linear(32, 8))
    x = torch.zeros(20, 32)
    for options in ({}, {"method": "nearest"}, {"saliency": "wanda"}, {"saliency": "block"}):
        result = quantize_(copy.deepcopy(model), W4, calibration=[x], blocks=None, **options)
        assert result.values["0"].dequantize().isfinite().all()


# --- packing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("symmetric", [True, False])
def test_packed_layers_hold_the_same_weights_bit_for_bit(symmetric: bool):
    model = stack()
    result = quantize_(model, W4, calibration=batches(), symmetric=symmetric, tune_steps=4)
    expected = model(batches()[0])
    assert pack_(model, result.values) == list(result.values)
    for name, value in result.values.items():
        layer = model.get_submodule(name)
        assert isinstance(layer, GQSLinear)
        assert torch.equal(packed(value).to_dense(), value.dequantize())
        assert layer.scale.requires_grad
    torch.testing.assert_close(model(batches()[0]), expected)
    with pytest.raises(ValueError, match="pack_: values must name Linear"):
        pack_(model, result.values)  # they are packed already


def test_convolutions_are_not_packed():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(16, 4, 1), nn.Flatten(), nn.Linear(16, 3))
    x = [torch.randn(5, 16, 2, 2)]
    result = quantize_(model, W4, calibration=x)
    assert pack_(model, result.values) == ["2"]
    assert isinstance(model[0], nn.Conv2d)
