"""Stopping: notice to load balancers while everything is still answered, then a closed port, then the end of replies."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import services
from faults_kit import PRICE, Answer, Guarded, Mock, guard_settings, mocking


def readiness(guard: Guarded) -> tuple[int, str] | None:
    """What a load balancer sees; None once nothing listens any more."""
    try:
        answer = guard.get("/readyz")
    except (ConnectionError, http.client.HTTPException):
        return None
    return answer.status, answer.json["status"]


def until(guard: Guarded, wanted: tuple[int, str] | None, seconds: float = 10) -> float:
    """Wait for it; how long it took."""
    started = time.monotonic()
    while (seen := readiness(guard)) != wanted:
        assert time.monotonic() - started < seconds, f"{seen}, not {wanted}: {guard.log[-2000:]}"
        time.sleep(0.02)
    return time.monotonic() - started


def stop(guard: Guarded, number: int = signal.SIGTERM, *, group: bool = False) -> None:
    assert guard.process is not None
    (os.killpg if group else os.kill)(guard.process.pid, number)


def ended(guard: Guarded) -> int:
    assert guard.process is not None
    code = guard.process.wait(40)
    guard.process = None
    return code


@contextlib.contextmanager
def serving(folder: Path, models: dict[str, str], **changes: Any) -> Iterator[tuple[Guarded, Mock, str]]:
    """A guard, its upstream, and a key that every worker knows from the start. models: the mock's mode, by name."""
    workers = changes.pop("workers", 1)
    with mocking(folder) as mock:
        upstreams = [
            {"name": name, "base_url": f"http://127.0.0.1:{mock.port}/{mode}/v1", "models": [name], "price": PRICE}
            for name, mode in models.items()
        ]  # fmt: skip
        guard = Guarded(folder, guard_settings(folder, mock, {}, upstreams=upstreams, **changes), workers=workers)
        key = guard.new_keys("acme")["acme"]
        guard.start()
        try:
            yield guard, mock, key
        finally:
            if guard.process is not None:
                guard.stop(signal.SIGKILL)


def sharing(request: pytest.FixtureRequest, workers: int) -> dict[str, Any]:
    """Settings of a guard with so many workers."""
    if workers == 1:
        return {}
    redis: services.Service = request.getfixturevalue("redis")
    return {"state": {"limits": f"redis://127.0.0.1:{redis.port}/0"}, "workers": workers}


@pytest.fixture(scope="module")
def redis() -> Any:
    with services.running(services.redis_service) as service:
        yield service


@pytest.mark.parametrize("workers", [1, 2])
def test_notice_is_given_and_everything_answered_meanwhile(
    tmp_path: Path, request: pytest.FixtureRequest, workers: int
) -> None:
    notice, drain = 3, {"notice_s": 3, "replies_s": 20}
    with serving(tmp_path, {"m": "delay_ms=0", "slow": "delay_ms=900"}, drain=drain, **sharing(request, workers)) as (
        guard,
        _,
        key,
    ):
        stop(guard)
        told = time.monotonic()
        until(guard, (503, "draining"))
        for _ in range(4 * workers):  # new connections, to whichever worker
            assert guard.post(key).status == 200
            assert readiness(guard) == (503, "draining")
        assert guard.get("/healthz").status == 200
        assert time.monotonic() - told < notice, "this machine is too slow for what is asked here"
        time.sleep(max(0.0, told + notice - 0.4 - time.monotonic()))
        late: list[Answer] = []
        last = threading.Thread(target=lambda: late.append(guard.post(key, model="slow")))
        last.start()
        until(guard, None)
        assert time.monotonic() - told >= notice - 0.1
        last.join(20)
        assert late[0].status == 200, "a reply under way when the port closed"
        assert ended(guard) == 0
        assert [row["status"] for row in guard.rows()] == ["ok"] * (4 * workers + 1)
        guard.assert_verifies()
        events = [json.loads(line) for line in guard.log.splitlines() if '"draining"' in line]
        assert [(event["notice_s"], event["replies_s"]) for event in events] == [(3, 20)] * workers


@pytest.mark.parametrize(("workers", "number"), [(1, signal.SIGTERM), (2, signal.SIGINT)])
def test_a_second_signal_ends_the_notice(
    tmp_path: Path, request: pytest.FixtureRequest, workers: int, number: signal.Signals
) -> None:
    with serving(tmp_path, {"m": "delay_ms=0"}, drain={"notice_s": 600}, **sharing(request, workers)) as (
        guard,
        _,
        _key,
    ):
        terminal = number == signal.SIGINT  # which sends it to every process at once
        stop(guard, number, group=terminal)
        for _ in range(10 * workers):  # one after another, so that every worker has heard it
            until(guard, (503, "draining"))
        time.sleep(0.5)
        assert readiness(guard) == (503, "draining"), "one signal is one signal, however many processes get it"
        stop(guard, number, group=terminal)
        until(guard, None)
        assert ended(guard) == 0


def test_without_notice_the_port_closes_and_replies_get_their_time(tmp_path: Path) -> None:
    modes = {"slow": "delay_ms=900", "stuck": "delay_ms=9000", "drip": "chunks=60,interval_ms=250"}
    with serving(tmp_path, modes, drain={"replies_s": 3}) as (guard, mock, key):
        answers: dict[str, Answer] = {}

        def ask(model: str) -> None:
            answers[model] = guard.post(key, model=model, stream=model == "drip")

        asking = [threading.Thread(target=ask, args=(model,)) for model in modes]
        for thread in asking:
            thread.start()
        while len(mock.asked()) < 3:
            time.sleep(0.02)
        stop(guard)
        assert until(guard, None) < 1
        for thread in asking:
            thread.join(20)
        assert ended(guard) == 0
        assert answers["slow"].status == 200
        assert (answers["stuck"].status, answers["stuck"].error["code"]) == (503, "stopping")
        *events, last = answers["drip"].events
        assert last["error"]["code"] == "stopping"
        rows = {row["model"]: (row["status"], row["tokens_out"]) for row in guard.rows()}
        assert rows["slow"][0] == "ok" and rows["stuck"] == ("upstream_error", 0)
        assert rows["drip"][0] == "stream_broken" and 5 < len(events) < 40 and rows["drip"][1] >= len(events) - 2
        guard.assert_verifies()
