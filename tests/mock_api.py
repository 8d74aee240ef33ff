"""A chat API on loopback that behaves as a test says, in its own thread: real sockets, real HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from aiohttp import web

Body = dict[str, Any]
Behaviour = Callable[[int, Body, web.Request], Awaitable[web.StreamResponse]]


def completion(body: Body, *texts: str, finish: str = "stop", tokens: int = 4, **extra: Any) -> Body:
    """A well-formed answer; one choice per text, or n copies of an echo of the prompt."""
    said = texts or (f"echo: {body['messages'][-1]['content']}",) * body.get("n", 1)
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "model": body["model"],
        "choices": [
            {"index": i, "finish_reason": finish, "message": {"role": "assistant", "content": text}}
            for i, text in enumerate(said)
        ],
        "usage": {
            "prompt_tokens": 10,
            "completion_tokens": tokens * len(said),
            "total_tokens": 10 + tokens * len(said),
        },
    } | extra


async def answer(number: int, body: Body, request: web.Request) -> web.StreamResponse:
    """The behaviour of an API that simply works."""
    return web.json_response(completion(body))


class MockApi:
    """`received` holds every completion request's body in order, `answered` what went out with status 200."""

    def __init__(
        self,
        behave: Behaviour = answer,
        models: list[Body] | None = None,
        port: int = 0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.behave = behave
        self.models = models
        self.received: list[Body] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.answered: list[Body] = []
        self.in_flight = 0
        self.most_in_flight = 0
        self.port, self.tls = port, tls
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    @property
    def base_url(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> MockApi:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        self._loop.close()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._main())

    async def _main(self) -> None:
        self._stop = asyncio.Event()
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._complete)
        app.router.add_post("/v1/completions", self._complete)
        if self.models is not None:
            app.router.add_get("/v1/models", self._list)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", self.port, ssl_context=self.tls)
        await site.start()
        self.port = runner.addresses[0][1]
        self._ready.set()
        await self._stop.wait()
        await runner.cleanup()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _list(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": self.models})

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.received.append(body)
        self.headers.append(dict(request.headers))
        self.times.append(time.monotonic())
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            response = await self.behave(len(self.received), body, request)
        finally:
            self.in_flight -= 1
        if response.status == 200 and isinstance(response, web.Response):
            with contextlib.suppress(ValueError):
                self.answered.append(json.loads(response.body or b""))
        return response


@contextlib.contextmanager
def mock_api(
    behave: Behaviour = answer, models: list[Body] | None = None, tls: ssl.SSLContext | None = None
) -> Iterator[MockApi]:
    with MockApi(behave, models, tls=tls) as api:
        yield api
