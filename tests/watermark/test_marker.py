"""One reply being marked: what decides a step, what greedy requests become, and which key ids mark."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from marking_kit import Language, fresh_marker, key_set

from served import one_thread
from spiritsafe.errors import BadInput, Refused
from spiritsafe.keys import KeySet, load_keys, rotate_keys
from spiritsafe.watermark._marker import Markers, choose_marked
from spiritsafe.watermark._marking import MarkerConfig
from spiritsafe.watermark._native import NativeDetector
from spiritsafe.watermark.schemes import Gumbel, Kgw

pytestmark = pytest.mark.usefixtures("one_thread")
__all__ = ["one_thread"]
LANGUAGE = Language(60, 2.0)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> KeySet:
    return key_set(tmp_path_factory.mktemp("keys"))


def reply(
    markers: Markers, length: int = 120, seed: int = 0, key_id: str | None = None, **sampling: float
) -> np.ndarray:
    marker = markers.marker(markers.key_id(key_id), np.random.default_rng(seed), **sampling)
    return np.concatenate([[0, 1], LANGUAGE.replies([marker], length)[0]]).astype(np.uint32)


def log10_p(detector: NativeDetector, ids: np.ndarray) -> float:
    n, total = detector.totals_batch(ids, np.array([0, len(ids)]), 0, np.array([2]))
    return detector.log10_tail(int(n[0]), float(total[0]))


@pytest.mark.parametrize("scheme", ["gumbel-dual", "kgw", "synthid"])
def test_what_is_marked_is_found_by_its_key_set_and_its_account(tmp_path: Path, scheme: str) -> None:
    keys, others = key_set(tmp_path, scheme=scheme), key_set(tmp_path, scheme=scheme)
    ids = reply(Markers(keys), 400, key_id=str(keys.key_id("2026-11", 17)))
    detector = NativeDetector(keys)
    assert log10_p(detector, ids) < -6
    assert log10_p(NativeDetector(others), ids) > -5
    reading = detector.read(ids, 2)
    reading = reading.take(np.isin(np.arange(len(reading.inputs)), np.unique(reading.inputs, return_index=True)[1]))
    n, totals = detector.account_totals(reading, 0, keys.account_keys("2026-11", range(1000), scheme))
    assert totals.argmax() == 17 and detector.log10_tail(n, totals[17]) < -6
    assert detector.log10_tail(n, np.sort(totals)[-2]) > -9


def test_a_reply_stays_unmarked_until_its_surprise_is_spent(keys: KeySet) -> None:
    random = np.random.default_rng(3)
    probabilities = LANGUAGE.probabilities()
    for bits in (0.0, 16.0, 40.0):
        marker = fresh_marker(Gumbel(), random, surprise_bits=bits)
        (tokens,) = LANGUAGE.replies([marker], 80)
        spent = np.cumsum([-np.log2(probabilities[a, b]) for a, b in zip([1, *tokens[:-1]], tokens, strict=True)])
        assert marker.unkeyed == (0 if bits == 0 else int(np.searchsorted(spent, bits)) + 1)
        assert marker.keyed + marker.unkeyed + marker.skipped == 80


def test_a_context_marks_once_a_reply() -> None:
    marker = fresh_marker(Gumbel(2), np.random.default_rng(0))
    certain = torch.full((3,), -40.0)
    certain[0] = 0
    for done in range(5):
        assert marker((0, 0), [0] * done, certain).argmax() == 0
    assert (marker.keyed, marker.skipped, marker.unkeyed) == (1, 4, 0)


def test_a_prompt_shorter_than_the_context_marks_later() -> None:
    marker = fresh_marker(Gumbel(3), np.random.default_rng(0))
    generated: list[int] = []
    for _ in range(6):
        shaped = marker((7,), generated, torch.zeros(50))
        assert int((shaped == 0).sum()) == 1 and int(torch.isneginf(shaped).sum()) == 49
        generated.append(int(shaped.argmax()))
    assert marker.unkeyed == 2 and marker.keyed + marker.skipped == 4


@pytest.mark.parametrize("scheme", ["gumbel-dual", "kgw", "synthid"])
def test_a_seed_decides_the_reply_and_truncation_holds(scheme: str, tmp_path: Path) -> None:
    markers = Markers(key_set(tmp_path, scheme=scheme))
    first = reply(markers, seed=1, temperature=0.9, top_p=0.8, top_k=5)
    np.testing.assert_array_equal(first, reply(markers, seed=1, temperature=0.9, top_p=0.8, top_k=5))
    assert (first != reply(markers, seed=2, temperature=0.9, top_p=0.8, top_k=5)).any()
    ranks = LANGUAGE.probabilities().argsort(1)[:, ::-1].argsort(1)
    assert max(ranks[a, b] for a, b in itertools.pairwise(first[1:])) < 5


def test_unmarked_steps_draw_what_the_engine_would_have_drawn() -> None:
    from spiritsafe.teachers._sampling import choose, generator

    logits = LANGUAGE.logits_VV[:8]
    markers = [
        fresh_marker(Gumbel(), np.random.default_rng(row), surprise_bits=1e9, temperature=0.8, top_p=0.9)
        for row in range(8)
    ]
    for row, marker in enumerate(markers):
        marker._random = generator(5, row)
    got = choose_marked(markers, [[0, 1]] * 8, logits)
    points = [float(generator(5, row).random()) for row in range(8)]
    assert got.tolist() == choose(logits, [0.8] * 8, [0.9] * 8, points)


def test_greedy_requests_get_kgw_marks(keys: KeySet) -> None:
    markers = Markers(keys, "kgw")
    marker = markers.marker(markers.key_id(), np.random.default_rng(0), temperature=0.0)
    assert marker.greedy == "kgw"
    (tokens,) = LANGUAGE.replies([marker], 150)
    assert marker.unkeyed == 0
    green = marker.scheme
    assert isinstance(green, Kgw)
    # each step is the argmax of logits + δ·green: no token can beat the plain argmax by more than δ
    for last, token in zip([1, *tokens[:-1]], tokens, strict=True):
        row = LANGUAGE.logits_VV[last]
        assert row.max() - row[token] <= green.delta + 1e-5
    ids = np.concatenate([[0, 1], tokens]).astype(np.uint32)
    assert log10_p(NativeDetector(keys, scheme="kgw"), ids) < -1.5
    plain = [1]
    for _ in range(150):
        plain.append(int(LANGUAGE.logits_VV[plain[-1]].argmax()))
    assert plain[1:] != tokens.tolist()


def test_greedy_requests_can_be_raised_or_refused(keys: KeySet) -> None:
    raising = Markers(keys, "raise", 0.7)
    marker = raising.marker(raising.key_id(), np.random.default_rng(0), temperature=0.0)
    assert (marker.greedy, marker.temperature) == ("raise", 0.7)
    np.testing.assert_array_equal(reply(raising, temperature=0.0), reply(raising, temperature=0.7))
    refusing = Markers(keys, "refuse")
    for cold in (0.0, 1e-3):  # as good as greedy
        with pytest.raises(Refused, match=r"greedy reply cannot carry this mark; ask for at least 0\.7"):
            refusing.marker(refusing.key_id(), np.random.default_rng(0), temperature=cold)
    assert refusing.marker(refusing.key_id(), np.random.default_rng(0), temperature=0.5).greedy is None


def test_key_ids_are_checked(tmp_path: Path) -> None:
    key_set(tmp_path)
    keys = rotate_keys(tmp_path / "keys-0.json", epoch="2026-12")
    markers = Markers(keys)
    assert str(markers.key_id()) == f"{keys.id}/2026-12/0"
    assert markers.key_id(f"{keys.id}/2026-12/17").slot == 17
    for asked, error, complaint in [
        ("17", BadInput, "write it as KEY_SET/EPOCH/SLOT"),
        ("ks_00000000/2026-12/1", BadInput, f"this teacher marks with {keys.id}"),
        (f"{keys.id}/2027-01/1", BadInput, "no epoch '2027-01'"),
        (f"{keys.id}/2026-12/{2**20}", BadInput, "slots go from 0 to 1048575"),
        (f"{keys.id}/2026-11/1", Refused, "2026-11 is retired and marks no more; use 2026-12"),
    ]:
        with pytest.raises(error, match=complaint):
            markers.key_id(asked)
    keys = rotate_keys(tmp_path / "keys-0.json", epoch="2027-02", compromised=True)
    with pytest.raises(Refused, match="2026-12 is opened"):
        Markers(keys).key_id(f"{keys.id}/2026-12/1")


def test_an_opened_account_is_marked_no_more(tmp_path: Path) -> None:
    from spiritsafe.keys import open_leaf

    key_set(tmp_path, scheme="gumbel-dual")
    open_leaf(tmp_path / "keys-0.json", "2026-11", "account", 5, slots=8)
    keys = load_keys(tmp_path / "keys-0.json")
    with pytest.raises(Refused, match="this account's key was opened"):
        Markers(keys).key_id(f"{keys.id}/2026-11/5")


def test_keys_bound_to_a_tokenizer_mark_for_no_other(tmp_path: Path) -> None:
    from spiritsafe.keys import new_keys

    new_keys(tmp_path / "k.json", marking={}, tokenizer_hash="a" * 64)
    markers = Markers.open(MarkerConfig(keys=str(tmp_path / "k.json")))
    markers.check_tokenizer("a" * 64, "model")
    with pytest.raises(BadInput, match=r"model: its tokenizer \(bbbbbbbbbbbb…\) is not the one"):
        markers.check_tokenizer("b" * 64, "model")


def test_the_greedy_rule_is_one_of_three() -> None:
    with pytest.raises(ValueError, match="greedy"):
        MarkerConfig.model_validate({"keys": "k.json", "greedy": "ignore"})
    with pytest.raises(ValueError, match="least_temperature"):
        MarkerConfig.model_validate({"keys": "k.json", "least_temperature": 0.0})
