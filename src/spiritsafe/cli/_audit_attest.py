"""`spiritsafe audit attest`: a signed lineage of a student, for whoever asks what it was trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spiritsafe.cli._output import Json, print_json
from spiritsafe.cli._progress import watching
from spiritsafe.cli._watermark_inputs import open_tokenizer
from spiritsafe.cli._watermark_keys import PassphraseEnv, PassphraseFile, read_keys
from spiritsafe.errors import BadInput

if TYPE_CHECKING:
    from spiritsafe.audit._screen import Screen

__all__ = ["register"]

_NAME = "attestation.dsse.json"
_MARKED = -6.0  # log10 p from which a screen is called a finding


def register(audit: typer.Typer) -> None:
    audit.command(
        epilog="Examples: spiritsafe audit attest runs/student --signer k.pem · spiritsafe audit attest runs/student "
        "--screen-keys KEYS.json --screen-engine vllm-gumbel=PARAMS.json --tokenizer teacher/"
    )(attest)


def attest(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run directory of a finished distillation.")],
    signer: Annotated[
        Path | None, typer.Option("--signer", metavar="K.pem", help="Sign it with this Ed25519 key.")
    ] = None,
    screen_keys: Annotated[
        list[Path] | None,
        typer.Option("--screen-keys", metavar="KEYS.json", help="Screen the training set for this key set's marks."),
    ] = None,
    screen_engine: Annotated[
        list[str] | None,
        typer.Option("--screen-engine", metavar="NAME=PARAMS.json", help="And for an engine's own marks."),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option("--tokenizer", metavar="PATH", help="The marking models' tokenizer, where the rows have another."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help=f"Default: RUN/{_NAME}.")] = None,
    passphrase_env: PassphraseEnv = None,
    passphrase_file: PassphraseFile = None,
    as_json: Json = False,
) -> None:
    """State, signed, what a student was trained on: teachers, terms, overrides, cost, hashes; checkable offline."""
    from spiritsafe.audit._attest import attest as make
    from spiritsafe.audit._attested import verify_attestation
    from spiritsafe.audit._screen import screen
    from spiritsafe.audit._sign import load_signer
    from spiritsafe.runs import Run, atomic_write

    if not run.is_dir():
        raise BadInput(f"{run}: no such run directory; give the --run of a finished distillation")
    file = out or run / _NAME
    if file.exists():
        raise BadInput(f"{file}: exists, and stays what was said then; choose another --out")
    key = None if signer is None else load_signer(signer)
    found = Run(run)
    screened: list[dict[str, Any]] = []
    if screen_keys or screen_engine:
        screens = _screens(screen_keys or [], screen_engine or [], passphrase_env, passphrase_file)
        loaded = None if tokenizer is None else open_tokenizer(tokenizer)
        with watching(quiet=as_json) as progress:
            screened = screen(found.curated, screens, loaded, progress)
    envelope = make(found, signer=key, screened=screened)
    try:
        atomic_write(file, json.dumps(envelope, indent=2) + "\n")
    except OSError as error:
        raise BadInput(f"{file}: cannot be written ({error.strerror}); choose another --out") from None
    public = None if key is None else key.public_key().public_bytes_raw()
    checked = verify_attestation(file, signer=public, files=run)
    marked = [one["for"] for one in screened if one["log10_p"] <= _MARKED]
    if as_json:
        print_json({"attestation": str(file), "marked": marked, **checked.to_dict()})
        return
    print(f"{file}\n{checked.render()}")
    if signer is None:
        print("nobody signed it: name a key with --signer, and publish its public half")
    for name in marked:
        print(f"WARNING: the training set carries marks of {name}: some of its replies came from a model it marks")


def _screens(
    keys: list[Path], engines: list[str], passphrase_env: str | None, passphrase_file: Path | None
) -> list[Screen]:
    from spiritsafe.audit._screen import Screen
    from spiritsafe.watermark import NativeDetector, engine_detector

    screens = []
    for path in keys:
        key_set = read_keys(path, passphrase_env, passphrase_file)
        screens.append(Screen(f"key set {key_set.id}", NativeDetector(key_set)))
    for text in engines:
        name, equals, params = text.partition("=")
        if not equals:
            raise BadInput(f"--screen-engine {text}: write it as NAME=PARAMS.json")
        # called by its file: a hash of an engine's key, one number, would tell the key to whoever tries them all
        screens.append(Screen(f"{name} ({Path(params).name})", engine_detector(name, _params(Path(params)))))
    return screens


def _params(path: Path) -> dict[str, Any]:
    try:
        given = json.loads(path.read_bytes())
    except OSError as error:
        raise BadInput(
            f"{path}: cannot be read ({error.strerror}); give a JSON object of the engine's fields"
        ) from None
    except (ValueError, RecursionError):
        given = None
    if not isinstance(given, dict):
        raise BadInput(f"{path}: not a JSON object; give the engine's fields and values")
    return given
