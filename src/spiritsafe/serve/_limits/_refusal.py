"""What a refusal says: which limit, its size, what is left, and when this same request would fit."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from math import floor

from spiritsafe.serve._limits._model import ALLOWANCE, GAUGE, RATE, Bucket, Denied, Limit
from spiritsafe.serve._limits._rate import PERIOD_MS
from spiritsafe.serve._limits._windows import ALL, DAY_S, window_end

__all__ = ["away", "duration", "fits", "refusal"]

SLOT_WAIT_S = 1.0  # nobody knows when a running request ends
_AWAY_WAIT_S = 1.0
_LONGEST_NAME = 80
_MONEY = "insufficient_quota"
_NANO = 10**9


def fits(bucket: Bucket, level: int) -> bool:
    """True if a request still fits. level: how full; units × ms for a rate, else units. What takes nothing fits."""
    limit, amount = bucket
    if limit.kind == RATE:
        return not amount or level + amount * PERIOD_MS <= limit.size * PERIOD_MS
    return not amount or level + amount <= limit.size


def refusal(buckets: tuple[Bucket, ...], levels: Sequence[int], windows: Sequence[str], at: float) -> Denied:
    """The answer to a request that does not fit, by the limit that takes longest to make room.

    levels: for each bucket, how full.  windows: for each, the window that counts ("" for other kinds).  at: Unix s.
    """
    wait, bucket, level = max(
        (
            (_wait(bucket, level, window, at), bucket, level)
            for bucket, level, window in zip(buckets, levels, windows, strict=True)
            if not bucket.limit.shadow and not fits(bucket, level)
        ),
        key=lambda candidate: candidate[0],
    )
    limit = bucket.limit
    never = wait == float("inf")
    too_large = never and bucket.amount > limit.size
    return Denied(
        rule=limit.rule,
        subject=limit.subject,
        name=limit.name,
        status=402 if limit.rule.startswith("usd") else 429,
        retry_after_s=None if never else wait,
        message=_message(bucket, level, None if never else wait, at, too_large),
        code=_MONEY if limit.rule.startswith("usd") else "request_too_large" if too_large else "rate_limit_exceeded",
        buckets=buckets,
        levels=tuple(levels),
        at=at,
    )


def away(limit: Limit, buckets: tuple[Bucket, ...], at: float, *, undecided: bool = False) -> Denied:
    """The answer while the state of `limit` is away and it must hold. undecided: see `Denied`."""
    return Denied(
        rule=limit.rule,
        subject=limit.subject,
        name=limit.name,
        status=503,
        retry_after_s=_AWAY_WAIT_S,
        message="limits cannot be checked right now, and nothing is served unchecked; try again shortly",
        code="limits_unavailable",
        buckets=buckets,
        at=at,
        undecided=undecided,
    )


def duration(seconds: float) -> str:
    """As OpenAI's headers write it: "20ms", "8.64s", "6m0s", "1h0m0s"; rounded up to the millisecond."""
    ms = -floor(-round(seconds * 1000, 3))
    if ms < 1000:
        return f"{ms}ms"
    minutes, ms = divmod(ms, 60_000)
    rest = f"{ms / 1000:g}s"
    if not minutes:
        return rest
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{rest}" if hours else f"{minutes}m{rest}"


def _wait(bucket: Bucket, level: int, window: str, at: float) -> float:
    """Seconds until it fits if nothing else comes; infinite if that never happens."""
    limit, amount = bucket
    if limit.kind == RATE:
        if amount > limit.size:
            return float("inf")
        over = level + (amount - limit.size) * PERIOD_MS
        return -(-over // limit.size) / 1000
    if limit.kind == GAUGE:
        return SLOT_WAIT_S if limit.size else float("inf")
    if window == ALL and limit.daily:
        days = -(-(level + amount - limit.size) // limit.daily)
        return (at // DAY_S + days) * DAY_S - at
    return float("inf") if amount > limit.size else max(window_end(window) - at, 0.001)


def _message(bucket: Bucket, level: int, wait: float | None, at: float, too_large: bool) -> str:
    limit, amount = bucket
    who, size, wanted = _who(limit), _show(limit, limit.size), _show(limit, amount)
    if limit.size == 0:
        return f"{limit.rule} of {who} is 0: nothing may be used; ask the operator to raise it"
    if limit.kind == GAUGE:
        return (
            f"{who} has {level} requests under way, and concurrency allows {limit.size}; try again when one has ended"
        )
    if too_large:
        smaller = "send less in one request" if limit.measure in (0, 2) else "lower max_tokens or shorten the prompt"
        return (
            f"this request may take {wanted}, more than {limit.rule} of {who} allows at all ({size});"
            f" it can never fit: {smaller}"
        )
    left = limit.size - (level // PERIOD_MS + (level % PERIOD_MS > 0) if limit.kind == RATE else level)
    if wait is None:
        then = "it does not grow back; ask the operator to raise it"
    else:
        then = f"try again in {duration(wait)}" + (f" ({_clock(at + wait)})" if limit.kind == ALLOWANCE else "")
    return (
        f"{limit.rule} of {who} is {size}, with {_show(limit, max(left, 0))} left,"
        f" and this request may take {wanted}; {then}"
    )


def _who(limit: Limit) -> str:
    name = limit.name[:_LONGEST_NAME]
    said = {
        "key": "this key",
        "account": "this account",
        "cluster": "the accounts linked with this one",
    }
    return said.get(limit.subject) or f"{limit.subject} {name}"


def _show(limit: Limit, amount: int) -> str:
    if limit.measure == 4:
        whole, part = divmod(amount, _NANO)
        return f"${whole}" + (f".{part:09d}".rstrip("0") if part else "")
    return f"{amount} {'request' if limit.measure in (0, 5) else 'token'}{'' if amount == 1 else 's'}"


def _clock(when: float) -> str:
    return datetime.fromtimestamp(when, UTC).strftime("%Y-%m-%d %H:%M UTC")
