"""vLLM's marks: the same bits as vLLM 0.33.0's own code, tails that hold, and what happens to bad input."""

from __future__ import annotations

import json
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom

from spiritsafe import pvalue
from spiritsafe.errors import BadInput
from spiritsafe.watermark._seen import DocumentSeen
from spiritsafe.watermark._types import Detector, Reading
from spiritsafe.watermark.adapters import ENGINES, engine_detector
from spiritsafe.watermark.adapters import _philox as philox
from spiritsafe.watermark.adapters._two_gammas import log10_tail
from spiritsafe.watermark.adapters._vllm import _CHARGE, VllmDual, VllmGumbel

VECTORS = Path(__file__).parent / "vectors"
KINDS = (VllmGumbel, VllmDual)
CERTAIN = 1e-4


def rows(name: str) -> list[dict[str, Any]]:
    data = json.loads((VECTORS / f"{name}.json").read_text(encoding="ascii"))
    assert data["engine"] == "vLLM 0.33.0"
    return data["rows"]


def u32(ids: Any) -> np.ndarray:
    return np.asarray(ids, np.int64).astype(np.uint32)


def scored(detector: Detector, ids: np.ndarray, first: int = 0) -> tuple[int, float]:
    reading = detector.read(ids, first)
    reading = reading.take(DocumentSeen().first(reading.inputs))
    scores = detector.scores(reading, 0)
    assert scores.counted.all()
    return len(scores.values), float(scores.values.sum())


def detector_of(row: dict[str, Any], **changes: Any) -> Detector:
    engine = "vllm-dual" if row["params"]["algorithm"] == "dual_key_gumbel" else "vllm-gumbel"
    return engine_detector(engine, row["params"] | changes)


def test_u_is_the_engines_bit_for_bit() -> None:
    for row in rows("vllm_philox"):
        u = philox.uniforms(philox.key_words(row["key"]), u32(row["contexts"]), u32(row["tokens"]))
        assert u.tolist() == row["u"]


def test_the_engine_picks_the_token_our_u_says() -> None:
    for row in rows("vllm_picks"):
        for context, logits, picked in zip(row["contexts"], row["logits"], row["picked"], strict=True):
            assert sampled(row["key"], u32(context), np.array(logits, np.float32)) == picked


def test_a_reply_is_read_where_the_engine_marked_it() -> None:
    for row in rows("vllm_replies"):
        ids = u32(row["prompt"] + row["output"])
        reading = detector_of(row).read(ids, len(row["prompt"]))
        marked = set(range(len(row["output"]))) - set(row["unmarked"])
        assert set((reading.positions - len(row["prompt"])).tolist()) == marked
        assert (reading.tokens == ids[reading.positions]).all()


def test_scores_sums_and_p_are_the_engines_own_detectors() -> None:
    compared = 0
    for row in rows("vllm_replies"):
        # Its detector knows neither a limited history nor that a prompt may be searched: give ours the same reading.
        if row["params"].get("deduplicate_contexts") == "none":
            reading = detector_of(row).read(u32(row["output"]), 0)
        else:
            whole = {"deduplicate_contexts": "single_turn", "deduplicate_contexts_max_history": None}
            reading = detector_of(row, **whole).read(u32(row["output"]), 0)
        detector = detector_of(row)
        values, theirs = detector.scores(reading, 0).values, row["detector"]
        assert len(values) == theirs["n"]
        np.testing.assert_allclose(values, theirs["scores"], rtol=1e-15)
        assert values.sum() == pytest.approx(theirs["score"], rel=1e-14)
        log10_p, log10_theirs = detector.log10_tail(len(values), float(values.sum())), np.log10(theirs["p_value"])
        assert log10_p > log10_theirs - 1e-9
        if row["params"]["algorithm"] == "gumbel" or row["params"]["alpha"] in (0, 0.5, 1):
            assert log10_p == pytest.approx(log10_theirs, abs=1e-4)
            compared += 1
    assert compared == 8


