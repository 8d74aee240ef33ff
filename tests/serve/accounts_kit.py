"""What tests of accounts share: a small config, secrets, a clock that is set, a ledger that remembers."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spiritsafe.config import parse_config
from spiritsafe.serve._config import GuardConfig
from spiritsafe.serve._secrets import GuardSecrets

NOW = 1_795_000_000.0  # 2026-11-18


def config(**more: Any) -> GuardConfig:
    """A guard with two tiers and terms."""
    upstream = {
        "name": "local",
        "base_url": "http://127.0.0.1:9/v1",
        "models": ["small", "large"],
        "price": {"input_per_mtok": "0.15", "output_per_mtok": "0.60"},
    }
    given = {
        "upstreams": [upstream],
        "tiers": {"default": {"requests_per_min": 600, "usd_per_day": 5, "usd_lifetime": 100}, "gold": {}},
        "terms": {"version": "2026-11", "url": "https://example.org/terms"},
    }
    return parse_config(given | more, GuardConfig, where="test")


def secrets(folder: Path) -> GuardSecrets:
    return GuardSecrets.load(folder / "guard.secrets")


@dataclass
class Clock:
    """A clock that stands still until a test moves it."""

    now: float = NOW

    def __call__(self) -> float:
        return self.now


@dataclass
class Events:
    """A ledger's place for events: keeps them, and may be told to write nothing."""

    entries: list[Any] = field(default_factory=list)
    stuck: bool = False

    def append(self, entry: Any) -> asyncio.Future[int]:
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        if not self.stuck:
            self.entries.append(entry)
            future.set_result(len(self.entries))
        return future

    def names(self) -> list[str]:
        return [entry.name for entry in self.entries]
