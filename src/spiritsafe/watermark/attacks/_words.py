"""Word edits: delete, substitute, synonym.

A word is a run of non-space characters without the punctuation and symbols at its ends; in scripts that write without
spaces, a character. What is not a chosen word stays as it is, to the last space.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from random import Random

from spiritsafe.watermark.attacks._synonyms import synonyms_of
from spiritsafe.watermark.attacks._types import Text, rng_for

__all__ = ["Delete", "Substitute", "Synonym", "Word", "in_case_of", "words"]

_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
_CHUNK = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")
_EDGE = frozenset("PSCZ")
Word = tuple[int, int]


def words(text: str) -> list[Word]:
    """Start and end of every word, in order."""
    found = []
    for match in _CHUNK.finditer(text):
        start, end = match.span()
        while start < end and unicodedata.category(text[start])[0] in _EDGE:
            start += 1
        while start < end and unicodedata.category(text[end - 1])[0] in _EDGE:
            end -= 1
        if start < end:
            found.append((start, end))
    return found


def in_case_of(word: str, like: str) -> str:
    """`word` capitalised as `like` is."""
    if len(like) > 1 and like.isupper():
        return word.upper()
    return word[:1].upper() + word[1:] if like[:1].isupper() else word


class Delete:
    """Drops a share of the words, each with one space before it."""

    def __init__(self, label: str, share: float) -> None:
        self.label, self.share = label, share

    def run(self, texts: Sequence[Text], seed: int) -> list[Text]:
        return [self._one(text, rng_for(seed, self.label, text.id)) for text in texts]

    def _one(self, text: Text, random: Random) -> Text:
        spans = words(text.text)
        chosen = random.sample(range(len(spans)), round(self.share * len(spans)))
        gone = []
        for start, end in (spans[i] for i in chosen):
            # a word at the very start takes the space after it along
            before = start > 0 and text.text[start - 1] == " "
            after = start == 0 and text.text[end : end + 1] == " "
            gone.append((start - before, end + after))
        return text.edited(_replaced(text.text, gone, lambda _: ""), words_changed=_share(len(chosen), len(spans)))


class Substitute:
    """Replaces a share of the words by words drawn at random from all the texts."""

    def __init__(self, label: str, share: float) -> None:
        self.label, self.share = label, share

    def run(self, texts: Sequence[Text], seed: int) -> list[Text]:
        pool = [t.text[start:end] for t in texts for start, end in words(t.text)]
        if len({word.casefold() for word in pool}) < 2:
            return [t.edited(t.text, words_changed=0.0) for t in texts]
        return [self._one(text, pool, rng_for(seed, self.label, text.id)) for text in texts]

    def _one(self, text: Text, pool: Sequence[str], random: Random) -> Text:
        spans = words(text.text)
        chosen = random.sample(range(len(spans)), round(self.share * len(spans)))

        def other(word: str) -> str:
            while True:
                drawn = random.choice(pool)
                if drawn.casefold() != word.casefold():
                    return in_case_of(drawn, word)

        edited = _replaced(text.text, [spans[i] for i in chosen], other)
        return text.edited(edited, words_changed=_share(len(chosen), len(spans)))


class Synonym:
    """Replaces a share of all words by synonyms from a small English table; words it does not know stay.

    facts: `words_known`, the share of words in the table, is the most that can be changed.
    """

    def __init__(self, label: str, share: float) -> None:
        self.label, self.share = label, share

    def run(self, texts: Sequence[Text], seed: int) -> list[Text]:
        return [self._one(text, rng_for(seed, self.label, text.id)) for text in texts]

    def _one(self, text: Text, random: Random) -> Text:
        spans = words(text.text)
        known = [span for span in spans if synonyms_of(text.text[slice(*span)])]
        chosen = random.sample(known, min(len(known), round(self.share * len(spans))))
        edited = _replaced(text.text, chosen, lambda word: in_case_of(random.choice(synonyms_of(word)), word))
        return text.edited(
            edited, words_changed=_share(len(chosen), len(spans)), words_known=_share(len(known), len(spans))
        )


def _replaced(text: str, spans: Sequence[Word], by: Callable[[str], str]) -> str:
    parts, at = [], 0
    for start, end in sorted(spans):
        start = max(start, at)
        parts += [text[at:start], by(text[start:end])]
        at = end
    return "".join([*parts, text[at:]])


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
