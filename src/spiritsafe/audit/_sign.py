"""Signatures: Ed25519 keys in PEM files, DSSE envelopes, in-toto statements.

DSSE v1.0 (secure-systems-lab/dsse, protocol.md): what is signed is PAE(type, body) = "DSSEv1" SP len(type) SP type SP
len(body) SP body, lengths in decimal.  Statement: in-toto attestation framework, Statement v1.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spiritsafe.errors import BadInput
from spiritsafe.ledger import canonical_json

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

__all__ = [
    "IN_TOTO",
    "dsse_payload",
    "load_public",
    "load_roots",
    "load_signer",
    "pae",
    "public_hex",
    "read_statement",
    "sign_dsse",
    "statement",
    "unsigned_dsse",
    "verify_dsse",
]

IN_TOTO = "application/vnd.in-toto+json"
_STATEMENT = "https://in-toto.io/Statement/v1"
_LARGEST_KEY = 1 << 16


def load_signer(path: Path) -> Ed25519PrivateKey:
    """The private key in a PEM file.

    Raises:
        BadInput: it cannot be read, or is not an unencrypted Ed25519 key.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    make = "make one with: openssl genpkey -algorithm ed25519 -out NEW.pem"
    raw = _read(path)
    if b"PUBLIC KEY-----" in raw:
        raise BadInput(f"{path}: no private key in PEM form but a public one; give the private one it belongs to")
    try:
        key = load_pem_private_key(raw, password=None)
    except TypeError:
        raise BadInput(f"{path}: is encrypted; give a PEM file without a passphrase, readable by you alone") from None
    except (ValueError, UnsupportedAlgorithm):
        raise BadInput(f"{path}: no private key in PEM form; {make}") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise BadInput(f"{path}: not an Ed25519 key; {make}")
    return key


def load_public(path: Path) -> bytes:
    """The public key (32 bytes) in a PEM file, or as 64 hex digits in a text file.

    Raises:
        BadInput: it cannot be read, or is no Ed25519 public key.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    raw = _read(path)
    try:
        as_hex = bytes.fromhex(raw.decode("ascii"))
    except ValueError:
        as_hex = b""
    if len(as_hex) == 32:
        return as_hex
    if b"PRIVATE KEY-----" in raw:
        raise BadInput(
            f"{path}: no public key but a private one, which only its owner may have; give the public one: "
            f"openssl pkey -in {path.name} -pubout"
        )
    try:
        key = load_pem_public_key(raw)
    except (ValueError, UnsupportedAlgorithm):
        raise BadInput(f"{path}: no public key; give PEM (openssl pkey -in KEY.pem -pubout) or 64 hex digits") from None
    if not isinstance(key, Ed25519PublicKey):
        raise BadInput(f"{path}: not an Ed25519 public key; signatures here are Ed25519")
    return key.public_bytes_raw()


def load_roots(path: Path) -> bytes:
    """A PEM file of certificates, held to be some.

    Raises:
        BadInput: it cannot be read, or has no certificate in it.
    """
    from cryptography.x509 import load_pem_x509_certificates

    raw = _read(path)
    try:
        load_pem_x509_certificates(raw)
    except ValueError:
        raise BadInput(f"{path}: no certificates in PEM form; give the root that the authority publishes") from None
    return raw


def public_hex(key: Ed25519PrivateKey) -> str:
    return key.public_key().public_bytes_raw().hex()


def pae(payload_type: str, payload: bytes) -> bytes:
    """Pre-authentication encoding: the bytes that DSSE signs."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def sign_dsse(payload: bytes, payload_type: str, key: Ed25519PrivateKey) -> dict[str, Any]:
    """A DSSE envelope (JSON) with one signature; `keyid` is the SHA-256 of the raw public key."""
    keyid = hashlib.sha256(key.public_key().public_bytes_raw()).hexdigest()
    signature = base64.b64encode(key.sign(pae(payload_type, payload))).decode()
    return {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": payload_type,
        "signatures": [{"keyid": keyid, "sig": signature}],
    }


def unsigned_dsse(payload: bytes, payload_type: str) -> dict[str, Any]:
    """An envelope that nobody has signed yet."""
    return {"payload": base64.b64encode(payload).decode(), "payloadType": payload_type, "signatures": []}


def dsse_payload(envelope: Any, payload_type: str = IN_TOTO) -> bytes:
    """The payload, whoever signed it or did not.

    Raises:
        BadInput: it is no envelope, or holds another type of payload.
    """
    return _opened(envelope, payload_type)[0]


def verify_dsse(envelope: Any, public_key: bytes, payload_type: str = IN_TOTO) -> bytes:
    """The payload, if one of the envelope's signatures is that of `public_key` (32 bytes, Ed25519).

    Raises:
        BadInput: it is no envelope, holds another type of payload, or none of its signatures is of that key.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    payload, signatures = _opened(envelope, payload_type)
    try:
        key = Ed25519PublicKey.from_public_bytes(public_key)
    except ValueError:
        raise BadInput("not an Ed25519 public key of 32 bytes") from None
    for signature in signatures:
        try:
            key.verify(signature, pae(payload_type, payload))
        except InvalidSignature:
            continue
        return payload
    raise BadInput(f"no signature of the key {public_key.hex()[:16]}…")


def statement(subjects: Mapping[str, str], predicate_type: str, predicate: Mapping[str, Any]) -> bytes:
    """An in-toto Statement v1 in canonical JSON. subjects: name → SHA-256 (hex)."""
    return canonical_json(
        {
            "_type": _STATEMENT,
            "subject": [{"name": name, "digest": {"sha256": digest}} for name, digest in sorted(subjects.items())],
            "predicateType": predicate_type,
            "predicate": predicate,
        }
    )


def read_statement(payload: bytes, predicate_type: str) -> tuple[dict[str, str], dict[str, Any]]:
    """(subjects: name → SHA-256, predicate) of a statement.

    Raises:
        BadInput: it is not an in-toto Statement v1 of that type.
    """
    try:
        read = json.loads(payload)
        if read["_type"] != _STATEMENT or read["predicateType"] != predicate_type:
            raise ValueError
        subjects = {one["name"]: one["digest"]["sha256"] for one in read["subject"]}
        predicate = read["predicate"]
        if not isinstance(predicate, dict) or not all(isinstance(x, str) for pair in subjects.items() for x in pair):
            raise TypeError
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise BadInput(f"the signed payload is not an in-toto statement of type {predicate_type}") from None
    return subjects, predicate


def _opened(envelope: Any, payload_type: str) -> tuple[bytes, list[bytes]]:
    try:
        payload, kind = _unbase64(envelope["payload"]), envelope["payloadType"]
        signatures = [_unbase64(one["sig"]) for one in envelope["signatures"]]
    except (KeyError, TypeError, ValueError, AttributeError):
        raise BadInput("not a DSSE envelope with signatures") from None
    if kind != payload_type:
        raise BadInput(f"the envelope holds {str(kind)[:80]!r}, not {payload_type}")
    return payload, signatures


def _unbase64(text: str) -> bytes:
    # DSSE lets a writer choose: standard or URL-safe alphabet
    try:
        return base64.b64decode(text.replace("-", "+").replace("_", "/"), validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from None


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_LARGEST_KEY)
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror}); give a key in a PEM file") from None
