"""`spiritsafe report`: a run, or a guard, as one HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spiritsafe.cli._output import Json, Set, print_json
from spiritsafe.cli._stage import RunDir, run_stage
from spiritsafe.errors import BadInput

if TYPE_CHECKING:
    from spiritsafe.report import GuardReport

__all__ = ["register"]

# Top-level keys that a guard's config has and a recipe never.
_GUARD_KEYS = frozenset(("upstreams", "listen", "admin", "state", "tiers"))
_EXAMPLES = """
Examples:\n
  spiritsafe report runs/demo\n
  spiritsafe report guard.yaml --out /tmp/november.html\n
  spiritsafe report guard.yaml --no-names --json
"""


def register(app: typer.Typer) -> None:
    @app.command(epilog=_EXAMPLES)
    def report(
        target: Annotated[
            Path,
            typer.Argument(metavar="TARGET", help="A run's directory or recipe (YAML), or a guard's config (YAML)."),
        ],
        run: RunDir = None,
        out: Annotated[
            Path | None,
            typer.Option("--out", metavar="FILE", help="Guard: where to write; beside GUARD.yaml unless given."),
        ] = None,
        no_names: Annotated[
            bool, typer.Option("--no-names", help="Guard: account ids instead of names, no free texts.")
        ] = False,
        rows: Annotated[
            int | None,
            typer.Option("--rows", min=1, help="Guard: the newest ledger rows to check and read; 100000 unless given."),
        ] = None,
        public_keys: Annotated[
            list[str] | None,
            typer.Option("--public-key", metavar="HEX", help="Guard: the key its checkpoints must be signed with."),
        ] = None,
        overrides: Set = None,
        as_json: Json = False,
    ) -> None:
        """Write a run, or a guard, as one self-contained HTML file."""
        if _is_guard(target):
            if run is not None:
                raise BadInput(f"--run: {target} is a guard's config, not a recipe; leave it out")
            written = _guard(target, out, not no_names, rows, public_keys or [], overrides or [])
            if as_json:
                print_json(written.to_dict())
            else:
                print(f"report: {written.path}")
            return
        if out or no_names or rows or public_keys:
            raise BadInput(f"{target}: --out, --no-names, --rows and --public-key are for a guard's config")
        run_stage("report", target, run, overrides, None, None, as_json)


def _is_guard(target: Path) -> bool:
    import yaml

    if not target.is_file():
        return False
    try:
        data = yaml.safe_load(target.read_bytes())
    except (OSError, yaml.YAMLError):
        return False  # whoever reads it next says what is wrong
    return isinstance(data, dict) and not _GUARD_KEYS.isdisjoint(data)


def _guard(
    target: Path, out: Path | None, names: bool, rows: int | None, public_keys: list[str], overrides: list[str]
) -> GuardReport:
    import asyncio

    from spiritsafe.cli._progress import watching
    from spiritsafe.config import load_config
    from spiritsafe.report import GUARD_ROWS, render_guard
    from spiritsafe.serve._config import GuardConfig

    config = load_config(target, GuardConfig, overrides)
    with watching() as progress:
        work = render_guard(
            config,
            out or target.with_name("guard-report.html"),
            rows=rows or GUARD_ROWS,
            names=names,
            public_keys=public_keys,
            progress=progress,
        )
        return asyncio.run(work)
