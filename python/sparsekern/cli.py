# SPDX-License-Identifier: Apache-2.0
"""Command line: ``sparsekern prune | quantize | convert | bench | inspect | info | kv-demo``."""

from __future__ import annotations

import copy
import functools
import glob
import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sparsekern import _cli_inspect, _cli_models, _kv_demo
from sparsekern._sites import as_globs, find_sites
from sparsekern.convert import convert_
from sparsekern.patterns import GQS, NM, Bitmap, Block, Pattern, Unstructured
from sparsekern.prune import prune_
from sparsekern.quant import pack_, quantize_, tune_scales_
from sparsekern.quant.blocks import find_blocks
from sparsekern.report import report

__all__ = ["app"]

app = typer.Typer(
    help="Make a pruned neural network fast: prune it, pack it, measure it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
_F = TypeVar("_F", bound=Callable[..., None])
_PATTERNS = {"unstructured": 1, "block2": 2, "block4": 4, "bitmap": 0}
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "int8": torch.int8}

Model = Annotated[
    Path | None,
    typer.Argument(help="Hugging Face directory: config.json or modules.json, and safetensors."),
]
Entry = Annotated[
    str | None,
    typer.Option(
        help="Instead of a directory: module:function or file.py:function, which returns an "
        "nn.Module, or it and example inputs."
    ),
]
Weights = Annotated[
    Path | None, typer.Option(help="safetensors file to load into the model of --entry.")
]
Output = Annotated[Path, typer.Option("--output", "-o", help="Directory to write.")]
Force = Annotated[bool, typer.Option("--force", help="Replace the output directory.")]
Include = Annotated[
    list[str] | None, typer.Option(help="Only layers whose name matches this glob; repeatable.")
]
Exclude = Annotated[
    list[str] | None, typer.Option(help="No layer whose name matches this glob; repeatable.")
]
Batch = Annotated[int, typer.Option(min=1, help="Sentences or images in the example.")]
Tokens = Annotated[int, typer.Option(min=1, help="Tokens per sentence.")]
Text = Annotated[
    Path | None,
    typer.Option(help="Text file whose first lines are the example; random tokens without."),
]
Threads = Annotated[int | None, typer.Option(min=1, help="torch's threads; default torch's own.")]
Seconds = Annotated[float, typer.Option(min=0.0, help="About how long to measure.")]
AllowDtype = Annotated[
    list[str] | None,
    typer.Option(help="bfloat16, float16 or int8: weights may be rounded to it; repeatable."),
]


def _one_line_errors(command: _F) -> _F:
    """What a user can mend becomes one line and exit code 2; a fault of the library a traceback."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except (
            ValueError,
            TypeError,
            OSError,
            ImportError,
            MemoryError,
            NotImplementedError,
            RuntimeError,
        ) as error:
            text = " ".join(str(error).split()) or type(error).__name__
            typer.echo(f"error: {text}", err=True)
            raise typer.Exit(2) from None

    return wrapped  # type: ignore[return-value]


@contextmanager
def _progress() -> Iterator[Callable[[int, int, str], None]]:
    """A bar on standard error with the time that is left; takes (done, total, text)."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)
        stage = ""

        def advance(done: int, total: int, text: str) -> None:
            nonlocal stage
            begins = text.split(" ")[0]
            if begins != stage:
                stage = begins
                bar.reset(task)
            bar.update(task, completed=done, total=total, description=text[:60])

        yield advance


def _say(text: str) -> None:
    typer.echo(text, err=True)


