"""Upstreams that fail in every way the mock knows: the customer gets a clear error or a whole reply, and pays for what
came out and nothing else."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from faults_kit import EACH_PICO, PROMPT_TOKENS, REPLY_TOKENS, UPSTREAM_KEY, Answer, Guarded, Mock, guarding, mocking

BEFORE = ("hang", "fin", "rst", "not_http", "redirect", "leak")  # no reply at all
STATUSES = {400: 400, 401: 502, 403: 502, 404: 502, 408: 504, 422: 400, 429: 503, 500: 502, 502: 502, 503: 503, 504: 504, 529: 502}  # fmt: skip
# Bodies that are no reply: 502 whether or not a stream was asked for.
GARBAGE = ("no_json", "html", "list", "empty")
FINE = ("split", "stale")
ABSURD = ("absurd_usage", "negative_usage", "text_usage", "no_usage", "overlong", "more_choices")
BROKEN_STREAMS = ("garbage_sse", "sse_error", "die_fin", "die_rst", "stall")
FAULTS = {
    **{name: f"fault={name}" for name in (*BEFORE, *GARBAGE, *FINE, *ABSURD)},
    **{name: f"fault={name},interval_ms=4" for name in BROKEN_STREAMS},
    **{name: f"fault={name}" for name in ("no_done", "comments", "wrong_type", "wrong_kind", "gzip", "long_length", "short_length", "no_choices")},
    **{name: f"fault={name},mb=80" for name in ("huge", "huge_event")},
    "endless": "fault=endless,interval_ms=1,chunks=1",
    **{f"s{status}": f"status={status}" for status in STATUSES},
    "slow": "delay_ms=300",
    "drip": "chunks=40,interval_ms=50",
    "paced": "chunks=4,interval_ms=2",
}  # fmt: skip


@pytest.fixture(scope="module")
def mock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mock]:
    with mocking(tmp_path_factory.mktemp("mock")) as mock:
        yield mock


@pytest.fixture(scope="module")
def guard(tmp_path_factory: pytest.TempPathFactory, mock: Mock) -> Iterator[Guarded]:
    """No upstream rests after failures here: each test must reach its own."""
    tiers = {"default": {"usd_lifetime": 1000, "concurrency": 8}}
    patch = "import spiritsafe.serve._upstreams as u\nassert u._FAILURES == 3\nu._FAILURES = 10**9"
    with guarding(tmp_path_factory.mktemp("guard"), mock, FAULTS, tiers=tiers, patch=patch) as guard:
        yield guard


@pytest.fixture(scope="module")
def key(guard: Guarded) -> str:
    return guard.new_key("acme")


def row_of(guard: Guarded, answer: Answer) -> dict[str, Any]:
    """The ledger's one row of a request, once it is committed."""
    deadline = time.monotonic() + 5
    while True:
        found = [row for row in guard.rows() if row["request_id"] == answer.headers["x-request-id"]]
        if found or time.monotonic() > deadline:
            [row] = found
            return row
        time.sleep(0.02)


def assert_free(guard: Guarded, answer: Answer) -> None:
    row = row_of(guard, answer)
    assert (row["status"], row["tokens_out"], row["pico"]) == ("upstream_error", 0, 0)


def text_of(answer: Answer) -> str:
    """What a customer got, from a stream or a whole reply."""
    if not answer.headers["content-type"].startswith("text/event-stream"):
        return "".join(choice["message"]["content"] for choice in answer.json["choices"])
    chunks = [event for event in answer.events if event != "[DONE]" and "error" not in event]
    return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(("given", "status"), STATUSES.items())
def test_an_upstreams_error_is_an_error_of_ours(
    guard: Guarded, key: str, given: int, status: int, stream: bool
) -> None:
    answer = guard.post(key, model=f"s{given}", stream=stream)
    assert answer.status == status, answer.body
    assert answer.error["message"]
    assert_free(guard, answer)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("fault", [*BEFORE, *GARBAGE])
def test_no_reply_costs_nothing(guard: Guarded, key: str, fault: str, stream: bool) -> None:
    answer = guard.post(key, model=fault, stream=stream)
    assert answer.status == (504 if fault == "hang" else 502), answer.body
    assert UPSTREAM_KEY.encode() not in answer.body and b"127.0.0.1" not in answer.body
    assert answer.error["code"]
    assert_free(guard, answer)


