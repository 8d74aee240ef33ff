"""The page of a case: careful words, nothing unescaped, nothing loaded, readable in a real browser."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from browser import CHROMIUM, MISSING, chromium, tab
from page_kit import Page
from spiritsafe.audit._case import Case
from spiritsafe.audit._results import finding, outcome_json
from spiritsafe.audit._types import Hypothesis, Outcome
from spiritsafe.report import render_case
from spiritsafe.report._case_words import KINDS, one_in

HOSTILE = "<script>alert(1)</script>\"'&<img src=x onerror=alert(1)>"
NULL = "The suspect does not depend on the coins."


def outcome(
    log10_p: float = -9.2, *, kind: str = "twins", most: Any = "proof", name: str | None = None, **more: Any
) -> Outcome:
    test = name or kind
    facts: dict[str, Any] = {
        "test": test, "kind": kind, "most": most, "log10_p": log10_p, "n_scored": 120, "family": 1,
        "hypotheses": (Hypothesis(test, log10_p, 120, 94.0),), "notes": (),
        "effect": {"name": "released preferred", "value": 0.783, "ci95": [0.7, 0.853], "under_null": 0.5, "pairs": 120},
    }  # fmt: skip
    return Outcome(**(facts | more))


def case(*outcomes: Outcome, text: str = "", unanchored: tuple[str, ...] = (), controls: Any = None) -> Case:
    nulls = {one.test: f"{NULL}{text}" for one in outcomes}
    found = finding(outcomes, nulls, 1e-3, unanchored=unanchored, controls=controls or {})
    plan = {"name": "case", "question": f"Was it trained on our replies? {text}", "statement": text, "alpha": 1e-3,
            "signer": None, "tsa": text or None}  # fmt: skip
    document = {"plan": plan, "nulls": nulls, "frozen_at": "2026-11-24T18:00:00Z", "superseded": ["x"], "abandoned": 2}
    results = {
        "tests": [outcome_json(one) for one in outcomes],
        "controls": {name: [outcome_json(one) for one in some] for name, some in (controls or {}).items()},
        "attempts": 3,
        "finding": found.to_dict(),
    }
    subject = {"name": f"suspect {text}", "address": text or "https://x", "model": text, "access": "logprobs",
               "changes": [text] if text else [], "notes": [], "spent": {"requests": 9, "usd": 0.5}}  # fmt: skip
    counts = {one.test: {"planned": 130, "answered": 120, "failed": 4, "lines": 128} for one in outcomes}
    return Case(document, "ab" * 32, json.loads(json.dumps(results)), subject, [{"ts": 1795000000.0}], counts)


def page_of(tmp_path: Path, made: Case) -> Page:
    (tmp_path / "report.html").write_text(render_case(made), encoding="utf-8")
    return Page(tmp_path / "report.html")


def test_it_says_question_finding_effect_attempts_limits_and_how_to_check(tmp_path: Path) -> None:
    made = case(outcome(), outcome(-0.2, kind="canaries", notes=("3 canaries are not opened.",)))
    page = page_of(tmp_path, made)
    assert made.results["finding"]["statement"] in page.text
    assert {"finding", "effect", "method", "tests", "subject", "controls", "course", "limits", "check"} <= set(page.ids)
    for said in ("Was it trained", "Seen: 0.783", "Expected if the hypothesis is true: 0.5", "3 canaries are not opened",
                 "6.4 × 10⁻¹⁰", "1 in 1.5 thousand million", "not rejected", "It does not say how probable it is",
                 "spiritsafe audit verify CASE.zip", "9 requests"):  # fmt: skip
        assert said in page.text, said
    course = page.section("course")
    assert re.search(r"Questions not asked</th><td>12<", course) and re.search(r"started</th><td>3<", course)


@pytest.mark.parametrize("grade", ["proof", "lead", "inconclusive"])
def test_no_page_gives_odds_of_guilt(tmp_path: Path, grade: str) -> None:
    made = {
        "proof": case(outcome()),
        "lead": case(outcome(), unanchored=("x",)),
        "inconclusive": case(outcome(-0.1)),
    }[grade]
    assert made.results["finding"]["class"] == grade
    text = page_of(tmp_path, made).text.lower()
    assert not re.search(r"guilt|\binnocent of\b|\d+ ?% (likely|sure|confiden)|certain(ly|ty)|was distilled", text)
    assert "not the probability" in text or grade == "inconclusive"
    assert ("does not clear" in text) == (grade == "inconclusive")


def test_later_tests_count_only_while_those_before_rejected(tmp_path: Path) -> None:
    page = page_of(tmp_path, case(outcome(-0.1), outcome(-20.0, kind="canaries")))
    assert "exploratory: a test before it did not reject, though its p is small" in page.text


def test_a_control_that_is_accused_is_shown(tmp_path: Path) -> None:
    made = case(outcome(), controls={"innocent": [outcome(-5.0)]})
    assert made.results["finding"]["class"] == "lead"
    page = page_of(tmp_path, made)
    assert "the test accuses it, too" in page.text and "comes out the same way (innocent)" in page.text


def test_what_comes_from_outside_is_escaped_and_nothing_is_loaded(tmp_path: Path) -> None:
    page = page_of(tmp_path, case(outcome(notes=(HOSTILE,), name="twins"), text=HOSTILE))
    assert not [tag for tag, _ in page.tags if tag in ("script", "img", "iframe", "object", "embed", "form")]
    assert not [attrs for _, attrs in page.tags if any(name.startswith("on") for name in attrs)]
    assert not re.search(r"""(src|href)=["'](?!data:,)""", page.source)
    assert "default-src 'none'" in page.source


