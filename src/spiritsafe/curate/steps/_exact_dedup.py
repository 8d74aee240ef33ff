from __future__ import annotations

import hashlib
from typing import ClassVar, Literal

from spiritsafe.curate._step import Check, Context, Row, Step
from spiritsafe.tasks import collapse


class ExactDedup(Step):
    """Keep the first of rows whose prompt and completion are equal up to white space and Unicode form."""

    name: ClassVar[str] = "exact_dedup"
    on: Literal["both", "prompt", "completion"] = "both"

    def start(self, context: Context) -> Check:
        first: dict[bytes, str] = {}

        def check(row: Row) -> str | None:
            parts = {"prompt": row.conversation, "completion": row.completion}
            chosen = parts.values() if self.on == "both" else [parts[self.on]]
            text = "\0".join(collapse(part) for part in chosen)
            key = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
            if key in first:
                return f"equal to {first[key]}"
            first[key] = row.id
            return None

        return check
