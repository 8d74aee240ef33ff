"""How often a mark is still found, by attack and length."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import Any

import numpy as np

from spiritsafe.progress import Progress, Silent
from spiritsafe.watermark._prf import U32
from spiritsafe.watermark.attacks._parse import run_attacks
from spiritsafe.watermark.attacks._types import Attack, Text

__all__ = ["PowerRow", "Test", "markdown", "power_table"]

Test = Callable[[U32], float]
"""Token ids of a text, the prompt not included, to its log10 p."""


@dataclass(frozen=True, slots=True)
class PowerRow:
    """One cell of the table.

    length: tokens a document had before the attack; tokens: their median number after it.
    power: share of documents found at each level, in the order of `levels`.
    facts: means of what the attack says it did.
    """

    attack: str
    length: int
    documents: int
    tokens: int
    median_log10_p: float
    levels: tuple[float, ...]
    power: tuple[float, ...]
    facts: dict[str, float]


def power_table(
    documents: Sequence[Sequence[int]],
    attacks: Sequence[tuple[str, Sequence[Attack]]],
    test: Test,
    tokenizer: Any,
    levels: Sequence[float] = (1e-3, 1e-6),
    lengths: Sequence[int] = (100, 200, 400, 800),
    seed: int = 0,
    progress: Progress | None = None,
) -> list[PowerRow]:
    """Cut documents to their first tokens, attack them, encode them again and test.

    documents: token ids as they were generated, the prompt left out; those shorter than a length sit that length out.
    attacks: (name, chain); an empty chain is no attack at all and tests the ids as they are.
    test: gets what a detector gets: the ids of the attacked text.
    """
    progress = progress or Silent()
    rows = []
    cells = [(length, name, chain) for length in lengths for name, chain in attacks]
    for done, (length, name, chain) in enumerate(cells):
        progress.update("attacks", done, len(cells), f"{name}, {length} tokens")
        cut = [(f"doc-{d}", tuple(ids[:length])) for d, ids in enumerate(documents) if len(ids) >= length]
        if not cut:
            continue
        texts = [Text(name_, _decode(tokenizer, ids), ids) for name_, ids in cut]
        attacked = run_attacks(texts, chain, seed)
        ids_of = [_encode(tokenizer, text) for text in attacked]
        rows.append(_row(name, length, attacked, ids_of, [test(ids) for ids in ids_of], tuple(levels)))
    progress.update("attacks", len(cells), len(cells))
    return rows


def _row(
    name: str,
    length: int,
    attacked: Sequence[Text],
    ids_of: Sequence[U32],
    log10_ps: Sequence[float],
    levels: tuple[float, ...],
) -> PowerRow:
    facts = {key for text in attacked for key in text.facts}
    return PowerRow(
        attack=name,
        length=length,
        documents=len(attacked),
        tokens=int(median(map(len, ids_of))),
        median_log10_p=float(median(log10_ps)),
        levels=levels,
        power=tuple(mean(float(p <= math.log10(level)) for p in log10_ps) for level in levels),
        facts={key: mean(text.facts.get(key, 0.0) for text in attacked) for key in sorted(facts)},
    )


def markdown(rows: Sequence[PowerRow]) -> str:
    """The rows as a table, one line an attack: power at each level and the median log10 p, by length."""
    if not rows:
        return ""
    lengths = sorted({row.length for row in rows})
    levels = rows[0].levels
    cells = {(row.attack, row.length): row for row in rows}
    columns = [f"{length} tokens" for length in lengths]
    out = ["| attack | " + " | ".join(columns) + " |", "|---" * (1 + len(columns)) + "|"]
    for attack in dict.fromkeys(row.attack for row in rows):
        line = []
        for length in lengths:
            row = cells.get((attack, length))
            shares = "" if row is None else " / ".join(f"{100 * share:.0f} %" for share in row.power)
            line.append("" if row is None else f"{shares} ({row.median_log10_p:.1f})")
        out.append(f"| {attack} | " + " | ".join(line) + " |")
    wanted = " / ".join(f"p ≤ {level:g}" for level in levels)
    return "\n".join([*out, "", f"Share of documents found at {wanted}; in brackets the median log10 p.", ""])


def _decode(tokenizer: Any, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _encode(tokenizer: Any, text: Text) -> U32:
    ids = text.ids if text.ids is not None else tokenizer.encode(text.text, add_special_tokens=False)
    return np.asarray(ids, np.uint32)
