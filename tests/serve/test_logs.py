"""Logs: one line each, nothing secret in any of them, and never in a request's way."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pty
import string
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spiritsafe.errors import BadInput
from spiritsafe.serve import _logs
from spiritsafe.serve._config import LogsConfig
from spiritsafe.serve._logs import Logs

DONE: dict[str, Any] = {"request_id": "req_1", "status": 200, "ms": 12.5, "account": "acct_1", "key_id": "k" * 12}


class Written:
    """A log into a file, and what came of it."""

    def __init__(self, path: Path, hide: tuple[str, ...] = (), **config: Any) -> None:
        self.path = path
        self._file = path.open("wb")
        self.logs = Logs(LogsConfig(**config), out=self._file.fileno(), hide=hide)

    def text(self) -> str:
        self.logs.close()
        self._file.close()
        return self.path.read_text()

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text().removesuffix("\n").split("\n")] if self.text() else []


@pytest.fixture
def written(tmp_path: Path) -> Written:
    return Written(tmp_path / "log")


def test_a_request_is_one_line_of_json(written: Written) -> None:
    before = time.time()
    written.logs.request(**DONE, kind="chat", model="m", tokens_in=3, tokens_out=4, stream=True, outcome="ok")
    (line,) = written.lines()
    assert abs(datetime.fromisoformat(line.pop("ts")).timestamp() - before) < 60
    assert line == {
        "level": "info", "event": "request", "request_id": "req_1", "account": "acct_1", "key_id": "k" * 12,
        "kind": "chat", "model": "m", "status": 200, "ms": 12.5, "tokens_in": 3, "tokens_out": 4, "stream": True,
        "outcome": "ok",
    }  # fmt: skip


@pytest.mark.parametrize(("mode", "expected"), [("all", [200, 429, 503]), ("errors", [429, 503]), ("none", [])])
def test_which_requests_get_a_line(tmp_path: Path, mode: str, expected: list[int]) -> None:
    written = Written(tmp_path / "log", requests=mode)
    for status in (200, 429, 503):
        written.logs.request(**DONE | {"status": status})
    written.logs.event("started")
    lines = written.lines()
    assert [line["status"] for line in lines if line["event"] == "request"] == expected
    assert [line["event"] for line in lines if line["event"] != "request"] == ["started"]


def test_levels(tmp_path: Path) -> None:
    written = Written(tmp_path / "log", level="warning")
    written.logs.event("drain_began")
    written.logs.event("ledger_behind", level="warning", backlog=7)
    (line,) = written.lines()
    assert (line["event"], line["level"], line["backlog"]) == ("ledger_behind", "warning", 7)


base62 = st.text(string.digits + string.ascii_letters, min_size=1)
around = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
secrets = st.one_of(
    st.builds("{}_{}_{}".format, st.text("abcxyz09", min_size=1, max_size=12), st.text(string.ascii_letters, min_size=12, max_size=12), st.text(string.ascii_letters, min_size=43, max_size=43)),
    st.builds("{}{}".format, st.sampled_from(["sk-", "hf_", "ghp_"]), st.text(string.ascii_letters, min_size=30, max_size=40)),
)  # fmt: skip


@given(secrets, around, around, st.sampled_from(["text", "list", "dict", "key"]))
def test_no_secret_gets_out_wherever_it_stands(
    tmp_path_factory: pytest.TempPathFactory, secret: str, a: str, b: str, where: str
) -> None:
    """The second line of defence: a secret passed in by mistake, alone or between other text."""
    written = Written(tmp_path_factory.mktemp("log") / "log")
    text = f"{a} {secret} {b}"
    value: Any = {"text": text, "list": [text], "dict": {"x": {"y": text}}, "key": {secret: 1}}[where]
    written.logs.event("mistake", value=value)
    written.logs.request(**DONE | {"model": text})
    said = written.text()
    assert secret not in said
    assert secret[-20:] not in said
    assert len(written.lines()) == 2


@pytest.mark.parametrize(
    "text",
    [
        "Authorization: Bearer S3CRETs3cretS3CRET",
        "authorization: bearer\tS3CRETs3cretS3CRET",
        "{'authorization': 'Basic S3CRETs3cretS3CRET'}",
        "BEARER   S3CRETs3cretS3CRET, x",
        "postgresql://guard:S3CRETs3cretS3CRET@db/guard",
        "redis://:S3CRETs3cretS3CRET@cache:6379/0",
        "the upstream's key is S3CRETs3cretS3CRET today",
    ],
)
def test_headers_passwords_and_known_secrets(tmp_path: Path, text: str) -> None:
    written = Written(tmp_path / "log", hide=("S3CRETs3cretS3CRET",) if "today" in text else ())
    written.logs.event("mistake", text=text)
    assert "S3CRET" not in written.text()


def test_the_public_part_of_a_key_stays(written: Written) -> None:
    written.logs.event("mistake", text="ss_abcdefghijkl_" + "Z" * 43)
    assert "ss_abcdefghijkl_[hidden]" in written.text()


@given(st.text(max_size=30), st.one_of(st.none(), st.floats(), st.text(), st.binary()))
def test_anything_becomes_one_valid_line(tmp_path_factory: pytest.TempPathFactory, name: str, value: Any) -> None:
    """Line breaks, control characters, lone surrogates, infinities, bytes: no forged and no lost line."""
    written = Written(tmp_path_factory.mktemp("log") / "log")
    written.logs.event("e", **{name: value})
    written.logs.request(**DONE | {"model": name + "\n\ud800"})
    assert len(written.lines()) == 2


def test_a_reader_that_stops_reading_delays_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_logs, "_MOST_WAITING", 2_000)
    monkeypatch.setattr(_logs, "_CLOSE_S", 0.2)
    read, write = os.pipe()
    logs = Logs(LogsConfig(), out=write)
    for _ in range(20_000):
        logs.request(**DONE)
    assert logs.dropped > 10_000
    logs.close()  # gives up rather than waiting for a reader
    gathered = bytearray()

    def drain() -> None:
        while block := os.read(read, 1 << 16):
            gathered.extend(block)

    reader = threading.Thread(target=drain)
    reader.start()
    logs._thread.join(20)
    os.close(write)
    reader.join(20)
    lines = [json.loads(line) for line in bytes(gathered).splitlines()]
    assert sum(line["event"] == "request" for line in lines) + logs.dropped == 20_000
    told = [line for line in lines if line["event"] == "log_lines_dropped"]
    assert sum(line["lines"] for line in told) == logs.dropped
    os.close(read)


def test_without_a_reader_lines_are_lost_and_counted() -> None:
    read, write = os.pipe()
    os.close(read)
    logs = Logs(LogsConfig(), out=write)
    logs.request(**DONE)
    logs.close()
    assert logs.dropped == 1
    os.close(write)


def test_a_terminal_gets_plain_lines_without_control_characters() -> None:
    ours, theirs = pty.openpty()
    logs = Logs(LogsConfig(), out=theirs)
    logs.request(**DONE | {"model": "m\x1b[31m\nforged"})
    logs.close()
    said = os.read(ours, 4096).decode().replace("\r\n", "\n")
    assert said.endswith("ms=12.5 tokens_in=0 tokens_out=0 stream=False\n") and said.count("\n") == 1
    assert "request request_id=req_1 account=acct_1" in said and "\x1b" not in said
    os.close(ours)
    os.close(theirs)


@pytest.fixture
def unconfigured_uvicorn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server run with uvicorn's own log settings in this process, by another test, keeps its lines to itself."""
    monkeypatch.setattr(logging.getLogger("uvicorn"), "propagate", True)
    monkeypatch.setattr(logging.getLogger("uvicorn.error"), "propagate", True)


