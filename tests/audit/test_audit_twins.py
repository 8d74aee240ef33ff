"""Twins as evidence: every pair held against the ledger, an exact sign test, silence on what is doubtful."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import coins_kit as kit
import numpy as np
import orjson
import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st

import mock_api
from spiritsafe import pvalue
from spiritsafe.audit import _types as types
from spiritsafe.audit._evidence import Evidence
from spiritsafe.audit._plan import TwinsConfig
from spiritsafe.audit.tests import open_test
from spiritsafe.audit.tests._resemblance import Grams, resemblance
from spiritsafe.errors import BadInput
from spiritsafe.ledger import export_ledger
from spiritsafe.records import Message, Prompt
from spiritsafe.serve._twins import export_twins
from test_gateway import ASK, chat, gateway


def released_of(lines: list[dict[str, Any]]) -> set[str]:
    return {line["second" if line["coin"] else "first"]["choices"][0]["message"]["content"] for line in lines}


def some(n: int, *, coins: list[int] | None = None) -> list[dict[str, Any]]:
    coins = kit.fresh_coins(n, n) if coins is None else coins
    return [kit.pair_line(i, f"left of {i}", f"right {i}", coin) for i, coin in enumerate(coins)]


async def stored(tmp_path: Path, lines: list[dict[str, Any]]) -> tuple[Path, Path]:
    ledger = await kit.ledger_of(tmp_path, lines)  # sets their seq
    return kit.write_lines(tmp_path / "twins.jsonl", lines), ledger


async def test_a_suspect_that_prefers_what_was_released_is_found(tmp_path: Path) -> None:
    lines = some(20)
    test = kit.twins(*await stored(tmp_path, lines))
    released = released_of(lines)
    records = await kit.asked(test, kit.Scripted(lambda _, text: -1.0 if text in released else -1.1))
    outcome = test.judge(records)
    assert outcome.log10_p == pytest.approx(20 * math.log10(0.5))
    assert (outcome.kind, outcome.most, outcome.n_scored, outcome.family) == ("twins", "proof", 20, 1)
    assert outcome.effect["value"] == 1.0 and outcome.effect["ci95"][0] == pytest.approx(0.8316, abs=1e-4)
    (found,) = outcome.hypotheses
    assert found.facts["named"] == found.facts["opened"] == 20 and found.facts["p_by"] == "binomial"
    assert outcome.notes == ()
    other_way = await kit.asked(test, kit.Scripted(lambda _, text: -1.1 if text in released else -1.0))
    assert test.judge(other_way).log10_p == 0.0


async def test_the_score_is_a_mean_a_token(tmp_path: Path) -> None:
    """A long reply has a lower sum; it is not held against it."""
    test = kit.twins(kit.write_lines(tmp_path / "t.jsonl", [kit.pair_line(0, "short", "a very long one indeed", 1)]))
    got = {"first": [-2.0, 1], "second": [-5.0, 5]}
    assert test.judge([kit.record("twins", "req_0", got)]).hypotheses[0].facts["wins"] == 1


async def test_the_suspect_is_asked_as_the_customer_asked(tmp_path: Path) -> None:
    turns = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Two "}, {"type": "text", "text": "parts"}]},
        {"role": "assistant", "content": None},
        {"role": "user", "content": "Go on", "name": "x"},
    ]
    raw = {"object": "text_completion", "choices": [{"text": "one", "index": 0}]}
    lines = [
        kit.pair_line(0, "a", "b", 0, request={"messages": turns}),
        kit.pair_line(1, raw, raw | {"choices": [{"text": "two", "index": 0}]}, 1, request={"prompt": ["Once"]}),
        kit.pair_line(2, "a", "b", 0, request={"prompt": [1, 2, 3]}),
        kit.pair_line(3, "a", "b", 0, request={"prompt": [[1, 2]]}),
        kit.pair_line(4, "same", kit.said("same") | {"model": "m2"}, 0),
        kit.pair_line(5, "", "b", 0),
        kit.pair_line(6, "a", "b", 0, request={"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
    ]
    test = kit.twins(kit.write_lines(tmp_path / "t.jsonl", lines), by="text", samples=2, max_tokens=9, temperature=0.5)
    suspect = kit.Scripted(reply=lambda *_: "one")
    records = await kit.asked(test, suspect)
    assert [item.id for item in test.items()] == ["req_0", "req_1"]
    assert suspect.asked[0][0] == Prompt(
        (
            Message("system", "Be brief."),
            Message("user", "Two parts"),
            Message("assistant", ""),
            Message("user", "Go on"),
        )
    )
    assert suspect.asked[1][0] == Prompt((Message("user", "Once"),))
    sampling = suspect.asked[0][1]
    assert sampling is not None and (sampling.max_tokens, sampling.temperature) == (9, 0.5)
    assert records[0].got == {"replies": ["one", "one"]}
    outcome = test.judge(records)
    assert outcome.hypotheses[0].facts["unusable"] == 5
    assert outcome.hypotheses[0].facts["losses"] == 1  # req_1: "one" is the sealed reply
    assert any("5 pairs have no two different texts" in note for note in outcome.notes)


def test_what_a_guard_exports_of_every_kind_of_request(tmp_path: Path) -> None:
    numbers = itertools.count()

    async def varied(number: int, body: mock_api.Body, request: web.Request) -> web.StreamResponse:
        text = f"reply number {next(numbers)}"
        if "prompt" in body:
            choice = {"index": 0, "text": text, "finish_reason": "stop", "logprobs": None}
            usage = {"prompt_tokens": 1, "completion_tokens": 3, "total_tokens": 4}
            made = {"id": "x", "object": "text_completion", "created": 1, "model": "m", "choices": [choice]}
            return web.json_response(made | {"usage": usage})
        return web.json_response(mock_api.completion(body, text))

    terms = {"version": "1", "url": "https://example.org/terms", "required": True}
    got = []
    with gateway(tmp_path, varied, tiers={"default": {"twin_share": 1.0}}, terms=terms) as (guard, _):
        key = guard.new_key()
        guard.do(lambda g: g.accounts.accept_terms("acme", "1"))
        client = guard.client(key)
        for _ in range(3):
            got.append(chat(client).choices[0].message.content)
            got.append("".join(c.choices[0].delta.content or "" for c in chat(client, stream=True) if c.choices))
            got.append(client.completions.create(model="m", prompt="Once upon").choices[0].text)

        async def export(g: Any) -> None:
            await g.ledger.flush()
            kit.write_lines(tmp_path / "twins.jsonl", [pair async for pair in export_twins(g.db)])
            await export_ledger(g.db, tmp_path / "ledger.jsonl", everything=True, personal=False)

        guard.do(export)
    test = kit.twins(tmp_path / "twins.jsonl", tmp_path / "ledger.jsonl")
    pairs = list(test._read.pairs.values())
    assert [pair.replies[pair.released] for pair in pairs] == got
    assert [pair.prompt.messages[0].content for pair in pairs] == [
        ASK[0]["content"],
        ASK[0]["content"],
        "Once upon",
    ] * 3
    assert test.judge([]).hypotheses[0].facts["named"] == 9


def test_budget_bounds(tmp_path: Path) -> None:
    path = kit.write_lines(tmp_path / "t.jsonl", [kit.pair_line(0, "é" * 10, "b", 0)])
    (item,) = kit.twins(path).items()
    assert item.asked == {"request_id": "req_0"} and item.tokens_in >= 2 * len("question 0") + 21
    (item,) = kit.twins(path, by="text", samples=3, max_tokens=50).items()
    assert item.tokens_in >= 3 * len("question 0") and item.tokens_out == 150


# What the plan names, and what of it is open


async def test_pairs_kept_back_count_as_lost(tmp_path: Path) -> None:
    lines = some(30)
    pairs, ledger = await stored(tmp_path, lines)
    kit.write_lines(pairs, lines[:20])
    test = kit.twins(pairs, ledger)
    released = released_of(lines)
    outcome = test.judge(await kit.asked(test, kit.Scripted(lambda _, text: float(text in released))))
    assert outcome.log10_p == pytest.approx(pvalue.binomial(30, 0.5, 20))
    assert outcome.n_scored == 20 and outcome.hypotheses[0].facts["not_opened"] == 10
    assert any("10 of 30 pairs" in note for note in outcome.notes)


@pytest.mark.parametrize(
    ("plan", "named"),
    [
        ({}, 12),
        ({"account": "acct_1"}, 6),
        ({"model": "large"}, 3),
        ({"account": "acct_1", "model": "large"}, 0),
        ({"since": str(kit.NOW + 3)}, 9),
        ({"until": "2026-11-18T11:06:43"}, 3),
        ({"until": "2026-11-18T12:06:43+01:00"}, 3),
        ({"since": "2026-11-18", "until": "2026-11-19"}, 12),
        ({"since": "2026-11-19"}, 0),
    ],
)
async def test_a_plan_names_pairs_by_what_is_in_the_ledger(tmp_path: Path, plan: dict[str, Any], named: int) -> None:
    lines = [
        kit.pair_line(i, "a", "b", 0, account=f"acct_{i % 2}", model="large" if i % 4 == 0 else "small")
        for i in range(12)
    ]
    pairs, ledger = await stored(tmp_path, lines)
    lying = [
        line | {"account": "acct_1", "model": "large", "created": 0.0} for line in lines
    ]  # not under the commitment
    for opened in (lines, lying):
        test = kit.twins(kit.write_lines(pairs, opened), ledger, **plan)
        facts = test.judge([]).hypotheses[0].facts
        assert facts["named"] == facts["opened"] == len(test.items()) == named
        assert any(f"{12 - named} opened pairs are not named" in note for note in test.judge([]).notes) == (named < 12)


async def test_without_a_ledger_it_is_a_lead(tmp_path: Path) -> None:
    test = kit.twins(kit.write_lines(tmp_path / "t.jsonl", some(4)))
    outcome = test.judge([])
    assert outcome.most == "lead" and "No ledger" in outcome.notes[0]


@pytest.mark.parametrize("when", ["yesterday", "1e400", "nan", "2026-13-01"])
def test_times_that_are_none(tmp_path: Path, when: str) -> None:
    with pytest.raises(BadInput, match="not a time"):
        kit.twins(kit.write_lines(tmp_path / "t.jsonl", some(1)), since=when)


# Doctored evidence


def _line(number: int, change: Callable[[dict[str, Any]], Any]) -> Callable[[list[dict[str, Any]]], Any]:
    return lambda lines: change(lines[number])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            _line(1, lambda line: line.update(coin=1 - line["coin"])),
            "line 2: the pair of req_1 is not what was committed",
        ),
        (_line(1, lambda line: line.update(first=line["second"], second=line["first"])), "not what was committed to"),
        (_line(1, lambda line: line["request"].update(model="x")), "not what was committed to"),
        (_line(1, lambda line: line.update(salt="0" * 64)), "not what was committed to"),
        (
            _line(1, lambda line: line.update(seq=line["seq"] + 1)),
            "row 3 of the ledger does not commit to a pair of req_1",
        ),
        (_line(1, lambda line: line.update(seq=99)), "does not commit"),
        (_line(1, lambda line: line.update(request_id="req_2")), "does not commit"),
        (_line(1, lambda line: line.pop("seq")), "not an opened pair"),
        (lambda lines: lines.append(lines[0]), "line 5: the pair of req_0 is there twice"),
        (lambda lines: lines.append(kit.pair_line(7, "never", "committed", 0)), "does not commit"),
    ],
)
async def test_a_doctored_pair_is_named(tmp_path: Path, change: Callable[..., Any], says: str) -> None:
    lines = some(4)
    pairs, ledger = await stored(tmp_path, lines)
    change(lines)
    with pytest.raises(BadInput, match=says):
        kit.twins(kit.write_lines(pairs, lines), ledger)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda rows: rows[1].update(twin_commit="0" * 64), "row 2: changed or moved"),
        (lambda rows: rows.pop(1), "row 2: missing"),
        (lambda rows: rows[2].update(prev_hash="0" * 64), "changed or moved|does not follow"),
        (lambda rows: rows.append({"kind": "reply"}), "not a ledger row"),
    ],
)
async def test_a_doctored_ledger_is_named(tmp_path: Path, change: Callable[..., Any], says: str) -> None:
    pairs, ledger = await stored(tmp_path, some(4))
    rows = [json.loads(line) for line in ledger.read_text().splitlines()]
    change(rows)
    with pytest.raises(BadInput, match=says):
        kit.twins(pairs, kit.write_lines(ledger, rows))


async def test_an_export_of_replies_alone_is_refused_where_events_are_missing(tmp_path: Path) -> None:
    from spiritsafe.ledger import Event

    lines = some(2)
    ledger = await kit.ledger_of(tmp_path, [lines[0], Event(kit.NOW, "terms_accepted", "acct_1"), lines[1]])
    rows = [row for row in map(json.loads, ledger.read_text().splitlines()) if row["kind"] == "reply"]
    with pytest.raises(BadInput, match=r"row 2: missing.*--all"):
        kit.twins(kit.write_lines(tmp_path / "t.jsonl", lines), kit.write_lines(ledger, rows))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"{", "line 1: not JSON"),
        (b"[1]\n", "not a JSON object"),
        (b'"x"', "not a JSON object"),
        (b'{"seq": 1e400}', "not JSON|not an opened"),
        (b"[" * 100_000, "not JSON"),
        (b'{"seq": NaN}', "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b'{"seq": true, "request_id": "x"}', "not an opened pair"),
    ],
)
def test_what_is_no_export(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=says):
        kit.twins(path)
    with pytest.raises(BadInput, match=r"give the file|give an exported"):
        kit.twins(tmp_path / "none.jsonl")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_hostile_pairs_are_refused_or_left_out(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Whatever the committed contents are, and whatever is not covered by the commitment, there is one clear line."""
    path = tmp_path_factory.mktemp("twins") / "t.jsonl"
    finite = json_values.filter(lambda value: _is_json(value))
    first, second, request = data.draw(finite), data.draw(finite), data.draw(finite)
    line = kit.pair_line(0, {"x": first}, {"x": second}, 0, request=request)
    name = data.draw(st.sampled_from([*line, "none of them"]))
    kit.write_lines(path, [line, line | {"request_id": "req_1", name: data.draw(finite)}])
    try:
        test = kit.twins(path)
    except BadInput as error:
        said = str(error)
        assert "\n" not in said and len(said) < 400
    else:
        assert test.items() == [] and test.judge([]).log10_p == 0.0


