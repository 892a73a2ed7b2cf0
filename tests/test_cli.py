# SPDX-License-Identifier: Apache-2.0
"""The command line on small models made here: nothing is downloaded."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import sparsekern as sk
import torch
from sparsekern import _core, measure
from sparsekern._hf import CHECKPOINT, load_pretrained
from sparsekern.cli import app
from sparsekern.nn import CSRLinear
from typer.testing import CliRunner

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

RUN = CliRunner()
WORDS = [f"word{i}" for i in range(90)]


def run(*arguments: object, code: int = 0) -> str:
    """The output of a command that ends with `code`; an error is one line."""
    result = RUN.invoke(app, [str(argument) for argument in arguments])
    text: str = result.output
    assert result.exit_code == code, text
    if code == 2:
        assert "Traceback" not in text
        assert len([line for line in text.splitlines() if line.startswith("error: ")]) == 1
    return text


@pytest.fixture(autouse=True)
def _short_limits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(measure, "read_bandwidth", lambda: 1e10)
    monkeypatch.setattr(measure, "fma_peak", lambda: 1e11)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def tiny_config() -> transformers.BertConfig:
    return transformers.BertConfig(
        vocab_size=100,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )


def write_tokenizer(folder: Path) -> None:
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(str(folder))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A masked language model: its head is tied to the embedding."""
    folder = tmp_path_factory.mktemp("hf") / "bert"
    torch.manual_seed(0)
    transformers.BertForMaskedLM(tiny_config()).save_pretrained(str(folder))
    write_tokenizer(folder)
    (folder / "notes.txt").write_text("kept")
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n".join(" ".join(WORDS[i : i + 12]) for i in range(0, 72, 3)))
    return path


