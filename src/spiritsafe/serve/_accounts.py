"""Accounts as the guard serves them: kept in memory, refreshed with what changed, bound to watermark slots."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any, Self

from spiritsafe.errors import BadInput, Refused
from spiritsafe.keys import SLOTS, KeySet
from spiritsafe.serve._account_rows import Account, ApiKey, ladder_state
from spiritsafe.serve._account_store import EventLog
from spiritsafe.serve._config import GuardConfig
from spiritsafe.serve._directory import Directory
from spiritsafe.serve._key_store import KeyStore
from spiritsafe.serve._numbers import next_change, next_number
from spiritsafe.serve._secrets import GuardSecrets
from spiritsafe.serve._types import Identity
from spiritsafe.state import Database, Transaction

__all__ = ["Accounts"]

_PAGE = 2000


class Accounts(KeyStore):
    """The store, and all of it in memory: `authenticate` asks no database and goes on when it is away.

    Changes made by other processes are seen at the next `refresh`; own ones when the method returns.
    """

    def __init__(
        self,
        db: Database,
        secrets: GuardSecrets,
        config: GuardConfig,
        ledger: EventLog | None,
        keys: KeySet | None,
        clock: Callable[[], float],
    ) -> None:
        super().__init__(db, secrets, config, ledger, clock=clock)
        self._keys = keys
        self._directory = Directory(secrets.pepper)
        self._seen = 0
        self._refreshing = asyncio.Lock()
        self._binding: dict[str, asyncio.Task[int]] = {}

    @classmethod
    async def open(
        cls,
        db: Database,
        secrets: GuardSecrets,
        config: GuardConfig,
        ledger: EventLog | None = None,
        *,
        keys: KeySet | None = None,
        clock: Callable[[], float] = time.time,
    ) -> Self:
        """Read all accounts. keys: the watermark's, named when a slot is bound.

        Raises:
            BadInput: the secrets are not those that this database's keys were made with, or an account is on a tier
                that the config lacks.
            Unavailable: the database is away.
        """
        accounts = cls(db, secrets, config, ledger, keys, clock)
        await accounts.check_secrets()
        await accounts.refresh()
        if missing := sorted(accounts._directory.tiers() - set(config.tiers)):
            raise BadInput(f"tiers: accounts are on {', '.join(missing)}, which the config lacks; add it or move them")
        return accounts

    def authenticate(self, presented: bytes) -> Identity | None:
        """Who presents this API key (bytes as sent, without `Bearer `); None where it is unknown, expired or revoked.

        From memory, in a few microseconds; an unknown id takes the same steps as a wrong secret (see `Directory`).
        """
        return self._directory.authenticate(presented, self._clock())

    def identity(self, account_id: str, key_id: str | None = None) -> Identity | None:
        """An account as it stands, asking with that key (valid or not) or with none; None if there is none."""
        account = self._directory.account(account_id)
        if account is None:
            return None
        return self._directory.identity(account, self._directory.key(account_id, key_id) if key_id else None)

    def active_identity(self, account_id: str, key_id: str) -> Identity | None:
        """The identity of a key that is valid now, for who has presented it before; None if it is not."""
        key = self._directory.key(account_id, key_id)
        return self.identity(account_id, key_id) if key and key.state(self._clock()) == "active" else None

    def __len__(self) -> int:
        return len(self._directory)

    async def refresh(self) -> bool:
        """Read what changed since the last time; True if something did.

        Raises:
            Unavailable: the database is away; what was read before stays in force.
        """
        async with self._refreshing:
            counter = await self._db.fetch("SELECT value FROM counters WHERE name = 'changes'")
            newest = int(counter[0]["value"]) if counter else 0
            if newest == self._seen:
                return False
            # What is written while this reads has a higher number: it is read again next time, never missed.
            await self._read("accounts", lambda rows: self._directory.put_accounts(map(Account.from_row, rows)))
            await self._read("api_keys", lambda rows: self._directory.put_keys(map(ApiKey.from_row, rows)))
            await self._read("ladder", lambda rows: self._directory.put_ladder(map(ladder_state, rows)))
            self._seen = newest
            return True

    async def bind_slot(self, account_id: str) -> int:
        """The account's watermark slot, 1 … SLOTS - 1 (0 is the house). When this returns the ledger holds the binding.

        Raises:
            Refused: all slots are taken.
            Unavailable: database or ledger cannot be written.
        """
        account = self._directory.account(account_id)
        if account is not None and account.slot is not None:
            return account.slot
        task = self._binding.get(account_id)
        if task is None:
            task = self._binding[account_id] = asyncio.create_task(self._bind(account_id))
            task.add_done_callback(lambda done: self._bound(account_id, done))
        return await asyncio.shield(task)  # one client that goes away must not fail the others

    async def _bind(self, account_id: str) -> int:
        if self._ledger is None:
            raise RuntimeError("slots are bound in the ledger, and these accounts have none")
        async with self._db.transaction() as tx:
            change = await next_change(tx)
            row = await _slot_row(tx, account_id)
            if (slot := row["slot"]) is None:
                slot = await next_number(tx, "slots")
                if slot >= SLOTS:
                    raise Refused(f"account {account_id}: all {SLOTS - 1} watermark slots are taken; use a new key set")
                await tx.execute("UPDATE accounts SET slot = $2, changed = $3 WHERE id = $1", account_id, slot, change)
        if row["slot_seq"] is None:
            # A crash between the event and the update repeats the event: the ledger may say it twice, never otherwise.
            data: dict[str, Any] = {"slot": slot}
            if self._keys is not None:
                data |= {"key_set": self._keys.id, "epoch": self._keys.current.name}
            seq = await self._record("slot_bound", account_id, data)
            async with self._db.transaction() as tx:
                await tx.execute(
                    "UPDATE accounts SET slot_seq = $2, changed = $3 WHERE id = $1 AND slot_seq IS NULL",
                    account_id, seq, await next_change(tx),
                )  # fmt: skip
        await self.refresh()
        return int(slot)

    def _bound(self, account_id: str, task: asyncio.Task[int]) -> None:
        self._binding.pop(account_id, None)
        if not task.cancelled():
            task.exception()  # those who wait were told; nobody may be left to

    async def _read(self, table: str, put: Callable[[list[Mapping[str, Any]]], None]) -> None:
        changed, last = self._seen + 1, ""
        query = _QUERIES[table]
        while rows := await self._db.fetch(query, changed, last, _PAGE):
            put(rows)
            changed, last = rows[-1]["changed"], rows[-1]["key"]
            if len(rows) < _PAGE:
                break


async def _slot_row(tx: Transaction, account_id: str) -> Mapping[str, Any]:
    rows = await tx.fetch("SELECT slot, slot_seq FROM accounts WHERE id = $1", account_id)
    if not rows:
        raise BadInput(f"account {account_id[:80]!r}: there is none with that id")
    return rows[0]


_QUERIES = {
    "accounts": "SELECT *, id AS key FROM accounts WHERE (changed, id) > ($1, $2) ORDER BY changed, id LIMIT $3",
    "api_keys": "SELECT *, id AS key FROM api_keys WHERE (changed, id) > ($1, $2) ORDER BY changed, id LIMIT $3",
    "ladder": "SELECT *, subject AS key FROM ladder WHERE (changed, subject) > ($1, $2)"
    " ORDER BY changed, subject LIMIT $3",
}
