"""Do these documents depend on this key? One document at a time, and all of them as one corpus.

Null hypothesis: the texts do not depend on the key set's (or the engine's) key.  Access: the key and the token ids.
Cost: tens of nanoseconds a token and key; decoys multiply it.  What it cannot show: that a text without a signal is
unmarked, or who wrote one that has it.

A document counts each PRF input once within itself, `pooled` once in the whole corpus: inputs that documents share
are the same coin. Several epochs are several tests: the best is corrected for all of them (Bonferroni). Decoys repeat
all of it, best epoch included, under keys from a public seed, and give a rank p = (1 + b) / (1 + K) that assumes
nothing about the law of a score (Besag and Clifford, 1989).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from spiritsafe import pvalue
from spiritsafe.errors import BadInput
from spiritsafe.watermark._entropy import weighted_log10_tail
from spiritsafe.watermark._prf import U32, U64
from spiritsafe.watermark._seen import DocumentSeen, Seen
from spiritsafe.watermark._spans import Span, find_spans
from spiritsafe.watermark._types import F64, Detector, Reading, Scores, TailOfInputs

__all__ = ["DECOY_SEED", "Corpus", "Row"]

DECOY_SEED = b"spiritsafe decoys 1"
_SPANS_FROM = 600  # tokens: shorter texts are one piece
Tail = Callable[[float], float]


@dataclass(frozen=True, slots=True)
class Row:
    """What one document, or the whole corpus, says.

    n_scored: positions that counted in the best trial.  log10_p: its p-value, corrected for `epochs_tried`.
    rank_p: (1 + b) / (1 + decoys); None without decoys.  spans: where the mark is, with p-values of their own.
    reachable: whether any text with so many scored positions could reach the level asked; `needs_scored`: how many do.
    """

    n_tokens: int
    n_scored: int
    log10_p: float
    epoch: str | None
    epochs_tried: int
    rank_p: float | None
    decoys: int
    spans: tuple[Span, ...]
    reachable: bool
    needs_scored: int


@dataclass(slots=True, eq=False)
class _Sum:
    """A trial's running total over new inputs, and its decoys'."""

    n: int = 0
    total: float = 0.0
    inputs: list[U64] = field(default_factory=list)
    decoys: F64 = field(default_factory=lambda: np.zeros(0))


class Corpus:
    """Tests documents as they come; keeps sums and the set of inputs seen, not the documents.

    decoys: decoy keys a document (and for `pooled`).  log10_level: the level a reader has in mind.
    spans: look for marked parts; None: in documents of 600 tokens and more.
    kind: "exponential" or "bernoulli", the law of a score, where documents come with entropy weights.
    pool: keep the corpus-wide sums (8 bytes and more per distinct input).

    Raises:
        BadInput: fewer than no decoys.
    """

    def __init__(
        self,
        detector: Detector,
        *,
        decoys: int = 0,
        seed: bytes = DECOY_SEED,
        log10_level: float = -3.0,
        spans: bool | None = None,
        kind: tuple[str, float | None] | None = None,
        pool: bool = True,
    ) -> None:
        if decoys < 0:
            raise BadInput(f"--decoys {decoys}: give 0 or more")
        self.detector, self.decoys, self._seed = detector, decoys, seed
        self._log10_level, self._find_spans, self._kind = log10_level, spans, kind
        # Decoys whose reading or statistic is their own repeat everything; the others share the reading.
        apart = decoys and (detector.keyed_reading or kind is not None)
        self._apart = (
            [Corpus(d, kind=kind, pool=pool, spans=False) for d in detector.decoys(seed, decoys)] if apart else []
        )
        self._together = 0 if apart else decoys
        self._document = DocumentSeen()
        self._seen = Seen() if pool else None
        self._sums = [_Sum(decoys=np.zeros(self._together)) for _ in detector.trials]
        self._tokens = 0
        self._needs = detector.fewest(log10_level - math.log10(len(detector.trials)))

    def observe(self, ids_T: U32, first: int = 0, weights_T: F64 | None = None) -> Row:
        """Test one document and add it to the corpus; ids before `first` are context only.

        weights_T: a weight ≥ 0 for every token, computed without the key.

        Raises:
            BadInput: a token id outside the vocabulary, where the detector knows it.
        """
        reading = self.detector.read(ids_T, first)
        reading = reading.take(self._document.first(reading.inputs))
        new = self._seen.add(reading.inputs) if self._seen is not None else None
        self._tokens += len(ids_T) - first
        tails: list[Tail] = []
        tests: list[tuple[float, int, int]] = []
        decoys: list[F64] = []
        scored: list[Scores] = []
        for trial in range(len(self.detector.trials)):
            scores = self.detector.scores(reading, trial)
            kept = scores.counted
            n, total = int(kept.sum()), float(scores.values[kept].sum())
            tail = self._tail(n, reading.inputs[kept])
            log10_p = tail(total) if weights_T is None else self._weighted(scores, reading, weights_T)
            scored.append(scores)
            tails.append(tail)
            tests.append((log10_p, trial, n))
            if self._together:
                decoys.append(self.detector.decoy_totals(reading, trial, self._seed, self._together)[1])
            if new is not None:
                self._add(trial, reading, scores, new, decoys)
        log10_p, trial, n = min(tests)
        others = [one.observe(ids_T, first, weights_T).log10_p for one in self._apart]
        corrected = pvalue.bonferroni(log10_p, len(tests))
        rank = self._rank(log10_p, corrected, tails, decoys, others)
        spans = self._spans(reading, scored[trial], trial, len(ids_T) - first)
        return self._row(len(ids_T) - first, n, corrected, trial, rank, spans)

    def pooled(self) -> Row:
        """The corpus so far as one text, each input counted once in all of it.

        Raises:
            BadInput: the documents had weights: those are for single documents.
        """
        if self._kind is not None:
            raise BadInput("entropy weights are for single documents; leave out --entropy-model to pool a corpus")
        tails = [
            self._tail(s.n, np.concatenate([*s.inputs, np.empty(0, np.uint64)]) if s.inputs else np.empty(0, np.uint64))
            for s in self._sums
        ]
        log10_p, trial, n = min(
            (tail(s.total), t, s.n) for t, (tail, s) in enumerate(zip(tails, self._sums, strict=True))
        )
        corrected = pvalue.bonferroni(log10_p, len(tails))
        others = [one.pooled().log10_p for one in self._apart]
        rank = self._rank(log10_p, corrected, tails, [s.decoys for s in self._sums], others)
        return self._row(self._tokens, n, corrected, trial, rank, ())

    def _row(
        self, n_tokens: int, n: int, log10_p: float, trial: int, rank_p: float | None, spans: tuple[Span, ...]
    ) -> Row:
        return Row(
            n_tokens=n_tokens,
            n_scored=n,
            log10_p=log10_p,
            epoch=self.detector.trials[trial],
            epochs_tried=len(self.detector.trials),
            rank_p=rank_p,
            decoys=self.decoys,
            spans=spans,
            reachable=n >= self._needs,
            needs_scored=self._needs,
        )

    def _tail(self, n: int, inputs_N: U64) -> Tail:
        detector = self.detector
        if isinstance(detector, TailOfInputs):
            return lambda total: detector.log10_tail_of(inputs_N, total)
        return lambda total: detector.log10_tail(n, total)

    def _weighted(self, scores: Scores, reading: Reading, weights_T: F64) -> float:
        if self._kind is None:
            raise BadInput(f"{self.detector.scheme}: entropy weights need scores of a known single law")
        law, p = self._kind
        kept = scores.counted
        weights = np.asarray(weights_T, np.float64)[reading.positions[kept]]
        return weighted_log10_tail(law, scores.values[kept], weights, p)  # type: ignore[arg-type]

    def _add(self, trial: int, reading: Reading, scores: Scores, new: NDArray[np.bool_], decoys: Sequence[F64]) -> None:
        """Add what the corpus has not had yet to a trial's sums."""
        added = self._sums[trial]
        kept = scores.counted & new
        added.n += int(kept.sum())
        added.total += float(scores.values[kept].sum())
        if isinstance(self.detector, TailOfInputs):
            added.inputs.append(reading.inputs[kept])
        if self._together:
            if new.all():
                added.decoys += decoys[-1]
            elif new.any():
                fresh = self.detector.decoy_totals(reading.take(new), trial, self._seed, self._together)
                added.decoys += fresh[1]

    def _rank(
        self, log10_p: float, corrected: float, tails: Sequence[Tail], decoys: Sequence[F64], others: Sequence[float]
    ) -> float | None:
        """Rank p of the best trial among the decoys' best trials."""
        if not self.decoys:
            return None
        if others:
            return pvalue.rank(sum(other <= corrected for other in others), self.decoys)
        reached = np.zeros(self._together, bool)
        for tail, totals in zip(tails, decoys, strict=True):
            reached |= totals >= _threshold(tail, totals, log10_p)
        return pvalue.rank(int(reached.sum()), self.decoys)

    def _spans(self, reading: Reading, scores: Scores, trial: int, n_tokens: int) -> tuple[Span, ...]:
        if self._find_spans is False or (self._find_spans is None and n_tokens < _SPANS_FROM):
            return ()
        kept = scores.counted
        inputs, detector = reading.inputs[kept], self.detector
        tail_of = None
        if isinstance(detector, TailOfInputs):
            known = detector

            def tail_of(part: slice, total: float) -> float:
                return known.log10_tail_of(inputs[part], total)

        found = find_spans(
            scores.values[kept],
            reading.positions[kept],
            detector.log10_tail,
            trials=len(detector.trials),
            log10_level=self._log10_level,
            log10_tail_of=tail_of,
        )
        return tuple(found)


def _threshold(tail: Tail, totals_K: F64, log10_p: float) -> float:
    """The least of the totals whose p is at most `log10_p`; infinity if there is none. Tails fall in the total."""
    ordered = np.unique(totals_K)
    low, high = 0, len(ordered)
    while low < high:
        middle = (low + high) // 2
        if tail(float(ordered[middle])) <= log10_p:
            high = middle
        else:
            low = middle + 1
    return float(ordered[low]) if low < len(ordered) else math.inf
