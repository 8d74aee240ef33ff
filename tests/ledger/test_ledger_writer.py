"""The writer: one chain whoever writes, nothing twice, nothing lost, totals that are the sums of the rows."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ledger_kit import START, row, stored, sums
from spiritsafe.ledger import Event, Ledger, forget_personal, verify_ledger
from spiritsafe.state import Database, Unavailable


async def test_rows_and_events_are_chained_in_the_order_appended(database_url: str) -> None:
    async with await Database.open(database_url) as db:
        ledger = await Ledger.open(db, commit_ms=5)
        entries = [row(n) if n % 5 else Event(START, "canary_committed", "guard", {"n": n}) for n in range(1, 41)]
        futures = [ledger.append(entry) for entry in entries]
        assert ledger.backlog == 40
        assert await asyncio.gather(*futures) == list(range(1, 41))
        assert ledger.backlog == 0
        await ledger.aclose()
        rows = await stored(db)
        assert [found["kind"] for found in rows] == ["reply" if n % 5 else "event" for n in range(1, 41)]
        assert [found["request_id"] for found in rows if found["kind"] == "reply"] == [
            entry.request_id for entry in entries if not isinstance(entry, Event)
        ]
        found = await verify_ledger(db)
        assert found.ok, found.problems
        assert (found.rows, found.replies, found.events, found.head[0]) == (40, 32, 8, 40)


async def test_a_request_is_written_once_however_often_it_comes(database_url: str) -> None:
    async with await Database.open(database_url) as db:
        told: list[str] = []
        ledger = await Ledger.open(db, commit_ms=1)
        ledger.on_commit = told.extend
        once, again = ledger.append(row(1)), ledger.append(row(1, tokens_out=999))
        assert [await once, await again] == [1, 1]
        later = ledger.append(row(1, status="lost"))
        after = ledger.append(row(2))
        assert [await later, await after] == [1, 2]
        await ledger.aclose()
        assert told == ["req_000001"] * 3 + ["req_000002"]  # durable all the same
        assert len(await stored(db)) == 2
        assert (await sums(db))["model:smollm2-135m", "all"] == (2, 23, 9, 3_000_009)


async def test_totals_are_the_sums_of_the_rows(database_url: str) -> None:
    day = 86_400
    rows = [row(n, ts=START + n * day / 3, org="acme" if n % 2 else None) for n in range(60)]
    wanted: Counter[tuple[str, str, str]] = Counter()
    for r in rows:
        at = datetime.fromtimestamp(r.ts, UTC)
        scopes = [f"account:{r.account}", f"key:{r.key_id}", f"model:{r.model}", f"account_model:{r.account}:{r.model}"]
        for scope in scopes + ([f"org:{r.org}"] if r.org else []):
            for window in (f"{at:%Y-%m-%d}", f"{at:%Y-%m}", "all"):
                wanted[scope, window, "requests"] += 1
                wanted[scope, window, "in"] += r.tokens_in
                wanted[scope, window, "out"] += r.tokens_out
                wanted[scope, window, "pico"] += r.pico
    async with await Database.open(database_url) as db:
        ledger = await Ledger.open(db, commit_ms=1)
        for r in rows:
            await ledger.append(r)
        await ledger.aclose()
        found = await sums(db)
        assert len({key[0] for key in found}) == 3 + 4 + 1 + 3 + 1
        assert wanted == {
            (*key, name): amount
            for key, amounts in found.items()
            for name, amount in zip(("requests", "in", "out", "pico"), amounts, strict=True)
        }


async def test_a_total_may_pass_what_64_bits_hold(database_url: str) -> None:
    async with await Database.open(database_url) as db:
        ledger = await Ledger.open(db, commit_ms=1)
        for n in range(4):
            await ledger.append(row(n, pico=2**62))
        await ledger.aclose()
        assert (await sums(db))["model:smollm2-135m", "all"][3] == 2**64
        assert (await verify_ledger(db)).ok


async def test_a_row_that_cannot_be_kept_harms_no_other(database_url: str) -> None:
    async with await Database.open(database_url) as db:
        ledger = await Ledger.open(db, commit_ms=5)
        first = ledger.append(row(1))
        with pytest.raises(TypeError):
            ledger.append(row(2, features={"bad": object()}))
        with pytest.raises(ValueError, match="zero byte"):
            ledger.append(Event(START, "suspended", "account:\0"))
        third = ledger.append(row(3, model="x\u2028 ' \" \\ 𝄞", end_user="a\0b\n", user_agent="ü" * 300))
        assert [await first, await third] == [1, 2]
        await ledger.aclose()
        assert (await verify_ledger(db)).ok


async def test_whoever_stops_waiting_stops_nothing(database_url: str) -> None:
    async with await Database.open(database_url) as db:
        ledger = await Ledger.open(db, commit_ms=20)
        futures = [ledger.append(row(n)) for n in range(3)]
        futures[1].cancel()
        futures[2].cancel()
        await ledger.flush()
        assert ledger.backlog == 0 and len(await stored(db)) == 3
        assert [future.cancelled() for future in futures] == [False, True, True]
        impatient = asyncio.create_task(ledger.flush())  # nothing to wait for
        await impatient
        futures = [ledger.append(row(n)) for n in range(3, 5)]
        impatient = asyncio.create_task(ledger.flush())
        await asyncio.sleep(0)
        impatient.cancel()
        await ledger.flush()
        assert [future.result() for future in futures] == [4, 5]
        await ledger.aclose()


async def test_a_listener_that_fails_stops_nothing(database_url: str, caplog: pytest.LogCaptureFixture) -> None:
    async with await Database.open(database_url) as db:
        ledger = await Ledger.open(db, commit_ms=1)

        def fail(ids: list[str]) -> None:
            raise RuntimeError(ids[0])

        ledger.on_commit = fail
        assert [await ledger.append(row(n)) for n in (1, 2)] == [1, 2]
        await ledger.aclose()
        assert "req_000002" in caplog.text


async def test_many_writers_make_one_chain(database_url: str, caplog: pytest.LogCaptureFixture) -> None:
    databases = [await Database.open(database_url) for _ in range(4)]
    ledgers = [await Ledger.open(db, commit_ms=1) for db in databases]

    async def write(ledger: Ledger, start: int) -> list[int]:
        seqs = []
        for n in range(start, start + 60):
            seqs.append(ledger.append(row(n)))
            if n % 7 == 0:
                await seqs[-1]
        return list(await asyncio.gather(*seqs))

    seqs = await asyncio.gather(*(write(ledger, 100 * i) for i, ledger in enumerate(ledgers)))
    for ledger in ledgers:
        await ledger.aclose()
    assert sorted(seq for each in seqs for seq in each) == list(range(1, 241))
    for each in seqs:
        assert each == sorted(each)  # each writer's order is kept
    found = await verify_ledger(databases[0])
    assert found.ok, found.problems
    assert caplog.records == []  # they waited for each other: no commit failed and was tried again
    for db in databases:
        await db.aclose()


async def test_a_closed_ledger_takes_nothing(database_url: str) -> None:
    async with await Database.open(database_url) as db:
        ledger = await Ledger.open(db)
        future = ledger.append(row(1))
        await ledger.aclose()
        await ledger.aclose()
        assert future.result() == 1
        with pytest.raises(RuntimeError):
            ledger.append(row(2))


async def test_checkpoints_come_with_time_and_at_the_end(database_url: str) -> None:
    signer = Ed25519PrivateKey.generate()
    async with await Database.open(database_url) as db:
        ledger = await Ledger.open(db, signer=signer, commit_ms=1, checkpoint_every_s=0.05)
        await ledger.append(row(1))
        for _ in range(500):  # nothing more comes, and yet the row gets under a checkpoint
            if await stored(db, "checkpoints"):
                break
            await asyncio.sleep(0.01)
        assert [found["seq"] for found in await stored(db, "checkpoints")] == [1]
        await ledger.aclose()
        assert len(await stored(db, "checkpoints")) == 1  # closing adds none where nothing is new
        ledger = await Ledger.open(db, signer=signer, commit_ms=1, checkpoint_every_s=3600, clock=lambda: START)
        await ledger.append(row(2))
        await ledger.append(row(3))
        await ledger.aclose()
        last = (await stored(db, "checkpoints"))[-1]
        assert (last["seq"], last["at"]) == (3, START)
        key = signer.public_key().public_bytes_raw().hex()
        found = await verify_ledger(db, public_keys=[key])
        assert (found.ok, found.signer, found.last_checkpoint) == (True, "anchored", 3)


async def test_personal_fields_go_with_age_and_the_chain_stays(database_url: str) -> None:
    day = 86_400.0
    async with await Database.open(database_url) as db:
        now = START + 30 * day
        ledger = await Ledger.open(db, commit_ms=1, retention_days=10_000, clock=lambda: now)
        for n in range(30):
            ledger.append(row(n, ts=START + n * day))
        await ledger.aclose()
        assert len(await stored(db, "personal")) == 30
        whole = await verify_ledger(db)
        assert (whole.ok, whole.personal_checked, whole.personal_gone) == (True, 60, 0)
        # a guard that starts with a shorter retention deletes what is older
        ledger = await Ledger.open(db, commit_ms=1, retention_days=10, clock=lambda: now)
        for _ in range(500):
            if len(await stored(db, "personal")) == 10:
                break
            await asyncio.sleep(0.01)
        await ledger.aclose()
        assert [found["ts"] for found in await stored(db, "personal")] == [START + n * day for n in range(20, 30)]
        assert await forget_personal(db, before=now, account="acct_0") == 3
        assert await forget_personal(db, before=now, account="acct_0") == 0
        left = await verify_ledger(db)
        assert (left.ok, left.head, left.personal_checked, left.personal_gone) == (True, whole.head, 14, 46)


async def test_closing_says_so_if_the_database_is_away(postgres_url: str) -> None:
    async with await Database.open(postgres_url) as db:
        ledger = await Ledger.open(db, commit_ms=1)
        await db.execute("ALTER TABLE ledger RENAME TO elsewhere")
        future = ledger.append(row(1))
        with pytest.raises(Unavailable, match="1 entries could not be written") as caught:
            await ledger.aclose(timeout_s=0.3)
        assert "postgres@" not in str(caught.value)
        assert not ledger.healthy
        assert future.cancelled()
