"""The page of a case: careful words, nothing unescaped, nothing loaded, readable in a real browser."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
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
                 "6.4 × 10⁻¹⁰", "at most 1 in 1.5 thousand million", "not rejected", "It does not say how probable it is",
                 "spiritsafe audit verify CASE.zip"):  # fmt: skip
        assert said in page.text, said
    course = page.section("course")
    assert re.search(r"Questions not asked</th><td>12<", course) and re.search(r"started</th><td>3<", course)
    assert "the controls</th><td>9, $0.50<" in course


# How a p-value must never be read: as the probability of a hypothesis, of guilt, of innocence, of chance as the cause.
FORBIDDEN = re.compile(
    r"guilt|\binnocent of\b|\d+ ?% (likely|sure|confiden|probab)|certain(ly|ty)|beyond (any |a )?reasonable doubt"
    r"|(was|were|is|been) (copied|stolen|distilled)(?! \.| No statistical)|odds (of|that)|likelihood (of|that)"
    r"|(?<!not the )(?<!Neither is the )probability (that|of) (the (model|suspect|hypothesis|result) (is|was)|it|chance|guilt|innocence)"
    r"|chance that (the|it|this)|due to chance|proves that|proven|must have been|very likely|almost sure|confidence"
    r"|only explanation|ruled? out|exonerat|acquit|convict"
)


def every_page() -> Iterator[tuple[str, str]]:
    """(what it is, HTML) of a case of every kind and finding: controls that reject, nothing counted, plans tried before."""
    for kind, words in KINDS.items():
        names = list(words["effect"]) if isinstance(words["effect"], dict) else ["x"]
        effect = {"name": names[0], "value": 0.9, "ci95": [0.8, 1.0], "under_null": 0.5}
        keyed = "fixed" in words
        for log10_p, unanchored, accused in ((-9.2, (), False), (-200.0, ("plan: x; do y",), True), (-0.1, (), False)):
            one = outcome(log10_p, kind=kind, most="proof" if keyed and not accused else "lead", effect=effect)
            innocent = {"innocent": [one]} if accused else {}
            yield f"{kind} {log10_p}", render_case(case(one, unanchored=unanchored, controls=innocent))
        yield f"{kind} nothing", render_case(case(outcome(0.0, kind=kind, n_scored=0, effect=effect)))


def test_no_page_gives_odds_of_guilt(tmp_path: Path) -> None:
    for what, source in every_page():
        (tmp_path / "page.html").write_text(source, encoding="utf-8")
        text = re.sub(r"\s+", " ", Page(tmp_path / "page.html").text)
        # the one sentence that names the misreading in order to deny it
        text = text.replace("It does not say how probable it is that the model was copied. No statistical test", "")
        said = FORBIDDEN.search(text)
        assert not said, (what, text[max(0, said.start() - 80) : said.end() + 40])
        assert ("does not clear" in text) == ("-0.1" in what or "nothing" in what), what
        assert ("not the probability that the hypothesis is true" in text) or "nothing" in what


@pytest.mark.parametrize(
    "said",
    ["The model was distilled from it.", "The probability that the model is a copy is 0.001.", "It is 99 % likely.",
     "The chance that it is innocent", "This result is very likely no accident", "the odds that", "beyond reasonable doubt",
     "the probability of innocence", "probability that the hypothesis is true is 3 %", "coincidence is ruled out"],
)  # fmt: skip
def test_the_forbidden_phrasings_are_found(said: str) -> None:
    assert FORBIDDEN.search(said)


def test_it_says_what_makes_it_a_lead_and_for_whom_it_is_proof(tmp_path: Path) -> None:
    lead = page_of(
        tmp_path, replace(case(outcome(), unanchored=("x",)), doubts=("twins: nobody knows when; stamp it",))
    )
    assert "doubts" in lead.ids and "twins: nobody knows when." in lead.text and "stamp it" not in lead.text
    proof = page_of(tmp_path, replace(case(outcome()), doubts=()))
    assert "It is proof only for those who have checked" in proof.text and "doubts" not in proof.ids


def test_plans_tried_before_stand_beside_the_finding(tmp_path: Path) -> None:
    said = page_of(tmp_path, case(outcome())).text
    assert "1 earlier plan, under which audits were started 2 times" in said


def test_nothing_counted_is_not_drawn(tmp_path: Path) -> None:
    page = page_of(tmp_path, case(outcome(0.0, n_scored=0)))
    assert "nothing came back that could be counted" in page.text and "Seen:" not in page.text


def test_later_tests_count_only_while_those_before_rejected(tmp_path: Path) -> None:
    page = page_of(tmp_path, case(outcome(-0.1), outcome(-20.0, kind="canaries")))
    assert "does not count: a test before it did not reject, though its p is small" in page.text


def test_a_control_that_is_accused_is_shown(tmp_path: Path) -> None:
    made = case(outcome(), controls={"innocent": [outcome(-5.0)]})
    assert made.results["finding"]["class"] == "lead"
    page = page_of(tmp_path, made)
    assert "this innocent model, too" in page.text and "comes out the same way (innocent)" in page.text


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
