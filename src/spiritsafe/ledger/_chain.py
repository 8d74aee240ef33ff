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
from functools import lru_cache
from typing import Any

import orjson

__all__ = ["GENESIS", "SALT_BYTES", "canonical", "chain_hash", "commit_personal"]

GENESIS = "0" * 64
SALT_BYTES = 16


def canonical(value: Any) -> bytes:
    """JSON bytes that depend on the value only.

    Raises:
        TypeError: JSON cannot hold the value.
    """
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def chain_hash(seq: int, kind: str, prev_hash: str, payload: bytes) -> str:
    """The hash of row `seq`, in hex."""
    number, before = b"%d" % seq, prev_hash.encode()
    parts = (
        *(_START, len(number).to_bytes(4, "big"), number, _frame(kind)),
        *(len(before).to_bytes(4, "big"), before, len(payload).to_bytes(4, "big"), payload),
    )
    return hashlib.sha256(b"".join(parts)).hexdigest()


def commit_personal(salt: bytes, values: Mapping[str, Any]) -> dict[str, str]:
    """The commitments to `values`, in hex, by field."""
    start = b"".join((_PERSONAL_START, len(salt).to_bytes(4, "big"), salt))
    commitments = {}
    for name, value in values.items():
        text = orjson.dumps(value)
        parts = (start, _frame(name), len(text).to_bytes(4, "big"), text)
        commitments[name] = hashlib.sha256(b"".join(parts)).hexdigest()
    return commitments


@lru_cache(maxsize=64)
def _frame(part: str) -> bytes:
    """A name behind its length."""
    return len(part.encode()).to_bytes(4, "big") + part.encode()


_START, _PERSONAL_START = _frame("spiritsafe-ledger/1"), _frame("spiritsafe-personal/1")
