"""The public port: which path is what, and every failure as an answer in OpenAI's shape. Raw ASGI: this runs once a
request, and a framework's routing alone costs more than the guard's own work."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from urllib.parse import unquote

import orjson

from spiritsafe.errors import SpiritsafeError
from spiritsafe.serve._guard import Guard
from spiritsafe.serve._handler import Handler
from spiritsafe.serve._http import ClientGone, Receive, Scope, Send, send_error, send_json
from spiritsafe.serve._types import Identity
from spiritsafe.wire import ApiError, AskKind

__all__ = ["GuardApp"]

_KINDS: dict[str, AskKind] = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completions",
    "/v1/responses": "responses",
    "/v1/embeddings": "embeddings",
}
_log = logging.getLogger("spiritsafe.serve")

Page = Callable[[Scope, Send], Awaitable[None]]


class GuardApp:
    """ASGI application of the public port. It opens and closes nothing: that is the guard's."""

    def __init__(self, guard: Guard) -> None:
        self._guard, self._handler = guard, Handler(guard)
        self._started = int(time.time())
        self._pages: dict[str, Page] = {
            "/healthz": self._healthz,
            "/readyz": self._readyz,
            "/metrics": self._metrics,
            "/v1/models": self._models,
            "/v1/usage": self._usage,
            "/openapi.json": self._openapi,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"the guard speaks HTTP, not {scope['type']}")
        path, method = scope["path"], scope["method"]
        try:
            kind = _KINDS.get(path)
            if kind is not None:
                if method != "POST":
                    raise _wrong_method(method, path, "POST")
                await self._handler.serve(kind, scope, receive, send)
                return
            page = self._pages.get(path)
            if page is None and path.startswith("/v1/models/"):
                page = self._model
            if page is None:
                self._handler.identify(scope, "inference", "usage")
                raise ApiError(404, f"no such path: {method} {path[:200]}", code="not_found")
            if method not in ("GET", "HEAD"):
                raise _wrong_method(method, path, "GET")
            await page(scope, send)
        except ApiError as error:
            headers = [(b"allow", (error.param or "").encode())] if error.status == 405 else []
            await send_error(send, error, headers)
        except ClientGone:
            pass
        except Exception as error:
            # The message may hold a prompt or a secret: the type alone is shown, the trace goes to the log.
            _log.exception("request failed: %s", type(error).__name__)
            status = 503 if isinstance(error, SpiritsafeError) else 500
            await send_error(
                send, ApiError(status, "the guard could not answer this request; try again", code="internal")
            )

    async def _healthz(self, _: Scope, send: Send) -> None:
        await send_json(send, b'{"status":"ok"}')

    async def _readyz(self, _: Scope, send: Send) -> None:
        missing = self._guard.not_ready()
        status = "draining" if self._guard.draining else "not ready" if missing else "ready"
        body = {"status": status} | ({"because": missing} if missing else {})
        await send_json(send, orjson.dumps(body), 503 if missing else 200)

    async def _metrics(self, scope: Scope, send: Send) -> None:
        if not self._guard.config.metrics_open:
            self._handler.identify(scope, "metrics", "admin")
        body, content_type = self._guard.metrics.render()
        length = (b"content-length", str(len(body)).encode())
        headers = [(b"content-type", content_type.encode()), length]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _models(self, scope: Scope, send: Send) -> None:
        identity = self._handler.identify(scope, "inference", "usage")
        cards = [self._card(model) for model in self._handler.models_for(identity)]
        await send_json(send, orjson.dumps({"object": "list", "data": cards}))

    async def _model(self, scope: Scope, send: Send) -> None:
        identity = self._handler.identify(scope, "inference", "usage")
        name = unquote(scope["path"].removeprefix("/v1/models/"))
        if name not in self._handler.models_for(identity):
            raise ApiError(404, f"no model {name[:100]!r} here; GET /v1/models lists them", code="model_not_found")
        await send_json(send, orjson.dumps(self._card(name)))

    async def _usage(self, scope: Scope, send: Send) -> None:
        identity: Identity = self._handler.identify(scope, "inference", "usage")
        await send_json(send, orjson.dumps(await self._guard.usage(identity)))

    async def _openapi(self, scope: Scope, send: Send) -> None:
        self._handler.identify(scope, "inference", "usage", "metrics", "admin")
        from spiritsafe.serve._openapi import openapi

        await send_json(send, orjson.dumps(openapi(self._guard.config)))

    def _card(self, model: str) -> dict[str, object]:
        return {"id": model, "object": "model", "created": self._started, "owned_by": "spiritsafe"}


def _wrong_method(method: str, path: str, right: str) -> ApiError:
    return ApiError(405, f"{method} {path}: use {right}", param=right, code="method_not_allowed")
