"""A real Chromium, headless, over its DevTools protocol."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp

CHROMIUM = os.environ.get("SPIRITSAFE_CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None
)
MISSING = "no Chromium found; install it or name it in SPIRITSAFE_CHROMIUM"
_FLAGS = [
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
_OVERFLOWING = """[...document.querySelectorAll('body *')].filter(e => {
  const box = e.getBoundingClientRect();
  return box.width && !e.closest('svg') && (box.right > innerWidth + 1 || box.left < -1);
}).map(e => e.tagName + '.' + e.className).join(' ')"""


@contextlib.contextmanager
def chromium(profile: Path) -> Iterator[str]:
    """A fresh browser; its DevTools port."""
    assert CHROMIUM is not None
    with subprocess.Popen(
        [CHROMIUM, *_FLAGS, f"--user-data-dir={profile}", "about:blank"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as browser:
        try:
            told = profile / "DevToolsActivePort"
            for _ in range(300):
                if told.exists() and told.read_text().strip():
                    break
                assert browser.poll() is None, "Chromium did not start"
                time.sleep(0.1)
            yield told.read_text().split()[0]
        finally:
            browser.terminate()


class Tab:
    """One page. `events` holds everything it reported."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket, self._numbers = socket, itertools.count(1)
        self.events: list[dict[str, Any]] = []

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._numbers)
        await self._socket.send_json({"id": number, "method": method, "params": params})
        return await self._until(lambda message: message.get("id") == number)

    async def evaluate(self, expression: str) -> Any:
        answer = await self.call("Runtime.evaluate", expression=expression)
        return answer["result"]["result"].get("value")

    async def show(self, url: str) -> None:
        """Go there and wait until it is loaded."""
        await self.call("Page.navigate", url=url)
        await self._until(lambda message: message.get("method") == "Page.loadEventFired")

    async def leads_on(self, expression: str) -> None:
        """Run what makes the page go to another, and wait until that is loaded."""
        await self.call("Runtime.evaluate", expression=expression)
        await self._until(lambda message: message.get("method") == "Page.loadEventFired")

    async def resize(self, width: int, scheme: str) -> None:
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )
        await self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    async def overflowing(self) -> str:
        """The elements that reach beyond the window, and the page's own width where it does."""
        wide = await self.evaluate("document.documentElement.scrollWidth > innerWidth ? 'page ' : ''")
        return str(wide + await self.evaluate(_OVERFLOWING))

    def complaints(self) -> list[dict[str, Any]]:
        """What console, network or policy complained about; not what Chromium merely recommends."""
        found = [e for e in self.events if e.get("method") in ("Log.entryAdded", "Runtime.exceptionThrown")]
        return [e for e in found if e["params"].get("entry", {}).get("source") != "recommendation"]

    def requested(self) -> list[str]:
        return [e["params"]["request"]["url"] for e in self.events if e.get("method") == "Network.requestWillBeSent"]

    async def _until(self, wanted: Any) -> dict[str, Any]:
        while True:
            message: dict[str, Any] = await self._socket.receive_json(timeout=30)
            self.events.append(message)
            if wanted(message):
                return message


@contextlib.asynccontextmanager
async def tab(port: str) -> AsyncIterator[Tab]:
    """A new page of the browser at that port."""
    async with aiohttp.ClientSession() as session:
        async with session.put(f"http://127.0.0.1:{port}/json/new?about:blank") as response:
            target = await response.json()
        async with session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0) as socket:
            opened = Tab(socket)
            for domain in ("Page", "Runtime", "Log", "Network"):
                await opened.call(f"{domain}.enable")
            yield opened
        await session.get(f"http://127.0.0.1:{port}/json/close/{target['id']}")
