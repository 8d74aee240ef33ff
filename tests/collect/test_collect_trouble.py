"""Collecting from servers that fail in every way."""

from __future__ import annotations

import asyncio
import socket
import time
from collections import Counter
from pathlib import Path

import pytest
from aiohttp import web

from collecting import PRICE, QUICK, Watch, ask, go, per_prompt, rows, status
from mock_api import Body, MockApi, answer, completion
from spiritsafe.collect import CollectConfig, collect, reconcile
from spiritsafe.errors import SpiritsafeError
from spiritsafe.runs import Run
from spiritsafe.teachers import TeacherConfig

pytestmark = pytest.mark.usefixtures("no_long_waits")


@pytest.mark.parametrize(("code", "kind"), [(429, "rate_limited"), (500, "server"), (503, "server")])
def test_passing_trouble_is_ridden_out(tmp_path: Path, api: MockApi, code: int, kind: str) -> None:
    api.behave = status(code, 4)
    summary = go(tmp_path / "r", api, ask(60), budget_usd=1.0)
    assert summary.answered == 60 and summary.noted[f"retried after {kind}"] >= 15
    assert summary.usd == pytest.approx(60 * 18e-6)  # what was turned down cost nothing
    assert Counter(e.prompt.id for e in rows(tmp_path / "r")).most_common(1)[0][1] == 1


def test_retry_after_is_honoured_by_all(tmp_path: Path, api: MockApi) -> None:
    async def behave(number: int, body: Body, request: web.Request) -> web.StreamResponse:
        if number == 5:
            return web.Response(status=429, headers={"Retry-After": "0.6"})
        return await answer(number, body, request)

    api.behave = behave
    go(tmp_path / "r", api, ask(40), concurrency=1)
    gaps = [b - a for a, b in zip(api.times, api.times[1:], strict=False)]
    assert gaps[4] >= 0.6 and max(gaps[:4]) < 0.5