@pytest.mark.parametrize("fault", ["die_fin", "die_rst", "stall", "long_length", "gzip"])
def test_a_whole_reply_that_is_none_costs_nothing(guard: Guarded, key: str, fault: str) -> None:
    answer = guard.post(key, model=fault)
    assert answer.status == (504 if fault == "stall" else 502), answer.body
    assert answer.error
    assert_free(guard, answer)


@pytest.mark.parametrize("fault", ["wrong_kind"])
def test_the_wrong_kind_of_reply_is_none(guard: Guarded, key: str, fault: str) -> None:
    for stream in (False, True):
        answer = guard.post(key, model=fault, stream=stream)
        assert answer.status == 502, answer.body
        assert answer.error
        assert_free(guard, answer)


@pytest.mark.parametrize("fault", ["m", *FINE, "slow", "wrong_type"])
def test_a_whole_reply_passes_and_is_charged_once(guard: Guarded, key: str, fault: str) -> None:
    answer = guard.post(key, model=fault)
    assert answer.status == 200 and text_of(answer).split() == ["word"] * REPLY_TOKENS
    row = row_of(guard, answer)
    assert (row["status"], row["tokens_in"], row["tokens_out"]) == ("ok", PROMPT_TOKENS, REPLY_TOKENS)
    assert row["pico"] == EACH_PICO


@pytest.mark.parametrize("fault", ["m", "split", "slow", "comments", "drip", "no_done"])
def test_a_stream_passes_and_is_charged_once(guard: Guarded, key: str, fault: str) -> None:
    answer = guard.post(key, model=fault, stream=True)
    assert answer.status == 200 and answer.headers["content-type"].startswith("text/event-stream")
    assert text_of(answer).split() == ["word"] * REPLY_TOKENS
    if fault != "no_done":
        assert answer.events[-1] == "[DONE]"
    row = row_of(guard, answer)
    assert (row["status"], row["tokens_in"], row["tokens_out"]) == ("ok", PROMPT_TOKENS, REPLY_TOKENS)
    assert row["stream"] and row["pico"] == EACH_PICO
    assert all("usage" not in e or not e["usage"] for e in answer.events if e != "[DONE]")  # nobody asked for it


def test_usage_is_there_for_those_who_ask(guard: Guarded, key: str) -> None:
    answer = guard.post(key, stream=True, stream_options={"include_usage": True})
    assert answer.events[-2]["usage"]["completion_tokens"] == REPLY_TOKENS and answer.events[-2]["choices"] == []


@pytest.mark.parametrize("fault", BROKEN_STREAMS)
def test_a_stream_that_breaks_says_so_and_costs_what_came(guard: Guarded, key: str, fault: str) -> None:
    answer = guard.post(key, model=fault, stream=True)
    assert answer.status == 200
    errors = [event["error"] for event in answer.events if event != "[DONE]" and "error" in event]
    assert len(errors) == 1 and set(errors[0]) == {"message", "type", "param", "code"}
    assert UPSTREAM_KEY.encode() not in answer.body
    assert "error" in (answer.events[-1] if answer.events[-1] != "[DONE]" else answer.events[-2])
    got = len(text_of(answer).split())
    row = row_of(guard, answer)
    assert row["status"] == "stream_broken"
    assert 0 < got <= row["tokens_out"] <= 3 * got + 8  # counted without a tokenizer: an upper bound
    assert 0 < row["pico"] <= 8 * EACH_PICO


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("fault", ABSURD)
def test_absurd_usage_is_not_believed(guard: Guarded, key: str, fault: str, stream: bool) -> None:
    """Whatever the upstream says, the charge lies between what came out and what was reserved."""
    answer = guard.post(key, model=fault, stream=stream, max_tokens=48)
    if answer.status != 200:
        assert answer.status == 502 and answer.error
        assert_free(guard, answer)
        return
    row = row_of(guard, answer)
    got = len(text_of(answer).split())
    assert row["tokens_in"] > 0
    assert min(got, 48) <= row["tokens_out"] <= max(48, 4 * got)
    assert 0 < row["pico"] <= 20 * EACH_PICO


def test_an_endless_stream_is_cut_off(guard: Guarded, key: str) -> None:
    """It would go on for ever; what could be 48 tokens leaves, and all 48 are charged."""
    begun = time.monotonic()
    answer = guard.post(key, model="endless", stream=True, max_tokens=48)
    assert time.monotonic() - begun < 4
    row = row_of(guard, answer)
    assert row["status"] == "stream_broken" and row["tokens_out"] == 48
    assert len(text_of(answer)) <= 48 * 128


