"""Redis killed, stopped, restarted empty or with old data, while requests run: nothing is forgotten or counted twice."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

import services
from limits_kit import NOON, USD, Book, bucket, guard_config, identity
from spiritsafe.serve._limits import Bucket, Denied, Granted, RedisLimiter, Ticket, buckets_for, rate_headers
from spiritsafe.serve._types import Demand
from spiritsafe.state import Unavailable

pytestmark = pytest.mark.timeout(120)

DAY_1 = "2026-11-24"
Opener = Callable[..., Awaitable[RedisLimiter]]


@pytest.fixture
def server() -> Iterator[services.Service]:
    """A Redis of this test's own."""
    with services.running(services.redis_service) as service:
        yield service


@pytest.fixture
async def open_limiter(server: services.Service) -> AsyncIterator[Opener]:
    async with AsyncExitStack() as stack:

        async def open_(book: Book, **options: Any) -> RedisLimiter:
            known: dict[str, Any] = {"worker": "w", "grace_s": 0.3, "beat_s": 0.02, "flush": book.flush}
            url = f"redis://127.0.0.1:{server.port}/0"
            limiter = await RedisLimiter.open(url, totals=book, **known | options)
            stack.push_async_callback(limiter.aclose)
            return limiter

        yield open_


def money(nano: int, *, size: int = USD, window: str = DAY_1, open_when_down: bool = False) -> tuple[Bucket, ...]:
    return (
        bucket("usd_per_day", nano, size, window=window, open_when_down=open_when_down),
        bucket("concurrency", 1, 10**6, open_when_down=open_when_down),
    )


async def until(true: Callable[[], bool], seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.005)


async def used(limiter: RedisLimiter, key: str = "usd_per_day:account:a") -> tuple[int, int]:
    """What Redis has as settled and as reserved."""
    raw = await limiter._store.ask("GET", limiter._store.bucket_prefix(limiter._store.generation or "") + key)
    _, settled, held = raw.decode().split()
    return int(settled), int(held)


async def slots(limiter: RedisLimiter) -> int:
    key = limiter._store.bucket_prefix(limiter._store.generation or "") + "concurrency:account:a"
    return int(await limiter._store.ask("ZCARD", key))


async def restart(server: services.Service, *limiters: RedisLimiter) -> None:
    """Kill it, start it again, and wait until these limiters are in business again."""
    before = [limiter._store.generation for limiter in limiters]
    await asyncio.to_thread(server.kill)
    await asyncio.to_thread(server.start)
    for limiter, generation in zip(limiters, before, strict=True):
        await until(lambda limiter=limiter, old=generation: limiter._store.generation not in (None, old))  # type: ignore[misc]


# While it is away


async def test_a_closed_limit_refuses_and_says_when_to_come_back(
    server: services.Service, open_limiter: Opener
) -> None:
    limiter = await open_limiter(Book())
    server.kill()
    outcome = await limiter.reserve(money(1), "a")
    assert isinstance(outcome, Denied)
    assert (outcome.status, outcome.code, outcome.rule) == (503, "limits_unavailable", "usd_per_day")
    assert dict(rate_headers(outcome))[b"retry-after"] == b"1"
    assert not limiter.healthy


async def test_an_open_limit_lets_through_and_counts_when_redis_is_back(
    server: services.Service, open_limiter: Opener
) -> None:
    book = Book()
    limiter = await open_limiter(book)
    server.kill()
    await until(lambda: not limiter.healthy)
    outcomes = [await limiter.reserve(money(100, open_when_down=True), f"r{n}") for n in range(3)]
    tickets = [outcome.ticket for outcome in outcomes if isinstance(outcome, Granted)]
    assert len(tickets) == limiter.untracked == 3
    assert await limiter.settle(tickets[0], Demand(nano=70)) == ()
    book.append("r0", tickets[0].buckets, 70)  # one is over and in the ledger
    await limiter.settle(tickets[1], Demand(nano=60))  # one is over, and its row is lost with this test's patience
    server.start()
    await until(lambda: limiter.healthy and not limiter._dues._due)
    assert await used(limiter) == (130, 100)  # the third still runs
    await limiter.settle(tickets[2], Demand(nano=50))
    assert await used(limiter) == (180, 0)
    assert await slots(limiter) == 0


