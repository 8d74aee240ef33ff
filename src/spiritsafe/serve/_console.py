"""`/console`: pages for people. Sign in with an admin's key; every change is a form that says what it does."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import quote

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from spiritsafe.serve._admin_http import api_error, read_body
from spiritsafe.serve._admin_parts import AdminParts
from spiritsafe.serve._admin_views import verify_beside
from spiritsafe.serve._console_actions import DONE, Actions, Form
from spiritsafe.serve._console_html import render, stylesheet
from spiritsafe.serve._console_pages import account_page, accounts_page, ladder_page, overview_page
from spiritsafe.serve._console_session import Session, Sessions, from_elsewhere
from spiritsafe.serve._key_store import IssuedKey
from spiritsafe.wire import ApiError

__all__ = ["console"]

_HOME = "/console/"
Handler = Callable[[Request], Awaitable[Response]]
Gather = Callable[[Request], Awaitable[dict[str, Any]]]
Act = Callable[[Request, Session, Form], Awaitable[Response]]


def console(parts: AdminParts) -> ASGIApp:
    """Every path under /console."""
    pages, actions = _Pages(parts), Actions(parts)
    account = "/accounts/{ref}"

    def get(path: str, template: str, gather: Gather) -> Route:
        return Route(path, pages.show(template, gather))

    def post(path: str, act: Act) -> Route:
        return Route(path, pages.act(act), methods=["POST"])

    def on_account(name: str, action: Callable[[str, Form, str], Awaitable[str]]) -> Route:
        async def act(request: Request, session: Session, form: Form) -> Response:
            ref = request.path_params["ref"]
            return _to_account(ref, await action(ref, form, session.who))

        return post(f"{account}/{name}", act)

    def issuing(name: str, action: Callable[[str, Form], Awaitable[IssuedKey]]) -> Route:
        async def act(request: Request, session: Session, form: Form) -> Response:
            issued = await action(request.path_params["ref"], form)
            owner = await parts.accounts.show(issued.key.account)
            shown = {"issued": issued.key.to_dict(parts.clock()), "text": issued.text, "owner": owner.to_dict()}
            return pages.page(session, "issued.html.j2", shown)

        return post(f"{account}/{name}", act)

    async def add(_: Request, __: Session, form: Form) -> Response:
        return _to_account(await actions.add(form), "added")

    async def verify(_: Request, session: Session, __: Form) -> Response:
        found = await verify_beside(parts.config.state.database)
        return pages.page(session, "verified.html.j2", {"found": found})

    routes = [
        Route("/console.css", _css),
        Route("/login", pages.login, methods=["GET", "POST"]),
        post("/logout", pages.logout),
        get("/", "overview.html.j2", lambda _: overview_page(parts)),
        get("/accounts", "accounts.html.j2", lambda request: accounts_page(parts, request.query_params)),
        post("/accounts", add),
        get(account, "account.html.j2", lambda request: account_page(parts, request.path_params["ref"])),
        issuing("keys", actions.issue),
        issuing("rotate", actions.rotate),
        on_account("revoke", actions.revoke),
        on_account("settings", actions.settings),
        on_account("suspend", actions.suspend),
        on_account("restore", actions.restore),
        on_account("terms", actions.accept_terms),
        on_account("ladder", actions.step),
        get("/ladder", "ladder.html.j2", lambda _: ladder_page(parts)),
        post("/verify", verify),
    ]
    return Router(routes, redirect_slashes=False, default=pages.unknown)


class _Pages:
    """Who is signed in sees pages and sends forms; anybody else is asked to sign in."""

    def __init__(self, parts: AdminParts) -> None:
        self._sessions = Sessions(parts)

    def show(self, template: str, gather: Gather) -> Handler:
        """A page."""

        async def handle(request: Request, session: Session) -> Response:
            done = DONE.get(request.query_params.get("done", ""))
            return self.page(session, template, await gather(request) | {"done": done})

        return self._signed_in(handle)

    def act(self, act: Act) -> Handler:
        """What a form does; only for a form that this session was given."""

        async def handle(request: Request, session: Session) -> Response:
            form = Form(await read_body(request))
            token = form.text("csrf").encode()
            if from_elsewhere(request) or not hmac.compare_digest(token, session.csrf.encode()):
                raise ApiError(403, "that form was not sent from a page of this session; open the page again")
            return await act(request, session, form)

        return self._signed_in(handle)

    async def login(self, request: Request) -> Response:
        """Asks for an admin's key; takes it."""
        if request.method != "POST":
            return self.page(None, "login.html.j2", {"failed": False})
        if from_elsewhere(request):
            return self._error(None, ApiError(403, "that form was not sent from this page; open it again"), request)
        identity = self._sessions.admit(Form(await read_body(request)).text("key"))
        if identity is None:
            return self.page(None, "login.html.j2", {"failed": True}, 401)
        response = _to(_HOME)
        self._sessions.sign_in(response, identity, secure=request.url.scheme == "https")
        return response

    async def logout(self, _: Request, __: Session, ___: Form) -> Response:
        response = _to(f"{_HOME}login")
        self._sessions.sign_out(response)
        return response

    async def unknown(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Any other path."""

        async def nowhere(request: Request, session: Session) -> Response:
            raise HTTPException(404)

        response = await self._signed_in(nowhere)(Request(scope, receive))
        await response(scope, receive, send)

    def page(self, session: Session | None, template: str, context: Mapping[str, Any], status: int = 200) -> Response:
        about = {"csrf": session.csrf, "admin": session.identity.name} if session else {"csrf": "", "admin": None}
        return Response(render(template, {"done": None} | dict(context) | about), status, media_type="text/html")

    def _signed_in(self, handle: Callable[[Request, Session], Awaitable[Response]]) -> Handler:
        async def admitted(request: Request) -> Response:
            session = self._sessions.read(request)
            if session is None:
                return _to(f"{_HOME}login")
            try:
                return await handle(request, session)
            except Exception as error:
                return self._error(session, error, request)

        return admitted

    def _error(self, session: Session | None, error: Exception, request: Request) -> Response:
        found = api_error(error)
        ref = request.path_params.get("ref")
        back = _account_path(ref) if ref and found.status != 404 else _HOME
        return self.page(session, "error.html.j2", {"message": found.message, "back": back}, found.status)


async def _css(_: Request) -> Response:
    return Response(stylesheet(), media_type="text/css")


def _to(path: str) -> Response:
    """A new page after a form: 303, so that going back sends nothing twice."""
    return RedirectResponse(path, status_code=303)


def _account_path(ref: str) -> str:
    return f"{_HOME}accounts/{quote(ref, safe='')}"


def _to_account(ref: str, done: str) -> Response:
    return _to(f"{_account_path(ref)}?done={done}")
