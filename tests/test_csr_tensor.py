# SPDX-License-Identifier: Apache-2.0
"""CSRTensor: what is packed is what was given, whatever its strides; what is wrong is refused."""

from __future__ import annotations

import copy
import gc
import pickle

import numpy as np
import oracle
import pytest
import torch
from hypothesis import given
from sparsekern import CSRTensor, _core, _memory, _transpose
from sparsekern._packed import DTYPE_NAMES
from strategies import Spec, activations, pack, specs, stored

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def matrix(rows: int = 37, cols: int = 150, density: float = 0.2, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(rows, cols, generator=generator)
    return w * (torch.rand(rows, cols, generator=generator) < density)


def read(packed: CSRTensor) -> oracle.Csr:
    """What the oracle finds in the parts."""
    return oracle.read_csr(
        stored(packed.values.detach()), packed.structure.numpy(), DTYPE_NAMES[packed.dtype]
    )


@pytest.mark.parametrize("block_rows", [1, 2, 4])
@pytest.mark.parametrize("dtype", FLOATS)
def test_packs_what_it_is_given(dtype, block_rows):
    w = matrix().to(dtype)
    packed = CSRTensor.from_dense(w, block_rows=block_rows)
    found = read(packed)
    assert np.array_equal(found.dense, w.double().numpy())
    assert torch.equal(packed.to_dense(), w)
    assert packed.to_dense().dtype == dtype
    assert np.array_equal(packed.mask().numpy(), found.mask)
    assert packed.shape == (37, 150)
    assert packed.block_rows == block_rows
    assert packed.nnz == found.mask.sum()
    assert packed.density == found.mask.mean()
    assert packed.nbytes == packed.values.nbytes + packed.structure.nbytes


LAYOUTS = {
    "transposed": lambda w: w.T.contiguous().T,
    "every second column": lambda w: torch.stack([w, -w], 2).flatten(1)[:, ::2],
    "a part of a larger one": lambda w: torch.nn.functional.pad(w, (3, 2, 1, 1))[1:-1, 3:-2],
    "float64": lambda w: w.double(),
    "a Parameter": lambda w: torch.nn.Parameter(w),
    "one row expanded": lambda w: w[:1].expand(5, -1),
    "a view that starts odd": lambda w: torch.cat([w.new_zeros(1), w.flatten()])[1:].view_as(w),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides_and_dtype(layout):
    w = LAYOUTS[layout](matrix())
    packed = CSRTensor.from_dense(w)
    assert packed.dtype == torch.float32
    assert not packed.values.requires_grad
    assert torch.equal(packed.to_dense(), w.detach().float())


@given(spec=specs(dtypes=("float32", "bfloat16", "float16")))
def test_round_trip(spec):
    w = torch.from_numpy(pack(spec).matrix.dense).to(getattr(torch, spec.dtype))
    packed = CSRTensor.from_dense(w, block_rows=spec.block_rows)
    assert torch.equal(packed.to_dense(), w)
    again = CSRTensor(packed.values, packed.structure)
    assert again.nnz == packed.nnz == read(packed).mask.sum()


def test_not_finite_is_kept():
    w = torch.zeros(3, 5)
    w[0, 0], w[1, 2], w[2, 4] = float("nan"), float("inf"), float("-inf")
    packed = CSRTensor.from_dense(w)
    assert packed.nnz == 3
    assert torch.equal(packed.to_dense(), w) is False  # NaN
    assert torch.equal(packed.to_dense().nan_to_num(7), w.nan_to_num(7))


def test_mask_keeps_explicit_zeros_and_drops_the_rest():
    w, mask = torch.ones(6, 9), torch.zeros(6, 9, dtype=torch.bool)
    mask[:, 3] = mask[2, 5] = True
    w[1, 3] = 0
    packed = CSRTensor.from_dense(w, mask=mask)
    assert torch.equal(packed.mask(), mask)
    assert torch.equal(packed.to_dense(), w * mask)
    strided = CSRTensor.from_dense(w, mask=mask.T.contiguous().T)
    assert torch.equal(strided.mask(), mask)


def test_a_last_group_that_is_short_is_counted_exactly():
    packed = CSRTensor.from_dense(torch.ones(5, 7), block_rows=4)
    assert packed.nnz == 35
    assert packed.density == 1


def test_int8_is_symmetric_per_row():
    w = matrix(20, 64)
    w[7] = 0
    packed = CSRTensor.from_dense(w, dtype=torch.int8)
    assert packed.dtype == torch.int8
    largest = w.abs().amax(1)
    assert torch.equal(packed.scale, torch.where(largest > 0, largest / 127, 1))
    levels = read(packed).dense
    assert np.abs(levels).max(axis=1).tolist() == [127.0 if m > 0 else 0.0 for m in largest]
    error = (packed.to_dense() - w).abs()
    assert (error <= 0.5001 * packed.scale[:, None]).all()
    masked = CSRTensor.from_dense(w, mask=w.abs() < 1, dtype=torch.int8)
    assert (masked.scale <= 1 / 127).sum() >= 19  # what is pruned does not widen the scale


def test_int8_of_tiny_weights_stays_finite():
    w = torch.full((1, 3), 1e-44)
    packed = CSRTensor.from_dense(w, dtype=torch.int8)
    assert packed.to_dense().isfinite().all()
    assert (packed.to_dense() - w).abs().max() < 1e-43


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_int8_refuses_what_is_not_finite(bad):
    w = matrix()
    w[3, 3] = bad
    with pytest.raises(ValueError, match=r"w must be finite for dtype torch\.int8"):
        CSRTensor.from_dense(w, dtype=torch.int8)


W = torch.ones(4, 6)
REFUSED = {
    "list": (([[1.0]],), {}, TypeError, "w must be a torch.Tensor, got list"),
    "integers": ((W.int(),), {}, TypeError, "floating-point dtype, got torch.int32"),
    "complex": ((W.to(torch.complex64),), {}, TypeError, "floating-point dtype"),
    "sparse": ((W.to_sparse(),), {}, TypeError, "must be a dense tensor, got layout"),
    "vector": ((W[0],), {}, ValueError, r"shape \[rows, cols\], got \[6\]"),
    "no row": ((W[:0],), {}, ValueError, r"at least one row and column, got \[0, 6\]"),
    "no column": ((W[:, :0],), {}, ValueError, r"at least one row and column, got \[4, 0\]"),
    "meta": ((W.to("meta"),), {}, ValueError, "must hold data, got a tensor on the meta device"),
    "rows": ((W[:1, :1].expand(2**31, 1),), {}, ValueError, r"below 2\^31"),
    "cols": ((W[:1, :1].expand(1, 2**31),), {}, ValueError, r"below 2\^31"),
    "elements": ((W[:1, :1].expand(2**31 - 1, 2**31 - 1),), {}, MemoryError, "available"),
    "block_rows": ((W,), {"block_rows": 3}, ValueError, "block_rows must be 1, 2 or 4, got 3"),
    "block_rows type": ((W,), {"block_rows": 2.0}, TypeError, "must be an integer, got float"),
    "dtype": ((W,), {"dtype": torch.float64}, TypeError, "dtype must be one of .*float64"),
    "mask type": ((W,), {"mask": W}, TypeError, "mask must be a torch.bool tensor, got torch.fl"),
    "mask shape": (
        (W,),
        {"mask": W[:3] > 0},
        ValueError,
        r"mask.shape must equal w.shape \[4, 6\]",
    ),
    "mask meta": ((W,), {"mask": (W > 0).to("meta")}, ValueError, "mask must hold data"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_from_dense_refuses(case, monkeypatch):
    arguments, options, error, text = REFUSED[case]
    if case == "elements":  # nothing is as large; counting its weights would take the day
        monkeypatch.setattr(torch, "count_nonzero", lambda w: torch.tensor(w.numel()))
    with pytest.raises(error, match=text):
        CSRTensor.from_dense(*arguments, **options)


def test_too_little_memory_is_said_before_the_work(monkeypatch):
    monkeypatch.setattr(_core, "csr_pack", lambda *_: pytest.fail("the work has started"))
    monkeypatch.setattr(_memory, "available_bytes", lambda: 2**20)
    w = torch.ones(1024, 1024)
    with pytest.raises(
        MemoryError, match=r"from_dense: packing a matrix \[1024, 1024\] needs about"
    ):
        CSRTensor.from_dense(w)
    monkeypatch.undo()
    packed = CSRTensor.from_dense(w)
    monkeypatch.setattr(_memory, "available_bytes", lambda: 2**20)
    with pytest.raises(MemoryError, match="needs about 4 MiB of memory, got 1 MiB available"):
        packed.to_dense()


def test_the_estimate_covers_what_is_allocated_and_not_much_more(monkeypatch):
    asked = []
    monkeypatch.setattr(_memory, "require", lambda *arguments: asked.append(arguments[2]))
    packed = CSRTensor.from_dense(matrix(512, 512, 0.1))
    assert packed.nbytes <= asked[0] <= 4 * packed.nbytes


def test_available_memory_is_plausible():
    available = _memory.available_bytes()
    assert available is not None
    assert 2**20 < available < 2**50


def test_constructor_checks_everything():
    good = CSRTensor.from_dense(matrix())
    cases = [
        (([1.0], good.structure), TypeError, "values must be a torch.Tensor, got list"),
        ((good.values.double(), good.structure), TypeError, "values must have dtype .*float64"),
        ((good.values, good.structure.int()), TypeError, "structure must have dtype uint8"),
        ((good.values[None], good.structure), ValueError, "values must be 1-D"),
        ((good.values[:-1], good.structure), ValueError, "values"),
        ((good.values, good.structure[:-1]), ValueError, "structure"),
        ((good.values, good.structure[:10]), ValueError, "structure"),
        ((good.values.to("meta"), good.structure), ValueError, "meta device"),
        ((good.values, good.structure, torch.ones(37)), ValueError, "scale must be None unless"),
    ]
    int8 = CSRTensor.from_dense(matrix(), dtype=torch.int8)
    parts = (int8.values, int8.structure)
    cases += [
        (parts, TypeError, "scale must be a float32 tensor for int8, got NoneType"),
        ((*parts, int8.scale.half()), TypeError, "scale must have dtype float32"),
        ((*parts, int8.scale[1:]), ValueError, r"scale must have shape \[37\], got \[36\]"),
    ]
    for arguments, error, text in cases:
        with pytest.raises(error, match=text):
            CSRTensor(*arguments)


def test_constructor_copies_what_is_not_aligned():
    good = CSRTensor.from_dense(matrix())
    shifted = torch.cat([good.structure.new_zeros(3), good.structure])[3:]
    again = CSRTensor(good.values, shifted)
    assert again.structure.data_ptr() % 64 == 0
    assert torch.equal(again.to_dense(), good.to_dense())


def test_copies():
    for packed in (
        CSRTensor.from_dense(matrix(), block_rows=2),
        CSRTensor.from_dense(matrix(), dtype=torch.int8),
    ):
        for other in (copy.deepcopy(packed), pickle.loads(pickle.dumps(packed)), copy.copy(packed)):
            assert torch.equal(other.to_dense(), packed.to_dense())
            assert other.dtype == packed.dtype
            assert other.block_rows == packed.block_rows


def test_to_dtype():
    packed = CSRTensor.from_dense(matrix())
    half = packed.to(dtype=torch.float16)
    assert half.dtype == torch.float16
    assert half.structure.dtype == torch.uint8
    assert torch.equal(half.to_dense(), packed.to_dense().half())
    assert packed.to("cpu").dtype == torch.float32
    with pytest.raises(TypeError, match="floating-point one for floating-point values"):
        packed.to(dtype=torch.int8)
    with pytest.raises(TypeError, match="dtype must be one of"):
        packed.to(dtype=torch.float64)


@pytest.mark.parametrize("block_rows", [1, 2, 4])
def test_transpose(block_rows):
    packed = CSRTensor.from_dense(matrix(150, 70), block_rows=block_rows)
    packed.values.requires_grad_()
    other = packed.transpose()
    assert other.shape == (70, 150)
    assert torch.equal(other.to_dense(), packed.to_dense().T)
    assert torch.equal(other.mask(), packed.mask().T)
    other.values.sum().backward()  # every kept weight once, padding never
    ones = CSRTensor.trusted(packed.values.grad, packed.structure, None)
    assert torch.equal(ones.to_dense(), packed.mask().float())
    with pytest.raises(NotImplementedError, match="float32, bfloat16 or float16, got int8"):
        CSRTensor.from_dense(matrix(), dtype=torch.int8).transpose()


def test_transposed_pattern_is_built_once_and_dropped_with_the_structure(monkeypatch):
    built = []
    real = _core.csr_transpose
    monkeypatch.setattr(_core, "csr_transpose", lambda s: built.append(1) or real(s))
    packed = CSRTensor.from_dense(matrix())
    packed.transpose()
    packed.transpose()
    CSRTensor.trusted(packed.values * 2, packed.structure.detach(), None).transpose()  # an alias
    assert len(built) == 1
    other = CSRTensor.from_dense(matrix().flip(0))
    packed.structure.copy_(other.structure)  # written to: another pattern
    again = CSRTensor.trusted(other.values, packed.structure, None).transpose()
    assert len(built) == 2
    assert torch.equal(again.to_dense(), matrix().flip(0).T)
    del again
    before = len(_transpose._cache)
    del packed
    gc.collect()
    other.transpose()
    assert len(_transpose._cache) == before


def test_torch_functions():
    packed, x = CSRTensor.from_dense(matrix()), activations((3, 150))
    expected = torch.nn.functional.linear(x, packed.to_dense())
    torch.testing.assert_close(torch.nn.functional.linear(x, packed), expected)
    with pytest.raises(TypeError, match=r"must be torch.nn.functional.linear, got relu; use to_de"):
        torch.relu(packed)


def test_repr():
    packed = CSRTensor.from_dense(torch.eye(4))
    text = "CSRTensor(shape=[4, 4], dtype=float32, block_rows=1, density=0.2500)"
    assert repr(packed) == text


def test_specification_reads_every_kind():
    for dtype in (*FLOATS, torch.int8):
        spec = Spec(40, 130, 0.3, DTYPE_NAMES[dtype])
        packed = pack(spec)
        again = CSRTensor(packed.values, packed.structure, packed.scale)
        assert np.array_equal(again.to_dense().double().numpy(), packed.dense.astype(np.float32))
