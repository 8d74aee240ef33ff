"""Traces: what arrives at a real OTLP collector, and what a client can and cannot make of it."""

from __future__ import annotations

import http.server
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace import TracerProvider

from spiritsafe.errors import BadInput
from spiritsafe.records import Usage
from spiritsafe.serve._config import GuardConfig
from spiritsafe.serve._traces import Traces

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01".encode()


class Collector:
    """A minimal OTLP/HTTP receiver; keeps every span as a dict."""

    def __init__(self) -> None:
        self.spans: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.raw = b""
        collector = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

                body = self.rfile.read(int(self.headers["content-length"]))
                collector.raw += body
                collector.headers.append({name.lower(): value for name, value in self.headers.items()})
                for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                    for scope in resource.scope_spans:
                        collector.spans += [
                            {
                                "name": span.name,
                                "kind": span.kind,
                                "trace": span.trace_id.hex(),
                                "id": span.span_id.hex(),
                                "parent": span.parent_span_id.hex(),
                                "failed": span.status.code == 2,
                                "attributes": {
                                    a.key: a.value.string_value or a.value.int_value for a in span.attributes
                                },
                                "service": {a.key: a.value.string_value for a in resource.resource.attributes}[
                                    "service.name"
                                ],
                            }
                            for span in scope.spans
                        ]
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1/traces"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def named(self, name: str) -> dict[str, Any]:
        (span,) = [span for span in self.spans if span["name"] == name]
        return span


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.close()


def config(**otel: Any) -> GuardConfig:
    price = {"input_per_mtok": 1, "output_per_mtok": 1}
    upstream = {"name": "local", "base_url": "http://127.0.0.1:1/v1", "models": ["m"], "price": price}
    return GuardConfig.model_validate({"upstreams": [upstream]} | ({"otel": otel} if otel else {}))


def opened(collector: Collector, **otel: Any) -> Traces:
    traces = Traces.open(config(endpoint=collector.url, **{"sample": 1.0} | otel))
    assert traces is not None
    return traces


def test_without_the_section_nothing_is_loaded() -> None:
    assert Traces.open(config()) is None
    code = "import sys, spiritsafe.serve._traces; print([m for m in sys.modules if m.startswith('opentelemetry')])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_request_is_a_span_with_a_child_upstream(collector: Collector) -> None:
    traces = opened(collector)
    span = traces.start([(b"host", b"x"), (b"traceparent", PARENT), (b"tracestate", b"a=1,b=2")], "chat", "m", "req_1")
    sent = dict(span.upstream_headers("local"))
    span.end(200, Usage(12, 40))
    traces.close()
    request, upstream = collector.named("chat m"), collector.named("chat upstream")
    assert request["trace"] == upstream["trace"] == TRACE
    assert request["parent"] == SPAN and upstream["parent"] == request["id"]
    assert sent == {b"traceparent": f"00-{TRACE}-{upstream['id']}-01".encode(), b"tracestate": b"a=1,b=2"}
    assert (request["kind"], upstream["kind"]) == (2, 3)  # SERVER, CLIENT
    assert request["attributes"] == {
        "gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai", "gen_ai.request.model": "m",
        "gen_ai.usage.input_tokens": 12, "gen_ai.usage.output_tokens": 40, "http.response.status_code": 200,
        "spiritsafe.request_id": "req_1",
    }  # fmt: skip
    assert upstream["attributes"]["spiritsafe.upstream"] == "local"
    assert upstream["attributes"]["gen_ai.usage.output_tokens"] == 40
    assert not request["failed"] and not upstream["failed"]
    assert request["service"] == "spiritsafe-guard"


def test_a_second_upstream_and_a_failure(collector: Collector) -> None:
    traces = opened(collector)
    span = traces.start([], "completions", "m")
    first = span.upstream_headers("one")
    second = span.upstream_headers("two")
    assert first != second
    span.end(502, error="broken")
    span.end(200, Usage(1, 1))  # too late: the first end counts
    traces.close()
    request = collector.named("text_completion m")
    tried = {s["attributes"]["spiritsafe.upstream"]: s for s in collector.spans if s["name"].endswith("upstream")}
    assert request["parent"] == "" and request["failed"] and request["attributes"]["error.type"] == "broken"
    assert "gen_ai.usage.input_tokens" not in request["attributes"]
    assert (
        tried["one"]["attributes"]["error.type"] == "retried" and tried["two"]["attributes"]["error.type"] == "broken"
    )
    assert len(collector.spans) == 3


def test_what_the_operator_does_not_sample_is_passed_on_unrecorded(collector: Collector) -> None:
    """A caller's sampled flag is not followed: strangers would decide what is recorded here and upstream."""
    traces = opened(collector, sample=0.0)
    span = traces.start([(b"traceparent", PARENT), (b"tracestate", b"a=1")], "chat", "m")
    assert span.upstream_headers("local") == [
        (b"traceparent", f"00-{TRACE}-{SPAN}-00".encode()), (b"tracestate", b"a=1")
    ]  # fmt: skip
    span.end(200)
    assert traces.start([], "chat", "m").upstream_headers("local") == []
    traces.close()
    assert collector.spans == []


