# SPDX-License-Identifier: Apache-2.0
"""Model directories as Hugging Face lays them out: transformers and sentence_transformers."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import safetensors
import safetensors.torch
from torch import nn

from sparsekern.checkpoint import load_file, save_file

__all__ = ["CHECKPOINT", "ModelDirectory", "load_pretrained"]

CHECKPOINT = "sparsekern.safetensors"
_WEIGHTS = "model.safetensors"
_WEIGHT_SUFFIXES = {".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".onnx", ".gguf"}
_SKIPPED_FOLDERS = {"onnx", "openvino", ".git", ".cache", "__pycache__"}


def load_pretrained(path: str | Path) -> nn.Module:
    """Load a model directory: one that ``sparsekern convert`` wrote, or a dense one.

    A converted directory has the configuration and the tokenizer of the model it was made from
    and, instead of its weights, ``sparsekern.safetensors``.

    Args:
        path: directory with config.json (a transformers model, of the class that its
            configuration names) or modules.json (a SentenceTransformer).

    Returns:
        The model on the CPU, in evaluation mode.

    Raises:
        FileNotFoundError: no such directory, or one without configuration or safetensors weights.
        ValueError: a damaged or unsafe file; weights that do not fit the configuration.
        ImportError: transformers or sentence_transformers is needed and not installed.
    """
    directory = ModelDirectory.open(path)
    if not directory.converted:
        return directory.load()
    with tempfile.TemporaryDirectory(prefix="sparsekern-") as temporary:
        skeleton = directory.skeleton(Path(temporary))
        return load_file(skeleton.load(complete=False), directory.path / CHECKPOINT).eval()


@dataclass(frozen=True)
class ModelDirectory:
    """A directory whose names and files were checked; nothing of it was run.

    Attributes:
        path: where it is.
        library: "transformers" or "sentence_transformers".
        weight_folders: relative folders of the transformers weights.
        converted: whether it holds a checkpoint of this library instead.
    """

    path: Path
    library: str
    weight_folders: tuple[str, ...]
    converted: bool

    @classmethod
    def open(cls, path: str | Path) -> ModelDirectory:
        """Look at a directory; raises what `load_pretrained` does."""
        root = Path(path)
        if not root.exists():
            raise FileNotFoundError(f"model directory {root} must exist, got nothing there")
        if not root.is_dir():
            raise NotADirectoryError(f"model must be a directory, got the file {root}")
        converted = (root / CHECKPOINT).is_file()
        if (root / "modules.json").is_file():
            folders = tuple(_transformer_folders(root))
            library = "sentence_transformers"
        elif (root / "config.json").is_file():
            folders, library = ("",), "transformers"
        else:
            raise FileNotFoundError(f"{root} must hold config.json or modules.json, got neither")
        if not converted:
            for folder in folders:
                _check_weights(root / folder)
        return cls(root, library, folders, converted)

    def load(self, complete: bool = True) -> nn.Module:
        """The dense model; `complete`: every weight must be in the files."""
        if self.converted:
            raise ValueError(f"{self.path} must hold a dense model, got a converted one")
        try:
            with _quiet():
                if self.library == "sentence_transformers":
                    return self._load_sentence_transformers().eval()
                return self._load_transformers(complete).eval()
        except safetensors.SafetensorError as error:
            raise ValueError(f"{self.path} must hold whole weights, got: {error}") from error

    def _load_sentence_transformers(self) -> nn.Module:
        model: nn.Module = _sentence_transformers().SentenceTransformer(
            str(self.path), device="cpu", local_files_only=True
        )
        return model

    def _load_transformers(self, complete: bool) -> nn.Module:
        transformers = _transformers()
        config = transformers.AutoConfig.from_pretrained(self.path, local_files_only=True)
        names = getattr(config, "architectures", None) or []
        class_ = getattr(transformers, names[0], None) if names else None
        # Since version 5 the weights' own dtype is the default.
        old = int(transformers.__version__.split(".")[0]) < 5
        options: dict[str, Any] = {"torch_dtype": "auto"} if old else {}
        model: nn.Module
        model, found = (class_ or transformers.AutoModel).from_pretrained(
            self.path,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
        missing = sorted(found["missing_keys"])
        if complete and missing:
            raise ValueError(
                f"{self.path} must hold all weights of {type(model).__name__}, got none for "
                f"{', '.join(missing[:3])} ({len(missing)} in all)"
            )
        return model

    def tokenizer(self) -> Any:
        """The tokenizer; ValueError when there is none."""
        try:
            with _quiet():
                return _transformers().AutoTokenizer.from_pretrained(
                    self.path / self.weight_folders[0], local_files_only=True
                )
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"{self.path} must hold a tokenizer, got: {error}") from error

    def skeleton(self, target: Path) -> ModelDirectory:
        """A copy without weights that the libraries load all the same, with random ones.

        An empty weights file is what both libraries take for "initialize everything".
        """
        self.copy_rest(target)
        for folder in self.weight_folders:
            (target / folder).mkdir(parents=True, exist_ok=True)
            safetensors.torch.save_file({}, target / folder / _WEIGHTS, metadata={"format": "pt"})
        return ModelDirectory.open(target)

    def copy_rest(self, target: Path) -> None:
        """Copy everything but the weights; what exists in `target` stays.

        Weights of a SentenceTransformer's other modules, such as Dense, are copied: its loader
        asks for them.
        """
        weight_folders = {self.path / folder for folder in self.weight_folders}
        for source in sorted(self.path.rglob("*")):
            relative = source.relative_to(self.path)
            if _SKIPPED_FOLDERS & set(relative.parts) or not source.is_file():
                continue
            is_weights = source.suffix in _WEIGHT_SUFFIXES or source.name.endswith(".index.json")
            if is_weights and (source.parent in weight_folders or source.parent == self.path):
                continue
            destination = target / relative
            if not destination.exists():
                destination.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, destination)

    def save_dense(self, model: nn.Module, target: Path) -> None:
        """Write the directory again with the model's dense weights as safetensors."""
        with _quiet():
            saver: Any = model
            if self.library == "sentence_transformers":
                saver.save_pretrained(str(target), create_model_card=False)
            else:
                saver.save_pretrained(str(target))
        self.copy_rest(target)

    def save_converted(self, model: nn.Module, target: Path) -> None:
        """Write the directory again with the model's packed and other weights in one file."""
        self.copy_rest(target)
        save_file(model, target / CHECKPOINT)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} must hold JSON, got: {error}") from error


