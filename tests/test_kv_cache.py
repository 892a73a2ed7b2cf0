# SPDX-License-Identifier: Apache-2.0
"""`BitmapKVCache` in Hugging Face's generate(), its pool, and what it must refuse."""

from __future__ import annotations

import copy
import gc

import pytest
import sparsekern as sk
import torch
from sparsekern._bitmap_kv import kept_channels
from sparsekern._kv_store import PrunedKV
from torch.nn import functional

transformers = pytest.importorskip("transformers")
attention = pytest.importorskip("sparsekern._kv_cache").attention
VOCABULARY = 61


def config(layers=2, **changes):
    return transformers.LlamaConfig(
        **{
            "vocab_size": VOCABULARY,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "max_position_embeddings": 512,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": None,
            **changes,
        }
    )


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Models as small as these only lose by more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    llama = transformers.LlamaForCausalLM(config()).eval()
    with torch.no_grad():
        for p in llama.parameters():
            p.mul_(4.0)  # so that attention is not nearly uniform
    return llama


def cache_for(model, sparsity=0.0, max_length=400, **more):
    return sk.BitmapKVCache(model.config, sparsity, max_length=max_length, **more)


def prompt(length, batch=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, VOCABULARY, (batch, length), generator=generator)


@torch.no_grad()
def logits_through(model, ids, cache, first, attention, mask=None, step=1):
    """Logits of all tokens: `first` at once, the rest through the cache, `step` at a time."""
    positions = None if mask is None else (mask.cumsum(-1) - 1).clamp(min=0)
    assert sk.BitmapKVCache is not None  # registers the attention
    model.set_attn_implementation(attention)
    parts, at = [], 0
    while at < ids.shape[1]:
        size = first if at == 0 else step
        part = ids[:, at : at + size]
        seen = None if mask is None else mask[:, : at + part.shape[1]]
        where = None if positions is None else positions[:, at : at + part.shape[1]]
        out = model(part, past_key_values=cache, attention_mask=seen, position_ids=where)
        parts.append(out.logits)
        at += part.shape[1]
    return torch.cat(parts, 1)


def dense_cache(model):
    return transformers.DynamicCache(config=model.config)


@pytest.mark.parametrize("length", [1, 2, 31, 32, 33, 63, 64, 65, 95, 96, 97, 130])
def test_nothing_pruned_equals_the_dense_cache(model, length):
    ids = prompt(length + 5, seed=length)
    want = logits_through(model, ids, dense_cache(model), length, "sdpa")
    got = logits_through(model, ids, cache_for(model), length, "sparsekern")
    torch.testing.assert_close(got, want, atol=2e-3, rtol=1e-3)


class MaskedCache(transformers.DynamicCache):
    """A dense cache that zeroes what is pruned of each token once it left the window."""

    def __init__(self, keep, window):
        super().__init__()
        self.keep, self.window, self.done = keep, window, {}

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        k, v = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        exact = k.clone(), v.clone()  # a prompt attends to what it was
        layer = self.layers[layer_idx]
        begin, end = self.done.get(layer_idx, 0), max(0, k.shape[2] - self.window)
        for x in (layer.keys, layer.values):
            part = x[:, :, begin:end]
            order = part.abs().argsort(dim=-1, descending=True, stable=True)
            part.scatter_(-1, order[..., self.keep :], 0.0)
        self.done[layer_idx] = max(begin, end)
        return exact if key_states.shape[2] > 1 else (layer.keys, layer.values)


@pytest.mark.parametrize(
    ("attention", "length", "window"),
    [
        ("sparsekern", 1, 20),
        ("sparsekern", 33, 32),
        ("sparsekern", 120, 32),
        ("sparsekern", 60, 1),
        ("sparsekern", 5, 7),
        ("sdpa", 33, 32),
        ("eager", 70, 5),
    ],
)
def test_half_pruned_equals_the_masked_reference(model, attention, length, window):
    ids = prompt(length + 30, seed=length)
    want = logits_through(model, ids, MaskedCache(8, window), length, "eager")
    cache = cache_for(model, 0.5, window=window)
    got = logits_through(model, ids, cache, length, attention)
    torch.testing.assert_close(got, want, atol=5e-3, rtol=1e-3)
    with torch.no_grad():
        exact = model(ids).logits
    assert (got - exact).abs().max() > 0.05  # pruned tokens do matter


