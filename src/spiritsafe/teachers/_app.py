"""Local weights as an OpenAI-compatible ASGI application: chat completions, models, health."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from spiritsafe.errors import BadInput, Refused
from spiritsafe.records import Sampling, SparseLogprobs, Usage
from spiritsafe.teachers._base import TeacherError
from spiritsafe.teachers._engine import Generation
from spiritsafe.teachers._local import Call, LocalTeacher
from spiritsafe.wire import (
    SSE_DONE,
    ApiError,
    ChatRequest,
    answer,
    answer_choice,
    chunk,
    chunk_choice,
    logprob_entries,
    parse_chat_request,
    sse_event,
)

__all__ = ["app_for"]

_MAX_BODY = 16 << 20
_CLIENT_GONE = 499  # for the log only; nobody is left to read it
_STATUS = {"bad_request": 400, "server": 500}

T = TypeVar("T")


def app_for(
    teacher: LocalTeacher,
    *,
    model_name: str | None = None,
    api_key: str | None = None,
    max_logprobs: int = 64,
    log: Path | None = None,
) -> Starlette:
    """The application; it closes `teacher` when it shuts down.

    model_name: the name to serve under, the teacher's own by default.
    api_key: required as a bearer token on /v1 if given.  max_logprobs: most alternatives a request may ask for.
    log: JSONL of answered requests, appended: ids, status, token counts, never prompts.
    """
    api = _Api(teacher, model_name or teacher.info.model, api_key, max_logprobs, log)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await teacher.aclose()

    return Starlette(
        routes=[
            Route("/v1/chat/completions", api.guarded(api.chat), methods=["POST"]),
            Route("/v1/models", api.guarded(api.models), methods=["GET"]),
            Route("/v1/models/{name:path}", api.guarded(api.model), methods=["GET"]),
            Route("/healthz", api.healthz, methods=["GET"]),
        ],
        exception_handlers={ApiError: _api_error, HTTPException: _http_error, Exception: _crash},
        lifespan=lifespan,
    )


class _Api:
    def __init__(
        self, teacher: LocalTeacher, name: str, api_key: str | None, max_logprobs: int, log: Path | None
    ) -> None:
        self._teacher, self._name, self._max_logprobs, self._log = teacher, name, max_logprobs, log
        self._key = None if api_key is None else api_key.encode()
        self._created = int(time.time())
        # Whoever asks for token ids also needs to know whose ids they are.
        self._whose_ids = {"tokenizer_hash": teacher.info.tokenizer_hash, "template_hash": teacher.info.template_hash}

    def guarded(
        self, handler: Callable[[HttpRequest], Coroutine[Any, Any, Response]]
    ) -> Callable[[HttpRequest], Coroutine[Any, Any, Response]]:
        """`handler` behind the API key."""

        async def checked(request: HttpRequest) -> Response:
            if self._key is not None:
                scheme, _, given = request.headers.get("authorization", "").partition(" ")
                if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self._key):
                    raise ApiError(401, "wrong or missing API key", code="invalid_api_key")
            return await handler(request)

        return checked

    async def healthz(self, _: HttpRequest) -> Response:
        return _json({"status": "ok"})

    async def models(self, _: HttpRequest) -> Response:
        return _json({"object": "list", "data": [self._card()]})

    async def model(self, request: HttpRequest) -> Response:
        self._check_name(request.path_params["name"])
        return _json(self._card())

    async def chat(self, request: HttpRequest) -> Response:
        started = time.monotonic()
        asked = parse_chat_request(await _body(request), max_logprobs=self._max_logprobs)
        self._check_name(asked.model)
        try:
            key_id = self._teacher.key_id(asked.watermark_key_id)
        except (BadInput, Refused) as error:
            raise ApiError(400, str(error), param="watermark_key_id", code="invalid_watermark_key_id") from None
        prompt, sampling = self._plan(asked)
        reply = _Reply(self._name, asked, prompt)
        try:
            call = self._teacher.start(prompt, sampling, asked.n, deltas=asked.stream, key_id=key_id)
        except TeacherError as error:
            raise _as_api_error(error) from None

        def ended(status: int) -> None:
            call.cancel()
            self._note(reply, status, time.monotonic() - started)

        if asked.stream:
            return _EventStream(reply.stream(call), ended)
        status = _CLIENT_GONE
        try:
            body = await _unless_gone(request.receive, reply.whole(call))
            if body is not None:
                status = 200
                if asked.return_token_ids:
                    body |= self._whose_ids
            return Response(b"", _CLIENT_GONE) if body is None else _json(body)
        except TeacherError as error:
            status = _STATUS.get(error.kind, 500)
            raise _as_api_error(error) from None
        finally:
            ended(status)

    def _plan(self, asked: ChatRequest) -> tuple[tuple[int, ...], Sampling]:
        try:
            prompt = self._teacher.prompt_ids(asked.messages)
        except TeacherError as error:
            raise _as_api_error(error) from None
        room = self._teacher.weights.context - len(prompt)
        wanted = asked.max_tokens or max(room, 1)
        if wanted > room:
            raise ApiError(
                400,
                f"the prompt has {len(prompt)} tokens and max_tokens is {wanted}, together more than the model's"
                f" context of {self._teacher.weights.context}; shorten the prompt or lower max_tokens",
                param="max_tokens" if room > 0 else "messages",
                code="context_length_exceeded",
            )
        # without alternatives the chosen token's own log-probability is still owed
        logprobs = max(asked.top_logprobs, 1) if asked.logprobs else 0
        return prompt, Sampling(wanted, asked.temperature, asked.top_p, asked.seed, asked.stop, logprobs)

    def _check_name(self, name: str) -> None:
        if name != self._name:
            raise ApiError(
                404, f"no model {name} here; this server has {self._name}", param="model", code="model_not_found"
            )

    def _card(self) -> dict[str, Any]:
        card = {"id": self._name, "object": "model", "created": self._created, "owned_by": "spiritsafe"}
        return card | {"max_model_len": self._teacher.weights.context, "revision": self._teacher.info.revision}

    def _note(self, reply: _Reply, status: int, seconds: float) -> None:
        if self._log is None:
            return
        line = {
            "ts": time.time(),
            "id": reply.id,
            "status": status,
            "model": self._name,
            "n": reply.asked.n,
            "stream": reply.asked.stream,
            "prompt_tokens": len(reply.prompt),
            "completion_tokens": reply.generated,
            "ms": round(1000 * seconds, 1),
        }
        with open(self._log, "ab") as file:  # one write of one line: whole even if the process dies
            file.write(orjson.dumps(line) + b"\n")


class _Reply:
    """One request's answer on the wire. `generated` counts completion tokens so far."""

    def __init__(self, model: str, asked: ChatRequest, prompt: tuple[int, ...]) -> None:
        self.id = f"chatcmpl-{uuid.uuid4().hex}"
        self.asked, self.prompt, self.generated = asked, prompt, 0
        self._head: dict[str, Any] = {"request_id": self.id, "created": int(time.time()), "model": model}

    async def whole(self, call: Call) -> dict[str, Any]:
        done = await call.results()
        self.generated = sum(len(g.token_ids) for g in done)
        choices = [
            answer_choice(
                index,
                g.text,
                g.finish_reason,
                logprobs=self._logprobs(g.logprobs, g.token_ids),
                token_ids=g.token_ids if self.asked.return_token_ids else None,
            )
            for index, g in enumerate(done)
        ]
        shown = self.prompt if self.asked.return_token_ids else None
        return answer(**self._head, choices=choices, usage=self._usage(), prompt_token_ids=shown) | _marks(call)

    async def stream(self, call: Call) -> AsyncGenerator[bytes]:
        """Server-sent events, the final [DONE] included. An engine failure becomes an error event."""
        shown = self.prompt if self.asked.return_token_ids else None
        for index in range(self.asked.n):
            first = chunk_choice(index, {"role": "assistant", "content": ""})
            yield self._chunk(first, prompt_token_ids=shown, extra=_marks(call))
            shown = None
        try:
            async for index, event in call.events():
                if isinstance(event, Generation):
                    yield self._chunk(chunk_choice(index, {}, finish_reason=event.finish_reason))
                    continue
                self.generated += len(event.token_ids)
                logprobs = self._logprobs(event.logprobs, event.token_ids)
                ids = event.token_ids if self.asked.return_token_ids else None
                if event.text or logprobs or ids:
                    yield self._chunk(chunk_choice(index, {"content": event.text}, logprobs=logprobs, token_ids=ids))
        except TeacherError as error:
            yield sse_event(_as_api_error(error).to_dict())
        else:
            if self.asked.include_usage:
                yield sse_event(chunk(**self._head, choices=[], usage=self._usage(), show_usage=True))
        yield SSE_DONE

    def _chunk(
        self,
        choice: dict[str, Any],
        prompt_token_ids: tuple[int, ...] | None = None,
        extra: Mapping[str, str] = MappingProxyType({}),
    ) -> bytes:
        show = self.asked.include_usage
        body = chunk(**self._head, choices=[choice], show_usage=show, prompt_token_ids=prompt_token_ids)
        return sse_event({**body, **extra})

    def _usage(self) -> Usage:
        return Usage(len(self.prompt), self.generated)

    def _logprobs(self, logprobs: SparseLogprobs | None, token_ids: tuple[int, ...]) -> list[dict[str, Any]] | None:
        if logprobs is None:
            return None
        return logprob_entries(logprobs, self.asked.top_logprobs, token_ids if self.asked.tokens_as_ids else None)


