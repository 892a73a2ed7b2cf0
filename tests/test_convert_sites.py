# SPDX-License-Identifier: Apache-2.0
"""`convert_`: which layers of which models are replaced, and that the model computes the same."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import sparsekern as sk
import torch
from sparsekern.convert import ConvertResult, convert_
from sparsekern.nn import BitmapLinear, CSRConv2d, CSRLinear
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils import prune as torch_prune


def sparse_(module: nn.Module, sparsity: float = 0.8) -> nn.Module:
    """Zeros in every weight matrix, from a fixed seed."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for child in module.modules():
            weight = child._parameters.get("weight")
            if weight is not None and weight.dim() > 1:
                drop = torch.rand(weight.shape, generator=generator) < sparsity
                weight.masked_fill_(drop, 0.0)
    return module.eval()


def linear(rows: int = 32, cols: int = 24, **options: Any) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(cols, rows, **options)


def pack(model: nn.Module, **options: Any) -> ConvertResult:
    return convert_(model, policy="always", **options)


def check_same(model: nn.Module, *x: Any, change: Callable[[nn.Module], Any]) -> None:
    """The model gives the same, up to rounding, after `change`."""
    with torch.no_grad():
        before = model(*x)
        change(model)
        after = model(*x)
    assert after.dtype == before.dtype
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)


def test_linear_layers_are_replaced_in_place():
    model = sparse_(nn.Sequential(linear(), nn.ReLU(), linear(8, 32, bias=False)))
    check_same(model, torch.randn(5, 24), change=pack)
    assert isinstance(model[0], CSRLinear)
    assert isinstance(model[2], CSRLinear)
    assert model[2].bias is None


def test_convolutions_1x1_are_replaced_and_others_stay_with_the_reason():
    model = sparse_(
        nn.Sequential(
            nn.Conv2d(4, 16, 3, padding=1),
            nn.Conv2d(16, 24, 1),
            nn.Conv2d(24, 16, 1, stride=2, bias=False),
            nn.Conv2d(16, 16, 1, groups=2),
            nn.Conv2d(16, 16, 1, padding=1),
            nn.Conv2d(16, 16, 1, stride=3),
        )
    )
    results = []
    check_same(model, torch.randn(2, 4, 9, 9), change=lambda m: results.append(pack(m)))
    reasons = {layer.name: layer.reason for layer in results[0].layers}
    assert [type(m) is CSRConv2d for m in model] == [False, True, True, False, False, False]
    assert model[2].stride == 2
    assert reasons["0"] == "kernel 3x3"
    assert reasons["3"] == "groups=2"
    assert reasons["4"] == "padding (1, 1)"
    assert reasons["5"] == "stride 3x3"


def test_subclasses_stay():
    class Own(nn.Linear):
        pass

    model = nn.Sequential(sparse_(Own(24, 32)), nn.LazyLinear(4))
    result = pack(model)
    assert [layer.reason for layer in result.layers] == [
        "Own is a class of its own",
        "LazyLinear is a class of its own",
    ]
    assert result.layers[1].shape == (0,)


def test_attention_keeps_the_weight_that_it_reads():
    model = sparse_(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0))
    results = []
    check_same(model, torch.randn(2, 5, 16), change=lambda m: results.append(pack(m)))
    assert set(results[0].packed) == {"linear1", "linear2"}
    assert "MultiheadAttention" in results[0]["self_attn.out_proj"].reason


def test_weight_tied_to_an_embedding_stays():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(40, 24)
            self.body = linear(24, 24)
            self.head = nn.Linear(24, 40, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, ids):
            return self.head(self.body(self.embedding(ids)))

    model = sparse_(Tied())
    results = []
    ids = torch.randint(0, 40, (3, 4))
    check_same(model, ids, change=lambda m: results.append(pack(m)))
    assert results[0]["head"].reason == "tied to embedding.weight"
    assert model.head.weight is model.embedding.weight
    assert isinstance(model.body, CSRLinear)