def test_a_reply_without_choices_passes_as_the_upstream_gave_it(guard: Guarded, key: str) -> None:
    answer = guard.post(key, model="no_choices")
    assert answer.status == 200 and "choices" not in answer.json
    assert row_of(guard, answer)["tokens_out"] == answer.json["usage"]["completion_tokens"]


@pytest.mark.parametrize("fault", ["huge", "huge_event"])
def test_replies_without_an_end_do_not_fill_memory(guard: Guarded, key: str, fault: str) -> None:
    before = rss_mb(guard)
    answer = guard.post(key, model=fault, stream=fault == "huge_event")
    assert answer.status == 502 and answer.error
    assert_free(guard, answer)
    assert rss_mb(guard) - before < 150


def test_a_reply_with_too_short_a_length_spoils_no_other(guard: Guarded, key: str) -> None:
    """The rest of such a reply must not become the next customer's answer."""
    for _ in range(4):
        answer = guard.post(key, model="short_length")
        assert answer.status in (200, 502)
        if answer.status == 200:
            json.loads(answer.body)


def test_a_customer_who_leaves_pays_for_what_came(guard: Guarded, key: str, mock: Mock) -> None:
    gone = stats(mock).get("gone", 0)
    body = {"model": "drip", "messages": [{"role": "user", "content": "x"}], "max_tokens": 64, "stream": True}
    raw = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nContent-Length: {len(raw)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", guard.port), 5) as connection:
        connection.sendall(head.encode() + raw)
        said = b""
        while said.count(b"word") < 5:
            said += connection.recv(65536)
    request_id = said.lower().split(b"x-request-id: ")[1].split(b"\r\n")[0].decode()
    row = row_of(guard, Answer(200, {"x-request-id": request_id}, b""))
    assert row["status"] == "client_gone"
    assert 5 <= row["tokens_out"] <= 20 and row["pico"] > 0
    assert stats(mock)["gone"] > gone  # and the upstream was told


def stats(mock: Mock) -> dict[str, int]:
    """What the mock has counted: connections, clients that left early, requests by path."""
    connection = http.client.HTTPConnection("127.0.0.1", mock.port, timeout=5)
    connection.request("GET", "/stats")
    found: dict[str, int] = json.loads(connection.getresponse().read())
    connection.close()
    return found


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_replies_one_after_another_share_a_connection(guard: Guarded, key: str, mock: Mock, stream: bool) -> None:
    """Also streams, whose last event comes before the end of their body does."""
    before = stats(mock)["connections"]
    for _ in range(20):
        assert guard.post(key, model="paced", stream=stream).status == 200
    assert stats(mock)["connections"] - before <= 1 + 2  # and those of `stats`


def test_money_in_the_limits_is_money_in_the_ledger(guard: Guarded, key: str) -> None:
    """After all of the above: one row a request, the chain whole, and nothing still reserved."""
    rows = guard.rows()
    assert len({row["request_id"] for row in rows}) == len(rows) > 40
    account = rows[0]["account"]
    assert {row["account"] for row in rows} == {account}
    spent = sum(row["pico"] for row in rows)
    assert guard.totals()[(f"account:{account}", "all")]["pico"] == spent
    guard.assert_verifies()
    # Nine at once would be too many; eight are not: no reservation was left behind by any failure.
    answers = [guard.post(key) for _ in range(9)]
    assert {answer.status for answer in answers} == {200}
    guard.assert_no_secrets(key)


def test_an_upstream_that_is_away_rests_and_comes_back(tmp_path: Path, mock: Mock) -> None:
    """Two upstreams of one model: the dead one is tried first, costs nobody an error, and then rests."""
    import services

    port = services.free_port()
    settings: dict[str, Any] = {"models": ["m"], "price": {"input_per_mtok": 1, "output_per_mtok": 2}, "connect_s": 1}
    upstreams = [
        {"name": "dead", "base_url": f"http://127.0.0.1:{port}/v1", "weight": 10, **settings},
        {"name": "alive", "base_url": f"http://127.0.0.1:{mock.port}/v1", **settings},
    ]
    with guarding(tmp_path, mock, upstreams=upstreams) as guard:
        key = guard.new_key("acme")
        assert {guard.post(key).status for _ in range(30)} == {200}
        assert guard.get("/readyz").status == 200
        guard.assert_verifies()


def rss_mb(guard: Guarded) -> float:
    assert guard.process is not None
    pages = int(Path(f"/proc/{guard.process.pid}/statm").read_text().split()[1])
    return pages * 4096 / 1e6
