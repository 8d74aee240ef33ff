"""A guard's report as its tests read it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from page_kit import Page
from sample_guard import NOW, fill, open_guard
from spiritsafe.ledger import LedgerRow
from spiritsafe.report import GuardReport, render_guard
from spiritsafe.serve._config import GuardConfig

SECTIONS = [
    "days", "models", "accounts", "statuses", "latency", "allowances", "policy", "ladder", "terms", "suspended",
    "checked", "limits",
]  # fmt: skip


async def report(config: GuardConfig, folder: Path, **options: Any) -> tuple[Page, GuardReport]:
    """The page in `folder`, at NOW."""
    written = await render_guard(config, folder / "guard-report.html", now=NOW, **options)
    return Page(written.path), written


async def filled(config: GuardConfig) -> tuple[dict[str, str], list[LedgerRow]]:
    """A busy month in the config's database: account ids by name, and the rows."""
    async with open_guard(config) as guard:
        return await fill(guard), guard.rows