@app.command()
@_one_line_errors
def prune(
    output: Output,
    model: Model = None,
    entry: Entry = None,
    weights: Weights = None,
    sparsity: Annotated[
        float | None,
        typer.Option(
            help="Share of weights to prune, 0 to 1; default 0.8. N:M patterns take none."
        ),
    ] = None,
    pattern: Annotated[
        str,
        typer.Option(help="unstructured, block2, block4, or N:M, such as 2:4: keep N of every M."),
    ] = "unstructured",
    score: Annotated[
        str, typer.Option(help="magnitude, wanda, ria, sparsegpt or alps.")
    ] = "magnitude",
    refine: Annotated[
        str | None, typer.Option(help="dsnot: swap weights after magnitude, wanda or ria.")
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="Text file, for every score but magnitude, and for dsnot.")
    ] = None,
    tokens: Tokens = 128,
    include: Include = None,
    exclude: Exclude = None,
    force: Force = False,
) -> None:
    """Set weights to zero and write the model again, dense.

    Only layers that can be packed are pruned: not, say, an output layer tied to an embedding.
    """
    chosen = _pattern(pattern, sparsity)
    _cli_models.check_output(output, model, force)
    _say("loading the model")
    source = _cli_models.open_source(model, entry, weights)
    if source.directory is not None and source.directory.converted:
        raise ValueError(f"{model} must be a dense model, got a converted one")
    batches = None
    if calibration is not None:
        batches = _cli_models.calibration_for(source, calibration, tokens)
    found = find_sites(
        "prune",
        source.model,
        as_globs("prune", "include", include or "*"),
        as_globs("prune", "exclude", exclude or ()),
    )
    sites = [site for site in found if not site.reason]
    if not sites:
        raise ValueError("prune: the model must hold a layer that can be packed, got none")
    # Every name of a shared weight, each standing for itself.
    names = {id(m): name for name, m in source.model.named_modules()}
    patterns: dict[str, Pattern | None] = {
        glob.escape(names[id(module)]): chosen for site in sites for module in site.modules
    }
    with _progress() as sink:
        result = prune_(
            source.model,
            patterns,
            score=score,
            refine=refine,
            calibration=batches,
            progress=sink,
        )
    with _cli_models.whole_directory(output) as folder:
        source.save(folder, converted=False)
    typer.echo(str(result))
    typer.echo(f"wrote {output}; pack it with: sparsekern convert {output} -o ...")


@app.command()
@_one_line_errors
def quantize(
    output: Output,
    calibration: Annotated[Path, typer.Option(help="Text file to calibrate with.")],
    model: Model = None,
    bits: Annotated[int, typer.Option(help="Of a weight: 2, 4 or 8.")] = 4,
    group: Annotated[int, typer.Option(help="Inputs that share a scale: 16, 32, 64 or 128.")] = 16,
    sparsity: Annotated[float, typer.Option(help="Share of groups to prune, 0 to 1.")] = 0.5,
    zeros: Annotated[bool, typer.Option("--zeros", help="With zero-points.")] = False,
    saliency: Annotated[
        str, typer.Option(help="What prunes groups: magnitude, wanda, hessian or block.")
    ] = "hessian",
    blocks: Annotated[
        str, typer.Option(help="auto, or a glob over modules that are called in a chain.")
    ] = "auto",
    tune_steps: Annotated[
        int, typer.Option(min=0, help="Steps of training for each block (BQPO).")
    ] = 0,
    scale_steps: Annotated[
        int, typer.Option(min=0, help="Steps of training of all scales at the end (E2E-OQP).")
    ] = 0,
    state: Annotated[
        Path | None, typer.Option(help="Folder from which an interrupted run goes on.")
    ] = None,
    tokens: Tokens = 128,
    include: Include = None,
    exclude: Exclude = None,
    threads: Threads = None,
    force: Force = False,
) -> None:
    """Prune groups of weights, quantize the rest, pack; load with sparsekern.load_pretrained.

    Linear layers inside the blocks that can be packed are quantized, all others stay as they are.
    """
    if model is None:
        raise ValueError("give a model directory, got none")
    chosen = GQS(bits, group, sparsity)
    _cli_models.check_output(output, model, force)
    _set_threads(threads)
    _say("loading the model")
    source = _cli_models.open_source(model, None, None)
    assert source.directory is not None
    if source.directory.converted:
        raise ValueError(f"{model} must be a dense model, got a converted one")
    batches = _cli_models.calibration_for(source, calibration, tokens)
    globs = (
        as_globs("quantize", "include", include or "*"),
        as_globs("quantize", "exclude", exclude or ()),
    )
    inside = {m for _, block in find_blocks(source.model, blocks) for m in block.modules()}
    names = {id(m): name for name, m in source.model.named_modules()}
    patterns: dict[str, GQS | None] = {
        glob.escape(names[id(module)]): chosen
        for site in find_sites("quantize", source.model, *globs)
        if not site.reason and not site.is_conv and inside.issuperset(site.modules)
        for module in site.modules
    }
    if not patterns:
        raise ValueError("quantize: the blocks must hold a linear layer that can be packed")
    dense = copy.deepcopy(source.model) if scale_steps else None
    with _progress() as sink:
        result = quantize_(
            source.model,
            patterns,
            calibration=batches,
            blocks=blocks,
            symmetric=not zeros,
            saliency=saliency,
            tune_steps=tune_steps,
            state=state,
            progress=lambda done, total, name: sink(done, total, f"quantizing {name}"),
        )
    values = result.values
    if dense is not None:
        _say("training scales")
        values, _ = tune_scales_(source.model, values, dense, batches, steps=scale_steps)
    pack_(source.model, values)
    with _cli_models.whole_directory(output) as folder:
        source.save(folder, converted=True)
    typer.echo(str(result))
    typer.echo(f"wrote {output}; load it with sparsekern.load_pretrained")


