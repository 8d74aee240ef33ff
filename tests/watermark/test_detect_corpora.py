"""Corpora: in batches as one by one, pooled as brute force pools, decoys that read for themselves, honest pools."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from marked import key_set, write
from spiritsafe import pvalue
from spiritsafe.errors import BadInput
from spiritsafe.watermark import _documents
from spiritsafe.watermark._corpus import Corpus, Row
from spiritsafe.watermark._documents import Document
from spiritsafe.watermark._native import NativeDetector
from spiritsafe.watermark._types import Detector
from spiritsafe.watermark.adapters import engine_detector

EPOCHS = ("2026-10", "2026-11")
SELFHASH = {"vocab_size": 500, "seeding_scheme": "selfhash", "context_width": 2}
SYNTHID = {"ngram_len": 3, "keys": [3, 5, 7], "sampling_table_size": 1024, "context_history_size": 64}
DETECTORS = {
    "gumbel": lambda: NativeDetector(key_set(5, EPOCHS)),
    "kgw": lambda: NativeDetector(key_set(5), scheme="kgw"),
    "vllm": lambda: engine_detector("vllm-gumbel", {"key": 7, "context_width": 2}),
    "synthid": lambda: engine_detector("hf-synthid", SYNTHID),
    "selfhash": lambda: engine_detector("hf-kgw", SELFHASH),
}


def documents(texts: list[list[int]], first: int = 0) -> list[Document]:
    return [Document(str(i), np.array(t, np.uint32), min(first, len(t))) for i, t in enumerate(texts)]


def same(a: Row, b: Row) -> bool:
    """Equal, but for the order in which floats were added."""
    facts = [(r.n_tokens, r.n_scored, r.epoch, r.epochs_tried, r.rank_p, r.spans, r.reachable) for r in (a, b)]
    return facts[0] == facts[1] and math.isclose(a.log10_p, b.log10_p, rel_tol=1e-9, abs_tol=1e-12)


@pytest.mark.parametrize("name", DETECTORS)
@settings(max_examples=15, deadline=None)
@given(
    texts=st.lists(st.lists(st.integers(1, 6), max_size=30), max_size=7),
    first=st.integers(0, 3),
    together=st.integers(1, 4),
    decoys=st.sampled_from([0, 0, 3]),
)
def test_batches_say_what_one_by_one_says(
    name: str, texts: list[list[int]], first: int, together: int, decoys: int
) -> None:
    """`stream` and `gather` against `observe`, whatever is batched and however documents repeat each other."""
    detector = DETECTORS[name]()
    singly = Corpus(detector, decoys=decoys)
    rows = [singly.observe(d.ids, d.first) for d in documents(texts, first)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_documents, "_TOGETHER_DOCUMENTS", together)
        streamed, gathered = Corpus(detector, decoys=decoys), Corpus(detector, decoys=decoys)
        pairs = list(streamed.stream(documents(texts, first)))
        passed = list(gathered.gather(documents(texts, first)))
    assert [d.id for d, _ in pairs] == [d.id for d in passed] == [str(i) for i in range(len(texts))]
    assert all(same(row, other) for row, (_, other) in zip(rows, pairs, strict=True))
    assert same(singly.pooled(), streamed.pooled())
    assert same(singly.pooled(), gathered.pooled())


def test_long_documents_among_short_ones_keep_their_place_and_their_spans() -> None:
    keys = key_set(6)
    texts = [write(keys, "2026-11", 1, n, n) for n in (100, 700, 50, 80)]
    rows = list(Corpus(NativeDetector(keys)).stream([Document(str(len(t)), t, 0) for t in texts]))
    assert [(d.id, r.n_tokens, bool(r.spans)) for d, r in rows] == [
        ("100", 100, False),
        ("700", 700, True),
        ("50", 50, False),
        ("80", 80, False),
    ]


def test_spans_count_from_the_text_not_the_prompt() -> None:
    keys = key_set(7)
    text = write(keys, "2026-11", 1, 300, 1)
    bare = Corpus(NativeDetector(keys), spans=True).observe(text)
    prompted = Corpus(NativeDetector(keys), spans=True).observe(
        np.concatenate([np.arange(1000, 1050, dtype=np.uint32), text]), 50
    )
    assert prompted.n_tokens == 300
    (span,), (other,) = bare.spans, prompted.spans
    assert abs(span.start - other.start) <= 2
    assert span.end == other.end <= 300


def test_needs_tokens_counts_the_context() -> None:
    row = Corpus(NativeDetector(key_set(1), scheme="kgw"), log10_level=-6).observe(np.arange(5, dtype=np.uint32))
    assert (row.needs_scored, row.needs_tokens) == (10, 12)


def test_decoys_that_read_for_themselves_pool_as_brute_force_does() -> None:
    detector = engine_detector("hf-kgw", SELFHASH)
    random = np.random.default_rng(1)
    half = random.integers(1, 9, 60).astype(np.uint32)
    texts = [half, np.concatenate([half, random.integers(1, 9, 60).astype(np.uint32)])]
    corpus = Corpus(detector, decoys=19)
    for text in texts:
        corpus.observe(text)

    def pooled(one: Detector) -> float:
        inputs: dict[int, tuple[float, bool]] = {}
        for text in texts:
            reading = one.read(text, 0)
            scores = one.scores(reading, 0)
            for i, value, counted in zip(reading.inputs.tolist(), scores.values, scores.counted, strict=True):
                inputs.setdefault(i, (float(value), bool(counted)))
        kept = [value for value, counted in inputs.values() if counted]
        return one.log10_tail(len(kept), sum(kept))

    row = corpus.pooled()
    assert row.log10_p == pytest.approx(pooled(detector))
    better = sum(pooled(decoy) <= row.log10_p for decoy in detector.decoys(b"spiritsafe decoys 1", 19))
    assert row.rank_p == pvalue.rank(better, 19)


@pytest.mark.parametrize("gathered", [False, True])
def test_a_pool_of_documents_that_share_passages_is_honest(gathered: bool) -> None:
    """A trial is a corpus under a fresh key set: ten texts, most of each from one template. Level 5 %."""
    trials = 800 if gathered else 400
    template = write(key_set(10**6), "2026-11", 1, 80, 1, vocab=40)
    ends = np.random.default_rng(0).integers(0, 40, (10, 30)).astype(np.uint32)
    texts = [Document("", np.concatenate([template, end]), 0) for end in ends]
    rank = analytic = 0
    for seed in range(trials):
        corpus = Corpus(NativeDetector(key_set(seed, EPOCHS)), decoys=19, spans=False)
        for _ in corpus.gather(texts) if gathered else corpus.stream(texts):
            pass
        row = corpus.pooled()
        assert row.rank_p is not None
        rank += row.rank_p <= 0.05
        analytic += row.log10_p <= math.log10(0.05)
    for rejected, least in ((rank, 0.03), (analytic, 0.01)):
        assert stats.binomtest(rejected, trials, 0.05, alternative="greater").pvalue > 1e-4
        assert stats.binomtest(rejected, trials, least, alternative="less").pvalue > 1e-4


def test_weighted_documents_have_no_pool() -> None:
    corpus = Corpus(NativeDetector(key_set(1)), pool=False)
    with pytest.raises(BadInput, match="single documents"):
        corpus.pooled()


def test_decoys_below_zero() -> None:
    with pytest.raises(BadInput, match="--decoys -1"):
        Corpus(NativeDetector(key_set(1)), decoys=-1)


def test_progress_of_a_pool_whose_decoys_read_for_themselves() -> None:
    class Heard:
        def __init__(self) -> None:
            self.done: list[float] = []

        def update(self, stage: str, done: float, total: float | None, note: str = "") -> None:
            self.done.append(done)
            assert (stage, total) == ("decoys", 5)

        def say(self, message: str) -> None:
            raise AssertionError(message)

    corpus = Corpus(engine_detector("hf-kgw", SELFHASH), decoys=5)
    corpus.observe(np.arange(1, 40, dtype=np.uint32))
    heard: Any = Heard()
    corpus.pooled(heard)
    assert heard.done == [1, 2, 3, 4, 5]
