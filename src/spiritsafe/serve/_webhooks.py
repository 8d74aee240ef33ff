"""Webhooks: what an operator wants to hear of, kept until it has arrived.

`send` and others write to the outbox; one task a hook and process delivers. Rows are claimed, so replicas share the
work; a process killed after its POST and before its note delivers twice: receivers tell by `id`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import os
import secrets
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from spiritsafe.errors import BadInput
from spiritsafe.serve._outbox import GIVE_UP_S, message_id, put_message
from spiritsafe.state import Database, Unavailable

if TYPE_CHECKING:
    import aiohttp

    from spiritsafe.serve._config import GuardConfig, Happening, WebhookConfig

__all__ = ["Webhooks", "signature"]

_BATCH = 16
_TIMEOUT_S = 10.0
_CLAIM_S = 60.0
_POLL_S = 5.0
_PURGE_EVERY_S = 3600.0
_FIRST_WAIT_S, _LONGEST_WAIT_S = 5.0, 3600.0
_SEEN = 10_000
_log = logging.getLogger(__name__)


def signature(secret: bytes, at: int, body: bytes) -> str:
    """The header `Spiritsafe-Signature`: HMAC-SHA-256 over the time (Unix seconds), a full stop and the body."""
    return f"t={at},v1={hmac.digest(secret, b'%d.%b' % (at, body), 'sha256').hex()}"


class Webhooks:
    """Messages and their delivery. `run` where they are to go out.

    environ: where `secret_env` of each hook is looked up.

    Raises:
        BadInput: such a variable is not set, or two hooks have one URL.
    """

    def __init__(
        self,
        db: Database,
        config: GuardConfig,
        *,
        environ: Mapping[str, str] = os.environ,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._db, self._clock = db, clock
        self._hooks = {hook.url: hook for hook in config.webhooks}
        if len(self._hooks) != len(config.webhooks):
            raise BadInput("webhooks: two of them have one url; name all its events in one")
        self._secrets = {hook.url: _secret(hook, environ) for hook in self._hooks.values()}
        self._seen: set[str] = set()
        self._wake = {url: asyncio.Event() for url in self._hooks}
        self._session: aiohttp.ClientSession | None = None

    async def send(self, event: Happening, subject: str, data: Mapping[str, Any], *, once: str | None = None) -> None:
        """Put a message into the outbox, for each hook that wants `event`.

        subject: "account:ID", "cluster:ID", "org:NAME" …  data: JSON values; no secrets, no prompts.
        once: what it is about, its window last ("usd_per_day 2026-11-24", "usd_lifetime all"): the same event, subject
            and `once` goes out once; remembered for 40 days, and for good where the window is "all".

        Raises:
            Unavailable: the database is away; nothing was kept.
        """
        wanted = [hook for hook in self._hooks.values() if event in hook.events]
        if not wanted:
            return
        known = None if once is None else message_id(event, subject, once)
        if known in self._seen:
            return
        async with self._db.transaction() as tx:
            await put_message(tx, wanted, event, subject, data, at=self._clock(), once=once)
        if known is not None:
            if len(self._seen) >= _SEEN:
                self._seen.clear()  # the table still knows
            self._seen.add(known)
        for hook in wanted:
            self._wake[hook.url].set()

    async def run(self) -> None:
        """Deliver until cancelled. What is unsent then stays in the outbox."""
        try:
            async with asyncio.TaskGroup() as group:
                for url in self._hooks:
                    group.create_task(self._run(url))
                group.create_task(self._purge_now_and_then())
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        """Close connections. Needed by those who `deliver` without `run`."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def waiting(self) -> int:
        """Messages not yet delivered, of all processes."""
        rows = await self._db.fetch("SELECT COUNT(*) AS n FROM outbox WHERE next_at IS NOT NULL")
        return int(rows[0]["n"])

    async def deliver(self, url: str) -> int:
        """Try what is due for this hook, up to 16 messages side by side; how many were tried.

        Raises:
            Unavailable: the database is away.
        """
        now = self._clock()
        due = await self._db.fetch(
            "SELECT * FROM outbox WHERE url = $1 AND next_at <= $2 AND (claimed_until IS NULL OR claimed_until <= $2)"
            " ORDER BY next_at LIMIT $3",
            url,
            now,
            _BATCH,
        )
        mine = [row for row in due if await self._claim(row["id"], now)]
        await asyncio.gather(*(self._try(row) for row in mine))
        return len(mine)

    async def purge(self, now: float) -> int:
        """Delete what is done and need not be remembered, and what waits for hooks that are no longer configured."""
        gone = await self._db.execute("DELETE FROM outbox WHERE next_at IS NULL AND keep_until <= $1", now)
        return gone + await self._db.execute(
            "DELETE FROM outbox WHERE next_at IS NOT NULL AND created <= $1", now - 2 * GIVE_UP_S
        )

    async def _run(self, url: str) -> None:
        while True:
            self._wake[url].clear()
            try:
                if await self.deliver(url):
                    continue
            except Unavailable as error:
                _log.warning("webhooks: %s", error)
            except Exception:  # one bad message must not stop the ones after it
                _log.exception("webhooks: delivery failed; going on")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake[url].wait(), _POLL_S)

    async def _purge_now_and_then(self) -> None:
        while True:
            try:
                await self.purge(self._clock())
            except Unavailable as error:
                _log.warning("webhooks: %s", error)
            await asyncio.sleep(_PURGE_EVERY_S)

    async def _claim(self, row_id: str, now: float) -> bool:
        return bool(
            await self._db.execute(
                "UPDATE outbox SET claimed_until = $2 WHERE id = $1 AND next_at <= $3"
                " AND (claimed_until IS NULL OR claimed_until <= $3)",
                row_id,
                now + _CLAIM_S,
                now,
            )
        )

    async def _try(self, row: Mapping[str, Any]) -> None:
        trouble = await self._post(row["url"], row["body"].encode())
        now, attempts = self._clock(), row["attempts"] + 1
        again: float | None = None
        if trouble is not None:
            wait = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2 ** min(attempts - 1, 20))
            again = now + wait * (0.5 + secrets.randbelow(1001) / 1000)
            if again - row["created"] > GIVE_UP_S:
                again = None
                _log.error(
                    "webhook %s: message %s (%s) given up after %d tries: %s",
                    _shown(row["url"]), row["id"], row["event"], attempts, trouble,
                )  # fmt: skip
            elif attempts == 1:
                _log.warning("webhook %s: %s; trying again for a day", _shown(row["url"]), trouble)
        await self._db.execute(
            "UPDATE outbox SET attempts = $2, next_at = $3, claimed_until = NULL WHERE id = $1",
            row["id"],
            attempts,
            again,
        )

    async def _post(self, url: str, body: bytes) -> str | None:
        """None if the other side took it, else what went wrong."""
        import aiohttp

        if self._session is None:
            self._session = aiohttp.ClientSession(
                cookie_jar=aiohttp.DummyCookieJar(), timeout=aiohttp.ClientTimeout(total=_TIMEOUT_S)
            )
        headers = {"Content-Type": "application/json", "User-Agent": "spiritsafe"}
        if (secret := self._secrets[url]) is not None:
            headers["Spiritsafe-Signature"] = signature(secret, int(self._clock()), body)
        try:
            # a redirect is not followed: the body is for the address that was configured
            async with self._session.post(url, data=body, headers=headers, allow_redirects=False) as answer:
                return None if 200 <= answer.status < 300 else f"it answered {answer.status}"
        except TimeoutError:
            return f"no answer in {_TIMEOUT_S:g} s"
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return type(error).__name__  # its text may show the URL, which may hold a secret


def _secret(hook: WebhookConfig, environ: Mapping[str, str]) -> bytes | None:
    if hook.secret_env is None:
        return None
    if not (secret := environ.get(hook.secret_env)):
        raise BadInput(f"webhooks.secret_env {hook.secret_env}: that environment variable is not set")
    return secret.encode()


def _shown(url: str) -> str:
    """Scheme and host: paths and queries of hooks hold secrets."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}" + (f":{parts.port}" if parts.port else "")
