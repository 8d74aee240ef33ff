"""The rate-limit headers of an answer, as OpenAI writes them."""

from __future__ import annotations

from math import ceil

from spiritsafe.serve._limits._model import RATE, Bucket, Denied, Granted
from spiritsafe.serve._limits._rate import PERIOD_MS
from spiritsafe.serve._limits._refusal import duration
from spiritsafe.serve._limits._windows import window_end

__all__ = ["rate_headers"]

Headers = list[tuple[bytes, bytes]]
_NAMES = tuple(
    (b"x-ratelimit-limit-" + what, b"x-ratelimit-remaining-" + what, b"x-ratelimit-reset-" + what)
    for what in (b"requests", b"tokens")
)


def rate_headers(outcome: Granted | Denied) -> Headers:
    """`x-ratelimit-{limit,remaining,reset}-{requests,tokens}` of the tightest enforced limit of each, after this
    request; and for a refusal `retry-after` (whole seconds, rounded up) and `retry-after-ms`, or `x-should-retry:
    false` where waiting does not help. reset: until all of the limit is there again.
    """
    if isinstance(outcome, Granted):
        return _limits(outcome.ticket.buckets, outcome.levels, outcome.at, granted=True)
    headers = _limits(outcome.buckets, outcome.levels, outcome.at, granted=False) if outcome.levels else []
    if outcome.retry_after_s is None:
        headers.append((b"x-should-retry", b"false"))
    else:
        headers.append((b"retry-after", b"%d" % ceil(outcome.retry_after_s)))
        headers.append((b"retry-after-ms", b"%d" % ceil(round(outcome.retry_after_s * 1000, 3))))
    return headers


def _limits(buckets: tuple[Bucket, ...], levels: list[int] | tuple[int, ...], at: float, *, granted: bool) -> Headers:
    tightest: list[tuple[int, int, Bucket] | None] = [None, None]
    for bucket, before in zip(buckets, levels, strict=False):
        limit, amount = bucket
        if not limit.family or limit.shadow:
            continue
        taken = amount if granted else 0
        if limit.kind == RATE:
            level = before + taken * PERIOD_MS
            left = limit.size - -(-level // PERIOD_MS)
        else:
            level = before + taken
            left = limit.size - level
        known = tightest[limit.family - 1]
        if known is None or left < known[0]:
            tightest[limit.family - 1] = (left, level, bucket)
    headers: Headers = []
    for names, found in zip(_NAMES, tightest, strict=True):
        if found is not None:
            left, level, (limit, _) = found
            if limit.kind == RATE:
                reset = level / limit.size / 1000 if limit.size else 0.0
            else:
                reset = max(window_end(limit.window) - at, 0.0)
            headers += (
                (names[0], b"%d" % limit.size),
                (names[1], b"%d" % max(left, 0)),
                (names[2], duration(reset).encode()),
            )
    return headers
