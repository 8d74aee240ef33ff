"""`spiritsafe audit …`: where did this model come from?"""

from __future__ import annotations

import typer

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    audit = typer.Typer(help="Where did this model come from: plan, run, verify, attest.", no_args_is_help=True)
    app.add_typer(audit, name="audit")
