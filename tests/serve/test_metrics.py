"""Metrics: what is counted, what may become a label, and how the counts of several workers become one page."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from spiritsafe.serve import _tallies
from spiritsafe.serve._metric_families import FAMILIES
from spiritsafe.serve._metrics import Metrics
from spiritsafe.state import Unavailable

ASKED = ("chat", "m", 200, 0.3, 0.0004, 12, 40, 15_000)


def values(metrics: Metrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample of the page, as Prometheus' own parser reads it."""
    page, content_type = metrics.render()
    assert content_type.startswith("text/plain; version=0.0.4")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(page.decode())
        for sample in family.samples
    }


def at(found: dict[tuple[str, frozenset[tuple[str, str]]], float], name: str, **labels: str) -> float:
    return found["spiritsafe_" + name, frozenset(labels.items())]


def test_a_request_is_counted_once_in_every_family_it_belongs_to() -> None:
    metrics = Metrics(["m"], ["local"])
    metrics.request(*ASKED)
    metrics.request("chat", "m", 429, 0.001, 0.001, 0, 0, 0)
    found = values(metrics)
    assert at(found, "requests_total", kind="chat", model="m", status="200") == 1
    assert at(found, "requests_total", kind="chat", model="m", status="429") == 1
    assert at(found, "input_tokens_total", kind="chat", model="m") == 12
    assert at(found, "output_tokens_total", kind="chat", model="m") == 40
    assert at(found, "dollars_total", kind="chat", model="m") == 15e-6
    assert at(found, "request_seconds_count", kind="chat") == 2
    assert at(found, "request_seconds_sum", kind="chat") == pytest.approx(0.301)
    assert at(found, "request_seconds_bucket", kind="chat", le="0.25") == 1
    assert at(found, "request_seconds_bucket", kind="chat", le="0.5") == 2
    assert at(found, "added_seconds_bucket", le="0.0005") == 1
    assert at(found, "added_seconds_bucket", le="0.001") == 2


def test_everything_else_that_happens() -> None:
    metrics = Metrics(["m"], ["local"])
    metrics.refused("usd_per_day", False)
    metrics.refused("usd_per_day", True)
    metrics.chunk()
    metrics.chunk(4)
    metrics.in_flight(+1)
    metrics.in_flight(+1)
    metrics.in_flight(-1)
    metrics.upstream("local", 0.02, 200, 0.7)
    metrics.upstream("local", 0.0, 0)  # it was not reached
    metrics.canary()
    metrics.twin("kept")
    found = values(metrics)
    assert at(found, "refusals_total", rule="usd_per_day", shadow="false") == 1
    assert at(found, "refusals_total", rule="usd_per_day", shadow="true") == 1
    assert at(found, "stream_chunks_total") == 5
    assert at(found, "in_flight") == 1
    assert at(found, "upstream_requests_total", upstream="local", status="200") == 1
    assert at(found, "upstream_requests_total", upstream="local", status="0") == 1
    assert at(found, "upstream_first_byte_seconds_count", upstream="local") == 1
    assert at(found, "upstream_seconds_count", upstream="local") == 1
    assert at(found, "canaries_served_total") == 1
    assert at(found, "twins_total", outcome="kept") == 1


def test_what_is_watched_is_read_when_the_page_is(tmp_path: Path) -> None:
    (tmp_path / "w0.journal").write_bytes(b"x" * 100)
    ledger, limiter = SimpleNamespace(backlog=3, healthy=True, last_commit_s=0.25), SimpleNamespace(healthy=False)
    metrics = Metrics(["m"], ["a", "b"])
    metrics.watch(
        ledger=ledger,
        limiter=limiter,
        upstreams=lambda: {"a": True, "b": False},
        journal=tmp_path,
        dropped_lines=lambda: 9,
    )
    values(metrics)
    ledger.backlog, ledger.healthy = 5, False
    found = values(metrics)
    assert at(found, "ledger_backlog_rows") == 5
    assert at(found, "ledger_healthy") == 0
    assert at(found, "ledger_commit_seconds") == 0.25
    assert at(found, "limiter_up") == 0
    assert at(found, "upstream_up", upstream="a") == 1
    assert at(found, "upstream_up", upstream="b") == 0
    assert at(found, "journal_bytes") == 100
    assert at(found, "log_lines_dropped_total") == 9
    assert at(found, "worker_resident_bytes", worker="0") > 10e6
    assert at(found, "worker_cpu_seconds_total", worker="0") > 0


