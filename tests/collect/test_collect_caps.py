"""Caps that hold, interruption, a full disk, and what an estimate is worth."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from aiohttp import web

from collecting import PRICE, QUICK, Watch, ask, go, rows, status
from mock_api import Body, MockApi, answer
from spiritsafe.collect import CollectConfig, collect, estimate, reconcile
from spiritsafe.collect._store import Store
from spiritsafe.errors import BadInput, Interrupted, Refused, SpiritsafeError
from spiritsafe.runs import Run
from spiritsafe.spend import Price
from spiritsafe.teachers import TeacherConfig

pytestmark = pytest.mark.usefixtures("no_long_waits")


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
