# SPDX-License-Identifier: Apache-2.0
"""``sparsekern kv-demo``: what a pruned KV cache costs a small language model, and what it saves.

The model reads bytes, is trained on the docstrings of Python's standard library, and is measured on
those of other modules, through the cache: each token is given to the model alone, so that every
prediction attends to what was pruned.
"""

from __future__ import annotations

import ast
import json
import math
import sysconfig
import time
import warnings
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["Row", "docstrings", "run", "table"]

SPARSITIES = (0.0, 0.3, 0.5, 0.7)
LENGTH = 320  # bytes that the model sees at once
_BATCH = 8
_RATE = 2e-3
_PROMPT = "Return the"
_NEW_TOKENS = 120
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Row:
    """One cache.

    Attributes:
        cache: "dense", or "pruned" and the share of channels pruned.
        sparsity: that share; None for the dense cache.
        perplexity: per byte, of held-out text.
        nbytes: of the cache at its fullest, all layers and sequences.
        tokens_per_second: of the decoding that the perplexity was measured by.
        text: what the model writes after a short prompt, choosing the likeliest byte each time.
    """

    cache: str
    sparsity: float | None
    perplexity: float
    nbytes: int
    tokens_per_second: float
    text: str


def docstrings() -> tuple[str, str]:
    """Text to train on and to measure on, of different modules of the standard library."""
    sides: tuple[list[str], list[str]] = ([], [])
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if {"site-packages", "dist-packages", "test", "tests", "idle_test"} & set(parts):
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError, OSError):
            continue
        # A module and its pure-Python twin (io and _pyio) fall on the same side.
        unit = parts[0].removesuffix(".py").removeprefix("_py").lstrip("_")
        side = sides[zlib.crc32(unit.encode()) % 8 == 0]
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        for node in ast.walk(tree):
            text = ast.get_docstring(node) if isinstance(node, kinds) else None
            if text is not None and len(text) > 40:
                side.append(text)
    held_out = set(sides[1])
    return "\n\n".join(t for t in sides[0] if t not in held_out), "\n\n".join(sides[1])


def _bytes(text: str) -> Tensor:
    return torch.tensor([min(ord(c), 127) for c in text], dtype=torch.int64)


def _text(ids: Tensor) -> str:
    return "".join(map(chr, ids.tolist()))


