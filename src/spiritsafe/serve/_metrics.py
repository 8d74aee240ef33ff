"""What Prometheus is told. No label is ever an account, a key or a text of a customer's choice."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from spiritsafe import __version__
from spiritsafe.serve._metric_families import FAMILIES
from spiritsafe.serve._tallies import Distribution, Snapshot, WorkerFiles, add_counts, families_of
from spiritsafe.state import Unavailable

__all__ = ["Metrics"]

_KINDS = frozenset({"chat", "completions", "responses", "embeddings"})
_OTHER = "other"
_MOST_RULES = 64
_EVERY_S = 1.0
_OUTBOX_EVERY_S = 15.0

_EDGES = {family.name: family.edges for family in FAMILIES}


class HasBacklog(Protocol):
    @property
    def backlog(self) -> int: ...
    @property
    def healthy(self) -> bool: ...
    @property
    def last_commit_s(self) -> float: ...


class HasHealth(Protocol):
    @property
    def healthy(self) -> bool: ...


class _Tally:
    __slots__ = ("latency", "nano", "requests", "tokens_in", "tokens_out")

    def __init__(self, latency: Distribution) -> None:
        self.requests = self.tokens_in = self.tokens_out = self.nano = 0
        self.latency = latency


class Metrics:
    """The counts of one worker. Not thread-safe: one event loop calls it."""

    def __init__(
        self, models: Iterable[str], upstreams: Iterable[str] = (), *, folder: Path | None = None, worker: str = "0"
    ) -> None:
        """models, upstreams: the names that may become labels; others count as "other".

        folder: with several workers, a fresh one that they share (see `WorkerFiles`), and `worker` this one's name.
        """
        self._models, self._upstreams = frozenset(models), frozenset(upstreams)
        self._files = None if folder is None else WorkerFiles(folder, worker)
        self._worker = worker
        self._before = self._files.left() if self._files else {}
        self._requests: dict[tuple[str, str, int], _Tally] = {}
        self._latencies: dict[str, Distribution] = {}
        self._added = Distribution(_EDGES["spiritsafe_added_seconds"])
        self._first_bytes: dict[str, Distribution] = {}
        self._upstream_seconds: dict[str, Distribution] = {}
        self._upstream_requests: dict[tuple[str, int], int] = {}
        self._refusals: dict[tuple[str, bool], int] = {}
        self._twins: dict[str, int] = {}
        self._chunks = self._in_flight = self._canaries = 0
        self._lag = 0.0
        self._outbox: Callable[[], Awaitable[int]] | None = None
        self._waiting = 0
        self._gauges: dict[str, Callable[[], float | Mapping[str, float]]] = {}

    def request(
        self,
        kind: str,
        model: str,
        status: int,
        seconds: float,
        added_seconds: float,
        tokens_in: int,
        tokens_out: int,
        nano: int,
    ) -> None:
        """A request is over. nano: what it cost the customer, in nano-dollars."""
        tally = self._requests.get((kind, model, status))
        if tally is None:
            tally = self._new_tally(kind, model, status)
        tally.requests += 1
        tally.tokens_in += tokens_in
        tally.tokens_out += tokens_out
        tally.nano += nano
        tally.latency.observe(seconds)
        self._added.observe(added_seconds)

    def refused(self, rule: str, shadow: bool) -> None:
        """A rule refused a request, or would have (shadow)."""
        key = (rule, shadow)
        if key not in self._refusals and len(self._refusals) >= _MOST_RULES:
            key = (_OTHER, shadow)
        self._refusals[key] = self._refusals.get(key, 0) + 1

    def refusals(self) -> dict[str, int]:
        """How often each rule refused a request in this process."""
        return {rule: count for (rule, shadow), count in self._refusals.items() if not shadow}

    def chunk(self, n: int = 1) -> None:
        """So many events of streams were sent."""
        self._chunks += n

    def in_flight(self, change: int) -> None:
        self._in_flight += change

    def upstream(self, name: str, seconds_to_first_byte: float, status: int, seconds: float | None = None) -> None:
        """An upstream answered, or did not (status 0). seconds_to_first_byte: 0 if there was none.  seconds: until its
        last byte, if it came."""
        if name not in self._upstreams:
            name = _OTHER
        key = (name, status if status == 0 or 100 <= status <= 599 else 0)
        self._upstream_requests[key] = self._upstream_requests.get(key, 0) + 1
        if seconds_to_first_byte:
            first_bytes = self._distribution(self._first_bytes, name, "spiritsafe_upstream_first_byte_seconds")
            first_bytes.observe(seconds_to_first_byte)
        if seconds is not None:
            self._distribution(self._upstream_seconds, name, "spiritsafe_upstream_seconds").observe(seconds)

    def canary(self) -> None:
        """A canary's prompt was answered with its published variant."""
        self._canaries += 1

    def twin(self, outcome: str) -> None:
        """A request was answered twice. outcome: "kept", "identical" or "failed"."""
        outcome = outcome if outcome in ("kept", "identical", "failed") else _OTHER
        self._twins[outcome] = self._twins.get(outcome, 0) + 1

    def watch(
        self,
        *,
        ledger: HasBacklog | None = None,
        limiter: HasHealth | None = None,
        upstreams: Callable[[], Mapping[str, bool]] | None = None,
        journal: Path | None = None,
        outbox: Callable[[], Awaitable[int]] | None = None,
        dropped_lines: Callable[[], int] | None = None,
    ) -> None:
        """What to look at whenever metrics are read. journal: the folder of the crash journals.

        outbox: counts the webhook messages that wait; asked by `run` now and then, since it asks a database.
        """
        if ledger is not None:
            self._gauges["spiritsafe_ledger_backlog_rows"] = lambda: ledger.backlog
            self._gauges["spiritsafe_ledger_healthy"] = lambda: ledger.healthy
            self._gauges["spiritsafe_ledger_commit_seconds"] = lambda: ledger.last_commit_s
        if limiter is not None:
            self._gauges["spiritsafe_limiter_up"] = lambda: limiter.healthy
        if upstreams is not None:
            self._gauges["spiritsafe_upstream_up"] = upstreams
        if journal is not None:
            self._gauges["spiritsafe_journal_bytes"] = lambda: _size_of(journal)
        if outbox is not None:
            self._outbox = outbox
            self._gauges["spiritsafe_webhook_outbox"] = lambda: self._waiting
        if dropped_lines is not None:
            self._gauges["spiritsafe_log_lines_dropped"] = dropped_lines

    def render(self) -> tuple[bytes, str]:
        """The page for Prometheus and its content type; with several workers, of all of them."""
        from prometheus_client import CollectorRegistry, generate_latest
        from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

        mine = self._snapshot()
        workers = {self._worker: (True, mine)}
        if self._files is not None:
            self._files.write(mine)
            workers |= self._files.others()
        registry = CollectorRegistry()
        registry.register(_Page(families_of(FAMILIES, workers)))
        return generate_latest(registry), CONTENT_TYPE_PLAIN_0_0_4

    async def run(self) -> None:
        """Until cancelled: measure the event loop's lag, and let the other workers know this one's counts."""
        ask_again = time.monotonic()
        try:
            while True:
                due = time.monotonic() + _EVERY_S
                await asyncio.sleep(_EVERY_S)
                now = time.monotonic()
                self._lag = max(now - due, 0.0)
                if self._outbox is not None and now >= ask_again:
                    ask_again = now + _OUTBOX_EVERY_S
                    with contextlib.suppress(Unavailable):  # the last known count stands
                        self._waiting = await self._outbox()
                if self._files is not None:
                    self._files.write(self._snapshot())
        finally:
            if self._files is not None:
                self._files.write(self._snapshot())

    def _new_tally(self, kind: str, model: str, status: int) -> _Tally:
        # What is unknown shares one tally, and is looked up here each time: only known names are remembered.
        known = (kind if kind in _KINDS else _OTHER, model if model in self._models else _OTHER, _status(status))
        tally = self._requests.get(known)
        if tally is None:
            latency = self._distribution(self._latencies, known[0], "spiritsafe_request_seconds")
            tally = self._requests[known] = _Tally(latency)
        return tally

    def _distribution(self, among: dict[str, Distribution], label: str, family: str) -> Distribution:
        found = among.get(label)
        if found is None:
            found = among[label] = Distribution(_EDGES[family])
        return found

    def _snapshot(self) -> Snapshot:
        counts = resource.getrusage(resource.RUSAGE_SELF)
        snapshot: Snapshot = {
            "spiritsafe_requests": {(k, m, str(s)): t.requests for (k, m, s), t in self._requests.items()},
            "spiritsafe_input_tokens": self._by_model(lambda tally: tally.tokens_in),
            "spiritsafe_output_tokens": self._by_model(lambda tally: tally.tokens_out),
            "spiritsafe_dollars": {k: v / 10**9 for k, v in self._by_model(lambda tally: tally.nano).items()},
            "spiritsafe_request_seconds": {(kind,): d.value() for kind, d in self._latencies.items()},
            "spiritsafe_added_seconds": {(): self._added.value()},
            "spiritsafe_refusals": {(r, "true" if s else "false"): n for (r, s), n in self._refusals.items()},
            "spiritsafe_stream_chunks": {(): self._chunks},
            "spiritsafe_in_flight": {(): self._in_flight},
            "spiritsafe_upstream_requests": {(u, str(s)): n for (u, s), n in self._upstream_requests.items()},
            "spiritsafe_upstream_first_byte_seconds": {(u,): d.value() for u, d in self._first_bytes.items()},
            "spiritsafe_upstream_seconds": {(u,): d.value() for u, d in self._upstream_seconds.items()},
            "spiritsafe_canaries_served": {(): self._canaries},
            "spiritsafe_twins": {(outcome,): n for outcome, n in self._twins.items()},
            "spiritsafe_worker_cpu_seconds": {(): counts.ru_utime + counts.ru_stime},
            "spiritsafe_worker_resident_bytes": {(): _resident()},
            "spiritsafe_worker_loop_lag_seconds": {(): self._lag},
            "spiritsafe_build_info": {(__version__,): 1},
        }
        for name, read in self._gauges.items():
            value = read()
            by_label = value if isinstance(value, Mapping) else None
            snapshot[name] = {(): float(value)} if by_label is None else {(k,): float(v) for k, v in by_label.items()}  # type: ignore[arg-type]
        add_counts(snapshot, self._before, FAMILIES)
        return snapshot

    def _by_model(self, take: Callable[[_Tally], int]) -> dict[tuple[str, ...], Any]:
        sums: dict[tuple[str, ...], int] = {}
        for (kind, model, _), tally in self._requests.items():
            sums[kind, model] = sums.get((kind, model), 0) + take(tally)
        return sums


class _Page:
    """What a registry asks for its families."""

    def __init__(self, families: list[Any]) -> None:
        self._families = families

    def collect(self) -> list[Any]:
        return self._families


def _status(status: int) -> int:
    return status if 100 <= status <= 599 else 0


def _size_of(folder: Path) -> int:
    try:
        return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    except OSError:
        return 0


def _resident() -> int:
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except (OSError, IndexError, ValueError):
        return 0
