"""Who may ask what: no route answers without a key, the admin's are not on the public port, and secrets stay secret."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

import pytest

from faults_kit import SECRET_PROMPT, Guarded, Mock, guarding, mocking

OPEN = {"/healthz", "/readyz"}
PUBLIC = (
    "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings", "/v1/models", "/v1/models/m",
    "/v1/usage", "/metrics", "/openapi.json",
)  # fmt: skip
ELSEWHERE = ("/", "/v1", "/v1/", "/docs", "/admin", "/admin/", "/admin/accounts", "/favicon.ico", "/v1/files", "/.env")
API = (
    "/admin", "/admin/", "/admin/accounts", "/admin/accounts/acme", "/admin/accounts/acme/suspend",
    "/admin/accounts/acme/restore", "/admin/accounts/acme/terms", "/admin/accounts/acme/usage",
    "/admin/accounts/acme/keys", "/admin/keys/x", "/admin/keys/x/revoke", "/admin/keys/x/rotate", "/admin/ladder",
    "/admin/ladder/account:x", "/admin/ledger", "/admin/ledger/verify", "/admin/status", "/admin/nowhere",
)  # fmt: skip
CONSOLE = (
    "/console/", "/console/accounts", "/console/accounts/acme", "/console/accounts/acme/keys",
    "/console/accounts/acme/rotate", "/console/accounts/acme/revoke", "/console/accounts/acme/settings",
    "/console/accounts/acme/suspend", "/console/accounts/acme/ladder", "/console/ladder", "/console/verify",
)  # fmt: skip
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD", "TRACE")


@pytest.fixture(scope="module")
def mock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mock]:
    with mocking(tmp_path_factory.mktemp("mock")) as mock:
        yield mock


@pytest.fixture(scope="module")
def guard(tmp_path_factory: pytest.TempPathFactory, mock: Mock) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("guard")
    terms = {"version": "2026-11", "url": "https://example.org/terms"}
    with guarding(folder, mock, {"leak": "fault=leak", "echo": "fault=sse_error"}, terms=terms) as guard:
        yield guard


@pytest.fixture(scope="module")
def keys(guard: Guarded) -> dict[str, str]:
    made = {}
    for scope in ("inference", "usage", "metrics", "admin"):
        made |= guard.new_keys(scope, scopes=(scope,))
        guard.cli("accounts", "terms", "accept", scope, "--version", "2026-11")
    made |= guard.new_keys("unaccepted", "suspended")
    guard.cli("accounts", "suspend", "suspended", "--reason", "bulk copying", "--appeal", "mail appeals@example.org")
    return made


@pytest.mark.parametrize(("method", "path"), [*itertools.product(METHODS, (*PUBLIC, *ELSEWHERE))])
def test_nothing_answers_without_a_key(guard: Guarded, mock: Mock, method: str, path: str) -> None:
    before = len(mock.asked())
    answer = guard.request(method, path, b"{}" if method in ("POST", "PUT", "PATCH") else b"", None)
    assert answer.status in ({401, 405} if path in PUBLIC else {401}), (answer.status, answer.body)
    if answer.status == 405:
        assert method != ("POST" if path in PUBLIC[:4] else "GET")
    if method != "HEAD":
        assert answer.error["type"] in ("authentication_error", "invalid_request_error")
    assert len(mock.asked()) == before


@pytest.mark.parametrize("path", sorted(OPEN))
def test_health_needs_no_key_and_tells_nothing(guard: Guarded, path: str) -> None:
    answer = guard.get(path)
    assert answer.status == 200 and set(answer.json) == {"status"}


def test_the_metrics_may_be_opened(tmp_path: Any, mock: Mock) -> None:
    with guarding(tmp_path, mock, metrics_open=True) as open_guard:
        assert open_guard.get("/metrics").status == 200
        assert open_guard.get("/v1/models").status == 401


def test_scopes_open_what_they_say(guard: Guarded, keys: dict[str, str]) -> None:
    may = {
        "inference": {"/v1/models", "/v1/usage", "/openapi.json"},
        "usage": {"/v1/models", "/v1/usage", "/openapi.json"},
        "metrics": {"/metrics", "/openapi.json"},
        "admin": {"/metrics", "/openapi.json"},
    }
    for scope, paths in may.items():
        for path in ("/v1/models", "/v1/usage", "/metrics", "/openapi.json"):
            assert guard.get(path, keys[scope]).status == (200 if path in paths else 403), (scope, path)
        assert guard.post(keys[scope]).status == (200 if scope == "inference" else 403)


def test_the_admin_is_not_on_the_public_port(guard: Guarded, keys: dict[str, str]) -> None:
    for path, key in itertools.product((*API, *CONSOLE, "/console/login"), (None, keys["admin"], keys["inference"])):
        for method in ("GET", "POST", "PATCH", "DELETE"):
            answer = guard.request(method, path, b"{}" if method in ("POST", "PATCH") else b"", key)
            assert answer.status == (404 if key == keys["inference"] else 401 if key is None else 403), (method, path)
            assert answer.error


def test_the_admin_port_wants_an_admin_key(guard: Guarded, keys: dict[str, str]) -> None:
    others = (None, keys["inference"], keys["usage"], keys["metrics"], "ss_aaaaaaaaaaaa_" + "b" * 43)
    for path, key, method in itertools.product(API, others, ("GET", "POST", "PATCH")):
        answer = guard.request(method, path, b"{}" if method != "GET" else b"", key, port=guard.admin_port)
        assert answer.status in (401, 403), (method, path, answer.status)
        assert answer.error
    for path, key, method in itertools.product(CONSOLE, (*others, keys["admin"]), ("GET", "POST")):
        answer = guard.request(method, path, b"", key, port=guard.admin_port)  # a session, not a key, opens these
        assert answer.status in (303, 401, 403, 405), (method, path, answer.status)
        assert answer.status != 303 or answer.headers["location"].startswith("/console/login")
    assert guard.get("/admin/accounts", keys["admin"], port=guard.admin_port).status == 200


def test_the_public_routes_are_not_on_the_admin_port(guard: Guarded, keys: dict[str, str], mock: Mock) -> None:
    before = len(mock.asked())
    for path in PUBLIC[:4]:
        answer = guard.request("POST", path, b"{}", keys["inference"], port=guard.admin_port)
        assert answer.status in (401, 403, 404), path
    assert len(mock.asked()) == before


def test_terms_and_suspension_say_what_to_do(guard: Guarded, keys: dict[str, str]) -> None:
    answer = guard.post(keys["unaccepted"])
    assert answer.status == 403 and "https://example.org/terms" in answer.error["message"]
    answer = guard.post(keys["suspended"])
    assert answer.status == 403
    assert "bulk copying" in answer.error["message"] and "appeals@example.org" in answer.error["message"]


def test_a_revoked_key_ends_within_seconds(guard: Guarded, keys: dict[str, str]) -> None:
    key = guard.new_keys("leaver")["leaver"]
    guard.cli("accounts", "terms", "accept", "leaver", "--version", "2026-11")
    for _ in range(200):
        if guard.post(key).status == 200:
            break
    guard.cli("accounts", "key", "revoke", key.split("_")[1])
    statuses = {guard.post(key).status for _ in range(400)}
    assert statuses <= {200, 401} and guard.post(key).status == 401


def test_neither_log_nor_error_holds_a_secret(guard: Guarded, keys: dict[str, str]) -> None:
    said = b""
    for key in (*keys.values(), "ss_cccccccccccc_" + "d" * 43):
        for model in ("m", "leak", "echo", "nowhere"):
            for stream in (False, True):
                answer = guard.post(key, model=model, stream=stream, user="end-user-9")
                said += answer.body + json.dumps(answer.headers).encode()
        said += guard.request("POST", "/v1/chat/completions", SECRET_PROMPT.encode(), key).body
        guard.post(key, model=SECRET_PROMPT)  # the answer may say what was asked for; the log may not
        guard.get(f"/v1/{SECRET_PROMPT.replace(' ', '%20')}?key={key}", key)
    guard.assert_no_secrets(*keys.values(), said=said)
    assert "end-user-9" not in guard.log
