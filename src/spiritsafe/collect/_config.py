"""What is asked of a teacher, and how far collection may go."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from spiritsafe.config import StrictModel

__all__ = ["CollectConfig"]


class CollectConfig(StrictModel):
    """Sampling, caps and policy of a collection.

    budget_usd: hard cap on dollars; needs `teacher.price` for a served model. None is no cap.
    max_requests: hard cap on requests sent, retries and refused ones included.
    max_tokens_total: hard cap on tokens, in and out together.   max_seconds: on wall time of one session.
    samples: replies per prompt.   max_tokens, temperature, top_p, stop: as the chat API means them.
    logprobs: top-k alternatives per position to ask for; 0 asks for none.
    seed: base of every request's seed; None sends no seed.
    concurrency: requests in flight; `auto` adapts to what the teacher bears.
    retries: more attempts after a failure that may pass (429, 5xx, timeouts, broken connections).
    retry_bad: more attempts, with another seed, after an empty or malformed answer.
    retry_truncated: the same after one that hit max_tokens.
    tolerate_missing: part of the prompts that may stay without an answer before collection counts as failed.
    reuse: copy answers to the same requests from sibling runs instead of paying again.
    """

    budget_usd: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    max_requests: int | None = Field(default=5000, ge=0)
    max_tokens_total: int | None = Field(default=None, ge=0)
    max_seconds: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    samples: int = Field(default=1, ge=1, le=1000)
    max_tokens: int = Field(default=128, ge=1)
    temperature: float = Field(default=1.0, ge=0, le=10, allow_inf_nan=False)
    top_p: float = Field(default=1.0, gt=0, le=1)
    stop: tuple[str, ...] = ()
    logprobs: int = Field(default=20, ge=0, le=1000)
    seed: int | None = Field(default=0, ge=0, lt=2**31)
    concurrency: Literal["auto"] | int = Field(default="auto", union_mode="left_to_right")
    retries: int = Field(default=6, ge=0)
    retry_bad: int = Field(default=1, ge=0)
    retry_truncated: int = Field(default=0, ge=0)
    tolerate_missing: float = Field(default=0.05, ge=0, le=1)
    reuse: bool = True
