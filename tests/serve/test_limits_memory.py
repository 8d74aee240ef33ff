"""Limits in memory: never above a cap, refunds exact, clocks that step, memory that stays flat."""

from __future__ import annotations

import asyncio
import random
import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from limits_kit import DAY, NOON, USD, Clock, Spent, bucket, guard_config, identity, level_of, tier_config
from spiritsafe.serve._limits import Bucket, Denied, Granted, MemoryLimiter, Ticket, Total, buckets_for
from spiritsafe.serve._types import Demand
from spiritsafe.state import Unavailable

PART = {"requests_per_min": 7, "tokens_per_min": 1000, "usd_per_day": "0.000001", "concurrency": 3, "usd_lifetime": "0.000003"}  # fmt: skip


def now(coroutine: Any) -> Any:
    """The result of a coroutine that never waits."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("it waited")


class AnyOrder(RuleBasedStateMachine):
    """Arbitrary interleavings against models that just add up."""

    tickets = Bundle("tickets")

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.limiter = MemoryLimiter(clock=self.clock.monotonic_ns, wall=self.clock.wall, lease_s=10**9)
        self.config, self.who = tier_config(**PART), identity()
        self.requests: list[list[int]] = []  # [ms, amount]; a refund makes the amount 0
        self.tokens: list[list[int]] = []
        self.open: dict[str, tuple[Demand, int, int]] = {}
        self.day: dict[int, int] = {}
        self.lifetime = self.count = 0

    @property
    def ms(self) -> int:
        return self.clock.monotonic_ms

    @property
    def today(self) -> int:
        return int(self.clock.now // DAY)

    def held(self, day: int | None = None) -> int:
        return sum(demand.nano for demand, _, when in self.open.values() if day is None or when == day)

    @rule(target=tickets, tokens=st.integers(0, 700), nano=st.integers(0, 900))
    def reserve(self, tokens: int, nano: int) -> Ticket | None:
        self.count += 1
        demand = Demand(tokens, 0, nano)
        buckets = buckets_for(self.config, self.who, "m", self.clock.now).demand(demand)
        outcome = now(self.limiter.reserve(buckets, str(self.count)))
        used_today = self.day.get(self.today, 0) + self.held(self.today)
        fits = (
            level_of(map(tuple, self.requests), self.ms, 7) + 60_000 <= 7 * 60_000
            and (not tokens or level_of(map(tuple, self.tokens), self.ms, 1000) + tokens * 60_000 <= 1000 * 60_000)
            and len(self.open) < 3
            and (not nano or used_today + nano <= 1000)
            and (not nano or self.lifetime + self.held() + nano <= 3000)
        )
        assert isinstance(outcome, Granted) == fits
        if isinstance(outcome, Denied):
            return None
        self.open[outcome.ticket.id] = (demand, len(self.requests), self.today)
        self.requests.append([self.ms, 1])
        self.tokens.append([self.ms, tokens])
        return outcome.ticket

    @rule(ticket=consumes(tickets), thousandths=st.integers(0, 1000))
    def settle(self, ticket: Ticket | None, thousandths: int) -> None:
        if ticket is not None:
            demand, index, day = self.open.pop(ticket.id)
            actual = Demand(demand.tokens_in * thousandths // 1000, 0, demand.nano * thousandths // 1000)
            now(self.limiter.settle(ticket, actual))
            now(self.limiter.settle(ticket, actual))  # a second time changes nothing
            self.tokens[index][1] = actual.tokens_in
            self.day[day] = self.day.get(day, 0) + actual.nano
            self.lifetime += actual.nano

    @rule(ticket=consumes(tickets))
    def refund(self, ticket: Ticket | None) -> None:
        if ticket is not None:
            _, index, _ = self.open.pop(ticket.id)
            now(self.limiter.refund(ticket))
            self.requests[index][1] = self.tokens[index][1] = 0

    @rule(seconds=st.sampled_from([0.001, 0.5, 8.571, 9, 61, DAY / 2]))
    def pass_(self, seconds: float) -> None:
        self.clock.pass_(seconds)

    @invariant()
    def caps_hold(self) -> None:
        assert self.day.get(self.today, 0) + self.held(self.today) <= 1000
        assert self.lifetime + self.held() <= 3000
        assert len(self.open) <= 3


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)


async def test_sixty_four_tasks_cannot_overshoot_a_dollar_by_a_nano() -> None:
    limiter = MemoryLimiter()
    plan = buckets_for(tier_config(usd_per_day=1), identity(), "m", NOON)
    rng = random.Random(1)
    released = 0

    async def client(number: int) -> None:
        nonlocal released
        for attempt in range(40):
            worst = rng.randrange(1, 8_000_000)
            outcome = await limiter.reserve(plan.demand(Demand(nano=worst)), f"{number}.{attempt}")
            await asyncio.sleep(0)
            if isinstance(outcome, Granted):
                cost = rng.randrange(0, worst + 1)
                released += cost
                await asyncio.sleep(0)
                await limiter.settle(outcome.ticket, Demand(nano=cost))

    await asyncio.gather(*(client(number) for number in range(64)))
    assert released <= USD
    last = await limiter.reserve(plan.demand(Demand(nano=USD - released)), "the rest")
    assert isinstance(last, Granted)  # exactly up to the cap
    assert isinstance(await limiter.reserve(plan.demand(Demand(nano=1)), "one more"), Denied)


@given(
    uses=st.lists(
        st.tuples(
            st.integers(1, 30_000),
            st.sampled_from(["requests_per_min", "tokens_per_min", "usd_per_day", "usd_per_month"]),
            st.integers(1, 100),
        ),
        min_size=1,
        max_size=30,
    ),
    wanted=st.integers(1, 100),
)
@settings(max_examples=300, deadline=None)
def test_waiting_exactly_retry_after_succeeds_and_a_millisecond_less_fails(uses: Any, wanted: int) -> None:
    clock = Clock()
    limiter = MemoryLimiter(clock=clock.monotonic_ns, wall=clock.wall)
    config, who = (
        tier_config(requests_per_min=100, tokens_per_min=100, usd_per_day="1e-7", usd_per_month="3e-7"),
        identity(),
    )

    def reserve(name: str, amounts: dict[str, int]) -> Granted | Denied:
        plan = buckets_for(config, who, "m", clock.now)
        buckets = tuple(Bucket(limit, amounts.get(limit.rule, 0)) for limit in plan.limits)
        outcome: Granted | Denied = now(limiter.reserve(buckets, name))
        return outcome

    for number, (passed, what, amount) in enumerate(uses):
        clock.pass_(passed / 1000)
        reserve(str(number), {what: amount})
    same = dict.fromkeys(("requests_per_min", "tokens_per_min", "usd_per_day", "usd_per_month"), wanted)
    outcome = reserve("wanted", same)
    if isinstance(outcome, Denied):
        wait = outcome.retry_after_s
        assert wait is not None
        # windows end on the wall clock, which has no milliseconds to speak of at this size
        clock.pass_(wait - 0.001)
        assert isinstance(reserve("too early", same), Denied)
        clock.pass_(0.001001)
        assert isinstance(reserve("in time", same), Granted)


def test_retry_after_of_a_lifetime_allowance_is_the_midnight_when_it_has_grown_enough() -> None:
    clock = Clock()
    limiter = MemoryLimiter(clock=clock.monotonic_ns, wall=clock.wall)
    config, who = tier_config(usd_lifetime=1, usd_lifetime_per_day="0.25"), identity(created=NOON)

    def ask(nano: int, name: str) -> Any:
        return now(limiter.reserve(buckets_for(config, who, "m", clock.now).demand(Demand(nano=nano)), name))

    assert isinstance(ask(USD, "all"), Granted)
    denied = ask(3 * USD // 10, "more")
    assert denied.retry_after_s == DAY / 2 + DAY  # two midnights
    clock.pass_(denied.retry_after_s - 1)
    assert isinstance(ask(3 * USD // 10, "early"), Denied)
    clock.pass_(1)
    assert isinstance(ask(3 * USD // 10, "in time"), Granted)


def test_windows_do_not_go_back_when_the_wall_clock_does() -> None:
    clock = Clock()
    limiter = MemoryLimiter(clock=clock.monotonic_ns, wall=clock.wall)
    config, who = tier_config(usd_per_day=1), identity()

    def ask(name: str) -> Granted | Denied:
        plan = buckets_for(config, who, "m", clock.now)
        outcome: Granted | Denied = now(limiter.reserve(plan.demand(Demand(nano=USD)), name))
        return outcome

    assert isinstance(ask("today"), Granted)
    clock.step(DAY)
    assert isinstance(ask("tomorrow"), Granted)
    clock.step(-5 * DAY)
    denied = ask("five days ago")
    assert isinstance(denied, Denied)
    assert denied.retry_after_s == DAY / 2 + 5 * DAY  # what was left of the day, and the step
    clock.step(denied.retry_after_s)
    assert isinstance(ask("after it"), Granted)


def test_what_is_used_while_the_clock_is_set_back_counts_in_the_newest_window() -> None:
    clock = Clock()
    limiter = MemoryLimiter(clock=clock.monotonic_ns, wall=clock.wall)
    config, who = tier_config(usd_per_day=1), identity()

    def ask(nano: int, name: str) -> Granted | Denied:
        plan = buckets_for(config, who, "m", clock.now)
        outcome: Granted | Denied = now(limiter.reserve(plan.demand(Demand(nano=nano)), name))
        return outcome

    assert isinstance(ask(USD // 2, "today"), Granted)
    clock.step(-DAY)
    set_back = ask(USD // 4, "yesterday")
    assert isinstance(set_back, Granted)
    clock.step(DAY)
    assert isinstance(ask(USD // 4 + 1, "too much"), Denied)
    now(limiter.refund(set_back.ticket))
    assert isinstance(ask(USD // 2, "all that is left"), Granted)


def test_settlements_count_in_the_window_of_the_reservation() -> None:
    clock = Clock()
    limiter = MemoryLimiter(clock=clock.monotonic_ns, wall=clock.wall)
    config, who = tier_config(usd_per_day=1, usd_lifetime=10), identity()

    def ask(nano: int, name: str) -> Any:
        return now(limiter.reserve(buckets_for(config, who, "m", clock.now).demand(Demand(nano=nano)), name))

    evening = ask(USD, "evening")
    clock.pass_(DAY)
    morning = ask(USD, "morning")
    assert isinstance(morning, Granted)
    now(limiter.settle(evening.ticket, Demand(nano=USD)))
    now(limiter.settle(morning.ticket, Demand(nano=USD - 5)))
    assert isinstance(ask(6, "too much today"), Denied)
    assert isinstance(ask(5, "fits"), Granted)


def test_more_than_was_reserved_is_recorded_as_it_is() -> None:
    limiter = MemoryLimiter()
    buckets = (bucket("usd_per_day", 10, 100, window="2026-11-24"), bucket("tokens_per_min", 10, 100))
    ticket = now(limiter.reserve(buckets, "a")).ticket
    now(limiter.settle(ticket, Demand(tokens_in=150, nano=150)))
    for rule_ in ("usd_per_day", "tokens_per_min"):
        outcome = now(
            limiter.reserve((bucket(rule_, 1, 100, window="2026-11-24" if rule_ == "usd_per_day" else ""),), rule_)
        )
        assert isinstance(outcome, Denied)


def test_what_takes_nothing_of_an_exhausted_allowance_passes() -> None:
    limiter = MemoryLimiter()
    now(limiter.reserve((bucket("usd_per_day", 100, 100, window="2026-11-24"),), "a"))
    assert isinstance(now(limiter.reserve((bucket("usd_per_day", 0, 100, window="2026-11-24"),), "b")), Granted)


def test_a_shadow_never_refuses_and_says_what_it_would() -> None:
    limiter = MemoryLimiter()

    def ask(name: str) -> Any:
        return now(
            limiter.reserve(
                (
                    bucket("requests_per_min", 1, 2, shadow=True),
                    bucket("concurrency", 1, 2, shadow=True),
                    bucket("usd_per_day", 1, 2, window="2026-11-24", shadow=True),
                ),
                name,
            )
        )

    tickets = [ask(str(n)) for n in range(4)]
    assert [outcome.shadowed for outcome in tickets] == [
        (),
        (),
        *[("requests_per_min", "concurrency", "usd_per_day")] * 2,
    ]
    now(limiter.settle(tickets[3].ticket, Demand(nano=1)))  # it never had a slot
    assert "concurrency" in ask("5").shadowed
    now(limiter.settle(tickets[0].ticket, Demand(nano=1)))
    assert "concurrency" not in ask("6").shadowed


def test_each_crossing_of_a_near_limit_is_told_once_per_window() -> None:
    clock = Clock()
    limiter = MemoryLimiter(clock=clock.monotonic_ns, wall=clock.wall)
    config, who = tier_config(usd_per_day=1, requests_per_min=1000), identity()
    told = []
    for day in range(2):
        for number in range(10):
            plan = buckets_for(config, who, "m", clock.now)
            outcome = now(limiter.reserve(plan.demand(Demand(nano=USD // 10)), f"{day}.{number}"))
            told.append(now(limiter.settle(outcome.ticket, Demand(nano=USD // 10))))
        clock.pass_(DAY)
    crossings = [(index, crossing) for index, some in enumerate(told) for crossing in some]
    assert [index for index, _ in crossings] == [7, 17]
    crossing = crossings[1][1]
    assert crossing == ("usd_per_day", "account", "acct_1", "2026-11-25", 8 * USD // 10, USD)


def test_slots_that_were_never_given_back_are_free_after_the_lease() -> None:
    clock = Clock()
    limiter = MemoryLimiter(clock=clock.monotonic_ns, wall=clock.wall, lease_s=100)
    one = (bucket("concurrency", 1, 1),)
    lost = now(limiter.reserve(one, "lost")).ticket
    clock.pass_(99.9)
    assert isinstance(now(limiter.reserve(one, "early")), Denied)
    clock.pass_(0.1)
    late = now(limiter.reserve(one, "late"))
    assert isinstance(late, Granted)
    now(limiter.settle(lost, Demand()))  # the slot is another's by now
    assert isinstance(now(limiter.reserve(one, "again")), Denied)


def test_an_id_reserves_once() -> None:
    limiter = MemoryLimiter()
    now(limiter.reserve((bucket("concurrency", 1, 5),), "a"))
    with pytest.raises(ValueError, match="request a holds"):
        now(limiter.reserve((bucket("concurrency", 1, 5),), "a"))


def test_it_belongs_to_one_thread() -> None:
    limiter = MemoryLimiter()
    now(limiter.reserve((), "a"))
    failed: list[BaseException] = []

    def elsewhere() -> None:
        try:
            now(limiter.reserve((), "b"))
        except AssertionError as error:
            failed.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert failed


async def test_memory_stays_flat_over_many_accounts_and_days() -> None:
    clock = Clock()
    spent = Spent()
    limiter = MemoryLimiter(totals=spent, clock=clock.monotonic_ns, wall=clock.wall)
    config = tier_config(requests_per_min=600, tokens_per_min=10**6, usd_per_day=1, usd_lifetime=100, concurrency=4)
    most = 0
    for number in range(6000):
        clock.pass_(10)
        plan = buckets_for(config, identity(f"acct_{number}"), "m", clock.now)
        outcome = await limiter.reserve(plan.demand(Demand(1000, 0, 1000)), str(number))
        assert isinstance(outcome, Granted)
        await limiter.settle(outcome.ticket, Demand(10, 0, 10))
        most = max(most, len(limiter._entries))
    assert most < 1500  # of 30,000 counters
    assert not limiter._open


# What was spent before


async def test_an_allowance_starts_from_what_the_ledger_says() -> None:
    clock = Clock()
    spent = Spent(
        {
            ("account:acct_1", "2026-11-24"): Total(pico=400 * 10**9 + 1, requests=3, tokens=50),
            ("account:acct_1", "all"): Total(pico=9 * 10**12),
        }
    )
    limiter = MemoryLimiter(totals=spent, clock=clock.monotonic_ns, wall=clock.wall)
    config, who = tier_config(usd_per_day=1, usd_lifetime=10, requests_per_day=4, tokens_per_day=100), identity()

    async def ask(demand: Demand, name: str) -> Granted | Denied:
        return await limiter.reserve(buckets_for(config, who, "m", clock.now).demand(demand), name)

    assert isinstance(await ask(Demand(51), "tokens"), Denied)
    assert isinstance(await ask(Demand(nano=600_000_000), "a nano too much: a started one counts"), Denied)
    assert isinstance(await ask(Demand(50, 0, 599_999_999), "fits"), Granted)
    assert isinstance(await ask(Demand(), "the fifth request"), Denied)
    assert len(spent.asked) == 1  # once, not for every request


async def test_a_limit_that_begins_to_count_within_a_window_counts_all_of_it() -> None:
    """An account's new tier, a limit taken off and put back: the ledger knows what was spent meanwhile."""
    clock = Clock()
    spent = Spent()
    limiter = MemoryLimiter(totals=spent, clock=clock.monotonic_ns, wall=clock.wall)
    config = tier_config(usd_per_day=1)
    first = await limiter.reserve(buckets_for(config, identity(), "m", NOON).demand(Demand(nano=USD // 10)), "a")
    assert isinstance(first, Granted)
    await limiter.settle(first.ticket, Demand(nano=USD // 10))
    # meanwhile the account had no limit, and spent
    spent.totals["account:acct_1", "2026-11-24"] = Total(pico=950 * 10**9)
    outcome = await limiter.reserve(buckets_for(config, identity(), "m", NOON).demand(Demand(nano=USD // 10)), "b")
    assert isinstance(outcome, Denied)


async def test_a_row_that_is_in_the_ledger_before_it_is_settled_counts_once() -> None:
    spent = Spent()
    limiter = MemoryLimiter(totals=spent)
    config = tier_config(usd_per_day=1)
    first = await limiter.reserve(buckets_for(config, identity(), "m", NOON).demand(Demand(nano=USD // 2)), "a")
    assert isinstance(first, Granted)
    spent.totals["account:acct_1", "2026-11-24"] = Total(pico=500 * 10**9)
    # another plan of the same account is compared with the ledger
    plan = buckets_for(config, identity(), "m", NOON)
    assert isinstance(await limiter.reserve(plan.demand(Demand(nano=1)), "b"), Granted)
    await limiter.settle(first.ticket, Demand(nano=USD // 2))
    assert isinstance(await limiter.reserve(plan.demand(Demand(nano=USD // 2)), "c"), Denied)
    assert isinstance(await limiter.reserve(plan.demand(Demand(nano=USD // 2 - 1)), "d"), Granted)


async def test_a_cluster_counts_what_its_accounts_spent_before_they_were_linked() -> None:
    spent = Spent({("cluster:c4", "2026-11-24"): Total(pico=10**12)})
    limiter = MemoryLimiter(totals=spent)
    config = guard_config(limits={"clusters": {"usd_per_day": 1}})
    plan = buckets_for(config, identity(cluster="c4"), "m", NOON)
    assert isinstance(await limiter.reserve(plan.demand(Demand(nano=1)), "a"), Denied)


async def test_many_that_wait_for_the_ledger_ask_it_together() -> None:
    gate = asyncio.Event()
    spent = Spent()

    async def slow(pairs: Any, ids: Any) -> Any:
        await gate.wait()
        return await spent(pairs, ids)

    limiter = MemoryLimiter(totals=slow)
    config = tier_config(usd_per_day=1)
    people = [identity(f"acct_{n}") for n in range(50)]
    asking = [
        asyncio.create_task(limiter.reserve(buckets_for(config, who, "m", NOON).demand(Demand(nano=USD)), f"{n}"))
        for n, who in enumerate(people * 2)
    ]
    await asyncio.sleep(0)
    gate.set()
    outcomes = await asyncio.gather(*asking)
    assert sum(isinstance(outcome, Granted) for outcome in outcomes) == 50  # each account's dollar, once
    assert len(spent.asked) <= 2


async def test_while_the_database_is_away_an_unknown_allowance_holds_or_lets_through_as_configured() -> None:
    spent = Spent(fails=Unavailable("gone"))
    for answer, expected in (("closed", Denied), ("open", Granted)):
        limiter = MemoryLimiter(totals=spent)
        config = guard_config(tiers={"default": {"usd_per_day": 1}}, limits={"when_state_is_down": answer})
        outcome = await limiter.reserve(buckets_for(config, identity(), "m", NOON).demand(Demand(nano=1)), "a")
        assert isinstance(outcome, expected)
        if isinstance(outcome, Denied):
            assert (outcome.status, outcome.code, outcome.retry_after_s) == (503, "limits_unavailable", 1.0)


async def test_what_counted_already_goes_on_while_the_database_is_away() -> None:
    spent = Spent()
    limiter = MemoryLimiter(totals=spent)
    config = tier_config(usd_per_day=1)
    assert isinstance(
        await limiter.reserve(buckets_for(config, identity(), "m", NOON).demand(Demand(nano=1)), "a"), Granted
    )
    spent.fails = Unavailable("gone")
    changed = identity()  # the account was changed, so its plan is new
    assert isinstance(
        await limiter.reserve(buckets_for(config, changed, "m", NOON).demand(Demand(nano=1)), "b"), Granted
    )
    assert isinstance(
        await limiter.reserve(buckets_for(config, changed, "m", NOON).demand(Demand(nano=USD)), "c"), Denied
    )


async def test_seeding_counts_at_least_so_much_and_nothing_twice() -> None:
    clock = Clock()
    limiter = MemoryLimiter(clock=clock.monotonic_ns, wall=clock.wall)
    config, who = tier_config(usd_per_day=1, usd_per_month=2), identity()
    totals = {
        ("account:acct_1", "2026-11-24"): Total(pico=700 * 10**9),
        ("account:acct_1", "2026-11"): Total(pico=1900 * 10**9),
        ("account:acct_1", "2026-11-23"): Total(pico=10**15),
    }
    for _ in range(2):
        await limiter.seed(totals)
    plan = buckets_for(config, who, "m", NOON)
    assert isinstance(await limiter.reserve(plan.demand(Demand(nano=USD // 10 + 1)), "month"), Denied)
    assert isinstance(await limiter.reserve(plan.demand(Demand(nano=USD // 10)), "fits"), Granted)


async def test_a_ticket_of_an_earlier_process_counts_once_unless_the_ledger_has_it() -> None:
    plan = buckets_for(tier_config(usd_per_day=1), identity(), "m", NOON)
    before = MemoryLimiter()
    outcome = await before.reserve(plan.demand(Demand(nano=USD)), "lost")
    assert isinstance(outcome, Granted)
    facts = outcome.ticket.to_facts()
    for rows, left in ((set(), USD // 2), ({"lost"}, USD)):
        limiter = MemoryLimiter(totals=Spent(rows=rows))
        for _ in range(2):
            await limiter.recover(facts, Demand(nano=USD // 2))
        fresh = buckets_for(tier_config(usd_per_day=1), identity(), "m", NOON)
        assert isinstance(await limiter.reserve(fresh.demand(Demand(nano=left + 1)), "a"), Denied)
        assert isinstance(await limiter.reserve(fresh.demand(Demand(nano=left)), "b"), Granted)


async def test_what_was_settled_this_month_prices_the_next_request() -> None:
    clock = Clock()
    spent = Spent({("account:acct_1", "2026-11"): Total(pico=3 * 10**12)})
    limiter = MemoryLimiter(totals=spent, clock=clock.monotonic_ns, wall=clock.wall)
    config, who = guard_config(tiers={"default": {"schedule": [{"above_usd": 1, "times": 2}]}}), identity()
    assert await limiter.month_usd(who) == 3
    outcome = await limiter.reserve(buckets_for(config, who, "m", NOON).demand(Demand(nano=5 * USD)), "a")
    assert isinstance(outcome, Granted)
    assert await limiter.month_usd(who) == 3  # what is only reserved does not count
    await limiter.settle(outcome.ticket, Demand(nano=USD))
    assert await limiter.month_usd(who) == 4
    clock.pass_(10 * DAY)
    assert await limiter.month_usd(who) == 0
