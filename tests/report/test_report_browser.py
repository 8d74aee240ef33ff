"""The report in a real Chromium, over its DevTools protocol: nothing overflows, nothing complains, nothing is fetched."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from sample_guard import NOW, fill, guard_config, open_guard
from sample_run import write_run
from spiritsafe.report import render_guard, render_run
from spiritsafe.runs import Run
from spiritsafe.state import Database

CHROMIUM = os.environ.get("SPIRITSAFE_CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None
)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium found; install it or name it in SPIRITSAFE_CHROMIUM"
)
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--disable-dev-shm-usage",
    "--remote-debugging-port=0",
]
OVERFLOWING = """[...document.querySelectorAll('body *')].filter(e => {
  const box = e.getBoundingClientRect();
  return box.width && !e.closest('svg') && (box.right > innerWidth + 1 || box.left < -1);
}).map(e => e.tagName + '.' + e.className).join(' ')"""


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """DevTools port of a fresh browser."""
    assert CHROMIUM is not None
    profile = tmp_path_factory.mktemp("profile")
    with subprocess.Popen(
        [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as browser:
        try:
            for _ in range(300):
                told = profile / "DevToolsActivePort"
                if told.exists() and told.read_text().strip():
                    break
                assert browser.poll() is None, "Chromium did not start"
                time.sleep(0.1)
            yield told.read_text().split()[0]
        finally:
            browser.terminate()


class Tab:
    """One page over the DevTools protocol. `events` holds everything it reported."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket, self._numbers = socket, itertools.count(1)
        self.events: list[dict[str, Any]] = []

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._numbers)
        await self._socket.send_json({"id": number, "method": method, "params": params})
        return await self._until(lambda m: m.get("id") == number)

    async def event(self, method: str) -> None:
        await self._until(lambda m: m.get("method") == method)

    async def evaluate(self, expression: str) -> Any:
        answer = await self.call("Runtime.evaluate", expression=expression)
        return answer["result"]["result"].get("value")

    async def _until(self, wanted: Any) -> dict[str, Any]:
        while True:
            message: dict[str, Any] = await self._socket.receive_json(timeout=30)
            self.events.append(message)
            if wanted(message):
                return message


async def look(port: str, file: Path, width: int, scheme: str, media: str = "") -> dict[str, Any]:
    """Open `file` at this width and colour scheme; what can be seen of it."""
    async with aiohttp.ClientSession() as session:
        async with session.put(f"http://127.0.0.1:{port}/json/new?about:blank") as response:
            target = await response.json()
        async with session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0) as socket:
            tab = Tab(socket)
            for domain in ("Page", "Runtime", "Log", "Network"):
                await tab.call(f"{domain}.enable")
            await tab.call(
                "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
            )
            await tab.call(
                "Emulation.setEmulatedMedia",
                media=media,
                features=[{"name": "prefers-color-scheme", "value": scheme}],
            )
            await tab.call("Page.navigate", url=file.as_uri())
            await tab.event("Page.loadEventFired")
            await tab.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
            seen = {
                "scroll": await tab.evaluate("document.documentElement.scrollWidth"),
                "inner": await tab.evaluate("innerWidth"),
                "overflowing": await tab.evaluate(OVERFLOWING),
                "background": await tab.evaluate("getComputedStyle(document.body).backgroundColor"),
                "ink": await tab.evaluate(
                    "getComputedStyle(document.querySelector('.chart text') ?? document.body).fill"
                ),
                "text": await tab.evaluate("document.body.innerText"),
                "charts": await tab.evaluate(
                    "[...document.querySelectorAll('.chart')].filter(c => c.getBoundingClientRect().height > 20).length"
                ),
                "smallest": await tab.evaluate(
                    "Math.min(...[...document.querySelectorAll('.chart text')].map(t => t.getBoundingClientRect().height)"
                    ".filter(h => h > 0))"
                ),
            }
        await session.get(f"http://127.0.0.1:{port}/json/close/{target['id']}")
    seen["complaints"] = [m for m in tab.events if m.get("method") in ("Log.entryAdded", "Runtime.exceptionThrown")]
    seen["requests"] = [
        m["params"]["request"]["url"] for m in tab.events if m.get("method") == "Network.requestWillBeSent"
    ]
    return seen


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = write_run(tmp_path_factory.mktemp("run"), override="a reason without any end " * 8)
    samples = run.samples.read_text()
    long = "Supercalifragilistic" * 20  # one word wider than a phone
    run.samples.write_text(samples.replace("Name one good use", long).replace("It removes", long))
    return render_run(run)


