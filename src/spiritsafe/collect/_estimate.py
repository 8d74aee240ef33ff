"""What a collection will cost, before it is started."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from spiritsafe.collect._ask import ask, open_budget
from spiritsafe.collect._config import CollectConfig
from spiritsafe.collect._jobs import Questions, tokens_bound
from spiritsafe.collect._store import Store
from spiritsafe.errors import Refused
from spiritsafe.progress import Progress, Silent
from spiritsafe.records import Prompt, Request, TeacherInfo, Usage
from spiritsafe.runs import Run
from spiritsafe.spend import dollars
from spiritsafe.teachers import Teacher, TeacherConfig

__all__ = ["Estimate", "estimate"]

_BYTES_PER_TOKEN = 4.0  # English text in today's vocabularies; used only until there is an answer to learn from
_TEMPLATE_BYTES = 80.0
_LIKELY_CONCURRENCY = 16


@dataclass(frozen=True, slots=True)
class Estimate:
    """What is still to be paid. `*_worst` is what the budget reserves for: it cannot cost more.

    prompts: asked for.   held: of them, answered already (a probe's answers are kept).   requests: to send.
    usd, usd_worst: None where the price is unknown.   seconds: None before there is an answer to measure.
    measured: answers that token counts and time are taken from; 0 is a guess from the prompts' sizes.
    """

    prompts: int
    held: int
    requests: int
    tokens_in: int
    tokens_out: int
    tokens_in_worst: int
    tokens_out_worst: int
    usd: float | None
    usd_worst: float | None
    usd_spent: float
    budget_usd: float | None
    seconds: float | None
    measured: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def render(self) -> str:
        """The estimate as lines for a terminal."""
        basis = f"measured on {self.measured} answers" if self.measured else "guessed from the prompts' sizes"
        price = "unknown: write teacher.price in the recipe" if self.usd is None else f"${self.usd:.4f}"
        worst = "" if self.usd_worst is None else f", at most ${self.usd_worst:.4f}"
        budget = "none" if self.budget_usd is None else f"${self.budget_usd:g}"
        time = "unknown until a first answer" if self.seconds is None else f"about {_duration(self.seconds)}"
        rows = [
            ("prompts", f"{self.prompts}, {self.held} answered already"),
            ("requests to send", str(self.requests)),
            ("tokens in", f"{self.tokens_in:,} (at most {self.tokens_in_worst:,})"),
            ("tokens out", f"{self.tokens_out:,} (at most {self.tokens_out_worst:,}), {basis}"),
            ("cost", price + worst),
            ("budget", f"{budget}, ${self.usd_spent:.4f} spent"),
            ("time", time),
        ]
        return "\n".join(f"{name:18} {value}" for name, value in rows)


def estimate(
    run: Run,
    teacher_config: TeacherConfig,
    prompts: Sequence[Prompt],
    config: CollectConfig,
    *,
    probe: int = 0,
    progress: Progress | None = None,
    teacher: Teacher | None = None,
) -> Estimate:
    """Dollars, tokens and time that collecting `prompts` will still take.

    probe: ask so many of the prompts first (spread over their lengths), under the same caps and into the same store:
        `collect` will not pay for them again.

    Raises:
        Refused: the caps leave no room even for the probe.
        BadInput, SpiritsafeError: as `collect`.
    """
    open_budget(teacher_config, config)
    with Store(run.requests) as store:
        info = _info(teacher_config) if teacher is None else teacher.info
        if probe > 0:
            by_size = sorted(prompts, key=lambda p: sum(len(m.content) for m in p.messages))
            chosen = {by_size[(2 * i + 1) * len(by_size) // (2 * probe)].id for i in range(probe)} if by_size else set()
            asked = ask(
                store, teacher_config, [p for p in prompts if p.id in chosen], config, progress or Silent(), teacher
            )
            info = asked.info
            if asked.over is not None:
                raise Refused(str(asked.over))
        return _estimate(store, Questions(config, info), teacher_config, prompts, config)


def _estimate(
    store: Store, questions: Questions, teacher_config: TeacherConfig, prompts: Sequence[Prompt], config: CollectConfig
) -> Estimate:
    known = store.known()
    left: list[Request] = []
    seen: list[tuple[Request, Usage, int]] = []  # request, usage, replies
    for prompt in prompts:
        for job, state in questions.of(prompt, known):
            paid = store.paid(job.hash)
            if paid is not None and state is not None:
                seen.append((job.request, paid.usage, state.replies))
        job_left = questions.open(prompt, known)
        if job_left is not None:
            left.append(job_left.request)
    per_byte, per_reply = 1 / _BYTES_PER_TOKEN, float(config.max_tokens)
    if seen:
        per_byte = sum(usage.input_tokens for _, usage, _ in seen) / sum(_size(request) for request, _, _ in seen)
        per_reply = sum(usage.output_tokens for _, usage, _ in seen) / max(1, sum(replies for _, _, replies in seen))
    expected = [Usage(round(per_byte * _size(r)), round(per_reply * r.n)) for r in left]
    worst = [tokens_bound(request) for request in left]
    price, latency = teacher_config.effective_price, store.latency()
    at_once = _LIKELY_CONCURRENCY if config.concurrency == "auto" else config.concurrency
    return Estimate(
        prompts=len(prompts),
        held=len(prompts) - len(left),
        requests=len(left),
        tokens_in=sum(usage.input_tokens for usage in expected),
        tokens_out=sum(usage.output_tokens for usage in expected),
        tokens_in_worst=sum(tokens_in for tokens_in, _ in worst),
        tokens_out_worst=sum(tokens_out for _, tokens_out in worst),
        usd=None if price is None else dollars(sum(price.cost(usage) for usage in expected)),
        usd_worst=None if price is None else dollars(sum(price.worst_case(*bound) for bound in worst)),
        usd_spent=store.spent().usd,
        budget_usd=config.budget_usd,
        seconds=None if latency is None else round(latency * len(left) / min(at_once, max(len(left), 1)), 1),
        measured=len(seen),
    )


def _info(config: TeacherConfig) -> TeacherInfo:
    """Who would answer, without opening it: enough to find answers of a served teacher in the store."""
    return TeacherInfo(config.model_id, config.revision, config.host)


def _size(request: Request) -> float:
    """UTF-8 bytes of a prompt, and of what a chat template adds."""
    return sum(len(m.content.encode("utf-8", "surrogatepass")) for m in request.prompt.messages) + _TEMPLATE_BYTES


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
