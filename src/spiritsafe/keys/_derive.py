"""HKDF-SHA256 (RFC 5869) with length-prefixed info: where every key of a key set comes from.

info = version, purpose, scheme, tenant, account slot, epoch, each as a 4-byte big-endian length and its bytes. A slot
is 8 bytes big-endian, or empty for a key that belongs to no account. So no two different tuples of fields share an
info, and a key for one purpose says nothing about a key for another.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import operator
from collections.abc import Iterable, Iterator, Sequence

from spiritsafe.errors import BadInput

__all__ = ["KEY_BYTES", "Deriver", "decoy_keys", "encode_fields", "encode_slot"]

KEY_BYTES = 16
_VERSION = b"1"
_SALT = b"spiritsafe/keys"
_DECOY_SALT = b"spiritsafe/decoys"
_BLOCK = 64


def encode_fields(*fields: bytes) -> bytes:
    """The fields, each behind its length (4 bytes, big-endian): an injective encoding of a tuple of byte strings."""
    return b"".join(len(field).to_bytes(4, "big") + field for field in fields)


def encode_slot(slot: int | None) -> bytes:
    """An account slot as 8 bytes big-endian; nothing for None.

    Raises:
        BadInput: the slot is negative or beyond 64 bits.
    """
    if slot is None:
        return b""
    try:
        return operator.index(slot).to_bytes(8, "big")
    except OverflowError:
        raise BadInput(f"account slot {slot}: a slot is a number from 0 to 2^64 - 1") from None


class Deriver:
    """The keys under one master secret and tenant. Never shows, copies or pickles what it holds."""

    __slots__ = ("_expand", "_tenant")

    def __init__(self, master: bytes, tenant: str) -> None:
        self._expand = _Expand(_SALT, master)
        self._tenant = tenant.encode()

    def derive(self, purpose: str, scheme: str, epoch: str, slot: int | None = None, length: int = 32) -> bytes:
        """HKDF output of at most 32 bytes for these fields."""
        if not 0 < length <= 32:
            raise ValueError(f"length {length}: one HKDF block is 1 to 32 bytes")
        slot_field = encode_slot(slot)
        head, tail = self._around(purpose, scheme, epoch, len(slot_field))
        return next(self._expand.blocks(head, (slot_field,), tail))[:length]

    def blocks(self, purpose: str, scheme: str, epoch: str, slots: Iterable[int]) -> Iterator[bytes]:
        """`derive` at full length (32) for one slot after another."""
        head, tail = self._around(purpose, scheme, epoch, 8)
        return self._expand.blocks(head, map(encode_slot, slots), tail)

    def keys(self, purpose: str, scheme: str, epoch: str, slots: Sequence[int]) -> bytes:
        """`derive(…, length=16)` for many slots, joined: (N · 16) bytes. About a million keys a second."""
        return b"".join([block[:KEY_BYTES] for block in self.blocks(purpose, scheme, epoch, slots)])

    def _around(self, purpose: str, scheme: str, epoch: str, slot_bytes: int) -> tuple[bytes, bytes]:
        head = encode_fields(_VERSION, purpose.encode(), scheme.encode(), self._tenant) + slot_bytes.to_bytes(4, "big")
        return head, encode_fields(epoch.encode())

    def __repr__(self) -> str:
        return "Deriver(secret)"

    def __copy__(self) -> Deriver:
        return self

    def __deepcopy__(self, memo: object) -> Deriver:
        return self

    def __reduce__(self) -> str:
        raise TypeError("secrets are not pickled; pass the path of the key file and load it there")


@functools.lru_cache(maxsize=64)  # every document asks for the same ones; nothing secret is kept
def decoy_keys(seed: bytes, purpose: str, count: int) -> bytes:
    """Keys (count · 16 bytes) for decoys: HKDF-SHA256 from a public seed, info = (version, "decoy", purpose, index).

    Anyone with the seed gets the same decoys. The first N of more decoys are the N decoys.
    """
    head = encode_fields(_VERSION, b"decoy", purpose.encode()) + (8).to_bytes(4, "big")
    blocks = _Expand(_DECOY_SALT, seed).blocks(head, map(encode_slot, range(count)), b"")
    return b"".join([block[:KEY_BYTES] for block in blocks])


class _Expand:
    """HKDF: Extract once, then Expand's first block with copied HMAC states (RFC 5869 §2; RFC 2104 §4)."""

    __slots__ = ("_inner", "_outer")

    def __init__(self, salt: bytes, secret: bytes) -> None:
        key = hmac.digest(salt, secret, "sha256").ljust(_BLOCK, b"\0")
        self._inner = hashlib.sha256(bytes(b ^ 0x36 for b in key))
        self._outer = hashlib.sha256(bytes(b ^ 0x5C for b in key))

    def blocks(self, head: bytes, middles: Iterable[bytes], tail: bytes) -> Iterator[bytes]:
        """T(1) for info = head ‖ middle ‖ tail, one middle after another."""
        inner = self._inner.copy()
        inner.update(head)
        copy_inner, copy_outer, tail = inner.copy, self._outer.copy, tail + b"\x01"
        for middle in middles:
            first = copy_inner()
            first.update(middle + tail)
            second = copy_outer()
            second.update(first.digest())
            yield second.digest()