def test_the_dual_tail_is_not_the_moment_match() -> None:
    """vLLM's Gamma for n = 100, α = 0.1 puts 10^-31.2 where the tail is 10^-30: ours must not."""
    from scipy.stats import gamma

    detector = VllmDual.from_params({"key": 1})
    variance = 0.9**2 + 0.1**2
    total = next(s for s in np.arange(100.0, 400.0, 0.5) if detector.log10_tail(100, s) < -30)
    assert gamma.logsf(total / variance, 100 / variance) / np.log(10) < detector.log10_tail(100, total) - 1


def test_no_score_exceeds_an_exponential_by_more_than_is_charged() -> None:
    m = np.arange(philox.STEPS)
    u = ((m + 1.0) / (philox.STEPS + 1.0)).astype(np.float32).astype(np.float64)
    excess = np.log1p(-m / philox.STEPS) - np.log1p(-u)
    assert 0.99 * _CHARGE < excess.max() <= _CHARGE
    for kind in KINDS:
        detector = kind.from_params({"key": 1})
        assert detector.log10_tail(10**6, 1e6) == detector._log10_sum(10**6, 1e6 - 10**6 * _CHARGE)
    assert VllmGumbel.from_params({"key": 1}).log10_tail(10**6, 1e6) == pytest.approx(np.log10(0.5), abs=1e-3)


# --- the null -----------------------------------------------------------------------------------------------------------


def words(text: str, vocab: int = 5000) -> np.ndarray:
    """Words and punctuation as ids, in order of first appearance."""
    numbers: dict[str, int] = {}
    return u32([numbers.setdefault(word, len(numbers)) % vocab for word in text.split()])


def stdlib(*names: str) -> np.ndarray:
    folder = Path(sysconfig.get_path("stdlib"))
    return words("\n".join((folder / f"{name}.py").read_text(encoding="utf-8") for name in names))


def documents() -> list[np.ndarray]:
    """Licence, source code, templated replies and a loop: texts that repeat themselves."""
    licence = words((Path(__file__).parents[2] / "LICENSE").read_text(encoding="utf-8"))
    code = stdlib("argparse", "textwrap", "json/decoder")
    reply = "Sure! Here is what {0} does: it takes {1} and gives {0}. Note that {0} may fail when {1} is empty."
    nouns = ["a list", "a dict", "the key", "a path", "the loop", "one file", "that set", "an int"]
    template = words(" ".join(reply.format(a, b) for a in nouns for b in nouns))
    loop = words("the same words again and again " * 60)
    return [*np.array_split(licence, 4), *np.array_split(code, 8), *np.array_split(template, 3), loop]


def nominal(log10_p: list[float]) -> None:
    """No level is exceeded (one-sided at 1e-4), and at 0.1 the test is not absurdly timid."""
    n, p = len(log10_p), np.array(log10_p)
    for level in (-1.0, -2.0, -3.0):
        assert binom.sf((p <= level).sum() - 1, n, 10**level) > CERTAIN, f"{(p <= level).mean()} below 10^{level}"
    assert binom.cdf((p <= -1.0).sum(), n, 0.1) > CERTAIN


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("params", [{}, {"context_width": 1}, {"context_width": 2, "deduplicate_contexts": "none"}])
def test_under_the_null_no_level_is_exceeded(kind: type, params: dict[str, Any]) -> None:
    texts, keys = documents(), np.random.default_rng(11).integers(0, 2**64, 3000, dtype=np.uint64)
    seen = DocumentSeen()
    readings = [kind.from_params({"key": 1, **params}).read(text, 0) for text in texts]
    readings = [reading.take(seen.first(reading.inputs)) for reading in readings]
    log10_p = []
    for trial, key in enumerate(keys):
        detector = kind.from_params({"key": int(key), **params})
        values = detector.scores(readings[trial % len(texts)], 0).values
        log10_p.append(detector.log10_tail(len(values), float(values.sum())))
    nominal(log10_p)


