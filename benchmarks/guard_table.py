"""The table of docs/guard/speed.md, from a result of guard.py."""

from __future__ import annotations

import json
from typing import Any

from study import ROOT, code, publish_between

from spiritsafe.runs import atomic_write

NAMES = {
    "direct": "the mock alone",
    "guard": "**guard**, one worker, limits in memory",
    "guard_redis": "guard, one worker, limits in Redis",
    "guard_redis_2": "guard, two workers, limits in Redis",
    "litellm": "LiteLLM {litellm}",
    "vllm_router": "vllm-router {vllm-router}",
    "portkey": "Portkey {portkey}",
}
COLUMNS = (
    ("requests/s, 32 connections", "rps", "{:,.0f}"),
    ("CPU µs/request", "cpu_us", "{:,.0f}"),
    ("one connection p50 / p99 ms", ("one_p50_ms", "one_p99_ms"), "{:.2f} / {:.2f}"),
    ("added p50 / p99", ("added_one_p50_ms", "added_one_p99_ms"), "{:.2f} / {:.2f}"),
    ("CPU µs/SSE event", "cpu_us_per_event", "{:,.0f}"),
    ("MB", "rss_mb", "{:,.0f}"),
)
OPEN = tuple(
    (f"{rate}/s p50 / p99 / p99.9 ms", tuple(f"open{rate}_{p}_ms" for p in ("p50", "p99", "p999")), "{:,.2f} / {:,.2f} / {:,.2f}")  # noqa: E501
    for rate in (50, 200, 500)
)  # fmt: skip


def publish(result: dict[str, Any]) -> None:
    """Write the result and the page's tables."""
    atomic_write(ROOT / "benchmarks/results/guard.json", json.dumps(result | {"code": code()}, indent=1) + "\n")
    publish_between(ROOT / "docs/guard/speed.md", page(result))


def page(result: dict[str, Any]) -> str:
    """Both tables, what the ratios are, and which targets were missed."""
    table, ratios, targets = result["medians"], result["ratios"], result["targets"]
    first, second = rows(table, result["peers"], COLUMNS), rows(table, result["peers"], OPEN)
    lines = [*first, "", "Open loop, latency from the time each request was due:", "", *second, ""]
    sizes = result["memory"]["rss_mb"]
    spent = result["overshoot"]
    low, high = ratios["rps_over_litellm_range"]
    judged = {
        "rps_over_litellm": f"requests/s over LiteLLM's {ratios['rps_over_litellm']}× ({low} to {high})",
        "added_p50_ms": f"added p50 {ratios['added_p50_ms']:.2f} ms",
        "added_p99_ms": f"added p99 {ratios['added_p99_ms']:.2f} ms",
        "cpu_us_per_event": f"CPU per SSE event {ratios['cpu_us_per_event']:.0f} µs",
        "memory_growth": f"memory {sizes[1]:.0f} MB after 40,000 requests, {sizes[-1]:.0f} MB after 200,000",
        "two_workers_cpu": f"CPU per request, two workers over one, {ratios['two_workers_cpu']:.2f}×",
        "overshoot_usd": f"overshoot ${spent['guard']['overshoot_usd']:g} of ${spent['budget_usd']:g}"
        f" (LiteLLM ${spent['litellm']['overshoot_usd']:g})",
    }
    for name, text in judged.items():
        bound = ("≥ " if name == "rps_over_litellm" else "≤ ") + f"{targets[name]:g}"
        lines.append(f"- {text}: target {bound}, {'**missed**' if name in result['missed'] else 'met'}")
    low_load, high_load = result["load"]
    lines += ["", f"Medians of {result['rounds']} alternating rounds; load average {low_load} to {high_load}."]
    return "\n".join(lines) + "\n"


def rows(table: dict[str, Any], versions: dict[str, str], columns: Any) -> list[str]:
    """A Markdown table, a gateway a row; a dash where nothing could be measured."""
    found = ["| | " + " | ".join(name for name, _, _ in columns) + " |", "|---|" + "---:|" * len(columns)]
    for side, values in table.items():
        cells = []
        for _, keys, form in columns:
            got = [values.get(key) for key in ((keys,) if isinstance(keys, str) else keys)]
            cells.append("–" if None in got else form.format(*got))
        found.append(f"| {NAMES[side].format(**versions)} | " + " | ".join(cells) + " |")
    return found
