"""`spiritsafe teachers run`: bind, load, serve, stop."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from spiritsafe.errors import BadInput
from spiritsafe.teachers._app import app_for
from spiritsafe.teachers._local import LocalTeacher
from spiritsafe.watermark._marking import MarkerConfig

__all__ = ["bind", "serve_app", "serve_local"]

_LINGER_S = 5  # how long a stop waits for replies under way


def serve_local(
    source: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8001,
    model_name: str | None = None,
    api_key: str | None = None,
    max_logprobs: int = 64,
    max_batch: int = 32,
    dtype: str = "auto",
    log: Path | None = None,
    watermark: MarkerConfig | None = None,
    on_ready: Callable[[str, str], None] | None = None,
) -> None:
    """Serve local weights over an OpenAI-compatible API until SIGINT or SIGTERM; replies under way get 5 s.

    source: see `load_weights`.  port: 0 picks a free one.  log, api_key, max_logprobs: see `app_for`.
    watermark: mark every reply.
    on_ready: called with the base URL (ending in /v1) and the model's name once requests are accepted.

    Raises:
        BadInput: the address is taken or unusable, the log cannot be written, the weights or the watermark's keys
            cannot be loaded, or these belong to another tokenizer.
    """
    with contextlib.closing(bind(host, port)) as listener:  # before the slow part: a taken port is told at once
        if log is not None:
            _check_log(log)
        markers = None
        if watermark is not None:
            from spiritsafe.watermark._marker import Markers

            markers = Markers.open(watermark)
        teacher = LocalTeacher(source, model=model_name, dtype=dtype, max_batch=max_batch, markers=markers)
        app = app_for(teacher, api_key=api_key, max_logprobs=max_logprobs, log=log)
        asyncio.run(serve_app(app, listener, lambda base_url: on_ready and on_ready(base_url, teacher.info.model)))


def bind(host: str, port: int) -> socket.socket:
    """A bound TCP socket, not yet listening.

    Raises:
        BadInput: the address is taken or unusable.
    """
    listener = None
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        if listener:
            listener.close()
        reason = error.strerror or str(error)
        raise BadInput(f"{host}:{port}: cannot listen there ({reason}); choose another host or port") from None
    return listener


async def serve_app(
    app: ASGIApp,
    listener: socket.socket,
    on_ready: Callable[[str], object],
    stop: asyncio.Event | None = None,
) -> None:
    """Serve `app` until `stop` is set or, on the main thread, SIGINT or SIGTERM arrives. Runs the app's lifespan.

    on_ready: called with the base URL once requests are accepted.
    """
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, lifespan="on", timeout_graceful_shutdown=_LINGER_S
    )
    server = _Server(config, listener, on_ready)
    loop = asyncio.get_running_loop()
    handled = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    for number in handled:
        loop.add_signal_handler(number, server.handle_exit, number, None)
    watcher = asyncio.ensure_future(_stop_when(stop, server)) if stop else None
    try:
        await server.serve(sockets=[listener])
    finally:
        for number in handled:
            loop.remove_signal_handler(number)
        if watcher:
            watcher.cancel()


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, listener: socket.socket, on_ready: Callable[[str], object]) -> None:
        super().__init__(config)
        host, port = listener.getsockname()[:2]
        self._base_url = f"http://[{host}]:{port}/v1" if ":" in host else f"http://{host}:{port}/v1"
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if not self.should_exit:
            self._on_ready(self._base_url)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn's own would raise the signal again after a clean stop; `serve_app` handles them instead."""
        yield


async def _stop_when(stop: asyncio.Event, server: uvicorn.Server) -> None:
    await stop.wait()
    server.should_exit = True


def _check_log(log: Path) -> None:
    try:
        with open(log, "ab"):
            pass
    except OSError as error:
        raise BadInput(f"{log}: the log cannot be written ({error.strerror}); choose another --log") from None
