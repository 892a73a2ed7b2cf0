# SPDX-License-Identifier: Apache-2.0
"""Pruned KV caches on CUDA against the CPU's operators."""

from __future__ import annotations

import math

import pytest
import sparsekern as sk
import torch
from sparsekern import ops
from sparsekern._bitmap_kv import page_elements
from sparsekern._kv_store import PrunedKV
from strategies import activations
from torch.nn import functional

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU"),
]
DTYPES = ["float32", "bfloat16", "float16"]
NAN, INF = math.nan, math.inf
# Of the output, in its own roundings; the log-sum-exp is fp32.
TOLERANCE = {"float32": 2e-5, "bfloat16": 8e-3, "float16": 1e-3}


def special(shape, dtype, seed=0):
    """Few different values, so full of ties: infinities, both zeros, denormals, NaN."""
    finfo = torch.finfo(dtype)
    tiny = finfo.smallest_normal / 4
    values = [NAN, -INF, INF, -finfo.max, -1.5, -tiny, -0.0, 0.0, tiny, 1.0, 1.5, -1.0]
    generator = torch.Generator().manual_seed(seed)
    return torch.tensor(values, dtype=dtype)[torch.randint(12, shape, generator=generator)]


def bits(t):
    return t.view(torch.int32 if t.dtype == torch.float32 else torch.int16)


