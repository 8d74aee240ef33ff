"""Traces: a span a request and one for each upstream asked, by OpenTelemetry's conventions for generative AI.

Never a prompt, an answer, an account or a key: those are not in any attribute. The library is loaded only where a
guard's config has an `otel` section.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterable
from typing import Any, Protocol

from spiritsafe import __version__
from spiritsafe.errors import BadInput
from spiritsafe.records import Usage
from spiritsafe.serve._config import GuardConfig, OtelConfig

__all__ = ["RequestSpan", "Traces"]

# https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/
_OPERATIONS = {"chat": "chat", "completions": "text_completion", "responses": "chat", "embeddings": "embeddings"}
# https://www.w3.org/TR/trace-context/ : a higher version may append fields, which are ignored here.
_TRACEPARENT = re.compile(rb"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_LONGEST_PARENT, _LONGEST_STATE = 128, 512
_STATE = re.compile(rb"[\x20-\x7e]+")

HeaderList = list[tuple[bytes, bytes]]


class RequestSpan(Protocol):
    """The trace of one request."""

    def upstream_headers(self, upstream: str = "") -> HeaderList:
        """A request goes to this upstream now: the headers that tell it of the trace. Asking again ends the one before
        as failed, as when a second upstream is tried."""

    def end(self, status: int, usage: Usage | None = None, error: str | None = None) -> None:
        """The request is over; later calls do nothing. error: a short name of what went wrong, never a text of a
        customer's."""


class Traces:
    """Where spans go. Open one in each process; `close` sends what waits."""

    def __init__(self, provider: Any, sample: float) -> None:
        self._provider, self._sample = provider, sample
        self._tracer = provider.get_tracer("spiritsafe", __version__)

    @classmethod
    def open(cls, config: GuardConfig) -> Traces | None:
        """None if the config has no `otel` section.

        Raises:
            BadInput: the extra is not installed, or the headers' environment variable is not set.
        """
        if config.otel is None:
            return None
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.sdk.trace.sampling import ALWAYS_ON
        except ModuleNotFoundError as error:
            raise BadInput(
                f"otel: the package {error.name} is not installed; run: pip install 'spiritsafe[otel]', or remove the"
                " section"
            ) from None
        resource = Resource.create({"service.name": "spiritsafe-guard", "service.version": __version__})
        # Who is sampled is decided in `start`, so that the many requests that are not cost next to nothing.
        provider = TracerProvider(sampler=ALWAYS_ON, resource=resource, shutdown_on_exit=False)
        exporter = OTLPSpanExporter(endpoint=config.otel.endpoint, headers=_headers(config.otel), timeout=5)
        provider.add_span_processor(BatchSpanProcessor(exporter))
        return cls(provider, config.otel.sample)

    def start(
        self, headers: Iterable[tuple[bytes, bytes]], kind: str, model: str, request_id: str | None = None
    ) -> RequestSpan:
        """A request has arrived. headers: as ASGI has them. model: a name the guard knows, not a text of the client's.

        A caller's `traceparent` gives the trace its id; whether it is sampled is the operator's choice alone, lest a
        stranger decide what is recorded.
        """
        parent, state = _context_of(headers)
        if random.random() >= self._sample:  # noqa: S311 — no secret hangs on it
            return _Unsampled(parent, state)
        return _Sampled(self._tracer, parent, state, kind, model, request_id)

    def close(self) -> None:
        """Send what waits; blocks for some seconds at most, so call it outside of the event loop."""
        self._provider.shutdown()


class _Unsampled:
    """Passes a caller's trace on, marked as not recorded here."""

    __slots__ = ("_headers",)

    def __init__(self, parent: tuple[str, str] | None, state: bytes | None) -> None:
        self._headers: HeaderList = [] if parent is None else _trace_headers(*parent, sampled=False, state=state)

    def upstream_headers(self, upstream: str = "") -> HeaderList:
        return self._headers

    def end(self, status: int, usage: Usage | None = None, error: str | None = None) -> None:
        pass


