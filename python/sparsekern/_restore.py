# SPDX-License-Identifier: Apache-2.0
"""Puts a checked checkpoint into a model: first everything is planned, then all of it is done."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from sparsekern._cast import CastConv2d, CastLinear
from sparsekern._checkpoint_format import (
    Checkpoint,
    CheckpointError,
    LayerSpec,
    key,
    submodule,
)
from sparsekern._fuse import fused_name, next_module
from sparsekern._packed import PackedTensor
from sparsekern.bitmap import BitmapTensor
from sparsekern.csr import CSRTensor
from sparsekern.gqs import GQSTensor
from sparsekern.nm import NMTensor
from sparsekern.nn import (
    BitmapLinear,
    CSRConv2d,
    CSRLayer,
    CSRLinear,
    GQSLinear,
    NMLinear,
    PackedLayer,
)
from sparsekern.nn.gqs import trainable_scales


@dataclass
class _Plan:
    """New modules by the id of the one they replace, layers to refill, tensors to copy."""

    replaced: dict[int, nn.Module] = field(default_factory=dict)
    refilled: list[tuple[PackedLayer, PackedTensor, LayerSpec]] = field(default_factory=list)
    fused: list[tuple[nn.Module, str]] = field(default_factory=list)  # places of activations
    settled: set[str] = field(default_factory=set)  # names that the packed layers take care of


def restore(root: nn.Module, checkpoint: Checkpoint) -> None:
    """Load into `root`, or raise CheckpointError and leave it as it is."""
    plan = _plan(root, checkpoint)
    loaded = {
        name: tensor for name, tensor in checkpoint.tensors.items() if name not in plan.settled
    }
    _check_names(root, plan, loaded)
    for parent in list(root.modules()):
        for name, child in list(parent._modules.items()):
            if child is not None and id(child) in plan.replaced:
                setattr(parent, name, plan.replaced[id(child)])
    for parent, name in plan.fused:
        setattr(parent, name, nn.Identity())
    for layer, packed, spec in plan.refilled:
        layer.refill(packed)
        if isinstance(layer, (CSRLayer, GQSLinear)):
            layer.int8_activations = spec.int8_activations
    _copy(root, loaded)


def _submodule(root: nn.Module, name: str) -> nn.Module:
    module = submodule(root, name)
    if module is None:
        raise CheckpointError(f"checkpoint: layer {name!r} must be a module of the model, got none")
    return module


def _plan(root: nn.Module, checkpoint: Checkpoint) -> _Plan:
    plan = _Plan()
    kinds: dict[int, LayerSpec] = {}
    trainable: dict[int, nn.Parameter] = {}  # by the packed tensor: ties share a Parameter
    for name, spec in checkpoint.layers.items():
        old = _submodule(root, name)
        packed = checkpoint.packed[name]
        plan.settled.update(key(name, part) for part in ("values", "structure", "scale"))
        if id(old) in kinds:  # a module under two names
            if kinds[id(old)] != spec:
                raise CheckpointError(f"checkpoint: layer {name!r} is a shared module, got another")
            if id(old) in plan.replaced:
                plan.settled.add(key(name, "bias"))
            continue
        kinds[id(old)] = spec
        _check_fits(name, spec, old)
        activation = old.activation if isinstance(old, PackedLayer) else "none"
        if activation != spec.activation:
            plan.fused.append(_fused_place(root, name, spec, activation))
        elif isinstance(old, PackedLayer) and _same_kind(old, packed):
            plan.refilled.append((old, packed, spec))
            continue
        if not name:
            raise CheckpointError(
                f"checkpoint: the model must be a {type(old).__name__} inside a module, to be "
                "replaced there, got the layer itself"
            )
        plan.settled.add(key(name, "bias"))
        plan.replaced[id(old)] = _new_layer(name, spec, packed, old, checkpoint, trainable)
    _plan_dense(root, checkpoint, plan)
    return plan


def _plan_dense(root: nn.Module, checkpoint: Checkpoint, plan: _Plan) -> None:
    """What is dense in the file is to be dense in the model, in the same dtype of computation."""
    for name, dtype in checkpoint.casts.items():
        old = _submodule(root, name)
        if not isinstance(old, (nn.Linear, nn.Conv2d, PackedLayer)):
            raise CheckpointError(
                f"checkpoint: layer {name!r} must be a Linear or Conv2d in the model, got "
                f"{type(old).__name__}"
            )
        dense = _dense_like(name, old) if isinstance(old, PackedLayer) else old
        if id(old) not in plan.replaced:
            cast: nn.Module = (
                CastLinear.of(dense, dtype)
                if isinstance(dense, nn.Linear)
                else CastConv2d.of(dense, dtype)
            )
            plan.replaced[id(old)] = cast
    for name, module in root.named_modules(remove_duplicate=False):
        known = name in checkpoint.layers or name in checkpoint.casts
        if isinstance(module, (PackedLayer, CastLinear, CastConv2d)) and not known:
            plan.replaced.setdefault(id(module), _dense_like(name, module))


def _fused_place(
    root: nn.Module, name: str, spec: LayerSpec, activation: str
) -> tuple[nn.Module, str]:
    """Where the model has the activation that the file has inside the layer."""
    if activation == "none" and spec.fused:
        found = next_module(root, name, lambda child: fused_name(child) == spec.activation)
        if found is not None:
            return found
    raise CheckpointError(
        f"checkpoint: activation of layer {name!r} must be {activation} as in the model, "
        f"got {spec.activation}"
    )


def _check_fits(name: str, spec: LayerSpec, old: nn.Module) -> None:
    conv = spec.kind == "csr_conv2d"
    dense = nn.Conv2d if conv else nn.Linear
    sparse = (CSRConv2d,) if conv else (CSRLinear, NMLinear, BitmapLinear, GQSLinear)
    if not isinstance(old, (dense, *sparse)):
        names = " or ".join(kind.__name__ for kind in sparse)
        raise CheckpointError(
            f"checkpoint: layer {name!r} must be an nn.{dense.__name__} or {names} in "
            f"the model, got {type(old).__name__}"
        )
    found: tuple[object, ...]
    if isinstance(old, (nn.Linear, CSRLinear, NMLinear, BitmapLinear, GQSLinear)):
        found = ((old.out_features, old.in_features), 1)
    elif isinstance(old, CSRConv2d):
        found = (old.matrix_shape, old.stride)
    else:
        assert isinstance(old, nn.Conv2d)
        unpadded = old.padding in ((0, 0), "same", "valid")  # all one thing for a 1x1 kernel
        if old.kernel_size != (1, 1) or old.groups != 1 or not unpadded:
            raise CheckpointError(
                f"checkpoint: layer {name!r} must be a 1x1 convolution, got {old}"
            )
        stride = old.stride[0] if old.stride[0] == old.stride[1] else old.stride
        found = ((old.out_channels, old.in_channels), stride)
    found = (*found, old.bias is not None)
    expected = (spec.shape, spec.stride, spec.bias)
    if found != expected:
        raise CheckpointError(
            f"checkpoint: layer {name!r} must have (shape, stride, bias) {found} as in the model, "
            f"got {expected}"
        )


def _same_kind(layer: PackedLayer, packed: PackedTensor) -> bool:
    """Whether the layer's own tensors can take the packed matrix."""
    on_meta = layer.values.device.type == "meta"
    one_format = isinstance(packed, layer._TENSOR)
    return (
        one_format
        and not on_meta
        and (layer.values.dtype == torch.int8) == (packed.dtype == torch.int8)
    )


