"""What people write about accounts: checked so that it hides nothing; what stands where they write nothing."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Final

from spiritsafe.errors import BadInput

__all__ = ["APPEAL", "ID_START", "REASON", "account_name", "escaped", "nearest", "one_line"]

REASON: Final = "by decision of the operator"
APPEAL: Final = "write to the operator of this API"
ID_START: Final = "acct_"
_LONGEST = 200


def nearest(wanted: str, known: Iterable[str]) -> str:
    names = list(known)
    near = difflib.get_close_matches(wanted, names, n=1)
    return f"did you mean {near[0]}?" if near else f"known: {', '.join(names[:6])}"


def account_name(name: str) -> str:
    name = one_line("name", name)
    if name.startswith(ID_START):
        raise BadInput(f"name {name!r}: a name must not look like an account id; choose one without {ID_START}")
    return name


def one_line(label: str, value: str, longest: int = _LONGEST) -> str:
    """One printable line: what is shown to people must not hide what it says."""
    value = value.strip()
    if not value or len(value) > longest or not value.isprintable():
        raise BadInput(f"{label} {value[:60]!r}: write 1 to {longest} printable characters on one line")
    return value


def escaped(text: str) -> str:
    return text.replace("!", "!!").replace("%", "!%").replace("_", "!_")
