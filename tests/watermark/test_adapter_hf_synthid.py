"""transformers' SynthID: the same coins as its own code, an exact null law under fresh keys, marks that are found."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hf_kit import CORPORA, ENGINE, VECTORS, assert_null, corpus, synthid_processor, synthid_values

from spiritsafe.errors import BadInput
from spiritsafe.watermark._seen import DocumentSeen
from spiritsafe.watermark._types import Detector, Reading, TailOfInputs
from spiritsafe.watermark.adapters import engine_detector
from spiritsafe.watermark.adapters._hf_synthid import HfSynthId

VOCAB = 2003
SIZE = 2**16


def detector(rng: np.random.Generator | None = None, layers: int = 30, **params: Any) -> HfSynthId:
    keys = (rng or np.random.default_rng(0)).integers(-(2**63), 2**63, layers).tolist()
    return HfSynthId.from_params({"ngram_len": 5, "keys": keys} | params)


def reading_of(found: Detector, ids: np.ndarray, first: int = 0) -> Reading:
    reading = found.read(ids, first)
    return reading.take(DocumentSeen().first(reading.inputs))


def log10_p(found: HfSynthId, reading: Reading) -> float:
    return found.log10_tail_of(reading.inputs, float(found.scores(reading, 0).values.sum()))


def test_coins_and_masks_are_those_of_transformers() -> None:
    data = json.loads((VECTORS / "hf_synthid.json").read_text(encoding="ascii"))
    assert data["engine"] == ENGINE
    for row in data["rows"]:
        assert_same(row["params"], row["ids"], row["values"], row["mask"])


def test_live_transformers_agrees_for_many_settings() -> None:
    rng = np.random.default_rng(2)
    for trial in range(30):
        params = {
            "ngram_len": int(rng.integers(2, 7)),
            "keys": rng.integers(-(2**63), 2**63, int(rng.integers(1, 40))).tolist(),
            "context_history_size": int(rng.integers(0, 60)),
            "sampling_table_seed": int(rng.integers(0, 2**63)),
            "sampling_table_size": 2 ** int(rng.integers(4, 17)),
            "eos_token_id": 3 if trial % 2 else None,
        }
        ids = rng.integers(0, int(rng.integers(2, 2000)), 80).tolist()
        assert_same(params, ids, *synthid_values(params, ids))


def assert_same(params: dict[str, Any], ids: list[int], values: list[int], mask: list[int]) -> None:
    found = HfSynthId.from_params(params)
    reading = found.read(np.array(ids, np.uint32), 0)
    offset = params["ngram_len"] - 1
    assert (reading.positions - offset).tolist() == [i for i, kept in enumerate(mask) if kept]
    assert found.scores(reading, 0).values.tolist() == [v for v, kept in zip(values, mask, strict=True) if kept]
    assert reading.tokens.tolist() == [ids[t] for t in reading.positions]
    assert reading.windows.tolist() == [ids[t - offset : t] for t in reading.positions]


@pytest.mark.parametrize("skip", [False, True])
def test_a_reply_is_read_where_and_how_the_processor_marked_it(skip: bool) -> None:
    """One layer, so that the score is the coin: it must explain every distribution that the processor returns."""
    import torch

    vocab, rng = 11, np.random.default_rng(4)
    params = {
        "ngram_len": 3,
        "keys": [int(rng.integers(2**62))],
        "context_history_size": 6,
        "skip_first_ngram_calls": skip,
    }
    processor, found = synthid_processor(params), HfSynthId.from_params(params)
    prompt, reply = rng.integers(0, vocab, 4).tolist(), rng.integers(0, 3, 60).tolist()
    marked = 0
    for t in range(len(reply)):
        before = prompt + reply[:t]
        scores = torch.from_numpy(rng.normal(size=(1, vocab)))
        after = processor(torch.tensor([before]), scores)
        coins = np.full(vocab, np.nan)
        for token in range(vocab):
            reading = found.read(np.array([*before, token], np.uint32), len(prompt))
            if len(before) in reading.positions:
                coins[token] = found.scores(reading, 0).values[-1]
        assert np.isnan(coins).all() or not np.isnan(coins).any()
        if np.isnan(coins).all():
            assert torch.equal(after, scores)
        else:
            probs = torch.softmax(scores, 1).numpy()[0]
            expected = probs * (1 + coins - (probs * coins).sum())
            np.testing.assert_allclose(torch.softmax(after, 1).numpy()[0], expected, rtol=1e-9)
            marked += 1
    assert 20 < marked < 60


def test_equal_hashes_are_one_coin_whatever_the_words() -> None:
    ids = np.random.default_rng(1).integers(0, 2**32, 3000, dtype=np.uint32)
    found = detector(sampling_table_size=2**10)
    reading = found.read(ids, 0)
    scores = found.scores(reading, 0).values
    assert len(np.unique(reading.windows, axis=0)) > 2 * len(np.unique(reading.inputs))
    for value in np.unique(reading.inputs)[:100]:
        assert len(np.unique(scores[reading.inputs == value])) == 1


def test_the_law_is_that_of_fresh_keys() -> None:
    """Against two million draws, and against every pair of shifts there is."""
    rng = np.random.default_rng(6)
    for size, layers in ((2**10, 5), (2**16, 30)):
        found = detector(layers=layers, sampling_table_size=size)
        inputs = np.unique(rng.integers(0, size, 150)).astype(np.uint64)
        sums = found._sums(inputs)
        table = found._table_N.astype(int)
        for k in rng.integers(0, size, 20):
            assert sums[k] == table[(inputs.astype(int) + k) % size].sum()
        totals = sum(sums[rng.integers(0, size, 2_000_000)] for _ in range(layers))
        for quantile in (0.1, 0.5, 0.9, 0.999, 0.99999):
            at = float(np.quantile(totals, quantile))
            share = (totals >= at).mean()
            assert 10 ** found.log10_tail_of(inputs, at) == pytest.approx(share, abs=5 * np.sqrt(share / 2e6))
    two = detector(layers=2, sampling_table_size=2**10)
    inputs = np.arange(0, 40, dtype=np.uint64)
    every = np.add.outer(two._sums(inputs), two._sums(inputs)).ravel()
    for total in range(int(every.min()), int(every.max()) + 1):
        assert 10 ** two.log10_tail_of(inputs, total) == pytest.approx((every >= total).mean(), rel=1e-9)


def test_the_law_knows_structure_that_the_binomial_does_not() -> None:
    """A run of hashes, as tokens counting up give, and a text that has used up the table."""
    found = detector(layers=30)
    run = np.arange(200, dtype=np.uint64)
    spread = found._sums(run).var() / (200 * found._mean * (1 - found._mean))
    assert abs(spread - 1) > 0.01
    whole = np.arange(SIZE, dtype=np.uint64)
    total = 30.0 * SIZE * found._mean
    assert found.log10_tail_of(whole, total) == 0.0
    assert found.log10_tail(SIZE, total) < -0.29


def test_extreme_totals_have_finite_p() -> None:
    found = detector(layers=30)
    inputs = np.random.default_rng(0).permutation(SIZE)[:200].astype(np.uint64)
    most = 30.0 * found._sums(inputs).max()
    ps = [found.log10_tail_of(inputs, total) for total in (0, most / 2, most * 0.9, most - 1, most, most + 1)]
    assert ps[0] == 0.0 and ps == sorted(ps, reverse=True)
    assert ps[-1] >= -30 * np.log10(SIZE) and ps[-2] < -100
    assert found.log10_tail_of(inputs[:0], 0.0) == found.log10_tail(0, 0.0) == 0.0
    assert isinstance(found, TailOfInputs)


def null_ps(name: str, trials: int) -> np.ndarray:
    rng = np.random.default_rng(trials)
    text = corpus(name, VOCAB)
    out = np.empty(trials)
    for trial in range(trials):
        start = int(rng.integers(len(text) - 300))
        found = detector(rng)
        out[trial] = log10_p(found, reading_of(found, text[start : start + int(rng.integers(30, 300))]))
    return out


@pytest.mark.parametrize("name", CORPORA)
def test_null(name: str) -> None:
    assert_null(null_ps(name, 400), (0.1, 0.01, 0.001))


@pytest.mark.slow
@pytest.mark.parametrize("name", CORPORA)
def test_null_at_length(name: str) -> None:
    assert_null(null_ps(name, 2000), (0.1, 0.01, 0.001))  # 5,000 in the study of the null


@pytest.mark.parametrize("seed", [0, 2, 3])
def test_null_of_a_pool_whatever_the_table(seed: int) -> None:
    """Enough coins that a table's distance from ½ would show at once, and that its end does: under 20,000 key sets."""
    ids = np.random.default_rng(8).integers(0, 49152, 60_000, dtype=np.uint32)
    found = detector(sampling_table_seed=seed)
    reading = reading_of(found, ids)
    n, totals = found.decoy_totals(reading, 0, b"pool", 20_000)
    assert n == len(np.unique(reading.inputs)) > 30_000
    values, where = np.unique(totals, return_inverse=True)
    log10_ps = np.array([found.log10_tail_of(reading.inputs, total) for total in values[::10]])[where // 10]
    # Ten totals share the p of their smallest, which is an upper bound.
    assert_null(log10_ps, (0.1, 0.01, 0.001))


def test_text_that_transformers_marked_is_found_by_its_keys_only() -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, SynthIDTextWatermarkingConfig

    torch.manual_seed(1)
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCAB, **size, pad_token_id=0, eos_token_id=None, bos_token_id=1))
    settings: dict[str, Any] = {"ngram_len": 5, "keys": [654, 400, 836, 123, 340, 443, 597, 160, 57, 29]}
    marked, plain = (
        model.generate(torch.tensor([[3, 4, 5, 6]]), do_sample=True, max_new_tokens=150, watermarking_config=config)[
            0
        ].numpy()
        for config in (SynthIDTextWatermarkingConfig(**settings), None)
    )
    found, other = HfSynthId.from_params(settings), detector(layers=10)
    reading = reading_of(found, marked.astype(np.uint32), 4)
    assert len(found.read(marked.astype(np.uint32), 4).positions) == 150
    assert log10_p(found, reading) < -10
    assert log10_p(other, reading_of(other, marked.astype(np.uint32), 4)) > -3
    assert log10_p(found, reading_of(found, plain.astype(np.uint32), 4)) > -3


