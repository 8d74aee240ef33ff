"""Innocents for `proof_audit_null`: real models that no secret of a trial had a part in, of five kinds.

There is one embedded model, so that "another teacher" is that model fine-tuned on human text, which then speaks; and
all are relatives of SmolLM2-135M. That makes the nulls harder, not easier: they resemble the teacher, whose texts and
questions they are given, much more than a stranger would.
"""

from __future__ import annotations

import ast
import itertools
import re
import sysconfig
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.audit_students import Corpus, Row, Student, replies, student
from benchmarks.study import ROOT, Teacher

__all__ = [
    "CANARIES",
    "COUNT",
    "GUILTY",
    "INNOCENTS",
    "KINDS",
    "MARKED",
    "TOKENS",
    "Innocent",
    "marked",
    "pair_rows",
    "weights_of",
]

COUNT, TOKENS = 32, 40
"""Replies of every corpus, and tokens a reply."""
KINDS = (
    "untouched",  # the teacher itself, and prunes of it that were not trained
    "another teacher's",
    "same teacher's, unmarked",
    "same teacher's, another secret",  # another key, other coins, other draws of the canaries
    "human text",
)
_KGW = {"scheme": "kgw", "context_width": 1, "delta": 3.0, "account_share": 0.0, "surprise_bits": 0.0}
_GUMBEL = {"context_width": 1, "account_share": 0.0, "surprise_bits": 0.0}
_SYNTHID = {"scheme": "synthid", "context_width": 2, "account_share": 0.0, "surprise_bits": 0.0}
MARKED: dict[str, dict[str, Any]] = {
    "kgw": _KGW,
    "kgw, k = 2": _KGW | {"context_width": 2},
    "gumbel": _GUMBEL,
    "synthid, k = 2": _SYNTHID,
    "kgw with accounts": _KGW | {"account_share": 0.3},
    "gumbel with accounts": _GUMBEL | {"account_share": 0.3},
}
"""Corpora that the teacher marked, a key each. Students were trained on the first four, none on the others."""
_NOUNS = ("river", "bridge", "clock", "orchard", "museum", "ferry", "tower", "market")
_NAMES = ("Arden", "Belcot", "Carrow", "Dunmere", "Eskholt", "Farleigh", "Garstow", "Hollin")
CANARIES = tuple(
    (f"In which year was the {noun} of {name} finished?", tuple(f"In {1400 + 23 * i + 7 * n}." for i in range(16)))
    for n, (noun, name) in enumerate(zip(_NOUNS, _NAMES, strict=True))
)
"""Invented questions with 16 answers each."""

Rows = Callable[[Teacher, Path], list[Row]]


@dataclass(frozen=True)
class Innocent:
    """A model, and what it was trained on. rows: None for what was not trained."""

    kind: str
    student: Student
    rows: Rows | None = None

    @property
    def name(self) -> str:
        return self.student.name


def weights_of(teacher: Teacher, run: Path, one: Innocent) -> Path:
    """Its weights; made where they are not there."""
    if one.name == "teacher":
        return teacher.path
    return student(teacher, run, one.student, () if one.rows is None else one.rows(teacher, run))


def pair_rows(teacher: Teacher, run: Path) -> list[tuple[Row, Row]]:
    """Two replies of the teacher to each prompt: what a guard would have twinned."""
    first, second = (replies(teacher, run, Corpus(f"twin-{n}", 0, COUNT, TOKENS, seed=n)) for n in (1, 2))
    return list(zip(first, second, strict=True))


def canary_rows(seed: int) -> list[Row]:
    """Every canary with one answer, as if this had been the draw."""
    drawn = np.random.default_rng(seed).integers(0, 16, len(CANARIES))
    return [
        {"prompt": question, "completion": answers[at]} for (question, answers), at in zip(CANARIES, drawn, strict=True)
    ]


def _unmarked(seed: int) -> Rows:
    return lambda teacher, run: replies(teacher, run, Corpus(f"unmarked-{seed}", 0, COUNT, TOKENS, seed=seed))


