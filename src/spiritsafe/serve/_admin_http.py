"""What the admin API and the console share: bodies read with care, errors as answers, headers on everything."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, TypeVar

import orjson
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from spiritsafe.config import parse_config
from spiritsafe.errors import BadInput, Refused, SpiritsafeError
from spiritsafe.serve._account_store import NotFound
from spiritsafe.state import Unavailable
from spiritsafe.wire import ApiError

__all__ = ["SafeHeaders", "answer_error", "api_error", "json_answer", "read_body", "read_json", "read_query"]

_LARGEST = 64 << 10
_log = logging.getLogger("spiritsafe.serve.admin")
M = TypeVar("M", bound=BaseModel)


async def read_body(request: Request) -> bytes:
    """A small body.

    Raises:
        ApiError: 413 it is larger than 64 KiB.
    """
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > _LARGEST:
            raise ApiError(413, "the body is larger than 64 KiB; no request here needs that", code="body_too_large")
    return bytes(body)


async def read_json(request: Request, model: type[M]) -> M:
    """A JSON object, checked strictly; no body counts as an empty one.

    Raises:
        ApiError: 400 it is no JSON object, 413 too large.
        BadInput: it does not fit `model`.
    """
    body = await read_body(request)
    try:
        data = orjson.loads(body) if body.strip() else {}
    except orjson.JSONDecodeError as error:
        raise ApiError(400, f"the body is not JSON ({error.msg} at byte {error.pos})", code="invalid_json") from None
    if not isinstance(data, dict):
        raise ApiError(400, "the body must be a JSON object", code="invalid_json")
    return parse_config(data, model, where="body")


def read_query(request: Request, model: type[M]) -> M:
    """The query's parameters, checked strictly. Raises `BadInput`."""
    return parse_config(dict(request.query_params), model, where="query")


def json_answer(value: Mapping[str, Any], status: int = 200) -> Response:
    return Response(orjson.dumps(value), status, media_type="application/json")


def api_error(error: Exception) -> ApiError:
    """Any failure as an answer: what the caller can act on, and of the unexpected nothing."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, HTTPException):
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code)
        return ApiError(error.status_code, error.detail.lower(), code=code)
    for kind, status, code in (
        (NotFound, 404, "not_found"),
        (BadInput, 400, "invalid_request"),
        (Refused, 409, "refused"),
        (Unavailable, 503, "unavailable"),
        (SpiritsafeError, 500, "failed"),
    ):
        if isinstance(error, kind):
            return ApiError(status, str(error), code=code)
    _log.error("admin request failed: %s", type(error).__name__, exc_info=error)
    return ApiError(500, "something unexpected happened; the log has it", code="internal")


async def answer_error(_: Request, error: Exception) -> Response:
    """Starlette's exception handler of the JSON API."""
    found = api_error(error)
    return json_answer(found.to_dict(), found.status)


class SafeHeaders:
    """Adds to every answer what keeps a browser from caching, framing, guessing or loading anything."""

    _HEADERS = (
        (b"cache-control", b"no-store"),
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"same-origin"),
        (b"cross-origin-opener-policy", b"same-origin"),
        (b"cross-origin-resource-policy", b"same-origin"),
        (
            b"content-security-policy",
            b"default-src 'none'; style-src 'self'; img-src 'self' data:; form-action 'self'; base-uri 'none';"
            b" frame-ancestors 'none'",
        ),
    )

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *self._HEADERS]
            await send(message)

        await self._app(scope, receive, guarded)
