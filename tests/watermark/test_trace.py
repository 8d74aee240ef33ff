"""Tracing names the right account, several of them, and nobody when nobody is there."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from marked import key_set, write
from spiritsafe.errors import BadInput
from spiritsafe.keys import SLOTS, KeySet
from spiritsafe.watermark._accounts import Accounts, read_accounts
from spiritsafe.watermark._marking import Marking
from spiritsafe.watermark._trace import Traced, Tracer
from spiritsafe.watermark.schemes import scheme_for

EPOCH = "2026-11"


def accounts(count: int, first: int = 1) -> Accounts:
    return Accounts(tuple(f"acct_{slot}" for slot in range(first, first + count)), tuple(range(first, first + count)))


def names(traced: Traced) -> list[str]:
    return [candidate.account for candidate in traced.candidates]


def test_names_the_account_that_wrote_the_text() -> None:
    keys = key_set(1)
    traced = Tracer(keys, accounts(2000)).trace(write(keys, EPOCH, 17, 400, seed=1))
    assert names(traced) == ["acct_17"]
    (found,) = traced.candidates
    assert (found.slot, found.opened, traced.accounts, traced.epoch, traced.passed) == (17, False, 2000, EPOCH, True)
    assert found.log10_p_family == pytest.approx(found.log10_p + math.log10(2000))
    assert traced.n_tokens == 400
    assert 0.35 * 398 < traced.n_account < 0.65 * 398
    assert traced.n_scored + traced.n_account <= 398


@pytest.mark.parametrize("scheme", ["kgw", "synthid"])
def test_every_scheme_traces_with_its_own_exact_tail(scheme: str) -> None:
    """The p-value of a named account is the scheme's tail of the scores that the scheme itself gives."""
    keys = key_set(2, scheme=scheme)
    rng = np.random.default_rng(0)
    marks = scheme_for(Marking(scheme=scheme))  # type: ignore[arg-type]
    tracer = Tracer(keys, accounts(50), gate=0.999, level=0.9999, top=50)
    ids = rng.integers(0, 5000, 300).astype(np.uint32)
    reading = tracer.detector.read(ids, 0)
    n, totals = tracer.account_totals(reading, 0)
    theirs = reading.take(tracer.detector.account_positions(reading, 0))
    from spiritsafe.watermark._prf import context_hashes, key_words

    for index in (0, 49):
        words = key_words(keys.account_key(EPOCH, index + 1, scheme))[0]
        assert totals[index] == pytest.approx(marks.scores(context_hashes(words, theirs.windows), theirs.tokens).sum())
    assert n == len(theirs.tokens)
    assert stats.kstest([10 ** marks.log10_tail(n, float(t)) for t in totals], "uniform").pvalue > 1e-4


@pytest.mark.slow
def test_the_right_one_of_a_million_and_nobody_beside_him() -> None:
    keys = key_set(20)
    tracer = Tracer(keys, accounts(1_000_000))
    for slot, seed in ((1, 1), (523_456, 2), (1_000_000, 3)):
        traced = tracer.trace(write(keys, EPOCH, slot, 300, seed))
        assert [c.slot for c in traced.candidates] == [slot]
        assert traced.candidates[0].log10_p_family == pytest.approx(traced.candidates[0].log10_p + 6)
    assert tracer.trace(write(keys, EPOCH, None, 300, 4)).candidates == ()
    assert tracer.trace(write(keys, EPOCH, 1_048_000, 300, 5)).candidates == ()


def test_two_and_three_accounts_in_one_text_are_all_named() -> None:
    keys = key_set(3)
    tracer = Tracer(keys, accounts(1000))
    for slots in ((5, 900), (5, 77, 900)):
        text = np.concatenate([write(keys, EPOCH, slot, 350, seed=slot) for slot in slots])
        traced = tracer.trace(text)
        assert sorted(c.slot for c in traced.candidates) == sorted(slots)
        corrected = [c.log10_p_family for c in traced.candidates]
        assert corrected == sorted(corrected)
        assert corrected[-1] == pytest.approx(
            max(corrected[-2], traced.candidates[-1].log10_p + math.log10(1000 - len(slots) + 1))
        )


def test_spans_say_where_each_account_is() -> None:
    keys = key_set(14)
    human = np.random.default_rng(0).integers(0, 400, 600).astype(np.uint32)
    text = np.concatenate([human, write(keys, EPOCH, 5, 400, seed=5), human + 1000, write(keys, EPOCH, 9, 400, seed=9)])
    traced = Tracer(keys, accounts(1000)).trace(text)
    found = {candidate.slot: candidate.spans for candidate in traced.candidates}
    for slot, start in ((5, 600), (9, 1600)):
        ((begin, end),) = found[slot]
        assert min(end, start + 400) - max(begin, start) > 0.6 * 400
        assert start - 40 <= begin
        assert end <= start + 440
    assert len(traced.spans) == 2
    prompted = Tracer(keys, accounts(1000)).trace(text, 600)  # the human part as a prompt: spans count from the text
    assert prompted.spans[0][0] < 40
    assert min(candidate.spans[0][0] for candidate in prompted.candidates) < 40