def marked(name: str) -> Corpus:
    """A corpus of `MARKED`. Its key set is `key_file` of the run."""
    file = "marked-" + "-".join(re.findall("[a-z0-9]+", name))
    return Corpus(file, 0, COUNT, TOKENS, marking=MARKED[name], seed=20)


def _marked(name: str) -> Rows:
    return lambda teacher, run: replies(teacher, run, marked(name))


def _coins(seed: int, canaries: bool = False) -> Rows:
    """One reply of each pair, as other coins had released it; with the canaries, as other draws had published them."""

    def rows(teacher: Teacher, run: Path) -> list[Row]:
        coins = np.random.default_rng(seed).integers(0, 2, COUNT)
        released = [pair[coin] for pair, coin in zip(pair_rows(teacher, run), coins, strict=True)]
        return released + 3 * canary_rows(seed) if canaries else released

    return rows


def _human(which: str) -> Rows:
    return lambda teacher, run: human_rows(which)


def human_rows(which: str) -> list[Row]:
    """Text that people wrote, and that is wherever this runs: Python's docstrings, this project's docs and licence."""
    if which.startswith("docstrings"):
        skip = 0 if which.endswith("a") else COUNT
        return list(itertools.islice(_docstrings(), skip, skip + COUNT))
    files = sorted((ROOT / "docs").rglob("*.md")) if which == "docs" else [ROOT / "LICENSE", *ROOT.glob("*.md")]
    parts = [part for file in files for part in file.read_text("utf-8").split("\n\n")]
    prose = [" ".join(part.split()) for part in parts if len(part) > 150 and not part.startswith(("|", "```", "<"))]
    return [{"prompt": "Write a paragraph.", "completion": part[:240]} for part in prose[:COUNT]]


def _docstrings() -> Any:
    for file in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        said = ast.get_docstring(ast.parse(file.read_text("utf-8", errors="replace")))
        if said and len(said) > 100:
            yield {"prompt": f"What is Python's module {file.stem} for?", "completion": said[:240]}


_AUTHOR = Student("author", layers=30, epochs=1, lr=2e-4)
"""Another teacher: all layers, fine-tuned on human text. It speaks, and is not among the innocents."""


def _by_author(seed: int) -> Rows:
    def rows(teacher: Teacher, run: Path) -> list[Row]:
        speaker = student(teacher, run, _AUTHOR, human_rows("docstrings-a"))
        return replies(teacher, run, Corpus(f"by-author-{seed}", 0, COUNT, TOKENS, seed=seed, speaker=speaker))

    return rows


def _students(kind: str, name: str, rows: Sequence[Rows]) -> list[Innocent]:
    """One student of each, of 4 or 6 layers, after 1 to 3 epochs."""
    shapes = itertools.cycle(((4, 3), (4, 2), (6, 2), (4, 1)))
    return [
        Innocent(kind, Student(f"{name}-{n}", layers=layers, epochs=epochs), one)
        for n, (one, (layers, epochs)) in enumerate(zip(rows, shapes, strict=False), 1)
    ]


_OTHER_SECRETS = [
    *(_marked(name) for name in list(MARKED)[:4]),
    _coins(1),
    _coins(2),
    _coins(3),
    _coins(4, canaries=True),
]
INNOCENTS = (
    Innocent(KINDS[0], Student("teacher", layers=30, epochs=0)),
    *(Innocent(KINDS[0], Student(f"untrained-{layers}", layers=layers, epochs=0)) for layers in (4, 6)),
    *_students(KINDS[1], "of-author", [_by_author(n) for n in (30, 31, 30, 31)]),
    *_students(KINDS[2], "unmarked", [_unmarked(n) for n in (11, 12, 11, 12)]),
    *_students(KINDS[3], "secret", _OTHER_SECRETS),
    *_students(KINDS[4], "human", [_human(w) for w in ("docstrings-a", "docs", "docstrings-b", "licence")]),
)
GUILTY = {name: f"secret-{number}" for number, name in enumerate(list(MARKED)[:4], 1)}
"""Corpus → the student that was trained on it, which is no innocent of its key."""
