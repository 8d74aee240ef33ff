"""`spiritsafe watermark keys …`: make, rotate, show, commit; open and verify are in `_watermark_keys_open`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spiritsafe.cli import _watermark_keys_open
from spiritsafe.cli._output import Json, print_json, print_table
from spiritsafe.cli._progress import watching
from spiritsafe.cli._watermark_keys_files import Keys, Out, PassphraseEnv, PassphraseFile, check_out, write_new

if TYPE_CHECKING:
    from spiritsafe.keys import KeySet

__all__ = ["PassphraseEnv", "PassphraseFile", "read_keys", "register"]

_EpochName = Annotated[
    str | None, typer.Option("--epoch", metavar="NAME", help="Its name; default: this month, as 2026-11 or 2026-11.2.")
]


def read_keys(path: Path, passphrase_env: str | None, passphrase_file: Path | None) -> KeySet:
    """The key set a command was given, decrypted if need be."""
    from spiritsafe.keys import load_keys, read_passphrase

    return load_keys(path, read_passphrase(passphrase_env, passphrase_file))


def register(watermark: typer.Typer) -> None:
    keys = typer.Typer(help="Key sets: new, rotate, show, commit, open, verify.", no_args_is_help=True)
    watermark.add_typer(keys, name="keys")
    keys.command(
        epilog="Examples: spiritsafe watermark keys new KEYS.json · spiritsafe watermark keys new KEYS.json "
        "--scheme kgw --set gamma=.25 --set delta=2 --tokenizer teacher/ --encrypt --passphrase-env KEYS_PASSPHRASE"
    )(new)
    keys.command(epilog="Example: spiritsafe watermark keys rotate KEYS.json")(rotate)
    keys.command(epilog="Example: spiritsafe watermark keys show KEYS.json --json")(show)
    keys.command(epilog="Example: spiritsafe watermark keys commit KEYS.json --out COMMITMENT.json")(commit)
    _watermark_keys_open.register(keys)


def new(
    path: Keys,
    scheme: Annotated[str, typer.Option("--scheme", help="gumbel-dual, kgw or synthid.")] = "gumbel-dual",
    context_width: Annotated[int, typer.Option("--context-width", help="Tokens of context the marks hash.")] = 2,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any other setting of the marks, e.g. --set gamma=.25."),
    ] = None,
    tenant: Annotated[str, typer.Option("--tenant", help="Whose keys; part of every derivation.")] = "default",
    epoch: _EpochName = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            "--tokenizer", metavar="PATH", help="Remember this tokenizer, to warn when text is read by another."
        ),
    ] = None,
    encrypt: Annotated[bool, typer.Option("--encrypt", help="Encrypt the secret with the passphrase given.")] = False,
    passphrase_env: PassphraseEnv = None,
    passphrase_file: PassphraseFile = None,
    as_json: Json = False,
) -> None:
    """Make a key set with a fresh secret and its first epoch. Never overwrites one."""
    from spiritsafe.config import parse_config, with_overrides
    from spiritsafe.errors import BadInput
    from spiritsafe.keys import new_keys, read_passphrase
    from spiritsafe.watermark._marking import Marking

    passphrase = read_passphrase(passphrase_env, passphrase_file)
    if encrypt and passphrase is None:
        raise BadInput("--encrypt: give the passphrase with --passphrase-env NAME or --passphrase-file FILE")
    wanted = with_overrides({"scheme": scheme, "context_width": context_width}, settings or ())
    marking = parse_config(wanted, Marking, where="marking")
    not_ours = None if marking.scheme == "synthid" else {"depth"}  # which Marking refuses under other schemes
    made = new_keys(
        path,
        marking=marking.model_dump(mode="json", exclude=not_ours),  # defaults too: a later default changes no old mark
        tenant=tenant,
        epoch=epoch,
        tokenizer_hash=_tokenizer_hash(tokenizer),
        passphrase=passphrase,
    )
    _print(path, made, as_json, "back this file up now: without it no text can be recognised, and nobody can remake it")


def rotate(
    path: Keys,
    epoch: _EpochName = None,
    compromised: Annotated[
        bool, typer.Option("--compromised", help="Others know the current epoch's key: it proves nothing from now on.")
    ] = False,
    passphrase_env: PassphraseEnv = None,
    passphrase_file: PassphraseFile = None,
    as_json: Json = False,
) -> None:
    """Begin the next epoch and retire the current one, whose key still recognises what it marked."""
    from spiritsafe.keys import read_passphrase, rotate_keys

    passphrase = read_passphrase(passphrase_env, passphrase_file)
    rotated = rotate_keys(path, epoch=epoch, compromised=compromised, passphrase=passphrase)
    _print(path, rotated, as_json, "restart what marks with this file, back it up, and commit again")


def show(
    path: Keys, passphrase_env: PassphraseEnv = None, passphrase_file: PassphraseFile = None, as_json: Json = False
) -> None:
    """Ids, settings and epochs; no secrets."""
    _print(path, read_keys(path, passphrase_env, passphrase_file), as_json)


def commit(
    path: Keys,
    out: Out = None,
    schemes: Annotated[
        list[str] | None,
        typer.Option("--scheme", help="A scheme whose keys are in use (repeat it); default: the key set's own."),
    ] = None,
    slots: Annotated[
        int | None, typer.Option("--slots", help="Account slots an epoch, from 0; default 1048576.", min=1)
    ] = None,
    passphrase_env: PassphraseEnv = None,
    passphrase_file: PassphraseFile = None,
    as_json: Json = False,
) -> None:
    """One hash that fixes every key, safe to publish: the epoch, coin and account keys of every epoch."""
    from spiritsafe.keys import SLOTS, commit_keys, read_passphrase

    check_out(out)
    passphrase = read_passphrase(passphrase_env, passphrase_file)
    with watching() as progress:
        made = commit_keys(
            path, slots=slots or SLOTS, schemes=schemes or None, passphrase=passphrase, progress=progress
        )
    document = made.model_dump(mode="json")
    write_new(out, document, 0o644)
    if as_json:
        print_json(document)
        return
    print(f"root {made.root}")
    counts = ", ".join(f"{count} {purpose}" for purpose, count in made.committed.items())
    print(f"key set {made.key_set}; leaves: {counts}")
    for tree in made.trees:
        print(f"{tree.epoch} {tree.scheme}: {tree.root}")
    print(f"publish {out} with a timestamp" if out else "add --out COMMITMENT.json to have it as a file to publish")


def _print(path: Path, keys: KeySet, as_json: bool, advice: str | None = None) -> None:
    if as_json:
        print_json(_facts(path, keys))
        return
    secret = "encrypted" if keys.encrypted else "plain, guarded by its mode 0600 alone"
    print(f"{path}: key set {keys.id}, tenant {keys.tenant}, secret {secret}")
    print("marking: " + ", ".join(f"{name} {value}" for name, value in keys.marking.items()))
    print(f"tokenizer: {keys.tokenizer_hash or 'not recorded'}\n")
    rows = [[e.name, e.state, e.created, e.retired or "", e.opened or "", _runs(e.opened_slots)] for e in keys.epochs]
    print_table(["epoch", "state", "created", "retired", "opened", "opened slots"], rows)
    if advice:
        print(f"\n{advice}")


def _runs(slots: Sequence[int]) -> str:
    """Ascending numbers, neighbours together: "3 17-20"."""
    runs: list[list[int]] = []
    for slot in slots:
        if runs and runs[-1][-1] == slot - 1:
            runs[-1][1:] = [slot]
        else:
            runs.append([slot])
    return " ".join("-".join(map(str, run)) for run in runs)


def _facts(path: Path, keys: KeySet) -> dict[str, Any]:
    return {
        "path": str(path),
        "id": keys.id,
        "tenant": keys.tenant,
        "encrypted": keys.encrypted,
        "marking": keys.marking,
        "tokenizer_hash": keys.tokenizer_hash,
        "current": keys.current.name,
        "epochs": [epoch.model_dump(mode="json") for epoch in keys.epochs],
    }


def _tokenizer_hash(source: str | None) -> str | None:
    if source is None:
        return None
    from spiritsafe.teachers import load_tokenizer
    from spiritsafe.tokens import tokenizer_hash

    return tokenizer_hash(load_tokenizer(source))
