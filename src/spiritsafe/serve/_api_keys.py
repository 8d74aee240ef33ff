"""The text of an API key, `prefix_publicid_secret`, and what is stored of it."""

from __future__ import annotations

import hmac
import re
import secrets
import string
from dataclasses import dataclass, field
from typing import Literal, get_args

__all__ = ["LONGEST", "SCOPES", "KeyText", "Scope", "key_mac", "new_key", "parse_key"]

Scope = Literal["inference", "usage", "admin", "metrics"]
SCOPES: tuple[Scope, ...] = get_args(Scope)

_ALPHABET = string.digits + string.ascii_letters
_ID, _SECRET = 12, 43  # 43 characters of 62 are 256 bits
_FORM = re.compile(rf"([a-z0-9]{{1,12}})_([0-9A-Za-z]{{{_ID}}})_([0-9A-Za-z]{{{_SECRET}}})", re.ASCII)
LONGEST = 12 + 1 + _ID + 1 + _SECRET


@dataclass(frozen=True, slots=True)
class KeyText:
    """An API key taken apart. `whole` is secret; `id` may be logged."""

    id: str
    whole: str = field(repr=False)


def new_key(prefix: str) -> KeyText:
    """A fresh key: 71 bits of id, 256 bits of secret, from the system's generator."""
    public = "".join(secrets.choice(_ALPHABET) for _ in range(_ID))
    secret = "".join(secrets.choice(_ALPHABET) for _ in range(_SECRET))
    return KeyText(public, f"{prefix}_{public}_{secret}")


def parse_key(text: str) -> KeyText | None:
    """Take a key apart; None if the text has not the form of one. Says nothing about whether such a key exists."""
    found = _FORM.fullmatch(text)
    return None if found is None else KeyText(found[2], text)


def key_mac(pepper: bytes, whole: bytes) -> bytes:
    """HMAC-SHA-256 of the whole key: all that is kept of it. No slow hash: nobody guesses 256 random bits."""
    return hmac.digest(pepper, whole, "sha256")