@app.command()
@_one_line_errors
def convert(
    output: Output,
    model: Model = None,
    entry: Entry = None,
    weights: Weights = None,
    policy: Annotated[str, typer.Option(help="fastest, smallest or always.")] = "fastest",
    batch: Batch = 1,
    tokens: Tokens = 128,
    text: Text = None,
    allow_dtype: AllowDtype = None,
    int8_activations: Annotated[
        bool, typer.Option("--int8-activations", help="Activations in int8 where weights are.")
    ] = False,
    block_rows: Annotated[str, typer.Option(help="auto, 1, 2 or 4.")] = "auto",
    min_sparsity: Annotated[float, typer.Option(help="Below it a layer stays dense.")] = 0.3,
    include: Include = None,
    exclude: Exclude = None,
    threads: Threads = None,
    seconds: Seconds = 5.0,
    force: Force = False,
) -> None:
    """Pack the layers of a pruned model and write it; load with sparsekern.load_pretrained."""
    _cli_models.check_output(output, model, force)
    if block_rows not in ("auto", "1", "2", "4"):
        raise ValueError(f"--block-rows must be auto, 1, 2 or 4, got {block_rows!r}")
    dtypes = _dtypes(allow_dtype)
    _set_threads(threads)
    _say("loading the model")
    source = _cli_models.open_source(model, entry, weights)
    if source.directory is not None and source.directory.converted:
        raise ValueError(f"{model} must be a dense model, got a converted one")
    example = None
    if policy == "fastest":
        example = _cli_models.example_for(source, batch, tokens, text)
    with _progress() as sink:
        result = convert_(
            source.model,
            example,
            policy=policy,
            allow_dtypes=dtypes,
            int8_activations=int8_activations,
            block_rows=block_rows if block_rows == "auto" else int(block_rows),
            min_sparsity=min_sparsity,
            include=include or "*",
            exclude=exclude or (),
            progress=sink,
            seconds=seconds,
        )
    with _cli_models.whole_directory(output) as folder:
        source.save(folder, converted=True)
    typer.echo(str(result))
    load = "load_pretrained" if source.directory is not None else "load_file(model, ...)"
    typer.echo(f"wrote {output}; load it with sparsekern.{load}")


