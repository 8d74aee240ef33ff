"""`spiritsafe watermark trace`: whose account is a marked text from?"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer

from spiritsafe.cli._output import Json, print_json, print_table
from spiritsafe.cli._progress import watching
from spiritsafe.cli._watermark_inputs import open_tokenizer, read_inputs
from spiritsafe.cli._watermark_keys import PassphraseEnv, PassphraseFile, read_keys

if TYPE_CHECKING:
    from spiritsafe.watermark._marking import SchemeName
    from spiritsafe.watermark._trace import Traced

__all__ = ["register", "scheme_name"]


def register(watermark: typer.Typer) -> None:
    watermark.command(
        epilog="Example: spiritsafe watermark trace leak.txt --keys KEYS.json --accounts ACCOUNTS.txt --tokenizer PATH"
    )(trace)


def trace(
    inputs: Annotated[list[str], typer.Argument(metavar="INPUT…", help="Text, JSONL or Parquet files; - is stdin.")],
    keys: Annotated[Path, typer.Option("--keys", metavar="KEYS.json", help="The key set that may have marked them.")],
    accounts: Annotated[
        Path,
        typer.Option(
            "--accounts", metavar="FILE", help="One account a line: NAME (slot = line number) or NAME<TAB>SLOT."
        ),
    ],
    tokenizer: Annotated[
        str | None,
        typer.Option("--tokenizer", metavar="PATH", help="The marking model's tokenizer; token ids need none."),
    ] = None,
    level: Annotated[float, typer.Option(help="Family-wise error over all accounts, a text.")] = 1e-6,
    gate: Annotated[float, typer.Option(help="Level the epoch layer must reach, or nobody is named.")] = 1e-3,
    top: Annotated[int, typer.Option(help="Name at most so many accounts a text.")] = 5,
    pool: Annotated[
        bool, typer.Option("--pool", help="All inputs as one text, repeated passages counted once.")
    ] = False,
    epoch: Annotated[
        list[str] | None, typer.Option("--epoch", metavar="NAME", help="Only these epochs; default: all.")
    ] = None,
    scheme: Annotated[
        str | None, typer.Option("--scheme", help="Marks of another scheme, such as kgw for greedy replies.")
    ] = None,
    passphrase_env: PassphraseEnv = None,
    passphrase_file: PassphraseFile = None,
    as_json: Json = False,
) -> None:
    """Name the accounts a marked text is from; nobody, if no account reaches the level."""
    from spiritsafe.watermark._accounts import read_accounts
    from spiritsafe.watermark._trace import Tracer

    key_set = read_keys(keys, passphrase_env, passphrase_file)
    listed = read_accounts(accounts)
    loaded = None if tokenizer is None else open_tokenizer(tokenizer, key_set)
    with watching() as progress:
        tracer = Tracer(
            key_set,
            listed,
            level=level,
            gate=gate,
            top=top,
            epochs=epoch,
            scheme=scheme_name(scheme),
            progress=progress,
        )
        documents = read_inputs(inputs, loaded)
        if pool:
            traced = [("pooled", tracer.trace_pool((document.ids, document.first) for document in documents))]
        else:
            traced = []
            for done, document in enumerate(documents, 1):
                traced.append((document.id, tracer.trace(document.ids, document.first)))
                progress.update("documents", done, None)
    if as_json:
        rows = [{"id": name, **asdict(row)} for name, row in traced]
        found = {"documents": [], "pooled": asdict(traced[0][1])} if pool else {"documents": rows}
        print_json({"scheme": tracer.detector.scheme, "accounts": len(listed), "level": level, "gate": gate, **found})
        return
    for name, row in traced:
        _say(name, row, level, gate)


def scheme_name(name: str | None) -> SchemeName | None:
    if name is None:
        return None
    from spiritsafe.errors import BadInput
    from spiritsafe.watermark._marking import SchemeName

    if name not in get_args(SchemeName):
        raise BadInput(f"--scheme {name}: no such scheme; there are {', '.join(get_args(SchemeName))}")
    return cast("SchemeName", name)


def _say(name: str, row: Traced, level: float, gate: float) -> None:
    ours = f"epoch {row.epoch}, log10 p {row.log10_p:.1f} on {row.n_scored} of {row.n_tokens} tokens"
    if not row.passed:
        print(f"{name}: not recognised as marked ({ours}; the gate is {gate:g}); no account was tried")
        return
    if not row.candidates:
        print(f"{name}: marked ({ours}); none of {row.accounts} accounts reaches {level:g}")
        return
    print(f"{name}: marked ({ours}); of {row.accounts} accounts, on {row.n_account} tokens:")
    print_table(
        ["account", "slot", "log10 p", f"for all {row.accounts}", "tokens", ""],
        [
            [
                found.account,
                str(found.slot),
                f"{found.log10_p:.1f}",
                f"{found.log10_p_family:.1f}",
                " ".join(f"{start}-{end}" for start, end in found.spans),
                "its key was opened: others may have written this" if found.opened else "",
            ]
            for found in row.candidates
        ],
    )
