"""`serve --check`: each thing that can be wrong is made wrong for real, and found; a sound guard has no complaint."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import json
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import redis

import services
from spiritsafe.config import parse_config
from spiritsafe.keys import new_keys
from spiritsafe.serve import _check_state
from spiritsafe.serve._check import Finding, check_guard
from spiritsafe.serve._config import GuardConfig
from spiritsafe.serve._secrets import GuardSecrets
from spiritsafe.state import Database
from spiritsafe.watermark._marking import Marking

KEY = "S3CRETs3cretS3CRET"
MARKING = Marking().model_dump(exclude_defaults=True)
Answers = dict[str, tuple[int, bytes]]


@contextlib.contextmanager
def answering(answers: Answers, key: str | None = None) -> Iterator[str]:
    """A server with these answers by path; the base URL."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = answers.get(self.path, (404, b"{}"))
            if key is not None and self.headers["authorization"] != f"Bearer {key}":
                status, body = 401, b"{}"
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def models(*names: str) -> tuple[int, bytes]:
    return 200, json.dumps({"data": [{"id": name} for name in names]}).encode()


@pytest.fixture
def upstream() -> Iterator[str]:
    with answering({"/v1/models": models("m", "n"), "/health": (200, b""), "/terms": (200, b"terms")}) as url:
        yield url


def config(folder: Path, url: str, **changes: Any) -> GuardConfig:
    """A sound guard, changed."""
    base: dict[str, Any] = {
        "listen": f"127.0.0.1:{services.free_port()}",
        "admin": f"127.0.0.1:{services.free_port()}",
        "state": {
            "database": f"sqlite:///{folder / 'guard.db'}",
            "journal": str(folder / "journal"),
            "secrets": str(folder / "guard.secrets"),
        },
        "upstreams": [
            {
                "name": "local",
                "base_url": f"{url}/v1",
                "models": ["m"],
                "price": {"input_per_mtok": 1, "output_per_mtok": 2},
            }
        ],
        "terms": {"version": "1", "url": f"{url}/terms"},
        "tiers": {"default": {"usd_per_day": 1}},
    }
    for name, value in changes.items():
        if name == "upstream":
            base["upstreams"][0] |= value
        elif name == "state":
            base["state"] |= value
        else:
            base[name] = value
    return parse_config(base, GuardConfig, where="test")


def found(given: GuardConfig, **more: Any) -> list[Finding]:
    return asyncio.run(check_guard(given, **more))


def complaints(given: GuardConfig, **more: Any) -> list[Finding]:
    return [finding for finding in found(given, **more) if finding.level != "ok"]


def only(given: GuardConfig, level: str, what: str, **more: Any) -> str:
    """The message of the one complaint there is."""
    (finding,) = complaints(given, **more)
    assert (finding.level, finding.what) == (level, what)
    return finding.message


def test_a_sound_guard_has_no_complaint_and_nothing_is_left_behind(tmp_path: Path, upstream: str) -> None:
    given = found(config(tmp_path, upstream))
    assert {finding.level for finding in given} == {"ok"}
    looked_at = {finding.what for finding in given}
    assert {
        "state.journal",
        "state.database",
        "state.secrets",
        "state.limits",
        "upstreams.local",
        "terms.url",
        "listen",
    } <= looked_at
    assert list(tmp_path.iterdir()) == []
    json.dumps([finding.to_dict() for finding in given])


