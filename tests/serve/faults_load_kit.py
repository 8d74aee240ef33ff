"""Many clients at once against guards that are being hurt, and the books checked afterwards."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from faults_kit import SECRET_PROMPT, Guarded
from spiritsafe.wire import SseParser

# A reply of the mock costs one cent: 40 tokens at $250 a million; a request for 80 reserves two.
CENT = {"input_per_mtok": 0, "output_per_mtok": 250}
REPLY_PICO, RESERVED_PICO = 10**10, 2 * 10**10
CAP_PICO = 10**12
MAX_TOKENS = 80


@dataclass
class Tally:
    """What all clients saw. replies: request ids answered whole with 200, and their output tokens."""

    replies: dict[str, int] = field(default_factory=dict)
    statuses: Counter[int] = field(default_factory=Counter)
    lost: int = 0
    broken: int = 0
    unshaped: list[str] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        self.replies |= other.replies
        self.statuses += other.statuses
        self.lost += other.lost
        self.broken += other.broken
        self.unshaped += other.unshaped


class Load:
    """`clients` tasks that ask until they are told 402, or until `stop`. Every second one streams."""

    def __init__(
        self, ports: Sequence[int], key: str, clients: int = 64, *, model: str = "m", patience: float = 60
    ) -> None:
        self.tally = Tally()
        self._ports = itertools.cycle(ports)
        self._key, self._clients, self._model = key, clients, model
        self._deadline = time.monotonic() + patience
        self._stopped = False

    def stop(self) -> None:
        self._stopped = True

    async def run(self) -> Tally:
        timeout = aiohttp.ClientTimeout(total=20)
        connector = aiohttp.TCPConnector(limit=0, force_close=False)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            await asyncio.gather(*(self._client(session, number) for number in range(self._clients)))
        assert time.monotonic() < self._deadline, f"the cap was never reached: {self.tally.statuses}"
        return self.tally

    async def _client(self, session: aiohttp.ClientSession, number: int) -> None:
        while not self._stopped and time.monotonic() < self._deadline:
            status = await self._one(session, stream=number % 2 == 1)
            if status == 402:
                return
            assert status not in (400, 401, 403, 404), f"the load is wrong: {status}"
            if status != 200:
                await asyncio.sleep(0.02)

    async def _one(self, session: aiohttp.ClientSession, stream: bool) -> int:
        """Ask once; the status, 0 if the connection broke before there was one."""
        body = {
            "model": self._model, "messages": [{"role": "user", "content": SECRET_PROMPT}], "max_tokens": MAX_TOKENS,
            "stream": stream, "stream_options": {"include_usage": True} if stream else None,
        }  # fmt: skip
        url = f"http://127.0.0.1:{next(self._ports)}/v1/chat/completions"
        tally = self.tally
        try:
            async with session.post(url, json=body, headers={"Authorization": f"Bearer {self._key}"}) as answer:
                raw = await answer.read()
        except (aiohttp.ClientError, TimeoutError):
            tally.lost += 1
            return 0
        tally.statuses[answer.status] += 1
        if answer.status != 200:
            if set(json.loads(raw)) != {"error"}:
                tally.unshaped.append(raw[:200].decode(errors="replace"))
            return answer.status
        data: list[Any] = [json.loads(raw)] if not stream else _events(raw)
        if not data or "error" in data[-1]:
            tally.broken += 1
            return 0
        tally.replies[answer.headers["x-request-id"]] = data[-1]["usage"]["completion_tokens"]
        return 200


def _events(raw: bytes) -> list[Any]:
    """A whole stream's events; empty if it has no end."""
    events = [event.data for event in SseParser().feed(raw)]
    return [json.loads(event) for event in events[:-1]] if events and events[-1] == "[DONE]" else []


def spend(ports: Sequence[int], key: str, clients: int = 64, **options: Any) -> Tally:
    """Let clients ask until the cap is reached."""
    return asyncio.run(Load(ports, key, clients, **options).run())


def last_cents(ports: Sequence[int], key: str, tally: Tally) -> None:
    """One client takes what the others' reservations still held when they were refused; again until nothing is left,
    as its own last reply may have left before what that had held was given back."""
    more = True
    while more:
        time.sleep(0.1)
        found = spend(ports, key, clients=1)
        tally.add(found)
        more = bool(found.replies)


def check_books(guard: Guarded, spent: dict[str, Tally], *, cap: int = CAP_PICO, least: int | None = None) -> None:
    """By account name: no reply unmetered, none charged twice, no cap exceeded, none left unused, the chain whole.

    cap, least: pico-dollars that an account may, and must, have spent.
    """
    wanted = {request_id for tally in spent.values() for request_id in tally.replies}
    deadline = time.monotonic() + 20
    rows = guard.rows()
    while wanted - {row["request_id"] for row in rows} and time.monotonic() < deadline:
        time.sleep(0.1)  # rows are written in groups, and later where the database was away
        rows = guard.rows()
    ids = Counter(row["request_id"] for row in rows)
    assert max(ids.values()) == 1
    by_id = {row["request_id"]: row for row in rows}
    names = {account["id"]: account["name"] for account in guard.cli("accounts", "list")["accounts"]}
    money: Counter[str] = Counter()
    for row in rows:
        money[names[row["account"]]] += row["pico"]
        if row["status"] == "upstream_error":
            assert row["pico"] == 0
        assert row["tokens_out"] <= MAX_TOKENS, row
    for name, tally in spent.items():
        assert tally.unshaped == []
        for request_id, tokens in tally.replies.items():
            row = by_id.get(request_id)
            assert row is not None, f"{name}: reply {request_id} is in no ledger"
            assert (row["status"], row["tokens_out"]) == ("ok", tokens)
        assert money[name] <= cap, f"{name}: overshoot of {money[name] - cap} pico-dollars"
        if least is not None:
            assert money[name] >= least, f"{name}: only {money[name]} of {cap} could be spent"
    accounts = {name: account for account, name in names.items()}
    totals = guard.totals()
    for name in spent:
        found = totals.get((f"account:{accounts[name]}", "all"))
        assert (found["pico"] if found else 0) == money[name]
    guard.assert_verifies()
