"""The gateway end to end, over real sockets: what customers see, what upstreams see, and what the ledger says."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from aiohttp import web

import mock_api
from guard_kit import Running, guard_config, guarding

ASK = [{"role": "user", "content": "What is a spirit safe?"}]


@contextlib.contextmanager
def gateway(
    tmp_path: Path, behave: mock_api.Behaviour = mock_api.answer, **changes: Any
) -> Iterator[tuple[Running, mock_api.MockApi]]:
    with mock_api.mock_api(behave) as upstream, guarding(guard_config(tmp_path, upstream.base_url, **changes)) as guard:
        yield guard, upstream


def chat(client: openai.OpenAI, **more: Any) -> Any:
    return client.chat.completions.create(**{"model": "m", "messages": ASK, **more})


def chunks(*texts: str, usage: bool = True) -> list[bytes]:
    head = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    made = [head | {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]} for text in texts]
    made.append(head | {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    if usage:
        made.append(
            head
            | {
                "choices": [],
                "usage": {"prompt_tokens": 7, "completion_tokens": len(texts), "total_tokens": 7 + len(texts)},
            }
        )
    return [b"data: " + json.dumps(one).encode() + b"\n\n" for one in made] + [b"data: [DONE]\n\n"]


def streaming(*events: bytes, pause: float = 0.0, then: str = "end") -> mock_api.Behaviour:
    async def behave(number: int, body: mock_api.Body, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for event in events:
            await response.write(event)
            await asyncio.sleep(pause)
        if then == "die":
            assert request.transport is not None
            request.transport.abort()
        if then == "hang":
            await asyncio.sleep(60)
        return response

    return behave


def refused(error: openai.APIStatusError) -> dict[str, Any]:
    """The error object; every refusal has OpenAI's shape."""
    body = error.response.json()["error"]
    assert set(body) == {"message", "type", "param", "code"}
    assert error.response.headers["content-type"] == "application/json"
    return dict(body)


def test_a_reply_comes_through_and_is_accounted_for(tmp_path: Path) -> None:
    with gateway(tmp_path) as (guard, upstream):
        raw = guard.client(guard.new_key()).chat.completions.with_raw_response.create(
            model="m", messages=ASK, user="u1"
        )
        assert raw.parse().choices[0].message.content == "echo: What is a spirit safe?"
        assert upstream.received[0]["messages"] == ASK
        assert upstream.received[0]["max_tokens"] == 4096  # the tier's cap, so that the reservation is a true bound
        assert "authorization" not in {name.lower() for name in upstream.headers[0]}
        (row,) = guard.rows()
    assert row["request_id"] == raw.headers["x-request-id"]
    assert (row["tokens_in"], row["tokens_out"], row["status"], row["end_user"]) == (10, 4, "ok", "u1")
    assert row["usd"] == pytest.approx(10e-6 * 1 + 4e-6 * 2)
    assert row["skeleton"]
    assert "spirit safe" not in json.dumps(row)


def test_a_stream_comes_through_event_by_event(tmp_path: Path) -> None:
    with gateway(tmp_path, streaming(*chunks("Hello", " there"))) as (guard, upstream):
        client = guard.client(guard.new_key())
        seen = list(chat(client, stream=True))
        assert [c.choices[0].delta.content for c in seen if c.choices] == ["Hello", " there", None]
        assert all(c.usage is None for c in seen)
        assert upstream.received[0]["stream_options"]["include_usage"] is True
        asked = list(chat(client, stream=True, stream_options={"include_usage": True}))
        assert asked[-1].usage.completion_tokens == 2
        rows = guard.rows()
    assert [(r["tokens_in"], r["tokens_out"], r["stream"], r["status"]) for r in rows] == [(7, 2, True, "ok")] * 2


def test_a_stream_without_usage_is_counted(tmp_path: Path) -> None:
    with gateway(tmp_path, streaming(*chunks("Hello", " there", usage=False))) as (guard, _):
        list(chat(guard.client(guard.new_key()), stream=True))
        (row,) = guard.rows()
    assert row["tokens_out"] >= 2
    assert row["tokens_in"] >= 5
    assert "estimated" in row["policy"] or "counted" in row["policy"]