@pytest.mark.parametrize(
    ("changes", "what", "said"),
    [
        ({"upstream": {"price": {"input_per_mtok": 0, "output_per_mtok": 0}}}, "upstreams.local.price", "costs nothing"),
        ({"prices": [{"from": "2026-11-01", "model": "gone", "input_per_mtok": 1, "output_per_mtok": 1}]}, "prices", "no upstream serves gone"),
        ({"limits": {"models": {"gone": {"usd_per_day": 1}}}}, "limits.models", "no upstream serves gone"),
        ({"limits": {"when_state_is_down": "open"}}, "limits.when_state_is_down", "nothing is limited"),
        ({"tiers": {"default": {}}}, "tiers.default", "no limit at all"),
        ({"tiers": {"default": {"usd_lifetime_per_day": 3}}}, "tiers.default", "no limit at all"),
        ({"tiers": {"default": {"usd_per_day": 1, "shadow": True}}}, "tiers.default.shadow", "none is enforced"),
        ({"terms": None}, "terms", "add terms"),
        ({"allow_fields": ["foo", "bar"]}, "allow_fields", "foo, bar: passed on unread"),
        ({"ledger": {"store_prompts": True}}, "ledger.store_prompts", "in clear"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_settings_that_are_valid_and_unwise(
    tmp_path: Path, upstream: str, changes: dict[str, Any], what: str, said: str
) -> None:
    assert said in only(config(tmp_path, upstream, **changes), "warning", what)


def test_twins_without_anything_to_consent_to(tmp_path: Path, upstream: str) -> None:
    tiers = {"default": {"usd_per_day": 1, "twin_share": 0.1}}
    assert complaints(config(tmp_path, upstream, tiers=tiers)) == []
    found = {f.what: f.message for f in complaints(config(tmp_path, upstream, tiers=tiers, terms=None))}
    assert "nobody can consent" in found["tiers.default.twin_share"]
    by_account = config(tmp_path, upstream, tiers=tiers, terms=None, twins={"consent": "account"})
    assert {finding.what for finding in complaints(by_account)} == {"terms"}


def test_environment_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UP_KEY", raising=False)
    monkeypatch.setenv("HOOK_KEY", "x")
    with answering({"/v1/models": models("m")}, key=KEY) as url:
        given = config(
            tmp_path,
            url,
            upstream={"api_key_env": "UP_KEY"},
            terms=None,
            webhooks=[{"url": url, "events": ["flagged"], "secret_env": "HOOK_KEY"}],
        )
        first, second = (c for c in complaints(given) if c.what != "terms")
        assert first.what == "upstreams.local.api_key_env" and "UP_KEY is not set" in first.message
        assert second.what == "upstreams.local" and "answers 401" in second.message
        monkeypatch.setenv("UP_KEY", KEY)
        assert [finding.what for finding in complaints(given)] == ["terms"]
        assert not any(KEY in finding.message for finding in found(given))


def test_watermark_keys(tmp_path: Path, upstream: str) -> None:
    tiers = {"default": {"usd_per_day": 1, "watermark": True}}
    keys = tmp_path / "keys.json"
    given = config(tmp_path, upstream, watermark={"keys": str(keys)}, tiers=tiers)
    assert "no such file" in only(given, "error", "watermark")
    made = new_keys(keys, marking=MARKING)
    (fine,) = [finding for finding in found(given) if finding.what == "watermark"]
    assert fine.level == "ok" and fine.message.startswith(made.id) and "gumbel-dual" in fine.message
    keys.chmod(0o644)
    assert "chmod 600" in only(given, "error", "watermark")
    keys.chmod(0o600)
    unused = config(tmp_path, upstream, watermark={"keys": str(keys)})
    assert "nothing is marked" in only(unused, "warning", "watermark")


def test_an_old_epoch_and_an_unknown_scheme(tmp_path: Path, upstream: str, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = tmp_path / "keys.json"
    monkeypatch.setattr("spiritsafe.keys._file.now", lambda: "2020-01-01T00:00:00Z")
    new_keys(keys, marking=MARKING)
    tiers = {"default": {"usd_per_day": 1, "watermark": True}}
    given = config(tmp_path, upstream, watermark={"keys": str(keys)}, tiers=tiers)
    assert "spiritsafe watermark keys rotate" in only(given, "warning", "watermark.keys")
    keys.unlink()
    new_keys(keys, marking={"scheme": "from-the-future"})
    assert "scheme" in only(given, "error", "watermark")


def test_the_journal_must_be_writable_local_and_lasting(
    tmp_path: Path, upstream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = config(tmp_path, upstream)
    (tmp_path / "journal").write_text("a file where a folder should be")
    assert "cannot be written" in only(given, "error", "state.journal")
    (tmp_path / "journal").unlink()
    monkeypatch.setattr(_check_state, "_filesystem", lambda folder: "nfs4")
    network = complaints(given)
    assert {finding.level for finding in network} == {"error"} and all(
        "network disk (nfs4)" in f.message for f in network
    )
    monkeypatch.setattr(_check_state, "_filesystem", lambda folder: "tmpfs")
    assert {finding.level for finding in complaints(given)} == {"warning"}
    monkeypatch.undo()
    monkeypatch.setattr(_check_state, "_ROOM_MB", 10**9)
    assert all("MiB left; make room" in finding.message for finding in complaints(given))


def test_the_kernel_is_believed_about_file_systems() -> None:
    assert _check_state._filesystem(Path("/proc/self")) == "proc"
    assert _check_state._filesystem(Path("/dev/shm")) == "tmpfs"


def test_secrets(tmp_path: Path, upstream: str) -> None:
    given = config(tmp_path, upstream)
    secrets = tmp_path / "guard.secrets"
    GuardSecrets.load(secrets)
    assert complaints(given) == []
    secrets.chmod(0o640)
    assert "chmod 600" in only(given, "error", "state.secrets")
    secrets.write_text("{}")
    secrets.chmod(0o600)
    assert "not a guard's secrets" in only(given, "error", "state.secrets")


def test_databases(tmp_path: Path, upstream: str, database_url: str) -> None:
    given = config(tmp_path, upstream, state={"database": database_url})
    if database_url.startswith("postgresql"):
        # fsync is off in the tests' own server, and said so once its schema is there
        assert "back it up first" in only(given, "warning", "state.database")

    async def make() -> None:
        async with await Database.open(database_url) as db:
            await db.execute("UPDATE alembic_version SET version_num = version_num")

    asyncio.run(make())
    said = complaints(given)
    assert next(f.message for f in found(given) if f.what == "state.database" and f.level == "ok").endswith(
        "0 accounts"
    )
    if database_url.startswith("postgresql"):
        assert [f.level for f in said] == ["warning"] and "fsync is off" in said[0].message
    else:
        assert said == []
        (tmp_path / "guard.db").chmod(0o644)
        assert "chmod 600" in only(given, "warning", "state.database")
        (tmp_path / "guard.db").chmod(0o600)

    async def age(version: str) -> None:
        async with await Database.open(database_url) as db:
            await db.execute("UPDATE alembic_version SET version_num = $1", version)

    asyncio.run(age("9999"))
    assert "newer than this version" in next(f for f in complaints(given) if f.level == "error").message


def test_databases_that_are_away_or_none(tmp_path: Path, upstream: str) -> None:
    away = config(
        tmp_path, upstream, state={"database": f"postgresql://guard:{KEY}@127.0.0.1:{services.free_port()}/guard"}
    )
    message = only(away, "error", "state.database")
    assert KEY not in message and "***" in message
    (tmp_path / "guard.db").write_text("no database" * 100)
    (tmp_path / "guard.db").chmod(0o600)
    assert "no SQLite database" in only(config(tmp_path, upstream), "error", "state.database")
    nowhere = config(tmp_path, upstream, state={"database": f"sqlite:///{tmp_path}/nowhere/guard.db"})
    assert "cannot be written" in only(nowhere, "error", "state.database")


def test_a_clock_that_is_wrong(
    tmp_path: Path, upstream: str, redis_port: int, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asyncio.run(_prepare(postgres_url))
    state = {"limits": f"redis://127.0.0.1:{redis_port}/3", "database": postgres_url}
    given = config(tmp_path, upstream, state=state)
    assert "clock" not in {finding.what for finding in found(given)}
    real = time.time
    monkeypatch.setattr(_check_state.time, "time", lambda: real() - 90)
    clocks = [finding.message for finding in complaints(given) if finding.what == "clock"]
    assert len(clocks) == 2 and all(" +90." in said and "NTP" in said for said in clocks)


async def _prepare(url: str) -> None:
    await (await Database.open(url)).aclose()


def test_redis(tmp_path: Path, upstream: str) -> None:
    with services.running(services.redis_service) as service:
        url = f"redis://127.0.0.1:{service.port}/0"
        given = config(tmp_path, upstream, state={"limits": url})
        assert complaints(given) == []
        with redis.Redis(port=service.port) as client:
            client.config_set("maxmemory", "100mb")
            client.config_set("maxmemory-policy", "allkeys-lru")
        assert "set maxmemory-policy noeviction" in only(given, "warning", "state.limits")
        with redis.Redis(port=service.port) as client:
            client.config_set("maxmemory-policy", "noeviction")
            client.config_set("requirepass", KEY)
        assert "password" in only(given, "error", "state.limits")
        right = config(tmp_path, upstream, state={"limits": url.replace("//", f"//:{KEY}@")})
        assert complaints(right) == []
    message = only(given, "error", "state.limits")
    assert "does not answer" in message and KEY not in message


def test_a_missing_package_is_named_with_its_extra(
    tmp_path: Path, upstream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "redis", None)
    monkeypatch.setitem(sys.modules, "redis.asyncio", None)
    said = {
        f.what: f.message for f in complaints(config(tmp_path, upstream, state={"limits": "redis://127.0.0.1:1/0"}))
    }
    assert said["packages"] == "run: pip install 'spiritsafe[redis]'"
    assert "redis" in said["limits"] and "not installed" in said["limits"]


def test_workers_need_limits_that_they_share(tmp_path: Path, upstream: str) -> None:
    assert "4 times every limit" in only(config(tmp_path, upstream), "error", "workers", workers=4)


@pytest.mark.parametrize(
    ("answers", "level", "what", "said"),
    [
        ({"/v1/models": models("other")}, "error", "upstreams.local.models", "does not list m; it has other"),
        ({"/v1/models": (500, b"")}, "error", "upstreams.local", "look at that server's log"),
        ({"/v1/models": (403, b"")}, "error", "upstreams.local", "does not take this key"),
        ({}, "warning", "upstreams.local", "could not be compared"),
        ({"/v1/models": (200, b"<html>")}, "warning", "upstreams.local", "not in OpenAI's form"),
        ({"/v1/models": (200, b'{"data": 3}')}, "warning", "upstreams.local", "not in OpenAI's form"),
        ({"/v1/models": (200, b'{"data": [{}]}')}, "warning", "upstreams.local", "not in OpenAI's form"),
    ],
)  # fmt: skip
def test_what_an_upstream_says_of_its_models(
    tmp_path: Path, answers: Answers, level: str, what: str, said: str
) -> None:
    with answering(answers | {"/terms": (200, b"")}) as url:
        assert said in only(config(tmp_path, url), level, what)


def test_an_upstream_that_is_away_silent_or_unhealthy(
    tmp_path: Path, upstream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = config(tmp_path, upstream, upstream={"base_url": f"http://127.0.0.1:{services.free_port()}/v1"})
    assert "cannot be reached (Connection refused); start that server" in only(away, "error", "upstreams.local")
    nowhere = config(tmp_path, upstream, upstream={"base_url": "http://no-such-host.invalid/v1"})
    assert re.search(r"cannot be reached \([A-Z][\w ]+\); start", only(nowhere, "error", "upstreams.local"))
    well = config(tmp_path, upstream, upstream={"health_path": "health"})
    assert complaints(well) == []
    ill = config(tmp_path, upstream, upstream={"health_path": "/nowhere"})
    assert "never be asked" in only(ill, "error", "upstreams.local.health_path")
    monkeypatch.setattr("spiritsafe.serve._check_upstreams._TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
        silent_one = config(tmp_path, upstream, upstream={"base_url": url})
        assert "does not answer within 0.2 s" in only(silent_one, "error", "upstreams.local")


def test_a_tokenizer_that_is_none(tmp_path: Path, upstream: str) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    given = config(tmp_path, upstream, upstream={"tokenizer": str(tmp_path)})
    assert "name a tokenizer.json or its folder" in only(given, "error", "upstreams.local.tokenizer")


def test_terms_that_cannot_be_read(tmp_path: Path, upstream: str) -> None:
    given = config(tmp_path, upstream, terms={"version": "1", "url": f"{upstream}/gone"})
    assert "answers 404" in only(given, "warning", "terms.url")


def test_addresses(tmp_path: Path, upstream: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert "already runs there" in only(config(tmp_path, upstream, listen=address), "error", "listen")
    outside = config(tmp_path, upstream, listen=f"0.0.0.0:{services.free_port()}", metrics_open=True)
    assert [(f.level, f.what) for f in complaints(outside)] == [("warning", "listen"), ("warning", "metrics_open")]
    admin = config(tmp_path, upstream, admin=f"0.0.0.0:{services.free_port()}")
    assert "loopback" in only(admin, "warning", "admin")
    proxies = config(tmp_path, upstream, trusted_proxies=["nginx.internal"])
    assert "10.0.0.0/8" in only(proxies, "error", "trusted_proxies")


def test_one_failure_does_not_hide_another(tmp_path: Path) -> None:
    closed = f"127.0.0.1:{services.free_port()}"
    state = {"database": f"postgresql://x@{closed}/x", "limits": f"redis://{closed}/0"}
    given = config(tmp_path, f"http://{closed}", state=state, watermark={"keys": str(tmp_path / "none")})
    errors = {finding.what for finding in complaints(given) if finding.level == "error"}
    assert errors == {"watermark", "state.database", "state.limits", "upstreams.local"}


def test_a_read_only_replica_is_no_database_for_a_ledger(tmp_path: Path, upstream: str, postgres_url: str) -> None:
    """A standby needs a second server; that it is refused is shown on a server that says it is one."""

    async def pretend() -> None:
        await _prepare(postgres_url)
        connection = await asyncpg.connect(postgres_url)
        await connection.execute(
            "CREATE SCHEMA fake; CREATE FUNCTION fake.pg_is_in_recovery() RETURNS boolean LANGUAGE sql AS 'SELECT true'"
        )
        name = postgres_url.rpartition("/")[2]
        await connection.execute(f"ALTER DATABASE {name} SET search_path = fake, public, pg_catalog")
        await connection.close()

    asyncio.run(pretend())
    errors = [
        finding.message
        for finding in complaints(config(tmp_path, upstream, state={"database": postgres_url}))
        if finding.level == "error"
    ]
    assert errors == ["this server is a read-only replica; name the primary"]


def test_file_limits(tmp_path: Path, upstream: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spiritsafe.serve._check.resource.getrlimit", lambda which: (256, 1024))
    assert "raise the limit" in only(config(tmp_path, upstream), "warning", "open files")
