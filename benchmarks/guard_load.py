"""Load on one URL: closed loop (wrk where it is installed), open loop at a fixed rate, and many streams at once.

Closed loop: each connection asks again once it has its answer; it finds the capacity. Open loop: requests are due at
fixed times whether or not the last is answered, and latency counts from the time a request was due, so that a server
that stalls cannot hide the requests that would have come meanwhile (coordinated omission).

    python benchmarks/guard_load.py open http://127.0.0.1:8080/v1/chat/completions --rate 200 --seconds 5 < target.json
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import selectors
import shutil
import subprocess
import sys
import tempfile
from collections import Counter, deque
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httptools

GRACE_S = 5.0  # an open loop waits this long for late answers; what is missing then counts as that late
TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Target:
    """Where requests go: `path` on a loopback port, JSON body, headers."""

    port: int
    body: dict[str, Any]
    path: str = "/v1/chat/completions"
    headers: dict[str, str] = field(default_factory=dict)

    def raw(self, body: dict[str, Any] | None = None) -> bytes:
        data = json.dumps(body or self.body).encode()
        lines = [f"POST {self.path} HTTP/1.1", f"Host: 127.0.0.1:{self.port}", "Content-Type: application/json"]
        lines += [f"Content-Length: {len(data)}", *(f"{name}: {value}" for name, value in self.headers.items())]
        return "\r\n".join([*lines, "", ""]).encode() + data


def percentile(sorted_values: list[float], share: float) -> float:
    """Nearest rank; 0 for an empty list."""
    return sorted_values[min(len(sorted_values) - 1, int(len(sorted_values) * share))] if sorted_values else 0.0


def latencies_ms(seconds: list[float]) -> dict[str, float]:
    seconds = sorted(seconds)
    shares = {"p50_ms": 0.5, "p99_ms": 0.99, "p999_ms": 0.999}
    return {name: round(percentile(seconds, share) * 1000, 3) for name, share in shares.items()}


class Client(asyncio.Protocol):
    """A keep-alive connection; `ask` sends a request, `done(client, status)` tells when its answer is complete.
    status 0: the connection was lost instead."""

    def __init__(self, done: Any) -> None:
        self.done, self.transport, self.parser = done, None, None
        self.events = 0
        self.waiting = False

    async def open(self, port: int) -> Client:
        await asyncio.get_running_loop().create_connection(lambda: self, "127.0.0.1", port)
        return self

    def ask(self, raw: bytes) -> None:
        self.parser, self.events, self.waiting = httptools.HttpResponseParser(self), 0, True
        self.transport.write(raw)

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if not self.waiting:  # a server that gives up on an idle connection may say so
            self.transport.abort()
            return
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.abort()

    def on_body(self, body: bytes) -> None:
        self.events += body.count(b"data: ")

    def on_message_complete(self) -> None:
        self.waiting = False
        self.done(self, self.parser.get_status_code())

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        if self.waiting:
            self.waiting = False
            self.done(self, 0)


async def open_loop(target: Target, rate: float, seconds: float) -> dict[str, Any]:
    """`rate` requests a second for `seconds`; as many connections as it takes, at most 900."""
    loop = asyncio.get_running_loop()
    count, raw = round(rate * seconds), target.raw()
    free: list[Client] = []
    queue: deque[float] = deque()
    due_of: dict[Client, float] = {}
    took: list[float] = []
    statuses: Counter[int] = Counter()
    finished = asyncio.Event()
    made = 0

    def done(client: Client, status: int) -> None:
        took.append(loop.time() - due_of.pop(client))
        statuses[status] += 1
        if client.transport is not None:
            free.append(client)
            send()
        if len(took) == count:
            finished.set()

    def send() -> None:
        while queue and free:
            client = free.pop()
            if client.transport is None or client.transport.is_closing():
                continue
            due_of[client] = queue.popleft()
            client.ask(raw)

    async def more() -> None:
        nonlocal made
        made += 1
        free.append(await Client(done).open(target.port))
        send()

    opening: set[asyncio.Task[None]] = set()
    await asyncio.gather(*(more() for _ in range(8)))
    begun = loop.time() + 0.05
    for at in range(count):
        due = begun + at / rate
        if (wait := due - loop.time()) > 0:
            await asyncio.sleep(wait)
        queue.append(due)
        send()
        if queue and made < 900:
            task = loop.create_task(more())
            opening.add(task)
            task.add_done_callback(opening.discard)
    try:
        await asyncio.wait_for(finished.wait(), GRACE_S)
    except TimeoutError:
        now = loop.time()
        took += [now - due for due in (*due_of.values(), *queue)]
    bad = sum(n for status, n in statuses.items() if status != 200)
    result = {"requests": count, "errors": bad, "unanswered": count - statuses.total(), **latencies_ms(took)}
    return result | {"connections": made, "statuses": {str(s): n for s, n in sorted(statuses.items())}}


async def closed_loop(target: Target, connections: int, seconds: float) -> dict[str, Any]:
    """Every connection asks as soon as it is answered, for `seconds`."""
    return await _closed(target, connections, seconds, None)


async def counted(target: Target, connections: int, requests: int) -> dict[str, Any]:
    """Every connection asks as soon as it is answered, until `requests` were asked."""
    return await _closed(target, connections, 3600.0, requests)


async def _closed(target: Target, connections: int, seconds: float, limit: int | None) -> dict[str, Any]:
    loop = asyncio.get_running_loop()
    raw, begun_of, took, events = target.raw(), {}, [], 0
    statuses: Counter[int] = Counter()
    asked = 0
    ended = asyncio.Event()
    begun = loop.time()

    def again(client: Client) -> None:
        nonlocal asked
        if loop.time() - begun >= seconds or (limit is not None and asked >= limit) or client.transport is None:
            if not begun_of:
                ended.set()
            return
        asked += 1
        begun_of[client] = loop.time()
        client.ask(raw)

    def done(client: Client, status: int) -> None:
        nonlocal events
        took.append(loop.time() - begun_of.pop(client))
        statuses[status] += 1
        events += client.events
        again(client)

    clients = [await Client(done).open(target.port) for _ in range(connections)]
    begun = loop.time()
    for client in clients:
        again(client)
    late = 0
    try:
        await asyncio.wait_for(ended.wait(), seconds + GRACE_S)
    except TimeoutError:
        late = len(begun_of)
    spent = loop.time() - begun
    bad = sum(n for status, n in statuses.items() if status != 200)
    result = {"requests": statuses.total(), "errors": bad, "unanswered": late, **latencies_ms(took)}
    return result | {"rps": round(statuses.total() / spent, 1), "events": events, "seconds": round(spent, 2)}


_LUA = """
wrk.method = "POST"
wrk.body = [==[%s]==]
%s
function done(summary, latency, requests)
  local e = summary.errors
  local bad = e.status + e.read + e.write + e.timeout + e.connect
  io.write("RESULT " .. summary.requests .. " " .. summary.duration .. " " .. bad
    .. " " .. latency:percentile(50) .. " " .. latency:percentile(99) .. " " .. latency:percentile(99.9) .. "\\n")
