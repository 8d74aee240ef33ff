"""Forging and the power table, on texts that really are marked."""

from __future__ import annotations

import numpy as np
import pytest

from marked import key_set, write
from spiritsafe.errors import BadInput
from spiritsafe.watermark._accounts import Accounts
from spiritsafe.watermark._native import NativeDetector
from spiritsafe.watermark._prf import U32
from spiritsafe.watermark._trace import Tracer
from spiritsafe.watermark.attacks import Text, Tools, markdown, parse_attack, power_table

EPOCH = "2026-11"


class Syllables:
    """A tokenizer for the language of `marked`: token n is the word "wN". Splits at spaces, drops what it cannot read."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [int(word[1:]) for word in text.split() if word[0] == "w" and word[1:].isdecimal()]

    def decode(self, ids: list[int], **_: object) -> str:
        return " ".join(f"w{i}" for i in ids)


TOKENIZER = Syllables()
HOST = Syllables().decode(list(np.random.default_rng(0).integers(0, 400, 3000)))


def test_of_seed() -> None:
    assert TOKENIZER.encode(TOKENIZER.decode([1, 2, 3])) == [1, 2, 3]


def epoch_test(detector: NativeDetector):  # type: ignore[no-untyped-def]
    def test(ids_T: U32) -> float:
        (n,), (total,) = detector.totals_batch(ids_T, np.array([0, len(ids_T)]), 0)
        return detector.log10_tail(int(n), float(total))

    return test


def test_power_falls_with_the_attack_and_rises_with_length() -> None:
    keys = key_set(1)
    documents = [write(keys, EPOCH, 3, 200, seed) for seed in range(16)]
    chains = [("none", []), *((s, [parse_attack(s)]) for s in ("delete:30", "substitute:50"))]
    rows = power_table(documents, chains, epoch_test(NativeDetector(keys)), TOKENIZER, lengths=(50, 200, 400))
    found = {(row.attack, row.length): row for row in rows}
    assert {length for _, length in found} == {50, 200}  # no document has 400 tokens
    assert found["none", 200].power == (1.0, 1.0)
    assert found["none", 200].documents == 16
    for attack in ("none", "delete:30", "substitute:50"):
        assert found[attack, 200].median_log10_p < found[attack, 50].median_log10_p
    assert found["none", 200].median_log10_p < found["delete:30", 200].median_log10_p
    assert found["delete:30", 200].median_log10_p < found["substitute:50", 200].median_log10_p
    assert found["delete:30", 200].tokens == 140
    assert found["delete:30", 200].facts == {"words_changed": pytest.approx(0.3)}
    table = markdown(rows)
    assert "| none | " in table
    assert "100 % / 100 %" in table
    assert "p ≤ 0.001 / p ≤ 1e-06" in table
    assert markdown([]) == ""


def test_unmarked_documents_are_not_found_whatever_is_done_to_them() -> None:
    keys = key_set(2)
    documents = [write(key_set(1000 + seed), EPOCH, 3, 200, seed) for seed in range(60)]
    chains = [("delete", [parse_attack("delete:30")]), ("spliced", [parse_attack("copy-paste:30x2", Tools(host=HOST))])]
    rows = power_table(documents, chains, epoch_test(NativeDetector(keys)), TOKENIZER, levels=(0.01,), lengths=(200,))
    assert [row.power[0] <= 0.1 for row in rows] == [True, True]


def test_forged_texts_pass_the_epoch_and_name_only_whom_they_were_stolen_from() -> None:
    """What a forger can do with one account's texts: another text, marked, that names that account and no other."""
    keys = key_set(3)
    stolen = [Text(f"d{seed}", "", tuple(write(keys, EPOCH, 7, 400, seed).tolist())) for seed in range(30)]
    forged = parse_attack("spoof:8", Tools(tokenizer=TOKENIZER, host=HOST)).run(stolen, seed=0)
    assert [text.id for text in forged] == [f"forged-{i}" for i in range(1, 9)]
    tracer = Tracer(keys, Accounts(tuple(f"a{i}" for i in range(1, 201)), tuple(range(1, 201))))
    for text in forged:
        ids = np.array(TOKENIZER.encode(text.text), np.uint32)
        assert len(ids) == 400
        assert text.facts["stolen_pairs"] > 0.5
        assert text.facts["longest_copy"] < 0.3
        traced = tracer.trace(ids)
        assert traced.passed
        assert [candidate.slot for candidate in traced.candidates] == [7]


def test_nothing_is_forged_from_unmarked_texts_that_carries_a_mark() -> None:
    keys = key_set(4)
    stolen = [Text(f"d{seed}", "", tuple(write(key_set(99), EPOCH, 7, 300, seed).tolist())) for seed in range(10)]
    forged = parse_attack("spoof:5", Tools(tokenizer=TOKENIZER, host=HOST)).run(stolen, seed=0)
    test = epoch_test(NativeDetector(keys))
    assert all(test(np.array(TOKENIZER.encode(text.text), np.uint32)) > -5 for text in forged)


def test_nothing_to_learn_from_is_bad_input() -> None:
    with pytest.raises(BadInput, match="nothing to learn from 3 marked tokens"):
        parse_attack("spoof", Tools(tokenizer=TOKENIZER, host=HOST)).run([Text("a", "w1 w2 w3")], 0)
