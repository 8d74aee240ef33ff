"""What the innocents of `proof_audit_null` are asked, by the audit's own tests, and what they answered; kept."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import orjson
from benchmarks.audit_null_students import CANARIES, INNOCENTS, MARKED, TOKENS, Innocent, marked, pair_rows, weights_of
from benchmarks.audit_students import PROMPTS, Row, kept, replies
from benchmarks.study import Teacher

from spiritsafe.audit._evidence import Evidence
from spiritsafe.audit._plan import CanariesConfig, EqualityConfig, RadioactivityConfig, SimilarityConfig, TwinsConfig
from spiritsafe.audit._types import Record
from spiritsafe.audit.tests import open_test
from spiritsafe.keys import HOUSE_SLOT, KEY_BYTES, Leaf, load_keys
from spiritsafe.ledger._evidence import TWIN_FORMAT, open_canary, twin_commit
from spiritsafe.runs import atomic_write

__all__ = [
    "EQUAL",
    "GREEDY",
    "SAMPLED",
    "SAMPLES",
    "Asked",
    "fresh_keys",
    "opened",
    "radioactivity",
    "records",
    "scheme_of",
]

SAMPLED = ("untrained-4", "unmarked-1", "secret-3", "human-2")
"""Who is sampled again and again, for equality."""
GREEDY, EQUAL, SAMPLES = 16, 6, 20
"""Prompts of similarity; prompts of equality, and replies to each."""
_BATCH = 64


class Asked:
    """The study's inputs on disk, the tests made of them, and the answers of those innocents that take part."""

    def __init__(self, teacher: Teacher, run: Path, innocents: Sequence[Innocent] = INNOCENTS) -> None:
        self.teacher, self.run, self.innocents = teacher, run, innocents
        self._reading: dict[str, Any] = {}
        run.mkdir(parents=True, exist_ok=True)

    def answers(self, one: Innocent) -> dict[str, Any]:
        """Test → item → what came back."""
        return dict(kept(self.run / "said" / f"{one.name}.json", lambda: asyncio.run(self._put(one, self.tests(one)))))

    def tests(self, one: Innocent) -> dict[str, Any]:
        tests = {name: getattr(self, name.replace("-", "_")) for name in ("twins", "canaries", "canaries-text")}
        tests |= {"completions": self.completions, "similarity": self.similarity}
        tests |= {f"reading {name}": self.reading(name) for name in MARKED}
        return tests | ({"equality": self.equality} if one.name in SAMPLED else {})

    async def _put(self, one: Innocent, tests: Mapping[str, Any]) -> dict[str, Any]:
        from spiritsafe.audit._plan import SubjectConfig
        from spiritsafe.audit._suspect_weights import WeightsSuspect

        weights = weights_of(self.teacher, self.run, one)
        suspect, said = WeightsSuspect(str(weights), SubjectConfig(name=one.name, access="weights")), {}
        try:
            for name, test in tests.items():
                items, got = test.items(), []
                for start in range(0, len(items), _BATCH):
                    got += await test.ask(suspect, items[start : start + _BATCH])
                said[name] = {item.id: answer for item, answer in zip(items, got, strict=True)}
        finally:
            await suspect.aclose()
        return said

    # ── tests ──

    @functools.cached_property
    def twins(self) -> Any:
        return self._twins("likelihood")

    @functools.cached_property
    def twins_text(self) -> Any:
        return self._twins("text")

    @functools.cached_property
    def twins_stopping(self) -> Any:
        return self._twins("likelihood", sequential=True)

    def _twins(self, by: Any, sequential: bool = False) -> Any:
        lines = [_pair_line(n, *pair) for n, pair in enumerate(pair_rows(self.teacher, self.run))]
        file = _write(self.run / "pairs.jsonl", lines)
        plan = TwinsConfig(kind="twins", pairs="pairs", by=by, samples=1, max_tokens=TOKENS)
        return open_test(plan, Evidence({"pairs": file}, b"", sequential=sequential))

    @functools.cached_property
    def canaries(self) -> Any:
        return self._canaries("likelihood")

    @functools.cached_property
    def canaries_text(self) -> Any:
        return self._canaries("text")

    def _canaries(self, by: Any) -> Any:
        opened = [
            open_canary(f"can_{n}", question, answers, 0, n.to_bytes(32, "big"))
            for n, (question, answers) in enumerate(CANARIES)
        ]
        plan = CanariesConfig(kind="canaries", canaries="canaries", by=by, samples=2, max_tokens=16)
        return open_test(plan, Evidence({"canaries": _write(self.run / "canaries.jsonl", opened)}, b""))

    def texts(self, name: str) -> Path:
        """A corpus that the teacher marked."""
        file = self.run / f"texts-{marked(name).name}.jsonl"
        return file if file.exists() else _write(file, replies(self.teacher, self.run, marked(name)))

    def keys(self, name: str) -> tuple[Leaf, ...]:
        """The keys that marked it: epoch, coin, and the house account's."""
        keys, scheme = load_keys(self.run / marked(name).key_file), scheme_of(MARKED[name])
        epoch = keys.current.name
        account = keys.account_key(epoch, HOUSE_SLOT, scheme)
        return opened(keys.epoch_key(epoch, scheme), keys.coin_key(epoch, scheme), account, scheme)

    def reading(self, name: str) -> Any:
        if name not in self._reading:
            texts = self.texts(name)
            self._reading[name] = radioactivity(texts, MARKED[name], self.keys(name), tokenizer=self.teacher.path)
        return self._reading[name]

    @functools.cached_property
    def completions(self) -> Any:
        name = "kgw with accounts"
        how = {"tokenizer": self.teacher.path, "mode": "completions", "supervised": False}
        return radioactivity(self.texts(name), MARKED[name], self.keys(name), **how)

    @functools.cached_property
    def reference(self) -> Path:
        """The teacher's greedy replies, for similarity."""
        teacher = self.answers_of_teacher
        rows = [{"prompt": prompt, "completion": text} for prompt, text in zip(PROMPTS, teacher, strict=False)]
        return _write(self.run / "greedy.jsonl", rows)

    @functools.cached_property
    def answers_of_teacher(self) -> list[str]:
        from spiritsafe.records import Sampling
        from spiritsafe.teachers import Engine, GenerateJob

        def made() -> list[str]:
            sampling = Sampling(max_tokens=TOKENS, temperature=0.0)
            jobs = [GenerateJob(self.teacher.prompt(prompt), sampling) for prompt in PROMPTS[:GREEDY]]
            return [reply.text for reply in Engine(self.teacher.weights, _BATCH).generate(jobs)]

        return list(kept(self.run / "greedy-teacher.json", made))

    @functools.cached_property
    def similarity(self) -> Any:
        plan = SimilarityConfig(kind="similarity", reference="said", controls={"itself": "said"}, max_tokens=TOKENS)
        return open_test(plan, Evidence({"said": self.reference}, b""))

    @functools.cached_property
    def equality(self) -> Any:
        rows = [{"prompt": prompt, "completion": ""} for prompt in PROMPTS[:EQUAL]]
        plan = EqualityConfig(kind="equality", reference="before", samples=SAMPLES, max_tokens=24)
        return open_test(plan, Evidence({"before": _write(self.run / "equality.jsonl", rows)}, b""))