class Caches:
    """The same pages on the CPU and on the device, full of ones where nothing is written."""

    def __init__(self, k, v, k_keep, v_keep, spare=2):
        batch, heads, tokens, self.head_dim = k.shape
        self.keeps = (k_keep, v_keep)
        each = -(-tokens // 64)
        shape = (batch * each + spare, heads, page_elements(self.head_dim, k_keep, v_keep, k.dtype))
        self.pages = torch.ones(shape, dtype=k.dtype)
        order = torch.randperm(shape[0], generator=torch.Generator().manual_seed(1))
        self.table = order[: batch * each].reshape(batch, each).int()
        self.lengths = torch.zeros(batch, dtype=torch.int64)
        self.on_device = tuple(t.cuda() for t in (self.pages, self.table, self.lengths))
        for at, size in ((0, tokens // 3), (tokens // 3, tokens - tokens // 3)):
            part = (k[:, :, at : at + size], v[:, :, at : at + size])
            ops.bitmap_kv_append(*part, self.pages, self.table, self.lengths, *self.keeps)
            ops.bitmap_kv_append(*(x.cuda() for x in part), *self.on_device, *self.keeps)
            self.lengths += size
            self.on_device[2].add_(size)

    def attention(self, q, lengths, window=None, starts=None, **options):
        return ops.bitmap_attention(
            q, self.pages, self.table, lengths, *self.keeps, window, starts, **options
        )

    def attention_on_device(self, q, lengths, window=None, starts=None, **options):
        moved = None if window is None else tuple(t.cuda() for t in window)
        starts = None if starts is None else starts.cuda()
        pages, table, _ = self.on_device
        return ops.bitmap_attention(
            q.cuda(), pages, table, lengths.cuda(), *self.keeps, moved, starts, **options
        )

    def check(self, q, lengths, *more, **options):
        out, lse = self.attention_on_device(q, lengths, *more, **options)
        expected, expected_lse = self.attention(q, lengths, *more, **options)
        assert out.is_cuda
        assert out.dtype == q.dtype
        tolerance = TOLERANCE[str(q.dtype).removeprefix("torch.")]
        torch.testing.assert_close(
            out.float().cpu(), expected.float(), rtol=tolerance, atol=tolerance / 8, equal_nan=True
        )
        torch.testing.assert_close(lse.cpu(), expected_lse, rtol=1e-5, atol=1e-4, equal_nan=True)


def filled(head_dim, dtype, tokens=150, heads=2, batch=3, k_keep=None, v_keep=None):
    k = activations((batch, heads, tokens, head_dim), dtype, 1)
    v = activations((batch, heads, tokens, head_dim), dtype, 2)
    return Caches(k, v, k_keep or max(1, head_dim // 2), v_keep or max(1, head_dim // 3))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [8, 64, 72, 128, 200, 256])
def test_pages_are_the_cpus(dtype, head_dim):
    kind = getattr(torch, dtype)
    shape = (2, 3, 70, head_dim)
    for k, v in (
        (activations(shape, dtype, 1), activations(shape, dtype, 2)),
        (special(shape, kind, 1), special(shape, kind, 2)),
        (torch.ones(shape, dtype=kind), torch.zeros(shape, dtype=kind)),
    ):
        for keeps in ((1, head_dim), (head_dim // 2, head_dim - 1)):
            caches = Caches(k, v, *keeps)
            assert torch.equal(bits(caches.on_device[0].cpu()), bits(caches.pages))
            sizes = (caches.lengths, head_dim, *keeps, 75)
            expected = ops.bitmap_kv_unpack(caches.pages, caches.table, *sizes)
            pages, table, lengths = caches.on_device
            dense = ops.bitmap_kv_unpack(pages, table, lengths, *sizes[1:])
            for got, want in zip(dense, expected, strict=True):
                assert torch.equal(bits(got.cpu()), bits(want))


def test_append_takes_strides():
    k = activations((2, 70, 3, 64), "bfloat16", 1).transpose(1, 2)
    v = activations((2, 3, 64, 70), "bfloat16", 2).transpose(2, 3)
    caches = Caches(k, v, 20, 30)
    assert torch.equal(bits(caches.on_device[0].cpu()), bits(caches.pages))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [8, 40, 64, 80, 128, 136, 256])
def test_attention_shapes(dtype, head_dim):
    caches = filled(head_dim, dtype)
    lengths = torch.tensor([150, 0, 77])
    for group in (1, 3, 4, 8, 9, 17):
        caches.check(activations((3, 2 * group, head_dim), dtype, 3), lengths)


@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_windows_starts_and_caps(dtype):
    caches = filled(128, dtype, k_keep=38)
    q = activations((3, 8, 128), dtype, 3)
    lengths = torch.tensor([150, 64, 0])
    window = (
        activations((3, 2, 20, 128), dtype, 4),
        activations((3, 2, 20, 128), dtype, 5),
        torch.tensor([17, 0, 20]),
    )
    for starts in (None, torch.tensor([5, 64, 3]), torch.tensor([160, -1, 1000])):
        for softcap in (0.0, 2.0):
            caches.check(q, lengths, window, starts, scale=0.3, softcap=softcap)
    shifted = torch.zeros(2 * window[0].numel() + 1, dtype=q.dtype)[1:]  # begins between 16 bytes
    moved = shifted[: window[0].numel()].view(window[0].shape).copy_(window[0])
    caches.check(q, lengths, (moved, *window[1:]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_infinities_and_nan(dtype):
    kind = getattr(torch, dtype)
    k, v = special((3, 2, 70, 64), kind, 1), special((3, 2, 70, 64), kind, 2)
    q = activations((3, 4, 64), dtype, 3)
    Caches(k, v, 32, 32).check(q, torch.tensor([70, 3, 64]))
    # What was pruned does not meet an infinity: -inf where channel 3 is kept, finite elsewhere.
    k = activations((3, 2, 70, 64), dtype, 1)
    k[..., 3] = -k[..., 3].abs()
    q[..., 3] = INF
    caches = Caches(k, activations((3, 2, 70, 64), dtype, 2), 20, 20)
    lengths = torch.tensor([70, 70, 70])
    assert torch.isfinite(caches.attention(q, lengths)[0]).all()
    caches.check(q, lengths)


def test_attention_is_deterministic_and_takes_long_sequences():
    caches = filled(128, "bfloat16", tokens=5000, heads=1, batch=1)
    q = activations((1, 4, 128), "bfloat16", 3)
    lengths = torch.tensor([5000])
    first, _ = caches.attention_on_device(q, lengths)
    for _ in range(5):
        again, _ = caches.attention_on_device(q, lengths)
        assert torch.equal(first, again)
    caches.check(q, lengths)


def test_streams_and_graphs():
    caches = filled(64, "float16")
    pages, table, lengths = caches.on_device
    lengths.fill_(100)
    q = activations((3, 4, 64), "float16", 3).cuda()
    token = activations((3, 2, 1, 64), "float16", 6).cuda()

    def step():
        ops.bitmap_kv_append(token, -token, pages, table, lengths, *caches.keeps)
        return ops.bitmap_attention(q, pages, table, lengths + 1, *caches.keeps)[0]

    def reference(at):
        with_token = caches.pages.clone()
        start = torch.full((3,), at)
        arguments = (with_token, caches.table, start, *caches.keeps)
        ops.bitmap_kv_append(token.cpu(), -token.cpu(), *arguments)
        arguments = (with_token, caches.table, start + 1, *caches.keeps)
        return ops.bitmap_attention(q.cpu(), *arguments)[0]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        out = step()
    stream.synchronize()
    torch.testing.assert_close(out.cpu(), reference(100), rtol=1e-3, atol=2e-4)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step()
    # The lengths and the token are read when the graph runs.
    lengths.fill_(130)
    pages.copy_(caches.pages)
    token.mul_(2)
    graph.replay()
    torch.cuda.synchronize()
    torch.testing.assert_close(out.cpu(), reference(130), rtol=1e-3, atol=2e-4)


def test_bad_tables_and_lengths_touch_nothing():
    caches = filled(64, "bfloat16")
    pages, table, lengths = caches.on_device
    q = activations((3, 4, 64), "bfloat16", 3).cuda()
    token = activations((3, 2, 1, 64), "bfloat16", 6).cuda()
    good, _ = ops.bitmap_attention(q, pages, table, lengths, *caches.keeps)
    for bad_table, bad_length in (
        (None, -1),
        (None, 193),
        (None, 2**62),
        (10**6, None),
        (-5, None),
    ):
        t, n = table.clone(), lengths.clone()
        if bad_table is not None:
            t[1, 1] = bad_table
        else:
            n[1] = bad_length
        out, lse = ops.bitmap_attention(q, pages, t, n, *caches.keeps)
        assert out[1].isnan().all()
        assert lse[1].isnan().all()
        assert torch.equal(out[::2], good[::2])
        k, _ = ops.bitmap_kv_unpack(pages, t, n, 64, *caches.keeps, 160)
        rows = k[1, :, 64:128] if bad_table is not None else k[1]
        assert rows.isnan().all()
        assert not k[::2].isnan().any()
        if bad_table is not None:
            n[1] = 64
        n[::2] = 192  # no room either
        before = pages.clone()
        ops.bitmap_kv_append(token, token, pages, t, n, *caches.keeps)
        assert torch.equal(pages, before)


def test_corrupt_masks_are_seen():
    caches = filled(64, "float32")
    pages, table, lengths = caches.on_device
    k_keep, v_keep = caches.keeps
    page = pages[table[0, 0].item(), 0].view(torch.uint8)
    page[64 * (k_keep + v_keep) * 4 :] = 255
    k, v = ops.bitmap_kv_unpack(pages, table, lengths, 64, k_keep, v_keep, 150)
    assert k[0, 0, :64].isnan().all()
    assert v[0, 0, :64].isnan().all()
    assert not k[0, 1].isnan().any()
    assert not k[0, 0, 64:].isnan().any()
    q = activations((3, 4, 64), "float32", 3).cuda()
    ops.bitmap_attention(q, pages, table, lengths, k_keep, v_keep)
    torch.cuda.synchronize()


def test_bad_arguments():
    caches = filled(64, "bfloat16")
    pages, table, lengths = caches.on_device
    q = activations((3, 4, 64), "bfloat16", 3).cuda()

    def attention(**change):
        given = {"q": q, "pages": pages, "table": table, "lengths": lengths}
        keeps = {"k_keep": caches.keeps[0], "v_keep": caches.keeps[1]}
        return ops.bitmap_attention(**{**given, **keeps, **change})

    for change, error, text in (
        ({"q": q.cpu()}, ValueError, "q must be on cuda:0 like pages, got cpu"),
        ({"q": q[:, :3]}, ValueError, r"heads of q must be a multiple of kv_heads \(2\), got 3"),
        ({"q": q.half()}, TypeError, "q must have the dtype of the pages"),
        ({"k_keep": 65}, ValueError, r"k_keep must be in \[1, head_dim\] = \[1, 64\], got 65"),
        ({"softcap": -1.0}, ValueError, "softcap must be finite and at least 0"),
        ({"lengths": lengths[:2]}, ValueError, "lengths must be contiguous with 3 elements"),
        ({"table": table.long()}, TypeError, "table must be int32, got int64"),
    ):
        with pytest.raises(error, match=text):
            attention(**change)
    shifted = torch.zeros(pages.numel() + 1, dtype=pages.dtype, device="cuda")[1:]
    with pytest.raises(ValueError, match="pages must be at a multiple of 16 bytes"):
        attention(pages=shifted.view(pages.shape))
    k = torch.zeros((3, 2, 193, 64), dtype=pages.dtype, device="cuda")
    with pytest.raises(ValueError, match=r"tokens must be at most 192 \(.*3 pages.*\), got 193"):
        ops.bitmap_kv_append(k, k, pages, table, lengths, *caches.keeps)
    with pytest.raises(ValueError, match="tokens must be at least 0, got -1"):
        ops.bitmap_kv_unpack(pages, table, lengths, 64, *caches.keeps, -1)
    no_tokens = k[:, :, :0]
    ops.bitmap_kv_append(no_tokens, no_tokens, pages, table, lengths, *caches.keeps)
    out, lse = attention(q=q[:0], table=table[:0], lengths=lengths[:0])
    assert out.shape == (0, 4, 64)
    assert lse.shape == (0, 4)


def test_a_store_on_the_device_goes_as_one_on_the_cpu():
    stores = []
    for device in ("cpu", "cuda"):
        pool = sk.BitmapKVPool(20, 2, 64, 64, 64, torch.float32, device)
        stores.append(PrunedKV(pool, 2, 300, 32))
    for size in (150, 1, 1, 40):
        k, v = (activations((2, 2, size, 64), "float32", size + i) for i in range(2))
        for store in stores:
            store.append(k.to(store.pool.device), v.to(store.pool.device))
    for store in stores:
        store.select([1, 0, 1])
        store.crop(180)
    q = activations((3, 4, 64), "float32", 3)
    expected, _ = stores[0].attend(q, None, 0.2)
    out, _ = stores[1].attend(q.cuda(), None, 0.2)
    torch.testing.assert_close(out.cpu(), expected, rtol=1e-5, atol=1e-5)
    for got, want in zip(stores[1].dense(), stores[0].dense(), strict=True):
        assert torch.equal(got.cpu(), want)
    state = stores[1].state()
    assert state["pages"].device.type == "cpu"
    other = PrunedKV(sk.BitmapKVPool(20, 2, 64, 64, 64, torch.float32, "cuda"), 3, 300, 32)
    other.restore(state)
    again, _ = other.attend(q.cuda(), None, 0.2)
    assert torch.equal(again, out)


def test_generate():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=61,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=512,
        pad_token_id=0,
        eos_token_id=None,
    )
    model = transformers.LlamaForCausalLM(config).eval().cuda()
    ids = torch.randint(2, 61, (2, 90)).cuda()
    cache = sk.BitmapKVCache(config, 0.0, max_length=200)  # nothing is lost
    dense = model.generate(ids, max_new_tokens=30, do_sample=False)
    model.set_attn_implementation("sparsekern")
    pruned = model.generate(ids, max_new_tokens=30, do_sample=False, past_key_values=cache)
    assert torch.equal(dense, pruned)
    assert "__cuda" in sk.report(cache).layers[0].kernel
    state = cache.state_dict()
    other = sk.BitmapKVCache(config, 0.0, max_length=200)
    other.load_state_dict(state, "cuda")
    step = {"past_key_values": other, "position_ids": torch.full((2, 1), 119).cuda()}
    with torch.no_grad():
        logits = model(pruned[:, -1:], **step).logits
    assert functional.softmax(logits, -1).isfinite().all()
