from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from page_kit import Page
from sample_run import METRICS, SAMPLES, write_run
from spiritsafe.errors import BadInput
from spiritsafe.report import render_run
from spiritsafe.report._format import count, decimal, duration, millions, percent, usd
from spiritsafe.report._words import beats_untrained, verdict
from spiritsafe.runs import Run

SECTIONS = ["comparison", "training", "samples", "cost", "curation", "terms", "limits", "manifest"]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    run = write_run(tmp_path_factory.mktemp("report") / "run")
    path = render_run(run)
    assert path == run.report
    return Page(path)


def changed(tmp_path: Path, **metrics: Any) -> Page:
    run = write_run(tmp_path / "run")
    run.metrics.write_text(json.dumps({**METRICS, **metrics}))
    return Page(render_run(run))


def test_every_section_and_headline_is_there(page: Page) -> None:
    assert [i for i in page.ids if i in SECTIONS] == SECTIONS
    assert {"verdict", "headline"} <= set(page.ids) and "missing" not in page.ids and "overrides" not in page.ids
    for words in (
        "stdlib-explainer",
        "Close to its teacher",
        "83 %",
        "95 % interval 81 % to 86 %",
        "1.14×",
        "120.4 M",
        "11 % smaller",
        "$0.010",
        "11,903",
        "$0.15 input, $0.60 output",
        "$0.00015",
        "near dedup",
        "0.91 alike with 77aa-0",
        SAMPLES[1]["student"],
        "Apache License 2.0, checked 2026-11-01",
        "not legal advice",
        "9f2c" * 16,
        "init: prune",
        "2.13.0",
        "1,412 held-out completion tokens of 34 prompts",
        "3 min 34 s",
    ):
        assert words in page.text, words


def test_recovered_stands_beside_agreement_gap_and_the_untrained_prune(page: Page) -> None:
    hero = page.source[page.source.index('id="headline"') : page.source.index('id="comparison"')]
    for words in ("83 %", "67 %", "64 % to 70 %", "0.55", "KL 2.50", "ahead of it on every measure"):
        assert words in hero, words


