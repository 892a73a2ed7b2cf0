# SPDX-License-Identifier: Apache-2.0
"""prune_ on whole models: selection, ties, feeding, passes, errors; converting foreign masks."""

from __future__ import annotations

import copy

import pytest
import torch
from sparsekern.patterns import Block, Unstructured
from sparsekern.prune import from_pruned, make_permanent_, prune_
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils import prune as torch_prune


class Branches(nn.Module):
    """Query, key and value share an input; out is called before them in registration order."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(8, 6)
        self.query = nn.Linear(10, 8)
        self.key = nn.Linear(10, 8)
        self.value = nn.Linear(10, 8)

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        return self.out(torch.tanh(self.query(x) + self.key(x) * self.value(input=x)) * scale)


def branches() -> Branches:
    torch.manual_seed(0)
    return Branches()


def batches(count: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(16, 10, generator=generator) for _ in range(count)]


def test_first_match_decides_and_the_rest_is_untouched():
    model = nn.ModuleDict(
        {
            "a": nn.Linear(8, 8),
            "b": nn.Linear(8, 8),
            "skip": nn.Linear(8, 8),
            "grouped": nn.Conv2d(4, 4, 1, groups=2),
            "conv": nn.Conv2d(4, 8, 3),
            "norm": nn.LayerNorm(8),
        }
    )
    before = copy.deepcopy(model.state_dict())
    patterns = {"skip": None, "a": Block(4, 0.25), "[!c]*": Unstructured(0.5)}
    result = prune_(model, patterns)
    assert [layer.name for layer in result.layers] == ["a", "b"]
    assert [layer.zeros for layer in result.layers] == [16, 32]
    for key, value in model.state_dict().items():
        if key not in ("a.weight", "b.weight"):
            assert torch.equal(value, before[key]), key
    every = prune_(model, Unstructured(0.75))
    assert [layer.name for layer in every.layers] == ["a", "b", "skip", "conv"]
    assert model["conv"].weight.shape == (8, 4, 3, 3)
    assert every["conv"].zeros == 216


def test_parameters_and_modules_stay_the_same_objects():
    model = branches()
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters())
    training = model.training
    prune_(model, Unstructured(0.5), score="sparsegpt", calibration=batches())
    assert dict(model.named_modules()) == modules
    assert model.training == training
    assert all(p is parameters[n] and p.requires_grad for n, p in model.named_parameters())
    assert not any(m._forward_pre_hooks for m in model.modules())


class Ramp(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.logspace(0, 3, x.shape[-1])


def test_tied_weights_and_shared_modules_are_pruned_once():
    torch.manual_seed(0)
    shared = nn.Linear(10, 10)
    twin = nn.Linear(10, 10)
    twin.weight = shared.weight
    # the third use, through the twin, sees large inputs in the last columns
    model = nn.Sequential(shared, nn.Tanh(), shared, nn.Softmax(dim=-1), Ramp(), twin)
    expected = shared.weight.detach().clone()
    x = batches(1)[0]
    with torch.no_grad():
        seen = [x, torch.tanh(shared(x))]
        seen.append(model[4](model[3](shared(seen[1]))))
        norms = torch.cat(seen).norm(dim=0)  # inputs of all three uses
        without = torch.cat(seen[:2]).norm(dim=0)
        keep = Unstructured(0.5).mask(expected.abs() * norms, "row")
        assert not torch.equal(keep, Unstructured(0.5).mask(expected.abs() * without, "row"))
    result = prune_(model, Unstructured(0.5), score="wanda", calibration=[x])
    assert [layer.name for layer in result.layers] == ["0"]
    assert torch.equal(shared.weight, expected * keep)
    assert twin.weight is shared.weight


def test_tied_weight_with_two_entries_is_an_error():
    model = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})
    model["b"].weight = model["a"].weight
    for first in (None, Unstructured(0.25)):
        with pytest.raises(ValueError, match="prune_") as caught:
            prune_(model, {"a": first, "*": Unstructured(0.5)})
        assert str(caught.value) == (
            "prune_: patterns must give a tied weight one entry, got 'a' for 'a' and '*' for 'b'"
        )


def test_batches_by_position_keyword_and_forward():
    x = batches(1)[0]
    masks = []
    for batch, forward in [
        (x, None),
        ((x, 2.0), None),
        ([x], None),
        ({"x": x, "scale": 1.0}, None),
        ("name", lambda model, batch: model(x)),
    ]:
        model = branches()
        result = prune_(
            model, Unstructured(0.5), score="wanda", calibration=[batch], forward=forward
        )
        masks.append(result.masks)
    for other in (masks[2], masks[3], masks[4]):
        assert all(torch.equal(masks[0][n], other[n]) for n in masks[0])


def test_sentence_transformer_gets_one_dict_and_may_write_into_it():
    base = type("SentenceTransformer", (nn.Module,), {"__module__": "sentence_transformers.x"})

    class Model(base):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(10, 4)

        def forward(self, features):
            features["x"] = self.layer(features["x"])
            return features

    batch = {"x": batches(1)[0]}
    prune_(Model(), Unstructured(0.5), score="wanda", calibration=[batch])
    assert batch["x"].shape == (16, 10)


@pytest.mark.parametrize("score", ["wanda", "sparsegpt"])
def test_sequential_sees_pruned_inputs(score):
    """Sequential equals pruning q, k, v first, then `out` on the result, though `out` is
    registered first."""
    model, by_hand, dense = branches(), branches(), branches()
    options = {"score": score, "calibration": batches()}
    prune_(model, Unstructured(0.75), sequential=True, **options)
    for name in ("query", "key", "value"):
        prune_(by_hand, {name: Unstructured(0.75)}, **options)
    prune_(by_hand, {"out": Unstructured(0.75)}, **options)
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), by_hand.parameters(), strict=True)
    )
    prune_(dense, Unstructured(0.75), **options)
    assert torch.equal(dense.query.weight, model.query.weight)
    assert not torch.equal(dense.out.weight, model.out.weight)


def test_sequential_passes_share_inputs():
    calls = []

    def forward(model, batch):
        calls.append(1)
        return model(batch)

    options = {"score": "sparsegpt", "calibration": batches(2), "forward": forward}
    prune_(branches(), Unstructured(0.5), **options)
    assert len(calls) == 2  # one pass
    calls.clear()
    prune_(branches(), Unstructured(0.5), sequential=True, **options)
    assert len(calls) == 1 + 2 * 2  # the order, then q, k and v together, then out


def test_hessian_memory_is_bounded_and_named():
    model, whole = branches(), branches()
    calls = []

    def forward(model, batch):
        calls.append(1)
        return model(batch)

    # q, k, v: 400 bytes each; out: 256
    options = {"score": "sparsegpt", "calibration": iter(batches(1)), "forward": forward}
    prune_(model, Unstructured(0.5), hessian_bytes=800, **options)
    assert len(calls) == 1 + 2  # the order, then (q, k), (v, out)
    prune_(whole, Unstructured(0.5), score="sparsegpt", calibration=batches(1))
    assert torch.equal(model.value.weight, whole.value.weight)
    with pytest.raises(ValueError, match="prune_") as caught:
        prune_(model, Unstructured(0.5), score="sparsegpt", calibration=[], hessian_bytes=300)
    assert str(caught.value) == "prune_: hessian_bytes must be at least 400 for 'query', got 300"


def test_progress_counts_layers(capsys):
    seen = []
    prune_(branches(), Unstructured(0.5), progress=lambda *event: seen.append(event))
    assert seen == [(1, 4, "out"), (2, 4, "query"), (3, 4, "key"), (4, 4, "value")]
    prune_(branches(), Unstructured(0.5), progress=True)
    assert "4/4 layers, 0 s left" in capsys.readouterr().err


def test_result_table():
    model = nn.Sequential(nn.Linear(4, 5), nn.Conv2d(2, 6, (3, 1)))
    result = prune_(model, {"0": Unstructured(0.5), "1": Block(2, 0.25)})
    assert str(result).splitlines() == [
        "layer  shape       pattern       requested  achieved",
        "-----  ----------  ------------  ---------  --------",
        "0      5x4         Unstructured     50.00%    50.00%",
        "1      6x2x3x1     Block(2)         25.00%    22.22%",
        "total  56 weights                             32.14%",
    ]
    assert str(from_pruned(model)).splitlines()[2].split() == ["0", "5x4", "found", "-", "50.00%"]
    with pytest.raises(KeyError):
        result["2"]


def test_empty_layers_and_extreme_sparsities():
    model = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 2), nn.Linear(3, 1))
    model[0].weight = nn.Parameter(torch.zeros(4, 0))
    model[1].weight = nn.Parameter(torch.zeros(0, 4))
    assert prune_(model, Unstructured(0.0)).sparsity == 0.0
    result = prune_(model, Unstructured(1.0), allocation="erk")
    assert result.sparsity == 1.0
    assert result["0"].achieved == 0.0


def test_unused_and_nonfinite_inputs_are_named():
    model = branches()
    with pytest.raises(ValueError, match="prune_") as caught:
        prune_(
            model,
            Unstructured(0.5),
            score="wanda",
            calibration=batches(),
            forward=lambda m, x: m.query(x),
        )
    assert str(caught.value) == (
        "prune_: calibration must reach every layer to prune, got no call of 'out'; "
        "map its name to None to leave it alone"
    )
    bad = batches(1)
    bad[0][3, 3] = float("nan")
    with pytest.raises(ValueError, match="must give finite inputs, got NaN or Inf at the input of"):
        prune_(model, Unstructured(0.5), score="sparsegpt", calibration=bad)
    assert from_pruned(model).sparsity == 0.0
    assert not model.query._forward_pre_hooks


def test_singular_hessian_without_damping_is_named():
    x = torch.ones(4, 10)
    with pytest.raises(ValueError, match="prune_") as caught:
        prune_(branches(), {"query": Unstructured(0.5)}, score="sparsegpt", damping=0.0,
               calibration=[x])  # fmt: skip
    assert str(caught.value) == (
        "prune_: damping must make the Hessian of 'query' positive definite, got 0.0"
    )


class Doubled(nn.Module):
    def forward(self, w: torch.Tensor) -> torch.Tensor:
        return 2 * w


def _reparametrized() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4))
    torch_prune.l1_unstructured(model[0], "weight", 0.5)
    return model


@pytest.mark.parametrize(
    ("model", "patterns", "options", "error", "text"),
    [
        (None, {"nope.*": Unstructured(0.5)}, {}, ValueError,
         "prune_: patterns key 'nope.*' must match a Linear or Conv2d (groups=1) layer, "
         "got no match"),
        (nn.LayerNorm(3), Unstructured(0.5), {}, ValueError,
         "prune_: model must match a Linear or Conv2d (groups=1) layer, got no match"),
        (None, {}, {}, ValueError, "prune_: patterns must have at least one entry, got none"),
        (None, 0.5, {}, TypeError,
         "prune_: patterns must be a Pattern or a mapping from glob to Pattern, got float"),
        (None, {"*": 0.5}, {}, TypeError, "prune_: patterns['*'] must be a Pattern or None, "
         "got float"),
        (None, {1: None}, {}, TypeError, "prune_: patterns keys must be strings, got int"),
        ("model", Unstructured(0.5), {}, TypeError, "prune_: model must be an nn.Module, got str"),
        (None, Unstructured(0.5), {"score": "l1"}, ValueError,
         "prune_: score must be one of ('magnitude', 'wanda', 'ria', 'sparsegpt', 'alps'), got "
         "'l1'"),
        (None, Unstructured(0.5), {"scope": "x"}, ValueError,
         "prune_: scope must be one of ('layer', 'row', 'global'), got 'x'"),
        (None, Unstructured(0.5), {"allocation": "x"}, ValueError,
         "prune_: allocation must be one of ('uniform', 'erk', 'sensitivity'), got 'x'"),
        (None, Unstructured(0.5), {"scope": "global", "allocation": "erk"}, ValueError,
         "prune_: allocation must be 'uniform' with scope='global', got 'erk'"),
        (None, Unstructured(0.5), {"score": "wanda"}, ValueError,
         "prune_: calibration must be given for score='wanda', got None"),
        (None, Unstructured(0.5), {"allocation": "sensitivity"}, ValueError,
         "prune_: calibration must be given for allocation='sensitivity', got None"),
        (None, Unstructured(0.5), {"score": "wanda", "calibration": []}, ValueError,
         "prune_: calibration must yield at least one batch, got none"),
        (None, Unstructured(0.5), {"score": "wanda", "calibration": torch.ones(2, 10)}, TypeError,
         "prune_: calibration must be an iterable of batches, got one Tensor; put it in a list"),
        (None, Unstructured(0.5), {"blocksize": 0}, ValueError,
         "prune_: blocksize must be a positive integer, got 0"),
        (None, Unstructured(0.5), {"damping": -1.0}, ValueError,
         "prune_: damping must be finite and >= 0, got -1.0"),
        (nn.Sequential(nn.Linear(2, 2, device="meta")), Unstructured(0.5), {}, ValueError,
         "prune_: layer '0' must hold data, got a weight on the meta device; "
         "load its checkpoint first"),
        (nn.Sequential(nn.LazyLinear(2)), Unstructured(0.5), {}, ValueError,
         "prune_: layer '0' must be initialized, got a lazy weight; run the model once"),
        (_reparametrized(), Unstructured(0.5), {}, ValueError,
         "prune_: layer '0' must hold its weight as a plain Parameter, got a reparametrized "
         "weight; call make_permanent_(model) first"),
    ],
)  # fmt: skip
def test_error_texts(model, patterns, options, error, text):
    with pytest.raises(error) as caught:
        prune_(branches() if model is None else model, patterns, **options)
    assert str(caught.value) == text


def test_integer_weight_is_a_type_error():
    model = nn.Linear(2, 2)
    model.weight = nn.Parameter(torch.ones(2, 2, dtype=torch.int8), requires_grad=False)
    with pytest.raises(TypeError, match=r"must have a floating-point weight, got torch\.int8$"):
        prune_(model, Unstructured(0.5))


def test_make_permanent_keeps_effective_values():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.Conv2d(2, 4, 3), nn.Linear(6, 6), nn.Linear(6, 6))
    torch_prune.l1_unstructured(model[0], "weight", 0.5)
    torch_prune.random_unstructured(model[0], "bias", 0.5)
    torch_prune.random_unstructured(model[1], "weight", 0.25)
    torch_prune.l1_unstructured(model[1], "weight", 0.5)  # two methods: a container hook
    parametrize.register_parametrization(model[2], "weight", Doubled())
    with torch.no_grad():
        # `weight` is stale until the next forward call: one kept entry more is now zero
        model[0].weight_orig.mul_(3.0)
        model[0].weight_orig[tuple(model[0].weight_mask.nonzero()[0])] = 0.0
    expected = model[0].weight_orig.detach() * model[0].weight_mask
    doubled, plain = model[2].weight.detach().clone(), model[3].weight
    found = from_pruned(model)
    assert found["0"].zeros == 19
    assert found["0"].requested is None
    names = make_permanent_(model)
    assert sorted(names) == ["0.bias", "0.weight", "1.weight", "2.weight"]
    assert torch.equal(model[0].weight, expected)
    assert torch.equal(model[2].weight, doubled)
    assert model[3].weight is plain
    assert sorted(model.state_dict()) == [f"{i}.{n}" for i in range(4) for n in ("bias", "weight")]
    assert str(from_pruned(model)) == str(found)
    assert all(isinstance(p, nn.Parameter) for p in (model[0].weight, model[2].weight))
    assert make_permanent_(model) == []
    prune_(model, Unstructured(0.75))
    with pytest.raises(TypeError, match=r"make_permanent_: model must be an nn\.Module, got int"):
        make_permanent_(1)


def test_from_pruned_counts_tied_weights_once_and_rejects_meta():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    with torch.no_grad():
        model[0].weight[0] = 0.0
    found = from_pruned(model)
    assert [layer.name for layer in found.layers] == ["0"]
    assert found.sparsity == 0.25
    assert torch.equal(found.masks["0"], model[0].weight != 0)
    with pytest.raises(ValueError, match="layer '' must hold data, got a weight on the meta"):
        from_pruned(nn.Linear(2, 2, device="meta"))
