# SPDX-License-Identifier: Apache-2.0
"""`CSRLinear`, `NMLinear` and `BitmapLinear`: replace nn.Linear."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sparsekern import _core, ops
from sparsekern._nm_mask import check_group
from sparsekern._packed import DTYPE_NAMES, PackedTensor, to_numpy
from sparsekern.bitmap import BitmapTensor
from sparsekern.nm import NMTensor
from sparsekern.nn._layer import CSRLayer, PackedLayer, trainable

if TYPE_CHECKING:
    from typing_extensions import Self


def check_linear(layer: str, module: object) -> None:
    """Refuse what `from_dense` of that layer cannot pack."""
    if not isinstance(module, nn.Linear):
        raise TypeError(
            f"{layer}.from_dense: module must be an nn.Linear, got {type(module).__name__}"
        )


class LinearLayer(PackedLayer):
    """What linear layers of all formats share."""

    in_features: int
    out_features: int

    @classmethod
    def from_packed(
        cls, packed: PackedTensor, bias: Tensor | None = None, activation: str = "none"
    ) -> Self:
        """A layer over these tensors, without a copy.

        Values and bias that are Parameters stay the same objects: two layers made from the
        `weight` of one are tied.

        Raises:
            TypeError: `packed` is not of the kind that the layer is made of.
            ValueError: a bias of another shape.
        """
        name = f"{cls.__name__}.from_packed"
        if not isinstance(packed, cls._TENSOR):
            raise TypeError(
                f"{name}: packed must be a {cls._TENSOR.__name__}, got {type(packed).__name__}"
            )
        rows, cols = packed.shape
        if bias is not None and bias.shape != (rows,):
            raise ValueError(f"{name}: bias must have shape [{rows}], got {list(bias.shape)}")
        self = cls._bare()
        self.activation = activation
        self.in_features, self.out_features = cols, rows
        self._adopt(packed, bias)
        return self

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """[out_features, in_features]."""
        return self.out_features, self.in_features

    def dense_module(self) -> nn.Linear:
        """An nn.Linear of this shape on the meta device."""
        has_bias = self.bias is not None
        return nn.Linear(self.in_features, self.out_features, bias=has_bias, device="meta")

    def extra_repr(self) -> str:
        """What ``repr(model)`` shows of the layer."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"{self._description()}"
        )


class CSRLinear(LinearLayer, CSRLayer):
    """activation(x W^T + bias) with a packed sparse W.

    A new layer keeps no weight (it answers the bias): it is there to load a state into. Use
    `from_dense` or `from_packed` for one with weights.

    Args:
        in_features: size of the last axis of x.
        out_features: size of the last axis of the result.
        bias: whether there is one.
        activation: none, relu, relu6, gelu, gelu_tanh, silu or hardswish.
        block_rows: 1, 2 or 4 outputs that share one pattern.
        dtype: of the values: float32, bfloat16, float16 or int8; default torch's default dtype.
        device: where the tensors are; default the CPU.

    Shape: x [..., in_features], float32, bfloat16 or float16; result [..., out_features], the
    dtype of x, whatever the dtype of the values.

    Raises:
        TypeError, ValueError: wrong arguments.
        NotImplementedError: an activation that no kernel fuses.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        activation: str = "none",
        block_rows: int = 1,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(out_features, in_features, bias, activation, block_rows, dtype, device)
        self.in_features = in_features
        self.out_features = out_features

    @classmethod
    def from_dense(
        cls,
        module: nn.Linear,
        activation: str = "none",
        *,
        mask: Tensor | None = None,
        block_rows: int = 1,
        dtype: torch.dtype | None = None,
    ) -> Self:
        """Pack the weight of a dense layer, which is left as it is; nothing is shared with it.

        Values can be trained when the dense weight could (int8 never). `mask`, `block_rows` and
        `dtype` are those of `CSRTensor.from_dense`.

        Raises:
            TypeError: `module` is not an nn.Linear; and what `CSRTensor.from_dense` raises.
        """
        check_linear("CSRLinear", module)
        packed = cls._matrix_of(
            module.weight,
            requires_grad=module.weight.requires_grad,
            mask=mask,
            block_rows=block_rows,
            dtype=dtype,
        )
        return cls.from_packed(packed, cls._copy_of(module.bias), activation).train(module.training)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply x [..., in_features]; the result is [..., out_features] in the dtype of x."""
        buffers: dict[str, Any] = self._buffers  # attributes are slower, by way of __getattr__
        return ops.linear(
            x,
            self.values,
            buffers["structure"],
            buffers["scale"],
            self.bias,
            self.out_features,
            self._activation,
            self._int8_activations,
        )


