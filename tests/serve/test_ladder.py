"""The ladder: every step in the ledger with its reason before it acts, shadow changes nothing, people suspend."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import accounts_kit as kit
from spiritsafe.errors import BadInput, Refused, SpiritsafeError
from spiritsafe.ledger import Ledger
from spiritsafe.serve import _ladder
from spiritsafe.serve._accounts import Accounts
from spiritsafe.serve._config import STEPS, GuardConfig, Step
from spiritsafe.serve._ladder import Ladder
from spiritsafe.serve._steps import enacted
from spiritsafe.serve._types import Identity
from spiritsafe.state import Database, Unavailable

HOOK = {"url": "http://127.0.0.1:9/hook", "events": ["flagged", "suspended"]}


def config(*, shadow: bool = False, steps: tuple[Step, ...] = STEPS[1:]) -> GuardConfig:
    return kit.config(ladder={"shadow": shadow, "steps": list(steps)}, webhooks=[HOOK])


@dataclass
class Parts:
    """A ladder with real accounts, ledger, outbox and database."""

    db: Database
    accounts: Accounts
    ledger: Ledger
    clock: kit.Clock
    folder: Path

    def ladder(self, given: GuardConfig) -> Ladder:
        return Ladder(self.db, given, self.accounts, self.ledger, clock=self.clock)

    def who(self, account: str) -> Identity:
        identity = self.accounts.identity(account)
        assert identity is not None
        return identity

    async def outbox(self) -> list[str]:
        rows = await self.db.fetch("SELECT event, body FROM outbox ORDER BY created, id")
        return sorted(row["event"] for row in rows)


@pytest.fixture
async def parts(database_url: str, tmp_path: Path) -> AsyncIterator[Parts]:
    clock = kit.Clock()
    async with await Database.open(database_url) as db:
        ledger = await Ledger.open(db, commit_ms=1)
        accounts = await Accounts.open(db, kit.secrets(tmp_path), config(), ledger, clock=clock)
        yield Parts(db, accounts, ledger, clock, tmp_path)
        await ledger.aclose()


async def member(parts: Parts, name: str, cluster: str | None = None) -> str:
    return (await parts.accounts.add(name, cluster=cluster)).id


async def test_a_step_acts_is_logged_and_told(parts: Parts) -> None:
    given = config()
    account = await member(parts, "a")
    ladder = parts.ladder(given)
    state = await ladder.apply(
        f"account:{account}", "output_policy", reason="coverage", decided_by="watch", features={"growth": 0.98}
    )
    assert (state.step, state.shadow, state.at) == ("output_policy", False, parts.clock.now)
    assert enacted(parts.who(account), given.ladder) == {"notify", "cluster_cap", "price_tier", "output_policy"}
    assert await ladder.states() == [state]
    (decision,) = await ladder.history(f"account:{account}")
    assert decision.state == state and decision.features == {"growth": 0.98}
    assert await parts.outbox() == ["flagged"]


async def test_the_ledger_has_it_before_it_acts(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_ladder, "_LEDGER_S", 0.01)
    account = await member(parts, "a")
    stuck = Ladder(parts.db, config(), parts.accounts, kit.Events(stuck=True))
    with pytest.raises(Unavailable, match="stays as it was"):
        await stuck.apply(f"account:{account}", "suspend", reason="copying", decided_by="Ada")
    await parts.accounts.refresh()
    assert await stuck.states() == [] and not parts.who(account).suspended


@pytest.mark.parametrize("given", [config(shadow=True), config(steps=("notify",))], ids=["ladder", "step"])
@pytest.mark.parametrize("step", ["price_tier", "suspend"])
async def test_shadow_changes_nothing(parts: Parts, given: GuardConfig, step: Step) -> None:
    account = await member(parts, "a")
    before = await parts.db.fetch("SELECT * FROM accounts")
    ladder = parts.ladder(given)
    state = await ladder.apply(f"account:{account}", step, reason="copying", decided_by="Ada")
    assert state.shadow
    assert enacted(parts.who(account), given.ladder) == frozenset()
    assert enacted(parts.who(account), config().ladder) == frozenset()  # nor when shadow is lifted later
    assert await parts.db.fetch("SELECT * FROM accounts") == before
    assert [entry.state for entry in await ladder.history(f"account:{account}")] == [state]
    assert await parts.outbox() == ["flagged"]


async def test_a_shadow_step_above_leaves_the_one_that_acts(parts: Parts) -> None:
    account = await member(parts, "a")
    given = config(steps=("notify", "cluster_cap"))
    ladder = parts.ladder(given)
    acting = await ladder.apply(f"account:{account}", "cluster_cap", reason="linked", decided_by="watch")
    shadowed = await ladder.apply(f"account:{account}", "output_policy", reason="more", decided_by="watch")
    assert await ladder.apply(f"account:{account}", "output_policy", reason="more", decided_by="watch") == shadowed
    assert shadowed.shadow and await ladder.states() == [acting]
    assert enacted(parts.who(account), given.ladder) == {"notify", "cluster_cap"}
    assert [entry.state for entry in await ladder.history(f"account:{account}")] == [acting, shadowed]


async def test_going_down_is_never_held_back(parts: Parts) -> None:
    account = await member(parts, "a")
    given = config()
    await parts.ladder(given).apply(f"account:{account}", "output_policy", reason="copying", decided_by="watch")
    down = await parts.ladder(config(shadow=True)).apply(
        f"account:{account}", "observe", reason="a known customer", decided_by="Ada"
    )
    assert not down.shadow
    assert enacted(parts.who(account), given.ladder) == frozenset()


@pytest.mark.parametrize("step", ["review", "suspend"])
@pytest.mark.parametrize("who", ["watch", " Watch "])
@pytest.mark.parametrize("shadow", [True, False])
async def test_nobody_is_suspended_by_a_machine(parts: Parts, step: Step, who: str, shadow: bool) -> None:
    account = await member(parts, "a")
    ladder = parts.ladder(config(shadow=shadow))
    with pytest.raises(Refused, match="takes a person"):
        await ladder.apply(f"account:{account}", step, reason="copying", decided_by=who)
    assert await ladder.states() == [] and await ladder.history(f"account:{account}") == []
    assert not (await parts.accounts.show(account)).suspended


async def test_a_machine_lowers_only_what_a_machine_decided(parts: Parts) -> None:
    account = await member(parts, "a")
    ladder, subject = parts.ladder(config()), f"account:{account}"
    await ladder.apply(subject, "price_tier", reason="copying", decided_by="watch")
    await ladder.apply(subject, "notify", reason="calmer", decided_by="watch")
    await ladder.apply(subject, "review", reason="look at this", decided_by="Ada")
    with pytest.raises(Refused, match="only a person lowers"):
        await ladder.apply(subject, "notify", reason="calmer", decided_by="watch")
    assert (await ladder.apply(subject, "notify", reason="an app", decided_by="Bob")).step == "notify"


async def test_a_person_suspends_and_restores(parts: Parts) -> None:
    account = await member(parts, "a")
    ladder, subject = parts.ladder(config()), f"account:{account}"
    await ladder.apply(subject, "suspend", reason="copying", decided_by="Ada", appeal="mail appeals@example.org")
    shown = await parts.accounts.show(account)
    assert (shown.suspended, shown.reason, shown.appeal) == (True, "copying", "mail appeals@example.org")
    assert parts.who(account).suspended
    assert await parts.outbox() == ["flagged", "suspended"]
    await ladder.apply(subject, "output_policy", reason="they explained", decided_by="Ada")
    assert not parts.who(account).suspended
    assert await parts.outbox() == ["flagged", "suspended"]  # going down flags nobody
    assert "suspend" not in enacted(parts.who(account), config().ladder)
    await parts.ledger.flush()
    names = [row["payload"] for row in await parts.db.fetch("SELECT payload FROM ledger ORDER BY seq")]
    told = [name for payload in names for name in ("ladder_step", "suspended", "restored") if f'"{name}"' in payload]
    assert told == ["ladder_step", "suspended", "ladder_step", "restored"]


async def test_a_cluster_is_suspended_with_the_accounts_it_has_now(parts: Parts) -> None:
    one, two = await member(parts, "one", "c1"), await member(parts, "two", "c1")
    other, before = await member(parts, "other", "c2"), await member(parts, "before", "c1")
    await parts.accounts.suspend(before, reason="unpaid")
    ladder = parts.ladder(config())
    await ladder.apply("cluster:c1", "suspend", reason="copying", decided_by="Ada")
    later = await member(parts, "later", "c1")
    suspended = {
        name: (await parts.accounts.show(name)).suspended for name in ("one", "two", "other", "before", "later")
    }
    assert suspended == {"one": True, "two": True, "other": False, "before": True, "later": False}
    await parts.accounts.refresh()
    assert "output_policy" in enacted(parts.who(later), config().ladder)
    assert "suspend" not in enacted(parts.who(later), config().ladder)
    assert enacted(parts.who(other), config().ladder) == frozenset()
    # account two is suspended in its own right too, so the cluster's pardon does not restore it
    await ladder.apply(f"account:{two}", "suspend", reason="copying", decided_by="Ada")
    await ladder.apply("cluster:c1", "observe", reason="not theirs", decided_by="Ada")
    assert [(await parts.accounts.show(name)).suspended for name in (one, two, before)] == [False, True, True]


async def test_what_is_so_already_is_not_said_again(parts: Parts) -> None:
    account = await member(parts, "a")
    for setting in (config(shadow=True), config()):
        ladder, subject = parts.ladder(setting), f"account:{account}"
        first = await ladder.apply(subject, "notify", reason="copying", decided_by="watch")
        parts.clock.now += 60
        assert await ladder.apply(subject, "notify", reason="copying", decided_by="watch") == first
    assert [entry.state.shadow for entry in await ladder.history(subject)] == [True, False]
    await ladder.apply(subject, "notify", reason="copying faster", decided_by="watch")
    assert len(await ladder.history(subject)) == 3


async def test_a_decision_cut_short_is_finished_when_tried_again(parts: Parts) -> None:
    account = await member(parts, "a")
    ladder, subject = parts.ladder(config()), f"account:{account}"

    async def cut(*_: Any) -> None:
        raise Unavailable("gone")

    broken = parts.ladder(config())
    broken._write = cut  # type: ignore[method-assign]
    with pytest.raises(Unavailable):
        await broken.apply(subject, "suspend", reason="copying", decided_by="Ada")
    await ladder.apply(subject, "suspend", reason="copying", decided_by="Ada")
    assert [state.step for state in await ladder.states()] == ["suspend"]
    assert (await parts.accounts.show(account)).suspended


async def test_of_two_who_decide_at_once_one_is_told(parts: Parts) -> None:
    account = await member(parts, "a")
    other = parts.ladder(config())

    class Slow:
        """A ledger during whose commit somebody else decides."""

        def append(self, entry: Any) -> asyncio.Future[int]:
            async def meanwhile() -> int:
                await other.apply(f"account:{account}", "review", reason="look", decided_by="Bob")
                return await parts.ledger.append(entry)

            return asyncio.ensure_future(meanwhile())

    mine = Ladder(parts.db, config(), parts.accounts, Slow())
    for _ in range(2):  # once where there was no decision before, once where there was
        with pytest.raises(SpiritsafeError, match="decide again"):
            await mine.apply(f"account:{account}", "notify", reason="copying", decided_by="Ada")
        assert [(state.step, state.decided_by) for state in await other.states()] == [("review", "Bob")]
        await other.apply(f"account:{account}", "price_tier", reason="looked", decided_by="Bob")


@pytest.mark.parametrize(
    ("subject", "more", "said"),
    [
        ("acct_1", {}, "account:ID or cluster:ID"),
        ("account:acct_nobody", {}, "no account"),
        ("cluster:none", {}, "no account"),
        ("cluster:c1", {"step": "banish"}, "the steps are"),
        ("cluster:c1", {"reason": "  "}, "reason"),
        ("cluster:c1", {"decided_by": ""}, "decided_by"),
        ("cluster:c1", {"features": {"x": object()}}, "not JSON"),
        ("cluster:c1", {"features": {"x": "y" * 70_000}}, "bytes"),
    ],
)
async def test_bad_input_is_said_and_records_nothing(
    parts: Parts, subject: str, more: dict[str, Any], said: str
) -> None:
    await member(parts, "a", "c1")
    arguments: dict[str, Any] = {"step": "notify", "reason": "copying", "decided_by": "Ada"} | more
    with pytest.raises(BadInput, match=said):
        await parts.ladder(config()).apply(subject, arguments.pop("step"), **arguments)
    assert await parts.db.fetch("SELECT * FROM ladder") == []


moves = st.lists(
    st.tuples(
        st.sampled_from(STEPS),
        st.sampled_from(["watch", "Ada"]),
        st.sampled_from(["account", "cluster"]),
        st.booleans(),
    ),
    max_size=6,
)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(moves=moves)
async def test_whatever_is_decided_shadow_never_adds_an_effect(
    parts: Parts, moves: list[tuple[Step, str, str, bool]]
) -> None:
    """A move under shadow changes neither what acts nor the account's status, unless it goes down."""
    name = f"h{parts.clock.now}"
    parts.clock.now += 1
    account = await member(parts, name, f"cl-{name}")
    on, off = config(), config(shadow=True)
    for step, who, kind, shadow in moves:
        subject = f"account:{account}" if kind == "account" else f"cluster:cl-{name}"
        before = enacted(parts.who(account), on.ladder)
        ladder = parts.ladder(off if shadow else on)
        try:
            state = await ladder.apply(subject, step, reason="copying", decided_by=who)
        except Refused:
            assert who == "watch"
            assert enacted(parts.who(account), on.ladder) == before
            continue
        after = enacted(parts.who(account), on.ladder)
        if state.shadow:
            assert after == before
        elif shadow:
            assert after <= before
        assert enacted(parts.who(account), off.ladder) == frozenset()
        if who == "watch":
            assert ("suspend" in after) <= ("suspend" in before)