async def test_what_an_open_limit_let_through_a_short_absence_is_counted_once(
    server: services.Service, open_limiter: Opener
) -> None:
    """Redis comes back with all it held, and the ledger has the row by then."""
    book = Book()
    limiter = await open_limiter(book, timeout_s=0.1)
    before = await limiter.reserve(money(300), "before")
    assert isinstance(before, Granted)
    assert server.process is not None
    os.kill(server.process.pid, signal.SIGSTOP)
    outcome = await limiter.reserve(money(100, open_when_down=True), "a")
    running = await limiter.reserve(money(10, open_when_down=True), "b")
    assert isinstance(outcome, Granted)
    assert isinstance(running, Granted)
    for granted, nano in ((outcome, 70), (before, 200)):
        book.append(granted.ticket.id, granted.ticket.buckets, nano)
        await book.flush()
        await limiter.settle(granted.ticket, Demand(nano=nano))
    os.kill(server.process.pid, signal.SIGCONT)
    await until(lambda: limiter.healthy and not limiter._dues._due)
    await until(lambda: running.ticket.tracked)
    assert await used(limiter) == (270, 10)


async def test_a_row_that_is_in_the_ledger_before_it_is_settled_counts_once(open_limiter: Opener) -> None:
    book = Book()
    limiter = await open_limiter(book)
    outcome = await limiter.reserve(money(300), "a")
    assert isinstance(outcome, Granted)
    book.append("a", outcome.ticket.buckets, 250)
    await book.flush()
    # another plan of the same account is compared with the ledger
    other = await limiter.reserve(money(5), "b")
    assert isinstance(other, Granted)
    await limiter.settle(outcome.ticket, Demand(nano=250))
    assert await used(limiter) == (250, 5)


async def test_one_closed_limit_is_enough_to_refuse_and_a_shadow_is_not(
    server: services.Service, open_limiter: Opener
) -> None:
    limiter = await open_limiter(Book())
    config = guard_config(
        tiers={"default": {"usd_per_day": 1, "concurrency": 5, "shadow": ["usd_per_day"]}},
        limits={"when_state_is_down": {"concurrency": "open"}},
    )
    closed = guard_config(
        tiers={"default": {"usd_per_day": 1, "concurrency": 5}}, limits={"when_state_is_down": {"concurrency": "open"}}
    )
    server.kill()
    for number, (each, expected) in enumerate(((config, Granted), (closed, Denied))):
        plan = buckets_for(each, identity(), "m", NOON)
        assert isinstance(await limiter.reserve(plan.demand(Demand(nano=1)), str(number)), expected)


async def test_a_redis_that_hangs_is_away_after_the_timeout_and_then_at_once(
    server: services.Service, open_limiter: Opener
) -> None:
    undone: list[str] = []
    limiter = await open_limiter(Book(), timeout_s=0.1, undone=undone.append)
    same = money(100)
    first = await limiter.reserve(same, "before")
    assert isinstance(first, Granted)
    assert server.process is not None
    os.kill(server.process.pid, signal.SIGSTOP)
    try:
        outcomes = await asyncio.gather(*(limiter.reserve(same, f"during{n}") for n in range(20)))
        # Redis may yet do what it was asked
        assert all(isinstance(outcome, Denied) and outcome.undecided for outcome in outcomes)
        assert len(limiter._dues._due) == 20
        after = await limiter.reserve(same, "after")
        assert isinstance(after, Denied) and not after.undecided  # at once: nobody asks it again
        assert len(limiter._dues._due) == 20 and not undone
        assert await limiter.settle(first.ticket, Demand(nano=40)) == ()
    finally:
        os.kill(server.process.pid, signal.SIGCONT)
    # what it was asked while it hung it may do now; nobody waits for that, so it is undone
    await until(lambda: limiter.healthy and not limiter._dues._due)
    await asyncio.sleep(0.1)
    assert await used(limiter) == (40, 0)
    assert await slots(limiter) == 0
    assert sorted(undone) == sorted(f"during{n}" for n in range(20))


