# SPDX-License-Identifier: Apache-2.0
"""Whole models in training with N:M weights: against plain torch, and under what torch offers."""

from __future__ import annotations

import copy
import io
import subprocess
import sys
import textwrap

import pytest
import sparsekern as sk
import torch
from sparsekern import training as tr
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

RECIPES = {
    "ste": tr.Recipe(kernel="always"),
    "sr-ste": tr.Recipe(gradient=tr.SRSTE(0.01), kernel="always"),
    "masked": tr.Recipe(gradient=tr.Masked(), fixed_after=0, kernel="always"),
    "bdwp": tr.Recipe(gradient=tr.SRSTE(), input_gradient="own", kernel="always"),
    "fst": tr.Recipe(
        gradient=tr.SRSTE(), input_gradient="transposable", refresh=3, kernel="always"
    ),
    "s-ste": tr.Recipe(forward=tr.SoftThreshold(), kernel="always"),
    "mdgf": tr.Recipe(forward=tr.Decaying(0.5, end=3), gradient=tr.ChainRule(), kernel="always"),
    "frames": tr.Recipe(
        frames=tr.Frames(((0, None), (1, sk.NM(3, 4)), (3, sk.NM(2, 4)))), kernel="always"
    ),
}


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(20, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 3)
    )


def batches(count: int = 6) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(40, 20, generator=generator) for _ in range(count)]


def prepared(recipe: tr.Recipe) -> tuple[nn.Sequential, torch.optim.Optimizer]:
    net = model()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    patterns = {"4": None, "*": sk.NM(2, 4)}
    tr.prepare_(net, patterns, recipe).attach(optimizer)
    return net, optimizer


def train(net, optimizer, data, run=None) -> list[float]:
    losses = []
    for x in data:
        loss = (run or net)(x).pow(2).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


class Reference(nn.Module):
    """A linear layer in plain torch that keeps 2 of 4 anew in each step: SR-STE or STE."""

    def __init__(self, dense: nn.Linear, decay: float) -> None:
        super().__init__()
        self.weight, self.bias, self.decay = dense.weight, dense.bias, decay

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight
        groups = w.detach().abs().reshape(-1, 4)
        best = groups.topk(2, dim=1).indices
        k = torch.zeros_like(groups).scatter_(1, best, 1.0).reshape(w.shape)
        loss_term = (0.5 * self.decay * (1 - k) * w * w).sum()
        # the second part is 0 forward and gives the decay backward, whatever the loss
        passed = w + (w * k - w).detach()
        y = functional.linear(x, passed, self.bias)
        return _WithGradientOf.apply(y, loss_term)


class _WithGradientOf(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y, term):
        return y.view_as(y)

    @staticmethod
    def backward(ctx, grad):
        return grad, grad.new_ones(())


