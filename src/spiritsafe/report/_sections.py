"""The parts of the page that are read off the manifest and curation.json: money, curation, terms, lineage."""

from __future__ import annotations

from typing import Any

from spiritsafe.report._format import MISSING, count, dig, duration, number, usd

__all__ = ["costs", "curation", "manifest_section", "terms"]


def costs(metrics: dict[str, Any], manifest: dict[str, Any]) -> list[tuple[str, str]]:
    """Rows of the cost table; empty when nothing was collected."""
    summary = dig(manifest, "stages", "collect", "summary")
    facts = {**(dig(metrics, "collected") or {}), **(summary if isinstance(summary, dict) else {})}
    if not facts:
        return []
    spent, cap = number(facts.get("usd")), number(facts.get("budget_usd"))
    price = dig(manifest, "recipe", "teacher", "price")
    rows = [
        ("Answers collected", count(facts.get("exchanges"))),
        ("Tokens in", count(facts.get("tokens_in"))),
        ("Tokens out", count(facts.get("tokens_out"))),
        ("Spent", usd(spent)),
        ("Cap", usd(cap) if cap is not None else "none in dollars"),
    ]
    if spent is not None and cap:
        rows.append(("Share of the cap", f"{100 * spent / cap:.1f} %"))
    if number(facts.get("in_flight_usd")) is not None:
        rows.append(("Still reserved for requests in flight", usd(facts["in_flight_usd"])))
    if isinstance(price, dict):
        known = [
            f"{usd(v)} {k.removesuffix('_per_mtok').replace('_', ' ')}"
            for k, v in price.items()
            if number(v) is not None
        ]
        rows.append(("Price per million tokens", ", ".join(known) or MISSING))
    bad = facts.get("bad")
    if isinstance(bad, dict) and bad:
        rows.append(("Bad answers, by kind", ", ".join(f"{kind}: {count(n)}" for kind, n in bad.items())))
    return rows


def curation(report: dict[str, Any]) -> dict[str, Any] | None:
    """What was kept and dropped; None when there is no curation.json."""
    if not report:
        return None
    reasons = []
    dropped = report.get("dropped")
    examples = report.get("examples")
    for reason, entry in dropped.items() if isinstance(dropped, dict) else ():
        number_dropped = entry.get("count") if isinstance(entry, dict) else entry
        shown = entry.get("examples") if isinstance(entry, dict) else dig(examples, reason)
        reasons.append(
            {"reason": str(reason).replace("_", " "), "count": count(number_dropped), "examples": _texts(shown)}
        )
    return {"kept": count(report.get("kept")), "reasons": reasons}


def _texts(examples: Any) -> list[str]:
    if not isinstance(examples, list):
        return []
    return [
        " — ".join(f"{k}: {v}" for k, v in example.items()) if isinstance(example, dict) else str(example)
        for example in examples
    ]


def terms(manifest: dict[str, Any]) -> dict[str, Any]:
    """Decisions in order, and the overrides among them."""
    records = dig(manifest, "terms")
    rows = [record for record in records if isinstance(record, dict)] if isinstance(records, list) else []
    decisions = [
        {
            "stage": str(row.get("stage") or MISSING),
            "status": str(row.get("status") or MISSING).replace("_", " "),
            "reason": str(row.get("reason") or ""),
            "entries": _entries(row.get("entries")),
            "accepted": str(row["accepted"]) if row.get("accepted") else "",
        }
        for row in rows
    ]
    stages: dict[tuple[str, str], list[str]] = {}
    for row in decisions:
        if row["accepted"]:
            stages.setdefault((row["status"], row["accepted"]), []).append(row["stage"])
    overrides = [{"stages": ", ".join(names), "status": s, "accepted": why} for (s, why), names in stages.items()]
    return {"decisions": decisions, "overrides": overrides}


def _entries(entries: Any) -> str:
    if isinstance(entries, list):
        return ", ".join(str(dig(e, "id") or e) for e in entries)
    return str(entries or "")


def manifest_section(manifest: dict[str, Any]) -> dict[str, Any]:
    """Versions, seeds and the hash of every output."""
    stages = dig(manifest, "stages")
    outputs, times = [], []
    for stage, facts in stages.items() if isinstance(stages, dict) else ():
        times.append((str(stage), duration(dig(facts, "seconds"))))
        found = dig(facts, "outputs")
        outputs += [
            (str(stage), str(dig(output, "path") or MISSING), str(dig(output, "sha256") or MISSING))
            for output in (found.values() if isinstance(found, dict) else ())
        ]
    return {
        "outputs": outputs,
        "times": times,
        "versions": _pairs(manifest, "versions"),
        "seeds": _pairs(manifest, "seeds"),
    }


def _pairs(manifest: dict[str, Any], key: str) -> list[tuple[str, str]]:
    found = dig(manifest, key)
    return [(str(k), str(v)) for k, v in found.items()] if isinstance(found, dict) else []