def _is_json(value: Any) -> bool:
    try:
        return bool(orjson.loads(orjson.dumps(value)) == value)
    except (TypeError, ValueError):
        return False


# The transcript


@settings(deadline=None, max_examples=300)
@given(json_values, st.sampled_from(["likelihood", "text"]), st.sampled_from(["got", "first", "replies"]))
def test_hostile_answers_are_refused(got: Any, by: Any, where: str) -> None:
    test = _judging(by)
    answer = {"first": [-1.0, 2], "second": [-1.5, 2], "replies": ["left"]}
    answer = got if where == "got" else answer | {where: got}
    if not isinstance(answer, dict | None):
        answer = {"first": answer}
    try:
        outcome = test.judge([types.Record("twins", "req_0", kit.NOW, 1, {}, answer)])
    except BadInput as error:
        said = str(error)
        assert said.startswith("transcript of twins, req_0: ") and len(said) < 200
    else:
        assert -0.31 <= outcome.log10_p <= 0 and outcome.n_scored <= 1


_TESTS: dict[str, types.Test] = {}


def _judging(by: str) -> types.Test:
    """One test for all examples: its file is read once."""
    import tempfile

    if by not in _TESTS:
        with tempfile.TemporaryDirectory() as folder:
            _TESTS[by] = kit.twins(kit.write_lines(Path(folder) / "t.jsonl", some(1, coins=[0])), by=by)
    return _TESTS[by]


