"""The gateways that are measured: ours, and its peers in environments of their own outside this repository.

    python benchmarks/guard_peers.py --install      (a few minutes; folder: --peers, ~/.cache/spiritsafe-bench)

LiteLLM needs its own environment: within this project's constraints pip silently picks 0.6.6. vllm-router does no
accounting at all and Portkey's open-source gateway no accounts: they stand here for the cost of passing requests on.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from guard_load import Target, family

HERE = Path(__file__).parent
PEERS = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "spiritsafe-bench"
LITELLM, ROUTER, PORTKEY = "1.106.2", "0.1.17", "1.15.2"
PROMPT = "In one or two sentences: what does this function do, and when would you rather not call it? " * 6
MODEL = "gpt-4o-mini"  # one that LiteLLM's own price table knows: it looks long for others
PRICE = {"input_per_mtok": 0.15, "output_per_mtok": 0.60}
BODY = {
    "model": "gpt-4o-mini",
    "messages": [{"role": "user", "content": PROMPT[:560]}],
    "max_tokens": 64,
    "temperature": 0.7,
}
CPU_ENV = {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}


@dataclass
class Side:
    """A gateway that runs: whom to ask, and whose CPU and memory count."""

    name: str
    target: Target
    pid: int = 0
    folder: Path | None = None
    notes: dict[str, Any] = field(default_factory=dict)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def folder_of(peers: Path, name: str) -> Path:
    return peers / f"{name}-{ {'litellm': LITELLM, 'vllm-router': ROUTER, 'portkey': PORTKEY}[name] }"


def install(peers: Path) -> None:
    peers.mkdir(parents=True, exist_ok=True)
    for name, wanted in (("litellm", f"litellm[proxy]=={LITELLM}"), ("vllm-router", f"vllm-router=={ROUTER}")):
        subprocess.run([sys.executable, "-m", "venv", folder_of(peers, name)], check=True)
        subprocess.run([folder_of(peers, name) / "bin" / "pip", "install", "--quiet", wanted], check=True)
    folder_of(peers, "portkey").mkdir(exist_ok=True)
    subprocess.run(
        ["npm", "install", "--no-audit", "--no-fund", "--prefix", ".", f"@portkey-ai/gateway@{PORTKEY}"],
        cwd=folder_of(peers, "portkey"), check=True,
    )  # fmt: skip


def versions(peers: Path) -> dict[str, str]:
    """What is installed; asserts that it is what the numbers are for."""
    script = "import importlib.metadata as m, sys; print(m.version(sys.argv[1]))"
    found = {}
    for name, wanted in (("litellm", LITELLM), ("vllm-router", ROUTER)):
        python = folder_of(peers, name) / "bin" / "python"
        assert python.exists(), f"{python} is missing: run benchmarks/guard_peers.py --install"
        found[name] = subprocess.run([python, "-c", script, name], capture_output=True, text=True).stdout.strip()
        assert found[name] == wanted, f"{name} {found[name]} is installed, but the numbers are for {wanted}"
    package = folder_of(peers, "portkey") / "node_modules/@portkey-ai/gateway/package.json"
    assert package.exists(), f"{package} is missing: run benchmarks/guard_peers.py --install"
    found["portkey"] = json.loads(package.read_text())["version"]
    assert found["portkey"] == PORTKEY, f"portkey {found['portkey']} is installed, but the numbers are for {PORTKEY}"
    return found


@contextlib.contextmanager
def process(command: list[Any], log: Path, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A server in a session of its own, killed with all its children at the end."""
    with log.open("ab") as stream:
        running = subprocess.Popen(
            [str(part) for part in command], stdout=stream, stderr=stream, start_new_session=True, **options
        )
    try:
        yield running
    finally:
        children = family(running.pid)
        running.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            running.wait(10)
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        running.wait(10)


