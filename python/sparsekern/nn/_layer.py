# SPDX-License-Identifier: Apache-2.0
"""What the sparse layers share: packed parameters, their state dict, conversions of dtype."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sparsekern import _activations, _core
from sparsekern._fakes import check_int8_activations
from sparsekern._packed import DTYPE_NAMES, PackedTensor, check_dtype, check_matrix_size, to_numpy
from sparsekern.csr import CSRTensor, check_block_rows

if TYPE_CHECKING:
    from typing_extensions import Self

_PACKED = ("values", "structure", "scale")


_T = TypeVar("_T", bound=PackedTensor)


def trainable(packed: _T, requires_grad: bool) -> _T:
    """The same matrix with its values as a Parameter; int8 values are never trained."""
    requires_grad = requires_grad and packed.dtype != torch.int8
    packed.values = nn.Parameter(packed.values, requires_grad=requires_grad)
    return packed


class PackedLayer(nn.Module):
    """Base of the layers over a `PackedTensor`.

    Attributes:
        values: Parameter, the kept weights (docs/formats.md); the only part that can be trained.
        structure: uint8 buffer, the pattern; no conversion of the module's dtype touches it.
        scale: float32 buffer [rows] with int8 values, else None; stays float32 in any conversion.
        bias: Parameter [rows] or None.

    ``load_state_dict`` takes a state with any pattern of the same shape: the tensors take its
    sizes. It is checked completely before anything of the layer changes.
    """

    values: nn.Parameter
    structure: Tensor
    scale: Tensor | None
    bias: nn.Parameter | None

    _TENSOR: type[PackedTensor]
    _int8_activations = False

    def _begin(
        self,
        rows: int,
        cols: int,
        bias: bool,
        activation: str,
        dtype: torch.dtype | None,
        device: torch.device | str | None,
        pack: Callable[[NDArray[np.int8]], tuple[Any, NDArray[np.uint8]]],
    ) -> None:
        """Checks and empty tensors of a new layer; `pack` packs a matrix of zeros."""
        name = type(self).__name__
        dtype = check_dtype(name, torch.get_default_dtype() if dtype is None else dtype)
        check_matrix_size(name, (rows, cols))
        self.activation = activation
        # One byte per weight, of pages that are only read and so never get memory of their own.
        values, structure = pack(np.zeros((rows, cols), np.int8))
        scale = torch.ones(rows) if dtype == torch.int8 else None
        empty = torch.zeros(len(values), dtype=dtype)
        packed = self._TENSOR.trusted(empty, torch.from_numpy(structure), scale)
        bias_dtype = torch.float32 if dtype == torch.int8 else dtype
        self._adopt(packed, torch.zeros(rows, dtype=bias_dtype) if bias else None)
        if device is not None:
            self.to(device)

    def _adopt(self, packed: PackedTensor, bias: Tensor | None) -> None:
        """Hold these tensors; a Parameter stays the same object, so that ties stay ties."""
        values = packed.values
        if not isinstance(values, nn.Parameter):
            values = nn.Parameter(values.detach(), requires_grad=values.dtype != torch.int8)
        self.values = values
        self.register_buffer("structure", packed.structure)
        self.register_buffer("scale", packed.scale)
        if bias is not None and not isinstance(bias, nn.Parameter):
            bias = nn.Parameter(bias.detach())
        self.register_parameter("bias", bias)

    @property
    def activation(self) -> str:
        """Name of the activation fused into the layer."""
        return _activations.NAMES[self._activation]

    @activation.setter
    def activation(self, name: str) -> None:
        self._activation = _activations.code_of(type(self).__name__, name)

    @property
    def int8_activations(self) -> bool:
        """Whether x is rounded to int8; only layers over a `CSRTensor` or a `GQSTensor` can."""
        return self._int8_activations

    @property
    def weight(self) -> PackedTensor:
        """The packed matrix, over this layer's own tensors."""
        return self._TENSOR.trusted(self.values, self.structure, self.scale)

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """[rows, cols] of the matrix: output and input features or channels."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Multiply; subclasses say the shapes."""
        raise NotImplementedError

    def to_dense(self) -> nn.Module:
        """The dense module that computes the same, with the activation after it where one is."""
        dense = self.dense_module()
        weight = self.weight.to_dense()
        with torch.no_grad():
            dense.weight = nn.Parameter(
                weight.reshape(dense.weight.shape), requires_grad=self.values.requires_grad
            )
            if self.bias is not None:
                bias = self.bias.detach().clone()
                dense.bias = nn.Parameter(bias, requires_grad=self.bias.requires_grad)
        result: nn.Module = dense
        if self.activation != "none":
            result = nn.Sequential(dense, _activations.ACTIVATIONS[self._activation].module())
        return result.train(self.training)

    def dense_module(self) -> nn.Linear | nn.Conv2d:
        """A torch module on the meta device, of the right shape."""
        raise NotImplementedError

    @staticmethod
    def _copy_of(bias: Tensor | None) -> nn.Parameter | None:
        if bias is None:
            return None
        return nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)

    @classmethod
    def _bare(cls) -> Self:
        """An instance without tensors, for the constructors that bring their own."""
        self = cls.__new__(cls)
        nn.Module.__init__(self)
        return self

    def _apply(self, fn: Callable[[Any], Any], recurse: bool = True) -> Self:
        scale = self.scale
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if scale is not None and self.scale is not None and self.scale.dtype != scale.dtype:
            self.scale = scale.to(self.scale.device)  # .half() and the like are not for the scale
        return self

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        given = {key: value for key, value in state_dict.items() if key.startswith(prefix)}
        parts = [given.get(prefix + name) for name in _PACKED]
        if parts[0] is not None and parts[1] is not None:
            try:
                self._resize_for(self._checked(parts[0], parts[1], parts[2]))
            except (TypeError, ValueError) as error:
                error_msgs.append(f"{prefix[:-1] or type(self).__name__}: {error}")
                parts = [None, None, None]
        if parts[0] is None or parts[1] is None:  # nothing, or not all of it: the layer stays
            absent = [name for name in _PACKED if prefix + name not in given]
            for name in _PACKED:
                own = getattr(self, name)
                if own is not None:
                    given[prefix + name] = own
                    if strict and name in absent:
                        missing_keys.append(prefix + name)
        super()._load_from_state_dict(
            given, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def _checked(self, values: Tensor, structure: Tensor, scale: Tensor | None) -> PackedTensor:
        packed = self._TENSOR(values, structure, scale)
        if tuple(packed.shape) != self.matrix_shape:
            raise ValueError(
                f"structure must have shape {list(self.matrix_shape)}, got {list(packed.shape)}"
            )
        own = self.values.dtype
        if (own == torch.int8) != (packed.dtype == torch.int8):
            raise TypeError(
                f"values must be {'int8' if own == torch.int8 else 'floating-point'} like the "
                f"layer's, got {packed.dtype}"
            )
        return packed

    def refill(self, packed: PackedTensor) -> None:
        """Take another matrix of the same shape, in the layer's own dtype and on its device."""
        self._resize_for(packed)
        with torch.no_grad():
            self.values.copy_(packed.values)
            self.structure.copy_(packed.structure)
            if self.scale is not None and packed.scale is not None:
                self.scale.copy_(packed.scale)

    def _resize_for(self, packed: PackedTensor) -> None:
        """New memory for another pattern, in the same tensor objects: ties and optimizers keep."""
        for own, new in ((self.values, packed.values), (self.structure, packed.structure)):
            if own.shape != new.shape:
                own.data = torch.empty(new.shape, dtype=own.dtype, device=own.device)

    def kernel(self, x_rows: int = 1) -> str:
        """Name of the kernel that multiplies `x_rows` rows of x on this machine."""
        raise NotImplementedError

    def _description(self) -> str:
        """The part of `extra_repr` that all layers have."""
        text = f"bias={self.bias is not None}"
        if self.activation != "none":
            text += f", activation={self.activation}"
        if self._int8_activations:
            text += ", int8_activations=True"
        dtype = str(self.values.dtype).removeprefix("torch.")
        if self.structure.device.type == "meta":
            return f"{text}, dtype={dtype}, device=meta"
        weight = self.weight
        text += f", density={weight.density:.4f}, {weight._pattern()}, dtype={dtype}"
        return f"{text}, kernel={self.kernel()}" if self.values.dtype in DTYPE_NAMES else text


class CSRLayer(PackedLayer):
    """Base of the layers over a `CSRTensor`.

    Attributes:
        int8_activations: False; may be set to True where the values are int8: x is then rounded to
            int8, row by row, and the products are of integers (`sparsekern.ops.csr_linear`).
    """

    _TENSOR = CSRTensor
    _CONV = False  # for the name of the kernel

    def __init__(
        self,
        rows: int,
        cols: int,
        bias: bool,
        activation: str,
        block_rows: int,
        dtype: torch.dtype | None,
        device: torch.device | str | None,
    ) -> None:
        super().__init__()
        check_block_rows(type(self).__name__, block_rows)
        self._begin(
            rows,
            cols,
            bias,
            activation,
            dtype,
            device,
            lambda zeros: _core.csr_pack(zeros, "int8", None, block_rows),
        )

    @property
    def weight(self) -> CSRTensor:
        """The packed matrix, over this layer's own tensors."""
        return CSRTensor.trusted(self.values, self.structure, self.scale)

    @property
    def int8_activations(self) -> bool:
        """Whether x is rounded to int8."""
        return self._int8_activations

    @int8_activations.setter
    def int8_activations(self, on: bool) -> None:
        if on:
            check_int8_activations(type(self).__name__, self.values, on)
        self._int8_activations = bool(on)

    @classmethod
    def _matrix_of(
        cls,
        weight: Tensor,
        *,
        requires_grad: bool,
        mask: Tensor | None,
        block_rows: int,
        dtype: torch.dtype | None,
    ) -> CSRTensor:
        """Pack a dense module's weight, trainable when that was."""
        matrix = weight.detach().flatten(1)
        if mask is not None and isinstance(mask, Tensor) and mask.dim() == weight.dim():
            mask = mask.flatten(1)
        packed = CSRTensor.from_dense(matrix, mask=mask, block_rows=block_rows, dtype=dtype)
        return trainable(packed, requires_grad)

    def kernel(self, x_rows: int = 1) -> str:
        """Name of the kernel that multiplies `x_rows` rows of x on this machine."""
        return _core.csr_kernel(
            to_numpy(self.structure.cpu()),
            DTYPE_NAMES[self.values.dtype],
            x_rows,
            self._CONV,
            self._int8_activations,
        )