@given(
    st.lists(
        st.tuples(st.text(max_size=5), st.text(max_size=5), st.integers(-5, 1000), st.text(max_size=5)), max_size=40
    )
)
def test_no_customer_can_make_a_label(asked: list[tuple[str, str, int, str]]) -> None:
    """Models, kinds, upstreams and statuses that nobody configured share one label; rules are capped."""
    metrics = Metrics(["m"], ["local"])
    for kind, model, status, upstream in asked:
        metrics.request(kind, model, status, 0.1, 0.1, 1, 1, 1)
        metrics.upstream(upstream, 0.1, status)
    found = values(metrics)
    labels = {
        label
        for name, labels in found
        for label in labels
        if "le" not in dict([label]) and "worker" not in dict([label])
    }
    assert {value for key, value in labels if key == "kind"} <= {
        "chat",
        "completions",
        "responses",
        "embeddings",
        "other",
    }
    assert {value for key, value in labels if key == "model"} <= {"m", "other"}
    assert {value for key, value in labels if key == "upstream"} <= {"local", "other"}
    assert all(value == "0" or 100 <= int(value) <= 599 for key, value in labels if key == "status")
    total = sum(value for (name, _), value in found.items() if name == "spiritsafe_requests_total")
    assert total == len(asked)


def test_rules_are_capped() -> None:
    metrics = Metrics(["m"])
    for number in range(1000):
        metrics.refused(f"rule{number}", False)
    found = values(metrics)
    rules = {dict(labels)["rule"] for name, labels in found if name == "spiritsafe_refusals_total"}
    assert len(rules) <= 66 and "other" in rules
    assert sum(v for (name, _), v in found.items() if name == "spiritsafe_refusals_total") == 1000


def test_any_worker_answers_for_all(tmp_path: Path) -> None:
    one, two = (Metrics(["m"], ["local"], folder=tmp_path, worker=name) for name in ("0", "1"))
    for metrics, healthy in ((one, True), (two, False)):
        metrics.request(*ASKED)
        metrics.in_flight(2)
        metrics.watch(limiter=SimpleNamespace(healthy=healthy), upstreams=lambda: {"local": True})
    one.render()
    found = values(two)
    assert at(found, "requests_total", kind="chat", model="m", status="200") == 2
    assert at(found, "request_seconds_bucket", kind="chat", le="0.25") == 0
    assert at(found, "request_seconds_bucket", kind="chat", le="0.5") == 2
    assert at(found, "request_seconds_count", kind="chat") == 2
    assert at(found, "in_flight") == 4
    assert at(found, "limiter_up") == 0  # one worker without it is a fault, whoever is asked
    assert at(found, "upstream_up", upstream="local") == 1
    assert at(found, "worker_resident_bytes", worker="0") > 0
    assert at(found, "worker_resident_bytes", worker="1") > 0


def test_a_restarted_worker_goes_on_from_its_counts(tmp_path: Path) -> None:
    first = Metrics(["m"], folder=tmp_path, worker="0")
    first.request(*ASKED)
    first.in_flight(5)
    first.render()
    second = Metrics(["m"], folder=tmp_path, worker="0")
    second.request(*ASKED)
    for _ in range(2):  # reading must not count anything again
        found = values(second)
    assert at(found, "requests_total", kind="chat", model="m", status="200") == 2
    assert at(found, "request_seconds_count", kind="chat") == 2
    assert at(found, "in_flight") == 0


