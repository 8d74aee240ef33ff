"""From answers to what is scored: pairs of a context and what the suspect says after it, each coin once.

A marked text is a path: its token after context w was drawn with the key's coins of w, all of them. A prediction at w
is a function of the suspect and of the text before; it says something about coins that nobody has looked at only if no
text came to w before. So all texts are followed in step, a token a step, and a context counts at the first place, from
the start of a reply, at which any of them has it: there, the different predictions of all texts that have it.
design/audit-radioactivity.md has the proof.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from spiritsafe.watermark import Detector, NativeDetector, Reading
from spiritsafe.watermark._packing import identities
from spiritsafe.watermark._pool import joined
from spiritsafe.watermark._prf import U32, U64, context_hashes
from spiritsafe.watermark._seen import DocumentSeen

__all__ = ["Candidates", "Layer", "Wrote", "completed", "earliest", "own_coins", "predicted"]

I64 = NDArray[np.int64]
Mask = NDArray[np.bool_]
Layer = Literal["epoch", "account"]
_NO_KEY = np.zeros(2, np.uint64)
_NO_IDS = np.empty(0, np.uint32)


@dataclass(frozen=True, slots=True, eq=False)
class Wrote:
    """Token ids after their prompt's: a marked text, or what the suspect wrote.

    said: the suspect's prediction for each of `ids`, in reading mode.
    """

    prompt: U32
    ids: U32
    said: U32


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """Positions of all answers, whichever key is asked about.

    able: whether a position may count, whoever speaks for it.
    """

    reading: Reading
    able: Mask

    def counted(self, detector: Detector, layer: Layer) -> Reading:
        """What counts for a key of this layer."""
        reading = self.reading.take(self.able & _of_layer(detector, self.reading, layer))
        return reading.take(DocumentSeen().first(reading.inputs))


def own_coins(detector: Detector) -> bool:
    """Whether every context has coins of its own, so that a text which never had this context used none of them."""
    return not (detector.keyed_reading or detector.scheme == "hf-synthid")


def predicted(detector: Detector, texts: Sequence[Wrote]) -> Candidates:
    """Reading mode: predictions after contexts of marked texts that no text had earlier, nor its own prompt.

    Raises:
        BadInput: ids that the scheme's vocabulary does not have.
    """
    detector.read(np.concatenate([_NO_IDS, *(text.said for text in texts)]), 0)  # for its check of the vocabulary
    readings = [_whole(detector, text) for text in texts]
    whole = joined([_none(detector), *readings])
    said = [text.said[r.positions - len(text.prompt)] for text, r in zip(texts, readings, strict=True)]
    tokens = np.concatenate([_NO_IDS, *said])
    lengths = np.repeat([len(text.prompt) for text in texts], [len(r.tokens) for r in readings]).astype(np.int64)
    whole = replace(whole, tokens=tokens, inputs=_inputs(whole, tokens))
    rows = _rows(whole)
    able = _not_in_prompts(detector, texts, readings, rows) & earliest(rows, whole.positions - lengths)
    return Candidates(whole, able)


def earliest(rows_P: NDArray[Any], places_P: I64) -> Mask:
    """True (P,) where no position with the same context has an earlier place."""
    _, rows = np.unique(rows_P, return_inverse=True)
    first = np.full(len(rows), np.iinfo(np.int64).max)
    np.minimum.at(first, rows, places_P)
    mask: Mask = places_P == first[rows]
    return mask


def completed(detector: Detector, answers: Sequence[Wrote], marked: Sequence[Wrote] | None) -> Candidates:
    """Completions: what the suspect wrote, after contexts that its prompt does not have, and that occur in `marked`.

    Raises:
        BadInput: ids that the scheme's vocabulary does not have.
    """
    readings = [_whole(detector, answer) for answer in answers]
    whole = joined([_none(detector), *readings])
    rows = _rows(whole)
    able = _not_in_prompts(detector, answers, readings, rows)
    if marked is not None:
        able &= np.isin(rows, _rows(joined([_none(detector), *(_whole(detector, text) for text in marked)])))
    return Candidates(whole, able)


def _not_in_prompts(detector: Detector, texts: Sequence[Wrote], readings: Sequence[Reading], rows_P: U64) -> Mask:
    """True (P,) where the text's own prompt does not have the position's context."""
    prompts = [detector.read(text.prompt, 0) for text in texts]
    theirs = _rows(joined([_none(detector), *prompts])) + _apart(prompts)
    return ~np.isin(rows_P + _apart(readings), theirs)


def _apart(readings: Sequence[Reading]) -> U64:
    """What tells the texts' contexts apart: a random number a text, the same for whichever readings of the texts."""
    numbers = np.random.default_rng(0).integers(1 << 64, size=len(readings), dtype=np.uint64)
    return np.repeat(numbers, [len(reading.tokens) for reading in readings])


def _whole(detector: Detector, text: Wrote) -> Reading:
    return detector.read(np.concatenate([text.prompt, text.ids]), len(text.prompt))


def _none(detector: Detector) -> Reading:
    return detector.read(_NO_IDS, 0)


def _of_layer(detector: Detector, reading: Reading, layer: Layer) -> Mask:
    if not isinstance(detector, NativeDetector):
        return np.ones(len(reading.tokens), np.bool_)
    accounts = detector.account_positions(reading, 0)
    return accounts if layer == "account" else ~accounts


def _rows(reading: Reading) -> U64:
    """What names each position's context."""
    return context_hashes(_NO_KEY, np.ascontiguousarray(reading.windows))  # type: ignore[no-any-return]


def _inputs(reading: Reading, tokens_N: U32) -> U64:
    """The identity of each coin, had these tokens come."""
    pairs = np.column_stack([reading.windows, tokens_N]).astype(np.uint32)
    width = pairs.shape[1]
    return identities(pairs.reshape(-1), width - 1, width - 1)[::width]  # type: ignore[no-any-return]
