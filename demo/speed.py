# SPDX-License-Identifier: Apache-2.0
"""The contestants whose end-to-end latency is measured, the inputs they run on, and bytes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from batches import Batch
from model import run
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    """A workload: `texts` of `tokens` each, and about how many `seconds` to spend on it."""

    texts: int
    tokens: int
    seconds: float

    @property
    def label(self) -> str:
        """As it is printed."""
        return f"{self.texts} x {self.tokens} tokens"


@dataclass(frozen=True)
class Shapes:
    """`convert`: what conversion decides by, and the layers are reported for the last of;
    `measure`: the whole model."""

    convert: tuple[Shape, ...]
    measure: tuple[Shape, ...]


FULL = Shapes(
    convert=(Shape(1, 16, 0.0), Shape(32, 128, 6.0)),
    measure=(Shape(1, 16, 12.0), Shape(32, 128, 45.0)),
)
FAST = Shapes(
    convert=(Shape(1, 16, 0.0), Shape(8, 128, 1.5)),
    measure=(Shape(1, 16, 3.0), Shape(32, 128, 12.0)),
)


def workload(sequences: Sequence[Sequence[int]], shape: Shape) -> Batch:
    """Real text, run together and cut to rows of exactly `shape.tokens`."""
    stream: list[int] = []
    for sequence in sequences:
        stream.extend(sequence)
        if len(stream) >= shape.texts * shape.tokens:
            break
    while len(stream) < shape.texts * shape.tokens:
        stream.extend(stream)
    ids = torch.tensor(stream[: shape.texts * shape.tokens]).reshape(shape.texts, shape.tokens)
    return Batch(ids, torch.ones_like(ids))


def torch_call(model: SentenceTransformer, batch: Batch) -> Callable[[], Tensor]:
    """A call of the model without gradients."""

    def call() -> Tensor:
        with torch.inference_mode():
            return run(model, batch)

    return call


class _Traced(nn.Module):
    """The encoder with plain tensors in and out, for the ONNX export."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        state = self.bert(input_ids=ids, attention_mask=mask).last_hidden_state
        weight = mask.unsqueeze(-1).to(state.dtype)
        return nn.functional.normalize((state * weight).sum(1) / weight.sum(1), dim=1)


def export_onnx(dense: SentenceTransformer, path: Path) -> None:
    """The dense model as an ONNX file (needs the onnx package)."""
    ids = torch.ones(2, 16, dtype=torch.int64)
    names = {0: "texts", 1: "tokens"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _Traced(dense[0].auto_model).eval(),
            (ids, torch.ones_like(ids)),
            str(path),
            input_names=["ids", "mask"],
            output_names=["embedding"],
            dynamic_axes={"ids": names, "mask": names, "embedding": {0: "texts"}},
            dynamo=False,
        )


def onnxruntime_call(path: Path, batch: Batch) -> Callable[[], Any]:
    """The dense model in onnxruntime, with torch's number of threads."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    # Else its threads spin on after a run and take the processors from whoever is timed next: dense
    # torch took 48 ms instead of 20.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feed = {"ids": batch.ids.numpy(), "mask": batch.mask.numpy()}
    return lambda: session.run(None, feed)[0]


def bytes_in_memory(model: nn.Module) -> int:
    """Bytes of all parameters and buffers, tensors shared between modules counted once."""
    storages: dict[int, int] = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())
