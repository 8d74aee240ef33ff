"""Commitments to what was held back, and how a stranger checks an opened one. Standard library only, no secret needed.

    twin   = SHA-256(fields("spiritsafe-twin/1", salt, coin, SHA-256(first), SHA-256(second), SHA-256(request)))
    canary = SHA-256(fields("spiritsafe-canary/1", id, SHA-256(prompt), choice, leaf 0, … leaf N-1))
    choice = SHA-256(0x02 ‖ fields(salt of the choice, index of the published variant))
    leaf   = SHA-256(0x00 ‖ fields(salt of the leaf, index, variant))

`fields` puts 4 bytes of length (big-endian) before each field; an index is 4 bytes, a coin one, salts are 32. Replies
and requests are hashed as `canonical_json`. The commitment stands in the ledger before anything is released: it fixes
which of two replies went out, or which of N variants was published, and shows nothing until its salt is opened.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = [
    "CANARY_FORMAT",
    "MOST_VARIANTS",
    "TWIN_FORMAT",
    "canary_commit",
    "canonical_json",
    "open_canary",
    "open_published",
    "twin_commit",
    "verify_canary",
    "verify_twin",
]

TWIN_FORMAT = "spiritsafe-twin/1"
CANARY_FORMAT = "spiritsafe-canary/1"
MOST_VARIANTS = 10_000
_SALT = re.compile(r"[0-9a-f]{64}")
_MALFORMED = (KeyError, TypeError, ValueError, OverflowError, RecursionError, AttributeError)


def canonical_json(value: Any) -> bytes:
    """The one spelling of a JSON value: keys sorted, no spaces, ASCII.

    Raises:
        ValueError: the value holds a number JSON has not.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def twin_commit(salt: bytes, coin: int, first: Any, second: Any, request: Any) -> str:
    """Commitment (hex) to a pair of replies (JSON values), the request that got them, and which one was released."""
    pair = (hashlib.sha256(canonical_json(value)).digest() for value in (first, second, request))
    return hashlib.sha256(_fields(TWIN_FORMAT.encode(), salt, bytes([coin]), *pair)).hexdigest()


def verify_twin(opened: Mapping[str, Any], commit: str) -> bool:
    """True if `commit` (hex, from the ledger row) is that of the opened pair.

    opened: {"first", "second", "request": JSON values, "coin": 0 or 1, "salt": 64 hex digits, …}; the rest is not
        covered. Whatever else it holds, the answer is False, never an error.
    """
    try:
        coin = opened["coin"]
        if isinstance(coin, bool) or coin not in (0, 1):
            return False
        found = twin_commit(_salt(opened["salt"]), coin, opened["first"], opened["second"], opened["request"])
        return hmac.compare_digest(found, commit)
    except _MALFORMED:
        return False


def canary_commit(canary_id: str, prompt: str, variants: Sequence[str], published: int, salt: bytes) -> str:
    """Commitment (hex) to N variants of an answer and to which one is published (an index)."""
    leaves = [_leaf(_leaf_salt(salt, index), index, variant) for index, variant in enumerate(variants)]
    return _root(canary_id, prompt, _choice(_choice_salt(salt), published), leaves)


def open_published(canary_id: str, prompt: str, variants: Sequence[str], published: int, salt: bytes) -> dict[str, Any]:
    """What shows that this variant was the one to be published, and nothing of the others but their number."""
    leaves = [_leaf(_leaf_salt(salt, index), index, variant).hex() for index, variant in enumerate(variants)]
    return {
        "format": CANARY_FORMAT,
        "id": canary_id,
        "prompt": prompt,
        "published": published,
        "variant": variants[published],
        "salt": _leaf_salt(salt, published).hex(),
        "choice_salt": _choice_salt(salt).hex(),
        "leaves": leaves,
    }


def open_canary(canary_id: str, prompt: str, variants: Sequence[str], published: int, salt: bytes) -> dict[str, Any]:
    """What shows every variant. Later texts prove nothing with this canary: anybody may repeat any of them."""
    return {
        "format": CANARY_FORMAT,
        "id": canary_id,
        "prompt": prompt,
        "published": published,
        "variants": list(variants),
        "salt": salt.hex(),
    }


def verify_canary(opened: Mapping[str, Any], commit: str) -> bool:
    """True if `commit` (hex, from the ledger's event) is that of a canary as `open_published` or `open_canary` gives
    it: at least two variants, no two alike. Whatever else it holds, the answer is False, never an error.
    """
    try:
        canary_id, prompt, published = opened["id"], opened["prompt"], opened["published"]
        if type(published) is not int or opened["format"] != CANARY_FORMAT:
            return False
        salt = _salt(opened["salt"])
        if "variants" in opened:
            variants = opened["variants"]
            if not isinstance(variants, list) or len(set(variants)) != len(variants):
                return False
            if len(variants) < 2 or not 0 <= published < len(variants):
                return False
            found = canary_commit(canary_id, prompt, variants, published, salt)
        else:
            leaves = [_salt(leaf) for leaf in opened["leaves"]]
            if len(leaves) < 2 or not 0 <= published < len(leaves):
                return False
            if leaves[published] != _leaf(salt, published, opened["variant"]):
                return False
            found = _root(canary_id, prompt, _choice(_salt(opened["choice_salt"]), published), leaves)
        return hmac.compare_digest(found, commit)
    except _MALFORMED:
        return False


def _fields(*fields: bytes) -> bytes:
    return b"".join(len(field).to_bytes(4, "big") + field for field in fields)


def _salt(text: str) -> bytes:
    if not _SALT.fullmatch(text):
        raise ValueError("not 32 bytes in lower-case hex")
    return bytes.fromhex(text)


def _leaf(salt: bytes, index: int, variant: str) -> bytes:
    return hashlib.sha256(b"\x00" + _fields(salt, index.to_bytes(4, "big"), variant.encode())).digest()


def _choice(salt: bytes, published: int) -> bytes:
    return hashlib.sha256(b"\x02" + _fields(salt, published.to_bytes(4, "big"))).digest()


def _root(canary_id: str, prompt: str, choice: bytes, leaves: Sequence[bytes]) -> str:
    prompt_hash = hashlib.sha256(prompt.encode()).digest()
    return hashlib.sha256(_fields(CANARY_FORMAT.encode(), canary_id.encode(), prompt_hash, choice, *leaves)).hexdigest()


# One secret a canary: an opened leaf's salt says nothing of another's.
def _leaf_salt(salt: bytes, index: int) -> bytes:
    return hmac.digest(salt, b"leaf" + index.to_bytes(4, "big"), "sha256")


def _choice_salt(salt: bytes) -> bytes:
    return hmac.digest(salt, b"choice", "sha256")