async def test_limits_hold_when_a_guard_starts_without_redis(server: services.Service, open_limiter: Opener) -> None:
    server.kill()
    limiter = await open_limiter(Book(), wait_s=0.05)
    assert not limiter.healthy
    assert isinstance(await limiter.reserve(money(1), "a"), Denied)
    with pytest.raises(Unavailable, match="Redis"):
        await limiter.recover({"id": "x", "generation": "g", "tracked": True, "buckets": []}, Demand())
    server.start()
    await until(lambda: limiter.healthy)
    assert isinstance(await limiter.reserve(money(1), "b"), Granted)


# After it has lost what it held


async def test_a_redis_restarted_empty_forgets_nothing(server: services.Service, open_limiter: Opener) -> None:
    book = Book()
    one, two = await open_limiter(book), await open_limiter(book)
    tickets = {}
    for limiter, name, nano in ((one, "a", 100), (two, "b", 200), (one, "c", 400), (two, "d", 50)):
        outcome = await limiter.reserve(money(nano), name)
        assert isinstance(outcome, Granted)
        tickets[name] = outcome.ticket
    await one.settle(tickets["a"], Demand(nano=90))
    book.append("a", tickets["a"].buckets, 90)  # not yet in the database when Redis goes
    restarting = asyncio.create_task(restart(server, one, two))
    await until(lambda: not two.healthy)
    await two.settle(tickets["d"], Demand(nano=30))  # over while Redis is away
    book.append("d", tickets["d"].buckets, 30)
    await restarting
    await until(lambda: not two._dues._due)
    assert await used(one) == (120, 600)
    assert await slots(one) == 2
    await two.settle(tickets["b"], Demand(nano=150))
    await one.refund(tickets["c"])
    assert await used(one) == (270, 0)
    assert await slots(one) == 0
    assert isinstance(await one.reserve(money(USD - 270), "rest"), Granted)


async def test_until_it_is_seeded_again_nothing_is_judged(server: services.Service, open_limiter: Opener) -> None:
    book = Book()
    limiter = await open_limiter(book, grace_s=0.5)
    restarting = asyncio.create_task(restart(server, limiter))
    await until(lambda: not limiter.healthy)
    await until(lambda: limiter._store.line.connected)
    assert isinstance(await limiter.reserve(money(1), "a"), Denied)
    await restarting
    assert isinstance(await limiter.reserve(money(1), "b"), Granted)


async def test_a_flushed_redis_is_noticed_by_the_next_request(open_limiter: Opener) -> None:
    book = Book()
    limiter = await open_limiter(book, beat_s=30)
    outcome = await limiter.reserve(money(100), "a")
    assert isinstance(outcome, Granted)
    await limiter._store.ask("FLUSHALL")
    assert isinstance(await limiter.reserve(money(1), "b"), Denied)
    await until(lambda: limiter.healthy)
    assert await used(limiter) == (0, 100)


async def test_a_redis_restarted_with_old_data_is_seeded_like_an_empty_one(
    server: services.Service, open_limiter: Opener
) -> None:
    """As after a crash between two writes of its file, or when an old replica takes over."""
    book = Book()
    live, dead = await open_limiter(book), await open_limiter(book)
    early = await live.reserve(money(100), "early")
    gone = await live.reserve(money(70), "gone")
    orphan = await dead.reserve(money(40), "orphan")
    assert isinstance(early, Granted)
    assert isinstance(gone, Granted)
    assert isinstance(orphan, Granted)
    await live._store.ask("SAVE")
    # what follows is not in the file
    late = await live.reserve(money(300), "late")
    assert isinstance(late, Granted)
    await live.settle(early.ticket, Demand(nano=80))
    book.append("early", early.ticket.buckets, 80)
    await live.refund(gone.ticket)
    assert dead._task is not None
    dead._task.cancel()
    dead._store.line.close()
    await restart(server, live)
    assert await used(live) == (80, 340)  # the dead worker's forty are in the file, and stay reserved
    await live.recover(orphan.ticket.to_facts(), Demand(nano=25))
    await live.recover(orphan.ticket.to_facts(), Demand(nano=25))
    assert await used(live) == (105, 300)


