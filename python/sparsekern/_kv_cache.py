# SPDX-License-Identifier: Apache-2.0
"""`BitmapKVCache`: a pruned KV cache for Hugging Face's ``generate()``; needs transformers.

Importing this registers the attention implementation "sparsekern" with transformers.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._pytree import tree_map
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from sparsekern import _core
from sparsekern._bitmap_kv import check_kernels, kept_channels
from sparsekern._kv_pool import BitmapKVPool
from sparsekern._kv_store import PrunedKV, pages_of
from sparsekern.report import LayerReport, Report

__all__ = ["ATTENTION", "BitmapKVCache"]

ATTENTION = "sparsekern"  # for attn_implementation and set_attn_implementation


class _View:
    """The cache of a layer after one update, made dense when somebody asks for it."""

    def __init__(self, store: PrunedKV) -> None:
        self.store, self.length = store, store.length
        self._dense: tuple[Tensor, Tensor] | None = None

    def dense(self, which: int) -> Tensor:
        if self._dense is None:
            self._dense = self.current().dense()
        return self._dense[which]

    def current(self) -> PrunedKV:
        """The store, unless it has moved on."""
        if self.store.length != self.length:
            raise RuntimeError(
                "BitmapKVCache: K and V must be used before the next update, got "
                f"{self.store.length} tokens, {self.length} then"
            )
        return self.store


class _LazyDense(Tensor):
    """K or V of a layer as `update` returns it: dense for whoever computes with it.

    Attention that knows the cache takes `source` instead, and nothing is ever unpacked.
    """

    source: _View
    which: int

    @staticmethod
    def __new__(cls, source: _View, which: int) -> _LazyDense:
        pool = source.store.pool
        shape = (source.store.batch, pool.kv_heads, source.length, pool.head_dim)
        make: Callable[..., _LazyDense] = torch.Tensor._make_wrapper_subclass
        self = make(cls, shape, dtype=pool.dtype, device=pool.device)
        self.source, self.which = source, which
        return self

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"_LazyDense({'KV'[self.which]}, {list(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        def dense(x: Any) -> Any:
            return x.source.dense(x.which) if isinstance(x, _LazyDense) else x

        return func(*tree_map(dense, args), **tree_map(dense, kwargs or {}))


class _Layer(CacheLayerMixin):  # type: ignore[misc]
    """One layer of a `BitmapKVCache`."""

    is_sliding = False
    is_croppable = True
    is_compileable = False

    def __init__(self, cache: BitmapKVCache) -> None:
        super().__init__()
        self._cache = weakref.proxy(cache)
        self.store: PrunedKV | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Take the shape from the first K."""
        self.store = self._cache._new_store(key_states, value_states)
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append tokens. Returns all K and V.

        A first prompt comes back exactly as it is, and later prompts follow what is left of the
        tokens before them: pruning comes after attention.
        """
        if self.store is None:
            self.lazy_initialization(key_states, value_states)
        store = self.store
        assert store is not None
        if key_states.shape[-2] == 1:
            store.append(key_states, value_states)
            view = _View(store)
            return _LazyDense(view, 0), _LazyDense(view, 1)
        if store.length == 0:
            store.append(key_states, value_states)
            return key_states, value_states
        k, v = store.dense()
        store.append(key_states, value_states)
        return torch.cat([k, key_states], dim=2), torch.cat([v, value_states], dim=2)

    def restore(self, state: Any, device: torch.device) -> None:
        """Take the tokens of a saved state, to a device."""
        saved = state if isinstance(state, dict) else {}
        k, v = saved.get("window_k"), saved.get("window_v")
        if not isinstance(k, Tensor) or not isinstance(v, Tensor):
            raise ValueError(
                "BitmapKVCache: a saved layer must be a dict with tensors window_k and window_v, "
                f"got {type(state).__name__}, {type(k).__name__}, {type(v).__name__}"
            )
        try:
            self.store = self._cache._new_store(k, v, device)
            self.is_initialized = True
        except (TypeError, NotImplementedError) as error:  # as of any other damage
            raise ValueError(f"BitmapKVCache: saved window_k and window_v: {error}") from error
        assert self.store is not None
        self.store.restore(state)

    def get_seq_length(self) -> int:
        """Tokens of each sequence."""
        return 0 if self.store is None else self.store.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of K for the mask of the next queries."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        """Tokens that a sequence may have."""
        length: int = self._cache.max_length
        return length

    def reset(self) -> None:
        """Forget all tokens, and the batch with them; pages go back to the pool."""
        self.store = None
        self.is_initialized = False

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens: -n of them."""
        if tokens_to_remove > 0:
            raise ValueError(
                "BitmapKVCache: tokens_to_remove must be at most 0 (the number to remove, "
                f"negative), got {tokens_to_remove}"
            )
        if self.store is not None:
            self.store.crop(self.store.length + tokens_to_remove)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Go on with these sequences (beams)."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each sequence `repeats` times."""
        if self.store is not None:
            batch = self.store.batch
            self.store.select([i for i in range(batch) for _ in range(repeats)])

    def batch_select_indices(self, indices: Tensor) -> None:
        """Go on with these sequences."""
        if self.store is not None:
            self.store.select(torch.arange(self.store.batch)[indices.cpu()].tolist())

    def offload(self) -> None:
        """Nothing: the pages stay where they are."""

    def prefetch(self) -> None:
        """Nothing: the pages stay where they are."""


