"""Limits in Redis: the same answers as in memory, step by step; tickets that close once; nothing that grows for ever."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
import redis.asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from limits_kit import DAY, NOON, USD, Clock, Spent, bucket, identity, tier_config
from spiritsafe.serve._limits import (
    Bucket,
    Denied,
    Granted,
    MemoryLimiter,
    RedisLimiter,
    Total,
    buckets_for,
)
from spiritsafe.serve._types import Demand


async def nothing() -> None:
    """A ledger with nothing to flush."""


Opener = Callable[..., Awaitable[RedisLimiter]]


@asynccontextmanager
async def opener(port: int) -> AsyncIterator[Opener]:
    """Opens limiters under a prefix of their own, and closes them."""
    prefix = uuid.uuid4().hex
    async with AsyncExitStack() as stack:

        async def open_(spent: Any = None, **options: Any) -> RedisLimiter:
            known: dict[str, Any] = {"prefix": prefix, "grace_s": 0.05, "beat_s": 0.02, "worker": "w", "flush": nothing}
            url = f"redis://127.0.0.1:{port}/0"
            limiter = await RedisLimiter.open(url, totals=spent or Spent(), **known | options)
            stack.push_async_callback(limiter.aclose)
            assert limiter.healthy
            return limiter

        yield open_


@pytest.fixture
async def open_limiter(redis_port: int) -> AsyncIterator[Opener]:
    async with opener(redis_port) as open_:
        yield open_


# Equal to memory


LIMITS: dict[str, Any] = {
    "requests_per_min": 8, "tokens_per_min": 1000, "input_tokens_per_min": 700, "output_tokens_per_min": 500,
    "requests_per_day": 30, "tokens_per_day": 9000, "usd_per_day": "0.000002", "usd_per_month": "0.000009",
    "usd_lifetime": 1, "concurrency": 4,
}  # fmt: skip
CONFIG = tier_config(**LIMITS)
SHADOWED = tier_config(**LIMITS, shadow=["output_tokens_per_min", "usd_per_day", "concurrency"])

step = st.one_of(
    st.tuples(st.just("reserve"), st.integers(0, 2), st.integers(0, 300), st.integers(0, 250), st.integers(0, 900)),
    st.tuples(st.just("settle"), st.integers(0, 50), st.integers(0, 1200)),
    st.tuples(st.just("refund"), st.integers(0, 50)),
    st.tuples(st.just("pass"), st.sampled_from([1, 7, 100, 1000, 9000, 61_000, 8_000_000, 44_000_000])),
    st.tuples(st.just("back"), st.sampled_from([1, 60_000, 90_000_000])),
    st.tuples(st.just("seed"), st.integers(0, 2), st.integers(0, 3000)),
)


class Both:
    """The two limiters, told the same. Time is the same too: rates and windows go by one clock."""

    def __init__(self, shared: RedisLimiter, clock: Clock) -> None:
        self.clock, self.shared = clock, shared
        self.memory = MemoryLimiter(clock=clock.wall_ns, wall=clock.wall, lease_s=shared._store.lease_ms / 1000)
        self.memory._sweep_at = 2**62  # a clock that goes back tells a bucket that was dropped from one that was not
        self.run = uuid.uuid4().hex[:8]
        self.people = [identity(f"{self.run}.{n}", key_id=f"k.{self.run}.{n}") for n in range(2)]
        self.people.append(identity(f"{self.run}.0", key_id=f"k.{self.run}.x"))
        self.open: list[tuple[Any, Any]] = []
        self.count = 0

    async def do(self, what: str, *args: int) -> None:
        await getattr(self, f"do_{what}")(*args)

    async def do_reserve(self, who: int, tokens_in: int, tokens_out: int, nano: int) -> None:
        self.count += 1
        name = f"{self.run}.{self.count}"
        outcomes = []
        for limiter in (self.memory, self.shared):
            # plans of their own: what a limiter notes on a limit must not help the other
            config = SHADOWED if who == 1 else CONFIG
            plan = buckets_for(config, self.people[who], f"{limiter is self.memory}", self.clock.now)
            outcomes.append(await limiter.reserve(plan.demand(Demand(tokens_in, tokens_out, nano)), name))
        one, two = outcomes
        assert type(one) is type(two)
        if isinstance(one, Granted):
            assert (one.shadowed, one.levels, one.at) == (two.shadowed, two.levels, two.at)
            self.open.append((one.ticket, two.ticket))
        else:
            said = [
                (d.rule, d.subject, d.name, d.status, d.retry_after_s, d.message, d.code, d.levels, d.at)
                for d in outcomes
            ]
            assert said[0] == said[1]

    async def do_settle(self, which: int, thousandths: int) -> None:
        if self.open:
            one, two = self.open.pop(which % len(self.open))
            amounts = {b.limit.rule: b.amount for b in one.buckets}
            actual = Demand(
                amounts["input_tokens_per_min"] * thousandths // 1000,
                amounts["output_tokens_per_min"] * thousandths // 1000,
                amounts["usd_per_day"] * thousandths // 1000,
            )
            assert await self.memory.settle(one, actual) == await self.shared.settle(two, actual)
            if which % 5 == 0:
                assert await self.memory.settle(one, actual) == await self.shared.settle(two, actual) == ()

    async def do_refund(self, which: int) -> None:
        if self.open:
            one, two = self.open.pop(which % len(self.open))
            await self.memory.refund(one)
            await self.shared.refund(two)

    async def do_pass(self, ms: int) -> None:
        self.clock.wall_ms += ms

    async def do_back(self, ms: int) -> None:
        self.clock.wall_ms -= ms

    async def do_seed(self, who: int, nano: int) -> None:
        totals = {(f"account:{self.people[who].account}", "all"): Total(nano * 1000)}
        await self.memory.seed(totals)
        await self.shared.seed(totals)


@pytest.mark.parametrize("count", [5000])
def test_a_long_random_history_gets_the_same_answers(redis_port: int, count: int) -> None:
    async def run() -> None:
        clock = Clock()
        rng = random.Random(7)
        async with opener(redis_port) as open_:
            both = Both(await open_(clock=clock.wall_ns, lease_s=3600), clock)
            for _ in range(count):
                what = rng.choices(["reserve", "settle", "refund", "pass", "back"], [8, 5, 1, 5, 0.2])[0]
                args = {
                    "reserve": (rng.randrange(3), rng.randrange(300), rng.randrange(250), rng.randrange(900)),
                    "settle": (rng.randrange(50), rng.randrange(1200)),
                    "refund": (rng.randrange(50),),
                    "pass": (rng.choice([1, 7, 100, 1000, 9000, 61_000, 8_000_000]),),
                    "back": (rng.choice([1, 60_000, 90_000_000]),),
                }[what]
                await both.do(what, *args)

    asyncio.run(run())


@given(history=st.lists(step, max_size=60))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_history_gets_the_same_answers(redis_port: int, history: list[Any]) -> None:
    async def run() -> None:
        clock = Clock()
        async with opener(redis_port) as open_:
            both = Both(await open_(clock=clock.wall_ns, lease_s=3600), clock)
            for what, *args in history:
                await both.do(what, *args)

    asyncio.run(run())


@pytest.mark.parametrize("size", [60, 1000, 10**11])
def test_a_rate_is_the_same_to_the_unit(redis_port: int, size: int) -> None:
    """Its minima included, beyond the number where they are merged."""

    async def run() -> None:
        clock, rng = Clock(), random.Random(size)
        async with opener(redis_port) as open_:
            shared = await open_(clock=clock.wall_ns)
            memory = MemoryLimiter(clock=clock.wall_ns, wall=clock.wall)
            memory._sweep_at = 2**62
            open_tickets: list[Any] = []
            most = 0
            for number in range(2500):
                clock.pass_(rng.choice([0, 0.001, 0.1, 0.5, 3]))
                if rng.random() < (0.9 if number % 400 < 100 else 0.4):
                    amount = rng.randrange(4) * size // 60
                    one = (bucket("tokens_per_min", amount, size, name="rate"),)
                    outcomes = [await limiter.reserve(one, f"{number}") for limiter in (memory, shared)]
                    assert isinstance(outcomes[0], Granted) == isinstance(outcomes[1], Granted)
                    if isinstance(outcomes[0], Granted):
                        open_tickets.append((amount, *(outcome.ticket for outcome in outcomes)))
                elif open_tickets:
                    amount, one_ticket, two_ticket = open_tickets.pop(rng.randrange(len(open_tickets)))
                    taken = amount * rng.choice([0, 0, 500, 1000, 1100]) // 1000
                    await memory.settle(one_ticket, Demand(taken))
                    await shared.settle(two_ticket, Demand(taken))
                rate = memory._entries.get("tokens_per_min:account:rate")
                raw = await shared._store.ask(
                    "GET", shared._store.bucket_prefix(shared._store.latest) + "tokens_per_min:account:rate"
                )
                if rate is not None and raw is not None and rate.at == int(raw.split()[1]):
                    numbers = [
                        rate.level,
                        rate.at,
                        rate.born,
                        rate.count,
                        rate.fresh,
                        *(n for low in rate.lows for n in low),
                    ]
                    assert [int(n) for n in raw.split()] == numbers
                    most = max(most, len(rate.lows))
            assert most == 16

    asyncio.run(run())


# One state for many processes


async def test_two_limiters_share_every_limit(open_limiter: Opener) -> None:
    one, two = await open_limiter(), await open_limiter()
    config = tier_config(usd_per_day=1, concurrency=3)
    plan = buckets_for(config, identity(), "m", NOON)
    outcomes = await asyncio.gather(
        *(
            limiter.reserve(plan.demand(Demand(nano=USD // 4)), f"{n}{limiter is one}")
            for n in range(6)
            for limiter in (one, two)
        )
    )
    granted = [outcome for outcome in outcomes if isinstance(outcome, Granted)]
    assert len(granted) == 3


async def test_sixty_four_tasks_on_two_limiters_cannot_overshoot_a_dollar(open_limiter: Opener) -> None:
    limiters = [await open_limiter(timeout_s=5), await open_limiter(timeout_s=5)]
    plan = buckets_for(tier_config(usd_per_day=1), identity(), "m", NOON)
    rng = random.Random(1)
    released = 0

    async def client(number: int) -> None:
        nonlocal released
        limiter = limiters[number % 2]
        for attempt in range(10):
            worst = rng.randrange(1, 16_000_000)
            outcome = await limiter.reserve(plan.demand(Demand(nano=worst)), f"{number}.{attempt}")
            if isinstance(outcome, Granted):
                cost = rng.randrange(0, worst + 1)
                released += cost
                await limiter.settle(outcome.ticket, Demand(nano=cost))

    await asyncio.gather(*(client(number) for number in range(64)))
    assert released <= USD
    assert isinstance(await limiters[0].reserve(plan.demand(Demand(nano=USD - released)), "the rest"), Granted)
    assert isinstance(await limiters[1].reserve(plan.demand(Demand(nano=1)), "one more"), Denied)


async def test_a_ticket_closes_once_whoever_closes_it(open_limiter: Opener) -> None:
    one, two = await open_limiter(), await open_limiter()
    plan = buckets_for(tier_config(usd_per_day=1), identity(), "m", NOON)
    outcome = await one.reserve(plan.demand(Demand(nano=USD)), "a")
    assert isinstance(outcome, Granted)
    facts = outcome.ticket.to_facts()
    await two.recover(facts, Demand(nano=USD // 2))
    await two.recover(facts, Demand(nano=USD // 2))
    assert await one.settle(outcome.ticket, Demand(nano=USD // 2)) == ()
    assert isinstance(await one.reserve(plan.demand(Demand(nano=USD // 2 + 1)), "b"), Denied)
    assert isinstance(await one.reserve(plan.demand(Demand(nano=USD // 2)), "c"), Granted)


async def test_a_dead_workers_slots_free_themselves_and_its_money_stays_reserved(open_limiter: Opener) -> None:
    clock = Clock()
    dead, live = (
        await open_limiter(clock=clock.wall_ns, lease_s=100),
        await open_limiter(clock=clock.wall_ns, lease_s=100),
    )
    plan = buckets_for(tier_config(usd_per_day=1, concurrency=1), identity(), "m", NOON)
    outcome = await dead.reserve(plan.demand(Demand(nano=USD // 2)), "a")
    assert isinstance(outcome, Granted)
    clock.pass_(99.999)
    assert isinstance(await live.reserve(plan.demand(Demand(nano=1)), "b"), Denied)
    clock.pass_(0.001)
    assert isinstance(await live.reserve(plan.demand(Demand(nano=USD // 2 + 1)), "c"), Denied)
    assert isinstance(await live.reserve(plan.demand(Demand(nano=USD // 2)), "d"), Granted)
    await live.recover(outcome.ticket.to_facts(), Demand(nano=USD // 4))
    clock.pass_(100)
    assert isinstance(await live.reserve(plan.demand(Demand(nano=USD // 4 + 1)), "e"), Denied)
    assert isinstance(await live.reserve(plan.demand(Demand(nano=USD // 4)), "f"), Granted)


async def test_what_nobody_accounts_for_within_a_day_is_given_back(open_limiter: Opener) -> None:
    clock = Clock()
    dead, live = await open_limiter(clock=clock.wall_ns), await open_limiter(clock=clock.wall_ns)
    plan = buckets_for(tier_config(usd_lifetime=1), identity(), "m", NOON)
    outcome = await dead.reserve(plan.demand(Demand(nano=USD // 2)), "a")
    assert isinstance(outcome, Granted)
    clock.pass_(DAY - 1)
    assert await live._store.reap(86_400_000, 10) == 0
    assert isinstance(await live.reserve(plan.demand(Demand(nano=USD)), "b"), Denied)
    clock.pass_(1)
    assert await live._store.reap(86_400_000, 10) == 1
    await live.recover(outcome.ticket.to_facts(), Demand(nano=USD // 4))  # too late: the ledger's totals tell
    assert isinstance(await live.reserve(plan.demand(Demand(nano=USD)), "c"), Granted)


async def test_an_id_reserves_once(open_limiter: Opener) -> None:
    limiter = await open_limiter()
    await limiter.reserve((bucket("concurrency", 1, 5),), "a")
    with pytest.raises(ValueError, match="request a holds or held"):
        await limiter.reserve((bucket("concurrency", 1, 5),), "a")


async def test_rates_by_redis_own_clock(open_limiter: Opener) -> None:
    limiter = await open_limiter()
    one = (bucket("requests_per_min", 1, 6000),)
    outcomes = [await limiter.reserve(one, str(n)) for n in range(3)]
    assert all(isinstance(outcome, Granted) for outcome in outcomes)
    denied = await limiter.reserve((bucket("requests_per_min", 6000, 6000),), "all")
    assert isinstance(denied, Denied)
    assert denied.retry_after_s is not None
    assert 0 < denied.retry_after_s <= 0.03


async def test_scripts_that_redis_forgot_are_sent_again(open_limiter: Opener) -> None:
    limiter = await open_limiter()
    await limiter._store.ask("SCRIPT", "FLUSH")
    outcome = await limiter.reserve((bucket("concurrency", 1, 5),), "a")
    assert isinstance(outcome, Granted)


async def test_money_is_exact_up_to_two_to_the_53(open_limiter: Opener) -> None:
    limiter = await open_limiter()
    size = 9 * 10**15
    plan = buckets_for(tier_config(usd_lifetime=9 * 10**6), identity(), "m", NOON)
    outcome = await limiter.reserve(plan.demand(Demand(nano=size - 1)), "a")
    assert isinstance(outcome, Granted)
    await limiter.settle(outcome.ticket, Demand(nano=size - 2))
    assert isinstance(await limiter.reserve(plan.demand(Demand(nano=3)), "b"), Denied)
    assert isinstance(await limiter.reserve(plan.demand(Demand(nano=2)), "c"), Granted)


async def test_everything_written_has_an_end(open_limiter: Opener, redis_port: int) -> None:
    limiter = await open_limiter()
    plan = buckets_for(CONFIG, identity(), "m", NOON)
    first = await limiter.reserve(plan.demand(Demand(10, 10, 10)), "a")
    second = await limiter.reserve(plan.demand(Demand(10, 10, 10)), "b")
    assert isinstance(first, Granted)
    assert isinstance(second, Granted)
    await limiter.settle(first.ticket, Demand(1, 1, 1))
    async with redis.asyncio.Redis(port=redis_port) as client:
        keys = [key.decode() async for key in client.scan_iter(match=f"{limiter._store.prefix}*")]
        assert len(keys) == 10 + 3  # the buckets; the open ticket, the set of those, the generation
        for key in keys:
            if not key.endswith((":generation", ":open")):
                assert await client.ttl(key) > 0, key
        await limiter.settle(second.ticket, Demand(1, 1, 1))
        assert await client.exists(limiter._store.open_key) == 0


async def test_an_allowance_starts_from_the_ledger_once(open_limiter: Opener) -> None:
    spent = Spent({("account:acct_1", "2026-11-24"): Total(pico=900 * 10**9)})
    one, two = await open_limiter(spent), await open_limiter(spent)
    config = tier_config(usd_per_day=1)
    for limiter, nano, expected in (
        (one, USD // 10 + 1, Denied),
        (two, USD // 20, Granted),
        (one, USD // 20, Granted),
        (two, 1, Denied),
    ):
        plan = buckets_for(config, identity(), "m", NOON)
        assert isinstance(await limiter.reserve(plan.demand(Demand(nano=nano)), uuid.uuid4().hex), expected)


async def test_what_was_settled_this_month_prices_the_next_request(open_limiter: Opener) -> None:
    import time

    now = time.time()
    month = time.strftime("%Y-%m", time.gmtime(now))
    spent = Spent({("account:acct_1", month): Total(pico=3 * 10**12)})
    limiter = await open_limiter(spent)
    config, who = tier_config(schedule=[{"above_usd": 1, "times": 2}]), identity()
    assert await limiter.month_usd(who) == 3
    outcome = await limiter.reserve(buckets_for(config, who, "m", now).demand(Demand(nano=5 * USD)), "a")
    assert isinstance(outcome, Granted)
    assert await limiter.month_usd(who) == 3
    await limiter.settle(outcome.ticket, Demand(nano=USD))
    assert await limiter.month_usd(who) == 4


async def test_a_reservation_that_nobody_waits_for_any_more_is_given_back(open_limiter: Opener) -> None:
    limiter = await open_limiter()
    one = (bucket("usd_per_day", 7, 10, window="2026-11-24"),)
    first = await limiter.reserve(one, "first")
    assert isinstance(first, Granted)
    await limiter.refund(first.ticket)
    asking = asyncio.create_task(limiter.reserve(one, "gone"))
    await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await limiter._dues.catch_up()
    assert isinstance(await limiter.reserve((bucket("usd_per_day", 10, 10, window="2026-11-24"),), "all"), Granted)


async def test_a_reservation_that_arrives_after_it_was_given_up_fails(open_limiter: Opener) -> None:
    """On another connection, say, or after Redis was held up."""
    limiter = await open_limiter()
    one = (bucket("concurrency", 1, 10),)
    limiter._dues.bury(one, "late")
    await limiter._dues.catch_up()
    assert await limiter._store.reserve(one, "late") == [-3]


async def test_windows_do_not_go_back_with_the_callers_clock(open_limiter: Opener) -> None:
    limiter = await open_limiter()
    config, who = tier_config(usd_per_day=1), identity()
    for when, expected in ((NOON, Granted), (NOON + DAY, Granted), (NOON, Denied)):
        plan = buckets_for(config, who, "m", when)
        assert isinstance(await limiter.reserve(plan.demand(Demand(nano=USD)), str((when, expected))), expected)
    assert isinstance(plan.demand(Demand())[0], Bucket)
