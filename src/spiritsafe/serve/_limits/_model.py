"""The values that limits are made of: what is limited, what a request takes of it, and what a limiter answers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final, NamedTuple, Protocol

from spiritsafe.serve._config import Rule
from spiritsafe.serve._types import Demand, Identity
from spiritsafe.wire import ApiError

__all__ = [
    "ALLOWANCE",
    "GAUGE",
    "NOTHING",
    "RATE",
    "RULES",
    "SCOPES",
    "UNLIMITED",
    "Bucket",
    "Crossing",
    "Denied",
    "Granted",
    "Lift",
    "Limit",
    "Limiter",
    "Seed",
    "Ticket",
    "Total",
    "TotalsSource",
    "amounts_of",
]

RATE: Final = 0  # refills continuously: GCRA
ALLOWANCE: Final = 1  # counts up in a window
GAUGE: Final = 2  # what runs now

UNLIMITED: Final = 2**53 - 1  # the largest amount that is exact on both sides of Redis
SCOPES: Final = frozenset({"account", "key", "org", "model", "cluster"})  # whose totals the ledger has
NOTHING: Final = Demand(requests=0)


class RuleFacts(NamedTuple):
    """kind: RATE, ALLOWANCE or GAUGE.  measure: index into `amounts_of`.  window: index into `windows`, or None.
    family: whose rate-limit headers it feeds: 1 requests, 2 tokens, 0 none."""

    kind: int
    measure: int
    window: int | None
    family: int


RULES: Final[Mapping[Rule, RuleFacts]] = {
    "requests_per_min": RuleFacts(RATE, 0, None, 1),
    "tokens_per_min": RuleFacts(RATE, 1, None, 2),
    "input_tokens_per_min": RuleFacts(RATE, 2, None, 2),
    "output_tokens_per_min": RuleFacts(RATE, 3, None, 2),
    "requests_per_day": RuleFacts(ALLOWANCE, 0, 0, 1),
    "tokens_per_day": RuleFacts(ALLOWANCE, 1, 0, 2),
    "usd_per_day": RuleFacts(ALLOWANCE, 4, 0, 0),
    "usd_per_month": RuleFacts(ALLOWANCE, 4, 1, 0),
    "usd_lifetime": RuleFacts(ALLOWANCE, 4, 2, 0),
    "concurrency": RuleFacts(GAUGE, 5, None, 0),
}


def amounts_of(demand: Demand) -> tuple[int, int, int, int, int, int]:
    """What a demand takes by measure: requests, tokens, input tokens, output tokens, nano-dollars, slots."""
    tokens_in, tokens_out = demand.tokens_in, demand.tokens_out
    return demand.requests, tokens_in + tokens_out, tokens_in, tokens_out, demand.nano, 1


@dataclass(slots=True, eq=False)
class Limit:
    """One rule for one subject.

    scope: "account:acct_1"; whose totals count here.  size: how much; requests, tokens or nano-dollars.
    window: of an allowance; "" otherwise.  daily: what a lifetime allowance grows by with each UTC day.
    near: the amount whose crossing is told; 0 never.  shadow: records what it would refuse.
    open_when_down: lets requests pass while the state is away.
    seen: the limiter that has compared this allowance with the ledger's totals; kept here so that it costs nothing.
    """

    rule: Rule
    subject: str
    name: str
    scope: str
    size: int
    window: str = ""
    daily: int = 0
    near: int = 0
    shadow: bool = False
    open_when_down: bool = False
    kind: int = 0
    measure: int = 0
    family: int = 0
    key: str = ""
    seen: object = None

    def __post_init__(self) -> None:
        self.kind, self.measure, _, self.family = RULES[self.rule]
        self.key = f"{self.rule}:{self.scope}"

    def crossed(self, used: int) -> Crossing:
        """Tell that a settlement took this allowance over its near limit. used: what is settled now."""
        return Crossing(self.rule, self.subject, self.name, self.window, used, self.size)


Lift = tuple[Limit, int]
"""An allowance, and what its counter must at least be."""


class Bucket(NamedTuple):
    """A limit, and what one request takes of it."""

    limit: Limit
    amount: int


class Total(NamedTuple):
    """What the ledger has counted in a scope and window."""

    pico: int = 0
    requests: int = 0
    tokens: int = 0

    def of(self, measure: int) -> int:
        """In a limit's unit; money in nano-dollars, rounded up."""
        return -(-self.pico // 1000) if measure == 4 else self.requests if measure == 0 else self.tokens


@dataclass(frozen=True, slots=True)
class Seed:
    """The ledger at one moment. totals: by (scope, window).  committed: those of the ids asked for that have a row."""

    totals: Mapping[tuple[str, str], Total]
    committed: frozenset[str] = frozenset()


TotalsSource = Callable[[Collection[tuple[str, str]], Collection[str]], Awaitable[Seed]]
"""Reads the totals of (scope, window) pairs, and which request ids have a row, at one moment. Raises `Unavailable`."""


class Ticket:
    """A reservation. It is closed once; closing it again does nothing.

    generation: of the state that holds it.  marks: for each bucket, where it stands there; None if it does not.
    tracked: False if the state was away, so that nothing is held.
    """

    __slots__ = ("buckets", "generation", "id", "marks", "tracked")

    def __init__(
        self,
        id: str,
        buckets: tuple[Bucket, ...],
        generation: str,
        marks: list[Any] | None = None,
        tracked: bool = True,
    ) -> None:
        self.id, self.buckets, self.generation, self.tracked = id, buckets, generation, tracked
        self.marks: list[Any] = marks if marks is not None else []

    def to_facts(self) -> dict[str, Any]:
        """What a journal needs to settle this after a crash, as JSON values."""
        return {
            "id": self.id,
            "generation": self.generation,
            "tracked": self.tracked,
            "buckets": [[limit.rule, limit.scope, limit.size, limit.window, amount] for limit, amount in self.buckets],
        }

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> Ticket:
        """The reverse of `to_facts`."""
        buckets = []
        for rule, scope, size, window, amount in facts["buckets"]:
            subject, _, name = scope.partition(":")
            buckets.append(Bucket(Limit(rule, subject, name, scope, size, window), amount))
        return cls(facts["id"], tuple(buckets), facts["generation"], tracked=facts["tracked"])


class Granted:
    """A reservation was made. shadowed: rules that would have refused it, were they not in shadow mode.

    levels: for each bucket, how full it was before this request.  at: Unix seconds.
    """

    __slots__ = ("at", "levels", "shadowed", "ticket")

    def __init__(self, ticket: Ticket, shadowed: tuple[Rule, ...], levels: list[int], at: float) -> None:
        self.ticket, self.shadowed, self.levels, self.at = ticket, shadowed, levels, at


@dataclass(frozen=True, slots=True)
class Denied:
    """Nothing was reserved. rule, subject, name: the limit that takes longest to make room.

    status: 402 where money is used up, 503 while the state is away, else 429.
    undecided: the reservation may have been made all the same; the limiter undoes it, and says so then.
    retry_after_s: when this same request would fit if nothing else came; None if never.
    """

    rule: Rule
    subject: str
    name: str
    status: int
    retry_after_s: float | None
    message: str
    code: str
    buckets: tuple[Bucket, ...] = ()
    levels: tuple[int, ...] = ()
    at: float = 0.0
    undecided: bool = False

    def to_error(self) -> ApiError:
        """In OpenAI's shape."""
        return ApiError(self.status, self.message, code=self.code)


class Crossing(NamedTuple):
    """A settlement that took an allowance over its near limit: once per window. used, size: in the rule's unit."""

    rule: Rule
    subject: str
    name: str
    window: str
    used: int
    size: int


class Limiter(Protocol):
    """Holds limits: reserve → settle or refund. Used from one event loop."""

    @property
    def generation(self) -> str:
        """Of the state that holds a reservation made now, most likely."""

    @property
    def healthy(self) -> bool:
        """False while the state is away."""

    async def reserve(self, buckets: tuple[Bucket, ...], request_id: str) -> Granted | Denied:
        """Take the worst case of a request from all buckets, or from none."""

    async def settle(self, ticket: Ticket, actual: Demand) -> tuple[Crossing, ...]:
        """Replace the worst case by what the request took. More than was reserved is recorded as it is."""

    async def refund(self, ticket: Ticket) -> None:
        """Give all of it back: the request never happened."""

    async def recover(self, facts: Mapping[str, Any], actual: Demand) -> None:
        """Settle the ticket of a process that is gone, once; nothing happens if it never came to hold anything.

        facts: from `Ticket.to_facts`.

        Raises:
            Unavailable: the state is away; keep the journal and try again.
        """

    async def seed(self, totals: Mapping[tuple[str, str], Total]) -> None:
        """Count at least this much as spent. What was counted already is not counted twice."""

    async def month_usd(self, identity: Identity) -> Decimal:
        """Dollars that an account has settled this month, as far as its tier has a price schedule.

        Raises:
            Unavailable: neither the state nor the database says so.
        """

    async def aclose(self) -> None: ...
