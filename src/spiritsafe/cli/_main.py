"""The command tree, and the one place where an error becomes a line and an exit code."""

from __future__ import annotations

import os
import sys
import traceback

import typer

from spiritsafe.cli import (
    _accounts,
    _audit,
    _demo,
    _distill,
    _evidence,
    _ledger,
    _report,
    _serve,
    _stage,
    _teachers,
    _terms,
    _watermark,
)
from spiritsafe.errors import SpiritsafeError

__all__ = ["app", "main"]

_EXTRAS = {
    "alembic": "guard",
    "asyncpg": "postgres",
    "opentelemetry": "otel",
    "prometheus_client": "guard",
    "redis": "redis",
    "rfc3161_client": "audit",
    "rensa": "guard",
    "sqlalchemy": "guard",
    "tokenizers": "guard",
}

app = typer.Typer(
    name="spiritsafe",
    help="Distil a teacher you may use, guard one you serve, prove where a model came from.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Every command takes --json (one JSON object on stdout) and --debug (tracebacks).",
)
_demo.register(app)
_distill.register(app)
_stage.register(app)
_report.register(app)
_teachers.register(app)
_terms.register(app)
_watermark.register(app)
_serve.register(app)
_accounts.register(app)
_evidence.register(app)
_ledger.register(app)
_audit.register(app)


@app.callback(invoke_without_command=True)
def _root(version: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
    if version:
        from spiritsafe import __version__

        typer.echo(f"spiritsafe {__version__}")
        raise typer.Exit


def main(argv: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 failed, 2 bad usage or input, 3 refused, 130 interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"]
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        code = app(arguments, standalone_mode=False)
    except typer.TyperException as error:
        error.show()  # type: ignore[attr-defined]  # usage errors have it, typer's public base does not say so
        sys.exit(error.exit_code)
    except SpiritsafeError as error:
        _fail(str(error), debug)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted; finished work is saved, run the same command to continue", debug)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except ModuleNotFoundError as error:
        if debug or (error.name or "").startswith("spiritsafe"):
            raise
        extra = _EXTRAS.get((error.name or "").partition(".")[0], "distil")
        _fail(f"the package {error.name} is not installed; run: pip install 'spiritsafe[{extra}]'", debug)
        sys.exit(1)
    except Exception as error:
        _fail(f"unexpected {type(error).__name__}: {error} (rerun with --debug for the traceback)", debug)
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(line: str, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    print("error: " + " ".join(line.split()), file=sys.stderr)
