# SPDX-License-Identifier: Apache-2.0
"""What the packed tensors of all formats share: checks, copies, conversions, int8 scales."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparsekern import _memory

if TYPE_CHECKING:
    from typing_extensions import Self

DTYPE_NAMES: dict[torch.dtype, str] = {
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
    torch.int8: "int8",
}
_ALIGNMENT = 64  # bytes: a cache line, and what the sections of `structure` are aligned to
_MAX_SIZE = 2**31  # rows and columns are below it (docs/formats.md)
_MAX_ELEMENTS = 2**62


def to_numpy(tensor: Tensor) -> NDArray[Any]:
    """The core's view of a contiguous tensor on the CPU: 16-bit floats as uint16."""
    tensor = tensor.detach()
    if tensor.dtype in (torch.bfloat16, torch.float16):
        return tensor.view(torch.int16).numpy().view(np.uint16)
    array: NDArray[Any] = tensor.numpy()
    return array


def from_numpy(array: NDArray[Any], dtype: torch.dtype) -> Tensor:
    """The tensor of `dtype` that shares memory with an array of the core."""
    if array.dtype == np.uint16:
        return torch.from_numpy(array.view(np.int16)).view(dtype)
    return torch.from_numpy(array)


def _aligned(tensor: Tensor) -> Tensor:
    """The tensor, or a copy where its memory does not start at a cache line."""
    if tensor.device.type == "cpu" and tensor.data_ptr() % _ALIGNMENT:
        return tensor.clone()
    return tensor


def check_dtype(operator: str, dtype: object) -> torch.dtype:
    """Raise TypeError unless weights can be stored as `dtype`."""
    if not isinstance(dtype, torch.dtype) or dtype not in DTYPE_NAMES:
        names = ", ".join(str(known) for known in DTYPE_NAMES)
        raise TypeError(f"{operator}: dtype must be one of {names}, got {dtype}")
    return dtype


def check_matrix_size(operator: str, shape: Sequence[int]) -> None:
    """Raise ValueError unless the formats can hold a matrix of this shape."""
    if len(shape) != 2:
        raise ValueError(f"{operator}: w must have shape [rows, cols], got {list(shape)}")
    rows, cols = shape
    if rows < 1 or cols < 1:
        raise ValueError(f"{operator}: w must have at least one row and column, got {list(shape)}")
    if rows >= _MAX_SIZE or cols >= _MAX_SIZE or rows * cols >= _MAX_ELEMENTS:
        raise ValueError(
            f"{operator}: w must have rows and cols below 2^31 and rows * cols below 2^62, "
            f"got {list(shape)}"
        )


def check_dense(operator: str, w: object, mask: object) -> Tensor:
    """Raise unless `w` is a dense matrix that can be packed and `mask` None or one for it.

    Returns `w` without its gradient.
    """
    if not isinstance(w, Tensor):
        raise TypeError(f"{operator}: w must be a torch.Tensor, got {type(w).__name__}")
    if not w.is_floating_point():
        raise TypeError(f"{operator}: w must have a floating-point dtype, got {w.dtype}")
    if w.layout != torch.strided:
        raise TypeError(f"{operator}: w must be a dense tensor, got layout {w.layout}")
    check_matrix_size(operator, w.shape)
    if w.device.type == "meta":
        raise ValueError(f"{operator}: w must hold data, got a tensor on the meta device")
    if mask is not None:
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise TypeError(f"{operator}: mask must be a torch.bool tensor, got {got}")
        if mask.shape != w.shape:
            raise ValueError(
                f"{operator}: mask.shape must equal w.shape {list(w.shape)}, got {list(mask.shape)}"
            )
        if mask.device.type == "meta":
            raise ValueError(f"{operator}: mask must hold data, got a tensor on the meta device")
    return w.detach()


