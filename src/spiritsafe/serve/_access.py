"""May this identity ask at all? Answers before limits and policy are looked at."""

from __future__ import annotations

from spiritsafe.serve._account_text import APPEAL, REASON
from spiritsafe.serve._api_keys import Scope
from spiritsafe.serve._config import GuardConfig
from spiritsafe.serve._types import Identity
from spiritsafe.wire import ApiError

__all__ = ["access", "require_scope"]


def access(identity: Identity, now: float, config: GuardConfig, scope: Scope = "inference") -> None:
    """Return if this key of this account may make a request now.

    Raises:
        ApiError: 401 the key has expired; 403 its scope is another, the account is suspended (with reason and appeal
            note), on a tier that the config lacks, or has not accepted the terms in force (with their link).
    """
    require_scope(identity, now, scope)
    if identity.suspended:
        reason, appeal = identity.reason or REASON, identity.appeal or APPEAL
        raise ApiError(
            403,
            f"Account {identity.account} is suspended: {reason}. To appeal: {appeal}.",
            code="account_suspended",
        )
    if identity.tier not in config.tiers:
        raise ApiError(403, "This account's tier is not configured; ask the operator of this API.", code="tier_unknown")
    terms = config.terms
    if terms is not None and terms.required and identity.terms_version != terms.version:
        raise ApiError(
            403,
            f"Account {identity.account} has not accepted the terms, version {terms.version}: {terms.url}. To accept,"
            " read them and tell the operator of this API that this account accepts that version.",
            code="terms_not_accepted",
        )


def require_scope(identity: Identity, now: float, *scopes: Scope) -> None:
    """Return if the key has one of the scopes and has not expired.

    Raises:
        ApiError: 401 or 403.
    """
    if identity.key_expires is not None and now >= identity.key_expires:
        raise ApiError(401, "This API key has expired; ask the operator of this API for a new one.", code="key_expired")
    if identity.scopes.isdisjoint(scopes):
        raise ApiError(
            403,
            f"This API key lacks the scope {' or '.join(scopes)}; use a key that has it.",
            code="scope_missing",
        )
