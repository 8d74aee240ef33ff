"""One of the five checks of a case, and what all of them look at."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from spiritsafe.errors import SpiritsafeError

__all__ = ["Check", "Given", "Opened", "State"]

State = Literal["pass", "fail", "unanchored"]


@dataclass(slots=True)
class Check:
    """failures: what is wrong.  loose: what nothing outside the case vouches for.  notes: the rest. A line each.
    looked: False where it fails because one before it did.
    """

    name: str
    failures: list[str] = field(default_factory=list)
    loose: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    looked: bool = True

    @property
    def state(self) -> State:
        return "fail" if self.failures else "unanchored" if self.loose else "pass"

    def must(self, holds: bool, otherwise: str) -> bool:
        """Note a failure unless it holds."""
        if not holds:
            self.failures.append(otherwise)
        return holds

    def leave(self, why: str) -> None:
        """Fail it unseen."""
        self.looked = False
        self.failures.append(f"not looked at: {why}")

    @contextlib.contextmanager
    def guarding(self, folder: Path) -> Iterator[None]:
        """What a file of the case makes impossible is a failure of the case, not of this program."""
        try:
            yield
        except (SpiritsafeError, OSError) as error:
            self.failures.append(str(error).replace(f"{folder}/", ""))
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
            self.failures.append(f"malformed: {type(error).__name__}, {str(error)[:120]}")


@dataclass(frozen=True, slots=True)
class Given:
    """What the one who verifies knows from elsewhere.  signer: 32 bytes.  tsa: roots, PEM."""

    signer: bytes | None
    tsa: bytes | None


@dataclass(frozen=True, slots=True)
class Opened:
    """A case, unpacked.

    hashes: name → SHA-256 of what is there.  manifest, plan: bytes.  document: plan.json.  stamps: name of a file →
    when it existed at the latest, as its timestamp says, and whether an authority known from elsewhere says so.
    """

    folder: Path
    hashes: dict[str, str]
    manifest: bytes
    plan: bytes
    document: dict[str, Any]
    stamps: dict[str, tuple[datetime, bool]] = field(default_factory=dict)

    def has(self, name: str) -> bool:
        return name in self.hashes

    def read(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()
