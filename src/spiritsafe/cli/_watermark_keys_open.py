"""`spiritsafe watermark keys open|verify`: disclose keys that were committed to, and check what was disclosed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from spiritsafe.cli._output import Json, print_json
from spiritsafe.cli._progress import watching
from spiritsafe.cli._watermark_keys_files import Keys, Out, PassphraseEnv, PassphraseFile, check_out, write_new

__all__ = ["register"]

_Scheme = Annotated[str | None, typer.Option("--scheme", help="The scheme the key is for; default: the key set's own.")]


def register(keys: typer.Typer) -> None:
    keys.command(
        "open",
        epilog="Examples: spiritsafe watermark keys open KEYS.json --epoch 2026-11 --slot 17 --commitment "
        "COMMITMENT.json --out LEAF.json · … --slot 0-9999 --out LEAVES.json · … --purpose epoch --out LEAF.json",
    )(open_key)
    keys.command(epilog="Example: spiritsafe watermark keys verify LEAF.json --commitment COMMITMENT.json")(verify)


def open_key(
    path: Keys,
    epoch: Annotated[str, typer.Option("--epoch", metavar="NAME", help="The key's epoch.")],
    slot: Annotated[
        str | None,
        typer.Option("--slot", metavar="N|A-B", help="Open this account's key, or those of slots A to B, in one file."),
    ] = None,
    purpose: Annotated[str | None, typer.Option("--purpose", help="Or open the epoch's own: epoch or coin.")] = None,
    commitment: Annotated[
        Path | None,
        typer.Option("--commitment", metavar="FILE", help="Open against this commitment; default: one made now."),
    ] = None,
    scheme: _Scheme = None,
    slots: Annotated[
        int | None,
        typer.Option("--slots", help="Without --commitment: account slots an epoch; default 1048576.", min=1),
    ] = None,
    out: Out = None,
    passphrase_env: PassphraseEnv = None,
    passphrase_file: PassphraseFile = None,
    as_json: Json = False,
) -> None:
    """Disclose keys with proof that a commitment covers them. THIS SHOWS KEYS: whoever has one can forge its marks.

    An opened epoch key ends its epoch: later texts prove nothing under it. Without --out the keys go to stdout.
    """
    from spiritsafe.errors import BadInput
    from spiritsafe.keys import SLOTS, load_commitment, open_accounts, open_leaf, read_passphrase
    from spiritsafe.keys._commitment import Leaves

    if (slot is None) == (purpose is None) or purpose not in (None, "epoch", "coin"):
        raise BadInput("open: give --slot N for an account's key, or --purpose epoch, or --purpose coin")
    accounts = range(0) if slot is None else _slots(slot)
    check_out(out)
    how: dict[str, Any] = {
        "scheme": scheme,
        "commitment": load_commitment(commitment) if commitment else None,
        "slots": slots or SLOTS,
        "passphrase": read_passphrase(passphrase_env, passphrase_file),
    }
    with watching() as progress:
        if slot is None:
            leaf = open_leaf(path, epoch, "epoch" if purpose == "epoch" else "coin", progress=progress, **how)
            opened: Any = leaf
            said = f"the {leaf.purpose} key of {leaf.key_set}, epoch {epoch}"
        else:
            leaves = open_accounts(path, epoch, accounts, progress=progress, **how)
            opened = leaves[0] if len(leaves) == 1 else Leaves(leaves=leaves)
            said = f"{_counted(accounts)} of {leaves[0].key_set}, epoch {epoch}"
        if purpose == "epoch":
            progress.say(f"epoch {epoch} is now opened; restart what marks with {path}, and back it up")
        elif purpose is None:
            progress.say(f"{said}, noted as opened: later texts may be forged in their name")
    document = opened.model_dump(mode="json")
    if out is None:
        print_json(document)
        return
    write_new(out, document, 0o600)
    if not as_json:
        print(f"{out}: {said}")
    elif len(accounts) > 1:
        print_json({"leaves": str(out), "epoch": epoch, "purpose": "account", "slots": [accounts[0], accounts[-1]]})
    else:
        hidden = ("key", "salt", "path", "trees")
        print_json({"leaf": str(out), **{name: value for name, value in document.items() if name not in hidden}})


def _slots(text: str) -> range:
    """Of "17" or "0-9999"."""
    from spiritsafe.errors import BadInput

    first, _, last = text.partition("-")
    last = last or first
    if not (first.isdecimal() and last.isdecimal() and int(first) <= int(last) < 2**32):
        raise BadInput(f"--slot {text[:80]}: give a slot, such as 17, or the first and the last of several: 0-9999")
    return range(int(first), int(last) + 1)


def _counted(accounts: range) -> str:
    if len(accounts) == 1:
        return f"the account key of slot {accounts[0]}"
    return f"{len(accounts):,} account keys, slots {accounts[0]} to {accounts[-1]}"


def verify(
    path: Annotated[Path, typer.Argument(metavar="LEAF.json", help="The opened key.")],
    root: Annotated[str | None, typer.Option("--root", metavar="HEX", help="The root that was published.")] = None,
    commitment: Annotated[
        Path | None, typer.Option("--commitment", metavar="FILE", help="Or the commitment that was published.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Was this key, or each in a file of several, committed to, and among how many? Exits 1 if one was not."""
    from spiritsafe.errors import BadInput
    from spiritsafe.keys import load_commitment, load_leaves, verify_leaf

    if (root is None) == (commitment is None):
        raise BadInput("verify: give either --root HEX or --commitment COMMITMENT.json")
    published = load_commitment(commitment).root if commitment else str(root)
    leaves = load_leaves(path)
    not_covered = [leaf for leaf in leaves if not verify_leaf(leaf, published)]
    leaf = (not_covered or leaves)[0]
    holds = not not_covered
    found = {"ok": holds, **leaf.model_dump(mode="json", include={"key_set", "purpose", "scheme", "epoch", "slot"})}
    if as_json:
        many = {"keys": len(leaves)} if len(leaves) > 1 else {}
        print_json({**found, **many, "committed": leaf.committed if holds else None})
    elif holds:
        these = "one" if len(leaves) == 1 else f"{len(leaves)}"
        print(f"committed: {these} of {leaf.committed} {leaf.purpose} keys; correct for all of them")
    else:
        which = "" if leaf.slot is None else f" (slot {leaf.slot})"
        print(f"not committed: the root does not cover this key{which}")
    if not holds:
        raise typer.Exit(1)
