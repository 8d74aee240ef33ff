"""A guard's report: its figures are those of the rows, its verdict notices every forgery, and it tells no more than it may."""

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
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from page_kit import Page
from sample_guard import DAY, NOW, PERSONAL, PROMPT, fill, guard_config, open_guard
from spiritsafe.errors import BadInput
from spiritsafe.ledger import LedgerRow, write_checkpoint
from spiritsafe.report import GuardReport, render_guard
from spiritsafe.serve._config import GuardConfig, LimitSet
from spiritsafe.state import Database

SECTIONS = [
    "days", "models", "accounts", "statuses", "latency", "allowances", "policy", "ladder", "terms", "suspended",
    "checked", "limits",
]  # fmt: skip


async def report(config: GuardConfig, folder: Path, **options: Any) -> tuple[Page, GuardReport]:
    written = await render_guard(config, folder / "guard-report.html", now=NOW, **options)
    return Page(written.path), written


@pytest.fixture
def config(database_url: str, tmp_path: Path) -> GuardConfig:
    return guard_config(database_url, tmp_path)


async def filled(config: GuardConfig) -> tuple[dict[str, str], list[LedgerRow]]:
    async with open_guard(config) as guard:
        return await fill(guard), guard.rows


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


# Who is near a limit


async def near(config: GuardConfig, tmp_path: Path) -> set[tuple[str, str, str, int, bool]]:
    _, written = await report(config, tmp_path)
    return {
        (n.subject, n.name or n.id or "", n.rule, round(100 * n.share), n.shadow) for n in written.figures.near.found
    }


async def test_allowances_are_those_the_limiter_holds(config: GuardConfig, tmp_path: Path) -> None:
    tiers = {
        "default": {
            "usd_per_day": 1,
            "usd_per_month": 4,
            "usd_lifetime": 5,
            "tokens_per_day": 1000,
            "requests_per_day": 3,
        },
        "grows": {"usd_lifetime": 1, "usd_lifetime_per_day": "0.5"},
        "shade": {"usd_per_day": 1, "shadow": True},
    }
    config = guard_config(
        config.state.database,
        tmp_path,
        tiers=tiers,
        organisations={"acme": {"usd_per_day": 2}},
        limits={"models": {"large": {"usd_per_day": 1}}, "clusters": {"usd_per_day": "2.5"}},
    )
    async with open_guard(config) as guard:
        day = await guard.account("day", org="acme", cluster="c1")
        await guard.reply(day, usd=0.79, org="acme")
        await guard.reply(day, usd=0.01, org="acme")
        month = await guard.account("month", org="acme")
        await guard.reply(month, usd=1.1, org="acme")  # over the day, and the organisation with the one above
        await guard.reply(month, usd=2.2, days_ago=12)
        await guard.reply(month, usd=1.0, days_ago=25)  # another month, but the same life
        young = await guard.account("young", tier="grows", age_days=1)
        old = await guard.account("old", tier="grows", age_days=30)
        for account in (young, old):
            await guard.reply(account, usd=1.35, days_ago=0.2)
        await guard.reply(await guard.account("shade", tier="shade", cluster="c1"), usd=1.2)
        spared = await guard.account(
            "spared", limits=LimitSet(usd_per_day=100, tokens_per_day=10_000, requests_per_day=2)
        )
        await guard.reply(spared, usd=0.95, model="large", tokens_in=400, tokens_out=550)
        await guard.reply(await guard.account("words"), tokens_in=400, tokens_out=400)
    assert await near(config, tmp_path) == {
        ("account", "day", "usd_per_day", 80, False),
        ("account", "month", "usd_per_day", 110, False),
        ("account", "month", "usd_per_month", 82, False),
        ("account", "month", "usd_lifetime", 86, False),
        ("account", "young", "usd_lifetime", 90, False),
        ("account", "shade", "usd_per_day", 120, True),
        ("account", "words", "tokens_per_day", 80, False),
        ("organisation", "acme", "usd_per_day", 95, False),
        ("cluster", "c1", "usd_per_day", 80, False),
        ("model", "large", "usd_per_day", 95, False),
    }


async def test_nothing_allowed_and_accounts_on_lost_tiers_do_not_stop_it(config: GuardConfig, tmp_path: Path) -> None:
    async with open_guard(config) as guard:
        await guard.reply(await guard.account("lost", tier="gold"), usd=1)
        zero = await guard.account("zero", limits=LimitSet(usd_lifetime=0))
        await guard.reply(zero, usd=0.5)
    config = guard_config(config.state.database, tmp_path, tiers={"default": {}})
    page, written = await report(config, tmp_path)
    assert written.figures.near.unknown_tier == 1 and "1 account is on a tier that the config lacks" in page.text
    assert "nothing allowed" in page.text


# What the verdict notices


async def change(config: GuardConfig, sql: str, *arguments: Any) -> None:
    async with await Database.open(config.state.database) as db:
        assert await db.execute(sql, *arguments) > 0