@pytest.mark.parametrize("attention", ["sparsekern", "sdpa"])
def test_prompts_in_pieces(model, attention):
    ids = prompt(150)
    want = logits_through(model, ids, MaskedCache(8, 32), 40, "eager", step=22)
    got = logits_through(model, ids, cache_for(model, 0.5), 40, attention, step=22)
    torch.testing.assert_close(got, want, atol=5e-3, rtol=1e-3)


@pytest.mark.parametrize("attention", ["sparsekern", "sdpa"])
def test_left_padding(model, attention):
    ids = prompt(90, batch=3)
    mask = torch.ones_like(ids)
    for row, padding in enumerate((0, 5, 60)):
        mask[row, :padding] = 0
        ids[row, :padding] = 0
    got = logits_through(model, ids, cache_for(model, 0.5), 70, attention, mask)
    model.set_attn_implementation(attention)
    for row, padding in enumerate((0, 5, 60)):
        # alone, without padding
        alone = cache_for(model, 0.5)
        want = logits_through(model, ids[row : row + 1, padding:], alone, 70 - padding, attention)
        torch.testing.assert_close(got[row, padding:], want[0], atol=5e-3, rtol=1e-3)


def generate(model, ids, cache, attention="sparsekern", **more):
    model.set_attn_implementation(attention)
    return model.generate(ids, past_key_values=cache, do_sample=False, max_new_tokens=20, **more)


def test_generate_gives_the_same_tokens(model):
    for length in (1, 31, 32, 33):
        ids = prompt(length)
        want = generate(model, ids, dense_cache(model), "sdpa")
        assert torch.equal(generate(model, ids, cache_for(model)), want)


@pytest.mark.parametrize("sparsity", [0.0, 0.5])
def test_beam_search(model, sparsity):
    ids = prompt(40, batch=2)
    reference = dense_cache(model) if sparsity == 0 else cache_for(model, sparsity)
    want = generate(model, ids, reference, "sdpa", num_beams=3)
    cache = cache_for(model, sparsity)
    assert torch.equal(generate(model, ids, cache, num_beams=3), want)
    pool = cache.stores[0].pool
    owned = {page for store in cache.stores for row in store.rows for page in row}
    assert pool.used == len(owned)  # pages are shared and none is lost


def test_beams_share_pages_until_one_writes():
    pool = sk.BitmapKVPool(8, 1, 8, 4, 4, torch.float32)
    store = PrunedKV(pool, 1, 200, 1)
    k = torch.randn(1, 1, 101, 8)
    store.append(k, k)
    store.select([0, 0, 0])
    assert pool.used == 2
    before = store.dense()[0]
    more = torch.randn(3, 1, 2, 8)
    store.append(more, more)
    assert pool.used == 1 + 3  # the full page is still shared
    after = store.dense()[0]
    assert torch.equal(after[:, :, :100], before[:, :, :100])
    assert torch.equal(after[:, :, -1], more[:, :, -1])
    store.select([2])
    assert pool.used == 2
    assert torch.equal(store.dense()[0], after[2:])


