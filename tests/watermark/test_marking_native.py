"""Reading our own marks: what is scored, by which key, and that no key finds itself in text it did not mark."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from marking_kit import fresh_keys, key_set, repetitive_documents, unique
from scipy.stats import binomtest

from spiritsafe.errors import BadInput
from spiritsafe.keys import KeySet, decoy_keys, rotate_keys
from spiritsafe.watermark._native import NativeDetector
from spiritsafe.watermark._packing import identities
from spiritsafe.watermark._prf import key_words
from spiritsafe.watermark._types import Detector


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> KeySet:
    return key_set(tmp_path_factory.mktemp("keys"))


def test_a_reading_offers_every_position_with_a_context(keys: KeySet) -> None:
    detector: Detector = NativeDetector(keys)
    reading = detector.read(np.arange(10, 20, dtype=np.uint32), 0)
    assert reading.positions.tolist() == list(range(2, 10)) and reading.tokens.tolist() == list(range(12, 20))
    assert reading.windows[0].tolist() == [10, 11] and reading.windows[-1].tolist() == [17, 18]
    after_prompt = detector.read(np.arange(10, 20, dtype=np.uint32), 7)
    assert after_prompt.positions.tolist() == [7, 8, 9] and after_prompt.windows[0].tolist() == [15, 16]
    for short, first in (([], 0), ([1, 2], 0), ([1, 2, 3, 4], 4), ([1, 2, 3, 4], 9)):
        assert len(detector.read(np.array(short, np.uint32), first).tokens) == 0


@given(st.lists(st.integers(0, 2**32 - 1), min_size=4, max_size=40), st.integers(1, 4))
def test_identities_tell_pairs_apart(ids: list[int], k: int) -> None:
    ids = ids + ids[::-1] + [i % 3 for i in ids]  # something repeats
    got = identities(np.array(ids, np.uint32), k, k)
    pairs = [tuple(ids[t - k : t + 1]) for t in range(k, len(ids))]
    assert len(set(got.tolist())) == len(set(pairs)) and len(set(zip(pairs, got.tolist(), strict=True))) == len(
        set(pairs)
    )


@settings(deadline=None)
@given(st.data())
def test_a_batch_gives_what_reading_and_scoring_one_by_one_give(keys: KeySet, data: st.DataObject) -> None:
    seed, top = data.draw(st.integers(0, 2**32 - 1)), data.draw(st.sampled_from([3, 50, 2**21 + 2, 2**32]))
    lengths = data.draw(st.lists(st.integers(0, 700), min_size=1, max_size=6))
    random = np.random.default_rng(seed)
    documents = [random.integers(top - min(top, 9), top, n).astype(np.uint32) for n in lengths]
    firsts = np.array([data.draw(st.integers(0, n + 2)) for n in lengths])
    detector = NativeDetector(keys, scheme=data.draw(st.sampled_from(["gumbel-dual", "kgw", "synthid"])))
    ids, offsets = np.concatenate([*documents, np.empty(0, np.uint32)]), np.concatenate([[0], np.cumsum(lengths)])
    n_D, total_D = detector.totals_batch(ids, offsets, 0, firsts)
    for document, first, n, total in zip(documents, firsts, n_D, total_D, strict=True):
        reading = detector.read(document, int(first))
        keep = np.zeros(len(reading.inputs), bool)
        keep[np.unique(reading.inputs, return_index=True)[1]] = True
        scores = detector.scores(reading.take(keep), 0)
        assert n == scores.counted.sum()
        np.testing.assert_allclose(total, scores.values.sum(), rtol=1e-12, atol=1e-12)


def test_the_coin_shares_positions_between_the_layers(keys: KeySet) -> None:
    ids = np.random.default_rng(0).integers(0, 50_000, 20_000).astype(np.uint32)
    for share in (0.0, 0.2, 0.5):
        detector = NativeDetector(keys, NativeDetector(keys).marking.model_copy(update={"account_share": share}))
        reading = unique(detector, ids)
        theirs = detector.account_positions(reading, 0)
        assert abs(theirs.mean() - share) < 0.02
        scores = detector.scores(reading, 0)
        assert (scores.counted == ~theirs).all() and not scores.values[theirs].any()
        n, totals = detector.account_totals(reading, 0, keys.account_keys("2026-11", [5, 6], "gumbel-dual"))
        assert n == theirs.sum() and totals.shape == (2,)
        assert (totals > 0).all() == (share > 0)


def test_decoys_repeat_the_pipeline_with_other_epoch_keys_and_the_true_coin(keys: KeySet) -> None:
    detector = NativeDetector(keys)
    reading = unique(detector, np.random.default_rng(1).integers(0, 50_000, 500).astype(np.uint32))
    n, totals = detector.decoy_totals(reading, 0, b"seed", 20)
    decoys = detector.decoys(b"seed", 20)
    assert len(decoys) == 20 and len(decoys[3:7]) == 4
    for decoy, total in zip(decoys, totals, strict=True):
        scores = decoy.scores(reading, 0)
        np.testing.assert_allclose(scores.values.sum(), total, rtol=1e-12)
        assert scores.counted.sum() == n == detector.scores(reading, 0).counted.sum()
    assert len(set(totals.tolist())) == 20
    own = detector.scores(reading, 0).values.sum()
    assert own not in totals
    np.testing.assert_array_equal(detector.decoy_totals(reading, 0, b"seed", 5)[1], totals[:5])
    assert not set(detector.decoy_totals(reading, 0, b"other", 20)[1]) & set(totals)
    assert (
        decoys[0]._trials[0].key.tolist() == key_words(decoy_keys(b"seed", "epoch/gumbel-dual/2026-11", 1))[0].tolist()
    )


def test_every_epoch_is_a_trial_of_its_own(tmp_path: Path) -> None:
    key_set(tmp_path)
    keys = rotate_keys(tmp_path / "keys-0.json", epoch="2026-12")
    detector = NativeDetector(keys)
    assert list(detector.trials) == ["2026-12", "2026-11"]
    reading = detector.read(np.arange(300, dtype=np.uint32), 0)
    new, old = detector.scores(reading, 0), detector.scores(reading, 1)
    assert (new.counted != old.counted).any() and new.values.sum() != old.values.sum()
    only = NativeDetector(keys, epochs=["2026-11"])
    assert only.scores(reading, 0).values.sum() == old.values.sum()
    with pytest.raises(BadInput, match="no epoch '2027-01'"):
        NativeDetector(keys, epochs=["2027-01"])
    with pytest.raises(BadInput, match="name at least one"):
        NativeDetector(keys, epochs=[])


def test_a_marking_from_elsewhere_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"marking of ks_.*unknown key shades"):
        NativeDetector(key_set(tmp_path, shades=3))


@pytest.mark.parametrize("scheme", ["gumbel-dual", "kgw", "synthid"])
def test_no_fresh_key_finds_itself_in_repetitive_text_more_often_than_it_says(tmp_path: Path, scheme: str) -> None:
    """One trial is one document under a fresh epoch key: licence, source code, templated replies. 12,000 trials."""
    random, level, hits, trials, careless = np.random.default_rng(4), 0.01, 0, 0, 0
    for ids in repetitive_documents():
        detector = NativeDetector(key_set(tmp_path, scheme=scheme, account_share=0.3))
        keys_K2 = fresh_keys(random, 1000)
        reading, ours = unique(detector, ids), detector.read(ids, 0)
        for one, count in ((reading, True), (ours, False)):
            kept = one.take(~detector.account_positions(one, 0))
            n, totals = len(kept.tokens), detector.marks.totals(keys_K2, kept.windows, kept.tokens)
            tails = {total: detector.log10_tail(n, total) for total in set(totals.tolist())}
            below = sum(tails[total] <= np.log10(level) for total in totals.tolist())
            if count:
                hits, trials = hits + below, trials + 1000
                probe = detector.with_keys([keys_K2[0]]).totals_batch(ids, np.array([0, len(ids)]), 0)
                np.testing.assert_allclose((probe[0][0], probe[1][0]), (n, totals[0]), rtol=1e-12)
            else:
                careless += below
    assert binomtest(hits, trials, level, alternative="greater").pvalue > 1e-4
    assert hits > 0.4 * level * trials  # not absurdly below: discreteness costs some
    assert binomtest(careless, trials, level, alternative="greater").pvalue < 1e-6  # what deduplication is for
