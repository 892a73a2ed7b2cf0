# SPDX-License-Identifier: Apache-2.0
"""Pruned KV pages and decode attention over them against the oracle, on every instruction set."""

from __future__ import annotations

import math

import numpy as np
import oracle
import pytest
import torch
from compare import EPS, assert_close
from conftest import BITMAP_ISAS
from hypothesis import given, settings
from hypothesis import strategies as st
from sparsekern import _core, ops
from sparsekern._bitmap_kv import DEVICES, kept_channels, page_elements
from strategies import activations

DTYPES = ["float32", "bfloat16", "float16"]
SHORT = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
NAN, INF = math.nan, math.inf
HEAD_DIMS = (8, 16, 24, 64, 72, 80, 120, 128, 136, 192, 248, 256)


class Pool:
    """Pages, and K and V that were appended to them."""

    def __init__(self, k, v, k_keep, v_keep, batches=(), seed=0):
        batch, heads, tokens, head_dim = k.shape
        self.k, self.v, self.keeps, self.head_dim = k, v, (k_keep, v_keep), head_dim
        per_sequence = -(-tokens // 64)
        count = batch * per_sequence
        shape = (count + 2, heads, page_elements(head_dim, k_keep, v_keep, k.dtype))
        generator = torch.Generator().manual_seed(seed)
        self.pages = torch.zeros(shape, dtype=k.dtype)
        if k.dtype == torch.float32:  # what was there before must not matter
            self.pages.fill_(NAN)
        order = torch.randperm(count + 2, generator=generator)[:count]
        self.table = order.reshape(batch, per_sequence).int()
        self.lengths = torch.zeros(batch, dtype=torch.int64)
        for size in batches or (tokens,):
            at = int(self.lengths[0])
            part = (k[:, :, at : at + size], v[:, :, at : at + size])
            ops.bitmap_kv_append(*part, self.pages, self.table, self.lengths, *self.keeps)
            self.lengths += size

    def oracle_rows(self, b, h, length):
        """K, which are kept, V, which are kept of one sequence and head: [length, head_dim]."""
        dtype = str(self.k.dtype).removeprefix("torch.")
        pages = []
        for page in self.table[b, : -(-length // 64)].tolist():
            raw = self.pages[page, h].view(torch.uint8).numpy()
            pages.append(oracle.read_kv_page(raw, dtype, self.head_dim, *self.keeps))
        empty = np.zeros((0, self.head_dim))
        if not pages:
            return empty, empty.astype(bool), empty, empty.astype(bool)
        return tuple(np.concatenate(p)[:length] for p in zip(*pages, strict=True))

    def attention(self, q, lengths, window=None, starts=None, scale=0.3, softcap=0.0):
        arguments = (self.pages, self.table, lengths, *self.keeps, window, starts, scale, softcap)
        return ops.bitmap_attention(q, *arguments)


def bits_of(t):
    return t.contiguous().view(torch.int32 if t.dtype == torch.float32 else torch.int16).numpy()


def special(shape, dtype, seed=0):
    """Few different values, so full of ties: infinities, both zeros, denormals, NaN."""
    finfo = torch.finfo(dtype)
    tiny = finfo.smallest_normal / 4
    values = [NAN, -INF, INF, -finfo.max, -1.5, -tiny, -0.0, 0.0, tiny, 1.0, 1.5, -1.0]
    generator = torch.Generator().manual_seed(seed)
    return torch.tensor(values, dtype=dtype)[torch.randint(12, shape, generator=generator)]


def check_pages(pool):
    for x, keep, first in ((pool.k, pool.keeps[0], 0), (pool.v, pool.keeps[1], 2)):
        batch, heads, tokens, _ = x.shape
        for b in range(batch):
            for h in range(heads):
                dense, kept = pool.oracle_rows(b, h, tokens)[first : first + 2]
                raw = bits_of(x[b, h])
                for t in range(tokens):
                    want = oracle.kv_kept(raw[t].view(f"u{raw.itemsize}"), keep)
                    assert np.flatnonzero(kept[t]).tolist() == want, (b, h, t)
                values = x[b, h].double().numpy()
                np.testing.assert_array_equal(dense[kept], values[kept])


@pytest.mark.parametrize("dtype", DTYPES)
def test_append_keeps_what_the_oracle_keeps(bitmap_isa, dtype):
    for i, head_dim in enumerate(HEAD_DIMS):
        keeps = (max(1, head_dim // 2), [1, head_dim, head_dim // 3][i % 3])
        k = activations((1, 2, 67, head_dim), dtype, seed=i)
        v = special((1, 2, 67, head_dim), k.dtype, seed=i)
        check_pages(Pool(k, v, *keeps, batches=(3, 1, 63) if i % 2 else ()))


@settings(deadline=None, max_examples=40)
@given(st.data(), st.sampled_from(DTYPES), st.integers(1, 32), st.integers(0, 2**32 - 1))
def test_any_bits(bitmap_isa, data, dtype, eighths, seed):
    head_dim = 8 * eighths
    keeps = data.draw(st.tuples(*[st.integers(1, head_dim)] * 2))
    size = 4 if dtype == "float32" else 2
    raw = np.random.default_rng(seed).integers(0, 256, (2, 1, 1, 2, head_dim * size), np.uint8)
    k, v = torch.from_numpy(raw).view(getattr(torch, dtype))
    check_pages(Pool(k, v, *keeps))


def test_rules_by_hand(bitmap_isa):
    def kept(row, keep):
        k = torch.tensor(row)[None, None, None]
        pool = Pool(k, k, keep, keep)
        return np.flatnonzero(pool.oracle_rows(0, 0, 1)[1][0]).tolist()

    assert kept([1.0] * 8, 3) == [0, 1, 2]
    assert kept([0.0] * 8, 2) == [0, 1]
    assert kept([0.0, 1, -3, 2, -2, 0.5, 0, 0], 3) == [2, 3, 4]
    assert kept([0.0, 1, -3, 2, -2, 0.5, 0, 0], 2) == [2, 3]
    assert kept([INF, NAN, 1, NAN, 2, 3, 4, 5], 2) == [1, 3]
    assert kept([INF, NAN, 1, NAN, 2, 3, 4, 5], 3) == [0, 1, 3]
    assert kept([-0.0, 0, 0, 1e-45, 0, 0, 0, 0], 1) == [3]


def test_strides_and_the_dense_way_back(bitmap_isa):
    base_k, base_v = (
        activations((2, 70, 3, 40), "bfloat16"),
        activations((2, 3, 40, 70), "bfloat16"),
    )
    k, v = base_k.transpose(1, 2), base_v.transpose(2, 3)  # v: channels apart
    pool = Pool(k, v, 20, 13)
    check_pages(pool)
    lengths = torch.tensor([70, 33])
    dense = ops.bitmap_kv_unpack(pool.pages, pool.table, lengths, 40, 20, 13, 71)
    for i, x in enumerate(dense):
        assert x.shape == (2, 3, 71, 40)
        for b, length in enumerate(lengths.tolist()):
            assert not x[b, :, length:].any()
            for h in range(3):
                want = pool.oracle_rows(b, h, length)[2 * i]
                np.testing.assert_array_equal(x[b, h, :length].double().numpy(), want)


def check_attention(pool, q, lengths, window=None, starts=None, scale=0.3, softcap=0.0):
    dtype = str(q.dtype).removeprefix("torch.")
    out, lse = pool.attention(q, lengths, window, starts, scale, softcap)
    assert (out.dtype, lse.dtype) == (q.dtype, torch.float32)
    group = q.shape[1] // pool.k.shape[1]
    for b, length in enumerate(lengths.tolist()):
        for h in range(pool.k.shape[1]):
            rows = pool.oracle_rows(b, h, length)
            if window is not None:
                more = int(window[2][b])
                slots = [(length + i) % window[0].shape[2] for i in range(more)]
                wk, wv = (w[b, h, slots].double().numpy() for w in window[:2])
                ones = np.ones(wk.shape, bool)
                rows = [np.concatenate(p) for p in zip(rows, (wk, ones, wv, ones), strict=True)]
            start = 0 if starts is None else max(0, int(starts[b]))
            rows = [r[start:] for r in rows]
            heads = slice(h * group, (h + 1) * group)
            x = q[b, heads].double().numpy()
            want, largest, want_lse = oracle.attention(x, *rows, scale, softcap)
            terms = pool.head_dim + 4
            moved = np.where(np.isfinite(largest), 2 * terms * EPS * largest + 8 * EPS, 0.0)
            extra = np.nan_to_num(want.magnitude * (2 * moved[:, None]))
            extra = extra + 40 * EPS * softcap * np.nan_to_num(want.magnitude)
            extra = extra + 1e-32  # weights below e^-80 stay there
            assert_close(out[b, heads].double().numpy(), want, dtype, extra=extra, what=f"{b} {h}")
            got = lse[b, heads].double().numpy()
            finite = np.isfinite(want_lse)
            assert (np.isnan(got) == np.isnan(want_lse)).all()
            size = np.where(finite, np.abs(want_lse), 0.0)
            allowed = moved + 4e-6 * (1 + size) + 40 * EPS * softcap
            assert (np.abs(got[finite] - want_lse[finite]) <= allowed[finite]).all()
            assert (got[~finite & ~np.isnan(got)] == want_lse[~finite & ~np.isnan(got)]).all()
    return out, lse


GROUPS = (1, 2, 4, 5, 7, 8, 16)


@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_for_every_head_dim_and_group(bitmap_isa, dtype):
    for i, head_dim in enumerate(HEAD_DIMS):
        group = GROUPS[i % len(GROUPS)]
        tokens = (130, 64, 1, 65)[i % 4]
        k, v = (activations((2, 2, tokens, head_dim), dtype, seed=j) for j in (1, 2))
        pool = Pool(k, v, head_dim // 2, max(1, head_dim // (1 + i % 4)))
        q = activations((2, 2 * group, head_dim), dtype, seed=3)
        lengths = torch.tensor([tokens, max(0, tokens - 66)])
        slots = 5 + 20 * (i % 3)
        wk, wv = (activations((2, 2, slots, head_dim), dtype, seed=j) for j in (4, 5))
        check_attention(pool, q, lengths, scale=head_dim**-0.5)
        window = (wk, wv, torch.tensor([slots, slots // 2]))
        check_attention(pool, q, lengths, window, None, head_dim**-0.5, 3.0 * (i % 2))


@pytest.mark.parametrize("group", GROUPS)
def test_every_group_size_with_starts_and_several_parts(bitmap_isa, group):
    k, v = (activations((3, 1, 1100, 64), "bfloat16", seed=j) for j in (1, 2))
    pool = Pool(k, v, 32, 19)
    q = activations((3, group, 64), "bfloat16", seed=3)
    window = (*(activations((3, 1, 32, 64), "bfloat16", seed=j) for j in (4, 5)),)
    window = (*window, torch.tensor([32, 0, 7]))
    lengths = torch.tensor([1100, 513, 512])
    for starts in (None, [0, 64, 100], [1099, 512, 515], [1101, 513, 518], [-3, 511, 519]):
        chosen = None if starts is None else torch.tensor(starts)
        out, lse = check_attention(pool, q, lengths, window, chosen)
        if starts == [1101, 513, 518]:
            assert (out[1] == 0).all()
            assert (lse[1] == -INF).all()


def test_what_is_pruned_contributes_nothing(bitmap_isa):
    k, v = (activations((1, 2, 70, 24), seed=j) for j in (1, 2))
    k[..., 3] = 1e-3  # never kept
    v[:, :, 5, 7] = INF
    v[:, 1, 6, 7] = NAN
    pool = Pool(k, v, 6, 12)
    for bad in (INF, -INF, NAN):
        q = activations((1, 4, 24), seed=3)
        plain, _ = pool.attention(q, torch.tensor([70]))
        q[:, :, 3] = bad
        out, _ = check_attention(pool, q, torch.tensor([70]))
        torch.testing.assert_close(out, plain, equal_nan=True)
        q[0, 1, 5] = bad  # where some are kept
        check_attention(pool, q, torch.tensor([70]))
    k[:, :, 9, 2] = -INF  # its score, and so its weight
    q = activations((1, 4, 24), seed=3).abs()
    check_attention(Pool(k, v.nan_to_num(0.0, 1.0), 6, 12), q, torch.tensor([70]))


@pytest.mark.parametrize("group", [1, 3, 4, 5])
def test_scores_of_minus_infinity(bitmap_isa, group):
    """NaN where there is nothing else, as 0 / 0; weights of 0 where there is."""
    q = activations((1, group, 16), seed=3)
    q[..., 0] = -1.0
    for tokens, slots in ((1, 0), (3, 2), (70, 0), (600, 5)):
        k, v = (activations((1, 1, tokens + slots, 16), seed=j) for j in (1, 2))
        k[..., 0] = INF
        lengths = torch.tensor([tokens])
        for finite in (None, 0, tokens + slots - 1):
            if finite is not None:
                k[:, :, finite, 0] = 1.0
            in_window = [(tokens + i) % slots for i in range(slots)]
            window = tuple(torch.zeros(1, 1, slots, 16) for _ in range(2))
            for x, w in zip((k, v), window, strict=True):
                w[:, :, in_window] = x[:, :, tokens:]
            pool = Pool(k[:, :, :tokens], v[:, :, :tokens], 8, 5)
            window = (*window, torch.tensor([slots])) if slots else None
            out, lse = check_attention(pool, q, lengths, window)
            assert out.isnan().all() == (lse == -INF).all() == (finite is None)


def test_weights_far_apart(bitmap_isa):
    """Maxima that grow from page to page, and scores whose exponential under- and overflows."""
    k = torch.zeros(1, 1, 700, 8)
    k[0, 0, :, 0] = torch.linspace(-300, 300, 700)
    v = activations((1, 1, 700, 8))
    for sign in (1.0, -1.0):
        q = torch.full((1, 4, 8), sign)
        check_attention(Pool(k, v, 1, 8), q, torch.tensor([700]), scale=1.0)


def test_threads_change_nothing(bitmap_isa, threads):
    k, v = (activations((2, 2, 1500, 64), "bfloat16", seed=j) for j in (1, 2))
    pool, q = Pool(k, v, 32, 19), activations((2, 8, 64), "bfloat16", seed=3)
    lengths = torch.tensor([1500, 700])
    out, lse = pool.attention(q, lengths)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = Pool(k, v, 32, 19)
    one_out, one_lse = alone.attention(q, lengths)
    torch.set_num_threads(before)
    assert torch.equal(alone.pages.view(torch.uint8), pool.pages.view(torch.uint8))
    assert torch.equal(out, one_out)
    assert torch.equal(lse, one_lse)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_forced_kernel_is_the_one_named(bitmap_isa, dtype):
    attends = BITMAP_ISAS[bitmap_isa]
    appends = {"x86_avx512vbmi2": "x86_avx512"}.get(attends, attends)
    for op, file in (("bitmap_kv_append", appends), ("bitmap_attention", attends)):
        kernel = getattr(_core, f"{op}_kernel")(dtype)
        assert kernel == f"{op}_{SHORT[dtype]}__{file}"
        for wrong in ("int8", "float64"):
            with pytest.raises(TypeError, match=f"{op}_kernel: dtype must be .*, got {wrong}"):
                getattr(_core, f"{op}_kernel")(wrong)


def test_a_corrupt_mask_is_found_and_harmless(bitmap_isa):
    k, v = (activations((1, 1, 64, 128), "bfloat16", seed=j) for j in (1, 2))
    pool = Pool(k, v, 4, 4)
    raw = pool.pages[int(pool.table[0, 0]), 0].view(torch.uint8)
    masks = 2 * 64 * 4 * 2
    for at, which in ((masks + 3, "K"), (masks + 64 * 16 + 63 * 16, "V")):
        before = int(raw[at])
        raw[at] = 255
        text = f"the {which} mask of sequence 0, head 0, token .* must keep 4 channels, got"
        with pytest.raises(ValueError, match=text):
            ops.bitmap_kv_unpack(pool.pages, pool.table, pool.lengths, 128, 4, 4, 64)
        raw[at] = before
    raw[masks:] = 255  # every channel of every token: wrong numbers, no wild access
    out, _ = pool.attention(activations((1, 2, 128), "bfloat16"), pool.lengths)
    assert out.shape == (1, 2, 128)


def test_memory_of_a_page():
    for sparsity, most in ((0.5, 0.57), (0.7, 0.38)):
        keep = kept_channels(128, sparsity)
        assert page_elements(128, keep, keep, torch.bfloat16) / (2 * 64 * 128) <= most
    assert [kept_channels(8, s) for s in (0.0, 0.5, 0.94, 0.99)] == [8, 4, 1, 1]
    assert kept_channels(128, 0.7) == 38
    for bad in (-0.1, 1.0, NAN):
        with pytest.raises(ValueError, match=r"sparsity must be in \[0, 1\)"):
            kept_channels(128, bad)


K, V, Q = torch.zeros(1, 2, 3, 16), torch.zeros(1, 2, 3, 16), torch.zeros(1, 4, 16)
PAGES = torch.zeros(2, 2, page_elements(16, 8, 4, torch.float32))
TABLE, LENGTHS = torch.zeros(1, 1, dtype=torch.int32), torch.zeros(1, dtype=torch.int64)
APPEND = {"k": K, "v": V, "pages": PAGES, "table": TABLE, "lengths": LENGTHS}
APPEND = {**APPEND, "k_keep": 8, "v_keep": 4}
ATTENTION = {"q": Q, **{n: APPEND[n] for n in ("pages", "table", "lengths", "k_keep", "v_keep")}}
WINDOW = (K, V, LENGTHS)
ERRORS = {
    "head_dim of k": (APPEND, {"k": K[..., :12]}, ValueError, "head_dim must be a multiple of 8"),
    "head_dim of v": (APPEND, {"v": V[..., :8]}, ValueError, r"v must be \[1, 2, 3, 16\], got"),
    "head_dim large": (
        APPEND,
        {"k": torch.zeros(1, 2, 3, 264)},
        ValueError,
        "from 8 to 256, got 2",
    ),
    "k dimensions": (APPEND, {"k": K[0]}, ValueError, r"k must be \[batch, kv_heads, tokens, head"),
    "k_keep": (
        APPEND,
        {"k_keep": 17},
        ValueError,
        r"k_keep must be in \[1, head_dim\] = \[1, 16\]",
    ),
    "v_keep": (APPEND, {"v_keep": 0}, ValueError, r"v_keep must be in .*, got 0"),
    "other keeps": (APPEND, {"k_keep": 9}, ValueError, r"pages must be .*k_keep 9 and v_keep 4"),
    "dtype of k": (APPEND, {"k": K.half()}, TypeError, "k must have the dtype of the pages"),
    "dtype of v": (APPEND, {"v": V.bfloat16()}, TypeError, "v must have the dtype of the pages"),
    "dtype of pages": (APPEND, {"pages": PAGES.double()}, TypeError, "pages must be float32, bflo"),
    "page exhausted": (
        APPEND,
        {"lengths": LENGTHS + 62},
        ValueError,
        r"lengths\[0\] must be in \[0, 61\] \(the table has 1 pages of 64 tokens, and 3 are to be",
    ),
    "too many tokens": (
        APPEND,
        {"k": torch.zeros(1, 2, 70, 16), "v": torch.zeros(1, 2, 70, 16)},
        ValueError,
        r"tokens must be at most 64 \(the table has 1 pages of 64 tokens\), got 70",
    ),
    "strides": (
        APPEND,
        {"pages": PAGES.transpose(0, 1)},
        ValueError,
        r"pages must be contiguous, got shape \[2, 2, .* with strides \[",
    ),
    "length below": (APPEND, {"lengths": LENGTHS - 1}, ValueError, r"lengths\[0\] must be in"),
    "no such page": (
        APPEND,
        {"table": TABLE + 2},
        ValueError,
        r"table\[0, 0\] must be in \[0, 2\), got 2",
    ),
    "page below": (APPEND, {"table": TABLE - 1}, ValueError, r"table\[0, 0\] must be in"),
    "table dtype": (APPEND, {"table": TABLE.long()}, TypeError, "table must be int32, got int64"),
    "lengths dtype": (
        APPEND,
        {"lengths": LENGTHS.int()},
        TypeError,
        "lengths must be int64, got int32",
    ),
    "lengths size": (
        APPEND,
        {"lengths": LENGTHS[:0]},
        ValueError,
        "lengths must be contiguous wit",
    ),
    "k list": (APPEND, {"k": [1.0]}, TypeError, r"k must be a torch\.Tensor, got list"),
    "k elsewhere": (
        APPEND,
        {"k": K.to("meta")},
        ValueError,
        "k must be on cpu like pages, got meta",
    ),
    "heads": (ATTENTION, {"q": Q[:, :3]}, ValueError, r"heads of q must be a multiple of kv_heads"),
    "no heads": (ATTENTION, {"q": Q[:, :0]}, ValueError, "heads of q must be a multiple"),
    "q head_dim": (ATTENTION, {"q": Q[..., :8]}, ValueError, r"pages must be .*for head_dim 8"),
    "q dimensions": (ATTENTION, {"q": Q[0]}, ValueError, r"q must be \[batch, heads, head_dim\]"),
    "q dtype": (ATTENTION, {"q": Q.half()}, TypeError, "q must have the dtype of the pages"),
    "q elsewhere": (ATTENTION, {"q": Q.to("meta")}, ValueError, "q must be on cpu like pages"),
    "length beyond": (
        ATTENTION,
        {"lengths": LENGTHS + 65},
        ValueError,
        r"lengths\[0\] must be in \[0, 64\] \(the table has 1 pages of 64 tokens\), got 65",
    ),
    "no KV heads": (ATTENTION, {"pages": PAGES[:, :0]}, ValueError, r"of kv_heads \(0\), got 4"),
    "softcap": (
        ATTENTION,
        {"softcap": -1.0},
        ValueError,
        "softcap must be finite and at least 0, got -1",
    ),
    "softcap infinite": (
        ATTENTION,
        {"softcap": INF},
        ValueError,
        "softcap must be finite and at least 0, got inf",
    ),
    "softcap NaN": (
        ATTENTION,
        {"softcap": NAN},
        ValueError,
        "softcap must be finite and at least 0, got nan",
    ),
    "window dtype": (
        ATTENTION,
        {"window": (K.half(), V.half(), LENGTHS)},
        TypeError,
        "window_k must have the dtype of the pages",
    ),
    "window shape": (
        ATTENTION,
        {"window": (K, V[:, :, :2], LENGTHS)},
        ValueError,
        r"window_v must be \[1, 2, 3, 16\], got \[1, 2, 2, 16\]",
    ),
    "window length": (
        ATTENTION,
        {"window": (K, V, LENGTHS + 4)},
        ValueError,
        r"window_lengths\[0\] must be in \[0, 3\], got 4",
    ),
    "starts": (ATTENTION, {"starts": LENGTHS.int()}, TypeError, "starts must be int64"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_refuses(case):
    good, change, error, text = ERRORS[case]
    op = "bitmap_kv_append" if good is APPEND else "bitmap_attention"
    getattr(ops, op)(**good)
    with pytest.raises(error, match=f"{op}: .*{text}|{op}: {text}"):
        getattr(ops, op)(**{**good, **change})


# What a fake kernel does not see: data and strides.
DATA = {
    "page exhausted",
    "strides",
    "length below",
    "no such page",
    "page below",
    "length beyond",
    "window length",
}


@pytest.mark.parametrize("case", sorted(ERRORS.keys() - DATA - {"k list"}))
def test_fake_kernels_refuse_the_same(case):
    good, change, error, _ = ERRORS[case]
    if "elsewhere" in case or case in {"k dimensions", "q dimensions"}:
        error = ValueError
    op = "bitmap_kv_append" if good is APPEND else "bitmap_attention"

    def meta(value):
        if isinstance(value, tuple):
            return tuple(meta(v) for v in value)
        return value.to("meta") if isinstance(value, torch.Tensor) else value

    arguments = {name: meta(value) for name, value in {**good, **change}.items()}
    if "elsewhere" in case:
        arguments["q" if "q" in change else "k"] = (Q if "q" in change else K).cpu()
    with pytest.raises(error):
        getattr(ops, op)(**arguments)


@pytest.mark.skipif("cuda" in DEVICES, reason="the device has kernels")
def test_a_device_without_kernels_is_named():
    class Elsewhere(torch.Tensor):
        device = torch.device("cuda:0")

    with pytest.raises(NotImplementedError, match=r"on a device with kernels \(cpu\), got cuda:0"):
        ops.bitmap_attention(**{**ATTENTION, "q": Q.as_subclass(Elsewhere)})


def test_empty_calls():
    ops.bitmap_kv_append(**{**APPEND, "k": K[:, :, :0], "v": V[:, :, :0]})
    out, lse = ops.bitmap_attention(**ATTENTION)
    assert (out == 0).all()
    assert (lse == -INF).all()
    none = {"table": TABLE[:0], "lengths": LENGTHS[:0]}
    assert ops.bitmap_attention(**{**ATTENTION, **none, "q": Q[:0]})[0].shape == (0, 4, 16)
