"""KEYS.json, format version 1: made, read and rotated, never for a moment half written or readable by others."""

from __future__ import annotations

import contextlib
import fcntl
import hmac
import json
import os
import secrets
import stat
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import TypeAdapter, ValidationError, model_validator

from spiritsafe.config import StrictModel
from spiritsafe.errors import BadInput
from spiritsafe.keys._derive import Deriver, encode_fields
from spiritsafe.keys._keyset import Epoch, KeySet, KeySetId, Name
from spiritsafe.keys._seal import MASTER_BYTES, Plain, Sealed, seal, unseal
from spiritsafe.runs import atomic_write

__all__ = [
    "FORMAT",
    "MOST_BYTES",
    "change_keys",
    "load_keys",
    "new_keys",
    "next_epoch",
    "now",
    "read_limited",
    "rotate_keys",
]

FORMAT: Final = "spiritsafe-keys/1"
MOST_BYTES = 16 * 2**20


class _KeyFile(StrictModel):
    format: Literal["spiritsafe-keys/1"] = FORMAT
    id: KeySetId
    tenant: Name
    marking: dict[str, Any]
    tokenizer_hash: str | None
    epochs: tuple[Epoch, ...]
    master: Plain | Sealed
    mac: str  # HMAC-SHA256 under a key from the master over everything but `master` and itself

    @model_validator(mode="after")
    def _epochs_make_sense(self) -> _KeyFile:
        if len({epoch.name for epoch in self.epochs}) != len(self.epochs):
            raise ValueError("two epochs of one name")
        if [epoch.state for epoch in self.epochs].count("active") != 1:
            raise ValueError("not exactly one active epoch")
        return self


def new_keys(
    path: Path,
    *,
    marking: Mapping[str, Any],
    tenant: str = "default",
    epoch: str | None = None,
    tokenizer_hash: str | None = None,
    passphrase: str | None = None,
) -> KeySet:
    """Make a key set with a fresh secret and one epoch (default: this month) and write it, mode 0600.

    Raises:
        BadInput: the file exists, cannot be written, or a name is unusable.
    """
    for value, label in ((tenant, "tenant"), (epoch, "epoch")):
        if value is not None:
            _check_name(value, label)
    master = secrets.token_bytes(MASTER_BYTES)
    deriver = Deriver(master, tenant)
    identity = _identity(deriver)
    file = _KeyFile(
        id=identity,
        tenant=tenant,
        marking=json.loads(json.dumps(dict(marking))),
        tokenizer_hash=tokenizer_hash,
        epochs=(Epoch(name=epoch or _this_month(), created=now()),),
        master=seal(master, passphrase, _bound(identity, tenant)) if passphrase else Plain(plain=master.hex()),
        mac="",
    )
    with _locked(path):
        if os.path.lexists(path):
            raise BadInput(f"{path}: exists; a key set is never overwritten. Choose another path, or rotate this one")
        _write(path, file, deriver)
    return _key_set(file, deriver)


def load_keys(path: Path, passphrase: str | None = None) -> KeySet:
    """Read a key set and check that it is whole.

    Raises:
        BadInput: no such file, others may read it, damaged, of another format version, or passphrase missing or wrong.
    """
    file, deriver = _open(path, passphrase)
    return _key_set(file, deriver)


def rotate_keys(
    path: Path, *, epoch: str | None = None, compromised: bool = False, passphrase: str | None = None
) -> KeySet:
    """Add the next epoch (default: this month, numbered from the second on) and retire the current one.

    compromised: the current epoch's key is known to others: it becomes "opened" instead of "retired".

    Raises:
        BadInput: as `load_keys`, or the epoch's name is unusable or taken.
    """
    return change_keys(path, lambda keys: next_epoch(keys.epochs, epoch, compromised), passphrase)


def change_keys(path: Path, change: Callable[[KeySet], tuple[Epoch, ...]], passphrase: str | None = None) -> KeySet:
    """Replace the epochs by what `change` makes of them, one process at a time; a crash leaves the old or the new."""
    path = path.resolve()  # a symlink keeps pointing at the file, instead of being replaced by it
    with _locked(path):
        file, deriver = _open(path, passphrase)
        changed = _KeyFile.model_validate(dict(file) | {"epochs": change(_key_set(file, deriver))})
        _write(path, changed, deriver)
    return _key_set(changed, deriver)


