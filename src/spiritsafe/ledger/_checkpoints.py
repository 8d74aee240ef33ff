"""Signed checkpoints: "at this time the chain ended with this row". Whoever keeps one outside can tell a shortened or
rewritten chain from the true one.

The signature is Ed25519 over four fields, each behind a 4-byte big-endian length: "spiritsafe-checkpoint/1", the row's
number in decimal, its hash in hex, the time in Unix milliseconds in decimal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from spiritsafe.state import Database, Transaction

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

__all__ = ["Checkpoint", "sign_checkpoint", "write_checkpoint"]

_VERSION = b"spiritsafe-checkpoint/1"

_ADD = """
INSERT INTO checkpoints (seq, hash, at, public_key, signature) VALUES ($1, $2, $3, $4, $5) ON CONFLICT (seq) DO NOTHING
"""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """at: Unix seconds, to the millisecond.  public_key, signature: hex."""

    seq: int
    hash: str
    at: float
    public_key: str
    signature: str

    @classmethod
    def read(cls, row: Mapping[str, Any]) -> Checkpoint:
        """From a database row or an exported line.

        Raises:
            KeyError, TypeError, ValueError: that is no checkpoint.
        """
        return cls(int(row["seq"]), str(row["hash"]), float(row["at"]), str(row["public_key"]), str(row["signature"]))

    def holds(self) -> bool:
        """True if the signature is that of `public_key`."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        try:
            key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(self.public_key))
            key.verify(bytes.fromhex(self.signature), _signed(self.seq, self.hash, self.at))
        except (InvalidSignature, ValueError, OverflowError):
            return False
        return True

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def sign_checkpoint(signer: Ed25519PrivateKey, seq: int, chain_hash: str, at: float) -> Checkpoint:
    """A checkpoint over row `seq`, at a time in Unix seconds."""
    at = round(at * 1000) / 1000
    public = signer.public_key().public_bytes_raw().hex()
    return Checkpoint(seq, chain_hash, at, public, signer.sign(_signed(seq, chain_hash, at)).hex())


async def add_checkpoint(tx: Transaction, checkpoint: Checkpoint) -> None:
    """Store a checkpoint; the first one over a row stays."""
    c = checkpoint
    await tx.execute(_ADD, c.seq, c.hash, c.at, c.public_key, c.signature)


async def write_checkpoint(db: Database, signer: Ed25519PrivateKey, at: float) -> Checkpoint | None:
    """Sign the chain as it ends now, and store that; None while it is empty.

    Raises:
        Unavailable: the database is away.
    """
    async with db.transaction() as tx:
        head = await tx.fetch("SELECT seq, hash FROM ledger ORDER BY seq DESC LIMIT 1")
        if not head:
            return None
        checkpoint = sign_checkpoint(signer, head[0]["seq"], head[0]["hash"], at)
        await add_checkpoint(tx, checkpoint)
        return checkpoint


def _signed(seq: int, chain_hash: str, at: float) -> bytes:
    fields = (_VERSION, str(seq).encode(), chain_hash.encode(), str(round(at * 1000)).encode())
    return b"".join(len(field).to_bytes(4, "big") + field for field in fields)