def _check_inside(path: Path, name: object) -> str:
    """A relative name that stays in its folder, or ValueError."""
    if isinstance(name, str) and "\\" not in name and ":" not in name:
        parts = PurePosixPath(name)
        if not parts.is_absolute() and ".." not in parts.parts:
            return name
    raise ValueError(f"{path} must name files inside its folder, got {name!r}")


def _transformer_folders(root: Path) -> Iterator[str]:
    listed = _read_json(root / "modules.json")
    if not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
        raise ValueError(f"{root / 'modules.json'} must hold a list of modules")
    folders = [_check_inside(root / "modules.json", entry.get("path", "")) for entry in listed]
    found = [f for f in folders if _is_transformer(root / f / "config.json")]
    if not found:
        raise ValueError(f"{root} must hold a transformers model, got none in modules.json")
    yield from found


def _is_transformer(config: Path) -> bool:
    if not config.is_file():
        return False
    fields = _read_json(config)
    return isinstance(fields, dict) and "model_type" in fields


def _check_weights(folder: Path) -> None:
    index = folder / f"{_WEIGHTS}.index.json"
    if index.is_file():
        fields = _read_json(index)
        shards = fields.get("weight_map") if isinstance(fields, dict) else None
        if not isinstance(shards, dict):
            raise ValueError(f"{index} must hold an object weight_map")
        for shard in sorted({_check_inside(index, name) for name in shards.values()}):
            if not (folder / shard).is_file():
                raise FileNotFoundError(f"{folder / shard} must exist, as {index.name} names it")
    elif not (folder / _WEIGHTS).is_file():
        others = sorted(f.name for f in folder.iterdir() if f.suffix in _WEIGHT_SUFFIXES)
        raise FileNotFoundError(
            f"{folder} must hold {_WEIGHTS} or its shards, got {', '.join(others) or 'no weights'}"
        )


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ImportError("a directory with config.json needs the package transformers") from error
    return transformers


def _sentence_transformers() -> Any:
    try:
        import sentence_transformers
    except ImportError as error:
        raise ImportError(
            "a directory with modules.json needs the package sentence-transformers"
        ) from error
    return sentence_transformers


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the libraries' progress bars and remarks on weights that are filled in later."""
    logging = _transformers().utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
