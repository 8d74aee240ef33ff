"""The real guard as processes, in front of the real mock upstream (benchmarks/guard_mock.py), to be hurt by tests.

with mocking(tmp_path) as mock, guarding(tmp_path, mock, faults={"cut": "fault=die_rst"}) as guard:
    key = guard.new_key("acme")
    answer = guard.post(key, model="cut")
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import services
from spiritsafe.cli._accounts_store import with_store
from spiritsafe.config import parse_config
from spiritsafe.ledger import read_ledger, verify_ledger
from spiritsafe.serve._config import GuardConfig
from spiritsafe.serve._key_store import KeyStore
from spiritsafe.state import Database
from spiritsafe.wire import SseParser

MOCK = Path(__file__).parents[2] / "benchmarks" / "guard_mock.py"
SPIRITSAFE = Path(sys.executable).parent / "spiritsafe"
PRICE = {"input_per_mtok": 1.0, "output_per_mtok": 2.0}
PROMPT_TOKENS, REPLY_TOKENS = 12, 40  # what the mock says it used
EACH_PICO = PROMPT_TOKENS * 10**6 + REPLY_TOKENS * 2 * 10**6  # pico-dollars of one such reply
UPSTREAM_KEY = "sk-upstream-0123456789abcdef"
SECRET_PROMPT = "the password of the vault is xyzzy-4711"


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error, after checking that it has OpenAI's shape and is one readable line."""
        data = self.json
        assert set(data) == {"error"} and set(data["error"]) == {"message", "type", "param", "code"}, data
        error: dict[str, Any] = data["error"]
        assert isinstance(error["message"], str) and error["message"] and "\n" not in error["message"]
        assert isinstance(error["type"], str) and error["type"]
        assert self.headers["content-type"].startswith("application/json")
        return error

    @property
    def events(self) -> list[Any]:
        """Events of a stream, decoded; "[DONE]" stays a string."""
        found = SseParser().feed(self.body)
        return [event.data if event.data == "[DONE]" else json.loads(event.data) for event in found]


@dataclass
class Mock:
    port: int
    log: Path

    def asked(self) -> list[dict[str, Any]]:
        """Every completion that reached the upstream: path, headers, body, tokens."""
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []


