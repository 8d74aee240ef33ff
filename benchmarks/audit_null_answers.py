"""What the innocents of `proof_audit_null` are asked, by the audit's own tests, and what they answered; kept."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import orjson
from benchmarks.audit_null_students import CANARIES, COUNT, INNOCENTS, TOKENS, Innocent, pair_rows, weights_of
from benchmarks.audit_students import PROMPTS, Corpus, Row, kept, replies
from benchmarks.study import Teacher

from spiritsafe.audit._evidence import Evidence
from spiritsafe.audit._plan import CanariesConfig, EqualityConfig, RadioactivityConfig, SimilarityConfig, TwinsConfig
from spiritsafe.audit._types import Record
from spiritsafe.audit.tests import open_test
from spiritsafe.keys import KeySet, Leaf, load_keys, new_keys
from spiritsafe.ledger._evidence import TWIN_FORMAT, open_canary, twin_commit
from spiritsafe.runs import atomic_write

__all__ = ["FRESH", "KEYS", "SAMPLED", "Asked", "fresh_leaves", "leaves_of", "radioactivity", "records"]

FRESH: dict[str, dict[str, Any]] = {
    "kgw": {"scheme": "kgw", "context_width": 1, "delta": 3.0, "account_share": 0.3, "surprise_bits": 0.0},
    "gumbel": {"context_width": 1, "account_share": 0.3, "surprise_bits": 0.0},
    "synthid": {"scheme": "synthid", "context_width": 2, "account_share": 0.3, "surprise_bits": 0.0},
}
"""Markings under which the teacher writes a few texts for each of many keys."""
KEYS, TEXTS, LENGTH = 9 * len(INNOCENTS), 4, 32
"""Keys of a scheme, texts of a key, tokens of a text. Each key is tried on one innocent."""
SAMPLED = ("teacher", "untrained-12", "unmarked-1", "secret-3")
"""Who is sampled again and again, for equality."""
_BATCH, _SAMPLES, _EQUAL = 64, 24, 8


class Asked:
    """The study's inputs on disk, the tests made of them, and the innocents' answers."""

    def __init__(self, teacher: Teacher, run: Path) -> None:
        self.teacher, self.run = teacher, run
        run.mkdir(parents=True, exist_ok=True)

    def answers(self, one: Innocent) -> dict[str, Any]:
        """Test → item → what came back."""
        return dict(kept(self.run / "said" / f"{one.name}.json", lambda: asyncio.run(self._put(one, self.tests(one)))))

    def fresh_answers(self, one: Innocent, scheme: str) -> dict[str, Any]:
        """Likewise for the texts of this innocent's keys: number of the key → item → what came back."""
        tests = {str(number): self.fresh_test(scheme, number) for number in self.keys_of(one)}
        return dict(kept(self.run / "said" / f"{one.name}-{scheme}.json", lambda: asyncio.run(self._put(one, tests))))

    def keys_of(self, one: Innocent) -> range:
        return range(INNOCENTS.index(one), KEYS, len(INNOCENTS))

    def tests(self, one: Innocent) -> dict[str, Any]:
        tests = {name: getattr(self, name.replace("-", "_")) for name in ("twins", "canaries", "canaries-text")}
        tests |= {"completions": self.completions, "reading": self.reading, "similarity": self.similarity}
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

    @functools.cached_property
    def texts(self) -> Path:
        """Texts that the teacher marked with a key that no trial draws."""
        from benchmarks.audit_null_students import OTHER_KEYS

        corpus = Corpus("other-kgw1", 0, COUNT, TOKENS, marking=OTHER_KEYS["kgw1"], seed=20)
        return _write(self.run / "texts.jsonl", replies(self.teacher, self.run, corpus))

    @functools.cached_property
    def reading(self) -> Any:
        return radioactivity(self.texts, FRESH["kgw"], fresh_leaves(FRESH["kgw"], np.random.default_rng(0)))

    @functools.cached_property
    def completions(self) -> Any:
        leaves = fresh_leaves(FRESH["kgw"], np.random.default_rng(0))
        return radioactivity(
            self.texts, FRESH["kgw"], leaves, tokenizer=self.teacher.path, mode="completions", supervised=False
        )

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
            sampling = Sampling(max_tokens=LENGTH, temperature=0.0)
            jobs = [GenerateJob(self.teacher.prompt(prompt), sampling) for prompt in PROMPTS[: COUNT // 2]]
            return [reply.text for reply in Engine(self.teacher.weights, _BATCH).generate(jobs)]

        return list(kept(self.run / "greedy-teacher.json", made))

    @functools.cached_property
    def similarity(self) -> Any:
        plan = SimilarityConfig(kind="similarity", reference="said", controls={"itself": "said"}, max_tokens=LENGTH)
        return open_test(plan, Evidence({"said": self.reference}, b""))

    @functools.cached_property
    def equality(self) -> Any:
        rows = [{"prompt": prompt, "completion": ""} for prompt in PROMPTS[:_EQUAL]]
        plan = EqualityConfig(kind="equality", reference="before", samples=_SAMPLES, max_tokens=24)
        return open_test(plan, Evidence({"before": _write(self.run / "equality.jsonl", rows)}, b""))

    # ── texts really marked with the key that is tried ──

    def fresh_test(self, scheme: str, number: int, **how: Any) -> Any:
        """Reading the texts of one key, with that key opened; with `how`, another mode."""
        file = self.run / "fresh" / scheme / f"{number}.jsonl"
        if not file.exists():
            self.write_fresh(scheme)
        keys = load_keys(file.with_suffix(".json"))
        return radioactivity(file, FRESH[scheme], leaves_of(keys, FRESH[scheme]), **how)

    def write_fresh(self, scheme: str) -> None:
        """A few texts a key, by the embedded teacher; goes on where it stopped."""
        from spiritsafe.records import Sampling
        from spiritsafe.teachers import Engine, GenerateJob
        from spiritsafe.watermark import Markers

        folder, engine = self.run / "fresh" / scheme, Engine(self.teacher.weights, _BATCH)
        folder.mkdir(parents=True, exist_ok=True)
        left = [number for number in range(KEYS) if not (folder / f"{number}.jsonl").exists()]
        for start in range(0, len(left), _BATCH // TEXTS):
            some, jobs = left[start : start + _BATCH // TEXTS], []
            for number in some:
                file = folder / f"{number}.json"
                markers = Markers(load_keys(file) if file.exists() else new_keys(file, marking=FRESH[scheme]))
                for prompt in self.prompts_of(number):
                    marker = markers.marker(markers.key_id(), np.random.default_rng([number, len(jobs)]))
                    jobs.append(GenerateJob(self.teacher.prompt(prompt), Sampling(max_tokens=LENGTH), processor=marker))
            done = list(zip(jobs, engine.generate(jobs), strict=True))
            for at, number in enumerate(some):
                mine = done[TEXTS * at : TEXTS * (at + 1)]
                rows = [
                    {
                        "prompt": prompt,
                        "completion": reply.text,
                        "tokens": reply.token_ids,
                        "prompt_tokens": j.prompt_ids,
                    }
                    for prompt, (j, reply) in zip(self.prompts_of(number), mine, strict=True)
                ]
                _write(folder / f"{number}.jsonl", rows)

    @staticmethod
    def prompts_of(number: int) -> tuple[str, ...]:
        first = TEXTS * number % COUNT
        return PROMPTS[first : first + TEXTS]


def records(test: Any, answers: Mapping[str, Any]) -> list[Record]:
    """The answers as lines of a transcript."""
    return [Record(test.name, item.id, 0.0, 1, item.asked, answers[item.id]) for item in test.items()]


def radioactivity(texts: Path, marking: Mapping[str, Any], leaves: tuple[Leaf, ...], **how: Any) -> Any:
    """The test of these keys, epoch and account, on these texts. Decoys have a study of their own."""
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


def leaves_of(keys: KeySet, marking: Mapping[str, Any]) -> tuple[Leaf, ...]:
    """Epoch, coin and the house account's key of a key set."""
    epoch, scheme = keys.current.name, str(marking.get("scheme", "gumbel-dual"))
    return _leaves(
        keys.epoch_key(epoch, scheme), keys.coin_key(epoch, scheme), keys.account_key(epoch, 0, scheme), scheme
    )


def fresh_leaves(marking: Mapping[str, Any], random: np.random.Generator) -> tuple[Leaf, ...]:
    """The same of no key set: three new keys."""
    epoch, coin, account = (random.bytes(16) for _ in range(3))
    return _leaves(epoch, coin, account, str(marking.get("scheme", "gumbel-dual")))


def _leaves(epoch: bytes, coin: bytes, account: bytes, scheme: str) -> tuple[Leaf, ...]:
    keys: tuple[tuple[Literal["epoch", "coin", "account"], bytes], ...]
    keys = (("epoch", epoch), ("coin", coin), ("account", account))
    return tuple(
        Leaf(
            key_set="ks_00000000",
            purpose=purpose,
            scheme=scheme,
            epoch="2026-11",
            slot=0 if purpose == "account" else None,
            salt="0" * 64,
            key=key.hex(),
            index=0,
            path=(),
            trees=(),
        )
        for purpose, key in keys
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
