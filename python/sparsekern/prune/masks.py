# SPDX-License-Identifier: Apache-2.0
"""Keep pruned weights at exactly zero while the others are trained."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .layers import is_reparametrized, prunable_modules


class MaskKeeper:
    """Reset pruned weights to zero after every optimizer step.

    Momentum, weight decay and Adam's moments can all move a weight whose gradient is zero, so the
    mask is applied to the values after the step, whatever the optimizer did.

        with MaskKeeper(model, result.masks).attach(optimizer):
            for batch in data:
                loss(model, batch).backward()
                optimizer.step()
                optimizer.zero_grad()

    Args:
        model: the pruned model.
        masks: layer name -> bool mask of the weight's shape, True = kept (`PruneResult.masks`).
            None takes the zeros that every Linear and Conv2d (groups=1) weight has now; a weight
            that is entirely zero (a zero-initialized layer) is then left free.
        mask_gradients: also zero the gradients of pruned weights in backward, so that gradient
            norms and clipping see only weights that train.

    Raises:
        ValueError: a mask names no layer with a plain weight, or has another shape.
        TypeError: a mask is not a bool tensor.
    """

    def __init__(
        self,
        model: nn.Module,
        masks: Mapping[str, Tensor] | None = None,
        *,
        mask_gradients: bool = False,
    ) -> None:
        self._model = model
        self._mask_gradients = mask_gradients
        self._pruned: dict[nn.Parameter, Tensor] = {}
        self._handles: list[RemovableHandle] = []
        self._gradient_handles: list[RemovableHandle] = []
        self.update(masks)

    def update(self, masks: Mapping[str, Tensor] | None = None) -> None:
        """Replace the masks (None: the zeros of now) and apply them at once."""
        pruned = self._from_zeros() if masks is None else self._from_masks(masks)
        for handle in self._gradient_handles:
            handle.remove()
        self._gradient_handles = []
        self._pruned = pruned
        if self._mask_gradients:
            for weight in pruned:
                if weight.requires_grad:
                    hook = self._gradient_hook(weight)
                    handle = weight.register_hook(hook)  # type: ignore[no-untyped-call]
                    self._gradient_handles.append(handle)
        self.apply_()

    def apply_(self) -> None:
        """Set every pruned weight to zero now."""
        with torch.no_grad():
            for weight in self._pruned:
                weight.masked_fill_(self._mask(weight), 0.0)

    def attach(self, optimizer: torch.optim.Optimizer) -> MaskKeeper:
        """Apply the masks after each `optimizer.step()`; several optimizers may be attached.

        Raises:
            ValueError: the optimizer holds none of the masked weights.
        """
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if self._pruned and not any(id(weight) in held for weight in self._pruned):
            raise ValueError(
                "MaskKeeper: optimizer must hold a masked weight of the model, got none of "
                f"{len(self._pruned)}"
            )

        def after_step(optimizer: Any, args: Any, kwargs: Any) -> None:
            self.apply_()

        self._handles.append(optimizer.register_step_post_hook(after_step))
        return self

    def detach(self) -> None:
        """Stop: remove all hooks. The weights stay as they are."""
        for handle in self._handles + self._gradient_handles:
            handle.remove()
        self._handles = []
        self._gradient_handles = []

    def __enter__(self) -> MaskKeeper:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.detach()

    def _mask(self, weight: nn.Parameter) -> Tensor:
        if self._pruned[weight].device != weight.device:  # the model was moved since
            self._pruned[weight] = self._pruned[weight].to(weight.device)
        return self._pruned[weight]

    def _gradient_hook(self, weight: nn.Parameter) -> Any:
        return lambda gradient: gradient.masked_fill(self._mask(weight), 0.0)

    def _from_zeros(self) -> dict[nn.Parameter, Tensor]:
        pruned: dict[nn.Parameter, Tensor] = {}
        for _, module in prunable_modules(self._model):
            if is_reparametrized(module):
                continue  # torch.nn.utils.prune masks it in every forward call
            weight = module.weight
            assert isinstance(weight, nn.Parameter)
            zeros = weight.detach() == 0
            if bool(zeros.any()) and not bool(zeros.all()):
                pruned[weight] = zeros
        return pruned

    def _from_masks(self, masks: Mapping[str, Tensor]) -> dict[nn.Parameter, Tensor]:
        layers = dict(prunable_modules(self._model))
        pruned: dict[nn.Parameter, Tensor] = {}
        for name, mask in masks.items():
            if name not in layers or is_reparametrized(layers[name]):
                raise ValueError(
                    "MaskKeeper: masks must name Linear or Conv2d (groups=1) layers with a plain "
                    f"weight, got {name!r}"
                )
            weight = layers[name].weight
            assert isinstance(weight, nn.Parameter)
            if mask.dtype != torch.bool:
                raise TypeError(f"MaskKeeper: masks[{name!r}] must be bool, got {mask.dtype}")
            if mask.shape != weight.shape:
                raise ValueError(
                    f"MaskKeeper: masks[{name!r}] must have shape {list(weight.shape)}, "
                    f"got {list(mask.shape)}"
                )
            pruned[weight] = ~mask.to(weight.device)
        return pruned