class BitmapKVCache(Cache):  # type: ignore[misc]
    """A KV cache whose tokens are pruned, each by itself, when they leave a dense window.

    Of each token's K and V and each KV head the largest channels are kept (Mustafar, arXiv
    2505.22913), packed in pages of 64 tokens out of a pool. Pass it to ``generate()`` as
    ``past_key_values``. With ``model.set_attn_implementation("sparsekern")`` decoding reads the
    pages as they are; any other implementation gets K and V dense, which is right and slow.
    Prompts are attended to before they are pruned. On the CPU and CUDA devices, wherever K is;
    without ``torch.compile``, inference only.

    Args:
        config: of the model; its number of layers sizes the pool.
        sparsity: share of channels pruned, in [0, 1).
        max_length: tokens that a sequence may have.
        k_sparsity: of K, when not `sparsity`.
        v_sparsity: of V, when not `sparsity`.
        window: most recent tokens that stay dense, at least 1.
        pool: pages to share with other caches; None: as many as the first batch can fill.

    Raises:
        TypeError, ValueError: bad arguments.
    """

    def __init__(
        self,
        config: Any,
        sparsity: float = 0.5,
        *,
        max_length: int,
        k_sparsity: float | None = None,
        v_sparsity: float | None = None,
        window: int = 32,
        pool: BitmapKVPool | None = None,
    ) -> None:
        for name, value in (("max_length", max_length), ("window", window)):
            if isinstance(value, bool) or not isinstance(value, int):
                got = type(value).__name__
                raise TypeError(f"BitmapKVCache: {name} must be an integer, got {got}")
            if value < 1:
                raise ValueError(f"BitmapKVCache: {name} must be at least 1, got {value}")
        self.max_length, self.window = max_length, window
        self.k_sparsity = sparsity if k_sparsity is None else k_sparsity
        self.v_sparsity = sparsity if v_sparsity is None else v_sparsity
        for share in (self.k_sparsity, self.v_sparsity):
            kept_channels(8, share)
        self._given_pool = pool
        self._pools: dict[tuple[int, int, torch.dtype, torch.device], BitmapKVPool] = {}
        text = config.get_text_config(decoder=True)
        layers = [_Layer(self) for _ in range(text.num_hidden_layers)]
        super().__init__(layers=layers)

    def _new_store(self, k: Tensor, v: Tensor, device: torch.device | None = None) -> PrunedKV:
        """A store for such K and V, on their device or another."""
        if k.dim() != 4 or v.dim() != 4 or k.shape[-1] != v.shape[-1]:
            raise ValueError(
                "BitmapKVCache: K and V must be [batch, kv_heads, tokens, head_dim], both the "
                f"same, got {list(k.shape)} and {list(v.shape)}"
            )
        check_kernels("BitmapKVCache", "K", k.device)
        device = k.device if device is None else device
        batch, heads, _, head_dim = k.shape
        keeps = (kept_channels(head_dim, self.k_sparsity), kept_channels(head_dim, self.v_sparsity))
        pool = self._given_pool
        if pool is None:
            kind = (heads, head_dim, k.dtype, device)
            if kind not in self._pools:
                pages = len(self.layers) * batch * pages_of(self.max_length)
                self._pools[kind] = BitmapKVPool(pages, heads, head_dim, *keeps, k.dtype, device)
            pool = self._pools[kind]
        got = (pool.kv_heads, pool.head_dim, pool.k_keep, pool.v_keep, pool.dtype)
        if got != (heads, head_dim, *keeps, k.dtype):
            raise ValueError(
                "BitmapKVCache: pool must have kv_heads, head_dim, k_keep, v_keep and dtype "
                f"{(heads, head_dim, *keeps, k.dtype)}, got {got}"
            )
        if pool.device != device:
            raise ValueError(
                f"BitmapKVCache: pool must be on {device} like K and V, got {pool.device}"
            )
        return PrunedKV(pool, batch, self.max_length, self.window)

    @property
    def stores(self) -> list[PrunedKV]:
        """Of the layers that have tokens."""
        return [layer.store for layer in self.layers if layer.store is not None]

    @property
    def nbytes(self) -> int:
        """Of all layers: pages in use, windows, tables."""
        return sum(store.nbytes for store in self.stores)

    @property
    def dense_nbytes(self) -> int:
        """What a dense cache of these tokens takes."""
        return sum(store.dense_nbytes for store in self.stores)

    def state_dict(self) -> dict[str, Any]:
        """The tokens of all layers, for `load_state_dict` of a cache made in the same way."""
        return {"layers": [None if s is None else s.state() for s in self._stores()]}

    def load_state_dict(self, state: dict[str, Any], device: torch.device | str = "cpu") -> None:
        """Go on from a saved state, which is checked as untrusted input.

        Args:
            state: what `state_dict` returned; its tensors are on the CPU.
            device: where to go on; with a pool of one's own its device.

        Raises:
            ValueError: a state that is damaged or of another cache; the cache is empty then.
            MemoryError: the pool has too few pages; the same.
        """
        self.reset()
        pool = self._given_pool
        on = torch.empty(0, device=device).device if pool is None else pool.device  # with its index
        saved = state.get("layers")
        if not isinstance(saved, list) or len(saved) != len(self.layers):
            got = len(saved) if isinstance(saved, list) else type(saved).__name__
            raise ValueError(f"BitmapKVCache: saved layers must be {len(self.layers)}, got {got}")
        try:
            for layer, one in zip(self.layers, saved, strict=True):
                if one is not None:
                    layer.restore(one, on)
            sizes = [None if s is None else (s.batch, s.length) for s in self._stores()]
            for size in sizes[1:]:
                if size != sizes[0]:
                    raise ValueError(
                        "BitmapKVCache: saved layers must all have the batch and length of the "
                        f"first, {sizes[0]}, got {size}"
                    )
        except BaseException:
            self.reset()
            raise

    def _stores(self) -> list[PrunedKV | None]:
        return [layer.store for layer in self.layers]

    def report(self) -> Report:
        """A row for each layer that has tokens; what ``sk.report(cache)`` gives."""
        rows = []
        for i, store in enumerate(self._stores()):
            if store is None:
                continue
            pool = store.pool
            dtype = str(pool.dtype).removeprefix("torch.")
            rows.append(
                LayerReport(
                    name=f"layers.{i}",
                    format="bitmap_kv",
                    dtype=dtype,
                    block_rows=0,
                    shape=(2, store.batch, pool.kv_heads, store.length, pool.head_dim),
                    density=(pool.k_keep + pool.v_keep) / (2 * pool.head_dim),
                    kernel=_kernel(dtype, pool.device),
                    nbytes=store.nbytes,
                    dense_nbytes=store.dense_nbytes,
                    reason=f"{store.length - store.packed} tokens dense",
                )
            )
        return Report(tuple(rows), torch.get_num_threads())


