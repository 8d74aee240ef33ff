"""`spiritsafe watermark bench`: how fast is this machine at it?"""

from __future__ import annotations

from typing import Annotated

import typer

from spiritsafe.cli._output import Json, print_json, print_table
from spiritsafe.cli._progress import watching

__all__ = ["register"]


def register(watermark: typer.Typer) -> None:
    watermark.command(epilog="Example: spiritsafe watermark bench --json")(bench)


def bench(
    tokens: Annotated[int, typer.Option(min=10_000, help="Tokens to read.")] = 2_000_000,
    accounts: Annotated[int, typer.Option(min=1, max=2**20 - 1, help="Accounts to trace.")] = 1_000_000,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; medians are shown.")] = 5,
    as_json: Json = False,
) -> None:
    """Measure reading, marking and tracing on this machine, for each scheme."""
    import os

    from spiritsafe.watermark._speed import measure

    with watching(quiet=as_json) as progress:
        rows = measure(tokens=tokens, accounts=accounts, rounds=rounds, progress=progress)
    if as_json:
        print_json({"schemes": rows, "tokens": tokens, "accounts": accounts, "load": round(os.getloadavg()[0], 1)})
        return
    print_table(
        ["scheme", "read, tokens/s", "mark, ms a step of 8", f"trace {accounts} accounts, s"],
        [
            [
                row["scheme"],
                f"{row['read_tokens_per_s']:,}",
                f"{row['mark_ms_per_step']:.2f}",
                f"{row['trace_s']:.2f}",
            ]
            for row in rows
        ],
    )
    print(f"reading is one thread, with exact deduplication; load was {os.getloadavg()[0]:.1f}")