def _new_layer(
    name: str,
    spec: LayerSpec,
    packed: PackedTensor,
    old: nn.Module,
    checkpoint: Checkpoint,
    trainable: dict[int, nn.Parameter],
) -> PackedLayer:
    weight = old.values if isinstance(old, PackedLayer) else old.weight
    assert isinstance(weight, Tensor)
    device = torch.device("cpu") if weight.device.type == "meta" else weight.device
    if id(packed) not in trainable:
        requires_grad = weight.requires_grad and packed.dtype != torch.int8
        moved = packed.to(device)
        trainable[id(packed)] = nn.Parameter(moved.values, requires_grad=requires_grad)
        packed.structure, packed.scale = moved.structure, moved.scale
        packed.values = trainable[id(packed)]
        if isinstance(packed, GQSTensor):
            scale = old.scale if isinstance(old, GQSLinear) else weight
            assert scale is not None
            trainable_scales(packed, scale.requires_grad)
    bias = None
    if spec.bias:
        old_bias = old.bias
        assert isinstance(old_bias, Tensor)
        stored = checkpoint.tensors[key(name, "bias")]
        own = old_bias.device.type != "meta" and not isinstance(old, (CastLinear, CastConv2d))
        dtype = old_bias.dtype if own else stored.dtype
        copy = stored.to(device, dtype, copy=True)
        bias = nn.Parameter(copy, requires_grad=old_bias.requires_grad)
    layer: PackedLayer
    if isinstance(packed, NMTensor):
        layer = NMLinear.from_packed(packed, bias, spec.activation)
    elif isinstance(packed, GQSTensor):
        layer = GQSLinear.from_packed(packed, bias, spec.activation)
        layer.int8_activations = spec.int8_activations
    elif isinstance(packed, BitmapTensor):
        layer = BitmapLinear.from_packed(packed, bias, spec.activation)
    else:
        assert isinstance(packed, CSRTensor)
        if spec.kind == "csr_linear":
            layer = CSRLinear.from_packed(packed, bias, spec.activation)
        else:
            layer = CSRConv2d.from_packed(packed, bias, spec.activation, stride=spec.stride)
        layer.int8_activations = spec.int8_activations
    return layer.train(old.training)