def test_every_kind_of_test_is_explained(tmp_path: Path) -> None:
    assert set(KINDS) == {"radioactivity", "twins", "canaries", "lineage", "equality", "similarity"}
    for kind in KINDS:
        effect: Any = (
            {"name": "x", "value": None, "under_null": 0}
            if kind == "lineage"
            else {"name": "x", "value": 3.0, "under_null": 1}
        )
        page = page_of(tmp_path, case(outcome(kind=kind, most="lead", effect=effect)))
        assert KINDS[kind]["title"] in page.text


def test_the_same_case_gives_the_same_page() -> None:
    assert render_case(case(outcome())) == render_case(case(outcome()))


@given(st.floats(-14.9, -0.31))
def test_one_in_never_says_rarer_than_it_is(log10_p: float) -> None:
    said = one_in(log10_p).removeprefix("1 in ")
    scale = 1.0
    for word, size in (("million million", 1e12), ("thousand million", 1e9), ("million", 1e6), ("thousand", 1e3)):
        if said.endswith(word):
            said, scale = said.removesuffix(word).strip(), size
            break
    value = float(said.replace(",", "")) * scale
    assert value <= 10**-log10_p * (1 + 1e-6) and value >= 0.85 * 10**-log10_p - 1


@pytest.mark.skipif(CHROMIUM is None, reason=MISSING)
async def test_in_a_real_browser(tmp_path: Path) -> None:
    made = case(
        outcome(), outcome(-0.2, kind="canaries"), text="x" * 200 + HOSTILE, controls={"c" * 60: [outcome(-0.3)]}
    )
    (tmp_path / "report.html").write_text(render_case(made), encoding="utf-8")
    with chromium(tmp_path / "profile") as port:
        async with tab(port) as opened:
            for width, scheme in ((1200, "light"), (390, "dark"), (768, "light")):
                await opened.resize(width, scheme)
                await opened.show((tmp_path / "report.html").as_uri())
                assert await opened.overflowing() == ""
            assert opened.complaints() == []
            assert all(url.startswith(("file:", "data:")) for url in opened.requested())
            printed = await opened.call("Page.printToPDF", printBackground=True)
            assert len(printed["result"]["data"]) > 10_000
