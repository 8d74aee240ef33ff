"""What a case says in the end: outcomes as JSON, and one finding in one careful sentence.

Fixed-sequence gate-keeping: the first test decides; the next counts only while all before it rejected, so that together
they keep alpha (Maurer, Hothorn and Lehmacher, 1995). Holm over what was committed to is in each outcome already.
Not rejecting is *inconclusive*. No sentence here says how likely it is that a model was copied: no test can.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from spiritsafe.audit._types import Hypothesis, Outcome

__all__ = ["RESULTS_FORMAT", "Finding", "Grade", "effect_words", "finding", "outcome_json", "p_words", "rejects"]

RESULTS_FORMAT = "spiritsafe-results/1"
Grade = Literal["proof", "lead", "inconclusive"]
_KEYED = ("radioactivity", "twins", "canaries")
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True, slots=True)
class Finding:
    """The finding of a case.

    log10_p, test, n_scored: of the primary test, after correction.  decided: the tests that rejected, in order.
    accounts: the hypotheses of accounts' keys that rejected in these tests, after Holm over all committed slots. That
        anybody is named who should not be has a probability of at most alpha, besides the alpha of the finding.
    """

    grade: Grade
    log10_p: float
    test: str
    n_scored: int
    statement: str
    decided: tuple[str, ...]
    accounts: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As results.json has it."""
        return {
            "class": self.grade,
            "log10_p": self.log10_p,
            "test": self.test,
            "n_scored": self.n_scored,
            "statement": self.statement,
            "decided": list(self.decided),
            "accounts": list(self.accounts),
        }


def finding(
    outcomes: Sequence[Outcome],
    nulls: Mapping[str, str],
    alpha: float,
    *,
    unanchored: Sequence[str] = (),
    controls: Mapping[str, Sequence[Outcome]] | None = None,
) -> Finding:
    """What these outcomes, in the order of the plan, say together.

    nulls: by test.  unanchored: what nothing outside the case vouches for; with any of it proof becomes a lead.
    controls: outcomes of models that are held to be innocent: where one rejects the primary test, proof becomes a lead.
    """
    decided: list[str] = []
    for outcome in outcomes:
        if not rejects(outcome, alpha):
            break
        decided.append(outcome.test)
    primary = outcomes[0]
    because = _doubts(primary, alpha, unanchored, controls or {})
    grade: Grade = "inconclusive" if not decided else "lead" if because else "proof"
    return Finding(
        grade=grade,
        log10_p=primary.log10_p,
        test=primary.test,
        n_scored=primary.n_scored,
        statement=_statement(primary, nulls[primary.test], alpha, grade, because),
        decided=tuple(decided),
        accounts=tuple(one.name for outcome in outcomes if outcome.test in decided for one in _named(outcome, alpha)),
    )


def _named(outcome: Outcome, alpha: float) -> list[Hypothesis]:
    return [
        one
        for one in outcome.hypotheses
        if one.facts.get("layer") == "account" and one.facts["log10_p_family"] <= math.log10(alpha)
    ]


def rejects(outcome: Outcome, alpha: float) -> bool:
    """Whether its corrected p is at most alpha."""
    return outcome.log10_p <= math.log10(alpha)


def outcome_json(outcome: Outcome) -> dict[str, Any]:
    """An outcome as results.json has it: plain JSON, whatever numbers a test was written with."""
    return {
        "test": outcome.test,
        "kind": outcome.kind,
        "most": outcome.most,
        "log10_p": float(outcome.log10_p),
        "n_scored": int(outcome.n_scored),
        "family": int(outcome.family),
        "hypotheses": [
            {
                "name": one.name,
                "log10_p": float(one.log10_p),
                "n_scored": int(one.n_scored),
                "statistic": float(one.statistic),
                "rank": None if one.rank is None else [int(part) for part in one.rank],
                "facts": _plain(one.facts),
            }
            for one in outcome.hypotheses
        ],
        "effect": _plain(outcome.effect),
        "notes": list(outcome.notes),
    }


def p_words(log10_p: float) -> str:
    """A p-value as people read it: 0.034, or 7.9 × 10⁻¹⁰ where it is smaller than 0.0001. Two digits, rounded up: what
    is said to be at most so much is, and a p above the level does not read as the level."""
    exponent = math.floor(log10_p)
    mantissa = math.ceil(10 ** (log10_p - exponent) * 10 - 1e-9) / 10
    if mantissa >= 10:
        mantissa, exponent = 1.0, exponent + 1
    if log10_p > -4:
        return f"{mantissa * 10.0**exponent:.2g}"
    return f"{mantissa:.1f} × 10{str(exponent).translate(_RAISED)}"


def effect_words(effect: Mapping[str, Any]) -> str:
    """ "released preferred 0.79 (95 % interval 0.74 to 0.84; 0.5 if the hypothesis holds)"."""
    said = f"{effect.get('name', 'effect')} {_number(effect.get('value'))}"
    more = []
    ci = effect.get("ci95")
    if isinstance(ci, list | tuple) and len(ci) == 2:
        more.append(f"95 % interval {_number(ci[0])} to {_number(ci[1])}")
    if effect.get("under_null") is not None:
        more.append(f"{_number(effect['under_null'])} is expected if the hypothesis holds")
    return f"{said} ({'; '.join(more)})" if more else said


def _doubts(
    primary: Outcome, alpha: float, unanchored: Sequence[str], controls: Mapping[str, Sequence[Outcome]]
) -> list[str]:
    """Why a rejection is a lead and not proof."""
    because = []
    if primary.most != "proof":
        keyed = primary.kind in _KEYED
        because.append("nothing was committed to beforehand" if keyed else f"a {primary.kind} test can give no more")
    reject = [
        name
        for name, found in controls.items()
        if any(one.test == primary.test and rejects(one, alpha) for one in found)
    ]
    if reject:
        because.append(f"a control that is held to be innocent comes out the same way ({', '.join(reject)})")
    if unanchored:
        because.append("nothing outside the case vouches for all it rests on")
    return because


def _statement(primary: Outcome, null: str, alpha: float, grade: Grade, because: Sequence[str]) -> str:
    hypothesis = null.strip().rstrip(".")
    if primary.n_scored == 0 and grade == "inconclusive":
        return (
            f"The hypothesis “{hypothesis}” was not put to the test: nothing came back that could be counted. Nothing "
            "follows for or against it."
        )
    over = f" (corrected for {primary.family:,} hypotheses fixed beforehand)" if primary.family > 1 else ""
    seen = f"seen was: {effect_words(primary.effect)}"
    found = (
        f"If the hypothesis “{hypothesis}” were true, a result at least as strong as the one found would have a "
        f"probability of at most {p_words(primary.log10_p)}{over}"
    )
    if grade == "inconclusive":
        return (
            f"{found}. That exceeds the level of {alpha:g} fixed beforehand, so the hypothesis is not rejected, which "
            f"does not show that it is true; {seen}."
        )
    limit = f"; this is a lead and not proof, because {', and because '.join(because)}" if because else ""
    return (
        f"{found}. That does not exceed the level of {alpha:g} fixed beforehand, so the hypothesis is rejected; "
        f"{seen}{limit}."
    )


def _number(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def _plain(value: Any) -> Any:
    """Numbers of numpy and mappings as JSON has them."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if hasattr(value, "item") and not isinstance(value, str | bytes):
        return _plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