class NMLinear(LinearLayer):
    """activation(x W^T + bias) with an N:M matrix W: n of every m inputs of each output.

    A new layer keeps zeros: it is there to load a state into. Use `from_dense` or `from_packed`
    for one with weights.

    Args:
        in_features: size of the last axis of x.
        out_features: size of the last axis of the result.
        n: weights that each group keeps, 1 to m - 1.
        m: consecutive inputs of a group: 2, 4, 8, 16 or 32.
        bias, activation, dtype, device: as in `CSRLinear`.

    Shape: x [..., in_features], float32, bfloat16 or float16; result [..., out_features], the
    dtype of x, whatever the dtype of the values.

    Raises:
        TypeError, ValueError: wrong arguments.
        NotImplementedError: an activation that no kernel fuses, or an m that no format has.
    """

    _TENSOR = NMTensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        n: int,
        m: int,
        bias: bool = True,
        activation: str = "none",
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        check_group("NMLinear", n, m)
        self.in_features = in_features
        self.out_features = out_features
        self._begin(
            out_features,
            in_features,
            bias,
            activation,
            dtype,
            device,
            lambda zeros: _core.nm_pack(zeros, "int8", n, m),
        )

    @classmethod
    def from_dense(
        cls,
        module: nn.Linear,
        n: int,
        m: int,
        activation: str = "none",
        *,
        mask: Tensor | None = None,
        strict: bool = True,
        dtype: torch.dtype | None = None,
    ) -> Self:
        """Pack the weight of a dense layer, which is left as it is; nothing is shared with it.

        Values can be trained when the dense weight could (int8 never). `n`, `m`, `mask`, `strict`
        and `dtype` are those of `NMTensor.from_dense`.

        Raises:
            TypeError: `module` is not an nn.Linear; and what `NMTensor.from_dense` raises.
        """
        check_linear("NMLinear", module)
        weight = module.weight
        packed = NMTensor.from_dense(weight.detach(), n, m, mask=mask, strict=strict, dtype=dtype)
        packed = trainable(packed, weight.requires_grad)
        return cls.from_packed(packed, cls._copy_of(module.bias), activation).train(module.training)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply x [..., in_features]; the result is [..., out_features] in the dtype of x."""
        buffers: dict[str, Any] = self._buffers  # attributes are slower, by way of __getattr__
        return ops.linear_nm(
            x,
            self.values,
            buffers["structure"],
            buffers["scale"],
            self.bias,
            self.out_features,
            self._activation,
        )

    def kernel(self, x_rows: int = 1) -> str:
        """Name of the kernel that multiplies `x_rows` rows of x on this machine."""
        return _core.nm_kernel(
            to_numpy(self.structure.cpu()), DTYPE_NAMES[self.values.dtype], x_rows
        )


class BitmapLinear(LinearLayer):
    """activation(x W^T + bias) with a bitmap matrix W: any weights are kept, 30 to 75 % are not.

    A new layer keeps no weight (it answers the bias): it is there to load a state into. Use
    `from_dense` or `from_packed` for one with weights.

    Args:
        in_features: size of the last axis of x.
        out_features: size of the last axis of the result.
        bias, activation, dtype, device: as in `CSRLinear`.

    Shape: x [..., in_features], float32, bfloat16 or float16; result [..., out_features], the
    dtype of x, whatever the dtype of the values.

    Raises:
        TypeError, ValueError: wrong arguments.
        NotImplementedError: an activation that no kernel fuses.
    """

    _TENSOR = BitmapTensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        activation: str = "none",
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self._begin(
            out_features,
            in_features,
            bias,
            activation,
            dtype,
            device,
            lambda zeros: _core.bitmap_pack(zeros, "int8"),
        )

    @classmethod
    def from_dense(
        cls,
        module: nn.Linear,
        activation: str = "none",
        *,
        mask: Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> Self:
        """Pack the weight of a dense layer, which is left as it is; nothing is shared with it.

        Values can be trained when the dense weight could (int8 never). `mask` and `dtype` are
        those of `BitmapTensor.from_dense`.

        Raises:
            TypeError: `module` is not an nn.Linear; and what `BitmapTensor.from_dense` raises.
        """
        check_linear("BitmapLinear", module)
        weight = module.weight
        packed = BitmapTensor.from_dense(weight.detach(), mask=mask, dtype=dtype)
        packed = trainable(packed, weight.requires_grad)
        return cls.from_packed(packed, cls._copy_of(module.bias), activation).train(module.training)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply x [..., in_features]; the result is [..., out_features] in the dtype of x."""
        buffers: dict[str, Any] = self._buffers  # attributes are slower, by way of __getattr__
        return ops.linear_bitmap(
            x,
            self.values,
            buffers["structure"],
            buffers["scale"],
            self.bias,
            self.out_features,
            self._activation,
        )

    def kernel(self, x_rows: int = 1) -> str:
        """Name of the kernel that multiplies `x_rows` rows of x on this machine."""
        return _core.bitmap_kernel(
            to_numpy(self.structure.cpu()), DTYPE_NAMES[self.values.dtype], x_rows
        )
