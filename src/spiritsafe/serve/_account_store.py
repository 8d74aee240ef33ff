"""What an operator does with accounts, in the database. The ledger says it before it takes effect."""

from __future__ import annotations

import asyncio
import difflib
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Protocol

from spiritsafe.config import StrictModel
from spiritsafe.errors import BadInput
from spiritsafe.serve._account_rows import Account, limits_text
from spiritsafe.serve._config import GuardConfig, LimitSet
from spiritsafe.state import Database, Transaction, Unavailable

__all__ = [
    "APPEAL",
    "REASON",
    "AccountChanges",
    "AccountStore",
    "EventLog",
    "NotFound",
    "next_change",
    "next_number",
    "one_line",
]

REASON: Final = "by decision of the operator"
APPEAL: Final = "write to the operator of this API"
_ID_START = "acct_"
_ID_LETTERS = "0123456789abcdefghjkmnpqrstvwxyz"  # no i, l, o, u: easy to read out
_LONGEST = 200
_LEDGER_S = 10.0


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
        account_id = _ID_START + "".join(secrets.choice(_ID_LETTERS) for _ in range(14))
        given = {"org": org, "payment_id": payment_id, "cluster": cluster}
        checked = {key: None if value is None else one_line(key, value) for key, value in given.items()}
        name, tier = _name(name), self._tier(tier)
        async with self._db.transaction() as tx:
            change = await next_change(tx)
            await _untaken(tx, name)
            await tx.execute(
                "INSERT INTO accounts (id, name, org, tier, created, twin_consent, payment_id, limits, cluster,"
                " changed) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
                account_id, name, checked["org"], tier, self._clock(), int(twin_consent), checked["payment_id"],
                limits_text(limits or LimitSet()), checked["cluster"], change,
            )  # fmt: skip
        await self._after_change()
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
        like = None if search is None else "%" + _escaped(search) + "%"
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

    async def change(self, ref: str, changes: AccountChanges) -> Account:
        """Change what `changes` gives, all of it or nothing."""
        given = {name: getattr(changes, name) for name in changes.model_fields_set}
        for field in ("name", "tier", "twin_consent", "limits"):
            if field in given and given[field] is None:
                raise BadInput(f"{field}: cannot be taken away, only set")
        if "tier" in given:
            self._tier(given["tier"])
        for key in {"org", "payment_id", "cluster"} & given.keys():
            given[key] = None if given[key] is None else one_line(key, given[key])
        async with self._db.transaction() as tx:
            change = await next_change(tx)
            account = await _find(tx, ref)
            if "name" in given and (name := _name(given["name"])) != account.name:
                await _untaken(tx, name)
                given["name"] = name
            new = {field: given.get(field, getattr(account, field)) for field in AccountChanges.model_fields}
            await tx.execute(
                "UPDATE accounts SET name = $2, tier = $3, org = $4, payment_id = $5, twin_consent = $6, limits = $7,"
                " cluster = $8, changed = $9 WHERE id = $1",
                account.id, new["name"], new["tier"], new["org"], new["payment_id"], int(new["twin_consent"]),
                limits_text(new["limits"]), new["cluster"], change,
            )  # fmt: skip
        await self._after_change()
        return await self.show(account.id)

    async def set_tier(self, ref: str, tier: str) -> Account:
        return await self.change(ref, AccountChanges(tier=tier))

    async def set_limits(self, ref: str, limits: LimitSet) -> Account:
        """Replace the account's own limits."""
        return await self.change(ref, AccountChanges(limits=limits))

    async def set_cluster(self, ref: str, cluster: str | None) -> Account:
        """Link the account to others that are judged to be one customer; None unlinks it."""
        return await self.change(ref, AccountChanges(cluster=cluster))

    async def suspend(
        self, ref: str, *, reason: str = REASON, appeal: str = APPEAL, decided_by: str = "operator"
    ) -> Account:
        """Refuse the account's requests from now on. Reason and appeal note are shown to the customer."""
        reason, appeal = one_line("reason", reason, 2000), one_line("appeal", appeal, 2000)
        account = await self.show(ref)
        data = {"reason": reason, "appeal": appeal, "decided_by": decided_by}
        await self._record("suspended", account.id, data)
        return await self._set_status(account.id, "suspended", reason, appeal)

    async def restore(self, ref: str, *, decided_by: str = "operator") -> Account:
        """Lift a suspension; does nothing where there is none."""
        account = await self.show(ref)
        if not account.suspended:
            return account
        await self._record("restored", account.id, {"decided_by": decided_by})
        return await self._set_status(account.id, "active", None, None)

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
        await self._after_change()
        return await self.show(account.id)

    async def _set_status(self, account_id: str, status: str, reason: str | None, appeal: str | None) -> Account:
        async with self._db.transaction() as tx:
            await tx.execute(
                "UPDATE accounts SET status = $2, reason = $3, appeal = $4, changed = $5 WHERE id = $1",
                account_id, status, reason, appeal, await next_change(tx),
            )  # fmt: skip
        await self._after_change()
        return await self.show(account_id)

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

    async def _after_change(self) -> None:
        """Called when a change is committed."""

    def _tier(self, tier: str) -> str:
        if tier in self._config.tiers:
            return tier
        raise BadInput(f"tier {tier[:80]!r}: not in the guard's config; " + _nearest(tier, self._config.tiers))


async def next_change(tx: Transaction) -> int:
    """The number of this change. Taking it first makes writers wait for each other, so that commits come in the order
    of their numbers and a reader that asks for what is newer misses nothing."""
    return await next_number(tx, "changes")


async def next_number(tx: Transaction, counter: str) -> int:
    """Count on and return the new value, 1 at first."""
    rows = await tx.fetch(
        "INSERT INTO counters (name, value) VALUES ($1, 1)"
        " ON CONFLICT (name) DO UPDATE SET value = counters.value + 1 RETURNING value",
        counter,
    )
    return int(rows[0]["value"])


async def _find(tx: Transaction, ref: str) -> Account:
    rows = await tx.fetch("SELECT * FROM accounts WHERE id = $1 OR name = $1", ref)
    if rows:
        return Account.from_row(rows[0])
    newest = await tx.fetch("SELECT id, name FROM accounts ORDER BY changed DESC LIMIT 2000")
    known = [value for row in newest for value in (row["name"], row["id"])]
    hint = _nearest(ref, known) if known else "there are none yet; make one with: spiritsafe accounts add NAME"
    raise NotFound(f"account {ref[:80]!r}: no account has that id or name; {hint}")


async def _untaken(tx: Transaction, name: str) -> None:
    if taken := await tx.fetch("SELECT id FROM accounts WHERE name = $1", name):
        raise BadInput(f"account name {name[:80]!r}: {taken[0]['id']} has it; choose another")


def _nearest(wanted: str, known: Any) -> str:
    names = list(known)
    near = difflib.get_close_matches(wanted, names, n=1)
    return f"did you mean {near[0]}?" if near else f"known: {', '.join(names[:6])}"


def _name(name: str) -> str:
    name = one_line("name", name)
    if name.startswith(_ID_START):
        raise BadInput(f"name {name!r}: a name must not look like an account id; choose one without {_ID_START}")
    return name


def one_line(label: str, value: str, longest: int = _LONGEST) -> str:
    """One printable line: what is shown to people must not hide what it says."""
    value = value.strip()
    if not value or len(value) > longest or not value.isprintable():
        raise BadInput(f"{label} {value[:60]!r}: write 1 to {longest} printable characters on one line")
    return value


def _escaped(text: str) -> str:
    return text.replace("!", "!!").replace("%", "!%").replace("_", "!_")
