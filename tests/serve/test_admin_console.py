"""The console: sign in with an admin's key, forms that only their own session can send, names that stay text."""

from __future__ import annotations

import html
import re
from collections.abc import AsyncIterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import aiohttp
import pytest

import accounts_kit as kit
import admin_kit
from admin_kit import Admin
from spiritsafe.serve._console_html import bars, usd
from spiritsafe.serve._console_session import COOKIE

HOSTILE = """<script>alert(1)</script><img src=x onerror=alert(2)>'" onmouseover="alert(3)"""


@pytest.fixture
async def admin(tmp_path: Path) -> AsyncIterator[Admin]:
    url = f"sqlite:///{tmp_path / 'g.db'}"
    config = kit.config(state={"database": url, "secrets": str(tmp_path / "guard.secrets")}, ladder={"shadow": False})
    status = {"refusals": {"usd_per_day": 7}, "upstreams": {"local": True}, "not_ready": []}
    async with admin_kit.admin(url, tmp_path, config, status) as opened:
        yield opened


class Person:
    """Somebody with a browser that keeps cookies and follows no redirects by itself."""

    def __init__(self, admin: Admin, session: aiohttp.ClientSession) -> None:
        self._admin, self._session = admin, session
        self.csrf = ""

    async def get(self, path: str, status: int = 200) -> str:
        async with self._session.get(self._admin.url + path, allow_redirects=False) as response:
            text = await response.text()
            assert response.status == status, text
            if found := re.search(r'name="csrf" value="([0-9a-f]+)"', text):
                self.csrf = found[1]
            return response.headers.get("location", text)

    async def post(self, path: str, fields: Any, status: int = 303, **headers: str) -> str:
        """A form as this session sends it; where it leads to, or the page."""
        data = (
            list({"csrf": self.csrf, **fields}.items()) if isinstance(fields, dict) else [("csrf", self.csrf), *fields]
        )
        request = self._session.post(self._admin.url + path, data=data, headers=headers, allow_redirects=False)
        async with request as response:
            text = await response.text()
            assert response.status == status, text
            return response.headers.get("location", text)

    async def sign_in(self, key: str | None = None) -> None:
        assert await self.post("/console/login", {"key": key or self._admin.key}) == "/console/"
        await self.get("/console/")


@pytest.fixture
async def person(admin: Admin) -> AsyncIterator[Person]:
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
        yield Person(admin, session)


async def test_who_is_not_signed_in_is_asked_to(admin: Admin, person: Person) -> None:
    assert await person.get("/", 303) == "/console/"
    for path in ("/console/", "/console/accounts", "/console/accounts/operator", "/console/ladder", "/console/no/such"):
        assert await person.get(path, 303) == "/console/login"
    for path in ("suspend", "restore", "settings", "terms", "ladder", "revoke", "keys", "rotate"):
        assert await person.post(f"/console/accounts/operator/{path}", {"reason": "x"}) == "/console/login"
    for path in ("/console/accounts", "/console/verify", "/console/logout"):
        assert await person.post(path, {"name": "x"}) == "/console/login"
    assert "operator" not in await person.get("/console/login")
    assert [account.name for account in await admin.accounts.list()] == ["operator"]
    assert not (await admin.accounts.show("operator")).suspended


async def test_only_an_admins_key_signs_in(admin: Admin, person: Person) -> None:
    other = (await admin.accounts.issue_key("operator")).text
    for key in ("", "nonsense", other, admin.key[:-1]):
        page = await person.post("/console/login", {"key": key}, 401)
        assert "not a valid API key" in page and (not key or key not in page)
    await person.sign_in(f"  {admin.key}\n")
    assert "Overview" in await person.get("/console/")


async def test_the_cookie_is_closed_and_signed(admin: Admin, person: Person) -> None:
    async with aiohttp.ClientSession() as session:
        form = {"key": admin.key}
        async with session.post(f"{admin.url}/console/login", data=form, allow_redirects=False) as response:
            cookie = response.headers["set-cookie"]
        assert "HttpOnly" in cookie and "SameSite=strict" in cookie and "Path=/console" in cookie
        assert admin.key not in cookie and admin.key.split("_")[2] not in cookie
        value = cookie.partition("=")[2].partition(";")[0]
        body, mac = value.split(".")
        for forged in (
            body, f"{body}.", f".{mac}", f"{body}.{mac[:-2]}AA", f"{body[:-2]}AA.{mac}", "..", "é.é", f"{body}.{mac}.{mac}", "%00",
        ):  # fmt: skip
            headers = {"Cookie": f"{COOKIE}={forged}"}
            async with session.get(f"{admin.url}/console/", headers=headers, allow_redirects=False) as response:
                assert response.status == 303, forged
        headers = {"Cookie": f"{COOKIE}={value}"}
        async with session.get(f"{admin.url}/console/", headers=headers, allow_redirects=False) as response:
            assert response.status == 200


