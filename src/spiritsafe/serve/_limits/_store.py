"""The limits' state in Redis: its keys, its scripts, and the generation they belong to.

Everything that counts lives under one generation. A generation ends when Redis may have lost something (`check.lua`),
and the next begins with what the ledger and the live workers know (`_seeding.py`). Every script is told the generation
its caller believes in and does nothing under another.
"""

from __future__ import annotations

import hashlib
import importlib.resources
from collections.abc import Callable, Sequence
from typing import Any

from spiritsafe.serve._limits._line import Away, Line, ServerError
from spiritsafe.serve._limits._model import Bucket, Lift, amounts_of
from spiritsafe.serve._types import Demand

__all__ = ["OTHER_GENERATION", "REFUSED", "TAKEN", "UNKNOWN", "Store", "Word"]

_SCRIPTS = ("check", "reserve", "settle", "lift", "join", "gather", "plant", "reap")
_PREFIX = "{spiritsafe}"  # the braces keep all keys on one node of a cluster

# what `reserve` may answer first, but for 1
REFUSED, OTHER_GENERATION, UNKNOWN, TAKEN = 0, -1, -2, -3

Word = str | bytes | int


class Store:
    """A connection, and the scripts loaded on it.

    worker: this process, and no other before or after it.  lease_ms: how long a slot is held at most.
    clock: Unix nanoseconds in place of Redis's own clock, for tests.  on_lost: called when the connection breaks.
    generation: the one this process works under; None while there is none, or Redis is away.
    latest: that, or the last one that was.
    """

    def __init__(
        self,
        url: str,
        *,
        worker: str,
        prefix: str,
        timeout_s: float,
        lease_ms: int,
        clock: Callable[[], int] | None,
        on_lost: Callable[[], None],
    ) -> None:
        folder = importlib.resources.files("spiritsafe.serve._limits") / "lua"
        common = (folder / "common.lua").read_text()
        self._sources = {name: common + (folder / f"{name}.lua").read_text() for name in _SCRIPTS}
        self._hashes = {
            name: hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()
            for name, source in self._sources.items()
        }
        self._on_lost, self._clock = on_lost, clock
        self.line = Line(url, timeout_s, self._greet, self._lost)
        self.worker, self.lease_ms = worker, lease_ms
        self.generation: str | None = None
        self.latest = ""
        self.run_id = ""
        self.prefix = f"{_PREFIX}{prefix}:"
        self.generation_key = f"{self.prefix}generation"
        self.leader_key = f"{self.prefix}leader"
        self.open_key = f"{self.prefix}open"
        self.ticket_prefix = f"{self.prefix}t:"

    @property
    def now(self) -> Word:
        """The time a script is given; "" for Redis's own."""
        return "" if self._clock is None else self._clock() // 1_000_000

    def bucket_prefix(self, generation: str) -> str:
        """What the keys of a generation's buckets begin with."""
        return f"{self.prefix}{generation}:"

    async def reserve(self, buckets: Sequence[Bucket], request_id: str, *, force: bool = False) -> list[Any]:
        """Run `reserve.lua`. Raises `Away`, also where there is no generation."""
        generation = self._current()
        prefix = self.bucket_prefix(generation)
        keys = [self.generation_key, self.ticket_prefix + request_id, self.open_key]
        words: list[Word] = [
            generation, self.now, request_id, self.worker, self.lease_ms, "1" if force else "0", len(prefix)
        ]  # fmt: skip
        for limit, amount in buckets:
            keys.append(prefix + limit.key)
            words += (limit.kind, limit.size, amount, limit.window, "1" if limit.shadow else "0")
        return await self.run("reserve", keys, words)

    async def settle(
        self, buckets: Sequence[Bucket], request_id: str, actual: Demand, *, bury: bool = False
    ) -> list[Any]:
        """Run `settle.lua`. Raises `Away`, also where there is no generation or another."""
        generation = self._current()
        prefix = self.bucket_prefix(generation)
        taken = amounts_of(actual)
        keys = [self.generation_key, self.ticket_prefix + request_id, self.open_key]
        words: list[Word] = [generation, self.now, request_id, "1" if bury else "0"]
        for limit, _ in buckets:
            keys.append(prefix + limit.key)
            words += (limit.size, taken[limit.measure], limit.near or -1)
        return self._same(await self.run("settle", keys, words))

    async def lift(self, lifts: Sequence[Lift], *, strictly: bool = False) -> None:
        """Run `lift.lua`. Raises as `settle`."""
        generation = self._current()
        prefix = self.bucket_prefix(generation)
        words: list[Word] = [generation, "1" if strictly else "0"]
        for limit, least in lifts:
            words += (limit.window, least)
        keys = [self.generation_key, *(prefix + limit.key for limit, _ in lifts)]
        self._same(await self.run("lift", keys, words))

    async def reap(self, age_ms: int, most: int) -> int:
        """Run `reap.lua`: give back up to `most` reservations older than that; how many. Raises as `settle`."""
        generation = self._current()
        words: list[Word] = [
            generation, self.now, age_ms, self.ticket_prefix, self.bucket_prefix(generation), most
        ]  # fmt: skip
        return int(self._same(await self.run("reap", [self.generation_key, self.open_key], words))[0])

    async def run(self, name: str, keys: Sequence[str], words: Sequence[Word]) -> list[Any]:
        """Run a script; what it answers.

        Raises:
            Away: Redis is.
        """
        try:
            answer = await self.line.call("EVALSHA", self._hashes[name], len(keys), *keys, *words)
        except ServerError as error:
            if not str(error).startswith("NOSCRIPT"):
                raise Away(f"Redis at {self.line.name}: {error}") from None
            answer = await self.ask("EVAL", self._sources[name], len(keys), *keys, *words)
        assert isinstance(answer, list)
        return answer

    async def ask(self, *words: Word) -> Any:
        """A plain command. Raises `Away`."""
        try:
            return await self.line.call(*words)
        except ServerError as error:
            raise Away(f"Redis at {self.line.name}: {error}") from None

    def _current(self) -> str:
        if self.generation is None:
            raise Away(f"Redis at {self.line.name}: what it holds is not known to be whole")
        return self.generation

    def _same(self, answer: list[Any]) -> list[Any]:
        if answer[0] == OTHER_GENERATION:
            self._lost()
            raise Away(f"Redis at {self.line.name}: it has lost what it held")
        return answer

    async def _greet(self) -> None:
        info = await self.line.call("INFO", "server")
        fields = dict(line.split(":", 1) for line in info.decode().splitlines() if ":" in line)
        self.run_id = fields["run_id"]
        for source in self._sources.values():
            await self.line.call("SCRIPT", "LOAD", source)
        await self.line.call("EVALSHA", self._hashes["check"], 1, self.generation_key, self.run_id)

    def _lost(self) -> None:
        self.generation = None
        self._on_lost()