def stored_dtype(operator: str, w: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    """The dtype to pack `w` in: `dtype`, checked; by default its own, or float32."""
    if dtype is None:
        dtype = w.dtype if w.dtype in DTYPE_NAMES else torch.float32
    return check_dtype(operator, dtype)


def require_memory(
    operator: str, w: Tensor, mask: Tensor | None, dtype: torch.dtype, packed: float
) -> None:
    """Raise MemoryError unless packing `w` into `packed` bytes can be done with what is free."""
    needed = packed
    if dtype == torch.int8:
        needed += w.numel() * (4 + 4 + 1)
    elif w.dtype != dtype or w.device.type != "cpu" or not w.is_contiguous():
        needed += w.numel() * dtype.itemsize
    if mask is not None and (mask.device.type != "cpu" or not mask.is_contiguous()):
        needed += w.numel()
    _memory.require(operator, f"packing a matrix {list(w.shape)}", int(needed))


def _quantize(operator: str, w: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Symmetric int8 per row: w is about q * scale[row], scale = max|w| / 127."""
    if mask is not None:
        w = w.masked_fill(~mask, 0)
    largest = torch.linalg.vector_norm(w, ord=float("inf"), dim=1)
    if not bool(torch.isfinite(largest).all()):
        raise ValueError(f"{operator}: w must be finite for dtype torch.int8, got NaN or infinity")
    scale = largest / 127
    scale[scale == 0] = 1  # a row of zeros (or of numbers too small to scale) is exact with any
    return (w / scale[:, None]).round_().clamp_(-127, 127).to(torch.int8), scale


def stored_elements(
    operator: str, w: Tensor, mask: Tensor | None, dtype: torch.dtype
) -> tuple[NDArray[Any], Tensor | None]:
    """The dense matrix as the core packs it, and the scale of its rows where `dtype` is int8."""
    scale = None
    if dtype == torch.int8:
        w, scale = _quantize(operator, w.to("cpu", torch.float32), mask)
    return to_numpy(w.to("cpu", dtype).contiguous()), scale


class PackedTensor(ABC):
    """Base of `CSRTensor` and `NMTensor`: three tensors that are one sparse matrix [rows, cols].

    Immutable in shape and pattern; the kept values may be trained. What the constructor is given
    is checked completely, as untrusted input, once; operators then rely on it.

    Attributes:
        values: 1-D, float32, bfloat16, float16 or int8: the kept weights, in the format's order.
        structure: 1-D uint8: shape and pattern. Not to be written to.
        scale: float32 [rows], int8 only: the weight is ``value * scale[row]``. Otherwise None.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: data that break the format, or that lie on different devices.
    """

    values: Tensor
    structure: Tensor
    scale: Tensor | None
    _shape: torch.Size

    def __init__(self, values: Tensor, structure: Tensor, scale: Tensor | None = None) -> None:
        name = type(self).__name__
        for what, tensor in (("values", values), ("structure", structure)):
            if not isinstance(tensor, Tensor):
                raise TypeError(
                    f"{name}: {what} must be a torch.Tensor, got {type(tensor).__name__}"
                )
            if tensor.dim() != 1:
                raise ValueError(f"{name}: {what} must be 1-D, got shape {list(tensor.shape)}")
            if tensor.device.type == "meta":
                raise ValueError(f"{name}: {what} must hold data, got the meta device")
        if values.dtype not in DTYPE_NAMES:
            names = ", ".join(str(known) for known in DTYPE_NAMES)
            raise TypeError(f"{name}: values must have dtype {names}, got {values.dtype}")
        if structure.dtype != torch.uint8:
            raise TypeError(f"{name}: structure must have dtype uint8, got {structure.dtype}")
        if structure.device != values.device:
            raise ValueError(
                f"{name}: structure must be on the device of values ({values.device}), "
                f"got {structure.device}"
            )
        bytes_ = to_numpy(structure.cpu().contiguous())
        self._validate(to_numpy(values.cpu().contiguous()), bytes_, DTYPE_NAMES[values.dtype])
        self._set(values, structure, scale, bytes_)
        self._check_scale()
        self.values = _aligned(values.contiguous())
        self.structure = _aligned(structure.contiguous())

    # What a format adds: the functions of the core, and what else its header says.

    @staticmethod
    @abstractmethod
    def _validate(values: NDArray[Any], structure: NDArray[np.uint8], dtype: str) -> None: ...

    @staticmethod
    @abstractmethod
    def _unpack(values: NDArray[Any], structure: NDArray[np.uint8], dtype: str) -> NDArray[Any]: ...

    @staticmethod
    @abstractmethod
    def _mask_of(structure: NDArray[np.uint8]) -> NDArray[np.bool_]: ...

    @abstractmethod
    def _read_header(self, structure: NDArray[np.uint8]) -> tuple[int, int]:
        """Keep what the header says; returns rows and columns."""

    @abstractmethod
    def _pattern(self) -> str:
        """The kind of pattern, for `repr`."""

    @property
    @abstractmethod
    def nnz(self) -> int:
        """Number of kept weights, explicit zeros included."""

    def _set(
        self, values: Tensor, structure: Tensor, scale: Tensor | None, bytes_: NDArray[np.uint8]
    ) -> None:
        self.values = values
        self.structure = structure
        self.scale = scale
        self._shape = torch.Size(self._read_header(bytes_))

    @classmethod
    def trusted(cls, values: Tensor, structure: Tensor, scale: Tensor | None) -> Self:
        """Wrap tensors that were validated before; only the header is read."""
        self = cls.__new__(cls)
        self._set(values, structure, scale, to_numpy(structure.cpu()))
        return self

    @classmethod
    def _packed(
        cls,
        values: NDArray[Any],
        structure: NDArray[np.uint8],
        scale: Tensor | None,
        dtype: torch.dtype,
        device: torch.device,
    ) -> Self:
        """Wrap what the core has packed."""
        return cls.trusted(
            _aligned(from_numpy(values, dtype)).to(device),
            _aligned(torch.from_numpy(structure)).to(device),
            None if scale is None else scale.to(device),
        )

    def _check_scale(self) -> None:
        name, scale = type(self).__name__, self.scale
        if self.dtype != torch.int8:
            if scale is not None:
                raise ValueError(
                    f"{name}: scale must be None unless values are int8, got a scale beside "
                    f"{self.dtype}"
                )
            return
        if not isinstance(scale, Tensor):
            got = type(scale).__name__
            raise TypeError(f"{name}: scale must be a float32 tensor for int8, got {got}")
        if scale.dtype != torch.float32:
            raise TypeError(f"{name}: scale must have dtype float32, got {scale.dtype}")
        if scale.shape != self._shape[:1]:
            raise ValueError(
                f"{name}: scale must have shape [{self._shape[0]}], got {list(scale.shape)}"
            )
        if scale.device != self.values.device:
            raise ValueError(
                f"{name}: scale must be on the device of values ({self.values.device}), "
                f"got {scale.device}"
            )
        self.scale = scale.contiguous()

    @property
    def shape(self) -> torch.Size:
        """[rows, cols]: output features, input features."""
        return self._shape

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the stored values."""
        return self.values.dtype

    @property
    def device(self) -> torch.device:
        """Device of all parts."""
        return self.values.device

    @property
    def density(self) -> float:
        """Share of weights that are kept, 0 to 1."""
        return self.nnz / (self._shape[0] * self._shape[1])

    @property
    def nbytes(self) -> int:
        """Bytes of all parts, padding included."""
        parts = (self.values, self.structure, self.scale)
        return sum(part.nbytes for part in parts if part is not None)

    def mask(self) -> Tensor:
        """The kept pattern, bool [rows, cols], on this tensor's device."""
        return torch.from_numpy(self._mask_of(to_numpy(self.structure.cpu()))).to(self.device)

    def to_dense(self) -> Tensor:
        """The matrix [rows, cols] in `dtype`; int8 is dequantized to float32. Not differentiable.

        Pruned weights are 0. Raises MemoryError before it starts when the result cannot fit.
        """
        rows, cols = self._shape
        itemsize = 5 if self.scale is not None else self.dtype.itemsize
        _memory.require(
            f"{type(self).__name__}.to_dense",
            f"a dense matrix [{rows}, {cols}]",
            rows * cols * itemsize,
        )
        array = self._unpack(
            to_numpy(self.values.cpu()), to_numpy(self.structure.cpu()), DTYPE_NAMES[self.dtype]
        )
        dense = from_numpy(array, self.dtype).to(self.device)
        if self.scale is not None:
            return dense.float().mul_(self.scale.detach()[:, None])
        return dense

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Self:
        """Copy to another device or another floating-point dtype of values.

        Raises:
            TypeError: `dtype` is not float32, bfloat16 or float16, or the values are int8.
        """
        if dtype is not None and dtype != self.dtype:
            name = f"{type(self).__name__}.to"
            check_dtype(name, dtype)
            if torch.int8 in (dtype, self.dtype):
                raise TypeError(
                    f"{name}: dtype must be a floating-point one for floating-point values, "
                    f"got {dtype} for {self.dtype}; pack with from_dense(w.to_dense(), dtype=...)"
                )
        scale = None if self.scale is None else self.scale.to(device)
        return self.trusted(
            self.values.to(device=device, dtype=dtype), self.structure.to(device), scale
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.values, self.structure, self.scale)

    def __repr__(self) -> str:
        device = "" if self.device.type == "cpu" else f", device={self.device}"
        return (
            f"{type(self).__name__}(shape={list(self._shape)}, dtype={DTYPE_NAMES[self.dtype]}, "
            f"{self._pattern()}, density={self.density:.4f}{device})"
        )