def next_epoch(epochs: tuple[Epoch, ...], name: str | None, compromised: bool) -> tuple[Epoch, ...]:
    """The epochs with a new active one at the end.

    Raises:
        BadInput: the name is unusable or taken.
    """
    taken = {epoch.name for epoch in epochs}
    if name is None:
        month = _this_month()
        numbered = (f"{month}.{i}" for i in range(2, len(taken) + 3))
        name = next(candidate for candidate in (month, *numbered) if candidate not in taken)
    _check_name(name, "epoch")
    if name in taken:
        raise BadInput(f"epoch {name}: exists; choose another name with --epoch")
    at = now()
    end = {"state": "opened", "retired": at, "opened": at} if compromised else {"state": "retired", "retired": at}
    ended = (epoch.model_copy(update=end) if epoch.state == "active" else epoch for epoch in epochs)
    return (*ended, Epoch(name=name, created=at))


def now() -> str:
    """This moment, UTC, ISO 8601."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def read_limited(path: Path, secret: bool = False, most: int = MOST_BYTES) -> Any:
    """The JSON in a file of at most `most` bytes; a secret one only if nobody else may read it.

    Raises:
        BadInput: it cannot be read, is not JSON, or others may read it.
    """
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if secret and mode & 0o077:
                raise BadInput(f"{path}: others may read it (mode {stat.S_IMODE(mode):04o}); run: chmod 600 {path}")
            raw = file.read(most + 1)
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file; check the path") from None
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror}); check the path and who owns it") from None
    if len(raw) > most:
        raise BadInput(f"{path}: larger than {most >> 20} MiB, so not a file of this kind; check the path")
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):  # its message and the file's text stay here: they may hold the secret
        raise BadInput(f"{path}: not JSON; check the path, or restore the file from a backup") from None


def _open(path: Path, passphrase: str | None) -> tuple[_KeyFile, Deriver]:
    data = read_limited(path, secret=True)
    version = data.get("format") if isinstance(data, dict) else None
    if not isinstance(version, str) or not version.startswith("spiritsafe-keys/"):
        raise BadInput(f"{path}: not a key set; make one with: spiritsafe watermark keys new {path.name}")
    if version != FORMAT:
        raise BadInput(f"{path}: format {version[:40]!r} is not known, this version reads {FORMAT}; upgrade spiritsafe")
    try:
        file = _KeyFile.model_validate(data)
    except ValidationError as error:  # names the places only: the values may be the secret
        places = sorted({str((fault["loc"] or ("epochs",))[0]) for fault in error.errors(include_input=False)})
        raise BadInput(f"{path}: damaged at {', '.join(places)[:80]}; restore it from a backup") from None
    deriver = Deriver(unseal(file.master, passphrase, _bound(file.id, file.tenant), path), file.tenant)
    if file.id != _identity(deriver) or not hmac.compare_digest(file.mac.encode(), _mac(file, deriver).encode()):
        raise BadInput(f"{path}: damaged or edited: its contents do not match its secret; restore it from a backup")
    return file, deriver


def _write(path: Path, file: _KeyFile, deriver: Deriver) -> None:
    whole = file.model_copy(update={"mac": _mac(file, deriver)})
    try:
        atomic_write(path, json.dumps(whole.model_dump(mode="json"), indent=2) + "\n", mode=0o600)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the rename itself survives a power cut
        finally:
            os.close(folder)
    except OSError as error:
        raise BadInput(f"{path}: cannot be written ({error.strerror}); check the folder") from None


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    try:
        handle = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise BadInput(f"{path}: its folder is unusable ({error.strerror}); check the path") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _key_set(file: _KeyFile, deriver: Deriver) -> KeySet:
    encrypted = isinstance(file.master, Sealed)
    return KeySet(file.id, file.tenant, file.marking, file.tokenizer_hash, file.epochs, encrypted, deriver)


def _identity(deriver: Deriver) -> str:
    return "ks_" + deriver.derive("id", "", "", length=4).hex()


def _mac(file: _KeyFile, deriver: Deriver) -> str:
    public = file.model_dump(mode="json", exclude={"master", "mac"})
    text = json.dumps(public, sort_keys=True, separators=(",", ":"))
    return hmac.digest(deriver.derive("file", "", ""), text.encode(), "sha256").hex()


def _bound(identity: str, tenant: str) -> bytes:
    return encode_fields(FORMAT.encode(), identity.encode(), tenant.encode())


def _check_name(value: str, label: str) -> None:
    try:
        TypeAdapter(Name).validate_python(value)
    except ValidationError:
        raise BadInput(
            f"{label} {value[:80]!r}: use letters, digits, dot, dash and underscore, at most 64, beginning with a "
            "letter or digit"
        ) from None


def _this_month() -> str:
    return datetime.now(UTC).strftime("%Y-%m")
