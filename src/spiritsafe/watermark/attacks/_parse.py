"""From NAME[:STRENGTH] to an attack."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence

from spiritsafe.errors import BadInput
from spiritsafe.watermark.attacks._paraphrase import Paraphrase
from spiritsafe.watermark.attacks._splice import CopyPaste, Mix, Truncate
from spiritsafe.watermark.attacks._spoof import Spoof
from spiritsafe.watermark.attacks._surface import Homoglyph, Normalise, Retokenise, Whitespace
from spiritsafe.watermark.attacks._types import Attack, Text, Tools
from spiritsafe.watermark.attacks._words import Delete, Substitute, Synonym

__all__ = ["ATTACKS", "parse_attack", "run_attacks"]

_COPY_PASTE = re.compile(r"(.+?)(?:x(\d+))?")


def parse_attack(spec: str, tools: Tools | None = None, context_width: int = 2) -> Attack:
    """The attack of a spec such as "delete:30", "copy-paste:25x3", "retokenise" or "mix:2".

    Shares are per cent (30 or 30%) or fractions below 1 (0.3). `ATTACKS` says what each strength means.

    Raises:
        BadInput: no such attack, a strength it cannot have, or a tool it needs is missing.
    """
    name, _, strength = spec.strip().partition(":")
    if name not in _BUILDERS:
        near = difflib.get_close_matches(name, _BUILDERS, n=1)
        raise BadInput(
            f"--attack {spec}: no such attack;" + (f" did you mean {near[0]}?" if near else f" there are {_names()}")
        )
    return _BUILDERS[name](spec.strip(), strength.strip(), tools or Tools(), context_width)


def run_attacks(texts: Sequence[Text], attacks: Sequence[Attack], seed: int) -> list[Text]:
    """One attack after another, each on what the one before left."""
    current = list(texts)
    for attack in attacks:
        current = attack.run(current, seed)
    return current


def _share(spec: str, strength: str, default: float) -> float:
    if not strength:
        return default
    try:
        value = float(strength.removesuffix("%"))
    except ValueError:
        value = -1.0
    value = value / 100 if value >= 1 or strength.endswith("%") else value
    if not 0 <= value <= 1:
        raise BadInput(f"--attack {spec}: the strength is a share, such as 30, 30% or 0.3")
    return value


def _whole(spec: str, strength: str, default: int, least: int) -> int:
    if not strength:
        return default
    if not strength.isdecimal() or not least <= int(strength) <= 10_000:
        raise BadInput(f"--attack {spec}: the strength is a whole number from {least} to 10,000")
    return int(strength)


def _none(spec: str, strength: str) -> str:
    if strength:
        raise BadInput(f"--attack {spec}: takes no strength")
    return spec


def _copy_paste(spec: str, strength: str, tools: Tools) -> Attack:
    match = _COPY_PASTE.fullmatch(strength or "25")
    share, spans = match.groups() if match else ("", None)
    return CopyPaste(spec, _share(spec, share, 0.25), _whole(spec, spans or "1", 1, 1), tools)


_Builder = Callable[[str, str, Tools, int], Attack]
_BUILDERS: dict[str, _Builder] = {
    "delete": lambda spec, strength, tools, k: Delete(spec, _share(spec, strength, 0.1)),
    "substitute": lambda spec, strength, tools, k: Substitute(spec, _share(spec, strength, 0.1)),
    "synonym": lambda spec, strength, tools, k: Synonym(spec, _share(spec, strength, 0.3)),
    "copy-paste": lambda spec, strength, tools, k: _copy_paste(spec, strength, tools),
    "truncate": lambda spec, strength, tools, k: Truncate(spec, _share(spec, strength, 0.5)),
    "retokenise": lambda spec, strength, tools, k: Retokenise(spec, strength or None, tools),
    "homoglyph": lambda spec, strength, tools, k: Homoglyph(spec, _share(spec, strength, 0.1)),
    "whitespace": lambda spec, strength, tools, k: Whitespace(spec, _share(spec, strength, 0.1)),
    "normalise": lambda spec, strength, tools, k: Normalise(_none(spec, strength)),
    "paraphrase": lambda spec, strength, tools, k: Paraphrase(spec, _whole(spec, strength, 3, 1), tools),
    "mix": lambda spec, strength, tools, k: Mix(spec, _whole(spec, strength, 2, 2)),
    "spoof": lambda spec, strength, tools, k: Spoof(spec, _whole(spec, strength, 10, 1), k, tools),
}

ATTACKS = {
    "delete": "drop a share of the words (10 %)",
    "substitute": "replace a share of the words by random words of the texts (10 %)",
    "synonym": "replace a share of the words by synonyms from a small table (30 %)",
    "copy-paste": "keep a share of the words, in so many spans, inside human text: copy-paste:25x3 (25 %, one span)",
    "truncate": "cut a share of the words off the ends (50 %)",
    "retokenise": "tokens to text and back; retokenise:PATH through another tokenizer",
    "homoglyph": "replace a share of the letters that have look-alikes (10 %)",
    "whitespace": "odd or zero-width characters at a share of the spaces (10 %)",
    "normalise": "what a detector can undo of the two above",
    "paraphrase": "a language model rewrites so many sentences a time (3)",
    "mix": "join so many texts, sentence by sentence (2)",
    "spoof": "forge so many texts from what the marked ones give away (10)",
}


def _names() -> str:
    return ", ".join(_BUILDERS)
