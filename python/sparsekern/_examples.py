# SPDX-License-Identifier: Apache-2.0
"""Example inputs as users give them, as a list of what `feed` takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn


def as_examples(operator: str, model: nn.Module, example_inputs: Any) -> list[Any]:
    """A list of inputs: of a list its elements, of anything else the one.

    Strings, one or a list of them, are a batch of sentences, which a SentenceTransformer's own
    preprocessing turns into tensors.

    Raises:
        TypeError: strings for another kind of model.
        ValueError: an empty list.
    """
    if example_inputs is None:
        return []
    if isinstance(example_inputs, str):
        return [_sentences(operator, model, [example_inputs])]
    if not isinstance(example_inputs, list):
        return [example_inputs]
    if not example_inputs:
        raise ValueError(f"{operator}: example_inputs must hold at least one input, got none")
    if all(isinstance(one, str) for one in example_inputs):
        return [_sentences(operator, model, example_inputs)]
    return [
        _sentences(operator, model, one)
        if isinstance(one, list) and one and all(isinstance(text, str) for text in one)
        else one
        for one in example_inputs
    ]


def is_sentence_transformer(model: nn.Module) -> bool:
    """Whether a model is of sentence_transformers, which need not be installed."""
    return any(
        base.__name__ == "SentenceTransformer"
        and base.__module__.startswith("sentence_transformers")
        for base in type(model).__mro__
    )


def _sentences(operator: str, model: nn.Module, texts: list[str]) -> Mapping[str, Any]:
    if not is_sentence_transformer(model):
        raise TypeError(
            f"{operator}: example_inputs must be tensors for a {type(model).__name__}, got "
            "strings; tokenize them first"
        )
    # Newer versions call it so, older ones "tokenize".
    preprocess: Any = getattr(model, "preprocess", None) or model.tokenize
    features: Mapping[str, Any] = preprocess(texts)
    return features
