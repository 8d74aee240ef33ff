"""`spiritsafe serve`: bind, open the guard, serve both ports, drain, stop; one process or several."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import multiprocessing
import os
import resource
import signal
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from multiprocessing.context import SpawnProcess
from typing import Any

import uvicorn

from spiritsafe.errors import BadInput, SpiritsafeError
from spiritsafe.serve._app import GuardApp
from spiritsafe.serve._config import DrainConfig, GuardConfig
from spiritsafe.serve._guard import METRICS_FOLDER, Guard
from spiritsafe.serve._protocol import GuardProtocol

__all__ = ["guard_app", "serve_guard"]

_BACKLOG = 2048
_RESTART_S = 1.0
_CLOSING_S = 5.0  # from the last reply to the end of a worker's process
_SIGNALS = (signal.SIGINT, signal.SIGTERM)

OnReady = Callable[[str, str], object]


@contextlib.asynccontextmanager
async def guard_app(config: GuardConfig) -> AsyncIterator[GuardApp]:
    """The public application with everything behind it open, for a server of your own (or a test).

    Raises:
        BadInput, Unavailable: as `Guard.open`.
    """
    async with await Guard.open(config) as guard:
        yield GuardApp(guard)


def serve_guard(config: GuardConfig, *, workers: int = 1, on_ready: OnReady | None = None) -> None:
    """Serve until SIGINT or SIGTERM, then stop as `config.drain` says; a second signal ends the notice.

    workers: processes that share the ports; more than one needs limits that they share.
    on_ready: called with the public and the admin base URL once requests are accepted.

    Raises:
        BadInput: an address is taken, the config does not fit several workers, or a part of the guard cannot be opened.
    """
    if workers > 1 and config.state.limits == "memory":
        raise BadInput(
            f"--workers {workers} with state.limits: memory would allow {workers} times every limit; set state.limits"
            " to redis://HOST:6379/0, or serve with one worker"
        )
    _raise_file_limit()
    with contextlib.ExitStack() as stack:
        public = stack.enter_context(contextlib.closing(bind(config.listen)))
        admin = stack.enter_context(contextlib.closing(bind(config.admin)))
        if workers == 1:
            with _uvloop() as runner:
                runner.run(_serve_one(config, public, admin, on_ready))
        else:
            _Supervisor(config, workers, public, admin).run(on_ready)


async def _serve_one(
    config: GuardConfig,
    public: socket.socket,
    admin: socket.socket,
    on_ready: OnReady | None,
    *,
    worker: int = 0,
    stops: Sequence[signal.Signals] = _SIGNALS,
) -> None:
    stop, at_once = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in stops:
        loop.add_signal_handler(number, lambda: (at_once if stop.is_set() else stop).set())
    async with await Guard.open(config, worker=worker) as guard:
        servers = [_server(app, config.drain) for app in (GuardApp(guard), guard.admin_app())]
        running = [
            asyncio.create_task(server.serve(sockets=[listener]))
            for server, listener in zip(servers, (public, admin), strict=True)
        ]
        for server in servers:
            await asyncio.wait({asyncio.ensure_future(server.up.wait()), *running}, return_when=asyncio.FIRST_COMPLETED)
        _spare_the_collector()
        if on_ready:
            on_ready(url_of(public), url_of(admin))
        await _first(stop, running)
        guard.drain()
        await _first(at_once, running, config.drain.notice_s)
        for server in servers:
            server.should_exit = True
        await asyncio.gather(*running)


async def _first(event: asyncio.Event, running: list[asyncio.Task[None]], timeout: float | None = None) -> None:
    """Until the event, the end of a server, or `timeout` seconds."""
    waiting = asyncio.create_task(event.wait())
    await asyncio.wait([waiting, *running], timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()


def _server(app: Any, drain: DrainConfig) -> _QuietServer:
    config = uvicorn.Config(
        app,
        http=GuardProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,  # whom to believe is the config's to say (`trusted_proxies`)
        backlog=_BACKLOG,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=drain.replies_s,
    )
    return _QuietServer(config)


class _QuietServer(uvicorn.Server):
    """up: set once requests are accepted."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.up.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn's own would raise the signal again after a clean stop; `_serve_one` handles them instead."""
        yield


