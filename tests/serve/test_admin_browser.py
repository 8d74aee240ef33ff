"""The console in a real Chromium: a person signs in, looks, and decides; nothing overflows, complains or loads."""

from __future__ import annotations

from pathlib import Path

import pytest

import accounts_kit as kit
import admin_kit
import browser

pytestmark = pytest.mark.skipif(browser.CHROMIUM is None, reason=browser.MISSING)

HOSTILE = "<script>window.pwned = 1</script>" + "Supercalifragilistic" * 6  # wider than a phone
STATUS = {
    "refusals": {"requests_per_min": 1204},
    "upstreams": {"local": True, "b" * 60: False},
    "not_ready": ["why " * 30],
}


async def test_a_person_signs_in_looks_and_suspends(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'g.db'}"
    config = kit.config(state={"database": url, "secrets": str(tmp_path / "guard.secrets")}, ladder={"shadow": False})
    with browser.chromium(tmp_path / "profile") as port:
        async with admin_kit.admin(url, tmp_path, config, STATUS) as admin, browser.tab(port) as tab:
            account = await admin.accounts.add(HOSTILE, org="o" * 80, cluster="c" * 80)
            key = await admin.accounts.issue_key(account.id, name="n" * 90)
            await admin_kit.spend(admin, account.id, key.key.id)
            await admin.parts.ladder.apply(  # type: ignore[union-attr]
                f"account:{account.id}", "review", reason="r" * 300, decided_by="watcher",
                features={"f" * 60: "v" * 200, "links": ["a", "b"]},
            )  # fmt: skip
            path = f"{admin.url}/console/"
            await tab.show(path)
            assert await tab.evaluate("location.pathname") == "/console/login"
            assert await tab.overflowing() == ""
            await tab.leads_on(
                f"document.querySelector('[name=key]').value = '{admin.key}'; document.querySelector('button').click()"
            )
            assert await tab.evaluate("document.querySelector('h1').innerText") == "Overview"
            assert await tab.evaluate("document.cookie") == "", "scripts cannot see the session"

            for page in ("", "accounts", "ladder", f"accounts/{account.id}"):
                await tab.show(path + page)
                await tab.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
                assert await tab.evaluate("typeof window.pwned") == "undefined"
                for width in (1280, 821, 720, 390, 320):
                    for scheme in ("light", "dark"):
                        await tab.resize(width, scheme)
                        assert await tab.overflowing() == "", f"{page or 'overview'} at {width}"
                dark = await tab.evaluate("getComputedStyle(document.body).backgroundColor")
                assert sum(int(value) for value in dark[4:-1].split(",")) < 150
            assert await tab.evaluate("document.querySelector('.bar').getBBox().height") > 0

            await tab.leads_on(
                "const form = document.querySelector('form[action$=\"/suspend\"]');"
                "form.reason.value = 'bulk copying'; form.appeal.value = 'mail us'; form.querySelector('button').click()"
            )
            assert "The account is suspended" in await tab.evaluate("document.body.innerText")
            assert (await admin.accounts.show(account.id)).appeal == "mail us"
            await tab.leads_on("document.querySelector('form[action$=\"/logout\"] button').click()")
            await tab.show(path + "accounts")
            assert await tab.evaluate("location.pathname") == "/console/login"
            assert tab.complaints() == []
            assert all(address.startswith((admin.url, "data:")) for address in tab.requested())
