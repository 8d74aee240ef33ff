"""`spiritsafe serve`: a teacher behind accounts, limits, a meter and a ledger."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spiritsafe.cli._output import Json, Set, print_json, print_table

if TYPE_CHECKING:
    from spiritsafe.serve import GuardConfig

__all__ = ["register"]

_EXAMPLES = """
Examples:\n
  spiritsafe serve guard.yaml --check\n
  spiritsafe serve guard.yaml\n
  spiritsafe serve guard.yaml --workers 4 --set state.limits=redis://127.0.0.1:6379/0
"""


def register(app: typer.Typer) -> None:
    @app.command(epilog=_EXAMPLES)
    def serve(
        config: Annotated[Path, typer.Argument(metavar="GUARD.yaml", help="The guard's configuration.")],
        workers: Annotated[int, typer.Option(min=1, max=256, help="Processes; several need limits in Redis.")] = 1,
        check: Annotated[
            bool, typer.Option("--check", help="Look at everything the guard needs, say what is wrong, serve nothing.")
        ] = False,
        overrides: Set = None,
        as_json: Json = False,
    ) -> None:
        """Serve a teacher under lock and meter, with OpenAI's API."""
        from spiritsafe.config import load_config
        from spiritsafe.serve import GuardConfig, serve_guard

        guard = load_config(config, GuardConfig, overrides or [])
        if check:
            raise typer.Exit(_check(guard, workers, as_json))

        def ready(public: str, admin: str) -> None:
            if as_json:
                print_json({"public": f"{public}/v1", "admin": f"{admin}/admin"})
            else:
                typer.echo(f"serving {', '.join(guard.models)} at {public}/v1; admin at {admin}/admin", err=True)

        serve_guard(guard, workers=workers, on_ready=ready)


def _check(guard: GuardConfig, workers: int, as_json: bool) -> int:
    """Print what was found; the exit code: 1 if something would keep the guard from serving."""
    import asyncio

    from spiritsafe.serve import check_guard

    findings = asyncio.run(check_guard(guard, workers=workers))
    bad = any(finding.level == "error" for finding in findings)
    if as_json:
        print_json({"ok": not bad, "findings": [finding.to_dict() for finding in findings]})
    else:
        print_table(("", "what", "found"), [(f.level, f.what, f.message) for f in findings])
    return 1 if bad else 0
