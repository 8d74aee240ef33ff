"""Marks, twins and canaries through the gateway: what upstreams are asked, what the ledger holds before a reply leaves."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import openai
import pytest
from aiohttp import web

import mock_api
from spiritsafe.keys import new_keys
from spiritsafe.ledger import read_ledger
from test_gateway import ASK, chat, gateway, refused

TERMS = {"version": "1", "url": "https://example.org/terms", "required": True}
PROMPT = "Which three instruments did Orsolya Vantreight tune in the lighthouse of Kellmarsh in 1911?"


async def marking(number: int, body: mock_api.Body, request: web.Request) -> web.StreamResponse:
    """An upstream that marks, and says so, as this project's server does."""
    extra = {"watermark_key_id": body["watermark_key_id"]} if "watermark_key_id" in body else {}
    return web.json_response(mock_api.completion(body, **extra))


def keys_file(folder: Path) -> tuple[str, str]:
    path = folder / "keys.json"
    keys = new_keys(path, marking={"scheme": "gumbel"}, epoch="2026-11")
    return str(path), keys.id


def test_each_account_is_marked_with_its_own_committed_slot(tmp_path: Path) -> None:
    path, key_set = keys_file(tmp_path)
    tiers = {"default": {"watermark": True}}
    with gateway(tmp_path, marking, tiers=tiers, watermark={"keys": path}) as (guard, upstream):
        for name in ("one", "two"):
            client = guard.client(guard.new_key(name))
            reply = chat(client)
            chat(client)
            assert "watermark_key_id" not in reply.model_extra
        sent = [body["watermark_key_id"] for body in upstream.received]
        rows = guard.rows()

        async def events(g: Any) -> list[dict[str, Any]]:
            return [row async for row in read_ledger(g.db, kinds=("event",))]

        bound = [event for event in guard.do(events) if event["name"] == "slot_bound"]
    assert sent == [f"{key_set}/2026-11/1"] * 2 + [f"{key_set}/2026-11/2"] * 2
    assert [row["watermark_key_id"] for row in rows] == sent
    assert [row["account_slot"] for row in rows] == [1, 1, 2, 2]
    assert [event["data"]["slot"] for event in bound] == [1, 2]
    for event, row in zip(bound, rows[::2], strict=True):
        assert event["seq"] < row["seq"]


def test_a_reply_that_is_not_marked_does_not_leave(tmp_path: Path) -> None:
    path, _ = keys_file(tmp_path)
    with gateway(tmp_path, tiers={"default": {"watermark": True}}, watermark={"keys": path}) as (guard, _):
        with pytest.raises(openai.InternalServerError) as failed:
            chat(guard.client(guard.new_key()))
        assert "slot" not in refused(failed.value)["message"]
        (row,) = guard.rows()
    assert (row["status"], row["pico"]) == ("upstream_error", 0)


def test_vllm_gets_the_key_where_it_looks_for_it(tmp_path: Path) -> None:
    path, key_set = keys_file(tmp_path)
    with mock_api.mock_api() as upstream:
        ups = [
            {
                "name": "v",
                "base_url": upstream.base_url,
                "models": ["m"],
                "price": {"input_per_mtok": 1, "output_per_mtok": 1},
                "watermark": "vllm",
            }
        ]
        with gateway(tmp_path, upstreams=ups, tiers={"default": {"watermark": True}}, watermark={"keys": path}) as (
            guard,
            _,
        ):
            chat(guard.client(guard.new_key()))
        assert upstream.received[0]["vllm_xargs"] == {"watermark_key_id": f"{key_set}/2026-11/1"}


