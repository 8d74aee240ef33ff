"""Accounts and keys: on both databases, what is changed is seen, recorded, and refused where it makes no sense."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

import accounts_kit as kit
from spiritsafe.errors import BadInput, SpiritsafeError
from spiritsafe.serve._access import access, require_scope
from spiritsafe.serve._account_store import AccountChanges, AccountStore
from spiritsafe.serve._accounts import Accounts
from spiritsafe.serve._config import LimitSet
from spiritsafe.serve._key_store import KeyChanges, KeyStore
from spiritsafe.serve._numbers import next_change
from spiritsafe.state import Database, Unavailable
from spiritsafe.wire import ApiError


@pytest.fixture
def clock() -> kit.Clock:
    return kit.Clock()


@pytest.fixture
def events() -> kit.Events:
    return kit.Events()


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    async with await Database.open(database_url) as opened:
        yield opened


@pytest.fixture
async def accounts(db: Database, tmp_path: Path, clock: kit.Clock, events: kit.Events) -> Accounts:
    return await Accounts.open(db, kit.secrets(tmp_path), kit.config(), events, clock=clock)


async def test_an_account_and_its_key_from_issue_to_identity(accounts: Accounts, db: Database) -> None:
    made = await accounts.add("Ada's app", org="acme", payment_id="pm_1", limits=LimitSet(usd_per_day=Decimal("2.5")))
    issued = await accounts.issue_key("Ada's app", name="laptop", scopes=["inference", "usage"])
    assert issued.text.startswith("ss_") and issued.text not in repr(issued)
    who = accounts.authenticate(issued.text.encode())
    assert who is not None and accounts.authenticate(issued.text.encode()) is who
    assert (who.account, who.name, who.org, who.tier) == (made.id, "Ada's app", "acme", "default")
    assert who.key_id == issued.key.id == issued.text.split("_")[1]
    assert who.scopes == {"inference", "usage"} and who.payment_id == "pm_1"
    assert who.limits.usd_per_day == Decimal("2.5") and who.slot is None
    stored = await db.fetch("SELECT * FROM api_keys")
    secret = issued.text.split("_")[2]
    assert secret not in repr(stored) and secret.encode() not in bytes(stored[0]["mac"])


async def test_what_does_not_fit_a_key_is_nobody(accounts: Accounts) -> None:
    await accounts.add("a")
    text = (await accounts.issue_key("a")).text
    for wrong in (
        text[:-1], text + "x", text.swapcase(), text.replace("ss_", "tt_"), " " + text, text + "\n", text[:-1] + "~",
        "ss_" + "0" * 12 + text[15:], "", "ss__", "x" * 100_000, text + "y" * 10, text.ljust(69, "0") + "z",
    ):  # fmt: skip
        assert accounts.authenticate(wrong.encode()) is None, wrong[:80]
    assert accounts.authenticate(b"\xff\x00\xfe") is None


async def test_keys_expire_and_are_revoked(accounts: Accounts, clock: kit.Clock, events: kit.Events) -> None:
    await accounts.add("a")
    ends = await accounts.issue_key("a", expires=clock.now + 60)
    stays = await accounts.issue_key("a")
    assert accounts.authenticate(ends.text.encode()) is not None
    clock.now += 60
    assert accounts.authenticate(ends.text.encode()) is None
    assert {key.id: key.state(clock.now) for key in await accounts.keys_of("a")} == {
        ends.key.id: "expired", stays.key.id: "active",
    }  # fmt: skip
    await accounts.revoke_key(stays.key.id)
    assert accounts.authenticate(stays.text.encode()) is None
    assert (await accounts.revoke_key(stays.key.id)).revoked == clock.now
    assert events.names() == ["key_issued", "key_issued", "key_revoked"], "revoking twice is said once"
    for never in (clock.now, float("nan"), float("inf"), -1.0):
        with pytest.raises(BadInput, match="must lie ahead"):
            await accounts.issue_key("a", expires=never)
    assert accounts.authenticate(ends.text.encode()) is None


async def test_rotation_overlaps(accounts: Accounts, clock: kit.Clock) -> None:
    await accounts.add("a")
    old = await accounts.issue_key("a", name="ci", scopes=["usage"], limits=LimitSet(concurrency=3))
    new = await accounts.rotate_key(old.key.id, overlap_s=3600)
    assert new.key.name == "ci" and new.key.scopes == {"usage"} and new.key.limits.concurrency == 3
    assert accounts.authenticate(old.text.encode()) and accounts.authenticate(new.text.encode())
    clock.now += 3600
    assert accounts.authenticate(old.text.encode()) is None and accounts.authenticate(new.text.encode())
    with pytest.raises(BadInput, match="it is expired"):
        await accounts.rotate_key(old.key.id)
    for overlap in (-1.0, float("nan"), float("inf")):
        with pytest.raises(BadInput, match="overlap must be 0 or more"):
            await accounts.rotate_key(new.key.id, overlap_s=overlap)


async def test_rotation_never_lengthens_an_old_keys_life(accounts: Accounts, clock: kit.Clock) -> None:
    await accounts.add("a")
    old = await accounts.issue_key("a", expires=clock.now + 100)
    clock.now += 40
    new = await accounts.rotate_key(old.key.id, overlap_s=3600)
    assert (await accounts.show_key(old.key.id)).expires == old.key.expires
    assert new.key.expires == clock.now + 100, "as long as the old one was given"


async def test_another_process_is_seen_at_the_next_refresh(
    accounts: Accounts, database_url: str, tmp_path: Path
) -> None:
    async with await Database.open(database_url) as theirs:
        other = KeyStore(theirs, kit.secrets(tmp_path), kit.config(), kit.Events())
        await other.check_secrets()
        await other.add("a")
        issued = await other.issue_key("a")
        assert accounts.authenticate(issued.text.encode()) is None
        assert await accounts.refresh() is True
        before = accounts.authenticate(issued.text.encode())
        assert before is not None and not before.suspended
        assert await accounts.refresh() is False and accounts.authenticate(issued.text.encode()) is before
        await other.suspend("a", reason="too fast", appeal="call us")
        await accounts.refresh()
        after = accounts.authenticate(issued.text.encode())
        assert after is not None and (after.suspended, after.reason, after.appeal) == (True, "too fast", "call us")
        await other.revoke_key(issued.key.id)
        await accounts.refresh()
        assert accounts.authenticate(issued.text.encode()) is None


async def test_refresh_reads_many_pages(
    accounts: Accounts, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spiritsafe.serve._accounts._PAGE", 3)
    async with await Database.open(database_url) as theirs:
        other = KeyStore(theirs, kit.secrets(tmp_path), kit.config())
        keys = []
        for number in range(10):
            await other.add(f"a{number}")
            keys.append(await other.issue_key(f"a{number}"))
        async with theirs.transaction() as tx:  # all at one number, as a bulk change has them
            await tx.execute("UPDATE accounts SET changed = $1", await next_change(tx))
        await accounts.refresh()
        assert len(accounts) == 10
        assert all(accounts.authenticate(issued.text.encode()) for issued in keys)


async def test_ladder_states_join_the_identity(accounts: Accounts, db: Database) -> None:
    await accounts.add("a", cluster="c1")
    text = (await accounts.issue_key("a")).text.encode()

    async def step(subject: str, name: str) -> None:
        async with db.transaction() as tx:
            await tx.execute(
                "INSERT INTO ladder (subject, step, shadow, reason, decided_by, at, changed)"
                " VALUES ($1, $2, 0, 'r', 'watch', 1.0, $3)",
                subject, name, await next_change(tx),
            )  # fmt: skip
        await accounts.refresh()

    before = accounts.authenticate(text)
    assert before is not None and before.account_step is None and before.cluster_step is None
    await step(f"account:{before.account}", "notify")
    await step("cluster:c1", "cluster_cap")
    await step("cluster:c2", "review")
    now = accounts.authenticate(text)
    assert now is not None and now.account_step is not None and now.cluster_step is not None
    assert (now.account_step.step, now.cluster_step.step) == ("notify", "cluster_cap")
    await accounts.set_cluster("a", "c2")
    now = accounts.authenticate(text)
    assert now is not None and now.cluster_step is not None and now.cluster_step.step == "review"
    await accounts.set_cluster("a", None)
    now = accounts.authenticate(text)
    assert now is not None and now.cluster is None and now.cluster_step is None


async def test_changes_are_whole_or_refused(accounts: Accounts) -> None:
    made = await accounts.add("a", org="acme")
    changed = await accounts.change("a", AccountChanges(tier="gold", org=None, limits=LimitSet(concurrency=2)))
    assert (changed.tier, changed.org, changed.limits.concurrency) == ("gold", None, 2)
    with pytest.raises(BadInput, match=r"did you mean gold\?"):
        await accounts.change("a", AccountChanges(tier="golden", org="other"))
    assert await accounts.show(made.id) == changed
    assert (await accounts.change("a", AccountChanges(tier="default"))).tier == "default"
    with pytest.raises(BadInput, match="cannot be taken away"):
        await accounts.change("a", AccountChanges(tier=None))
    assert (await accounts.change("a", AccountChanges(name="b"))).name == "b"
    await accounts.add("a")
    with pytest.raises(BadInput, match="choose another"):
        await accounts.change("a", AccountChanges(name="b"))


async def test_a_change_is_on_record_before_it_takes_effect(accounts: Accounts, events: kit.Events) -> None:
    made = await accounts.add("a")
    await accounts.change("a", AccountChanges(limits=LimitSet(usd_per_day=None)), decided_by="key:x")
    (event,) = events.entries
    assert (event.name, event.subject) == ("account_changed", made.id)
    assert event.data == {
        "before": {"limits": {}},
        "after": {"limits": {"usd_per_day": None}},
        "decided_by": "key:x",
    }
    await accounts.change("a", AccountChanges(tier="default", name="b", payment_id="pm_2"))
    assert len(events.entries) == 1, "names and payment ids are not for the ledger; the same tier is no change"
    with pytest.raises(BadInput, match="not in the guard's config"):
        await accounts.change("b", AccountChanges(tier="golden"))
    assert len(events.entries) == 1, "what is refused is not recorded"


async def test_of_two_who_change_an_account_at_once_one_is_told(accounts: Accounts, db: Database) -> None:
    await accounts.add("a")
    issued = await accounts.issue_key("a")
    other = AccountStore(db, kit.config())
    keys = KeyStore(db, accounts._secrets, kit.config())

    counts = itertools.count(2)

    class Slow:
        """A ledger during whose commit somebody else decides."""

        def append(self, entry: Any) -> asyncio.Future[int]:
            async def meanwhile() -> int:
                await other.change("a", AccountChanges(tier="gold"))
                await keys.change_key(issued.key.id, KeyChanges(limits=LimitSet(concurrency=next(counts))))
                return 1

            return asyncio.ensure_future(meanwhile())

    late = KeyStore(db, accounts._secrets, kit.config(), Slow())
    with pytest.raises(SpiritsafeError, match="decide again"):
        await late.change("a", AccountChanges(limits=LimitSet(concurrency=1)))
    with pytest.raises(SpiritsafeError, match="decide again"):
        await late.change_key(issued.key.id, KeyChanges(limits=LimitSet(concurrency=1)))
    shown = await accounts.show("a")
    assert (shown.tier, shown.limits) == ("gold", LimitSet())


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "x" * 201, "acct_0000", "a\u202eb", "\x1b[31m"])
async def test_names_that_deceive_are_refused(tmp_path: Path, name: str) -> None:
    async with await Database.open(f"sqlite:///{tmp_path / 'g.db'}") as db:
        accounts = await Accounts.open(db, kit.secrets(tmp_path), kit.config())
        with pytest.raises(BadInput, match="name"):
            await accounts.add(name)


async def test_who_is_not_there_is_answered_with_the_nearest(accounts: Accounts) -> None:
    with pytest.raises(BadInput, match="none yet"):
        await accounts.show("anything")
    await accounts.add("alice")
    issued = await accounts.issue_key("alice")
    with pytest.raises(BadInput, match=r"did you mean alice\?"):
        await accounts.show("alcie")
    with pytest.raises(BadInput, match="has it; choose another"):
        await accounts.add("alice")
    near = issued.key.id[:-1] + "-"
    with pytest.raises(BadInput, match=issued.key.id):
        await accounts.revoke_key(near)
    with pytest.raises(BadInput, match=r"did you mean inference\?"):
        await accounts.issue_key("alice", scopes=["inferense"])
    with pytest.raises(BadInput, match="whole API key") as caught:
        await accounts.revoke_key(issued.text)
    assert issued.text.split("_")[2] not in str(caught.value)


async def test_listing_pages_searches_and_filters(accounts: Accounts) -> None:
    for name in ("Ägir", "bob", "Bobby", "100%_sure", "zoe"):
        await accounts.add(name, tier="gold" if name == "zoe" else "default", cluster="k" if name == "bob" else None)
    await accounts.suspend("zoe")
    first = await accounts.list(limit=3)
    rest = await accounts.list(after=first[-1].name, limit=3)
    assert len(first) == 3 and len(rest) == 2
    assert {account.name for account in [*first, *rest]} == {"Ägir", "bob", "Bobby", "100%_sure", "zoe"}
    assert {a.name for a in await accounts.list(search="BOB")} == {"bob", "Bobby"}
    assert [a.name for a in await accounts.list(search="Ägi")] == ["Ägir"]
    assert [a.name for a in await accounts.list(search="%_")] == ["100%_sure"]
    assert (
        [a.name for a in await accounts.list(suspended=True)]
        == ["zoe"]
        == [a.name for a in await accounts.list(tier="gold")]
    )
    assert [a.name for a in await accounts.list(cluster="k")] == ["bob"]
    assert await accounts.counts() == {"active": 4, "suspended": 1}


async def test_events_say_what_was_done_before_it_takes_effect(
    accounts: Accounts, events: kit.Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await accounts.add("a")
    issued = await accounts.issue_key("a")
    await accounts.accept_terms("a", "2026-11", accepted_by="key:x")
    await accounts.suspend("a", reason="copying", appeal="mail appeals@example.org", decided_by="key:x")
    await accounts.restore("a")
    await accounts.restore("a")
    assert events.names() == ["key_issued", "terms_accepted", "suspended", "restored"]
    assert {entry.subject for entry in events.entries} == {made.id}
    assert events.entries[1].data == {"version": "2026-11", "url": "https://example.org/terms", "accepted_by": "key:x"}
    assert events.entries[2].data["reason"] == "copying" and events.entries[2].data["decided_by"] == "key:x"
    assert issued.text.split("_")[2] not in repr(events.entries)

    events.stuck = True
    monkeypatch.setattr("spiritsafe.serve._account_store._LEDGER_S", 0.05)
    for attempt in (accounts.suspend("a"), accounts.revoke_key(issued.key.id), accounts.issue_key("a")):
        with pytest.raises(Unavailable, match="nothing was changed"):
            await attempt
    assert not (await accounts.show("a")).suspended and accounts.authenticate(issued.text.encode())
    assert len(await accounts.keys_of("a")) == 1


async def test_access_refuses_with_what_to_do(accounts: Accounts, clock: kit.Clock) -> None:
    config = kit.config()
    await accounts.add("a")
    text = (await accounts.issue_key("a", expires=clock.now + 10)).text.encode()

    def refusal(scope: str = "inference") -> ApiError:
        who = accounts.authenticate(text)
        assert who is not None
        with pytest.raises(ApiError) as caught:
            access(who, clock.now, config, scope)  # type: ignore[arg-type]
        return caught.value

    unaccepted = refusal()
    assert (unaccepted.status, unaccepted.code) == (403, "terms_not_accepted")
    assert "https://example.org/terms" in unaccepted.message and "2026-11" in unaccepted.message
    with pytest.raises(BadInput, match="version in force is '2026-11'"):
        await accounts.accept_terms("a", "2026-10")
    await accounts.accept_terms("a", "2026-11")
    who = accounts.authenticate(text)
    assert who is not None
    access(who, clock.now, config)
    assert (refusal("admin").status, refusal("admin").code) == (403, "scope_missing")
    await accounts.suspend("a", reason="copying", appeal="mail appeals@example.org")
    suspended = refusal()
    assert (suspended.status, suspended.code) == (403, "account_suspended")
    assert "copying" in suspended.message and "appeals@example.org" in suspended.message
    await accounts.restore("a")
    with pytest.raises(ApiError, match="expired") as caught:
        access(who, clock.now + 10, config)
    assert caught.value.status == 401
    optional = kit.config(terms={"version": "2027", "url": "https://example.org/t", "required": False})
    access(who, clock.now, optional)
    with pytest.raises(ApiError, match="tier"):
        access(who, clock.now, kit.config(tiers={"default": {}}).model_copy(update={"tiers": {}}))
    require_scope(who, clock.now, "usage", "inference")


async def test_keys_can_be_renamed_and_limited(accounts: Accounts) -> None:
    await accounts.add("a")
    issued = await accounts.issue_key("a", name="one")
    changed = await accounts.change_key(issued.key.id, KeyChanges(limits=LimitSet(requests_per_min=5)))
    assert changed.name == "one" and changed.limits.requests_per_min == 5
    who = accounts.authenticate(issued.text.encode())
    assert who is not None and who.key_limits.requests_per_min == 5
    assert (await accounts.change_key(issued.key.id, KeyChanges(name=None))).name is None


async def test_identities_by_account_for_those_who_settle_later(accounts: Accounts) -> None:
    made = await accounts.add("a")
    issued = await accounts.issue_key("a", limits=LimitSet(concurrency=1))
    await accounts.revoke_key(issued.key.id)
    bare = accounts.identity(made.id)
    assert bare is not None and bare.key_id == "" and bare.scopes == frozenset()
    keyed = accounts.identity(made.id, issued.key.id)
    assert keyed is not None and keyed.key_id == issued.key.id and keyed.key_limits.concurrency == 1
    assert accounts.identity("acct_nobody") is None


async def test_other_secrets_and_lost_tiers_are_refused_at_start(
    accounts: Accounts, db: Database, tmp_path: Path
) -> None:
    other = tmp_path / "second-replica"
    other.mkdir()
    with pytest.raises(BadInput, match="another replica"):
        await Accounts.open(db, kit.secrets(other), kit.config())
    await accounts.add("a", tier="gold")
    with pytest.raises(BadInput, match="gold, which the config lacks"):
        await Accounts.open(db, kit.secrets(tmp_path), kit.config(tiers={"default": {}}))
