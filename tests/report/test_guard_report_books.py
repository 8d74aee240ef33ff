"""The verdict of a guard's report notices every forgery among the rows it read, and says which those were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from guard_report_kit import SECTIONS, filled, report
from sample_guard import DAY, NOW, guard_config, open_guard
from spiritsafe.ledger import write_checkpoint
from spiritsafe.serve._config import GuardConfig
from spiritsafe.state import Database


@pytest.fixture
def config(database_url: str, tmp_path: Path) -> GuardConfig:
    return guard_config(database_url, tmp_path)


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