def test_concurrency_rises_to_what_the_teacher_bears_and_falls_in_a_storm(tmp_path: Path, api: MockApi) -> None:
    async def busy(number: int, body: Body, request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(0.02)
        if api.in_flight > 20:
            return web.Response(status=429)
        return await answer(number, body, request)

    api.behave = busy
    summary = go(tmp_path / "r", api, ask(400), retries=20)
    assert summary.answered == 400
    assert 16 <= api.most_in_flight <= 60
    refused = summary.noted["retried after rate_limited"]
    assert 0 < refused < 100


def test_a_storm_without_end_stops_with_a_clear_error_and_continues_later(tmp_path: Path, api: MockApi) -> None:
    api.behave = status(429, 1)
    with pytest.raises(SpiritsafeError, match=r"answered 429: 'not now' \(7 times in a row, .* run again later"):
        go(tmp_path / "r", api, ask(500))
    assert len(api.received) <= 24  # 8, 4, 2 and then one at a time
    api.behave = answer
    assert go(tmp_path / "r", api, ask(30)).answered == 30


def test_one_prompt_that_always_fails_does_not_stop_the_others(tmp_path: Path, api: MockApi) -> None:
    async def behave(number: int, body: Body, request: web.Request) -> web.StreamResponse:
        if body["messages"][-1]["content"] == "q7":
            return web.Response(status=500)
        return await answer(number, body, request)

    api.behave = behave
    summary = go(tmp_path / "r", api, ask(300), retries=3)
    assert (summary.answered, summary.bad, per_prompt(api)["q7"]) == (299, {"server": 1}, 4)


@pytest.mark.parametrize(
    ("code", "says"), [(401, "set teacher.api_key_env"), (404, "is m the right model"), (400, "answered 400")]
)
def test_final_refusals_stop_early(tmp_path: Path, api: MockApi, code: int, says: str) -> None:
    api.behave = status(code, 1)
    with pytest.raises(SpiritsafeError, match=says) as error:
        go(tmp_path / "r", api, ask(500))
    assert error.value.exit_code == 1 and len(api.received) <= 16


def test_a_teacher_without_logprobs_says_what_to_set(tmp_path: Path, api: MockApi) -> None:
    async def behave(number: int, body: Body, request: web.Request) -> web.StreamResponse:
        return web.json_response({"error": {"message": "logprobs are not supported"}}, status=400)

    api.behave = behave
    with pytest.raises(SpiritsafeError, match=r"not supported.*; collect.logprobs is 20: lower it, 0 asks for none"):
        go(tmp_path / "r", api, ask(50), logprobs=20)


def test_a_web_page_instead_of_an_api_stops_early(tmp_path: Path, api: MockApi) -> None:
    async def page(number: int, body: Body, request: web.Request) -> web.StreamResponse:
        return web.Response(text="<html>Welcome</html>", content_type="text/html")

    api.behave = page
    with pytest.raises(SpiritsafeError, match="answered 200 with not JSON: '<html>Welcome</html>'; is base_url right"):
        go(tmp_path / "r", api, ask(500))
    assert len(api.received) <= 16


def test_nobody_there_is_said_at_once(tmp_path: Path) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        teacher = TeacherConfig(base_url=f"http://127.0.0.1:{held.getsockname()[1]}/v1", model="m")
        started = time.monotonic()
        with pytest.raises(SpiritsafeError, match=r"unreachable .* is it running"):
            collect(Run.open(tmp_path / "r"), teacher, ask(50), CollectConfig(**QUICK))
        assert time.monotonic() - started < 5


def test_bad_answers_are_recorded_asked_again_with_another_seed_and_never_dropped(tmp_path: Path, api: MockApi) -> None:
    async def behave(number: int, body: Body, request: web.Request) -> web.StreamResponse:
        said = body["messages"][-1]["content"]
        again = per_prompt(api)[said] > 1
        if said == "q1" and not again:
            return web.json_response(completion(body, ""))
        if said == "q2":
            return web.json_response(completion(body, "  \n"))
        if said == "q3":
            return web.Response(text='{"choices": [{"mess', content_type="application/json")
        if said == "q4":
            return web.json_response(completion(body, "cut of", finish="length"))
        return await answer(number, body, request)

    api.behave, watch = behave, Watch()
    summary = go(tmp_path / "r", api, ask(40), watch)
    assert {e.prompt.messages[0].content: e.reply.text for e in rows(tmp_path / "r")} == {
        f"q{i}": {1: "echo: q1", 2: "  \n", 4: "cut of"}.get(i, f"echo: q{i}") for i in range(40) if i != 3
    }
    assert summary.bad == {"empty": 1, "malformed": 1, "truncated": 1}
    assert (summary.answered, summary.exchanges) == (39, 39)
    asked = per_prompt(api)
    assert (asked["q1"], asked["q2"], asked["q3"], asked["q4"], asked["q5"]) == (2, 2, 2, 1, 1)
    seeds = [b["seed"] for b in api.received if b["messages"][-1]["content"] == "q1"]
    assert seeds[0] != seeds[1] == rows(tmp_path / "r")[1].sampling.seed
    # Paid twice for q1 and q2; q3's reservations stand, for nobody knows what was billed.
    reserved = PRICE.worst_case(2 + 16 + 256, 8) / 1e12
    assert summary.usd_by == {
        "answered": pytest.approx(39 * 18e-6), "retried": pytest.approx(2 * 18e-6), "lost": pytest.approx(2 * reserved),
    }  # fmt: skip
    assert summary.usd == pytest.approx(sum(summary.usd_by.values()))
    assert "1 of 40 prompts have no answer (1 empty, 1 malformed, 1 truncated); going on without" in watch.said[-1]


def test_truncated_answers_are_asked_again_if_so_wished(tmp_path: Path, api: MockApi) -> None:
    async def behave(number: int, body: Body, request: web.Request) -> web.StreamResponse:
        return web.json_response(completion(body, f"try {number}", finish="length" if number <= 3 else "stop"))

    api.behave = behave
    go(tmp_path / "r", api, ask(3), retry_truncated=1)
    assert len(api.received) == 6 and {e.reply.finish_reason for e in rows(tmp_path / "r")} == {"stop"}


def test_too_many_missing_answers_are_a_failure(tmp_path: Path, api: MockApi) -> None:
    async def behave(number: int, body: Body, request: web.Request) -> web.StreamResponse:
        if body["messages"][-1]["content"] in ("q1", "q2", "q3"):
            return web.json_response({"error": "too long"}, status=400)
        return await answer(number, body, request)

    api.behave = behave
    with pytest.raises(SpiritsafeError, match=r"3 of 20 prompts have no answer \(3 bad_request\)"):
        go(tmp_path / "r", api, ask(20), concurrency=1)
    assert go(tmp_path / "r", api, ask(20), tolerate_missing=0.2, concurrency=1).bad == {"bad_request": 3}


def test_timeouts_and_broken_connections_keep_their_reservation(tmp_path: Path, api: MockApi) -> None:
    async def behave(number: int, body: Body, request: web.Request) -> web.StreamResponse:
        if number == 2:
            await asyncio.sleep(5)
        if number == 3:
            assert request.transport is not None
            request.transport.abort()
        return await answer(number, body, request)

    api.behave = behave
    summary = go(tmp_path / "r", api, ask(10), timeout_s=0.5, concurrency=1, budget_usd=1.0)
    reserved = PRICE.worst_case(2 + 16 + 256, 8) / 1e12
    assert summary.answered == 10
    assert summary.usd == pytest.approx(10 * 18e-6 + 2 * reserved)
    released = reconcile(Run(tmp_path / "r"))
    assert (released.attempts, released.usd) == (2, pytest.approx(2 * reserved))
    assert go(tmp_path / "r", api, ask(10)).usd == pytest.approx(10 * 18e-6)


def test_a_server_that_reports_no_usage_is_charged_at_the_worst_case(tmp_path: Path, api: MockApi) -> None:
    async def behave(number: int, body: Body, request: web.Request) -> web.StreamResponse:
        return web.json_response(completion(body, "x", usage=None))

    api.behave = behave
    summary = go(tmp_path / "r", api, ask(4))
    assert summary.usd == pytest.approx(4 * PRICE.worst_case(2 + 16 + 256, 8) / 1e12)
    assert summary.noted["without usage: charged at the worst case"] == 4
