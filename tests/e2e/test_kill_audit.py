"""An audit killed with SIGKILL again and again, many questions in flight, against a server that logs what it answered."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest
import yaml

from spiritsafe.audit._freeze import Frozen, freeze
from spiritsafe.audit._run_folder import RunFolder
from spiritsafe.audit._suspect_spend import Journal
from spiritsafe.audit._transcript import read_chain, read_transcript

ITEMS = 1500
KILLS = 20
CAP_USD = 0.5
IN, OUT, IN_PRICE, OUT_PRICE = 12, 5, 1.0, 2.0  # tokens a call, USD per million
BILLED = (IN * IN_PRICE + OUT * OUT_PRICE) * 1e-6

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
        os.write(log, (asked.replace(" ", "_") + "\\n").encode())  # billed from here on, whether or not anyone listens
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

AUDIT = """
import asyncio, sys
from pathlib import Path
from spiritsafe.audit._freeze import load_frozen
from spiritsafe.audit._run import run_audit

class Watch:
    def update(self, stage, done, total, note=""):
        print(done, flush=True)
    def say(self, message): ...

asyncio.run(run_audit(load_frozen(Path(sys.argv[1])), sys.argv[2], progress=Watch()))
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


def frozen_plan(folder: Path) -> Frozen:
    rows = [{"prompt": f"q{i}", "completion": "x"} for i in range(ITEMS)]
    (folder / "reference.jsonl").write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    test = {"kind": "equality", "reference": "reference.jsonl", "samples": 1, "max_tokens": 8, "permutations": 99}
    price = {"input_per_mtok": IN_PRICE, "output_per_mtok": OUT_PRICE}
    subject = {"name": "s", "access": "text", "model": "m"}
    plan = {
        "name": "t",
        "question": "?",
        "subject": subject,
        "tests": [test],
        "budget": {"usd": CAP_USD, "price": price},
    }
    (folder / "PLAN.yaml").write_text(yaml.safe_dump(plan))
    return freeze(folder / "PLAN.yaml")


def start(frozen: Frozen, url: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", AUDIT, str(frozen.file), url]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def written(folder: RunFolder) -> set[str]:
    """Questions with an answer on disk, read without touching the file; a torn last line is none."""
    whole = folder.transcript.read_bytes().rpartition(b"\n")[0]
    lines = [orjson.loads(line) for line in whole.splitlines()]
    return {line["asked"]["messages"][-1]["content"] for line in lines if line["got"] is not None}


@pytest.mark.slow
def test_killed_at_random_points_no_answered_question_is_ever_asked_again(
    tmp_path: Path, server: tuple[str, Path]
) -> None:
    url, log = server
    frozen, chance = frozen_plan(tmp_path), random.Random(int(time.time()))
    folder = RunFolder.of(frozen.file)
    settled: dict[str, int] = {}
    for kill in range(KILLS):
        process = start(frozen, url)
        assert process.stdout is not None and process.stderr is not None
        if kill % 4 != 3:  # three times while it is asking, once at any moment of its start
            first = process.stdout.readline()
            assert first, process.stderr.read()
            time.sleep(chance.uniform(0, 0.12))
        else:
            time.sleep(chance.uniform(0.3, 1.2))
        process.send_signal(signal.SIGKILL)
        assert process.wait(10) == -signal.SIGKILL, "finished before it was killed: too few questions for so many kills"
        process.stdout.close()
        process.stderr.close()
        time.sleep(0.1)  # what the server had in hand is billed, though nobody listens any more
        if not folder.transcript.exists():
            continue
        counts = Counter(log.read_text().split())
        for asked in written(folder):
            assert settled.setdefault(asked, counts[asked]) == counts[asked] >= 1
        journal = Journal(folder.requests)
        assert counts.total() * BILLED <= journal.spent.usd + 1e-12 <= CAP_USD
        journal.close()
    process = start(frozen, url)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors

    counts = Counter(log.read_text().split())
    assert all(counts[asked] == count for asked, count in settled.items()) and len(settled) > KILLS
    records = read_transcript(folder.transcript, frozen.hash)
    assert Counter(record.item for record in records if record.got is not None).most_common(1)[0][1] == 1
    said = {record.asked["messages"][-1]["content"]: record.got for record in records}
    assert said == {f"q{i}": {"text": f"re q{i}"} for i in range(ITEMS)}
    # a question that was answered twice was in flight when the process died
    wasted = sum(counts[f"q{i}"] - 1 for i in range(ITEMS))
    assert wasted <= KILLS * 32
    assert 1 <= len(read_chain(folder.attempts, frozen.hash)) <= KILLS + 1