@pytest.mark.parametrize(
    "value",
    [
        [math.nan, 2],
        [math.inf, 2],
        [-1.0, 0.5],
        [-1.0, -1],
        [-1.0, True],
        [True, 1],
        ["-1", 1],
        [-1.0],
        "ab",
        [10**400, 3],
    ],
)
def test_numbers_that_are_none(value: Any) -> None:
    got = {"first": value, "second": [-1.0, 2]}
    with pytest.raises(BadInput, match="sum of log-probabilities"):
        _judging("likelihood").judge([types.Record("twins", "req_0", kit.NOW, 1, {}, got)])


async def test_a_suspect_that_answers_with_a_book_is_cut_short(tmp_path: Path) -> None:
    test = kit.twins(kit.write_lines(tmp_path / "t.jsonl", some(1)), by="text", samples=1)
    (record,) = await kit.asked(test, kit.Scripted(reply=lambda *_: "x" * 10**6))
    assert record.got is not None and len(record.got["replies"][0]) == 200_000
    assert test.judge([record]).hypotheses[0].facts["ties"] == 1
    with pytest.raises(BadInput, match="200,000 characters at most"):
        test.judge([kit.record("twins", "req_0", {"replies": ["x" * 200_001]})])


def test_an_unknown_item_is_refused_and_other_tests_lines_are_not_looked_at() -> None:
    test = _judging("likelihood")
    with pytest.raises(BadInput, match="'req_9' is not one of its questions"):
        test.judge([kit.record("twins", "req_9", None)])
    assert test.judge([kit.record("canaries", "req_9", None)]).n_scored == 0


