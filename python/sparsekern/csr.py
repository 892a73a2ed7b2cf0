# SPDX-License-Identifier: Apache-2.0
"""`CSRTensor`: a packed sparse matrix, validated once, that the operators multiply with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparsekern import _core, _memory
from sparsekern._transpose import transposed

__all__ = ["CSRTensor"]

DTYPE_NAMES: dict[torch.dtype, str] = {
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
    torch.int8: "int8",
}
BLOCK_ROWS = (1, 2, 4)
_ALIGNMENT = 64  # bytes: a cache line, and what the sections of `structure` are aligned to
_MAX_SIZE = 2**31  # rows and columns are below it (docs/formats.md)
_MAX_ELEMENTS = 2**62


def _to_numpy(tensor: Tensor) -> NDArray[Any]:
    """The core's view of a contiguous tensor on the CPU: 16-bit floats as uint16."""
    tensor = tensor.detach()
    if tensor.dtype in (torch.bfloat16, torch.float16):
        return tensor.view(torch.int16).numpy().view(np.uint16)
    array: NDArray[Any] = tensor.numpy()
    return array


def _from_numpy(array: NDArray[Any], dtype: torch.dtype) -> Tensor:
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


def check_block_rows(operator: str, block_rows: object) -> int:
    """Raise unless `block_rows` is 1, 2 or 4."""
    if isinstance(block_rows, bool) or not isinstance(block_rows, int):
        raise TypeError(
            f"{operator}: block_rows must be an integer, got {type(block_rows).__name__}"
        )
    if block_rows not in BLOCK_ROWS:
        raise ValueError(f"{operator}: block_rows must be 1, 2 or 4, got {block_rows}")
    return block_rows


def check_matrix_size(operator: str, shape: Sequence[int]) -> None:
    """Raise ValueError unless the format can hold a matrix of this shape."""
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


def _check_dense(w: object, mask: object) -> Tensor:
    name = "CSRTensor.from_dense"
    if not isinstance(w, Tensor):
        raise TypeError(f"{name}: w must be a torch.Tensor, got {type(w).__name__}")
    if not w.is_floating_point():
        raise TypeError(f"{name}: w must have a floating-point dtype, got {w.dtype}")
    if w.layout != torch.strided:
        raise TypeError(f"{name}: w must be a dense tensor, got layout {w.layout}")
    check_matrix_size(name, w.shape)
    if w.device.type == "meta":
        raise ValueError(f"{name}: w must hold data, got a tensor on the meta device")
    if mask is not None:
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise TypeError(f"{name}: mask must be a torch.bool tensor, got {got}")
        if mask.shape != w.shape:
            raise ValueError(
                f"{name}: mask.shape must equal w.shape {list(w.shape)}, got {list(mask.shape)}"
            )
        if mask.device.type == "meta":
            raise ValueError(f"{name}: mask must hold data, got a tensor on the meta device")
    return w.detach()


def _require_memory(w: Tensor, mask: Tensor | None, block_rows: int, dtype: torch.dtype) -> None:
    """Estimate what packing allocates, from the exact number of kept weights."""
    numel = w.numel()
    kept = int(torch.count_nonzero(w if mask is None else mask))
    stored = min(kept * block_rows, numel) * 1.1  # padding is 2 to 7 % in ordinary matrices
    needed = 2 * stored * dtype.itemsize + 2 * stored / block_rows + numel / 64 / block_rows
    if dtype == torch.int8:
        needed += numel * (4 + 4 + 1)
    elif w.dtype != dtype or w.device.type != "cpu" or not w.is_contiguous():
        needed += numel * dtype.itemsize
    if mask is not None and (mask.device.type != "cpu" or not mask.is_contiguous()):
        needed += numel
    _memory.require("CSRTensor.from_dense", f"packing a matrix {list(w.shape)}", int(needed))


