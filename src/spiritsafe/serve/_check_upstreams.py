"""Checks over the network: what each upstream says of its models, and whether the terms can be read."""

from __future__ import annotations

import asyncio
import os
import ssl
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import orjson

from spiritsafe.errors import BadInput
from spiritsafe.serve._check import Finding
from spiritsafe.serve._config import GuardConfig, Upstream
from spiritsafe.serve._tls import trusting

__all__ = ["check_terms_page", "check_upstreams"]

_TIMEOUT_S = 8.0
_LARGEST = 4 << 20
_TLS = "TLS: "


async def check_upstreams(config: GuardConfig) -> list[Finding]:
    """Each upstream's list of models, its health path and the tokenizer it counts with. No request costs anything."""
    groups = await asyncio.gather(*(_upstream(upstream) for upstream in config.upstreams))
    return [finding for group in groups for finding in group]


async def check_terms_page(config: GuardConfig) -> list[Finding]:
    """Whether the page that customers must accept can be read. An operator's network may not show it: a warning."""
    if config.terms is None:
        return []
    status, _ = await _get(config.terms.url, {}, trusting(None, "terms"))
    if isinstance(status, int) and status < 400:
        return [Finding("ok", "terms.url", f"version {config.terms.version} at {config.terms.url}")]
    said = f"answers {status}" if isinstance(status, int) else status
    return [Finding("warning", "terms.url", f"{config.terms.url} {said}; customers are sent there to read the terms")]


async def _upstream(upstream: Upstream) -> list[Finding]:
    where = f"upstreams.{upstream.name}"
    found = _tokenizer(where, upstream.tokenizer) if upstream.tokenizer is not None else []
    key = os.environ.get(upstream.api_key_env or "", "")
    headers = {"authorization": f"Bearer {key}"} if key else {}
    url = upstream.base_url.rstrip("/") + "/models"
    try:
        trusted = trusting(upstream.ca_file, where)
    except BadInput as error:
        return [*found, Finding("error", f"{where}.ca_file", str(error).removeprefix(f"{where}.ca_file: "))]
    status, body = await _get(url, headers, trusted)
    if not isinstance(status, int):
        trust = "renew its certificate, or name its authority's in ca_file"
        do = trust if _TLS in status else "start that server, or correct base_url"
        return [*found, Finding("error", where, f"{url} {status}; {do}")]
    if status in (401, 403):
        return [
            *found,
            Finding(
                "error",
                where,
                f"{url} answers {status}: it does not take this key; correct {upstream.api_key_env or 'api_key_env'}",
            ),
        ]
    if status >= 500:
        return [*found, Finding("error", where, f"{url} answers {status}; look at that server's log")]
    if status != 200:
        found.append(Finding("warning", where, f"{url} answers {status}, so its models could not be compared"))
    else:
        found += _models(where, upstream, body)
    if upstream.health_path is not None:
        found += await _health(where, upstream, headers, trusted)
    return found


def _models(where: str, upstream: Upstream, body: bytes) -> list[Finding]:
    try:
        listed = {card["id"] for card in orjson.loads(body)["data"]}
    except (orjson.JSONDecodeError, LookupError, TypeError):
        return [Finding("warning", where, "its list of models is not in OpenAI's form, so it could not be compared")]
    if missing := sorted(set(upstream.models) - listed):
        there = ", ".join(sorted(map(str, listed))[:5]) or "none"
        return [Finding("error", f"{where}.models", f"it does not list {', '.join(missing)}; it has {there}")]
    return [Finding("ok", where, f"{upstream.base_url} lists {', '.join(upstream.models)}")]


async def _health(where: str, upstream: Upstream, headers: dict[str, str], trusted: ssl.SSLContext) -> list[Finding]:
    parts = urlsplit(upstream.base_url)
    url = urlunsplit((parts.scheme, parts.netloc, "/" + (upstream.health_path or "").lstrip("/"), "", ""))
    status, _ = await _get(url, headers, trusted)
    if isinstance(status, int) and status < 400:
        return [Finding("ok", f"{where}.health_path", url)]
    said = f"answers {status}" if isinstance(status, int) else status
    return [
        Finding("error", f"{where}.health_path", f"{url} {said}, so this upstream would never be asked; correct it")
    ]


def _tokenizer(where: str, path: Path) -> list[Finding]:
    from tokenizers import Tokenizer

    file = path / "tokenizer.json" if path.is_dir() else path
    try:
        Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises plain Exception
        reason = " ".join(str(error).split())[:120]
        return [Finding("error", f"{where}.tokenizer", f"{file}: {reason}; name a tokenizer.json or its folder")]
    return []


async def _get(url: str, headers: dict[str, str], trusted: ssl.SSLContext) -> tuple[int | str, bytes]:
    """(status, body), or ("why there is none", b"")."""
    import aiohttp

    try:
        timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
        connector = aiohttp.TCPConnector(ssl=trusted)  # aiohttp's own is of the time of its import
        async with (
            aiohttp.ClientSession(timeout=timeout, connector=connector) as session,
            session.get(url, headers=headers) as reply,
        ):
            return reply.status, await _read(reply)
    except TimeoutError:
        return f"does not answer within {_TIMEOUT_S:g} s", b""
    except (aiohttp.ClientError, OSError, ValueError) as error:
        return f"cannot be reached ({_reason(error)})", b""


def _reason(error: Exception) -> str:
    cause = getattr(error, "certificate_error", None) or getattr(error, "os_error", error)
    if isinstance(cause, ssl.SSLError):
        return _TLS + (getattr(cause, "verify_message", None) or cause.reason or str(cause))
    number = getattr(cause, "errno", None) or 0
    plain = os.strerror(number) if number > 0 else getattr(cause, "strerror", None) or str(error)
    return " ".join(plain.split())[:160] or type(error).__name__


async def _read(reply: Any) -> bytes:
    body = b""
    async for block in reply.content.iter_chunked(1 << 16):
        body += block
        if len(body) > _LARGEST:
            break
    return body
