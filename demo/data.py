# SPDX-License-Identifier: Apache-2.0
"""Real text that every Python has: the docstrings of its standard library.

`collect` reads them with `ast` (nothing is imported), and splits by module into text to train on
and pairs (summary line, body) to evaluate on. All modules of one top-level package, and a module
and its pure-Python twin (`decimal` and `_pydecimal`), fall on the same side, so that near-copies
do not leak; a training text that equals an evaluation text is dropped.
"""

from __future__ import annotations

import ast
import hashlib
import sysconfig
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

SKIPPED_FOLDERS = frozenset(
    {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"}
)
EVALUATION_SHARE = 0.5
MIN_SUMMARY_WORDS = 3
MIN_BODY_WORDS = 6


@dataclass(frozen=True)
class Pair:
    """A docstring's summary line and the rest of it."""

    module: str
    summary: str
    body: str


@dataclass(frozen=True)
class Corpus:
    """`texts` to calibrate and train on; `pairs` to evaluate on. No module is in both."""

    texts: list[str]
    pairs: list[Pair]

    def fingerprint(self) -> str:
        """Changes with any text: a key for what was trained on it."""
        digest = hashlib.sha256()
        for text in [*self.texts, *(p.summary + "\n" + p.body for p in self.pairs)]:
            digest.update(text.encode())
            digest.update(b"\0")
        return digest.hexdigest()[:16]


def normalize(text: str) -> str:
    """One line, single blanks."""
    return " ".join(text.split())


def group_of(relative: Path) -> str:
    """The unit of the split: the top-level package or module; `_pyio` counts as `io`."""
    name = relative.parts[0].removesuffix(".py")
    if name.startswith("_py"):
        name = name[3:]
    return name.lstrip("_") or name


def for_evaluation(group: str) -> bool:
    """The side a group falls on: by a hash, so the same on every machine and Python version."""
    bucket = int.from_bytes(hashlib.sha256(group.encode()).digest()[:4], "big")
    return bucket < EVALUATION_SHARE * 2**32


def docstrings(source: bytes) -> Iterator[str]:
    """Docstrings of a module, its classes and functions, in source order, indentation removed."""
    with warnings.catch_warnings():  # invalid escapes in old sources
        warnings.simplefilter("ignore")
        tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield text


def split_docstring(text: str) -> tuple[str, str] | None:
    """(summary line, body), or None where the docstring does not make a useful pair.

    A pair needs a one-line summary of some words, a blank line, and a body of some words that
    does not repeat the summary.
    """
    head, blank, rest = text.strip().partition("\n\n")
    if not blank or "\n" in head:
        return None
    summary, body = normalize(head), normalize(rest)
    if len(summary.split()) < MIN_SUMMARY_WORDS or len(body.split()) < MIN_BODY_WORDS:
        return None
    if summary.rstrip(".").lower() in body.lower():
        return None
    return summary, body


def collect(root: Path | None = None) -> Corpus:
    """Read all sources under `root` (default: the running Python's standard library)."""
    root = root or Path(sysconfig.get_paths()["stdlib"])
    texts: dict[str, None] = {}  # an ordered set
    pairs: list[Pair] = []
    seen: set[str] = set()
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if SKIPPED_FOLDERS & set(relative.parts):
            continue
        try:
            found = list(docstrings(path.read_bytes()))
        except (SyntaxError, ValueError):  # lib2to3 ships files in Python 2
            continue
        evaluate = for_evaluation(group_of(relative))
        for text in found:
            parts = split_docstring(text)
            if not evaluate:
                for part in parts or (normalize(text),):
                    if len(part.split()) >= MIN_SUMMARY_WORDS:
                        texts.setdefault(part)
            elif parts and not {p.lower() for p in parts} & seen:
                seen.update(p.lower() for p in parts)
                pairs.append(Pair(relative.as_posix(), *parts))
    return Corpus([text for text in texts if text.lower() not in seen], pairs)


def sample(pairs: Sequence[Pair], count: int) -> list[Pair]:
    """At most `count` pairs, chosen by a hash of their text: the same whatever their order."""

    def rank(pair: Pair) -> bytes:
        return hashlib.sha256(f"{pair.summary}\0{pair.body}".encode()).digest()

    return sorted(pairs, key=rank)[:count]
