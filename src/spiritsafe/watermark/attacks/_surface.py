"""Attacks that a reader does not see: look-alike letters, odd spaces, another tokenisation; and the undoing of them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from spiritsafe.watermark.attacks._types import Text, Tools, rng_for

__all__ = ["Homoglyph", "Normalise", "Retokenise", "Whitespace"]

_LATIN = "acehijkopsuvxyABCEHIKMNOPSTXYZ"
_ALIKE = "асеһіјкорѕυνхуАВСЕНІКМΝОРЅТХΥΖ"
_LOOK_ALIKE = dict(zip(_LATIN, _ALIKE, strict=True))
_BACK = str.maketrans(_ALIKE, _LATIN)
_INVISIBLE = "\u200b\u200c\u200d\u2060\ufeff\u00ad"
_ODD_SPACES = ("\u00a0", "\u2009", "\u202f", "  ")
_GAP = re.compile(r"(?<=\S) (?=\S)")
_ODD_SPACE = re.compile(r"[^\S\n\r\t]")
_WIDE_GAP = re.compile(r"(?<=\S) {2,}(?=\S)")
_NOT_LATIN = re.compile(r"[Ͱ-ϿЀ-ԯ]")


class Homoglyph:
    """Replaces a share of the Latin letters that have look-alikes by those, Cyrillic or Greek."""

    def __init__(self, label: str, share: float) -> None:
        self.label, self.share = label, share

    def run(self, texts: Sequence[Text], seed: int) -> list[Text]:
        return [self._one(text, seed) for text in texts]

    def _one(self, text: Text, seed: int) -> Text:
        letters = list(text.text)
        able = [i for i, letter in enumerate(letters) if letter in _LOOK_ALIKE]
        chosen = rng_for(seed, self.label, text.id).sample(able, round(self.share * len(able)))
        for i in chosen:
            letters[i] = _LOOK_ALIKE[letters[i]]
        return text.edited("".join(letters), letters_changed=len(chosen) / len(letters) if letters else 0.0)


class Whitespace:
    """At a share of the spaces between words: another space, two spaces, or a zero-width character in the next word."""

    def __init__(self, label: str, share: float) -> None:
        self.label, self.share = label, share

    def run(self, texts: Sequence[Text], seed: int) -> list[Text]:
        return [self._one(text, seed) for text in texts]

    def _one(self, text: Text, seed: int) -> Text:
        random = rng_for(seed, self.label, text.id)
        gaps = [match.start() for match in _GAP.finditer(text.text)]
        chosen = sorted(random.sample(gaps, round(self.share * len(gaps))))
        parts, at = [], 0
        for gap in chosen:
            # the zero-width characters stand before the space: no letter is parted from its combining marks
            odd = random.choice((*_ODD_SPACES, *(invisible + " " for invisible in _INVISIBLE[:4])))
            parts += [text.text[at:gap], odd]
            at = gap + 1
        edited = "".join([*parts, text.text[at:]])
        return text.edited(edited, gaps_changed=len(chosen) / len(gaps) if gaps else 0.0)


class Retokenise:
    """Tokens to text and back: as given, or through another tokenizer, which keeps only what that one can spell."""

    def __init__(self, label: str, other: str | None, tools: Tools) -> None:
        self.label = label
        self.tokenizer = tools.need_tokenizer(label)
        self.other = tools.open_tokenizer(other) if other and tools.open_tokenizer else None

    def run(self, texts: Sequence[Text], seed: int) -> list[Text]:
        return [self._one(text) for text in texts]

    def _one(self, text: Text) -> Text:
        by = self.other or self.tokenizer
        # tokens as they were given decode to what a reader would copy; encoding that is a tokenisation of its own
        spelled = text.text if text.ids is None else _decoded(self.tokenizer, text.ids)
        spelled = _decoded(by, by.encode(spelled, add_special_tokens=False))
        again = self.tokenizer.encode(spelled, add_special_tokens=False)
        moved = 0.0
        if text.ids is not None:
            same = sum(a == b for a, b in zip(text.ids, again, strict=False))
            moved = 1 - same / max(len(text.ids), len(again), 1)
        return text.edited(spelled, tokens_moved=moved)


class Normalise:
    """Not an attack but the answer to two: what a detector can undo before it tokenises.

    Drops zero-width characters, makes odd spaces plain, one between words, and reads look-alikes as Latin: in words
    that have Latin letters too, and everywhere in a text without any other Greek or Cyrillic letter, so that Greek and
    Russian stay.
    """

    def __init__(self, label: str) -> None:
        self.label = label

    def run(self, texts: Sequence[Text], seed: int) -> list[Text]:
        return [text.edited(_plain(text.text)) for text in texts]


def _plain(text: str) -> str:
    text = unicodedata.normalize("NFC", text.translate({ord(c): None for c in _INVISIBLE}))
    text = _WIDE_GAP.sub(" ", _ODD_SPACE.sub(" ", text))
    foreign = _NOT_LATIN.search(text.translate(_BACK))
    return re.sub(r"\w+", lambda match: _as_latin(match[0], everywhere=not foreign), text)


def _as_latin(word: str, everywhere: bool) -> str:
    return word.translate(_BACK) if everywhere or any("a" <= c.lower() <= "z" for c in word) else word


def _decoded(tokenizer: object, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))  # type: ignore[attr-defined]
