"""transformers' KGW: the same green tokens as its own code, a tail that holds under fresh keys, marks that are found."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hf_kit import CORPORA, ENGINE, VECTORS, assert_null, corpus, kgw_greens, kgw_processor
from scipy.stats import hypergeom

from spiritsafe.errors import BadInput
from spiritsafe.watermark._seen import DocumentSeen
from spiritsafe.watermark._types import Detector
from spiritsafe.watermark.adapters import engine_detector
from spiritsafe.watermark.adapters._hf_kgw import HfKgw, left_seeds
from spiritsafe.watermark.adapters._mersenne import among_first, draws, permutation_head

VOCAB = 2003


def detector(**params: Any) -> HfKgw:
    return HfKgw.from_params({"vocab_size": VOCAB} | params)


def evidence(found: Detector, ids: np.ndarray, first: int = 0) -> tuple[int, float]:
    reading = found.read(ids, first)
    reading = reading.take(DocumentSeen().first(reading.inputs))
    return len(reading.tokens), float(found.scores(reading, 0).values.sum())


def log10_p(found: Detector, ids: np.ndarray) -> float:
    return found.log10_tail(*evidence(found, ids))


def fresh_key(rng: np.random.Generator) -> int:
    return int(rng.integers(1, 2**62)) | 1


def test_the_generator_and_its_shuffle_are_torchs() -> None:
    import torch

    rng = np.random.default_rng(0)
    for seed in [0, 1, 2**32 - 1, 2**64 - 1, *(int(s) for s in rng.integers(0, 2**63, 2))]:
        low = np.uint32(seed % 2**32)
        coins = torch.randint(0, 2, (2000,), generator=torch.Generator().manual_seed(seed))
        assert (draws(low, 2000) % 2 == coins.numpy()).all()
        for n in (2, 3, 100, 5003, 49152):
            shuffled = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).numpy()
            for count in {1, (n + 3) // 4, n - 1, n}:
                assert (permutation_head(low, n, count) == shuffled[:count]).all()
            some = rng.integers(0, n, 50).astype(np.uint32)
            for count in {1, (n + 3) // 4, n - 1}:
                chosen = np.isin(some, shuffled[:count])
                alone = [bool(among_first(np.array([low]), some[i : i + 1], n, count)[0]) for i in range(9)]
                assert alone == chosen[:9].tolist()
                assert (among_first(np.full(50, low), some, n, count) == chosen).all()


@pytest.mark.parametrize("row", json.loads((VECTORS / "hf_kgw.json").read_text(encoding="ascii"))["rows"])
def test_green_tokens_are_those_of_transformers(row: dict[str, Any]) -> None:
    assert json.loads((VECTORS / "hf_kgw.json").read_text(encoding="ascii"))["engine"] == ENGINE
    found = HfKgw.from_params(row["params"])
    ids = np.array(row["ids"], np.uint32)
    reading = found.read(ids, 0)
    start = len(ids) - len(row["green"])
    keyless = {t for t in range(start, len(ids)) if row["params"]["seeding_scheme"] == "lefthash" and ids[t - 1] == 0}
    assert set(reading.positions.tolist()) == set(range(start, len(ids))) - keyless
    assert found.scores(reading, 0).values.tolist() == [row["green"][t - start] for t in reading.positions]


def test_live_transformers_agrees_for_many_keys() -> None:
    rng = np.random.default_rng(5)
    for trial in range(24):
        params = {
            "vocab_size": int(rng.integers(20, 3000)),
            "greenlist_ratio": float(rng.uniform(0.1, 0.9)),
            "hashing_key": int(rng.integers(-(2**63), 2**63)) >> int(rng.integers(0, 60)) or 1,
            "seeding_scheme": ("lefthash", "selfhash")[trial % 2],
            "context_width": int(rng.integers(1, 5)),
        }
        ids = rng.integers(1, params["vocab_size"], 40)
        found = HfKgw.from_params(params)
        reading = found.read(ids.astype(np.uint32), 0)
        greens = kgw_greens(params, ids.tolist())
        assert found.scores(reading, 0).values.tolist() == [greens[t - 40] for t in reading.positions]
        assert len(reading.positions) == len(greens)


def test_left_seeds_are_pythons_product() -> None:
    tokens = np.array([0, 1, 2, 3, 49151, 2**31 - 1, 2**32 - 1], np.uint32)
    for key in (1, -1, 15485863, 2**64 - 1, 2**64 - 2, -(2**63), 2**63, 2**40 + 2**5, 2**200 + 3):
        assert left_seeds(key, tokens).tolist() == [key * int(t) % (2**64 - 1) % 2**32 for t in tokens]


@pytest.mark.parametrize("scheme", ["lefthash", "selfhash"])
def test_the_tokens_its_processor_favours_are_the_green_ones(scheme: str) -> None:
    import torch

    found = detector(seeding_scheme=scheme, context_width=3, hashing_key=99991)
    processor = kgw_processor({"vocab_size": VOCAB, "seeding_scheme": scheme, "context_width": 3, "hashing_key": 99991})
    torch.manual_seed(0)
    prompt, scores = torch.randint(1, VOCAB, (2, 6)), torch.randn(2, VOCAB)
    raised = (processor(prompt, scores) > scores).numpy()
    for row in range(2):
        for token in scores[row].argsort(descending=True)[:40].tolist():
            ids = np.array([*prompt[row].tolist(), token], np.uint32)
            assert evidence(found, ids, first=6) == (1, float(raised[row, token]))


def test_its_detector_counts_the_same_for_left_hash() -> None:
    import torch
    from transformers import PreTrainedConfig, WatermarkDetector, WatermarkingConfig

    ids = corpus("licence", VOCAB)[:600]
    theirs = WatermarkDetector(
        PreTrainedConfig(vocab_size=VOCAB, bos_token_id=0), "cpu", WatermarkingConfig(), ignore_repeated_ngrams=True
    )(torch.from_numpy(ids.astype(np.int64))[None], return_dict=True)
    assert evidence(detector(), ids) == (int(theirs.num_tokens_scored[0]), float(theirs.num_green_tokens[0]))


def test_what_is_hashed_is_deduplicated_not_the_window() -> None:
    ids = corpus("licence", VOCAB)[:800]
    wide, narrow = detector(context_width=4), detector(context_width=1)
    assert evidence(wide, ids) == evidence(narrow, ids)
    selfhash = detector(seeding_scheme="selfhash", context_width=4)
    reading = selfhash.read(ids, 0)
    windows = {tuple(window) for window in np.lib.stride_tricks.sliding_window_view(ids, 4).tolist()}
    assert len(set(reading.inputs.tolist())) < len(windows) < len(reading.inputs)


def test_tokens_after_token_zero_are_not_scored() -> None:
    ids = np.array([5, 0, 7, 8, VOCAB - 1, 0, 0], np.uint32)
    assert detector().read(ids, 0).positions.tolist() == [1, 3, 4, 5]
    assert detector(seeding_scheme="selfhash", context_width=2).read(ids, 0).positions.tolist() == [1, 2, 3, 4, 5, 6]
    assert detector().read(ids, 3).positions.tolist() == [3, 4, 5]


@pytest.mark.parametrize("ids", [[5, VOCAB, 3], [1, 2**32 - 1]])
def test_ids_outside_the_vocabulary_are_told(ids: list[int]) -> None:
    with pytest.raises(BadInput, match=f"{ids[1]} at position 1 is outside the vocabulary of {VOCAB}"):
        detector().read(np.array(ids, np.uint32), 0)


@pytest.mark.parametrize("ids", [[], [1]])
def test_nothing_to_score(ids: list[int]) -> None:
    for scheme in ("lefthash", "selfhash"):
        found = detector(seeding_scheme=scheme, context_width=2)
        assert evidence(found, np.array(ids, np.uint32)) == (0, 0.0)
        assert found.log10_tail(0, 0.0) == 0.0


def test_the_binomial_bounds_draws_without_replacement() -> None:
    """Few tokens of the vocabulary, many after one seed: where the exact law differs most from the binomial."""
    for vocab, ratio in ((20, 0.25), (20, 0.5), (50, 0.1), (7, 0.9)):
        found = HfKgw.from_params({"vocab_size": vocab, "greenlist_ratio": ratio})
        green = int(vocab * ratio)
        for sizes in ((1,), (vocab,), (1, 1, 2), (5, 7, 3), (vocab // 2, 2, 1, 1)):
            law = np.ones(1)
            for m in sizes:
                law = np.convolve(law, hypergeom(vocab, green, m).pmf(np.arange(m + 1)))
            exact = np.cumsum(law[::-1])[::-1]
            for total in range(len(law)):
                assert found.log10_tail(sum(sizes), total) >= np.log10(max(exact[total], 1e-300)) - 1e-9
    assert found.log10_tail(1, 1) == pytest.approx(np.log10(6 / 7), abs=1e-8)


def null_ps(scheme: str, name: str, trials: int) -> np.ndarray:
    rng = np.random.default_rng(trials)
    text = corpus(name, VOCAB)
    out = np.empty(trials)
    for trial in range(trials):
        start = int(rng.integers(len(text) - 150))
        found = detector(
            hashing_key=fresh_key(rng), seeding_scheme=scheme, context_width=1 if scheme == "lefthash" else 3
        )
        out[trial] = log10_p(found, text[start : start + int(rng.integers(30, 150))])
    return out


@pytest.mark.parametrize("name", CORPORA)
@pytest.mark.parametrize(("scheme", "trials"), [("lefthash", 1000), ("selfhash", 400)])
def test_null(scheme: str, name: str, trials: int) -> None:
    assert_null(null_ps(scheme, name, trials), (0.1, 0.01, 0.001))


@pytest.mark.slow
@pytest.mark.parametrize("name", CORPORA)
@pytest.mark.parametrize("scheme", ["lefthash", "selfhash"])
def test_null_at_length(scheme: str, name: str) -> None:
    assert_null(null_ps(scheme, name, 5000), (0.1, 0.01, 0.001))


def test_one_text_under_many_keys_is_also_calibrated() -> None:
    """The whole licence as one document: thousands of coins, many tokens after one seed."""
    rng = np.random.default_rng(11)
    text = corpus("licence", VOCAB)
    assert_null(np.array([log10_p(detector(hashing_key=fresh_key(rng)), text) for _ in range(400)]), (0.1, 0.01))


@pytest.mark.parametrize("scheme", ["lefthash", "selfhash"])
def test_text_that_transformers_marked_is_found_by_its_key_only(scheme: str) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, WatermarkingConfig

    torch.manual_seed(1)
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCAB, **size, pad_token_id=0, eos_token_id=None, bos_token_id=1))
    settings = {"hashing_key": 1234577, "seeding_scheme": scheme, "context_width": 1 if scheme == "lefthash" else 3}
    # Self-hash tries the 40 likeliest tokens only, so a flat distribution would carry next to nothing.
    sampling = {"do_sample": True, "temperature": 1.0 if scheme == "lefthash" else 0.05}
    marked, plain = (
        model.generate(
            torch.tensor([[3, 4, 5, 6]]), max_new_tokens=150, min_new_tokens=150, watermarking_config=config, **sampling
        )[0].numpy()
        for config in (WatermarkingConfig(bias=4.0, **settings), None)
    )
    found = detector(**settings)
    assert found.log10_tail(*evidence(found, marked.astype(np.uint32), 4)) < -10
    assert found.log10_tail(*evidence(found, plain.astype(np.uint32), 4)) > -3
    assert log10_p(detector(**settings | {"hashing_key": 1234579}), marked.astype(np.uint32)) > -3


def test_decoys_differ_in_their_key_only() -> None:
    ids = corpus("licence", VOCAB)[:300]
    found = detector()
    reading = found.read(ids, 0)
    reading = reading.take(DocumentSeen().first(reading.inputs))
    n, totals = found.decoy_totals(reading, 0, b"public", 40)
    decoys = found.decoys(b"public", 40)
    assert [evidence(decoy, ids) for decoy in decoys] == [(n, total) for total in totals]
    assert len(decoys) == len(list(decoys)) == 40
    assert len({decoy._params.hashing_key for decoy in decoys}) == 40
    assert (found.decoy_totals(reading, 0, b"public", 3)[1] == totals[:3]).all()
    assert abs(totals.mean() - n / 4) < 4 * np.sqrt(n * 3 / 16 / 40)


def test_a_keyed_reading_lets_each_decoy_read() -> None:
    ids = corpus("licence", VOCAB)[:200]
    for params in (
        {"seeding_scheme": "selfhash"},
        {"hashing_key": 6},
        {"hashing_key": 2**63 - 25},
        {"hashing_key": -3},
    ):
        found = detector(**params)
        assert found.keyed_reading
        with pytest.raises(ValueError, match="each decoy"):
            found.decoy_totals(found.read(ids, 0), 0, b"public", 2)
        assert len(found.decoys(b"public", 4)[1:3]) == 2
    assert not detector().keyed_reading


def test_lists_that_are_not_kept_are_drawn_again() -> None:
    ids = corpus("licence", VOCAB)[:500]
    large = detector()
    for lists in (0, 20):
        small = HfKgw(large._params, kept_bytes=lists * (VOCAB // 8 + 1))
        for _ in range(3):
            assert evidence(small, ids) == evidence(large, ids)
        assert len(small._lists._bits) == lists < len(large._lists._bits)


def test_fewest() -> None:
    for params in ({}, {"greenlist_ratio": 0.9}):
        found = detector(**params)
        n = found.fewest(-6.0)
        assert found.log10_tail(n, n) <= -6.0 < found.log10_tail(n - 1, n - 1)


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"hashing_keys": 3}, "did you mean hashing_key"),
        ({"gamma": 0.25}, "unknown key gamma"),
        ({"greenlist_ratio": 1.0}, "greenlist_ratio"),
        ({"greenlist_ratio": 1e-6}, "no green token"),
        ({"seeding_scheme": "algorithm-3"}, "lefthash"),
        ({"hashing_key": 0}, "every list"),
        ({"hashing_key": 2**64}, "hashing_key"),
        ({"hashing_key": 2**63, "seeding_scheme": "selfhash"}, "int64"),
        ({"context_width": 0}, "context_width"),
        ({"vocab_size": 1.5}, "vocab_size"),
    ],
)
def test_bad_params(params: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput, match=says) as raised:
        engine_detector("hf-kgw", {"vocab_size": VOCAB} | params)
    assert "\n" not in str(raised.value)


def test_the_vocabulary_is_asked_for() -> None:
    with pytest.raises(BadInput, match="vocab_size is missing"):
        engine_detector("hf-kgw", {"hashing_key": 5})
