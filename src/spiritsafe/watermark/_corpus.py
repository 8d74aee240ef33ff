"""Do these documents depend on this key? One document at a time, and all of them as one corpus.

Null hypothesis: the texts do not depend on the key set's (or the engine's) key.  Access: the key and the token ids.
Cost: tens of nanoseconds a token and key; decoys multiply it.  What it cannot show: that a text without a signal is
unmarked, or who wrote one that has it.

A document counts each PRF input once within itself, `pooled` once in the whole corpus: inputs that documents share
are the same coin. Several epochs are several tests: the best is corrected for all of them (Bonferroni). Decoys repeat
all of it, best epoch included, under keys from a public seed, and give a rank p that assumes nothing about the law of
a score (see `_decoys`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from spiritsafe import pvalue
from spiritsafe.errors import BadInput
from spiritsafe.progress import Progress, Silent
from spiritsafe.watermark._decoys import DECOY_SEED, decoy_totals, exceeding, tail_of
from spiritsafe.watermark._documents import Batch, Document
from spiritsafe.watermark._entropy import weighted_log10_tail
from spiritsafe.watermark._pool import Pool, joined
from spiritsafe.watermark._prf import U32
from spiritsafe.watermark._seen import DocumentSeen
from spiritsafe.watermark._spans import Span, find_spans
from spiritsafe.watermark._types import F64, Detector, Law, Reading, Scores, TailOfInputs

__all__ = ["DECOY_SEED", "Corpus", "Row"]

_SPANS_FROM = 600  # tokens: shorter texts are one piece
_PROBE = 64  # ids: longer than any context


@dataclass(frozen=True, slots=True)
class Row:
    """What one document, or the whole corpus, says.

    n_scored: positions that counted in the best trial.  log10_p: its p-value, corrected for `epochs_tried`.
    rank_p: (1 + b) / (1 + decoys); None without decoys.  spans: where the mark is, with p-values of their own.
    reachable: whether any text with so many scored positions could reach the level asked; `needs_scored`: how many do,
    and `needs_tokens`: the length below which no text has so many.
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
    needs_tokens: int


@runtime_checkable
class _Batched(Protocol):
    """A detector that takes many documents in one pass."""

    def totals_batch(
        self, ids_T: U32, offsets_D1: NDArray[np.int64], trial: int, firsts_D: NDArray[np.int64] | None = None
    ) -> tuple[NDArray[np.int64], F64]:
        """(n scored (D,), total (D,)) of each document."""