@contextlib.contextmanager
def mock(log: Path | None = None) -> Iterator[int]:
    """The port of a mock upstream (guard_mock.py)."""
    command = [sys.executable, str(HERE / "guard_mock.py"), *([f"--log={log}"] if log else [])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield int(server.stdout.readline())
        finally:
            server.kill()


def answered(target: Target, running: subprocess.Popen[bytes], log: Path, seconds: float = 120) -> None:
    """Wait until the gateway answers a completion with 200."""
    deadline = time.monotonic() + seconds
    said = b""
    while time.monotonic() < deadline:
        assert running.poll() is None, f"{running.args} ended with {running.returncode}: {log.read_text()[-2000:]}"
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", target.port), 5) as raw:
            raw.sendall(target.raw())
            said = raw.recv(4096)
            if said.startswith(b"HTTP/1.1 200"):
                return
        time.sleep(0.2)
    raise AssertionError(f"no answer of {running.args}: {said[:500]!r} {log.read_text()[-2000:]}")


@contextlib.contextmanager
def litellm(peers: Path, folder: Path, upstream: int, mode: str = "", budget: float | None = None) -> Iterator[Side]:
    """The proxy with a master key. Budgets per virtual key need its Postgres schema, whose engine pip does not bring;
    `budget` (USD) sets its per-deployment budget instead, which needs no database."""
    port, key = free_port(), "sk-bench-0123456789"
    params: dict[str, Any] = {"model": f"openai/{MODEL}", "api_base": f"http://127.0.0.1:{upstream}{mode}/v1"}
    params["api_key"] = "none"
    if budget is not None:
        params |= {"max_budget": budget, "budget_duration": "1d"}
    config = {
        "model_list": [{"model_name": MODEL, "litellm_params": params}],
        "general_settings": {"master_key": key, "disable_spend_logs": True},
        "litellm_settings": {"telemetry": False, "num_retries": 0},
    }
    (folder / "litellm.json").write_text(json.dumps(config))  # JSON is YAML
    command = [folder_of(peers, "litellm") / "bin" / "litellm", "--config", folder / "litellm.json"]
    command += ["--host", "127.0.0.1", "--port", port, "--num_workers", 1]
    environment = {"LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_MODE": "PRODUCTION"}
    target = Target(port, BODY, "/v1/chat/completions", {"Authorization": f"Bearer {key}"})
    log = folder / "litellm.log"
    with process(command, log, env=os.environ | CPU_ENV | environment, cwd=folder) as running:
        answered(target, running, log)
        yield Side("litellm", target, running.pid, folder)


@contextlib.contextmanager
def vllm_router(peers: Path, folder: Path, upstream: int, mode: str = "") -> Iterator[Side]:
    port = free_port()
    command = [folder_of(peers, "vllm-router") / "bin" / "vllm-router", "--host", "127.0.0.1", "--port", port]
    command += [
        "--worker-urls",
        f"http://127.0.0.1:{upstream}{mode}",
        "--policy",
        "round_robin",
        "--log-level",
        "error",
    ]
    command += ["--prometheus-port", free_port(), "--max-concurrent-requests", 2048]
    log, target = folder / "vllm-router.log", Target(port, BODY)
    with process(command, log, cwd=folder) as running:
        answered(target, running, log)
        yield Side("vllm-router", target, running.pid, folder)


@contextlib.contextmanager
def portkey(peers: Path, folder: Path, upstream: int, mode: str = "") -> Iterator[Side]:
    port = free_port()
    script = folder_of(peers, "portkey") / "node_modules/@portkey-ai/gateway/build/start-server.js"
    headers = {"Authorization": "Bearer none", "x-portkey-provider": "openai"}
    headers["x-portkey-custom-host"] = f"http://127.0.0.1:{upstream}{mode}/v1"
    log, target = folder / "portkey.log", Target(port, BODY, "/v1/chat/completions", headers)
    environment = os.environ | {"NODE_ENV": "production"}
    with process(["node", script, f"--port={port}", "--headless"], log, cwd=folder, env=environment) as running:
        answered(target, running, log)
        yield Side("portkey", target, running.pid, folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--install", action="store_true")
    parser.add_argument("--peers", type=Path, default=PEERS)
    given = parser.parse_args()
    if given.install:
        install(given.peers)
    print(json.dumps(versions(given.peers)))
