"""Twins: drawn unpredictably among those who may be, the coin fair and blind, the commitment binding and kept first."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import accounts_kit as kit
from spiritsafe.ledger import Ledger, LedgerRow
from spiritsafe.ledger._evidence import canonical_json, twin_commit, verify_twin
from spiritsafe.pvalue import binomial
from spiritsafe.serve._config import GuardConfig
from spiritsafe.serve._twins import Choice, Twins, committed_twins, export_twins
from spiritsafe.serve._types import Identity
from spiritsafe.state import Database, Unavailable
from spiritsafe.wire import Ask, parse_ask

CHAT: dict[str, Any] = {"model": "small", "messages": [{"role": "user", "content": "Tell me a story."}]}
RARE = -9  # log10 of how seldom a fair coin may fail a test


def config(share: float = 1.0, consent: str = "terms", **more: Any) -> GuardConfig:
    tiers = {"default": {"twin_share": share}, "gold": {}}
    return kit.config(tiers=tiers, twins={"consent": consent, "retention_days": 30}, **more)


def who(*, terms: str | None = "2026-11", consent: bool = False, tier: str = "default") -> Identity:
    return Identity(
        account="acct_1", name="a", org=None, tier=tier, key_id="k", scopes=frozenset(), created=0.0,
        terms_version=terms, twin_consent=consent,
    )  # fmt: skip


def ask(kind: str = "chat", **more: Any) -> Ask:
    prompt = {"model": "small", ("prompt" if kind == "completions" else "input"): "Once"}
    body = CHAT if kind == "chat" else prompt
    return parse_ask(kind, orjson.dumps(body | more))  # type: ignore[arg-type]


def reply(text: str, **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return {
        "id": f"up-{len(text)}", "object": "chat.completion", "created": 1, "model": "small",
        "choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": len(text)},
    } | more  # fmt: skip


def both_tails(hits: int, n: int, p: float) -> float:
    """log10 of the smaller tail."""
    return min(binomial(n, p, hits), binomial(n, 1 - p, n - hits))


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    async with await Database.open(database_url) as opened:
        yield opened


@pytest.fixture
def twins(db: Database) -> Twins:
    return Twins(db, config(), clock=kit.Clock())


def unopened(share: float = 1.0, **more: Any) -> Twins:
    """For what asks no database."""
    return Twins(None, config(share, **more))  # type: ignore[arg-type]


async def choose(twins: Twins, request_id: str, first: Any, second: Any, **more: Any) -> Choice | None:
    given: dict[str, Any] = {"account": "acct_1", "model": "small", "request": CHAT} | more
    return await twins.choose(request_id=request_id, first=first, second=second, **given)


# Who is drawn


@pytest.mark.parametrize(
    ("request_", "eligible"),
    [
        (ask(), True),
        (ask(temperature=0.7, stream=True, n=1, seed=None, tools=[]), True),
        (ask("completions"), True),
        (ask("completions", prompt=["Once"]), True),
        (ask("completions", prompt=["Once", "Twice"]), False),
        (ask("responses"), False),
        (ask("embeddings"), False),
        (ask(temperature=0), False),
        (ask(n=2), False),
        (ask(seed=7), False),
        (ask(seed=0), False),
        (ask(tools=[{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]), False),
        (
            ask(
                messages=[
                    {
                        "role": "user",
                        "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}],
                    }
                ]
            ),
            False,
        ),
    ],
)
def test_only_plain_questions_with_chance_in_their_answer(request_: Ask, eligible: bool) -> None:
    assert unopened().wanted(request_, who()) is eligible


def test_consent_is_by_the_terms_in_force_or_by_the_account() -> None:
    by_terms, by_account = unopened(), unopened(consent="account")
    assert by_terms.wanted(ask(), who())
    assert not by_terms.wanted(ask(), who(terms="2025-01", consent=True))
    assert not by_terms.wanted(ask(), who(terms=None, consent=True))
    assert by_account.wanted(ask(), who(terms=None, consent=True))
    assert not by_account.wanted(ask(), who(consent=False))
    assert not unopened(terms=None).wanted(ask(), who(terms=None))


def test_the_share_is_the_tiers() -> None:
    asked = ask()
    assert not any(unopened(0.0).wanted(asked, who()) for _ in range(100))
    assert not any(unopened(1.0).wanted(asked, who(tier="gold")) for _ in range(100))
    assert all(unopened(1.0).wanted(asked, who()) for _ in range(100))
    quarter, n = unopened(0.25), 20_000
    assert both_tails(sum(quarter.wanted(asked, who()) for _ in range(n)), n, 0.25) > RARE


def test_the_draw_cannot_be_repeated() -> None:
    half, asked, runs = unopened(0.5), ask(), []
    for _ in range(2):
        random.seed(1)
        runs.append([half.wanted(asked, who()) for _ in range(200)])
    assert runs[0] != runs[1]


# The coin and the commitment


async def test_a_pair_is_kept_and_its_commitment_verifies(twins: Twins, db: Database) -> None:
    choice = await choose(twins, "req_1", reply("left"), orjson.dumps(reply("right")), watermark_key_id="ks/e/1")
    assert choice is not None
    (row,) = await db.fetch("SELECT * FROM twins")
    assert (row["coin"], row["twin_commit"]) == (choice.released, choice.twin_commit)
    assert (row["created"], row["expires"]) == (kit.NOW, kit.NOW + 30 * 86_400)
    assert (row["account"], row["model"], row["watermark_key_id"]) == ("acct_1", "small", "ks/e/1")
    opened = {name: json.loads(row[name]) for name in ("request", "first", "second")}
    assert opened["request"] == CHAT
    assert [opened[name]["choices"][0]["message"]["content"] for name in ("first", "second")] == ["left", "right"]
    assert set(opened["first"]) == {"object", "model", "choices"}  # no id, time or usage
    assert verify_twin({**opened, "coin": row["coin"], "salt": bytes(row["salt"]).hex()}, choice.twin_commit)


async def test_the_coin_is_fair_whatever_the_replies_and_their_order(tmp_path: Any) -> None:
    pairs = {
        "short, long": (reply("a"), reply("b" * 500)),
        "long, short": (reply("b" * 500), reply("a")),
        "alike": (reply("one"), reply("two")),
    }
    n, released, salts = 300, dict.fromkeys(pairs, 0), set()
    async with await Database.open(f"sqlite:///{tmp_path}/guard.db") as db:
        twins = Twins(db, config())
        for name, (first, second) in pairs.items():
            for i in range(n):
                choice = await choose(twins, f"{name} {i}", first, second)
                assert choice is not None
                released[name] += choice.released
        salts = {bytes(row["salt"]) for row in await db.fetch("SELECT salt FROM twins")}
    assert len(salts) == n * len(pairs) and {len(salt) for salt in salts} == {32}
    for name, hits in released.items():
        assert both_tails(hits, n, 0.5) > RARE, name


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (reply("same"), reply("same")),
        (reply("same"), reply("same", system_fingerprint="fp_2", choices=reply("same")["choices"])),
        (reply("x"), b"not json"),
        (b"[]", reply("x")),
        (reply("x"), {"error": {"message": "overloaded"}}),
        (reply("x"), reply("y", choices=[])),
        (reply("x"), reply("y", choices=reply("y")["choices"] * 2)),
        ({"object": "text_completion", "choices": [{"text": "a", "index": 0}]},) * 2,
    ],
)
async def test_what_is_no_pair_is_dropped(twins: Twins, db: Database, first: Any, second: Any) -> None:
    assert await choose(twins, "req_1", first, second) is None
    assert await db.fetch("SELECT * FROM twins") == []


async def test_replies_that_differ_in_their_reasoning_are_a_pair(twins: Twins) -> None:
    first, second = reply("4"), reply("4")
    first["choices"][0]["message"]["reasoning_content"] = "two and two"
    second["choices"][0]["message"]["reasoning_content"] = "counting"
    assert await choose(twins, "req_1", first, second) is not None


async def test_a_request_has_one_coin(twins: Twins, db: Database) -> None:
    assert await choose(twins, "req_1", reply("a"), reply("b")) is not None
    (before,) = await db.fetch("SELECT * FROM twins")
    assert await choose(twins, "req_1", reply("c"), reply("d")) is None
    assert await db.fetch("SELECT * FROM twins") == [before]


async def test_without_a_database_the_reply_still_goes_out(caplog: pytest.LogCaptureFixture) -> None:
    class Away:
        async def execute(self, *_: Any) -> int:
            raise Unavailable("database: gone")

    twins = Twins(Away(), config())  # type: ignore[arg-type]
    assert await choose(twins, "req_1", reply("secret one"), reply("secret two")) is None
    assert "req_1" in caplog.text and "secret" not in caplog.text


SALT = bytes(range(32))


def test_the_commitment_is_fixed() -> None:
    """Golden vectors: a change here orphans every commitment published before it."""
    first, second = {"choices": [{"text": "é\n"}], "b": 1, "a": 0.5}, {"choices": []}
    assert canonical_json(first) == b'{"a":0.5,"b":1,"choices":[{"text":"\\u00e9\\n"}]}'
    assert twin_commit(SALT, 0, first, second, {"q": None}) == GOLDEN_0
    assert twin_commit(SALT, 1, first, second, {"q": None}) == GOLDEN_1
    # and spelled out, as the documentation has it
    parts = [b"spiritsafe-twin/1", SALT, b"\x01"] + [
        hashlib.sha256(text).digest()
        for text in (b'{"a":0.5,"b":1,"choices":[{"text":"\\u00e9\\n"}]}', b'{"choices":[]}', b'{"q":null}')
    ]
    framed = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    assert hashlib.sha256(framed).hexdigest() == GOLDEN_1


GOLDEN_0 = "a5af3eefd0a3daeb60ce537aaa321c197fd8db3f76a1dc790e73fe78408dcf82"
GOLDEN_1 = "9df278d48c3dd28acc403037e9e5ea361bf5c98ceb6466f763ba7f621e3a738a"

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
openings = st.fixed_dictionaries(
    {
        "first": values, "second": values, "request": values, "coin": st.integers(0, 1),
        "salt": st.binary(min_size=32, max_size=32).map(bytes.hex),
    }
)  # fmt: skip


def commit_of(opened: dict[str, Any]) -> str:
    pair = (opened[name] for name in ("first", "second", "request"))
    return twin_commit(bytes.fromhex(opened["salt"]), opened["coin"], *pair)


@settings(deadline=None)
@given(openings)
def test_what_was_committed_verifies_after_a_trip_through_json(opened: dict[str, Any]) -> None:
    commit = commit_of(opened)
    assert verify_twin(opened, commit)
    assert verify_twin(json.loads(json.dumps(opened)), commit)
    assert verify_twin(orjson.loads(json.dumps(opened)), commit)


@settings(deadline=None)
@given(openings, openings, st.sets(st.sampled_from(["first", "second", "request", "coin", "salt"]), min_size=1))
def test_any_change_breaks_it(opened: dict[str, Any], other: dict[str, Any], changed: set[str]) -> None:
    forged = opened | {name: other[name] for name in changed}
    same = all(canonical_json(forged[name]) == canonical_json(opened[name]) for name in changed)
    assert verify_twin(forged, commit_of(opened)) is same


@settings(deadline=None)
@given(openings)
def test_swapped_replies_or_a_turned_coin_break_it(opened: dict[str, Any]) -> None:
    commit = commit_of(opened)
    alike = canonical_json(opened["first"]) == canonical_json(opened["second"])
    assert verify_twin(opened | {"first": opened["second"], "second": opened["first"]}, commit) is alike
    assert not verify_twin(opened | {"coin": 1 - opened["coin"]}, commit)


@settings(deadline=None)
@given(openings, st.sampled_from(["first", "second", "request", "coin", "salt"]), values)
def test_garbage_is_false_and_no_error(opened: dict[str, Any], name: str, value: Any) -> None:
    commit = commit_of(opened)
    if canonical_json(value) != canonical_json(opened[name]):
        assert not verify_twin(opened | {name: value}, commit)
    assert not verify_twin({key: item for key, item in opened.items() if key != name}, commit)


@pytest.mark.parametrize("coin", [True, False, 2, -1, 256, 0.0, "0", None])
def test_a_coin_is_0_or_1(coin: Any) -> None:
    opened = {"first": 1, "second": 2, "request": 3, "coin": coin, "salt": SALT.hex()}
    assert not any(verify_twin(opened, twin_commit(SALT, side, 1, 2, 3)) for side in (0, 1))


@pytest.mark.parametrize("salt", [SALT.hex().upper(), SALT.hex()[:-2], SALT.hex() + "00", " " + SALT.hex(), SALT, 7])
def test_a_salt_is_32_bytes_in_hex(salt: Any) -> None:
    opened = {"first": 1, "second": 2, "request": 3, "coin": 0, "salt": salt}
    assert not verify_twin(opened, twin_commit(SALT, 0, 1, 2, 3))
    nested: Any = []
    for _ in range(100_000):
        nested = [nested]
    assert not verify_twin(opened | {"salt": SALT.hex(), "first": nested}, twin_commit(SALT, 0, 1, 2, 3))
    for commit in (None, 7, "", "é"):
        assert not verify_twin(opened | {"salt": SALT.hex()}, commit)  # type: ignore[arg-type]


# Keeping, deleting, exporting


async def test_pairs_go_when_their_time_is_over(twins: Twins, db: Database) -> None:
    assert await choose(twins, "req_1", reply("a"), reply("b"))
    assert await twins.expire(kit.NOW + 30 * 86_400 - 1) == 0
    assert await twins.expire(kit.NOW + 30 * 86_400) == 1
    assert await db.fetch("SELECT * FROM twins") == []


async def test_only_pairs_whose_commitment_is_in_the_ledger_are_exported(twins: Twins, db: Database) -> None:
    ledger = await Ledger.open(db, commit_ms=1)
    made = {}
    for i in range(7):
        account, model = f"acct_{i % 2}", "large" if i == 6 else "small"
        choice = await choose(twins, f"req_{i}", reply("a"), reply(f"b{i}"), account=account, model=model)
        assert choice is not None
        made[f"req_{i}"] = choice
        commit = {0: choice.twin_commit, 1: None, 2: "0" * 64}.get(i, choice.twin_commit)
        if i != 3:  # of request 3 there is no row: it was never released
            ledger.append(LedgerRow(kit.NOW, f"req_{i}", account, "k", model, twin_commit=commit))
    await ledger.aclose()

    async def exported(**filters: Any) -> list[dict[str, Any]]:
        return [pair async for pair in export_twins(db, **filters)]

    pairs = await exported()
    assert [pair["request_id"] for pair in pairs] == ["req_0", "req_4", "req_5", "req_6"]
    for pair in pairs:
        assert verify_twin(json.loads(json.dumps(pair)), made[pair["request_id"]].twin_commit)
        assert pair["coin"] == made[pair["request_id"]].released
    assert await committed_twins(db) == 5  # with request 2, whose row holds another commitment
    assert await committed_twins(db, account="acct_1") == 1 and await committed_twins(db, model="large") == 1
    assert [pair["request_id"] for pair in await exported(account="acct_1")] == ["req_5"]
    assert [pair["request_id"] for pair in await exported(model="large")] == ["req_6"]
    assert await exported(account="acct_0", model="large") == pairs[-1:]
    assert await exported(account="nobody") == []


async def test_an_export_goes_on_after_a_full_page(twins: Twins, db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spiritsafe.serve._twins._PAGE", 2)
    ledger = await Ledger.open(db, commit_ms=1)
    for i in range(5):
        choice = await choose(twins, f"req_{i}", reply("a"), reply(f"b{i}"))
        assert choice is not None
        ledger.append(LedgerRow(kit.NOW, f"req_{i}", "acct_1", "k", "small", twin_commit=choice.twin_commit))
    await ledger.aclose()
    assert [pair["request_id"] async for pair in export_twins(db)] == [f"req_{i}" for i in range(5)]
    assert await committed_twins(db) == 5
    assert await twins.expire(kit.NOW + 10**9) == 5
    assert await committed_twins(db) == 5 and [pair async for pair in export_twins(db)] == []
