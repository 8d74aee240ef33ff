"""Twins as evidence: what is asked, what counts, what is not open is lost, and stopping early."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import coins_kit as kit
import numpy as np
import pytest
from aiohttp import web

import mock_api
from spiritsafe import pvalue
from spiritsafe.audit._evidence import Evidence
from spiritsafe.audit._plan import TwinsConfig
from spiritsafe.audit.tests import open_test
from spiritsafe.errors import BadInput
from spiritsafe.ledger import export_ledger
from spiritsafe.records import Message, Prompt
from spiritsafe.serve._twins import export_twins
from test_gateway import ASK, chat, gateway


async def test_a_suspect_that_prefers_what_was_released_is_found(tmp_path: Path) -> None:
    lines = kit.some_pairs(20)
    test = kit.twins(*await kit.stored_pairs(tmp_path, lines))
    released = kit.released_of(lines)
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
    lines = kit.some_pairs(30)
    pairs, ledger = await kit.stored_pairs(tmp_path, lines)
    kit.write_lines(pairs, lines[:20])
    test = kit.twins(pairs, ledger)
    released = kit.released_of(lines)
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
    pairs, ledger = await kit.stored_pairs(tmp_path, lines)
    lying = [
        line | {"account": "acct_1", "model": "large", "created": 0.0} for line in lines
    ]  # not under the commitment
    for opened in (lines, lying):
        test = kit.twins(kit.write_lines(pairs, opened), ledger, **plan)
        facts = test.judge([]).hypotheses[0].facts
        assert facts["named"] == facts["opened"] == len(test.items()) == named
        assert any(f"{12 - named} opened pairs are not named" in note for note in test.judge([]).notes) == (named < 12)


async def test_without_a_ledger_it_is_a_lead(tmp_path: Path) -> None:
    test = kit.twins(kit.write_lines(tmp_path / "t.jsonl", kit.some_pairs(4)))
    outcome = test.judge([])
    assert outcome.most == "lead" and "No ledger" in outcome.notes[0]


@pytest.mark.parametrize("when", ["yesterday", "1e400", "nan", "2026-13-01"])
def test_times_that_are_none(tmp_path: Path, when: str) -> None:
    with pytest.raises(BadInput, match="not a time"):
        kit.twins(kit.write_lines(tmp_path / "t.jsonl", kit.some_pairs(1)), since=when)


async def test_impossible_replies_lose_and_ties_and_failures_are_left_out(tmp_path: Path) -> None:
    test = kit.twins(kit.write_lines(tmp_path / "t.jsonl", kit.some_pairs(5, coins=[0, 0, 0, 1, 1])))
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
    test = kit.twins(*await kit.stored_pairs(tmp_path, kit.some_pairs(40)))
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
    lines = kit.some_pairs(64)
    pairs, ledger = await kit.stored_pairs(tmp_path, lines)
    kit.write_lines(pairs, lines[:60])
    released = kit.released_of(lines)
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
    pairs, ledger = await kit.stored_pairs(tmp_path, kit.some_pairs(20, coins=[0] * 20))
    test = kit.twins(pairs, ledger, family=3)
    records = [kit.record("twins", f"req_{i}", {"first": [-1, 1], "second": [-2, 1]}) for i in range(20)]
    outcome = test.judge(records)
    assert outcome.log10_p == pytest.approx(20 * math.log10(0.5) + math.log10(3))
    assert outcome.hypotheses[0].log10_p == pytest.approx(20 * math.log10(0.5))
