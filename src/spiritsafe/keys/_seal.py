"""The master secret as it lies in the file: plain, or sealed with a passphrase (scrypt, then AES-256-GCM)."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from spiritsafe.config import StrictModel
from spiritsafe.errors import BadInput

__all__ = ["MASTER_BYTES", "Plain", "Sealed", "read_passphrase", "seal", "unseal"]

MASTER_BYTES = 32
_COST = 2**17  # with r = 8: 128 MiB and about half a second a guess


def _power_of_two(n: int) -> int:
    if n & (n - 1):
        raise ValueError("not a power of two")
    return n


def _hex(count: int) -> str:
    return rf"^[0-9a-f]{{{2 * count}}}$"


class Plain(StrictModel):
    """The secret in the clear, guarded by the file's mode alone."""

    plain: Annotated[str, Field(pattern=_hex(MASTER_BYTES), repr=False)]


class Sealed(StrictModel):
    """The secret under a key that scrypt (RFC 7914) makes of a passphrase; a hostile file cannot ask beyond 1 GiB."""

    kdf: Literal["scrypt"] = "scrypt"
    n: Annotated[int, Field(ge=2, le=2**20), AfterValidator(_power_of_two)]
    r: Literal[8] = 8
    p: Literal[1] = 1
    salt: Annotated[str, Field(pattern=_hex(16))]
    cipher: Literal["aes-256-gcm"] = "aes-256-gcm"
    nonce: Annotated[str, Field(pattern=_hex(12))]
    sealed: Annotated[str, Field(pattern=_hex(MASTER_BYTES + 16), repr=False)]


def seal(master: bytes, passphrase: str, bound: bytes) -> Sealed:
    """Encrypt the secret; `bound` is authenticated with it."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    salt, nonce = secrets.token_bytes(16), secrets.token_bytes(12)
    box = AESGCM(_stretch(passphrase, salt, _COST)).encrypt(nonce, master, bound)
    return Sealed(n=_COST, salt=salt.hex(), nonce=nonce.hex(), sealed=box.hex())


def unseal(box: Plain | Sealed, passphrase: str | None, bound: bytes, where: Path) -> bytes:
    """The secret.

    Raises:
        BadInput: it is encrypted and the passphrase is missing or wrong.
    """
    if isinstance(box, Plain):
        return bytes.fromhex(box.plain)
    if passphrase is None:
        raise BadInput(f"{where}: encrypted; give its passphrase with --passphrase-env NAME or --passphrase-file FILE")
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    key = _stretch(passphrase, bytes.fromhex(box.salt), box.n)
    try:
        return AESGCM(key).decrypt(bytes.fromhex(box.nonce), bytes.fromhex(box.sealed), bound)
    except InvalidTag:
        raise BadInput(f"{where}: wrong passphrase, or the file is damaged; nothing was changed") from None


def read_passphrase(env: str | None, file: Path | None) -> str | None:
    """A passphrase from an environment variable, or a file (one final line break is not part of it); None for neither.

    Raises:
        BadInput: both are given, the one given cannot be read, or it is empty.
    """
    if env is not None and file is not None:
        raise BadInput("--passphrase-env and --passphrase-file: give one of them")
    if env is not None:
        if env not in os.environ:
            raise BadInput(f"--passphrase-env {env}: this environment variable is not set; export it first")
        where, passphrase = f"--passphrase-env {env}", os.environ[env]
    elif file is not None:
        where = f"--passphrase-file {file}"
        try:
            passphrase = file.read_text(encoding="utf-8").removesuffix("\n").removesuffix("\r")
        except OSError as error:
            raise BadInput(f"{where}: cannot be read ({error.strerror}); check the path") from None
        except UnicodeDecodeError:
            raise BadInput(f"{where}: not UTF-8 text; write the passphrase as text") from None
    else:
        return None
    if not passphrase:
        raise BadInput(f"{where}: empty; a passphrase has at least one character")
    return passphrase


def _stretch(passphrase: str, salt: bytes, cost: int) -> bytes:
    from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

    # An environment variable that is not UTF-8 arrives with surrogate escapes: back to its bytes.
    return Scrypt(salt=salt, length=32, n=cost, r=8, p=1).derive(passphrase.encode("utf-8", "surrogateescape"))
