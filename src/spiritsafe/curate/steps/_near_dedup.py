from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from spiritsafe.curate._step import Check, Context, Row, Step
from spiritsafe.tasks import collapse, shingles, words

_SEED = 1
_MISS = 1e-4  # the most chance we take that two texts exactly at the threshold never meet in a bucket


class NearDedup(Step):
    """Keep the first of rows that say nearly the same, by Jaccard similarity of their shingles.

    MinHash with banding (Broder, 1997; Leskovec et al., Mining of Massive Datasets, chapter 3) proposes candidates, and
    the true similarity decides. `both`: prompts and completions must each be that similar, so neither a long prompt
    shared by several samples nor a short common answer makes a duplicate.
    """

    name: ClassVar[str] = "near_dedup"
    threshold: float = Field(default=0.8, gt=0.0, le=1.0)
    unit: Literal["word", "char"] = "word"
    size: int = Field(default=5, ge=1, le=100)
    on: Literal["both", "prompt", "completion"] = "both"
    permutations: Literal[64, 128, 256] = 128

    def start(self, context: Context) -> Check:
        from rensa import RMinHash, RMinHashLSH

        index = RMinHashLSH(self.threshold, self.permutations, _bands(self.threshold, self.permutations))
        kept: list[tuple[str, list[NDArray[np.uint64]]]] = []

        def check(row: Row) -> str | None:
            parts = [self._hashes(text) for text in self._texts(row)]
            if not any(len(part) for part in parts):
                return None
            sketch = RMinHash(self.permutations, _SEED)
            # Prompt and completion apart in one set: if each is similar enough, so is their union.
            sketch.update([bytes([number]) + h.tobytes() for number, part in enumerate(parts) for h in part])
            for number in sorted(index.query(sketch)):
                other, shingled = kept[number]
                similarity = min(_jaccard(a, b) for a, b in zip(parts, shingled, strict=True))
                if similarity >= self.threshold:
                    return f"near-duplicate of {other} (Jaccard {similarity:.2f})"
            index.insert(len(kept), sketch)
            kept.append((row.id, parts))
            return None

        return check

    def _texts(self, row: Row) -> list[str]:
        texts = {"prompt": row.question, "completion": row.completion}
        return list(texts.values()) if self.on == "both" else [texts[self.on]]

    def _hashes(self, text: str) -> NDArray[np.uint64]:
        """Sorted 64-bit hashes of the text's shingles: a tenth of the memory of the strings."""
        from rensa import RMinHash

        units: list[str] | str = words(text) if self.unit == "word" else collapse(text).casefold()
        hashed = RMinHash.hash_token_sets([sorted(shingles(units, self.size))])[0]
        return np.unique(np.asarray(hashed, np.uint64))


def _jaccard(a: NDArray[np.uint64], b: NDArray[np.uint64]) -> float:
    if not len(a) and not len(b):
        return 1.0
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / (len(a) + len(b) - shared)


def _bands(threshold: float, permutations: int) -> int:
    """The fewest bands, so the fewest false candidates, that miss a pair at the threshold with chance ≤ `_MISS`."""
    bands = 1
    while bands < permutations and (1 - threshold ** (permutations // bands)) ** bands > _MISS:
        bands *= 2
    return bands
