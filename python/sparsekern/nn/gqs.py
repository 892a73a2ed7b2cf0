# SPDX-License-Identifier: Apache-2.0
"""`GQSLinear`: replaces nn.Linear by quantized groups of weights, kept or pruned whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sparsekern import _core, ops
from sparsekern._packed import PackedTensor, check_matrix_size, to_numpy
from sparsekern.gqs import GQSTensor, check_scale_dtype
from sparsekern.nn.linear import LinearLayer, check_linear

if TYPE_CHECKING:
    from typing_extensions import Self


class GQSLinear(LinearLayer):
    """activation(x W^T + bias) with a group-quantized sparse W.

    A new layer keeps no weight (it answers the bias): it is there to load a state into. Use
    `from_dense` or `from_packed` for one with weights.

    Attributes:
        scale: Parameter, the scales and zero-points of the kept groups; what can be trained. No
            conversion of the module's dtype touches it. The codes (`values`) never change.
        int8_activations: False; may be set to True: x is then rounded to int8, group by group
            (`sparsekern.ops.gqs_linear`).

    Args:
        in_features: size of the last axis of x.
        out_features: size of the last axis of the result.
        bits: of a weight: 2, 4 or 8.
        group: consecutive inputs that share a scale: 16, 32, 64 or 128.
        bias, activation, device: as in `CSRLinear`.
        scale_dtype: torch.float16, bfloat16, float32 or uint8.

    Shape: x [..., in_features], float32, bfloat16 or float16; result [..., out_features], the
    dtype of x.

    Raises:
        TypeError, ValueError: wrong arguments.
        NotImplementedError: an activation that no kernel fuses; bits or a group that no format has.
    """

    _TENSOR = GQSTensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bits: int = 4,
        group: int = 16,
        bias: bool = True,
        activation: str = "none",
        scale_dtype: torch.dtype = torch.float16,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        check_matrix_size("GQSLinear", (out_features, in_features))
        scale_dtype = check_scale_dtype("GQSLinear", scale_dtype)
        self.in_features = in_features
        self.out_features = out_features
        self.activation = activation
        packed = GQSTensor.empty(out_features, in_features, bits, group, scale_dtype)
        self._adopt(packed, torch.zeros(out_features) if bias else None)
        if device is not None:
            self.to(device)

    @classmethod
    def from_dense(
        cls,
        module: nn.Linear,
        bits: int = 4,
        group: int = 16,
        activation: str = "none",
        *,
        mask: Tensor | None = None,
        scales: Tensor | None = None,
        zeros: Tensor | None = None,
        symmetric: bool = True,
        scale_dtype: torch.dtype = torch.float16,
    ) -> Self:
        """Quantize the weight of a dense layer, which is left as it is; nothing is shared with it.

        Scales and zero-points can be trained when the dense weight could (8-bit scales never). The
        other arguments are those of `GQSTensor.from_dense`.

        Raises:
            TypeError: `module` is not an nn.Linear; and what `GQSTensor.from_dense` raises.
        """
        check_linear("GQSLinear", module)
        packed = GQSTensor.from_dense(
            module.weight.detach(),
            bits,
            group,
            mask=mask,
            scales=scales,
            zeros=zeros,
            symmetric=symmetric,
            scale_dtype=scale_dtype,
        )
        packed = trainable_scales(packed, module.weight.requires_grad)
        return cls.from_packed(packed, cls._copy_of(module.bias), activation).train(module.training)

    def _adopt(self, packed: PackedTensor, bias: Tensor | None) -> None:
        super()._adopt(packed, bias)
        scale = self._buffers.pop("scale")
        assert scale is not None
        if not isinstance(scale, nn.Parameter):
            scale = nn.Parameter(scale.detach(), requires_grad=scale.is_floating_point())
        self.register_parameter("scale", scale)

    def _apply(self, fn: Callable[[Any], Any], recurse: bool = True) -> Self:
        before = self.scale.data if self.scale is not None else None
        super()._apply(fn, recurse)
        if before is not None and self.scale is not None and self.scale.dtype != before.dtype:
            self.scale.data = before.to(self.scale.device)
        return self

    def _resize_for(self, packed: PackedTensor) -> None:
        super()._resize_for(packed)
        own, new = self.scale, packed.scale
        assert own is not None
        assert new is not None
        if own.shape != new.shape or own.dtype != new.dtype:
            if not new.is_floating_point():
                own.requires_grad_(False)
            own.data = torch.empty(new.shape, dtype=new.dtype, device=own.device)

    @property
    def int8_activations(self) -> bool:
        """Whether x is rounded to int8."""
        return self._int8_activations

    @int8_activations.setter
    def int8_activations(self, on: bool) -> None:
        self._int8_activations = bool(on)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply x [..., in_features]; the result is [..., out_features] in the dtype of x."""
        return ops.linear_gqs(
            x,
            self.values,
            self._buffers["structure"],  # type: ignore[arg-type]
            self.scale,
            self.bias,
            self.out_features,
            self._activation,
            self._int8_activations,
        )

    def kernel(self, x_rows: int = 1) -> str:
        """Name of the kernel that multiplies `x_rows` rows of x on this machine."""
        structure = to_numpy(self.structure.cpu())
        return _core.gqs_kernel(structure, x_rows, self._int8_activations)


def trainable_scales(packed: GQSTensor, requires_grad: bool) -> GQSTensor:
    """The same matrix with its scales as a Parameter; 8-bit ones are never trained."""
    requires_grad = requires_grad and packed.scale.is_floating_point()
    packed.scale = nn.Parameter(packed.scale, requires_grad=requires_grad)
    return packed