@pytest.mark.parametrize("width", [1280, 901, 661, 390, 320])
@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_it_fits_every_width_in_light_and_dark(port: str, report: Path, width: int, scheme: str) -> None:
    seen = await look(port, report, width, scheme)
    assert seen["complaints"] == []
    assert seen["requests"] == [report.as_uri()]
    assert seen["scroll"] <= width and seen["inner"] == width
    assert seen["overflowing"] == ""
    assert seen["charts"] == 2, "one drawing of each chart is shown, the other hidden"
    assert seen["smallest"] > 8, "the text of charts stays readable"
    rgb = [int(x) for x in seen["background"][4:-1].split(",")]
    assert (sum(rgb) < 150) == (scheme == "dark")
    assert seen["ink"] != seen["background"]


async def test_on_paper_it_is_light_whatever_the_screen(port: str, report: Path) -> None:
    seen = await look(port, report, 720, "dark", media="print")
    assert seen["background"] == "rgb(255, 255, 255)" and seen["overflowing"] == ""


async def test_an_empty_run_is_a_sound_page_too(port: str, tmp_path: Path) -> None:
    seen = await look(port, render_run(Run.open(tmp_path / "fresh")), 390, "light")
    assert seen["complaints"] == [] and seen["overflowing"] == "" and seen["scroll"] <= 390
    assert seen["charts"] == 0 and "nothing measured yet" in seen["text"].lower()


async def guard_page(folder: Path, *, empty: bool = False) -> Path:
    """A guard's page, with names that no table likes."""
    config = guard_config(f"sqlite:///{folder / 'guard.db'}", folder)
    if empty:
        async with await Database.open(config.state.database):
            pass
    else:
        long = "Supercalifragilistic" * 5
        async with open_guard(config) as guard:
            await fill(guard, lambda name: f"{name}-{long}")
            await guard.reply("nobody", model="m" * 150, status="s" * 80, policy="p" * 80, tokens_out=9_999_999_999)
    return (await render_guard(config, folder / "guard-report.html", now=NOW)).path


@pytest.mark.parametrize("width", [1280, 901, 661, 390, 320])
@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_a_guards_page_fits_every_width_in_light_and_dark(
    port: str, tmp_path: Path, width: int, scheme: str
) -> None:
    page = await guard_page(tmp_path)
    seen = await look(port, page, width, scheme)
    assert seen["complaints"] == []
    assert seen["requests"] == [page.as_uri()]
    assert seen["scroll"] <= width and seen["inner"] == width
    assert seen["overflowing"] == ""
    assert seen["charts"] == 1, "one drawing is shown, the other hidden"
    assert seen["smallest"] > 8, "the text of charts stays readable"
    rgb = [int(x) for x in seen["background"][4:-1].split(",")]
    assert (sum(rgb) < 150) == (scheme == "dark")


@pytest.mark.parametrize("empty", [False, True])
async def test_a_guards_page_on_paper_and_without_requests(port: str, tmp_path: Path, empty: bool) -> None:
    page = await guard_page(tmp_path, empty=empty)
    seen = await look(port, page, 720, "dark", media="print")
    assert seen["background"] == "rgb(255, 255, 255)" and seen["overflowing"] == ""
    seen = await look(port, page, 390, "light")
    assert seen["complaints"] == [] and seen["overflowing"] == "" and seen["scroll"] <= 390
    assert seen["charts"] == (0 if empty else 1)
