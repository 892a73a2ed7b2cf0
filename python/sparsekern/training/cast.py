# SPDX-License-Identifier: Apache-2.0
"""CAST: a dense forward pass, and an optimizer that lets the weights outside the mask die out.

    teacher = copy.deepcopy(model)                      # the dense self
    optimizer = cast_(model, sk.NM(2, 4), total_steps=len(data), lr=1e-4)
    for x, targets in data:
        with torch.no_grad():
            expected = teacher(x)
        distillation_loss(model(x), expected, targets).backward()
        optimizer.step()
        optimizer.zero_grad()
    finish_cast_(model, optimizer)                      # dense layers with zeros

Huang et al. 2025, "CAST: Continuous and Differentiable Semi-Structured Sparsity-Aware Training for
Large Language Models", arXiv:2509.25996, algorithm 1. It starts from a trained model. There is no
hard mask before the end. Where `decay` is small for the run, weights outside the mask are still
alive when they are cut, and the model loses by it: compare the loss before and after
`finish_cast_`, and raise `decay`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from sparsekern._nm_mask import nm_mask
from sparsekern.patterns import NM
from sparsekern.prune.layers import Layer, Patterns, select_layers

__all__ = ["AdamS", "WeightScale", "cast_", "distillation_loss", "finish_cast_"]

_Model = TypeVar("_Model", bound=nn.Module)
_MASTERS = (torch.float32, torch.float64)


class AdamS(torch.optim.Optimizer):
    """Adam whose moments hold a growing pull to zero for the weights outside an N:M mask.

    With g the gradient, k the mask, a = t / total_steps, t = 0, 1, ...:

        u = beta1 u + (1 - beta1) g
        u' = u where k, else (1 - a) u + a decay sign(W)
        v = beta2 v + (1 - beta2) u'^2
        W -= lr (u' / (1 - beta1^(t+1))) / (sqrt(v / (1 - beta2^(t+1))) + eps)

    Since v is made of u' and not of g, the first step is 1 / (1 - beta1) times that of Adam: begin
    with a small rate. Toward the end u' of a weight outside the mask is the pull alone, and the
    division by sqrt(v) makes each step of it about `lr` whatever `decay` is; `decay` says when the
    pull outweighs the gradients.

    Args:
        params: Parameters, or groups as of every optimizer. A group may have a `pattern`, an `NM`:
            its weights, float32 or float64 of two or more dimensions, are masked along axis 1. A
            group without one trains by the same rule with k = 1.
        lr: rate.
        total_steps: steps of the run; a step beyond them is an error.
        decay: strength of the pull, of the size of gradients; 4e-7 in the paper.
        betas: of the moments.
        eps: added to the denominator.
        refresh: steps between two updates of the masks.

    Raises:
        TypeError: a pattern that is not an `NM`; a masked weight in 16 bits, where the pull is
            rounded away.
        ValueError: a value out of range; a masked weight of one dimension, such as a flattened one,
            in which groups no longer are of consecutive inputs.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        *,
        total_steps: int,
        decay: float = 4e-7,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        refresh: int = 10,
    ) -> None:
        for name, value in (("lr", lr), ("decay", decay), ("eps", eps)):
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"AdamS: {name} must be >= 0, got {value}")
        for name, number in (("total_steps", total_steps), ("refresh", refresh)):
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise ValueError(f"AdamS: {name} must be a positive integer, got {number!r}")
        if not all(0.0 <= beta < 1.0 for beta in betas):
            raise ValueError(f"AdamS: betas must be in [0, 1), got {betas}")
        defaults = {
            "lr": lr,
            "decay": decay,
            "betas": betas,
            "eps": eps,
            "refresh": refresh,
            "total_steps": total_steps,
            "pattern": None,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As of every optimizer; checks the weights that will be masked."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        pattern = group["pattern"]
        if pattern is not None and not isinstance(pattern, NM):
            raise TypeError(f"AdamS: pattern must be an NM or None, got {type(pattern).__name__}")
        for weight in group["params"]:
            _check(pattern, weight)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; returns what the closure does.

        Raises:
            RuntimeError: `total_steps` have been made.
            TypeError, ValueError: a masked weight has changed its dtype or lost its shape.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, group)
        return loss

    def _update(self, weight: Tensor, group: dict[str, Any]) -> None:
        pattern: NM | None = group["pattern"]
        _check(pattern, weight)
        state = self.state[weight]
        if not state:
            state["step"] = 0
            state["exp_avg"] = torch.zeros_like(weight)
            state["exp_avg_sq"] = torch.zeros_like(weight)
        done, total = state["step"], group["total_steps"]
        if done >= total:
            raise RuntimeError(f"AdamS.step: total_steps must not be exceeded, got {total} before")
        first, second = group["betas"]
        moment = state["exp_avg"].lerp_(weight.grad, 1.0 - first)
        if pattern is not None:
            if done % group["refresh"] == 0:
                state["mask"] = nm_mask(weight, pattern.n, pattern.m, dim=1)
            share = done / total
            pull = (1.0 - share) * moment + (share * group["decay"]) * weight.sign()
            moment = torch.where(state["mask"], moment, pull)
        square = state["exp_avg_sq"].mul_(second).addcmul_(moment, moment, value=1.0 - second)
        state["step"] = done + 1
        root = (square / (1.0 - second ** (done + 1))).sqrt_().add_(group["eps"])
        weight.addcdiv_(moment, root, value=-group["lr"] / (1.0 - first ** (done + 1)))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As of every optimizer, which would make numbers of the masks."""
        super().load_state_dict(state_dict)
        for state in self.state.values():
            if "mask" in state:
                state["mask"] = state["mask"].bool()


def _check(pattern: NM | None, weight: Tensor) -> None:
    if pattern is None:
        return
    if weight.dtype not in _MASTERS:
        raise TypeError(
            "AdamS: a masked weight must be float32 or float64, since 16 bits round the pull to "
            f"zero away, got {weight.dtype}; use autocast over float32 weights"
        )
    if weight.dim() < 2:
        raise ValueError(
            "AdamS: a masked weight must have at least 2 dimensions, got shape "
            f"{list(weight.shape)}; keep its shape where weights are sharded or flattened"
        )


class WeightScale(nn.Module):
    """W A: each row of W in `parts` equal parts, each with a factor that is trained.

    W_eff[r, c] = W[r, c] A[r, floor(c parts / C)] (parts = 2 in the paper), so that a row can
    regain the size that pruning takes from it. A parametrization of a weight [rows, columns, ...],
    of the module that is to hold it; `scale` is A, [rows, parts], ones at first.

    Raises:
        ValueError: not 1 <= parts <= columns.
    """

    part: Tensor

    def __init__(self, weight: Tensor, parts: int = 2) -> None:
        super().__init__()
        columns = weight.shape[1]
        if isinstance(parts, bool) or not isinstance(parts, int) or not 1 <= parts <= columns:
            raise ValueError(f"WeightScale: parts must be in [1, {columns}], got {parts!r}")
        ones = torch.ones(weight.shape[0], parts, dtype=weight.dtype, device=weight.device)
        self.scale = nn.Parameter(ones)
        part = torch.arange(columns, device=weight.device) * parts // columns
        self.register_buffer("part", part, persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        """W A, the shape of W."""
        factors = self.scale[:, self.part]
        return weight * factors.reshape(*factors.shape, *[1] * (weight.dim() - 2))


def cast_(
    model: nn.Module,
    patterns: Patterns,
    *,
    total_steps: int,
    lr: float,
    decay: float = 4e-7,
    parts: int = 2,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    refresh: int = 10,
) -> AdamS:
    """Begin CAST: give the chosen weights their factors, and make the optimizer of all parameters.

    Args:
        model: trained, float32 or float64 where weights are chosen; changed in place: the weights
            get a `WeightScale` parametrization.
        patterns: an `NM` for every Linear and Conv2d (groups=1), or an ordered mapping from a glob
            over module names to an `NM`, or to None for "leave alone", as in `prune_`. Of a
            convolution, groups are of input channels.
        total_steps: of `AdamS`, as all but `parts`.
        lr: rate.
        decay: strength of the pull.
        parts: factors of a row; 0: none.
        betas: of the moments.
        eps: added to the denominator.
        refresh: steps between two updates of the masks.

    Returns:
        The optimizer of every parameter that requires a gradient.

    Raises:
        TypeError: a pattern that is not an `NM`; a weight in 16 bits.
        ValueError: a chosen weight that several modules share, where it would get factors; and as
            `prune_` for patterns and `AdamS` for numbers. Nothing is changed then.
    """
    layers = select_layers("cast_", model, patterns)
    groups: dict[NM, list[nn.Parameter]] = {}
    for layer in layers:
        if not isinstance(layer.pattern, NM):
            raise TypeError(
                f"cast_: the pattern of layer {layer.name!r} must be an NM, got "
                f"{layer.pattern.label}"
            )
        _check(layer.pattern, layer.weight)
        groups.setdefault(layer.pattern, []).append(layer.weight)
    scales = _scales(model, layers, parts) if parts else []
    chosen = {id(layer.weight) for layer in layers}
    others = [p for p in model.parameters() if p.requires_grad and id(p) not in chosen]
    others += [scale.scale for _, scale in scales]
    made: list[dict[str, Any]] = [
        {"params": weights, "pattern": pattern} for pattern, weights in groups.items()
    ]
    made += [{"params": others}] if others else []
    optimizer = AdamS(
        made, lr, total_steps=total_steps, decay=decay, betas=betas, eps=eps, refresh=refresh
    )
    for module, scale in scales:
        parametrize.register_parametrization(module, "weight", scale)
    return optimizer


def _scales(
    model: nn.Module, layers: list[Layer], parts: int
) -> list[tuple[nn.Module, WeightScale]]:
    uses: dict[int, int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        uses[id(parameter)] = uses.get(id(parameter), 0) + 1
    scales = []
    for layer in layers:
        if uses[id(layer.weight)] > 1:
            raise ValueError(
                f"cast_: the weight of layer {layer.name!r} must be its own to get factors, got a "
                "shared one; give its name the pattern None, or parts=0 to all"
            )
        scales.append((layer.modules[0], WeightScale(layer.weight, parts)))
    return scales


@torch.no_grad()
def finish_cast_(model: _Model, optimizer: AdamS) -> _Model:
    """End CAST: prune by the largest weights of now, and multiply the factors in.

    Args:
        model: as `cast_` left it, trained since; in place.
        optimizer: what `cast_` returned: it knows the patterns.

    Returns:
        The model: plain layers whose weights have zeros; `convert_` packs them, and a `MaskKeeper`
        keeps them in further training.

    Raises:
        ValueError: no masked weight of the optimizer is in the model.
    """
    patterns = {
        id(weight): group["pattern"]
        for group in optimizer.param_groups
        if group["pattern"] is not None
        for weight in group["params"]
    }
    found = [p for p in model.parameters() if id(p) in patterns]
    if not found:
        raise ValueError(
            "finish_cast_: model must hold a masked weight of the optimizer, got none of "
            f"{len(patterns)}"
        )
    for weight in found:
        pattern = patterns[id(weight)]
        weight.masked_fill_(~nm_mask(weight, pattern.n, pattern.m, dim=1), 0.0)
    for module in list(model.modules()):
        if not parametrize.is_parametrized(module, "weight"):
            continue
        chain = module.parametrizations["weight"]  # type: ignore[index]
        if len(chain) == 1 and isinstance(chain[0], WeightScale):
            scaled = module.weight.clone()  # type: ignore[operator]
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)
            module.weight.copy_(scaled)  # type: ignore[operator]
    return model


def distillation_loss(
    logits: Tensor,
    teacher_logits: Tensor,
    targets: Tensor,
    *,
    share: float = 1 / 3,
    ignore_index: int = -100,
) -> Tensor:
    """Means over tokens of share KL(P_teacher || P) + (1 - share) cross entropy; a scalar.

    The loss of the paper, at temperature 1. `sparsekern.distill_` matches outputs without targets.

    Args:
        logits: [..., classes], floating point.
        teacher_logits: the shape of logits; takes no gradient.
        targets: int64 [...].
        share: eta, in [0, 1]; a third in the paper.
        ignore_index: targets of this value do not count, in either term.

    Raises:
        ValueError: shapes that do not fit, or a share out of range.
    """
    if teacher_logits.shape != logits.shape or targets.shape != logits.shape[:-1]:
        raise ValueError(
            "distillation_loss: teacher_logits must have the shape of logits "
            f"({list(logits.shape)}) and targets that without the last, got "
            f"{list(teacher_logits.shape)} and {list(targets.shape)}"
        )
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"distillation_loss: share must be in [0, 1], got {share}")
    counted = targets != ignore_index
    student = logits[counted].log_softmax(-1)
    teacher = teacher_logits.detach()[counted].log_softmax(-1)
    divergence = functional.kl_div(student, teacher, log_target=True, reduction="batchmean")
    return share * divergence + (1.0 - share) * functional.nll_loss(student, targets[counted])
