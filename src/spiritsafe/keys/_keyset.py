"""A key set: epochs, and the keys of each; and the id by which everything else names a key."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from spiritsafe.config import StrictModel
from spiritsafe.errors import BadInput
from spiritsafe.keys._derive import KEY_BYTES, Deriver

__all__ = ["HOUSE_SLOT", "Epoch", "KeyId", "KeySet", "KeySetId", "Name"]

HOUSE_SLOT = 0
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
_KEY_SET_ID = r"^ks_[0-9a-f]{8}$"
Name = Annotated[str, Field(pattern=_NAME)]
KeySetId = Annotated[str, Field(pattern=_KEY_SET_ID)]


class Epoch(StrictModel):
    """A stretch of time under one epoch key. Exactly one epoch of a key set is active.

    state: "active" marks now; "retired" marked once and still proves; "opened" means that others may hold the key, so
        that texts first seen after `opened` prove nothing under it.
    opened_slots: accounts whose key of this epoch was opened: whoever holds it can imitate that account.
    Times are UTC, ISO 8601.
    """

    name: Name
    created: str
    state: Literal["active", "retired", "opened"] = "active"
    retired: str | None = None
    opened: str | None = None
    opened_slots: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class KeyId:
    """Names the key a reply was marked with; safe to log. Slot 0 is the house slot: no account is accountable."""

    key_set: str
    epoch: str
    slot: int

    def __str__(self) -> str:
        return f"{self.key_set}/{self.epoch}/{self.slot}"

    @classmethod
    def parse(cls, text: str) -> KeyId:
        """Read "ks_1a2b3c4d/2026-11/17".

        Raises:
            BadInput: the text is not of that form.
        """
        match text.split("/"):
            case [key_set, epoch, slot] if (
                re.fullmatch(_KEY_SET_ID, key_set)
                and re.fullmatch(_NAME, epoch)
                and re.fullmatch(r"0|[1-9][0-9]{0,18}", slot)
            ):
                return cls(key_set, epoch, int(slot))
        raise BadInput(f"key id {text[:80]!r}: write it as KEY_SET/EPOCH/SLOT, such as ks_1a2b3c4d/2026-11/17")


@dataclass(frozen=True, slots=True)
class KeySet:
    """What KEYS.json holds. Derives keys; its repr, errors and copies never show the secret, and it cannot be pickled.

    id: "ks_" and 8 hex digits, derived from the secret and the tenant.
    marking: settings of the marks, opaque here (`spiritsafe.watermark` gives them meaning).
    """

    id: str
    tenant: str
    marking: dict[str, Any] = field(hash=False)
    tokenizer_hash: str | None
    epochs: tuple[Epoch, ...]
    encrypted: bool
    _deriver: Deriver = field(repr=False, compare=False)

    @property
    def current(self) -> Epoch:
        """The active epoch."""
        return next(epoch for epoch in self.epochs if epoch.state == "active")

    def epoch(self, name: str) -> Epoch:
        """The epoch of that name.

        Raises:
            BadInput: there is none.
        """
        for epoch in self.epochs:
            if epoch.name == name:
                return epoch
        known = ", ".join(epoch.name for epoch in self.epochs[-6:])
        raise BadInput(f"{self.id} has no epoch {name!r}; its latest are {known}")

    def derive(self, purpose: str, epoch: Epoch | str, scheme: str, slot: int | None = None, length: int = 32) -> bytes:
        """The secret for a purpose: "epoch", "account", "coin", or one of your own. At most 32 bytes.

        Raises:
            BadInput: no such epoch, or a slot outside 0 … 2^64 - 1.
        """
        return self._deriver.derive(purpose, scheme, self._name(epoch), slot, length)

    def epoch_key(self, epoch: Epoch | str, scheme: str) -> bytes:
        """The key (16 bytes) that all accounts share in an epoch."""
        return self.derive("epoch", epoch, scheme, length=KEY_BYTES)

    def coin_key(self, epoch: Epoch | str, scheme: str) -> bytes:
        """The key (16 bytes) of the coin that picks the layer of a context."""
        return self.derive("coin", epoch, scheme, length=KEY_BYTES)

    def account_key(self, epoch: Epoch | str, slot: int, scheme: str) -> bytes:
        """The key (16 bytes) of one account in an epoch."""
        return self.derive("account", epoch, scheme, slot, length=KEY_BYTES)

    def account_keys(self, epoch: Epoch | str, slots: Sequence[int], scheme: str) -> bytes:
        """The keys of many accounts, joined: (N · 16) bytes in the order of `slots`."""
        return self._deriver.keys("account", scheme, self._name(epoch), slots)

    def blocks(self, purpose: str, epoch: Epoch | str, scheme: str, slots: Iterable[int]) -> Iterator[bytes]:
        """`derive` (32 bytes) for one slot after another."""
        return self._deriver.blocks(purpose, scheme, self._name(epoch), slots)

    def key_id(self, epoch: Epoch | str, slot: int = HOUSE_SLOT) -> KeyId:
        """The id under which a reply with this account's key is recorded."""
        return KeyId(self.id, self._name(epoch), slot)

    def _name(self, epoch: Epoch | str) -> str:
        return self.epoch(epoch if isinstance(epoch, str) else epoch.name).name

    def __reduce__(self) -> str:
        raise TypeError("a key set is not pickled: that would write its secret; pass the path and load it there")

    def __copy__(self) -> KeySet:
        return self

    def __deepcopy__(self, memo: object) -> KeySet:
        return self