async def test_impossible_replies_lose_and_ties_and_failures_are_left_out(tmp_path: Path) -> None:
    test = kit.twins(kit.write_lines(tmp_path / "t.jsonl", some(5, coins=[0, 0, 0, 1, 1])))
    scores = iter([-1.0, -math.inf, -2.0, -2.0])
    records = await kit.asked(test, kit.Scripted(lambda *_: next(scores, -3.0)))
    assert records[0].got == {"first": [-3.0, 3], "second": [None, 2]}
    records[2] = replace(records[2], got=None, error="no answer")
    outcome = test.judge(records)
    facts = outcome.hypotheses[0].facts
    assert (facts["wins"], facts["losses"], facts["ties"], facts["failed"], facts["unasked"]) == (1, 0, 3, 1, 0)
    assert any("3 pairs are ties" in note for note in outcome.notes)
    assert any("1 pairs brought no answer" in note for note in outcome.notes)
    # asked again: the last line counts
    again = [*records, kit.record("twins", "req_2", {"first": [-1, 1], "second": [-2, 1]})]
    assert test.judge(again).hypotheses[0].facts["wins"] == 2


async def test_the_judge_is_pure_and_needs_no_order(tmp_path: Path) -> None:
    test = kit.twins(*await stored(tmp_path, some(40)))
    rng = np.random.default_rng(0)
    records = await kit.asked(test, kit.Scripted(lambda *_: rng.normal()))
    outcome = test.judge(records)
    assert outcome == test.judge(records) == test.judge(records[::-1])
    copied = {"inputs/pairs": tmp_path / "twins.jsonl", "inputs/ledger": tmp_path / "ledger.jsonl"}
    config = TwinsConfig(kind="twins", pairs="inputs/pairs", ledger="inputs/ledger")
    assert open_test(config, Evidence(copied, b"another")).judge(records) == outcome
    json.dumps(outcome.hypotheses[0].facts, allow_nan=False)


