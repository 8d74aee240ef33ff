from __future__ import annotations

from typing import ClassVar

from pydantic import Field, model_validator

from spiritsafe.curate._step import Check, Context, Row, Step
from spiritsafe.tasks import words


class Length(Step):
    """Drop completions outside of bounds, in words or in the teacher's tokens. Bounds are inclusive."""

    name: ClassVar[str] = "length"
    min_words: int = Field(default=0, ge=0)
    max_words: int | None = Field(default=None, ge=1)
    min_tokens: int = Field(default=0, ge=0)
    max_tokens: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _bounded(self) -> Length:
        if not (self.min_words or self.max_words or self.min_tokens or self.max_tokens):
            raise ValueError("give at least one of min_words, max_words, min_tokens, max_tokens")
        for unit, low, high in (
            ("words", self.min_words, self.max_words),
            ("tokens", self.min_tokens, self.max_tokens),
        ):
            if high is not None and low > high:
                raise ValueError(f"min_{unit} is above max_{unit}, so nothing would be left")
        return self

    def start(self, context: Context) -> Check:
        def check(row: Row) -> str | None:
            for unit, count, low, high in (
                ("words", len(words(row.completion)), self.min_words, self.max_words),
                ("tokens", row.tokens, self.min_tokens, self.max_tokens),
            ):
                if count < low:
                    return f"{count} {unit}, fewer than {low}"
                if high is not None and count > high:
                    return f"{count} {unit}, more than {high}"
            return None

        return check
