# SPDX-License-Identifier: Apache-2.0
"""NMTensor: what is packed is what was given, whatever its strides; what is wrong is refused."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sparsekern import NMTensor, _core, _memory
from sparsekern._packed import DTYPE_NAMES
from strategies import NM_PATTERNS, NmSpec, draw_nm, nm_specs, pack_nm, stored

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
NAN, INF = math.nan, math.inf


def matrix(rows: int = 37, cols: int = 150, n: int = 2, m: int = 4, seed: int = 0) -> torch.Tensor:
    weights, mask = draw_nm(NmSpec(rows, cols, n, m, "float32", 0.2, seed))
    return weights * torch.from_numpy(mask)


def read(packed: NMTensor) -> oracle.Nm:
    """What the oracle finds in the parts."""
    return oracle.read_nm(
        stored(packed.values.detach()), packed.structure.numpy(), DTYPE_NAMES[packed.dtype]
    )


@pytest.mark.parametrize(("n", "m"), NM_PATTERNS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_packs_what_it_is_given(dtype, n, m):
    w = matrix(n=n, m=m).to(dtype)
    packed = NMTensor.from_dense(w, n, m)
    found = read(packed)
    assert np.array_equal(found.dense, w.double().numpy())
    assert torch.equal(packed.to_dense(), w)
    assert packed.to_dense().dtype == packed.dtype == dtype
    assert np.array_equal(packed.mask().numpy(), found.mask)
    assert packed.shape == (37, 150)
    assert (packed.n, packed.m) == (n, m)
    assert packed.device == torch.device("cpu")
    assert packed.nnz == found.mask.sum()
    assert packed.density == found.mask.mean()
    assert packed.nbytes == packed.values.nbytes + packed.structure.nbytes
    assert packed.scale is None


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
@pytest.mark.parametrize("strict", [True, False])
def test_any_strides_and_dtype(layout, strict):
    w = LAYOUTS[layout](matrix())
    packed = NMTensor.from_dense(w, 2, 4, strict=strict)
    assert packed.dtype == torch.float32
    assert not packed.values.requires_grad
    assert torch.equal(packed.to_dense(), w.detach().float())


@given(spec=nm_specs(dtypes=("float32", "bfloat16", "float16")))
def test_round_trip(spec):
    w = torch.from_numpy(pack_nm(spec).matrix.dense).to(getattr(torch, spec.dtype))
    packed = NMTensor.from_dense(w, spec.n, spec.m)
    assert torch.equal(packed.to_dense(), w)
    again = NMTensor(packed.values, packed.structure)
    assert again.nnz == packed.nnz == read(packed).mask.sum()
    other = NMTensor.from_dense(w, spec.n, spec.m, strict=False)
    assert torch.equal(other.structure, packed.structure)
    assert torch.equal(other.values, packed.values)


def test_two_of_four_in_bf16_is_nine_bits_a_weight():
    packed = NMTensor.from_dense(matrix(64, 128), 2, 4, dtype=torch.bfloat16)
    assert (packed.nbytes - 64) * 8 == 9 * 64 * 128


def test_mask_keeps_explicit_zeros_and_drops_the_rest():
    w, mask = torch.ones(6, 8), torch.zeros(6, 8, dtype=torch.bool)
    mask[:, [1, 3, 4, 7]] = True
    w[1, 3] = 0
    packed = NMTensor.from_dense(w, 2, 4, mask=mask)
    assert torch.equal(packed.mask(), mask)
    assert torch.equal(packed.to_dense(), w * mask)
    strided = NMTensor.from_dense(w, 2, 4, mask=mask.T.contiguous().T)
    assert torch.equal(strided.mask(), mask)
    mask[:, 1] = False  # a short group: column 0 fills up, with zero
    packed = NMTensor.from_dense(w, 2, 4, mask=mask)
    assert torch.equal(packed.to_dense(), w * mask)
    assert packed.mask()[:, 0].all()


# --- more than N ----------------------------------------------------------------------------------


def test_strict_names_the_group():
    w = matrix(20, 30)
    w[3, 24:28] = torch.tensor([1.0, 2.0, 0.0, 3.0])
    text = (
        r"^NMTensor.from_dense: row 3, columns 24 to 27 must keep at most 2 of 4, got 3; "
        "strict=False keeps the 2 largest$"
    )
    with pytest.raises(ValueError, match=text):
        NMTensor.from_dense(w, 2, 4)
    with pytest.raises(ValueError, match=text):
        NMTensor.from_dense(torch.ones(20, 30), 2, 4, mask=w != 0)
    packed = NMTensor.from_dense(w, 2, 4, strict=False)
    w[3, 24] = 0
    assert torch.equal(packed.to_dense(), w)


# A group, what of it a mask keeps (or None), and the columns that 2 of 4 keeps.
SELECTIONS = [
    ([1, -4, 3, 2], None, [1, 2]),
    ([2, -2, 2, 2], None, [0, 1]),
    ([0, 0, 0, 0], None, [0, 1]),
    ([0, 0, 0, -1], None, [0, 3]),
    ([NAN, 1, NAN, 2], None, [1, 3]),
    ([NAN, 0, 0, NAN], None, [1, 2]),
    ([NAN, NAN, 0, NAN], None, [0, 2]),
    ([NAN, NAN, NAN, NAN], None, [0, 1]),
    ([NAN, INF, -INF, 5], None, [1, 2]),
    ([INF, NAN, -INF, INF], None, [0, 2]),
    ([9, 8, 1, 2], [False, False, True, True], [2, 3]),
    ([9, 8, 1, 2], [False, True, True, True], [1, 3]),
    ([9, NAN, NAN, 2], [False, True, True, True], [1, 3]),
]


@pytest.mark.parametrize(("group", "mask", "kept"), SELECTIONS)
@pytest.mark.parametrize("dtype", [*FLOATS, torch.float64])
def test_the_largest_are_kept(group, mask, kept, dtype):
    w = torch.tensor([[7.0, 0, 6, 0, *group]], dtype=dtype)
    pattern = None
    if mask is not None:
        pattern = torch.tensor([[True, False, True, False, *mask]])
    packed = NMTensor.from_dense(w, 2, 4, mask=pattern, strict=False)
    expected = torch.zeros(1, 8, dtype=torch.bool)
    expected[0, [0, 2, *(4 + column for column in kept)]] = True
    assert torch.equal(packed.mask(), expected)
    wanted = w.masked_fill(~expected, 0).to(packed.dtype)
    assert torch.equal(packed.to_dense().nan_to_num(99), wanted.nan_to_num(99))


def test_what_the_mask_leaves_out_is_never_kept():
    w = torch.tensor([[9.0, 8, 1, NAN]])
    mask = torch.tensor([[False, False, True, False]])
    packed = NMTensor.from_dense(w, 2, 4, mask=mask, strict=False)
    assert torch.equal(packed.to_dense(), torch.tensor([[0.0, 0, 1, 0]]))
    assert not packed.to_dense().isnan().any()


@given(st.sampled_from(NM_PATTERNS), st.integers(1, 40), st.integers(1, 90), st.integers(0, 2**16))
def test_the_largest_are_kept_in_any_matrix(pattern, rows, cols, seed):
    n, m = pattern
    generator = torch.Generator().manual_seed(seed)
    w = torch.randint(-4, 5, (rows, cols), generator=generator).float()  # many ties
    packed = NMTensor.from_dense(w, n, m, strict=False)
    expected = np.zeros((rows, cols), bool)
    for row in range(rows):
        for first in range(0, cols, m):
            size = w[row, first : first + m].abs().numpy()
            best = sorted(range(len(size)), key=lambda i: (-size[i], i))[:n]
            expected[row, [first + i for i in best]] = True
    assert np.array_equal(packed.mask().numpy(), expected)
    assert np.array_equal(packed.to_dense().numpy(), np.where(expected, w.numpy(), 0))


def test_a_matrix_that_is_selected_from_in_parts(monkeypatch):
    w = torch.randn(50, 70, generator=torch.Generator().manual_seed(1))
    mask = w > -1
    whole = NMTensor.from_dense(w, 2, 4, strict=False, mask=mask)
    for most in (1, 70, 150):
        monkeypatch.setattr("sparsekern.nm._SELECTED_AT_ONCE", most)
        packed = NMTensor.from_dense(w, 2, 4, strict=False, mask=mask)
        assert torch.equal(packed.values, whole.values)
        assert torch.equal(packed.structure, whole.structure)


# --- int8 -----------------------------------------------------------------------------------------


def test_int8_is_symmetric_per_row():
    w = matrix(20, 64)
    w[7] = 0
    packed = NMTensor.from_dense(w, 2, 4, dtype=torch.int8)
    assert packed.dtype == torch.int8
    largest = w.abs().amax(1)
    assert torch.equal(packed.scale, torch.where(largest > 0, largest / 127, 1))
    levels = read(packed).dense
    assert np.abs(levels).max(axis=1).tolist() == [127.0 if m > 0 else 0.0 for m in largest]
    error = (packed.to_dense() - w).abs()
    assert (error <= 0.5001 * packed.scale[:, None]).all()
    assert packed.nbytes == sum(p.nbytes for p in (packed.values, packed.structure, packed.scale))


def test_int8_scales_by_what_is_kept():
    w = torch.tensor([[5.0, NAN, 100, 1]])
    mask = torch.tensor([[True, False, False, True]])
    for strict in (True, False):
        packed = NMTensor.from_dense(w, 2, 4, mask=mask, strict=strict, dtype=torch.int8)
        assert torch.equal(packed.scale, torch.tensor([5 / 127]))
        assert packed.to_dense()[0].nonzero().flatten().tolist() == [0, 3]


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_int8_refuses_what_is_not_finite(bad):
    w = matrix()
    w[3, 0:4] = torch.tensor([bad, 0, 0, 0])
    with pytest.raises(ValueError, match=r"^NMTensor.from_dense: w must be finite for dtype torch"):
        NMTensor.from_dense(w, 2, 4, dtype=torch.int8)


# --- what is refused ------------------------------------------------------------------------------


W = torch.eye(4, 8)
REFUSED = {
    "list": (([[1.0]], 2, 4), {}, TypeError, "w must be a torch.Tensor, got list"),
    "integers": ((W.int(), 2, 4), {}, TypeError, "floating-point dtype, got torch.int32"),
    "sparse": ((W.to_sparse(), 2, 4), {}, TypeError, "must be a dense tensor, got layout"),
    "vector": ((W[0], 2, 4), {}, ValueError, r"shape \[rows, cols\], got \[8\]"),
    "no row": ((W[:0], 2, 4), {}, ValueError, r"at least one row and column, got \[0, 8\]"),
    "meta": ((W.to("meta"), 2, 4), {}, ValueError, "must hold data, got a tensor on the meta"),
    "rows": ((W[:1, :1].expand(2**31, 1), 2, 4), {}, ValueError, r"below 2\^31"),
    "elements": (
        (W[:1, :1].expand(2**31 - 1, 2**31 - 1), 2, 4),
        {},
        MemoryError,
        "available",
    ),
    "m": ((W, 2, 5), {}, NotImplementedError, "m must be one of 2, 4, 8, 16, 32, got 5"),
    "m type": ((W, 2, 4.0), {}, TypeError, "m must be an integer, got float"),
    "n": ((W, 4, 4), {}, ValueError, r"n must be in \[1, m - 1\] = \[1, 3\], got 4"),
    "n zero": ((W, 0, 4), {}, ValueError, r"n must be in \[1, m - 1\] = \[1, 3\], got 0"),
    "n type": ((W, True, 4), {}, TypeError, "n must be an integer, got bool"),
    "dtype": ((W, 2, 4), {"dtype": torch.float64}, TypeError, "dtype must be one of .*float64"),
    "mask type": ((W, 2, 4), {"mask": W}, TypeError, "mask must be a torch.bool tensor, got torch"),
    "mask shape": (
        (W, 2, 4),
        {"mask": W[:3] > 0},
        ValueError,
        r"mask.shape must equal w.shape \[4, 8\]",
    ),
    "mask meta": ((W, 2, 4), {"mask": (W > 0).to("meta")}, ValueError, "mask must hold data"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("strict", [True, False])
def test_from_dense_refuses(case, strict):
    arguments, options, error, text = REFUSED[case]
    with pytest.raises(error, match=rf"^NMTensor.from_dense: .*{text}"):
        NMTensor.from_dense(*arguments, **options, strict=strict)


def test_too_little_memory_is_said_before_the_work(monkeypatch):
    monkeypatch.setattr(_core, "nm_pack", lambda *_: pytest.fail("the work has started"))
    monkeypatch.setattr(_memory, "available_bytes", lambda: 2**20)
    w = torch.zeros(1024, 1024)
    text = r"from_dense: packing a matrix \[1024, 1024\] needs about"
    with pytest.raises(MemoryError, match=text):
        NMTensor.from_dense(w, 2, 4)
    monkeypatch.undo()
    packed = NMTensor.from_dense(w, 2, 4)
    monkeypatch.setattr(_memory, "available_bytes", lambda: 2**20)
    with pytest.raises(MemoryError, match=r"NMTensor.to_dense: .* needs about 4 MiB of memory"):
        packed.to_dense()


@pytest.mark.parametrize(("n", "m"), NM_PATTERNS)
def test_the_estimate_covers_what_is_allocated_and_not_much_more(n, m, monkeypatch):
    asked = []
    monkeypatch.setattr(_memory, "require", lambda *arguments: asked.append(arguments[2]))
    packed = NMTensor.from_dense(matrix(250, 500, n, m), n, m)
    assert packed.nbytes <= asked[0] <= 2.2 * packed.nbytes


def test_constructor_checks_everything():
    good = NMTensor.from_dense(matrix(), 2, 4)
    beyond = good.values.clone()
    beyond[-1] = 1
    cases = [
        (([1.0], good.structure), TypeError, "values must be a torch.Tensor, got list"),
        ((good.values.double(), good.structure), TypeError, "values must have dtype .*float64"),
        ((good.values, good.structure.int()), TypeError, "structure must have dtype uint8"),
        ((good.values[None], good.structure), ValueError, "values must be 1-D"),
        ((good.values[:-1], good.structure), ValueError, "nm: values must have"),
        ((beyond, good.structure), ValueError, "nm: values beyond the matrix must be 0"),
        ((good.values, good.structure[:-1]), ValueError, "nm: structure length"),
        ((good.values, good.structure[:10]), ValueError, "nm: structure must have at least 64"),
        ((good.values.to("meta"), good.structure), ValueError, "meta device"),
        ((good.values, good.structure, torch.ones(37)), ValueError, "scale must be None unless"),
    ]
    int8 = NMTensor.from_dense(matrix(), 2, 4, dtype=torch.int8)
    parts = (int8.values, int8.structure)
    cases += [
        (parts, TypeError, "NMTensor: scale must be a float32 tensor for int8, got NoneType"),
        ((*parts, int8.scale.half()), TypeError, "NMTensor: scale must have dtype float32"),
        ((*parts, int8.scale[1:]), ValueError, r"scale must have shape \[37\], got \[36\]"),
    ]
    for arguments, error, text in cases:
        with pytest.raises(error, match=text):
            NMTensor(*arguments)


def test_constructor_copies_what_is_not_aligned():
    good = NMTensor.from_dense(matrix(), 2, 4)
    shifted = torch.cat([good.structure.new_zeros(3), good.structure])[3:]
    again = NMTensor(good.values, shifted)
    assert again.structure.data_ptr() % 64 == 0
    assert torch.equal(again.to_dense(), good.to_dense())


def test_trusted_reads_the_header_only():
    good = NMTensor.from_dense(matrix(), 2, 4)
    again = NMTensor.trusted(good.values[:-16], good.structure, None)
    assert again.shape == good.shape
    assert (again.n, again.m) == (2, 4)
    with pytest.raises(ValueError, match="nm_info: structure"):
        NMTensor.trusted(good.values, good.structure[:-64], None)


def test_copies():
    for packed in (
        NMTensor.from_dense(matrix(), 2, 4),
        NMTensor.from_dense(matrix(n=3, m=8), 3, 8, dtype=torch.int8),
    ):
        for other in (copy.deepcopy(packed), pickle.loads(pickle.dumps(packed)), copy.copy(packed)):
            assert type(other) is NMTensor
            assert torch.equal(other.to_dense(), packed.to_dense())
            assert other.dtype == packed.dtype
            assert (other.n, other.m) == (packed.n, packed.m)


def test_to():
    packed = NMTensor.from_dense(matrix(), 2, 4)
    half = packed.to(dtype=torch.float16)
    assert type(half) is NMTensor
    assert half.dtype == torch.float16
    assert half.structure.dtype == torch.uint8
    assert torch.equal(half.to_dense(), packed.to_dense().half())
    assert packed.to("cpu").dtype == torch.float32
    with pytest.raises(TypeError, match=r"NMTensor.to: .*floating-point one for floating-point va"):
        packed.to(dtype=torch.int8)


def test_repr():
    packed = NMTensor.from_dense(torch.eye(4), 2, 4)
    assert repr(packed) == "NMTensor(shape=[4, 4], dtype=float32, n=2, m=4, density=0.5000)"


def test_specification_reads_every_kind():
    for dtype in (*FLOATS, torch.int8):
        packed = pack_nm(NmSpec(40, 130, 3, 8, DTYPE_NAMES[dtype]))
        again = NMTensor(packed.values, packed.structure, packed.scale)
        assert np.array_equal(again.to_dense().double().numpy(), packed.dense.astype(np.float32))
