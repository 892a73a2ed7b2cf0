# SPDX-License-Identifier: Apache-2.0
"""Finds the weights of a model that can be packed, who uses each, and where it hangs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sparsekern.nn import PackedLayer
from sparsekern.prune.layers import is_reparametrized
from sparsekern.prune.permanent import make_permanent_
from sparsekern.prune.result import effective_weight

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(eq=False)
class Site:
    """One weight, with every module that multiplies with it (several when it is tied).

    Attributes:
        name: of the first module.
        modules: the modules, each once, however many names it has.
        reason: why it must stay dense; empty when it may be packed.
        dense: the weight as it is used, [out, in], detached; None when it must stay dense.
    """

    name: str
    modules: list[nn.Module]
    reason: str = ""
    dense: Tensor | None = field(default=None, repr=False)

    @property
    def is_conv(self) -> bool:
        """Whether the modules are convolutions."""
        return isinstance(self.modules[0], nn.Conv2d)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight; (0,) for one that has no shape yet (a lazy module)."""
        try:
            return tuple(effective_weight(self.modules[0]).shape)
        except (RuntimeError, ValueError):
            return (0,)

    @property
    def nbytes(self) -> int:
        """Bytes of the dense weight."""
        try:
            weight = effective_weight(self.modules[0])
            return weight.numel() * weight.element_size()
        except (RuntimeError, ValueError):
            return 0

    def sparsity(self) -> float:
        """Share of zeros in `dense`."""
        assert self.dense is not None
        return 1.0 - int(torch.count_nonzero(self.dense)) / self.dense.numel()

    def make_permanent(self) -> None:
        """Give every module its weight as a plain parameter, if it is computed or masked."""
        for module in self.modules:
            make_permanent_(module)


def as_globs(operator: str, name: str, globs: str | Iterable[str]) -> list[str]:
    """A glob or several as a list, or TypeError."""
    listed = [globs] if isinstance(globs, str) else list(globs)
    for glob in listed:
        if not isinstance(glob, str):
            raise TypeError(f"{operator}: {name} must be globs, got {type(glob).__name__}")
    return listed


def find_sites(
    operator: str, model: nn.Module, include: Sequence[str], exclude: Sequence[str]
) -> list[Site]:
    """Every Linear and Conv2d weight of a model, in module order, each once.

    Args:
        operator: the name that errors begin with.
        model: any module that contains the layers.
        include: globs over module names; a layer that none matches stays dense.
        exclude: globs; a layer that one matches stays dense.

    Raises:
        ValueError: a glob that matches no layer; the model is itself a layer; a weight that may
            be packed is on the meta device.
    """
    if type(model) in (nn.Linear, nn.Conv2d):
        kind = type(model).__name__
        raise ValueError(
            f"{operator}: model must contain the layers to replace, got a bare nn.{kind}; "
            f"use sparsekern.nn.CSR{kind}.from_dense"
        )
    names: dict[int, list[str]] = {}
    by_id: dict[int, nn.Module] = {}
    inside_attention: set[int] = set()
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, nn.MultiheadAttention):
            inside_attention.update(id(child) for child in module.modules())
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            names.setdefault(id(module), []).append(name)
            by_id[id(module)] = module
    _check_globs(operator, names, {"include": include, "exclude": exclude})
    users = _users(model)
    sites: dict[int, Site] = {}
    for key, module in by_id.items():
        reason = _selection_reason(names[key], include, exclude)
        if not reason and key in inside_attention:
            reason = "nn.MultiheadAttention reads the weight itself"
        reason = reason or _module_reason(module)
        if not reason:
            reason = _weight_reason(operator, names[key][0], module, users, by_id)
        weight = _stored_weight(module)
        owner = sites.get(id(weight))
        if owner is None:
            sites[id(weight)] = Site(names[key][0], [module], reason)
        else:
            owner.modules.append(module)
            if reason and not owner.reason:
                owner.reason = f"{names[key][0]} shares the weight: {reason}"
    for site in sites.values():
        if not site.reason:
            site.reason, site.dense = _dense_matrix(site)
    return list(sites.values())


class Places:
    """Where modules hang in a model, so that others can be put there."""

    def __init__(self, model: nn.Module, modules: Iterable[nn.Module]) -> None:
        self._slots: dict[int, list[tuple[nn.Module, str]]] = {id(m): [] for m in modules}
        for parent in model.modules():
            for name, child in parent._modules.items():
                if child is not None and id(child) in self._slots:
                    self._slots[id(child)].append((parent, name))

    def put(self, replacements: Mapping[nn.Module, nn.Module]) -> None:
        """Hang the value wherever the key was when this object was made."""
        for original, new in replacements.items():
            for parent, name in self._slots[id(original)]:
                parent._modules[name] = new


