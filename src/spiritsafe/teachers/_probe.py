"""What a served teacher offers, found out with a few tiny requests."""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict, dataclass
from typing import Any

from spiritsafe.records import Message, Prompt, Request, Sampling
from spiritsafe.spend import dollars
from spiritsafe.teachers._api import ApiTeacher
from spiritsafe.teachers._base import Answer, TeacherError
from spiritsafe.teachers._config import TeacherConfig

__all__ = ["ProbeReport", "probe"]

_ASK = Prompt((Message("user", "Name three colours."),))
_MOST_LOGPROBS = 256
_USUAL_LOGPROBS = 20


@dataclass(frozen=True, slots=True)
class ProbeReport:
    """What a teacher offers. None where the probe could not tell.

    max_logprobs: the largest k it gives; 0 if it gives none. Searched up to 256.
    seed_repeats: the same seed gave the same text twice.
    latency_s: of one short answer.
    calls, tokens, usd: what the probe itself used; usd is None where the price is unknown.
    """

    model: str
    base_url: str
    models: tuple[str, ...]
    n_honoured: bool
    max_logprobs: int
    token_ids: bool
    seed_repeats: bool | None
    usage_reported: bool
    price_known: bool
    latency_s: float
    calls: int
    tokens: int
    usd: float | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def render(self) -> str:
        """The report as lines for a terminal."""
        listed = ", ".join(self.models[:8]) + (", …" if len(self.models) > 8 else "")
        top = f"up to {self.max_logprobs}" if self.max_logprobs < _MOST_LOGPROBS else f"{_MOST_LOGPROBS} or more"
        price = "known" if self.price_known else "unknown: write teacher.price in the recipe to use collect.budget_usd"
        cost = "" if self.usd is None else f", ${self.usd:.6f}"
        rows = [
            ("model", f"{self.model} at {self.base_url}"),
            ("lists", listed or "nothing"),
            ("several samples (n)", "yes" if self.n_honoured else "no: samples are asked one at a time"),
            ("top logprobs", top if self.max_logprobs else "none: train.objective topk needs them, sft does not"),
            ("token ids", "yes" if self.token_ids else "no: tokens are matched by their bytes"),
            ("same seed, same text", {True: "yes", False: "no", None: "seed refused"}[self.seed_repeats]),
            ("reports usage", "yes" if self.usage_reported else "no: every call counts as its worst case"),
            ("price", price),
            ("one short answer", f"{self.latency_s:.2f} s"),
            ("the probe used", f"{self.calls} requests, {self.tokens} tokens{cost}"),
        ]
        return "\n".join(f"{name:22} {value}" for name, value in rows)


async def probe(config: TeacherConfig) -> ProbeReport:
    """Ask a served teacher about fifteen tiny requests.

    Raises:
        BadInput: the key's environment variable is not set.
        TeacherError: it cannot be reached, refuses the key, or answers nothing usable to the plainest request.
    """
    teacher = ApiTeacher(config)
    try:
        return await _Probe(teacher).run(config)
    finally:
        await teacher.aclose()


class _Probe:
    def __init__(self, teacher: ApiTeacher) -> None:
        self._teacher = teacher
        self._answers: list[Answer] = []
        self._calls = 0

    async def run(self, config: TeacherConfig) -> ProbeReport:
        started = time.monotonic()
        plain = await self._ask(Sampling(max_tokens=8))
        latency = time.monotonic() - started
        several = await self._try(Sampling(max_tokens=1), n=2)
        repeats = [await self._try(Sampling(max_tokens=16, temperature=1.0, seed=1234)) for _ in range(2)]
        texts = [None if answer is None else answer.replies[0].text for answer in repeats]
        price = config.effective_price
        top = await self._max_logprobs()
        return ProbeReport(
            model=config.model_id,
            base_url=config.base_url or "",
            models=tuple(str(m.get("id")) for m in await self._teacher.models()),
            n_honoured=several is not None and len(several.replies) == 2,
            max_logprobs=top,
            token_ids=plain.replies[0].token_ids is not None,
            seed_repeats=None if None in texts else texts[0] == texts[1],
            usage_reported=plain.usage_reported,
            price_known=price is not None,
            latency_s=round(latency, 3),
            calls=self._calls,
            tokens=sum(a.usage.input_tokens + a.usage.output_tokens for a in self._answers),
            usd=None if price is None else dollars(sum(price.cost(a.usage) for a in self._answers)),
        )

    async def _max_logprobs(self) -> int:
        """Largest k that is answered: the usual one first, then by bisection. A server may also just give fewer."""
        works, fails, k = 0, _MOST_LOGPROBS + 1, _USUAL_LOGPROBS
        while fails - works > 1:
            answer = await self._try(Sampling(max_tokens=1, logprobs=k))
            logprobs = None if answer is None else answer.replies[0].logprobs
            if answer is None:
                fails = k
            elif logprobs is None:
                return works  # ignores the parameter
            elif logprobs.top.shape[1] < k:
                return int(logprobs.top.shape[1])
            else:
                works = k
            k = (works + fails) // 2
        return works

    async def _try(self, sampling: Sampling, n: int = 1) -> Answer | None:
        """An answer, or None where the teacher refuses the parameters."""
        try:
            return await self._ask(sampling, n)
        except TeacherError as error:
            if error.kind in ("bad_request", "malformed", "server"):
                return None
            raise

    async def _ask(self, sampling: Sampling, n: int = 1) -> Answer:
        for attempt in range(4):
            self._calls += 1
            try:
                answer = await self._teacher.complete(Request(_ASK, sampling, n))
            except TeacherError as error:
                if error.kind != "rate_limited" or attempt == 3:
                    raise
                await asyncio.sleep(min(error.retry_after or 2.0**attempt, 20.0))
            else:
                self._answers.append(answer)
                return answer
        raise AssertionError("unreachable")
