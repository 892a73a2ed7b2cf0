# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of compressed-tensors: written here element by element, read by the library."""

from __future__ import annotations

import math
import warnings
import zlib

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from sparsekern import NMTensor, convert_, interop
from sparsekern.nn import NMLinear
from strategies import NmSpec, draw_nm

NAN, INF = math.nan, math.inf
FLOAT8 = torch.float8_e4m3fn
INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def weights(rows: int, cols: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Random 2:4 weights, some of them explicit zeros, and which are kept."""
    w, mask = draw_nm(NmSpec(rows, cols, 2, 4, "float32", 0.2, seed))
    mask = torch.from_numpy(mask)
    groups = mask.reshape(rows, -1, 4).clone()
    for row, group in (groups.sum(2) < 2).nonzero().tolist():  # exactly two are kept
        for column in range(4):
            if groups[row, group].sum() < 2:
                groups[row, group, column] = True
    return w * mask, groups.reshape(rows, cols)


def bitmask_of(w: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
    """The three tensors, bit by bit."""
    rows, cols = w.shape
    bits = torch.zeros(rows, -(-cols // 8), dtype=torch.uint8)
    kept = w.view(INTEGERS[w.itemsize])[mask].view(w.dtype)
    for row, column in mask.nonzero().tolist():
        bits[row, column // 8] |= 1 << column % 8
    return {
        "shape": torch.tensor([[rows], [cols]]),
        "compressed": kept.reshape(rows, cols // 2),
        "bitmask": bits,
    }


# --- sparse-24-bitmask ----------------------------------------------------------------------------


@given(rows=st.integers(1, 40), groups=st.integers(1, 20), seed=st.integers(0, 2**16))
def test_bitmask_round_trip(rows, groups, seed):
    w, mask = weights(rows, 4 * groups, seed)
    parts = bitmask_of(w, mask)
    weight = interop.from_bitmask(**parts)
    assert (weight.n, weight.m, weight.dtype) == (2, 4, torch.float32)
    assert torch.equal(weight.to_dense(), w)
    assert torch.equal(weight.mask(), mask)
    again = interop.to_bitmask(weight)
    assert again.keys() == parts.keys()
    for part, tensor in parts.items():
        assert again[part].dtype == tensor.dtype
        assert torch.equal(again[part], tensor), part


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_bitmask_keeps_every_bit(dtype):
    w = torch.zeros(4, 8, dtype=dtype)
    w[:, 1] = torch.tensor([NAN, INF, -INF, -0.0])
    w[:, 7] = torch.finfo(dtype).smallest_normal / 2
    mask = torch.zeros(4, 8, dtype=torch.bool)
    mask[:, [0, 1, 5, 7]] = True
    weight = interop.from_bitmask(**bitmask_of(w, mask))
    assert weight.dtype == dtype
    integers = INTEGERS[dtype.itemsize]
    assert torch.equal(weight.to_dense().view(integers), w.view(integers))
    assert torch.equal(weight.mask(), mask)
    dense = interop.dense_state_dict(interop.to_bitmask(weight))["weight"]
    assert torch.equal(dense.view(integers), w.view(integers))


@pytest.mark.parametrize("dtype", [torch.float64, FLOAT8, torch.float8_e5m2])
def test_bitmask_of_other_floats(dtype):
    w, mask = weights(9, 24)
    w = w.to(dtype)
    weight = interop.from_bitmask(**bitmask_of(w, mask))
    assert weight.dtype == torch.float32
    assert torch.equal(weight.to_dense(), w.float())
    dense = interop.dense_state_dict(bitmask_of(w, mask))["weight"]
    assert dense.dtype == dtype
    assert torch.equal(dense.float(), w.float())


def test_bitmask_of_int8():
    mask = weights(6, 16)[1]
    w = torch.where(mask, torch.arange(-128, -32, dtype=torch.int8).reshape(6, 16), 0)
    parts = bitmask_of(w, mask)
    assert w.min() == -128
    assert torch.equal(interop.from_bitmask(**parts).to_dense(), w.float())
    scale = torch.arange(1.0, 7)
    weight = interop.from_bitmask(**parts, scale=scale)
    assert torch.equal(weight.to_dense(), w * scale[:, None])
    assert torch.equal(interop.to_bitmask(weight)["compressed"], parts["compressed"])


def test_shape_may_be_given_in_any_way():
    w, mask = weights(3, 8)
    parts = bitmask_of(w, mask)
    for shape in ([3, 8], (3, 8), torch.Size([3, 8]), torch.tensor([3, 8], dtype=torch.int32)):
        assert torch.equal(interop.from_bitmask(**{**parts, "shape": shape}).to_dense(), w)


GOOD = bitmask_of(*weights(4, 12))
GROUP = bitmask_of(torch.ones(1, 8), torch.tensor([[1, 1, 1, 0, 1, 0, 0, 0]]).bool())


def flipped(row: int, byte: int, bit: int) -> torch.Tensor:
    bits = GOOD["bitmask"].clone()
    bits[row, byte] ^= 1 << bit
    return bits


DAMAGED = {
    "shape list": ({"shape": [[4], [12]]}, TypeError, r"shape must be \[rows, cols\], got"),
    "shape float": ({"shape": (4.0, 12)}, TypeError, r"shape must be \[rows, cols\], got"),
    "shape dtype": ({"shape": torch.ones(2)}, TypeError, "shape must have dtype int64, int32, got"),
    "three sizes": ({"shape": torch.ones(3).long()}, ValueError, r"shape \[2, 1\] or \[2\], got"),
    "rows": ({"shape": (3, 12)}, ValueError, r"compressed must have shape \[3, 6\], got \[4, 6\]"),
    "columns": ({"shape": (4, 16)}, ValueError, r"compressed must have shape \[4, 8\], got"),
    "odd": ({"shape": (4, 11)}, ValueError, "even number of columns, got 11"),
    "no row": ({"shape": (0, 12)}, ValueError, "at least one row and column"),
    "negative": ({"shape": torch.tensor([[-4], [12]])}, ValueError, "at least one row and column"),
    "huge": ({"shape": torch.tensor([[2**62], [12]])}, ValueError, r"below 2\^31"),
    "values": ({"compressed": [1.0]}, TypeError, "compressed must be a torch.Tensor, got list"),
    "values dtype": ({"compressed": GOOD["compressed"].int()}, TypeError, "dtype .*torch.int32"),
    "values flat": ({"compressed": GOOD["compressed"].flatten()}, ValueError, r"got \[24\]"),
    "values meta": ({"compressed": GOOD["compressed"].to("meta")}, ValueError, "that holds data"),
    "bits dtype": ({"bitmask": GOOD["bitmask"].char()}, TypeError, "bitmask must have dtype uint8"),
    "bits short": (
        {"bitmask": GOOD["bitmask"][:, :1]},
        ValueError,
        r"bitmask must have shape \[4, 2\], got \[4, 1\]",
    ),
    "beyond": ({"bitmask": flipped(2, 1, 4)}, ValueError, "bitmask must be 0 beyond the last col"),
    "one bit": (
        {"bitmask": flipped(1, 0, 3)},
        ValueError,
        r"as many weights as compressed holds \(24\), got 2[35]",
    ),
    "scale": ({"scale": torch.ones(4)}, ValueError, "scale must be None unless values are int8"),
    "three of four": (GROUP, ValueError, "row 0, columns 0 to 3 must keep at most 2 of 4, got 3"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_bitmasks_are_refused(case):
    change, error, text = DAMAGED[case]
    with pytest.raises(error, match=rf"^from_bitmask: .*{text}"):
        interop.from_bitmask(**{**GOOD, **change})


def test_every_flipped_bit_of_a_bitmask_is_found():
    for byte in range(GOOD["bitmask"].numel()):
        for bit in range(8):
            with pytest.raises(ValueError, match=r"^from_bitmask: bitmask must"):
                interop.from_bitmask(
                    GOOD["shape"], GOOD["compressed"], flipped(byte // 2, byte % 2, bit)
                )


def test_to_bitmask_refuses():
    with pytest.raises(TypeError, match="to_bitmask: weight must be an NMTensor, got Tensor"):
        interop.to_bitmask(torch.eye(4))
    with pytest.raises(ValueError, match="to_bitmask: weight must keep 2:4 as float32, got 1:4"):
        interop.to_bitmask(NMTensor.from_dense(torch.eye(4), 1, 4))
    with pytest.raises(ValueError, match="to_bitmask: weight must have a multiple of 4 columns"):
        interop.to_bitmask(NMTensor.from_dense(torch.eye(6), 2, 4))


# --- marlin-24 ------------------------------------------------------------------------------------


def integers_of(rows: int, cols: int, bits: int) -> np.ndarray:
    """2:4 integers that any program can make again."""
    r, c = np.arange(rows)[:, None], np.arange(cols)[None, :]
    value = (r * 7919 + c * 104729 + r * c * 31) % (2**bits - 1) - (2 ** (bits - 1) - 1)
    first, second = (r + c // 4) % 4, (r * 3 + c // 4 + 1 + (r // 4) % 3) % 4
    return value * ((c % 4 == first) | (c % 4 == second))


def scales_of(rows: int, groups: int) -> torch.Tensor:
    r, g = np.arange(rows)[:, None], np.arange(groups)[None, :]
    return torch.from_numpy(2.0 ** -(((r * 5 + g * 3) % 9) + 1))


# What torch names in groups of fewer than two.
TORCH_KEEPS = {(): (2, 3), (0,): (0, 2), (1,): (1, 2), (2,): (2, 3), (3,): (2, 3)}


def marlin_of(integers: np.ndarray, scale: torch.Tensor, bits: int) -> dict[str, torch.Tensor]:
    """The three tensors, each element put into its place alone."""
    rows, cols = integers.shape
    packed = np.zeros((cols // 32, rows * bits // 2), np.uint32)
    meta = np.zeros(cols // 32 * rows * 2, np.uint16)
    for row in range(rows):
        for group in range(cols // 4):
            values = integers[row, 4 * group : 4 * group + 4]
            found = tuple(np.flatnonzero(values))
            kept = TORCH_KEEPS.get(found, found)
            for which, column in enumerate(kept):
                place = 2 * group + which
                tile, low = divmod(place, 16)
                high, pair, odd = low // 8, low % 8 // 2, low % 2
                block, upper, half, last = row // 16, row % 16 // 8, row % 8 // 4, row % 4
                lane = ((block * 2 + upper) * 4 + pair) * 4 + last
                field = odd * 4 + half * 2 if bits == 4 else half * 4 + odd * 2
                word, shift = divmod((lane * 8 + field + high) * bits, 32)
                packed[tile, word] |= np.uint32(int(values[column]) + 2 ** (bits - 1)) << shift
            code = kept[0] | kept[1] << 2
            word, shift = divmod(group, 4)
            b = [row >> i & 1 for i in range(6)]
            at = word // 2 * rows + row // 64 * 64
            at += 32 * b[1] + 4 * (row % 64 // 8) + 2 * b[0] + word % 2
            meta[2 * at + b[2]] |= code << 4 * shift
    scales = scale.half().t().contiguous()
    if scales.shape[0] > 2:
        order = [8 * i + j for i in range(rows // 8) for j in (0, 4, 1, 5, 2, 6, 3, 7)]
        scales = scales[:, order].contiguous()
    return {
        "weight_packed": torch.from_numpy(packed.view(np.int32)),
        "meta": torch.from_numpy(meta.view(np.int16)).reshape(cols // 32, rows * 2),
        "scale_packed": scales,
    }


# bits, rows, columns, groups, and the CRC-32 of the three tensors that compressed-tensors 0.11.0
# writes for the same integers and scales.
WRITTEN = [
    (4, 64, 128, 1, 0x5D4B6A8B, 0x8DF9A9CB, 0x0703A4DB),
    (8, 128, 64, 1, 0xE4BB3270, 0xB83AC3EF, 0x043BED5A),
    (4, 64, 512, 4, 0x8C713EE1, 0x2EF09E27, 0x412B03EA),
    (8, 192, 384, 3, 0x179EC073, 0x2D803E39, 0xB9454429),
    (4, 128, 256, 2, 0x11EFC6EA, 0x5A2738A0, 0xC241A5B1),
]


@pytest.mark.parametrize("case", WRITTEN)
def test_marlin24_as_it_is_written(case):
    bits, rows, cols, groups, *crcs = case
    integers, scale = integers_of(rows, cols, bits), scales_of(rows, groups)
    parts = marlin_of(integers, scale, bits)
    assert [zlib.crc32(part.numpy().tobytes()) for part in parts.values()] == crcs
    dense = interop.from_marlin24(**parts)
    expected = torch.from_numpy(integers) * scale.repeat_interleave(cols // groups, 1)
    assert dense.dtype == torch.float32
    assert torch.equal(dense, expected.float())
    packed = NMTensor.from_dense(dense, 2, 4, dtype=torch.float16)
    assert torch.equal(packed.to_dense().float(), dense)


@given(
    bits=st.sampled_from([4, 8]),
    rows=st.sampled_from([64, 128]),
    tiles=st.integers(1, 3),
    groups=st.sampled_from([1, 2, 4]),
    seed=st.integers(0, 2**16),
)
def test_marlin24_of_any_integers(bits, rows, tiles, groups, seed):
    random = np.random.default_rng(seed)
    cols = 32 * tiles
    keep = random.random((rows, cols // 4, 4)).argsort(2) < 2
    integers = random.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (rows, cols))
    integers = integers * keep.reshape(rows, cols)
    scale = torch.from_numpy(random.random((rows, groups))).half().double()
    dense = interop.from_marlin24(**marlin_of(integers, scale, bits))
    expected = torch.from_numpy(integers) * scale.repeat_interleave(cols // groups, 1)
    assert torch.equal(dense.double(), expected)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("cols", "groups"), [(128, 8), (96, 3), (128, 2), (64, 1), (384, 3)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_marlin24_as_groups(bits, cols, groups, dtype):
    integers, scale = integers_of(64, cols, bits), scales_of(64, groups) * 1.25
    parts = marlin_of(integers, scale, bits)
    parts["scale_packed"] = parts["scale_packed"].to(dtype)
    packed = interop.gqs_from_marlin24(**parts)
    assert (packed.bits, packed.group, packed.nnz) == (bits, cols // groups, 64 * cols)
    assert packed.zeros is None
    assert torch.equal(packed.codes(), torch.from_numpy(integers).to(torch.int8))
    assert packed.scale.dtype == dtype
    assert torch.equal(packed.scales.reshape(64, groups).double(), scale)
    dense = interop.from_marlin24(**parts)
    assert torch.equal(packed.to_dense().view(torch.int32), dense.view(torch.int32))


def test_marlin24_as_groups_refuses():
    integers = integers_of(64, 256, 4)
    one = marlin_of(integers, scales_of(64, 1), 4)
    with pytest.raises(
        NotImplementedError,
        match=r"^gqs_from_marlin24: groups must be of .* columns, got 1 groups for 256 columns",
    ):
        interop.gqs_from_marlin24(**one)
    with pytest.raises(NotImplementedError, match="got 32 groups for 256 columns"):
        interop.gqs_from_marlin24(**marlin_of(integers, scales_of(64, 32), 4))
    with pytest.raises(ValueError, match="scales must be finite and not 0"):
        interop.gqs_from_marlin24(**{**one, "scale_packed": torch.zeros(4, 64)})
    with pytest.raises(TypeError, match=r"^gqs_from_marlin24: meta must have dtype int16"):
        interop.gqs_from_marlin24(**{**one, "meta": one["meta"].int()})


MARLIN = marlin_of(integers_of(64, 64, 4), scales_of(64, 1), 4)
MARLIN_DAMAGED = {
    "words": ({"weight_packed": [1]}, TypeError, "weight_packed must be a torch.Tensor, got list"),
    "words dtype": (
        {"weight_packed": MARLIN["weight_packed"].long()},
        TypeError,
        "weight_packed must have dtype int32, got torch.int64",
    ),
    "meta dtype": ({"meta": MARLIN["meta"].int()}, TypeError, "meta must have dtype int16"),
    "scale dtype": (
        {"scale_packed": torch.ones(1, 64).long()},
        TypeError,
        "scale_packed must have",
    ),
    "words flat": (
        {"weight_packed": MARLIN["weight_packed"].flatten()},
        ValueError,
        "weight_packed must have two dimensions",
    ),
    "empty": ({"meta": MARLIN["meta"][:0]}, ValueError, "meta must have two dimensions and data"),
    "rows": ({"meta": MARLIN["meta"][:, :100]}, ValueError, "multiple of 64 rows, got 50"),
    "columns": ({"meta": MARLIN["meta"][:1]}, ValueError, r"weight_packed must have shape \[1, 12"),
    "bits": (
        {"weight_packed": MARLIN["weight_packed"][:, :64].contiguous()},
        ValueError,
        r"\[2, 128\] \(4 bits\) or \[2, 256\] \(8 bits\), got \[2, 64\]",
    ),
    "scales": (
        {"scale_packed": torch.ones(1, 63)},
        ValueError,
        "scale_packed must have 64 columns",
    ),
    "groups": ({"scale_packed": torch.ones(3, 64)}, ValueError, r"groups, got \[3, 64\]"),
    "part of a group": ({"scale_packed": torch.ones(32, 64)}, ValueError, r"got \[32, 64\]"),
    "codes": (
        {"meta": torch.zeros_like(MARLIN["meta"])},
        ValueError,
        "meta must name two columns for two values, got one in row 0",
    ),
}


@pytest.mark.parametrize("case", MARLIN_DAMAGED)
def test_damaged_marlin24_is_refused(case):
    change, error, text = MARLIN_DAMAGED[case]
    with pytest.raises(error, match=rf"^from_marlin24: .*{text}"):
        interop.from_marlin24(**{**MARLIN, **change})


# --- whole checkpoints ----------------------------------------------------------------------------


def test_a_checkpoint_becomes_a_model_that_packs(tmp_path):
    mask = weights(64, 128)[1]
    w = torch.randn(64, 128, generator=torch.Generator().manual_seed(0)) * mask
    integers = np.arange(128)[:, None] * weights(128, 64)[1].numpy() - 128
    integers = np.where(weights(128, 64)[1].numpy(), integers, 0)
    marlin = marlin_of(integers, scales_of(128, 1), 8)
    state = {f"0.{part}": tensor for part, tensor in bitmask_of(w, mask).items()}
    state |= {f"1.{part}": tensor for part, tensor in marlin.items()}
    state |= {"0.bias": torch.ones(64), "1.bias": torch.zeros(128), "2.weight": torch.eye(3, 128)}
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    dense = interop.dense_state_dict(safetensors.torch.load_file(tmp_path / "model.safetensors"))
    assert sorted(dense) == ["0.bias", "0.weight", "1.bias", "1.weight", "2.weight"]
    model = torch.nn.Sequential(
        torch.nn.Linear(128, 64), torch.nn.Linear(64, 128), torch.nn.Linear(128, 3, bias=False)
    )
    model.load_state_dict(dense)
    assert torch.equal(model[0].weight, w)
    assert torch.equal(model[1].weight, interop.from_marlin24(**marlin))
    x = torch.ones(2, 128)
    expected = model(x)
    convert_(model, x, policy="smallest")
    assert [type(layer) for layer in model[:2]] == [NMLinear, NMLinear]
    assert torch.allclose(model(x), expected, rtol=1e-4, atol=1e-3)


def test_other_tensors_are_passed_through():
    state = {"a.weight": torch.ones(2), "b.weight_packed": torch.ones(2), "shape": torch.ones(1)}
    assert interop.dense_state_dict(state) == state
    w, mask = weights(3, 8)
    state = {**bitmask_of(w.half(), mask), "weight_scale": torch.ones(1)}
    dense = interop.dense_state_dict(state)  # of a module without a name
    assert list(dense) == ["weight", "weight_scale"]
    assert torch.equal(dense["weight"], w.half())


def test_semi_structured_tensors_become_dense():
    w, _ = weights(32, 64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own: a prototype
        tensor = interop.to_torch(NMTensor.from_dense(w, 2, 4, dtype=torch.float16))
    dense = interop.dense_state_dict({"0.weight": tensor})
    assert type(dense["0.weight"]) is torch.Tensor
    assert torch.equal(dense["0.weight"], w.half())


def test_state_dicts_that_are_refused():
    parts = {f"layer.{part}": tensor for part, tensor in GOOD.items()}
    cases = [
        ([1], TypeError, "state must be a mapping, got list"),
        ({"a": 1}, TypeError, "state must hold names and tensors, got 'a': int"),
        (
            {name: part for name, part in parts.items() if name != "layer.shape"},
            ValueError,
            "'layer.shape' must be there beside sparse-24-bitmask tensors",
        ),
        (
            {"scale_packed": torch.ones(1)},
            ValueError,
            "'weight_packed' must be there beside marlin-24",
        ),
        (
            {**parts, "layer.weight": torch.ones(1)},
            ValueError,
            "module 'layer' must have one weight",
        ),
        (
            {**parts, "layer.shape": torch.tensor([4, 16])},
            ValueError,
            r"module 'layer': compressed must have shape \[4, 8\], got \[4, 6\]",
        ),
        (
            {
                f"layer.{part}": tensor
                for part, tensor in (MARLIN | {"meta": torch.ones(1)}).items()
            },
            TypeError,
            "module 'layer': meta must have dtype int16, got torch.float32",
        ),
    ]
    for state, error, text in cases:
        with pytest.raises(error, match=rf"^dense_state_dict: {text}"):
            interop.dense_state_dict(state)
