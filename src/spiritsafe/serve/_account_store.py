"""What an operator does with accounts, in the database. The ledger says it before it takes effect."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

from spiritsafe.config import StrictModel
from spiritsafe.errors import BadInput, SpiritsafeError
from spiritsafe.serve._account_rows import Account, limits_text
from spiritsafe.serve._account_text import APPEAL, ID_START, REASON, account_name, escaped, nearest, one_line
from spiritsafe.serve._config import GuardConfig, LimitSet
from spiritsafe.serve._numbers import next_change
from spiritsafe.serve._outbox import put_message
from spiritsafe.state import Database, Transaction, Unavailable

__all__ = ["AccountChanges", "AccountStore", "EventLog", "NotFound"]

_ID_LETTERS = "0123456789abcdefghjkmnpqrstvwxyz"  # no i, l, o, u: easy to read out
_LEDGER_S = 10.0
_RECORDED = ("tier", "limits", "org", "cluster", "twin_consent")  # no names and payment ids: the ledger keeps for good


class NotFound(BadInput):
    """No account or key has that id."""


class EventLog(Protocol):
    """The part of the ledger that is used here."""

    def append(self, entry: Any) -> Awaitable[int]: ...


class AccountChanges(StrictModel):
    """What to change of an account; what is not given stays. None takes an organisation, payment id or cluster away."""

    name: str | None = None
    tier: str | None = None
    org: str | None = None
    payment_id: str | None = None
    twin_consent: bool | None = None
    limits: LimitSet | None = None
    cluster: str | None = None


class AccountStore:
    """Accounts in the database. `ref` is an account's id or its name.

    Every method that changes something raises BadInput where the request makes no sense and Unavailable where database
    or ledger cannot be written; then nothing was changed.
    """

    def __init__(
        self,
        db: Database,
        config: GuardConfig,
        ledger: EventLog | None = None,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._db, self._config, self._ledger, self._clock = db, config, ledger, clock

    async def add(
        self,
        name: str,
        *,
        tier: str = "default",
        org: str | None = None,
        payment_id: str | None = None,
        twin_consent: bool = False,
        limits: LimitSet | None = None,
        cluster: str | None = None,
    ) -> Account:
        """A new account. It asks for nothing until it has a key."""
        account_id = ID_START + "".join(secrets.choice(_ID_LETTERS) for _ in range(14))
        given = {"org": org, "payment_id": payment_id, "cluster": cluster}
        checked = {key: None if value is None else one_line(key, value) for key, value in given.items()}
        name, tier = account_name(name), self._tier(tier)
        async with self._db.transaction() as tx:
            change = await next_change(tx)
            await _untaken(tx, name)
            await tx.execute(
                "INSERT INTO accounts (id, name, org, tier, created, twin_consent, payment_id, limits, cluster,"
                " changed) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
                account_id, name, checked["org"], tier, self._clock(), int(twin_consent), checked["payment_id"],
                limits_text(limits or LimitSet()), checked["cluster"], change,
            )  # fmt: skip
        await self.refresh()
        return await self.show(account_id)

    async def show(self, ref: str) -> Account:
        """The account of that id or name.

        Raises:
            NotFound: there is none; names the nearest.
        """
        async with self._db.transaction(write=False) as tx:
            return await _find(tx, ref)

    async def list(
        self,
        *,
        after: str | None = None,
        limit: int = 100,
        search: str | None = None,
        suspended: bool | None = None,
        tier: str | None = None,
        org: str | None = None,
        cluster: str | None = None,
    ) -> Sequence[Account]:
        """Accounts in the order of their names, from the one after the name `after` on. search: part of name or id."""
        like = None if search is None else "%" + escaped(search) + "%"
        status = None if suspended is None else "suspended" if suspended else "active"
        rows = await self._db.fetch(
            "SELECT * FROM accounts WHERE (CAST($1 AS TEXT) IS NULL OR name > $1)"
            " AND (CAST($2 AS TEXT) IS NULL OR name LIKE $2 ESCAPE '!' OR id LIKE $2 ESCAPE '!'"
            " OR LOWER(name) LIKE LOWER($2) ESCAPE '!')"
            " AND (CAST($3 AS TEXT) IS NULL OR status = $3) AND (CAST($4 AS TEXT) IS NULL OR tier = $4)"
            " AND (CAST($5 AS TEXT) IS NULL OR org = $5) AND (CAST($6 AS TEXT) IS NULL OR cluster = $6)"
            " ORDER BY name LIMIT $7",
            after, like, status, tier, org, cluster, limit,
        )  # fmt: skip
        return [Account.from_row(row) for row in rows]

    async def counts(self) -> dict[str, int]:
        """How many accounts are "active", and how many "suspended"."""
        rows = await self._db.fetch("SELECT status, COUNT(*) AS n FROM accounts GROUP BY status")
        return {"active": 0, "suspended": 0} | {row["status"]: row["n"] for row in rows}

    async def change(self, ref: str, changes: AccountChanges, *, decided_by: str = "operator") -> Account:
        """Change what `changes` gives, all of it or nothing. The ledger has tier, limits, organisation, cluster and
        consent before and after, as the event `account_changed`.

        Raises:
            SpiritsafeError: somebody else changed the account meanwhile.
        """
        given = {name: getattr(changes, name) for name in changes.model_fields_set}
        for field in ("name", "tier", "twin_consent", "limits"):
            if field in given and given[field] is None:
                raise BadInput(f"{field}: cannot be taken away, only set")
        if "tier" in given:
            self._tier(given["tier"])
        for key in {"org", "payment_id", "cluster"} & given.keys():
            given[key] = None if given[key] is None else one_line(key, given[key])
        if "name" in given:
            given["name"] = account_name(given["name"])
        async with self._db.transaction(write=False) as tx:
            seen = await _find(tx, ref)
            await _untaken(tx, given.get("name"), seen)
        await self._record_change(seen, replace(seen, **given), decided_by)
        async with self._db.transaction() as tx:
            change = await next_change(tx)
            account = await _find(tx, seen.id)
            if _recorded(account) != _recorded(seen):
                raise SpiritsafeError(f"account {seen.id}: somebody else changed it just now; look, and decide again")
            await _untaken(tx, given.get("name"), account)
            new = {field: given.get(field, getattr(account, field)) for field in AccountChanges.model_fields}
            await tx.execute(
                "UPDATE accounts SET name = $2, tier = $3, org = $4, payment_id = $5, twin_consent = $6, limits = $7,"
                " cluster = $8, changed = $9 WHERE id = $1",
                account.id, new["name"], new["tier"], new["org"], new["payment_id"], int(new["twin_consent"]),
                limits_text(new["limits"]), new["cluster"], change,
            )  # fmt: skip
        await self.refresh()
        return await self.show(account.id)

    async def set_cluster(self, ref: str, cluster: str | None, *, decided_by: str = "operator") -> Account:
        """Link the account to others that are judged to be one customer; None unlinks it."""
        return await self.change(ref, AccountChanges(cluster=cluster), decided_by=decided_by)

    async def suspend(
        self, ref: str, *, reason: str = REASON, appeal: str = APPEAL, decided_by: str = "operator"
    ) -> Account:
        """Refuse the account's requests from now on, and tell the webhooks unless it is suspended already. Reason and
        appeal note are shown to the customer."""
        reason, appeal = one_line("reason", reason, 2000), one_line("appeal", appeal, 2000)
        account = await self.show(ref)
        data = {"reason": reason, "appeal": appeal, "decided_by": decided_by}
        await self._record("suspended", account.id, data)
        async with self._db.transaction() as tx:
            change = await next_change(tx)
            if not (await _find(tx, account.id)).suspended:
                said = {"reason": reason, "decided_by": decided_by}
                hooks = self._config.webhooks
                await put_message(tx, hooks, "suspended", f"account:{account.id}", said, at=self._clock())
            await _set_status(tx, account.id, "suspended", reason, appeal, change)
        await self.refresh()
        return await self.show(account.id)

    async def restore(self, ref: str, *, decided_by: str = "operator") -> Account:
        """Lift a suspension; does nothing where there is none."""
        account = await self.show(ref)
        if not account.suspended:
            return account
        await self._record("restored", account.id, {"decided_by": decided_by})
        async with self._db.transaction() as tx:
            await _set_status(tx, account.id, "active", None, None, await next_change(tx))
        await self.refresh()
        return await self.show(account.id)

    async def accept_terms(self, ref: str, version: str, *, accepted_by: str = "operator") -> Account:
        """Note that the customer accepted the terms that are in force.

        Raises:
            BadInput: the guard has no terms, or they have another version.
        """
        terms = self._config.terms
        if terms is None:
            raise BadInput("terms accept: the guard's config has no terms section, so there is nothing to accept")
        if version != terms.version:
            raise BadInput(f"terms version {version[:80]!r}: the version in force is {terms.version!r} ({terms.url})")
        account = await self.show(ref)
        at = self._clock()
        data = {"version": version, "url": terms.url, "accepted_by": accepted_by}
        await self._record("terms_accepted", account.id, data)
        async with self._db.transaction() as tx:
            await tx.execute(
                "UPDATE accounts SET terms_version = $2, terms_accepted = $3, changed = $4 WHERE id = $1",
                account.id, version, at, await next_change(tx),
            )  # fmt: skip
        await self.refresh()
        return await self.show(account.id)

    async def _record_change(self, before: Account, after: Account, decided_by: str) -> None:
        old, new = _recorded(before), _recorded(after)
        if changed := [field for field in _RECORDED if old[field] != new[field]]:
            data = {side: {f: facts[f] for f in changed} for side, facts in (("before", old), ("after", new))}
            await self._record("account_changed", before.id, {**data, "decided_by": decided_by})

    async def _record(self, name: str, subject: str, data: dict[str, Any]) -> int | None:
        """Wait until the ledger holds the event; its row number, None without a ledger."""
        if self._ledger is None:
            return None
        from spiritsafe.ledger import Event

        written = self._ledger.append(Event(ts=self._clock(), name=name, subject=subject, data=data))
        try:
            return await asyncio.wait_for(asyncio.shield(written), _LEDGER_S)
        except TimeoutError:
            raise Unavailable(f"ledger: {name} is not written after {_LEDGER_S:.0f} s; nothing was changed") from None

    async def refresh(self) -> bool:
        """Called when a change is committed: what is kept in memory follows. True if something did."""
        return False

    def _tier(self, tier: str) -> str:
        if tier in self._config.tiers:
            return tier
        raise BadInput(f"tier {tier[:80]!r}: not in the guard's config; " + nearest(tier, self._config.tiers))


async def _find(tx: Transaction, ref: str) -> Account:
    rows = await tx.fetch("SELECT * FROM accounts WHERE id = $1 OR name = $1", ref)
    if rows:
        return Account.from_row(rows[0])
    newest = await tx.fetch("SELECT id, name FROM accounts ORDER BY changed DESC LIMIT 2000")
    known = [value for row in newest for value in (row["name"], row["id"])]
    hint = nearest(ref, known) if known else "there are none yet; make one with: spiritsafe accounts add NAME"
    raise NotFound(f"account {ref[:80]!r}: no account has that id or name; {hint}")


async def _set_status(
    tx: Transaction, account_id: str, status: str, reason: str | None, appeal: str | None, change: int
) -> None:
    await tx.execute(
        "UPDATE accounts SET status = $2, reason = $3, appeal = $4, changed = $5 WHERE id = $1",
        account_id, status, reason, appeal, change,
    )  # fmt: skip


def _recorded(account: Account) -> dict[str, Any]:
    facts = account.to_dict()
    return {field: facts[field] for field in _RECORDED}


async def _untaken(tx: Transaction, name: str | None, account: Account | None = None) -> None:
    """Raise unless the name is free; None and the account's own name are."""
    if name is None or (account is not None and account.name == name):
        return
    if taken := await tx.fetch("SELECT id FROM accounts WHERE name = $1", name):
        raise BadInput(f"account name {name[:80]!r}: {taken[0]['id']} has it; choose another")
