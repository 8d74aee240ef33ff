"""SGLang's marks: the same bits as SGLang 0.5.23's own code, tails that hold, and what happens to bad input."""

from __future__ import annotations

import json
import math
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom

from spiritsafe import pvalue
from spiritsafe.errors import BadInput
from spiritsafe.watermark._seen import DocumentSeen
from spiritsafe.watermark._types import Detector
from spiritsafe.watermark.adapters import _murmur as murmur
from spiritsafe.watermark.adapters import engine_detector
from spiritsafe.watermark.adapters._sglang import VERSIONS, SglangDual, SglangGumbel

VECTORS = Path(__file__).parent / "vectors"
ENGINES = ("sglang-gumbel", "sglang-dual")
PARTITIONS = ("combined", "key_a_partition", "key_b_partition")
CERTAIN = 1e-4


def vectors(name: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((VECTORS / f"{name}.json").read_text(encoding="ascii"))
    assert VERSIONS in data["source"]
    return data


def u32(ids: Any) -> np.ndarray:
    return np.asarray(ids, np.int64).astype(np.uint32)


def integer(key: str) -> np.uint64:
    return np.uint64(int(key, 16))


def hashes_of(key: str, contexts: Any, tokens: Any) -> np.ndarray:
    state = murmur.key_states(np.array([integer(key)]))[0]
    contexts, tokens = (array.copy() for array in np.broadcast_arrays(u32(contexts), u32(tokens)))
    return murmur.hashes(np.full(len(tokens), state, np.uint32), contexts, tokens)


def coins_of(key: str, key_b: str, contexts: Any) -> np.ndarray:
    return murmur.coins(np.uint32(murmur.coin_state(integer(key), integer(key_b))), u32(contexts))


def context_hash(tokens: Sequence[int]) -> int:
    """Of a whole prompt, as the reading of the token after it has it."""
    reading = engine_detector("sglang-gumbel", {"key": "1", "context_window": 64}).read(u32([*tokens, 0]), len(tokens))
    return int(reading.windows[0, 0])


def scored(detector: Detector, ids: np.ndarray, first: int = 0) -> tuple[int, float]:
    reading = detector.read(ids, first)
    reading = reading.take(DocumentSeen().first(reading.inputs))
    scores = detector.scores(reading, 0)
    assert (scores.values[~scores.counted] == 0).all()
    return int(scores.counted.sum()), float(scores.values.sum())


# --- the engine's own code --------------------------------------------------------------------------------------------


def test_hashes_are_the_engines_bit_for_bit() -> None:
    data = vectors("sglang_hashes")
    assert [context_hash(context) for context in data["contexts"]] == data["context_hashes"]
    for row in data["keys"]:
        for place, token in enumerate(data["tokens"]):
            theirs = [hashes[place] for hashes in row["hashes"]]
            assert hashes_of(row["key"], data["context_hashes"], token).tolist() == theirs


def test_coins_are_the_engines_bit_for_bit() -> None:
    data = vectors("sglang_hashes")
    for row in data["pairs"]:
        coins = coins_of(row["key"], row["key_b"], data["context_hashes"])
        assert coins.tolist() == row["coins"]


def test_a_score_is_the_engines_at_the_lower_end_of_its_step() -> None:
    data = vectors("sglang_hashes")
    for row in data["keys"]:
        states = murmur.key_states(np.array([integer(row["key"])]))
        for place, token in enumerate(data["tokens"]):
            contexts = u32(data["context_hashes"])
            speakers = np.zeros(len(contexts), np.uint8)
            ours = murmur.scores(states, speakers, contexts, np.full(len(contexts), token, np.uint32))
            theirs = np.array([scores[place] for scores in row["scores"]])
            h = np.array([hashes[place] for hashes in row["hashes"]], np.float64)
            step = np.log1p(0.5 / (2.0**32 - h - 0.5))
            np.testing.assert_allclose(theirs - ours, step, atol=1e-14)
            # P(a unit exponential ≥ the score) is P(the hash is as high), so the sum lies below a Gamma.
            np.testing.assert_allclose(np.exp(-ours), 1 - h / 2.0**32, rtol=1e-14)


def test_counts_and_statistics_are_the_engines_own_detectors() -> None:
    compared = 0
    for row in vectors("sglang_documents")["documents"]:
        params = {n: row[n] for n in ("key", "key_b", "context_window", "mixing_probability", "max_probability")}
        for known, prompt in (("with_prompt", row["prompt"]), ("without_prompt", [])):
            ids = u32(prompt + row["completion"])
            for statistic in PARTITIONS if row["key_b"] else ("combined",):
                detector = engine_detector(ENGINES[row["key_b"] is not None], params | {"statistic": statistic})
                n, total = scored(detector, ids, len(prompt))
                theirs = row[known][statistic]
                assert n == theirs["n"]
                assert theirs["score"] * (1 - 1e-5) < total < theirs["score"]
                log10_theirs = theirs["log_p"] / math.log(10)
                assert log10_theirs < detector.log10_tail(n, total) < log10_theirs + 1e-3
                compared += 1
    assert compared == 28


def test_the_engine_marked_what_the_reading_reads() -> None:
    """Unless its entropy gate left some out, the engine forced as many tokens as are read."""
    rows = [row for row in vectors("sglang_documents")["documents"] if row["max_probability"] == 1]
    assert len(rows) == 7
    for row in rows:
        detector = engine_detector("sglang-gumbel", {"key": row["key"], "context_window": row["context_window"]})
        ids = u32(row["prompt"] + row["completion"])
        assert len(detector.read(ids, len(row["prompt"])).tokens) == row["forced"]


def test_two_keys_of_one_state_are_one_key() -> None:
    """The engine's own code hashed these two keys alike: 64 bits of key act as 32."""
    one, other = vectors("sglang_hashes")["twin_keys"]
    assert one != other
    states = murmur.key_states(np.array([integer(one), integer(other)]))
    assert states[0] == states[1]
    assert coins_of(one, "7", [1, 99, 12345]).tolist() == coins_of(other, "7", [1, 99, 12345]).tolist()


# --- the null ---------------------------------------------------------------------------------------------------------


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


def fresh(random: np.random.Generator) -> str:
    return f"{random.integers(0, 2**64, dtype=np.uint64):x}"


def fresh_params(engine: str, random: np.random.Generator) -> dict[str, Any]:
    return {"key": fresh(random)} | ({"key_b": fresh(random)} if engine == "sglang-dual" else {})


def nominal(log10_p: list[float]) -> None:
    """No level is exceeded (one-sided at 1e-4), and at 0.1 the test is not absurdly timid."""
    n, p = len(log10_p), np.array(log10_p)
    for level in (-1.0, -2.0, -3.0):
        assert binom.sf((p <= level).sum() - 1, n, 10**level) > CERTAIN, f"{(p <= level).mean()} below 10^{level}"
    assert binom.cdf((p <= -1.0).sum(), n, 0.1) > CERTAIN


@pytest.mark.parametrize(
    ("engine", "params"),
    [
        ("sglang-gumbel", {}),
        ("sglang-gumbel", {"context_window": 1}),
        ("sglang-gumbel", {"context_window": 2, "max_contexts": None}),
        ("sglang-dual", {"context_window": 2}),
        ("sglang-dual", {"statistic": "key_a_partition", "mixing_probability": 0.3}),
        ("sglang-dual", {"statistic": "key_b_partition", "max_contexts": None}),
    ],
)
def test_under_the_null_no_level_is_exceeded(engine: str, params: dict[str, Any]) -> None:
    random, seen = np.random.default_rng(21), DocumentSeen()
    readings = [engine_detector(engine, fresh_params(engine, random) | params).read(text, 0) for text in documents()]
    readings = [reading.take(seen.first(reading.inputs)) for reading in readings]
    log10_p = []
    for trial in range(5000):
        detector = engine_detector(engine, fresh_params(engine, random) | params)
        scores = detector.scores(readings[trial % len(readings)], 0)
        log10_p.append(detector.log10_tail(int(scores.counted.sum()), float(scores.values.sum())))
    nominal(log10_p)


def test_a_pool_deduplicated_globally_holds_the_level() -> None:
    texts = [words("please open the file and read it " * 3) for _ in range(20)] + documents()[:2]
    params = {"key": "1", "context_window": 2, "max_contexts": None}
    readings = [engine_detector("sglang-gumbel", params).read(text, 0) for text in texts]
    new = np.zeros(sum(len(reading.inputs) for reading in readings), np.bool_)
    new[np.unique(np.concatenate([reading.inputs for reading in readings]), return_index=True)[1]] = True
    ends = np.cumsum([len(reading.inputs) for reading in readings])[:-1]
    readings = [reading.take(mask) for reading, mask in zip(readings, np.split(new, ends), strict=True)]
    random, log10_p = np.random.default_rng(22), []
    for _ in range(1500):
        detector = engine_detector("sglang-gumbel", {"key": fresh(random), "context_window": 2})
        totals = [float(detector.scores(reading, 0).values.sum()) for reading in readings]
        log10_p.append(detector.log10_tail(sum(len(reading.tokens) for reading in readings), sum(totals)))
    nominal(log10_p)


# --- power ------------------------------------------------------------------------------------------------------------

VOCAB = 200
LANGUAGE = np.random.default_rng(23).normal(0, 2.0, (VOCAB, VOCAB))
PROBABILITIES = np.exp(LANGUAGE) / np.exp(LANGUAGE).sum(1, keepdims=True)


def reply(params: dict[str, Any] | None, length: int, seed: int, prompt: Sequence[int] = (1, 2, 3, 4, 5)) -> np.ndarray:
    """Prompt and reply, sampled as the engine does: argmax log(u) / p, each context once; without params, unmarked."""
    random, ids, used = np.random.default_rng(seed), list(prompt), set()
    for _ in range(length):
        probabilities = PROBABILITIES[ids[-1]]
        context = context_hash(ids[-4:])
        if params is None or context in used:
            ids.append(int(random.choice(VOCAB, p=probabilities)))
            continue
        used.add(context)
        key = params["key"]
        if "key_b" in params and coins_of(key, params["key_b"], [context])[0] >= 2**31:
            key = params["key_b"]
        u = (hashes_of(key, context, np.arange(VOCAB)) + 0.5) / 2.0**32
        ids.append(int(np.argmax(np.log(u) / probabilities)))
    return u32(ids)


@pytest.mark.parametrize("engine", ENGINES)
def test_marked_replies_are_found_under_their_key_and_no_other(engine: str) -> None:
    random = np.random.default_rng(24)
    right, wrong, unmarked = [], [], []
    for trial in range(8):
        params = fresh_params(engine, random)
        detector, other = engine_detector(engine, params), engine_detector(engine, fresh_params(engine, random))
        marked = reply(params, 120, trial)
        right.append(detector.log10_tail(*scored(detector, marked, 5)))
        wrong.append(other.log10_tail(*scored(other, marked, 5)))
        unmarked.append(detector.log10_tail(*scored(detector, reply(None, 120, trial), 5)))
    assert np.median(right) < -20
    assert min(wrong) > -4
    assert min(unmarked) > -4


def test_another_accounts_text_says_nothing_in_the_partition_of_key_a() -> None:
    """Key A is an account's, key B everybody's: `combined` would accuse, because it counts key B's marks."""
    random = np.random.default_rng(25)
    everybodys, combined, partition = fresh(random), [], []
    text = reply({"key": fresh(random), "key_b": everybodys}, 300, 0)
    for _ in range(400):
        account = {"key": fresh(random), "key_b": everybodys}
        for statistic, log10_p in (("combined", combined), ("key_a_partition", partition)):
            detector = engine_detector("sglang-dual", account | {"statistic": statistic})
            log10_p.append(detector.log10_tail(*scored(detector, text, 5)))
    assert np.median(combined) < -5
    nominal(partition)


@pytest.mark.parametrize(
    ("engine", "params"),
    [
        ("sglang-gumbel", {}),
        ("sglang-gumbel", {"context_window": 1, "max_contexts": 20}),
        ("sglang-gumbel", {"context_window": 2, "max_contexts": None}),
        ("sglang-dual", {"context_window": 2, "mixing_probability": 0.3}),
        ("sglang-dual", {"statistic": "key_a_partition"}),
        ("sglang-dual", {"statistic": "key_b_partition", "max_contexts": None}),
    ],
)
def test_totals_of_many_documents_are_those_of_each(engine: str, params: dict[str, Any]) -> None:
    texts = [*documents(), u32([]), u32([1, 2, 3]), documents()[-1][:60]]
    firsts = np.array([(3 * number) % 7 for number in range(len(texts))])
    detector = engine_detector(engine, fresh_params(engine, np.random.default_rng(27)) | params)
    assert isinstance(detector, SglangGumbel | SglangDual)
    offsets = np.cumsum([0, *map(len, texts)])
    for given in (firsts, None):
        counts, totals = detector.totals_batch(np.concatenate(texts), offsets, 0, given)
        each = [
            scored(detector, text, int(first) if given is not None else 0)
            for text, first in zip(texts, firsts, strict=True)
        ]
        assert counts.tolist() == [n for n, _ in each]
        np.testing.assert_allclose(totals, [total for _, total in each], rtol=1e-12)
    assert counts.sum() > 300


def test_the_tail_is_the_gammas_at_any_depth() -> None:
    detector = engine_detector("sglang-gumbel", {"key": "5"})
    for n, total in (
        (1, 0.0),
        (1, 1e-3),
        (9, 8.0),
        (9, 9.0),
        (300, 260.0),
        (300, 420.0),
        (300, 1500.0),
        (5000, 20000.0),
    ):
        assert detector.log10_tail(n, total) == pytest.approx(pvalue.gamma(n, total), rel=1e-13, abs=1e-15)


# --- decoys, planning, bad input --------------------------------------------------------------------------------------


@pytest.mark.parametrize("params", [{}, {"statistic": "key_a_partition"}, {"statistic": "key_b_partition"}])
@pytest.mark.parametrize("engine", ENGINES)
def test_totals_of_decoys_are_those_of_each_decoy(engine: str, params: dict[str, Any]) -> None:
    params = {"key": "abc", "context_window": 3} | ({"key_b": "def"} | params if engine == "sglang-dual" else {})
    detector = engine_detector(engine, params)
    reading = detector.read(documents()[5], 0)
    n, totals = detector.decoy_totals(reading, 0, b"public", 9)
    assert n == int(detector.scores(reading, 0).counted.sum()) > 30
    each = [decoy.scores(reading, 0) for decoy in detector.decoys(b"public", 9)]
    assert all((scores.counted == detector.scores(reading, 0).counted).all() for scores in each)
    np.testing.assert_allclose(totals, [scores.values.sum() for scores in each], rtol=1e-12)
    assert len({*totals, detector.scores(reading, 0).values.sum()}) == 10
    assert detector.decoy_totals(reading, 0, b"public", 4)[1].tolist() == totals[:4].tolist()
    assert detector.decoy_totals(reading, 0, b"another", 4)[1].tolist() != totals[:4].tolist()
    assert detector.decoy_totals(reading, 0, b"public", 0)[1].shape == (0,)


@pytest.mark.parametrize("engine", ENGINES)
def test_fewest_tokens_for_a_level(engine: str) -> None:
    detector = engine_detector(engine, fresh_params(engine, np.random.default_rng(26)))
    best = 32 * math.log(2)
    for level in (-3.0, -9.7, -100.0):
        n = detector.fewest(level)
        assert detector.log10_tail(n, n * best) <= level
        assert n == 1 or detector.log10_tail(n - 1, (n - 1) * best) > level


def test_short_and_empty_documents() -> None:
    detector = engine_detector("sglang-gumbel", {"key": "5"})
    assert scored(detector, u32([]))[0] == 0
    assert detector.log10_tail(0, 0.0) == 0.0
    # Without a prompt the first four contexts are unknown; after a prompt, however short, they are known.
    assert detector.read(u32([7, 8, 9, 10, 11]), 0).positions.tolist() == [4]
    assert detector.read(u32([7, 8, 9, 10]), 0).positions.tolist() == []
    assert detector.read(u32([7, 8, 9, 10]), 2).positions.tolist() == [2, 3]
    assert detector.read(u32([7, 8]), 5).positions.tolist() == []
    # Shortened, not padded: a prompt of two tokens is not the same as one that begins with zeros.
    short, padded = detector.read(u32([7, 8, 9]), 2), detector.read(u32([0, 0, 7, 8, 9]), 4)
    assert short.windows.tolist() != padded.windows.tolist()


def test_a_context_counts_once_and_only_so_many_do() -> None:
    ids = u32([1, 2, 3, 1, 2, 4, 1, 2, 3, 5])

    def positions(**params: Any) -> list[int]:
        detector = engine_detector("sglang-gumbel", {"key": "5", "context_window": 2} | params)
        return detector.read(ids, 0).positions.tolist()

    assert positions() == [2, 3, 4, 6, 7]
    assert positions(max_contexts=3) == [2, 3, 4]
    assert positions(max_contexts=None) == list(range(2, 10))
    # Then what the PRF hashes twice is known as such: the token 3 after (1, 2), but not 4 after it.
    every = engine_detector("sglang-gumbel", {"key": "5", "context_window": 2, "max_contexts": None}).read(ids, 0)
    assert every.inputs[6] == every.inputs[0] != every.inputs[3]


def test_ids_outside_the_vocabulary_are_named() -> None:
    with pytest.raises(BadInput, match="token id 100 at position 2 is outside the vocabulary of 100"):
        engine_detector("sglang-gumbel", {"key": "5", "vocab_size": 100}).read(u32([1, 2, 100, 3]), 0)
    with pytest.raises(BadInput, match="outside the vocabulary"):
        engine_detector("sglang-dual", {"key": "5", "key_b": "6"}).read(u32([1, -1]), 0)


def test_a_servers_own_config_is_accepted_as_it_is() -> None:
    config = {
        "key": "0x0123456789ABCDEF",
        "key_b": None,
        "context_window": 2,
        "mixing_probability": 0.5,
        "max_probability": 0.9,
        "default_enabled": True,
        "enforce_all": False,
    }
    plain = engine_detector("sglang-gumbel", {"key": "123456789abcdef", "context_window": 2})
    assert scored(engine_detector("sglang-gumbel", config), documents()[0]) == scored(plain, documents()[0])


@pytest.mark.parametrize(
    ("engine", "params", "message"),
    [
        ("sglang-gumbel", {}, "key is missing"),
        ("sglang-gumbel", {"key": 81985529216486895}, "key must be a string of hex digits"),
        ("sglang-gumbel", {"key": "5ecre7"}, "key must have 1 to 16 hex digits"),
        ("sglang-gumbel", {"key": "0123456789abcdef0"}, "key must have 1 to 16 hex digits"),
        ("sglang-gumbel", {"key": ""}, "key must have 1 to 16 hex digits"),
        ("sglang-gumbel", {"key": "1", "context_window": 65}, "context_window"),
        (
            "sglang-gumbel",
            {"key": "1", "context_width": 4},
            "SGLang 0.5.23.*context_width; did you mean context_window",
        ),
        ("sglang-gumbel", {"key": "1", "alpha": 0.1}, "SGLang 0.5.23.*unknown key alpha"),
        ("sglang-gumbel", {"key": "1", "key_b": "2"}, "use the engine sglang-dual"),
        ("sglang-gumbel", {"key": "1", "mixing_probability": 0.2}, "mixing_probability needs a key_b"),
        ("sglang-gumbel", {"key": "1", "statistic": "key_a_partition"}, "statistic needs a key_b"),
        ("sglang-dual", {"key": "1"}, "key_b is missing; with one key use the engine sglang-gumbel"),
        ("sglang-dual", {"key": "1", "key_b": "2", "mixing_probability": 1}, "mixing_probability"),
        ("sglang-dual", {"key": "1", "key_b": "2", "statistic": "key_a_all_positions"}, "statistic"),
        ("sglang-dual", {"key": "1", "key_b": "2", "max_contexts": 5000}, "max_contexts"),
    ],
)
def test_parameters_of_another_version_are_named(engine: str, params: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        engine_detector(engine, params)
    assert "\n" not in str(caught.value)


def test_no_message_and_no_repr_shows_a_key() -> None:
    with pytest.raises(BadInput) as caught:
        engine_detector("sglang-gumbel", {"key": "deadbeefdeadbeef0", "alpha": 1})
    assert "deadbeef" not in str(caught.value)
    with pytest.raises(BadInput) as caught:
        engine_detector("sglang-dual", {"key": "deadbeef", "key_b": "deadbeef", "alpha": 1})
    assert "deadbeef" not in str(caught.value)
    assert str(0xDEADBEEF) not in str(caught.value)
    assert str(0xDEADBEEF) not in repr(SglangGumbel.from_params({"key": "deadbeef"}).params)
    assert str(0xDEADBEEF) not in repr(SglangDual.from_params({"key": "1", "key_b": "deadbeef"}).params)
