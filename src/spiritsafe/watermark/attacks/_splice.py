"""Attacks that move whole passages: copy-paste into human text, truncate, mix several texts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from random import Random

from spiritsafe.errors import BadInput
from spiritsafe.watermark.attacks._host import stdlib_prose
from spiritsafe.watermark.attacks._types import Text, Tools, rng_for
from spiritsafe.watermark.attacks._words import words

__all__ = ["CopyPaste", "Mix", "Truncate", "sentences"]

_SENTENCE_END = re.compile(r"(?<=[.!?。！？])[\"'”’)\]]*\s+|\n{2,}")


def sentences(text: str) -> list[str]:
    """The text cut after its sentences; joined they are the text again."""
    cuts = [match.end() for match in _SENTENCE_END.finditer(text) if match.end() < len(text)]
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True) if a < b]


class CopyPaste:
    """As many words as before, but only a share of them marked, in so many spans, the rest human text.

    The marked spans are equal in length and drawn from all along the text; the human text around them is one stretch of
    the host a gap. (Kirchenbauer et al., "On the reliability of watermarks for large language models", 2023, §5.)
    """

    def __init__(self, label: str, share: float, spans: int, tools: Tools) -> None:
        self.label, self.share, self.spans = label, share, spans
        self.host = tools.host if tools.host is not None else stdlib_prose()
        self.host_words = words(self.host)
        if not self.host_words:
            raise BadInput(f"--attack {label}: the host text has no words; give another --host FILE")

    def run(self, texts: Sequence[Text], seed: int) -> list[Text]:
        return [self._one(text, rng_for(seed, self.label, text.id)) for text in texts]

    def _one(self, text: Text, random: Random) -> Text:
        spans = words(text.text)
        kept = round(self.share * len(spans))
        pieces = min(self.spans, kept)
        sizes = _parts(kept, pieces)
        starts = _spread(len(spans) - kept, pieces, random)
        gaps = _spread(len(spans) - kept, pieces, random)
        out: list[str] = []
        used = pasted = 0
        for size, start, gap in zip(sizes, starts, gaps, strict=True):
            out += [self._human(gap - pasted, random), _between(text.text, spans, start + used, start + used + size)]
            used += size
            pasted = gap
        out.append(self._human(len(spans) - kept - pasted, random))
        return text.edited("\n\n".join(part for part in out if part), words_kept=kept / len(spans) if spans else 0.0)

    def _human(self, count: int, random: Random) -> str:
        """So many words of the host from a random place on; it starts over if it is too short."""
        out: list[str] = []
        start = random.randrange(len(self.host_words))
        while count > 0:
            piece = _between(self.host, self.host_words, start, min(start + count, len(self.host_words)))
            count -= min(count, len(self.host_words) - start)
            start = 0
            out.append(piece)
        return "\n\n".join(out)


class Truncate:
    """Cuts a share of the words off the two ends; what stays is one stretch, from a random place."""

    def __init__(self, label: str, share: float) -> None:
        self.label, self.share = label, share

    def run(self, texts: Sequence[Text], seed: int) -> list[Text]:
        return [self._one(text, rng_for(seed, self.label, text.id)) for text in texts]

    def _one(self, text: Text, random: Random) -> Text:
        spans = words(text.text)
        cut = round(self.share * len(spans))
        start = random.randint(0, cut)
        kept = _between(text.text, spans, start, start + len(spans) - cut)
        return text.edited(kept, words_kept=1 - cut / len(spans) if spans else 0.0)


class Mix:
    """Joins so many texts into one, sentence by sentence in turn: several accounts in one text. Nothing is lost."""

    def __init__(self, label: str, size: int) -> None:
        self.label, self.size = label, size

    def run(self, texts: Sequence[Text], seed: int) -> list[Text]:
        groups = [texts[i : i + self.size] for i in range(0, len(texts), self.size)]
        return [_interleaved(group) for group in groups]


def _interleaved(group: Sequence[Text]) -> Text:
    queues = [sentences(text.text) for text in group]
    out: list[str] = []
    for turn in range(max(map(len, queues))):
        for queue in queues:
            if turn < len(queue):
                if out and not out[-1][-1].isspace():
                    out.append(" ")
                out.append(queue[turn])
    return Text("+".join(text.id for text in group), "".join(out), None, {"texts_joined": float(len(group))})


def _between(text: str, spans: Sequence[tuple[int, int]], first: int, last: int) -> str:
    """The text from word `first` up to, not with, word `last`; punctuation after a word goes with it."""
    if first >= last:
        return ""
    end = spans[last][0] if last < len(spans) else len(text)
    return text[spans[first][0] if first else 0 : end].strip()


def _parts(total: int, parts: int) -> list[int]:
    """`total` in `parts` almost equal whole numbers."""
    return [total // parts + (i < total % parts) for i in range(parts)] if parts else []


def _spread(room: int, count: int, random: Random) -> list[int]:
    """`count` sorted places in 0 … room."""
    return sorted(random.randint(0, room) for _ in range(count))
