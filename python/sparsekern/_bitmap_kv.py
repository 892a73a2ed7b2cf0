# SPDX-License-Identifier: Apache-2.0
"""Functions and fake kernels of pruned KV caches: append, unpack, decode attention.

Tokens are pruned one by one, by magnitude, as in Mustafar (arXiv 2505.22913), and packed in the
format ``bitmap_kv`` of docs/formats.md. `BitmapKVCache` manages pages, tables and windows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from sparsekern._library import translated

PAGE_TOKENS = 64
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_append = torch.ops.sparsekern.bitmap_kv_append.default
_unpack = torch.ops.sparsekern.bitmap_kv_unpack.default
_attention = torch.ops.sparsekern.bitmap_attention.default
_on_cuda = torch._C._dispatch_has_kernel_for_dispatch_key("sparsekern::bitmap_attention", "CUDA")
DEVICES = ("cpu", "cuda") if _on_cuda else ("cpu",)  # types of devices that have kernels


def page_elements(head_dim: int, k_keep: int, v_keep: int, dtype: torch.dtype) -> int:
    """Elements of ``dtype`` in a page (64 tokens) of one KV head."""
    masks = 2 * PAGE_TOKENS * (head_dim // 8)
    return PAGE_TOKENS * (k_keep + v_keep) + masks // dtype.itemsize


def kept_channels(head_dim: int, sparsity: float) -> int:
    """Channels kept of head_dim at a sparsity in [0, 1): rounded to the nearest, at least 1."""
    if not 0.0 <= sparsity < 1.0:
        raise ValueError(f"sparsity must be in [0, 1), got {sparsity}")
    return max(1, int((1.0 - sparsity) * head_dim + 0.5))


def bitmap_kv_append(
    k: Tensor,
    v: Tensor,
    pages: Tensor,
    table: Tensor,
    lengths: Tensor,
    k_keep: int,
    v_keep: int,
) -> None:
    """Prune tokens and pack them into pages, in place, behind those that are there.

    Of each token and head the k_keep (v_keep) channels with the largest magnitudes are kept.
    Magnitudes are compared as the bits without the sign, so NaN counts as largest; ties are kept
    from the lowest channel on. ``lengths`` is not changed.

    On CUDA nobody waits for the device, so what table and lengths hold raises nothing: a sequence
    whose length leaves no room for the tokens gets none of them, and a token whose page does not
    exist is not written.

    Args:
        k: [batch, kv_heads, tokens, head_dim], float32, bfloat16 or float16; any strides.
        v: the same.
        pages: [pages, kv_heads, `page_elements`], the dtype of k; contiguous; written to.
        table: [batch, pages of a sequence], int32: which pages a sequence has.
        lengths: [batch], int64: tokens that its pages hold already.
        k_keep: 1 to head_dim.
        v_keep: 1 to head_dim.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: shapes that do not fit, a table that is too short or names no page.
        NotImplementedError: a device that has no kernel.
    """
    tensors = {"k": k, "v": v, "pages": pages, "table": table, "lengths": lengths}
    _check("bitmap_kv_append", tensors)
    try:
        _append(k, v, pages, table, lengths, k_keep, v_keep)
    except RuntimeError as error:
        raise translated(error) from None


def bitmap_kv_unpack(
    pages: Tensor,
    table: Tensor,
    lengths: Tensor,
    head_dim: int,
    k_keep: int,
    v_keep: int,
    tokens: int,
) -> tuple[Tensor, Tensor]:
    """The dense K and V of the pages, and the check of a restored cache.

    On CUDA nothing is raised for what tensors hold: a token whose mask or page is wrong is NaN, and
    so is all of a sequence with a length that is not possible.

    Args:
        pages: as for `bitmap_kv_append`; so are table, lengths, k_keep and v_keep.
        table: see there.
        lengths: see there; at most ``tokens``.
        head_dim: a multiple of 8, 8 to 256.
        k_keep: see there.
        v_keep: see there.
        tokens: of the result.

    Returns:
        K and V [batch, kv_heads, tokens, head_dim]; 0 where pruned and beyond a length.

    Raises:
        ValueError: also where a mask keeps another number of channels than it must.
        TypeError, NotImplementedError: as `bitmap_kv_append`.
    """
    _check("bitmap_kv_unpack", {"pages": pages, "table": table, "lengths": lengths})
    try:
        dense: tuple[Tensor, Tensor] = _unpack(
            pages, table, lengths, head_dim, k_keep, v_keep, tokens
        )
        return dense
    except RuntimeError as error:
        raise translated(error) from None


def bitmap_attention(
    q: Tensor,
    pages: Tensor,
    table: Tensor,
    lengths: Tensor,
    k_keep: int,
    v_keep: int,
    window: tuple[Tensor, Tensor, Tensor] | None = None,
    starts: Tensor | None = None,
    scale: float | None = None,
    softcap: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Decode attention: one query token a sequence, over its pages and a dense window behind them.

    What was pruned contributes nothing, whatever q holds there; sums are in float32 and do not
    depend on the number of threads. Query heads that share a KV head lie one behind the other.

    On CUDA a sequence with a length that is not possible, or with a page that does not exist,
    answers NaN; calls are deterministic and may be captured in a graph.

    Args:
        q: [batch, heads, head_dim], the dtype of pages; heads a multiple of kv_heads.
        pages: as for `bitmap_kv_append`; so are table, lengths, k_keep and v_keep.
        table: see there.
        lengths: see there.
        k_keep: see there.
        v_keep: see there.
        window: K and V [batch, kv_heads, slots, head_dim], contiguous, where token p of a
            sequence (counted from its first in the pages) lies in slot p % slots, and lengths
            [batch], int64, 0 to slots.
        starts: [batch], int64: the first token attended to (left padding, sliding windows).
        scale: of the scores; None: 1 / sqrt(head_dim).
        softcap: scores become softcap * tanh(scores / softcap), finite; 0: they do not.

    Returns:
        [batch, heads, head_dim] in the dtype of q, and the natural logarithm of the sum of
        exp(scores), [batch, heads] float32. A sequence without tokens: zeros and -inf; one whose
        scores are all -inf: NaN and -inf.

    Raises:
        TypeError, ValueError, NotImplementedError: as `bitmap_kv_append`.
    """
    tensors: dict[str, object] = {"q": q, "pages": pages, "table": table, "lengths": lengths}
    window_k, window_v, window_lengths = window if window is not None else (None, None, None)
    if window is not None:
        names = ("window_k", "window_v", "window_lengths")
        tensors |= dict(zip(names, window, strict=True))
    if starts is not None:
        tensors["starts"] = starts
    _check("bitmap_attention", tensors)
    if scale is None:
        scale = q.shape[-1] ** -0.5
    try:
        result: tuple[Tensor, Tensor] = _attention(
            q,
            pages,
            table,
            lengths,
            k_keep,
            v_keep,
            window_k,
            window_v,
            window_lengths,
            starts,
            scale,
            softcap,
        )
        return result
    except RuntimeError as error:
        raise translated(error) from None


