"""The guard's own secrets: one small file, made at first use, that every process of a guard shares."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final, Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from pydantic import Field, ValidationError

from spiritsafe.config import StrictModel
from spiritsafe.errors import BadInput
from spiritsafe.keys._file import read_limited
from spiritsafe.runs import atomic_write

__all__ = ["GuardSecrets"]

_FORMAT: Final = "spiritsafe-guard-secrets/1"
_BYTES = 32
_Hex32 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", repr=False)]


class _File(StrictModel):
    format: Literal["spiritsafe-guard-secrets/1"] = _FORMAT
    pepper: _Hex32
    signing_key: _Hex32


class GuardSecrets:
    """What the guard's file of secrets holds. Its repr, errors and copies never show it, and it cannot be pickled.

    pepper: 32 bytes; API keys are stored as HMACs under it.
    signer: signs the ledger's checkpoints.
    """

    __slots__ = ("pepper", "signer")

    def __init__(self, pepper: bytes, signer: Ed25519PrivateKey) -> None:
        self.pepper, self.signer = pepper, signer

    @classmethod
    def load(cls, path: Path) -> GuardSecrets:
        """Read the file; make it first (mode 0600) if there is none. Processes that start at once end with one file.

        Raises:
            BadInput: it cannot be read or written, others may read it, or it is damaged.
        """
        if not path.exists():
            with _locked(path):
                if not path.exists():
                    _make(path)
        file = _read(path)
        return cls(bytes.fromhex(file.pepper), Ed25519PrivateKey.from_private_bytes(bytes.fromhex(file.signing_key)))

    def derive(self, purpose: str) -> bytes:
        """A key (32 bytes) for one purpose: HKDF-SHA256 (RFC 5869) of the pepper. One says nothing of another."""
        return HKDF(SHA256(), _BYTES, salt=b"spiritsafe/guard", info=purpose.encode()).derive(self.pepper)

    def __repr__(self) -> str:
        return "GuardSecrets(secret)"

    def __copy__(self) -> GuardSecrets:
        return self

    def __deepcopy__(self, memo: object) -> GuardSecrets:
        return self

    def __reduce__(self) -> str:
        raise TypeError("secrets are not pickled; pass the path of their file and load it there")


def _read(path: Path) -> _File:
    data = read_limited(path, secret=True)
    version = data.get("format") if isinstance(data, dict) else None
    if not isinstance(version, str) or not version.startswith("spiritsafe-guard-secrets/"):
        raise BadInput(f"{path}: not a guard's secrets; check state.secrets, or restore the file from a backup")
    if version != _FORMAT:
        raise BadInput(
            f"{path}: format {version[:40]!r} is not known, this version reads {_FORMAT}; upgrade spiritsafe"
        )
    try:
        return _File.model_validate(data)
    except ValidationError as error:  # names the places only: the values are the secrets
        places = sorted({str((fault["loc"] or ("file",))[0]) for fault in error.errors(include_input=False)})
        raise BadInput(f"{path}: damaged at {', '.join(places)[:80]}; restore it from a backup") from None


def _make(path: Path) -> None:
    file = _File(pepper=secrets.token_hex(_BYTES), signing_key=secrets.token_hex(_BYTES))
    try:
        atomic_write(path, json.dumps(file.model_dump(), indent=2) + "\n", mode=0o600)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # keys are issued under it at once: it must survive a power cut
        finally:
            os.close(folder)
    except OSError as error:
        raise BadInput(f"{path}: cannot be written ({error.strerror}); check the folder, or state.secrets") from None


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    try:
        handle = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise BadInput(f"{path}: its folder is unusable ({error.strerror}); check state.secrets") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
