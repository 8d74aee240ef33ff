"""Accounts, keys and ladder states in memory: who presents a key is known without asking the database."""

from __future__ import annotations

from collections.abc import Iterable

from spiritsafe.serve._account_rows import Account, ApiKey
from spiritsafe.serve._api_keys import LONGEST, key_mac
from spiritsafe.serve._config import LimitSet
from spiritsafe.serve._types import Identity, LadderState

__all__ = ["Directory"]

_NO_LIMITS = LimitSet()
_TOO_LONG = bytes(LONGEST)  # no key, and no dearer to refuse than one


class Directory:
    """Keys are found by their MAC, not by their public id: a wrong secret, an unknown id and a text that is no key at
    all then fail in the same two look-ups after the same HMAC, and what the look-ups compare is nothing a caller can
    steer without the pepper. So no answer, and no time, tells whether an id exists."""

    def __init__(self, pepper: bytes) -> None:
        self._pepper = pepper
        self._accounts: dict[str, Account] = {}
        self._keys: dict[bytes, ApiKey] = {}
        self._macs: dict[str, tuple[bytes, ...]] = {}  # of each account
        self._members: dict[str, set[str]] = {}  # of each cluster
        self._ladder: dict[str, LadderState] = {}
        self._identities: dict[bytes, Identity] = {}  # made when first asked for; dropped when their parts change

    def authenticate(self, presented: bytes, now: float) -> Identity | None:
        """Who presents this key (the bytes after `Bearer `); None unless it is one that is valid now."""
        mac = key_mac(self._pepper, presented if len(presented) <= LONGEST else _TOO_LONG)
        identity = self._identities.get(mac) or self._meet(mac)
        if identity is None or (identity.key_expires is not None and now >= identity.key_expires):
            return None
        return identity

    def account(self, account_id: str) -> Account | None:
        return self._accounts.get(account_id)

    def key(self, account_id: str, key_id: str) -> ApiKey | None:
        """A key of that account, valid or not."""
        keys = (self._keys[mac] for mac in self._macs.get(account_id, ()))
        return next((key for key in keys if key.id == key_id), None)

    def identity(self, account: Account, key: ApiKey | None) -> Identity:
        """The identity of an account asking with one of its keys, or with none (then it has no scopes)."""
        states = self._ladder
        return Identity(
            account=account.id,
            name=account.name,
            org=account.org,
            tier=account.tier,
            key_id=key.id if key else "",
            scopes=key.scopes if key else frozenset(),
            created=account.created,
            key_expires=key.expires if key else None,
            suspended=account.suspended,
            reason=account.reason,
            appeal=account.appeal,
            terms_version=account.terms_version,
            twin_consent=account.twin_consent,
            payment_id=account.payment_id,
            slot=account.slot,
            cluster=account.cluster,
            limits=account.limits,
            key_limits=key.limits if key else _NO_LIMITS,
            account_step=states.get(f"account:{account.id}"),
            cluster_step=states.get(f"cluster:{account.cluster}") if account.cluster else None,
        )

    def tiers(self) -> set[str]:
        """The tiers that accounts are on."""
        return {account.tier for account in self._accounts.values()}

    def __len__(self) -> int:
        return len(self._accounts)

    def put_accounts(self, accounts: Iterable[Account]) -> None:
        for account in accounts:
            before = self._accounts.get(account.id)
            if before is not None and before.cluster and before.cluster != account.cluster:
                self._members[before.cluster].discard(account.id)
            if account.cluster:
                self._members.setdefault(account.cluster, set()).add(account.id)
            self._accounts[account.id] = account
            self._forget(account.id)

    def put_keys(self, keys: Iterable[ApiKey]) -> None:
        for key in keys:
            if key.mac not in self._keys:
                self._macs[key.account] = (*self._macs.get(key.account, ()), key.mac)
            self._keys[key.mac] = key
            self._identities.pop(key.mac, None)

    def put_ladder(self, states: Iterable[LadderState]) -> None:
        for state in states:
            self._ladder[state.subject] = state
            kind, _, name = state.subject.partition(":")
            for account in (name,) if kind == "account" else self._members.get(name, ()):
                self._forget(account)

    def _meet(self, mac: bytes) -> Identity | None:
        key = self._keys.get(mac)
        if key is None or key.revoked is not None:
            return None
        account = self._accounts.get(key.account)
        if account is None:  # made a moment ago; the next refresh brings it
            return None
        identity = self._identities[mac] = self.identity(account, key)
        return identity

    def _forget(self, account_id: str) -> None:
        for mac in self._macs.get(account_id, ()):
            self._identities.pop(mac, None)
