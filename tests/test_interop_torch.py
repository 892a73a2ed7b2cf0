# SPDX-License-Identifier: Apache-2.0
"""torch's semi-structured layout: read and written as torch's own conversions do it."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sparsekern import NMTensor, interop, ops
from torch.sparse import SparseSemiStructuredTensorCUSPARSELT as Cusparselt
from torch.sparse import SparseSemiStructuredTensorCUTLASS as Cutlass
from torch.sparse._semi_structured_conversions import (
    sparse_semi_structured_from_dense_cutlass as from_dense,
)
from torch.sparse._semi_structured_conversions import (
    sparse_semi_structured_to_dense_cutlass as to_dense,
)

DTYPES = [torch.float16, torch.bfloat16, torch.int8, torch.float32]
# The smallest matrix of the layout: rows and columns.
LEAST = {
    torch.float16: (32, 32),
    torch.bfloat16: (32, 32),
    torch.int8: (16, 64),
    torch.float32: (32, 16),
}
NAN, INF = math.nan, math.inf
WORD = {torch.int8: torch.int32}


def pattern(dtype: torch.dtype) -> tuple[int, int]:
    return (1, 2) if dtype == torch.float32 else (2, 4)


def matrix(dtype: torch.dtype, rows: int, cols: int, seed: int = 0, density: float = 1.0):
    """Random weights of the dtype's pattern; of some groups fewer than allowed are not zero."""
    n, m = pattern(dtype)
    generator = torch.Generator().manual_seed(seed)
    places = torch.rand(rows, cols // m, m, generator=generator).argsort(2)[..., :n]
    mask = torch.zeros(rows, cols // m, m, dtype=torch.bool).scatter_(2, places, True).flatten(1)
    mask &= torch.rand(rows, cols, generator=generator) < density
    if dtype == torch.int8:
        values = torch.randint(-128, 128, (rows, cols), generator=generator, dtype=dtype)
    else:
        values = torch.randn(rows, cols, generator=generator).to(dtype)
        if dtype == torch.float32:  # torch's conversion copies it as halves, and changes their NaNs
            values = values.bfloat16().float()
    return values * mask


def tensor_of(dtype: torch.dtype, w: torch.Tensor) -> NMTensor:
    n, m = pattern(dtype)
    if dtype != torch.int8:
        return NMTensor.from_dense(w, n, m)
    packed, meta = from_dense(w)
    return interop.from_cutlass(packed, meta)


def semi_structured(class_: type, shape, **parts) -> torch.Tensor:
    names = ("packed", "meta", "packed_t", "meta_t", "compressed_swizzled_bitmask")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own: a prototype
        return class_(torch.Size(shape), **{name: parts.get(name) for name in names})


def padded_meta(meta: torch.Tensor) -> torch.Tensor:
    """The same words as prune_dense_static_sort returns them: [rows, 2, columns / 2], strided."""
    rows, columns = meta.shape
    return meta.reshape(columns // 2, rows, 2).permute(1, 2, 0)


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=25)
@given(
    rows=st.integers(1, 4),
    cols=st.integers(1, 5),
    seed=st.integers(0, 2**16),
    density=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_round_trips_with_torch(dtype, rows, cols, seed, density):
    least = LEAST[dtype]
    w = matrix(dtype, rows * least[0], cols * least[1], seed, density)
    packed, meta = from_dense(w)  # what torch writes is read
    read = interop.from_cutlass(packed, meta)
    assert (read.n, read.m) == pattern(dtype)
    assert read.dtype == dtype
    assert torch.equal(read.to_dense().to(dtype), w)
    again = interop.to_cutlass(read)  # what is written torch reads
    assert torch.equal(to_dense(*again), w)
    assert again[0].dtype == packed.dtype
    assert again[1].dtype == meta.dtype
    assert [part.shape for part in again] == [packed.shape, meta.shape]
    if density == 1.0 and dtype != torch.int8:  # no zeros: nothing is left to the writer
        assert torch.equal(again[0], packed)
        assert torch.equal(again[1], meta)
    back = interop.from_cutlass(*again)
    assert torch.equal(back.structure, read.structure)
    assert torch.equal(back.values, read.values)
    in_three = interop.from_cutlass(packed, padded_meta(meta))
    assert torch.equal(in_three.structure, read.structure)
    assert torch.equal(in_three.values, read.values)


@pytest.mark.parametrize("dtype", DTYPES)
def test_tensors_of_torch(dtype):
    rows, cols = LEAST[dtype]
    w = matrix(dtype, 2 * rows, 3 * cols)
    packed, meta = from_dense(w)
    for words in (meta, padded_meta(meta)):
        tensor = semi_structured(Cutlass, w.shape, packed=packed, meta=words)
        assert torch.equal(interop.from_torch(tensor).to_dense().to(dtype), w)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = interop.to_torch(tensor_of(dtype, w))
    assert isinstance(made, Cutlass)
    assert made.shape == w.shape
    assert made.dtype == dtype
    assert torch.equal(made.to_dense(), w)


def test_padding_is_cut_off():
    w = matrix(torch.float16, 64, 128)
    packed, meta = from_dense(w)
    meta = meta.clone()
    packed[:, 48:] = NAN  # beyond 40 x 96 anything may be
    packed[40:] = NAN
    tensor = semi_structured(Cutlass, (40, 96), packed=packed, meta=padded_meta(meta))
    assert torch.equal(interop.from_torch(tensor).to_dense(), w[:40, :96])
    read = interop.from_cutlass(packed, meta, (33, 4))
    assert torch.equal(read.to_dense(), w[:33, :4])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_special_values_bit_by_bit(dtype):
    rows, cols = LEAST[dtype]
    n, m = pattern(dtype)
    w = torch.zeros(rows, cols, dtype=dtype)
    values = [NAN, INF, -INF, -0.0, torch.finfo(dtype).max, torch.finfo(dtype).smallest_normal / 2]
    for row, value in enumerate(values):
        w[row, row % m :: m] = value
    weight = NMTensor.from_dense(w, n, m, mask=(w != 0) | w.signbit())
    packed, meta = interop.to_cutlass(weight)
    integers = {2: torch.int16, 4: torch.int32}[dtype.itemsize]
    read = interop.from_cutlass(packed, meta).to_dense()
    assert torch.equal(read.view(integers), w.view(integers))


def test_explicit_zeros_stay_kept():
    mask = torch.zeros(32, 32, dtype=torch.bool)
    mask[:, 1::4] = mask[:, 2::4] = True
    weight = NMTensor.from_dense(torch.zeros(32, 32), 2, 4, mask=mask, dtype=torch.float16)
    assert torch.equal(interop.from_cutlass(*interop.to_cutlass(weight)).mask(), mask)


# What prune_dense_static_sort writes for a group of one: its column, the two values and the code.
ONE_KEPT = [(0, (5, 0), 0b0000), (1, (5, 0), 0b0001), (2, (0, 5), 0b1000), (3, (0, 5), 0b1100)]


@pytest.mark.parametrize(("column", "values", "code"), ONE_KEPT)
def test_groups_of_one(column, values, code):
    packed = torch.zeros(32, 16, dtype=torch.float16)
    meta = torch.zeros(32, 2, dtype=torch.int16)
    packed[0, :2] = torch.tensor(values)
    meta[0, 0] = code
    w = torch.zeros(32, 32, dtype=torch.float16)
    w[0, column] = 5
    assert torch.equal(interop.from_cutlass(packed, meta).to_dense(), w)


def test_int8_extremes_and_scale():
    w = torch.zeros(16, 64, dtype=torch.int8)
    w[:, 1], w[:, 3] = -128, 127
    packed, meta = from_dense(w)
    scale = torch.arange(1.0, 17)
    weight = interop.from_cutlass(packed, meta, scale=scale)
    assert torch.equal(weight.to_dense(), w * scale[:, None])
    x = torch.zeros(1, 64)
    x[0, 1] = 1
    y = ops.nm_linear(x, weight)
    assert torch.equal(y[0], -128 * scale)
    again = interop.to_cutlass(weight)
    assert torch.equal(to_dense(*again), w)  # the scale is the caller's
    with pytest.raises(ValueError, match=r"^to_torch: weight must have a scale of 1 as int8"):
        interop.to_torch(weight)


HALF = from_dense(matrix(torch.float16, 64, 64))
FLOAT = from_dense(matrix(torch.float32, 32, 32))
INT8 = from_dense(matrix(torch.int8, 16, 64))
BROKEN = FLOAT[1].clone()
BROKEN[0, 0] = 0
REFUSED = {
    "list": (([1], HALF[1]), TypeError, "packed must be a torch.Tensor, got list"),
    "dtype": ((HALF[0].double(), HALF[1]), TypeError, "packed must have dtype .*float64"),
    "word": ((HALF[0], HALF[1].int()), TypeError, "meta must have dtype int16, got torch.int32"),
    "word of int8": ((INT8[0], INT8[1].short()), TypeError, "meta must have dtype int32"),
    "meta": ((HALF[0].to("meta"), HALF[1]), ValueError, "packed must be a dense tensor that holds"),
    "vector": ((HALF[0][0], HALF[1]), ValueError, r"packed must have shape \[rows, cols / 2\]"),
    "no rows": ((HALF[0][:0], HALF[1][:0]), ValueError, "at least one row"),
    "rows": ((HALF[0][:33], HALF[1]), ValueError, r"multiple of 32 rows and 16 columns for"),
    "columns": ((HALF[0][:, :24], HALF[1]), ValueError, r"multiple of 32 rows and 16 columns"),
    "meta rows": (
        (HALF[0], HALF[1][:32]),
        ValueError,
        r"meta must have shape \[64, 4\], got \[32, 4\]",
    ),
    "meta columns": ((HALF[0], HALF[1][:, :2]), ValueError, r"meta must have shape \[64, 4\]"),
    "meta 3-D": ((HALF[0], HALF[1][None]), ValueError, r"meta must have shape \[64, 2, 2\]"),
    "shape": ((*HALF, (65, 64)), ValueError, r"shape must be at most \[64, 64\] in whole"),
    "part of a group": ((*HALF, (64, 62)), ValueError, "in whole groups"),
    "empty": ((*HALF, (0, 64)), ValueError, "at least one row"),
    "code": (
        (FLOAT[0], BROKEN),
        ValueError,
        "meta must hold codes 4 and 14 for float32, got 0 in row 0, columns 0 and 1",
    ),
    "one column for two": (
        (torch.ones(32, 16).half(), torch.zeros(32, 2, dtype=torch.int16)),
        ValueError,
        "meta must name two columns for two values, got one in row 0, columns 0 to 3",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_from_cutlass_refuses(case):
    arguments, error, text = REFUSED[case]
    with pytest.raises(error, match=rf"^from_cutlass: .*{text}"):
        interop.from_cutlass(*arguments)


def test_scales_that_do_not_fit():
    with pytest.raises(ValueError, match="from_cutlass: scale must be None unless values are int8"):
        interop.from_cutlass(*HALF, scale=torch.ones(64))
    with pytest.raises(ValueError, match=r"scale must have shape \[16\], got \[3\]"):
        interop.from_cutlass(*INT8, scale=torch.ones(3))
    with pytest.raises(TypeError, match="scale must be a float32 tensor for int8, got float"):
        interop.from_cutlass(*INT8, scale=2.0)


@pytest.mark.parametrize(
    ("weight", "text"),
    [
        (
            lambda: NMTensor.from_dense(torch.eye(32).half(), 1, 4),
            "weight must keep 2:4 as float16, got 1:4",
        ),
        (lambda: NMTensor.from_dense(torch.eye(32), 2, 4), "weight must keep 1:2 as float32"),
        (
            lambda: NMTensor.from_dense(torch.eye(32, 33).half(), 2, 4),
            "weight must have a multiple of 4 columns, got 33",
        ),
        (
            lambda: NMTensor.from_dense(torch.eye(31, 32).half(), 2, 4),
            r"weight must have a multiple of 32 rows and 32 columns as float16, got \[31, 32\]",
        ),
        (
            lambda: NMTensor.from_dense(torch.eye(32, 48).half(), 2, 4),
            r"weight must have a multiple of 32 rows and 32 columns as float16, got \[32, 48\]",
        ),
    ],
)
@pytest.mark.parametrize("writer", [interop.to_cutlass, interop.to_torch])
def test_writers_refuse(writer, weight, text):
    with pytest.raises(ValueError, match=f"^to_cutlass: {text}"):
        writer(weight())
    with pytest.raises(TypeError, match=r"^to_cutlass: weight must be an NMTensor, got Tensor"):
        writer(torch.eye(32))


def test_from_torch_refuses():
    with pytest.raises(TypeError, match=r"SparseSemiStructuredTensor, got Tensor"):
        interop.from_torch(torch.eye(4))
    transposed = semi_structured(Cutlass, (64, 64), packed_t=HALF[0], meta_t=HALF[1])
    with pytest.raises(ValueError, match=r"^from_torch: tensor must hold packed rows, got a tran"):
        interop.from_torch(transposed)
    opaque = semi_structured(Cusparselt, (64, 64), packed=HALF[0])
    with pytest.raises(ValueError, match=r"on a CUDA device for cuSPARSELt's layout, got cpu"):
        interop.from_torch(opaque)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu():
    w = matrix(torch.float16, 128, 128).cuda()
    made = interop.to_torch(NMTensor.from_dense(w, 2, 4))
    assert made.device.type == "cuda"
    assert torch.equal(made.to_dense(), w)
    assert torch.equal(interop.from_torch(made).to_dense(), w)
    if torch.backends.cusparselt.is_available():
        opaque = Cusparselt.from_dense(w)
        assert torch.equal(interop.from_torch(opaque).to_dense(), w)
        w[0, 0], w[0, 1:4] = NAN, 0
        with pytest.raises(ValueError, match="must be finite"):
            interop.from_torch(Cusparselt.from_dense(w))
