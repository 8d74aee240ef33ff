"""`/admin/…`: what the command line does with accounts, and the ladder, usage and ledger, as JSON."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from spiritsafe.serve._access import require_scope
from spiritsafe.serve._account_rows import ladder_dict
from spiritsafe.serve._account_store import AccountChanges, NotFound
from spiritsafe.serve._admin_bodies import (
    Accept,
    Issue,
    LadderStep,
    ListAccounts,
    NewAccount,
    Nothing,
    Rotate,
    Suspend,
)
from spiritsafe.serve._admin_http import answer_error, json_answer, read_json, read_query
from spiritsafe.serve._admin_parts import AdminParts
from spiritsafe.serve._admin_views import guard_status, ledger_status, verify_beside
from spiritsafe.serve._key_store import IssuedKey, KeyChanges
from spiritsafe.serve._ladder import WATCH
from spiritsafe.serve._types import Identity
from spiritsafe.serve._usage import usage_response
from spiritsafe.wire import ApiError

__all__ = ["admin_api"]

Handler = Callable[[Request], Awaitable[Response]]


def admin_api(parts: AdminParts) -> ASGIApp:
    """Every path under /admin; the key is checked before the path is looked at."""
    api = _Api(parts)
    paths: list[tuple[str, str, Handler]] = [
        ("GET", "/accounts", api.list_accounts),
        ("POST", "/accounts", api.add),
        ("GET", "/accounts/{ref}", api.show),
        ("PATCH", "/accounts/{ref}", api.change),
        ("POST", "/accounts/{ref}/suspend", api.suspend),
        ("POST", "/accounts/{ref}/restore", api.restore),
        ("POST", "/accounts/{ref}/terms", api.accept_terms),
        ("GET", "/accounts/{ref}/usage", api.usage),
        ("GET", "/accounts/{ref}/keys", api.keys),
        ("POST", "/accounts/{ref}/keys", api.issue),
        ("GET", "/keys/{key_id}", api.show_key),
        ("PATCH", "/keys/{key_id}", api.change_key),
        ("POST", "/keys/{key_id}/revoke", api.revoke),
        ("POST", "/keys/{key_id}/rotate", api.rotate),
        ("GET", "/ladder", api.ladder),
        ("POST", "/ladder", api.step),
        ("GET", "/ladder/{subject}", api.ladder_history),
        ("GET", "/ledger", api.ledger),
        ("POST", "/ledger/verify", api.verify),
        ("GET", "/status", api.status),
    ]
    routes: dict[str, dict[str, Handler]] = {}
    for method, path, handler in paths:
        routes.setdefault(path, {})[method] = handler
    router = Router(
        [Route(path, _by_method(found), methods=list(found)) for path, found in routes.items()], redirect_slashes=False
    )
    return _Admitted(parts, router)


class _Admitted:
    """Lets nobody in without an admin's key, whatever the path."""

    def __init__(self, parts: AdminParts, router: Router) -> None:
        self._parts, self._router = parts, router

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            scope.setdefault("state", {})["admin"] = self._admin(request)
            await self._router(scope, receive, send)
        except Exception as error:
            response = await answer_error(request, error)
            await response(scope, receive, send)

    def _admin(self, request: Request) -> Identity:
        parts = self._parts
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        identity = parts.accounts.authenticate(token.strip().encode()) if kind.lower() == "bearer" else None
        if identity is None:
            raise ApiError(
                401, "missing or invalid API key; send it as: Authorization: Bearer KEY", code="invalid_api_key"
            )
        require_scope(identity, parts.clock(), "admin")
        if identity.suspended:
            raise ApiError(403, "this key's account is suspended", code="account_suspended")
        return identity


def _by_method(handlers: dict[str, Handler]) -> Handler:
    async def handle(request: Request) -> Response:
        handler = handlers.get("GET" if request.method == "HEAD" else request.method)
        if handler is None:
            raise HTTPException(405)
        return await handler(request)

    return handle