@contextlib.contextmanager
def mocking(folder: Path) -> Iterator[Mock]:
    log = folder / "upstream.jsonl"
    with subprocess.Popen([sys.executable, str(MOCK), f"--log={log}"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield Mock(int(process.stdout.readline()), log)
        finally:
            process.kill()


def guard_settings(folder: Path, mock: Mock, faults: Mapping[str, str], **changes: Any) -> dict[str, Any]:
    """GUARD.yaml as data: the model "m" from a mock that works, and one model a fault."""
    upstreams = [
        {
            "name": f"up-{name}",
            "base_url": f"http://127.0.0.1:{mock.port}{'/' + mode if mode else ''}/v1",
            "models": [name],
            "price": PRICE,
            "api_key_env": "UPSTREAM_KEY",
            "timeout_s": 1.0,
            "total_s": 5.0,
            "connect_s": 1.0,
        }
        for name, mode in {"m": "", **faults}.items()
    ]
    data: dict[str, Any] = {
        "listen": f"127.0.0.1:{services.free_port()}",
        "admin": f"127.0.0.1:{services.free_port()}",
        "state": {
            "database": f"sqlite:///{folder / 'guard.db'}",
            "journal": str(folder / "journal"),
            "secrets": str(folder / "guard.secrets"),
        },
        "upstreams": upstreams,
        "ledger": {"commit_ms": 5},
    }
    for name, value in changes.items():
        data[name] = data[name] | value if isinstance(data.get(name), dict) and isinstance(value, dict) else value
    return data


@dataclass
class Guarded:
    """A guard of one or more processes. patch: Python that runs in the process first (not with several workers)."""

    folder: Path
    settings: dict[str, Any]
    workers: int = 1
    patch: str = ""
    name: str = "guard"
    environment: dict[str, str] = field(default_factory=dict)
    limit: Any = None  # called in the child before it starts
    process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self.config_file.write_text(json.dumps(self.settings))  # JSON is YAML

    @property
    def config_file(self) -> Path:
        return self.folder / f"{self.name}.yaml"

    @property
    def config(self) -> GuardConfig:
        return parse_config(self.settings, GuardConfig, where="test")

    @property
    def port(self) -> int:
        return int(self.settings["listen"].rpartition(":")[2])

    @property
    def admin_port(self) -> int:
        return int(self.settings["admin"].rpartition(":")[2])

    @property
    def log(self) -> str:
        """What it wrote to stdout and stderr so far."""
        return (self.folder / f"{self.name}.log").read_text(errors="replace")

    # its life

    def start(self, ready: bool = True) -> Guarded:
        command = ["serve", str(self.config_file), "--workers", str(self.workers)]
        python = f"{self.patch}\nimport sys\nfrom spiritsafe.cli import main\nsys.exit(main(sys.argv[1:]))"
        program = [sys.executable, "-c", python, *command] if self.patch else [str(SPIRITSAFE), *command]
        with (self.folder / f"{self.name}.log").open("ab") as log:
            self.process = subprocess.Popen(
                program,
                stdout=log,
                stderr=log,
                env=os.environ | {"UPSTREAM_KEY": UPSTREAM_KEY} | self.environment,
                start_new_session=True,
                preexec_fn=self.limit,
            )
        if ready:
            self.wait_ready()
        return self

    def wait_ready(self, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        last: Any = None
        while time.monotonic() < deadline:
            assert self.process is not None and self.process.poll() is None, f"the guard ended: {self.log[-3000:]}"
            with contextlib.suppress(OSError, http.client.HTTPException):
                last = self.get("/readyz")
                if last.status == 200:
                    return
            time.sleep(0.03)
        raise AssertionError(f"not ready: {last} {self.log[-3000:]}")

    def worker_pids(self) -> list[int]:
        """The processes that serve, without the supervisor and Python's own helpers."""
        assert self.process is not None
        if self.workers == 1:
            return [self.process.pid]
        found = subprocess.run(
            ["pgrep", "-P", str(self.process.pid), "-f", "spawn_main"], capture_output=True, text=True, check=False
        ).stdout.split()
        return [int(pid) for pid in found]

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Stop it and return its exit code; SIGKILL goes to every process of it."""
        assert self.process is not None
        if number == signal.SIGKILL:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)
        else:
            self.process.send_signal(number)
        code = self.process.wait(40)
        self.process = None
        return code

    # asking it

    def get(self, path: str, key: str | None = None, method: str = "GET", port: int | None = None) -> Answer:
        return self.request(method, path, b"", key, port=port)

    def post(self, key: str | None, path: str = "/v1/chat/completions", **body: Any) -> Answer:
        if path == "/v1/chat/completions":
            body = {"model": "m", "messages": [{"role": "user", "content": SECRET_PROMPT}], "max_tokens": 64} | body
        return self.request("POST", path, json.dumps(body).encode(), key)

    def request(
        self,
        method: str,
        path: str,
        body: bytes,
        key: str | None,
        headers: Mapping[str, str] | None = None,
        port: int | None = None,
    ) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", port or self.port, timeout=30)
        try:
            sent = dict(headers or {}) | ({"Authorization": f"Bearer {key}"} if key else {})
            if body:
                sent.setdefault("Content-Type", "application/json")
            connection.request(method, path, body or None, sent)
            response = connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, found, response.read())
        finally:
            connection.close()

    def talk(self, raw: bytes, seconds: float = 10, port: int | None = None) -> bytes:
        """Send these very bytes; all that comes back until the guard closes the connection."""
        with socket.create_connection(("127.0.0.1", port or self.port), 5) as connection:
            connection.settimeout(seconds)
            connection.sendall(raw)
            return _all(connection)

    # its books

    def cli(self, *arguments: str) -> Any:
        """A verb of the command line on this guard, as JSON."""
        command = [str(SPIRITSAFE), *arguments, "--config", str(self.config_file), "--json"]
        done = subprocess.run(
            command, capture_output=True, text=True, env=os.environ | {"UPSTREAM_KEY": UPSTREAM_KEY}, check=False
        )
        assert done.returncode == 0, f"{arguments}: {done.stderr or done.stdout}"
        return json.loads(done.stdout)

    def new_key(self, name: str = "acme", *options: str) -> str:
        """A key by the command line, as an operator makes it."""
        account = self.cli("accounts", "add", name, *options)["id"]
        key = str(self.cli("accounts", "key", "issue", account)["key"])
        self.wait_for_keys(key)
        return key

    def new_keys(self, *names: str, tier: str = "default", scopes: tuple[str, ...] = ("inference",)) -> dict[str, str]:
        """Keys of many new accounts, by name."""

        async def make(store: KeyStore, _: GuardConfig) -> dict[str, str]:
            made = {}
            for name in names:
                account = await store.add(name, tier=tier)
                made[name] = (await store.issue_key(account.id, scopes=scopes)).text
            return made

        made = with_store(self.config_file, make)
        self.wait_for_keys(*made.values())
        return made

    def wait_for_keys(self, *keys: str) -> None:
        """Until every worker that runs knows them; each looks for new ones twice a second."""
        deadline, seen = time.monotonic() + 10, 0
        while self.process is not None and seen < 4 * self.workers:  # connections go to workers at random
            assert time.monotonic() < deadline, self.log[-2000:]
            known = all(self.get("/v1/models", key).status != 401 for key in keys[-1:])
            seen = seen + 1 if known else 0
            time.sleep(0 if known else 0.05)

    def rows(self) -> list[dict[str, Any]]:
        """The ledger's rows."""

        async def read() -> list[dict[str, Any]]:
            async with await Database.open(self.config.state.database) as db:
                return [row async for row in read_ledger(db)]

        return asyncio.run(read())

    def totals(self) -> dict[tuple[str, str], dict[str, Any]]:
        """The running sums by (scope, window)."""

        async def read() -> dict[tuple[str, str], dict[str, Any]]:
            async with await Database.open(self.config.state.database) as db:
                found = await db.fetch("SELECT * FROM totals")
                return {(row["scope"], row["time_window"]): dict(row) for row in found}

        return asyncio.run(read())

    def assert_verifies(self) -> None:
        async def check() -> Any:
            async with await Database.open(self.config.state.database) as db:
                return await verify_ledger(db)

        found = asyncio.run(check())
        assert found.ok, found.problems

    def assert_no_secrets(self, *keys: str, said: bytes = b"") -> None:
        """No key, no prompt and no secret of the guard in its log or in `said`."""
        secrets = json.loads((self.folder / "guard.secrets").read_text())
        words = [secrets["pepper"], secrets["signing_key"]]
        for word in (*keys, *(key.rpartition("_")[2] for key in keys), UPSTREAM_KEY, SECRET_PROMPT, "xyzzy", *words):
            assert word not in self.log, f"{word[:6]}… in the log"
            assert word.encode() not in said, f"{word[:6]}… in an answer"


def _all(connection: socket.socket) -> bytes:
    parts = []
    with contextlib.suppress(TimeoutError, ConnectionResetError):
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


def answers_of(raw: bytes) -> list[Answer]:
    """The answers with a length in a connection's bytes, in order."""
    found = []
    while raw:
        head, _, rest = raw.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        size = int(headers["content-length"])
        found.append(Answer(int(lines[0].split()[1]), headers, rest[:size]))
        raw = rest[size:]
    return found


@contextlib.contextmanager
def guarding(folder: Path, mock: Mock, faults: Mapping[str, str] | None = None, **changes: Any) -> Iterator[Guarded]:
    """A started guard. `workers`, `patch`, `environment`, `limit`, `name` as in Guarded; the rest changes its YAML."""
    options = {k: changes.pop(k) for k in ("workers", "patch", "environment", "limit", "name") if k in changes}
    guard = Guarded(folder, guard_settings(folder, mock, faults or {}, **changes), **options)
    guard.start()
    try:
        yield guard
    finally:
        if guard.process is not None:
            guard.stop(signal.SIGKILL)