def _new_model() -> Any:
    """A Llama over bytes: two layers, four query heads and two KV heads of 64."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=None,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config)


def _train(model: Any, data: Tensor, steps: int, progress: Progress) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=steps + 1)
    generator = torch.Generator().manual_seed(0)
    model.train()
    for step in range(steps):
        starts = torch.randint(len(data) - LENGTH - 1, (_BATCH, 1), generator=generator)
        ids = data[starts + torch.arange(LENGTH + 1)]
        logits = model(ids[:, :-1], use_cache=False).logits
        loss = functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        progress(step + 1, steps, f"training loss {float(loss.detach()):.2f}")
    model.eval()


def _model(folder: Path, data: Tensor, steps: int, progress: Progress) -> Any:
    """The model trained before with so many steps, or a new one, trained and kept."""
    from transformers import LlamaForCausalLM

    kept = folder / f"model-{steps}"
    if (kept / "config.json").exists():
        return LlamaForCausalLM.from_pretrained(kept).eval()
    model = _new_model()
    _train(model, data, steps, progress)
    model.save_pretrained(kept)
    return model


def _cache(model: Any, sparsity: float | None, length: int) -> Any:
    if sparsity is None:
        from transformers import DynamicCache

        model.set_attn_implementation("sdpa")
        return DynamicCache(config=model.config)
    from sparsekern._kv_cache import ATTENTION, BitmapKVCache

    model.set_attn_implementation(ATTENTION)
    return BitmapKVCache(model.config, sparsity, max_length=length)


def _cache_bytes(cache: Any) -> int:
    nbytes = getattr(cache, "nbytes", None)
    if nbytes is None:
        nbytes = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    return int(nbytes)


@torch.no_grad()
def _measure(model: Any, ids: Tensor, sparsity: float | None, tick: Callable[[], None]) -> Row:
    """Decode ids [sequences, tokens] one token at a time."""
    cache = _cache(model, sparsity, max(ids.shape[1], len(_PROMPT) + _NEW_TOKENS))
    total = 0.0
    begin = time.perf_counter()
    for at in range(ids.shape[1] - 1):
        logits = model(ids[:, at : at + 1], past_key_values=cache).logits[:, -1]
        total += float(functional.cross_entropy(logits.float(), ids[:, at + 1]))
        tick()
    steps = ids.shape[1] - 1
    seconds = time.perf_counter() - begin
    prompt = _bytes(_PROMPT)[None]
    written = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        past_key_values=_cache(model, sparsity, prompt.shape[1] + _NEW_TOKENS),
        max_new_tokens=_NEW_TOKENS,
        do_sample=False,
    )
    name = "dense" if sparsity is None else f"pruned {sparsity:.0%}"
    perplexity = math.exp(total / steps)
    speed = steps * ids.shape[0] / seconds
    return Row(name, sparsity, perplexity, _cache_bytes(cache), speed, _text(written[0]))


def run(folder: Path, steps: int, sequences: int, progress: Progress) -> list[Row]:
    """Train or load the model, measure every cache, write rows.json and, with matplotlib, a plot.

    Args:
        folder: for the model and the results.
        steps: of training.
        sequences: of `LENGTH` held-out bytes.
        progress: called with (done, total, text).

    Returns:
        The dense cache first.
    """
    train, held_out = docstrings()
    model = _model(folder, _bytes(train), steps, progress)
    data = _bytes(held_out)
    starts = torch.linspace(0, len(data) - LENGTH, sequences).long()[:, None]
    ids = data[starts + torch.arange(LENGTH)]
    rows: list[Row] = []
    for sparsity in (None, *SPARSITIES):
        done = 0

        def tick(name: float | None = sparsity) -> None:
            nonlocal done
            done += 1
            text = "measuring the dense cache" if name is None else f"measuring at {name:.0%}"
            progress(done, LENGTH - 1, text)

        rows.append(_measure(model, ids, sparsity, tick))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rows.json").write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    plot(rows, folder / "plot.png")
    return rows


def table(rows: list[Row]) -> str:
    """The rows as text, each beside the first."""
    base = rows[0]
    lines = [f"{'cache':12} {'perplexity':>10} {'':>8} {'cache bytes':>12} {'':>6} {'tokens/s':>9}"]
    for row in rows:
        more = row.perplexity / base.perplexity - 1
        share = row.nbytes / base.nbytes
        lines.append(
            f"{row.cache:12} {row.perplexity:10.4f} {more:+8.2%} {row.nbytes:12,} {share:6.1%} "
            f"{row.tokens_per_second:9,.0f}"
        )
    lines += ["", f"After {_PROMPT!r}:"]
    lines += [f"{row.cache:12} {row.text!r}" for row in rows]
    return "\n".join(lines)


def plot(rows: list[Row], path: Path) -> bool:
    """Perplexity, bytes and speed over sparsity; False where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    axes = figure.subplots(1, 3)
    base, pruned = rows[0], [row for row in rows if row.sparsity is not None]
    x = [row.sparsity for row in pruned]
    panels: tuple[tuple[str, Callable[[Row], float]], ...] = (
        ("perplexity per byte", lambda row: row.perplexity),
        ("cache, KB", lambda row: row.nbytes / 1024),
        ("tokens per second", lambda row: row.tokens_per_second),
    )
    for axis, (title, value) in zip(axes, panels, strict=True):
        axis.plot(x, [value(row) for row in pruned], "o-", color="#0072B2", label="pruned")
        axis.axhline(value(base), color="#595959", linestyle="--", label="dense cache")
        axis.set_title(title)
        axis.set_xlabel("share of channels pruned")
        axis.set_ylim(bottom=0)
        axis.legend()
    figure.savefig(path, dpi=150)
    return True