def _quantize(w: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Symmetric int8 per row: w is about q * scale[row], scale = max|w| / 127."""
    if mask is not None:
        w = w.masked_fill(~mask, 0)
    largest = torch.linalg.vector_norm(w, ord=float("inf"), dim=1)
    if not bool(torch.isfinite(largest).all()):
        raise ValueError(
            "CSRTensor.from_dense: w must be finite for dtype torch.int8, got NaN or infinity"
        )
    scale = largest / 127
    scale[scale == 0] = 1  # a row of zeros (or of numbers too small to scale) is exact with any
    return (w / scale[:, None]).round_().clamp_(-127, 127).to(torch.int8), scale


class CSRTensor:
    """A sparse matrix [rows, cols] in the format ``csr`` of ``docs/formats.md``.

    Immutable in shape and pattern; the kept values may be trained. What the constructor is given
    is checked completely, as untrusted input, once; operators then rely on it.

    Attributes:
        values: 1-D, float32, bfloat16, float16 or int8: the kept weights, in the format's order.
        structure: 1-D uint8: shape, column indices and counts. Not to be written to.
        scale: float32 [rows], int8 only: the weight is ``value * scale[row]``. Otherwise None.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: data that break the format, or that lie on different devices.
    """

    values: Tensor
    structure: Tensor
    scale: Tensor | None

    def __init__(self, values: Tensor, structure: Tensor, scale: Tensor | None = None) -> None:
        for what, tensor in (("values", values), ("structure", structure)):
            if not isinstance(tensor, Tensor):
                raise TypeError(
                    f"CSRTensor: {what} must be a torch.Tensor, got {type(tensor).__name__}"
                )
            if tensor.dim() != 1:
                raise ValueError(f"CSRTensor: {what} must be 1-D, got shape {list(tensor.shape)}")
            if tensor.device.type == "meta":
                raise ValueError(f"CSRTensor: {what} must hold data, got the meta device")
        if values.dtype not in DTYPE_NAMES:
            names = ", ".join(str(known) for known in DTYPE_NAMES)
            raise TypeError(f"CSRTensor: values must have dtype {names}, got {values.dtype}")
        if structure.dtype != torch.uint8:
            raise TypeError(f"CSRTensor: structure must have dtype uint8, got {structure.dtype}")
        if structure.device != values.device:
            raise ValueError(
                f"CSRTensor: structure must be on the device of values ({values.device}), "
                f"got {structure.device}"
            )
        bytes_ = _to_numpy(structure.cpu().contiguous())
        _core.csr_validate(_to_numpy(values.cpu().contiguous()), bytes_, DTYPE_NAMES[values.dtype])
        self._set(values, structure, scale, bytes_)
        self._check_scale()
        self.values = _aligned(values.contiguous())
        self.structure = _aligned(structure.contiguous())

    def _set(
        self, values: Tensor, structure: Tensor, scale: Tensor | None, bytes_: NDArray[np.uint8]
    ) -> None:
        self.values = values
        self.structure = structure
        self.scale = scale
        info = _core.csr_info(bytes_)
        self._shape = torch.Size((info["rows"], info["cols"]))
        self._block_rows = info["block_rows"]
        self._kept = info["kept"]
        self._nnz: int | None = None

    @classmethod
    def trusted(cls, values: Tensor, structure: Tensor, scale: Tensor | None) -> CSRTensor:
        """Wrap tensors that were validated before; only the header is read."""
        self = cls.__new__(cls)
        self._set(values, structure, scale, _to_numpy(structure.cpu()))
        return self

    def _check_scale(self) -> None:
        scale = self.scale
        if self.dtype != torch.int8:
            if scale is not None:
                raise ValueError(
                    f"CSRTensor: scale must be None unless values are int8, got a scale beside "
                    f"{self.dtype}"
                )
            return
        if not isinstance(scale, Tensor):
            got = type(scale).__name__
            raise TypeError(f"CSRTensor: scale must be a float32 tensor for int8, got {got}")
        if scale.dtype != torch.float32:
            raise TypeError(f"CSRTensor: scale must have dtype float32, got {scale.dtype}")
        if scale.shape != self._shape[:1]:
            raise ValueError(
                f"CSRTensor: scale must have shape [{self._shape[0]}], got {list(scale.shape)}"
            )
        if scale.device != self.values.device:
            raise ValueError(
                f"CSRTensor: scale must be on the device of values ({self.values.device}), "
                f"got {scale.device}"
            )
        self.scale = scale.contiguous()

    @classmethod
    def from_dense(
        cls,
        w: Tensor,
        *,
        mask: Tensor | None = None,
        block_rows: int = 1,
        dtype: torch.dtype | None = None,
    ) -> CSRTensor:
        """Pack a dense matrix.

        Args:
            w: [rows, cols], any floating-point dtype, strides and device.
            mask: bool [rows, cols], True = kept, so that explicit zeros can be kept (training
                moves through 0). Default: what is not zero after conversion to `dtype`.
            block_rows: 1, 2 or 4 consecutive rows share one pattern; a column is kept for a group
                when any of its rows keeps it, and the others store what `w` holds there.
            dtype: float32, bfloat16, float16 or int8; default the dtype of `w`, float32 for
                those that the format does not have. int8 is symmetric per row: scale = max|w| /
                127, rounded to the nearest, ties to even; 1 for a row of zeros.

        Returns:
            The packed matrix on the device of `w`. NaN and infinities are kept.

        Raises:
            TypeError: a wrong type or dtype.
            ValueError: an empty matrix, one beyond the format's limits, one on the meta device;
                NaN or infinity with int8.
            MemoryError: what packing needs is not available; raised before the work starts.
        """
        name = "CSRTensor.from_dense"
        source = _check_dense(w, mask)
        check_block_rows(name, block_rows)
        if dtype is None:
            dtype = source.dtype if source.dtype in DTYPE_NAMES else torch.float32
        check_dtype(name, dtype)
        _require_memory(source, mask, block_rows, dtype)
        kept = None if mask is None else mask.detach().cpu().contiguous()
        scale = None
        if dtype == torch.int8:
            source, scale = _quantize(source.to("cpu", torch.float32), kept)
            scale = scale.to(w.device)
        source = source.to("cpu", dtype).contiguous()
        values, structure = _core.csr_pack(
            _to_numpy(source),
            DTYPE_NAMES[dtype],
            None if kept is None else _to_numpy(kept),
            block_rows,
        )
        return cls.trusted(
            _aligned(_from_numpy(values, dtype)).to(w.device),
            _aligned(torch.from_numpy(structure)).to(w.device),
            scale,
        )

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
    def block_rows(self) -> int:
        """Rows that share one pattern: 1, 2 or 4."""
        return self._block_rows

    @property
    def nnz(self) -> int:
        """Number of kept weights, explicit zeros included."""
        if self._nnz is None:
            rows, step = self._shape[0], self._block_rows
            # A last group that is short keeps fewer weights than the header's count of pairs says.
            self._nnz = self._kept * step if rows % step == 0 else int(self.mask().sum())
        return self._nnz

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
        kept = _core.csr_mask(_to_numpy(self.structure.cpu()))
        return torch.from_numpy(kept).to(self.device)

    def to_dense(self) -> Tensor:
        """The matrix [rows, cols] in `dtype`; int8 is dequantized to float32. Not differentiable.

        Pruned weights are 0. Raises MemoryError before it starts when the result cannot fit.
        """
        rows, cols = self._shape
        itemsize = 5 if self.scale is not None else self.dtype.itemsize
        _memory.require(
            "CSRTensor.to_dense", f"a dense matrix [{rows}, {cols}]", rows * cols * itemsize
        )
        array = _core.csr_unpack(
            _to_numpy(self.values.cpu()),
            _to_numpy(self.structure.cpu()),
            DTYPE_NAMES[self.dtype],
        )
        dense = _from_numpy(array, self.dtype).to(self.device)
        if self.scale is not None:
            return dense.float().mul_(self.scale.detach()[:, None])
        return dense

    def transpose(self) -> CSRTensor:
        """The transposed matrix [cols, rows], block_rows 1; differentiable in `values`.

        The transposed pattern is built once per structure and kept while the structure lives.

        Raises:
            NotImplementedError: int8, whose scale belongs to rows and would belong to columns.
        """
        if self.scale is not None:
            raise NotImplementedError(
                "CSRTensor.transpose: dtype must be float32, bfloat16 or float16, got int8"
            )
        pattern = transposed(self.structure)
        return CSRTensor.trusted(pattern.gather(self.values), pattern.structure, None)

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> CSRTensor:
        """Copy to another device or another floating-point dtype of values.

        Raises:
            TypeError: `dtype` is not float32, bfloat16 or float16, or the values are int8.
        """
        if dtype is not None and dtype != self.dtype:
            check_dtype("CSRTensor.to", dtype)
            if torch.int8 in (dtype, self.dtype):
                raise TypeError(
                    f"CSRTensor.to: dtype must be a floating-point one for floating-point values, "
                    f"got {dtype} for {self.dtype}; pack with from_dense(w.to_dense(), dtype=...)"
                )
        scale = None if self.scale is None else self.scale.to(device)
        return CSRTensor.trusted(
            self.values.to(device=device, dtype=dtype), self.structure.to(device), scale
        )

    @classmethod
    def __torch_function__(
        cls,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Let `torch.nn.functional.linear` multiply; tell every other function of torch no."""
        if func is torch.nn.functional.linear:
            from sparsekern import ops

            return ops.csr_linear(*args, **(kwargs or {}))
        name = getattr(func, "__name__", str(func))
        raise TypeError(
            f"CSRTensor: torch functions must be torch.nn.functional.linear, got {name}; "
            "use to_dense()"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return CSRTensor, (self.values, self.structure, self.scale)

    def __repr__(self) -> str:
        device = "" if self.device.type == "cpu" else f", device={self.device}"
        return (
            f"CSRTensor(shape={list(self._shape)}, dtype={DTYPE_NAMES[self.dtype]}, "
            f"block_rows={self._block_rows}, density={self.density:.4f}{device})"
        )
