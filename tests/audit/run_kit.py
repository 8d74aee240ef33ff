"""What the tests of `audit run` share: a small frozen plan, and a run of it against a real server."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from mock_api import MockApi
from spiritsafe.audit._freeze import Frozen, freeze
from spiritsafe.audit._probes import _PROMPTS
from spiritsafe.audit._run import RunFolder, run_audit
from spiritsafe.audit._transcript import read_transcript
from spiritsafe.audit._types import Record


class Watch:
    def __init__(self) -> None:
        self.said: list[str] = []
        self.updates: list[tuple[str, float, float | None, str]] = []

    def update(self, stage: str, done: float, total: float | None, note: str = "") -> None:
        self.updates.append((stage, done, total, note))

    def say(self, message: str) -> None:
        self.said.append(message)


def plan(folder: Path, *, prompts: int = 6, samples: int = 2, **fields: Any) -> Frozen:
    """Freeze a plan with one test, `equality`, unless `fields` say otherwise."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"prompt": f"q{i}", "completion": f"reply {i}"} for i in range(prompts) for _ in range(3)]
    (folder / "reference.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    equality = {"kind": "equality", "reference": "reference.jsonl", "samples": samples, "permutations": 99}
    written = {
        "name": "test",
        "question": "Is it the one?",
        "subject": {"name": "suspect", "access": "text", "model": "m"},
        "tests": [equality | {"max_tokens": 8}],
        **fields,
    }
    (folder / "PLAN.yaml").write_text(yaml.safe_dump(written))
    return freeze(folder / "PLAN.yaml")


def go(frozen: Frozen, source: str | MockApi, watch: Watch | None = None, **more: Any) -> RunFolder:
    address = source.base_url if isinstance(source, MockApi) else source
    return asyncio.run(run_audit(frozen, address, progress=watch or Watch(), **more))


def lines(frozen: Frozen, folder: RunFolder) -> list[Record]:
    return read_transcript(folder.transcript, frozen.hash)


def answered(records: list[Record]) -> Counter[str]:
    return Counter(record.item for record in records if record.got is not None)


def subject(folder: RunFolder) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(folder.subject.read_text())
    return loaded


def is_probe(body: Mapping[str, Any]) -> bool:
    return body["messages"][-1]["content"] in _PROMPTS


def asked(api: MockApi) -> Counter[str]:
    """Questions of the test that the server was asked, by their text; probes left out."""
    return Counter(body["messages"][-1]["content"] for body in api.received if not is_probe(body))