def test_no_more_than_top_are_named() -> None:
    keys = key_set(4)
    text = np.concatenate([write(keys, EPOCH, slot, 350, seed=slot) for slot in (5, 77, 900)])
    assert len(Tracer(keys, accounts(1000), top=2).trace(text).candidates) == 2


def test_the_prompt_is_read_but_not_scored() -> None:
    keys = key_set(5)
    ids = write(keys, EPOCH, 17, 600, seed=1)
    tracer = Tracer(keys, accounts(100))
    traced = tracer.trace(ids, first=590)
    assert traced.n_tokens == 10
    assert traced.n_scored + traced.n_account <= 10
    assert not traced.candidates


def test_a_pool_adds_up_what_single_texts_cannot_say_and_counts_a_repeated_text_once() -> None:
    keys = key_set(6)
    tracer = Tracer(keys, accounts(2000))
    texts = [write(keys, EPOCH, 17, 16, seed=seed) for seed in range(40)]
    assert not any(tracer.trace(text).candidates for text in texts)
    pooled = tracer.trace_pool((text, 0) for text in texts)
    assert names(pooled) == ["acct_17"]
    again = tracer.trace_pool((text, 0) for text in [*texts, *texts])
    assert again.candidates == pooled.candidates
    assert (again.n_scored, again.n_account, again.n_tokens) == (pooled.n_scored, pooled.n_account, 2 * 40 * 16)
    assert tracer.trace_pool([]).log10_p == 0.0


def test_the_epoch_that_wrote_it_is_the_one_traced() -> None:
    keys = key_set(7, epochs=("2026-09", "2026-10", "2026-11"))
    traced = Tracer(keys, accounts(300)).trace(write(keys, "2026-10", 17, 500, seed=1))
    assert (traced.epoch, traced.epochs_tried, names(traced)) == ("2026-10", 3, ["acct_17"])
    assert not Tracer(keys, accounts(300), epochs=["2026-11"]).trace(write(keys, "2026-10", 17, 500, seed=1)).passed


def test_an_opened_account_is_named_as_opened() -> None:
    keys = key_set(8)
    opened = keys.epochs[0].model_copy(update={"opened_slots": (17,)})
    keys = KeySet(keys.id, keys.tenant, keys.marking, None, (opened,), False, keys._deriver)
    (found,) = Tracer(keys, accounts(100)).trace(write(keys, EPOCH, 17, 500, seed=1)).candidates
    assert found.opened


def test_an_unmarked_text_costs_no_account_key(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = key_set(9)
    tracer = Tracer(keys, accounts(100))
    monkeypatch.setattr(Tracer, "account_keys", lambda *_: pytest.fail("derived account keys"))
    traced = tracer.trace(np.arange(500, dtype=np.uint32))
    assert (traced.passed, traced.candidates, traced.n_account) == (False, (), 0)


@pytest.mark.parametrize("ids", [[], [1], [1, 2]])
def test_a_text_too_short_to_score_names_nobody(ids: list[int]) -> None:
    traced = Tracer(key_set(10), accounts(10)).trace(np.array(ids, np.uint32))
    assert (traced.log10_p, traced.n_scored, traced.candidates) == (0.0, 0, ())


def test_bad_settings_are_refused() -> None:
    keys = key_set(11)
    for wrong in ({"level": 0.0}, {"level": 1.0}, {"gate": 2.0}, {"top": 0}, {"epochs": ["1999"]}):
        with pytest.raises(BadInput):
            Tracer(keys, accounts(3), **wrong)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="account_share 0"):
        Tracer(key_set(12, account_share=0.0), accounts(3))


def test_accounts_take_the_slot_of_their_line_or_the_one_they_give(tmp_path: Path) -> None:
    file = tmp_path / "accounts.txt"
    file.write_bytes("\ufeffalice\r\n\nbob\nçağla\t1000\n".encode())
    assert read_accounts(file) == Accounts(("alice", "bob", "çağla"), (1, 3, 1000))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no accounts"),
        (b"\n \n", "no accounts"),
        (b"a\nb\na\n", "line 3: account a is on line 1 too"),
        (b"a\nb\t1\n", "line 2: slot 1 belongs to line 1 too"),
        (b"a\t0\n", "line 1: slot 0 is the house's"),
        (b"a\t%d\n" % SLOTS, "line 1: slot 1048576 is beyond the last"),
        (b"a\t-3\n", "line 1: slot '-3' is not a whole number"),
        (b"a\t\n", "line 1: slot '' is not a whole number"),
        (b"\t5\n", "line 1: no account name"),
        (b"a\0b", "binary"),
        (b"a\n\xff\xfe\n", "not UTF-8 at byte 2"),
    ],
)
def test_a_list_of_accounts_that_cannot_be_read_says_where(tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "accounts.txt"
    file.write_bytes(content)
    with pytest.raises(BadInput, match=said.replace("'", ".")):
        read_accounts(file)


def test_a_missing_list_of_accounts_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such file"):
        read_accounts(tmp_path / "none.txt")
    with pytest.raises(BadInput, match="cannot be read"):
        read_accounts(tmp_path)
