"""RFC 3161 timestamps: fetched over HTTP, verified offline.

What is kept is the authority's whole response (TimeStampResp, DER), the file that `openssl ts` calls .tsr, so that
anybody's tools can check it. Times come from the token; nothing here trusts this machine's clock.
"""

from __future__ import annotations

import hashlib
import http.client
import urllib.error
import urllib.request
from datetime import UTC, datetime
from urllib.parse import urlsplit

from rfc3161_client import (
    HashAlgorithm,
    TimestampRequestBuilder,
    TimeStampResponse,
    VerificationError,
    VerifierBuilder,
    decode_timestamp_response,
)

from spiritsafe.errors import BadInput, SpiritsafeError

__all__ = ["claimed_time", "timestamp", "verify_timestamp"]

_LARGEST = 1 << 20
_TIMEOUT_S = 30.0
_GRANTED = 0  # "with modifications" (1) is something else than was asked for


def timestamp(url: str, data: bytes) -> bytes:
    """A timestamp over `data` from the authority at `url`: its whole response (DER). Only a hash is sent.

    Raises:
        BadInput: `url` is no http(s) address, or `data` is empty.
        SpiritsafeError: the authority does not answer, refuses, or stamps something else.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise BadInput(f"{url}: give the http(s) address of a time-stamping authority")
    if not data:
        raise BadInput("an empty file says nothing that a timestamp could prove; give what you publish")
    request = (
        TimestampRequestBuilder()
        .data(data)
        .hash_algorithm(HashAlgorithm.SHA256)
        .nonce()
        .cert_request(cert_request=True)
    ).build()
    post = urllib.request.Request(  # noqa: S310  # the scheme was checked
        url, data=request.as_bytes(), headers={"Content-Type": "application/timestamp-query"}
    )
    try:
        with urllib.request.urlopen(post, timeout=_TIMEOUT_S) as reply:  # noqa: S310
            token: bytes = reply.read(_LARGEST + 1)
    except urllib.error.HTTPError as error:
        error.close()
        raise SpiritsafeError(f"{url}: no timestamp (HTTP {error.code}); check the address") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        why = getattr(error, "reason", None) or error
        raise SpiritsafeError(f"{url}: no timestamp ({why}); check the address, or try again later") from None
    try:
        response = _decode(token)
    except BadInput as error:
        raise SpiritsafeError(f"{url}: {error}") from None
    if response.status != _GRANTED:
        raise SpiritsafeError(f"{url}: the authority refused ({'; '.join(response.status_string) or response.status})")
    info = response.tst_info
    if info.nonce != request.nonce or info.message_imprint.message != hashlib.sha256(data).digest():
        raise SpiritsafeError(f"{url}: the authority stamped something else than was asked; do not use it")
    return token


def verify_timestamp(token: bytes, data: bytes, roots_pem: bytes) -> datetime:
    """When `data` existed at the latest (UTC), as an authority under one of the roots signed it.

    roots_pem: certificates in PEM, all of them trusted.

    Raises:
        BadInput: the token is damaged, of other data, or not under these roots.
    """
    import cryptography.x509 as x509

    try:
        roots = x509.load_pem_x509_certificates(roots_pem)
    except ValueError:
        raise BadInput("the authority's certificates are not PEM; give the root that the authority publishes") from None
    response = _decode(token)
    try:
        VerifierBuilder(roots=roots).build().verify_message(response, data)
    except (VerificationError, ValueError, TypeError) as error:
        raise BadInput(f"the timestamp does not hold: {' '.join(str(error).split())}") from None
    return response.tst_info.gen_time.astimezone(UTC)


def claimed_time(token: bytes) -> datetime | None:
    """The time a token says (UTC), nothing of it verified; None if it cannot be read."""
    try:
        return _decode(token).tst_info.gen_time.astimezone(UTC)
    except (BadInput, ValueError):
        return None


def _decode(token: bytes) -> TimeStampResponse:
    if len(token) > _LARGEST:
        raise BadInput("not a timestamp: longer than any")
    try:
        return decode_timestamp_response(token)
    except (ValueError, TypeError) as error:
        raise BadInput(f"not an RFC 3161 timestamp response ({' '.join(str(error).split())[:120]})") from None
