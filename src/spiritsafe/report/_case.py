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
from spiritsafe.report._case_words import (
    GLOSSARY,
    HEADLINES,
    KINDS,
    LIMITS,
    PROOF_FOR,
    TRIED_BEFORE,
    accounts_words,
    plain_words,
    rarity,
)
from spiritsafe.report._format import MISSING, count, mapping, number, usd
from spiritsafe.report._page import page

__all__ = ["render_case"]

_MOST_ACCOUNTS = 20  # rows of the page


def render_case(case: Case) -> str:
    """The page as HTML. Everything from outside is escaped; it loads nothing and runs no script."""
    return page("case.html.j2", case_view(case), styles=("report.css", "guard.css", "case.css"))


def case_view(case: Case) -> dict[str, Any]:
    """The template's context."""
    plan, results = case.plan["plan"], case.results
    finding, outcomes = results["finding"], results["tests"]
    alpha = plan["alpha"]
    kinds = list(dict.fromkeys(one["kind"] for one in outcomes))
    grade = finding["class"]
    return {
        "name": plan["name"],
        "question": plan["question"],
        "statement_of": plan["statement"],
        "grade": grade,
        "headline": HEADLINES[grade],
        "statement": finding["statement"],
        "plain": plain_words(finding, outcomes[0], alpha),
        "accounts": accounts_words(finding["accounts"], outcomes, alpha),
        "proof_for": PROOF_FOR if grade == "proof" else "",
        "doubts": [line.partition(";")[0] for line in case.doubts] if grade == "lead" else [],
        "tried_before": _tried_before(case),
        "facts": _facts(case),
        "methods": [(KINDS[one["kind"]], _fixed(one)) for one in _first_of_each_kind(outcomes)],
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


def _first_of_each_kind(outcomes: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return list({one["kind"]: one for one in reversed(outcomes)}.values())[::-1]


def _fixed(one: Mapping[str, Any]) -> str:
    """Whether the secret was committed to; "" for tests without one."""
    return str(KINDS[one["kind"]].get("fixed" if one["most"] == "proof" else "not_fixed", ""))


def _tried_before(case: Case) -> str:
    plans, starts = len(case.plan["superseded"]), case.plan["abandoned"]
    if not plans:
        return ""
    said = "1 earlier plan" if plans == 1 else f"{count(plans)} earlier plans"
    return TRIED_BEFORE.format(plans=said, starts="once" if starts == 1 else f"{count(starts)} times")


def _facts(case: Case) -> list[tuple[str, str]]:
    subject, document = case.subject, case.plan
    access = {
        "weights": "its weights: whoever has them can compute everything it would say",
        "logprobs": "its answers, with how likely it finds a given text",
        "text": "its answers only, as anybody gets them",
    }
    where = subject.get("address") or subject.get("weights")
    bases = [
        subject.get("base"),
        *(test.get("base") for test in document["plan"].get("tests", ()) if test["kind"] == "lineage"),
    ]
    base = next(
        (str(one).rpartition("/")[2] if str(one).startswith("weights/") else str(one) for one in bases if one), ""
    )
    times = [number(entry.get("ts")) for entry in case.attempts]
    begun = [time for time in times if time is not None]
    return [
        ("Model under test", str(subject.get("name"))),
        ("Where it was asked", f"{where or MISSING}{', as ' + str(subject['model']) if subject.get('model') else ''}"),
        ("Version, as far as it is known", str(subject.get("revision") or "not known")),
        ("Declared to be made from", base or "nothing was declared"),
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
        outcome = "does not count: a test before it did not reject" + (", though its p is small" if rejected else "")
    return {
        "name": name,
        "primary": place == 0,
        "null": case.plan["nulls"][name],
        "title": KINDS[one["kind"]]["title"],
        "p": p_words(one["log10_p"]),
        "rarity": rarity(one["log10_p"]),
        "family": count(one["family"]) if one["family"] > 1 else "",
        "most": one["most"],
        "outcome": outcome,
    }


def _hypotheses(outcomes: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[tuple[str, Any]]]]:
    """A row for each; of many accounts the strongest, and one row for the others together."""
    rows = []
    for one in outcomes:
        accounts = [found for found in one["hypotheses"] if found["facts"].get("layer") == "account"]
        weaker = sorted(accounts, key=lambda found: found["log10_p"])[_MOST_ACCOUNTS:]
        left_out = {found["name"] for found in weaker}
        for found in one["hypotheses"]:
            if found["name"] not in left_out:
                name = found["name"] if len(one["hypotheses"]) > 1 else one["test"]
                rows.append((name, _figures(found, one["family"])))
        if weaker:
            rows.append(
                (f"{count(len(weaker))} other account slots: none has a smaller p than", _figures(weaker[0], 1))
            )
    return rows


def _figures(found: Mapping[str, Any], family: int) -> list[tuple[str, Any]]:
    rank, corrected = found["rank"], found["facts"].get("log10_p_family")
    over = count(found["facts"].get("family", family))
    return [
        ("Counted", count(found["n_scored"])),
        ("Sum or count found", f"{found['statistic']:,.6g}".replace("-", "−")),
        ("p by itself", p_words(found["log10_p"])),
        ("p, corrected", MISSING if corrected is None else f"{p_words(corrected)} (for {over})"),
        ("Decoys that do as well", f"{count(rank[0])} of {count(rank[1])}" if rank else MISSING),
    ]


def _controls(controls: Mapping[str, Any], alpha: float, primary: str) -> list[tuple[str, list[tuple[str, Any]]]]:
    rows = []
    for name, some in sorted(controls.items()):
        for one in some:
            rejects = one["log10_p"] <= math.log10(alpha)
            said = "rejected: this innocent model, too" if rejects else "not rejected"
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
    flaws = mapping(case.subject, "answers", "flaw")
    for flaw, label in (("content_filter", "Answers withheld by a filter"), ("empty", "Empty answers")):
        if flaws.get(flaw):
            rows.append((label, count(flaws[flaw])))
    if spent.get("requests"):
        paid = usd(spent.get("usd")) if spent.get("usd") else "no price, or none known"
        rows.append(("Requests sent to the suspect and the controls", f"{count(spent['requests'])}, {paid}"))
    return rows


_COUNTED = ("planned", "answered", "failed", "lines")


def _effect(one: Mapping[str, Any]) -> dict[str, Any] | None:
    """What was seen beside what the hypothesis predicts, as places (0 to 100) on one scale; None if nothing was."""
    effect, kind = one["effect"], KINDS[one["kind"]]
    value, under = number(effect.get("value")), number(effect.get("under_null"))
    if value is None or under is None or not one["n_scored"]:
        return None
    ci = effect.get("ci95")
    low, high = ([number(end) for end in ci] if isinstance(ci, list) and len(ci) == 2 else [None, None])[:2]
    ends = [x for x in (value, under, low, high) if x is not None]
    least, most = min(ends), max(ends)
    if least >= 0 and most <= 1:
        least, most = 0.0, 1.0
    else:
        room = 0.1 * ((most - least) or 1.0)
        least, most = (max(0.0, least - room) if least >= 0 else least - room), most + room

    def place(x: float) -> str:
        return f"{100 * (x - least) / (most - least):.2f}"

    name, meaning = str(effect.get("name", "effect")), kind["effect"]
    return {
        "title": kind["title"],
        "name": name,
        "meaning": meaning.get(name, "") if isinstance(meaning, dict) else meaning,
        "value": f"{value:.3g}",
        "under": f"{under:.3g}",
        "low": None if low is None else f"{low:.3g}",
        "high": None if high is None else f"{high:.3g}",
        "at": place(value),
        "at_under": place(under),
        "at_low": None if low is None else place(low),
        "width": None if low is None or high is None else f"{100 * (high - low) / (most - least):.2f}",
        "least": f"{least:.3g}",
        "most": f"{most:.3g}",
        "scored": f"{count(one['n_scored'])} {kind['unit']}",
    }
