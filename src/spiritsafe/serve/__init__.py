"""The guard: a gateway in front of a teacher, with accounts, limits that hold, a meter and an output policy."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from spiritsafe.serve._config import GuardConfig

if TYPE_CHECKING:
    from spiritsafe.serve._accounts import Accounts
    from spiritsafe.serve._check import Finding, check_guard
    from spiritsafe.serve._guard import Guard
    from spiritsafe.serve._server import guard_app, serve_guard

__all__ = ["Accounts", "Finding", "Guard", "GuardConfig", "check_guard", "guard_app", "serve_guard"]

# The server and all behind it load on first use: a command that only reads the config stays quick.
_LAZY = {
    "Accounts": "_accounts",
    "Finding": "_check",
    "Guard": "_guard",
    "check_guard": "_check",
    "guard_app": "_server",
    "serve_guard": "_server",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
