"""Radioactivity of `proof_audit_null`: fresh keys on recorded answers, and keys that really made the texts."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import orjson
from benchmarks.audit_null_answers import Asked, fresh_keys, opened, radioactivity, records
from benchmarks.audit_null_students import GUILTY, MARKED
from benchmarks.small_language import Keys, Language, copying, trained_on

from spiritsafe.watermark import Marking

__all__ = ["FRESH", "language", "made", "made_supervised", "recorded"]

Trials = Iterator[Mapping[str, float]]
Run = Callable[[Asked, np.random.Generator, int], Trials]
FRESH: dict[str, dict[str, Any]] = {
    "kgw": {"scheme": "kgw", "delta": 3.0, "account_share": 0.3, "surprise_bits": 0.0},
    "gumbel": {"account_share": 0.3, "surprise_bits": 0.0},
    "synthid": {"scheme": "synthid", "account_share": 0.3, "surprise_bits": 0.0},
}
_VOCAB, _TEXTS, _LENGTH = 64, 16, 30


def recorded(marking: dict[str, Any], name: str) -> Run:
    """Fresh keys on what innocents predicted in texts that another key marked, or wrote themselves."""
    how: dict[str, Any] = {} if name.startswith("reading") else {"mode": "completions", "supervised": False}
    corpus = name.removeprefix("reading ") if name.startswith("reading") else "kgw with accounts"

    def run(asked: Asked, random: np.random.Generator, trials: int) -> Trials:
        said = [asked.answers(one)[name] for one in asked.innocents]
        for answers in itertools.islice(itertools.cycle(said), trials):
            test = radioactivity(asked.texts(corpus), marking, fresh_keys(marking, random), **how)
            yield layers(test.judge(records(test, answers)))

    return run


def made(asked: Asked, random: np.random.Generator, trials: int) -> Trials:
    """The key that the embedded teacher marked each corpus with, on every innocent of this key."""
    for name in MARKED:
        test = asked.reading(name)
        for one in asked.innocents:
            if one.name != GUILTY.get(name):
                yield layers(test.judge(records(test, asked.answers(one)[f"reading {name}"])))


def made_supervised(asked: Asked, random: np.random.Generator, trials: int) -> Trials:
    """The same keys and texts; the innocents wrote replies to their prompts."""
    for name in MARKED:
        keys, texts = asked.keys(name), asked.texts(name)
        test = radioactivity(texts, MARKED[name], keys, mode="completions", supervised=True)
        for one in asked.innocents:
            if one.name != GUILTY.get(name):
                yield layers(test.judge(records(test, asked.answers(one)["completions"])))


def language(scheme: str, width: int, mode: str) -> Run:
    """A teacher that is a small language writes texts with a fresh key in every trial; its innocents take turns: the
    unmarked teacher, a student of another key's texts, one that copies from its context."""
    settings = FRESH[scheme] | {"context_width": width}
    marking = Marking.model_validate(settings)

    def run(asked: Asked, random: np.random.Generator, trials: int) -> Trials:
        spoken = Language(_VOCAB, 1.6, 1)
        with TemporaryDirectory() as folder:
            for number in range(trials):
                keys, prompts = Keys.fresh(random), random.integers(1, _VOCAB, (_TEXTS, 3))
                if number % 10 == 0:
                    other = spoken.texts(marking, Keys.fresh(random), prompts, _LENGTH, random)
                    student = trained_on(spoken, other)
                marked = spoken.texts(marking, keys, prompts, _LENGTH, random)
                leaves = opened(keys.epoch, keys.coin, keys.account, marking.scheme)
                test = _test(Path(folder) / "texts.jsonl", marked, settings, leaves, mode)
                if mode == "reading":
                    predict = (spoken.next_of, student.next_of, copying(spoken))[number % 3]
                    said = {item.id: _read(item.asked, predict) for item in test.items()}
                else:
                    written = (spoken, student)[number % 2].texts(marking, None, prompts, _LENGTH, random)
                    said = {
                        item.id: {"text": "", "ids": w.ids.tolist()}
                        for item, w in zip(test.items(), written, strict=True)
                    }
                yield layers(test.judge(records(test, said)))

    return run


def layers(outcome: Any) -> dict[str, float]:
    """p of the epoch's key and of the account's, each the only one of its layer."""
    return {one.facts["layer"]: float(one.facts["log10_p_family"]) for one in outcome.hypotheses}


def _test(file: Path, marked: Any, settings: Mapping[str, Any], leaves: Any, mode: str) -> Any:
    rows = [
        {"prompt": "-", "completion": "", "tokens": text.ids.tolist(), "prompt_tokens": text.prompt.tolist()}
        for text in marked
    ]
    file.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    if mode == "reading":
        return radioactivity(file, settings, leaves)
    return radioactivity(file, settings, leaves, mode="completions", supervised=mode == "supervised")


def _read(asked: Mapping[str, Any], predict: Any) -> dict[str, Any]:
    return {"argmax": predict(np.asarray(asked["ids"], np.int64))[asked["first"] - 1 : -1].tolist()}
