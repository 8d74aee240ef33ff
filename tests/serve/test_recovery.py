"""A guard that is killed: the next one charges what was released, and no more; caps go on from there."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import yaml
from aiohttp import web

import mock_api
from guard_kit import guard_config, guarding
from services import free_port
from spiritsafe.serve import GuardConfig
from spiritsafe.state import Database
from test_gateway import ASK, chunks

PRICES = [{"from": "2026-01-01", "model": "m", "input_per_mtok": 10, "output_per_mtok": 20}]


def start(config: GuardConfig, folder: Path, **more: Any) -> tuple[subprocess.Popen[bytes], int]:
    """This guard as a process of its own, and its port."""
    port, path = free_port(), folder / "guard.yaml"
    data = config.model_dump(mode="json", exclude_unset=True) | {"listen": f"127.0.0.1:{port}"}
    path.write_text(yaml.safe_dump(data | more))
    process = subprocess.Popen([sys.executable, "-m", "spiritsafe", "serve", str(path)], stderr=subprocess.PIPE)
    assert process.stderr is not None
    for line in process.stderr:
        if b"serving" in line:
            return process, port
    raise AssertionError("the guard did not start")


@contextlib.contextmanager
def asking(port: int, key: str) -> Iterator[None]:
    """Somebody who has asked and waits, in a process of their own."""
    with subprocess.Popen(
        [sys.executable, "-c", _ASK, f"http://127.0.0.1:{port}", key], stdout=subprocess.DEVNULL
    ) as process:
        yield
        process.wait(20)


def kill(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.stderr is not None
    process.stderr.close()


def until_received(upstream: mock_api.MockApi, count: int) -> None:
    deadline = time.monotonic() + 10
    while len(upstream.received) < count and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(upstream.received) == count


async def _slow(number: int, body: mock_api.Body, request: web.Request) -> web.StreamResponse:
    if not body.get("stream"):
        await asyncio.sleep(60)
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    for _ in range(600):
        await response.write(chunks("word ")[0])
        await asyncio.sleep(0.1)
    return response


@pytest.mark.parametrize("stream", [False, True])
def test_what_was_in_flight_is_charged_as_far_as_it_left(tmp_path: Path, stream: bool) -> None:
    with mock_api.mock_api(_slow) as upstream:
        settings: dict[str, Any] = {"prices": PRICES, "tiers": {"default": {"usd_per_day": 1}}}
        config = guard_config(tmp_path, upstream.base_url, **settings)
        with guarding(config) as guard:
            key = guard.new_key()
        process, port = start(config, tmp_path, prices=PRICES)
        if stream:
            with openai.OpenAI(
                base_url=f"http://127.0.0.1:{port}/v1", api_key=key, max_retries=0, timeout=30
            ) as client:
                words = client.chat.completions.create(model="m", messages=ASK, stream=True)  # type: ignore[call-overload]
                for _ in range(3):
                    next(words)
                kill(process)
        else:
            with asking(port, key):
                until_received(upstream, 1)
                kill(process)
        with guarding(config) as guard:
            (row,) = guard.rows()
            journals = os.listdir(config.state.journal_folder)
    assert row["status"] == "lost"
    if stream:
        assert 3 <= row["tokens_out"] <= 128
        assert row["pico"] == row["tokens_in"] * 10 * 10**6 + row["tokens_out"] * 20 * 10**6
    else:
        assert (row["tokens_out"], row["pico"]) == (0, 0)
    assert len(journals) <= 1  # the dead one's is gone


def test_the_operators_allowance_for_twins_comes_back(tmp_path: Path) -> None:
    """Killed while both replies are awaited: the next guard frees what the second one held, and twins go on."""
    with mock_api.mock_api(_slow) as upstream:
        settings: dict[str, Any] = {
            "tiers": {"default": {"twin_share": 1.0, "max_tokens": 1000}},
            "twins": {"usd_per_day": 0.004},  # room for one: 2,000 nano-dollars a token
            "terms": {"version": "1", "url": "https://example.org/terms"},
        }
        config = guard_config(tmp_path, upstream.base_url, **settings)
        with guarding(config) as guard:
            key = guard.new_key()
            guard.do(lambda g: g.accounts.accept_terms("acme", "1"))
        process, port = start(config, tmp_path, **settings)
        with asking(port, key):
            until_received(upstream, 2)
            kill(process)
        assert asyncio.run(_held(config))[0] > 2_000_000
        upstream.behave = mock_api.answer
        with guarding(config) as guard:
            assert asyncio.run(_held(config)) == (0, 0)
            assert [row["status"] for row in guard.rows()] == ["lost"]
            guard.client(key).chat.completions.create(model="m", messages=ASK)  # type: ignore[call-overload]
            assert len(upstream.received) == 4, "there is room for a twin again"
            assert 0 < asyncio.run(_held(config))[0] < 2_000_000


async def _held(config: GuardConfig) -> tuple[int, int]:
    """Nano-dollars of second replies in the day's counter, and requests that hold some."""
    async with await Database.open(config.state.database) as db:
        (counter,) = await db.fetch("SELECT value FROM counters WHERE name LIKE 'operator:twins%'")
        return counter["value"], len(await db.fetch("SELECT * FROM second_replies"))


_ASK = """
import sys, urllib.request
request = urllib.request.Request(
    sys.argv[1] + "/v1/chat/completions",
    data=b'{"model": "m", "messages": [{"role": "user", "content": "hello"}]}',
    headers={"authorization": "Bearer " + sys.argv[2], "content-type": "application/json"},
)
try:
    urllib.request.urlopen(request, timeout=15)
except Exception:
    pass
"""
