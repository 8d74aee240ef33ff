"""Checks of what a guard keeps: files and folders, the database, the limits' state, and whether their clocks agree."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from spiritsafe.errors import BadInput, SpiritsafeError
from spiritsafe.serve._check import Finding
from spiritsafe.serve._config import GuardConfig

__all__ = ["check_database", "check_files", "check_limits"]

_REMOTE = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "ceph", "glusterfs", "lustre", "afs", "virtiofs"}
_VOLATILE = {"tmpfs", "ramfs"}
_ROOM_MB = 512
_CLOCK_S = 1.0
_SQLITE = "sqlite:///"


async def check_files(config: GuardConfig) -> list[Finding]:
    """The journal's folder and the file of secrets."""
    return [*_folder("state.journal", config.state.journal_folder), *_secrets(config.state.secrets)]


async def check_database(config: GuardConfig) -> list[Finding]:
    """Whether the database answers, its schema, its durability and its clock."""
    url = config.state.database
    if url.startswith(_SQLITE):
        return await _sqlite(url)
    return await _postgres(url)


async def check_limits(config: GuardConfig) -> list[Finding]:
    """Whether Redis answers, forgets nothing, and agrees on the time."""
    if config.state.limits == "memory":
        return [Finding("ok", "state.limits", "in memory: for one process; lifetime sums come from the ledger")]
    import redis.asyncio
    from redis.exceptions import RedisError

    client = redis.asyncio.from_url(config.state.limits, socket_connect_timeout=5, socket_timeout=5)
    found = []
    try:
        seconds, micros = await client.time()
        found.append(Finding("ok", "state.limits", f"Redis {(await client.info('server'))['redis_version']} answers"))
        found += _clock("Redis", seconds + micros / 1e6)
        with contextlib.suppress(RedisError):  # managed services do not show their settings
            policy = (await client.config_get("maxmemory-policy")).get("maxmemory-policy", "noeviction")
            room = int((await client.config_get("maxmemory")).get("maxmemory") or 0)
            if room and policy != "noeviction":
                found.append(
                    _warn(
                        "state.limits",
                        f"Redis evicts when full ({policy}), limits among it; set maxmemory-policy noeviction",
                    )
                )
    except (RedisError, OSError) as error:
        found.append(
            Finding(
                "error",
                "state.limits",
                f"Redis does not answer ({_short(error)}); check address, password and that it runs",
            )
        )
    finally:
        await client.aclose()
    return found


async def _sqlite(url: str) -> list[Finding]:
    from spiritsafe.state import Database

    path = Path(url.removeprefix(_SQLITE))
    found, there = _database_file(path)
    if there:
        with _outdated(found):
            async with await Database.open(url, migrate=False) as db:
                (row,) = await db.fetch("SELECT count(*) AS n FROM accounts")
                found.append(Finding("ok", "state.database", f"SQLite, {row['n']} accounts"))
    return found


def _database_file(path: Path) -> tuple[list[Finding], bool]:
    """What was found about a SQLite file and its folder, and whether it is there to be opened."""
    found = _folder("state.database", path.parent, made=False)
    if any(finding.level == "error" for finding in found):
        return found, False
    if not path.exists():
        return [*found, _will_be_made("state.database", path)], False
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        found.append(_warn("state.database", f"others may read {path} (mode {mode:04o}); run: chmod 600 {path}"))
    return found, True


async def _postgres(url: str) -> list[Finding]:
    from spiritsafe.state import Database

    found: list[Finding] = []
    with _outdated(found):
        async with await Database.open(url, migrate=False) as db:
            (row,) = await db.fetch(
                "SELECT current_setting('server_version') AS version, current_setting('fsync') AS fsync,"
                " current_setting('synchronous_commit') AS commits, pg_is_in_recovery() AS replica,"
                " extract(epoch FROM clock_timestamp())::float8 AS now, (SELECT count(*) FROM accounts) AS n"
            )
            found.append(Finding("ok", "state.database", f"Postgres {row['version']}, {row['n']} accounts"))
            found += _clock("Postgres", float(row["now"]))
            if row["replica"]:
                found.append(Finding("error", "state.database", "this server is a read-only replica; name the primary"))
            if row["fsync"] == "off" or row["commits"] == "off":
                found.append(
                    _warn(
                        "state.database",
                        f"fsync is {row['fsync']}, synchronous_commit {row['commits']}: a crash of that server loses"
                        " ledger rows; turn both on",
                    )
                )
    return found


@contextlib.contextmanager
def _outdated(found: list[Finding]) -> Iterator[None]:
    """A schema that the next start brings up to date is something to know; all else is an error."""
    try:
        yield
    except BadInput as error:
        if "older than this version" in str(error):
            found.append(
                _warn(
                    "state.database",
                    "its schema is empty or older; the next start brings it up to date: back it up first",
                )
            )
        else:
            found.append(Finding("error", "state.database", str(error)))
    except SpiritsafeError as error:
        found.append(Finding("error", "state.database", str(error)))


def _secrets(path: Path) -> list[Finding]:
    from spiritsafe.serve._secrets import GuardSecrets

    if not path.exists():
        return [*_folder("state.secrets", path.parent, made=False), _will_be_made("state.secrets", path)]
    try:
        GuardSecrets.load(path)
    except BadInput as error:
        return [Finding("error", "state.secrets", str(error))]
    return [Finding("ok", "state.secrets", f"{path}; without it no key works: keep a copy elsewhere")]


def _will_be_made(what: str, path: Path) -> Finding:
    return Finding("ok", what, f"{path} will be made at the first start")


def _folder(what: str, folder: Path, *, made: bool = True) -> list[Finding]:
    """Whether a folder can be written, lasts, is local and has room. made: the guard makes it if it is absent."""
    existing = folder
    while made and not existing.exists() and existing != existing.parent:
        existing = existing.parent
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        return [
            Finding(
                "error", what, f"{folder}: cannot be written ({error.strerror}); create it, or give it to this user"
            )
        ]
    found = []
    kind = _filesystem(existing)
    if kind in _REMOTE:
        found.append(
            Finding(
                "error",
                what,
                f"{folder} is on a network disk ({kind}), where locks and writes may be lost; choose a local one",
            )
        )
    elif kind in _VOLATILE:
        found.append(_warn(what, f"{folder} is in memory ({kind}): a reboot loses it; choose a disk"))
    free = shutil.disk_usage(existing).free >> 20
    if free < _ROOM_MB:
        found.append(_warn(what, f"{folder} has {free} MiB left; make room"))
    return found or ([Finding("ok", what, str(folder))] if made else [])


def _filesystem(folder: Path) -> str:
    """The type of the file system a folder is on, as the kernel names it; "" where it does not say."""
    where = os.path.realpath(folder)
    best, kind = "", ""
    try:
        mounts = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    for line in mounts.splitlines():
        fields = line.split(" ")
        point = fields[1].encode().decode("unicode_escape")
        inside = where == point or where.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, fields[2]
    return kind


def _clock(whose: str, there: float) -> list[Finding]:
    apart = there - time.time()
    if abs(apart) <= _CLOCK_S:
        return []
    return [_warn("clock", f"{whose}'s clock is {apart:+.1f} s from this machine's; run an NTP client on both")]


def _short(error: BaseException) -> str:
    return " ".join((str(error) or type(error).__name__).split())[:200]


def _warn(what: str, message: str) -> Finding:
    return Finding("warning", what, message)
