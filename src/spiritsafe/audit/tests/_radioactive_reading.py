"""From answers to what is scored: pairs of a context and what the suspect says after it, each coin once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from spiritsafe.audit.tests._radioactive_order import I64, Mask, countable
from spiritsafe.watermark import Detector, NativeDetector, Reading
from spiritsafe.watermark._packing import identities
from spiritsafe.watermark._pool import joined
from spiritsafe.watermark._prf import U32, U64, context_hashes
from spiritsafe.watermark._seen import DocumentSeen

__all__ = ["Candidates", "Layer", "Wrote", "completed", "own_coins", "predicted"]

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

    able: whether a position may count.  ends: where each answer ends, for marked texts that are read side by side; None
    where the order does not matter.
    """

    reading: Reading
    able: Mask
    ends: I64 | None

    def counted(self, detector: Detector, layer: Layer) -> Reading:
        """What counts for a key of this layer."""
        keep = _of_layer(detector, self.reading, layer)
        reading, able = self.reading.take(keep), self.able[keep]
        if self.ends is None:
            reading = reading.take(able)
            return reading.take(DocumentSeen().first(reading.inputs))
        ends = np.concatenate([[0], np.cumsum(keep)])[self.ends]
        return reading.take(countable(_rows(reading), reading.tokens, able, ends))


def own_coins(detector: Detector) -> bool:
    """Whether every context has coins of its own, so that a text which never had this context used none of them."""
    return not (detector.keyed_reading or detector.scheme == "hf-synthid")


def predicted(detector: Detector, texts: Sequence[Wrote]) -> Candidates:
    """Reading mode: predictions after the contexts of marked texts, where those are new to the text and its prompt.

    Raises:
        BadInput: ids that the scheme's vocabulary does not have.
    """
    readings, able, ends, count = [_none(detector)], [np.empty(0, np.bool_)], [], 0
    for text in texts:
        detector.read(text.said, 0)  # for its check of the vocabulary
        reading = detector.read(np.concatenate([text.prompt, text.ids]), len(text.prompt))
        said = text.said[reading.positions - len(text.prompt)]
        readings.append(replace(reading, tokens=said, inputs=_inputs(reading, said)))
        rows = _rows(reading)
        able.append(DocumentSeen().first(rows) & ~np.isin(rows, _rows(detector.read(text.prompt, 0))))
        count += len(rows)
        ends.append(count)
    return Candidates(joined(readings), np.concatenate(able), np.array(ends, np.int64))


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
    return Candidates(joined(readings), np.concatenate(able), None)


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