def records(test: Any, answers: Mapping[str, Any]) -> list[Record]:
    """The answers as lines of a transcript."""
    return [Record(test.name, item.id, 0.0, 1, item.asked, answers[item.id]) for item in test.items()]


def radioactivity(texts: Path, marking: Mapping[str, Any], leaves: tuple[Leaf, ...], **how: Any) -> Any:
    """The test of these keys, epoch and account, on these texts. Decoys have a study of their own."""
    if marking["account_share"] == 0:
        leaves = tuple(leaf for leaf in leaves if leaf.purpose == "epoch")
    inputs = {"texts": texts, "tokenizer": Path(how.pop("tokenizer", "no tokenizer"))}
    plan = RadioactivityConfig(
        kind="radioactivity",
        texts="texts",
        tokenizer="tokenizer",
        marking=dict(marking),
        decoys=0,
        max_tokens=TOKENS,
        **how,
    )
    return open_test(plan, Evidence(inputs, b"", leaves))


def scheme_of(marking: Mapping[str, Any]) -> str:
    return str(marking.get("scheme", "gumbel-dual"))


def fresh_keys(marking: Mapping[str, Any], random: np.random.Generator) -> tuple[Leaf, ...]:
    """Three keys that nobody ever had."""
    return opened(random.bytes(KEY_BYTES), random.bytes(KEY_BYTES), random.bytes(KEY_BYTES), scheme_of(marking))


def opened(epoch: bytes, coin: bytes, account: bytes, scheme: str) -> tuple[Leaf, ...]:
    """An epoch's key, its coin's and one account's, as an audit has them; no test reads the path to their root."""
    purposes: tuple[tuple[Literal["epoch", "coin", "account"], bytes, int | None], ...]
    purposes = (("epoch", epoch, None), ("coin", coin, None), ("account", account, HOUSE_SLOT))
    return tuple(
        Leaf(
            key_set="ks_00000000",
            purpose=purpose,
            scheme=scheme,
            epoch="2026-11",
            slot=slot,
            salt="0" * 64,
            key=key.hex(),
            index=0,
            path=(),
            trees=(),
        )
        for purpose, key, slot in purposes
    )


def _write(file: Path, rows: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(file, b"".join(orjson.dumps(row) + b"\n" for row in rows))
    return file


def _pair_line(number: int, first: Row, second: Row) -> dict[str, Any]:
    """As `evidence twins export` writes it; the coin is drawn anew in every trial."""
    request = {"model": "m", "messages": [{"role": "user", "content": first["prompt"]}]}
    said = [
        {
            "object": "chat.completion",
            "choices": [{"index": 0, "message": {"role": "assistant", "content": r["completion"]}}],
        }
        for r in (first, second)
    ]
    salt = number.to_bytes(32, "big")
    return {
        "format": TWIN_FORMAT,
        "request_id": f"req_{number}",
        "account": "acct_1",
        "model": "m",
        "created": float(number),
        "watermark_key_id": None,
        "request": request,
        "first": said[0],
        "second": said[1],
        "coin": 0,
        "salt": salt.hex(),
        "twin_commit": twin_commit(salt, 0, *said, request),
        "seq": number + 1,
    }