class Corpus:
    """Tests documents as they come; keeps sums and the set of inputs seen, not the documents.

    decoys: decoy keys a document (and for `pooled`).  log10_level: the level a reader has in mind.
    spans: look for marked parts; None: in documents of 600 tokens and more.
    law: of one score (`Scheme.law`), where documents come with entropy weights.
    pool: keep the corpus-wide sums: 12 to 16 bytes a distinct input, and where each decoy reads for itself the ids.

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
        law: Law | None = None,
        pool: bool = True,
    ) -> None:
        if decoys < 0:
            raise BadInput(f"--decoys {decoys}: give 0 or more")
        self.detector, self.decoys, self._seed = detector, decoys, seed
        self._log10_level, self._find_spans, self._law = log10_level, spans, law
        # Decoys whose reading or statistic is their own repeat everything; the others share the reading.
        apart = decoys and (detector.keyed_reading or law is not None)
        self._apart = (
            [Corpus(d, law=law, pool=False, spans=False) for d in detector.decoys(seed, decoys)] if apart else []
        )
        self._together = 0 if apart else decoys
        self._document = DocumentSeen()
        self._pool = Pool(detector, self._together, seed) if pool else None
        self._kept: list[tuple[U32, int]] = []
        self._tokens = 0
        self._needs = detector.fewest(log10_level - math.log10(len(detector.trials)))
        probe = detector.read(np.ones(_PROBE, np.uint32), 0).positions
        self._width = int(probe[0]) if len(probe) else 0

    def observe(self, ids_T: U32, first: int = 0, weights_T: F64 | None = None) -> Row:
        """Test one document and add it to the corpus; ids before `first` are context only.

        weights_T: a weight ≥ 0 for every token, computed without the key.

        Raises:
            BadInput: a token id outside the vocabulary, where the detector knows it.
        """
        reading = self.detector.read(ids_T, first)
        reading = reading.take(self._document.first(reading.inputs))
        trials = range(len(self.detector.trials))
        scored = [self.detector.scores(reading, trial) for trial in trials]
        kept = [scores.counted for scores in scored]
        tails = [tail_of(self.detector, int(mask.sum()), reading.inputs[mask]) for mask in kept]
        true = [float(scores.values[scores.counted].sum()) for scores in scored]
        tests: list[tuple[float, int, int]] = []
        for trial, (scores, tail) in enumerate(zip(scored, tails, strict=True)):
            log10_p = tail(true[trial]) if weights_T is None else self._weighted(scores, reading, weights_T)
            tests.append((log10_p, trial, int(scores.counted.sum())))
        count = self._together
        totals = [decoy_totals(self.detector, reading, t, self._seed, count) for t in trials] if count else []
        if self._pool is not None:
            self._pool.add(reading, scored, totals)
            self._keep(ids_T, first)
        log10_p, trial, n = min(tests)
        corrected = pvalue.bonferroni(log10_p, len(tests))
        rank = None
        if self._together:
            rank = pvalue.rank(exceeding(log10_p, true, tails, totals), self.decoys)
        elif self._apart:
            others = (one.observe(ids_T, first, weights_T).log10_p for one in self._apart)
            rank = pvalue.rank(sum(other <= corrected for other in others), self.decoys)
        n_tokens = len(ids_T) - first
        self._tokens += n_tokens
        return self._row(n_tokens, n, corrected, trial, rank, self._spans(reading, scored[trial], first, n_tokens))

    def stream(
        self, documents: Iterable[Document], weigh: Callable[[U32], F64] | None = None
    ) -> Iterator[tuple[Document, Row]]:
        """`observe` one document after another; many at once where that gives the same rows.

        weigh: makes the weights of a document's ids.
        """
        able = isinstance(self.detector, _Batched) and not self.decoys and weigh is None
        batch = Batch()
        for document in documents:
            if able and not self._looks_for_spans(len(document.ids) - document.first):
                if batch.add(document):
                    yield from self._observe_batch(batch.take())
                continue
            yield from self._observe_batch(batch.take())
            yield document, self.observe(document.ids, document.first, weigh(document.ids) if weigh else None)
        yield from self._observe_batch(batch.take())

    def gather(self, documents: Iterable[Document]) -> Iterator[Document]:
        """Add documents to the corpus without testing each: what `pooled` alone needs. Passes them on."""
        batch = Batch()
        for document in documents:
            if batch.add(document):
                yield from self._gather_batch(batch.take())
        yield from self._gather_batch(batch.take())

    def pooled(self, progress: Progress | None = None) -> Row:
        """The corpus so far as one text, each input counted once in all of it.

        Raises:
            BadInput: the documents had weights, or no pool was kept.
        """
        if self._law is not None or self._pool is None:
            raise BadInput("entropy weights are for single documents; leave out --entropy-model to pool a corpus")
        tails = self._pool.tails()
        true = [total for _, total in self._pool.totals()]
        tests = [
            (tail(total), trial, n)
            for trial, (tail, (n, total)) in enumerate(zip(tails, self._pool.totals(), strict=True))
        ]
        log10_p, trial, n = min(tests)
        corrected = pvalue.bonferroni(log10_p, len(tests))
        rank = None
        if self._together:
            rank = pvalue.rank(exceeding(log10_p, true, tails, self._pool.decoy_totals()), self.decoys)
        elif self._apart:
            better = 0
            for done, decoy in enumerate(self._apart, 1):
                better += decoy.alone(self._kept) <= corrected
                (progress or Silent()).update("decoys", done, self.decoys)
            rank = pvalue.rank(better, self.decoys)
        return self._row(self._tokens, n, corrected, trial, rank, ())

    def alone(self, documents: Sequence[tuple[U32, int]]) -> float:
        """log10 p of these documents (ids, first) as one corpus; keeps nothing."""
        corpus = Corpus(self.detector, spans=False)
        for _ in corpus.gather(Document("", ids, first) for ids, first in documents):
            pass
        return corpus.pooled().log10_p

    def _observe_batch(self, batch: Sequence[Document]) -> Iterator[tuple[Document, Row]]:
        if not batch:
            return
        detector = self.detector
        assert isinstance(detector, _Batched)
        ids_T, firsts_D = np.concatenate([d.ids for d in batch]), np.array([d.first for d in batch])
        offsets_D1 = np.cumsum([0, *(len(d.ids) for d in batch)])
        by_trial = [detector.totals_batch(ids_T, offsets_D1, t, firsts_D) for t in range(len(self.detector.trials))]
        if self._pool is not None:
            self._gather_batch(batch)
        for d, document in enumerate(batch):
            log10_p, trial, n = min(
                (self.detector.log10_tail(int(n_D[d]), float(total_D[d])), trial, int(n_D[d]))
                for trial, (n_D, total_D) in enumerate(by_trial)
            )
            corrected = pvalue.bonferroni(log10_p, len(by_trial))
            yield document, self._row(len(document.ids) - document.first, n, corrected, trial, None, ())

    def _gather_batch(self, batch: Sequence[Document]) -> Sequence[Document]:
        assert self._pool is not None
        if batch:
            self._pool.add(joined([self.detector.read(d.ids, d.first) for d in batch]))
        for document in batch:
            self._keep(document.ids, document.first)
            self._tokens += len(document.ids) - document.first
        return batch

    def _keep(self, ids_T: U32, first: int) -> None:
        """For decoys that have to read the corpus for themselves: one after another, so that one set is held."""
        if self._apart:
            self._kept.append((ids_T, first))

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
            needs_tokens=self._needs + self._width,
        )

    def _weighted(self, scores: Scores, reading: Reading, weights_T: F64 | None) -> float:
        if self._law is None:
            raise BadInput(f"{self.detector.scheme}: entropy weights need scores of a known single law")
        kind, p = self._law
        kept = scores.counted
        weights = np.asarray(weights_T, np.float64)[reading.positions[kept]]
        return weighted_log10_tail(kind, scores.values[kept], weights, p)

    def _looks_for_spans(self, n_tokens: int) -> bool:
        return n_tokens >= _SPANS_FROM if self._find_spans is None else self._find_spans

    def _spans(self, reading: Reading, scores: Scores, first: int, n_tokens: int) -> tuple[Span, ...]:
        if not self._looks_for_spans(n_tokens):
            return ()
        kept = scores.counted
        inputs, detector = reading.inputs[kept], self.detector
        tail_of_part = None
        if isinstance(detector, TailOfInputs):
            known = detector

            def tail_of_part(part: slice, total: float) -> float:
                return known.log10_tail_of(inputs[part], total)

        found = find_spans(
            scores.values[kept],
            reading.positions[kept] - first,
            detector.log10_tail,
            trials=len(detector.trials),
            log10_level=self._log10_level,
            log10_tail_of=tail_of_part,
        )
        return tuple(found)
