"""The admin port: a JSON API for programs, a console for people. Nothing here answers without an admin's key."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp

from spiritsafe.serve._admin_api import admin_api
from spiritsafe.serve._admin_http import SafeHeaders, answer_error
from spiritsafe.serve._admin_parts import AdminParts
from spiritsafe.serve._console import console

__all__ = ["AdminParts", "admin_app"]


def admin_app(parts: AdminParts) -> ASGIApp:
    """The ASGI application of the admin port: `/admin/…` (bearer key with the scope "admin") and `/console`."""
    api = admin_api(parts)
    return Starlette(
        routes=[
            Route("/", _to_console),
            Route("/admin", api),
            Mount("/admin", app=api),
            Mount("/console", app=console(parts)),
        ],
        middleware=[Middleware(SafeHeaders)],
        exception_handlers={404: answer_error, 405: answer_error, Exception: answer_error},
    )


async def _to_console(_: Request) -> Response:
    return RedirectResponse("/console/", status_code=303)
