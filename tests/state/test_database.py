"""The database: one behaviour on SQLite and Postgres; nothing half written; errors that say what to do."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

import services
from spiritsafe.errors import BadInput
from spiritsafe.state import Database, Unavailable

ADD = "INSERT INTO counters (name, value) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET value = counters.value + $2"


async def test_a_failed_transaction_writes_nothing(database_url: str) -> None:
    async with await Database.open(database_url) as db:

        async def fail() -> None:
            async with db.transaction() as tx:
                await tx.execute(ADD, "a", 1)
                raise RuntimeError

        with pytest.raises(RuntimeError):
            await fail()
        assert await db.fetch("SELECT * FROM counters") == []


async def test_a_cancelled_transaction_leaves_the_connection_usable(database_url: str) -> None:
    async with await Database.open(database_url) as db:
        inside = asyncio.Event()

        async def slow() -> None:
            async with db.transaction() as tx:
                await tx.execute(ADD, "a", 1)
                inside.set()
                await asyncio.sleep(60)

        task = asyncio.create_task(slow())
        await inside.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await db.execute(ADD, "b", 1) == 1
        assert [row["name"] for row in await db.fetch("SELECT name FROM counters")] == ["b"]


async def test_a_transaction_cancelled_before_it_began_leaves_the_connection_usable(database_url: str) -> None:
    async with await Database.open(database_url) as db, await Database.open(database_url) as other:
        async with other.transaction() as tx:
            await tx.execute(ADD, "a", 1)  # holds SQLite's write lock
            waiting = asyncio.create_task(db.execute(ADD, "a", 1))
            await asyncio.sleep(0.05)
            waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert await db.execute(ADD, "b", 1) == 1
        assert {row["name"]: row["value"] for row in await db.fetch("SELECT name, value FROM counters")} == {
            "a": 1,
            "b": 1,
        }


async def test_sums_are_integers(database_url: str) -> None:
    async with await Database.open(database_url) as db:
        await db.execute(ADD, "a", 2**62)
        await db.execute(ADD, "b", -5)
        (row,) = await db.fetch("SELECT SUM(value) AS total FROM counters")
        assert row["total"] == 2**62 - 5 and type(row["total"]) is int


async def test_concurrent_writers_lose_no_update(database_url: str) -> None:
    async with await Database.open(database_url) as one, await Database.open(database_url) as two:
        await asyncio.gather(*(db.execute(ADD, "a", 1) for db in (one, two) for _ in range(50)))
        assert (await one.fetch("SELECT value FROM counters"))[0]["value"] == 100


async def test_many_processes_may_migrate_at_once(database_url: str) -> None:
    opened = await asyncio.gather(*(Database.open(database_url) for _ in range(4)))
    for db in opened:
        assert await db.fetch("SELECT * FROM accounts") == []
        await db.aclose()


async def test_an_older_schema_is_brought_up_to_date_with_what_it_holds(database_url: str) -> None:
    async with await Database.open(database_url) as db:  # back to the first version's
        await db.execute("DROP TABLE second_replies")
        await db.execute("UPDATE alembic_version SET version_num = '0001'")
        await db.execute(ADD, "a", 7)
    with pytest.raises(BadInput, match="older than this version"):
        await Database.open(database_url, migrate=False)
    async with await Database.open(database_url) as db:
        assert await db.fetch("SELECT * FROM second_replies") == []
        assert (await db.fetch("SELECT value FROM counters"))[0]["value"] == 7


async def test_a_newer_schema_is_refused(database_url: str) -> None:
    async with await Database.open(database_url) as db:
        await db.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(BadInput, match="newer than this version"):
        await Database.open(database_url)


async def test_without_migrating_an_empty_database_is_refused(database_url: str) -> None:
    with pytest.raises(BadInput, match="older than this version"):
        await Database.open(database_url, migrate=False)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("mysql://x/y", "sqlite:///FILE"),
        ("sqlite:////nowhere/at/all.db", "no folder"),
        ("sqlite:///", "sqlite:///FILE"),
    ],
)
async def test_bad_urls_are_explained(url: str, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        await Database.open(url)


async def test_a_file_that_is_no_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("my notes, " * 500)
    with pytest.raises(BadInput, match="no SQLite database"):
        await Database.open(f"sqlite:///{path}")
    assert path.read_text().startswith("my notes")


async def test_postgres_away_is_unavailable_and_comes_back() -> None:
    with services.running(services.postgres_service) as service:
        url = await asyncio.to_thread(services.new_postgres_database, service.port)
        async with await Database.open(url) as db:
            await db.execute(ADD, "a", 1)
            service.kill()
            with pytest.raises(Unavailable, match="check that it runs"):
                await db.execute(ADD, "a", 1)
            (service.folder / "data" / "postmaster.pid").unlink(missing_ok=True)
            service.start()
            for _ in range(100):
                try:
                    assert await db.execute(ADD, "a", 1) == 1
                    break
                except Unavailable:
                    await asyncio.sleep(0.1)
            else:
                raise AssertionError("the pool did not recover")


async def test_a_password_is_not_shown() -> None:
    with pytest.raises((BadInput, Unavailable)) as caught:
        await Database.open(f"postgresql://me:hunter2@127.0.0.1:{services.free_port()}/x")
    assert "hunter2" not in str(caught.value)
