"""Our guard as it is measured: a real process with everything on.

Accounts and keys, accepted terms, six limits on the tier and more on the model, ledger and journal on disk, sketches,
metrics, and a log line for each request (to /dev/null).
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from guard_load import Target
from guard_peers import BODY, CPU_ENV, PRICE, Side, answered, free_port, process

SPIRITSAFE = Path(sys.executable).parent / "spiritsafe"
TIER = {
    "requests_per_min": 10**8, "tokens_per_min": 10**11, "usd_per_day": 10**6, "usd_per_month": 10**6,
    "usd_lifetime": 9 * 10**6, "concurrency": 10**5,
}  # fmt: skip


def write_config(
    folder: Path,
    upstream: int,
    mode: str = "",
    tier: dict[str, Any] | None = None,
    price: dict[str, float] | None = None,
    **more: Any,
) -> Path:
    """`folder`/guard.yaml; `more` replaces whole sections."""
    config = {
        "listen": f"127.0.0.1:{free_port()}",
        "admin": f"127.0.0.1:{free_port()}",
        "state": {"database": f"sqlite:///{folder / 'guard.db'}", "secrets": str(folder / "guard.secrets")},
        "upstreams": [
            {
                "name": "mock",
                "base_url": f"http://127.0.0.1:{upstream}{mode}/v1",
                "models": [BODY["model"]],
                "price": PRICE if price is None else price,
            }
        ],
        "terms": {"version": "2026-11", "url": "https://example.org/terms"},
        "tiers": {"default": TIER if tier is None else tier},
        **more,
    }
    path = folder / "guard.yaml"
    path.write_text(json.dumps(config))  # JSON is YAML
    return path


def spiritsafe(config: Path, *arguments: str) -> Any:
    """Run a verb of the command line on that guard; what it prints as JSON."""
    command = [str(SPIRITSAFE), *arguments, "--config", str(config), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(arguments)}: {done.stderr or done.stdout}"
    return json.loads(done.stdout)


def new_key(config: Path, name: str = "bench") -> str:
    """A key of a new account that has accepted the terms."""
    account = spiritsafe(config, "accounts", "add", name)["id"]
    spiritsafe(config, "accounts", "terms", "accept", account, "--version", "2026-11")
    return str(spiritsafe(config, "accounts", "key", "issue", account)["key"])


@contextlib.contextmanager
def redis(folder: Path) -> Iterator[str]:
    """The URL of a Redis of our own."""
    port = free_port()
    command = ["redis-server", "--port", port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    with process(command, folder / "redis.log", cwd=folder):
        yield f"redis://127.0.0.1:{port}/0"


@contextlib.contextmanager
def guard(
    folder: Path, upstream: int, mode: str = "", *, workers: int = 1, limits: str = "memory", **more: Any
) -> Iterator[Side]:
    """The guard, ready: `limits` as in state.limits."""
    config = write_config(folder, upstream, mode, **more)
    key = new_key(config)
    settings = json.loads(config.read_text())
    settings["state"]["limits"] = limits
    config.write_text(json.dumps(settings))
    port = int(settings["listen"].rpartition(":")[2])
    target = Target(port, BODY, headers={"Authorization": f"Bearer {key}"})
    command = [SPIRITSAFE, "serve", config, "--workers", workers]
    with process(command, Path(os.devnull), env=os.environ | CPU_ENV, cwd=folder) as running:
        answered(target, running, Path(os.devnull))
        yield Side(f"guard x{workers} {limits.partition(':')[0]}", target, running.pid, folder, {"config": str(config)})
