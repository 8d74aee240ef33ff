"""The page of a case, for a judge: what was asked, how, what came out, what it cannot show, and how to check it.

Made of results.json and what lies beside it in the case; the same case gives the same page.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from spiritsafe.audit._case import Case
from spiritsafe.audit._results import p_words
from spiritsafe.report._case_words import EFFECTS, GLOSSARY, HEADLINES, KINDS, LIMITS, one_in, plain_words
from spiritsafe.report._format import MISSING, count, number, usd
from spiritsafe.report._page import page

__all__ = ["render_case"]


def render_case(case: Case) -> str:
    """The page as HTML. Everything from outside is escaped; it loads nothing and runs no script."""
    return page("case.html.j2", case_view(case), styles=("report.css", "guard.css", "case.css"))


def case_view(case: Case) -> dict[str, Any]:
    """The template's context."""
    plan, results = case.plan["plan"], case.results
    finding, outcomes = results["finding"], results["tests"]
    alpha = plan["alpha"]
    kinds = list(dict.fromkeys(one["kind"] for one in outcomes))
    return {
        "name": plan["name"],
        "question": plan["question"],
        "statement_of": plan["statement"],
        "grade": finding["class"],
        "headline": HEADLINES[finding["class"]],
        "statement": finding["statement"],
        "plain": plain_words(finding, outcomes[0], alpha),
        "facts": _facts(case),
        "methods": [KINDS[kind] for kind in kinds],
        "effects": [found for one in outcomes if (found := _effect(one)) is not None],
        "tests": [_test(place, one, case, alpha) for place, one in enumerate(outcomes)],
        "hypotheses": _hypotheses(outcomes),
        "controls": _controls(results["controls"], alpha, outcomes[0]["test"]),
        "course": _course(case),
        "notes": [(one["test"], note) for one in outcomes for note in one["notes"]],
        "changes": [str(line) for line in [*case.subject.get("changes", []), *case.subject.get("notes", [])]],
        "limits": [*LIMITS, *(limit for kind in kinds for limit in KINDS[kind]["limits"])],
        "glossary": GLOSSARY,
        "plan_hash": case.plan_hash,
        "signer": plan["signer"],
        "tsa": plan["tsa"],
    }


def _facts(case: Case) -> list[tuple[str, str]]:
    subject, document = case.subject, case.plan
    access = {
        "weights": "its weights: whoever has them can compute everything it would say",
        "logprobs": "its answers, with how likely it finds a given text",
        "text": "its answers only, as anybody gets them",
    }
    where = subject.get("address") or subject.get("weights")
    times = [number(entry.get("ts")) for entry in case.attempts]
    begun = [time for time in times if time is not None]
    return [
        ("Model under test", str(subject.get("name"))),
        ("Where it was asked", f"{where or MISSING}{', as ' + str(subject['model']) if subject.get('model') else ''}"),
        ("Version, as far as it is known", str(subject.get("revision") or "not known")),
        ("Declared to be made from", str(subject.get("base") or "nothing was declared")),
        ("What the test had of it", access.get(str(subject.get("access")), MISSING)),
        ("The plan was fixed", str(document["frozen_at"]).replace("T", " ").replace("Z", " UTC")),
        ("The first question was asked", _time(min(begun)) if begun else MISSING),
    ]


def _time(seconds: float) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (OverflowError, OSError, ValueError):
        return MISSING


def _test(place: int, one: Mapping[str, Any], case: Case, alpha: float) -> dict[str, Any]:
    name, decided = one["test"], case.results["finding"]["decided"]
    reached = place == 0 or len(decided) >= place
    rejected = one["log10_p"] <= math.log10(alpha)
    if name in decided:
        outcome = "rejected"
    elif reached:
        outcome = "not rejected"
    else:
        outcome = "exploratory: a test before it did not reject" + (", though its p is small" if rejected else "")
    return {
        "name": name,
        "primary": place == 0,
        "null": case.plan["nulls"][name],
        "p": p_words(one["log10_p"]),
        "one_in": one_in(one["log10_p"]),
        "scored": count(one["n_scored"]),
        "family": count(one["family"]),
        "most": one["most"],
        "outcome": outcome,
    }