def test_async_clients_work(tmp_path: Path) -> None:
    with gateway(tmp_path) as (guard, _):

        async def ask(key: str) -> list[str]:
            async with openai.AsyncOpenAI(base_url=f"{guard.public}/v1", api_key=key, max_retries=0) as client:
                replies = await asyncio.gather(
                    *(client.chat.completions.create(model="m", messages=ASK) for _ in range(20))
                )
                assert (await client.models.list()).data[0].id == "m"
            return [reply.choices[0].message.content or "" for reply in replies]

        assert asyncio.run(ask(guard.new_key())) == ["echo: What is a spirit safe?"] * 20
        assert len(guard.rows()) == 20


def test_without_a_key_nothing_answers(tmp_path: Path) -> None:
    with gateway(tmp_path) as (guard, upstream):
        for key in ("nonsense", "ss_aaaaaaaaaaaa_" + "b" * 43):
            with pytest.raises(openai.AuthenticationError) as denied:
                chat(guard.client(key))
            assert refused(denied.value)["code"] == "invalid_api_key"
        assert upstream.received == []
        assert guard.rows() == []


def test_terms_must_be_accepted_first(tmp_path: Path) -> None:
    terms = {"version": "2026-11", "url": "https://example.org/terms", "required": True}
    with gateway(tmp_path, terms=terms) as (guard, _):
        client = guard.client(guard.new_key())
        with pytest.raises(openai.PermissionDeniedError, match=r"https://example\.org/terms"):
            chat(client)
        guard.do(lambda g: g.accounts.accept_terms("acme", "2026-11"))
        assert chat(client).choices


def test_a_suspended_account_is_told_why(tmp_path: Path) -> None:
    with gateway(tmp_path) as (guard, _):
        client = guard.client(guard.new_key())
        chat(client)
        guard.do(lambda g: g.accounts.suspend("acme", reason="shared key", appeal="write to us", decided_by="ann"))
        with pytest.raises(openai.PermissionDeniedError, match=r"shared key.*write to us"):
            chat(client)
        guard.do(lambda g: g.accounts.restore("acme", decided_by="ann"))
        assert chat(client).choices


@pytest.mark.parametrize(
    ("more", "status", "said"),
    [
        ({"model": "other"}, 404, "no model"),
        ({"extra_body": {"temprature": 1}}, 400, "temperature"),
        ({"extra_body": {"watermark_key_id": "ks_00000000/x/1"}}, 400, "watermark_key_id"),
        ({"max_tokens": 10_000}, 400, "4096"),
        ({"n": 100}, 400, "n"),
        ({"logprobs": True}, 400, "log-probabilities are off"),
        ({"messages": []}, 400, "messages"),
    ],
)
def test_what_may_not_pass_is_refused(tmp_path: Path, more: dict[str, Any], status: int, said: str) -> None:
    with gateway(tmp_path) as (guard, upstream):
        with pytest.raises(openai.APIStatusError, match=said) as denied:
            chat(guard.client(guard.new_key()), **more)
        refused(denied.value)
        assert denied.value.status_code in (status, 403)
        assert upstream.received == []
        assert guard.rows() == []


