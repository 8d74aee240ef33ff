"""`spiritsafe accounts …`: who may ask the guard."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from spiritsafe.cli import _accounts_keys, _accounts_ladder
from spiritsafe.cli._accounts_store import GUARD_FILE, AccountRef, By, GuardFile, Limit, with_store
from spiritsafe.cli._output import Json, print_json, print_table
from spiritsafe.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from spiritsafe.serve._account_rows import Account
    from spiritsafe.serve._config import GuardConfig
    from spiritsafe.serve._key_store import KeyStore

__all__ = ["register"]

_PAGE = 1000
Tier = Annotated[str | None, typer.Option("--tier", help="A tier of the config.")]
Org = Annotated[str | None, typer.Option("--org", help="The organisation it belongs to; none takes it away.")]
PaymentId = Annotated[str | None, typer.Option("--payment-id", help="Who pays, as your billing names it.")]
Consent = Annotated[
    bool | None,
    typer.Option("--twin-consent/--no-twin-consent", help="May some replies be generated twice and one copy be kept?"),
]


def register(app: typer.Typer) -> None:
    accounts = typer.Typer(
        help="Accounts of the guard: add, list, show, set, suspend, restore, link, keys, ladder, terms.",
        no_args_is_help=True,
    )
    app.add_typer(accounts, name="accounts")
    for name, command, example in (
        ("add", add, 'add "Ada Ltd" --tier default --limit usd_per_day=5'),
        ("list", list_accounts, "list --suspended --json"),
        ("show", show, 'show "Ada Ltd"'),
        ("set", set_account, 'set "Ada Ltd" --tier gold --limit concurrency=8 --limit usd_per_day=tier'),
        ("suspend", suspend, 'suspend "Ada Ltd" --reason "bulk copying" --appeal "mail appeals@example.org"'),
        ("restore", restore, 'restore "Ada Ltd"'),
        ("link", link, 'link "Ada Ltd" --cluster c4'),
        ("unlink", unlink, 'unlink "Ada Ltd"'),
    ):
        accounts.command(name, epilog=f"Example: spiritsafe accounts {example}")(command)
    _accounts_keys.register(accounts)
    _accounts_ladder.register(accounts)
    terms = typer.Typer(help="Terms that customers accepted: accept.", no_args_is_help=True)
    accounts.add_typer(terms, name="terms")
    terms.command(epilog='Example: spiritsafe accounts terms accept "Ada Ltd" --version 2026-11')(accept)


def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name no other account has.")],
    tier: Tier = "default",
    org: Org = None,
    payment_id: PaymentId = None,
    cluster: Annotated[str | None, typer.Option("--cluster", help="Link it to this cluster.")] = None,
    twin_consent: Consent = False,
    limit: Limit = None,
    config: GuardFile = GUARD_FILE,
    as_json: Json = False,
) -> None:
    """Make an account. Give it a key with `accounts key issue`."""

    async def work(store: KeyStore, guard: GuardConfig) -> Account:
        from spiritsafe.serve._config import LimitSet
        from spiritsafe.serve._limit_text import typed_limits

        return await store.add(
            name,
            tier=tier or "default",
            org=org,
            payment_id=payment_id,
            cluster=cluster,
            twin_consent=bool(twin_consent),
            limits=typed_limits(LimitSet(), limit or (), "--limit"),
        )

    _done(config, work, as_json, "added {id} ({name}); next: spiritsafe accounts key issue {id}", org)


def list_accounts(
    search: Annotated[str | None, typer.Option("--search", help="Part of a name or id.")] = None,
    suspended: Annotated[bool | None, typer.Option("--suspended/--active", help="Only those.")] = None,
    tier: Tier = None,
    org: Org = None,
    cluster: Annotated[str | None, typer.Option("--cluster", help="Only this cluster's.")] = None,
    config: GuardFile = GUARD_FILE,
    as_json: Json = False,
) -> None:
    """All accounts, by name."""

    async def work(store: KeyStore, guard: GuardConfig) -> list[dict[str, Any]]:
        found: list[Account] = []
        while True:
            after = found[-1].name if found else None
            page = await store.list(
                after=after, limit=_PAGE, search=search, suspended=suspended, tier=tier, org=org, cluster=cluster
            )
            found += page
            if len(page) < _PAGE:
                return [account.to_dict() for account in found]

    accounts = with_store(config, work)
    if as_json:
        print_json({"accounts": accounts})
        return
    columns = ("id", "name", "tier", "status", "org", "cluster", "terms_version", "created")
    print_table(columns, [[str(account[column] or "") for column in columns] for account in accounts])


def show(ref: AccountRef, config: GuardFile = GUARD_FILE, as_json: Json = False) -> None:
    """One account and its keys."""

    async def work(store: KeyStore, guard: GuardConfig) -> dict[str, Any]:
        import time

        account = await store.show(ref)
        keys = await store.keys_of(account.id)
        return account.to_dict() | {"keys": [key.to_dict(time.time()) for key in keys]}

    shown = with_store(config, work)
    if as_json:
        print_json(shown)
        return
    from spiritsafe.serve._limit_text import limit_lines

    keys = shown.pop("keys")
    shown["limits"] = " ".join(limit_lines(shown["limits"]))
    for name, value in shown.items():
        if value not in (None, ""):
            print(f"{name:15} {value}")
    if keys:
        print()
        columns = ("key_id", "name", "scopes", "state", "created", "expires")
        rows = [[key[c] if c != "scopes" else ",".join(key[c]) for c in columns] for key in keys]
        print_table(columns, [[str(cell or "") for cell in row] for row in rows])


def set_account(
    ref: AccountRef,
    name: Annotated[str | None, typer.Option("--name", help="Another name.")] = None,
    tier: Tier = None,
    org: Org = None,
    payment_id: PaymentId = None,
    twin_consent: Consent = None,
    limit: Limit = None,
    by: By = "operator",
    config: GuardFile = GUARD_FILE,
    as_json: Json = False,
) -> None:
    """Change an account. A running guard follows within seconds."""
    given: dict[str, Any] = {"name": name, "tier": tier, "org": org, "payment_id": payment_id}
    given = {key: value for key, value in given.items() if value is not None} | (
        {} if twin_consent is None else {"twin_consent": twin_consent}
    )
    for key in ("org", "payment_id"):
        if given.get(key) == "none":
            given[key] = None
    if not given and not limit:
        raise BadInput("accounts set: nothing to change; give --tier, --limit or another option")

    async def work(store: KeyStore, guard: GuardConfig) -> Account:
        from spiritsafe.serve._account_store import AccountChanges
        from spiritsafe.serve._limit_text import typed_limits

        if limit:
            given["limits"] = typed_limits((await store.show(ref)).limits, limit, "--limit")
        return await store.change(ref, AccountChanges(**given), decided_by=by)

    if twin_consent is False:
        typer.echo("note: pairs kept so far stay; delete them with: spiritsafe evidence twins erase ID", err=True)
    _done(config, work, as_json, "changed {id} ({name})", org)


def suspend(
    ref: AccountRef,
    reason: Annotated[str | None, typer.Option("--reason", help="Why, as the customer is told.")] = None,
    appeal: Annotated[str | None, typer.Option("--appeal", help="How to object, as the customer is told.")] = None,
    by: By = "operator",
    config: GuardFile = GUARD_FILE,
    as_json: Json = False,
) -> None:
    """Refuse an account's requests, with a reason and a way to appeal."""

    async def work(store: KeyStore, guard: GuardConfig) -> Account:
        from spiritsafe.serve._account_text import APPEAL, REASON

        return await store.suspend(ref, reason=reason or REASON, appeal=appeal or APPEAL, decided_by=by)

    _done(config, work, as_json, "suspended {id} ({name}): {reason}; appeal: {appeal}")


