"""How commands print: people's text, or exactly one JSON object."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

__all__ = ["AcceptTerms", "Json", "RegistryFile", "Set", "print_json", "print_table"]

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, nothing else.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override any config key, e.g. --set collect.budget_usd=5."),
]
AcceptTerms = Annotated[
    str | None,
    typer.Option(
        "--accept-terms",
        metavar="REASON",
        help="Go on although the registry refuses; the reason is kept in manifest, model card and report.",
    ),
]
RegistryFile = Annotated[
    str | None, typer.Option("--registry", metavar="FILE", help="Your own entries, added to the terms registry.")
]


def print_json(value: dict[str, Any]) -> None:
    """One JSON object on stdout; numbers JSON cannot hold become null."""
    json.dump(_finite(value), sys.stdout, ensure_ascii=False, default=str)
    sys.stdout.write("\n")


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A plain aligned table; columns beyond the terminal's width wrap on a terminal only."""
    widths = [max(len(str(row[i])) for row in [header, *rows]) for i in range(len(header))]
    for row in [header, *rows]:
        print("  ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value
