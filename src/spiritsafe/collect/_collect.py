"""`collect`: prompts and a teacher in, `exchanges.parquet` and a summary out. Resumes; never pays twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from spiritsafe.collect._ask import ask, open_budget
from spiritsafe.collect._config import CollectConfig
from spiritsafe.collect._export import Terms, exchanges_of
from spiritsafe.collect._prompts import assign_splits
from spiritsafe.collect._store import Store
from spiritsafe.errors import BadInput, Refused, SpiritsafeError
from spiritsafe.exchanges import write_exchanges
from spiritsafe.progress import Progress, Silent
from spiritsafe.records import Exchange, Prompt
from spiritsafe.runs import Run
from spiritsafe.teachers import Teacher, TeacherConfig

__all__ = ["CollectSummary", "Reconciled", "collect", "reconcile"]


@dataclass(frozen=True, slots=True)
class CollectSummary:
    """What a run's store holds after collecting.

    exchanges: rows written.   prompts, answered: prompts asked for, and those with all their samples.
    tokens_in, tokens_out: of the exchanges.   usd: spent under this run, everything in; `usd_by` says on what.
    requests: sent under this run, refused ones included.   reused: copied from sibling runs at no cost.
    bad: reason → requests whose answer is flawed or missing.   noted: events of this session, counted.
    concurrency: most requests that ran together in this session.   tok_per_s: of this session.
    """

    exchanges: int
    prompts: int
    answered: int
    tokens_in: int
    tokens_out: int
    usd: float
    budget_usd: float | None
    price_known: bool
    requests: int
    reused: int
    bad: dict[str, int] = field(default_factory=dict)
    noted: dict[str, int] = field(default_factory=dict)
    usd_by: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    tok_per_s: float = 0.0
    concurrency: int = 0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Reconciled:
    """Reservations that were released."""

    attempts: int
    usd: float
    tokens: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def collect(
    run: Run,
    teacher_config: TeacherConfig,
    prompts: Sequence[Prompt],
    config: CollectConfig,
    *,
    holdout: float = 0.0,
    seed: int = 0,
    terms: Terms | None = None,
    progress: Progress | None = None,
    teacher: Teacher | None = None,
) -> CollectSummary:
    """Ask `teacher` every prompt that the run's store has no answer to, and write the run's exchanges.

    holdout, seed: which prompts are held out for evaluation; see `assign_splits`.
    teacher: an open teacher to ask; opened from `teacher_config`, and closed again, if not given.

    Raises:
        Refused: a cap was reached; what was answered is saved, and a higher cap continues from there.
        BadInput: a USD budget without a price, no key, a damaged store, or a store in use.
        Interrupted: Ctrl-C; everything that came in is saved.
        SpiritsafeError: the teacher refuses the key or the request, is down, or too many prompts got no answer.
    """
    watched = progress or Silent()
    open_budget(teacher_config, config)  # refuses before anything is opened, loaded or sent
    with Store(run.requests) as store:
        asked = ask(store, teacher_config, prompts, config, watched, teacher)
        splits = assign_splits(prompts, holdout, seed)
        counts: Counter[str] = Counter()
        bad: Counter[str] = Counter()

        def rows() -> Iterator[Exchange]:
            known = store.known()
            for prompt in prompts:
                samples = 0
                for job, held in asked.questions.of(prompt, known):
                    if held is not None and held.reason is not None:
                        bad[held.reason.partition(":")[0]] += 1
                    for exchange in exchanges_of(store, job, asked.info, splits, terms):
                        samples += 1
                        counts["in"] += exchange.usage.input_tokens
                        counts["out"] += exchange.usage.output_tokens
                        yield exchange
                counts["answered"] += samples >= config.samples

        written = _write(run, rows())
        spent = store.spent()
        summary = CollectSummary(
            exchanges=written,
            prompts=len(prompts),
            answered=counts["answered"],
            tokens_in=counts["in"],
            tokens_out=counts["out"],
            usd=spent.usd,
            budget_usd=config.budget_usd,
            price_known=teacher_config.effective_price is not None,
            requests=spent.requests,
            reused=asked.reused,
            bad=dict(bad),
            noted=dict(asked.noted),
            usd_by={reason: part.usd for reason, part in store.spent_by_reason().items()},
            seconds=round(asked.seconds, 3),
            tok_per_s=round(asked.tokens_out / asked.seconds, 1) if asked.seconds else 0.0,
            concurrency=asked.concurrency,
        )
    if asked.over is not None:
        saved = f"{summary.answered} of {summary.prompts} prompts are answered and saved, running again continues there"
        raise Refused(f"{asked.over} ({saved})")
    _judge(summary, config, watched)
    return summary


def reconcile(run: Run) -> Reconciled:
    """Release the reservations of attempts that nobody saw end: in flight at a crash, timed out, broken off.

    Call it after reading the provider's bill; until then they count as spent.

    Raises:
        BadInput: the run has no store, or it is damaged or in use.
    """
    if not run.requests.exists():
        raise BadInput(f"{run.requests}: no such file; nothing was collected in this run yet")
    with Store(run.requests) as store:
        attempts, held = store.release_lost()
    return Reconciled(attempts, held.usd, held.tokens)


def _write(run: Run, rows: Iterator[Exchange]) -> int:
    try:
        return write_exchanges(run.exchanges, rows)
    except OSError as error:
        raise SpiritsafeError(
            f"{run.exchanges}: cannot be written ({error.strerror or error}); all answers are safe in "
            f"{run.requests.name}: free space and run again"
        ) from None


def _judge(summary: CollectSummary, config: CollectConfig, progress: Progress) -> None:
    """Prompts without all their answers: a failure if there are too many, else worth a line."""
    missing = summary.prompts - summary.answered
    if not missing:
        return
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(summary.bad.items())) or "unknown reasons"
    said = f"{missing} of {summary.prompts} prompts have no answer ({reasons})"
    if missing > config.tolerate_missing * summary.prompts:
        raise SpiritsafeError(f"{said}; run again to ask again, or raise collect.tolerate_missing to go on without")
    progress.say(f"collect: {said}; going on without them")
