# SPDX-License-Identifier: Apache-2.0
"""What the command line works on: a model from a directory or an entry point, and its inputs."""

from __future__ import annotations

import importlib
import importlib.util
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from sparsekern._hf import CHECKPOINT, ModelDirectory
from sparsekern.checkpoint import load_file, save_file

WEIGHTS = "model.safetensors"
_OUTPUT_MARKS = (CHECKPOINT, WEIGHTS, f"{WEIGHTS}.index.json", "config.json", "modules.json")
_CALIBRATION_BATCH, _CALIBRATION_BATCHES = 8, 64


@dataclass
class Source:
    """A model to work on.

    Attributes:
        model: on the CPU, in evaluation mode.
        directory: where it came from; None for an entry point.
        examples: what an entry point returned beside the model, or None.
    """

    model: nn.Module
    directory: ModelDirectory | None = None
    examples: Any = None

    def save(self, target: Path, converted: bool) -> None:
        """Write the model and what loading it again takes into an existing empty folder."""
        if self.directory is not None and converted:
            self.directory.save_converted(self.model, target)
        elif self.directory is not None:
            self.directory.save_dense(self.model, target)
        elif converted:
            save_file(self.model, target / CHECKPOINT)
        else:
            safetensors.torch.save_model(self.model, str(target / WEIGHTS))


def open_source(model: Path | None, entry: str | None, weights: Path | None) -> Source:
    """The model that the arguments of a command name.

    Args:
        model: a directory, or None.
        entry: "module:function" or "file.py:function", or None; just one of both is given.
        weights: safetensors file to load into an entry point's model: dense, or a checkpoint of
            this library.
    """
    if (model is None) == (entry is None):
        raise ValueError("give either a model directory or --entry, one of both")
    if model is not None:
        if weights is not None:
            raise ValueError("--weights goes with --entry; a directory has its own")
        directory = ModelDirectory.open(model)
        if directory.converted:
            from sparsekern._hf import load_pretrained

            return Source(load_pretrained(model), directory)
        return Source(directory.load(), directory)
    assert entry is not None
    source = _call_entry(entry)
    if weights is not None:
        _load_weights(source.model, weights)
    return source


def _call_entry(entry: str) -> Source:
    where, _, name = entry.rpartition(":")
    if not where or not name.isidentifier():
        raise ValueError(f"--entry must be module:function or file.py:function, got {entry!r}")
    function = getattr(_import(where), name, None)
    if not callable(function):
        raise ValueError(f"--entry must name a function, got no function {name!r} in {where}")
    made = function()
    model, examples = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(model, nn.Module):
        got = type(model).__name__
        raise TypeError(
            f"--entry must return an nn.Module, or it and example inputs, got {got} from {entry}"
        )
    return Source(model.eval(), None, examples)


def _import(where: str) -> Any:
    if where.endswith(".py"):
        path = Path(where)
        if not path.is_file():
            raise FileNotFoundError(f"--entry file {path} must exist, got nothing there")
        # Under the file's own name, so that what is pickled there can be found by it.
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(where)
    except ModuleNotFoundError as error:
        raise ValueError(f"--entry module {where!r} must be importable, got: {error}") from error


def _load_weights(model: nn.Module, weights: Path) -> None:
    if not weights.is_file():
        raise FileNotFoundError(f"--weights file {weights} must exist, got nothing there")
    try:
        with safetensors.safe_open(weights, framework="pt") as file:
            packed = "sparsekern" in (file.metadata() or {})
    except Exception as error:
        raise ValueError(f"{weights} must be a safetensors file, got: {error}") from error
    if packed:
        load_file(model, weights)
    else:
        safetensors.torch.load_model(model, str(weights))


# --- inputs ---------------------------------------------------------------------------------------


def example_for(source: Source, batch: int, tokens: int, text: Path | None) -> Any:
    """One example input: the entry point's, the first lines of a text file, or random tokens.

    Args:
        source: the model.
        batch: sentences or images.
        tokens: per sentence; a longer text is cut.
        text: one sentence per line, or None.
    """
    if source.examples is not None:
        return source.examples
    if source.directory is None:
        raise ValueError("--entry must return (model, example_inputs) for this command, got none")
    config = _config(source)
    _check_length(config, tokens)
    if text is not None:
        lines = _lines(text)[:batch]
        return _tokenized(source, lines, tokens)
    generator = torch.Generator().manual_seed(0)
    name = _main_input(source)
    if name == "pixel_values":
        size = config.image_size
        height, width = size if isinstance(size, (tuple, list)) else (size, size)
        shape = (batch, getattr(config, "num_channels", 3), height, width)
        return {name: torch.rand(shape, generator=generator)}
    vocabulary = getattr(config, "vocab_size", None)
    if name != "input_ids" or not vocabulary:
        raise ValueError(
            f"{source.directory.path} takes {name}, for which no example can be made; use --entry "
            "with a function that returns (model, example_inputs)"
        )
    ids = torch.randint(0, vocabulary, (batch, tokens), generator=generator)
    example = {name: ids, "attention_mask": torch.ones_like(ids)}
    if getattr(config, "is_encoder_decoder", False):
        example["decoder_input_ids"] = ids[:, :1]
    return example


