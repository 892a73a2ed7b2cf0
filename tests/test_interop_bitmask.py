# SPDX-License-Identifier: Apache-2.0
"""``sparse-bitmask`` checkpoints: written here element by element, read by the library.

Where compressed-tensors is installed its own writer and reader take part.
"""

from __future__ import annotations

import math
import re

import pytest
import sparsekern as sk
import torch
from hypothesis import given
from hypothesis import strategies as st
from sparsekern import interop
from strategies import activations

FLOAT8 = torch.float8_e4m3fn
INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def parts_of(w: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
    """The four tensors, bit by bit."""
    rows, cols = w.shape
    bits = torch.zeros(rows, -(-cols // 8), dtype=torch.uint8)
    kept, offsets = [], []
    for row in range(rows):
        offsets.append(len(kept))
        for column in range(cols):
            if mask[row, column]:
                bits[row, column // 8] |= 1 << column % 8
                kept.append(row * cols + column)
    values = w.view(INTEGERS[w.itemsize]).flatten()[kept].view(w.dtype)
    return {
        "shape": torch.tensor([rows, cols]),
        "compressed": values,
        "bitmask": bits,
        "row_offsets": torch.tensor(offsets),
    }


@given(rows=st.integers(1, 20), cols=st.integers(1, 80), seed=st.integers(0, 2**16))
def test_round_trip(rows, cols, seed):
    w = activations((rows, cols), seed=seed)
    mask = activations((rows, cols), seed=seed + 1) > 0
    parts = parts_of(w, mask)
    weight = interop.from_sparse_bitmask(**parts)
    assert torch.equal(weight.to_dense(), w * mask)
    assert torch.equal(weight.mask(), mask)
    again = interop.to_sparse_bitmask(weight)
    assert again.keys() == parts.keys()
    for part, tensor in parts.items():
        assert again[part].dtype == tensor.dtype
        assert torch.equal(again[part], tensor), part


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_every_bit_is_kept(dtype):
    w = torch.zeros(4, 9, dtype=dtype)
    w[:, 1] = torch.tensor([math.nan, math.inf, -math.inf, -0.0])
    w[:, 8] = torch.finfo(dtype).smallest_normal / 2
    mask = torch.zeros(4, 9, dtype=torch.bool)
    mask[:, [0, 1, 5, 8]] = True
    weight = interop.from_sparse_bitmask(**parts_of(w, mask))
    assert weight.dtype == dtype
    integers = INTEGERS[dtype.itemsize]
    assert torch.equal(weight.to_dense().view(integers), w.view(integers))
    assert torch.equal(weight.mask(), mask)
    again = interop.to_sparse_bitmask(weight)["compressed"]
    assert torch.equal(again.view(integers), parts_of(w, mask)["compressed"].view(integers))


def test_other_dtypes():
    w, mask = activations((5, 20)), activations((5, 20), seed=1) > 0
    eight = interop.from_sparse_bitmask(**parts_of(w.to(FLOAT8), mask))
    assert eight.dtype == torch.float32
    assert torch.equal(eight.to_dense(), w.to(FLOAT8).float() * mask)
    assert interop.from_sparse_bitmask(**parts_of(w.double(), mask)).dtype == torch.float32
    q, scale = (w * 40).to(torch.int8), torch.rand(5)
    whole = interop.from_sparse_bitmask(**parts_of(q, mask), scale=scale)
    assert torch.equal(whole.to_dense(), q.float() * mask * scale[:, None])
    plain = interop.from_sparse_bitmask(**parts_of(q, mask))
    assert torch.equal(plain.to_dense(), q.float() * mask)


def test_a_whole_checkpoint():
    w, mask = activations((6, 20)), activations((6, 20), seed=1) > 0
    state = {f"a.b.{name}": tensor for name, tensor in parts_of(w, mask).items()}
    state["a.b.bias"] = torch.ones(6)
    dense = interop.dense_state_dict(state)
    assert list(dense) == ["a.b.weight", "a.b.bias"]
    assert torch.equal(dense["a.b.weight"], w * mask)
    del state["a.b.shape"]
    with pytest.raises(ValueError, match=r"'a\.b\.shape' must be there beside sparse-bitmask"):
        interop.dense_state_dict(state)
    state["a.b.shape"] = torch.tensor([7, 20])
    with pytest.raises(ValueError, match=r"module 'a\.b': bitmask must have shape"):
        interop.dense_state_dict(state)


GOOD = parts_of(activations((5, 20)), activations((5, 20), seed=1) > 0)
REFUSED = {
    "bits": ({"bitmask": GOOD["bitmask"] ^ 1}, ValueError, "bitmask must name as many weights"),
    "beyond": (
        {"bitmask": GOOD["bitmask"] | torch.tensor([0, 0, 128], dtype=torch.uint8)},
        ValueError,
        "bitmask must be 0 beyond the last column",
    ),
    "fewer values": (
        {"compressed": GOOD["compressed"][1:]},
        ValueError,
        "bitmask must name as many weights as compressed holds",
    ),
    "2-D values": ({"compressed": GOOD["compressed"][None]}, ValueError, "compressed must be 1-D"),
    "offsets": (
        {"row_offsets": GOOD["row_offsets"].flip(0)},
        ValueError,
        "row_offsets must count the bits of the rows before",
    ),
    "offsets' shape": ({"row_offsets": GOOD["row_offsets"][1:]}, ValueError, "row_offsets must"),
    "offsets' dtype": ({"row_offsets": GOOD["row_offsets"].float()}, TypeError, "row_offsets must"),
    "shape": ({"shape": torch.tensor([5, 40])}, ValueError, "bitmask must have shape"),
    "no shape": ({"shape": "5 x 20"}, TypeError, r"shape must be \[rows, cols\]"),
    "dtype": ({"compressed": GOOD["compressed"].bool()}, TypeError, "compressed must"),
    "scale": ({"scale": torch.ones(5)}, ValueError, "scale must be None unless compressed is int8"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(case):
    changes, error, text = REFUSED[case]
    with pytest.raises(error, match=f"^from_sparse_bitmask: {text}"):
        interop.from_sparse_bitmask(**{**GOOD, **changes})


def test_writing_refuses_other_formats():
    with pytest.raises(TypeError, match=re.escape("weight must be a BitmapTensor, got CSRTensor")):
        interop.to_sparse_bitmask(sk.CSRTensor.from_dense(torch.ones(2, 2)))


def test_its_own_writer_and_reader():
    bitmask = pytest.importorskip(
        "compressed_tensors.compressors.sparse_compressors.sparse_bitmask",
        reason="compressed-tensors is not installed",
    )
    for dtype in (torch.float32, torch.bfloat16):
        for shape in ((5, 20), (16, 64), (33, 65)):
            w = activations(shape).to(dtype)
            w[activations(shape, seed=1) > 0] = 0
            theirs = bitmask.BitmaskTensor.from_dense(w).dict("w")
            parts = {name.rpartition(".")[2]: tensor for name, tensor in theirs.items()}
            weight = interop.from_sparse_bitmask(**parts)
            assert torch.equal(weight.to_dense(), w)
            ours = interop.to_sparse_bitmask(weight)
            for name, tensor in parts.items():
                assert torch.equal(ours[name], tensor), name
            assert torch.equal(bitmask.BitmaskTensor(**ours).decompress(), w)
