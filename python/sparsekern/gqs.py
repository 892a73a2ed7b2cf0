# SPDX-License-Identifier: Apache-2.0
"""`GQSTensor`: a packed matrix of quantized groups, kept or pruned whole, validated once."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparsekern import _core, _memory
from sparsekern._packed import PackedTensor, check_dense, from_numpy, to_numpy

__all__ = ["GQSTensor"]

BITS = (2, 4, 8)
GROUPS = (16, 32, 64, 128)
SCALE_NAMES: dict[torch.dtype, str] = {
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.float32: "float32",
    torch.uint8: "uint8",
}


def check_kind(operator: str, bits: object, group: object) -> None:
    """Raise unless there are values of so many bits in groups of so many inputs."""
    for name, value, known in (("bits", bits, BITS), ("group", group, GROUPS)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{operator}: {name} must be an integer, got {type(value).__name__}")
        if value not in known:
            raise NotImplementedError(f"{operator}: {name} must be one of {known}, got {value}")


def check_scale_dtype(operator: str, dtype: object) -> torch.dtype:
    """Raise TypeError unless scales can be stored as `dtype`."""
    if not isinstance(dtype, torch.dtype) or dtype not in SCALE_NAMES:
        names = ", ".join(str(known) for known in SCALE_NAMES)
        raise TypeError(f"{operator}: scale_dtype must be one of {names}, got {dtype}")
    return dtype


def grouped(w: Tensor, group: int) -> Tensor:
    """[rows, cols] as [rows, ceil(cols / group), group], filled up with zeros."""
    rows, cols = w.shape
    return torch.nn.functional.pad(w, (0, -cols % group)).reshape(rows, -1, group)


def to_columns(per_group: Tensor, group: int, cols: int) -> Tensor:
    """[rows, groups of a row] as [rows, cols]: each number for all columns of its group."""
    return per_group.repeat_interleave(group, dim=1)[:, :cols]


def _per_group(operator: str, name: str, given: object, shape: tuple[int, int]) -> Tensor:
    """A floating-point or integer matrix of one number a group, as float32 on the CPU."""
    if not isinstance(given, Tensor):
        raise TypeError(f"{operator}: {name} must be a torch.Tensor, got {type(given).__name__}")
    if given.dtype == torch.bool or given.is_complex():
        raise TypeError(f"{operator}: {name} must hold numbers, got {given.dtype}")
    if given.shape != shape:
        raise ValueError(
            f"{operator}: {name} must have shape {list(shape)}, a number for each group, "
            f"got {list(given.shape)}"
        )
    return given.detach().to("cpu", torch.float32)


def _stored_scales(
    operator: str, scales: Tensor, kept: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(scales as stored, what they stand for, factors of the rows for 8 bits), all [rows, ...]."""
    scales = scales.masked_fill(~kept, 1)
    if not bool(torch.isfinite(scales).all()) or bool((scales == 0).any()):
        raise ValueError(f"{operator}: scales must be finite and not 0, got one that is not")
    if dtype == torch.uint8:
        if bool((scales < 0).any()):
            raise ValueError(f"{operator}: 8-bit scales must be above 0, got one below")
        factor = scales.masked_fill(~kept, 0).amax(dim=1) / 255
        factor[factor == 0] = 1  # a row without groups
        stored = (scales / factor[:, None]).round().clamp(1, 255).to(torch.uint8)
        return stored, stored.float() * factor[:, None], factor
    stored = scales.to(dtype)
    meant = stored.float()
    if not bool(torch.isfinite(meant).all()) or bool((meant == 0).any()):
        raise ValueError(
            f"{operator}: scales must be numbers of {dtype} and not 0 there, got one that is not; "
            "scale_dtype chooses another"
        )
    return stored, meant, None