def _marks(call: Call) -> dict[str, str]:
    """What an answer says of its marks: the key's id and, for a greedy request, what it became."""
    said = {"watermark_key_id": call.watermark_key_id, "watermark_greedy": call.watermark_greedy}
    return {name: value for name, value in said.items() if value is not None}


class _EventStream(Response):
    """Server-sent events that stop, and give up the work behind them, when the client goes."""

    def __init__(self, events: AsyncGenerator[bytes], on_end: Callable[[int], None]) -> None:
        super().__init__(media_type="text/event-stream", headers={"cache-control": "no-cache"})
        del self.headers["content-length"]
        self._events, self._on_end = events, on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sent = None
        try:
            sent = await _unless_gone(receive, self._send(send))
        finally:
            self._on_end(200 if sent else _CLIENT_GONE)

    async def _send(self, send: Send) -> bool:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async with contextlib.aclosing(self._events) as events:
            async for event in events:
                await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        return True


async def _unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T | None:
    """The work's result; None, and the work cancelled, if the client disconnects first."""

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    task, watcher = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        return await task if task.done() else None
    finally:
        for one in (task, watcher):
            one.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


async def _body(request: HttpRequest) -> bytes:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > _MAX_BODY:
            raise ApiError(413, f"the body is larger than {_MAX_BODY >> 20} MiB")
    return bytes(body)


def _json(value: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(value), status, media_type="application/json")


def _as_api_error(error: TeacherError) -> ApiError:
    return ApiError(_STATUS.get(error.kind, 500), str(error))


async def _api_error(_: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return _json(error.to_dict(), error.status)


async def _http_error(request: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _json(
        ApiError(error.status_code, f"{request.method} {request.url.path}: {error.detail}").to_dict(), error.status_code
    )


async def _crash(_: HttpRequest, error: Exception) -> Response:
    return _json(ApiError(500, f"internal error: {type(error).__name__}").to_dict(), 500)
