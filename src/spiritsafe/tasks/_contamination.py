"""Does a training text contain what the student will be tested on?

Three signs: the same question word for word; a shared run of n words (Brown et al., 2020, arXiv 2005.14165, appendix C,
use 13); a near-duplicate by Jaccard similarity of 5-word shingles. Runs found in many different training prompts are
boilerplate, such as the wording of a prompt template, and count for nothing: the same paper ignores runs that more
than ten training documents share.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from spiritsafe.tasks._text import shingles, words

__all__ = ["Contamination", "HeldOut"]

_SHINGLE = 5


@dataclass(frozen=True, slots=True)
class HeldOut:
    """One text to be tested on: a question, or an answer."""

    id: str
    text: str
    is_question: bool = True


class Contamination:
    """An index of held-out texts. Memory grows with them, not with the training set.

    ngram: words in a run that give a text away. threshold: Jaccard similarity that does; None for no such check.
    Answers shorter than `ngram` words are no sign (many questions share the answer 'Yes') and are left out.
    """

    def __init__(self, held_out: Iterable[HeldOut], *, ngram: int = 13, threshold: float | None = 0.8) -> None:
        self._ngram, self._threshold = ngram, threshold
        self._ids: list[str] = []
        self._is_question: list[bool] = []
        self._shingles: list[set[str]] = []
        self._questions: dict[str, str] = {}
        self._by_run: dict[str, str] = {}
        self._by_shingle: dict[str, list[int]] = {}
        self._ignored: set[str] = set()
        for text in held_out:
            self._add(text)

    def __len__(self) -> int:
        return len(self._ids)

    def ignore_common(self, training: Iterable[tuple[str, str]], *, more_than: int = 10) -> None:
        """Take as boilerplate what occurs with more than `more_than` different prompts of `training`.

        training: (prompt, completion) pairs. Pairs with the same prompt count once.
        """
        prompts: dict[str, set[int]] = {}
        for prompt, completion in training:
            key = hash(prompt)
            for known in (words(prompt), words(completion)):
                for gram in _runs(known, self._ngram) | shingles(known, _SHINGLE):
                    if gram in self._by_run or gram in self._by_shingle:
                        seen = prompts.setdefault(gram, set())
                        if len(seen) <= more_than:
                            seen.add(key)
        self._ignored = {gram for gram, keys in prompts.items() if len(keys) > more_than}
        for own in self._shingles:
            own -= self._ignored

    def find(self, text: str, *, is_question: bool) -> str | None:
        """How `text` overlaps a held-out text, in words that name it; None if it does not."""
        known = words(text)
        if is_question and (found := self._questions.get(" ".join(known))):
            return f"asks the same as held-out {found}"
        for run in sorted(_runs(known, self._ngram) - self._ignored):
            if found := self._by_run.get(run):
                return f"shares {self._ngram} words with held-out {found}: “{run}”"
        if self._threshold is None or (not is_question and len(known) < self._ngram):
            return None
        return self._near(shingles(known, _SHINGLE) - self._ignored, is_question, self._threshold)

    def _near(self, own: set[str], is_question: bool, threshold: float) -> str | None:
        shared = Counter(number for shingle in own for number in self._by_shingle.get(shingle, ()))
        for number, overlap in sorted(shared.items()):
            similarity = overlap / (len(own) + len(self._shingles[number]) - overlap)
            if self._is_question[number] == is_question and similarity >= threshold:
                return f"near-duplicate of held-out {self._ids[number]} (Jaccard {similarity:.2f})"
        return None

    def _add(self, text: HeldOut) -> None:
        known = words(text.text)
        if not known or (not text.is_question and len(known) < self._ngram):
            return
        own = shingles(known, _SHINGLE)
        if text.is_question:
            self._questions.setdefault(" ".join(known), text.id)
        for run in _runs(known, self._ngram):
            self._by_run.setdefault(run, text.id)
        for shingle in own:
            self._by_shingle.setdefault(shingle, []).append(len(self._ids))
        self._ids.append(text.id)
        self._is_question.append(text.is_question)
        self._shingles.append(own)


def _runs(known: list[str], size: int) -> set[str]:
    """Runs of exactly `size` words; none in a shorter text."""
    return shingles(known, size) if len(known) >= size else set()