def test_two_layers_with_one_weight_share_the_packed_one():
    model = nn.Sequential(linear(24, 24), nn.Tanh(), linear(24, 24))
    model[2].weight = model[0].weight
    sparse_(model)
    results = []
    check_same(model, torch.randn(5, 24), change=lambda m: results.append(pack(m)))
    assert model[2].values is model[0].values
    assert model[2].structure.data_ptr() == model[0].structure.data_ptr()
    assert model[2].bias is not model[0].bias
    assert [layer.name for layer in results[0].layers] == ["0"]


def test_a_weight_shared_with_a_layer_that_must_stay_stays():
    class Own(nn.Linear):
        pass

    model = nn.Sequential(linear(24, 24), Own(24, 24))
    model[1].weight = model[0].weight
    result = pack(sparse_(model))
    assert result["0"].reason == "1 shares the weight: Own is a class of its own"
    assert type(model[0]) is nn.Linear


def test_a_shared_module_is_replaced_once_everywhere():
    shared = linear(24, 24)
    model = nn.ModuleDict({"a": nn.Sequential(shared, nn.ReLU()), "b": shared})
    result = pack(sparse_(model))
    assert isinstance(model["b"], CSRLinear)
    assert model["a"][0] is model["b"]
    assert len(result.layers) == 1


def test_masks_of_torch_prune_are_packed():
    model = nn.Sequential(linear(), nn.ReLU(), linear(8, 32))
    torch_prune.l1_unstructured(model[0], "weight", amount=0.75)
    torch_prune.random_unstructured(model[0], "bias", amount=0.5)
    torch_prune.l1_unstructured(model[2], "weight", amount=0.1)
    results = []
    check_same(model, torch.randn(5, 24), change=lambda m: results.append(pack(m)))
    assert results[0]["0"].sparsity == pytest.approx(0.75)
    assert isinstance(model[0], CSRLinear)
    assert float(model[0].weight.density) == pytest.approx(0.25)
    # A layer with few zeros is not touched: it can still be pruned further.
    assert torch_prune.is_pruned(model[2])


def test_parametrized_weights_are_packed():
    class Mask(nn.Module):
        def forward(self, weight):
            return weight * (weight > 0.1)

    model = nn.Sequential(linear(), nn.ReLU())
    parametrize.register_parametrization(model[0], "weight", Mask())
    check_same(model, torch.randn(5, 24), change=pack)
    assert isinstance(model[0], CSRLinear | BitmapLinear)  # a quarter is kept: either may win


def test_tied_originals_of_masked_weights_stay():
    model = nn.Sequential(linear(24, 24), linear(24, 24))
    model[1].weight = model[0].weight
    for layer in model:
        torch_prune.random_unstructured(layer, "weight", amount=0.8)
    assert pack(model).packed == ()


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_torch_sparse_weights_are_packed():
    model = sparse_(nn.Sequential(linear()))
    model[0].weight = nn.Parameter(model[0].weight.detach().to_sparse_csr())
    check_same(model, torch.randn(5, 24), change=pack)
    assert isinstance(model[0], CSRLinear)


def test_weights_with_nothing_to_multiply_stay():
    model = nn.Sequential(nn.Linear(4, 4).double(), nn.Linear(4, 4))
    model[1].weight = nn.Parameter(torch.zeros(0, 4))
    result = pack(model)
    assert [layer.reason for layer in result.layers] == [
        "weights are float64",
        "the weight is empty",
    ]


def test_old_weight_norm_stays():
    model = nn.Sequential(linear())
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(model[0])
    assert "weight_norm" not in pack(model)["0"].format
    assert type(model[0]) is nn.Linear