def test_half_are_sampled_if_half_are_asked_for(collector: Collector) -> None:
    traces = opened(collector, sample=0.5)
    for _ in range(400):
        traces.start([], "chat", "m").end(200)
    traces.close()
    assert 130 < len(collector.spans) < 270  # 7 standard deviations


@pytest.mark.parametrize(
    "value",
    [
        b"", b"00", PARENT.upper(), PARENT + b"-x", PARENT[:-1], b"ff" + PARENT[2:], b"0" + PARENT, PARENT + b"\r\nx: y",
        b"00-" + b"0" * 32 + b"-b7ad6b7169203331-01", b"00-0af7651916cd43dd8448eb211c80319c-" + b"0" * 16 + b"-01",
        b"cc" + PARENT[2:] + b"-" + b"9" * 200,
    ],
)  # fmt: skip
def test_a_malformed_parent_is_none(collector: Collector, value: bytes) -> None:
    traces = opened(collector, sample=0.0)
    assert traces.start([(b"traceparent", value)], "chat", "m").upstream_headers() == []
    traces.close()


@pytest.mark.parametrize("state", [b"a=" + b"1" * 511, b"a=1\r\nx: y", b"a=\xff", b""])
def test_an_unusable_state_is_left_behind_and_the_parent_kept(state: bytes) -> None:
    traces = Traces(TracerProvider(), sample=0.0)
    headers = traces.start([(b"traceparent", PARENT), (b"tracestate", state)], "chat", "m").upstream_headers()
    assert headers == [(b"traceparent", f"00-{TRACE}-{SPAN}-00".encode())]


def test_a_state_in_two_headers_is_one() -> None:
    traces = Traces(TracerProvider(), sample=0.0)
    given = [(b"tracestate", b"a=1"), (b"traceparent", PARENT), (b"tracestate", b"b=2")]
    assert traces.start(given, "chat", "m").upstream_headers()[1] == (b"tracestate", b"a=1,b=2")


def test_a_later_version_is_read_as_far_as_it_is_known(collector: Collector) -> None:
    traces = opened(collector, sample=0.0)
    later = b"cc" + PARENT[2:] + b"-what-the-future-brings"
    (header,) = traces.start([(b"traceparent", later)], "chat", "m").upstream_headers()
    assert header == (b"traceparent", f"00-{TRACE}-{SPAN}-00".encode())
    assert traces.start([(b"traceparent", PARENT)] * 2, "chat", "m").upstream_headers() == []
    traces.close()


@given(st.lists(st.tuples(st.sampled_from([b"traceparent", b"tracestate", b"x"]), st.binary(max_size=600)), max_size=5))
def test_no_header_of_a_client_breaks_a_request_or_the_head_sent_upstream(headers: list[tuple[bytes, bytes]]) -> None:
    traces = Traces(TracerProvider(), sample=0.0)
    for name, value in traces.start([(b"traceparent", PARENT), *headers], "chat", "m").upstream_headers():
        assert name in (b"traceparent", b"tracestate") and len(value) <= 512
        assert all(0x20 <= byte <= 0x7E for byte in value)


def test_the_collectors_key_is_sent_and_never_shown(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_KEY", "Authorization=Bearer S3CRET, x-team = blue")
    traces = opened(collector, headers_env="OTEL_KEY")
    traces.start([], "chat", "m").end(200)
    traces.close()
    (headers,) = collector.headers
    assert (headers["authorization"], headers["x-team"]) == ("Bearer S3CRET", "blue")
    assert "S3CRET" not in repr(traces) + repr(vars(traces))


@pytest.mark.parametrize("value", [None, "", "no equals", "=x"])
def test_unusable_collector_headers_are_bad_input(
    collector: Collector, monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    monkeypatch.delenv("OTEL_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("OTEL_KEY", value)
    with pytest.raises(BadInput, match=r"otel\.headers_env: the environment variable OTEL_KEY must hold"):
        opened(collector, headers_env="OTEL_KEY")


def test_without_the_extra_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(BadInput, match=r"pip install 'spiritsafe\[otel\]'"):
        Traces.open(config(endpoint="http://127.0.0.1:1/v1/traces"))


def test_a_collector_that_is_away_hurts_nobody() -> None:
    traces = Traces.open(config(endpoint="http://127.0.0.1:1/v1/traces", sample=1.0))
    assert traces is not None
    for _ in range(50):
        span = traces.start([], "chat", "m")
        span.upstream_headers()
        span.end(200, Usage(1, 1))
    traces.close()
