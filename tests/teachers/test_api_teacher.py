"""The API teacher against a real server that misbehaves in every way we know."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from aiohttp import web

from mock_api import Behaviour, MockApi, completion, mock_api
from spiritsafe.records import Message, Prompt, Request, Sampling, Usage
from spiritsafe.teachers import Answer, TeacherConfig, TeacherError, open_teacher

ASK = Request(Prompt((Message("user", "hi"),)), Sampling(max_tokens=8, temperature=0.5, seed=7, stop=("\n",)), n=2)
KEY = "sk-very-secret"


@pytest.fixture
def api() -> Iterator[MockApi]:
    with mock_api() as running:
        yield running


async def ask(api: MockApi, request: Request = ASK, **config: Any) -> Answer:
    teacher = open_teacher(TeacherConfig(base_url=api.base_url, model="m", **config))
    try:
        return await teacher.complete(request)
    finally:
        await teacher.aclose()


async def failure(behave: Behaviour, **config: Any) -> TeacherError:
    with mock_api(behave) as api, pytest.raises(TeacherError) as caught:
        await ask(api, **config)
    message = str(caught.value)
    assert "\n" not in message and KEY not in message and api.base_url in message
    return caught.value


def replies(status: int, text: str, **headers: str) -> Behaviour:
    async def behave(number: int, body: dict[str, Any], request: web.Request) -> web.Response:
        return web.Response(status=status, text=text, headers=headers)

    return behave


async def test_an_answer_with_everything(api: MockApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("K", KEY)

    async def behave(number: int, body: dict[str, Any], request: web.Request) -> web.Response:
        data = completion(body, "eins", "zwei", finish="length", model="m-2026")
        data["usage"] |= {
            "prompt_tokens_details": {"cached_tokens": 6},
            "completion_tokens_details": {"reasoning_tokens": 2},
        }
        return web.json_response(data)

    api.behave = behave
    answer = await ask(api, api_key_env="K")
    assert [r.text for r in answer.replies] == ["eins", "zwei"]
    assert {r.finish_reason for r in answer.replies} == {"length"}
    assert (answer.usage, answer.model, answer.usage_reported) == (Usage(10, 8, 6, 2), "m-2026", True)
    assert answer.raw is not None and b"zwei" in answer.raw
    assert api.received == [
        {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 8, "temperature": 0.5, "n": 2,
         "seed": 7, "stop": ["\n"]}
    ]  # fmt: skip
    assert api.headers[0]["Authorization"] == f"Bearer {KEY}"


async def test_logprobs_keep_the_bytes(api: MockApi) -> None:
    async def behave(number: int, body: dict[str, Any], request: web.Request) -> web.Response:
        content = [
            {"token": "�", "logprob": -0.5, "bytes": [0xC3], "top_logprobs": [
                {"token": "b", "logprob": -2.0, "bytes": [98]}, {"token": "�", "logprob": -0.5, "bytes": [0xC3]}]},
            {"token": "é", "logprob": -9999.0, "bytes": None, "top_logprobs": [{"token": "é", "logprob": -0.1, "bytes": None}]},
        ]  # fmt: skip
        data = completion(body, "x")
        data["choices"][0]["logprobs"] = {"content": content}
        return web.json_response(data)

    api.behave = behave
    answer = await ask(api, Request(ASK.prompt, Sampling(logprobs=2)))
    assert api.received[0]["logprobs"] is True and api.received[0]["top_logprobs"] == 2
    logprobs = answer.replies[0].logprobs
    assert logprobs is not None
    assert logprobs.token_bytes == (b"\xc3", "é".encode())
    assert logprobs.top_bytes == ((b"\xc3", b"b"), ("é".encode(), b""))
    assert logprobs.top.tolist() == [[-0.5, -2.0], [pytest.approx(-0.1), float("-inf")]]
    assert logprobs.chosen.tolist() == [-0.5, float("-inf")]
    assert logprobs.ids is None


@pytest.mark.parametrize(("owner", "asked"), [("vllm", True), ("spiritsafe", True), ("openai", False)])
async def test_token_ids_are_asked_only_of_servers_that_know_the_field(owner: str, asked: bool) -> None:
    async def behave(number: int, body: dict[str, Any], request: web.Request) -> web.Response:
        data = completion(body, "x")
        if body.get("return_token_ids"):
            data["choices"][0]["token_ids"] = [5, 2]
        return web.json_response(data)

    with mock_api(behave, models=[{"id": "m", "object": "model", "owned_by": owner}]) as api:
        answer = await ask(api)
    assert ("return_token_ids" in api.received[0]) is asked
    assert answer.replies[0].token_ids == ((5, 2) if asked else None)


async def test_tokens_named_by_id_keep_their_bytes_where_a_server_gives_both() -> None:
    async def behave(number: int, body: dict[str, Any], request: web.Request) -> web.Response:
        assert body["return_tokens_as_token_ids"] is True
        top = [{"token": f"token_id:{i}", "logprob": -1.0 - i, "bytes": [65 + i]} for i in range(2)]
        data = completion(body, "A")
        data["choices"][0]["logprobs"] = {"content": [top[0] | {"top_logprobs": top}]}
        return web.json_response(data)

    with mock_api(behave, models=[{"id": "m", "owned_by": "spiritsafe"}]) as api:
        answer = await ask(api, Request(ASK.prompt, Sampling(logprobs=2)))
    logprobs = answer.replies[0].logprobs
    assert logprobs is not None and logprobs.ids is not None
    assert logprobs.ids.tolist() == [[0, 1]] and logprobs.top_bytes == ((b"A", b"B"),)


async def test_tokens_named_by_id_alone_have_no_bytes(api: MockApi) -> None:
    async def behave(number: int, body: dict[str, Any], request: web.Request) -> web.Response:
        top = [
            {"token": f"token_id:{i}", "logprob": -1.0 - i, "bytes": list(f"token_id:{i}".encode())} for i in range(2)
        ]
        data = completion(body, "A")
        data["choices"][0]["logprobs"] = {"content": [top[0] | {"top_logprobs": top}]}
        return web.json_response(data)

    api.behave = behave
    logprobs = (await ask(api, Request(ASK.prompt, Sampling(logprobs=2)))).replies[0].logprobs
    assert logprobs is not None and logprobs.ids is not None
    assert logprobs.ids.tolist() == [[0, 1]] and logprobs.top_bytes is None and logprobs.token_bytes is None


async def test_missing_usage_is_said_and_not_invented(api: MockApi) -> None:
    async def behave(number: int, body: dict[str, Any], request: web.Request) -> web.Response:
        return web.json_response(completion(body, "x", usage=None))

    api.behave = behave
    assert (await ask(api)).usage_reported is False


@pytest.mark.parametrize(
    ("status", "kind", "billed"),
    [(401, "auth", False), (402, "auth", False), (403, "auth", False), (400, "bad_request", False),
     (404, "bad_request", False), (422, "bad_request", False), (302, "bad_request", False),
     (429, "rate_limited", False), (500, "server", False), (503, "server", False), (504, "timeout", True)],
)  # fmt: skip
async def test_statuses(status: int, kind: str, billed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("K", KEY)
    error = await failure(replies(status, f'{{"error": {{"message": "no\\nway, {KEY}"}}}}'), api_key_env="K")
    assert (error.kind, error.billed) == (kind, billed)
    assert f"answered {status}" in str(error)
    assert error.transient is (kind not in ("auth", "bad_request"))


async def test_auth_errors_name_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("K", KEY)
    assert "check the key in K" in str(await failure(replies(401, "no"), api_key_env="K"))
    assert "set teacher.api_key_env" in str(await failure(replies(401, "no")))


async def test_no_credit_left_is_final_though_it_comes_as_429() -> None:
    error = await failure(replies(429, '{"error": {"message": "quota", "code": "insufficient_quota"}}'))
    assert error.kind == "auth" and "out of credit" in str(error)


async def test_retry_after_in_seconds_and_as_a_date() -> None:
    assert (await failure(replies(429, "", **{"Retry-After": "7.5"}))).retry_after == 7.5
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    error = await failure(replies(503, "", **{"Retry-After": date}))
    assert error.retry_after is not None and 55 < error.retry_after <= 60
    assert (await failure(replies(429, "", **{"Retry-After": "soon"}))).retry_after is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("<!doctype html><title>Welcome</title>", "not JSON: '<!doctype html>"),
        ('{"choices": []}', "no choices"),
        ('["a"]', "no choices"),
        ('{"choices": [{"index": 0}]}', "not a chat completion (KeyError"),
        ('{"choices": [{"message": {"content": 5}}]}', "content is not text"),
        ('{"choices": [{"message": {"content": "tru', "not JSON"),
        ("", "an empty body"),
    ],
)
async def test_answers_that_are_none(text: str, says: str) -> None:
    error = await failure(replies(200, text))
    assert (error.kind, error.billed) == ("malformed", True)
    assert says in str(error)


async def test_a_hanging_teacher_times_out_and_may_have_billed() -> None:
    async def hang(number: int, body: dict[str, Any], request: web.Request) -> web.Response:
        await asyncio.sleep(30)
        return web.Response()

    error = await failure(hang, timeout_s=0.3)
    assert (error.kind, error.billed) == ("timeout", True)
    assert "0.3 s (teacher.timeout_s)" in str(error)


async def test_a_dropped_connection_may_have_billed() -> None:
    async def drop(number: int, body: dict[str, Any], request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    async def half(number: int, body: dict[str, Any], request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "1000"})
        await response.prepare(request)
        await response.write(b'{"choices": [')
        assert request.transport is not None
        request.transport.abort()
        return response

    for behave in (drop, half):
        error = await failure(behave)
        assert (error.kind, error.billed) == ("network", True)


async def test_nobody_listens() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{held.getsockname()[1]}/v1"
        teacher = open_teacher(TeacherConfig(base_url=url, model="m"))
        with pytest.raises(TeacherError, match=r"unreachable .* is it running") as caught:
            await teacher.complete(ASK)
        await teacher.aclose()
    assert (caught.value.kind, caught.value.billed) == ("network", False)


async def test_something_else_than_http_listens() -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    teacher = open_teacher(TeacherConfig(base_url=url, model="m"))
    with pytest.raises(TeacherError, match="does not speak HTTP"):
        await teacher.complete(ASK)
    await teacher.aclose()
    server.close()


async def test_reasoning_models_want_another_name_for_max_tokens(api: MockApi) -> None:
    async def picky(number: int, body: dict[str, Any], request: web.Request) -> web.Response:
        if "max_tokens" in body:
            said = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
            return web.json_response({"error": {"message": said}}, status=400)
        return web.json_response(completion(body))

    api.behave = picky
    teacher = open_teacher(TeacherConfig(base_url=api.base_url, model="m"))
    for _ in range(2):
        await teacher.complete(ASK)
    await teacher.aclose()
    assert [sorted(k for k in body if k.startswith("max")) for body in api.received] == [
        ["max_tokens"], ["max_completion_tokens"], ["max_completion_tokens"],
    ]  # fmt: skip


async def test_a_gateway_that_keeps_token_ids_back_is_asked_without() -> None:
    async def guarded(number: int, body: dict[str, Any], request: web.Request) -> web.Response:
        if "return_token_ids" in body:
            await asyncio.sleep(0.05)  # both have left before the first comes back
            said = "return_token_ids is refused: token ids would leave outside the output policy; leave it out"
            return web.json_response({"error": {"message": said}}, status=400)
        return web.json_response(completion(body))

    with mock_api(guarded, models=[{"id": "m", "owned_by": "spiritsafe"}]) as api:
        teacher = open_teacher(TeacherConfig(base_url=api.base_url, model="m"))
        await asyncio.gather(teacher.complete(ASK), teacher.complete(ASK))
        await teacher.complete(ASK)
        await teacher.aclose()
        assert [("return_token_ids" in body) for body in api.received] == [True, True, False, False, False]


async def test_many_at_once_share_one_session_without_queueing(api: MockApi) -> None:
    async def slow(number: int, body: dict[str, Any], request: web.Request) -> web.Response:
        await asyncio.sleep(0.3)
        return web.json_response(completion(body))

    api.behave = slow
    teacher = open_teacher(TeacherConfig(base_url=api.base_url, model="m"))
    await asyncio.gather(*(teacher.complete(ASK) for _ in range(150)))
    await teacher.aclose()
    assert api.most_in_flight > 120  # aiohttp's own default would have stopped at 100