def _dense_like(name: str, layer: PackedLayer | CastLinear | CastConv2d) -> nn.Linear | nn.Conv2d:
    """A dense module of the layer's shape without data, which the file's tensors become."""
    dense: nn.Linear | nn.Conv2d
    if isinstance(layer, PackedLayer):
        if layer.activation != "none" or not name:
            raise CheckpointError(
                f"checkpoint: layer {name!r} must be packed as in the model, got a dense one"
            )
        dense, trainable = layer.dense_module(), layer.values.requires_grad
    else:
        trainable, bias = layer.weight.requires_grad, layer.bias is not None
        if isinstance(layer, CastLinear):
            dense = nn.Linear(layer.in_features, layer.out_features, bias, "meta")
        else:
            channels = layer.in_channels, layer.out_channels
            dense = nn.Conv2d(*channels, 1, layer.stride[0], bias=bias, device="meta")
    for parameter in dense.parameters():
        parameter.requires_grad_(trainable)
    return dense.train(layer.training)


def _targets(root: nn.Module, plan: _Plan) -> dict[str, Tensor]:
    """The tensors that the model will have, under all names, apart from the packed layers'."""
    targets: dict[str, Tensor] = {}
    own = {**root.state_dict(keep_vars=True)}
    for name, module in root.named_modules(remove_duplicate=False):
        if id(module) in plan.replaced or isinstance(module, PackedLayer):
            new = plan.replaced.get(id(module))
            parts = ("weight", "bias", "values", "structure", "scale")
            bias = own.get(key(name, "bias")) if new is None else None
            for part in parts:
                own.pop(key(name, part), None)
            if bias is not None:
                own[key(name, "bias")] = bias
            if new is not None and not isinstance(new, PackedLayer):
                own.update({key(name, part): t for part, t in new.state_dict().items()})
    targets.update(own)
    return targets


def _check_names(root: nn.Module, plan: _Plan, loaded: dict[str, Tensor]) -> None:
    targets = _targets(root, plan)
    missing, unexpected = sorted(targets.keys() - loaded), sorted(loaded.keys() - targets)
    if missing or unexpected:
        raise CheckpointError(
            f"checkpoint: names must be those of the model, got missing {missing[:5]}, "
            f"unexpected {unexpected[:5]} ({len(missing)} and {len(unexpected)} in all)"
        )
    for name, target in targets.items():
        if target.shape != loaded[name].shape:
            raise CheckpointError(
                f"checkpoint: {name!r} must have shape {list(target.shape)}, "
                f"got {list(loaded[name].shape)}"
            )


def _copy(root: nn.Module, loaded: dict[str, Tensor]) -> None:
    """Copy into the model's tensors; where those are on the meta device, put new ones there."""
    own = root.state_dict(keep_vars=True)
    on_meta = {name for name in loaded if own[name].device.type == "meta"}
    made: dict[int, Tensor] = {}  # by the model's tensor, so that ties stay ties
    for name in on_meta:
        target = own[name]
        if id(target) not in made:
            copy = loaded[name].clone()
            made[id(target)] = (
                nn.Parameter(copy, requires_grad=target.requires_grad)
                if isinstance(target, nn.Parameter)
                else copy
            )
    if on_meta:
        root.load_state_dict(
            {name: made[id(own[name])] for name in on_meta}, strict=False, assign=True
        )
    rest = {name: tensor for name, tensor in loaded.items() if name not in on_meta}
    root.load_state_dict(rest, strict=False)