@pytest.mark.parametrize("to", [0, 30, 64, 65, 99])
def test_crop(model, to):
    ids = prompt(120)
    cache = cache_for(model, 0.5)
    logits_through(model, ids, cache, 110, "sparsekern")
    before = [store.dense() for store in cache.stores]
    cache.crop(to - 120)
    assert cache.get_seq_length() == to
    for store, dense in zip(cache.stores, before, strict=True):
        for x, y in zip(store.dense(), dense, strict=True):
            assert torch.equal(x, y[:, :, :to])
        assert len(store.rows[0]) == -(-store.packed // 64)
    packed = cache.stores[0].packed
    logits_through(model, prompt(45, seed=1), cache, 1, "sparsekern")
    for store, dense in zip(cache.stores, before, strict=True):
        assert store.length == to + 45
        assert torch.equal(store.dense()[0][:, :, :packed], dense[0][:, :, :packed])
    with pytest.raises(ValueError, match="tokens_to_remove must be at most 0"):
        cache.crop(5)
    with pytest.raises(ValueError, match=r"length must be in \[0, \d+\] to crop to, got -1"):
        cache.crop(-to - 46)


def test_other_ways_to_choose_sequences(model):
    ids = prompt(80, batch=2)
    cache = cache_for(model, 0.5, max_length=100)
    logits_through(model, ids, cache, 80, "sparsekern")
    dense = cache.stores[0].dense()[0]
    cache.batch_repeat_interleave(2)
    assert torch.equal(cache.stores[0].dense()[0], dense.repeat_interleave(2, 0))
    cache.batch_select_indices(torch.tensor([3, 0]))
    assert torch.equal(cache.stores[0].dense()[0], dense[[1, 0]])
    cache.reorder_cache(torch.tensor([1, 1]))
    assert torch.equal(cache.stores[0].dense()[0], dense[[0, 0]])
    twin = copy.deepcopy(cache.stores[0])
    assert torch.equal(twin.dense()[0], dense[[0, 0]])
    cache.reset()
    assert cache.get_seq_length() == 0
    assert cache.nbytes == 0


def test_sliding_window_and_soft_cap():
    torch.manual_seed(0)
    gemma = transformers.Gemma2ForCausalLM(
        transformers.Gemma2Config(
            **{**config().to_dict(), "model_type": "gemma2"},
            sliding_window=40,
            query_pre_attn_scalar=16,
            attn_logit_softcapping=2.0,
        )
    ).eval()
    ids = prompt(75)
    want = logits_through(gemma, ids, dense_cache(gemma), 50, "eager")
    got = logits_through(gemma, ids, cache_for(gemma), 50, "sparsekern")
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    torch.manual_seed(0)
    llama = transformers.LlamaForCausalLM(config(head_dim=24)).eval().to(dtype)
    ids = prompt(70)
    want = logits_through(llama, ids, dense_cache(llama), 60, "eager").float()
    got = logits_through(llama, ids, cache_for(llama), 60, "sparsekern").float()
    torch.testing.assert_close(got, want, atol=0.05, rtol=0.05)


def test_lazy_keys_behave_as_tensors():
    cache = sk.BitmapKVCache(config(1), 0.5, max_length=70, window=4)
    x = torch.randn(2, 2, 20, 16)
    k, v = cache.update(x, x + 1, 0)
    assert k is x
    k, v = cache.update(x[:, :, :1], x[:, :, 1:2], 0)
    want_k, want_v = cache.stores[0].dense()
    assert (k.shape, k.dtype, k.device) == (want_k.shape, want_k.dtype, want_k.device)
    assert torch.equal(k + 0, want_k)
    assert torch.equal(k.view(4, 21, 16), want_k.view(4, 21, 16))
    assert torch.equal(v.transpose(1, 2), want_v.transpose(1, 2))
    assert torch.equal(torch.cat([k, v]), torch.cat([want_k, want_v]))
    assert "_LazyDense(K" in repr(k)
    q = torch.randn(2, 4, 1, 16)
    torch.testing.assert_close(
        functional.scaled_dot_product_attention(q, k, v, enable_gqa=True),
        functional.scaled_dot_product_attention(q, want_k, want_v, enable_gqa=True),
    )
    old, _ = cache.update(x[:, :, :1], x[:, :, :1], 0)
    cache.update(x[:, :, :1], x[:, :, :1], 0)
    with pytest.raises(RuntimeError, match="K and V must be used before the next update"):
        old + 0


def test_memory_is_counted(model):
    ids = prompt(300, batch=2)
    sizes = {}
    for sparsity in (0.0, 0.5, 0.7):
        cache = cache_for(model, sparsity, window=8)
        logits_through(model, ids, cache, 300, "sparsekern")
        report = sk.report(cache)
        assert report.nbytes == cache.nbytes == sum(layer.nbytes for layer in report.layers)
        assert report.dense_nbytes == cache.dense_nbytes == 2 * 2 * 2 * 2 * 300 * 16 * 4
        assert "bitmap_attention_f32" in str(report)
        store = cache.stores[0]
        keep = kept_channels(16, sparsity)
        page = 64 * 2 * (2 * keep * 4 + 2 * 2)  # tokens, heads, values, masks
        window, table = 2 * 2 * 2 * 8 * 16 * 4, 2 * 7 * 4
        assert store.nbytes == 2 * 5 * page + window + table
        sizes[sparsity] = cache.nbytes
    assert sizes[0.7] < sizes[0.5] < 0.7 * sizes[0.0]


def test_ten_thousand_appends_leak_nothing():
    pool = sk.BitmapKVPool(12, 2, 16, 8, 8, torch.float32)
    first = pool.pages.data_ptr()
    made = [PrunedKV(pool, 2, 200, 3) for _ in range(2)]
    x = torch.randn(2, 2, 1, 16)
    gc.collect()
    alive = sum(type(o) is torch.Tensor for o in gc.get_objects())
    for i in range(5000):
        for store in made:
            store.append(x, x)
            if store.length == 190:
                store.select([1, 0])
                store.crop(i % 5)
    gc.collect()
    assert sum(type(o) is torch.Tensor for o in gc.get_objects()) <= alive + 4
    assert pool.pages.data_ptr() == first
    assert pool.used == sum(len(row) for store in made for row in store.rows) <= 12
    del made, store
    assert (pool.used, pool.free) == (0, 12)


def test_a_pool_shared_by_caches_and_its_end(model):
    ids = prompt(100)
    pool = sk.BitmapKVPool(5, 2, 16, 8, 8, torch.float32)
    one = cache_for(model, 0.5, pool=pool)
    logits_through(model, ids, one, 100, "sparsekern")
    assert pool.used == 4
    two = cache_for(model, 0.5, pool=pool)
    with pytest.raises(MemoryError, match="2 pages must be free, got 1 of 5"):
        logits_through(model, ids, two, 100, "sparsekern")
    assert pool.used == 4
    want = cache_for(model, 0.5)
    expected = logits_through(model, ids, want, 100, "sparsekern")
    del one, two
    gc.collect()
    assert pool.used == 0
    again = cache_for(model, 0.5, pool=pool)
    assert torch.equal(logits_through(model, ids, again, 100, "sparsekern"), expected)
    other = cache_for(model, 0.7, pool=pool)
    with pytest.raises(ValueError, match="pool must have kv_heads, head_dim, k_keep, v_keep and"):
        logits_through(model, ids, other, 100, "sparsekern")


def test_pages_are_given_back_once():
    pool = sk.BitmapKVPool(3, 1, 8, 4, 4)
    taken = pool.allocate(2)
    pool.retain(taken)
    pool.release(taken)
    assert (pool.used, pool.nbytes) == (2, 2 * pool.page_bytes)
    pool.release(taken)
    for wrong in (taken[:1], [3], [-1]):
        with pytest.raises(ValueError, match="must be owned"):
            pool.release(wrong)
    with pytest.raises(MemoryError, match="4 pages must be free, got 3 of 3"):
        pool.allocate(4)


def test_saved_and_restored(model):
    ids = prompt(150)
    cache = cache_for(model, 0.5)
    logits_through(model, ids[:, :100], cache, 100, "sparsekern")
    state = cache.state_dict()
    want = logits_through(model, ids[:, 100:], cache, 1, "sparsekern")
    back = cache_for(model, 0.5)
    back.load_state_dict(copy.deepcopy(state))
    assert torch.equal(logits_through(model, ids[:, 100:], back, 1, "sparsekern"), want)


DAMAGE = {
    "packed": (lambda s: s.update(packed=101), "saved lengths must be"),
    "negative": (lambda s: s.update(packed=-1), "saved lengths must be"),
    "length": (lambda s: s.update(length=401), "saved lengths must be"),
    "window length": (lambda s: s.update(packed=10), "saved lengths must be"),
    "pages": (lambda s: s.update(pages=s["pages"][1:]), "saved pages must be"),
    "dtype": (
        lambda s: s.update({f"window_{x}": s[f"window_{x}"].half() for x in "kv"}),
        "saved dtype must be torch.float16, got torch.float32",
    ),
    "dtypes": (
        lambda s: s.update(window_v=s["window_v"].half()),
        r"saved window_v must be \[1, 2, 32, 16\] torch.float32, got .* torch.float16",
    ),
    "integers": (
        lambda s: s.update(window_k=s["window_k"].int()),
        "saved window_k and window_v: .*dtype must be float32, bfloat16 or float16",
    ),
    "type of length": (lambda s: s.update(length=100.0), "must be integers, got float and int"),
    "type of packed": (lambda s: s.update(packed=True), "must be integers, got int and bool"),
    "no length": (lambda s: s.pop("length"), "must be integers, got NoneType and int"),
    "type of keep": (lambda s: s.update(k_keep=torch.ones(2)), "saved k_keep must be 8, got"),
    "no pages": (lambda s: s.pop("pages"), "saved pages must be a torch.Tensor, got NoneType"),
    "no window": (lambda s: s.pop("window_v"), "window_k and window_v, got dict, Tensor, NoneType"),
    "scalar window": (
        lambda s: s.update(window_v=torch.tensor(1.0)),
        r"K and V must be .*, got \[1, 2, 32, 16\] and \[\]",
    ),
    "elsewhere": (
        lambda s: s.update(pages=s["pages"].to("meta")),
        "saved pages must be on the CPU, got meta",
    ),
    "other length": (
        lambda s: s.update(length=99),
        r"must all have the batch and length of the first, \(1, 100\), got \(1, 99\)",
    ),
    "keep": (lambda s: s.update(k_keep=7), "saved k_keep must be 8, got 7"),
    "mask": (
        lambda s: s["pages"].view(torch.uint8)[0, 1, 64 * 16 * 4 + 2 * 3].bitwise_xor_(1),
        "the K mask of sequence 0, head 1, token 3 must keep 8 channels, got",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_states_are_refused(model, case):
    cache = cache_for(model, 0.5)
    logits_through(model, prompt(100), cache, 100, "sparsekern")
    state = cache.state_dict()
    change, text = DAMAGE[case]
    change(state["layers"][1])
    back = cache_for(model, 0.5)
    with pytest.raises(ValueError, match=text):
        back.load_state_dict(state)
    assert all(layer.store is None for layer in back.layers)
    assert all(pool.used == 0 for pool in back._pools.values())
    with pytest.raises(ValueError, match="saved layers must be 2, got 1"):
        back.load_state_dict({"layers": state["layers"][:1]})


def test_all_layers_are_restored_or_none(model):
    cache = cache_for(model, 0.5)
    logits_through(model, prompt(100), cache, 100, "sparsekern")
    state = cache.state_dict()
    with pytest.raises(ValueError, match=r"of the first, \(1, 100\), got None"):
        cache.load_state_dict({"layers": [state["layers"][0], None]})
    assert cache.nbytes == 0
    for wrong, text in ((7, "got int"), ([], "must be a dict .*, got list")):
        with pytest.raises(ValueError, match=text):
            cache.load_state_dict({"layers": [state["layers"][0], wrong]})
    with pytest.raises(ValueError, match="saved layers must be 2, got NoneType"):
        cache.load_state_dict({})
    small = cache_for(model, 0.5, pool=sk.BitmapKVPool(3, 2, 16, 8, 8, torch.float32))
    with pytest.raises(MemoryError, match="2 pages must be free, got 1 of 3"):
        small.load_state_dict(state)
    assert small.nbytes == 0
    cache.load_state_dict({"layers": [None, None]})
    assert cache.get_seq_length() == 0


class Module(torch.nn.Module):
    """What attention is called by."""

    num_key_value_groups = 2

    def __init__(self, is_causal=True):
        super().__init__()
        self.is_causal = is_causal


@pytest.mark.parametrize("of_module", [True, False])
@pytest.mark.parametrize("given", [None, True, False])
def test_soft_cap_and_is_causal(of_module, given):
    q, k, v = (torch.randn(1, heads, 5, 16) for heads in (4, 2, 2))
    more = {} if given is None else {"is_causal": given}
    call = (Module(of_module), q, k, v, None)
    got, _ = attention(*call, softcap=1e6, **more)  # a cap that changes nothing
    want, _ = attention(*call, **more)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-3)
    alone = (Module(of_module), q[:, :, :1], k[:, :, :1], v[:, :, :1], None)
    causal = of_module if given is None else given
    first, _ = attention(*alone, softcap=1e6)
    assert torch.allclose(got[:, :1], first, atol=1e-4) == causal
    dropped, _ = attention(*call, softcap=1e6, dropout=1.0, **more)
    assert not dropped.any()


def decoding(batch=2, tokens=20):
    """q, and what update returned."""
    cache = sk.BitmapKVCache(config(1), 0.5, max_length=70, window=4)
    x = torch.randn(batch, 2, tokens, 16)
    cache.update(x, x, 0)
    k, v = cache.update(x[:, :, :1], x[:, :, :1], 0)
    return cache, torch.randn(batch, 4, 1, 16), k, v


@pytest.mark.parametrize("inference", [False, True])
def test_a_mask_that_is_written_to(inference):
    with torch.inference_mode(inference):
        _, q, k, v = decoding()
        mask = torch.ones(2, 1, 1, 21, dtype=torch.bool)
        for start in (0, 7, 12):
            mask[1, ..., :start] = False
            got, _ = attention(Module(), q, k, v, mask)
            want, _ = attention(Module(), q, k + 0, v + 0, mask)
            torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)


def test_one_mask_for_all_sequences():
    _, q, k, v = decoding()
    mask = torch.ones(1, 1, 1, 21, dtype=torch.bool)
    mask[..., :6] = False
    got, _ = attention(Module(), q, k, v, mask)
    want, _ = attention(Module(), q, k + 0, v + 0, mask)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)