def calibration_for(source: Source, text: Path, tokens: int) -> list[Any]:
    """Batches of passages of equal length from a text file; at most 512 passages."""
    if source.directory is None:
        raise ValueError("--calibration reads text for a model directory, got --entry")
    words = " ".join(_lines(text)).split()
    _check_length(_config(source), tokens)
    # A word is at least one token, so that each passage but the last fills its length.
    passages = [" ".join(words[i : i + tokens]) for i in range(0, len(words), tokens)]
    if len(passages) > 1:
        passages.pop()
    passages = passages[: _CALIBRATION_BATCH * _CALIBRATION_BATCHES]
    return [
        _tokenized(source, passages[i : i + _CALIBRATION_BATCH], tokens)
        for i in range(0, len(passages), _CALIBRATION_BATCH)
    ]


def _lines(text: Path) -> list[str]:
    if not text.is_file():
        raise FileNotFoundError(f"text file {text} must exist, got nothing there")
    try:
        lines = [line.strip() for line in text.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{text} must be UTF-8 text, got: {error}") from error
    lines = [line for line in lines if line]
    if not lines:
        raise ValueError(f"{text} must hold text, got only empty lines")
    return lines


def _tokenized(source: Source, texts: list[str], tokens: int) -> dict[str, Any]:
    assert source.directory is not None
    tokenizer = source.directory.tokenizer()
    if len(texts) > 1 and tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    encoded = tokenizer(
        texts, return_tensors="pt", truncation=True, max_length=tokens, padding=len(texts) > 1
    )
    return dict(encoded)


def _inner(source: Source) -> nn.Module:
    """The transformers model itself, also inside a SentenceTransformer."""
    for module in source.model.modules():
        if hasattr(module, "main_input_name") and hasattr(module, "config"):
            return module
    raise ValueError("the model must hold a transformers model, got none")


def _config(source: Source) -> Any:
    return _inner(source).config


def _main_input(source: Source) -> str:
    return str(getattr(_inner(source), "main_input_name", "input_ids"))


def _check_length(config: Any, tokens: int) -> None:
    limit = getattr(config, "max_position_embeddings", None)
    if isinstance(limit, int) and tokens > limit > 0:
        raise ValueError(f"--tokens must be at most {limit} for this model, got {tokens}")


# --- output ---------------------------------------------------------------------------------------


def check_output(output: Path, source: Path | None, force: bool) -> None:
    """Refuse, before the work, an output directory that must not be written."""
    if not output.name or output.name == "..":
        raise ValueError(f"--output must name a new directory, got {output}")
    if not output.parent.is_dir():
        raise FileNotFoundError(f"--output must lie in an existing directory, got {output.parent}")
    if not output.exists():
        return
    if source is not None:
        inside = source.resolve().is_relative_to(output.resolve())
        if inside:
            raise ValueError(f"--output must not be or hold the model directory, got {output}")
    if not output.is_dir():
        raise FileExistsError(f"--output must be a directory, got the file {output}")
    if any(output.iterdir()):
        if not force:
            raise FileExistsError(f"--output {output} exists; --force replaces it")
        if not any((output / mark).is_file() for mark in _OUTPUT_MARKS):
            raise FileExistsError(
                f"--output {output} holds no model; --force replaces only model directories"
            )


@contextmanager
def whole_directory(output: Path) -> Iterator[Path]:
    """A folder to write into that becomes `output` at the end, or vanishes if that is not reached.

    What was at `output` stays until then.
    """
    suffix = secrets.token_hex(4)
    temporary = output.with_name(f".{output.name}.{suffix}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        if output.exists():
            old = output.with_name(f".{output.name}.{suffix}.old")
            os.replace(output, old)
            try:
                os.replace(temporary, output)
            except BaseException:
                os.replace(old, output)
                raise
            shutil.rmtree(old)
        else:
            os.replace(temporary, output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


ProgressSink = Callable[[int, int, str], None]