class _Sampled:
    __slots__ = ("_open", "_span", "_state", "_tracer", "_upstream", "_what")

    def __init__(
        self,
        tracer: Any,
        parent: tuple[str, str] | None,
        state: bytes | None,
        kind: str,
        model: str,
        request_id: str | None,
    ) -> None:
        from opentelemetry.trace import SpanKind

        operation = _OPERATIONS.get(kind, kind)
        self._what = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": "openai",  # the wire format, which is all the guard knows of an upstream
            "gen_ai.request.model": model,
        }
        own = {} if request_id is None else {"spiritsafe.request_id": request_id}
        self._tracer, self._state, self._open = tracer, state, True
        self._upstream: Any = None
        self._span = tracer.start_span(
            f"{operation} {model}", _remote(parent), kind=SpanKind.SERVER, attributes=self._what | own
        )

    def upstream_headers(self, upstream: str = "") -> HeaderList:
        from opentelemetry.trace import SpanKind, format_span_id, format_trace_id, set_span_in_context

        if self._upstream is not None:
            self._end_upstream(None, "retried")
        self._upstream = self._tracer.start_span(
            f"{self._what['gen_ai.operation.name']} upstream",
            set_span_in_context(self._span),
            kind=SpanKind.CLIENT,
            attributes=self._what | {"spiritsafe.upstream": upstream},
        )
        context = self._upstream.get_span_context()
        ids = format_trace_id(context.trace_id), format_span_id(context.span_id)
        return _trace_headers(*ids, sampled=True, state=self._state)

    def end(self, status: int, usage: Usage | None = None, error: str | None = None) -> None:
        if not self._open:
            return
        self._open = False
        if self._upstream is not None:
            self._end_upstream(usage, error)
        if usage is not None:
            self._span.set_attributes(_usage(usage))
        self._span.set_attribute("http.response.status_code", status)
        if error is not None or status >= 500:
            _fail(self._span, error or str(status))
        self._span.end()

    def _end_upstream(self, usage: Usage | None, error: str | None) -> None:
        if usage is not None:
            self._upstream.set_attributes(_usage(usage))
        if error is not None:
            _fail(self._upstream, error)
        self._upstream.end()


def _usage(usage: Usage) -> dict[str, int]:
    return {"gen_ai.usage.input_tokens": usage.input_tokens, "gen_ai.usage.output_tokens": usage.output_tokens}


def _fail(span: Any, error: str) -> None:
    from opentelemetry.trace import StatusCode

    span.set_attribute("error.type", error)
    span.set_status(StatusCode.ERROR)


def _context_of(headers: Iterable[tuple[bytes, bytes]]) -> tuple[tuple[str, str] | None, bytes | None]:
    """(trace id, span id) and the state of a caller's trace. Two parents are none: which would be meant?"""
    parents, state = [], b""
    for name, value in headers:
        if name == b"traceparent":
            parents.append(value)
        elif name == b"tracestate":
            state = state + b"," + value if state else value
    if len(parents) != 1 or len(parents[0]) > _LONGEST_PARENT:
        return None, None
    found = _TRACEPARENT.fullmatch(parents[0])
    if found is None or (found[1] == b"00" and found[5] is not None):
        return None, None
    usable = len(state) <= _LONGEST_STATE and _STATE.fullmatch(state)
    return (found[2].decode(), found[3].decode()), state if usable else None


def _trace_headers(trace_id: str, span_id: str, *, sampled: bool, state: bytes | None) -> HeaderList:
    headers = [(b"traceparent", f"00-{trace_id}-{span_id}-{'01' if sampled else '00'}".encode())]
    return headers if state is None else [*headers, (b"tracestate", state)]


def _remote(parent: tuple[str, str] | None) -> Any:
    from opentelemetry.context import Context
    from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

    if parent is None:
        return Context()
    flags = TraceFlags(TraceFlags.SAMPLED)
    context = SpanContext(int(parent[0], 16), int(parent[1], 16), is_remote=True, trace_flags=flags)
    return set_span_in_context(NonRecordingSpan(context), Context())


def _headers(config: OtelConfig) -> dict[str, str]:
    if config.headers_env is None:
        return {}
    given = os.environ.get(config.headers_env, "")
    pairs = [pair.partition("=") for pair in given.split(",") if pair.strip()]
    if not pairs or any(not equals or not name.strip() for name, equals, _ in pairs):
        raise BadInput(
            f"otel.headers_env: the environment variable {config.headers_env} must hold name=value,name=value"
        )
    return {name.strip().lower(): value.strip() for name, _, value in pairs}
