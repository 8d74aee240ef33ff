"""A guard that is killed: the next one charges what was released, and no more; caps go on from there."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import openai
import pytest
import yaml
from aiohttp import web

import mock_api
from guard_kit import guard_config, guarding
from services import free_port
from test_gateway import ASK, chunks

PRICES = [{"from": "2026-01-01", "model": "m", "input_per_mtok": 10, "output_per_mtok": 20}]


def start(config: Path) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-m", "spiritsafe", "serve", str(config)], stderr=subprocess.PIPE)
    assert process.stderr is not None
    for line in process.stderr:
        if b"serving" in line:
            return process
    raise AssertionError("the guard did not start")


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
        port = free_port()
        path = tmp_path / "guard.yaml"
        data = config.model_dump(mode="json", exclude_unset=True) | {"listen": f"127.0.0.1:{port}"}
        path.write_text(yaml.safe_dump(data | {"prices": PRICES}))
        process = start(path)
        with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=key, max_retries=0, timeout=30) as client:
            if stream:
                words = client.chat.completions.create(model="m", messages=ASK, stream=True)  # type: ignore[call-overload]
                for _ in range(3):
                    next(words)
            else:
                ask = subprocess.Popen(
                    [sys.executable, "-c", _ASK, f"http://127.0.0.1:{port}", key], stdout=subprocess.DEVNULL
                )
                deadline = time.monotonic() + 10
                while not upstream.received and time.monotonic() < deadline:
                    time.sleep(0.02)
            process.send_signal(signal.SIGKILL)
            process.wait()
            if not stream:
                ask.wait(20)
        assert process.stderr is not None
        process.stderr.close()
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
