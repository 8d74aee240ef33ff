"""From a run directory to what the page shows. Every missing piece becomes a plain statement, never a crash."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from spiritsafe.report._charts import interval_plot, loss_plot
from spiritsafe.report._format import (
    MISSING,
    count,
    decimal,
    dig,
    duration,
    mapping,
    millions,
    number,
    percent,
    times,
    usd,
)
from spiritsafe.report._sections import costs, curation, manifest_section, terms
from spiritsafe.report._words import beats_untrained, limits, nll_gap, unit, verdict
from spiritsafe.runs import Run

__all__ = ["view"]


def view(run: Run) -> dict[str, Any]:
    """The template's context.

    Raises:
        BadInput: the manifest is damaged.
    """
    manifest = run.manifest()
    missing: list[str] = []
    metrics = _load(run.metrics, dict, "no measurements yet: run `spiritsafe evaluate`", missing)
    samples = _load(run.samples, list, "no sample answers yet: run `spiritsafe evaluate`", missing)
    dropped = _load(run.curation, dict, "nothing curated yet: run `spiritsafe curate`", missing)
    recipe = mapping(manifest, "recipe")
    return {
        "name": str(dig(manifest, "name") or dig(recipe, "name") or run.path.name),
        "created": str(dig(manifest, "created") or "")[:10],
        "teacher_name": str(dig(recipe, "teacher", "model") or dig(recipe, "teacher", "path") or "the teacher"),
        "verdict": verdict(metrics),
        "measured": nll_gap(metrics) is not None,
        "missing": missing,
        "recovered": _recovered(metrics),
        "companions": _companions(metrics),
        "cards": _cards(metrics),
        "comparison": _comparison(metrics),
        "comparison_note": _comparison_note(metrics),
        "loss": _loss(run.train_log),
        "training": _training(metrics, manifest),
        "costs": costs(metrics, manifest),
        "curation": curation(dropped),
        "samples": [{key: str(row.get(key) or MISSING) for key in _SAMPLE} for row in samples if isinstance(row, dict)],
        "sampling": _sampling(metrics),
        "terms": terms(manifest),
        "limits": limits(metrics),
        "manifest": manifest_section(manifest),
        "recipe_yaml": yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True) if recipe else "",
    }


_SAMPLE = ("prompt", "teacher", "student", "base")


def _load(path: Path, kind: type, absent: str, missing: list[str]) -> Any:
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        missing.append(f"{path.name}: {absent}")
        return kind()
    except (OSError, ValueError) as error:
        missing.append(f"{path.name}: cannot be read ({error})")
        return kind()
    if not isinstance(loaded, kind):
        missing.append(f"{path.name}: not what this report reads (expected a JSON {kind.__name__})")
        return kind()
    return loaded


def _recovered(metrics: dict[str, Any]) -> dict[str, Any] | None:
    found = dig(metrics, "recovered")
    if not isinstance(found, dict):
        return None
    value, ci = number(found.get("value")), found.get("ci95")
    bounds = [number(x) for x in ci] if isinstance(ci, list) and len(ci) == 2 else []
    low, high = bounds if len(bounds) == 2 else (None, None)
    if value is None or low is None or high is None:
        return {"refused": str(found.get("refused") or "it could not be computed")}
    return {
        "value": percent(value),
        "ci": f"{percent(low)} to {percent(high)}",
        "plot": interval_plot(value, (low, high), _untrained_recovered(metrics)),
        "has_untrained": _untrained_recovered(metrics) is not None,
    }


def _untrained_recovered(metrics: dict[str, Any]) -> float | None:
    teacher, base, untrained = (number(dig(metrics, who, "nll")) for who in ("teacher", "base", "best_untrained"))
    if teacher is None or base is None or untrained is None or teacher == base:
        return None
    return (untrained - base) / (teacher - base)


def _companions(metrics: dict[str, Any]) -> list[dict[str, str]]:
    """What `recovered` is never shown without."""
    student, untrained = mapping(metrics, "student"), mapping(metrics, "best_untrained")
    beats = beats_untrained(metrics)
    if beats is None:
        against = "no untrained prune to compare with"
    else:
        ahead = "ahead of it on every measure" if beats else "not ahead of it on every measure"
        against = f"best untrained prune, {count(untrained.get('layers'))} layers: the student is {ahead}"
    return [
        {
            "label": "Top-1 agreement",
            "value": percent(student.get("top1_agreement")),
            "note": f"of tokens: the teacher's first choice is the student's{_ci(student, 'top1_agreement', percent)}",
        },
        {
            "label": "NLL gap",
            "value": decimal(nll_gap(metrics)),
            "note": f"nats {unit(metrics)} above the teacher on its own answers{_ci(student, 'nll_gap', decimal)}",
        },
        {
            "label": "Untrained prune",
            "value": f"KL {decimal(untrained.get('kl'))}" if number(untrained.get("kl")) is not None else MISSING,
            "note": f"{against}"
            + (f" (KL {decimal(student.get('kl'))})" if number(student.get("kl")) is not None else ""),
        },
    ]


def _ci(row: dict[str, Any], key: str, show: Any) -> str:
    bounds = row.get(f"{key}_ci95")
    if not isinstance(bounds, list) or len(bounds) != 2 or None in map(number, bounds):
        return ""
    return f" (95 %: {show(bounds[0])} to {show(bounds[1])})"


def _cards(metrics: dict[str, Any]) -> list[dict[str, str]]:
    teacher, student = mapping(metrics, "teacher"), mapping(metrics, "student")
    big, small = number(teacher.get("params")), number(student.get("params"))
    saved = f"{percent(1 - small / big)} smaller than the teacher" if big and small else "teacher's size unknown"
    spent, cap = dig(metrics, "collected", "usd"), dig(metrics, "collected", "budget_usd")
    return [
        {
            "label": "Speed",
            "value": times(dig(metrics, "speed", "ratio")),
            "note": "the teacher's tokens per second, same run, same engine"
            if number(dig(metrics, "speed", "ratio")) is not None
            else str(dig(metrics, "speed", "note") or "not measured"),
        },
        {"label": "Size", "value": millions(small), "note": f"parameters, {saved}"},
        _running_cost(student, teacher),
        {
            "label": "Spent on lessons",
            "value": usd(spent),
            "note": f"of a {usd(cap)} cap" if number(cap) is not None else "no cap in dollars",
        },
    ]


def _running_cost(student: dict[str, Any], teacher: dict[str, Any]) -> dict[str, str]:
    """Dollars per million tokens where the hardware's price is known, relative compute where it is not."""
    price = number(teacher.get("usd_per_mtok"))
    billed = (
        f"the teacher is billed at {usd(price)} per million output tokens"
        if price is not None
        else "the teacher's price is unknown"
    )
    if number(student.get("usd_per_mtok")) is not None:
        return {
            "label": "Cost to run",
            "value": usd(student["usd_per_mtok"]),
            "note": f"per million output tokens; {billed}",
        }
    big, small = number(teacher.get("params")), number(student.get("params"))
    relative = times(small / big) if big and small else MISSING
    return {"label": "Compute per token", "value": relative, "note": f"of the teacher's, by parameters; {billed}"}


