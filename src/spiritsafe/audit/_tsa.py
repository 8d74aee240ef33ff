"""RFC 3161 timestamps: fetched over HTTP, verified offline."""

from __future__ import annotations

from datetime import datetime

__all__ = ["timestamp", "verify_timestamp"]


def timestamp(url: str, data: bytes) -> bytes:
    """A timestamp over `data` from the authority at `url`: the whole response (DER), as `openssl ts` writes .tsr."""
    raise NotImplementedError


def verify_timestamp(token: bytes, data: bytes, roots_pem: bytes) -> datetime:
    """When `data` existed at the latest (UTC), as an authority under one of the roots signed it.

    Raises:
        BadInput: the token is damaged, of other data, or not under these roots.
    """
    raise NotImplementedError
