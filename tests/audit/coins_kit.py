"""What the tests of coins share: evidence on disk as a guard's operator exports it, suspects that answer as told."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from spiritsafe.audit import _types as types
from spiritsafe.audit._evidence import Evidence
from spiritsafe.audit._plan import CanariesConfig, TwinsConfig
from spiritsafe.audit.tests.canaries import Canaries
from spiritsafe.audit.tests.twins import Twins
from spiritsafe.ledger import Event, Ledger, LedgerRow, export_ledger
from spiritsafe.ledger._evidence import TWIN_FORMAT, open_canary, twin_commit
from spiritsafe.records import Prompt, Reply, Sampling, TeacherInfo
from spiritsafe.state import Database

NOW = 1_795_000_000.0  # 2026-11-18

Texts = Sequence[tuple[str, str]]


def said(text: str) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return {"object": "chat.completion", "model": "m", "choices": [choice]}


def pair_line(
    number: int, first: Any, second: Any, coin: int, *, salt: bytes | None = None, **more: Any
) -> dict[str, Any]:
    """As `evidence twins export` writes it. first, second: texts, or whole replies."""
    salt = number.to_bytes(32, "big") if salt is None else salt
    request = more.pop("request", {"model": "m", "messages": [{"role": "user", "content": f"question {number}"}]})
    replies = [said(reply) if isinstance(reply, str) else reply for reply in (first, second)]
    return {
        "format": TWIN_FORMAT,
        "request_id": f"req_{number}",
        "account": "acct_1",
        "model": "m",
        "created": NOW + number,
        "watermark_key_id": None,
        "request": request,
        "first": replies[0],
        "second": replies[1],
        "coin": coin,
        "salt": salt.hex(),
        "twin_commit": twin_commit(salt, coin, *replies, request),
        "seq": number + 1,
    } | more


def write_lines(path: Path, lines: Sequence[Mapping[str, Any]]) -> Path:
    path.write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))
    return path


async def ledger_of(folder: Path, entries: Sequence[Mapping[str, Any] | Event]) -> Path:
    """A real ledger with a row for each pair (a line of the export; its `seq` is set to the row's) or event."""
    async with await Database.open(f"sqlite:///{folder / 'guard.db'}") as db:
        ledger = await Ledger.open(db, commit_ms=1)
        for entry in entries:
            if isinstance(entry, Event):
                await ledger.append(entry)
                continue
            row = LedgerRow(entry["created"], entry["request_id"], entry["account"], "k", entry["model"])
            seq = await ledger.append(row._replace(twin_commit=entry.get("twin_commit")))
            entry["seq"] = seq  # type: ignore[index]
        await ledger.aclose()
        await export_ledger(db, folder / "ledger.jsonl", everything=True)
    return folder / "ledger.jsonl"


def twins(pairs: Path, ledger: Path | None = None, *, sequential: bool = False, family: int = 1, **plan: Any) -> Twins:
    inputs = {"inputs/pairs": pairs} | ({} if ledger is None else {"inputs/ledger": ledger})
    config = TwinsConfig(kind="twins", pairs="inputs/pairs", ledger=None if ledger is None else "inputs/ledger", **plan)
    return Twins(config, Evidence(inputs, b"seed", family=family, sequential=sequential))


def canaries(file: Path, ledger: Path | None = None, *, family: int = 1, **plan: Any) -> Canaries:
    inputs = {"inputs/canaries": file} | ({} if ledger is None else {"inputs/ledger": ledger})
    config = CanariesConfig(
        kind="canaries", canaries="inputs/canaries", ledger=None if ledger is None else "inputs/ledger", **plan
    )
    return Canaries(config, Evidence(inputs, b"seed", family=family))


def record(test: str, item: str, got: Any, error: str | None = None) -> types.Record:
    """One line of a transcript, after a trip through JSON."""
    return types.Record(test, item, NOW, 1, {}, json.loads(json.dumps(got)), error)


async def asked(test: types.Test, suspect: types.Suspect, batch: int = 5) -> list[types.Record]:
    """Put everything to the suspect, as a run does."""
    items, records = list(test.items()), []
    for start in range(0, len(items), batch):
        some = items[start : start + batch]
        for item, got in zip(some, await test.ask(suspect, some), strict=True):
            records.append(record(test.name, item.id, got))
    return records


class Scripted:
    """A suspect whose answers are functions of what it is asked.

    logprob: (prompt, completion) → mean log-probability a token; a token a word.  reply: (prompt, sample) → text.
    """

    access: types.Access = "logprobs"
    batch, concurrency = 4, 4
    info = TeacherInfo("scripted")

    def __init__(
        self,
        logprob: Callable[[Prompt, str], float] | None = None,
        reply: Callable[[Prompt, int], str] | None = None,
    ) -> None:
        self._logprob, self._reply = logprob, reply
        self.asked: list[tuple[Prompt, Sampling | None]] = []

    async def read(self, ids_B: Sequence[Sequence[int]]) -> list[list[int]]:
        raise NotImplementedError

    async def logprob(
        self, prompt_B: Sequence[Prompt], completion_B: Sequence[Sequence[str]]
    ) -> list[list[tuple[float, int]]]:
        assert self._logprob is not None
        self.asked += [(prompt, None) for prompt in prompt_B]
        found = []
        for prompt, texts in zip(prompt_B, completion_B, strict=True):
            sizes = [max(len(text.split()), 1) for text in texts]
            found.append([(self._logprob(prompt, text) * n, n) for text, n in zip(texts, sizes, strict=True)])
        return found

    async def complete(self, prompt: Prompt, sampling: Sampling, n: int = 1) -> tuple[Reply, ...]:
        assert self._reply is not None
        self.asked.append((prompt, sampling))
        return tuple(Reply(self._reply(prompt, sample), "stop") for sample in range(n))

    async def aclose(self) -> None: ...


def at_most(hits: int, trials: int, alpha: float) -> bool:
    """Could so many trials reach alpha if no more than a share of alpha should? Wrong once in a million."""
    from spiritsafe.pvalue import binomial

    return hits <= trials * alpha or binomial(trials, alpha, hits) > -6


def fresh_coins(seed: int, n: int) -> list[int]:
    return [int(coin) for coin in np.random.default_rng(seed).integers(0, 2, n)]


def released_of(lines: list[dict[str, Any]]) -> set[str]:
    return {line["second" if line["coin"] else "first"]["choices"][0]["message"]["content"] for line in lines}


def some_pairs(n: int, *, coins: list[int] | None = None) -> list[dict[str, Any]]:
    coins = fresh_coins(n, n) if coins is None else coins
    return [pair_line(i, f"left of {i}", f"right {i}", coin) for i, coin in enumerate(coins)]


async def stored_pairs(tmp_path: Path, lines: list[dict[str, Any]]) -> tuple[Path, Path]:
    ledger = await ledger_of(tmp_path, lines)  # sets their seq
    return write_lines(tmp_path / "twins.jsonl", lines), ledger


def opened_canary(number: int, published: int, size: int = 8, **more: Any) -> dict[str, Any]:
    variants = [f"answer {chr(97 + i)} of {number}" for i in range(size)]
    return open_canary(f"can_{number}", f"question {number}?", variants, published, number.to_bytes(32, "big")) | more
