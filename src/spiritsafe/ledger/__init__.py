"""The append-only hash chain: writer, crash journal, reader, verification."""

from spiritsafe.ledger._checkpoints import Checkpoint, write_checkpoint
from spiritsafe.ledger._evidence import MOST_VARIANTS, canonical_json, verify_canary, verify_twin
from spiritsafe.ledger._export import export_ledger
from spiritsafe.ledger._journal import Journal
from spiritsafe.ledger._read import read_ledger
from spiritsafe.ledger._recover import Orphan, recover
from spiritsafe.ledger._retention import forget_personal
from spiritsafe.ledger._rows import Event, LedgerRow
from spiritsafe.ledger._verification import Verification
from spiritsafe.ledger._verify import verify_ledger
from spiritsafe.ledger._writer import Ledger

__all__ = [
    "MOST_VARIANTS",
    "Checkpoint",
    "Event",
    "Journal",
    "Ledger",
    "LedgerRow",
    "Orphan",
    "Verification",
    "canonical_json",
    "export_ledger",
    "forget_personal",
    "read_ledger",
    "recover",
    "verify_canary",
    "verify_ledger",
    "verify_twin",
    "write_checkpoint",
]
