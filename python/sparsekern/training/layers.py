# SPDX-License-Identifier: Apache-2.0
"""Layers that train with N:M weights over a dense master weight."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sparsekern._nm_mask import nm_mask
from sparsekern._nm_transposable import nm_mask_transposable
from sparsekern.nm import NMTensor
from sparsekern.nn._layer import trainable
from sparsekern.nn.linear import NMLinear
from sparsekern.patterns import NM

from .forward import Hard, SoftThreshold, soft_scale
from .gradient import StraightThrough
from .product import KERNEL_DTYPES, masked_conv2d, masked_linear, use_kernel
from .recipe import Recipe

__all__ = ["NMTrainingConv2d", "NMTrainingLayer", "NMTrainingLinear"]


class NMTrainingLayer(nn.Module):
    """What N:M layers in training share: a dense `weight`, its masks, and a count of steps.

    All that training goes on from is in buffers, so in the state dict.

    Attributes:
        weight: the master weight, an ordinary dense Parameter.
        mask: bool, the shape of weight: N:M along axis 1, True = kept; all True while dense. Where
            the kernels choose by themselves what they pack (see `refresh`), computed when asked
            for.
        mask_back: bool, weight's shape with axes 0 and 1 exchanged: the mask of the gradient of x,
            N:M along the outputs; None where that has none of its own.
        progress: int64, no dimensions: steps counted by `advance`.
        scale: float32, no dimensions: beta of a `SoftThreshold`, 0 before its first mask; else
            None.
    """

    weight: Tensor
    bias: Any
    progress: Tensor
    scale: Tensor | None
    beta: Tensor

    target: NM
    recipe: Recipe

    def _begin(self, n: int, m: int, recipe: Recipe | None) -> None:
        name = type(self).__name__
        recipe = Recipe() if recipe is None else recipe
        if not isinstance(recipe, Recipe):
            raise TypeError(f"{name}: recipe must be a Recipe, got {type(recipe).__name__}")
        self.target, self.recipe = NM(n, m), recipe
        if recipe.frames is not None and recipe.frames.last != self.target:
            raise ValueError(
                f"{name}: recipe.frames must end in {self.target.label}, got "
                f"{recipe.frames.last.label}"
            )
        weight = self.weight
        if recipe.input_gradient == "transposable":
            frames = ((0, self.target),) if recipe.frames is None else recipe.frames.frames
            largest = max(pattern.m for _, pattern in frames if pattern is not None)
            if weight.shape[0] % largest or weight.shape[1] % largest or weight.dim() != 2:
                raise ValueError(
                    f"{name}: a transposable mask needs a matrix of multiples of m ({largest}), "
                    f"got {list(weight.shape)}"
                )
        like: dict[str, Any] = {"device": weight.device}
        # Buffers that a property reads, which register_buffer refuses.
        self._buffers["mask"] = torch.ones_like(weight.detach(), dtype=torch.bool)
        back = None
        if recipe.input_gradient != "same":
            # In memory the weight's order: the kernels for W^T take both as they lie.
            back = torch.ones_like(weight.detach(), dtype=torch.bool).transpose(0, 1)
        self._buffers["mask_back"] = back
        self._mask_waits = self._back_waits = False
        self._refreshed = 0
        self.register_buffer("progress", torch.zeros((), dtype=torch.int64, **like))
        soft = isinstance(recipe.forward, SoftThreshold)
        self.register_buffer("scale", torch.zeros((), **like) if soft else None)
        self.register_buffer("beta", torch.zeros((), **like), persistent=False)
        self._take_step(0)
        self.refresh()

    # --- the schedule ----------------------------------------------------------------------------

    def _take_step(self, step: int) -> None:
        """Set what follows from the number of steps alone."""
        self._step = step
        self._pattern = self.recipe.pattern_at(self.target, step)
        beta = self.recipe.forward.beta(step)
        self._fades = beta > 0.0
        self.beta.fill_(beta)

    @property
    def pattern(self) -> NM | None:
        """The pattern at this step; None while dense."""
        return self._pattern

    @property
    def step_count(self) -> int:
        """Steps that `advance` has counted."""
        return self._step

    @torch.no_grad()
    def advance(self) -> None:
        """Count one optimizer step; call it after each. Updates the mask where that is due."""
        before = self._pattern
        self._take_step(self._step + 1)
        self.progress.fill_(self._step)
        if self._pattern != before or self.recipe.refreshes(self._step):
            self.refresh()

    @property
    def mask(self) -> Tensor:
        """The mask of the forward pass, along the inputs."""
        mask = self._buffers["mask"]
        assert mask is not None
        if self._mask_waits:
            with torch.no_grad():
                mask.copy_(nm_mask(self.weight, self.target.n, self.target.m, dim=1))
            self._mask_waits = self._changed()
        return mask

    @property
    def mask_back(self) -> Tensor | None:
        """The mask of the gradient of x, along the outputs, or None."""
        mask = self._buffers["mask_back"]
        if self._back_waits:
            assert mask is not None
            with torch.no_grad():
                kept = nm_mask(self.weight, self.target.n, self.target.m, dim=0)
                mask.copy_(kept.transpose(0, 1))
            self._back_waits = self._changed()
        return mask

    def _settle(self) -> None:
        """Compute the masks that nothing has asked for yet."""
        _ = self.mask, self.mask_back

    def _changed(self) -> bool:
        """Whether the weight is not that of the last `refresh`: a mask of it is not for keeping."""
        return _version(self.weight) != self._refreshed

    @torch.no_grad()
    def refresh(self) -> None:
        """Compute the masks from the weight as it is now.

        Where they are due again after the next step, and the kernels can choose while they pack,
        the masks are computed only when something asks for them.
        """
        pattern, weight = self._pattern, self.weight
        self._mask_waits = self._back_waits = False
        if weight.device.type == "meta":
            return
        mask, mask_back = self.mask, self.mask_back
        if pattern is None:
            mask.fill_(True)
            if mask_back is not None:
                mask_back.fill_(True)
            return
        self._refreshed = _version(weight)
        if self._kernels_choose() and pattern == self.target:
            self._mask_waits = self._back_waits = True
            return
        n, m = pattern.n, pattern.m
        if self.recipe.input_gradient == "transposable":
            mask.copy_(nm_mask_transposable(weight, n, m))
        else:
            mask.copy_(nm_mask(weight, n, m, dim=1))
        if mask_back is not None:
            if self.recipe.input_gradient == "transposable":
                mask_back.copy_(mask.t())
            else:
                mask_back.copy_(nm_mask(weight, n, m, dim=0).transpose(0, 1))
        if self.scale is not None and float(self.scale) == 0.0:
            self.scale.copy_(soft_scale(weight, mask, 1, m))

    def _kernels_choose(self) -> bool:
        """Whether masks are needed only by who asks: both products pack the N largest by kernels.

        Not when the mask must outlast the next step, nor where backward multiplies densely.
        """
        return False

    # --- the weights of the products -------------------------------------------------------------

    @torch.no_grad()
    def sparse_weight(self) -> Tensor:
        """A new tensor: the weight that stays when training ends now, exactly N:M.

        That of the forward pass, but for what a `Decaying` has not faded out: that is cut.
        """
        weight = self.weight.detach()
        if self._pattern is None:
            return weight.clone()
        forward = self.recipe.forward
        if isinstance(forward, SoftThreshold):
            return forward.effective(weight, self.mask, 1, self._pattern.m, self.beta, self.scale)
        return torch.where(self.mask, weight, 0.0)

    def _effective(self, *, masked: bool) -> Tensor:
        """The forward weight under autograd; with `Hard` and not `masked` W, yet to be masked."""
        weight, recipe = self.weight, self.recipe
        effective: Tensor = weight
        if masked or not isinstance(recipe.forward, Hard):
            effective = self._of_mask(weight, self.mask, 1)
        elif isinstance(recipe.gradient, StraightThrough):
            return weight  # whatever the mask
        return recipe.gradient.connect(weight, effective, self.mask)

    def _of_mask(self, weight: Tensor, mask: Tensor, dim: int) -> Tensor:
        assert self._pattern is not None
        forward = self.recipe.forward
        return forward.effective(weight, mask, dim, self._pattern.m, self.beta, self.scale)

    def _own_back(self, *, masked: bool) -> Tensor | None:
        """The weight of the gradient of x where that has a mask of its own; see `_effective`."""
        if self.recipe.input_gradient != "own":
            return None
        weight = self.weight.detach()
        if isinstance(self.recipe.forward, Hard) and not masked:
            return weight
        assert self.mask_back is not None
        return self._of_mask(weight, self.mask_back.transpose(0, 1), 0)

    # --- torch's protocols -----------------------------------------------------------------------

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """Buffers in the order of their shape, which some file formats ask for."""
        self._settle()
        super()._save_to_state_dict(destination, prefix, keep_vars)
        back = self._buffers["mask_back"]
        if back is not None:
            destination[prefix + "mask_back"] = back.contiguous()

    def _apply(self, fn: Callable[[Any], Any], recurse: bool = True) -> Any:
        self._settle()
        kept = {name: self._buffers[name] for name in ("beta", "scale")}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, old in kept.items():  # .half() and the like are not for these
            new = self._buffers[name]
            if old is not None and new is not None and new.dtype != old.dtype:
                self._buffers[name] = old.to(new.device)
        return self

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *rest)
        if prefix + "mask" in state_dict:
            self._mask_waits = self._back_waits = False
        if prefix + "progress" in state_dict and self.progress.device.type != "meta":
            self._take_step(int(self.progress))

    def extra_repr(self) -> str:
        """What ``repr(model)`` shows of the layer."""
        now = "dense" if self._pattern is None else self._pattern.label
        of_base = super().extra_repr()
        return f"{of_base}, target={self.target.label}, now={now}, step={self._step}"


class NMTrainingLinear(NMTrainingLayer, nn.Linear):
    """An nn.Linear that trains with N:M weights; the dense `weight` stays the master.

    Forward multiplies by the weight that `recipe.forward` makes of it, N:M along the inputs;
    backward follows the recipe too. While the mask is hard, packed weights and the N:M kernels do
    the products that gain from them (see `Recipe`). Groups are of consecutive inputs; a short last
    group keeps min(n, its size).

    `advance` (or `Training.step`) after each optimizer step keeps the schedule and the masks.
    Packing is part of each forward and backward pass, so that what is multiplied is always the
    weight of that moment.

    Args:
        in_features, out_features, bias, device, dtype: as of nn.Linear.
        n, m: weights kept of each group; m: 2, 4, 8, 16 or 32.
        recipe: default `Recipe()`.

    Shape: x [..., in_features], the weight's dtype (autocast converts both); result
    [..., out_features].

    Raises:
        TypeError, ValueError, NotImplementedError: wrong arguments; see `NM` and `Recipe`.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        n: int,
        m: int,
        bias: bool = True,
        recipe: Recipe | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        nn.Linear.__init__(self, in_features, out_features, bias, device, dtype)
        self._begin(n, m, recipe)

    @classmethod
    def from_dense(
        cls, module: nn.Linear, n: int, m: int, recipe: Recipe | None = None
    ) -> NMTrainingLinear:
        """A training layer over the very Parameters of a dense one, which is left as it is.

        Raises:
            TypeError: `module` is not an nn.Linear; and as the constructor.
        """
        if not isinstance(module, nn.Linear):
            raise TypeError(
                f"{cls.__name__}.from_dense: module must be an nn.Linear, got "
                f"{type(module).__name__}"
            )
        self = cls.__new__(cls)
        nn.Module.__init__(self)
        self.in_features, self.out_features = module.in_features, module.out_features
        self.weight, self.bias = module.weight, module.bias
        self._begin(n, m, recipe)
        return self.train(module.training)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply x [..., in_features]; the result is [..., out_features]."""
        if x.shape[-1] != self.in_features:
            raise ValueError(
                f"NMTrainingLinear: x.shape[-1] must equal in_features ({self.in_features}), got "
                f"{x.shape[-1]}"
            )
        recipe, pattern, bias = self.recipe, self._pattern, self.bias
        mask = w_back = mask_back = None
        select = False
        w: Tensor = self.weight
        if pattern is not None:
            w, w_back = self._effective(masked=False), self._own_back(masked=False)
            if not self._fades:
                # Nothing chooses but the kernels, and they by the master weight.
                rows = x.numel() // max(1, self.in_features)
                chosen = self._mask_waits and self._back_waits and x.dtype == w.dtype
                chosen = chosen and not torch.is_autocast_enabled(x.device.type)
                select = chosen and use_kernel(recipe.kernel, pattern, x, rows)
                if not select:
                    mask, mask_back = self.mask, self.mask_back
        x, w, w_back, bias = _autocast(x, w, w_back, bias)
        if x.dtype != w.dtype:
            raise TypeError(f"NMTrainingLinear: x must be {w.dtype}, got {x.dtype}")
        return masked_linear(
            x,
            w,
            mask,
            bias,
            w_back=w_back,
            mask_back=mask_back,
            pattern=pattern,
            kernel=recipe.kernel,
            prune=recipe.output_gradient,
            select=select,
        )

    def _kernels_choose(self) -> bool:
        recipe, step = self.recipe, self._step + 1
        return (
            recipe.input_gradient == "own"
            and isinstance(recipe.forward, Hard)
            and recipe.kernel != "never"
            and recipe.refreshes(step)
            and recipe.pattern_at(self.target, step) == self.target
            and self.weight.device.type == "cpu"
            and self.weight.dtype in KERNEL_DTYPES
        )

    def to_packed(self) -> NMLinear:
        """A packed layer of the sparse weight as it is now; nothing is shared with this one.

        Raises:
            ValueError: the layer is in a dense phase.
        """
        if self._pattern is None:
            raise ValueError(
                "NMTrainingLinear.to_packed: the layer must have reached a pattern, got a dense "
                f"phase at step {self._step}"
            )
        packed = NMTensor.from_dense(
            self.sparse_weight(), self._pattern.n, self._pattern.m, mask=self.mask
        )
        bias = self.bias
        copy = None if bias is None else nn.Parameter(bias.detach().clone(), bias.requires_grad)
        packed = trainable(packed, self.weight.requires_grad)
        return NMLinear.from_packed(packed, copy).train(self.training)


class NMTrainingConv2d(NMTrainingLayer, nn.Conv2d):
    """An nn.Conv2d (groups=1) that trains with weights that are N:M along the input channels.

    Of m consecutive input channels, each output and each position of the kernel keeps n. For a 1x1
    convolution that is the pattern of a linear layer, and what `convert_` packs. All products are
    dense: training prepares the pattern, it is not faster here. Made by `prepare_`.
    """

    @classmethod
    def from_dense(
        cls, module: nn.Conv2d, n: int, m: int, recipe: Recipe | None = None
    ) -> NMTrainingConv2d:
        """A training layer over the very Parameters of a dense one, which is left as it is.

        Raises:
            TypeError: `module` is not an nn.Conv2d; and as of `NMTrainingLinear`.
            ValueError: groups, or a padding that is not zeros of a fixed size.
        """
        name = f"{cls.__name__}.from_dense"
        if not isinstance(module, nn.Conv2d):
            raise TypeError(f"{name}: module must be an nn.Conv2d, got {type(module).__name__}")
        if module.groups != 1:
            raise ValueError(f"{name}: groups must be 1, got {module.groups}")
        if isinstance(module.padding, str) or module.padding_mode != "zeros":
            raise ValueError(
                f"{name}: padding must be zeros of a fixed size, got {module.padding!r}, "
                f"{module.padding_mode!r}"
            )
        if recipe is not None and getattr(recipe, "input_gradient", "") == "transposable":
            raise ValueError(f"{name}: input_gradient must be 'same' or 'own', got 'transposable'")
        self = cls.__new__(cls)
        nn.Module.__init__(self)
        for key, value in module.__dict__.items():
            if key not in self.__dict__:
                self.__dict__[key] = value
        self.weight, self.bias = module.weight, module.bias
        self._begin(n, m, recipe)
        return self.train(module.training)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve x [batch, in_channels, height, width]."""
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ValueError(
                f"NMTrainingConv2d: x must be [batch, {self.in_channels}, height, width], got "
                f"{list(x.shape)}"
            )
        w: Tensor = self.weight
        w_back, bias = None, self.bias
        if self._pattern is not None:
            w, w_back = self._effective(masked=True), self._own_back(masked=True)
        x, w, w_back, bias = _autocast(x, w, w_back, bias)
        assert not isinstance(self.padding, str)
        return masked_conv2d(
            x,
            w,
            bias,
            w_back=w_back,
            stride=_pair(self.stride),
            padding=_pair(self.padding),
            dilation=_pair(self.dilation),
            prune=self.recipe.output_gradient,
        )


def _version(weight: Tensor) -> int:
    """How often a tensor was written to."""
    return 0 if weight.is_inference() else weight._version


def _pair(sizes: tuple[int, ...]) -> tuple[int, int]:
    return sizes[0], sizes[1]


def _autocast(
    x: Tensor, w: Tensor, w_back: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """The four in autocast's dtype where it is on, as torch does for its own layers."""
    if not torch.is_autocast_enabled(x.device.type):
        return x, w, w_back, bias
    dtype = torch.get_autocast_dtype(x.device.type)
    return (
        x.to(dtype),
        w.to(dtype),
        None if w_back is None else w_back.to(dtype),
        None if bias is None else bias.to(dtype),
    )
