"""How a reply resembles the teacher's, in several ways at once."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spiritsafe.audit.tests._resemblance import Grams

__all__ = ["MEASURES", "Looked", "Seen", "marks", "ranks"]

F64 = NDArray[np.float64]
Marks = NDArray[np.int64]

MEASURES = ("characters", "phrases", "opening", "length", "style")
"""characters: chrF.  phrases: runs of three words, Jaccard.  opening: of the first 8 words, the share before the first
that differs.  length: in words, the shorter by the longer.  style: 1 − total variation between the frequencies of
function words, punctuation and layout over all replies."""

_CHARACTERS = 20_000
_OPENING = 8
_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
_FUNCTION = (
    "the a an of to and in is it that for you this with as can are be or on not i we will which if by from at has"
)
_FUNCTION_WORDS = tuple(_FUNCTION.split(" "))
_SIGNS = (*".,;:!?()[]{}\"'`*#-_/=+<>|", "\n", "\n\n", "—", "…")


class Seen:
    """A reply, looked at once for many comparisons."""

    def __init__(self, text: str) -> None:
        self.text = text[:_CHARACTERS]
        self.words = [w.translate(_LOWER).strip(string.punctuation) for w in self.text.split()]
        self._phrases = {tuple(self.words[i : i + 3]) for i in range(max(1, len(self.words) - 2))}
        self._grams = Grams(self.text)

    def like(self, other: Seen) -> F64:
        """All of `MEASURES` but the last, each from 0 to 1."""
        shared = len(self._phrases & other._phrases)
        all_phrases = len(self._phrases) + len(other._phrases) - shared
        longest = max(len(self.words), len(other.words))
        opening = next(
            (i for i, (a, b) in enumerate(zip(self.words, other.words, strict=False)) if a != b),
            min(len(self.words), len(other.words)),
        )
        until = min(_OPENING, longest)
        return np.array(
            [
                self._grams.like(other._grams) if self.text != other.text else 1.0,
                shared / all_phrases,
                min(opening, until) / until if until else 1.0,
                min(len(self.words), len(other.words)) / longest if longest else 1.0,
            ]
        )


def marks(seen: Seen) -> Marks:
    """How often each function word and each sign occurs."""
    counts = [seen.words.count(word) for word in _FUNCTION_WORDS] + [seen.text.count(sign) for sign in _SIGNS]
    return np.array(counts, np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class Looked:
    """One model's replies beside the teacher's.

    like: (P, M − 1), each pair of replies by all measures but style.  marks: (P, F).
    """

    like: F64
    marks: Marks

    @classmethod
    def at(cls, texts: Sequence[str], teacher: Sequence[Seen]) -> Looked:
        seen = [Seen(text) for text in texts]
        like = [mine.like(theirs) for mine, theirs in zip(seen, teacher, strict=True)]
        return cls(np.stack(like), np.stack([marks(one) for one in seen]))

    def panel(self, places: Sequence[int], teacher_PF: Marks) -> F64:
        """The measures, in the order of `MEASURES`, over some of the prompts."""
        mine, theirs = (m[list(places)].sum(axis=0) for m in (self.marks, teacher_PF))
        apart = np.abs(mine / max(int(mine.sum()), 1) - theirs / max(int(theirs.sum()), 1)).sum()
        return np.array([*self.like[list(places)].mean(axis=0), 1.0 - 0.5 * float(apart)])


def ranks(values_XM: F64) -> list[int]:
    """Of each model, summed over the measures: twice the models below it plus the models equal to it."""
    scores = np.zeros(len(values_XM), np.int64)
    for values_X in values_XM.T:
        ordered = np.sort(values_X)
        scores += np.searchsorted(ordered, values_X, "left") + np.searchsorted(ordered, values_X, "right") - 1
    return [int(score) for score in scores]
