"""Text as comparisons see it: words, shingles, and how far two sets of them overlap."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Set

__all__ = ["collapse", "jaccard", "shingles", "words"]

# Scripts written without spaces count a character as a word: kana, Han, Thai to Khmer.
_UNSPACED = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")


def collapse(text: str) -> str:
    """NFC, and every run of white space one space: what 'exactly the same' means here."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def words(text: str) -> list[str]:
    """Words in folded case without punctuation; a character each in scripts written without spaces."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def shingles(units: list[str] | str, size: int) -> set[str]:
    """Runs of `size` units (words of a list, characters of a string); all of a shorter text is one shingle."""
    if not units:
        return set()
    joined = "" if isinstance(units, str) else " "
    return {joined.join(units[i : i + size]) for i in range(max(1, len(units) - size + 1))}


def jaccard(a: Set[object], b: Set[object]) -> float:
    """|a ∩ b| / |a ∪ b|; 1 for two empty sets."""
    if not a and not b:
        return 1.0
    shared = len(a & b)
    return shared / (len(a) + len(b) - shared)
