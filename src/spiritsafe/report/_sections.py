"""The parts of the page that are read off the manifest and curation.json: money, curation, terms, lineage."""

from __future__ import annotations

from typing import Any

from spiritsafe.report._format import MISSING, count, dig, duration, mapping, number, usd

__all__ = ["costs", "curation", "manifest_section", "terms"]


_SPENT_ON = {
    "answered": "… on answers kept",
    "retried": "… on answers not kept",
    "lost": "… reserved for requests in flight or lost",
}


def costs(metrics: dict[str, Any], manifest: dict[str, Any]) -> list[tuple[str, str]]:
    """Rows of the cost table; empty when nothing was collected."""
    summary = dig(manifest, "stages", "collect", "summary")
    facts = {**(mapping(metrics, "collected")), **(summary if isinstance(summary, dict) else {})}
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
    by = facts.get("usd_by")
    for reason, label in _SPENT_ON.items():
        if number(dig(by, reason)):
            rows.append((label, usd(dig(by, reason))))
    if number(facts.get("reused")):
        rows.append(("Answers reused from other runs, at no cost", count(facts["reused"])))
    known = (
        [_price(kind, amount) for kind, amount in price.items() if kind.endswith("_per_mtok") and amount]
        if isinstance(price, dict)
        else []
    )
    if known:
        rows.append(("Price per million tokens", ", ".join(known)))
    bad = facts.get("bad")
    if isinstance(bad, dict) and bad:
        rows.append(("Flawed or missing answers", ", ".join(f"{kind}: {count(n)}" for kind, n in bad.items())))
    return rows


def _price(kind: str, amount: Any) -> str:
    """One price of a recipe, where prices stand as exact decimal strings."""
    dollars = f"${amount}" if isinstance(amount, str) else usd(amount)
    return f"{dollars} {kind.removesuffix('_per_mtok').replace('_', ' ')}"


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
    return [_example(e) if isinstance(e, dict) else str(e) for e in examples]


def _example(example: dict[str, Any]) -> str:
    why = f" ({example['why']})" if example.get("why") else ""
    return f"{example.get('prompt') or MISSING} → {example.get('completion') or MISSING}{why}"


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
        return ", ".join(dict.fromkeys(_entry(e) for e in entries))
    return str(entries or "")


def _entry(entry: Any) -> str:
    if not isinstance(entry, dict):
        return str(entry)
    checked = f", checked {entry['checked']}" if entry.get("checked") else ""
    return f"{entry.get('name') or entry.get('id') or MISSING}{checked}"


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
