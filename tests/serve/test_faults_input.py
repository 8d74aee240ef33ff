"""Requests that are wrong on purpose: every one gets an error in OpenAI's shape, and nothing of it reaches a model."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from faults_kit import REPLY_TOKENS, Guarded, Mock, answers_of, guarding, mocking

CHAT = "/v1/chat/completions"
HI: list[Any] = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def mock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mock]:
    with mocking(tmp_path_factory.mktemp("mock")) as mock:
        yield mock


@pytest.fixture(scope="module")
def guard(tmp_path_factory: pytest.TempPathFactory, mock: Mock) -> Iterator[Guarded]:
    with guarding(tmp_path_factory.mktemp("guard"), mock, max_body_mb=8) as guard:
        yield guard


@pytest.fixture(scope="module")
def key(guard: Guarded) -> str:
    return guard.new_key("acme")


@pytest.fixture(autouse=True)
def nothing_reaches_the_model(guard: Guarded, key: str, mock: Mock) -> Iterator[None]:
    """Each test's bad requests leave no trace upstream, and the guard still answers good ones afterwards."""
    before = len(mock.asked())
    yield
    assert len(mock.asked()) == before
    answer = guard.post(key)
    assert answer.status == 200 and answer.json["usage"]["completion_tokens"] == REPLY_TOKENS


def chat(**body: Any) -> bytes:
    return json.dumps({"model": "m", "messages": HI} | body).encode()


BODIES: dict[str, bytes] = {
    "nothing": b"",
    "no JSON": b"hello",
    "half an object": b'{"model": "m", "messages": [',
    "a list": b"[]",
    "a number": b"1",
    "null": b"null",
    "two objects": chat() + chat(),
    "NaN": b'{"model": "m", "messages": [{"role": "user", "content": "x"}], "temperature": NaN}',
    "a huge number": b'{"model": "m", "messages": [{"role": "user", "content": "x"}], "n": ' + b"9" * 5000 + b"}",
    "bad UTF-8": b'{"model": "m", "messages": [{"role": "user", "content": "\xff\xfe"}]}',
    "overlong UTF-8": b'{"model": "m", "messages": [{"role": "user", "content": "\xc0\xaf"}]}',
    "a lone surrogate": b'{"model": "m", "messages": [{"role": "user", "content": "\\ud800"}]}',
    "UTF-16": json.dumps({"model": "m", "messages": HI}).encode("utf-16"),
    "deep lists": b"[" * 100_000,
    "deep objects": b'{"a":' * 100_000,
    "deep in a field": b'{"model": "m", "metadata": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    "no messages": json.dumps({"model": "m"}).encode(),
    "no model": json.dumps({"messages": HI}).encode(),
    "no messages in the list": chat(messages=[]),
    "messages of text": chat(messages="hi"),
    "messages of numbers": chat(messages=[1, 2]),
    "content of a number": chat(messages=[{"role": "user", "content": 7}]),
    "a role that is none": chat(messages=[{"role": "root", "content": "hi"}]),
    "a model that is a list": chat(model=["m"]),
    "a model that is a number": chat(model=0),
    "max_tokens of text": chat(max_tokens="many"),
    "max_tokens below one": chat(max_tokens=0),
    "max_tokens negative": chat(max_tokens=-5),
    "max_tokens a fraction": chat(max_tokens=1.5),
    "max_tokens true": chat(max_tokens=True),
    "n of none": chat(n=0),
    "n beyond all": chat(n=10**9),
    "temperature of text": chat(temperature="hot"),
    "temperature infinite": b'{"model": "m", "messages": [{"role": "user", "content": "x"}], "temperature": 1e999}',
    "stream of text": chat(stream="yes"),
    "stream_options of text": chat(stream=True, stream_options="usage"),
    "an unknown field": chat(max_token=5),
    "logprobs of text": chat(logprobs="all"),
    "top_logprobs beyond": chat(logprobs=True, top_logprobs=10**6),
    "stop of numbers": chat(stop=[1]),
    "user of a list": chat(user=["x"]),
    "logit_bias of text": chat(logit_bias="all"),
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_bad_bodies_are_refused_and_named(guard: Guarded, key: str, body: bytes) -> None:
    answer = guard.request("POST", CHAT, body, key)
    assert answer.status == 400, answer.body
    assert answer.error["type"] == "invalid_request_error"
    assert len(answer.body) < 2000


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (CHAT, {"model": "m", "messages": HI, "max_token": 5}, "max_token"),
        (CHAT, {"model": "m", "messages": HI, "temperature": 9}, "temperature"),
        ("/v1/completions", {"model": "m", "prompt": {"a": 1}}, "prompt"),
        ("/v1/completions", {"model": "m"}, "prompt"),
        ("/v1/responses", {"model": "m", "input": 5}, "input"),
        ("/v1/embeddings", {"model": "m", "input": [{}]}, "input"),
    ],
)
def test_the_field_at_fault_is_named(guard: Guarded, key: str, path: str, body: dict[str, Any], param: str) -> None:
    answer = guard.request("POST", path, json.dumps(body).encode(), key)
    assert answer.status == 400
    assert param in (answer.error["param"] or "") and param in answer.error["message"]


