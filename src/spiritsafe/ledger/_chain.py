"""The bytes that are hashed. Whoever checks a ledger in ten years needs this file only.

A row's hash is SHA-256 over five fields, each behind a 4-byte big-endian length:
    "spiritsafe-ledger/1", the row's number in decimal, its kind, the hash before it in hex, its payload.
The payload is JSON as orjson writes it with sorted keys: UTF-8, no spaces, floats in their shortest form. The first row
follows 64 zeros.

A personal field is in the payload as its commitment: SHA-256 over "spiritsafe-personal/1", the row's 16-byte salt, the
field's name and its JSON value, likewise each behind its length. Without the salt a commitment says nothing of the
value; one salt a row makes equal values of two rows look different.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import orjson

__all__ = ["GENESIS", "SALT_BYTES", "canonical", "chain_hash", "commit_personal"]

GENESIS = "0" * 64
SALT_BYTES = 16

_VERSION = b"spiritsafe-ledger/1"
_PERSONAL = b"spiritsafe-personal/1"


def canonical(value: Any) -> bytes:
    """JSON bytes that depend on the value only.

    Raises:
        TypeError: JSON cannot hold the value.
    """
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def chain_hash(seq: int, kind: str, prev_hash: str, payload: bytes) -> str:
    """The hash of row `seq`, in hex."""
    number = b"%d" % seq
    head = _HEADS.get(kind) or _framed(kind.encode())
    return hashlib.sha256(
        b"%b%b%b%b%b%b%b"
        % (
            _START,
            len(number).to_bytes(4, "big"),
            number,
            head,
            _framed(prev_hash.encode()),
            len(payload).to_bytes(4, "big"),
            payload,
        )
    ).hexdigest()


def commit_personal(salt: bytes, values: Mapping[str, Any]) -> dict[str, str]:
    """The commitments to `values`, in hex, by field."""
    start = _framed(_PERSONAL) + _framed(salt)
    return {
        name: hashlib.sha256(start + _framed(name.encode()) + _framed(orjson.dumps(value))).hexdigest()
        for name, value in values.items()
    }


def _framed(part: bytes) -> bytes:
    return len(part).to_bytes(4, "big") + part


_START = _framed(_VERSION)
_HEADS = {kind: _framed(kind.encode()) for kind in ("reply", "event")}