def test_a_pool_deduplicated_globally_holds_the_level() -> None:
    texts = [words("please open the file and read it " * 3) for _ in range(20)] + documents()[:2]
    reader = VllmGumbel.from_params({"key": 1, "context_width": 2})
    pooled = [reader.read(text, 0) for text in texts]
    first = np.unique(np.concatenate([reading.inputs for reading in pooled]), return_index=True)[1]
    windows = np.concatenate([reading.windows for reading in pooled])[first]
    tokens = np.concatenate([reading.tokens for reading in pooled])[first]
    reading = Reading(np.arange(len(tokens), dtype=np.uint64), np.arange(len(tokens)), windows, tokens)
    assert len(tokens) < sum(len(reading.tokens) for reading in pooled)
    log10_p = []
    for key in np.random.default_rng(12).integers(0, 2**64, 3000, dtype=np.uint64):
        detector = VllmGumbel.from_params({"key": int(key), "context_width": 2})
        log10_p.append(detector.log10_tail(len(tokens), float(detector.scores(reading, 0).values.sum())))
    nominal(log10_p)


# --- power --------------------------------------------------------------------------------------------------------------

VOCAB = 200
LANGUAGE = np.random.default_rng(13).normal(0, 2.0, (VOCAB, VOCAB)).astype(np.float32)


def sampled(key: int, context: np.ndarray, logits: np.ndarray) -> int:
    """The engine's sampler: argmax of logits + Gumbel noise made of u."""
    vocab = len(logits)
    u = philox.uniforms(philox.key_words(key), np.tile(context, (vocab, 1)), np.arange(vocab, dtype=np.uint32))
    return int(np.argmax(logits - np.log(-np.log(u))))


def reply(pick_key: Callable[[], int | None], length: int, width: int, seed: int) -> np.ndarray:
    """A reply the engine would give on a synthetic language, a repeated context left unmarked."""
    rng, ids, seen = np.random.default_rng(seed), [], set()
    for _ in range(length):
        context = u32(([-1] * width + ids)[-width:])
        logits = LANGUAGE[ids[-1]] if ids else LANGUAGE[0]
        key = pick_key()
        if key is None or context.tobytes() in seen:
            ids.append(int(np.argmax(logits + rng.gumbel(size=VOCAB))))
        else:
            ids.append(sampled(key, context, logits))
        seen.add(context.tobytes())
    return u32(ids)


@pytest.mark.parametrize("kind", KINDS)
def test_marked_replies_are_found_under_their_key_and_no_other(kind: type) -> None:
    rng = np.random.default_rng(14)
    right, wrong, unmarked = [], [], []
    for trial in range(12):
        key = int(rng.integers(0, 2**63))
        detector = kind.from_params({"key": key, "vocab_size": VOCAB})
        words_of = detector._keys_M2.astype(np.uint64)
        engine_keys = [int(low | (high << np.uint64(32))) for low, high in words_of]
        ids = reply(lambda keys=engine_keys: keys[-1 if rng.random() < 0.1 else 0], 150, 4, trial)
        right.append(detector.log10_tail(*scored(detector, ids)))
        unmarked.append(detector.log10_tail(*scored(detector, reply(lambda: None, 150, 4, trial))))
        other = kind.from_params({"key": key + 1, "vocab_size": VOCAB})
        wrong.append(other.log10_tail(*scored(other, ids)))
    assert np.median(right) < -20
    assert min(wrong) > -4
    assert min(unmarked) > -4


# --- decoys, planning, bad input ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_totals_of_decoys_are_those_of_each_decoy(kind: type) -> None:
    detector = kind.from_params({"key": 5, "context_width": 3})
    reading = detector.read(documents()[5], 0)
    n, totals = detector.decoy_totals(reading, 0, b"public", 9)
    assert n == len(reading.tokens)
    each = [decoy.scores(reading, 0).values.sum() for decoy in detector.decoys(b"public", 9)]
    np.testing.assert_allclose(totals, each, rtol=1e-12)
    assert len(set(totals)) == 9
    assert detector.decoy_totals(reading, 0, b"public", 4)[1].tolist() == totals[:4].tolist()
    assert detector.decoy_totals(reading, 0, b"another", 4)[1].tolist() != totals[:4].tolist()
    assert detector.decoy_totals(reading, 0, b"public", 0)[1].shape == (0,)


@pytest.mark.parametrize("kind", KINDS)
def test_fewest_tokens_for_a_level(kind: type) -> None:
    detector = kind.from_params({"key": 5})
    best = 24 * np.log(2)  # u's largest value is 1 − 2^-24
    for level in (-3.0, -9.0, -100.0):
        n = detector.fewest(level)
        assert detector.log10_tail(n, n * best) <= level + 1e-3
        assert n == 1 or detector.log10_tail(n - 1, (n - 1) * best) > level