async def test_a_reservation_that_redis_lost_with_its_worker_is_charged_from_the_journal_once(
    server: services.Service, open_limiter: Opener
) -> None:
    book = Book()
    live, dead = await open_limiter(book), await open_limiter(book)
    orphans = [await dead.reserve(money(100), f"o{n}") for n in range(2)]
    facts = [outcome.ticket.to_facts() for outcome in orphans if isinstance(outcome, Granted)]
    assert dead._task is not None
    dead._task.cancel()
    dead._store.line.close()
    await restart(server, live)
    await live.reserve(money(500), "runs")
    # one whose row is in the ledger before it is recovered, as the guard does it; one whose row is not
    book.append("o0", (money(0))[:1], 60)
    await book.flush()
    for _ in range(2):
        await live.recover(facts[0], Demand(nano=60))
        await live.recover(facts[1], Demand(nano=50))
    assert await used(live) == (110, 500)


async def test_what_a_dead_worker_was_about_to_reserve_is_given_back_whether_it_came_to_that_or_not(
    open_limiter: Opener,
) -> None:
    """What the journal says before anything is reserved."""
    live, dead = await open_limiter(Book()), await open_limiter(Book())
    facts = [Ticket(f"r{n}", money(100), dead.generation).to_facts() for n in range(2)]
    assert isinstance(await dead.reserve(money(100), "r0"), Granted)
    assert await used(live) == (0, 100) and await slots(live) == 1
    for _ in range(2):
        for each in facts:
            await live.recover(each, Demand())
    assert await used(live) == (0, 0) and await slots(live) == 0
    with pytest.raises(ValueError, match="holds or held"):  # if Redis comes to it late, it is too late
        await dead.reserve(money(100), "r1")
    assert await used(live) == (0, 0) and await slots(live) == 0


async def test_a_worker_that_missed_the_seeding_tells_what_it_holds_afterwards(
    server: services.Service, open_limiter: Opener
) -> None:
    book = Book()
    leader, late = await open_limiter(book), await open_limiter(book)
    outcomes = [await late.reserve(money(100), f"r{n}") for n in range(3)]
    tickets = [outcome.ticket for outcome in outcomes if isinstance(outcome, Granted)]
    assert late._task is not None
    late._task.cancel()  # cut off from Redis, but alive
    await restart(server, leader)
    await late.settle(tickets[0], Demand(nano=10))
    book.append("r0", tickets[0].buckets, 10)
    await late.settle(tickets[1], Demand(nano=20))
    await book.flush()
    late._task = asyncio.create_task(late._run())
    await until(lambda: late.healthy and not late._dues._due)
    await until(lambda: tickets[2].generation == late._store.generation)
    assert await used(leader) == (30, 100)
    await late.settle(tickets[2], Demand(nano=30))
    assert await used(leader) == (60, 0)


async def test_a_leader_that_dies_is_replaced(server: services.Service, open_limiter: Opener) -> None:
    limiter = await open_limiter(Book(), wait_s=0.2, grace_s=0.05)
    await until(lambda: limiter.healthy)
    # another worker began to lead, and died
    await limiter._store.ask("SET", limiter._store.leader_key, "somebody", "PX", 400)
    await limiter._store.ask("DEL", limiter._store.generation_key)
    assert isinstance(await limiter.reserve(money(1), "a"), Denied)
    await until(lambda: limiter._seeding.joined == "somebody")
    assert not limiter.healthy
    await until(lambda: limiter.healthy)


