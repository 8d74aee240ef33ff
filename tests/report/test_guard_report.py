"""A guard's report: its figures are those of the rows, and it tells no more than it may."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml

from guard_report_kit import SECTIONS, filled, report
from sample_guard import DAY, NOW, PERSONAL, PROMPT, fill, guard_config, open_guard
from spiritsafe.errors import BadInput
from spiritsafe.report import GuardReport
from spiritsafe.serve._config import GuardConfig
from spiritsafe.state import Database


@pytest.fixture
def config(database_url: str, tmp_path: Path) -> GuardConfig:
    return guard_config(database_url, tmp_path)


# What it says


async def test_the_figures_are_those_of_the_rows(config: GuardConfig, tmp_path: Path) -> None:
    ids, rows = await filled(config)
    page, written = await report(config, tmp_path)
    found = written.figures
    recent = [row for row in rows if row.ts >= (NOW // DAY - 30) * DAY]
    assert 0 < len(recent) < len(rows)

    assert found.since == "2026-10-19" and len(found.sums.days) == 31 and found.sums.days[-1][0] == "2026-11-18"
    by_day: Counter[str] = Counter()
    spent: defaultdict[str, int] = defaultdict(int)
    out: Counter[str] = Counter()
    for row in recent:
        by_day[f"{int(row.ts // DAY)}"] += 1
        spent[row.model] += row.pico
        out[row.account] += row.tokens_out
    first_day = int(NOW // DAY) - 30
    assert [day.requests for _, day in found.sums.days] == [by_day[f"{first_day + i}"] for i in range(31)]
    assert {name: round(sum_.usd * 1e12) for name, sum_ in found.sums.models} == dict(spent)
    assert [(one.account, one.amounts.tokens_out) for one in found.sums.accounts] == out.most_common()
    assert found.sums.window.requests == len(recent) and found.sums.ever.requests == len(rows)
    assert found.sums.ever.tokens_in == sum(row.tokens_in for row in rows)
    assert found.sums.concentration.half == 1 and found.sums.concentration.accounts == len(out)

    replies = found.books.recent
    assert replies.complete and replies.count == len(recent)
    assert replies.statuses == dict(Counter(row.status for row in recent))
    assert replies.marked == sum(row.watermark_key_id is not None for row in recent) > 0
    assert replies.logprobs == sum(row.logprobs is not None for row in recent) > 0
    assert replies.twins == sum(row.twin_commit is not None for row in recent) > 0
    assert replies.notes == dict(Counter(row.policy for row in recent))
    for latency, streamed in ((replies.whole, False), (replies.streamed, True)):
        times = sorted(row.latency_ms for row in recent if row.status == "ok" and row.stream == streamed)
        assert latency.count == len(times) and latency.p50 == times[len(times) // 2]
        assert latency.p99 is not None and latency.p90 is not None
        assert sum(t <= latency.p90 for t in times) >= 0.9 * len(times) > sum(t < latency.p90 for t in times)
        assert sum(t <= latency.p99 for t in times) >= 0.99 * len(times) > sum(t < latency.p99 for t in times)

    assert [i for i in page.ids if i in SECTIONS] == SECTIONS and "problems" not in page.ids
    for words in (
        "The ledger is whole and the money adds up",
        f"{len(recent)}",
        "nordwind",
        f"{ids['nordwind']} · windfirma",
        "The client left before the end",
        f"{100 * replies.marked / len(recent):.1f} %",
        "Twin pairs kept 1, the first until 2027-12-23",
        "1 answered",
        "One active account has not accepted version 2026-11",
        "sold answers on",
        "write to trust",
        "M. Okafor · 2026-11-18",
        "cluster cap, acts",
        "output policy, in shadow",
        "suspend, acts",
        "arXiv 2501.19393",
    ):
        assert words in page.text, words
    assert "2026-11-18" in page.section("suspended")
    assert "nan" not in page.text.lower().split() and "None" not in page.text
    assert orjson.loads(orjson.dumps(written.to_dict()))["figures"]["books"]["totals"] == "match"


async def test_a_guard_without_requests_says_so_in_every_section(config: GuardConfig, tmp_path: Path) -> None:
    async with await Database.open(config.state.database):
        pass
    page, written = await report(config, tmp_path)
    assert [i for i in page.ids if i in SECTIONS] == SECTIONS and "problems" not in page.ids
    for words in (
        "No entries yet",
        "No requests in the last 31 days",
        "No model was asked",
        "No account asked",
        "Nothing ended",
        "Nothing was answered",
        "No account, organisation, cluster or model has used 80 %",
        "Nobody stands on it",
        "there are no accounts yet",
        "No account is suspended",
        "There are no rows to check",
    ):
        assert words in page.text, words
    assert "nan" not in page.text.lower().split() and "None" not in page.text
    assert written.figures.books.rows == 0 and "--expect" not in page.text


async def test_the_page_loads_nothing_and_runs_nothing(config: GuardConfig, tmp_path: Path) -> None:
    await filled(config)
    page, _ = await report(config, tmp_path)
    policy = next(a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and policy.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:")
    assert not {tag for tag, _ in page.tags} & {"script", "iframe", "object", "embed", "img", "a", "form", "base"}
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            if name in ("src", "href", "xlink:href", "data", "action"):
                assert (value or "").startswith(("#", "data:,")), (tag, name, value)
            assert not name.startswith("on"), (tag, name)
    assert not re.search(r"url\((?!#)|@import|https?:", page.source)
    assert len(page.ids) == len(set(page.ids))
    drawn = " ".join(re.findall(r"<svg.*?</svg>", page.source, flags=re.DOTALL))
    assert "19 Oct" in drawn and not re.findall(r"#[0-9a-f]{6}\b", drawn), "every colour of a chart is a variable"


HOSTILE = "</p><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7*7 }}\"'&"


async def test_hostile_names_are_escaped_wherever_they_come_from(config: GuardConfig, tmp_path: Path) -> None:
    async with open_guard(config) as guard:
        ids = await fill(
            guard,
            lambda name: f"{name}{HOSTILE}".replace(" ", "_") if name == "ring7" else name + HOSTILE,
        )
        await guard.reply(ids["acme"], model=HOSTILE, status=HOSTILE, tokens_out=5)
    page, _ = await report(config, tmp_path)
    assert not {tag for tag, _ in page.tags} & {"script", "img"}
    assert "<script" not in page.source and "onerror=alert(2)&gt;" in page.source
    assert "{{ 7*7 }}" in page.text and "onerror=alert(2)>49" not in page.text
    assert page.source.count("&lt;script&gt;") >= 15


async def test_neither_prompts_nor_persons_nor_keys_are_in_it(config: GuardConfig, tmp_path: Path) -> None:
    await filled(config)
    page, written = await report(config, tmp_path)
    told = page.source + json.dumps(written.to_dict(), ensure_ascii=False)
    for secret in (*PERSONAL, PROMPT[:20], "Avalon", "Utopia", "secret reply", "secret prompt", "key_acct"):
        assert secret not in told, secret


async def test_without_names_there_are_none(config: GuardConfig, tmp_path: Path) -> None:
    limits = {"clusters": {"usd_lifetime": 0.001}}
    config = guard_config(
        config.state.database, tmp_path, limits=limits, organisations={"windfirma": {"usd_lifetime": 0.001}}
    )
    ids, _ = await filled(config)
    async with await Database.open(config.state.database) as db:
        await db.execute("UPDATE totals SET tokens_in = tokens_in + 1 WHERE scope = 'org:windfirma'")
        await db.execute("UPDATE ledger SET account = 'cluster:ring7x' WHERE account = 'cluster:ring7'")
    page, written = await report(config, tmp_path, names=False)
    told = page.source + json.dumps(written.to_dict(), ensure_ascii=False)
    hidden = (
        "nordwind",
        "windfirma",
        "acme",
        "kepler",
        "tutor",
        "resold",
        "ring7",
        "sold answers",
        "one card",
        "Okafor",
        "trust",
    )
    for name in hidden:
        assert name not in told, name
    assert ids["nordwind"] in page.text and "an organisation" in page.text and "a cluster" in page.text
    assert "Reasons are left out" in page.text and {"organisation", "cluster"} <= {
        n.subject for n in written.figures.near.found
    }
    shown, _ = await report(config, tmp_path)
    assert all(name in shown.text for name in hidden if name != "trust")


async def test_a_running_guard_may_write_meanwhile(config: GuardConfig, tmp_path: Path) -> None:
    """A report from another thread, with its own connections, while rows come as fast as they can."""
    async with open_guard(config, checkpoint_every_s=0.01) as guard:
        account = await guard.account("busy")
        for day in range(9, 1, -1):
            await guard.reply(account, days_ago=day, usd=0.001)
        done = asyncio.Event()

        async def ask() -> None:
            while not done.is_set():
                await guard.reply(account, usd=0.001, tokens_out=3)

        async def read(**options: Any) -> GuardReport:
            before = len(guard.rows)
            _, written = await asyncio.to_thread(lambda: asyncio.run(report(config, tmp_path, **options)))
            assert len(guard.rows) > before + 1, "the guard wrote meanwhile"
            return written

        asking = asyncio.create_task(ask())
        try:
            for _ in range(5):
                books = (await read()).figures.books
                assert books.whole and books.totals == "match" and books.checkpoints
                assert (await read(rows=20)).figures.books.whole
        finally:
            done.set()
            await asking


# Terms, ladder


async def test_terms_are_told_as_they_bind(config: GuardConfig, tmp_path: Path) -> None:
    url = config.state.database
    async with open_guard(config) as guard:
        await guard.account("signed")
        await guard.account("late", terms=None)
    assert "has not accepted version 2026-11, and is refused until it does" in (await report(config, tmp_path))[0].text
    newer = {"version": "2027-01", "url": "https://example.org/terms", "required": False}
    text = (await report(guard_config(url, tmp_path, terms=newer), tmp_path))[0].text
    assert "2 active accounts have not accepted version 2027-01, and may ask all the same" in text
    assert "signed 2026-11" in text and "late none" in text
    assert "nobody was asked to accept any" in (await report(guard_config(url, tmp_path, terms=None), tmp_path))[0].text


async def test_a_ladder_in_shadow_changes_nothing_and_says_so(config: GuardConfig, tmp_path: Path) -> None:
    await filled(config)
    shaded = guard_config(config.state.database, tmp_path, ladder={"shadow": True})
    page, written = await report(shaded, tmp_path)
    assert "The ladder is in shadow" in page.text and not any(one.acts for one in written.figures.people.ladder)
    assert "cluster cap, in shadow" in page.text
    assert any(one.acts for one in (await report(config, tmp_path))[1].figures.people.ladder)
    later = guard_config(config.state.database, tmp_path, ladder={"shadow": False, "steps": ["suspend"]})
    page, _ = await report(later, tmp_path)
    assert "cluster cap, turned off" in page.text and "suspend, acts" in page.text


# Where it is written


async def test_a_database_that_is_not_there_is_one_line_and_stays_away(tmp_path: Path) -> None:
    config = guard_config(f"sqlite:///{tmp_path / 'guard.db'}", tmp_path)
    with pytest.raises(BadInput, match="no such file here"):
        await report(config, tmp_path)
    assert list(tmp_path.iterdir()) == []


async def test_the_file_appears_whole_or_not_at_all(config: GuardConfig, tmp_path: Path) -> None:
    await filled(config)
    page, written = await report(config, tmp_path)
    assert (await report(config, tmp_path))[0].source == page.source, "the same database gives the same bytes"
    assert not list(tmp_path.glob(".guard-report*"))
    with pytest.raises(BadInput, match="cannot be written"):
        await report(config, tmp_path / "nowhere")
    assert written.path.stat().st_size > 10_000


async def test_without_a_plotting_library_the_numbers_are_there(
    config: GuardConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await filled(config)
    for module in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    page, _ = await report(config, tmp_path)
    assert "Not drawn: the package matplotlib" in page.text and "2026-11-18" in page.section("days")


def spiritsafe(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "spiritsafe", *arguments], capture_output=True, text=True, timeout=120, cwd=cwd
    )


async def test_the_command_writes_beside_the_config_and_prints_the_figures(tmp_path: Path) -> None:
    config = guard_config(f"sqlite:///{tmp_path / 'guard.db'}", tmp_path)
    async with open_guard(config) as guard:
        await fill(guard)
    data = config.model_dump(mode="json", exclude_unset=True, by_alias=True)
    (tmp_path / "sub").mkdir()
    file = tmp_path / "sub" / "guard.yaml"
    file.write_text(yaml.safe_dump(data))
    done = await asyncio.to_thread(spiritsafe, "report", str(file), "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert Path(printed["path"]) == tmp_path / "sub" / "guard-report.html" and Path(printed["path"]).is_file()
    assert printed["figures"]["sums"]["ever"]["requests"] == 300

    out = tmp_path / "a.html"
    arguments = ("report", str(file), "--out", str(out), "--no-names", "--rows", "50")
    done = await asyncio.to_thread(spiritsafe, *arguments, cwd=tmp_path)
    assert done.returncode == 0 and done.stdout == f"report: {out}\n"
    assert "nordwind" not in out.read_text() and "The newest 50 rows" in out.read_text()

    for wrong, said in (
        (("report", str(file), "--run", "x"), "not a recipe"),
        (("report", str(tmp_path), "--no-names"), "are for a guard's config"),
        (("report", str(file), "--set", "tiers.default.usd=1"), "tiers.default.usd"),
        (("report", str(tmp_path / "none.yaml")), "no such file"),
    ):
        done = await asyncio.to_thread(spiritsafe, *wrong, cwd=tmp_path)
        assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1, done.stderr
