"""`teachers run` over real HTTP: the stock openai client, raw requests, streams, disconnects, stop signals."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
import torch

from served import one_thread, save_tiny_model, serving
from spiritsafe.errors import BadInput
from spiritsafe.teachers import LocalTeacher, serve_local
from spiritsafe.tokens import token_bytes_table
from spiritsafe.wire import SseParser

pytestmark = pytest.mark.usefixtures("one_thread")
__all__ = ["one_thread"]

HELLO: list[Any] = [{"role": "user", "content": "grüß dich"}]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny", context=512)


@pytest.fixture(scope="module")
def teacher(model: Path, one_thread: None) -> LocalTeacher:
    return LocalTeacher(model, model="tiny", max_batch=8)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("log") / "answered.jsonl"


@pytest.fixture(scope="module")
def url(teacher: LocalTeacher, log: Path) -> Iterator[str]:
    with serving(teacher, log=log) as base_url:
        yield base_url


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        yield client


def post(url: str, body: bytes | dict[str, Any], path: str = "/chat/completions", **headers: str) -> tuple[int, bytes]:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
    raw = body if isinstance(body, bytes) else json.dumps({"model": "tiny", "messages": HELLO} | body).encode()
    connection.request("POST", parts.path + path, raw, headers)
    response = connection.getresponse()
    answer = response.status, response.read()
    connection.close()
    return answer


def test_the_stock_client_gets_text_usage_and_log_probabilities(client: openai.OpenAI, teacher: LocalTeacher) -> None:
    reply = client.chat.completions.create(
        model="tiny",
        messages=HELLO,
        n=2,
        seed=3,
        max_tokens=9,
        temperature=0.8,
        top_p=0.9,
        logprobs=True,
        top_logprobs=5,
    )
    assert reply.object == "chat.completion" and [choice.index for choice in reply.choices] == [0, 1]
    assert reply.choices[0].message.content != reply.choices[1].message.content
    assert reply.usage is not None
    tokens = [choice.logprobs.content for choice in reply.choices if choice.logprobs and choice.logprobs.content]
    assert reply.usage.completion_tokens == sum(map(len, tokens))
    for choice, content in zip(reply.choices, tokens, strict=True):
        text = b"".join(bytes(entry.bytes or ()) for entry in content if entry.token != "<|im_end|>")
        assert choice.message.content == text.decode("utf-8", "replace")
        for entry in content:
            values = [alternative.logprob for alternative in entry.top_logprobs]
            assert len(values) == 5 and values == sorted(values, reverse=True) and entry.logprob <= values[0] <= 0


def test_log_probabilities_without_alternatives_are_the_chosen_tokens(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(model="tiny", messages=HELLO, seed=3, max_tokens=4, logprobs=True)
    content = reply.choices[0].logprobs and reply.choices[0].logprobs.content
    assert content and all(entry.top_logprobs == [] and entry.logprob < 0 for entry in content)


def test_a_stream_joins_to_the_same_answer(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "tiny", "messages": HELLO, "n": 2, "seed": 5, "max_tokens": 60, "logprobs": True, "top_logprobs": 2
    }  # fmt: skip
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1
    for choice in whole.choices:
        mine = [c for chunk in chunks for c in chunk.choices if c.index == choice.index]
        assert "".join(c.delta.content or "" for c in mine) == choice.message.content
        assert [c.finish_reason for c in mine if c.finish_reason] == [choice.finish_reason]
        assert mine[0].delta.role == "assistant"
        streamed = [entry for c in mine if c.logprobs for entry in c.logprobs.content or []]
        assert choice.logprobs is not None and [e.token for e in streamed] == [
            e.token for e in choice.logprobs.content or []
        ]


def test_without_usage_or_log_probabilities_a_stream_is_text_only(url: str) -> None:
    status, raw = post(url, {"stream": True, "seed": 5, "max_tokens": 20})
    events = SseParser().feed(raw)
    assert status == 200 and events[-1].data == "[DONE]"
    chunks = [json.loads(event.data) for event in events[:-1]]
    assert all("usage" not in chunk and len(chunk["choices"]) == 1 for chunk in chunks)
    assert all(chunk["choices"][0]["delta"].get("content") for chunk in chunks[1:-1])


@pytest.fixture(scope="module")
def parrot(model: Path, one_thread: None) -> Iterator[tuple[str, str]]:
    """A server whose model says one text over and over, in characters of one to four bytes."""
    said = "né€😀."
    teacher = LocalTeacher(model, model="tiny")
    ids = teacher.weights.tokenizer.encode(said)

    def forward(**kwargs: Any) -> Any:
        out = real(**kwargs)
        positions = kwargs["position_ids"]
        if "logits_to_keep" in kwargs:
            positions = positions[:, kwargs["logits_to_keep"]]
        out.logits = torch.nn.functional.one_hot(torch.tensor(ids)[(positions + 1) % len(ids)], 272).float() * 50
        return out

    real = teacher.weights.model.forward
    teacher.weights.model.forward = forward
    with serving(teacher) as url:
        yield url, said


def test_streams_never_cut_a_character(parrot: tuple[str, str]) -> None:
    url, said = parrot
    with openai.OpenAI(base_url=url, api_key="none") as client:
        asked: dict[str, Any] = {"model": "tiny", "messages": HELLO, "temperature": 0, "max_tokens": 47}
        whole = client.chat.completions.create(**asked).choices[0].message.content or ""
        pieces = [c.choices[0].delta.content or "" for c in client.chat.completions.create(**asked, stream=True)]
    assert "".join(pieces) == whole
    assert said * 3 in whole
    inner = "".join(pieces[3:-3])  # a prompt of any length may begin, and max_tokens end, within a character
    assert "\ufffd" not in inner and {"é", "€", "😀"} <= set(pieces)


def test_stop_strings_end_a_reply_before_them(parrot: tuple[str, str]) -> None:
    url, _ = parrot
    with openai.OpenAI(base_url=url, api_key="none") as client:
        asked: dict[str, Any] = {"model": "tiny", "messages": HELLO, "temperature": 0, "max_tokens": 60}
        for stop in ("€😀", ["zz", "😀.n"]):
            whole = client.chat.completions.create(**asked, stop=stop)
            pieces = [
                c.choices[0].delta.content or ""
                for c in client.chat.completions.create(**asked, stop=stop, stream=True)
            ]
            assert whole.choices[0].finish_reason == "stop"
            text = whole.choices[0].message.content or ""
            assert "".join(pieces) == text and text.endswith("é" if stop == "€😀" else "€")


async def test_requests_of_many_connections_share_batches(url: str, teacher: LocalTeacher) -> None:
    widths: list[int] = []
    real = teacher.engine._advance
    teacher.engine._advance = lambda: (widths.append(len(teacher.engine._running)), real())  # type: ignore[method-assign,assignment]
    try:
        async with openai.AsyncOpenAI(base_url=url, api_key="none") as client:

            async def one(seed: int) -> str | None:
                reply = await client.chat.completions.create(model="tiny", messages=HELLO, seed=seed, max_tokens=60)
                return reply.choices[0].message.content

            together = await asyncio.gather(*(one(seed) for seed in range(20)))
            assert max(widths) == 8
            assert together[7:9] == [await one(7), await one(8)]
            stream = await client.chat.completions.create(
                model="tiny", messages=HELLO, seed=7, max_tokens=60, stream=True
            )
            assert "".join([c.choices[0].delta.content or "" async for c in stream]) == together[7]
    finally:
        teacher.engine._advance = real  # type: ignore[method-assign]


def test_token_ids_come_when_asked_for(url: str, teacher: LocalTeacher) -> None:
    table = token_bytes_table(teacher.weights.tokenizer)
    asked = {"seed": 2, "max_tokens": 6, "return_token_ids": True, "return_tokens_as_token_ids": True}
    body = json.loads(post(url, asked | {"logprobs": True, "top_logprobs": 1})[1])
    (choice,) = body["choices"]
    assert bytes(table[body["prompt_token_ids"][0]]) == b"<|im_start|>"
    assert [entry["token"] for entry in choice["logprobs"]["content"]] == [f"token_id:{i}" for i in choice["token_ids"]]
    assert [bytes(entry["bytes"]) for entry in choice["logprobs"]["content"]] == [table[i] for i in choice["token_ids"]]
    chunks = [json.loads(e.data) for e in SseParser().feed(post(url, asked | {"stream": True})[1])[:-1]]
    assert [i for chunk in chunks for i in chunk["choices"][0].get("token_ids", ())] == choice["token_ids"]
    assert chunks[0]["prompt_token_ids"] == body["prompt_token_ids"]
    assert "token_ids" not in json.loads(post(url, {"max_tokens": 2})[1])["choices"][0]


def test_all_that_fits_is_generated_without_a_limit(client: openai.OpenAI) -> None:
    usage = client.chat.completions.create(model="tiny", messages=HELLO, temperature=0).usage
    assert usage is not None
    assert usage.total_tokens == 512 or usage.completion_tokens < 512 - usage.prompt_tokens


@pytest.mark.parametrize(
    ("body", "status", "code", "says"),
    [
        ({"model": "gpt-9"}, 404, "model_not_found", "this server has tiny"),
        ({"max_tokens": 5000}, 400, "context_length_exceeded", "context of 512"),
        ({"logprobs": True, "top_logprobs": 65}, 400, None, "from 0 to 64"),
        ({"tools": [{"type": "function"}]}, 400, "unsupported_parameter", "tools"),
        (b"{", 400, None, "not valid JSON"),
        (b" " * (17 << 20), 413, None, "16 MiB"),
    ],
)
def test_bad_requests_get_an_error_a_client_can_read(
    url: str, body: Any, status: int, code: str | None, says: str
) -> None:
    got, raw = post(url, body)
    error = json.loads(raw)["error"]
    assert (got, error["code"]) == (status, code)
    assert says in error["message"] and set(error) == {"message", "type", "param", "code"}


def test_other_paths_and_methods_answer_in_the_same_shape(url: str) -> None:
    assert post(url, b"", "/embeddings")[0] == 404
    status, raw = post(url, b"", "/models")
    assert status == 405 and "POST /v1/models" in json.loads(raw)["error"]["message"]


def test_models_and_health(client: openai.OpenAI, url: str, teacher: LocalTeacher) -> None:
    (card,) = client.models.list().data
    assert card.id == "tiny" and client.models.retrieve("tiny").id == "tiny"
    assert (card.model_extra or {})["revision"] == teacher.weights.revision
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port)
    connection.request("GET", "/healthz")
    assert connection.getresponse().status == 200
    connection.close()


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_takes_its_work_with_it(url: str, teacher: LocalTeacher, log: Path, stream: bool) -> None:
    body = json.dumps({"model": "tiny", "messages": HELLO, "n": 8, "max_tokens": 450, "stream": stream}).encode()
    parts = urlsplit(url)
    before = len(log.read_bytes().splitlines()) if log.exists() else 0
    with socket.create_connection((parts.hostname or "", parts.port or 0)) as connection:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        if stream:
            assert connection.recv(20).startswith(b"HTTP/1.1 200")
        _wait(lambda: teacher.engine.busy)
    _wait(lambda: len(log.read_bytes().splitlines()) > before)
    _wait(lambda: not teacher.engine.busy)
    line = json.loads(log.read_bytes().splitlines()[-1])
    assert line["status"] == 499 and line["completion_tokens"] < 8 * 450


def test_the_log_tells_what_was_answered_but_not_what_was_said(client: openai.OpenAI, log: Path) -> None:
    reply = client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=3, n=2)
    line = json.loads(log.read_bytes().splitlines()[-1])
    assert reply.usage is not None
    assert (line["id"], line["status"], line["n"]) == (reply.id, 200, 2)
    assert (line["prompt_tokens"], line["completion_tokens"]) == (
        reply.usage.prompt_tokens,
        reply.usage.completion_tokens,
    )
    assert b"dich" not in log.read_bytes()


def test_an_engine_failure_reaches_the_client(url: str, teacher: LocalTeacher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher.engine, "_prefill", lambda _: 1 / 0)
    status, raw = post(url, {"max_tokens": 3})
    assert status == 500 and json.loads(raw)["error"]["type"] == "server_error"
    events = SseParser().feed(post(url, {"max_tokens": 3, "stream": True})[1])
    assert "ZeroDivisionError" in json.loads(events[-2].data)["error"]["message"] and events[-1].data == "[DONE]"


def test_a_key_is_asked_for(model: Path) -> None:
    with serving(model, model_name="tiny", api_key="s3cret") as url:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "s3cret"}):
            status, raw = post(url, {"max_tokens": 1}, **headers)
            assert status == 401 and json.loads(raw)["error"]["code"] == "invalid_api_key"
        assert post(url, {"max_tokens": 1}, Authorization="Bearer s3cret")[0] == 200
        with (
            openai.OpenAI(base_url=url, api_key="wrong", max_retries=0) as client,
            pytest.raises(openai.AuthenticationError),
        ):
            client.models.list()


def test_an_address_in_use_is_told_before_anything_is_loaded(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BadInput, match=f"127.0.0.1:{port}: cannot listen"):
            serve_local(tmp_path / "missing", port=port)
    with pytest.raises(BadInput, match="the log cannot be written"):
        serve_local(tmp_path / "missing", port=0, log=tmp_path / "no" / "dir.jsonl")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_it_after_the_replies_under_way(model: Path, number: int) -> None:
    script = (
        "import sys, torch; torch.set_num_threads(1); from spiritsafe.teachers import serve_local;"
        "serve_local(sys.argv[1], port=0, on_ready=lambda url, name: print(url, name, flush=True))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(model)], stdout=subprocess.PIPE, env=os.environ, text=True
    )
    try:
        assert process.stdout is not None
        url, name = process.stdout.readline().split()
        with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
            stream = client.chat.completions.create(
                model=name, messages=HELLO, temperature=1, seed=1, max_tokens=100, stream=True
            )
            next(iter(stream))
            process.send_signal(number)
            assert [c.choices[0].finish_reason for c in stream][-1] in ("stop", "length")
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.communicate()


def _wait(condition: Any, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.002)
