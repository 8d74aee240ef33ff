"""Marked spans in long documents: none where there is no mark, found where there is, at about the right place."""

from __future__ import annotations

import random
import sysconfig
import time
from pathlib import Path

import numpy as np
import pytest

from marked import key_set, write
from spiritsafe import pvalue
from spiritsafe.watermark._native import NativeDetector
from spiritsafe.watermark._packing import identities
from spiritsafe.watermark._prf import U32
from spiritsafe.watermark._spans import Span, find_spans

STDLIB = Path(sysconfig.get_path("stdlib"))


def bytes_as_ids(name: str, length: int = 6000) -> U32:
    return np.frombuffer((STDLIB / name).read_bytes()[:length], np.uint8).astype(np.uint32)


def templated(length: int = 6000) -> U32:
    reply = "Dear {}, thank you for your order {}. It will arrive within three days. Kind regards, the shop. "
    draw = random.Random(4)
    text = "".join(
        reply.format(draw.choice(["Ann", "Bo", "Cy"]), draw.randrange(9999)) for _ in range(length // 90 + 1)
    )
    return np.frombuffer(text.encode()[:length], np.uint8).astype(np.uint32)


def spans_of(ids_T: U32, detector: NativeDetector, **options: float) -> list[Span]:
    reading = detector.read(ids_T, 0)
    first = np.zeros(len(reading.inputs), bool)
    first[np.unique(reading.inputs, return_index=True)[1]] = True
    reading = reading.take(first)
    scores = detector.scores(reading, 0)
    return find_spans(
        scores.values[scores.counted],
        reading.positions[scores.counted],
        detector.log10_tail,
        **options,  # type: ignore[arg-type]
    )


def mixed(seed: int, marked: int, before: int, after: int) -> tuple[NativeDetector, U32]:
    """Marked text between unmarked (another key's) of the same language."""
    keys, other = key_set(seed), key_set(10**6 + seed)
    parts = [
        write(k, "2026-11", None, n, seed + i)
        for i, (k, n) in enumerate([(other, before), (keys, marked), (other, after)])
    ]
    return NativeDetector(keys), np.concatenate(parts)


def overlap(spans: list[Span], start: int, end: int, length: int) -> float:
    got, true = np.zeros(length, bool), np.zeros(length, bool)
    true[start:end] = True
    for span in spans:
        got[span.start : span.end] = True
    return float((got & true).sum() / (got | true).sum())


@pytest.mark.parametrize("scheme", ["gumbel-dual", "kgw", "synthid"])
@pytest.mark.parametrize("text", ["LICENSE.txt", "argparse.py", "templated"])
def test_a_text_without_the_mark_has_no_span(text: str, scheme: str) -> None:
    """One trial = one document under a fresh key; the error is family-wise."""
    ids = templated() if text == "templated" else bytes_as_ids(text)
    assert len(np.unique(identities(ids, 2, 2))) < len(ids) - 2  # it repeats itself
    trials, level = 400, 0.05
    found = sum(
        bool(spans_of(ids, NativeDetector(key_set(seed, scheme=scheme)), log10_level=np.log10(level)))
        for seed in range(trials)
    )
    assert 10 ** pvalue.binomial(trials, level, found) > 1e-4


def test_the_correction_does_not_waste_the_level() -> None:
    """Never above the level, and not absurdly below: overlapping intervals cost a few times, not a hundred."""
    rng = np.random.default_rng(0)
    trials, level, positions = 1_000, 0.05, np.arange(2_000)
    found = sum(
        bool(find_spans(rng.standard_exponential(2_000), positions, pvalue.gamma, log10_level=np.log10(level)))
        for _ in range(trials)
    )
    assert 10 ** pvalue.binomial(trials, level, found) > 1e-4
    assert found > 0.1 * trials * level


def test_two_hundred_tokens_in_five_thousand_are_found() -> None:
    """The epoch layer alone (half the positions count), 2.7 bits a token."""
    results = []
    for seed in range(30):
        before = 200 + 160 * seed
        detector, ids = mixed(seed, 200, before, 5_000 - before)
        spans = spans_of(ids, detector)
        results.append((overlap(spans, before, before + 200, len(ids)) if spans else 0.0, len(spans)))
        assert all(span.log10_p <= -3 for span in spans)
    found = [iou for iou, n in results if n]
    assert len(found) >= 28
    assert np.median(found) >= 0.85
    assert sum(n for _, n in results) <= len(found) + 1


def test_two_passages_are_two_spans() -> None:
    detector, ids = mixed(5, 400, 1_500, 1_500)
    twice = np.concatenate([ids, write(key_set(5), "2026-11", None, 300, 99), ids[:1_000]])
    spans = spans_of(twice, detector)
    assert [(span.start // 100, span.end // 100) for span in spans] == [
        (pytest.approx(15, abs=1), pytest.approx(19, abs=1)),
        (pytest.approx(34, abs=1), pytest.approx(37, abs=1)),
    ]


def test_a_text_marked_throughout_is_one_span() -> None:
    ids = write(key_set(8), "2026-11", None, 3_000, 8)
    (span,) = spans_of(ids, NativeDetector(key_set(8)))
    assert span.start < 60 and span.end > 2_940
    assert span.log10_p < -100


def test_every_trial_is_paid_for() -> None:
    scores = np.random.default_rng(1).standard_exponential(300)
    scores[100:200] *= 2.2
    (one,) = find_spans(scores, np.arange(300), pvalue.gamma)
    (many,) = find_spans(scores, np.arange(300), pvalue.gamma, trials=10)
    assert many.log10_p == pytest.approx(one.log10_p + 1)
    assert find_spans(scores, np.arange(300), pvalue.gamma, trials=10**15) == []


def test_spans_are_in_document_tokens() -> None:
    scores = np.random.default_rng(2).standard_exponential(400)
    scores[150:300] *= 3
    positions = np.arange(400) * 2 + 7
    (span,) = find_spans(scores, positions, pvalue.gamma)
    assert abs(span.start - positions[150]) < 20 and abs(span.end - positions[300]) < 20
    assert span.n_scored == (span.end - span.start + 1) // 2


def test_a_law_that_depends_on_what_is_scored_has_the_last_word() -> None:
    scores = np.random.default_rng(3).standard_exponential(300)
    scores[:200] *= 2
    seen = []

    def never(scored: slice, total: float) -> float:
        seen.append((scored, total))
        return 0.0

    assert find_spans(scores, np.arange(300), pvalue.gamma, log10_tail_of=never) == []
    assert seen and all(total == pytest.approx(scores[scored].sum()) for scored, total in seen)
    (span,) = find_spans(
        scores,
        np.arange(300),
        pvalue.gamma,
        log10_tail_of=lambda scored, total: pvalue.gamma(scored.stop - scored.start, total),
    )
    assert span == find_spans(scores, np.arange(300), pvalue.gamma)[0]


@pytest.mark.parametrize("n", [0, 1, 5, 31, 32, 33])
def test_short_documents(n: int) -> None:
    assert find_spans(np.ones(n), np.arange(n), pvalue.gamma) == []
    marked = find_spans(np.full(n, 30.0), np.arange(n), pvalue.gamma)
    assert [(span.start, span.end) for span in marked] == ([(0, n)] if n else [])


def test_a_hundred_thousand_tokens_take_under_a_second() -> None:
    rng = np.random.default_rng(6)
    scores = 0.1 * rng.standard_exponential(100_000) + 0.9 * rng.standard_exponential(100_000)
    scores[40_000:40_600] *= 1.6
    positions = np.arange(100_000)
    started = time.process_time()
    spans = find_spans(scores, positions, lambda n, total: pvalue.gamma_sum([n, n], [0.1, 0.9], total))
    assert time.process_time() - started < 1.0
    assert overlap(spans, 40_000, 40_600, 100_000) > 0.7


def test_wrong_input() -> None:
    with pytest.raises(ValueError, match="one score a position"):
        find_spans(np.ones(3), np.arange(2), pvalue.gamma)
    with pytest.raises(ValueError, match="positions must rise"):
        find_spans(np.ones(3), np.array([1, 3, 3]), pvalue.gamma)