def restore(ref: AccountRef, by: By = "operator", config: GuardFile = GUARD_FILE, as_json: Json = False) -> None:
    """Lift a suspension."""
    _done(config, lambda store, _: store.restore(ref, decided_by=by), as_json, "restored {id} ({name})")


def link(
    ref: AccountRef,
    cluster: Annotated[str, typer.Option("--cluster", help="The cluster's name.")],
    by: By = "operator",
    config: GuardFile = GUARD_FILE,
    as_json: Json = False,
) -> None:
    """Treat an account as one customer with others: they share the cluster's limits and ladder."""
    _done(
        config,
        lambda store, _: store.set_cluster(ref, cluster, decided_by=by),
        as_json,
        "linked {id} ({name}) to {cluster}",
    )


def unlink(ref: AccountRef, by: By = "operator", config: GuardFile = GUARD_FILE, as_json: Json = False) -> None:
    """Take an account out of its cluster."""
    _done(config, lambda store, _: store.set_cluster(ref, None, decided_by=by), as_json, "unlinked {id} ({name})")


def accept(
    ref: AccountRef,
    version: Annotated[str, typer.Option("--version", help="The version that was accepted.")],
    config: GuardFile = GUARD_FILE,
    as_json: Json = False,
) -> None:
    """Note that a customer accepted the terms in force. The ledger keeps when."""
    _done(config, lambda store, _: store.accept_terms(ref, version), as_json, "{id} ({name}) accepted {terms_version}")


def _done(
    config: Any,
    work: Callable[[KeyStore, GuardConfig], Awaitable[Account]],
    as_json: bool,
    said: str,
    org: str | None = None,
) -> None:
    """Do it; print the account as it is now."""

    async def whole(store: KeyStore, guard: GuardConfig) -> dict[str, Any]:
        account = await work(store, guard)
        if org and account.org and account.org not in guard.organisations:
            typer.echo(f"note: organisations in the config has no {account.org}, so no limits for it", err=True)
        return account.to_dict()

    account = with_store(config, whole)
    if as_json:
        print_json(account)
    else:
        print(said.format_map(account))
