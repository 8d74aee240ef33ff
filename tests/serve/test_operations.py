"""What an operator sees of a guard that serves: metrics that agree with the ledger, and traces of what happened."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from faults_kit import mocking
from guard_kit import Running, guard_config, guarding
from test_traces import Collector

TIERS = {"default": {"usd_per_day": 1, "requests_per_min": 100, "n": 1}}


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.close()


@pytest.fixture
def guard(tmp_path: Path, collector: Collector) -> Iterator[Running]:
    with mocking(tmp_path) as mock:
        upstream = f"http://127.0.0.1:{mock.port}/v1"
        broken = {
            "name": "broken",
            "base_url": f"http://127.0.0.1:{mock.port}/fault=die_rst/v1",
            "models": ["cut"],
            "price": {"input_per_mtok": 1, "output_per_mtok": 1},
        }
        config = guard_config(tmp_path, upstream, tiers=TIERS, otel={"endpoint": collector.url, "sample": 1.0})
        config = config.model_validate(
            config.model_dump(mode="json", by_alias=True)
            | {"upstreams": [config.upstreams[0].model_dump(mode="json"), broken]}
        )
        with guarding(config) as running:
            yield running


def post(guard: Running, key: str, body: dict[str, Any], **headers: str) -> int:
    asked = {"model": "m", "messages": [{"role": "user", "content": "a SECRET question"}]} | body
    request = urllib.request.Request(
        f"{guard.public}/v1/chat/completions",
        json.dumps(asked).encode(),
        {"Authorization": f"Bearer {key}", "Content-Type": "application/json", **headers},
    )
    try:
        with urllib.request.urlopen(request, timeout=20) as reply:
            reply.read()
            return int(reply.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def page(guard: Running, key: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    request = urllib.request.Request(f"{guard.public}/metrics", headers={"Authorization": f"Bearer {key}"})
    with urllib.request.urlopen(request, timeout=10) as reply:
        families = text_string_to_metric_families(reply.read().decode())
        return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def test_metrics_and_traces_agree_with_the_ledger(guard: Running, collector: Collector) -> None:
    key = guard.new_key(scopes=("inference", "metrics"))
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"
    assert [post(guard, key, {"stream": stream}, traceparent=parent) for stream in (False, True, True)] == [200] * 3
    assert post(guard, key, {"n": 2}) == 400
    assert post(guard, key, {"model": "cut"}) == 502
    assert post(guard, "ss_unknownunkno_" + "x" * 43, {}) == 401

    rows = guard.rows()
    found = page(guard, key)

    def at(name: str, **labels: str) -> float:
        return found["spiritsafe_" + name, frozenset(labels.items())]

    answered = [row for row in rows if row["status"] == "ok"]
    assert len(answered) == 3
    assert at("requests_total", kind="chat", model="m", status="200") == 3
    assert at("requests_total", kind="chat", model="m", status="400") == 1
    assert at("requests_total", kind="chat", model="cut", status="502") == 1
    assert at("requests_total", kind="chat", model="other", status="401") == 1
    assert at("output_tokens_total", kind="chat", model="m") == sum(row["tokens_out"] for row in answered)
    assert at("dollars_total", kind="chat", model="m") == pytest.approx(sum(row["usd"] for row in answered))
    assert at("refusals_total", rule="policy", shadow="false") == 1
    assert at("upstream_requests_total", upstream="mock", status="200") == 3
    assert at("upstream_requests_total", upstream="broken", status="0") == 1
    assert at("upstream_first_byte_seconds_count", upstream="mock") == 2
    assert at("in_flight") == 0
    assert at("ledger_healthy") == at("limiter_up") == at("upstream_up", upstream="mock") == 1
    # the guard's own part never exceeds the whole
    assert at("added_seconds_sum") <= at("request_seconds_sum", kind="chat")

    deadline = time.monotonic() + 20
    while len(collector.spans) < 8 and time.monotonic() < deadline:
        time.sleep(0.05)
    spans = {
        row["request_id"]: span
        for row in rows
        for span in collector.spans
        if span["attributes"].get("spiritsafe.request_id") == row["request_id"]
    }
    assert set(spans) == {row["request_id"] for row in rows}
    for row in answered:
        span = spans[row["request_id"]]
        assert span["trace"] == "0af7651916cd43dd8448eb211c80319c" and not span["failed"]
        assert span["attributes"]["gen_ai.usage.output_tokens"] == row["tokens_out"]
        (child,) = [other for other in collector.spans if other["parent"] == span["id"]]
        assert child["attributes"]["spiritsafe.upstream"] == "mock"
    (failed,) = [span for row in rows if row["status"] != "ok" for span in [spans[row["request_id"]]]]
    assert failed["failed"] and failed["attributes"]["http.response.status_code"] == 502
    assert (
        b"SECRET" not in collector.raw
        and key.encode() not in collector.raw
        and rows[0]["account"].encode() not in collector.raw
    )


def test_metrics_need_a_key_of_their_own(guard: Running) -> None:
    request = urllib.request.Request(f"{guard.public}/metrics")
    with pytest.raises(urllib.error.HTTPError, match="401") as refused:
        urllib.request.urlopen(request, timeout=10)
    refused.value.close()
    with pytest.raises(urllib.error.HTTPError, match="403") as refused:
        page(guard, guard.new_key(scopes=("inference",)))
    refused.value.close()