# Stopping


async def test_an_early_stop_is_judged_by_its_evalue(tmp_path: Path) -> None:
    lines = some(64)
    pairs, ledger = await stored(tmp_path, lines)
    kit.write_lines(pairs, lines[:60])
    released = released_of(lines)
    test = kit.twins(pairs, ledger, sequential=True)
    records = await kit.asked(test, kit.Scripted(lambda _, text: float(text in released)))
    e = pvalue.coin_evalue(64, 60)
    assert test.evalue(records) == e and test.judge(records).log10_p == -e
    assert test.judge(records).hypotheses[0].facts["p_by"] == "e-value"
    assert test.evalue(records[:30]) == pvalue.coin_evalue(34, 30)
    assert test.evalue([]) < 0 and test.judge([]).log10_p == 0.0
    # a plan that asks all of them and stopped all the same
    fixed = kit.twins(pairs, ledger)
    assert fixed.judge(records).log10_p == pytest.approx(pvalue.binomial(64, 0.5, 60))
    stopped = fixed.judge(records[:30])
    assert stopped.log10_p == -pvalue.coin_evalue(34, 30)
    assert any("30 pairs were not asked" in note for note in stopped.notes)


async def test_holm_over_the_family(tmp_path: Path) -> None:
    pairs, ledger = await stored(tmp_path, some(20, coins=[0] * 20))
    test = kit.twins(pairs, ledger, family=3)
    records = [kit.record("twins", f"req_{i}", {"first": [-1, 1], "second": [-2, 1]}) for i in range(20)]
    outcome = test.judge(records)
    assert outcome.log10_p == pytest.approx(20 * math.log10(0.5) + math.log10(3))
    assert outcome.hypotheses[0].log10_p == pytest.approx(20 * math.log10(0.5))


