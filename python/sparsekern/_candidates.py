# SPDX-License-Identifier: Apache-2.0
"""What a dense weight could become: packed or dense, in the dtypes and block rows that fit it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from sparsekern._cast import CastConv2d, CastLinear
from sparsekern._nm_mask import GROUP_SIZES
from sparsekern._sites import Site
from sparsekern.bitmap import BitmapTensor
from sparsekern.csr import CSRTensor
from sparsekern.gqs import GQSTensor
from sparsekern.nm import NMTensor
from sparsekern.nn import BitmapLinear, CSRConv2d, CSRLayer, CSRLinear, GQSLinear, NMLinear
from sparsekern.nn._layer import trainable
from sparsekern.nn.gqs import trainable_scales
from sparsekern.patterns import GQS

_T = TypeVar("_T", CSRTensor, NMTensor, BitmapTensor)
_FILL = 1.05  # blocks may store this many times the nonzero weights: 5 % of explicit zeros
# Sparsity at which a bit a weight may be the fastest: below it dense is, above it csr.
_BITMAP_SPARSITY = (0.15, 0.75)


@dataclass(frozen=True, eq=False)
class Candidate:
    """One form of a site's weight.

    Attributes:
        label: names the form; equal labels of different sites are tried together. "dense" is
            the weight as it is.
        format: "csr", "nm", "bitmap", "gqs" or "dense".
        block_rows: outputs that share a pattern; 0 for dense.
        modules: what would stand for `site.modules`, in that order.
        nbytes: of the weight.
        allowed: False: it is only measured, to tell.
    """

    label: str
    format: str
    block_rows: int
    modules: tuple[nn.Module, ...]
    nbytes: int
    allowed: bool = True

    @classmethod
    def unchanged(cls, site: Site) -> Candidate:
        """The weight as it is."""
        return cls("dense", "dense", 0, tuple(site.modules), site.nbytes)


def describe_dtype(dtype: torch.dtype) -> str:
    """A dtype's name without "torch."."""
    return str(dtype).removeprefix("torch.")


def candidates_for(
    site: Site,
    allowed: Sequence[torch.dtype],
    block_rows: int | str,
    policy: str,
    packed: bool,
    int8_activations: bool = False,
    quantize: GQS | None = None,
) -> list[Candidate]:
    """All forms of a weight but the one it has.

    Args:
        site: with its dense matrix and plain parameters.
        allowed: dtypes that the weight may be rounded to.
        block_rows: 1, 2, 4 or "auto".
        policy: of convert_; with "fastest" a float32 weight gets dense bfloat16 as one that is
            measured only.
        packed: whether packed forms are wanted.
        int8_activations: whether those with int8 values, or quantized groups, take x in int8.
        quantize: the groups that a linear layer's weight may be quantized in, or None.
    """
    assert site.dense is not None
    own = site.dense.dtype
    result: list[Candidate] = []
    if packed:
        blocks = block_structure(site.dense) if block_rows == "auto" else [int(block_rows)]
        linear = not any(isinstance(module, nn.Conv2d) for module in site.modules)
        patterns = nm_patterns(site.dense) if linear and block_rows in ("auto", 1) else []
        bitmap = linear and not patterns and block_rows in ("auto", 1) and bitmap_fits(site.dense)
        finite = torch.int8 not in allowed or bool(site.dense.isfinite().all())
        for dtype in [own, *(d for d in allowed if d != own)]:
            if dtype == torch.int8 and not finite:
                continue
            int8_x = int8_activations and dtype == torch.int8
            result += [_packed(site, dtype, rows, int8_x) for rows in blocks]
            if not int8_x:  # nm and bitmap have no products with x in int8
                result += [_packed_nm(site, dtype, *pattern) for pattern in patterns]
                result += [_packed_bitmap(site, dtype)] if bitmap else []
        if quantize is not None and linear and bool(site.dense.isfinite().all()):
            result.append(_packed_gqs(site, quantize, int8_activations))
    casts = [d for d in allowed if d.is_floating_point and d.itemsize < own.itemsize]
    for dtype in casts:
        result.append(_cast(site, dtype, allowed=True))
    tells = policy == "fastest" and packed and own == torch.float32
    if tells and torch.bfloat16 not in casts:
        result.append(_cast(site, torch.bfloat16, allowed=False))
    return result