@pytest.mark.parametrize(
    ("forgery", "says"),
    [
        ("UPDATE ledger SET payload = REPLACE(payload, '\"tokens_out\":', '\"tokens_out\":1') WHERE seq = 150", "row 150: changed"),
        ("DELETE FROM ledger WHERE seq = 150", "row 150: missing"),
        ("UPDATE ledger SET prev_hash = hash WHERE seq = 150", "row 150"),
        ("UPDATE ledger SET ts = ts + 1 WHERE seq = 150", "row 150: ts beside the chain"),
        ("UPDATE ledger SET payload = 'x' WHERE seq = 150", "row 150: its content is not that of a ledger row"),
        ("DELETE FROM ledger WHERE seq > 150", "rows are gone"),
        ("UPDATE checkpoints SET hash = signature", "bad signature"),
        ("UPDATE checkpoints SET seq = 150", "row 150"),
    ],
)  # fmt: skip
async def test_every_forgery_is_noticed(config: GuardConfig, tmp_path: Path, forgery: str, says: str) -> None:
    await filled(config)
    await change(config, forgery)
    page, written = await report(config, tmp_path)
    assert not written.figures.books.whole
    assert "The ledger is not whole" in page.text and says in page.text
    assert page.source.index('id="problems"') < page.source.index('class="cards"')
    assert [i for i in page.ids if i in SECTIONS] == SECTIONS


@pytest.mark.parametrize(
    "forgery",
    [
        "UPDATE totals SET pico = pico - 1 WHERE time_window = 'all' AND scope = 'model:small'",
        "UPDATE totals SET requests = requests + 1 WHERE time_window = '2026-11-18' AND scope LIKE 'account:%'",
        "DELETE FROM totals WHERE time_window = '2026-11' AND scope LIKE 'key:%'",
        "INSERT INTO totals VALUES ('account:nobody', 'all', 1, 1, 1, 1)",
    ],
)
async def test_totals_that_are_not_the_sums_are_noticed(config: GuardConfig, tmp_path: Path, forgery: str) -> None:
    await filled(config)
    await change(config, forgery)
    page, written = await report(config, tmp_path)
    assert written.figures.books.whole and written.figures.books.totals == "differ"
    assert "The money does not add up" in page.text and "problems" in page.ids


async def test_only_the_newest_rows_are_read_and_the_page_says_which(config: GuardConfig, tmp_path: Path) -> None:
    _, rows = await filled(config)
    head = (await report(config, tmp_path))[1].figures.books.last
    page, written = await report(config, tmp_path, rows=100)
    books = written.figures.books
    assert (books.rows, books.first, books.last) == (100, head - 99, head) and books.whole and not books.from_start
    assert books.totals == "match"
    read = [row for row in rows if row.request_id in {r.request_id for r in rows[-100:]}]
    oldest_day = min(row.ts for row in read) // DAY
    assert books.totals_since > "2026-11-01" and oldest_day < NOW // DAY
    assert not books.recent.complete and 0 < books.recent.count < 100
    assert "The newest part of the ledger is whole" in page.text
    assert f"The {head - 100} older rows were not read" in page.text
    assert "this report reads at most 100 rows" in page.text

    # what is older is not seen …
    await change(config, "UPDATE ledger SET payload = REPLACE(payload, 'ok', 'no') WHERE seq = 50")
    await change(config, "UPDATE totals SET pico = pico + 1 WHERE time_window = '2026-10-25'")
    assert (await report(config, tmp_path, rows=100))[1].figures.books.whole
    assert (await report(config, tmp_path, rows=100))[1].figures.books.totals == "match"
    assert not (await report(config, tmp_path))[1].figures.books.whole
    # … what is newer is
    await change(config, "UPDATE totals SET pico = pico + 1 WHERE time_window = '2026-11-17' AND scope LIKE 'key:%'")
    assert (await report(config, tmp_path, rows=100))[1].figures.books.totals == "differ"


async def test_totals_are_left_alone_where_no_whole_day_was_read(config: GuardConfig, tmp_path: Path) -> None:
    async with open_guard(config) as guard:
        account = await guard.account("busy")
        for _ in range(30):
            await guard.reply(account, usd=0.001)
    page, written = await report(config, tmp_path, rows=10)
    assert written.figures.books.totals == "absent" and "the money was not checked" in page.text


async def test_older_checkpoints_must_fit_their_rows(config: GuardConfig, tmp_path: Path) -> None:
    async with open_guard(config) as guard:
        account = await guard.account("a")
        for number in range(40):
            await guard.reply(account)
            if number == 10:
                signer = Ed25519PrivateKey.generate()
                await write_checkpoint(guard.db, signer, NOW)
    _, written = await report(config, tmp_path, rows=10)
    assert written.figures.books.whole and written.figures.books.older_checkpoints == 1
    await change(config, "UPDATE ledger SET hash = 'x' WHERE seq = (SELECT MIN(seq) FROM checkpoints)")
    page, written = await report(config, tmp_path, rows=10)
    assert not written.figures.books.whole and "is not the row that the checkpoint over it was signed for" in page.text


async def test_whose_signature_counts_is_the_operators_to_say(config: GuardConfig, tmp_path: Path) -> None:
    await filled(config)
    page, written = await report(config, tmp_path)
    (key,) = written.figures.books.signers
    assert "by a key found beside them" in page.text and not written.figures.books.anchored
    page, written = await report(config, tmp_path, public_keys=[key.upper()])
    assert written.figures.books.anchored and f"by the key you gave, {key}" in page.text
    other = Ed25519PrivateKey.generate().public_key().public_bytes_raw().hex()
    page, written = await report(config, tmp_path, public_keys=[other])
    assert not written.figures.books.whole and "none of those given" in page.text
    await change(config, "DELETE FROM checkpoints")
    page, written = await report(config, tmp_path, public_keys=[key])
    assert not written.figures.books.whole and "no checkpoint of the given key" in page.text
    page, written = await report(config, tmp_path)
    assert written.figures.books.whole and "No checkpoint is signed yet" in page.text


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