async def test_sessions_end(admin: Admin, person: Person) -> None:
    await person.sign_in()
    admin.clock.now += 8 * 3600 - 1
    await person.get("/console/")
    admin.clock.now += 1
    assert await person.get("/console/", 303) == "/console/login"

    key = await admin.accounts.issue_key("operator", scopes=["admin"])
    await person.sign_in(key.text)
    await admin.accounts.revoke_key(key.key.id)
    assert await person.get("/console/", 303) == "/console/login", "with the key it was opened with"

    await person.sign_in()
    assert await person.post("/console/logout", {}) == "/console/login"
    assert await person.get("/console/", 303) == "/console/login"

    await person.sign_in()
    await admin.accounts.suspend("operator")
    assert await person.get("/console/", 303) == "/console/login"


async def test_forms_of_others_are_refused(admin: Admin, person: Person) -> None:
    await admin.accounts.add("Ada")
    await person.sign_in()
    mine = person.csrf
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
        another = Person(admin, session)
        await another.sign_in()
        assert another.csrf != mine
        for token in ("", "0" * 64, another.csrf, "é"):
            person.csrf = token
            page = await person.post("/console/accounts/Ada/suspend", {"reason": "r"}, 403)
            assert "not sent from a page of this session" in page
    person.csrf = mine
    for header in (
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
    ):
        await person.post("/console/accounts/Ada/suspend", {"reason": "r"}, 403, **header)
        await person.post("/console/login", {"key": admin.key}, 403, **header)
    assert not (await admin.accounts.show("Ada")).suspended
    here = {"Origin": admin.url, "Sec-Fetch-Site": "same-origin"}
    await person.post("/console/accounts/Ada/suspend", {"reason": "r"}, **here)
    assert (await admin.accounts.show("Ada")).suspended


async def test_what_a_person_does_is_done_and_recorded(admin: Admin, person: Person) -> None:
    await person.sign_in()
    there = await person.post("/console/accounts", {"name": "Ada Ltd", "tier": "gold", "org": ""})
    page = await person.get(there)
    assert "The account is made" in page
    account = await admin.accounts.show("Ada Ltd")
    path = f"/console/accounts/{account.id}"
    assert account.tier == "gold" and account.org is None

    page = await person.post(
        f"{path}/keys", [("name", "ci"), ("scope", "inference"), ("scope", "usage"), ("expires_days", "2")], 200
    )
    key = re.search(r"ss_[0-9A-Za-z]{12}_[0-9A-Za-z]{43}", page)
    assert key is not None and "shown this once" in page
    who = admin.accounts.authenticate(key[0].encode())
    assert who is not None and who.scopes == {"inference", "usage"}
    assert key[0] not in await person.get(path), "never again"
    rotated = await person.post(f"{path}/rotate", {"key_id": who.key_id}, 200)
    new = re.search(r"ss_[0-9A-Za-z]{12}_[0-9A-Za-z]{43}", rotated)
    assert new is not None and admin.accounts.authenticate(new[0].encode()) is not None
    assert "revoked" in await person.post(f"{path}/revoke", {"key_id": who.key_id})
    assert admin.accounts.authenticate(key[0].encode()) is None

    settings = {"name": "Ada plc", "tier": "default", "org": "acme", "cluster": "c1", "payment_id": "", "limits": "usd_per_day=3\nconcurrency = 2", "twin_consent": "yes"}  # fmt: skip
    await person.post(f"{path}/settings", settings)
    account = await admin.accounts.show(account.id)
    assert (account.name, account.tier, account.org, account.cluster) == ("Ada plc", "default", "acme", "c1")
    assert account.limits.usd_per_day == 3 and account.limits.concurrency == 2 and account.twin_consent
    page = await person.get(path)
    assert "usd_per_day=3" in page and "checked>Consents" in page
    await person.post(f"{path}/settings", settings | {"twin_consent": "", "limits": "", "org": ""})
    account = await admin.accounts.show(account.id)
    assert account.limits.usd_per_day is None and account.org is None and not account.twin_consent

    await person.post(f"{path}/terms", {"version": "2026-11"})
    await person.post(f"{path}/ladder", {"subject": "cluster:c1", "step": "cluster_cap", "reason": "they share a card"})
    await person.post(f"{path}/ladder", {"subject": f"account:{account.id}", "step": "review", "reason": "look at it"})
    page = await person.get(path)
    assert "they share a card" in page and "look at it" in page and "Accepted" in page
    assert "look at it" in await person.get("/console/"), "it waits for a person"
    assert "they share a card" in await person.get("/console/ladder")
    assert f"/console/accounts/{account.id}" in await person.get("/console/accounts?cluster=c1")
    await person.post(f"{path}/suspend", {"reason": "copying", "appeal": "mail appeals@example.org"})
    page = await person.get(path)
    assert "Suspended:" in page and "mail appeals@example.org" in page
    await person.post(f"{path}/restore", {})
    assert "whole" in await person.post("/console/verify", {}, 200)
    events = await admin.db.fetch("SELECT payload FROM ledger WHERE kind = 'event'")
    decided = [row["payload"] for row in events if '"suspended"' in row["payload"] or '"restored"' in row["payload"]]
    assert len(decided) == 2 and all(f"key:{admin.key.split('_')[1]}" in payload for payload in decided)


