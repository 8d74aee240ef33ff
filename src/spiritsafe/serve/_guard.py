"""The parts of a running guard, opened in the order they need each other and closed in the reverse."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from contextlib import AsyncExitStack
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, Self

from starlette.types import ASGIApp

from spiritsafe.keys import KeySet, load_keys, read_passphrase
from spiritsafe.ledger import Journal, Ledger
from spiritsafe.serve._access import access
from spiritsafe.serve._accounts import Accounts
from spiritsafe.serve._background import Background
from spiritsafe.serve._canaries import Canaries
from spiritsafe.serve._config import GuardConfig, WatermarkConfig
from spiritsafe.serve._ladder import Ladder
from spiritsafe.serve._limits import Limiter, open_limiter, price_times
from spiritsafe.serve._logs import Logs
from spiritsafe.serve._meter import Meter
from spiritsafe.serve._metrics import Metrics
from spiritsafe.serve._peer import Peers
from spiritsafe.serve._policy import Applied, apply_output, output_rules
from spiritsafe.serve._recovery import settle_lost, write_lost
from spiritsafe.serve._second_replies import SecondReplies
from spiritsafe.serve._secrets import GuardSecrets
from spiritsafe.serve._sketch import Sketch, sketch_of
from spiritsafe.serve._telling import Telling
from spiritsafe.serve._traces import Traces
from spiritsafe.serve._twins import Twins
from spiritsafe.serve._types import Identity
from spiritsafe.serve._upstreams import Upstreams
from spiritsafe.serve._usage import usage_response
from spiritsafe.serve._webhooks import Webhooks
from spiritsafe.spend import Price
from spiritsafe.state import Database
from spiritsafe.wire import Ask

__all__ = ["METRICS_FOLDER", "Guard"]

METRICS_FOLDER: Final = "SPIRITSAFE_METRICS_FOLDER"
_REFRESH_S = 0.5
_HOUR_S = 3600.0
_LIST_PRICE = Decimal(1)


class Guard:
    """Everything a request needs, as attributes. Made by `open`, closed by `aclose` or `async with`."""

    config: GuardConfig
    secrets: GuardSecrets
    db: Database
    ledger: Ledger
    journal: Journal
    accounts: Accounts
    limiter: Limiter
    meter: Meter
    upstreams: Upstreams
    metrics: Metrics
    tell: Telling
    second_replies: SecondReplies
    traces: Traces | None
    logs: Logs
    peers: Peers
    twins: Twins
    canaries: Canaries
    ladder: Ladder
    webhooks: Webhooks
    keys: KeySet | None

    def __init__(self, config: GuardConfig) -> None:
        self.config = config
        self.draining = False
        self.settles_at_once = config.state.limits == "memory"
        self._stack = AsyncExitStack()
        self._background = Background()
        self._price_facts: dict[int, tuple[Price, dict[str, Any]]] = {}

    @classmethod
    async def open(cls, config: GuardConfig, *, worker: int = 0) -> Self:
        """Open every part; account for requests that a process before this one left behind.

        Raises:
            BadInput: a part cannot be used as configured.
            Unavailable: the database is away.
        """
        guard = cls(config)
        try:
            await guard._open(worker)
        except BaseException:
            await guard._stack.aclose()
            raise
        return guard

    async def _open(self, worker: int) -> None:
        config, stack = self.config, self._stack
        name = f"{socket.gethostname()}-{worker}"
        self.secrets = GuardSecrets.load(config.state.secrets)
        self._sketch_key = self.secrets.derive("sketches")
        self.keys = None
        if config.watermark is not None:
            self._keys_written = config.watermark.keys.stat().st_mtime_ns if config.watermark.keys.exists() else 0
            self.keys = _watermark_keys(config.watermark)
        self.meter, self.peers = Meter(config), Peers(config.trusted_proxies, config.asn_database)
        stack.callback(self.peers.close)
        self.upstreams = Upstreams(config)
        stack.push_async_callback(self.upstreams.aclose)
        self.logs = Logs(config.logs, hide=_upstream_keys(config))
        stack.callback(self.logs.close)
        stack.enter_context(self.logs.attached())
        self.traces = Traces.open(config)
        if self.traces is not None:
            stack.push_async_callback(asyncio.to_thread, self.traces.close)
        self.db = await stack.enter_async_context(await Database.open(config.state.database))
        self.journal = Journal.open(config.state.journal_folder, name)
        stack.callback(self.journal.close)
        self.ledger = await Ledger.open(
            self.db,
            signer=self.secrets.signer,
            commit_ms=config.ledger.commit_ms,
            checkpoint_every_s=config.ledger.checkpoint_every_s,
            retention_days=config.ledger.retention_days,
        )
        stack.push_async_callback(self.ledger.aclose)
        self.ledger.on_commit = self.journal.forget
        self.accounts = await Accounts.open(self.db, self.secrets, config, self.ledger, keys=self.keys)
        lost = await write_lost(config.state.journal_folder, self.ledger)
        self.limiter = await open_limiter(
            config,
            worker=name,
            db=self.db,
            flush=self.ledger.flush,
            undone=lambda request_id: self.journal.forget([request_id]),
        )
        stack.push_async_callback(self.limiter.aclose)
        self.second_replies = SecondReplies(config, self.db)
        stack.push_async_callback(self.second_replies.aclose)
        self._lost = await settle_lost(lost, self.limiter, self.second_replies)
        if lost:
            self.logs.event("recovered", requests=len(lost))
        self.webhooks, self.twins = Webhooks(self.db, config), Twins(self.db, config)
        self.canaries = await Canaries.open(self.db, config, self.ledger)
        self.ladder = Ladder(self.db, config, self.accounts, self.ledger)
        self.metrics = Metrics(
            config.models,
            [upstream.name for upstream in config.upstreams],
            folder=_metrics_folder(),
            worker=str(worker),
        )
        self.metrics.watch(
            ledger=self.ledger,
            limiter=self.limiter,
            upstreams=self.upstreams.health,
            journal=config.state.journal_folder,
            outbox=self.webhooks.waiting if config.webhooks else None,
            dropped_lines=lambda: self.logs.dropped,
        )
        self.tell = Telling(self.metrics, self.logs, self.webhooks, self._background.start)
        self.upstreams.start()
        self._background.every(_REFRESH_S, self._refresh)
        self._background.every(_HOUR_S, self._expire)
        self._background.start(self.webhooks.run())
        self._background.start(self.metrics.run())
        stack.push_async_callback(self._background.stop)

    async def aclose(self) -> None:
        """Write what is pending and close every part."""
        await self._stack.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def drain(self) -> None:
        """Stop being ready, so that a load balancer sends no more; requests under way go on."""
        self.draining = True
        self.logs.event("draining", notice_s=self.config.drain.notice_s, replies_s=self.config.drain.replies_s)

    def admin_app(self) -> ASGIApp:
        """The application of the admin port."""
        from spiritsafe.serve._admin import AdminParts, admin_app

        parts = AdminParts(
            self.accounts, self.ledger, self.db, self.config, self.secrets, ladder=self.ladder, status=self._status
        )
        return admin_app(parts)

    def not_ready(self) -> list[str]:
        """Why requests should go elsewhere; empty if this process is ready."""
        checks = (
            (not self.draining, "it is shutting down"),
            (self.upstreams.ready, "a model has no upstream that answers"),
            (self.ledger.healthy, "the ledger cannot be written"),
            (self.journal.healthy, "the journal cannot be written"),
            (self.limiter.healthy, "the limits' state is away"),
        )
        return [why for fine, why in checks if not fine]

    # What a request asks of the guard as a whole

    def check_access(self, identity: Identity) -> None:
        """Raise `ApiError` unless this account may ask at all."""
        access(identity, time.time(), self.config)

    def apply(self, ask: Ask, identity: Identity) -> Applied:
        """The request as this account may send it. Raises `ApiError` where the output policy refuses it."""
        marked = self.config.tiers[identity.tier].watermark
        return apply_output(ask, output_rules(self.config, identity), self.config, marked=marked)

    def sketch(self, ask: Ask) -> Sketch:
        """What the ledger keeps in place of the prompt."""
        return sketch_of(ask, key=self._sketch_key, keep_prompt=self.config.ledger.store_prompts)

    def price_facts(self, price: Price) -> dict[str, Any]:
        """A price as JSON values, for the journal; made once."""
        known = self._price_facts.get(id(price))
        if known is None or known[0] is not price:
            facts = price.model_dump(mode="json", include=set(Price.model_fields))
            known = self._price_facts[id(price)] = (price, facts)
        return known[1]

    async def price_times(self, identity: Identity) -> Decimal:
        """How many times the list price this account's next request costs."""
        tier = self.config.tiers[identity.tier]
        if not tier.schedule and identity.account_step is None and identity.cluster_step is None:
            return _LIST_PRICE
        spent = await self.limiter.month_usd(identity) if tier.schedule else Decimal(0)
        return price_times(self.config, identity, spent)

    async def watermark_key_id(self, identity: Identity) -> str | None:
        """The id of the key that marks this account's replies; binds its slot first if need be. None: unmarked tier.

        Raises:
            Refused: all slots are taken.  Unavailable: the binding cannot be written.
        """
        if self.keys is None or not self.config.tiers[identity.tier].watermark:
            return None
        slot = identity.slot if identity.slot is not None else await self.accounts.bind_slot(identity.account)
        return str(self.keys.key_id(self.keys.current, slot))

    async def usage(self, identity: Identity) -> dict[str, Any]:
        """What an account used, for itself."""
        return await usage_response(identity, self.db, self.config, time.time())

    # Behind the scenes

    def _status(self) -> dict[str, Any]:
        return {
            "not_ready": self.not_ready(),
            "upstreams": self.upstreams.health(),
            "refusals": self.metrics.refusals(),
            "ledger": {"backlog": self.ledger.backlog, "healthy": self.ledger.healthy},
            "limits": {"healthy": self.limiter.healthy},
        }

    async def _refresh(self) -> None:
        await self.accounts.refresh()
        await self.canaries.refresh()
        if self._lost:
            self._lost = await settle_lost(self._lost, self.limiter, self.second_replies)
        await self.second_replies.write_owed()
        marks = self.config.watermark
        if marks is not None and (written := marks.keys.stat().st_mtime_ns) != self._keys_written:  # rotated
            self.keys, self._keys_written = await asyncio.to_thread(_watermark_keys, marks), written

    async def _expire(self) -> None:
        await self.twins.expire(time.time())


def _watermark_keys(marks: WatermarkConfig) -> KeySet:
    return load_keys(marks.keys, read_passphrase(marks.passphrase_env, marks.passphrase_file))


def _upstream_keys(config: GuardConfig) -> list[str]:
    return [os.environ.get(upstream.api_key_env, "") for upstream in config.upstreams if upstream.api_key_env]


def _metrics_folder() -> Path | None:
    """Where workers leave their counts; the supervisor names it."""
    folder = os.environ.get(METRICS_FOLDER)
    return None if folder is None else Path(folder)
