"""`pip install spiritsafe[guard]` alone: the guard starts and answers, and torch is nowhere."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

import services

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
CONFIG = """
listen: 127.0.0.1:{public}
admin: 127.0.0.1:{admin}
upstreams: [{{name: u, base_url: "http://127.0.0.1:{closed}/v1", models: [m], price: {{input_per_mtok: 1, output_per_mtok: 1}}}}]
tiers: {{default: {{usd_per_day: 1}}}}
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of a fresh environment that holds the guard and what it needs."""
    folder = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    pip = [folder / "bin/pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "-c", ROOT / "constraints.txt", f"{ROOT}[guard]"], check=True, cwd=folder)
    return folder / "bin"


@pytest.fixture
def serving(installed: Path, tmp_path: Path) -> Iterator[str]:
    """The guard as a process of its own; its public address."""
    ports = [services.free_port() for _ in range(3)]
    config = CONFIG.format(public=ports[0], admin=ports[1], closed=ports[2])
    (tmp_path / "guard.yaml").write_text(config)
    command = [installed / "spiritsafe", "serve", "guard.yaml"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        services.wait_for_port(ports[0], process)
        yield f"http://127.0.0.1:{ports[0]}"
        process.send_signal(signal.SIGTERM)
        assert process.wait(40) == 0, process.stderr and process.stderr.read()


def spiritsafe(installed: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [installed / "spiritsafe", *arguments], capture_output=True, text=True, cwd=folder, env=environment, timeout=60
    )


def test_nothing_heavy_is_installed(installed: Path) -> None:
    listed = subprocess.run([installed / "pip", "list", "--format=json"], capture_output=True, check=True).stdout
    names = {package["name"].lower() for package in json.loads(listed)}
    assert "spiritsafe" in names
    assert not names & {
        "torch",
        "transformers",
        "pyarrow",
        "numba",
        "scipy",
        "pandas",
        "redis",
        "asyncpg",
        "opentelemetry-sdk",
    }


@pytest.mark.parametrize("command", [["serve"], ["accounts", "add"], ["ledger", "verify"]], ids=" ".join)
def test_help_works(installed: Path, tmp_path: Path, command: list[str]) -> None:
    done = spiritsafe(installed, tmp_path, *command, "--help")
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


def test_it_serves_and_stops(installed: Path, serving: str, tmp_path: Path) -> None:
    with urllib.request.urlopen(f"{serving}/healthz", timeout=10) as reply:
        assert json.load(reply) == {"status": "ok"}
    added = spiritsafe(installed, tmp_path, "accounts", "add", "acme", "--json")
    assert added.returncode == 0, added.stderr
    issued = spiritsafe(installed, tmp_path, "accounts", "key", "issue", "acme", "--json")
    assert issued.returncode == 0, issued.stderr
    key = json.loads(issued.stdout)["key"]
    request = urllib.request.Request(f"{serving}/v1/models", headers={"Authorization": f"Bearer {key}"})
    deadline = time.monotonic() + 20
    while (status := answer(request)[0]) == 401 and time.monotonic() < deadline:
        time.sleep(0.05)  # what another process changed is seen within a second
    assert status == 200
    assert [card["id"] for card in json.loads(answer(request)[1])["data"]] == ["m"]


def answer(request: urllib.request.Request) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(request, timeout=10) as reply:
            return reply.status, reply.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def test_what_is_missing_is_named(installed: Path, tmp_path: Path) -> None:
    """Optional parts say which extra brings them."""
    config = CONFIG.format(public=services.free_port(), admin=services.free_port(), closed=services.free_port())
    more = 'state: {limits: "redis://127.0.0.1:1/0"}\notel: {endpoint: "http://127.0.0.1:1/v1/traces"}\n'
    (tmp_path / "guard.yaml").write_text(config + more)
    checked = spiritsafe(installed, tmp_path, "serve", "guard.yaml", "--check", "--json")
    assert checked.returncode == 1, checked.stderr
    said = " ".join(finding["message"] for finding in json.loads(checked.stdout)["findings"])
    assert "pip install 'spiritsafe[redis]'" in said and "pip install 'spiritsafe[otel]'" in said
