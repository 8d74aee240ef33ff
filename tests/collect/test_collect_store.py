"""The store: what is committed stays, what is damaged is said, what was paid for is never paid for again."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spiritsafe.collect._commit import StoreError
from spiritsafe.collect._store import Store, siblings
from spiritsafe.errors import BadInput
from spiritsafe.records import Message, Prompt, Request, Sampling, Usage
from spiritsafe.spend import Spend

WORST = Spend(pico=1000, tokens=50, requests=1)
COST = Spend(pico=300, tokens=14, requests=1)
RAW = b'{"choices": [{"message": {"content": "hi"}}]}'


def request(text: str) -> Request:
    return Request(Prompt((Message("user", text),)), Sampling())


def with_store(path: Path, work: Callable[[Store], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        try:
            return await work(store)
        finally:
            await store.aclose()

    with Store(path) as store:
        return asyncio.run(run())


async def pay(store: Store, name: str, raw: bytes = RAW, reason: str | None = None) -> None:
    store.add([(name, request(name))])
    attempt = await store.reserve(name, 7, WORST)
    await store.answered(attempt, name, raw, Usage(10, 4, 1, 2), COST, replies=1, reason=reason)


def test_an_answer_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "requests.sqlite"
    big = b'{"choices": ["' + b"x" * 10_000 + b'"]}'
    with_store(path, lambda store: pay(store, "a"))
    with_store(path, lambda store: pay(store, "b", big))
    assert path.stat().st_size < 60_000
    with Store(path) as store:
        small, large = store.paid("a"), store.paid("b")
        assert small is not None and large is not None
        assert (small.raw, small.usage, small.pico, small.seed, small.origin) == (RAW, Usage(10, 4, 1, 2), 300, 7, None)
        assert large.raw == big
        assert store.spent() == Spend(600, 28, 2)
        assert store.known()["a"].state == "answered"
        assert store.paid("nothing") is None


def test_a_reservation_whose_process_died_counts_until_reconciled(tmp_path: Path) -> None:
    path = tmp_path / "requests.sqlite"

    async def die(store: Store) -> None:
        await pay(store, "a")
        store.add([("b", request("b"))])
        await store.reserve("b", None, WORST)

    with_store(path, die)
    with Store(path) as store:
        assert store.spent() == COST + WORST
        assert store.spent_by_reason() == {"answered": COST, "lost": WORST}
        assert store.release_lost() == (1, Spend(1000, 50))
        assert store.spent() == COST + Spend(requests=1)  # it was sent all the same
        assert store.release_lost() == (0, Spend())


def test_failures_cost_what_they_cost(tmp_path: Path) -> None:
    async def fail(store: Store) -> None:
        store.add([("a", request("a"))])
        await store.failed(await store.reserve("a", 1, WORST), "refunded", Spend(requests=1), "rate_limited: slow down")
        await store.failed(await store.reserve("a", 2, WORST), "lost", WORST, "timeout: nothing came")
        await store.give_up("a", "timeout: nothing came")

    path = tmp_path / "requests.sqlite"
    with_store(path, fail)
    with Store(path) as store:
        assert store.spent() == Spend(1000, 50, 2)
        known = store.known()["a"]
        assert (known.state, known.reason) == ("bad", "timeout: nothing came")


def test_giving_up_never_takes_an_answer_back(tmp_path: Path) -> None:
    async def work(store: Store) -> None:
        await pay(store, "a")
        await store.give_up("a", "late failure")

    path = tmp_path / "requests.sqlite"
    with_store(path, work)
    with Store(path) as store:
        assert store.known()["a"].state == "answered"


def test_writes_of_many_tasks_share_commits(tmp_path: Path) -> None:
    async def work(store: Store) -> int:
        store.add([(f"r{i}", request(str(i))) for i in range(200)])
        before = store._connection.total_changes
        await asyncio.gather(*(store.reserve(f"r{i}", None, WORST) for i in range(200)))
        assert store._connection.total_changes - before == 200
        return int(store._connection.execute("PRAGMA wal_checkpoint").fetchone()[1])

    pages = with_store(tmp_path / "requests.sqlite", work)
    assert pages < 100  # one commit a write would have put well over 400 pages into the log


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(["answer", "refund", "lose", "leave"]), max_size=12), st.booleans())
def test_the_sum_is_right_after_any_history(
    tmp_path_factory: pytest.TempPathFactory, steps: list[str], reopen: bool
) -> None:
    path = tmp_path_factory.mktemp("run") / "requests.sqlite"

    async def work(store: Store) -> None:
        for number, step in enumerate(steps):
            name = f"r{number}"
            store.add([(name, request(name))])
            attempt = await store.reserve(name, None, WORST)
            if step == "answer":
                await store.answered(attempt, name, RAW, Usage(1, 1), COST, replies=1, reason=None)
            elif step != "leave":
                outcome, actual = ("refunded", Spend()) if step == "refund" else ("lost", WORST)
                await store.failed(attempt, outcome, actual, step)  # type: ignore[arg-type]

    with_store(path, work)
    with Store(path) as store:
        expected = sum(({"answer": COST, "refund": Spend()}.get(step, WORST) for step in steps), Spend())
        assert store.spent() == expected
        assert sum(known.state == "answered" for known in store.known().values()) == steps.count("answer")
        assert store.release_lost()[0] == steps.count("lose") + steps.count("leave")


def test_whatever_a_sibling_run_paid_for_is_copied_bad_answers_too(tmp_path: Path) -> None:
    theirs, ours = tmp_path / "one" / "requests.sqlite", tmp_path / "two" / "requests.sqlite"
    theirs.parent.mkdir()
    ours.parent.mkdir()

    async def fill(store: Store) -> None:
        await pay(store, "good")
        await pay(store, "empty", reason="empty")
        store.add([("open", request("open"))])

    with_store(theirs, fill)
    with Store(ours) as store:
        assert list(siblings(ours)) == [theirs]
        store.add([(name, request(name)) for name in ("good", "empty", "open", "new")])
        assert store.copy_answers(theirs, ["good", "empty", "open", "new"]) == ["good", "empty"]
        assert store.known()["empty"].reason == "empty"
        paid = store.paid("good")
        assert paid is not None and (paid.raw, paid.pico, paid.origin) == (RAW, 0, "one")
        assert store.spent() == Spend()
        with Store(theirs):  # in use over there: reading still works
            assert store.copy_answers(theirs, ["good"]) == ["good"]
    theirs.write_bytes(b"no database at all" * 100)
    with Store(ours) as store:
        assert store.copy_answers(theirs, ["good"]) == []


def test_two_processes_cannot_collect_into_one_run(tmp_path: Path) -> None:
    with Store(tmp_path / "requests.sqlite"), pytest.raises(BadInput, match="another process collects into this run"):
        Store(tmp_path / "requests.sqlite")
    Store(tmp_path / "requests.sqlite").__exit__(None, None, None)


@pytest.mark.parametrize("where", [0, 100, 4096 + 3, 3 * 4096 + 1])
def test_a_damaged_file_is_said_to_be_damaged(tmp_path: Path, where: int) -> None:
    path = tmp_path / "requests.sqlite"

    async def fill(store: Store) -> None:
        for number in range(40):
            await pay(store, f"r{number}", RAW + b" " * 500)

    with_store(path, fill)
    with open(path, "r+b") as file:
        file.seek(where)
        file.write(b"\x5a" * 64)
    with pytest.raises(BadInput, match=r"requests.sqlite: damaged .* move it away to start again"):
        Store(path)


def test_a_damaged_answer_is_found_when_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "requests.sqlite"
    with_store(path, lambda store: pay(store, "a" * 20, b'{"choices": ["' + b"x" * 10_000 + b'"]}'))
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE attempts SET answer = substr(answer, 1, length(answer) - 4)")
    connection.close()
    with Store(path) as store, pytest.raises(BadInput, match=r"damaged \(the answer to aaaaaaaaaaaa"):
        store.paid("a" * 20)


def test_a_file_of_something_else_or_of_the_future_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "requests.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE notes (text)")
    connection.close()
    with pytest.raises(BadInput, match="belongs to another program"):
        Store(path)
    other = tmp_path / "b" / "requests.sqlite"
    other.parent.mkdir()
    Store(other).__exit__(None, None, None)
    with sqlite3.connect(other) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(BadInput, match="written by a later spiritsafe"):
        Store(other)


def test_a_full_disk_is_one_clear_line_and_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "requests.sqlite"

    async def fill(store: Store) -> None:
        await pay(store, "first")
        pages = store._connection.execute("PRAGMA page_count").fetchone()[0]
        store._connection.execute(f"PRAGMA max_page_count = {pages}")

        async def pay_many() -> None:
            for number in range(50):
                await pay(store, f"r{number}", RAW + bytes(range(33, 126)) * 50)

        with pytest.raises(StoreError, match=r"requests.sqlite: the disk is full; .* free space and run again"):
            await pay_many()
        assert store.disk_was_full

    with_store(path, fill)
    with Store(path) as store:
        assert store.paid("first") is not None


def test_ballast_makes_room_for_answers_already_paid(tmp_path: Path) -> None:
    path = tmp_path / "requests.sqlite"
    ballast = tmp_path / ".requests.sqlite.ballast"

    class FullWhileBallastIsAboard(sqlite3.Connection):
        def executemany(self, sql: str, *args: Any) -> sqlite3.Cursor:
            if sql.startswith("UPDATE attempts SET state = 'settled'") and ballast.exists():
                raise sqlite3.OperationalError("database or disk is full")
            return super().executemany(sql, *args)

    async def work(store: Store) -> None:
        store._connection.close()
        store._connection = sqlite3.connect(
            path, factory=FullWhileBallastIsAboard, isolation_level=None, check_same_thread=False
        )
        assert ballast.stat().st_size == 8 << 20
        await pay(store, "a")
        assert store.disk_was_full and not ballast.exists()

    with_store(path, work)
    with Store(path) as store:
        assert store.paid("a") is not None
    assert not ballast.exists()