def test_the_page_loads_nothing_and_runs_nothing(page: Page) -> None:
    policy = next(a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and policy.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:")
    assert not {tag for tag, _ in page.tags} & {"script", "iframe", "object", "embed", "img", "a", "form", "base"}
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            if name in ("src", "href", "xlink:href", "data", "action"):
                assert (value or "").startswith(("#", "data:,")), (tag, name, value)
            assert not name.startswith("on"), (tag, name)
    assert not re.search(r"url\((?!#)|@import|https?:", page.source)


def test_svg_ids_are_unique_and_its_text_is_text(page: Page) -> None:
    assert len(page.ids) == len(set(page.ids))
    charts = [a for _, a in page.tags if a.get("role") == "img"]
    assert len(charts) == 4 and all(a.get("aria-label") for a in charts)
    assert "untrained start" in page.text and "loss, nats per token" in page.text
    drawn = " ".join(re.findall(r"<svg.*?</svg>", page.source, flags=re.DOTALL))
    assert not re.findall(r"#[0-9a-f]{6}\b", drawn), "every colour of a chart is a variable"


HOSTILE = "</p><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7*7 }}\"'&\x00\ud800"


def test_hostile_text_is_escaped_wherever_it_comes_from(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    run.samples.write_text(json.dumps([dict.fromkeys(("prompt", "teacher", "student", "base"), HOSTILE)]))
    drop = {"count": 1, "examples": [dict.fromkeys(("id", "why", "prompt", "completion"), HOSTILE)]}
    run.curation.write_text(json.dumps({"kept": 1, "dropped": {HOSTILE: drop}}))
    refused = {"metric": "nll", "value": None, "ci95": None, "refused": HOSTILE}
    metrics = {**METRICS, "recovered": refused, "notes": [HOSTILE], "kl_kind": HOSTILE}
    run.metrics.write_text(json.dumps(metrics))
    manifest = json.loads(json.dumps(run.manifest()))
    manifest["recipe"]["teacher"]["model"] = manifest["name"] = manifest["created"] = HOSTILE
    manifest["versions"][HOSTILE] = HOSTILE
    manifest["stages"][HOSTILE] = {"outputs": {"x": {"path": HOSTILE, "sha256": HOSTILE}}, "seconds": 1}
    manifest["terms"][0] |= dict.fromkeys(("stage", "status", "reason", "entries", "accepted"), HOSTILE)
    run.manifest_file.write_text(json.dumps(manifest))
    page = Page(render_run(run))
    assert not {tag for tag, _ in page.tags} & {"script", "img"}
    assert "<script" not in page.source and "onerror=alert(2)&gt;" in page.source
    assert "{{ 7*7 }}" in page.text and "onerror=alert(2)>49" not in page.text
    assert page.source.count("&lt;script&gt;") >= 15


def test_an_empty_run_says_what_is_missing_in_every_section(tmp_path: Path) -> None:
    page = Page(render_run(Run.open(tmp_path / "fresh")))
    assert [i for i in page.ids if i in SECTIONS] == SECTIONS
    for words in (
        "Nothing measured yet",
        "metrics.json: no measurements yet",
        "Not trained yet: run spiritsafe train".replace("spiritsafe train", "`spiritsafe train`"),
        "No sample answers yet",
        "Nothing collected yet",
        "Nothing curated yet",
        "No terms decision is recorded",
        "No recipe recorded",
    ):
        assert words in page.text, words
    assert "headline" not in page.ids and "nan" not in page.text.lower().split()


@pytest.mark.parametrize("name", ["metrics.json", "samples.json", "curation.json", "train.jsonl"])
@pytest.mark.parametrize("content", [b"{not json", b"\xff\xfe\x00", b"[]", b"3", b"", b'{"a": NaN}'])
def test_a_damaged_piece_never_stops_the_report(tmp_path: Path, name: str, content: bytes) -> None:
    run = write_run(tmp_path / "run")
    (run.path / name).write_bytes(content)
    page = Page(render_run(run))
    assert [i for i in page.ids if i in SECTIONS] == SECTIONS


@pytest.mark.parametrize("junk", [None, "text", {"value": "x"}, float("nan")])
@pytest.mark.parametrize("key", sorted(METRICS))
def test_metrics_of_another_shape_never_stop_the_report(tmp_path: Path, key: str, junk: Any) -> None:
    page = changed(tmp_path, **{key: junk})
    assert "nan" not in page.text.lower().split() and "None" not in page.text


def test_a_damaged_manifest_is_one_line(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    run.manifest_file.write_text("{")
    with pytest.raises(BadInput, match=r"manifest\.json: damaged"):
        render_run(run)


def test_a_refused_recovered_shows_its_reason_and_no_number(tmp_path: Path) -> None:
    page = changed(tmp_path, recovered={"metric": "nll", "value": None, "ci95": None, "refused": "too alike to divide"})
    assert "Not reported: too alike to divide." in page.text and "95 % interval 81" not in page.text
    assert "67 %" in page.text


def test_overrides_are_prominent_and_before_the_numbers(tmp_path: Path) -> None:
    page = Page(render_run(write_run(tmp_path / "run", override="we own it")))
    assert "collect, train, export (allowed with conditions): “we own it”" in page.text
    assert page.source.index('id="overrides"') < page.source.index('id="headline"')
    assert page.text.count("we own it") == 4


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    first = render_run(run).read_bytes()
    assert render_run(run).read_bytes() == first and not list(run.path.glob(".report*"))


def test_a_torn_last_line_of_the_log_is_left_out(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    whole = Page(render_run(run)).source
    run.train_log.write_text(run.train_log.read_text() + '{"step": 161, "lo')
    assert Page(render_run(run)).source == whole


@pytest.mark.parametrize(
    ("student", "untrained", "grade", "headline"),
    [
        ({"nll": 0.65, "kl": 0.05, "top1_agreement": 0.9}, None, "good", "Very close"),
        ({"nll": 1.2, "kl": 0.5, "top1_agreement": 0.66}, {"kl": 2.0}, "good", "Close to its teacher"),
        ({"nll": 1.2, "kl": 0.5, "top1_agreement": 0.64}, {"kl": 2.0}, "fair", "Clearly behind"),
        ({"nll": 1.7, "kl": 0.9, "top1_agreement": 0.5}, {"kl": 2.0}, "fair", "Clearly behind"),
        ({"nll": 3.0, "kl": 2.0, "top1_agreement": 0.3}, {"kl": 2.5}, "poor", "Far from"),
        ({"nll": 0.65, "kl": 0.5, "top1_agreement": 0.9}, {"kl": 0.4}, "poor", "did not beat"),
        ({}, None, "none", "Nothing measured"),
    ],
)
def test_the_verdict_follows_the_numbers(student: Any, untrained: Any, grade: str, headline: str) -> None:
    found = verdict({"teacher": {"nll": 0.6}, "student": student, "best_untrained": untrained})
    assert found.grade == grade and headline in found.headline


def test_one_screened_prune_that_is_ahead_is_enough_to_lose() -> None:
    rival = {"nll": 0.9, "kl": 0.9, "top1_agreement": 0.1}
    screened = {"student": {"nll": 1, "kl": 0.5, "top1_agreement": 0.6}, "candidates": [rival]}
    metrics = {"student": {"kl": 0.5}, "best_untrained": {"kl": 0.8, "screened": screened}}
    assert beats_untrained(metrics) is False
    rival["nll"] = 1.1
    assert beats_untrained(metrics) is True
    assert beats_untrained({"student": {"kl": 0.5}}) is None


def test_numbers_as_people_read_them() -> None:
    assert [usd(x) for x in (0, 0.0000123, 0.05, 12.5, 1234.5, -3, None)] == [
        "$0.00", "$0.000012", "$0.050", "$12.50", "$1,234.50", "−$3.00", "—",
    ]  # fmt: skip
    assert [millions(x) for x in (134_515_008, 7.2e9, 950, None)] == ["134.5 M", "7.2 B", "950", "—"]
    assert [duration(x) for x in (3.4, 75, 3720, None)] == ["3 s", "1 min 15 s", "1 h 2 min", "—"]
    assert [percent(0.671, 1), percent(-0.2), decimal(-1.5), count(1234), decimal(float("nan"))] == [
        "67.1 %", "−20 %", "−1.50", "1,234", "—",
    ]  # fmt: skip
