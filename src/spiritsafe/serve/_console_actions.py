"""What the console's forms do. Each returns a word for what was done; `DONE` says it to people."""

from __future__ import annotations

from typing import Final, cast
from urllib.parse import parse_qs

from spiritsafe.errors import BadInput
from spiritsafe.serve._account_store import AccountChanges
from spiritsafe.serve._account_text import APPEAL
from spiritsafe.serve._admin_parts import AdminParts
from spiritsafe.serve._config import LimitSet, Step
from spiritsafe.serve._key_store import IssuedKey
from spiritsafe.serve._limit_text import typed_limits

__all__ = ["DONE", "Actions", "Form"]

DONE: Final = {
    "added": "The account is made. Give it a key below.",
    "changed": "The account is changed.",
    "suspended": "The account is suspended: its requests are refused from now on.",
    "restored": "The suspension is lifted.",
    "accepted": "The terms are noted as accepted.",
    "revoked": "The key is revoked.",
    "decided": "The decision is in the ledger.",
}


class Form:
    """What a form sent, as text."""

    def __init__(self, body: bytes) -> None:
        self._fields = parse_qs(body.decode("utf-8", "replace"), max_num_fields=100)

    def text(self, name: str) -> str:
        """A field without the blanks around it; "" if it was left empty."""
        return self._fields.get(name, [""])[0].strip()

    def all(self, name: str) -> list[str]:
        """A field that may be given several times."""
        return self._fields.get(name, [])

    def number(self, name: str) -> float | None:
        """None if it was left empty. Raises `BadInput`."""
        text = self.text(name)
        try:
            return float(text) if text else None
        except ValueError:
            raise BadInput(f"{name.replace('_', ' ')} {text[:40]!r}: write a number") from None


class Actions:
    """Raise as the accounts and the ladder do. who: the admin's key, as the ledger keeps it."""

    def __init__(self, parts: AdminParts) -> None:
        self._parts, self._accounts = parts, parts.accounts

    async def add(self, form: Form) -> str:
        """The new account's id."""
        made = await self._accounts.add(form.text("name"), tier=form.text("tier"), org=form.text("org") or None)
        return made.id

    async def settings(self, ref: str, form: Form, who: str) -> str:
        lines = [line for line in form.text("limits").splitlines() if line.strip()]
        changes = AccountChanges(
            name=form.text("name"),
            tier=form.text("tier"),
            org=form.text("org") or None,
            payment_id=form.text("payment_id") or None,
            cluster=form.text("cluster") or None,
            twin_consent=form.text("twin_consent") == "yes",
            limits=typed_limits(LimitSet(), lines, "limits"),
        )
        await self._accounts.change(ref, changes, decided_by=who)
        return "changed"

    async def suspend(self, ref: str, form: Form, who: str) -> str:
        if not form.text("reason"):
            raise BadInput("suspend: give the reason that the customer is told")
        appeal = form.text("appeal") or APPEAL
        await self._accounts.suspend(ref, reason=form.text("reason"), appeal=appeal, decided_by=who)
        return "suspended"

    async def restore(self, ref: str, form: Form, who: str) -> str:
        await self._accounts.restore(ref, decided_by=who)
        return "restored"

    async def accept_terms(self, ref: str, form: Form, who: str) -> str:
        await self._accounts.accept_terms(ref, form.text("version"), accepted_by=who)
        return "accepted"

    async def step(self, ref: str, form: Form, who: str) -> str:
        """A decision on the account, or on the cluster it is linked to."""
        if self._parts.ladder is None:
            raise BadInput("this guard has no ladder")
        account = await self._accounts.show(ref)
        subject = form.text("subject")
        if subject not in (f"account:{account.id}", f"cluster:{account.cluster}"):
            raise BadInput(
                "decide on this account or on the cluster it is linked to; it may have been changed meanwhile"
            )
        step = cast(Step, form.text("step"))  # the ladder checks it
        appeal = form.text("appeal") or APPEAL
        await self._parts.ladder.apply(subject, step, reason=form.text("reason"), decided_by=who, appeal=appeal)
        return "decided"

    async def revoke(self, ref: str, form: Form, who: str) -> str:
        await self._accounts.revoke_key(form.text("key_id"))
        return "revoked"

    async def issue(self, ref: str, form: Form) -> IssuedKey:
        days = form.number("expires_days")
        expires = None if days is None else self._parts.clock() + days * 86400.0
        return await self._accounts.issue_key(
            ref, name=form.text("name") or None, scopes=form.all("scope"), expires=expires
        )

    async def rotate(self, ref: str, form: Form) -> IssuedKey:
        hours = form.number("overlap_hours")
        return await self._accounts.rotate_key(form.text("key_id"), overlap_s=(24.0 if hours is None else hours) * 3600)