def _check(operator: str, tensors: Mapping[str, object]) -> None:
    """All tensors, on one device that has a kernel (or meta, for shapes)."""
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            got = type(tensor).__name__
            raise TypeError(f"{operator}: {name} must be a torch.Tensor, got {got}")
        if tensor.device.type != "meta":
            check_kernels(operator, name, tensor.device)
        _check_device(operator, name, tensor, tensors["pages"])


def check_kernels(operator: str, name: str, device: torch.device) -> None:
    """Raise NotImplementedError for a device without kernels."""
    if device.type not in DEVICES:
        raise NotImplementedError(
            f"{operator}: {name} must be on a device with kernels ({' and '.join(DEVICES)}), "
            f"got {device}"
        )


def _check_device(operator: str, name: str, tensor: Tensor, pages: object) -> None:
    assert isinstance(pages, Tensor)
    if tensor.device != pages.device:
        raise ValueError(
            f"{operator}: {name} must be on {pages.device} like pages, got {tensor.device}"
        )


def check_channels(operator: str, head_dim: int, k_keep: int, v_keep: int) -> None:
    """Refuse head dimensions, and numbers of kept channels, that pages cannot have."""
    if head_dim % 8 != 0 or not 8 <= head_dim <= 256:
        raise ValueError(
            f"{operator}: head_dim must be a multiple of 8 from 8 to 256, got {head_dim}"
        )
    for name, keep in (("k_keep", k_keep), ("v_keep", v_keep)):
        if not 1 <= keep <= head_dim:
            raise ValueError(f"{operator}: {name} must be in [1, {head_dim}], got {keep}")


