"""`spiritsafe demo`: the whole story on the embedded teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spiritsafe.cli._output import Json, Set

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    @app.command(epilog="Example: spiritsafe demo --out runs/demo")
    def demo(
        out: Annotated[Path, typer.Option("--out", help="Run directory.")] = Path("runs/demo"),
        overrides: Set = None,
        as_json: Json = False,
    ) -> None:
        """Distil a real 135M-parameter teacher, over a real HTTP API, into a smaller student."""
        from spiritsafe.cli._distill import print_run
        from spiritsafe.cli._progress import watching
        from spiritsafe.distill import run_demo
        from spiritsafe.report import render_run

        with watching() as progress:
            run = run_demo(out, overrides or [], progress, render_run)
        print_run(run, as_json)
