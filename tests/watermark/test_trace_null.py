"""Nobody is named when nobody is there: fresh keys a trial, repetitive texts, family-wise error at or below its level."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from marked import key_set, write
from spiritsafe.keys import KeySet
from spiritsafe.watermark._accounts import Accounts
from spiritsafe.watermark._trace import Tracer

TRIALS, LEVEL, GATE = 1200, 0.05, 0.5
SUSPECTS = Accounts(tuple(f"acct_{slot}" for slot in range(1, 101)), tuple(range(1, 101)))
EPOCHS = ("2026-10", "2026-11")


def unmarked(keys: KeySet, seed: int) -> np.ndarray:
    return write(key_set(10**9 + seed), "2026-11", 3, 250, seed, vocab=60)


def nobody_on_the_list(keys: KeySet, seed: int) -> np.ndarray:
    return write(keys, "2026-11", 5000, 250, seed, vocab=60)


def the_house(keys: KeySet, seed: int) -> np.ndarray:
    return write(keys, "2026-11", 0, 250, seed, vocab=60)


def epoch_layer_only(keys: KeySet, seed: int) -> np.ndarray:
    return write(keys, "2026-11", None, 250, seed, vocab=60)


def accounts_of_two_epochs(keys: KeySet, seed: int) -> np.ndarray:
    """An account on the list in an epoch that is not the one traced, beside one that is on no list."""
    return np.concatenate([write(keys, "2026-10", 7, 120, seed), write(keys, "2026-11", 5000, 250, seed, vocab=60)])


@pytest.mark.parametrize(
    "text",
    [unmarked, nobody_on_the_list, the_house, epoch_layer_only, accounts_of_two_epochs],
    ids=lambda f: f.__name__,
)
def test_family_wise_error_is_at_most_the_level(text: object) -> None:
    named = passed = 0
    for seed in range(TRIALS):
        keys = key_set(seed, epochs=EPOCHS)
        epochs = ["2026-11"] if text is accounts_of_two_epochs else None
        traced = Tracer(keys, SUSPECTS, level=LEVEL, gate=GATE, epochs=epochs).trace(text(keys, seed))  # type: ignore[operator]
        named += bool(traced.candidates)
        passed += traced.passed
    assert stats.binomtest(named, TRIALS, LEVEL, alternative="greater").pvalue > 1e-4
    if text is not unmarked:  # the account layer really was asked
        assert passed > 0.9 * TRIALS
        assert stats.binomtest(named, TRIALS, LEVEL * 0.8, alternative="less").pvalue > 1e-4


def test_wrong_accounts_score_as_if_the_text_were_unmarked() -> None:
    """A text full of the epoch's and one account's marks: every other account's p-value is uniform."""
    p: list[float] = []
    for seed in range(40):
        keys = key_set(seed)
        tracer = Tracer(keys, SUSPECTS)
        reading = tracer.detector.read(write(keys, "2026-11", 50, 600, seed), 0)
        _, first = np.unique(reading.inputs, return_index=True)
        n, totals = tracer.account_totals(reading.take(np.isin(np.arange(len(reading.inputs)), first)), 0)
        assert int(np.argmax(totals)) == 49
        p += [10 ** tracer.detector.log10_tail(n, float(t)) for t in np.delete(totals, 49)]
    assert stats.kstest(p, "uniform").pvalue > 1e-4


def test_the_gate_holds_back_what_the_account_layer_would_name() -> None:
    """Account marks without the epoch's: only an accident of keys could make that, and nobody is named."""
    keys, other = key_set(1), key_set(2)
    text = write(keys, "2026-11", 7, 400, seed=3)
    reading = Tracer(keys, SUSPECTS).detector.read(text, 0)
    kept = Tracer(keys, SUSPECTS).detector.account_positions(reading, 0)
    assert kept.any()
    assert Tracer(keys, SUSPECTS).trace(text).candidates
    assert not Tracer(other, SUSPECTS).trace(text).passed
