"""`spiritsafe watermark keys …`: make, rotate, show, commit and open a key set."""

from __future__ import annotations

import typer

__all__ = ["register"]


def register(watermark: typer.Typer) -> None:
    keys = typer.Typer(help="Key sets: new, rotate, show, commit, open.", no_args_is_help=True)
    watermark.add_typer(keys, name="keys")