def _check_fake(
    operator: str,
    pages: Tensor,
    table: Tensor,
    lengths: Tensor,
    head_dim: int,
    keeps: tuple[int, int],
    **others: Tensor | None,
) -> None:
    """What can be checked without data."""
    rest = {"table": table, "lengths": lengths, **others}
    for name, tensor in rest.items():
        if tensor is not None:
            _check_device(operator, name, tensor, pages)
    if pages.dtype not in _DTYPES:
        raise TypeError(
            f"{operator}: pages must be float32, bfloat16 or float16, got {pages.dtype}"
        )
    for name, tensor in others.items():
        if tensor is None:
            continue
        want = torch.int64 if name in ("window_lengths", "starts") else pages.dtype
        if tensor.dtype != want:
            raise TypeError(f"{operator}: {name} must be {want}, got {tensor.dtype}")
    if table.dtype != torch.int32 or lengths.dtype != torch.int64:
        raise TypeError(
            f"{operator}: table must be int32 and lengths int64, got {table.dtype} and "
            f"{lengths.dtype}"
        )
    check_channels(operator, head_dim, *keeps)
    elements = page_elements(head_dim, *keeps, pages.dtype)
    if pages.dim() != 3 or pages.shape[2] != elements:
        raise ValueError(
            f"{operator}: pages must be [pages, kv_heads, {elements}], got {list(pages.shape)}"
        )
    if table.dim() != 2 or list(lengths.shape) != [table.shape[0]]:
        raise ValueError(
            f"{operator}: table must be [batch, pages] and lengths [batch], got "
            f"{list(table.shape)} and {list(lengths.shape)}"
        )


def _check_rows(
    operator: str, batch: int, kv_heads: int, head_dim: int, **rows: Tensor | None
) -> None:
    tokens = None
    for name, tensor in rows.items():
        if tensor is None:
            continue
        tokens = tensor.shape[2] if tokens is None and tensor.dim() == 4 else tokens
        if list(tensor.shape) != [batch, kv_heads, tokens, head_dim]:
            raise ValueError(
                f"{operator}: {name} must be [{batch}, {kv_heads}, tokens, {head_dim}], got "
                f"{list(tensor.shape)}"
            )


def _append_fake(
    k: Tensor,
    v: Tensor,
    pages: Tensor,
    table: Tensor,
    lengths: Tensor,
    k_keep: int,
    v_keep: int,
) -> None:
    operator = "bitmap_kv_append"
    if k.dim() != 4:
        raise ValueError(
            f"{operator}: k must be [batch, kv_heads, tokens, head_dim], got {list(k.shape)}"
        )
    head_dim = k.shape[3]
    _check_fake(operator, pages, table, lengths, head_dim, (k_keep, v_keep), k=k, v=v)
    _check_rows(operator, table.shape[0], pages.shape[1], head_dim, k=k, v=v)
    room = table.shape[1] * PAGE_TOKENS
    if k.shape[2] > room and table.shape[0] > 0:
        raise ValueError(f"{operator}: tokens must be at most {room}, got {k.shape[2]}")


def _unpack_fake(
    pages: Tensor,
    table: Tensor,
    lengths: Tensor,
    head_dim: int,
    k_keep: int,
    v_keep: int,
    tokens: int,
) -> tuple[Tensor, Tensor]:
    operator = "bitmap_kv_unpack"
    _check_fake(operator, pages, table, lengths, head_dim, (k_keep, v_keep))
    if tokens < 0:
        raise ValueError(f"{operator}: tokens must be at least 0, got {tokens}")
    shape = (table.shape[0], pages.shape[1], tokens, head_dim)
    return pages.new_empty(shape), pages.new_empty(shape)


def _attention_fake(
    q: Tensor,
    pages: Tensor,
    table: Tensor,
    lengths: Tensor,
    k_keep: int,
    v_keep: int,
    window_k: Tensor | None,
    window_v: Tensor | None,
    window_lengths: Tensor | None,
    starts: Tensor | None,
    scale: float,
    softcap: float = 0.0,
) -> tuple[Tensor, Tensor]:
    operator = "bitmap_attention"
    if q.dim() != 3:
        raise ValueError(f"{operator}: q must be [batch, heads, head_dim], got {list(q.shape)}")
    counts = {"window_lengths": window_lengths, "starts": starts}
    dense = {"window_k": window_k, "window_v": window_v}
    batch, heads, head_dim = q.shape
    kv_heads = pages.shape[1] if pages.dim() == 3 else 0
    _check_fake(operator, pages, table, lengths, head_dim, (k_keep, v_keep), q=q, **dense, **counts)
    _check_rows(operator, batch, pages.shape[1], head_dim, **dense)
    if batch != table.shape[0] or heads < 1 or kv_heads < 1 or heads % kv_heads != 0:
        raise ValueError(
            f"{operator}: q must be [{table.shape[0]}, a multiple of {kv_heads}, head_dim], "
            f"got {list(q.shape)}"
        )
    if not 0.0 <= softcap < math.inf:
        raise ValueError(f"{operator}: softcap must be finite and at least 0, got {softcap}")
    return q.new_empty(q.shape), q.new_empty((batch, heads), dtype=torch.float32)


for _name, _fake in (
    ("bitmap_kv_append", _append_fake),
    ("bitmap_kv_unpack", _unpack_fake),
    ("bitmap_attention", _attention_fake),
):
    torch.library.register_fake(f"sparsekern::{_name}")(_fake)