@contextlib.contextmanager
def attached(path: Path, **config: Any) -> Iterator[Written]:
    written = Written(path, **config)
    with written.logs.attached():
        yield written
        written.logs.close()


@pytest.mark.usefixtures("unconfigured_uvicorn")
def test_other_libraries_lines_come_in_the_same_form(tmp_path: Path) -> None:
    with attached(tmp_path / "log") as written:
        logging.getLogger("uvicorn.error").warning("Invalid HTTP request received.")
        logging.getLogger("spiritsafe.serve").info("drained %d", 3)
        logging.getLogger("alembic.runtime").info("of no interest")
        logging.getLogger("spiritsafe.serve").debug("not asked for")
    assert not [handler for handler in logging.getLogger().handlers if isinstance(handler, _logs._Handler)]
    lines = written.lines()
    assert [(line["logger"], line["level"], line["message"]) for line in lines] == [
        ("uvicorn.error", "warning", "Invalid HTTP request received."),
        ("spiritsafe.serve", "info", "drained 3"),
    ]


@pytest.mark.usefixtures("unconfigured_uvicorn")
def test_an_exception_is_told_by_type_and_place_only(tmp_path: Path) -> None:
    """Its message may quote what a customer sent; that of our own errors does not."""
    with attached(tmp_path / "log") as written:
        try:
            raise ValueError("the patient's name is Anna")
        except ValueError:
            logging.getLogger("uvicorn.error").exception("Exception in ASGI application")
        try:
            raise BadInput("keys.json: no such file; check the path")
        except BadInput:
            logging.getLogger("spiritsafe.serve").exception("failed")
    text = written.text()
    assert "Anna" not in text
    first, second = written.lines()
    assert first["error"] == "ValueError" and "because" not in first
    assert any("test_an_exception_is_told" in frame for frame in first["at"])
    assert second["because"] == "keys.json: no such file; check the path"


def test_a_broken_log_call_of_a_library_stops_nothing(written: Written) -> None:
    handler = _logs._Handler(written.logs)
    handler.handle(logging.makeLogRecord({"name": "x", "msg": "%d things", "args": ("no number",), "levelno": 30}))
    handler.handle(logging.makeLogRecord({"name": "x", "msg": "fine", "levelno": 30}))
    broken, fine = (line["message"] for line in written.lines())
    assert broken == "%d things (its arguments do not fit: TypeError)" and fine == "fine"
