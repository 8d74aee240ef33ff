"""Whatever is done to accounts, in whatever order: what a guard refreshed bit by bit is what one that starts now reads."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

import accounts_kit as kit
from spiritsafe.serve._account_store import AccountChanges
from spiritsafe.serve._accounts import Accounts
from spiritsafe.serve._config import LimitSet
from spiritsafe.serve._key_store import KeyStore
from spiritsafe.serve._numbers import next_change
from spiritsafe.state import Database

WHO = st.integers(0, 2)
STEPS = st.sampled_from(["observe", "notify", "review"])
ACTIONS = st.one_of(
    st.tuples(st.just("issue"), WHO, st.none()),
    st.tuples(st.just("expiring"), WHO, st.none()),
    st.tuples(st.just("revoke"), WHO, st.none()),
    st.tuples(st.just("rotate"), WHO, st.none()),
    st.tuples(st.just("suspend"), WHO, st.none()),
    st.tuples(st.just("restore"), WHO, st.none()),
    st.tuples(st.just("tier"), WHO, st.sampled_from(["default", "gold"])),
    st.tuples(st.just("limits"), WHO, st.integers(0, 3)),
    st.tuples(st.just("cluster"), WHO, st.sampled_from(["c1", "c2", None])),
    st.tuples(st.just("terms"), WHO, st.none()),
    st.tuples(st.just("step account"), WHO, STEPS),
    st.tuples(st.just("step cluster"), st.sampled_from(["c1", "c2"]), STEPS),
    st.tuples(st.just("refresh"), WHO, st.none()),
    st.tuples(st.just("wait"), WHO, st.none()),
)


@settings(max_examples=40, deadline=None)
@given(actions=st.lists(ACTIONS, min_size=5, max_size=40))
def test_bit_by_bit_is_as_good_as_all_at_once(actions: list[tuple[str, Any, Any]]) -> None:
    asyncio.run(compare(actions))


async def compare(actions: list[tuple[str, Any, Any]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        clock, config, secrets = kit.Clock(), kit.config(), kit.secrets(Path(folder))
        async with await Database.open(f"sqlite:///{folder}/g.db") as db:
            store = KeyStore(db, secrets, config, kit.Events(), clock=clock)
            following = await Accounts.open(db, secrets, config, clock=clock)
            ids = [(await store.add(f"a{number}")).id for number in range(3)]
            texts: list[str] = [(await store.issue_key(account)).text for account in ids]
            for what, who, value in actions:
                await act(store, following, db, clock, ids, texts, what, who, value)
                for text in texts:  # identities are made when asked for, and must not outlive what they were made of
                    following.authenticate(text.encode())
            await following.refresh()
            fresh = await Accounts.open(db, secrets, config, clock=clock)
            for text in texts:
                for later in (0.0, 50.0, 200.0):
                    clock.now += later
                    assert shown(following, text) == shown(fresh, text)
                    clock.now -= later


async def act(
    store: KeyStore, following: Accounts, db: Database, clock: kit.Clock, ids: list[str], texts: list[str],
    what: str, who: Any, value: Any,
) -> None:  # fmt: skip
    account = ids[who] if isinstance(who, int) else ""
    keys = [key for key in await store.keys_of(account) if key.state(clock.now) == "active"] if account else []
    if what == "issue":
        texts.append((await store.issue_key(account)).text)
    elif what == "expiring":
        texts.append((await store.issue_key(account, expires=clock.now + 100)).text)
    elif what == "revoke" and keys:
        await store.revoke_key(keys[-1].id)
    elif what == "rotate" and keys:
        texts.append((await store.rotate_key(keys[0].id, overlap_s=30)).text)
    elif what == "suspend":
        await store.suspend(account, reason="r", appeal="a")
    elif what == "restore":
        await store.restore(account)
    elif what == "tier":
        await store.change(account, AccountChanges(tier=value))
    elif what == "limits":
        await store.change(account, AccountChanges(limits=LimitSet(concurrency=value)))
    elif what == "cluster":
        await store.set_cluster(account, value)
    elif what == "terms":
        await store.accept_terms(account, "2026-11")
    elif what.startswith("step"):
        subject = f"account:{account}" if account else f"cluster:{who}"
        async with db.transaction() as tx:
            change = await next_change(tx)
            await tx.execute(
                "INSERT INTO ladder (subject, step, shadow, reason, decided_by, at, changed)"
                " VALUES ($1, $2, 0, 'r', 'watch', $3, $4) ON CONFLICT (subject) DO UPDATE SET step = $2, changed = $4",
                subject, value, clock.now, change,
            )  # fmt: skip
    elif what == "refresh":
        await following.refresh()
    elif what == "wait":
        clock.now += 20


def shown(accounts: Accounts, text: str) -> Any:
    identity = accounts.authenticate(text.encode())
    return identity and {name: getattr(identity, name) for name in identity.__dataclass_fields__}