@pytest.mark.parametrize("decay", [0.0, 0.05])
def test_training_equals_plain_torch(decay):
    net, optimizer = prepared(tr.Recipe(gradient=tr.SRSTE(decay), kernel="always"))
    plain = model()
    plain[0], plain[2] = Reference(plain[0], decay), Reference(plain[2], decay)
    reference = torch.optim.Adam(plain.parameters(), lr=0.01)
    got, want = train(net, optimizer, batches()), train(plain, reference, batches())
    assert got == pytest.approx(want, rel=1e-5)
    for a, b in zip(net.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("name", RECIPES)
def test_kernels_change_rounding_only(name):
    recipe = RECIPES[name]
    with_kernels, without = prepared(recipe), prepared(_dense(recipe))
    assert train(*with_kernels, batches()) == pytest.approx(train(*without, batches()), rel=1e-4)
    for a, b in zip(with_kernels[0].parameters(), without[0].parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-4)


def _dense(recipe: tr.Recipe) -> tr.Recipe:
    fields = {name: getattr(recipe, name) for name in recipe.__dataclass_fields__}
    return tr.Recipe(**{**fields, "kernel": "never"})


@pytest.mark.parametrize("name", RECIPES)
def test_finish_pack_and_convert(name):
    net, optimizer = prepared(RECIPES[name])
    train(net, optimizer, batches())
    net.eval()
    x = batches(1)[0]
    before, packed = net(x), net[0].to_packed()
    assert torch.allclose(packed(x), net[0](x), atol=1e-5)
    weight = net[0].weight
    assert tr.finish_(net) is net
    assert type(net[0]) is nn.Linear
    assert net[0].weight is weight
    assert set(net.state_dict()) == set(model().state_dict())
    assert torch.allclose(net(x), before, atol=1e-5)
    assert ((net[0].weight != 0).reshape(24, 5, 4).sum(2) <= 2).all()
    sk.convert_(net, policy="always")
    assert isinstance(net[0], sk.nn.NMLinear | sk.nn.CSRLinear)
    assert torch.allclose(net(x), before, atol=1e-5)


@pytest.mark.parametrize("name", RECIPES)
def test_resume_continues_identically(name):
    data = batches(8)
    net, optimizer = prepared(RECIPES[name])
    train(net, optimizer, data[:3])
    file = io.BytesIO()
    torch.save([net.state_dict(), optimizer.state_dict()], file)
    rest = train(net, optimizer, data[3:])
    file.seek(0)
    states = torch.load(file, weights_only=True)
    again, again_optimizer = prepared(RECIPES[name])
    again.load_state_dict(states[0])
    again_optimizer.load_state_dict(states[1])
    assert again[0].step_count == 3
    assert train(again, again_optimizer, data[3:]) == rest
    for a, b in zip(net.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b)


# torch's own, where it traces an autograd.Function
_TRACED = "ignore:.*should not be instantiated:DeprecationWarning"


@pytest.mark.filterwarnings(_TRACED)
@pytest.mark.parametrize("name", RECIPES)
def test_compiled_without_graph_breaks(name):
    torch._dynamo.reset()
    net, optimizer = prepared(RECIPES[name])
    eager = prepared(RECIPES[name])
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    data = batches(5)
    assert train(net, optimizer, data, compiled) == pytest.approx(train(*eager, data), rel=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own
def test_compiled_by_inductor():
    torch._dynamo.reset()
    recipe = tr.Recipe(input_gradient="own", output_gradient=tr.MVUE(1, 2), kernel="always")
    layer = tr.NMTrainingLinear(20, 8, 2, 4, recipe=recipe)
    x, dy = batches(1)[0].requires_grad_(), torch.randn(40, 8)
    (layer(x) * dy).sum().backward()
    eager, x.grad = x.grad, None
    compiled = torch.compile(layer, fullgraph=True)
    layer.weight.grad = None
    y = compiled(x)
    (y * dy).sum().backward()
    assert torch.allclose(y, layer(x), atol=1e-5)
    assert torch.allclose(x.grad, eager, atol=1e-5)
    assert layer.weight.grad.isfinite().all()


@pytest.mark.parametrize("name", ["bdwp", "s-ste", "mdgf"])
@pytest.mark.parametrize("kernel", ["always", "never"])
def test_autocast(name, kernel):
    recipe = RECIPES[name] if kernel == "always" else _dense(RECIPES[name])
    net, _ = prepared(recipe)
    plain, _ = prepared(_dense(recipe))
    x = batches(1)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = net(x)
    assert y.dtype == torch.bfloat16
    y.float().pow(2).mean().backward()
    plain(x).pow(2).mean().backward()
    for a, b in zip(net.parameters(), plain.parameters(), strict=True):
        assert a.grad.dtype == torch.float32
        assert functional.cosine_similarity(a.grad.flatten(), b.grad.flatten(), dim=0) > 0.98


def test_bfloat16_master_weights():
    net, optimizer = prepared(RECIPES["s-ste"])
    scale = net[0].scale.clone()
    net.to(torch.bfloat16)
    assert net[0].mask.dtype == torch.bool
    assert net[0].scale.dtype == torch.float32
    assert torch.equal(net[0].scale, scale)
    train(net, optimizer, [x.bfloat16() for x in batches()])
    assert net[0].weight.dtype == torch.bfloat16
    assert net[0].to_packed().values.dtype == torch.bfloat16


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", ["bdwp", "s-ste", "mdgf"])
def test_checkpointing(name, reentrant):
    data = [x.requires_grad_() for x in batches()]
    net, optimizer = prepared(RECIPES[name])
    eager = prepared(RECIPES[name])
    losses = train(net, optimizer, data, lambda x: checkpoint(net, x, use_reentrant=reentrant))
    assert losses == train(*eager, data)


def test_checkpointing_with_random_pruning_draws_in_backward_once():
    grads = []
    for run in (False, True):
        prune = tr.MVUE(generator=torch.Generator().manual_seed(3))
        net = tr.NMTrainingLinear(20, 8, 2, 4, recipe=tr.Recipe(output_gradient=prune))
        net.load_state_dict(grads[0][1] if grads else net.state_dict())
        x = batches(1)[0].requires_grad_()
        y = checkpoint(net, x, use_reentrant=False) if run else net(x)
        y.pow(2).sum().backward()
        grads.append((net.weight.grad, copy.deepcopy(net.state_dict())))
    assert torch.equal(grads[0][0], grads[1][0])


def test_data_parallel_processes_agree(tmp_path):
    program = tmp_path / "ddp.py"
    program.write_text(
        textwrap.dedent(
            """
            import sys, torch, sparsekern as sk
            import torch.distributed as dist
            import torch.multiprocessing as mp
            from sparsekern import training as tr
            from torch.nn.parallel import DistributedDataParallel

            def net():
                torch.manual_seed(0)
                return torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.Linear(16, 4))

            def steps(model, run, parts):
                optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
                recipe = tr.Recipe(gradient=tr.SRSTE(0.1), input_gradient="own", kernel="always")
                tr.prepare_(model, sk.NM(2, 4), recipe).attach(optimizer)
                run = run(model)
                for step in range(4):
                    x = torch.randn(8, 16, generator=torch.Generator().manual_seed(step))
                    optimizer.zero_grad()
                    run(x[parts]).pow(2).mean().backward()
                    optimizer.step()
                return model.state_dict()

            def main(rank, folder):
                torch.set_num_threads(1)
                dist.init_process_group(
                    "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
                )
                half = slice(4 * rank, 4 * rank + 4)
                got = steps(net(), DistributedDataParallel, half)
                want = steps(net(), lambda m: m, slice(0, 8))
                for name, value in got.items():
                    if value.dtype == torch.bool:
                        assert torch.equal(value, want[name]), name
                    else:
                        assert torch.allclose(value, want[name], atol=1e-6), name
                both = [None, None]
                dist.all_gather_object(both, {k: v.clone() for k, v in got.items()})
                assert all(torch.equal(both[0][k], both[1][k]) for k in got)
                dist.destroy_process_group()

            if __name__ == "__main__":
                mp.spawn(main, (sys.argv[1],), nprocs=2)
            """
        )
    )
    result = subprocess.run(
        [sys.executable, str(program), str(tmp_path)], capture_output=True, text=True, timeout=240
    )
    assert result.returncode == 0, result.stderr[-3000:]


def test_accumulation_and_double_use():
    x = batches(1)[0]
    net, _ = prepared(RECIPES["bdwp"])
    layer = net[0]
    (layer(x[:20]).pow(2).sum() + layer(x[20:]).pow(2).sum()).backward()
    together = layer.weight.grad.clone()
    layer.zero_grad()
    layer(x[:20]).pow(2).sum().backward()
    layer(x[20:]).pow(2).sum().backward()
    assert torch.allclose(layer.weight.grad, together, atol=1e-4)
    layer.zero_grad()
    layer(x).pow(2).sum().backward()
    assert torch.allclose(layer.weight.grad, together, atol=1e-4)


def test_what_is_multiplied_is_the_weight_of_the_moment():
    layer = tr.NMTrainingLinear(8, 4, 2, 4, recipe=tr.Recipe(kernel="always"))
    x = torch.randn(20, 8)
    with torch.no_grad():
        layer(x)
        layer.weight.mul_(2.0)
    expected = functional.linear(x, layer.weight * layer.mask, layer.bias)
    assert torch.allclose(layer(x), expected, atol=1e-5)


@pytest.mark.parametrize("kernel", ["always", "never"])
@pytest.mark.parametrize("own", ["same", "own"])
def test_frozen_parts_empty_batches_and_shapes(kernel, own):
    recipe = tr.Recipe(kernel=kernel, input_gradient=own)
    layer = tr.NMTrainingLinear(10, 6, 2, 4, recipe=recipe)
    empty = torch.zeros(0, 10, requires_grad=True)
    y = layer(empty)
    y.sum().backward()
    assert y.shape == (0, 6)
    assert empty.grad.shape == (0, 10)
    assert not layer.weight.grad.any()
    layer.weight.requires_grad_(False)
    layer.zero_grad()
    layer.weight.grad = None
    x = torch.randn(2, 3, 10, requires_grad=True)
    layer(x).sum().backward()
    assert layer.weight.grad is None
    assert x.grad.shape == x.shape
    assert layer(torch.randn(10)).shape == (6,)
    one = tr.NMTrainingLinear(10, 6, 2, 4, recipe=recipe)
    one(torch.randn(3, 10)).sum().backward()  # x needs none
    assert one.weight.grad is not None
    strided = torch.randn(10, 7).t()
    expected = functional.linear(strided, one.weight * one.mask, one.bias)
    assert torch.allclose(one(strided), expected, atol=1e-5)
    (grad,) = torch.autograd.grad(one(x).pow(2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_deepcopy_and_ties():
    net, optimizer = prepared(RECIPES["s-ste"])
    train(net, optimizer, batches())
    twin = copy.deepcopy(net)
    x = batches(1)[0]
    assert torch.equal(twin(x), net(x))
    assert twin[0].step_count == 6
    assert twin[0].mask is not net[0].mask
    tied = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    tied[1].weight = tied[0].weight
    tr.prepare_(tied, sk.NM(2, 4), tr.Recipe(forward=tr.SoftThreshold()))
    y = tied(torch.ones(1, 8))
    tr.finish_(tied)
    assert tied[0].weight is tied[1].weight
    assert torch.allclose(tied(torch.ones(1, 8)), y, atol=1e-6)  # shrunk once


@pytest.mark.parametrize("own", ["same", "own"])
def test_convolution(own):
    torch.manual_seed(0)
    dense = nn.Conv2d(8, 6, 3, stride=2, padding=1)
    reference = copy.deepcopy(dense)
    net = nn.Sequential(dense)
    tr.prepare_(net, sk.NM(2, 4), tr.Recipe(gradient=tr.StraightThrough(), input_gradient=own))
    layer = net[0]
    assert (layer.mask.reshape(6, 2, 4, 3, 3).sum(2) == 2).all()
    x = torch.randn(2, 8, 7, 7)
    got_x, want_x = x.clone().requires_grad_(), x.clone().requires_grad_()
    y = net(got_x)
    masked = reference.weight.detach() * layer.mask
    masked.requires_grad_()
    want = functional.conv2d(want_x, masked, reference.bias, 2, 1)
    assert torch.allclose(y, want, atol=1e-5)
    y.pow(2).sum().backward()
    want.pow(2).sum().backward()
    assert torch.allclose(layer.weight.grad, masked.grad, atol=1e-3)
    assert torch.allclose(layer.bias.grad, reference.bias.grad, atol=1e-3)
    if own == "same":
        assert torch.allclose(got_x.grad, want_x.grad, atol=1e-4)
    else:
        back = (reference.weight * layer.mask_back.transpose(0, 1)).detach()
        assert (layer.mask_back.transpose(0, 1)[:4].sum(0) == 2).all()
        assert (layer.mask_back.transpose(0, 1)[4:].sum(0) == 2).all()
        grad = torch.nn.grad.conv2d_input(x.shape, back, 2 * y.detach(), 2, 1)
        assert torch.allclose(got_x.grad, grad, atol=1e-4)
    tr.finish_(net)
    assert type(net[0]) is nn.Conv2d
    assert torch.allclose(net(x), y, atol=1e-5)


def test_encoder_layer_in_eval_mode_uses_the_masks():
    torch.manual_seed(0)
    net = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0).eval()
    tr.prepare_(net, {"self_attn.out_proj": None, "*": sk.NM(2, 8)})
    x = torch.randn(2, 3, 16)
    with torch.no_grad():
        y = net(x)
    assert torch.allclose(net(x), y, atol=1e-5)
    tr.finish_(net)
    assert not net._forward_pre_hooks
    with torch.no_grad():
        assert torch.allclose(net(x), y, atol=1e-5)


def test_a_model_that_is_a_layer_and_direct_use():
    layer = nn.Linear(8, 4)
    held = layer
    training = tr.prepare_(layer, sk.NM(2, 4))
    assert held is layer
    assert isinstance(layer, sk.nn.NMTrainingLinear)
    assert list(training.layers) == [""]
    assert "target=NM(2:4), now=NM(2:4), step=0" in repr(layer)
    training.step()
    assert layer.step_count == 1
    assert layer.progress.item() == 1


def test_meta_device_takes_a_state():
    source = tr.NMTrainingLinear(8, 4, 2, 4)
    source.advance()
    target = tr.NMTrainingLinear(8, 4, 2, 4, device="meta").to_empty(device="cpu")
    target.load_state_dict(source.state_dict())
    x = torch.randn(3, 8)
    assert torch.equal(target(x), source(x))
    assert target.step_count == 1


def test_dense_phase_is_dense_and_cannot_be_packed():
    net, _ = prepared(RECIPES["frames"])
    x = batches(1)[0]
    assert torch.equal(net[0](x), functional.linear(x, net[0].weight, net[0].bias))
    with pytest.raises(ValueError, match="must have reached a pattern, got a dense phase at step"):
        net[0].to_packed()
    with pytest.raises(ValueError, match="layer '0' must have reached a pattern"):
        tr.finish_(net)
    assert isinstance(net[0], tr.NMTrainingLinear)


def test_wrong_calls():
    layer = tr.NMTrainingLinear(8, 4, 2, 4)
    with pytest.raises(ValueError, match=r"x.shape\[-1\] must equal in_features \(8\), got 9"):
        layer(torch.zeros(2, 9))
    with pytest.raises(TypeError, match=r"x must be torch.float32, got torch.float64"):
        layer(torch.zeros(2, 8, dtype=torch.float64))
    with pytest.raises(TypeError, match=r"must be an nn.Linear, got ReLU"):
        tr.NMTrainingLinear.from_dense(nn.ReLU(), 2, 4)
    with pytest.raises(TypeError, match=r"must be an nn.Conv2d, got ReLU"):
        tr.NMTrainingConv2d.from_dense(nn.ReLU(), 2, 4)
    with pytest.raises(ValueError, match="padding must be zeros of a fixed size, got 'same'"):
        tr.NMTrainingConv2d.from_dense(nn.Conv2d(4, 4, 3, padding="same"), 2, 4)
    with pytest.raises(ValueError, match="groups must be 1, got 2"):
        tr.NMTrainingConv2d.from_dense(nn.Conv2d(4, 4, 3, groups=2), 2, 4)
    recipe = tr.Recipe(input_gradient="transposable")
    with pytest.raises(ValueError, match="got 'transposable'"):
        tr.NMTrainingConv2d.from_dense(nn.Conv2d(4, 4, 1), 2, 4, recipe)
    conv = tr.NMTrainingConv2d.from_dense(nn.Conv2d(4, 4, 1), 2, 4)
    with pytest.raises(ValueError, match=r"x must be \[batch, 4, height, width\], got \[4, 3, 3\]"):
        conv(torch.zeros(4, 3, 3))
    with pytest.raises(TypeError, match="pattern of layer '0' must be an NM, got Unstructured"):
        tr.prepare_(model(), sk.Unstructured(0.5))
    with pytest.raises(ValueError, match=r"must be an nn.Linear or nn.Conv2d itself, got NMTrain"):
        tr.prepare_(prepared(RECIPES["ste"])[0], sk.NM(2, 4))
    with pytest.raises(ValueError, match="must have N:M training layers, got none"):
        tr.Training(model())
    with pytest.raises(TypeError, match=r"model must be an nn.Module, got int"):
        tr.Training(3)
    training = tr.prepare_(model(), sk.NM(2, 4), RECIPES["sr-ste"])
    with pytest.raises(TypeError, match=r"must be a torch.optim.Optimizer, got str"):
        training.attach("adam")
    first = next(iter(training.layers.values()))
    first(batches(1)[0]).sum().backward()
    with pytest.raises(RuntimeError, match="add_decay must be called before"):
        training.step()
    training.add_decay()
    training.step()
    optimizer = torch.optim.SGD([first.weight], lr=0.1)
    training.attach(optimizer)
    with pytest.raises(ValueError, match="must be called once"):
        training.attach(optimizer)
    training.detach()
    optimizer.step()
    assert first.step_count == 1


def test_nothing_changes_when_a_layer_is_refused():
    net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 6))
    with pytest.raises(ValueError, match="multiples of m"):
        tr.prepare_(net, sk.NM(2, 4), tr.Recipe(input_gradient="transposable"))
    assert type(net[0]) is nn.Linear
    assert set(net.state_dict()) == {"0.weight", "0.bias", "1.weight", "1.bias"}


def test_the_kernel_is_used_where_it_was_asked_for(monkeypatch):
    from sparsekern.training import product

    used = []
    original = product._product
    monkeypatch.setattr(product, "_product", lambda *a: used.append(1) or original(*a))
    for kernel, rows, expected in (
        ("always", 4, 2),
        ("never", 4096, 0),
        ("auto", 4, 0),
        ("auto", 511, 0),
        ("auto", 512, 2),
    ):
        layer = tr.NMTrainingLinear(
            16, 16, 1, 16, recipe=tr.Recipe(kernel=kernel, input_gradient="own")
        )
        used.clear()
        layer(torch.randn(rows, 16, requires_grad=True)).sum().backward()
        assert len(used) == expected


def test_masks_that_nothing_asked_for():
    """Where the kernels choose by themselves, masks are computed late, to the same result."""
    recipe = tr.Recipe(input_gradient="own", kernel="always")
    layer = sk.nn.NMTrainingLinear(20, 24, 2, 4, recipe=recipe)
    assert layer._mask_waits
    assert layer._back_waits
    x = batches(1)[0].requires_grad_()
    layer(x).pow(2).mean().backward()
    assert layer._mask_waits  # neither pass needed it
    got = [x.grad, layer.weight.grad, layer(x).detach()]
    assert torch.equal(layer.mask, sk.ops.nm_mask(layer.weight, 2, 4))
    assert torch.equal(layer.mask_back, sk.ops.nm_mask(layer.weight.t().contiguous(), 2, 4))
    assert not layer._mask_waits
    assert not layer._back_waits
    x.grad = layer.weight.grad = None
    layer(x).pow(2).mean().backward()  # with the masks
    for a, b in zip(got, [x.grad, layer.weight.grad, layer(x).detach()], strict=True):
        assert torch.equal(a, b)
    # Weights exchanged between two steps, as for an average of them, leave no mask behind.
    layer.advance()
    own = layer.weight.detach().clone()
    with torch.no_grad():
        layer.weight.copy_(torch.randn(24, 20))
    assert torch.equal(layer.mask, sk.ops.nm_mask(layer.weight, 2, 4))
    with torch.no_grad():
        layer.weight.copy_(own)
    assert torch.equal(layer.mask, sk.ops.nm_mask(own, 2, 4))
    # The state has them, in the order of their shape.
    layer.advance()
    state = layer.state_dict()
    assert state["mask_back"].is_contiguous()
    assert torch.equal(state["mask_back"], sk.ops.nm_mask(own.t().contiguous(), 2, 4))


def test_masks_that_must_last_are_computed_at_once():
    fixed = tr.Recipe(input_gradient="own", kernel="always", fixed_after=2)
    layer = sk.nn.NMTrainingLinear(20, 24, 2, 4, recipe=fixed)
    layer.advance()
    assert layer._mask_waits  # due after the next step too
    layer.advance()
    before = layer.mask.clone()
    with torch.no_grad():
        layer.weight.copy_(torch.randn(24, 20))
    layer.advance()
    assert torch.equal(layer.mask, before)
    for kind in ("same", "transposable"):
        layer = sk.nn.NMTrainingLinear(20, 24, 2, 4, recipe=tr.Recipe(input_gradient=kind))
        assert not layer._mask_waits
