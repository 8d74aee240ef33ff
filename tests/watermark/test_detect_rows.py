"""Documents and corpora: counts against brute force, corrections, decoys that are honest, spans, weights."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from marked import key_set, write
from spiritsafe.errors import BadInput
from spiritsafe.watermark._corpus import Corpus
from spiritsafe.watermark._native import NativeDetector
from spiritsafe.watermark.adapters import engine_detector

EPOCHS = ("2026-10", "2026-11")


def ids_of(*tokens: int) -> np.ndarray:
    return np.array(tokens, np.uint32)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 4), max_size=40), min_size=1, max_size=4), st.integers(0, 3))
def test_counts_are_those_of_brute_force(texts: list[list[int]], first: int) -> None:
    """Few tokens, so that everything repeats: a document counts an input once, the corpus counts it once in all."""
    detector = NativeDetector(key_set(5, account_share=0))
    corpus = Corpus(detector, spans=False)
    everywhere: set[tuple[int, ...]] = set()
    for text in texts:
        start = min(first, len(text))
        grams = {tuple(text[t - 2 : t + 1]) for t in range(max(start, 2), len(text))}
        row = corpus.observe(ids_of(*text), start)
        assert (row.n_scored, row.n_tokens) == (len(grams), len(text) - start)
        everywhere |= grams
    assert corpus.pooled().n_scored == len(everywhere)


def test_a_corpus_sums_what_its_new_inputs_score() -> None:
    keys = key_set(8)
    detector = NativeDetector(keys)
    texts = [write(keys, "2026-11", 3, 300, seed, vocab=60) for seed in range(4)]
    texts.append(texts[0])
    corpus = Corpus(detector, decoys=50)
    rows = [corpus.observe(text) for text in texts]
    assert rows[4].log10_p == rows[0].log10_p
    readings = [detector.read(text, 0) for text in texts]
    inputs = np.concatenate([r.inputs for r in readings])
    windows, tokens = np.concatenate([r.windows for r in readings]), np.concatenate([r.tokens for r in readings])
    _, once = np.unique(inputs, return_index=True)
    reading = type(readings[0])(inputs[once], np.arange(len(once)), windows[once], tokens[once])
    scores = detector.scores(reading, 0)
    whole = detector.log10_tail(int(scores.counted.sum()), float(scores.values[scores.counted].sum()))
    pooled = corpus.pooled()
    assert pooled.log10_p == pytest.approx(whole, rel=1e-9)
    assert pooled.n_tokens == 1500
    assert pooled.rank_p == 1 / 51


def test_the_best_epoch_pays_for_the_others() -> None:
    keys = key_set(9, EPOCHS)
    text = write(keys, "2026-10", 3, 300, seed=1)
    one = Corpus(NativeDetector(keys, epochs=["2026-10"])).observe(text)
    both = Corpus(NativeDetector(keys)).observe(text)
    assert (both.epoch, both.epochs_tried) == ("2026-10", 2)
    assert both.log10_p == pytest.approx(one.log10_p + math.log10(2))
    assert both.log10_p < -10


@pytest.mark.parametrize("epochs", [("2026-11",), EPOCHS])
def test_rank_p_is_honest_on_text_that_repeats_itself(epochs: tuple[str, ...]) -> None:
    """A trial is a document under a fresh key set; rank p at most 5 % in at most 5 % of them, and the tail agrees."""
    trials = 1500
    rank = analytic = 0
    for seed in range(trials):
        text = write(key_set(10**6 + seed), "2026-11", 1, 150, seed, vocab=30)
        row = Corpus(NativeDetector(key_set(seed, epochs)), decoys=19, spans=False).observe(text)
        rank += row.rank_p is not None and row.rank_p <= 0.05
        analytic += row.log10_p <= math.log10(0.05)
    assert stats.binomtest(rank, trials, 0.05, alternative="greater").pvalue > 1e-4
    assert stats.binomtest(rank, trials, 0.03, alternative="less").pvalue > 1e-4
    assert stats.binomtest(analytic, trials, 0.05, alternative="greater").pvalue > 1e-4


def test_decoys_that_read_for_themselves_rank_too() -> None:
    detector = engine_detector("hf-kgw", {"vocab_size": 500, "seeding_scheme": "selfhash", "context_width": 2})
    assert detector.keyed_reading
    random = np.random.default_rng(3)
    corpus = Corpus(detector, decoys=19)
    row = corpus.observe(random.integers(1, 500, 120).astype(np.uint32))
    assert row.rank_p is not None
    assert 0.05 <= row.rank_p <= 1
    assert corpus.pooled().rank_p == row.rank_p
    assert corpus.pooled().log10_p == pytest.approx(row.log10_p)


def test_rank_p_counts_decoys_as_brute_force_does() -> None:
    keys = key_set(21, EPOCHS)
    detector = NativeDetector(keys)
    text = write(key_set(77), "2026-11", 1, 200, 5)
    row = Corpus(detector, decoys=99, seed=b"s").observe(text)
    others = [Corpus(decoy).observe(text).log10_p for decoy in detector.decoys(b"s", 99)]
    assert row.rank_p == (1 + sum(other <= row.log10_p for other in others)) / 100


def test_a_marked_part_is_located() -> None:
    keys, other = key_set(30), key_set(31)
    text = np.concatenate(
        [
            write(other, "2026-11", 1, 1000, 1),
            write(keys, "2026-11", 1, 300, 2),
            write(other, "2026-11", 1, 1000, 3),
        ]
    )
    row = Corpus(NativeDetector(keys), log10_level=-6).observe(text)
    (span,) = row.spans
    assert 900 < span.start < 1100
    assert 1200 < span.end < 1400
    assert span.log10_p < -6
    assert not Corpus(NativeDetector(keys), log10_level=-6, spans=False).observe(text).spans


def test_short_texts_are_said_to_be_short() -> None:
    detector = NativeDetector(key_set(1), scheme="kgw")
    row = Corpus(detector, log10_level=-6).observe(ids_of(*range(15)))
    assert not row.reachable
    assert row.needs_scored == 10  # 4^-10 < 1e-6
    assert Corpus(detector, log10_level=-6).observe(np.empty(0, np.uint32)).log10_p == 0.0


def test_entropy_weights_keep_certain_tokens_from_diluting() -> None:
    keys = key_set(40)
    text = write(keys, "2026-11", 1, 400, 1)
    certain = np.random.default_rng(0).integers(500, 900, 1200).astype(np.uint32)
    mixed = np.concatenate([text, certain])
    weights = np.concatenate([np.ones(400), np.zeros(1200)])
    detector = NativeDetector(keys)
    plain = Corpus(detector, spans=False).observe(mixed)
    corpus = Corpus(detector, spans=False, law=("exponential", None), pool=False, decoys=19)
    weighted = corpus.observe(mixed, 0, weights)
    assert weighted.log10_p < plain.log10_p - 2
    assert weighted.rank_p == 0.05
    with pytest.raises(BadInput, match="single documents"):
        corpus.pooled()