# Resemblance


def test_resemblance_is_fixed() -> None:
    """Golden vectors: a second verifier has to come to the same numbers."""
    assert Grams("a cat sat").like(Grams("a  cat\nsat ")) == 1.0
    assert Grams("").like(Grams("")) == Grams("abc").like(Grams("")) == 0.0
    assert Grams("abcdef").like(Grams("abcxyz")) == pytest.approx((3 / 6 + 2 / 5 + 1 / 4) / 6, abs=1e-15)
    assert resemblance(["the cat sat on the mat", "no"], ["the cat sat", "on a mat", "日本語"]) == [
        0.6011415558648394,
        0.2674297924297924,
        0.0,
    ]


@settings(deadline=None)
@given(st.text(max_size=40), st.text(max_size=40))
def test_resemblance_is_a_plain_mean_of_f1(a: str, b: str) -> None:
    from collections import Counter

    x, y, total = " ".join(a.split()), " ".join(b.split()), 0.0
    for n in range(1, 7):
        left, right = (Counter(text[i : i + n] for i in range(len(text) - n + 1)) for text in (x, y))
        size = left.total() + right.total()
        total += 2 * (left & right).total() / size if size else 0.0
    assert Grams(a).like(Grams(b)) == Grams(b).like(Grams(a)) == total / 6


# Size and power


def toss(test: Any, rng: np.random.Generator) -> Any:
    """Fresh coins for pairs that are read and checked already: the same test as of another export, without its file."""
    read = test._read
    pairs = {name: replace(pair, released=int(rng.integers(2))) for name, pair in read.pairs.items()}
    test._read = replace(read, pairs=pairs)
    return test