def test_sixty_four_clients_cannot_overshoot_a_dollar(tmp_path: Path) -> None:
    """Each reply costs about 2.4 cents, so 42 fit; a check before and a charge after would let all 64 through."""

    async def behave(number: int, body: mock_api.Body, request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(0.05)
        return web.json_response(mock_api.completion(body, "x", tokens=12_000))

    tiers = {"default": {"usd_per_day": 1, "max_tokens": 12_000}}
    with gateway(tmp_path, behave, tiers=tiers) as (guard, _):
        client = guard.client(guard.new_key())

        def ask(_: int) -> int:
            try:
                chat(client, max_tokens=12_000)
            except openai.APIStatusError as error:
                return error.status_code
            return 200

        with ThreadPoolExecutor(64) as pool:
            outcomes = list(pool.map(ask, range(192)))
        rows = guard.rows()
    spent = sum(row["pico"] for row in rows)
    assert set(outcomes) == {200, 402}
    assert spent <= 10**12
    assert spent > 0.95 * 10**12
    assert outcomes.count(200) == len(rows)


def test_rate_limits_say_when_to_come_back(tmp_path: Path) -> None:
    with gateway(tmp_path, tiers={"default": {"requests_per_min": 2}}) as (guard, _):
        client = guard.client(guard.new_key())
        first = client.chat.completions.with_raw_response.create(model="m", messages=ASK)
        assert (first.headers["x-ratelimit-limit-requests"], first.headers["x-ratelimit-remaining-requests"]) == (
            "2",
            "1",
        )
        chat(client)
        with pytest.raises(openai.RateLimitError) as denied:
            chat(client)
        refused(denied.value)
        assert 0 < int(denied.value.response.headers["retry-after"]) <= 30


async def _json_500(number: int, body: mock_api.Body, request: web.Request) -> web.StreamResponse:
    return web.json_response({"error": {"message": "secret stack trace at /opt/model"}}, status=500)


async def _bad_request(number: int, body: mock_api.Body, request: web.Request) -> web.StreamResponse:
    return web.json_response(
        {"error": {"message": "context too long", "param": "messages", "code": "context_length_exceeded"}}, status=400
    )


async def _unauthorised(number: int, body: mock_api.Body, request: web.Request) -> web.StreamResponse:
    return web.json_response({"error": {"message": "bad key sk-123456"}}, status=401)


async def _garbage(number: int, body: mock_api.Body, request: web.Request) -> web.StreamResponse:
    return web.Response(text="<html>oops</html>")


async def _dies(number: int, body: mock_api.Body, request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def _hangs(number: int, body: mock_api.Body, request: web.Request) -> web.StreamResponse:
    await asyncio.sleep(30)
    return web.Response()


@pytest.mark.parametrize(
    ("behave", "status"),
    [(_json_500, 502), (_bad_request, 400), (_unauthorised, 502), (_garbage, 502), (_dies, 502), (_hangs, 504)],
)
@pytest.mark.parametrize("stream", [False, True])
def test_upstream_failures_are_clear_and_free(tmp_path: Path, behave: Any, status: int, stream: bool) -> None:
    price = {"input_per_mtok": 1, "output_per_mtok": 2}
    with mock_api.mock_api(behave) as upstream:
        ups = [{"name": "mock", "base_url": upstream.base_url, "models": ["m"], "price": price, "timeout_s": 0.3}]
        with guarding(guard_config(tmp_path, "http://x", upstreams=ups)) as guard:
            with pytest.raises(openai.APIStatusError) as failed:
                chat(guard.client(guard.new_key()), stream=stream)
            said = refused(failed.value)
            (row,) = guard.rows()
    assert failed.value.status_code == status
    assert "secret" not in said["message"]
    assert "sk-" not in said["message"]
    assert (row["status"], row["pico"]) == ("upstream_error", 0)
    assert len(upstream.received) == 1  # nothing that may have run is run again


def test_a_stream_that_breaks_ends_in_an_error_and_costs_what_came(tmp_path: Path) -> None:
    with gateway(tmp_path, streaming(*chunks("alpha ", "beta ", "gamma ")[:3], then="die")) as (guard, _):
        seen = []
        stream = chat(guard.client(guard.new_key()), stream=True)
        with pytest.raises(openai.APIError, match="broke off"):
            seen.extend(chunk.choices[0].delta.content for chunk in stream)
        (row,) = guard.rows()
        told = [line for line in guard.exposed() if line.startswith("spiritsafe_upstream_requests_total{")]
    assert told == ['spiritsafe_upstream_requests_total{status="0",upstream="mock"} 1.0']  # once, as the failure it was
    assert seen == ["alpha ", "beta ", "gamma "]
    assert row["status"] == "stream_broken"
    assert row["tokens_out"] >= 3
    assert row["pico"] > 0


def test_garbage_within_a_stream_does_not_pass(tmp_path: Path) -> None:
    with gateway(tmp_path, streaming(chunks("a")[0], b"data: {broken\n\n", b"data: [DONE]\n\n", pause=0.05)) as (
        guard,
        _,
    ):
        with pytest.raises(openai.APIError):
            list(chat(guard.client(guard.new_key()), stream=True))
        assert guard.rows()[0]["status"] == "stream_broken"


def test_a_client_that_leaves_stops_the_upstream_and_pays_for_what_came(tmp_path: Path) -> None:
    gone: list[bool] = []

    async def behave(number: int, body: mock_api.Body, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        try:
            for _ in range(1000):
                await response.write(chunks("tok")[0])
                await asyncio.sleep(0.01)
        except (ConnectionError, asyncio.CancelledError):
            gone.append(True)
            raise
        return response

    with gateway(tmp_path, behave) as (guard, _):
        stream = chat(guard.client(guard.new_key()), stream=True)
        for _ in range(5):
            next(stream)
        stream.close()
        deadline = time.monotonic() + 10
        while not (rows := guard.rows()) and time.monotonic() < deadline:
            time.sleep(0.05)
        while not gone and time.monotonic() < deadline:
            time.sleep(0.05)
    assert gone
    assert rows[0]["status"] == "client_gone"
    assert 5 <= rows[0]["tokens_out"] < 100


def test_another_upstream_answers_where_the_first_was_not_reached(tmp_path: Path) -> None:
    with socket.socket() as closed, mock_api.mock_api() as upstream:
        closed.bind(("127.0.0.1", 0))
        price = {"input_per_mtok": 1, "output_per_mtok": 2}
        dead = f"http://127.0.0.1:{closed.getsockname()[1]}/v1"
        ups = [
            {"name": "dead", "base_url": dead, "models": ["m"], "price": price, "weight": 100},
            {"name": "live", "base_url": upstream.base_url, "models": ["m"], "price": price},
        ]
        with guarding(guard_config(tmp_path, "http://x", upstreams=ups)) as guard:
            client = guard.client(guard.new_key())
            for _ in range(6):
                assert chat(client).choices
        assert len(upstream.received) == 6


def test_a_busy_upstream_says_so(tmp_path: Path) -> None:
    async def busy(number: int, body: mock_api.Body, request: web.Request) -> web.StreamResponse:
        return web.json_response({"error": {"message": "slow down"}}, status=429)

    with gateway(tmp_path, busy) as (guard, _), pytest.raises(openai.InternalServerError) as failed:
        chat(guard.client(guard.new_key()))
    assert (failed.value.status_code, refused(failed.value)["code"]) == (503, "upstream_busy")


def test_readiness_follows_the_drain(tmp_path: Path) -> None:
    with gateway(tmp_path) as (guard, _):
        assert _get(guard, "/readyz")[0] == 200

        async def drain(g: Any) -> None:
            g.drain()

        guard.do(drain)
        status, body = _get(guard, "/readyz")
        assert (status, body) == (503, {"status": "draining", "because": ["it is shutting down"]})
        assert _get(guard, "/healthz")[0] == 200


def _get(guard: Running, path: str) -> tuple[int, Any]:
    import urllib.error
    import urllib.request

    try:
        with urllib.request.urlopen(guard.public + path, timeout=10) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_an_upstream_whose_replies_break_off_rests(tmp_path: Path) -> None:
    with gateway(tmp_path, _garbage) as (guard, _):
        client = guard.client(guard.new_key())
        for _ in range(3):
            with pytest.raises(openai.InternalServerError):
                chat(client)
        assert _get(guard, "/readyz")[1]["because"] == ["a model has no upstream that answers"]


def thinking(said: Any) -> mock_api.Behaviour:
    """An upstream whose model reasons, and says this where it is asked for a summary."""

    async def behave(number: int, body: mock_api.Body, request: web.Request) -> web.StreamResponse:
        if body["messages"][0]["role"] == "system":
            assert "SECRET" in body["messages"][1]["content"]
            return web.json_response(mock_api.completion(body, said) if isinstance(said, str) else said)
        reply = mock_api.completion(body, "the answer")
        reply["choices"][0]["message"]["reasoning_content"] = "SECRET thoughts"
        return web.json_response(reply)

    return behave


@pytest.mark.parametrize(
    ("said", "summary"),
    [
        ("Two ways were weighed.", "Two ways were weighed."),
        ("<think>SECRET again</think>\nTwo ways were weighed.", "Two ways were weighed."),
        ("<think>SECRET, and then no room", None),
        ({"choices": [{"message": {"content": None}}]}, None),
        ({"error": "none"}, None),
    ],
)
def test_a_summary_stands_in_place_of_the_reasoning(tmp_path: Path, said: Any, summary: str | None) -> None:
    with gateway(tmp_path, thinking(said), tiers={"default": {"reasoning": "summarise"}}) as (guard, upstream):
        message = chat(guard.client(guard.new_key())).choices[0].message
        assert message.content == "the answer"
        assert message.model_dump().get("reasoning_content") == summary
        assert len(upstream.received) == 2
        (row,) = guard.rows()
    assert ("summary=failed" in row["policy"]) == (summary is None)
    assert row["tokens_out"] == 4  # the summary is the operator's
