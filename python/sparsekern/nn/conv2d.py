# SPDX-License-Identifier: Apache-2.0
"""`CSRConv2d`: replaces nn.Conv2d where its kernel is 1x1."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sparsekern import ops
from sparsekern.csr import CSRTensor
from sparsekern.nn._layer import CSRLayer

if TYPE_CHECKING:
    from typing_extensions import Self

_EXISTS = "kernel_size 1, stride 1 or 2, padding 0, groups 1"


def _pair(value: object) -> tuple[object, object]:
    if isinstance(value, (tuple, list)):
        return (value[0], value[1]) if len(value) == 2 else (value, value)
    return value, value


def _check_geometry(
    operator: str, kernel_size: object, stride: object, padding: object, groups: object
) -> int:
    """The stride, or NotImplementedError that lists which convolutions exist."""
    wanted = (
        ("kernel_size", kernel_size, _pair(kernel_size) == (1, 1)),
        ("stride", stride, _pair(stride) in ((1, 1), (2, 2))),
        ("padding", padding, padding in ("same", "valid") or _pair(padding) == (0, 0)),
        ("groups", groups, groups == 1),
    )
    for name, value, exists in wanted:
        if not exists:
            raise NotImplementedError(f"{operator}: must have {_EXISTS}, got {name} {value}")
    first = _pair(stride)[0]
    assert isinstance(first, int)
    return first


class CSRConv2d(CSRLayer):
    """1x1 convolution with a packed sparse matrix: activation(conv(x, W) + bias).

    A new layer keeps no weight, as with `CSRLinear`.

    Args:
        in_channels: channels of x.
        out_channels: channels of the result.
        kernel_size: 1.
        stride: 1 or 2.
        padding: 0.
        groups: 1.
        bias, activation, block_rows, dtype, device: as in `CSRLinear`.

    Shape: x [batch, in_channels, height, width] or without batch; result [batch, out_channels,
    ceil(height / stride), ceil(width / stride)], the dtype of x, NCHW in memory.

    Raises:
        TypeError, ValueError: wrong arguments.
        NotImplementedError: another kernel size, stride, padding or groups; the text lists what
            exists.
    """

    _CONV = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int] = 1,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        groups: int = 1,
        bias: bool = True,
        activation: str = "none",
        block_rows: int = 1,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        step = _check_geometry("CSRConv2d", kernel_size, stride, padding, groups)
        super().__init__(out_channels, in_channels, bias, activation, block_rows, dtype, device)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.stride = step

    @classmethod
    def from_dense(
        cls,
        module: nn.Conv2d,
        activation: str = "none",
        *,
        mask: Tensor | None = None,
        block_rows: int = 1,
        dtype: torch.dtype | None = None,
    ) -> Self:
        """Pack the weight of a dense 1x1 convolution; see `CSRLinear.from_dense`.

        Raises:
            TypeError: `module` is not an nn.Conv2d.
            NotImplementedError: it is not one that exists as sparse; the text lists those.
        """
        name = "CSRConv2d.from_dense"
        if not isinstance(module, nn.Conv2d):
            raise TypeError(f"{name}: module must be an nn.Conv2d, got {type(module).__name__}")
        step = _check_geometry(
            name, module.kernel_size, module.stride, module.padding, module.groups
        )
        packed = cls._matrix_of(
            module.weight,
            requires_grad=module.weight.requires_grad,
            mask=mask,
            block_rows=block_rows,
            dtype=dtype,
        )
        bias = cls._copy_of(module.bias)
        return cls.from_packed(packed, bias, activation, stride=step).train(module.training)

    @classmethod
    def from_packed(
        cls,
        packed: CSRTensor,
        bias: Tensor | None = None,
        activation: str = "none",
        *,
        stride: int = 1,
    ) -> Self:
        """A layer over these tensors, without a copy; see `CSRLinear.from_packed`.

        Raises:
            TypeError: `packed` is not a CSRTensor.
            ValueError: a bias of another shape.
            NotImplementedError: a stride that is not 1 or 2.
        """
        name = "CSRConv2d.from_packed"
        if not isinstance(packed, CSRTensor):
            raise TypeError(f"{name}: packed must be a CSRTensor, got {type(packed).__name__}")
        rows, cols = packed.shape
        if bias is not None and bias.shape != (rows,):
            raise ValueError(f"{name}: bias must have shape [{rows}], got {list(bias.shape)}")
        step = _check_geometry(name, 1, stride, 0, 1)
        self = cls._bare()
        self.activation = activation
        self.in_channels, self.out_channels, self.stride = cols, rows, step
        self._adopt(packed, bias)
        return self

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """[out_channels, in_channels]."""
        return self.out_channels, self.in_channels

    def forward(self, x: Tensor) -> Tensor:
        """Convolve x [batch, in_channels, height, width], or without batch as nn.Conv2d does."""
        batched = x.unsqueeze(0) if x.dim() == 3 else x
        buffers: dict[str, Any] = self._buffers  # attributes are slower, by way of __getattr__
        y = ops.conv2d(
            batched,
            self.values,
            buffers["structure"],
            buffers["scale"],
            self.bias,
            self.out_channels,
            self.stride,
            self._activation,
            self._int8_activations,
        )
        return y.squeeze(0) if x.dim() == 3 else y

    def dense_module(self) -> nn.Conv2d:
        """An nn.Conv2d of this shape on the meta device."""
        return nn.Conv2d(
            self.in_channels,
            self.out_channels,
            1,
            self.stride,
            bias=self.bias is not None,
            device="meta",
        )

    def extra_repr(self) -> str:
        """What ``repr(model)`` shows of the layer."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size=1, stride={self.stride}, "
            f"{self._description()}"
        )
