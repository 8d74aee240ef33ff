"""`spiritsafe accounts key …`: issue, rotate, set, revoke."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from spiritsafe.cli._accounts_store import GUARD_FILE, AccountRef, By, GuardFile, Limit, with_store
from spiritsafe.cli._output import Json, print_json
from spiritsafe.errors import BadInput

if TYPE_CHECKING:
    from spiritsafe.serve._account_rows import ApiKey
    from spiritsafe.serve._config import GuardConfig
    from spiritsafe.serve._key_store import IssuedKey, KeyStore

__all__ = ["register"]

_HOUR_S, _DAY_S = 3600.0, 86400.0
KeyRef = Annotated[str, typer.Argument(metavar="KEY_ID", help="The key's id: its middle part, never the whole key.")]
KeyName = Annotated[str | None, typer.Option("--name", help="A label for people.")]


def register(accounts: typer.Typer) -> None:
    key = typer.Typer(help="API keys: issue, rotate, set, revoke.", no_args_is_help=True)
    accounts.add_typer(key, name="key")
    key.command(
        epilog='Examples: spiritsafe accounts key issue "Ada Ltd" --expires-days 90 · '
        "spiritsafe accounts key issue ops --scope admin --json"
    )(issue)
    key.command(epilog="Example: spiritsafe accounts key rotate 4fGh2kLm9PqR --overlap-hours 24")(rotate)
    key.command("set", epilog="Example: spiritsafe accounts key set 4fGh2kLm9PqR --limit requests_per_min=60")(set_key)
    key.command(epilog="Example: spiritsafe accounts key revoke 4fGh2kLm9PqR")(revoke)


def issue(
    ref: AccountRef,
    scopes: Annotated[
        list[str] | None,
        typer.Option("--scope", help="inference (default), usage, admin or metrics; repeat it for several."),
    ] = None,
    expires_days: Annotated[
        float | None, typer.Option("--expires-days", help="Days it lasts; for good if not given.")
    ] = None,
    name: KeyName = None,
    limit: Limit = None,
    config: GuardFile = GUARD_FILE,
    as_json: Json = False,
) -> None:
    """Make a key and print it, this once: only its HMAC is kept."""

    async def work(store: KeyStore, guard: GuardConfig) -> IssuedKey:
        from spiritsafe.serve._config import LimitSet
        from spiritsafe.serve._limit_text import typed_limits

        expires = None if expires_days is None else time.time() + expires_days * _DAY_S
        limits = typed_limits(LimitSet(), limit or (), "--limit")
        return await store.issue_key(ref, name=name, scopes=scopes or ("inference",), expires=expires, limits=limits)

    _print_issued(with_store(config, work), as_json)


def rotate(
    key_id: KeyRef,
    overlap_hours: Annotated[float, typer.Option("--overlap-hours", min=0, help="How long the old key stays.")] = 24.0,
    config: GuardFile = GUARD_FILE,
    as_json: Json = False,
) -> None:
    """Make a key like an old one, which ends after the overlap."""
    _print_issued(
        with_store(config, lambda store, _: store.rotate_key(key_id, overlap_s=overlap_hours * _HOUR_S)), as_json
    )


def set_key(
    key_id: KeyRef,
    name: KeyName = None,
    limit: Limit = None,
    by: By = "operator",
    config: GuardFile = GUARD_FILE,
    as_json: Json = False,
) -> None:
    """Change a key's name or its own limits."""
    if name is None and not limit:
        raise BadInput("accounts key set: nothing to change; give --name or --limit")

    async def work(store: KeyStore, guard: GuardConfig) -> ApiKey:
        from spiritsafe.serve._key_store import KeyChanges
        from spiritsafe.serve._limit_text import typed_limits

        given = {} if name is None else {"name": name}
        if not limit:
            return await store.change_key(key_id, KeyChanges(**given), decided_by=by)
        limits = typed_limits((await store.show_key(key_id)).limits, limit, "--limit")
        return await store.change_key(key_id, KeyChanges(**given, limits=limits), decided_by=by)

    _print_key(with_store(config, work), as_json, "changed")


def revoke(key_id: KeyRef, config: GuardFile = GUARD_FILE, as_json: Json = False) -> None:
    """End a key now. A running guard follows within seconds."""
    _print_key(with_store(config, lambda store, _: store.revoke_key(key_id)), as_json, "revoked")


def _print_issued(issued: IssuedKey, as_json: bool) -> None:
    if as_json:
        print_json({"key_id": issued.key.id, "key": issued.text})
        return
    print(issued.text)
    typer.echo(
        f"key {issued.key.id} of {issued.key.account}; keep it now: it is not stored and not shown again", err=True
    )


def _print_key(key: ApiKey, as_json: bool, verb: str) -> None:
    if as_json:
        print_json(key.to_dict(time.time()))
    else:
        print(f"{verb} {key.id} of {key.account}")