end
"""


def closed(target: Target, connections: int, seconds: float) -> dict[str, Any]:
    """A closed loop in a process of its own: wrk with one thread, or this module without it."""
    wrk = shutil.which("wrk")
    if wrk is None:
        return apart("closed", target, connections=connections, seconds=seconds)
    headers = {"Content-Type": "application/json", **target.headers}
    lines = "\n".join(f"wrk.headers[{json.dumps(name)}] = {json.dumps(value)}" for name, value in headers.items())
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "post.lua"
        script.write_text(_LUA % (json.dumps(target.body), lines))
        url = f"http://127.0.0.1:{target.port}{target.path}"
        command = [wrk, "-t1", f"-c{connections}", f"-d{seconds:g}s", "--timeout", "30s", "-s", str(script), url]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = next(line for line in output.splitlines() if line.startswith("RESULT "))
    requests, us, errors, p50, p99, p999 = map(float, found.split()[1:])
    return {
        "requests": int(requests),
        "errors": int(errors),
        "rps": round(requests / us * 1e6, 1),
        "p50_ms": p50 / 1000,
        "p99_ms": p99 / 1000,
        "p999_ms": p999 / 1000,
    }


def apart(verb: str, target: Target, **options: Any) -> dict[str, Any]:
    """Run a loop of this module in a process of its own, so that the caller's work does not colour it."""
    given = [f"--{name}={value}" for name, value in options.items()]
    said = subprocess.run(
        [sys.executable, __file__, verb, *given],
        input=json.dumps(asdict(target)), stdout=subprocess.PIPE, text=True, check=True,
    ).stdout  # fmt: skip
    result: dict[str, Any] = json.loads(said)
    return result


def family(pid: int) -> list[int]:
    """A process and all that descend from it."""
    parents: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (stat := _stat(int(entry))):
            parents.setdefault(int(stat[1]), []).append(int(entry))
    found = [pid]
    for each in found:
        found += parents.get(each, [])
    return found


def cpu_s(pid: int) -> float:
    """User and system seconds of a process and its descendants, those that ended included."""
    ticks = 0
    for each in family(pid):
        if stat := _stat(each):
            ticks += sum(map(int, stat[11:15]))
    return ticks / TICK


def rss_mb(pid: int) -> float:
    """Resident memory of a process and its descendants; pages that they share count in each."""
    pages = 0
    for each in family(pid):
        try:
            pages += int(Path(f"/proc/{each}/statm").read_text().split()[1])
        except OSError:
            continue
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the third, `state`, on; empty if it has gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return []


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("open", "closed", "counted"))
    parser.add_argument("--rate", type=float, default=200)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--requests", type=int, default=1000)
    given = parser.parse_args()
    aim = Target(**json.load(sys.stdin))
    work = {
        "open": lambda: open_loop(aim, given.rate, given.seconds),
        "closed": lambda: closed_loop(aim, given.connections, given.seconds),
        "counted": lambda: counted(aim, given.connections, given.requests),
    }[given.verb]
    # select(2) waits to the microsecond, epoll to the millisecond: half of what is measured here.
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
        print(json.dumps(runner.run(work())))
