"""Collecting from real servers that fail in every way, under caps that hold."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from aiohttp import web

from mock_api import Behaviour, Body, MockApi, answer, completion, mock_api
from spiritsafe.collect import CollectConfig, CollectSummary, collect, estimate, reconcile
from spiritsafe.collect._store import Store
from spiritsafe.errors import BadInput, Interrupted, Refused, SpiritsafeError
from spiritsafe.records import (
    Exchange,
    Message,
    Prompt,
    Reply,
    Request,
    SparseLogprobs,
    TeacherInfo,
    Usage,
    read_exchanges,
)
from spiritsafe.runs import Run
from spiritsafe.spend import Price
from spiritsafe.teachers import Answer, TeacherConfig

PRICE = Price.model_validate({"input_per_mtok": 1, "output_per_mtok": 2})
QUICK: dict[str, Any] = {"logprobs": 0, "max_tokens": 8}


class Watch:
    def __init__(self) -> None:
        self.said: list[str] = []
        self.updates: list[tuple[float, float | None, str]] = []

    def update(self, stage: str, done: float, total: float | None, note: str = "") -> None:
        self.updates.append((done, total, note))

    def say(self, message: str) -> None:
        self.said.append(message)


@pytest.fixture
def api() -> Iterator[MockApi]:
    with mock_api() as running:
        yield running


@pytest.fixture(autouse=True)
def _no_long_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spiritsafe.collect._collector._FIRST_BACKOFF_S", 0.02)
    monkeypatch.setattr("spiritsafe.collect._limiter._FIRST_PAUSE_S", 0.02)


def ask(count: int, prefix: str = "q") -> list[Prompt]:
    return [Prompt((Message("user", f"{prefix}{i}"),)) for i in range(count)]


def go(path: Path, api: MockApi, prompts: list[Prompt], watch: Watch | None = None, **changes: Any) -> CollectSummary:
    teacher = TeacherConfig(base_url=api.base_url, model="m", price=changes.pop("price", PRICE),
                            timeout_s=changes.pop("timeout_s", 10))  # fmt: skip
    config = CollectConfig(**QUICK | changes)
    return collect(Run.open(path), teacher, prompts, config, progress=watch or Watch())


def rows(path: Path) -> list[Exchange]:
    return list(read_exchanges(path / "exchanges.parquet"))


def per_prompt(api: MockApi) -> Counter[str]:
    return Counter(body["messages"][-1]["content"] for body in api.received)


def status(code: int, share: int, **headers: str) -> Behaviour:
    """Every `share`-th request gets `code`."""

    async def behave(number: int, body: Body, request: web.Request) -> web.StreamResponse:
        if number % share == 0:
            return web.Response(status=code, text="not now", headers=headers)
        return await answer(number, body, request)

    return behave


# ── the main path ──


def test_every_prompt_once_in_order_with_its_costs_and_split(tmp_path: Path, api: MockApi) -> None:
    prompts, watch = ask(100), Watch()
    teacher = TeacherConfig(base_url=api.base_url, model="m", price=PRICE)
    config = CollectConfig(**QUICK, budget_usd=1.0, temperature=0.7, stop=("\n",))
    terms = SimpleNamespace(terms_id="apache-2.0", terms_version="2026-11")
    run = Run.open(tmp_path / "r")
    summary = collect(run, teacher, prompts, config, holdout=0.1, seed=3, terms=terms, progress=watch)
    exchanges = list(read_exchanges(run.exchanges))
    assert [e.prompt for e in exchanges] == prompts
    assert [e.reply.text for e in exchanges[:2]] == ["echo: q0", "echo: q1"]
    assert Counter(e.split for e in exchanges) == {"train": 90, "holdout": 10}
    first = exchanges[0]
    assert (first.terms_id, first.terms_version, first.teacher.host, first.sampling.stop) == (
        "apache-2.0", "2026-11", "127.0.0.1", ("\n",),
    )  # fmt: skip
    assert first.sampling.seed == api_seed(api, "q0") and len({b["seed"] for b in api.received}) == 100
    assert summary.usd == pytest.approx(100 * (10 * 1e-6 + 4 * 2e-6)) == pytest.approx(sum(e.usd for e in exchanges))
    assert (summary.exchanges, summary.answered, summary.tokens_in, summary.tokens_out, summary.requests) == (
        100, 100, 1000, 400, 100,
    )  # fmt: skip
    assert summary.to_dict()["budget_usd"] == 1.0
    assert watch.updates[-1][:2] == (100, 100) and "tok/s" in watch.updates[-1][2] and "/$1" in watch.updates[-1][2]


def api_seed(api: MockApi, text: str) -> int:
    return next(int(b["seed"]) for b in api.received if b["messages"][-1]["content"] == text)


def test_a_rerun_asks_only_what_is_new(tmp_path: Path, api: MockApi) -> None:
    go(tmp_path / "r", api, ask(20))
    summary = go(tmp_path / "r", api, ask(30))
    assert len(api.received) == 30 and summary.exchanges == 30 and summary.requests == 30
    changed = go(tmp_path / "r", api, ask(30), temperature=0.5)  # another question to the teacher
    assert len(api.received) == 60 and changed.exchanges == 30


def test_a_second_recipe_never_pays_twice(tmp_path: Path, api: MockApi) -> None:
    go(tmp_path / "a", api, ask(20))
    watch = Watch()
    summary = go(tmp_path / "b", api, ask(25), watch)
    assert len(api.received) == 25
    assert (summary.reused, summary.requests) == (20, 5)
    assert summary.usd == pytest.approx(5 * 18e-6)
    assert "20 answers copied from sibling runs at no cost" in watch.said[0]
    assert [e.extra.get("reused_from") for e in rows(tmp_path / "b")] == ["a"] * 20 + [None] * 5
    go(tmp_path / "c", api, ask(20), reuse=False)
    assert len(api.received) == 45


def test_samples_come_from_one_request_where_n_is_honoured(tmp_path: Path, api: MockApi) -> None:
    go(tmp_path / "r", api, ask(5), samples=4)
    assert len(api.received) == 5 and api.received[0]["n"] == 4
    exchanges = rows(tmp_path / "r")
    assert [(e.prompt.messages[0].content, e.sample) for e in exchanges[:5]] == [
        ("q0", 0), ("q0", 1), ("q0", 2), ("q0", 3), ("q1", 0),
    ]  # fmt: skip
    assert sum(e.usage.input_tokens for e in exchanges) == 50 and sum(e.usage.output_tokens for e in exchanges) == 80
    assert sum(e.usd for e in exchanges) == pytest.approx(5 * (10e-6 + 16 * 2e-6))


def test_a_teacher_that_ignores_n_is_asked_again_for_the_rest(tmp_path: Path, api: MockApi) -> None:
    async def one(number: int, body: Body, request: web.Request) -> web.StreamResponse:
        return web.json_response(completion(body, f"answer {number}"))

    api.behave = one
    summary = go(tmp_path / "r", api, ask(5), samples=3)
    exchanges = rows(tmp_path / "r")
    assert len(api.received) == 15 and summary.answered == 5
    assert [e.sample for e in exchanges] == [0, 1, 2] * 5
    assert len({e.reply.text for e in exchanges}) == 15 and len({e.id for e in exchanges}) == 15
    go(tmp_path / "r", api, ask(5), samples=3)
    assert len(api.received) == 15


def test_logprobs_are_kept_and_their_absence_is_said(tmp_path: Path, api: MockApi) -> None:
    async def behave(number: int, body: Body, request: web.Request) -> web.StreamResponse:
        data = completion(body, "x")
        if body["messages"][-1]["content"] != "q1":
            top = [{"token": "x", "logprob": -0.1, "bytes": [120]}, {"token": "y", "logprob": -3.0, "bytes": [121]}]
            data["choices"][0]["logprobs"] = {"content": [top[0] | {"top_logprobs": top}]}
        return web.json_response(data)

    api.behave, watch = behave, Watch()
    summary = go(tmp_path / "r", api, ask(3), watch, logprobs=2)
    kept = [e.reply.logprobs for e in rows(tmp_path / "r")]
    assert kept[0] is not None and kept[0].top_bytes == ((b"x", b"y"),)
    assert kept[1] is None
    assert summary.noted["without logprobs"] == 1 and "1 answers came without logprobs" in watch.said[0]


class InProcess:
    """A teacher without a wire, as local weights are: token ids and log-probabilities by id."""

    info = TeacherInfo("tiny", revision="r1", tokenizer_hash="t", template_hash="c")

    async def complete(self, request: Request) -> Answer:
        await asyncio.sleep(0)
        said = request.prompt.messages[-1].content
        if said == "broken":
            raise ValueError("out of memory")
        logprobs = SparseLogprobs(
            np.asarray([-0.25, -1.5], np.float32),
            np.asarray([[-0.25, -2.0], [-1.5, -np.inf]], np.float32),
            np.asarray([[3, 4], [2, -1]], np.int32),
        )
        return Answer((Reply(said.upper(), "stop", (3, 2), logprobs),), Usage(5, 2), "tiny")

    async def aclose(self) -> None: ...


def test_local_weights_go_the_same_way_for_free(tmp_path: Path) -> None:
    run, config = Run.open(tmp_path / "r"), CollectConfig(budget_usd=0, logprobs=2)
    local = TeacherConfig(path="somewhere/tiny")
    summary = collect(run, local, ask(50), config, teacher=InProcess())
    assert (summary.answered, summary.usd, summary.price_known) == (50, 0.0, True)
    first = next(read_exchanges(run.exchanges))
    assert first.teacher == InProcess.info and first.reply.text == "Q0" and first.reply.token_ids == (3, 2)
    assert first.reply.logprobs is not None and first.reply.logprobs.ids is not None
    assert first.reply.logprobs.ids.tolist() == [[3, 4], [2, -1]]
    assert first.reply.logprobs.token_bytes is None


def test_a_teacher_that_breaks_stops_collection_and_keeps_what_was_answered(tmp_path: Path) -> None:
    prompts = [*ask(20), Prompt((Message("user", "broken"),)), *ask(20, "later")]
    local, config = TeacherConfig(path="somewhere/tiny"), CollectConfig(logprobs=0, concurrency=1)
    with pytest.raises(SpiritsafeError, match="collection failed: ValueError") as error:
        collect(Run.open(tmp_path / "r"), local, prompts, config, teacher=InProcess())
    assert isinstance(error.value.__cause__, ValueError)
    with Store(tmp_path / "r" / "requests.sqlite") as store:
        assert sum(known.state == "answered" for known in store.known().values()) == 20


# ── trouble ──


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


# ── caps ──


def bill(api: MockApi) -> float:
    return sum(
        a["usage"]["prompt_tokens"] * 1e-6 + a["usage"]["completion_tokens"] * 2e-6
        for a in api.answered
        if "usage" in a
    )


def test_the_dollar_cap_holds_and_a_higher_one_continues(tmp_path: Path, api: MockApi) -> None:
    cap = 0.002
    with pytest.raises(
        Refused, match=r"collect.budget_usd of \$0.002 is used up: .* of 300 prompts are answered"
    ) as no:
        go(tmp_path / "r", api, ask(300), budget_usd=cap)
    assert no.value.exit_code == 3
    done = len(api.received)
    assert 50 < done < 300 and bill(api) <= cap
    assert len(rows(tmp_path / "r")) == done
    assert go(tmp_path / "r", api, ask(300), budget_usd=1.0).answered == 300
    assert len(api.received) == 300


def test_the_request_cap_counts_refused_requests_too(tmp_path: Path, api: MockApi) -> None:
    api.behave, watch = status(500, 3), Watch()
    with pytest.raises(Refused, match=r"collect.max_requests of 25 requests is used up"):
        go(tmp_path / "r", api, ask(100), max_requests=25, price=None, watch=watch)
    assert len(api.received) == 25
    assert watch.said[0] == "collect: 100 requests to send, but collect.max_requests leaves room for 25"


def test_the_token_cap_holds(tmp_path: Path, api: MockApi) -> None:
    with pytest.raises(Refused, match=r"collect.max_tokens_total of 2000 tokens"):
        go(tmp_path / "r", api, ask(300), max_tokens_total=2000, price=None)
    assert sum(a["usage"]["total_tokens"] for a in api.answered) <= 2000
    assert len(api.received) > 100


def test_the_time_cap_holds(tmp_path: Path, api: MockApi) -> None:
    async def slow(number: int, body: Body, request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(0.1)
        return await answer(number, body, request)

    api.behave = slow
    started = time.monotonic()
    with pytest.raises(Refused, match=r"collect.max_seconds"):
        go(tmp_path / "r", api, ask(1000), max_seconds=0.5, concurrency=2, price=None)
    assert time.monotonic() - started < 3 and 4 <= len(api.received) <= 20


def test_zero_budget_and_unknown_price_send_nothing(tmp_path: Path, api: MockApi) -> None:
    with pytest.raises(Refused, match=r"collect.budget_usd is 0, so nothing may be spent"):
        go(tmp_path / "r", api, ask(5), budget_usd=0)
    with pytest.raises(
        BadInput, match=r"price of m is unknown; write it in the recipe in USD .*price: \{input_per_mtok"
    ):
        go(tmp_path / "r", api, ask(5), budget_usd=5, price=None)
    assert api.received == []


def test_a_free_teacher_fits_a_zero_budget(tmp_path: Path, api: MockApi) -> None:
    free = Price.model_validate({"input_per_mtok": 0, "output_per_mtok": 0})
    assert go(tmp_path / "r", api, ask(5), budget_usd=0, price=free).usd == 0.0


# ── interruption ──


def test_ctrl_c_saves_what_is_in_flight(tmp_path: Path, api: MockApi) -> None:
    async def slow(number: int, body: Body, request: web.Request) -> web.StreamResponse:
        if number == 20:
            threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
        await asyncio.sleep(0.2)
        return await answer(number, body, request)

    api.behave, watch = slow, Watch()
    with pytest.raises(Interrupted, match=r"stopped with \d+ of 500 requests answered and saved") as stopped:
        go(tmp_path / "r", api, ask(500), watch)
    assert stopped.value.exit_code == 130
    assert any("requests in flight to come in" in line for line in watch.said)
    sent = len(api.received)
    with Store(tmp_path / "r" / "requests.sqlite") as store:
        assert sum(known.state == "answered" for known in store.known().values()) == sent
        assert store.release_lost()[0] == 0
    api.behave = answer
    assert go(tmp_path / "r", api, ask(500)).answered == 500
    assert len(api.received) == 500


def test_sigterm_is_heeded_too_and_hanging_requests_stay_reserved(
    tmp_path: Path, api: MockApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spiritsafe.collect._collector._GRACE_S", 0.2)

    async def hang(number: int, body: Body, request: web.Request) -> web.StreamResponse:
        if number == 4:
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
        if number >= 4:
            await asyncio.sleep(5)
        return await answer(number, body, request)

    api.behave = hang
    with pytest.raises(Interrupted, match="stopped with 3 of 50"):
        go(tmp_path / "r", api, ask(50), concurrency=2)
    assert reconcile(Run(tmp_path / "r")).attempts == 2


def test_a_full_disk_stops_collecting_in_one_line(
    tmp_path: Path, api: MockApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Store.__init__

    def small(self: Store, path: Path) -> None:
        original(self, path)
        self._connection.execute("PRAGMA max_page_count = 12")

    monkeypatch.setattr(Store, "__init__", small)
    with pytest.raises(SpiritsafeError, match=r"requests.sqlite: the disk is full; answers committed so far are saved"):
        go(tmp_path / "r", api, ask(60))
    monkeypatch.setattr(Store, "__init__", original)
    with Store(tmp_path / "r" / "requests.sqlite") as store:
        saved = sum(known.state == "answered" for known in store.known().values())
    before = len(api.received)
    assert go(tmp_path / "r", api, ask(60)).answered == 60
    assert len(api.received) - before == 60 - saved


# ── estimate ──


def test_an_estimate_is_close_and_its_probe_is_not_paid_twice(tmp_path: Path, api: MockApi) -> None:
    run, config = Run.open(tmp_path / "r"), CollectConfig(**QUICK, budget_usd=1)
    teacher = TeacherConfig(base_url=api.base_url, model="m", price=PRICE)
    blind = estimate(run, teacher, ask(100), config)
    assert len(api.received) == 0 and blind.measured == 0 and blind.seconds is None
    assert blind.usd is not None and blind.usd_worst is not None and blind.usd <= blind.usd_worst
    probed = estimate(run, teacher, ask(100), config, probe=5)
    assert len(api.received) == 5 and probed.measured == 5 and probed.held == 5
    assert probed.usd == pytest.approx(95 * 18e-6, rel=0.1)
    assert probed.tokens_out == 95 * 4 and probed.seconds is not None
    assert not run.exchanges.exists()
    assert "measured on 5 answers" in probed.render() and probed.to_dict()["requests"] == 95
    summary = collect(run, teacher, ask(100), config)
    assert len(api.received) == 100 and summary.usd <= (probed.usd_worst or 0) + probed.usd_spent
    assert estimate(run, teacher, ask(100), config).requests == 0


def test_an_estimate_without_a_price_says_so(tmp_path: Path, api: MockApi) -> None:
    teacher = TeacherConfig(base_url=api.base_url, model="m")
    found = estimate(Run.open(tmp_path / "r"), teacher, ask(3), CollectConfig(**QUICK), probe=2)
    assert found.usd is None and "unknown: write teacher.price" in found.render()