@pytest.mark.parametrize("texts", ["alike", "repetitive", "very different lengths", "first always preferred"])
def test_innocents_are_found_no_more_often_than_alpha(tmp_path: Path, texts: str) -> None:
    """A trial is one suspect's answers to 48 pairs under fresh coins. One in six pairs is one text again and again."""
    n, trials, rng = 48, 2000, np.random.default_rng(len(texts))
    pairs = [
        {
            "alike": (f"the answer is {i}", f"the answer is {i}."),
            "repetitive": (("no " * (i % 5 + 1)).strip(), ("no " * (i % 5 + 2)).strip()),
            "very different lengths": ("yes", "well, " * 60 + "no"),
            "first always preferred": ("yes, always", "no, never"),
        }[texts]
        for i in range(n)
    ]
    scores = [(rng.normal(-2, 1), rng.normal(-2, 1)) for _ in range(n)]
    if texts == "first always preferred":
        scores = [(-1.0, -2.0)] * n
    scores[::6] = [scores[0]] * len(scores[::6])
    records = [
        kit.record("twins", f"req_{i}", {"first": [a * 4, 4], "second": [b * 4, 4]}) for i, (a, b) in enumerate(scores)
    ]
    path = kit.write_lines(tmp_path / "t.jsonl", [kit.pair_line(i, *pair, 0) for i, pair in enumerate(pairs)])
    tests = [kit.twins(path, sequential=early) for early in (False, True)]
    found = np.array([[toss(test, rng).judge(records).log10_p for test in tests] for _ in range(trials)])
    for alpha in (1e-2, 1e-3):
        for hits in (found <= math.log10(alpha)).sum(axis=0):
            assert kit.at_most(int(hits), trials, alpha), (alpha, hits)
    assert (found[:, 0] <= -1).sum() > 0.02 * trials  # it is a test, not a refusal to say anything


def test_by_text_innocents_are_found_no_more_often_than_alpha(tmp_path: Path) -> None:
    """The suspect writes as the teacher does (same phrases), not what was released."""
    n, trials, rng = 12, 1000, np.random.default_rng(5)
    words = ["river", "stone", "slowly", "the", "the", "of", "valley", "and", "water", "carves"]

    def text() -> str:
        return " ".join(rng.choice(words, rng.integers(3, 12)))

    pairs = [(text(), text()) for _ in range(n)]
    records = [kit.record("twins", f"req_{i}", {"replies": [text()]}) for i in range(n)]
    lines = [kit.pair_line(i, *pair, 0) for i, pair in enumerate(pairs)]
    test = kit.twins(kit.write_lines(tmp_path / "t.jsonl", lines), by="text")
    found = [toss(test, rng).judge(records).log10_p for _ in range(trials)]
    for alpha in (1e-2, 1e-3):
        assert kit.at_most(int((np.array(found) <= math.log10(alpha)).sum()), trials, alpha)
    assert (np.array(found) <= -1).sum() > 0.02 * trials


@pytest.mark.parametrize(("share", "pairs"), [(0.6, 330), (0.79, 40)])
def test_power(tmp_path: Path, share: float, pairs: int) -> None:
    """A suspect that prefers the released reply in that share of pairs reaches 1e-2 in four of five trials."""
    rng, hits = np.random.default_rng(3), 0
    for _ in range(30):
        coins = [int(coin) for coin in rng.integers(0, 2, pairs)]
        test = kit.twins(kit.write_lines(tmp_path / "t.jsonl", some(pairs, coins=coins)))
        records = []
        for i, coin in enumerate(coins):
            better = coin if rng.random() < share else 1 - coin
            got = {"first": [-1.0 - better, 1], "second": [-2.0 + better, 1]}
            records.append(kit.record("twins", f"req_{i}", got))
        hits += test.judge(records).log10_p <= -2
    assert hits >= 24


def test_a_biased_coin_shows_on_innocents(tmp_path: Path) -> None:
    """An operator who releases the likelier reply makes every model guilty, the controls too: that is their purpose."""
    rng = np.random.default_rng(9)
    scores = rng.normal(-2, 1, (100, 2))
    coins = [int(b > a) for a, b in scores]
    test = kit.twins(kit.write_lines(tmp_path / "t.jsonl", some(100, coins=coins)))
    control = scores + rng.normal(0, 1, scores.shape)  # another model of the same language
    records = [kit.record("twins", f"req_{i}", {"first": [a, 1], "second": [b, 1]}) for i, (a, b) in enumerate(control)]
    assert test.judge(records).log10_p < -4
