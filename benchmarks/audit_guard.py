"""A real teacher behind a real guard, as processes of their own, for the studies of audits.

folder/guard.yaml, guard.db   the guard's            folder/twins.jsonl, ledger.jsonl   what its operator exports
folder/ports.json             where they answer, the same when a study goes on: a recipe names the address
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai

__all__ = ["MODEL", "SPIRITSAFE", "Guarded", "export", "guarded", "spiritsafe", "teaching"]

SPIRITSAFE = Path(sys.executable).parent / "spiritsafe"
MODEL = "smollm2"
_STARTS_S = 900


def spiritsafe(config: Path, *arguments: str) -> Any:
    """Run a verb of the command line on that guard; what it prints as JSON."""
    command = [str(SPIRITSAFE), *arguments, "--config", str(config), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(arguments)}: {done.stderr or done.stdout}"
    return json.loads(done.stdout)


class Guarded:
    """A guard that serves. `config`: its file."""

    def __init__(self, config: Path, url: str) -> None:
        self.config, self.url = config, url

    def account(self, name: str) -> tuple[str, str]:
        """A new account that has accepted the terms: its id and a key."""
        account = str(spiritsafe(self.config, "accounts", "add", name)["id"])
        spiritsafe(self.config, "accounts", "terms", "accept", account, "--version", "1")
        return account, str(spiritsafe(self.config, "accounts", "key", "issue", account)["key"])

    def ask(self, key: str, prompts: Sequence[str], **sampling: Any) -> list[str]:
        """What a customer gets who sends each prompt once, 16 at a time."""
        with openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=2, timeout=600) as client:

            def one(prompt: str) -> str:
                reply = client.chat.completions.create(
                    model=MODEL, messages=[{"role": "user", "content": prompt}], **sampling
                )
                return reply.choices[0].message.content or ""

            with ThreadPoolExecutor(16) as pool:
                return list(pool.map(one, prompts))


@contextlib.contextmanager
def guarded(folder: Path, weights: Path | str, twin_share: float = 1.0, keys: Path | None = None) -> Iterator[Guarded]:
    """Serve the model behind a guard until the block ends; with `keys`, every reply is marked."""
    with teaching(folder, weights, keys) as teacher:
        public, admin = _ports(folder)[1:]
        config = folder / "guard.yaml"
        settings = {
            "listen": f"127.0.0.1:{public}",
            "admin": f"127.0.0.1:{admin}",
            "state": {"database": f"sqlite:///{folder / 'guard.db'}", "secrets": str(folder / "guard.secrets")},
            "upstreams": [
                {
                    "name": "local",
                    "base_url": teacher,
                    "models": [MODEL],
                    "price": {"input_per_mtok": 0.1, "output_per_mtok": 0.4},
                }
            ],
            "terms": {"version": "1", "url": "https://example.org/terms"},
            "tiers": {"default": {"twin_share": twin_share, "watermark": keys is not None}},
            "watermark": None if keys is None else {"keys": str(keys)},
            "logs": {"requests": "none"},
        }
        config.write_text(json.dumps(settings))  # JSON is YAML
        with _process([SPIRITSAFE, "serve", config], folder / "guard.log"):
            url = f"http://127.0.0.1:{public}"
            _answers(f"{url}/healthz", folder / "guard.log")
            yield Guarded(config, url)


@contextlib.contextmanager
def teaching(folder: Path, weights: Path | str, keys: Path | None = None) -> Iterator[str]:
    """Serve the model by itself until the block ends: its base URL. keys: the key set that marks what is asked for."""
    port = _ports(folder)[0]
    serve = [SPIRITSAFE, "teachers", "run", weights, "--port", port, "--name", MODEL]
    with _process([*serve, *(() if keys is None else ("--watermark", keys))], folder / "teacher.log"):
        _answers(f"http://127.0.0.1:{port}/v1/models", folder / "teacher.log")
        yield f"http://127.0.0.1:{port}/v1"


def export(config: Path) -> None:
    """Write `twins.jsonl` (opened) and `ledger.jsonl` beside the guard's config."""
    folder = config.parent
    (folder / "twins.jsonl").unlink(missing_ok=True)
    spiritsafe(config, "evidence", "twins", "export", "--out", str(folder / "twins.jsonl"))
    spiritsafe(config, "ledger", "export", "--all", "--out", str(folder / "ledger.jsonl"))


def _ports(folder: Path) -> list[int]:
    """Of the teacher, the guard and its admin."""
    file = folder / "ports.json"
    if not file.exists():
        with contextlib.ExitStack() as held:
            probes = [held.enter_context(socket.socket()) for _ in range(3)]
            for probe in probes:
                probe.bind(("127.0.0.1", 0))
            file.write_text(json.dumps([probe.getsockname()[1] for probe in probes]))
    return [int(port) for port in json.loads(file.read_text())]


@contextlib.contextmanager
def _process(command: Sequence[Any], log: Path) -> Iterator[None]:
    with log.open("ab") as stream:
        running = subprocess.Popen(
            [str(part) for part in command], stdout=stream, stderr=stream, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
    try:
        yield
    finally:
        running.send_signal(signal.SIGTERM)
        try:
            running.wait(20)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()


def _answers(url: str, log: Path) -> None:
    until = time.monotonic() + _STARTS_S
    while time.monotonic() < until:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
            if answer.status == 200:
                return
        time.sleep(0.3)
    raise SystemExit(f"{url} does not answer; see {log}")