def test_an_unknown_model_path_and_method(guard: Guarded, key: str) -> None:
    answer = guard.post(key, model="gpt-17")
    assert (answer.status, answer.error["code"], answer.error["param"]) == (404, "model_not_found", "model")
    assert guard.get("/v1/nowhere", key).error["code"] == "not_found"
    answer = guard.get(CHAT, key)
    assert answer.status == 405 and answer.headers["allow"] == "POST" and answer.error
    assert guard.request("DELETE", "/v1/models", b"", key).status == 405
    assert guard.get("/v1/models/..%2f..%2fetc%2fpasswd", key).status == 404


def test_ten_megabytes_are_too_much_with_a_length_and_in_chunks(guard: Guarded, key: str) -> None:
    answer = guard.request("POST", CHAT, chat(messages=[{"role": "user", "content": "x" * 10_000_000}]), key)
    assert answer.status == 413 and "8 MiB" in answer.error["message"]
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nTransfer-Encoding: chunked\r\n\r\n"
    said = guard.talk(head.encode() + (b"10000\r\n" + b" " * 65536 + b"\r\n") * 160 + b"0\r\n\r\n")
    [answer] = answers_of(said)
    assert answer.status == 413 and answer.error


def test_a_claimed_length_is_not_believed_into_memory(guard: Guarded, key: str) -> None:
    raw = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nContent-Length: 99999999999999\r\n\r\n{{"
    [answer] = answers_of(guard.talk(raw.encode()))
    assert answer.status == 413 and answer.error


def test_a_compressed_body_is_refused(guard: Guarded, key: str) -> None:
    answer = guard.request("POST", CHAT, b"\x1f\x8b\x08\x00", key, {"Content-Encoding": "gzip"})
    assert answer.status == 415 and answer.error


def smuggled(key: str, *headers: str, body: bytes) -> bytes:
    """A request whose framing is in dispute, followed on the wire by what `body` hides."""
    lines = [f"POST {CHAT} HTTP/1.1", "Host: x", f"Authorization: Bearer {key}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def hidden(key: str) -> bytes:
    data = chat()
    return (
        f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nContent-Length: {len(data)}\r\n\r\n"
    ).encode() + data


FRAMINGS: dict[str, tuple[str, ...]] = {
    "a length and chunks": ("Content-Length: 5", "Transfer-Encoding: chunked"),
    "chunks and a length": ("Transfer-Encoding: chunked", "Content-Length: 5"),
    "two lengths": ("Content-Length: 5", "Content-Length: 0"),
    "a list of lengths": ("Content-Length: 5, 5",),
    "a signed length": ("Content-Length: +5",),
    "a negative length": ("Content-Length: -1",),
    "a hexadecimal length": ("Content-Length: 0x5",),
    "a length of nothing": ("Content-Length: ",),
    "a length beyond 64 bits": ("Content-Length: 18446744073709551621",),
    "a space before the colon": ("Transfer-Encoding : chunked",),
    "a folded header": ("Content-Length: 0", "X-Folded: a", " Transfer-Encoding: chunked"),
    "a NUL in a header": ("Content-Length: 0", "X-Nul: a\0b"),
    "a bare CR in a header": ("Content-Length: 0", "X-Cr: a\rTransfer-Encoding: chunked"),
    "an unknown coding": ("Transfer-Encoding: xchunked",),
    "chunked not last": ("Transfer-Encoding: chunked, identity",),
    "chunked twice": ("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"),
    "a name with a control character": ("Content-Length: 0", "X\x01Y: 1"),
    "a header without a colon": ("Content-Length: 0", "nonsense"),
}


@pytest.mark.parametrize("headers", FRAMINGS.values(), ids=FRAMINGS)
def test_framing_in_dispute_smuggles_nothing(guard: Guarded, key: str, mock: Mock, headers: tuple[str, ...]) -> None:
    """The guard refuses, or reads the bytes one way; it never answers 200 to what was hidden behind the dispute."""
    said = guard.talk(smuggled(key, *headers, body=b"0\r\n\r\n" + hidden(key)), seconds=3)
    found = answers_of(said)
    assert found and all(answer.status in (400, 411, 413, 501) and answer.error for answer in found), said
    assert len(found) == 1  # and then the connection is closed


def test_a_chunk_size_that_overflows_is_refused(guard: Guarded, key: str) -> None:
    body = b"FFFFFFFFFFFFFFFFF\r\n" + hidden(key)
    found = answers_of(guard.talk(smuggled(key, "Transfer-Encoding: chunked", body=body), seconds=3))
    assert [answer.status for answer in found] == [400] and found[0].error


@pytest.mark.parametrize(
    "raw",
    [
        b"\r\n\r\n\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 64,  # TLS on a plain port
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/9.9\r\nHost: x\r\n\r\n",
        b"GET /v1/models\r\n\r\n",
        b"G\0T / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"".join(b"X-%d: y\r\n" % i for i in range(20_000)) + b"\r\n",
    ],
    ids=["blank lines", "TLS", "HTTP/2", "HTTP/9.9", "HTTP/0.9", "NUL", "bytes", "long header", "long path", "many headers"],
)  # fmt: skip
def test_what_is_no_request_gets_no_more_than_an_error(guard: Guarded, raw: bytes) -> None:
    said = guard.talk(raw, seconds=2)
    for answer in answers_of(said):
        assert 400 <= answer.status < 500 and answer.error


def test_absolute_paths_and_other_hosts_change_nothing(guard: Guarded, key: str) -> None:
    raw = f"GET http://127.0.0.1:{guard.admin_port}/admin/accounts HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nConnection: close\r\n\r\n"
    [answer] = answers_of(guard.talk(raw.encode()))
    assert answer.status == 404 and answer.error


@pytest.mark.parametrize(
    "authorization",
    [
        "", "Bearer", "Bearer ", "Basic dXNlcjpwYXNz", "Bearer  ss_aaaaaaaaaaaa_" + "a" * 43, "Bearer ss_" + "a" * 100_000,
        "Bearer ss_\xff\xfe_\x00", "Bearer null", "Bearer ' OR 1=1 --", "bearer\tss_a_b",
    ],
)  # fmt: skip
def test_keys_that_are_none(guard: Guarded, authorization: str) -> None:
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: {authorization}\r\nConnection: close\r\n"
    data = chat()
    said = guard.talk(head.encode("latin-1") + f"Content-Length: {len(data)}\r\n\r\n".encode() + data, seconds=3)
    [answer] = answers_of(said)
    assert answer.status in (400, 401, 431) and answer.error
    if len(authorization) > 10:
        assert authorization[-20:].encode("latin-1") not in said


def _rest(connection: socket.socket) -> bytes:
    try:
        return connection.recv(65536)
    except OSError:
        return b""


@pytest.mark.slow
def test_slow_senders_are_cut_off_and_hold_nobody_up(tmp_path: Path) -> None:
    """Slow headers, slow bodies and idle connections, by the hundred, with clocks set to a second."""
    patch = (
        "import spiritsafe.serve._protocol as p, spiritsafe.serve._handler as h\n"
        "assert p._HEADERS_S > 1 < h._BODY_S\n"
        "p._HEADERS_S = h._BODY_S = 1.0"
    )
    with mocking(tmp_path) as mock, guarding(tmp_path, mock, patch=patch) as guard:
        key = guard.new_key("acme")
        head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nContent-Length: 400\r\n\r\n".encode()
        starts = [b"", b"POST ", head[:60], head, head + b'{"model": "m"']
        slow = [socket.create_connection(("127.0.0.1", guard.port), 5) for _ in range(200)]
        for index, connection in enumerate(slow):
            connection.sendall(starts[index % len(starts)])
            connection.settimeout(5)
        begun = time.monotonic()
        while time.monotonic() - begun < 2.2:  # a byte now and then, as they do
            for index, connection in enumerate(slow):
                if index % len(starts):
                    try:
                        connection.sendall(b" " if index % len(starts) > 2 else b"a")
                    except OSError:
                        continue
            assert guard.post(key).status == 200
            time.sleep(0.2)
        for index, connection in enumerate(slow):
            said = _rest(connection)
            assert said == b"" or answers_of(said)[0].status in (400, 408), (index, said)
            assert index % len(starts) or said == b""  # who asked nothing is told nothing
            if index % len(starts) > 2:
                assert answers_of(said)[0].status == 408 and answers_of(said)[0].error
            assert _rest(connection) == b""  # closed by the guard, not by us
            connection.close()
        assert len(guard.rows()) == sum(1 for row in guard.rows() if row["status"] == "ok")
        guard.assert_verifies()
