"""Who is signed in to the console: a signed cookie, checked against the keys at every request, and a token per form."""

from __future__ import annotations

import base64
import binascii
import hmac
import secrets
from dataclasses import dataclass, field

from starlette.requests import Request
from starlette.responses import Response

from spiritsafe.serve._access import require_scope
from spiritsafe.serve._admin_parts import AdminParts
from spiritsafe.serve._types import Identity
from spiritsafe.wire import ApiError

__all__ = ["COOKIE", "Session", "Sessions", "from_elsewhere"]

COOKIE = "spiritsafe_console"
_LASTS_S = 8 * 3600
_PATH = "/console"


@dataclass(frozen=True, slots=True)
class Session:
    """Somebody who has presented an admin's key. csrf: what this session's forms must carry."""

    identity: Identity
    csrf: str = field(repr=False)

    @property
    def who(self) -> str:
        """Who decides, as the ledger keeps it."""
        return f"key:{self.identity.key_id}"


class Sessions:
    """Makes and reads the cookie. The server keeps nothing: the key named in it must still be valid at every request,
    so revoking the key ends its sessions."""

    def __init__(self, parts: AdminParts) -> None:
        self._parts = parts
        self._signing, self._forms = parts.secrets.derive("console/session"), parts.secrets.derive("console/form")

    def admit(self, key: str) -> Identity | None:
        """The admin whose whole key this is; None for anybody else."""
        identity = self._parts.accounts.authenticate(key.strip().encode())
        return identity if identity is not None and self._is_admin(identity) else None

    def sign_in(self, response: Response, identity: Identity, *, secure: bool) -> None:
        """Set the cookie, for eight hours."""
        until = int(self._parts.clock()) + _LASTS_S
        text = f"{identity.account} {identity.key_id} {until} {secrets.token_hex(16)}"
        value = f"{_encode(text.encode())}.{_encode(self._mac(self._signing, text))}"
        response.set_cookie(
            COOKIE, value, max_age=_LASTS_S, path=_PATH, secure=secure, httponly=True, samesite="strict"
        )

    def sign_out(self, response: Response) -> None:
        response.delete_cookie(COOKIE, path=_PATH, httponly=True, samesite="strict")

    def read(self, request: Request) -> Session | None:
        """Who is signed in; None if nobody is (no cookie, forged, expired, or its key is no longer an admin's)."""
        body, _, mac = request.cookies.get(COOKIE, "").partition(".")
        try:
            text = _decode(body).decode("ascii")
            given = _decode(mac)
        except (ValueError, binascii.Error):
            return None
        if not hmac.compare_digest(given, self._mac(self._signing, text)):
            return None
        account, key_id, until, nonce = text.split(" ")
        if self._parts.clock() >= int(until):
            return None
        identity = self._parts.accounts.active_identity(account, key_id)
        if identity is None or not self._is_admin(identity):
            return None
        return Session(identity, self._mac(self._forms, nonce).hex())

    def _is_admin(self, identity: Identity) -> bool:
        try:
            require_scope(identity, self._parts.clock(), "admin")
        except ApiError:
            return False
        return not identity.suspended

    def _mac(self, key: bytes, text: str) -> bytes:
        return hmac.digest(key, text.encode(), "sha256")


def from_elsewhere(request: Request) -> bool:
    """True if a browser says that another site makes it send this."""
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site not in ("same-origin", "none")
    origin = request.headers.get("origin")
    return origin is not None and origin.partition("://")[2] != request.headers.get("host", "")


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode("ascii").rstrip("=")


def _decode(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
