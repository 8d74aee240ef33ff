"""Real services for tests: each session starts its own Postgres and Redis on loopback, and stops them."""

from __future__ import annotations

import asyncio
import contextlib
import glob
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_port(port: int, process: subprocess.Popen[Any], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert process.poll() is None, f"{process.args} ended with {process.returncode}"
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.2):
            return
        time.sleep(0.02)
    raise AssertionError(f"{process.args} does not answer on port {port}")


@dataclass
class Service:
    """A server that a test may kill and start again on the same port, with the same data."""

    command: list[str]
    port: int
    folder: Path
    user: str | None = None
    process: subprocess.Popen[Any] | None = None

    def start(self) -> None:
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                cwd=self.folder,
                user=self.user,
                group=self.user,
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
            )
        wait_for_port(self.port, self.process)

    def kill(self, number: int = signal.SIGKILL) -> None:
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)
        self.process.wait(20)


def redis_service(folder: Path) -> Service:
    binary = shutil.which("redis-server")
    if binary is None:
        pytest.skip("redis-server is not installed")
    port = free_port()
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", str(folder)]
    return Service([binary, *options], port, folder)


def postgres_service(folder: Path) -> Service:
    """A cluster of its own; Postgres refuses to run as root, so root lends it to the user `postgres`."""
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin/postgres")) or [shutil.which("postgres") or ""]
    if not found[-1]:
        pytest.skip("postgres is not installed")
    user = None
    if os.geteuid() == 0:
        user = "postgres"
        shutil.chown(folder, user, user)
        assert pwd.getpwnam(user)
    binaries = Path(found[-1]).parent
    subprocess.run(
        [binaries / "initdb", "-D", folder / "data", "-A", "trust", "-U", "postgres", "-N", "-E", "UTF8"],
        check=True, capture_output=True, user=user, group=user, cwd=folder,
    )  # fmt: skip
    port = free_port()
    options = ["-D", str(folder / "data"), "-p", str(port), "-h", "127.0.0.1", "-k", str(folder), "-c", "fsync=off"]
    return Service([str(binaries / "postgres"), *options], port, folder, user)


@contextlib.contextmanager
def running(make: Any) -> Iterator[Service]:
    # not pytest's tmp_path: it is closed to other users, and a socket's path must be short
    folder = Path(tempfile.mkdtemp(prefix="svc-", dir="/tmp"))
    folder.chmod(0o755)
    try:
        service = make(folder)
        service.start()
        yield service
        service.kill()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def new_postgres_database(port: int) -> str:
    """The URL of a fresh, empty database on that server."""
    import asyncpg

    name = f"t{uuid.uuid4().hex[:12]}"

    async def create() -> None:
        for attempt in range(100):
            try:
                connection = await asyncpg.connect(f"postgresql://postgres@127.0.0.1:{port}/postgres")
                break
            except (asyncpg.CannotConnectNowError, OSError):
                if attempt == 99:
                    raise
                await asyncio.sleep(0.1)
        await connection.execute(f"CREATE DATABASE {name}")
        await connection.close()

    asyncio.run(create())
    return f"postgresql://postgres@127.0.0.1:{port}/{name}"
