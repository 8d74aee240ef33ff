"""The admin API: nobody in without an admin's key, strict bodies, one shape of error, and never a secret."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

import admin_kit
from admin_kit import Admin
from spiritsafe.serve._account_text import REASON
from spiritsafe.state import Database

ROUTES = [
    ("GET", "/admin"),
    ("GET", "/admin/"),
    ("GET", "/admin/accounts"),
    ("POST", "/admin/accounts"),
    ("GET", "/admin/accounts/operator"),
    ("PATCH", "/admin/accounts/operator"),
    ("POST", "/admin/accounts/operator/suspend"),
    ("POST", "/admin/accounts/operator/restore"),
    ("POST", "/admin/accounts/operator/terms"),
    ("GET", "/admin/accounts/operator/usage"),
    ("GET", "/admin/accounts/operator/keys"),
    ("POST", "/admin/accounts/operator/keys"),
    ("GET", "/admin/keys/x"),
    ("PATCH", "/admin/keys/x"),
    ("POST", "/admin/keys/x/revoke"),
    ("POST", "/admin/keys/x/rotate"),
    ("GET", "/admin/ladder"),
    ("POST", "/admin/ladder"),
    ("GET", "/admin/ladder/account:x"),
    ("GET", "/admin/ledger"),
    ("POST", "/admin/ledger/verify"),
    ("GET", "/admin/status"),
    ("GET", "/admin/no/such/path"),
    ("DELETE", "/admin/accounts"),
    ("HEAD", "/admin/accounts"),
    ("OPTIONS", "/admin/accounts"),
]


@pytest.fixture
async def admin(database_url: str, tmp_path: Path) -> AsyncIterator[Admin]:
    async with admin_kit.admin(database_url, tmp_path, status={"refusals": {"usd_per_day": 3}}) as opened:
        yield opened


class Api:
    """The API as a program uses it."""

    def __init__(self, admin: Admin, session: aiohttp.ClientSession) -> None:
        self._admin, self._session = admin, session

    async def __call__(self, method: str, path: str, body: Any = None, status: int = 200, **more: Any) -> Any:
        if body is not None:
            more["data"] = body if isinstance(body, bytes) else json.dumps(body)
        headers = more.pop("headers", self._admin.headers)
        async with self._session.request(method, self._admin.url + path, headers=headers, **more) as response:
            text = await response.text()
            assert response.status == status, f"{response.status}: {text}"
            assert response.headers["cache-control"] == "no-store"
            assert response.headers["x-content-type-options"] == "nosniff"
            return json.loads(text) if text else None


@pytest.fixture
async def api(admin: Admin) -> AsyncIterator[Api]:
    async with aiohttp.ClientSession() as session:
        yield Api(admin, session)


async def test_no_path_answers_without_an_admins_key(admin: Admin, api: Api) -> None:
    await admin.accounts.add("customer")
    wrong = [
        (await admin.accounts.issue_key("customer", scopes=[scope])).text for scope in ("inference", "usage", "metrics")
    ]
    expired = await admin.accounts.issue_key("operator", scopes=["admin"], expires=admin.clock.now + 1)
    revoked = await admin.accounts.issue_key("operator", scopes=["admin"])
    await admin.accounts.revoke_key(revoked.key.id)
    admin.clock.now += 1
    refused = [
        (401, None), (401, "Bearer"), (401, "Bearer nonsense"), (401, f"Basic {admin.key}"), (401, admin.key),
        (401, f"Bearer {expired.text}"), (401, f"Bearer {revoked.text}"), (401, f"Bearer {admin.key}x"),
        *((403, f"Bearer {key}") for key in wrong),
    ]  # fmt: skip
    async with aiohttp.ClientSession() as session:
        for method, path in ROUTES:
            for status, authorization in refused:
                headers = {} if authorization is None else {"Authorization": authorization}
                async with session.request(
                    method, admin.url + path, headers=headers, allow_redirects=False
                ) as response:
                    assert response.status == status, f"{method} {path} {authorization}: {response.status}"
                    if method != "HEAD":
                        error = (await response.json())["error"]
                        assert set(error) == {"message", "type", "param", "code"}
                        assert error["code"] in ("invalid_api_key", "scope_missing")
    await admin.accounts.suspend("operator")
    assert (await api("GET", "/admin/accounts", status=403))["error"]["code"] == "account_suspended"


async def test_accounts_and_keys_from_start_to_end(admin: Admin, api: Api) -> None:
    made = await api("POST", "/admin/accounts", {"name": "Ada", "org": "acme", "limits": {"usd_per_day": 2.5}}, 201)
    path = f"/admin/accounts/{made['id']}"
    assert made["limits"] == {"usd_per_day": 2.5} and made["status"] == "active"
    changed = await api("PATCH", path, {"tier": "gold", "org": None, "cluster": "c1"})
    assert (changed["tier"], changed["org"], changed["cluster"]) == ("gold", None, "c1")
    assert changed["limits"] == {"usd_per_day": 2.5}, "what is not given stays"

    lifted = await api("PATCH", path, {"limits": {"usd_per_day": None}})
    assert lifted["limits"] == {"usd_per_day": None}, "no limit, whatever the tier's is"
    assert (await api("PATCH", path, {"limits": {}}))["limits"] == {}, "the tier's again"

    issued = await api("POST", f"{path}/keys", {"scopes": ["inference", "usage"], "expires_days": 2, "name": "ci"}, 201)
    who = admin.accounts.authenticate(issued["key"].encode())
    assert who is not None and who.scopes == {"inference", "usage"} and who.tier == "gold"
    assert who.key_expires == admin.clock.now + 2 * 86400
    await api("PATCH", f"/admin/keys/{issued['key_id']}", {"limits": {"concurrency": 2}})
    rotated = await api("POST", f"/admin/keys/{issued['key_id']}/rotate", {"overlap_hours": 1}, 201)
    assert rotated["limits"] == {"concurrency": 2} and rotated["key"] != issued["key"]
    assert (await api("POST", f"/admin/keys/{rotated['key_id']}/revoke"))["state"] == "revoked"
    assert (await api("GET", f"/admin/keys/{rotated['key_id']}"))["state"] == "revoked"
    listed = await api("GET", f"{path}/keys")
    assert {key["key_id"] for key in listed["data"]} == {issued["key_id"], rotated["key_id"]}

    accepted = await api("POST", f"{path}/terms", {"version": "2026-11"})
    assert accepted["terms_version"] == "2026-11"
    suspended = await api("POST", f"{path}/suspend", {"reason": "copying", "appeal": "mail us"})
    assert (suspended["status"], suspended["reason"], suspended["appeal"]) == ("suspended", "copying", "mail us")
    assert (await api("GET", path))["status"] == "suspended"
    assert (await api("POST", f"{path}/restore"))["status"] == "active"
    assert (await api("POST", f"{path}/suspend"))["reason"] == REASON
    events = [json.loads(row["payload"]) for row in await admin.db.fetch("SELECT payload FROM ledger ORDER BY seq")]
    deciders = {event["data"].get("decided_by") or event["data"].get("accepted_by") for event in events} - {None}
    assert deciders == {f"key:{admin.key.split('_')[1]}"}, "the ledger says whose key decided"


async def test_listing_goes_page_by_page(admin: Admin, api: Api) -> None:
    for number in range(7):
        await admin.accounts.add(f"a{number}", org="acme" if number % 2 else None)
    seen, after = [], None
    for _ in range(10):
        query = {"limit": "3", "search": "a"} | ({"after": after} if after else {})
        page = await api("GET", "/admin/accounts", params=query)
        seen += [account["name"] for account in page["data"]]
        after = page["next"]
        assert page["has_more"] is (after is not None)
        if after is None:
            break
    assert [name for name in seen if name != "operator"] == [f"a{number}" for number in range(7)]
    assert len((await api("GET", "/admin/accounts", params={"org": "acme"}))["data"]) == 3


async def test_the_ladder_records_who_decided(admin: Admin, api: Api) -> None:
    account = await admin.accounts.add("Ada")
    subject = f"account:{account.id}"
    said = await api(
        "POST", "/admin/ladder",
        {"subject": subject, "step": "notify", "reason": "growth", "features": {"x": 1}, "by_watch": True},
    )  # fmt: skip
    assert (said["step"], said["decided_by"], said["shadow"]) == ("notify", "watch", True)
    refused = await api(
        "POST", "/admin/ladder", {"subject": subject, "step": "suspend", "reason": "r", "by_watch": True}, 409
    )
    assert refused["error"]["code"] == "refused"
    await api("POST", "/admin/ladder", {"subject": subject, "step": "review", "reason": "look"})
    assert [state["step"] for state in (await api("GET", "/admin/ladder"))["data"]] == ["review"]
    history = (await api("GET", f"/admin/ladder/{subject}"))["data"]
    assert [(entry["step"], entry["features"]) for entry in history] == [("notify", {"x": 1}), ("review", {})]
    assert history[1]["decided_by"] == f"key:{admin.key.split('_')[1]}"


async def test_usage_ledger_and_status(admin: Admin, api: Api) -> None:
    account = await admin.accounts.add("Ada")
    issued = await admin.accounts.issue_key("Ada")
    await admin_kit.spend(admin, account.id, issued.key.id, days=3)
    usage = await api("GET", "/admin/accounts/Ada/usage")
    assert usage["account"] == account.id and usage["today"]["requests"] == 4 and usage["lifetime"]["usd"] > 0
    status = await api("GET", "/admin/status")
    assert status["accounts"] == {"active": 2, "suspended": 0} and status["today"] == usage["today"]
    assert status["status"] == {"refusals": {"usd_per_day": 3}}
    ledger = await api("GET", "/admin/ledger")
    assert (
        ledger["healthy"] is True
        and ledger["head"]["seq"] == (await admin.db.fetch("SELECT COUNT(*) AS n FROM ledger"))[0]["n"]
    )
    found = await api("POST", "/admin/ledger/verify")
    assert found["ok"] is True and found["rows"] == ledger["head"]["seq"] and found["totals"] == "match"
    await admin.db.execute("UPDATE ledger SET payload = '{}' WHERE seq = 1")
    assert (await api("POST", "/admin/ledger/verify"))["ok"] is False


BAD: list[tuple[str, str, Any, int, str]] = [
    ("GET", "/admin/accounts/nobody", None, 404, "no account has that id or name"),
    ("GET", "/admin/keys/nobody", None, 404, "no key has that id"),
    ("GET", "/admin/nothing", None, 404, "not found"),
    ("DELETE", "/admin/accounts", None, 405, "not allowed"),
    ("GET", "/admin/accounts?limit=0", None, 400, "limit"),
    ("GET", "/admin/accounts?page=2", None, 400, "unknown key page"),
    ("POST", "/admin/accounts", b"{", 400, "not JSON"),
    ("POST", "/admin/accounts", b"\xff\xfe", 400, "not JSON"),
    ("POST", "/admin/accounts", b"[1]", 400, "JSON object"),
    ("POST", "/admin/accounts", b"[" * 5000, 400, "JSON"),
    ("POST", "/admin/accounts", b" " * 70_000, 413, "64 KiB"),
    ("POST", "/admin/accounts", {}, 400, "name is missing"),
    ("POST", "/admin/accounts", {"name": "a", "teir": "gold"}, 400, "did you mean tier?"),
    ("POST", "/admin/accounts", {"name": "a", "tier": "golden"}, 400, "did you mean gold?"),
    ("POST", "/admin/accounts", {"name": "operator"}, 400, "choose another"),
    ("POST", "/admin/accounts", {"name": "a", "limits": {"usd_per_day": -1}}, 400, "usd_per_day"),
    ("POST", "/admin/accounts", {"name": ["a"]}, 400, "name"),
    ("PATCH", "/admin/accounts/operator", {"tier": None}, 400, "cannot be taken away"),
    ("PATCH", "/admin/accounts/operator", {"slot": 3}, 400, "unknown key slot"),
    ("POST", "/admin/accounts/operator/keys", {"scopes": ["root"]}, 400, "choose among"),
    ("POST", "/admin/accounts/operator/keys", {"expires_days": 0}, 400, "expires_days"),
    ("POST", "/admin/accounts/operator/restore", {"why": 1}, 400, "unknown key why"),
    ("POST", "/admin/accounts/operator/terms", {"version": "1"}, 400, "2026-11"),
    ("POST", "/admin/ladder", {"subject": "account:x", "step": "ban", "reason": "r"}, 400, "step"),
    ("POST", "/admin/ladder", {"subject": "nonsense", "step": "notify", "reason": "r"}, 400, "nonsense"),
]  # fmt: skip


async def test_bad_requests_are_told_what_to_do(tmp_path: Path) -> None:
    async with admin_kit.admin(f"sqlite:///{tmp_path / 'g.db'}", tmp_path) as admin, aiohttp.ClientSession() as session:
        for method, path, body, status, said in BAD:
            error = (await Api(admin, session)(method, path, body, status))["error"]
            assert said in error["message"] and error["code"] and error["type"].endswith("_error"), (method, path, body)


async def test_a_database_that_is_away_is_a_503_and_tells_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with admin_kit.admin(f"sqlite:///{tmp_path / 'g.db'}", tmp_path) as admin, aiohttp.ClientSession() as session:
        api = Api(admin, session)
        async with await Database.open(admin.db.url) as other, other.transaction() as tx:
            await tx.execute("UPDATE counters SET value = value")  # somebody holds the write lock for long
            admin.db._backend._writer._connection.execute("PRAGMA busy_timeout = 1")  # type: ignore[attr-defined]
            error = (await api("POST", "/admin/accounts", {"name": "a"}, 503))["error"]
        assert error["code"] == "unavailable" and error["type"] == "server_error"
        await api("POST", "/admin/accounts", {"name": "a"}, 201)

        async def broken() -> Any:
            raise RuntimeError(f"a message with a secret: {admin.key}")

        admin.parts.accounts.counts = broken  # type: ignore[method-assign]
        with caplog.at_level(logging.ERROR):
            error = (await api("GET", "/admin/status", None, 500))["error"]
        assert "secret" not in error["message"] and "log" in error["message"]


async def test_no_answer_and_no_log_holds_a_secret(admin: Admin, api: Api, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    await admin.accounts.add("Ada")
    issued = await api("POST", "/admin/accounts/Ada/keys", {}, 201)
    secrets = [key.split("_")[2] for key in (issued["key"], admin.key)]
    secrets += [admin.parts.secrets.pepper.hex(), admin.parts.secrets.derive("console/session").hex()]
    said = []
    for method, path in ROUTES:
        for authorization in (f"Bearer {admin.key}", f"Bearer {issued['key']}", f"Bearer {issued['key'][:-1]}0"):
            async with aiohttp.ClientSession() as session:
                path = path.replace("operator", "Ada")
                request = session.request(method, admin.url + path, headers={"Authorization": authorization}, data="{}")
                async with request as response:
                    said.append(repr(response.headers) + await response.text())
    # the only answers that show a key are those that made one
    fresh = [json.loads(text[text.index("{") :])["key"] for text in said if '"key":"' in text]
    assert len(fresh) == 1 and fresh[0] not in (issued["key"], admin.key)
    everything = "".join(said) + caplog.text
    assert not [secret for secret in secrets if secret in everything]
    assert fresh[0] not in caplog.text


async def test_two_verifications_do_not_run_at_once(tmp_path: Path) -> None:
    async with admin_kit.admin(f"sqlite:///{tmp_path / 'g.db'}", tmp_path) as admin, aiohttp.ClientSession() as session:

        async def verify() -> int:
            async with session.post(f"{admin.url}/admin/ledger/verify", headers=admin.headers) as response:
                return response.status

        assert sorted(await asyncio.gather(verify(), verify())) == [200, 409]
