"""What an operator does with API keys, in the database."""

from __future__ import annotations

import difflib
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from spiritsafe.config import StrictModel
from spiritsafe.errors import BadInput, SpiritsafeError
from spiritsafe.serve._account_rows import ApiKey, limits_text, plain_limits
from spiritsafe.serve._account_store import AccountStore, EventLog, NotFound
from spiritsafe.serve._account_text import one_line
from spiritsafe.serve._api_keys import SCOPES, KeyText, key_mac, new_key, parse_key
from spiritsafe.serve._config import GuardConfig, LimitSet
from spiritsafe.serve._numbers import next_change
from spiritsafe.serve._secrets import GuardSecrets
from spiritsafe.state import Database, Transaction

__all__ = ["IssuedKey", "KeyChanges", "KeyStore"]

_DAY_S = 86400.0
_LONGEST_S = 100 * 366 * _DAY_S


@dataclass(frozen=True, slots=True)
class IssuedKey:
    """A key and, this once, its whole text."""

    key: ApiKey
    text: str = field(repr=False)


class KeyChanges(StrictModel):
    """What to change of a key; what is not given stays."""

    name: str | None = None
    limits: LimitSet | None = None


class KeyStore(AccountStore):
    """Keys in the database; raises as `AccountStore` does."""

    def __init__(
        self,
        db: Database,
        secrets: GuardSecrets,
        config: GuardConfig,
        ledger: EventLog | None = None,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(db, config, ledger, clock=clock)
        self._secrets = secrets

    async def check_secrets(self) -> None:
        """Make sure that the keys in this database were made with these secrets: with others none would be known.

        Raises:
            BadInput: they were not, as when a second replica made a file of its own.
        """
        mark = int.from_bytes(self._secrets.derive("fingerprint")[:7], "big")
        async with self._db.transaction() as tx:
            await tx.execute(
                "INSERT INTO counters (name, value) VALUES ('secrets', $1) ON CONFLICT (name) DO NOTHING", mark
            )
            kept = await tx.fetch("SELECT value FROM counters WHERE name = 'secrets'")
        if kept[0]["value"] != mark:
            raise BadInput(
                f"{self._config.state.secrets}: not the secrets that this database's API keys were made with; copy the"
                " file from another replica, or restore it from the backup"
            )

    async def issue_key(
        self,
        ref: str,
        *,
        name: str | None = None,
        scopes: Iterable[str] = ("inference",),
        expires: float | None = None,
        limits: LimitSet | None = None,
    ) -> IssuedKey:
        """A new key for an account. expires: Unix time; never unless given."""
        account = await self.show(ref)
        wanted = _checked_scopes(scopes)
        if expires is not None and not 0 < expires - self._clock() <= _LONGEST_S:
            raise BadInput("key issue: the time of expiry must lie ahead, by 100 years at most")
        label = None if name is None else one_line("key name", name)
        return await self._issue(account.id, label, wanted, expires, limits or LimitSet(), replaces=None)

    async def keys_of(self, ref: str) -> list[ApiKey]:
        """All keys of an account, the newest first."""
        account = await self.show(ref)
        rows = await self._db.fetch("SELECT * FROM api_keys WHERE account = $1 ORDER BY created DESC, id", account.id)
        return [ApiKey.from_row(row) for row in rows]

    async def show_key(self, key_id: str) -> ApiKey:
        """The key of that id.

        Raises:
            NotFound: there is none; names the nearest.
        """
        async with self._db.transaction(write=False) as tx:
            return await _find_key(tx, key_id)

    async def change_key(self, key_id: str, changes: KeyChanges, *, decided_by: str = "operator") -> ApiKey:
        """Change a key's name or its own limits. The ledger has the limits before and after, as `key_changed`.

        Raises:
            SpiritsafeError: somebody else changed its limits meanwhile.
        """
        seen = await self.show_key(key_id)
        limits = seen.limits if changes.limits is None else changes.limits
        if limits != seen.limits:
            sides = {"before": {"limits": plain_limits(seen.limits)}, "after": {"limits": plain_limits(limits)}}
            await self._record("key_changed", seen.account, {"key_id": seen.id, **sides, "decided_by": decided_by})
        async with self._db.transaction() as tx:
            change = await next_change(tx)
            key = await _find_key(tx, key_id)
            if key.limits != seen.limits:
                raise SpiritsafeError(f"key {key.id}: somebody else changed it just now; look, and decide again")
            name = key.name
            if "name" in changes.model_fields_set:
                name = None if changes.name is None else one_line("key name", changes.name)
            await tx.execute(
                "UPDATE api_keys SET name = $2, limits = $3, changed = $4 WHERE id = $1",
                key.id, name, limits_text(limits), change,
            )  # fmt: skip
        await self.refresh()
        return await self.show_key(key.id)

    async def revoke_key(self, key_id: str) -> ApiKey:
        """End a key now; does nothing where it is revoked."""
        key = await self.show_key(key_id)
        if key.revoked is not None:
            return key
        await self._record("key_revoked", key.account, {"key_id": key.id})
        async with self._db.transaction() as tx:
            change = await next_change(tx)
            await tx.execute(
                "UPDATE api_keys SET revoked = $2, changed = $3 WHERE id = $1 AND revoked IS NULL",
                key.id, self._clock(), change,
            )  # fmt: skip
        await self.refresh()
        return await self.show_key(key.id)

    async def rotate_key(self, key_id: str, *, overlap_s: float = _DAY_S) -> IssuedKey:
        """A new key like this one, which itself expires `overlap_s` seconds from now (or before, as it would have)."""
        key = await self.show_key(key_id)
        now = self._clock()
        if (state := key.state(now)) != "active":
            raise BadInput(f"key {key.id}: it is {state}; issue a new one with: accounts key issue {key.account}")
        if not 0 <= overlap_s <= _LONGEST_S:
            raise BadInput("key rotate: the overlap must be 0 or more, and 100 years at most")
        # A key with a time of expiry hands on the time it was given, counted from now.
        lasts = None if key.expires is None else now + (key.expires - key.created)
        return await self._issue(key.account, key.name, key.scopes, lasts, key.limits, replaces=(key, now + overlap_s))

    async def _issue(
        self,
        account: str,
        name: str | None,
        scopes: frozenset[str],
        expires: float | None,
        limits: LimitSet,
        replaces: tuple[ApiKey, float] | None,
    ) -> IssuedKey:
        made: KeyText = new_key(self._config.key_prefix)
        now = self._clock()
        data = {"key_id": made.id, "scopes": sorted(scopes), "expires": expires}
        if replaces:
            data |= {"replaces": replaces[0].id, "old_expires": replaces[1]}
        await self._record("key_issued", account, data)
        async with self._db.transaction() as tx:
            change = await next_change(tx)
            await tx.execute(
                "INSERT INTO api_keys (id, account, mac, name, scopes, limits, created, expires, changed)"
                " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
                made.id, account, key_mac(self._secrets.pepper, made.whole.encode()), name,
                json.dumps(sorted(scopes)), limits_text(limits), now, expires, change,
            )  # fmt: skip
            if replaces:
                await tx.execute(
                    "UPDATE api_keys SET expires = $2, changed = $3"
                    " WHERE id = $1 AND (expires IS NULL OR expires > $2)",
                    replaces[0].id, replaces[1], change,
                )  # fmt: skip
        await self.refresh()
        return IssuedKey(await self.show_key(made.id), made.whole)


def _checked_scopes(scopes: Iterable[str]) -> frozenset[str]:
    wanted = frozenset(scopes)
    if not wanted:
        raise BadInput(f"scopes: a key needs one; choose among {', '.join(SCOPES)}")
    for scope in sorted(wanted - set(SCOPES)):
        near = difflib.get_close_matches(scope, SCOPES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose among {', '.join(SCOPES)}"
        raise BadInput(f"scope {scope[:40]!r}: there is none; {hint}")
    return wanted


async def _find_key(tx: Transaction, key_id: str) -> ApiKey:
    if whole := parse_key(key_id):  # not repeated: it is a secret, and by now in the shell's history
        raise BadInput(f"that is a whole API key; give its id, {whole.id}, and replace the key: it was written down")
    rows = await tx.fetch("SELECT * FROM api_keys WHERE id = $1", key_id)
    if rows:
        return ApiKey.from_row(rows[0])
    newest = await tx.fetch("SELECT id FROM api_keys ORDER BY changed DESC LIMIT 2000")
    near = difflib.get_close_matches(key_id[:80], [row["id"] for row in newest], n=1)
    hint = f"did you mean {near[0]}?" if near else "list an account's keys with: spiritsafe accounts show ID"
    raise NotFound(f"key {key_id[:80]!r}: no key has that id; {hint}")