def test_attention_refuses_keys_of_before():
    cache, q, k, v = decoding()
    cache.update(torch.zeros(2, 2, 1, 16), torch.zeros(2, 2, 1, 16), 0)
    with pytest.raises(RuntimeError, match="must be used before the next update, got 22 tokens"):
        attention(Module(), q, k, v, None)


def test_no_history_is_kept():
    cache = sk.BitmapKVCache(config(1), 0.5, max_length=70, window=4)
    for tokens in (20, 3, 1):
        x = torch.randn(2, 2, tokens, 16, requires_grad=True)
        cache.update(x * 2, x * 2, 0)
        store = cache.stores[0]
        assert not any(t.requires_grad for t in (store.window_k, store.window_v, store.pool.pages))


X = torch.zeros(1, 2, 3, 16)
UPDATES = {
    "head_dim": ((X[..., :12], X[..., :12]), ValueError, "head_dim must be a multiple of 8"),
    "k and v": ((X, X[..., :8]), ValueError, "K and V must be .* both the same"),
    "v heads": ((X, X[:, :1]), ValueError, r"V must be \[1, 2, 3, 16\], got \[1, 1, 3, 16\]"),
    "dtype": ((X.double(), X.double()), TypeError, "dtype must be float32, bfloat16 or float16"),
    "dtype mix": ((X, X.half()), TypeError, "V must be torch.float32, got torch.float16"),
    "too long": (
        (X.repeat(1, 1, 30, 1), X.repeat(1, 1, 30, 1)),
        ValueError,
        r"a sequence must have at most max_length \(80\) tokens, got 90",
    ),
    "device": (
        (X.to("meta"), X.to("meta")),
        NotImplementedError,
        r"K must be on a device with kernels \(cpu.*\), got meta",
    ),
}


