"""What happened, told to those who watch: metrics, logs, webhooks. Never prompts, never secrets."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any

from spiritsafe.ledger import LedgerRow
from spiritsafe.serve._http import Refusal
from spiritsafe.serve._limits import Crossing
from spiritsafe.serve._logs import Logs
from spiritsafe.serve._metrics import Metrics
from spiritsafe.serve._types import Identity
from spiritsafe.serve._upstreams import UpstreamState
from spiritsafe.serve._webhooks import Webhooks
from spiritsafe.wire import ApiError, Ask

if TYPE_CHECKING:
    from spiritsafe.serve._call import Call

__all__ = ["Telling"]


class Telling:
    """start: runs work beside the requests."""

    def __init__(
        self,
        metrics: Metrics,
        logs: Logs,
        webhooks: Webhooks,
        start: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        self._metrics, self._logs, self._webhooks, self._start = metrics, logs, webhooks, start

    def refused(self, kind: str, ask: Ask | None, error: ApiError, started: float, identity: Identity | None) -> None:
        """A request was refused before it went upstream."""
        seconds = time.perf_counter() - started
        model = ask.model if ask is not None else ""
        rule = error.rule if isinstance(error, Refusal) else error.code or str(error.status)
        self._metrics.request(kind, model, error.status, seconds, seconds, 0, 0, 0)
        self._metrics.refused(rule, shadow=False)
        self._logs.request(
            request_id="",
            status=error.status,
            ms=round(1000 * seconds, 2),
            account=identity.account if identity else None,
            key_id=identity.key_id if identity else None,
            kind=kind,
            model=None if error.code == "model_not_found" else model or None,  # that may be anything a client typed
            rule=rule,
        )

    def upstream_failed(self, upstream: UpstreamState, what: str) -> None:
        """An upstream brought no reply. what: a status, or how it failed."""
        self._metrics.upstream(upstream.config.name, 0.0, int(what) if what.isdigit() else 0)
        self._logs.event("upstream_failed", "warning", upstream=upstream.config.name, what=what)

    def unmarked(self, upstream: UpstreamState) -> None:
        """An upstream did not mark a reply that must be marked."""
        self._logs.event(
            "unmarked_reply",
            "error",
            upstream=upstream.config.name,
            do="start that server with this guard's key file (teachers run --watermark), or set watermark: vllm",
        )

    def finished(self, call: Call, row: LedgerRow) -> None:
        """A request that had reserved is over and accounted for."""
        status, now = call.http_status, time.perf_counter()
        seconds = now - call.started
        waited = (call.answered or now) - (call.asked or now)
        fine = row.status in ("ok", "client_gone")  # otherwise `upstream_failed` has counted it
        if fine and call.asked is not None and (call.first_byte or call.answered):
            first_byte = call.first_byte - call.asked if call.first_byte else 0.0  # whole replies are read as one
            self._metrics.upstream(call.upstream, first_byte, 200, waited)
        nano = -(-row.pico // 1000)
        self._metrics.request(
            call.ask.kind, row.model, status, seconds, max(seconds - waited, 0.0), row.tokens_in, row.tokens_out, nano
        )
        self._logs.request(
            request_id=row.request_id,
            status=status,
            ms=round(1000 * seconds, 2),
            account=row.account,
            key_id=row.key_id,
            kind=call.ask.kind,
            model=row.model,
            upstream=call.upstream,
            tokens_in=row.tokens_in,
            tokens_out=row.tokens_out,
            stream=row.stream,
            outcome=row.status,
        )

    def near_limit(self, crossed: Sequence[Crossing]) -> None:
        """Allowances are nearly used up: those who asked to be told are."""
        for crossing in crossed:
            used, size = (crossing.used / 1e9, crossing.size / 1e9) if crossing.rule.startswith("usd") else crossing[4:]
            data = {"rule": crossing.rule, "window": crossing.window, "used": used, "limit": size}
            subject = f"{crossing.subject}:{crossing.name}"
            self._start(self._webhooks.send("budget_80", subject, data, once=f"{crossing.rule} {crossing.window}"))