async def test_what_joins_while_the_leader_reads_the_ledger_is_not_left_out(open_limiter: Opener) -> None:
    book = Book()
    limiter = await open_limiter(book)
    store = limiter._store
    reads = 0

    class Slow(Book):
        async def __call__(self, pairs: Any, ids: Any) -> Any:
            nonlocal reads
            reads += 1
            if reads == 1:  # another worker is just in time
                round_ = limiter._seeding.joined
                keys = [*limiter._seeding._keys(str(round_)), f"{store.ticket_prefix}x"]
                words = [str(round_), "other", "", 60_000, "1", "x", 1, "usd_per_day:account:a", 1, 77, DAY_1]
                assert await store.run("join", keys, words) == [1]
            return await super().__call__(pairs, ids)

    limiter._seeding._totals = Slow()
    await store.ask("DEL", store.generation_key)
    await until(lambda: not limiter.healthy)
    await until(lambda: limiter.healthy)
    assert reads == 2
    assert await used(limiter) == (0, 77)


async def test_nothing_begins_without_the_ledger(server: services.Service, open_limiter: Opener) -> None:
    book = Book()
    limiter = await open_limiter(book, grace_s=0.05)
    outcome = await limiter.reserve(money(100), "a")
    assert isinstance(outcome, Granted)
    book.fails = Unavailable("the database is away")
    restarting = asyncio.create_task(restart(server, limiter))
    await until(lambda: not limiter.healthy)
    await until(lambda: limiter._store.line.connected)
    await asyncio.sleep(0.4)  # many grace periods
    assert not limiter.healthy
    assert isinstance(await limiter.reserve(money(1), "b"), Denied)
    book.fails = None
    await restarting
    assert await used(limiter) == (0, 100)


async def test_under_load_with_redis_killed_again_and_again_the_cap_holds_and_the_sums_agree(
    server: services.Service, open_limiter: Opener
) -> None:
    book = Book()
    limiters = [await open_limiter(book, grace_s=0.2) for _ in range(3)]
    rng = random.Random(3)
    cap, released, running, stop = 40_000, 0, 0, False

    async def client(number: int) -> None:
        nonlocal released, running
        count = 0
        while not stop:
            count += 1
            limiter, worst, name = limiters[number % 3], rng.randrange(1, 40), f"{number}.{count}"
            buckets = money(worst, size=cap)
            outcome = await limiter.reserve(buckets, name)
            if isinstance(outcome, Denied):
                await asyncio.sleep(0.02)
                continue
            running += worst
            await asyncio.sleep(rng.random() * 0.1)
            cost = rng.randrange(0, worst + 1) if rng.random() < 0.9 else 0
            released, running = released + cost, running - worst
            assert released + running <= cap
            if cost:
                book.append(name, buckets, cost)
                await limiter.settle(outcome.ticket, Demand(nano=cost))
            else:
                await limiter.refund(outcome.ticket)

    async def commit() -> None:
        while not stop:
            await asyncio.sleep(0.05)
            await book.flush()

    work = [asyncio.create_task(client(number)) for number in range(64)]
    work.append(asyncio.create_task(commit()))
    for _ in range(4):
        await asyncio.sleep(0.5)
        await asyncio.to_thread(server.kill)
        await asyncio.sleep(0.1)
        await asyncio.to_thread(server.start)
        await until(lambda: all(limiter.healthy for limiter in limiters))
    await asyncio.sleep(0.3)
    stop = True
    await asyncio.gather(*work)
    await until(lambda: all(limiter.healthy and not limiter._dues._due for limiter in limiters))
    await book.flush()
    assert released == sum(book.rows.values())
    assert released > 1000  # it did work in between
    assert await used(limiters[0]) == (released, 0)
    assert await slots(limiters[0]) == 0
    with contextlib.suppress(asyncio.CancelledError):
        assert isinstance(await limiters[1].reserve(money(cap - released + 1, size=cap), "over"), Denied)