_ROWS = (
    ("teacher", "Teacher"),
    ("student", "Student"),
    ("best_untrained", "Best untrained prune"),
    ("base", "Untrained start"),
)


def _comparison(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for key, label in _ROWS:
        model = dig(metrics, key)
        if not isinstance(model, dict) or not any(number(v) is not None for v in model.values()):
            continue
        cells = [
            ("Layers", count(model.get("layers"))),
            ("Parameters", millions(model.get("params"))),
            ("NLL", decimal(model.get("nll"), 3)),
            (
                "KL",
                "0"
                if key == "teacher" and number(dig(metrics, "student", "kl")) is not None
                else decimal(model.get("kl"), 3),
            ),
            ("Agreement", MISSING if key == "teacher" else percent(model.get("top1_agreement"), 1)),
            ("Tokens/s", decimal(model.get("tok_per_s"), 0)),
            ("$/Mtok", usd(model.get("usd_per_mtok"))),
        ]
        rows.append({"key": key, "label": label, "cells": cells})
    return rows


def _comparison_note(metrics: dict[str, Any]) -> str:
    tokens, prompts = dig(metrics, "n_tokens"), dig(metrics, "n_prompts")
    if number(tokens) is None:
        return ""
    noun = "bytes" if dig(metrics, "nll_unit") == "byte" else "completion tokens"
    kind = dig(metrics, "kl_kind")
    kl = f" KL is forward, teacher to student, {kind}." if isinstance(kind, str) else ""
    same = f"All rows on the same {count(tokens)} held-out {noun} of {count(prompts)} prompts"
    own = dig(metrics, "best_untrained", "strategy") == "the student's start"
    start = " Of the untrained prunes tried, the student's own start was the best." if own else ""
    return f"{same}; NLL in nats {unit(metrics)}.{kl}{start}"


def _loss(path: Path) -> Any:
    """The loss plot, or a statement why there is none."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return "Not trained yet: run `spiritsafe train`."
    except (OSError, UnicodeDecodeError) as error:
        return f"{path.name} cannot be read ({error})."
    points: dict[float, float] = {}
    for index, line in enumerate(lines):
        try:
            row = json.loads(line)
        except ValueError:
            continue  # the last line of an interrupted run may be torn
        loss, step = number(dig(row, "loss")), number(dig(row, "step"))
        if loss is not None:
            points[float(index) if step is None else step] = loss
    if len(points) < 2:
        return "Fewer than two training steps were logged, so there is no curve to draw."
    steps = sorted(points)
    return loss_plot(steps, [points[s] for s in steps])


def _training(metrics: dict[str, Any], manifest: dict[str, Any]) -> str:
    facts = dig(manifest, "stages", "train", "summary") or mapping(metrics, "train")
    parts = []
    if number(dig(facts, "tokens")) is not None:
        parts.append(f"{count(facts['tokens'])} tokens seen, all epochs")
    if number(dig(facts, "seconds")) is not None:
        parts.append(duration(facts["seconds"]))
    if number(dig(facts, "peak_rss_mb")) is not None:
        parts.append(f"{count(facts['peak_rss_mb'])} MB peak memory")
    if number(dig(facts, "final_loss")) is not None:
        parts.append(f"final loss {decimal(facts['final_loss'])}")
    return " · ".join(parts)


def _sampling(metrics: dict[str, Any]) -> str:
    temperature, seed = dig(metrics, "samples", "temperature"), dig(metrics, "samples", "seed")
    if number(temperature) is None:
        return ""
    how = f"temperature {decimal(temperature, 1)}, seed {count(seed)}"
    return f"Drawn from the held-out prompts before anyone looked, {how}."
