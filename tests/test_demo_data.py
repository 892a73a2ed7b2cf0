# SPDX-License-Identifier: Apache-2.0
"""The demo's text: what becomes a pair, and that no module is on both sides of the split."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "demo"))

import batches
import data


def test_split_docstring_takes_summary_line_and_body() -> None:
    text = "Return the size of it.\n\nThe size is counted\nin whole bytes here.\n\nMore."
    assert data.split_docstring(text) == (
        "Return the size of it.",
        "The size is counted in whole bytes here. More.",
    )


@pytest.mark.parametrize(
    "text",
    [
        "One line only, without a body.",
        "Two lines of summary\nare no summary line.\n\nA body of more than some few words.",
        "Too short.\n\nA body of more than some few words.",
        "Long enough a summary.\n\nShort body.",
        "Return the size.\n\nThis does return the SIZE of the thing, in bytes, as said.",
        "",
    ],
)
def test_split_docstring_refuses(text: str) -> None:
    assert data.split_docstring(text) is None


def test_twins_and_packages_are_one_group() -> None:
    assert data.group_of(Path("_pydecimal.py")) == data.group_of(Path("decimal.py")) == "decimal"
    assert data.group_of(Path("email/message.py")) == data.group_of(Path("email/__init__.py"))
    assert data.group_of(Path("__future__.py")) == "future__"
    assert data.group_of(Path("json/decoder.py")) != data.group_of(Path("csv.py"))


def test_sides_are_fixed_and_balanced() -> None:
    """Fixed by name: a model trained on one machine is not evaluated on its training text."""
    sides = [data.for_evaluation(g) for g in ("decimal", "email", "json", "typing")]
    assert sides == [True, False, True, False]
    share = sum(data.for_evaluation(f"m{i}") for i in range(4000)) / 4000
    assert abs(share - data.EVALUATION_SHARE) < 0.03


def write_library(root: Path) -> None:
    train = next(f"a{i}" for i in range(99) if not data.for_evaluation(f"a{i}"))
    evaluate = next(f"a{i}" for i in range(99) if data.for_evaluation(f"a{i}"))
    shared = """def shared():
    '''Shared by both sides.

    Its body has quite some words to be found by.'''
"""
    training = """'Training module text here.'
class C:
    '''Do a training thing.

    Words of training for the model alone.'''
"""
    evaluation = """async def g():
    '''Evaluate some other thing.

    Another body, other words inside.'''
def h():
    '''Evaluate some other thing.

    A second body to the same summary.'''
"""
    (root / f"{train}.py").write_text(training + shared)
    (root / f"{evaluate}.py").write_text(shared + evaluation)
    (root / "test").mkdir()
    (root / "test" / f"{evaluate}.py").write_text(
        "'Not to be read.\\n\\nIt is a test of a module.'"
    )
    (root / "broken.py").write_text("print 'Python 2'")


def test_collect_separates_the_sides(tmp_path: Path) -> None:
    write_library(tmp_path)
    corpus = data.collect(tmp_path)
    assert [p.summary for p in corpus.pairs] == [
        "Shared by both sides.",
        "Evaluate some other thing.",
    ]
    assert corpus.texts == [
        "Training module text here.",
        "Do a training thing.",
        "Words of training for the model alone.",
    ]
    held_out = {part for p in corpus.pairs for part in (p.summary, p.body)}
    assert not held_out & set(corpus.texts)


def test_fingerprint_follows_every_text(tmp_path: Path) -> None:
    write_library(tmp_path)
    corpus = data.collect(tmp_path)
    again = data.collect(tmp_path)
    assert corpus.fingerprint() == again.fingerprint()
    changed = data.Corpus([*corpus.texts[:-1], "other"], corpus.pairs)
    assert changed.fingerprint() != corpus.fingerprint()


def test_standard_library_gives_enough_pairs() -> None:
    """At least 1,000 pairs on every supported Python, and no text on both sides."""
    corpus = data.collect()
    assert len(corpus.pairs) >= 1100
    assert len(corpus.texts) >= 3000
    held_out = {part.lower() for p in corpus.pairs for part in (p.summary, p.body)}
    assert not held_out & {text.lower() for text in corpus.texts}
    modules = {data.group_of(Path(p.module)) for p in corpus.pairs}
    assert all(data.for_evaluation(m) for m in modules)


def test_sample_ignores_order() -> None:
    pairs = [data.Pair("m.py", f"summary {i}", f"body {i}") for i in range(50)]
    shuffled = random.Random(0).sample(pairs, 50)
    assert data.sample(pairs, 10) == data.sample(shuffled, 10)
    assert len(data.sample(pairs, 99)) == 50


def test_windows_cover_the_text() -> None:
    ids = list(range(131))
    assert [list(w) for w in batches.windows(ids, 62)] == [ids[:62], ids[62:124], ids[124:]]
    assert [list(w) for w in batches.windows(ids[:127], 62)] == [ids[:62], ids[62:124]]
    assert list(batches.windows([1], 62)) == [[1]]


def test_plan_takes_each_sequence_once_within_the_budget() -> None:
    rng = random.Random(1)
    sequences = [[1] * rng.randint(2, 64) for _ in range(300)]
    for shuffle in (None, random.Random(2)):
        rows = batches.plan(sequences, 256, shuffle)
        assert sorted(i for batch in rows for i in batch) == list(range(300))
        for batch in rows:
            width = max(len(sequences[i]) for i in batch)
            assert width * len(batch) <= 256
    assert batches.plan([[1] * 64], 8) == [[0]]  # longer than the budget: alone


def test_pad_masks_what_is_not_text() -> None:
    batch = batches.pad([[5, 6, 7], [8]])
    assert batch.ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch.mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.tokens == 4