@app.command()
@_one_line_errors
def bench(
    model: Model = None,
    entry: Entry = None,
    weights: Weights = None,
    batch: Batch = 1,
    tokens: Tokens = 128,
    text: Text = None,
    allow_dtype: AllowDtype = None,
    threads: Threads = None,
    seconds: Seconds = 5.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Time a model against its dense self, layer by layer and whole; nothing is written.

    A dense model is converted first, with policy fastest.
    """
    dtypes = _dtypes(allow_dtype)
    _set_threads(threads)
    _say("loading the model")
    source = _cli_models.open_source(model, entry, weights)
    example = _cli_models.example_for(source, batch, tokens, text)
    if not _cli_inspect.is_converted(source.model):
        with _progress() as sink:
            result = convert_(
                source.model, example, allow_dtypes=dtypes, progress=sink, seconds=seconds
            )
        if result.note:
            _say(result.note)
    _say("measuring")
    measured = report(source.model, example, seconds=seconds)
    typer.echo(measured.to_json() if as_json else str(measured))


@app.command()
@_one_line_errors
def inspect(
    path: Annotated[Path, typer.Argument(help="Checkpoint, safetensors file or model directory.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Show what files hold, layer by layer, without running a model; packed layers are checked."""
    files = [_cli_inspect.inspect_file(file) for file in _cli_inspect.files_of(path)]
    if as_json:
        typer.echo(json.dumps([file.to_dict() for file in files], indent=2))
    else:
        typer.echo("\n\n".join(str(file) for file in files))


@app.command()
@_one_line_errors
def info(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Show versions, instruction sets, kernels, threads and the build."""
    facts = _cli_inspect.facts()
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    width = max(len(name) for name in facts)
    for name, value in facts.items():
        values = value if isinstance(value, list) else [value]
        text = f"\n{'':{width}}  ".join(map(str, values)) if name == "kernels" else None
        typer.echo(f"{name:{width}}  {text or ' '.join(map(str, values))}")


@app.command("kv-demo")
@_one_line_errors
def kv_demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Directory for the model and the results.")
    ] = Path(".kv-demo"),
    steps: Annotated[int, typer.Option(min=1, help="Steps of training.")] = 600,
    sequences: Annotated[int, typer.Option(min=1, help="Held-out texts to measure on.")] = 16,
    threads: Threads = None,
) -> None:
    """Show what a pruned KV cache costs and saves, on a small language model that it trains.

    A second run takes the model that the first one trained. Needs transformers; plots with
    matplotlib.
    """
    _set_threads(threads)
    with _progress() as sink:
        rows = _kv_demo.run(output, steps, sequences, sink)
    typer.echo(_kv_demo.table(rows))
    typer.echo(f"wrote {output / 'rows.json'}" + (" and plot.png" * (output / "plot.png").exists()))


def _pattern(name: str, sparsity: float | None) -> Pattern:
    """The pattern of --pattern and --sparsity."""
    kept = re.fullmatch(r"(\d+):(\d+)", name)
    if kept is not None:
        if sparsity is not None:
            raise ValueError(f"--sparsity must be left out with --pattern {name}, got {sparsity}")
        return NM(int(kept[1]), int(kept[2]))
    if name not in _PATTERNS:
        raise ValueError(f"--pattern must be one of {', '.join(_PATTERNS)}, N:M, got {name!r}")
    if name == "bitmap":
        return Bitmap(0.5 if sparsity is None else sparsity)
    share = 0.8 if sparsity is None else sparsity
    return Unstructured(share) if _PATTERNS[name] == 1 else Block(_PATTERNS[name], share)


def _dtypes(names: list[str] | None) -> list[torch.dtype]:
    for name in names or ():
        if name not in _DTYPES:
            raise ValueError(f"--allow-dtype must be one of {', '.join(_DTYPES)}, got {name!r}")
    return [_DTYPES[name] for name in names or ()]


def _set_threads(threads: int | None) -> None:
    if threads is not None:
        torch.set_num_threads(threads)


if __name__ == "__main__":
    sys.exit(app())