@pytest.fixture(scope="module")
def pruned(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("pruned") / "out"
    run("prune", bert, "-o", output, "--sparsity", 0.75)
    return output


@pytest.fixture(scope="module")
def converted(pruned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("converted") / "out"
    run("convert", pruned, "-o", output, "--policy", "always")
    return output


def outputs(model: torch.nn.Module) -> torch.Tensor:
    ids = torch.arange(24).reshape(2, 12)
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits


# --- Hugging Face directories ---------------------------------------------------------------------


def test_prune_writes_the_directory_again(bert: Path, pruned: Path):
    weights = safetensors.torch.load_file(pruned / "model.safetensors")
    names = [name for name in weights if name.endswith("query.weight")]
    assert names
    for name in names:
        assert (weights[name] == 0).float().mean() == pytest.approx(0.75)
    embedding = next(t for name, t in weights.items() if "word_embeddings" in name)
    assert (embedding == 0).float().mean() < 0.1  # also the head's weight, which is tied to it
    assert (pruned / "notes.txt").read_text() == "kept"
    assert transformers.AutoTokenizer.from_pretrained(str(pruned))("word3").input_ids == [5]
    assert {f.name for f in bert.iterdir()} <= {f.name for f in pruned.iterdir()}


def test_convert_writes_a_directory_that_loads_again(pruned: Path, converted: Path):
    assert not (converted / "model.safetensors").exists()
    assert (converted / CHECKPOINT).is_file()
    model = load_pretrained(converted)
    assert type(model) is transformers.BertForMaskedLM
    assert not model.training
    assert isinstance(model.bert.encoder.layer[0].attention.self.query, CSRLinear)
    dense = load_pretrained(pruned)
    assert not any(isinstance(m, CSRLinear) for m in dense.modules())
    torch.testing.assert_close(outputs(model), outputs(dense), rtol=1e-4, atol=1e-5)
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    assert head.weight is embedding.weight


def test_convert_measures_an_example(pruned: Path, text: Path, tmp_path: Path):
    for name, options in {"random": (), "text": ("--text", text)}.items():
        shown = run(
            "convert", pruned, "-o", tmp_path / name, "--batch", 2, "--tokens", 8,
            "--seconds", 0, "--threads", 1, *options,
        )  # fmt: skip
        assert "whole model: dense" in shown
        assert (tmp_path / name / CHECKPOINT).is_file()


def test_prune_with_calibration_pattern_and_globs(bert: Path, text: Path, tmp_path: Path):
    shown = run(
        "prune", bert, "-o", tmp_path / "out", "--score", "wanda", "--pattern", "block4",
        "--sparsity", 0.5, "--calibration", text, "--tokens", 16,
        "--include", "*.layer.*", "--exclude", "*.key",
    )  # fmt: skip
    assert "Block(4)" in shown
    assert "attention.self.query" in shown
    assert "attention.self.key" not in shown
    model = load_pretrained(tmp_path / "out")
    kept = model.bert.encoder.layer[0].intermediate.dense.weight.reshape(-1, 4, 32) != 0
    assert (kept.any(1) == kept.all(1)).all()


def test_prune_to_n_of_every_m(bert: Path, tmp_path: Path):
    shown = run("prune", bert, "-o", tmp_path / "half", "--pattern", "bitmap")
    assert "Bitmap" in shown
    half = load_pretrained(tmp_path / "half").bert.encoder.layer[0].intermediate.dense.weight
    assert int((half == 0).sum()) == half.numel() // 2
    shown = run("prune", bert, "-o", tmp_path / "out", "--pattern", "1:4")
    assert "NM(1:4)" in shown
    model = load_pretrained(tmp_path / "out")
    groups = model.bert.encoder.layer[0].intermediate.dense.weight.reshape(-1, 4)
    assert ((groups != 0).sum(1) == 1).all()


def test_prune_with_alps_and_with_dsnot(bert: Path, text: Path, tmp_path: Path):
    options = ("--pattern", "2:4", "--calibration", text, "--tokens", 16, "--include", "*query")
    weights = {}
    for name, method in {
        "wanda": ("--score", "wanda"),
        "dsnot": ("--score", "wanda", "--refine", "dsnot"),
        "ria": ("--score", "ria"),
        "alps": ("--score", "alps"),
    }.items():
        assert "NM(2:4)" in run("prune", bert, "-o", tmp_path / name, *options, *method)
        layer = load_pretrained(tmp_path / name).bert.encoder.layer[0].attention.self.query
        weights[name] = layer.weight.detach()
        assert ((weights[name].reshape(-1, 4) != 0).sum(1) == 2).all()
    assert len({str(weight.tolist()) for weight in weights.values()}) == 4


def test_bench_of_a_dense_and_of_a_converted_directory(pruned: Path, converted: Path):
    options = ("--tokens", 8, "--seconds", 0)
    assert "whole model" in run("bench", pruned, *options)
    result = RUN.invoke(app, ["bench", str(converted), "--tokens", "8", "--seconds", "0", "--json"])
    read = json.loads(result.stdout)
    assert any(layer["format"] == "csr" and layer["seconds"] > 0 for layer in read["layers"])


def test_sharded_weights_load(bert: Path, tmp_path: Path):
    model = transformers.BertForMaskedLM.from_pretrained(str(bert))
    model.save_pretrained(str(tmp_path / "shards"), max_shard_size="20KB")
    assert (tmp_path / "shards" / "model.safetensors.index.json").is_file()
    run("convert", tmp_path / "shards", "-o", tmp_path / "out", "--policy", "smallest")
    torch.testing.assert_close(outputs(load_pretrained(tmp_path / "out")), outputs(model.eval()))


def test_sentence_transformers_directory(bert: Path, text: Path, tmp_path: Path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import sentence_transformers
    torch.manual_seed(0)
    encoder = tmp_path / "encoder"
    transformers.BertModel(tiny_config()).save_pretrained(str(encoder))
    write_tokenizer(encoder)
    model = sentence_transformers.SentenceTransformer(str(encoder), device="cpu")
    model.save_pretrained(str(tmp_path / "dense"), create_model_card=False)

    run(
        "prune", tmp_path / "dense", "-o", tmp_path / "pruned", "--score", "wanda",
        "--calibration", text, "--tokens", 16,
    )  # fmt: skip
    run(
        "convert", tmp_path / "pruned", "-o", tmp_path / "converted", "--policy", "always",
    )  # fmt: skip
    sentences = ["word1 word2 word3", "word7"]
    before = load_pretrained(tmp_path / "pruned").encode(sentences)
    model = load_pretrained(tmp_path / "converted")
    assert isinstance(model, sentence_transformers.SentenceTransformer)
    assert any(isinstance(m, CSRLinear) for m in model.modules())
    torch.testing.assert_close(model.encode(sentences), before, rtol=1e-4, atol=1e-5)

    # Sentences are example inputs as they are.
    dense = load_pretrained(tmp_path / "pruned")
    result = sk.convert_(dense, sentences, seconds=0)
    assert all(layer.dense_us for layer in result.layers if layer.sparsity)


# --- entry points ---------------------------------------------------------------------------------

ENTRY = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 8))

def with_example():
    return make(), torch.ones(3, 16)

def wrong():
    return 3
"""


@pytest.fixture
def entry(tmp_path: Path) -> Path:
    path = tmp_path / "my_model.py"
    path.write_text(ENTRY)
    return path


def test_entry_point_from_prune_to_load(entry: Path, tmp_path: Path):
    run("prune", "--entry", f"{entry}:make", "-o", tmp_path / "p", "--sparsity", 0.75)
    weights = tmp_path / "p" / "model.safetensors"
    run(
        "convert", "--entry", f"{entry}:with_example", "--weights", weights,
        "-o", tmp_path / "c", "--policy", "always",
    )  # fmt: skip
    run(
        "convert", "--entry", f"{entry}:with_example", "--weights", weights,
        "-o", tmp_path / "f", "--seconds", 0,
    )  # fmt: skip
    checkpoint = tmp_path / "c" / CHECKPOINT
    run("bench", "--entry", f"{entry}:with_example", "--weights", checkpoint, "--seconds", 0)
    space: dict[str, object] = {}
    exec(ENTRY, space)
    dense, packed = space["make"](), space["make"]()
    safetensors.torch.load_model(dense, str(weights))
    sk.load_file(packed, checkpoint)
    x = torch.randn(4, 16)
    torch.testing.assert_close(packed(x), dense(x))
    assert isinstance(packed[0], CSRLinear)


def test_entry_point_as_a_module(entry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["/nonexistent", *sys.path])
    run("prune", "--entry", "my_model:make", "-o", "out")
    assert (tmp_path / "out" / "model.safetensors").is_file()


# --- inspect and info -----------------------------------------------------------------------------


def test_inspect_shows_layers_without_running_them(pruned: Path, converted: Path):
    shown = run("inspect", converted)
    assert "sparsekern checkpoint" in shown
    line = next(line for line in shown.splitlines() if "self.query.weight" in line)
    assert "csr_linear float32" in line
    assert "32x32" in line
    assert "25.0 %" in line
    assert run("inspect", converted / CHECKPOINT).splitlines()[1:] == shown.splitlines()[1:]
    read = json.loads(run("inspect", pruned, "--json"))
    line = next(line for line in read[0]["lines"] if line["name"].endswith("query.weight"))
    assert (line["density"], line["shape"]) == (pytest.approx(0.25), [32, 32])


def test_inspect_finds_damage(converted: Path, tmp_path: Path):
    data = bytearray((converted / CHECKPOINT).read_bytes())
    data[-5] ^= 1
    (tmp_path / "damaged.safetensors").write_bytes(data)
    assert "damaged" in run("inspect", tmp_path / "damaged.safetensors", code=2)
    (tmp_path / "short.safetensors").write_bytes(data[:-9])
    assert "must be a safetensors file" in run("inspect", tmp_path / "short.safetensors", code=2)


def test_inspect_shows_compressed_weights_as_one(tmp_path: Path):
    w = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    packed = sk.interop.to_bitmask(sk.NMTensor.from_dense(w.half(), 2, 4, strict=False))
    parts = {f"layer.{name}": part for name, part in packed.items()}
    file = tmp_path / "model.safetensors"
    safetensors.torch.save_file({**parts, "layer.bias": torch.ones(8)}, file)
    (content,) = json.loads(run("inspect", file, "--json"))
    bias, weight = content["lines"]
    assert (bias["name"], weight["name"]) == ("layer.bias", "layer.weight")
    assert weight["format"].startswith("sparse-24-bitmask f")
    assert (weight["shape"], weight["density"]) == ([8, 16], 0.5)
    assert weight["nbytes"] == sum(part.nbytes for part in parts.values())
    assert weight["dense_nbytes"] == 8 * 16 * 2
    parts["layer.bitmask"][0, 0] ^= 1
    safetensors.torch.save_file(parts, file)
    assert "module 'layer': bitmask must name as many" in run("inspect", file, code=2)
    del parts["layer.shape"]  # perhaps it is in another file
    safetensors.torch.save_file(parts, file)
    assert [line["name"] for line in json.loads(run("inspect", file, "--json"))[0]["lines"]] == [
        "layer.bitmask",
        "layer.compressed",
    ]


def test_info():
    shown = run("info")
    assert _core.__version__ in shown
    assert torch.__version__ in shown
    facts = json.loads(run("info", "--json"))
    assert facts["isa active"] == _core.active_isa()
    assert len([name for name in facts["kernels"] if "csr_linear_r1_f32" in name]) == 2


# --- bad input: one line, exit code 2, nothing written --------------------------------------------


def test_missing_and_wrong_models(entry: Path, tmp_path: Path):
    out = ("-o", tmp_path / "out")
    assert "must exist" in run("prune", tmp_path / "none", *out, code=2)
    assert "got the file" in run("prune", entry, *out, code=2)
    (tmp_path / "empty").mkdir()
    assert "config.json or modules.json" in run("convert", tmp_path / "empty", *out, code=2)
    assert "must exist" in run("inspect", tmp_path / "none", code=2)
    assert "safetensors" in run("inspect", tmp_path / "empty", code=2)
    assert "safetensors" in run("inspect", entry, code=2)
    assert "one of both" in run("bench", code=2)
    assert "one of both" in run("bench", tmp_path, "--entry", "a:b", code=2)
    assert "goes with --entry" in run("bench", tmp_path, "--weights", "a", code=2)
    assert not (tmp_path / "out").exists()


def test_wrong_entry_points(entry: Path, tmp_path: Path):
    def fails(where: str, *options: object) -> str:
        return run("prune", "--entry", where, "-o", tmp_path / "out", *options, code=2)

    assert "must be module:function" in fails("no_colon")
    assert "must exist" in fails(f"{tmp_path}/none.py:make")
    assert "no function 'other'" in fails(f"{entry}:other")
    assert "must be importable" in fails("no_such_module_anywhere:make")
    assert "must return an nn.Module" in fails(f"{entry}:wrong")
    assert "must exist" in fails(f"{entry}:make", "--weights", tmp_path / "none")
    assert "must be a safetensors file" in fails(f"{entry}:make", "--weights", entry)
    assert "must return (model, example_inputs)" in run(
        "convert", "--entry", f"{entry}:make", "-o", tmp_path / "out", code=2
    )
    assert not (tmp_path / "out").exists()


def test_output_directories(bert: Path, converted: Path, tmp_path: Path):
    own = tmp_path / "mine"
    own.mkdir()
    (own / "letter.txt").write_text("dear")
    assert "--force replaces it" in run("prune", bert, "-o", own, code=2)
    assert "holds no model" in run("prune", bert, "-o", own, "--force", code=2)
    assert (own / "letter.txt").read_text() == "dear"
    assert "must not be or hold" in run("prune", bert, "-o", bert, "--force", code=2)
    assert "must not be or hold" in run("prune", bert, "-o", bert.parent, "--force", code=2)
    assert "existing directory" in run("prune", bert, "-o", tmp_path / "a" / "b", code=2)
    assert "got the file" in run("prune", bert, "-o", own / "letter.txt", code=2)
    assert "must be a dense model" in run("prune", converted, "-o", tmp_path / "x", code=2)
    assert "must be a dense model" in run("convert", converted, "-o", tmp_path / "x", code=2)
    assert {f.name for f in tmp_path.iterdir()} == {"mine"}


def test_force_replaces_a_model_directory_whole(bert: Path, tmp_path: Path):
    out = tmp_path / "out"
    run("prune", bert, "-o", out)
    (out / "stale.txt").write_text("old")
    run("prune", bert, "-o", out, "--force")
    assert not (out / "stale.txt").exists()
    assert {f.name for f in tmp_path.iterdir()} == {"out"}


def test_an_interrupted_run_leaves_the_old_directory(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "out"
    run("prune", bert, "-o", out)
    before = (out / "model.safetensors").read_bytes()

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("sparsekern._hf.ModelDirectory.copy_rest", full)
    assert "no space" in run("prune", bert, "-o", out, "--force", "--sparsity", 0.1, code=2)
    assert (out / "model.safetensors").read_bytes() == before
    assert {f.name for f in tmp_path.iterdir()} == {"out"}


def test_wrong_options(bert: Path, text: Path, tmp_path: Path):
    def prune(*options: object) -> str:
        return run("prune", bert, "-o", tmp_path / "out", *options, code=2)

    def convert(*options: object) -> str:
        return run("convert", bert, "-o", tmp_path / "out", *options, code=2)

    assert "--pattern must be one of" in prune("--pattern", "2:4:8")
    assert "NM: m must be one of 2, 4, 8, 16, 32, got 5" in prune("--pattern", "2:5")
    assert "--sparsity must be left out" in prune("--pattern", "2:4", "--sparsity", 0.5)
    assert "sparsity must be in [0, 1]" in prune("--sparsity", 1.5)
    assert "calibration must be given" in prune("--score", "wanda")
    assert "score must be one of" in prune("--score", "luck")
    assert "calibration must be given" in prune("--refine", "dsnot")
    assert "refine must be None with score='alps'" in prune("--score", "alps", "--refine", "dsnot")
    assert "must exist" in prune("--score", "wanda", "--calibration", tmp_path / "none")
    assert "must be at most 64" in prune("--score", "wanda", "--calibration", text)
    assert "must match" in prune("--include", "nothing*")
    assert "policy must be one of" in convert("--policy", "best")
    assert "--block-rows must be" in convert("--block-rows", 3)
    assert "--allow-dtype must be one of" in convert("--allow-dtype", "int4")
    assert "must be at most 64" in convert("--tokens", 65)
    empty = tmp_path / "empty.txt"
    empty.write_text("\n \n")
    assert "only empty lines" in convert("--tokens", 8, "--text", empty)
    empty.write_bytes(b"\xff\xfe\x00")
    assert "UTF-8" in convert("--tokens", 8, "--text", empty)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "a\\..\\b", 3])
def test_shards_outside_the_directory_are_refused(bert: Path, tmp_path: Path, name: object):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text((bert / "config.json").read_text())
    index = {"weight_map": {"a": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "inside its folder" in run("convert", folder, "-o", tmp_path / "out", code=2)


def test_broken_directories(bert: Path, tmp_path: Path):
    def fails(**files: str) -> str:
        folder = tmp_path / f"model{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        (folder / "config.json").write_text((bert / "config.json").read_text())
        for name, content in files.items():
            (folder / name.replace("__", ".")).write_text(content)
        return run("convert", folder, "-o", tmp_path / "out", code=2)

    assert "got no weights" in fails()
    assert "got pytorch_model.bin" in fails(pytorch_model__bin="")
    assert "must hold JSON" in fails(modules__json="{")
    assert "list of modules" in fails(modules__json="{}")
    assert "inside its folder" in fails(modules__json='[{"path": "../other"}]')
    assert "a transformers model, got none" in fails(modules__json="[]")
    assert "object weight_map" in fails(model__safetensors__index__json="[]")
    assert "must exist, as" in fails(model__safetensors__index__json='{"weight_map": {"a": "b"}}')
    assert "must hold whole weights" in fails(model__safetensors="rubbish")


def test_missing_weights_are_not_made_up(bert: Path, tmp_path: Path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text((bert / "config.json").read_text())
    weights = safetensors.torch.load_file(bert / "model.safetensors")
    gone = next(name for name in weights if name.endswith("query.weight"))
    del weights[gone]
    safetensors.torch.save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert "must hold all weights" in run("convert", folder, "-o", tmp_path / "out", code=2)


def test_a_damaged_checkpoint_does_not_load(converted: Path, tmp_path: Path):
    folder = tmp_path / "model"
    folder.mkdir()
    for file in converted.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    data = bytearray((folder / CHECKPOINT).read_bytes())
    data[-5] ^= 1
    (folder / CHECKPOINT).write_bytes(data)
    with pytest.raises(sk.CheckpointError):
        load_pretrained(folder)


def test_weights_rounded_to_an_allowed_dtype_load_again(pruned: Path, tmp_path: Path):
    out = tmp_path / "out"
    run("convert", pruned, "-o", out, "--policy", "smallest", "--allow-dtype", "int8")
    assert "csr_linear int8" in run("inspect", out)
    model = load_pretrained(out)
    assert model.bert.encoder.layer[0].attention.self.query.values.dtype == torch.int8
    torch.testing.assert_close(outputs(model), outputs(load_pretrained(pruned)), rtol=0.1, atol=0.1)


def test_quantize_writes_a_directory_that_loads_packed(bert: Path, text: Path, tmp_path: Path):
    shown = run(
        "quantize", bert, "-o", tmp_path / "out", "--calibration", text, "--tokens", 8,
        "--tune-steps", 2, "--scale-steps", 2, "--state", tmp_path / "state",
    )  # fmt: skip
    assert "bits/weight" in shown
    assert (tmp_path / "state" / "quantize.json").is_file()
    model = load_pretrained(tmp_path / "out")
    kinds = {name: type(module) for name, module in model.named_modules()}
    assert kinds["bert.encoder.layer.0.attention.self.query"] is sk.nn.GQSLinear
    assert kinds["cls.predictions.decoder"] is torch.nn.Linear  # tied to the embedding
    options = ("-o", tmp_path / "other", "--calibration", text, "--tokens", 8)
    assert "bits must be one of" in run("quantize", bert, *options, "--bits", 3, code=2)
    assert "got a converted one" in run("quantize", tmp_path / "out", *options, code=2)
    assert "give a model directory, got none" in run("quantize", *options, code=2)
