"""ACCOUNTS.txt: who may have been marked, and in which slot their key is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from spiritsafe.errors import BadInput
from spiritsafe.keys import HOUSE_SLOT, SLOTS

__all__ = ["Accounts", "read_accounts"]


@dataclass(frozen=True, slots=True)
class Accounts:
    """Names and slots of accounts, in one order; no name and no slot twice."""

    names: Sequence[str]
    slots: Sequence[int]

    def __len__(self) -> int:
        return len(self.names)


def read_accounts(path: Path) -> Accounts:
    """One account a line: "NAME<TAB>SLOT", or only "NAME" for the slot of the line's number, counted from 1.

    A blank line leaves its slot unused. Slot 0 is the house's.

    Raises:
        BadInput: no such file, no UTF-8 text, no account in it, an account or slot twice, or a slot that no key is
            committed for; the message names the line.
    """
    lines = _lines(path)
    names: dict[str, int] = {}
    slots: dict[int, int] = {}
    for number, line in enumerate(lines, 1):
        name, tab, given = line.rstrip("\r").partition("\t")
        name, given = name.strip(), given.strip()
        if not name and not tab:
            continue
        where = f"{path}: line {number}"
        if not name or any(ord(c) < 32 for c in name):
            raise BadInput(f"{where}: no account name; write NAME or NAME<TAB>SLOT")
        if tab and not given.isdecimal():
            raise BadInput(f"{where}: slot {given[:40]!r} is not a whole number; write NAME<TAB>SLOT")
        slot = int(given) if tab else number
        if slot == HOUSE_SLOT:
            raise BadInput(f"{where}: slot {HOUSE_SLOT} is the house's, no account's; give the slot it was marked with")
        if slot >= SLOTS:
            raise BadInput(f"{where}: slot {slot} is beyond the last, {SLOTS - 1}; give the slot it was marked with")
        if name in names:
            raise BadInput(f"{where}: account {name[:80]} is on line {names[name]} too; keep one of them")
        if slot in slots:
            raise BadInput(f"{where}: slot {slot} belongs to line {slots[slot]} too; every account has its own")
        names[name], slots[slot] = number, number
    if not names:
        raise BadInput(f"{path}: no accounts; write one a line")
    return Accounts(tuple(names), tuple(slots))


def _lines(path: Path) -> list[str]:
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file; give a list of accounts, one a line") from None
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror}); give a list of accounts, one a line") from None
    if b"\0" in raw:
        raise BadInput(f"{path}: binary, not text; give a list of accounts, one a line")
    try:
        return raw.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8, one account a line") from None