def _kernel(dtype: str, device: torch.device) -> str:
    name: str = _core.bitmap_attention_kernel(dtype)
    return name if device.type == "cpu" else name.split("__")[0] + f"__{device.type}"


def attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention for transformers: one query token over a `BitmapKVCache` goes to the operator.

    Prompts, other caches, and masks that are not "from one token on" take dense attention.

    Args:
        module: of the model.
        query: [batch, heads, tokens, head_dim].
        key: what the cache's update returned; so is value.
        value: see there.
        attention_mask: None or [batch, 1, tokens, keys], True where attended to.
        scaling: of the scores; None: 1 / sqrt(head_dim).
        dropout: of the weights, dense only.
        kwargs: ``softcap`` is obeyed, with it ``is_causal``; the rest goes to dense attention.

    Returns:
        [batch, tokens, heads, head_dim] and None.
    """
    softcap = kwargs.pop("softcap", None)
    if kwargs.get("s_aux") is not None:
        raise NotImplementedError("attention sparsekern: attention sinks (s_aux) must be None")
    if isinstance(key, _LazyDense) and query.shape[2] == 1 and dropout == 0.0:
        starts, prefix = _starts(attention_mask)
        if starts is not None and starts.shape[0] == 1:  # one mask for the whole batch
            starts = starts.expand(query.shape[0]).contiguous()
        if prefix and kwargs.get("position_bias") is None:
            scale = query.shape[-1] ** -0.5 if scaling is None else scaling
            q = query[:, :, 0].contiguous()
            out, _ = key.source.current().attend(q, starts, scale, softcap or 0.0)
            return out.unsqueeze(1), None
    if softcap is not None:
        if attention_mask is None and query.shape[2] > 1:
            causal = kwargs.get("is_causal")
            if causal is None:
                causal = getattr(module, "is_causal", True)
            sizes = (query.shape[2], key.shape[2])
            attention_mask = _triangle(*sizes, query.device) if causal else None
        out = _capped(query, key, value, attention_mask, scaling, softcap, dropout)
        return out, None
    out, _ = sdpa_attention_forward(
        module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
    )
    return out, None


_last_mask: tuple[weakref.ref[Tensor], int, tuple[Tensor | None, bool]] | None = None


def _starts(mask: Tensor | None) -> tuple[Tensor | None, bool]:
    """First key attended to of each sequence, and whether the mask says nothing else.

    All layers get the same mask, so the last answer is kept until the mask is written to; inference
    tensors do not tell, and are looked at each time. Looking waits for a CUDA device.
    """
    global _last_mask
    if mask is None:
        return None, True
    version = None if mask.is_inference() else mask._version
    if _last_mask is not None and _last_mask[0]() is mask and _last_mask[1] == version:
        return _last_mask[2]
    answer: tuple[Tensor | None, bool] = (None, False)
    if mask.dtype == torch.bool and mask.dim() == 4 and mask.shape[1] == 1:
        attended = mask[:, 0, -1]
        if bool((attended[:, 1:] >= attended[:, :-1]).all()):
            answer = ((~attended).sum(-1), True)
    if version is not None:
        _last_mask = (weakref.ref(mask), version, answer)
    return answer


def _triangle(tokens: int, keys: int, device: torch.device) -> Tensor:
    """The causal mask [tokens, keys] of the last tokens."""
    return torch.ones(tokens, keys, dtype=torch.bool, device=device).tril(keys - tokens)


def _capped(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    softcap: float,
    dropout: float,
) -> Tensor:
    """Dense attention with a soft cap, which torch's own does not have."""
    head_dim = query.shape[3]
    groups = query.shape[1] // key.shape[1]
    k, v = (torch.repeat_interleave(x, groups, dim=1) for x in (key, value))
    scores = query @ k.transpose(-1, -2) * (head_dim**-0.5 if scaling is None else scaling)
    scores = softcap * torch.tanh(scores / softcap)
    if mask is not None:
        blocked = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else None
        scores = scores + mask if blocked is None else blocked
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    return (functional.dropout(weights, dropout) @ v).transpose(1, 2).contiguous()


AttentionInterface.register(ATTENTION, attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