class _Supervisor:
    """Starts the workers, starts one again that dies, and passes a stop on."""

    def __init__(self, config: GuardConfig, workers: int, public: socket.socket, admin: socket.socket) -> None:
        self._config, self._count, self._public, self._admin = config, workers, public, admin
        self._context = multiprocessing.get_context("spawn")
        self._workers: dict[int, SpawnProcess] = {}
        self._ready: dict[int, Any] = {}
        self._stopping = False

    def run(self, on_ready: OnReady | None) -> None:
        for number in _SIGNALS:
            signal.signal(number, self._stop)
        with tempfile.TemporaryDirectory(prefix="spiritsafe-metrics-") as folder:
            os.environ[METRICS_FOLDER] = folder
            self._supervise(on_ready)

    def _supervise(self, on_ready: OnReady | None) -> None:
        for index in range(self._count):
            self._start(index)
        ready = on_ready
        while not self._stopping:
            for index, process in list(self._workers.items()):
                if process.exitcode is None:
                    continue
                if process.exitcode == _UNUSABLE:
                    self._stop()
                    break
                if not self._stopping:
                    print(
                        f"worker {index} ended with {process.exitcode}; starting it again", file=sys.stderr, flush=True
                    )
                    time.sleep(_RESTART_S)
                    self._start(index)
            if ready and all(self._ready[index].is_set() for index in range(self._count)):
                ready(url_of(self._public), url_of(self._admin))
                ready = None
            time.sleep(0.05)
        deadline = time.monotonic() + self._config.drain.longest_s + _CLOSING_S
        for process in self._workers.values():
            process.join(max(0.0, deadline - time.monotonic()))
            if process.exitcode is None:
                process.kill()
        if any(process.exitcode == _UNUSABLE for process in self._workers.values()):
            raise SpiritsafeError("a worker could not open the guard; its error is above")

    def _start(self, index: int) -> None:
        self._ready[index] = self._context.Event()
        process = self._context.Process(
            target=_worker_main,
            args=(self._config, self._public, self._admin, index, self._ready[index]),
            name=f"spiritsafe-worker-{index}",
        )
        process.start()
        self._workers[index] = process

    def _stop(self, *_: object) -> None:
        self._stopping = True
        for process in self._workers.values():
            if process.pid and process.exitcode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGTERM)


_UNUSABLE = 78  # EX_CONFIG: starting again would not help


def _worker_main(config: GuardConfig, public: socket.socket, admin: socket.socket, worker: int, ready: Any) -> None:
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # a terminal sends it to everyone; the supervisor passes on what counts
    try:
        with _uvloop() as runner:
            work = _serve_one(config, public, admin, lambda *_: ready.set(), worker=worker, stops=(signal.SIGTERM,))
            runner.run(work)
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(_UNUSABLE)
    except SpiritsafeError as error:  # a database that is away may come back
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(1)


def bind(address: str) -> socket.socket:
    """A bound TCP socket for "HOST:PORT", not yet listening. Port 0 picks a free one.

    Raises:
        BadInput: the address is taken or unusable.
    """
    host, _, port = address.rpartition(":")
    listener = None
    try:
        family, _, _, _, where = socket.getaddrinfo(
            host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(where)
    except (OSError, OverflowError) as error:
        if listener:
            listener.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise BadInput(f"{address}: cannot listen there ({reason}); choose another host or port") from None
    return listener


def url_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _raise_file_limit() -> None:
    """Each client and each upstream call is a file; the soft default of 1,024 is soon used up."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _spare_the_collector() -> None:
    """What is here now stays: it need not be looked through again and again. A request leaves few cycles."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


def _uvloop() -> asyncio.Runner:
    try:
        import uvloop
    except ImportError:
        return asyncio.Runner()
    return asyncio.Runner(loop_factory=uvloop.new_event_loop)
