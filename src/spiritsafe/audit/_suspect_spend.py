"""What a suspect's API may cost: set aside before a request leaves, settled after, and written down in between.

A process that dies has still counted what it had sent: a request without an end in the journal counts at its worst
case. Lines are written without fsync: they outlive the process, not a power failure.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spiritsafe.errors import BadInput, SpiritsafeError
from spiritsafe.records import Usage
from spiritsafe.spend import Budget, OverBudget, Price, Spend, Ticket

__all__ = ["Journal", "Purse", "Reserved"]


class Journal:
    """requests.jsonl: a line when a request is about to leave, another when it ended.

    `{"id": 7, "who": "suspect", "worst": [pico, tokens, 1]}`, then `{"id": 7, "spent": [pico, tokens, 1], …}` with what
    the answer said of itself: `model`, `fingerprint`, `flaw`, `error`.
    """

    def __init__(self, path: Path) -> None:
        """Open for appending.

        Raises:
            BadInput: the file is damaged or cannot be opened.
        """
        self.path = path
        self._counted: dict[int, Spend] = {}
        self._who: dict[int, str] = {}
        self._said: dict[str, dict[str, Counter[str]]] = {}
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            raw = path.read_bytes()
            whole = raw.rfind(b"\n") + 1
            os.ftruncate(self._fd, whole)
        except OSError as error:
            raise BadInput(f"{path}: cannot be opened ({error.strerror}); check the folder") from None
        for number, line in enumerate(raw[:whole].splitlines(), 1):
            try:
                self._take(json.loads(line))
            except (ValueError, KeyError, TypeError, AttributeError):
                os.close(self._fd)
                raise BadInput(f"{path}: line {number} is damaged; restore the file, or begin a new run") from None

    @property
    def spent(self) -> Spend:
        """Settled, and what never ended at its worst case."""
        return sum(self._counted.values(), Spend())

    def said(self, who: str) -> dict[str, dict[str, int]]:
        """What `who`'s answers said of themselves: kind → value → how many."""
        return {kind: dict(counter) for kind, counter in self._said.get(who, {}).items()}

    def begin(self, who: str, worst: Spend) -> int:
        """A request is about to leave; returns its number."""
        number = len(self._counted) + 1
        self._write({"id": number, "who": who, "worst": [worst.pico, worst.tokens, worst.requests]})
        return number

    def end(self, number: int, spent: Spend, said: Mapping[str, str]) -> None:
        """It ended so."""
        self._write({"id": number, "spent": [spent.pico, spent.tokens, spent.requests], **said})

    def close(self) -> None:
        os.close(self._fd)

    def _write(self, entry: dict[str, Any]) -> None:
        raw = json.dumps(entry, separators=(",", ":")).encode() + b"\n"
        end = os.fstat(self._fd).st_size
        try:
            written = os.write(self._fd, raw)
        except OSError as error:
            raise SpiritsafeError(f"{self.path}: cannot be written ({error.strerror}); fix it and run again") from None
        if written < len(raw):
            os.ftruncate(self._fd, end)
            raise SpiritsafeError(f"{self.path}: the disk is full; free space and run again")
        self._take(entry)

    def _take(self, entry: dict[str, Any]) -> None:
        number = int(entry["id"])
        if "worst" in entry:
            self._counted[number] = Spend(*map(int, entry["worst"]))
            self._who[number] = str(entry["who"])
            return
        self._counted[number] = Spend(*map(int, entry["spent"]))
        said = self._said.setdefault(self._who[number], {})
        for kind, value in entry.items():
            if kind not in ("id", "spent"):
                said.setdefault(kind, Counter())[str(value)] += 1


@dataclass(frozen=True, slots=True, eq=False)
class Reserved:
    """One request that may leave."""

    ticket: Ticket | None
    number: int | None
    worst: Spend


class Purse:
    """What one suspect spends. Safe to share between tasks of one event loop.

    budget: None where nothing is capped.  price: None where it is unknown; a cap on dollars then refuses every request.
    """

    def __init__(
        self, who: str, budget: Budget | None = None, price: Price | None = None, journal: Journal | None = None
    ) -> None:
        if budget is not None and budget.caps.usd is not None and price is None:
            raise BadInput(
                f"{who}: there is a budget in dollars, but its price is unknown; give it in USD per million tokens, "
                "0 for a free server: price: {input_per_mtok: 0.15, output_per_mtok: 0.60}"
            )
        self._who, self._budget, self._price, self._journal = who, budget, price, journal
        self._open = 0
        self._freed = asyncio.Event()

    async def reserve(self, tokens_in: int, tokens_out: int) -> Reserved:
        """Set aside the most a request can take; waits while only requests under way stand in its way.

        Raises:
            OverBudget: there is no room, and none will come.
        """
        pico = 0 if self._price is None else self._price.worst_case(tokens_in, tokens_out)
        worst = Spend(pico, tokens_in + tokens_out, 1)
        ticket = None
        while self._budget is not None and ticket is None:
            try:
                ticket = self._budget.reserve(worst)
            except OverBudget as refusal:
                if refusal.final or self._open == 0:
                    raise
                self._freed.clear()
                await self._freed.wait()
        self._open += 1
        try:
            number = None if self._journal is None else self._journal.begin(self._who, worst)
        except BaseException:
            self._close(ticket, Spend())
            raise
        return Reserved(ticket, number, worst)

    def settle(self, reserved: Reserved, spent: Spend, **said: str | None) -> None:
        """It cost this much."""
        try:
            if self._journal is not None and reserved.number is not None:
                self._journal.end(reserved.number, spent, {k: v for k, v in said.items() if v is not None})
        finally:
            self._close(reserved.ticket, spent)

    def cost(self, usage: Usage) -> Spend:
        """Of one answered request."""
        pico = 0 if self._price is None else self._price.cost(usage)
        return Spend(pico, usage.input_tokens + usage.output_tokens, 1)

    def _close(self, ticket: Ticket | None, spent: Spend) -> None:
        self._open -= 1
        if self._budget is not None and ticket is not None:
            self._budget.settle(ticket, spent)
        self._freed.set()
