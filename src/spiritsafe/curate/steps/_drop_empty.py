from __future__ import annotations

from typing import ClassVar

from spiritsafe.curate._step import Check, Context, Row, Step


class DropEmpty(Step):
    """Drop completions without a visible character, and failed ones."""

    name: ClassVar[str] = "drop_empty"

    def start(self, context: Context) -> Check:
        return _check


def _check(row: Row) -> str | None:
    if not row.completion.strip():
        return "empty"
    return "failed" if row.finish_reason == "error" else None
