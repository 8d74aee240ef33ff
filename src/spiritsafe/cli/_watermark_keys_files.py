"""What the verbs of `spiritsafe watermark keys` share: their files, and a new file that nothing is lost for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["Keys", "Out", "PassphraseEnv", "PassphraseFile", "check_out", "write_new"]

Keys = Annotated[Path, typer.Argument(metavar="KEYS.json", help="The key set.")]
Out = Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write it there (refuses to overwrite).")]
PassphraseEnv = Annotated[
    str | None,
    typer.Option("--passphrase-env", metavar="NAME", help="The environment variable that holds the passphrase."),
]
PassphraseFile = Annotated[
    Path | None, typer.Option("--passphrase-file", metavar="FILE", help="A file that holds the passphrase.")
]


def check_out(out: Path | None) -> None:
    from spiritsafe.errors import BadInput

    if out is not None and out.exists():
        raise BadInput(f"{out}: exists, and may be what was published; choose another name with --out")
    if out is not None and not out.parent.is_dir():
        raise BadInput(f"{out}: its folder does not exist; make it, or choose another --out")


def write_new(out: Path | None, document: dict[str, Any], mode: int) -> None:
    if out is None:
        return
    import json

    from spiritsafe.errors import BadInput
    from spiritsafe.runs import atomic_write

    try:
        atomic_write(out, json.dumps(document, indent=None if "leaves" in document else 2) + "\n", mode)
    except OSError as error:
        raise BadInput(f"{out}: cannot be written ({error.strerror}); choose another --out") from None
