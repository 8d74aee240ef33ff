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
    readings, new, places = [_none(detector)], [np.empty(0, np.bool_)], [np.empty(0, np.int64)]
    for text in texts:
        detector.read(text.said, 0)  # for its check of the vocabulary
        reading = detector.read(np.concatenate([text.prompt, text.ids]), len(text.prompt))
        said = text.said[reading.positions - len(text.prompt)]
        readings.append(replace(reading, tokens=said, inputs=_inputs(reading, said)))
        new.append(~np.isin(_rows(reading), _rows(detector.read(text.prompt, 0))))
        places.append(reading.positions - len(text.prompt))
    whole = joined(readings)
    return Candidates(whole, np.concatenate(new) & earliest(_rows(whole), np.concatenate(places)))


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
    readings, able = [_none(detector)], [np.empty(0, np.bool_)]
    known = None if marked is None else [_whole(detector, text) for text in marked]
    contexts = None if known is None else np.unique(np.concatenate([np.empty(0, np.uint64), *map(_rows, known)]))
    for answer in answers:
        reading = _whole(detector, answer)
        rows = _rows(reading)
        mask = ~np.isin(rows, _rows(detector.read(answer.prompt, 0)))
        readings.append(reading)
        able.append(mask if contexts is None else mask & np.isin(rows, contexts))
    return Candidates(joined(readings), np.concatenate(able))


def _whole(detector: Detector, text: Wrote) -> Reading:
    return detector.read(np.concatenate([text.prompt, text.ids]), len(text.prompt))


def _none(detector: Detector) -> Reading:
    return detector.read(np.empty(0, np.uint32), 0)


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
