"""What a customer reads: refusals in OpenAI's shape, and the rate-limit headers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limits_kit import NOON, USD, Clock, bucket, guard_config, identity, tier_config
from spiritsafe.serve._limits import Bucket, Denied, Granted, MemoryLimiter, Ticket, buckets_for, rate_headers
from spiritsafe.serve._limits._refusal import away, duration, fits, refusal
from spiritsafe.serve._types import Demand, LadderState


class Asking:
    """A limiter of its own, and a clock."""

    def __init__(self, config: Any, **who: Any) -> None:
        self.clock = Clock()
        self.limiter = MemoryLimiter(clock=self.clock.monotonic_ns, wall=self.clock.wall)
        self.config, self.who, self.count = config, identity(**who), 0

    async def __call__(self, *, tokens: int = 0, nano: int = 0) -> Any:
        self.count += 1
        demand = Demand(tokens, 0, nano)
        buckets = buckets_for(self.config, self.who, "m", self.clock.now).demand(demand)
        return await self.limiter.reserve(buckets, str(self.count))


async def test_money_that_is_used_up_is_402_and_says_what_is_left_and_when() -> None:
    ask = Asking(tier_config(usd_per_day=5))
    await ask(nano=4 * USD + 980_000_000)
    denied = await ask(nano=30_000_000)
    assert (denied.status, denied.rule, denied.subject, denied.code) == (
        402,
        "usd_per_day",
        "account",
        "insufficient_quota",
    )
    assert denied.message == (
        "usd_per_day of this account is $5, with $0.02 left, and this request may take $0.03;"
        " try again in 12h0m0s (2026-11-25 00:00 UTC)"
    )
    assert denied.message in (Path(__file__).parents[2] / "docs/guard/limits.md").read_text()
    assert denied.retry_after_s == 43200
    error = denied.to_error()
    assert error.to_dict()["error"] | {"message": ""} == {
        "message": "", "type": "invalid_request_error", "param": None, "code": "insufficient_quota",
    }  # fmt: skip


async def test_a_rate_is_429_and_says_when_it_fits() -> None:
    ask = Asking(tier_config(tokens_per_min=600))
    await ask(tokens=590)
    denied = await ask(tokens=100)
    assert (denied.status, denied.code, denied.retry_after_s) == (429, "rate_limit_exceeded", 9.0)
    assert denied.message == (
        "tokens_per_min of this account is 600 tokens, with 10 tokens left,"
        " and this request may take 100 tokens; try again in 9s"
    )
    assert denied.to_error().type == "rate_limit_error"


async def test_a_request_larger_than_the_whole_limit_is_told_so_and_not_to_retry() -> None:
    ask = Asking(tier_config(tokens_per_min=600, usd_per_day=1))
    denied = await ask(tokens=601)
    assert (denied.status, denied.code, denied.retry_after_s) == (429, "request_too_large", None)
    assert "can never fit: lower max_tokens or shorten the prompt" in denied.message
    assert (b"x-should-retry", b"false") in rate_headers(denied)
    assert not any(name.startswith(b"retry-after") for name, _ in rate_headers(denied))
    dear = await ask(nano=2 * USD)
    assert (dear.status, dear.retry_after_s) == (402, None)
    assert "can never fit" in dear.message


async def test_other_refusals_without_end() -> None:
    lifetime = Asking(tier_config(usd_lifetime=1))
    await lifetime(nano=USD)
    denied = await lifetime(nano=1)
    assert (denied.status, denied.retry_after_s) == (402, None)
    assert "does not grow back; ask the operator" in denied.message
    for rule in ("requests_per_min", "concurrency", "requests_per_day"):
        nothing = await Asking(tier_config(**{rule: 0}))()
        assert (nothing.status, nothing.retry_after_s) == (429, None)
        assert nothing.message == f"{rule} of this account is 0: nothing may be used; ask the operator to raise it"


async def test_concurrency_says_how_many_run() -> None:
    ask = Asking(guard_config(limits={"models": {"m": {"concurrency": 2}}}))
    await ask()
    await ask()
    denied = await ask()
    assert (denied.status, denied.retry_after_s) == (429, 1.0)
    assert denied.message == "model m has 2 requests under way, and concurrency allows 2; try again when one has ended"


async def test_whose_limit_it_was() -> None:
    config = guard_config(
        organisations={"acme": {"requests_per_day": 3}},
        limits={"clusters": {"requests_per_day": 2}},
        ladder={"shadow": False, "cluster_cap": {"requests_per_day": 1}},
    )
    suspect = LadderState("cluster:c4", "cluster_cap", False, "", "", NOON)
    for who, message in (
        ({"org": "acme"}, "requests_per_day of organisation acme is 3 requests"),
        ({"cluster": "c4"}, "requests_per_day of the accounts linked with this one is 2 requests"),
        (
            {"cluster": "c4", "cluster_step": suspect},
            "requests_per_day of the accounts linked with this one is 1 request,",
        ),
    ):
        ask = Asking(config, **who)
        outcome = await ask()
        while isinstance(outcome, Granted):
            outcome = await ask()
        assert outcome.message.startswith(message)


async def test_of_several_the_one_that_takes_longest_is_named() -> None:
    ask = Asking(tier_config(requests_per_min=60, usd_per_day=1, usd_per_month=2))
    await ask(nano=USD)
    ask.clock.pass_(86400)
    await ask(nano=USD)
    denied = await ask(nano=1)
    assert denied.rule == "usd_per_month"
    assert denied.retry_after_s == 86400 * 5.5


def test_an_unavailable_state_is_503() -> None:
    one = bucket("usd_per_day", 1, 1, window="2026-11-24")
    denied = away(one.limit, (one,), NOON)
    assert (denied.status, denied.code, denied.to_error().type) == (503, "limits_unavailable", "server_error")
    assert rate_headers(denied) == [(b"retry-after", b"1"), (b"retry-after-ms", b"1000")]


def test_headers_are_those_of_the_tightest_enforced_limit() -> None:
    buckets = (
        bucket("requests_per_min", 1, 600),
        bucket("requests_per_day", 1, 1000, window="2026-11-24"),
        bucket("tokens_per_min", 500, 60_000),
        bucket("output_tokens_per_min", 400, 1000),
        bucket("input_tokens_per_min", 100, 200, shadow=True),
        bucket("usd_per_day", 5, 5, window="2026-11-24"),
    )
    levels = [0, 990, 0, 100 * 60_000, 0, 0]
    headers = dict(rate_headers(Granted(Ticket("a", buckets, ""), (), levels, NOON)))
    assert headers == {
        b"x-ratelimit-limit-requests": b"1000",
        b"x-ratelimit-remaining-requests": b"9",
        b"x-ratelimit-reset-requests": b"12h0m0s",
        b"x-ratelimit-limit-tokens": b"1000",
        b"x-ratelimit-remaining-tokens": b"500",
        b"x-ratelimit-reset-tokens": b"30s",
    }


def test_there_are_no_headers_without_such_limits() -> None:
    one = bucket("usd_per_day", 5, 5, window="2026-11-24")
    assert rate_headers(Granted(Ticket("a", (one,), ""), (), [0], NOON)) == []


@given(level=st.integers(0, 3000 * 60_000), amount=st.integers(1, 1000), size=st.integers(1, 1000))
def test_retry_after_is_rounded_up(level: int, amount: int, size: int) -> None:
    one = bucket("tokens_per_min", amount, size)
    if fits(one, level):
        return
    denied = refusal((one,), [level], [""], NOON)
    headers = dict(rate_headers(denied))
    if amount > size:
        assert denied.retry_after_s is None
        return
    assert denied.retry_after_s is not None
    ms = int(headers[b"retry-after-ms"])
    assert ms - 1 < denied.retry_after_s * 1000 - 1e-6 <= ms
    assert int(headers[b"retry-after"]) == math.ceil(ms / 1000)
    assert fits(one, level - ms * size)
    assert not fits(one, level - (ms - 1) * size)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0ms"), (0.0004, "1ms"), (0.02, "20ms"), (0.9995, "1s"), (1, "1s"), (8.64, "8.64s"), (59.9996, "1m0s"),
     (360, "6m0s"), (432.5, "7m12.5s"), (3600, "1h0m0s"), (86399.001, "23h59m59.001s")],
)  # fmt: skip
def test_durations_are_written_as_openai_does(seconds: float, text: str) -> None:
    assert duration(seconds) == text


async def test_a_refusal_has_headers_too() -> None:
    ask = Asking(tier_config(requests_per_min=2, tokens_per_min=100))
    await ask(tokens=10)
    await ask(tokens=10)
    denied = await ask(tokens=10)
    assert isinstance(denied, Denied)
    headers = dict(rate_headers(denied))
    assert headers[b"retry-after"] == b"30"
    assert headers[b"x-ratelimit-remaining-requests"] == b"0"
    assert headers[b"x-ratelimit-reset-requests"] == b"1m0s"
    assert headers[b"x-ratelimit-remaining-tokens"] == b"80"


def test_facts_of_a_ticket_go_through_json_and_back() -> None:
    buckets = (bucket("requests_per_min", 1, 600), bucket("usd_lifetime", 123456789012345, 10**15, window="all"))
    ticket = Ticket("req_1", buckets, "gen", [], tracked=False)
    again = Ticket.from_facts(json.loads(json.dumps(ticket.to_facts())))
    assert (again.id, again.generation, again.tracked) == ("req_1", "gen", False)
    assert [(b.limit.key, b.limit.kind, b.limit.size, b.limit.window, b.amount) for b in again.buckets] == [
        (b.limit.key, b.limit.kind, b.limit.size, b.limit.window, b.amount) for b in buckets
    ]
    assert isinstance(again.buckets[0], Bucket)
