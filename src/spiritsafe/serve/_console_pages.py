"""What each page of the console shows, gathered from the guard's parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from spiritsafe.serve._account_rows import Account, ladder_dict
from spiritsafe.serve._account_text import APPEAL
from spiritsafe.serve._admin_parts import AdminParts
from spiritsafe.serve._admin_views import guard_status, spent_by_day
from spiritsafe.serve._api_keys import SCOPES
from spiritsafe.serve._config import STEPS
from spiritsafe.serve._console_html import bars
from spiritsafe.serve._limit_text import limit_lines
from spiritsafe.serve._limits._windows import day_number, windows
from spiritsafe.serve._types import Identity
from spiritsafe.serve._usage import Spent, read_spent, usage_response

__all__ = ["account_page", "accounts_page", "ladder_page", "overview_page"]

_PAGE = 50
_MOST_STATES = 500


async def overview_page(parts: AdminParts) -> dict[str, Any]:
    """The guard as a whole."""
    status = await guard_status(parts)
    days = await spent_by_day(parts)
    return {
        "overview": status,
        "days": days,
        "bars": bars(days),
        "refusals": _counts(status["status"]["refusals"]) if "refusals" in status["status"] else None,
        "upstreams": status["status"].get("upstreams") or {},
        "not_ready": status["status"].get("not_ready") or [],
        "reviews": [
            state | {"name": _name_of(parts, state["subject"])}
            for state in await _ladder(parts)
            if state["step"] == "review"
        ],
        "ladder_shadow": parts.config.ladder.shadow,
    }


async def accounts_page(parts: AdminParts, query: Mapping[str, str]) -> dict[str, Any]:
    """A page of accounts with what each spent today and this month."""
    search, cluster, after = query.get("search", "").strip(), query.get("cluster", "").strip(), query.get("after")
    suspended = {"suspended": True, "active": False}.get(query.get("status", ""))
    found = await parts.accounts.list(
        after=after, limit=_PAGE + 1, search=search or None, suspended=suspended, cluster=cluster or None
    )
    page = found[:_PAGE]
    today, month, _ = windows(day_number(parts.clock()))
    spent = await read_spent(parts.db, [f"account:{account.id}" for account in page], [today, month])

    def row(account: Account) -> dict[str, Any]:
        scope = f"account:{account.id}"
        standing = _standing(parts.accounts.identity(account.id))
        return account.to_dict() | {
            "today": spent.get((scope, today), Spent()).to_dict(),
            "month": spent.get((scope, month), Spent()).to_dict(),
            "step": max(standing, key=lambda state: STEPS.index(state["step"]), default=None),
        }

    return {
        "accounts": [row(account) for account in page],
        "next": page[-1].name if len(found) > _PAGE else None,
        "search": search,
        "cluster": cluster,
        "status": query.get("status", ""),
        "after": after,
        "ladder_shadow": parts.config.ladder.shadow,
        "tiers": list(parts.config.tiers),
    }


async def account_page(parts: AdminParts, ref: str) -> dict[str, Any]:
    """One account. Raises `NotFound`."""
    now = parts.clock()
    account = await parts.accounts.show(ref)
    identity = parts.accounts.identity(account.id)
    if identity is None:  # another process made it a moment ago
        await parts.accounts.refresh()
        identity = parts.accounts.identity(account.id)
    assert identity is not None  # accounts are never deleted
    usage = await usage_response(identity, parts.db, parts.config, now)
    subjects = [f"account:{account.id}", *([f"cluster:{account.cluster}"] if account.cluster else [])]
    terms = parts.config.terms
    shown = account.to_dict()
    return {
        "account": shown,
        "limit_lines": limit_lines(shown["limits"]),
        "usage": usage,
        "bars": bars(usage["days"]),
        "keys": [key.to_dict(now) for key in await parts.accounts.keys_of(account.id)],
        "terms": terms and {"version": terms.version, "url": terms.url, "required": terms.required},
        "standing": _standing(identity),
        "history": [decision for subject in subjects for decision in await _history(parts, subject)],
        "tiers": list(parts.config.tiers),
        "scopes": SCOPES,
        "steps": STEPS,
        "subjects": subjects,
        "appeal": APPEAL,
        "ladder_shadow": parts.config.ladder.shadow,
        "has_ladder": parts.ladder is not None,
    }


async def ladder_page(parts: AdminParts) -> dict[str, Any]:
    """Every subject that stands on a step, the gravest first."""
    states = sorted(await _ladder(parts), key=lambda state: (-STEPS.index(state["step"]), state["subject"]))
    shown = states[:_MOST_STATES]
    return {
        "states": [state | {"name": _name_of(parts, state["subject"])} for state in shown],
        "left_out": len(states) - len(shown),
        "ladder_shadow": parts.config.ladder.shadow,
    }


async def _ladder(parts: AdminParts) -> list[dict[str, Any]]:
    return [] if parts.ladder is None else [ladder_dict(state) for state in await parts.ladder.states()]


def _standing(identity: Identity | None) -> list[dict[str, Any]]:
    """The account's own step and its cluster's."""
    steps = (identity.account_step, identity.cluster_step) if identity else ()
    return [ladder_dict(state) for state in steps if state is not None]


def _name_of(parts: AdminParts, subject: str) -> str | None:
    kind, _, account_id = subject.partition(":")
    identity = parts.accounts.identity(account_id) if kind == "account" else None
    return identity.name if identity else None


async def _history(parts: AdminParts, subject: str) -> list[dict[str, Any]]:
    """Newest first."""
    if parts.ladder is None:
        return []
    found: Sequence[Any] = await parts.ladder.history(subject)
    return [ladder_dict(decision.state) | {"features": decision.features} for decision in reversed(found)]


def _counts(refusals: Mapping[str, int]) -> list[tuple[str, int]]:
    """The most frequent first."""
    return sorted(refusals.items(), key=lambda item: -item[1])
