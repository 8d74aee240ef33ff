"""From a guard's figures to what its page shows. What is not there is a plain statement."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from spiritsafe.report._charts import days_plot
from spiritsafe.report._format import MISSING, count, decimal, percent, usd
from spiritsafe.report._guard_accounts import OnLadder
from spiritsafe.report._guard_figures import DAYS, GuardFigures
from spiritsafe.report._guard_limits import Near
from spiritsafe.report._guard_replies import Latency
from spiritsafe.report._guard_sums import AccountSum, Amounts
from spiritsafe.report._guard_words import guard_limits, guard_verdict, what_was_checked
from spiritsafe.serve._config import GuardConfig, Tier

__all__ = ["guard_view"]

_STATUSES = {
    "ok": "Answered",
    "length_cut": "Answered, cut at the token limit",
    "client_gone": "The client left before the end",
    "upstream_error": "The upstream failed",
    "stream_broken": "The stream broke off",
    "lost": "Lost in a crash, charged for what had left",
}
_NAMED = 6
_CANARIES = {"active": "answered", "pending": "not in the ledger yet", "retired": "retired"}


def guard_view(figures: GuardFigures, config: GuardConfig) -> dict[str, Any]:
    """The template's context."""
    books, sums, people = figures.books, figures.sums, figures.people
    return {
        "models_served": _several(config.models),
        "at": datetime.fromtimestamp(figures.at, UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "since": figures.since,
        "days": DAYS,
        "names": figures.names,
        "verdict": guard_verdict(figures),
        "problems": [*books.problems, *books.differences],
        "more_problems": max(0, books.problem_count - len(books.problems)),
        "cards": _cards(figures),
        "chart": _chart(sums.days),
        "by_day": [(day, _cells(amounts)) for day, amounts in reversed(sums.days) if amounts.requests],
        "by_model": [(model, [*_cells(amounts), _share(amounts, sums.window)]) for model, amounts in sums.models],
        "concentration": _concentration(figures),
        "top": [_top(row, sums.window) for row in sums.accounts],
        "covered": _covered(figures),
        "statuses": [
            (_STATUSES.get(status, status), f"{count(n)} ({percent(n / books.recent.count, 1)})")
            for status, n in books.recent.statuses.items()
        ],
        "latency": [
            (label, _latency_cells(latency))
            for label, latency in (("Whole replies", books.recent.whole), ("Streams", books.recent.streamed))
            if latency.count
        ],
        "near": [_near(one) for one in figures.near.found],
        "more_near": figures.near.count - len(figures.near.found),
        "threshold": percent(figures.near.threshold),
        "unknown_tier": figures.near.unknown_tier,
        "policy": _policy(figures, config),
        "notes": [(note, count(n)) for note, n in list(books.recent.notes.items())[:12]],
        "tiers": [_tier(name, tier, people.tiers.get(name, 0)) for name, tier in config.tiers.items()],
        "ladder": [
            {
                "who": _who(one.kind, one.id, one.name),
                "id": one.id if one.name else None,
                "step": _step(one, config),
                "acts": one.acts,
                "reason": one.reason,
                "decided": " · ".join(filter(None, (one.decided_by, _day(one.at)))),
            }
            for one in people.ladder
        ],
        "ladder_shadow": config.ladder.shadow,
        "ladder_counts": ", ".join(f"{step.replace('_', ' ')}: {count(n)}" for step, n in people.steps.items()),
        "more_ladder": people.ladder_count - len(people.ladder),
        "terms": _terms(figures, config),
        "unaccepted": [(_who("account", one.id, one.name), one.version or "none") for one in people.unaccepted],
        "more_unaccepted": people.unaccepted_count - len(people.unaccepted),
        "suspended": [
            {
                "who": _who("account", one.id, one.name),
                "since": MISSING if one.since is None else _day(one.since),
                "reason": one.reason,
                "appeal": one.appeal,
            }
            for one in people.suspended
        ],
        "more_suspended": people.suspended_count - len(people.suspended),
        "checked": what_was_checked(books),
        "anchor": f"{books.last}:{books.head}" if books.rows else "",
        "limits": guard_limits(figures, config),
    }


def _cards(figures: GuardFigures) -> list[dict[str, str]]:
    window, ever, people = figures.sums.window, figures.sums.ever, figures.people
    asked = figures.sums.concentration.accounts
    suspended = f", {count(people.suspended_count)} suspended" if people.suspended_count else ""
    return [
        {"label": "Requests", "value": count(window.requests), "note": f"{count(ever.requests)} since the first one"},
        {
            "label": "Output tokens",
            "value": _short(window.tokens_out),
            "note": f"{_short(window.tokens_in)} input tokens; {_short(ever.tokens_out)} output ever",
        },
        {"label": "Charged", "value": usd(window.usd), "note": f"{usd(ever.usd)} since the first request"},
        {"label": "Accounts that asked", "value": count(asked), "note": f"of {count(people.accounts)}{suspended}"},
    ]


def _chart(days: Sequence[tuple[str, Amounts]]) -> Any:
    """The plot, or a statement why there is none."""
    if not any(amounts.requests for _, amounts in days):
        return f"No requests in the last {DAYS} days, so there is nothing to draw."
    panels = (
        ("requests", [float(amounts.requests) for _, amounts in days], _short),
        ("tokens, in and out", [float(amounts.tokens_in + amounts.tokens_out) for _, amounts in days], _short),
        ("dollars", [amounts.usd for _, amounts in days], usd),
    )
    try:
        return days_plot([day for day, _ in days], panels)
    except ModuleNotFoundError as error:
        missing = f"the package {error.name} is not installed (pip install 'spiritsafe[report]')"
        return f"Not drawn: {missing}. The numbers are below."


def _cells(amounts: Amounts) -> list[tuple[str, str]]:
    return [
        ("Requests", count(amounts.requests)),
        ("Tokens in", count(amounts.tokens_in)),
        ("Tokens out", count(amounts.tokens_out)),
        ("Charged", usd(amounts.usd)),
    ]


def _share(amounts: Amounts, whole: Amounts) -> tuple[str, str]:
    return ("Share of output", percent(amounts.tokens_out / whole.tokens_out, 1) if whole.tokens_out else MISSING)


def _concentration(figures: GuardFigures) -> str:
    found = figures.sums.concentration
    if found.top is None:
        return ""
    if found.accounts == 1:
        return "One account asked, so all output tokens are its own."
    half = "one account" if found.half == 1 else f"{count(found.half)} accounts"
    ten = f" The ten largest took {percent(found.top)}." if found.accounts > 10 else ""
    return f"Of {count(found.accounts)} accounts that asked, {half} took at least half of all output tokens.{ten}"


def _top(row: AccountSum, whole: Amounts) -> tuple[str, str | None, list[tuple[str, str]]]:
    detail = " · ".join(filter(None, (row.account if row.name else None, row.org)))
    return row.name or row.account, detail or None, [*_cells(row.amounts), _share(row.amounts, whole)]


def _covered(figures: GuardFigures) -> str:
    recent = figures.books.recent
    if not recent.count:
        return ""
    if recent.complete:
        return f"All {count(recent.count)} replies of these {DAYS} days."
    return (
        f"The newest {count(recent.count)} replies, of {count(figures.sums.window.requests)} in these {DAYS} days: "
        f"this report reads at most {count(figures.most_rows)} rows of the ledger."
    )


def _latency_cells(latency: Latency) -> list[tuple[str, str]]:
    quantiles = (("Median", latency.p50), ("90 % within", latency.p90), ("99 % within", latency.p99))
    return [("Replies", count(latency.count)), *((label, _ms(value)) for label, value in quantiles)]


def _near(one: Near) -> dict[str, Any]:
    show = usd if one.rule.startswith("usd") else count
    return {
        "who": _who(one.subject, one.id, one.name),
        "rule": one.rule.replace("usd_", "dollars_").replace("_", " "),
        "used": f"{show(one.used)} of {show(one.allowed)}",
        "share": percent(one.share) if one.allowed else "nothing allowed",
        "over": one.used >= one.allowed,
        "shadow": one.shadow,
    }


def _policy(figures: GuardFigures, config: GuardConfig) -> list[tuple[str, str]]:
    recent, evidence = figures.books.recent, figures.evidence
    canaries = ", ".join(f"{count(n)} {_CANARIES.get(state, state)}" for state, n in evidence.canaries.items())
    pairs = count(evidence.twin_pairs)
    if evidence.twins_until is not None:
        pairs += f", the first until {_day(evidence.twins_until)}"
    marked = _part(recent.marked, recent.count)
    if not any(tier.watermark for tier in config.tiers.values()):
        marked += "; no tier is set to mark"
    return [
        ("Replies marked with an account's key", marked),
        ("Replies with log-probabilities asked for", _part(recent.logprobs, recent.count)),
        ("Replies released as one of a twin pair", _part(recent.twins, recent.count)),
        ("Twin pairs kept", pairs),
        ("Canaries", canaries or "none"),
        ("Accounts bound to a watermark slot", count(evidence.slots)),
    ]


def _part(n: int, whole: int) -> str:
    return f"{count(n)} ({percent(n / whole, 1)})" if whole else "no replies yet"


def _tier(name: str, tier: Tier, accounts: int) -> tuple[str, list[tuple[str, str]]]:
    return name, [
        ("Accounts", count(accounts)),
        ("Marked", "yes" if tier.watermark else "no"),
        ("Twins", percent(tier.twin_share, 1) if tier.twin_share else "none"),
        ("Log-probabilities", f"up to {tier.logprobs}" if tier.logprobs else "off"),
        ("Reasoning", {"show": "shown", "withhold": "withheld", "summarise": "summarised"}[tier.reasoning]),
        ("Most tokens", count(tier.max_tokens)),
    ]


def _step(one: OnLadder, config: GuardConfig) -> str:
    step = one.step.replace("_", " ")
    if one.step == "observe":
        return step
    return f"{step}, {'acts' if one.acts else 'in shadow' if one.shadow or config.ladder.shadow else 'turned off'}"


def _terms(figures: GuardFigures, config: GuardConfig) -> str:
    if config.terms is None:
        return "The guard has no terms, so nobody was asked to accept any."
    version, missing = config.terms.version, figures.people.unaccepted_count
    if not figures.people.accounts:
        return f"Version {version} is in force; there are no accounts yet."
    if not missing:
        return f"Every active account has accepted version {version}."
    one = missing == 1
    who = "One active account has" if one else f"{count(missing)} active accounts have"
    refused = "is refused until it does" if one else "are refused until they do"
    so = refused if config.terms.required else "may ask all the same: it is not required"
    return f"{who} not accepted version {version}, and {so}."


def _who(kind: str, id: str | None, name: str | None) -> str:
    if kind == "account":
        return name or id or MISSING
    return f"{kind} {id}" if id else f"{_article(kind)} {kind}"


def _article(noun: str) -> str:
    return "an" if noun[0] in "aeiou" else "a"


def _several(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _day(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d")


def _short(value: float) -> str:
    """A count in a few letters: 950, 12.3 k, 4.5 M."""
    for unit, size in ((" B", 1e9), (" M", 1e6), (" k", 1e4)):
        if value >= size:
            return f"{value / (1e3 if unit == ' k' else size):.1f}{unit}"
    return count(value)


def _ms(value: float | None) -> str:
    if value is None:
        return MISSING
    return f"{decimal(value / 1000)} s" if value >= 1000 else f"{decimal(value, 0 if value >= 10 else 1)} ms"