def test_short_and_empty_documents() -> None:
    detector = engine_detector("vllm-gumbel", {"key": 5})
    assert scored(detector, u32([]))[0] == 0
    assert detector.log10_tail(0, 0.0) == 0.0
    # A reply's first token has a context too: what stands before the reply's start.
    assert detector.read(u32([7, 8]), 0).windows.tolist() == [[2**32 - 1] * 4, [2**32 - 1] * 3 + [7]]
    assert scored(detector, u32([7, 8]), first=2)[0] == 0
    # The prompt is no context: the same reply after another prompt has the same inputs.
    one, two = detector.read(u32([1, 2, 7, 8]), 2), detector.read(u32([9, 9, 9, 7, 8]), 3)
    assert one.inputs.tolist() == two.inputs.tolist()
    assert two.positions.tolist() == [3, 4]
    after_prompt = engine_detector("vllm-gumbel", {"key": 5, "deduplicate_contexts": "all"})
    assert after_prompt.read(u32([1, 2, 3, 4, 5, 6]), 1).positions.tolist() == [5]


def test_ids_outside_the_vocabulary_are_named() -> None:
    with pytest.raises(BadInput, match="token id 100 at position 2 is outside the vocabulary of 100"):
        engine_detector("vllm-gumbel", {"key": 5, "vocab_size": 100}).read(u32([1, 2, 100, 3]), 0)
    with pytest.raises(BadInput, match="outside the vocabulary"):
        engine_detector("vllm-dual", {"key": 5}).read(u32([1, -1]), 0)


@pytest.mark.parametrize(
    ("engine", "params", "message"),
    [
        ("vllm-gumbel", {}, "key is missing"),
        ("vllm-gumbel", {"key": 2**64}, "key: .*less than or equal"),
        ("vllm-gumbel", {"key": 1.5}, "key: .*integer"),
        ("vllm-gumbel", {"key": 1, "context_width": 0}, "context_width"),
        ("vllm-gumbel", {"key": 1, "gamma": 0.5}, "vLLM 0.33.0.*unknown key gamma"),
        ("vllm-gumbel", {"key": 1, "algorithm": "sbw"}, "vLLM 0.33.0.*algorithm"),
        ("vllm-gumbel", {"key": 1, "prf": "murmur"}, "prf"),
        ("vllm-gumbel", {"key": 1, "algorithm": "dual_key_gumbel"}, "use the engine vllm-dual"),
        ("vllm-dual", {"key": 1, "algorithm": "gumbel"}, "use the engine vllm-gumbel"),
        ("vllm-dual", {"key": 1, "alpha": 1.5}, "alpha"),
        ("vllm-gumbell", {"key": 1}, "did you mean vllm-gumbel"),
    ],
)
def test_parameters_of_another_version_are_named(engine: str, params: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        engine_detector(engine, params)
    assert "\n" not in str(caught.value)


def test_the_engines() -> None:
    assert ENGINES == ("vllm-gumbel", "vllm-dual", "sglang-gumbel", "sglang-dual", "hf-kgw", "hf-synthid")


def test_the_fast_dual_tail_bounds_the_exact_one_from_just_above() -> None:
    for n in (1, 2, 30, 1000, 20_000):
        for alpha in (0.02, 0.1, 0.49, 0.5, 0.9, 0.0):
            sd = np.sqrt(n * ((1 - alpha) ** 2 + alpha**2))
            for total in n + sd * np.array([-3, 0.3, 3, 15, 300]):
                if total > 0:
                    fast, exact = log10_tail(n, alpha, total), pvalue.gamma_sum((n, n), (alpha, 1 - alpha), total)
                    assert exact - 1e-9 * max(1, -exact) <= fast <= exact + 1e-6
                    if n >= 1000 and alpha == 0.02:  # where logarithms are large, what they may lose is added
                        assert fast > exact
    assert log10_tail(5, 0.1, 0.0) == 0.0
    # Scales too far apart for the kernel to sum: the general routine answers.
    assert log10_tail(10**5, 1e-5, 1e5) == pvalue.gamma_sum((10**5, 10**5), (1e-5, 1 - 1e-5), 1e5)