def test_of_a_dead_worker_counts_stay_and_gauges_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dead, alive = (Metrics(["m"], folder=tmp_path, worker=name) for name in ("0", "1"))
    dead.request(*ASKED)
    dead.in_flight(1)
    dead.render()
    assert at(values(alive), "in_flight") == 1
    later = time.monotonic() + 60
    monkeypatch.setattr(_tallies.time, "monotonic", lambda: later)
    found = values(alive)
    assert at(found, "in_flight") == 0
    assert at(found, "requests_total", kind="chat", model="m", status="200") == 1


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff\x00", b"[]", b'{"at": 1}'])
def test_a_damaged_file_of_another_worker_is_ignored(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "7.json").write_bytes(damage)
    metrics = Metrics(["m"], folder=tmp_path, worker="0")
    metrics.request(*ASKED)
    assert at(values(metrics), "requests_total", kind="chat", model="m", status="200") == 1


def test_a_vanished_folder_loses_no_request(tmp_path: Path) -> None:
    metrics = Metrics(["m"], folder=tmp_path / "gone", worker="0")
    metrics.request(*ASKED)
    assert at(values(metrics), "requests_total", kind="chat", model="m", status="200") == 1


async def test_the_loop_that_runs_beside_tells_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spiritsafe.serve._metrics._EVERY_S", 0.01)
    quiet, other = (Metrics(["m"], folder=tmp_path, worker=name) for name in ("0", "1"))
    task = asyncio.ensure_future(quiet.run())
    quiet.request(*ASKED)
    async with asyncio.timeout(5):
        while not (tmp_path / "0.json").exists():
            await asyncio.sleep(0.005)
    quiet.request(*ASKED)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    # the last word of a worker that stops is its full count
    assert at(values(other), "requests_total", kind="chat", model="m", status="200") == 2


async def test_the_outbox_is_counted_beside_requests_and_a_database_that_is_away_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("spiritsafe.serve._metrics._EVERY_S", 0.005)
    monkeypatch.setattr("spiritsafe.serve._metrics._OUTBOX_EVERY_S", 0.0)
    asked = []

    async def waiting() -> int:
        asked.append(1)
        if len(asked) > 1:
            raise Unavailable("away")
        return 7

    metrics = Metrics(["m"])
    metrics.watch(outbox=waiting)
    task = asyncio.ensure_future(metrics.run())
    async with asyncio.timeout(5):
        while len(asked) < 3:
            await asyncio.sleep(0.005)
    assert not task.done()
    assert at(values(metrics), "webhook_outbox") == 7
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_processes_sum_exactly_while_they_are_read(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from spiritsafe.serve._metrics import Metrics\n"
        "m = Metrics(['m'], folder=Path(sys.argv[1]), worker=sys.argv[2])\n"
        "for i in range(2000):\n"
        f"    m.request(*{ASKED!r})\n"
        "    if i % 100 == 0: m.render()\n"
        "m.render()\n"
    )
    running = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(number)]) for number in range(3)]
    reader = Metrics(["m"], folder=tmp_path, worker="reader")
    seen = [0.0]
    while any(process.poll() is None for process in running):
        found = values(reader)
        name = ("spiritsafe_requests_total", frozenset({"kind": "chat", "model": "m", "status": "200"}.items()))
        seen.append(found.get(name, 0.0))
    assert [process.wait() for process in running] == [0, 0, 0]
    assert seen == sorted(seen), "a counter fell"
    found = values(reader)
    assert at(found, "requests_total", kind="chat", model="m", status="200") == 6000
    assert at(found, "output_tokens_total", kind="chat", model="m") == 240_000


def test_every_family_is_on_the_page_and_documented() -> None:
    page = Metrics(["m"]).render()[0].decode()
    assert all(f"# HELP {family.name}" in page for family in FAMILIES)
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)
    guide = (Path(__file__).parents[2] / "docs/guard/operations.md").read_text()
    missing = [family.name for family in FAMILIES if family.name.removeprefix("spiritsafe_") not in guide]
    assert not missing


def test_the_page_loads_prometheus_only_when_asked() -> None:
    code = "import sys, spiritsafe.serve._metrics; print('prometheus_client' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert json.loads(done.stdout.lower()) is False