def test_hooks_and_replaced_forwards_stay():
    model = sparse_(nn.Sequential(linear(), linear(8, 32)))
    model[0].register_forward_hook(lambda *_: None)
    model[1].forward = lambda x: x
    reasons = [layer.reason for layer in pack(model).layers]
    assert reasons == ["it has forward or backward hooks", "its forward was replaced"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_layers_keep_dtype_mode_and_gradients(dtype: torch.dtype):
    model = sparse_(nn.Sequential(linear(), linear(8, 32))).to(dtype).train()
    model[1].weight.requires_grad_(False)
    pack(model)
    assert model[0].values.dtype == dtype
    assert model[0].training
    assert [layer.values.requires_grad for layer in model] == [True, False]


def test_copies_and_pickles_of_a_converted_model_work():
    model = sparse_(nn.Sequential(linear(), nn.Linear(32, 8)))
    pack(model, exclude="1")
    x = torch.randn(5, 24)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(other(x), model(x), rtol=0, atol=0)
        assert sk.report(other)["1"].reason == "excluded"


def test_converting_twice_changes_nothing_more():
    model = sparse_(nn.Sequential(linear()))
    pack(model)
    layer = model[0]
    assert pack(model).layers == ()
    assert model[0] is layer


def test_the_model_inside_a_wrapper_is_converted():
    model = nn.DataParallel(sparse_(nn.Sequential(linear())))
    pack(model)
    assert isinstance(model.module[0], CSRLinear)


def test_include_and_exclude():
    model = sparse_(nn.ModuleDict({"a": linear(), "b": linear(), "c": linear()}))
    result = pack(model, include=["a", "b"], exclude="b")
    assert result.packed == ("a",)
    assert (result["b"].reason, result["c"].reason) == ("excluded", "not included")


def test_activation_is_fused_where_it_follows_in_a_sequential():
    activations = [nn.ReLU(), nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.Hardswish(), nn.ReLU6()]
    layers: list[nn.Module] = []
    for activation in activations:
        layers += [linear(24, 24), activation]
    model = sparse_(nn.Sequential(*layers, linear(24, 24), nn.GELU(approximate="none")))
    results = []
    x = 3 * torch.randn(5, 24)
    check_same(model, x, change=lambda m: results.append(pack(m, fuse=True)))
    names = [layer.activation for layer in model if isinstance(layer, CSRLinear)]
    assert names == ["relu", "gelu", "gelu_tanh", "silu", "hardswish", "relu6", "gelu"]
    assert all(isinstance(model[i], nn.Identity) for i in range(1, len(model), 2))
    assert len(results[0].fused) == 7


class FeedForward(nn.Module):
    """As transformers write it: what follows what is only in the forward."""

    def __init__(self, activation: nn.Module, skip: bool = False):
        super().__init__()
        self.act = activation
        self.up, self.down = nn.Linear(24, 48), nn.Linear(48, 24)
        self.skip = skip

    def forward(self, x):
        up = self.up(x)
        return self.down(self.act(up) + (up if self.skip else 0))


def test_activation_is_fused_where_a_forward_shows_that_it_follows():
    from transformers.activations import ACT2FN  # slow to import

    activations = [ACT2FN["gelu"], ACT2FN["gelu_new"], ACT2FN["silu"], nn.ReLU()]
    model = sparse_(nn.ModuleList(FeedForward(a) for a in activations))
    x = 3 * torch.randn(5, 24)
    for part in model:
        check_same(part, x, change=lambda m: pack(m, fuse=True))
        assert type(part.act) is nn.Identity
    assert [part.up.activation for part in model] == ["gelu", "gelu_tanh", "silu", "relu"]
    assert [part.down.activation for part in model] == ["none"] * 4


def test_activation_is_not_fused_where_a_forward_needs_more_or_cannot_be_traced():
    class Decides(FeedForward):
        def forward(self, x):
            return super().forward(x if x.sum() > 0 else -x)

    for part in (FeedForward(nn.ReLU(), skip=True), Decides(nn.ReLU())):
        sparse_(part)
        check_same(part, torch.randn(5, 24), change=lambda m: pack(m, fuse=True))
        assert type(part.act) is nn.ReLU


def test_activation_is_not_fused_where_that_could_change_the_result():
    shared = linear(24, 24)

    class Skip(nn.Sequential):
        def forward(self, x):
            return self[1](self[0](x)) + self[0](x)

    hooked = nn.ReLU()
    hooked.register_forward_hook(lambda *_: None)
    model = sparse_(
        nn.Sequential(
            nn.Sequential(shared, nn.ReLU()),
            nn.Sequential(shared, nn.ELU()),
            Skip(linear(24, 24), nn.ReLU()),
            nn.Sequential(linear(24, 24), hooked),
            nn.Sequential(linear(24, 24), nn.Softplus()),
        )
    )
    results = []
    x = torch.randn(5, 24)
    check_same(model, x, change=lambda m: results.append(pack(m, fuse=True)))
    assert results[0].fused == ()
    assert len(results[0].packed) == 4


# --- bad input ------------------------------------------------------------------------------------


def test_meta_device_is_named():
    model = nn.Sequential(linear(), nn.Linear(32, 8, device="meta"))
    with pytest.raises(
        ValueError, match=r"convert_: layer '1' must hold data, got a weight on the"
    ):
        pack(model)
    assert type(model[0]) is nn.Linear


@pytest.mark.parametrize("model", [nn.Linear(4, 4), nn.Conv2d(4, 4, 1)])
def test_a_bare_layer_is_refused(model: nn.Module):
    with pytest.raises(
        ValueError, match=r"convert_: model must contain the layers to replace, got"
    ):
        pack(model)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"policy": "best"}, ValueError, "policy must be one of"),
        ({"policy": "fastest"}, ValueError, "example_inputs must be given for policy 'fastest'"),
        ({"min_sparsity": 1.5}, ValueError, r"min_sparsity must be in \[0, 1\], got 1.5"),
        ({"min_sparsity": "0.5"}, TypeError, "min_sparsity must be a number, got str"),
        ({"block_rows": 3}, ValueError, "block_rows must be 1, 2 or 4, got 3"),
        ({"block_rows": 2.0}, TypeError, "block_rows must be an integer, got float"),
        ({"allow_dtypes": torch.int8}, TypeError, "allow_dtypes must be a collection"),
        ({"allow_dtypes": [torch.int32]}, TypeError, "allow_dtypes must be among"),
        ({"include": [3]}, TypeError, "include must be globs, got int"),
        ({"exclude": "nothing.*"}, ValueError, r"exclude glob 'nothing.\*' must match a Linear or"),
        ({"example_inputs": []}, ValueError, "example_inputs must hold at least one input"),
        ({"example_inputs": ["text"]}, TypeError, "example_inputs must be tensors for a Seq"),
        ({"example_inputs": "text"}, TypeError, "example_inputs must be tensors for a Seq"),
    ],
)
def test_bad_arguments(options: dict[str, Any], error: type[Exception], text: str):
    model = sparse_(nn.Sequential(linear()))
    with pytest.raises(error, match=f"^convert_: {text}"):
        convert_(model, **{"policy": "always", **options})
    assert type(model[0]) is nn.Linear


def test_not_a_module():
    with pytest.raises(TypeError, match=r"convert_: model must be an nn\.Module, got int"):
        convert_(3)


def test_a_model_that_reads_the_weight_itself_is_left_as_it_was():
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = linear()

        def forward(self, x):
            return x @ self.layer.weight.t()

    model = sparse_(Reads())
    with pytest.raises(RuntimeError, match="convert_: model must run with csr float32 layers, got"):
        convert_(model, torch.randn(2, 24), seconds=0)
    assert type(model.layer) is nn.Linear
    with torch.no_grad():
        assert model(torch.randn(2, 24)).shape == (2, 32)


def test_an_error_of_the_model_itself_is_passed_on():
    model = sparse_(nn.Sequential(linear()))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        convert_(model, torch.randn(2, 23), seconds=0)
