"""What the numbers mean, in plain words. The rules are few and stated here so that a reader can disagree with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from spiritsafe.report._format import decimal, dig, number, percent, usd

__all__ = ["Verdict", "beats_untrained", "limits", "verdict"]

Grade = Literal["good", "fair", "poor", "none"]

# A student at these marks mostly reads as its teacher does; below them it babbles (measured on pruned 135M students).
CLOSE_AGREEMENT, CLOSE_GAP = 0.65, 0.7
VERY_CLOSE_AGREEMENT, VERY_CLOSE_GAP = 0.85, 0.1


@dataclass(frozen=True, slots=True)
class Verdict:
    grade: Grade
    headline: str
    sentence: str


def verdict(metrics: dict[str, Any]) -> Verdict:
    """One headline and one sentence from metrics.json."""
    agreement, gap = number(dig(metrics, "student", "top1_agreement")), nll_gap(metrics)
    if gap is None:
        return Verdict(
            "none", "Nothing measured yet", "This run has no evaluated student, so there is nothing to judge."
        )
    beats = beats_untrained(metrics)
    facts = [f"On held-out prompts its answers cost {decimal(gap)} nats {unit(metrics)} more than the teacher's own"]
    if agreement is not None:
        facts.append(f"it picks the teacher's most likely token {percent(agreement)} of the time")
    if (ratio := number(dig(metrics, "speed", "ratio"))) is not None:
        facts.append(f"it generates at {ratio:.2f}× the teacher's speed")
    spent = number(dig(metrics, "collected", "usd"))
    sentence = ", ".join(facts[:-1]) + (" and " if len(facts) > 1 else "") + facts[-1]
    sentence += f". Its lessons cost {usd(spent)}." if spent is not None else "."
    if beats is False:
        return Verdict("poor", "Training did not beat simply removing layers", sentence)
    if gap <= VERY_CLOSE_GAP and (agreement is None or agreement >= VERY_CLOSE_AGREEMENT):
        return Verdict("good", "Very close to its teacher", sentence)
    if gap <= CLOSE_GAP and (agreement is None or agreement >= CLOSE_AGREEMENT):
        return Verdict("good", "Close to its teacher, though not a drop-in replacement", sentence)
    if gap <= 2 * CLOSE_GAP:
        return Verdict("fair", "Clearly behind its teacher", sentence)
    return Verdict("poor", "Far from its teacher", sentence)


def nll_gap(metrics: dict[str, Any]) -> float | None:
    student, teacher = number(dig(metrics, "student", "nll")), number(dig(metrics, "teacher", "nll"))
    return None if student is None or teacher is None else student - teacher


def unit(metrics: dict[str, Any]) -> str:
    return "per byte" if dig(metrics, "nll_unit") == "byte" else "per token"


def beats_untrained(metrics: dict[str, Any]) -> bool | None:
    """Whether the student is ahead, on every measure both have, of the best untrained prune and of every other prune
    it was screened with; None if there is none."""
    screened = dig(metrics, "best_untrained", "screened")
    candidates = dig(screened, "candidates")
    pairs = [(dig(metrics, "student"), dig(metrics, "best_untrained"))]
    pairs += [(dig(screened, "student"), rival) for rival in (candidates if isinstance(candidates, list) else ())]
    verdicts = []
    for student, rival in pairs:
        for key, sign in (("nll", -1), ("kl", -1), ("top1_agreement", 1)):
            mine, other = number(dig(student, key)), number(dig(rival, key))
            if mine is not None and other is not None:
                verdicts.append(sign * mine > sign * other)
    return all(verdicts) if verdicts else None


def limits(metrics: dict[str, Any]) -> list[str]:
    """What this report does not show."""
    prompts, exchanges = number(dig(metrics, "n_prompts")), number(dig(metrics, "n_exchanges"))
    held = (
        f"{prompts:.0f} held-out prompts ({exchanges:.0f} answers)" if prompts and exchanges else "the held-out prompts"
    )
    lines = [
        f"Everything here is measured on {held}, drawn from the same source as the training prompts. It says nothing "
        "about other topics, other languages or longer answers.",
        "“Recovered” compares with the untrained start. A pruned start can be close to noise, so a high figure "
        "alone flatters: read it with agreement, the NLL gap and the best untrained prune.",
        "Fidelity is not quality: a student can copy its teacher's mistakes faithfully. No task accuracy was measured.",
        "Speed depends on the machine, batch size and answer length; only the ratio, measured in one run, travels.",
    ]
    if dig(metrics, "kl_kind") == "top-k+tail lower bound":
        lines.append(
            "The teacher's distribution was seen as top-k log-probabilities only, so KL here is a lower bound."
        )
    if dig(metrics, "nll_unit") == "byte":
        lines.append(
            "Teacher and student use different tokenizers: NLL is per byte, and KL and agreement have no meaning."
        )
    notes = dig(metrics, "notes")
    lines += [str(note) for note in notes] if isinstance(notes, list) else []
    return lines