class GQSTensor(PackedTensor):
    """A matrix [rows, cols] in the format ``gqs`` of ``docs/formats.md``.

    Groups of consecutive inputs of a row are kept or pruned whole; kept ones hold integers of 2, 4
    or 8 bits, a scale and perhaps a zero-point: the weight is ``(code - zero) * scale`` (GQSA,
    arXiv 2412.17560, section 3). Immutable in shape and pattern; floating-point scales and
    zero-points may be trained. What the constructor is given is checked completely, as untrusted
    input, once.

    Attributes:
        values: 1-D int8: the codes, packed, in the format's order.
        structure: 1-D uint8: shape, pattern, and the factors of the rows for 8-bit scales.
        scale: 1-D float16, bfloat16, float32 or uint8: a scale for each kept group, row by row, and
            then, where there are any, as many zero-points. uint8: times the factor of the row.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: data that break the format, or that lie on different devices.
    """

    scale: Tensor
    _bits: int
    _group: int
    _groups: int
    _has_zeros: bool

    @staticmethod
    def _validate(values: NDArray[Any], structure: NDArray[np.uint8], dtype: str) -> None:
        if dtype != "int8":
            raise TypeError(f"GQSTensor: values must have dtype int8, got {dtype}")
        _core.gqs_info(structure)  # the rest once the scale is known

    @staticmethod
    def _unpack(values: NDArray[Any], structure: NDArray[np.uint8], dtype: str) -> NDArray[Any]:
        return _core.gqs_unpack(values, structure)

    @staticmethod
    def _mask_of(structure: NDArray[np.uint8]) -> NDArray[np.bool_]:
        info = _core.gqs_info(structure)
        groups = _core.gqs_mask_of(structure)
        return np.repeat(groups, info["group"], axis=1)[:, : info["cols"]]

    def _read_header(self, structure: NDArray[np.uint8]) -> tuple[int, int]:
        info = _core.gqs_info(structure)
        self._bits, self._group = info["bits"], info["group"]
        self._groups, self._has_zeros = info["groups"], info["zeros"]
        return info["rows"], info["cols"]

    def _pattern(self) -> str:
        scale = str(self.scale.dtype).removeprefix("torch.")
        return f"bits={self._bits}, group={self._group}, scale={scale}" + (
            ", zeros" if self._has_zeros else ""
        )

    def _check_scale(self) -> None:
        name, scale = type(self).__name__, self.scale
        if not isinstance(scale, Tensor):
            raise TypeError(f"{name}: scale must be a torch.Tensor, got {type(scale).__name__}")
        if scale.dtype not in SCALE_NAMES:
            names = ", ".join(str(known) for known in SCALE_NAMES)
            raise TypeError(f"{name}: scale must have dtype {names}, got {scale.dtype}")
        if scale.dim() != 1:
            raise ValueError(f"{name}: scale must be 1-D, got shape {list(scale.shape)}")
        if scale.device != self.values.device:
            raise ValueError(
                f"{name}: scale must be on the device of values ({self.values.device}), "
                f"got {scale.device}"
            )
        self.scale = scale.contiguous()
        _core.gqs_validate(
            to_numpy(self.values.cpu().contiguous()),
            to_numpy(self.structure.cpu().contiguous()),
            to_numpy(self.scale.cpu()),
            SCALE_NAMES[scale.dtype],
        )

    @classmethod
    def from_dense(
        cls,
        w: Tensor,
        bits: int = 4,
        group: int = 16,
        *,
        mask: Tensor | None = None,
        scales: Tensor | None = None,
        zeros: Tensor | None = None,
        symmetric: bool = True,
        scale_dtype: torch.dtype = torch.float16,
    ) -> GQSTensor:
        """Quantize a dense matrix, each weight to the nearest code of its group.

        Args:
            w: [rows, cols], any floating-point dtype, strides and device.
            bits: of a code: 2, 4 or 8.
            group: consecutive inputs of a group: 16, 32, 64 or 128. A row's last may be short.
            mask: bool [rows, ceil(cols / group)], True = kept. Default: groups with a weight that
                is not zero.
            scales: [rows, ceil(cols / group)], those of pruned groups not used. Default, symmetric:
                max |w| / (2^(bits-1) - 1) of the group, 1 where all are zero; else
                (max(w, 0) - min(w, 0)) / (2^bits - 1).
            zeros: the same shape, with `scales` alone: zero-points in units of a code.
            symmetric: without `scales`, whether groups go without zero-points.
            scale_dtype: torch.float16, bfloat16, float32, or uint8: 8 bits times a float32 factor
                of the row, for symmetric groups. Codes are chosen after scales were rounded.

        Returns:
            The packed matrix on the device of `w`.

        Raises:
            TypeError: a wrong type or dtype.
            NotImplementedError: `bits` or `group` that the format does not have.
            ValueError: NaN or infinity in a kept group, a scale that is 0 or not finite, before or
                after rounding to `scale_dtype`; shapes that do not fit.
            MemoryError: what packing needs is not available; raised before the work starts.
        """
        name = "GQSTensor.from_dense"
        source = check_dense(name, w, None)
        check_kind(name, bits, group)
        scale_dtype = check_scale_dtype(name, scale_dtype)
        _memory.require(name, f"packing a matrix {list(w.shape)}", 20 * w.numel())
        blocks = grouped(source.to("cpu", torch.float32), group)
        shape = (blocks.shape[0], blocks.shape[1])
        kept = (blocks != 0).any(dim=2) if mask is None else _check_mask(name, mask, shape)
        blocks = blocks.masked_fill(~kept[:, :, None], 0)
        if not bool(torch.isfinite(blocks).all()):
            raise ValueError(f"{name}: w must be finite where it is kept, got NaN or infinity")
        low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        points = None
        if scales is not None:
            ratio = _per_group(name, "scales", scales, shape)
            if zeros is not None:
                points = _per_group(name, "zeros", zeros, shape)
        elif zeros is not None:
            raise ValueError(f"{name}: zeros must come with scales, got zeros alone")
        elif symmetric:
            ratio = blocks.abs().amax(dim=2) / high
            low = -high
        else:
            least = blocks.amin(dim=2).clamp(max=0)
            ratio = (blocks.amax(dim=2).clamp(min=0) - least) / (high - low)
            ratio[ratio == 0] = 1
            points = (-least / ratio).round() + low
        if scales is None:
            ratio = ratio.clamp(min=_smallest(scale_dtype)).masked_fill(
                blocks.abs().amax(dim=2) == 0, 1
            )
        stored, meant, factor = _stored_scales(name, ratio, kept, scale_dtype)
        codes = blocks / meant[:, :, None]
        if points is not None:
            points = _stored_zeros(name, points, kept, scale_dtype)
            codes += points.float()[:, :, None]
        codes = codes.round_().clamp_(low, high).to(torch.int8)
        flat = codes.reshape(shape[0], -1)[:, : w.shape[1]].contiguous()
        return cls._pack(flat, kept, bits, group, stored, points, factor, w.device)

    @classmethod
    def from_quantized(
        cls,
        codes: Tensor,
        scales: Tensor,
        mask: Tensor | None = None,
        zeros: Tensor | None = None,
        *,
        bits: int = 4,
        group: int = 16,
        scale_dtype: torch.dtype | None = None,
    ) -> GQSTensor:
        """Pack what was quantized elsewhere: the weight is ``(code - zero) * scale``.

        Args:
            codes: [rows, cols], an integer dtype, in [-2^(bits-1), 2^(bits-1)).
            scales: [rows, ceil(cols / group)].
            mask: bool of that shape, True = kept; default all.
            zeros: of that shape, or None.
            bits: as in `from_dense`.
            group: as in `from_dense`.
            scale_dtype: default that of `scales` where the format has it, else float16.

        Returns:
            The packed matrix on the device of `codes`.

        Raises:
            TypeError, NotImplementedError, ValueError: as `from_dense`, and codes out of range.
        """
        name = "GQSTensor.from_quantized"
        if not isinstance(codes, Tensor):
            raise TypeError(f"{name}: codes must be a torch.Tensor, got {type(codes).__name__}")
        if codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
            raise TypeError(f"{name}: codes must have an integer dtype, got {codes.dtype}")
        if codes.dim() != 2 or codes.numel() == 0:
            raise ValueError(f"{name}: codes must be [rows, cols], got {list(codes.shape)}")
        check_kind(name, bits, group)
        if scale_dtype is None:
            known = isinstance(scales, Tensor) and scales.dtype in SCALE_NAMES
            scale_dtype = scales.dtype if known and scales.is_floating_point() else torch.float16
        scale_dtype = check_scale_dtype(name, scale_dtype)
        rows, cols = codes.shape
        shape = (rows, -(-cols // group))
        kept = torch.ones(shape, dtype=torch.bool)
        if mask is not None:
            kept = _check_mask(name, mask, shape)
        ratio = _per_group(name, "scales", scales, shape)
        stored, _, factor = _stored_scales(name, ratio, kept, scale_dtype)
        points = None
        if zeros is not None:
            points = _per_group(name, "zeros", zeros, shape)
            points = _stored_zeros(name, points, kept, scale_dtype)
        values = codes.detach().cpu()
        wrong = (values < -(2 ** (bits - 1))) | (values >= 2 ** (bits - 1))
        if bool((wrong & to_columns(kept, group, cols)).any()):
            raise ValueError(
                f"{name}: codes must be in [{-(2 ** (bits - 1))}, {2 ** (bits - 1) - 1}] for "
                f"{bits} bits, got one beyond"
            )
        narrow = values.masked_fill(wrong, 0).to(torch.int8).contiguous()
        return cls._pack(narrow, kept, bits, group, stored, points, factor, codes.device)

    @classmethod
    def _pack(
        cls,
        codes: Tensor,
        kept: Tensor,
        bits: int,
        group: int,
        scales: Tensor,
        zeros: Tensor | None,
        factor: Tensor | None,
        device: torch.device,
    ) -> GQSTensor:
        values, structure = _core.gqs_pack(
            codes.numpy(),
            kept.contiguous().numpy(),
            bits,
            group,
            zeros is not None,
            None if factor is None else factor.numpy(),
        )
        parts = [scales[kept]] + ([] if zeros is None else [zeros[kept]])
        return cls._packed(values, structure, torch.cat(parts), torch.int8, device)

    @classmethod
    def empty(
        cls,
        rows: int,
        cols: int,
        bits: int = 4,
        group: int = 16,
        scale_dtype: torch.dtype = torch.float16,
    ) -> GQSTensor:
        """A matrix that keeps nothing, to load another into."""
        check_kind("GQSTensor.empty", bits, group)
        shape = (rows, -(-cols // group))
        factor = torch.ones(rows) if scale_dtype == torch.uint8 else None
        none = torch.zeros(1, dtype=torch.bool).expand(shape)
        codes = torch.zeros(1, dtype=torch.int8).expand(rows, cols).contiguous()
        scales = torch.zeros(1, dtype=scale_dtype).expand(shape)
        return cls._pack(codes, none, bits, group, scales, None, factor, torch.device("cpu"))

    @property
    def bits(self) -> int:
        """Of a code: 2, 4 or 8."""
        return self._bits

    @property
    def group(self) -> int:
        """Inputs of a group: 16, 32, 64 or 128."""
        return self._group

    @property
    def scales(self) -> Tensor:
        """What is stored for each kept group, row by row; see `scale`."""
        return self.scale[: self._groups]

    @property
    def zeros(self) -> Tensor | None:
        """The zero-point of each kept group, or None."""
        return self.scale[self._groups :] if self._has_zeros else None

    @property
    def nnz(self) -> int:
        """Number of weights in kept groups, codes of 0 included."""
        short = -self._shape[1] % self._group
        if short == 0:
            return self._groups * self._group
        return self._groups * self._group - short * int(self.group_mask()[:, -1].sum())

    @property
    def bits_per_weight(self) -> float:
        """Of the packed parts, everything included, for each weight of the matrix."""
        return self.nbytes * 8 / (self._shape[0] * self._shape[1])

    def group_mask(self) -> Tensor:
        """Kept groups, bool [rows, ceil(cols / group)], on this tensor's device."""
        return torch.from_numpy(_core.gqs_mask_of(to_numpy(self.structure.cpu()))).to(self.device)

    def codes(self) -> Tensor:
        """The codes int8 [rows, cols], 0 where pruned, on this tensor's device."""
        array = _core.gqs_unpack(to_numpy(self.values.cpu()), to_numpy(self.structure.cpu()))
        return torch.from_numpy(array).to(self.device)

    def spread(self, per_group: Tensor) -> Tensor:
        """One number for each kept group as float32 [rows, ceil(cols / group)], 0 where pruned."""
        mask = self.group_mask()
        result = torch.zeros(mask.shape, dtype=torch.float32, device=self.device)
        result[mask] = per_group.detach().float()
        return result

    def to_dense(self) -> Tensor:
        """The matrix [rows, cols] in float32. Not differentiable.

        Pruned weights are 0. Raises MemoryError before it starts when the result cannot fit.
        """
        rows, cols = self._shape
        _memory.require("GQSTensor.to_dense", f"a dense matrix [{rows}, {cols}]", rows * cols * 13)
        scales = self.spread(self.scales)
        factor = _core.gqs_row_scale(to_numpy(self.structure.cpu()))
        if factor is not None:
            scales *= from_numpy(factor, torch.float32).to(self.device)[:, None]
        dense = self.codes().float()
        if self.zeros is not None:
            dense -= to_columns(self.spread(self.zeros), self._group, cols)
        return dense.mul_(to_columns(scales, self._group, cols))


def _smallest(dtype: torch.dtype) -> float:
    """The scale that stands for smaller ones too, whose groups round to 0."""
    return torch.finfo(torch.float32 if dtype == torch.uint8 else dtype).tiny


def _check_mask(operator: str, mask: object, shape: tuple[int, int]) -> Tensor:
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"{operator}: mask must be a torch.bool tensor, got {got}")
    if mask.shape != shape:
        raise ValueError(
            f"{operator}: mask must have shape {list(shape)}, a flag for each group, "
            f"got {list(mask.shape)}"
        )
    return mask.detach().cpu()


def _stored_zeros(operator: str, zeros: Tensor, kept: Tensor, dtype: torch.dtype) -> Tensor:
    if dtype == torch.uint8:
        raise NotImplementedError(
            f"{operator}: scale_dtype must be a floating-point one with zero-points, got uint8"
        )
    stored = zeros.masked_fill(~kept, 0).to(dtype)
    if not bool(torch.isfinite(stored).all()):
        raise ValueError(f"{operator}: zeros must be finite, got NaN or infinity")
    return stored
