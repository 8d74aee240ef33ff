"""How much two texts are alike, in a way that anybody can repeat. Standard library only.

    ~text           = the text with each run of white space as one space, none at the ends
    grams(text, n)  = how often each substring of n characters occurs in ~text
    F1(a, b, n)     = 2 × (size of the multisets' intersection) / (sum of their sizes); 0 if both are empty
    resemblance     = (F1(a, b, 1) + … + F1(a, b, 6)) / 6, added in that order, in double precision

It is chrF with β = 1 (Popović, "chrF: character n-gram F-score for automatic MT evaluation", 2015): no tokenizer, no
language, no case folding whose tables change with versions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

__all__ = ["Grams", "resemblance"]

_LONGEST = 6


class Grams:
    """The n-grams of a text, counted once for many comparisons."""

    def __init__(self, text: str) -> None:
        folded = " ".join(text.split())
        sizes = range(1, _LONGEST + 1)
        self._counts = [Counter(folded[i : i + n] for i in range(len(folded) - n + 1)) for n in sizes]
        self._totals = [max(len(folded) - n + 1, 0) for n in sizes]

    def like(self, other: Grams) -> float:
        """0 (nothing in common) to 1 (the same but for white space)."""
        total = 0.0
        for mine, theirs, all_of_both in zip(
            self._counts, other._counts, map(sum, zip(self._totals, other._totals, strict=True)), strict=True
        ):
            small, large = (mine, theirs) if len(mine) <= len(theirs) else (theirs, mine)
            common = sum(min(count, large[gram]) for gram, count in small.items() if gram in large)
            total += 2.0 * common / all_of_both if all_of_both else 0.0
        return total / _LONGEST


def resemblance(replies: Sequence[str], candidates: Sequence[str]) -> list[float]:
    """For each candidate, how much the replies resemble it: summed over the replies, in their order."""
    counted = [Grams(reply) for reply in replies]
    scores = []
    for candidate in map(Grams, candidates):
        total = 0.0
        for reply in counted:
            total += reply.like(candidate)
        scores.append(total)
    return scores
