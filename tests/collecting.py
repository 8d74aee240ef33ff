"""What the collector tests share: a quick collection against the mock API."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from aiohttp import web

from mock_api import Behaviour, Body, MockApi, answer
from spiritsafe.collect import CollectConfig, CollectSummary, collect
from spiritsafe.exchanges import read_exchanges
from spiritsafe.records import Exchange, Message, Prompt
from spiritsafe.runs import Run
from spiritsafe.spend import Price
from spiritsafe.teachers import TeacherConfig

PRICE = Price.model_validate({"input_per_mtok": 1, "output_per_mtok": 2})
QUICK: dict[str, Any] = {"logprobs": 0, "max_tokens": 8}


class Watch:
    def __init__(self) -> None:
        self.said: list[str] = []
        self.updates: list[tuple[float, float | None, str]] = []

    def update(self, stage: str, done: float, total: float | None, note: str = "") -> None:
        self.updates.append((done, total, note))

    def say(self, message: str) -> None:
        self.said.append(message)


def ask(count: int, prefix: str = "q") -> list[Prompt]:
    return [Prompt((Message("user", f"{prefix}{i}"),)) for i in range(count)]


def go(path: Path, api: MockApi, prompts: list[Prompt], watch: Watch | None = None, **changes: Any) -> CollectSummary:
    teacher = TeacherConfig(base_url=api.base_url, model="m", price=changes.pop("price", PRICE),
                            timeout_s=changes.pop("timeout_s", 10))  # fmt: skip
    config = CollectConfig(**QUICK | changes)
    return collect(Run.open(path), teacher, prompts, config, progress=watch or Watch())


def rows(path: Path) -> list[Exchange]:
    return list(read_exchanges(path / "exchanges.parquet"))


def per_prompt(api: MockApi) -> Counter[str]:
    return Counter(body["messages"][-1]["content"] for body in api.received)


def status(code: int, share: int, **headers: str) -> Behaviour:
    """Every `share`-th request gets `code`."""

    async def behave(number: int, body: Body, request: web.Request) -> web.StreamResponse:
        if number % share == 0:
            return web.Response(status=code, text="not now", headers=headers)
        return await answer(number, body, request)

    return behave