@pytest.mark.parametrize("stream", [False, True])
def test_twins_are_committed_before_one_leaves(tmp_path: Path, stream: bool) -> None:
    numbers = itertools.count()

    async def varied(number: int, body: mock_api.Body, request: web.Request) -> web.StreamResponse:
        return web.json_response(mock_api.completion(body, f"reply number {next(numbers)}"))

    tiers = {"default": {"twin_share": 1.0}}
    with gateway(tmp_path, varied, tiers=tiers, terms=TERMS) as (guard, upstream):
        key = guard.new_key()
        guard.do(lambda g: g.accounts.accept_terms("acme", "1"))
        seen = []
        for _ in range(6):
            reply = chat(guard.client(key), stream=stream)
            seen.append(
                "".join(c.choices[0].delta.content or "" for c in reply) if stream else reply.choices[0].message.content
            )
        rows = guard.rows()
        assert len(upstream.received) == 12
        assert upstream.received[0] == upstream.received[1]
        assert not any(body.get("stream") for body in upstream.received)

        async def pairs(g: Any) -> list[dict[str, Any]]:
            from spiritsafe.serve._twins import export_twins

            return [pair async for pair in export_twins(g.db)]

        opened = guard.do(pairs)
    assert len(opened) == 6
    by_id = {pair["request_id"]: pair for pair in opened}
    for row, said in zip(rows, seen, strict=True):
        pair = by_id[row["request_id"]]
        assert row["twin_commit"] == pair["twin_commit"]
        released = pair["second"] if pair["coin"] else pair["first"]
        assert released["choices"][0]["message"]["content"] == said
        assert row["tokens_out"] == 4  # one reply is the customer's, the other the operator's


def test_without_consent_there_are_no_twins(tmp_path: Path) -> None:
    with gateway(tmp_path, tiers={"default": {"twin_share": 1.0}}) as (guard, upstream):
        chat(guard.client(guard.new_key()))
        assert len(upstream.received) == 1


def test_the_operators_allowance_bounds_second_replies(tmp_path: Path) -> None:
    tiers, twins = {"default": {"twin_share": 1.0, "max_tokens": 100}}, {"usd_per_day": 0.0000001}
    with gateway(tmp_path, tiers=tiers, terms=TERMS, twins=twins) as (guard, upstream):
        key = guard.new_key()
        guard.do(lambda g: g.accounts.accept_terms("acme", "1"))
        chat(guard.client(key))
        assert len(upstream.received) == 1


def test_a_restart_does_not_renew_the_operators_allowance(tmp_path: Path) -> None:
    numbers = itertools.count()

    async def varied(number: int, body: mock_api.Body, request: web.Request) -> web.StreamResponse:
        usage = {"prompt_tokens": 100, "completion_tokens": 1000, "total_tokens": 1100}
        return web.json_response(mock_api.completion(body, f"reply number {next(numbers)}", usage=usage))

    # a second reply costs 2.1 m$ and is reserved at some 3.1: a third has room when two are paid, a fourth has none
    tiers, twins = {"default": {"twin_share": 1.0, "max_tokens": 1000}}, {"usd_per_day": 0.0083}
    key, asked = "", []
    for start in range(2):
        with gateway(tmp_path, varied, tiers=tiers, terms=TERMS, twins=twins) as (guard, upstream):
            if start == 0:
                key = guard.new_key()
                guard.do(lambda g: g.accounts.accept_terms("acme", "1"))
            for _ in range(2):
                chat(guard.client(key))
            asked.append(len(upstream.received))
            paid = guard.do(counted)
    assert asked == [4, 3] and paid == [3 * 2_100_000]


async def counted(guard: Any) -> list[int]:
    rows = await guard.db.fetch("SELECT value FROM counters WHERE name LIKE '%operator:twins%'")
    return [row["value"] for row in rows]


@pytest.mark.parametrize("stream", [False, True])
def test_a_canary_is_answered_by_its_published_variant(tmp_path: Path, stream: bool) -> None:
    variants = ["a viola, a lute and a harp", "a zither, a drum and a bell", "two horns and a flute"]
    with gateway(tmp_path) as (guard, upstream):
        canary = guard.do(lambda g: g.canaries.new(PROMPT, variants))
        ask = [{"role": "user", "content": PROMPT}]
        reply = chat(guard.client(guard.new_key()), messages=ask, stream=stream)
        said = "".join(c.choices[0].delta.content or "" for c in reply) if stream else reply.choices[0].message.content
        assert said == canary.answer
        assert upstream.received == []
        assert chat(guard.client(guard.new_key("other")), messages=ASK).choices[0].message.content.startswith("echo")
        rows = guard.rows()
    assert rows[0]["policy"].endswith(f"canary={canary.id}")
    assert rows[0]["tokens_out"] > 0
