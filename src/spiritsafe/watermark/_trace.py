"""Whose account is a marked text from?

Null hypothesis of an account: the text does not depend on that account's key. A text from other accounts, from nobody
or by hand satisfies it, so what is reported of the wrong accounts stays below the level whoever wrote the text.
Access: the key set and the list of accounts.  Cost: about half a second a million accounts and document.
What it cannot show: who used the account, or that a text which names nobody is from nobody.

First the epoch layer, which all accounts share, has to reach `gate`: if it does not, nobody is named, and a million
keys are not tried. Then every account's key of that epoch is tried on the positions that the coin gives to accounts,
with the scheme's exact tail. All accounts are tried on the same positions, so the largest sums are the smallest
p-values. Their correction is Holm's over all accounts given (Bonferroni's for the first), and those at or below `level`
are named.

Source: brute force over keys with an exact p and a family-wise correction, as Fernandez et al., "Three bricks to
consolidate watermarks for large language models" (2023), §4.4; the epoch test first answers Fu and Russell (2025).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from spiritsafe import pvalue
from spiritsafe.errors import BadInput
from spiritsafe.keys import KEY_BYTES, KeySet
from spiritsafe.progress import Progress, Silent
from spiritsafe.watermark._accounts import Accounts
from spiritsafe.watermark._marking import Marking, SchemeName
from spiritsafe.watermark._native import NativeDetector
from spiritsafe.watermark._pool import joined
from spiritsafe.watermark._prf import U32, context_hashes, key_words
from spiritsafe.watermark._seen import DocumentSeen
from spiritsafe.watermark._spans import find_spans
from spiritsafe.watermark._threads import threads_for
from spiritsafe.watermark._types import F64, Reading

__all__ = ["Candidate", "Traced", "Tracer", "best_epoch", "epoch_log10_p"]

Spans = tuple[tuple[int, int], ...]
_BLOCK = 1 << 16  # accounts a call: often enough for progress


@dataclass(frozen=True, slots=True)
class Candidate:
    """An account that is named.

    log10_p: of this account alone.  log10_p_family: corrected for all accounts tried (Holm).
    spans: where in the text, [start, end) in tokens; empty for a pool.
    opened: the account's key of this epoch was opened, so that others could have written in its name.
    """

    account: str
    slot: int
    log10_p: float
    log10_p_family: float
    spans: Spans
    opened: bool


@dataclass(frozen=True, slots=True)
class Traced:
    """What a text gives away.

    n_scored, log10_p, epoch, epochs_tried: the epoch layer's test, best epoch, corrected for the epochs tried.
    spans: where the epoch layer's mark is, as for `Candidate`.
    passed: whether it reached the gate. If not, no account was tried.
    n_account: positions scored for accounts.  accounts: how many were tried, or would have been.
    """

    n_tokens: int
    n_scored: int
    log10_p: float
    epoch: str | None
    epochs_tried: int
    spans: Spans
    passed: bool
    n_account: int
    candidates: tuple[Candidate, ...]
    accounts: int


class Tracer:
    """Tries accounts of a key set on texts. Account keys are derived once an epoch and kept (16 bytes each).

    gate: level of the epoch layer's test.  level: family-wise level over all accounts of one text.
    top: the most accounts that are named.  epochs: names, as for `NativeDetector`.
    scheme: read another scheme's marks, such as the KGW marks of greedy replies.

    Raises:
        BadInput: a level outside (0, 1), no such epoch, or a key set that marks no accounts.
    """

    def __init__(
        self,
        keys: KeySet,
        accounts: Accounts,
        *,
        marking: Marking | None = None,
        level: float = 1e-6,
        gate: float = 1e-3,
        top: int = 5,
        epochs: list[str] | None = None,
        scheme: SchemeName | None = None,
        progress: Progress | None = None,
    ) -> None:
        for name, value in (("--level", level), ("--gate", gate)):
            if not 0 < value < 1:
                raise BadInput(f"{name} {value:g}: a level lies between 0 and 1, such as 1e-6")
        if top < 1:
            raise BadInput(f"--top {top}: at least 1")
        self.detector = NativeDetector(keys, marking, epochs, scheme)
        if self.detector.marking.account_share == 0:
            raise BadInput(f"{keys.id}: its marking has account_share 0, so that no text carries an account's mark")
        self.keys, self.accounts = keys, accounts
        self.log10_level, self.log10_gate, self.top = math.log10(level), math.log10(gate), top
        self._progress = progress or Silent()
        self._account_keys: dict[int, bytes] = {}
        self._seen = DocumentSeen()

    def trace(self, ids_T: U32, first: int = 0) -> Traced:
        """Trace one text; ids before `first` are the prompt, read but never scored."""
        reading = self.detector.read(ids_T, first)
        reading = replace(reading, positions=reading.positions - first)  # spans count from the text
        return self._traced(reading.take(self._seen.first(reading.inputs)), len(ids_T) - first, located=True)

    def trace_pool(self, texts: Iterable[tuple[U32, int]]) -> Traced:
        """Trace texts (ids, first) that are thought to come from the same account or accounts, as one.

        A (context, token) pair counts once in all of them.
        """
        readings, tokens = [self.detector.read(np.empty(0, np.uint32), 0)], 0
        for ids_T, first in texts:
            reading = self.detector.read(ids_T, first)
            readings.append(reading.take(self._seen.first(reading.inputs)))
            tokens += len(ids_T) - first
        whole = joined(readings)
        return self._traced(whole.take(self._seen.first(whole.inputs)), tokens, located=False)

    def _traced(self, reading: Reading, n_tokens: int, located: bool) -> Traced:
        trial, n_scored, log10_p = best_epoch(self.detector, reading)
        passed = log10_p <= self.log10_gate
        n_account, candidates = self._candidates(reading, trial, located) if passed else (0, ())
        spans: Spans = ()
        if located and passed:
            scores = self.detector.scores(reading, trial)
            positions = reading.positions[scores.counted]
            spans = self._spans(scores.values[scores.counted], positions, len(self.detector.trials), self.log10_gate)
        return Traced(
            n_tokens=n_tokens,
            n_scored=n_scored,
            log10_p=log10_p,
            epoch=self.detector.trials[trial],
            epochs_tried=len(self.detector.trials),
            spans=spans,
            passed=passed,
            n_account=n_account,
            candidates=candidates,
            accounts=len(self.accounts),
        )

    def _candidates(self, reading: Reading, trial: int, located: bool) -> tuple[int, tuple[Candidate, ...]]:
        n, totals = self.account_totals(reading, trial)
        best = _largest(totals, self.top)
        log10_ps = np.array([self.detector.log10_tail(n, float(totals[i])) for i in best])
        family = pvalue.holm(log10_ps, tests=len(self.accounts))
        opened = self.keys.epoch(str(self.detector.trials[trial])).opened_slots
        return n, tuple(
            Candidate(
                account=self.accounts.names[i],
                slot=self.accounts.slots[i],
                log10_p=float(log10_p),
                log10_p_family=float(corrected),
                spans=self._account_spans(reading, trial, i) if located else (),
                opened=self.accounts.slots[i] in opened,
            )
            for i, log10_p, corrected in zip(best, log10_ps, family, strict=True)
            if corrected <= self.log10_level
        )

    def _account_spans(self, reading: Reading, trial: int, account: int) -> Spans:
        theirs = reading.take(self.detector.account_positions(reading, trial))
        key = key_words(self.account_keys(trial)[account * KEY_BYTES : (account + 1) * KEY_BYTES])[0]
        scores = self.detector.marks.scores(context_hashes(key, theirs.windows), theirs.tokens)
        return self._spans(scores, theirs.positions, len(self.accounts), self.log10_level)

    def _spans(self, scores_N: F64, positions_N: NDArray[np.int64], trials: int, log10_level: float) -> Spans:
        found = find_spans(scores_N, positions_N, self.detector.log10_tail, trials=trials, log10_level=log10_level)
        return tuple((span.start, span.end) for span in found)

    def account_totals(self, reading: Reading, trial: int) -> tuple[int, F64]:
        """(positions scored, sum of scores (N,) of every account) of a deduplicated reading."""
        keys, count = self.account_keys(trial), len(self.accounts)
        totals = np.empty(count)
        n = 0
        for low in range(0, count, _BLOCK):
            high = min(low + _BLOCK, count)
            part = keys[low * KEY_BYTES : high * KEY_BYTES]
            with threads_for(count * len(reading.tokens)):
                n, totals[low:high] = self.detector.account_totals(reading, trial, part)
            if high < count:  # a line of its own for every finished text would drown what matters
                self._progress.update("accounts", high, count)
        return n, totals

    def account_keys(self, trial: int) -> bytes:
        """All accounts' keys of an epoch (N · 16 bytes), derived on first use."""
        if trial not in self._account_keys:
            epoch, scheme, parts = str(self.detector.trials[trial]), self.detector.scheme, []
            count = len(self.accounts)
            for low in range(0, count, _BLOCK):
                parts.append(self.keys.account_keys(epoch, self.accounts.slots[low : low + _BLOCK], scheme))
                self._progress.update("keys", min(low + _BLOCK, count), count)
            self._account_keys[trial] = b"".join(parts)
        return self._account_keys[trial]


def best_epoch(detector: NativeDetector, reading: Reading) -> tuple[int, int, float]:
    """(trial, positions scored, log10 p corrected for all trials) of a deduplicated reading's best epoch."""
    tests = []
    for trial in range(len(detector.trials)):
        scores = detector.scores(reading, trial)
        n = int(scores.counted.sum())
        tests.append((detector.log10_tail(n, float(scores.values[scores.counted].sum())), trial, n))
    log10_p, trial, n = min(tests)
    return trial, n, pvalue.bonferroni(log10_p, len(tests))


def epoch_log10_p(detector: NativeDetector, ids_T: U32, first: int = 0) -> float:
    """log10 p of one text's best epoch, corrected for the epochs tried; ids before `first` are never scored."""
    reading = detector.read(ids_T, first)
    return best_epoch(detector, reading.take(DocumentSeen().first(reading.inputs)))[2]


def _largest(totals_N: F64, count: int) -> NDArray[np.int64]:
    """Indices of the largest sums, largest first, equal ones in the accounts' order."""
    count = min(count, len(totals_N))
    least = np.partition(totals_N, -count)[-count]
    able = np.flatnonzero(totals_N >= least)
    return able[np.argsort(-totals_N[able], kind="stable")][:count]