async def test_what_makes_no_sense_is_explained(admin: Admin, person: Person) -> None:
    await admin.accounts.add("Ada")
    await person.sign_in()
    path = "/console/accounts/Ada"
    for action, fields, said in (
        ("suspend", {"reason": ""}, "give the reason"),
        ("settings", {"name": "", "tier": "gold"}, "name"),
        ("settings", {"name": "Ada", "tier": "golden"}, "did you mean gold?"),
        ("settings", {"name": "Ada", "tier": "gold", "limits": "usd_perday=3"}, "did you mean usd_per_day?"),
        ("keys", {"scope": "root"}, "choose among"),
        ("keys", {"scope": "usage", "expires_days": "soon"}, "write a number"),
        ("keys", {"scope": "usage", "expires_days": "nan"}, "must lie ahead"),
        ("rotate", {"key_id": "nope"}, "no key has that id"),
        ("ladder", {"subject": "account:somebody_else", "step": "review", "reason": "r"}, "on this account"),
        ("terms", {"version": "1999"}, "2026-11"),
    ):  # fmt: skip
        page = html.unescape(await person.post(f"{path}/{action}", fields, 404 if action == "rotate" else 400))
        assert said in page and "That was not done" in page, action
    assert "no account has that id" in html.unescape(await person.get("/console/accounts/nobody", 404))
    await person.get("/console/no/such/page", 404)
    await person.post("/console/accounts", {"name": "x" * 70_000}, 413)


class Tags(HTMLParser):
    """Every tag with its attributes, as a browser reads them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


async def test_hostile_names_stay_text(admin: Admin, person: Person) -> None:
    account = await admin.accounts.add(HOSTILE, org=HOSTILE, cluster="c<b>", payment_id=HOSTILE)
    await admin.accounts.issue_key(account.id, name=HOSTILE)
    await admin.parts.ladder.apply(  # type: ignore[union-attr]
        f"account:{account.id}", "review", reason=HOSTILE, decided_by=HOSTILE, features={HOSTILE: [HOSTILE]}
    )
    await admin.accounts.suspend(account.id, reason=HOSTILE, appeal=HOSTILE)
    await person.sign_in()
    for path in (
        "/console/", "/console/accounts", f"/console/accounts/{account.id}", "/console/ladder",
        "/console/accounts?search=%3Cscript%3Ealert(1)&status=%22%3E%3Cscript%3E&cluster=%3Cscript%3E&after=%3Cscript%3E",
        f"/console/accounts/{account.id}?done=%3Cscript%3E",
    ):  # fmt: skip
        page = await person.get(path)
        assert HOSTILE in html.unescape(page) or "%3C" in path
        for tag, attributes in Tags(page).found:
            assert tag not in ("script", "img", "b"), path
            assert not [name for name in attributes if name.startswith("on") or name == "style"], path
    page = await person.post("/console/accounts", {"name": HOSTILE, "tier": "<script>"}, 400)
    assert "script" not in {tag for tag, _ in Tags(page).found}


async def test_pages_load_nothing_from_elsewhere(admin: Admin, person: Person) -> None:
    await person.sign_in()
    page = await person.get("/console/accounts/operator")
    for tag, attributes in Tags(page).found:
        for name in ("src", "href", "action"):
            target = attributes.get(name) or "/console/"
            assert target.startswith("/console/") or (tag, target) in (
                ("link", "data:,"),
                ("a", "https://example.org/terms"),
            )
    async with aiohttp.ClientSession() as session, session.get(f"{admin.url}/console/login") as response:
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
        assert response.headers["cache-control"] == "no-store"
    async with aiohttp.ClientSession() as session, session.get(f"{admin.url}/console/console.css") as response:
        assert response.content_type == "text/css" and "url(" not in await response.text()


def test_bars_fill_the_height_and_show_the_smallest() -> None:
    days = [{"date": "d", "usd": value, "requests": 1} for value in (0.0, 0.00001, 5.0, 10.0)]
    drawn = bars(days)
    assert [bar.height for bar in drawn] == [0.0, 2.0, 50.0, 100.0]
    assert all(abs(bar.y + bar.height - 100) < 1e-9 for bar in drawn)
    assert bars([]) == [] and [bar.height for bar in bars(days[:1])] == [0.0]


@pytest.mark.parametrize(
    ("value", "said"),
    [(0, "$0.00"), (1234.5, "$1,234.50"), (0.062, "$0.062"), (0.000123, "$0.000123"), (0.00000001, "< $0.0001")],
)
def test_small_sums_keep_their_digits(value: float, said: str) -> None:
    assert usd(value) == said