def test_decoys_differ_in_their_keys_only() -> None:
    ids = corpus("licence", VOCAB)[:300]
    found = detector()
    reading = reading_of(found, ids)
    n, totals = found.decoy_totals(reading, 0, b"public", 30)
    decoys = found.decoys(b"public", 30)
    assert not found.keyed_reading
    assert n == len(reading.inputs)
    assert [decoy.scores(reading_of(decoy, ids), 0).values.sum() for decoy in decoys] == totals.tolist()
    assert (found.decoy_totals(reading, 0, b"public", 3)[1] == totals[:3]).all()
    assert len(set(totals.tolist())) > 10
    assert found.decoy_totals(reading, 0, b"public", 0)[1].shape == (0,)


@pytest.mark.parametrize("ids", [[], [1], [1, 2, 3, 4]])
@pytest.mark.parametrize("first", [0, 1])
def test_texts_without_a_whole_ngram(ids: list[int], first: int) -> None:
    reading = detector().read(np.array(ids, np.uint32), first)
    assert reading.positions.tolist() == (list(range(1, len(ids))) if first else [])


def test_nothing_counts_from_the_end_of_text_on() -> None:
    ids = np.arange(20, dtype=np.uint32)
    assert detector(eos_token_id=9).read(ids, 0).positions.tolist() == [4, 5, 6, 7, 8]
    assert detector(eos_token_id=2).read(ids, 5).positions.tolist() == list(range(5, 20))
    assert detector(eos_token_id=0).read(ids, 0).positions.tolist() == []


def test_fewest() -> None:
    found = detector(layers=9)
    n = found.fewest(-12.0)
    assert found.log10_tail(n, 9 * n) <= -12 < found.log10_tail(n - 1, 9 * (n - 1))


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"num_leaves": 2, "top_k": 40}, "num_leaves, top_k belongs to google-deepmind/synthid-text"),
        ({"key": [3]}, "did you mean keys"),
        ({"keys": []}, "keys"),
        ({"keys": [2**63]}, "keys.0"),
        ({"ngram_len": 1}, "ngram_len"),
        ({"sampling_table_size": 65537}, "powers of two"),
        ({"sampling_table_size": 2, "sampling_table_seed": 1}, "every coin"),
        ({"vocab_size": 49152}, "unknown key vocab_size"),
    ],
)
def test_bad_params(params: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput, match=says) as raised:
        engine_detector("hf-synthid", {"ngram_len": 5, "keys": [1, 2]} | params)
    assert "\n" not in str(raised.value)


def test_ngram_len_and_keys_are_asked_for() -> None:
    with pytest.raises(BadInput, match="ngram_len is missing; keys is missing"):
        engine_detector("hf-synthid", {})
