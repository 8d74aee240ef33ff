"""The checks themselves, row by row, whether rows come from a database or a file."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, Literal, NamedTuple

import orjson

from spiritsafe.ledger._chain import GENESIS, chain_hash, commit_personal
from spiritsafe.ledger._checkpoints import Checkpoint
from spiritsafe.ledger._seal import EVENT_FIELDS, REPLY_FIELDS
from spiritsafe.ledger._totals import Amounts, Counted, day_of
from spiritsafe.ledger._verification import Verification

__all__ = ["ChainCheck", "Link"]

_SHOWN = 20


class Link(NamedTuple):
    """A row as found.

    claims: values that stand beside the payload and must equal it, by the payload's field.
    salt, personal: hex and the values that are still there.  faults: what was wrong with its form.
    """

    seq: int
    kind: str
    prev_hash: str
    hash: str
    payload: bytes
    claims: Mapping[str, Any]
    salt: str | None
    personal: Mapping[str, Any]
    faults: tuple[str, ...] = ()


class ChainCheck:
    """Follows a chain from its first row to its last. Where a row is bad it goes on, from the hash the row claims."""

    def __init__(self, public_keys: Collection[str], expect: Iterable[tuple[int, str]], partial: bool) -> None:
        self._keys = {key.lower() for key in public_keys}
        self._expect = dict(expect)
        self._expecting = bool(self._expect)
        self._partial = partial
        self._problems: list[str] = []
        self._notes: list[str] = []
        self._count = 0
        self._first_bad: int | None = None
        self.seq, self.hash, self._first = 0, GENESIS, 0
        self._replies = self._events = self._gaps = 0
        self._checkpoints = self._last_checkpoint = 0
        self._signers: set[str] = set()
        self._checked = self._gone = 0
        self.totals: Literal["match", "differ", "absent"] = "absent"

    def problem(self, seq: int | None, what: str) -> None:
        """Note what is wrong, of a row if it is one row's fault."""
        self._count += 1
        if seq is not None and (self._first_bad is None or seq < self._first_bad):
            self._first_bad = seq
        if len(self._problems) < _SHOWN:
            self._problems.append(what if seq is None else f"row {seq}: {what}")

    def note(self, what: str) -> None:
        self._notes.append(what)

    def follow(self, link: Link) -> tuple[Counted, Amounts] | None:
        """Check one row; what it adds to the totals if it is a readable reply."""
        seq = link.seq
        for fault in link.faults:
            self.problem(seq, fault)
        if seq <= self.seq:
            self.problem(seq, f"comes after row {self.seq}: rows are repeated or out of order")
        else:
            self._step(link)
        if chain_hash(seq, link.kind, link.prev_hash, link.payload) != link.hash:
            self.problem(seq, "changed or moved: its hash is not that of its content")
        wanted = self._expect.pop(seq, None)
        if wanted is not None and wanted != link.hash:
            self.problem(seq, f"its hash is not the expected {wanted}")
        if link.kind == "reply":
            self._replies += 1
        else:
            self._events += 1
        return self._content(link)

    def checkpoint(self, checkpoint: Checkpoint) -> None:
        """Check one, right after the row it covers."""
        seq = checkpoint.seq
        self._checkpoints += 1
        self._signers.add(checkpoint.public_key)
        self._last_checkpoint = max(self._last_checkpoint, seq)
        if not checkpoint.holds():
            self.problem(seq, "the checkpoint over it has a bad signature")
        elif self._keys and checkpoint.public_key.lower() not in self._keys:
            self.problem(seq, f"the checkpoint over it is signed by another key, {checkpoint.public_key}")
        if seq > self.seq:
            self.problem(seq, f"a checkpoint was signed over it, but the chain ends with row {self.seq}: rows are gone")
        elif seq < self.seq or self.hash != checkpoint.hash:
            self.problem(seq, "is not the row that the checkpoint over it was signed for: the chain was rewritten")

    def finish(self) -> Verification:
        """Everything was seen."""
        for seq, wanted in sorted(self._expect.items()):
            self.problem(seq, f"expected with hash {wanted}, but the chain ends with row {self.seq}: rows are gone")
        signer: Literal["anchored", "unanchored", "none"] = "none"
        if self._checkpoints:
            signer = "anchored" if self._keys else "unanchored"
        self._say_limits(signer)
        return Verification(
            ok=self._count == 0,
            rows=self._replies + self._events,
            replies=self._replies,
            events=self._events,
            first=self._first,
            head=(self.seq, self.hash),
            problems=tuple(self._problems),
            problem_count=self._count,
            first_bad=self._first_bad,
            notes=tuple(self._notes),
            checkpoints=self._checkpoints,
            last_checkpoint=self._last_checkpoint,
            signer=signer,
            signers=tuple(sorted(self._signers)),
            personal_checked=self._checked,
            personal_gone=self._gone,
            totals=self.totals,
        )

    def _say_limits(self, signer: str) -> None:
        rows = self._replies + self._events
        if rows and self._keys and not self._checkpoints:
            self.problem(None, "no checkpoint of the given key: nothing shows that the chain was not rewritten")
        if signer == "unanchored":
            self.note("signer unanchored: the key stands beside what it signed; give the guard's with --public-key")
        if rows > 0 and self._last_checkpoint < self.seq:
            after = f"rows after {self._last_checkpoint}" if self._last_checkpoint else "all rows"
            self.note(f"{after} are under no checkpoint: the chain alone does not show whether later ones were cut off")
        if rows and not self._expecting:
            self.note("a chain cut short looks whole: compare with a checkpoint kept elsewhere (--expect SEQ:HASH)")
        if self._gaps:
            self.note(f"{self._gaps:,} gaps were allowed: that nothing is missing was not checked")

    def _step(self, link: Link) -> None:
        missing = (self.seq + 1, link.seq - 1)
        if missing[0] <= missing[1]:
            if self._partial:
                self._gaps += 1
            elif missing[0] == missing[1]:
                self.problem(missing[0], "missing")
            else:
                self.problem(missing[0], f"missing, and all after it to row {missing[1]}")
        elif link.prev_hash != self.hash:
            self.problem(link.seq, f"does not follow row {self.seq}: it was written after another one")
        self.seq, self.hash = link.seq, link.hash
        self._first = self._first or link.seq

    def _content(self, link: Link) -> tuple[Counted, Amounts] | None:
        try:
            payload = orjson.loads(link.payload)
            fields = set(payload)
            if fields != (_REPLY if link.kind == "reply" else _EVENT):
                raise KeyError
            for name, value in link.claims.items():
                if not _same(payload[name], value):
                    self.problem(link.seq, f"{name} beside the chain is {value!r}, in the chain {payload[name]!r}")
            if link.kind != "reply":
                return None
            self._personal(link, payload["personal"])
            day = day_of(payload["ts"])
            amounts = (1, int(payload["tokens_in"]), int(payload["tokens_out"]), int(payload["pico"]))
            return Counted(payload["account"], payload["key_id"], payload["org"], payload["model"], day), amounts
        except (ValueError, KeyError, TypeError, AttributeError):
            self.problem(link.seq, "its content is not that of a ledger row")
            return None

    def _personal(self, link: Link, commitments: Mapping[str, str]) -> None:
        if link.salt is None:
            self._gone += len(commitments)
            if link.personal:
                self.problem(link.seq, f"{', '.join(sorted(link.personal))} cannot be checked: the salt is missing")
            return
        found = commit_personal(bytes.fromhex(link.salt), link.personal)
        self._checked += len(found)
        for name in sorted(set(found) | set(commitments)):
            if name not in found:
                self.problem(link.seq, f"{name} was taken out, yet the salt is there")
            elif found[name] != commitments.get(name):
                self.problem(link.seq, f"{name} is not what the chain commits to")


def _same(inside: Any, beside: Any) -> bool:
    """Equal; of times, to less than a microsecond, since SQLite may have rounded the last bit when it read one."""
    if isinstance(inside, float) and isinstance(beside, float):
        return abs(inside - beside) < 5e-7
    return bool(inside == beside)


_REPLY, _EVENT = {*REPLY_FIELDS, "personal"}, set(EVENT_FIELDS)