class _Api:
    def __init__(self, parts: AdminParts) -> None:
        self._parts, self._accounts = parts, parts.accounts
        self._verifying = asyncio.Lock()

    async def list_accounts(self, request: Request) -> Response:
        asked = read_query(request, ListAccounts)
        found = await self._accounts.list(**asked.model_dump() | {"limit": asked.limit + 1})
        page, more = found[: asked.limit], len(found) > asked.limit
        last = page[-1].name if more else None
        return json_answer({"object": "list", "data": [a.to_dict() for a in page], "has_more": more, "next": last})

    async def add(self, request: Request) -> Response:
        body = await read_json(request, NewAccount)
        made = await self._accounts.add(**{name: getattr(body, name) for name in NewAccount.model_fields})
        return json_answer(made.to_dict(), 201)

    async def show(self, request: Request) -> Response:
        account = await self._accounts.show(request.path_params["ref"])
        return json_answer(account.to_dict() | {"keys": await self._keys_of(account.id)})

    async def change(self, request: Request) -> Response:
        changes, ref = await read_json(request, AccountChanges), request.path_params["ref"]
        return json_answer((await self._accounts.change(ref, changes, decided_by=who(request))).to_dict())

    async def suspend(self, request: Request) -> Response:
        body, ref = await read_json(request, Suspend), request.path_params["ref"]
        done = await self._accounts.suspend(ref, reason=body.reason, appeal=body.appeal, decided_by=who(request))
        return json_answer(done.to_dict())

    async def restore(self, request: Request) -> Response:
        await read_json(request, Nothing)
        done = await self._accounts.restore(request.path_params["ref"], decided_by=who(request))
        return json_answer(done.to_dict())

    async def accept_terms(self, request: Request) -> Response:
        body, ref = await read_json(request, Accept), request.path_params["ref"]
        return json_answer((await self._accounts.accept_terms(ref, body.version, accepted_by=who(request))).to_dict())

    async def usage(self, request: Request) -> Response:
        parts = self._parts
        account = await self._accounts.show(request.path_params["ref"])
        identity = self._accounts.identity(account.id)
        if identity is None:
            await self._accounts.refresh()
            identity = self._accounts.identity(account.id)
        if identity is None:
            raise NotFound(f"account {account.id}: it is gone")
        return json_answer(await usage_response(identity, parts.db, parts.config, parts.clock()))

    async def keys(self, request: Request) -> Response:
        account = await self._accounts.show(request.path_params["ref"])
        return json_answer({"object": "list", "data": await self._keys_of(account.id), "has_more": False, "next": None})

    async def issue(self, request: Request) -> Response:
        body, now = await read_json(request, Issue), self._parts.clock()
        expires = None if body.expires_days is None else now + body.expires_days * 86400.0
        issued = await self._accounts.issue_key(
            request.path_params["ref"], name=body.name, scopes=body.scopes, expires=expires, limits=body.limits
        )
        return self._issued(issued)

    async def show_key(self, request: Request) -> Response:
        key = await self._accounts.show_key(request.path_params["key_id"])
        return json_answer(key.to_dict(self._parts.clock()))

    async def change_key(self, request: Request) -> Response:
        changes = await read_json(request, KeyChanges)
        key = await self._accounts.change_key(request.path_params["key_id"], changes, decided_by=who(request))
        return json_answer(key.to_dict(self._parts.clock()))

    async def revoke(self, request: Request) -> Response:
        await read_json(request, Nothing)
        key = await self._accounts.revoke_key(request.path_params["key_id"])
        return json_answer(key.to_dict(self._parts.clock()))

    async def rotate(self, request: Request) -> Response:
        body = await read_json(request, Rotate)
        return self._issued(
            await self._accounts.rotate_key(request.path_params["key_id"], overlap_s=body.overlap_hours * 3600.0)
        )

    async def ladder(self, request: Request) -> Response:
        states = await self._ladder().states()
        return json_answer(
            {"object": "list", "data": [ladder_dict(s) for s in states], "has_more": False, "next": None}
        )

    async def step(self, request: Request) -> Response:
        body = await read_json(request, LadderStep)
        state = await self._ladder().apply(
            body.subject,
            body.step,
            reason=body.reason,
            decided_by=WATCH if body.by_watch else who(request),
            features=body.features,
            appeal=body.appeal,
        )
        return json_answer(ladder_dict(state))

    async def ladder_history(self, request: Request) -> Response:
        decisions = await self._ladder().history(request.path_params["subject"])
        data = [ladder_dict(decision.state) | {"features": decision.features} for decision in decisions]
        return json_answer({"object": "list", "data": data, "has_more": False, "next": None})

    async def ledger(self, _: Request) -> Response:
        return json_answer(await ledger_status(self._parts))

    async def verify(self, request: Request) -> Response:
        await read_json(request, Nothing)
        if self._verifying.locked():
            raise ApiError(409, "a verification is running; wait for it", code="busy")
        async with self._verifying:
            return json_answer(await verify_beside(self._parts.config.state.database))

    async def status(self, _: Request) -> Response:
        return json_answer(await guard_status(self._parts))

    async def _keys_of(self, account_id: str) -> list[dict[str, Any]]:
        now = self._parts.clock()
        return [key.to_dict(now) for key in await self._accounts.keys_of(account_id)]

    def _issued(self, issued: IssuedKey) -> Response:
        """The one answer that shows a key."""
        return json_answer(issued.key.to_dict(self._parts.clock()) | {"key": issued.text}, 201)

    def _ladder(self) -> Any:
        if self._parts.ladder is None:
            raise ApiError(404, "this guard has no ladder", code="not_found")
        return self._parts.ladder


def who(request: Request) -> str:
    """Who decides, as the ledger keeps it: the admin's key."""
    return f"key:{request.state.admin.key_id}"