def _hypotheses(outcomes: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[tuple[str, Any]]]]:
    rows = []
    for one in outcomes:
        for found in one["hypotheses"]:
            rank = found["rank"]
            decoys = f"{count(rank[0])} of {count(rank[1])}" if rank else MISSING
            rows.append((
                found["name"] if len(one["hypotheses"]) > 1 else one["test"],
                [
                    ("Counted", count(found["n_scored"])),
                    ("Sum or count found", f"{found['statistic']:,.6g}".replace("-", "−")),
                    ("p, uncorrected", p_words(found["log10_p"])),
                    ("Decoys that do as well", decoys),
                ],
            ))  # fmt: skip
    return rows


def _controls(controls: Mapping[str, Any], alpha: float, primary: str) -> list[tuple[str, list[tuple[str, Any]]]]:
    rows = []
    for name, some in sorted(controls.items()):
        for one in some:
            rejects = one["log10_p"] <= math.log10(alpha)
            said = "rejected: the test accuses it, too" if rejects else "not rejected"
            what = [("Test", one["test"]), ("p", p_words(one["log10_p"])), ("Outcome", said)]
            rows.append((name, what))
    return rows


def _course(case: Case) -> list[tuple[str, str]]:
    """What was tried, how often, and what failed."""
    counts = case.counts.values()
    planned, answered, failed, lines = (sum(one[key] for one in counts) for key in _COUNTED)
    spent = case.subject.get("spent") or {}
    rows = [
        ("Times this audit was started", count(case.results["attempts"])),
        ("Earlier plans that this one replaces", count(len(case.plan["superseded"]))),
        ("Starts under those earlier plans", count(case.plan["abandoned"])),
        ("Questions planned", count(planned)),
        ("Questions answered", count(answered)),
        ("Questions that brought no answer", count(failed)),
        ("Questions not asked", count(planned - answered - failed)),
        ("Lines in the transcript, repetitions after a failure included", count(lines)),
    ]
    if spent.get("requests"):
        rows.append(("Paid for", f"{count(spent['requests'])} requests, {usd(spent.get('usd'))}"))
    return rows


_COUNTED = ("planned", "answered", "failed", "lines")


def _effect(one: Mapping[str, Any]) -> dict[str, Any] | None:
    """What was seen beside what the hypothesis predicts, as places (0 to 100) on one scale."""
    effect = one["effect"]
    value, under = number(effect.get("value")), number(effect.get("under_null"))
    if value is None or under is None:
        return None
    ci = effect.get("ci95")
    low, high = ([number(end) for end in ci] if isinstance(ci, list) and len(ci) == 2 else [None, None])[:2]
    ends = [x for x in (value, under, low, high) if x is not None]
    share = min(ends) >= 0 and max(ends) <= 1
    least, most = (0.0, 1.0) if share else (min(ends), max(ends))
    span = (most - least) or 1.0
    if not share:
        least, span = least - 0.1 * span, 1.2 * span

    def place(x: float) -> str:
        return f"{100 * (x - least) / span:.2f}"

    return {
        "test": one["test"],
        "name": str(effect.get("name", "effect")),
        "meaning": EFFECTS.get(str(effect.get("name")), ""),
        "value": f"{value:.3g}",
        "under": f"{under:.3g}",
        "low": None if low is None else f"{low:.3g}",
        "high": None if high is None else f"{high:.3g}",
        "at": place(value),
        "at_under": place(under),
        "at_low": None if low is None else place(low),
        "width": None if low is None or high is None else f"{100 * (high - low) / span:.2f}",
        "least": f"{least:.3g}",
        "most": f"{least + span:.3g}",
        "scored": count(one["n_scored"]),
    }
