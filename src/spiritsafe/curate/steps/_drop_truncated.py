from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from spiritsafe.curate._step import Check, Context, Row, Step


class DropTruncated(Step):
    """Drop completions that were cut off: by the token limit, or by a content filter.

    keep_if_min_tokens: keep one that reached the token limit if it is at least this long.
    """

    name: ClassVar[str] = "drop_truncated"
    keep_if_min_tokens: int | None = Field(default=None, ge=1)

    def start(self, context: Context) -> Check:
        def check(row: Row) -> str | None:
            if row.finish_reason == "content_filter":
                return "cut off by a content filter"
            long_enough = self.keep_if_min_tokens is not None and row.tokens >= self.keep_if_min_tokens
            if row.finish_reason == "length" and not long_enough:
                return f"cut off at {row.tokens} tokens"
            return None

        return check