def _users(model: nn.Module) -> dict[int, list[tuple[nn.Module, str, str]]]:
    """By the id of a parameter: the modules that hold it, its name there, and in the model."""
    users: dict[int, list[tuple[nn.Module, str, str]]] = {}
    for prefix, module in model.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                full = f"{prefix}.{name}" if prefix else name
                users.setdefault(id(parameter), []).append((module, name, full))
    return users


def _stored_weight(module: nn.Module) -> object:
    """What identifies a module's weight: the parameter, or the module where it is computed."""
    return module._parameters.get("weight", module)


def _check_globs(
    operator: str, names: Mapping[int, list[str]], globs: Mapping[str, Sequence[str]]
) -> None:
    flat = [name for group in names.values() for name in group]
    for argument, listed in globs.items():
        for glob in listed:
            if glob != "*" and not any(fnmatchcase(name, glob) for name in flat):
                raise ValueError(
                    f"{operator}: {argument} glob {glob!r} must match a Linear or Conv2d layer, "
                    "got no match"
                )


def _selection_reason(names: Sequence[str], include: Sequence[str], exclude: Sequence[str]) -> str:
    if any(fnmatchcase(name, glob) for name in names for glob in exclude):
        return "excluded"
    if not any(fnmatchcase(name, glob) for name in names for glob in include):
        return "not included"
    return ""


def _module_reason(module: nn.Module) -> str:
    """Why a module of this kind cannot be replaced, or ""."""
    kind = parametrize.type_before_parametrizations(module)
    if kind not in (nn.Linear, nn.Conv2d):
        return f"{kind.__name__} is a class of its own"
    if "forward" in module.__dict__:
        return "its forward was replaced"
    if _user_hooks(module):
        return "it has forward or backward hooks"
    if isinstance(module, nn.Conv2d):
        if module.groups != 1:
            return f"groups={module.groups}"
        if tuple(module.kernel_size) != (1, 1):
            return f"kernel {'x'.join(map(str, module.kernel_size))}"
        if tuple(module.stride) not in ((1, 1), (2, 2)):
            return f"stride {'x'.join(map(str, module.stride))}"
        if module.padding not in ((0, 0), "same", "valid"):
            return f"padding {module.padding}"
    return ""


def _user_hooks(module: nn.Module) -> bool:
    from torch.nn.utils.prune import BasePruningMethod

    before = module._forward_pre_hooks.values()
    return (
        any(not isinstance(hook, BasePruningMethod) for hook in before)
        or bool(module._forward_hooks)
        or bool(module._backward_hooks)
        or bool(module._backward_pre_hooks)
    )


def _weight_reason(
    operator: str,
    name: str,
    module: nn.Module,
    users: Mapping[int, list[tuple[nn.Module, str, str]]],
    linears: Mapping[int, nn.Module],
) -> str:
    for parameter_name, parameter in module._parameters.items():
        if parameter is None or not parameter_name.startswith("weight"):
            continue
        for other, other_name, full in users[id(parameter)]:
            if other is module:
                continue
            if parameter_name == "weight" and other_name == "weight" and id(other) in linears:
                continue
            return f"tied to {full}"
    weight = effective_weight(module)
    if weight.device.type == "meta":
        raise ValueError(
            f"{operator}: layer {name!r} must hold data, got a weight on the meta device; "
            "load its checkpoint first"
        )
    if is_reparametrized(module) and not (
        parametrize.is_parametrized(module, "weight") or hasattr(module, "weight_mask")
    ):
        return "its weight is computed before each call"
    if weight.device.type != "cpu":
        return f"on {weight.device}, packed layers run on the CPU"
    if weight.dtype not in _DTYPES:
        return f"weights are {str(weight.dtype).removeprefix('torch.')}"
    if weight.numel() == 0:
        return "the weight is empty"
    return ""


def _dense_matrix(site: Site) -> tuple[str, Tensor | None]:
    weight = effective_weight(site.modules[0])
    kind = type(weight)
    if weight.layout != torch.strided or isinstance(
        weight, torch.sparse.SparseSemiStructuredTensor
    ):
        weight = weight.to_dense()
    elif kind not in (Tensor, nn.Parameter):
        return f"the weight is a {kind.__name__}", None
    return "", weight.detach().flatten(1)


def packed_layers(model: nn.Module) -> list[tuple[str, PackedLayer]]:
    """The packed layers of a model, each once, with its first name."""
    return [(name, m) for name, m in model.named_modules() if isinstance(m, PackedLayer)]