@pytest.mark.parametrize("case", UPDATES)
def test_update_refuses(case):
    arguments, error, text = UPDATES[case]
    cache = sk.BitmapKVCache(config(1), max_length=80)
    with pytest.raises(error, match=text):
        cache.update(*arguments, 0)


def test_a_later_update_must_fit():
    cache = sk.BitmapKVCache(config(1), max_length=80)
    cache.update(X, X, 0)
    with pytest.raises(ValueError, match=r"K must be \[1, 2, 3, 16\], got \[2, 2, 3, 16\]"):
        cache.update(X.repeat(2, 1, 1, 1), X.repeat(2, 1, 1, 1), 0)
    with pytest.raises(TypeError, match=r"K must be torch.float32, got torch.bfloat16"):
        cache.update(X.bfloat16(), X.bfloat16(), 0)
    assert cache.get_seq_length() == 3


CACHES = {
    "sparsity": ({"sparsity": 1.0}, ValueError, r"sparsity must be in \[0, 1\), got 1.0"),
    "v_sparsity": ({"v_sparsity": -0.5}, ValueError, r"sparsity must be in \[0, 1\), got -0.5"),
    "max_length": ({"max_length": 0}, ValueError, "max_length must be at least 1, got 0"),
    "max_length type": ({"max_length": 9.0}, TypeError, "max_length must be an integer, got float"),
    "window": ({"window": 0}, ValueError, "window must be at least 1, got 0"),
}


@pytest.mark.parametrize("case", CACHES)
def test_cache_refuses(case):
    change, error, text = CACHES[case]
    with pytest.raises(error, match=text):
        sk.BitmapKVCache(config(), **{"max_length": 80, **change})


POOLS = {
    "pages": ((0, 1, 8, 4, 4), "pages and kv_heads must be at least 1, got 0 and 1"),
    "head_dim": ((1, 1, 12, 4, 4), "head_dim must be a multiple of 8 from 8 to 256, got 12"),
    "k_keep": ((1, 1, 8, 9, 4), r"k_keep must be in \[1, 8\], got 9"),
    "v_keep": ((1, 1, 8, 8, 0), r"v_keep must be in \[1, 8\], got 0"),
}


@pytest.mark.parametrize("case", POOLS)
def test_pool_refuses(case):
    arguments, text = POOLS[case]
    with pytest.raises(ValueError, match=text):
        sk.BitmapKVPool(*arguments)
    with pytest.raises(TypeError, match="dtype must be float32, bfloat16 or float16"):
        sk.BitmapKVPool(1, 1, 8, 4, 4, torch.float64)
