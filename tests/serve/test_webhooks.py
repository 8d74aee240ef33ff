"""Webhooks: everything arrives, nothing twice from many replicas, bodies are signed, trouble is retried and then named."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from aiohttp import web

from accounts_kit import Clock
from accounts_kit import config as guard_config
from spiritsafe.errors import BadInput
from spiritsafe.serve import _webhooks
from spiritsafe.serve._account_store import AccountStore
from spiritsafe.serve._config import GuardConfig
from spiritsafe.serve._webhooks import Webhooks, signature
from spiritsafe.state import Database

NOW = 1_800_000_000.0


@dataclass
class Receiver:
    """A real HTTP server that keeps what it was sent and answers with the next of `statuses`, then 200."""

    url: str = ""
    statuses: list[int] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)

    async def take(self, request: web.Request) -> web.Response:
        self.bodies.append(await request.read())
        self.headers.append(dict(request.headers))
        self.paths.append(request.path)
        status = self.statuses.pop(0) if self.statuses else 200
        return web.Response(status=status, headers={"Location": "/elsewhere"} if status == 302 else {})

    @property
    def messages(self) -> list[dict[str, object]]:
        return [json.loads(body) for body in self.bodies]


@asynccontextmanager
async def receiving(path: str = "/hook/s3cret") -> AsyncIterator[Receiver]:
    receiver = Receiver()
    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", receiver.take)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    receiver.url = f"http://127.0.0.1:{port}{path}"
    try:
        yield receiver
    finally:
        await runner.cleanup()


def hooks(*given: tuple[str, str], secret_env: str | None = None) -> GuardConfig:
    """A guard with these hooks: (url, event)."""
    return guard_config(webhooks=[{"url": url, "events": [event], "secret_env": secret_env} for url, event in given])


async def test_a_message_arrives_once_and_says_what_happened(database_url: str) -> None:
    async with await Database.open(database_url) as db, receiving() as receiver:
        webhooks = Webhooks(db, hooks((receiver.url, "flagged")), clock=Clock(NOW))
        await webhooks.send("flagged", "account:a", {"step": "notify", "shadow": True})
        await webhooks.send("suspended", "account:a", {})  # nobody asked for it
        assert await webhooks.deliver(receiver.url) == 1
        assert await webhooks.deliver(receiver.url) == 0
        await webhooks.aclose()
        (message,) = receiver.messages
        assert message.pop("id").startswith("evt_")  # type: ignore[attr-defined]
        assert message == {
            "event": "flagged",
            "created": int(NOW),
            "data": {"subject": "account:a", "step": "notify", "shadow": True},
        }
        assert "Spiritsafe-Signature" not in receiver.headers[0]
        assert await webhooks.purge(NOW + 86_401) == 1


async def test_bodies_are_signed(database_url: str) -> None:
    async with await Database.open(database_url) as db, receiving() as receiver:
        config = hooks((receiver.url, "flagged"), secret_env="HOOK_SECRET")
        webhooks = Webhooks(db, config, clock=Clock(NOW), environ={"HOOK_SECRET": "correct horse"})
        await webhooks.send("flagged", "account:a", {})
        await webhooks.deliver(receiver.url)
        await webhooks.aclose()
    expected = hmac.new(b"correct horse", b"%d." % NOW + receiver.bodies[0], hashlib.sha256).hexdigest()
    assert receiver.headers[0]["Spiritsafe-Signature"] == f"t={int(NOW)},v1={expected}"


def test_the_signature_is_fixed() -> None:
    # printf '1800000000.{"id":"evt_1"}' | openssl dgst -sha256 -hmac secret
    expected = "5847cdad07809eddc3ac6ac8796d56ab2884e2b0831aa11ebd49b6c942021281"
    assert signature(b"secret", 1_800_000_000, b'{"id":"evt_1"}') == f"t=1800000000,v1={expected}"


@pytest.mark.parametrize("environ", [{}, {"HOOK_SECRET": ""}])
async def test_a_missing_secret_is_refused_at_the_start(tmp_path: object, environ: dict[str, str]) -> None:
    url = "http://127.0.0.1:1/x"
    async with await Database.open(f"sqlite:///{tmp_path}/guard.db") as db:
        with pytest.raises(BadInput, match="HOOK_SECRET"):
            Webhooks(db, hooks((url, "flagged"), secret_env="HOOK_SECRET"), environ=environ)
        with pytest.raises(BadInput, match="one url"):
            Webhooks(db, hooks((url, "flagged"), (url, "suspended")))


async def test_a_budget_is_reported_once_a_window(database_url: str) -> None:
    async with await Database.open(database_url) as db, receiving() as receiver:
        config, clock = hooks((receiver.url, "budget_80")), Clock(NOW)
        replicas = [Webhooks(db, config, clock=clock) for _ in range(3)]

        async def report(subject: str, window: str) -> None:
            await asyncio.gather(
                *(replica.send("budget_80", subject, {"window": window}, once=window) for replica in replicas * 3)
            )
            while await replicas[0].deliver(receiver.url):
                pass

        await report("account:a", "2027-01-15")
        await replicas[1].purge(clock.now)
        await report("account:a", "2027-01-15")
        assert len(receiver.bodies) == 1
        await report("account:a", "2027-01-16")
        await report("account:b", "2027-01-15")
        await report("account:a", "2027-01")
        assert len(receiver.bodies) == len({message["id"] for message in receiver.messages}) == 4  # type: ignore[misc]
        # a guard that starts anew a month later remembers that the lifetime budget was reported
        await report("account:a", "usd_lifetime all")
        clock.now += 100 * 86_400
        await replicas[0].purge(clock.now)
        fresh = Webhooks(db, config, clock=clock)
        await fresh.send("budget_80", "account:a", {}, once="usd_lifetime all")
        assert await fresh.deliver(receiver.url) == 0
        for replica in replicas:
            await replica.aclose()


async def test_trouble_is_retried_with_growing_waits_and_then_given_up(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with await Database.open(database_url) as db, receiving() as receiver:
        clock = Clock(NOW)
        webhooks = Webhooks(db, hooks((receiver.url, "flagged")), clock=clock)
        receiver.statuses = [500, 302] + [404] * 200
        await webhooks.send("flagged", "account:a", {})
        waits = []
        with caplog.at_level(logging.WARNING):
            while True:
                assert await webhooks.deliver(receiver.url) == 1
                ((due, claimed),) = [
                    (row["next_at"], row["claimed_until"]) for row in await db.fetch("SELECT * FROM outbox")
                ]
                assert claimed is None
                if due is None:
                    break
                waits.append(due - clock.now)
                clock.now = due - 0.001
                assert await webhooks.deliver(receiver.url) == 0  # not before its time
                clock.now = due
        await webhooks.aclose()
    assert all(2.5 * 2**i <= wait <= 7.5 * 2**i for i, wait in enumerate(waits[:9]))
    assert all(1800 <= wait <= 5400 for wait in waits[12:])
    assert 86_400 - 5400 <= clock.now - NOW <= 86_400
    assert len(set(receiver.bodies)) == 1
    assert set(receiver.paths) == {"/hook/s3cret"}  # the redirect was not followed
    (given_up,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "given up" in given_up.getMessage()
    assert "s3cret" not in caplog.text


async def test_a_receiver_that_is_away_loses_nothing(database_url: str) -> None:
    async with await Database.open(database_url) as db:
        clock = Clock(NOW)
        async with receiving() as receiver:
            url = receiver.url
        webhooks = Webhooks(db, hooks((url, "flagged")), clock=clock)
        await webhooks.send("flagged", "account:a", {})
        assert await webhooks.deliver(url) == 1
        (row,) = await db.fetch("SELECT * FROM outbox")
        assert row["attempts"] == 1 and row["next_at"] > clock.now
        await webhooks.aclose()


async def test_a_claim_of_a_dead_process_lapses(database_url: str) -> None:
    async with await Database.open(database_url) as db, receiving() as receiver:
        clock = Clock(NOW)
        webhooks = Webhooks(db, hooks((receiver.url, "flagged")), clock=clock)
        await webhooks.send("flagged", "account:a", {})
        await db.execute("UPDATE outbox SET claimed_until = $1", clock.now + 60)  # claimed, then killed
        assert await webhooks.deliver(receiver.url) == 0
        clock.now += 60
        assert await webhooks.deliver(receiver.url) == 1
        await webhooks.aclose()
        assert len(receiver.bodies) == 1


async def test_many_replicas_send_nothing_twice(database_url: str) -> None:
    async with receiving() as receiver:
        databases = [await Database.open(database_url) for _ in range(3)]
        replicas = [Webhooks(db, hooks((receiver.url, "flagged"))) for db in databases]
        running = [asyncio.create_task(replica.run()) for replica in replicas]
        await asyncio.gather(
            *(replicas[i % 3].send("flagged", f"account:{i}", {"i": i}) for i in range(60)),
        )
        await until(lambda: len(receiver.bodies) >= 60)
        while await replicas[0].waiting():
            await asyncio.sleep(0.01)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        for db in databases:
            await db.aclose()
        assert sorted(message["data"]["i"] for message in receiver.messages) == list(range(60))  # type: ignore[index]


async def test_an_account_that_is_suspended_elsewhere_is_told_of_once(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the command line, say: a process that delivers nothing and knows no secret of the hooks."""
    monkeypatch.setattr(_webhooks, "_POLL_S", 0.02)
    async with receiving() as receiver, await Database.open(database_url) as db:
        given = hooks((receiver.url, "suspended"), secret_env="HOOK_SECRET")
        store = AccountStore(db, given)
        made = await store.add("a")
        replicas = [Webhooks(db, given, environ={"HOOK_SECRET": "correct horse"}) for _ in range(3)]
        running = [asyncio.create_task(replica.run()) for replica in replicas]
        for _ in range(2):
            await store.suspend("a", reason="copying", decided_by="ann")
        await until(lambda: len(receiver.bodies) >= 1)
        while await replicas[0].waiting():
            await asyncio.sleep(0.01)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        (message,) = receiver.messages
        assert message["data"] == {"subject": f"account:{made.id}", "reason": "copying", "decided_by": "ann"}
        assert "Spiritsafe-Signature" in receiver.headers[0]


async def until(true: Callable[[], bool]) -> None:
    for _ in range(6000):
        if true():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("did not happen within a minute")


async def test_what_waits_for_a_hook_that_is_gone_is_deleted(database_url: str) -> None:
    async with await Database.open(database_url) as db:
        webhooks = Webhooks(db, hooks(("http://127.0.0.1:1/x", "flagged")), clock=Clock(NOW))
        await webhooks.send("flagged", "account:a", {})
        assert await webhooks.purge(NOW + 86_401) == 0  # it may still be tried for a last time
        assert await webhooks.purge(NOW + 2 * 86_400) == 1
