"""What an attack is: texts in, texts out, the same for the same seed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any, Protocol

from spiritsafe.errors import BadInput

__all__ = ["Attack", "Rewrite", "Text", "Tools", "rng_for"]

Rewrite = Callable[[Sequence[str]], Sequence[str]]
"""Passages in, the same number of rewritten passages out: what a paraphrase needs of a language model."""


@dataclass(frozen=True, slots=True)
class Text:
    """A text under attack. `ids` are the tokens it was given as: an attack that edits characters drops them.

    facts: what an attack did to it, such as the share of words it changed.
    """

    id: str
    text: str
    ids: tuple[int, ...] | None = None
    facts: Mapping[str, float] = field(default_factory=dict)

    def edited(self, text: str, **facts: float) -> Text:
        return replace(self, text=text, ids=None, facts={**self.facts, **facts})


@dataclass(frozen=True, slots=True)
class Tools:
    """What attacks may need beyond the texts.

    tokenizer: the one the marks were made with.
    host: human text to paste into.
    rewrite: a language model that paraphrases.
    open_tokenizer: loads another tokenizer from a path or name.
    """

    tokenizer: Any = None
    host: str | None = None
    rewrite: Rewrite | None = None
    open_tokenizer: Callable[[str], Any] | None = None

    def need_tokenizer(self, label: str) -> Any:
        """The tokenizer.

        Raises:
            BadInput: there is none.
        """
        if self.tokenizer is None:
            raise BadInput(f"--attack {label}: works on tokens; give the marking model's --tokenizer")
        return self.tokenizer


class Attack(Protocol):
    """Tries to remove, dilute or forge a mark. Pure: equal texts and seed give equal results, whatever ran before."""

    label: str

    def run(self, texts: Sequence[Text], seed: int) -> list[Text]:
        """The attacked texts; as many, except where the attack joins or forges texts."""


def rng_for(seed: int, label: str, text_id: str = "") -> Random:
    """A generator for one text under one attack, so that neither order nor neighbours change what happens to it."""
    digest = hashlib.sha256(f"{seed}\x1f{label}\x1f{text_id}".encode("utf-8", "surrogatepass")).digest()
    return Random(int.from_bytes(digest[:16], "big"))  # noqa: S311 — an attack to repeat, no secret