def block_structure(dense: Tensor) -> list[int]:
    """Block rows 1, and 2 and 4 where a matrix's zeros come in such blocks."""
    kept = dense != 0
    nonzero = int(kept.sum())
    found = [1]
    for rows in (2, 4):
        whole = kept.shape[0] - kept.shape[0] % rows
        stored = (
            rows * int(kept[:whole].reshape(whole // rows, rows, -1).any(dim=1).sum())
            if whole
            else 0
        )
        stored += int(kept[whole:].any(dim=0).sum()) * (kept.shape[0] - whole)
        if stored <= _FILL * nonzero:
            found.append(rows)
    return found


def nm_patterns(dense: Tensor) -> list[tuple[int, int]]:
    """The N:M pattern that a matrix's zeros have, or none.

    A pattern stores N of M whatever is zero there: only one that stores at most 5 % more than the
    nonzero weights counts. Of several the one with the smallest groups, which has the shortest
    indices.
    """
    kept = dense != 0
    nonzero = int(kept.sum())
    for m in GROUP_SIZES:
        if m > kept.shape[1]:
            break
        groups = nn.functional.pad(kept, (0, -kept.shape[1] % m)).reshape(len(kept), -1, m).sum(-1)
        n = int(groups.max())
        if 0 < n < m and n * groups.numel() <= _FILL * nonzero:
            return [(n, m)]
    return []


def bitmap_fits(dense: Tensor) -> bool:
    """Whether so many weights are zero, and so many are not, that a bit a weight pays."""
    zeros = 1.0 - int(torch.count_nonzero(dense)) / dense.numel()
    return _BITMAP_SPARSITY[0] <= zeros < _BITMAP_SPARSITY[1]


def _packed_bitmap(site: Site, dtype: torch.dtype) -> Candidate:
    assert site.dense is not None
    packed = BitmapTensor.from_dense(site.dense, dtype=dtype)
    packed = _trained_as(site, packed)
    modules: list[nn.Module] = []
    for module in site.modules:
        bias = module.bias
        assert bias is None or isinstance(bias, Tensor)
        modules.append(BitmapLinear.from_packed(packed, bias).train(module.training))
    label = f"bitmap {describe_dtype(dtype)}"
    return Candidate(label, "bitmap", 1, tuple(modules), packed.nbytes)


def _packed_nm(site: Site, dtype: torch.dtype, n: int, m: int) -> Candidate:
    assert site.dense is not None
    packed = NMTensor.from_dense(site.dense, n, m, dtype=dtype)
    packed = _trained_as(site, packed)
    modules: list[nn.Module] = []
    for module in site.modules:
        bias = module.bias
        assert bias is None or isinstance(bias, Tensor)
        modules.append(NMLinear.from_packed(packed, bias).train(module.training))
    label = f"nm {n}:{m} {describe_dtype(dtype)}"
    return Candidate(label, "nm", 1, tuple(modules), packed.nbytes)


def _packed_gqs(site: Site, quantize: GQS, int8_x: bool) -> Candidate:
    """Groups of zeros are pruned, whatever sparsity the pattern names; the others are quantized."""
    assert site.dense is not None
    largest = float(site.dense.abs().max())
    wide = largest > torch.finfo(torch.float16).max  # scales of at most that, with 2 bits
    packed = GQSTensor.from_dense(
        site.dense,
        quantize.bits,
        quantize.group,
        scale_dtype=torch.float32 if wide else torch.float16,
    )
    first = site.modules[0]
    assert isinstance(first.weight, Tensor)
    packed = trainable_scales(packed, first.weight.requires_grad)
    packed.values = nn.Parameter(packed.values, requires_grad=False)  # one object for all ties
    modules: list[nn.Module] = []
    for module in site.modules:
        bias = module.bias
        assert bias is None or isinstance(bias, Tensor)
        layer = GQSLinear.from_packed(packed, bias)
        layer.int8_activations = int8_x
        modules.append(layer.train(module.training))
    label = f"gqs w{quantize.bits}g{quantize.group}{', int8 x' if int8_x else ''}"
    return Candidate(label, "gqs", 1, tuple(modules), packed.nbytes)


def _packed(site: Site, dtype: torch.dtype, block_rows: int, int8_x: bool) -> Candidate:
    assert site.dense is not None
    packed = CSRTensor.from_dense(site.dense, block_rows=block_rows, dtype=dtype)
    packed = _trained_as(site, packed)
    modules: list[nn.Module] = []
    for module in site.modules:
        bias = module.bias
        assert bias is None or isinstance(bias, Tensor)
        if isinstance(module, nn.Conv2d):
            layer: CSRLayer = CSRConv2d.from_packed(packed, bias, stride=module.stride[0])
        else:
            layer = CSRLinear.from_packed(packed, bias)
        layer.int8_activations = int8_x
        modules.append(layer.train(module.training))
    rows = f" r{block_rows}" if block_rows > 1 else ""
    label = f"csr{rows} {describe_dtype(dtype)}{', int8 x' if int8_x else ''}"
    return Candidate(label, "csr", block_rows, tuple(modules), packed.nbytes)


def _trained_as(site: Site, packed: _T) -> _T:
    first = site.modules[0]
    assert isinstance(first.weight, Tensor)
    return trainable(packed, first.weight.requires_grad)


def _cast(site: Site, dtype: torch.dtype, allowed: bool) -> Candidate:
    modules: list[nn.Module] = []
    for module in site.modules:
        if isinstance(module, nn.Conv2d):
            new: CastConv2d | CastLinear = CastConv2d.of(module, dtype)
        else:
            assert isinstance(module, nn.Linear)
            new = CastLinear.of(module, dtype)
        if modules:  # the tie stays one
            new.weight = modules[0].weight  # type: ignore[assignment]
        modules.append(new)
    weight = modules[0].weight
    assert isinstance(weight, Tensor)
    label = f"dense {describe_dtype(dtype)}"
    return Candidate(label, "dense", 0, tuple(modules), weight.nbytes, allowed)
