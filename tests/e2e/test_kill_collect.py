"""Collection killed with SIGKILL again and again, 64 requests in flight, against a server that logs what it answered."""

from __future__ import annotations

import json
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from spiritsafe.collect import reconcile
from spiritsafe.collect._store import Store
from spiritsafe.exchanges import read_exchanges
from spiritsafe.runs import Run

PROMPTS = 3000
KILLS = 20
CAP_USD = 0.5
IN, OUT, IN_PRICE, OUT_PRICE = 12, 5, 1.0, 2.0  # tokens a call, USD per million

SERVER = """
import asyncio, json, os, sys
import uvicorn

log = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    body = b""
    while True:
        event = await receive()
        if event["type"] == "http.disconnect":
            return
        body += event.get("body", b"")
        if not event.get("more_body"):
            break
    status, answer = 404, {}
    if scope["path"].endswith("/chat/completions"):
        asked = json.loads(body)["messages"][-1]["content"]
        await asyncio.sleep(0.03)
        os.write(log, (asked + "\\n").encode())  # billed from here on, whether or not anyone still listens
        status, answer = 200, {
            "model": "m",
            "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "re " + asked}}],
            "usage": {"prompt_tokens": int(sys.argv[2]), "completion_tokens": int(sys.argv[3])},
        }
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": json.dumps(answer).encode()})

class Server(uvicorn.Server):
    async def startup(self, sockets=None):
        await super().startup(sockets)
        print(self.servers[0].sockets[0].getsockname()[1], flush=True)

Server(uvicorn.Config(app, port=0, log_level="error", lifespan="off")).run()
"""

COLLECT = """
import sys
from pathlib import Path
from spiritsafe.collect import CollectConfig, collect
from spiritsafe.records import Message, Prompt
from spiritsafe.runs import Run
from spiritsafe.spend import Price
from spiritsafe.teachers import TeacherConfig

url, path, count, cap = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
teacher = TeacherConfig(base_url=url, model="m", price=Price.model_validate_json(sys.argv[5]))
prompts = [Prompt((Message("user", f"q{i}"),)) for i in range(count)]
config = CollectConfig(budget_usd=cap, max_tokens=8, logprobs=0, concurrency=64, max_requests=None)

class Watch:
    def update(self, stage, done, total, note=""):
        print(done, flush=True)
    def say(self, message): ...

run = Run.open(path)
with run.lock():
    collect(run, teacher, prompts, config, progress=Watch())
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    log = tmp_path / "answered.log"
    log.touch()
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(log), str(IN), str(OUT)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1", log
    process.terminate()
    process.wait(10)
    process.stdout.close()


def start(url: str, path: Path, cap: float = CAP_USD) -> subprocess.Popen[str]:
    price = json.dumps({"input_per_mtok": IN_PRICE, "output_per_mtok": OUT_PRICE})
    command = [sys.executable, "-c", COLLECT, url, str(path), str(PROMPTS), str(cap), price]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def committed(path: Path) -> dict[str, Any]:
    """Prompts with a committed answer, attempts in flight, and what counts as spent, read without touching the store."""
    with sqlite3.connect(path / "requests.sqlite") as db:
        answered = {
            json.loads(body)["messages"][-1]["content"] for (body,) in db.execute("SELECT body FROM requests WHERE state = 'answered'")
        }  # fmt: skip
        in_flight = db.execute("SELECT count(*) FROM attempts WHERE state = 'reserved'").fetchone()[0]
        spent = db.execute("SELECT sum(pico) FROM attempts").fetchone()[0]
    db.close()
    return {"answered": answered, "in_flight": in_flight, "spent": spent}


@pytest.mark.slow
def test_killed_at_random_points_every_prompt_is_answered_once_within_the_cap(
    tmp_path: Path, server: tuple[str, Path]
) -> None:
    url, log = server
    path, chance = tmp_path / "run", random.Random(int(time.time()))
    price = (IN * IN_PRICE + OUT * OUT_PRICE) * 1e-6
    kills, most_in_flight, lost = 0, 0, 0
    settled: dict[str, int] = {}
    while kills < KILLS:
        process = start(url, path)
        assert process.stdout is not None and process.stderr is not None
        first = process.stdout.readline()  # it is asking now
        assert first, process.stderr.read()
        time.sleep(chance.uniform(0, 0.12))
        process.send_signal(signal.SIGKILL)
        ended = process.wait(10)
        process.stdout.close()
        process.stderr.close()
        assert ended == -signal.SIGKILL, "finished before it was killed: too few prompts for so many kills"
        kills += 1
        time.sleep(0.05)  # what the server had in hand is billed, though nobody listens any more
        found, answered = committed(path), Counter(log.read_text().split())
        most_in_flight = max(most_in_flight, found["in_flight"])
        lost += found["in_flight"]
        # What is billed is within what counts as spent, and no committed answer was asked for again.
        assert answered.total() * price <= found["spent"] / 1e12 + 1e-12
        for asked in found["answered"]:
            assert settled.setdefault(asked, answered[asked]) == answered[asked] >= 1
        with Store(path / "requests.sqlite") as store:
            assert store.spent().pico == found["spent"]  # opening turns reservations into losses of the same amount
    assert most_in_flight >= 48

    process = start(url, path)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors

    exchanges = list(read_exchanges(path / "exchanges.parquet"))
    assert [e.prompt.messages[0].content for e in exchanges] == [f"q{i}" for i in range(PROMPTS)]
    assert all(e.reply.text == f"re {e.prompt.messages[0].content}" for e in exchanges)
    answered = Counter(log.read_text().split())
    assert all(answered[asked] == count for asked, count in settled.items())
    bill = answered.total() * price
    assert bill <= CAP_USD
    with Store(path / "requests.sqlite") as store:
        spent = store.spent()
        by = store.spent_by_reason()
    assert by["answered"].usd == pytest.approx(PROMPTS * price)
    assert by["lost"].requests == lost > 0
    assert bill <= spent.usd <= CAP_USD
    released = reconcile(Run(path))
    assert released.attempts == lost and released.usd == pytest.approx(by["lost"].usd)
    with Store(path / "requests.sqlite") as store:
        assert store.spent().usd == pytest.approx(PROMPTS * price)


@pytest.mark.slow
def test_killed_under_a_cap_that_is_too_small_the_bill_still_stays_below_it(
    tmp_path: Path, server: tuple[str, Path]
) -> None:
    url, log = server
    path, price, cap = tmp_path / "run", (IN * IN_PRICE + OUT * OUT_PRICE) * 1e-6, 0.06
    for _ in range(2):
        process = start(url, path, cap)
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline()
        process.kill()
        process.wait(10)
        process.stdout.close()
        process.stderr.close()
        assert len(log.read_text().split()) * price <= cap
    _, errors = start(url, path, cap).communicate(timeout=60)
    assert "collect.budget_usd of $0.06 is used up" in errors
    assert 0 < len(log.read_text().split()) * price <= cap
    with Store(path / "requests.sqlite") as store:
        assert cap - 0.001 < store.spent().usd <= cap
