"""The test of radioactivity whole: from texts and opened leaves to an outcome; what it finds, and what it refuses."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import marks_kit
import numpy as np
import pytest
from marks_kit import Keys, Language, Wrote, read, trained_on
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from spiritsafe.audit import _types as types
from spiritsafe.audit._evidence import Evidence
from spiritsafe.audit._plan import RadioactivityConfig
from spiritsafe.audit.tests._radioactive_reading import predicted
from spiritsafe.audit.tests.radioactivity import Radioactivity
from spiritsafe.errors import BadInput
from spiritsafe.keys import Commitment, Leaf, commit_keys, load_keys, new_keys, open_leaf
from spiritsafe.records import TeacherInfo
from spiritsafe.watermark import Marking, engine_detector

VOCAB, SLOTS = 96, 16
KGW = {"scheme": "kgw", "context_width": 1, "delta": 4.0, "account_share": 0.3}
ENGINES = {
    "vllm-gumbel": {"key": 5, "context_width": 2},
    "vllm-dual": {"key": 5, "context_width": 2, "alpha": 0.2},
    "sglang-gumbel": {"key": "a5", "context_window": 2},
    "sglang-dual": {"key": "a5", "key_b": "b6", "context_window": 2},
    "hf-kgw": {"vocab_size": VOCAB, "greenlist_ratio": 0.25},
}
OTHER_KEYS = {"vllm": {"key": 77}, "sglang": {"key": "77"}, "hf": {"hashing_key": 7}}


class Opened:
    """A key set with its commitment; its active epoch's keys; leaves as a plan has them."""

    def __init__(self, folder: Path, marking: Mapping[str, Any] = KGW) -> None:
        self.path, self.marking = folder / "keys.json", Marking(**marking)
        keys = new_keys(self.path, marking=dict(marking), epoch="2026-11")
        scheme = self.marking.scheme
        self.commitment: Commitment = commit_keys(self.path, slots=SLOTS)
        self.keys = Keys(
            keys.epoch_key("2026-11", scheme),
            keys.coin_key("2026-11", scheme),
            keys.account_key("2026-11", 3, scheme),
        )

    def leaf(self, purpose: Any, slot: int | None = None) -> Leaf:
        epoch = load_keys(self.path).epochs[0].name
        return open_leaf(self.path, epoch, purpose, slot, commitment=self.commitment)


def texts_file(folder: Path, texts: Sequence[Wrote], **more: Any) -> Path:
    rows = [
        {"prompt": f"question {n}", "prompt_tokens": text.prompt.tolist(), "tokens": text.ids.tolist()} | more
        for n, text in enumerate(texts)
    ]
    (folder / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "texts.jsonl"


def radioactivity(
    folder: Path, texts: Sequence[Wrote], leaves: Sequence[Leaf], commitment: Commitment | None, **plan: Any
) -> Radioactivity:
    inputs = {"texts": texts_file(folder, texts), "tokenizer": folder}
    if params := plan.pop("params", None):
        inputs["params"] = folder / "params.json"
        inputs["params"].write_text(json.dumps(params))
        plan["params"] = "params"
    plan = {"marking": KGW, "decoys": 99} | plan
    config = RadioactivityConfig(kind="radioactivity", texts="texts", tokenizer="tokenizer", **plan)
    family = 1 if commitment is None else commitment.committed["epoch"]
    return Radioactivity(config, Evidence(inputs, b"seed", tuple(leaves), commitment, family))


def records(test: Radioactivity, said: Callable[[types.Item], Mapping[str, Any] | None]) -> list[types.Record]:
    """A transcript, after a trip through JSON."""
    out = []
    for item in test.items():
        asked, got = json.loads(json.dumps([dict(item.asked), said(item)]))
        out.append(types.Record(test.name, item.id, 1.0, 1, asked, got, None if got else "server: down"))
    return out


def reader(language: Language) -> Callable[[types.Item], Mapping[str, Any]]:
    def said(item: types.Item) -> Mapping[str, Any]:
        ids, first = np.array(item.asked["ids"]), item.asked["first"]
        return {"argmax": language.next_of(ids)[first - 1 : -1].tolist()}

    return said


@pytest.fixture(scope="module")
def world() -> SimpleNamespace:
    random = np.random.default_rng(3)
    return SimpleNamespace(language=Language(VOCAB, 1.3, 2), random=random, prompts=random.integers(1, VOCAB, (96, 3)))


@pytest.mark.parametrize("scheme", ["kgw", "gumbel-dual", "synthid"])
def test_a_student_is_found_and_an_innocent_one_is_not(world: Any, tmp_path: Path, scheme: str) -> None:
    """Epoch key and the right account of 16, from real leaves; the teacher's unmarked self is not called anything."""
    marking = (KGW if scheme == "kgw" else {"context_width": 1, "account_share": 0.3}) | {"scheme": scheme}
    opened = Opened(tmp_path, marking)
    texts = world.language.texts(opened.marking, opened.keys, world.prompts, 30, world.random)
    shared = [opened.leaf("epoch"), opened.leaf("coin")]
    accounts = [opened.leaf("account", slot) for slot in range(SLOTS)]
    test = radioactivity(tmp_path, texts, [*shared, *accounts], opened.commitment, marking=marking)
    student = trained_on(world.language, texts, 8.0)
    guilty = test.judge(records(test, reader(student)))
    assert guilty.most == "proof" and guilty.family == 1
    assert guilty.log10_p < -6
    assert guilty.hypotheses[0].rank == (0, 99)
    low, high = guilty.effect["ci95"]
    assert guilty.effect["under_null"] < low < guilty.effect["value"] < high
    named = [one.facts["slot"] for one in guilty.hypotheses if one.facts["log10_p_family"] < -3]
    assert named == [None, 3]
    assert guilty.hypotheses[1].facts["family"] == SLOTS == len(guilty.hypotheses) - 1
    innocent = test.judge(records(test, reader(world.language)))
    assert all(one.facts["log10_p_family"] > -3 for one in innocent.hypotheses)
    json.dumps([dict(one.facts) for one in guilty.hypotheses], allow_nan=False)


def test_another_key_finds_nothing_and_more_committed_keys_cost_more(world: Any, tmp_path: Path) -> None:
    opened = Opened(tmp_path)
    texts = world.language.texts(opened.marking, Keys.fresh(world.random), world.prompts, 30, world.random)
    student = trained_on(world.language, texts, 8.0)
    leaves = [opened.leaf("epoch"), opened.leaf("coin")]
    test = radioactivity(tmp_path, texts, leaves, opened.commitment)
    assert test.judge(records(test, reader(student))).log10_p > -2
    alone = radioactivity(tmp_path, texts, leaves, None)
    outcome = alone.judge(records(alone, reader(student)))
    assert outcome.most == "lead"
    assert any("No commitment" in note for note in outcome.notes)


@pytest.mark.parametrize("supervised", [True, False])
def test_completions_of_a_student_are_found(world: Any, tmp_path: Path, supervised: bool) -> None:
    opened = Opened(tmp_path)
    texts = world.language.texts(opened.marking, opened.keys, world.prompts, 30, world.random)
    test = radioactivity(
        tmp_path,
        texts,
        [opened.leaf("epoch"), opened.leaf("coin")],
        opened.commitment,
        mode="completions",
        supervised=supervised,
    )
    outcomes = {}
    for name, model in {"student": trained_on(world.language, texts, 8.0), "innocent": world.language}.items():
        written = model.texts(opened.marking, None, world.prompts, 30, world.random)
        answers = {item.id: text.ids.tolist() for item, text in zip(test.items(), written, strict=True)}
        outcomes[name] = test.judge(records(test, lambda item, a=answers: {"text": "", "ids": a[item.id]}))
    assert outcomes["student"].log10_p < -4
    assert outcomes["innocent"].log10_p > -3
    facts = outcomes["student"].hypotheses[0].facts
    assert facts["p_by"] == ("e-value" if supervised else "tail")
    assert "marked_ids" in test.items()[0].asked or not supervised


@pytest.mark.parametrize("engine", ENGINES)
def test_engines_are_read(world: Any, tmp_path: Path, engine: str) -> None:
    """A suspect that knows the key says what the engine would mark; under another key that is nothing."""
    detector = engine_detector(engine, ENGINES[engine])
    texts = world.language.texts(Marking(), None, world.prompts[:48], 30, world.random)
    test = radioactivity(tmp_path, texts, [], None, engine=engine, params=ENGINES[engine], marking=None)

    def knows(item: types.Item) -> Mapping[str, Any]:
        """The best of eight tokens at each position, by the engine's own score."""
        ids, first = np.array(item.asked["ids"], np.uint32), item.asked["first"]
        best = np.full(len(ids) - first, -1.0)
        said = ids[first:].copy()
        for token in range(8, 16):
            guess = Wrote(ids[:first], ids[first:], np.full(len(ids) - first, token, np.uint32))
            reading = predicted(detector, [guess]).reading
            at, values = reading.positions - first, detector.scores(reading, 0).values
            said[at] = np.where(values > best[at], token, said[at])
            best[at] = np.maximum(values, best[at])
        return {"argmax": said.tolist()}

    found = test.judge(records(test, knows))
    assert found.log10_p < -6 and found.hypotheses[0].rank == (0, 99)
    other = ENGINES[engine] | OTHER_KEYS[engine.split("-")[0]]
    if engine == "sglang-dual":
        other["key_b"] = "78"
    wrong = radioactivity(tmp_path, texts, [], None, engine=engine, params=other, marking=None)
    assert wrong.judge(records(wrong, knows)).log10_p > -3


def test_coins_shared_between_contexts_are_only_read_in_unsupervised_completions(world: Any, tmp_path: Path) -> None:
    params = {"ngram_len": 3, "keys": [3, 5, 7]}
    texts = world.language.texts(Marking(), None, world.prompts[:8], 10, world.random)
    plan = {"engine": "hf-synthid", "params": params, "marking": None}
    for more in ({}, {"mode": "completions"}):
        with pytest.raises(BadInput, match="several contexts share"):
            radioactivity(tmp_path, texts, [], None, **plan, **more)
    test = radioactivity(tmp_path, texts, [], None, **plan, mode="completions", supervised=False)
    outcome = test.judge(records(test, lambda item: {"text": "", "ids": list(range(20))}))
    assert outcome.n_scored > 0 and outcome.log10_p <= 0


def test_what_a_run_may_bring(world: Any, tmp_path: Path) -> None:
    """Failures, early stops, tampered transcripts, missing keys: noted or refused, in one line."""
    opened = Opened(tmp_path)
    texts = world.language.texts(opened.marking, opened.keys, world.prompts[:20], 20, world.random)
    leaves = [opened.leaf("epoch"), opened.leaf("coin")]
    test = radioactivity(tmp_path, texts, leaves, opened.commitment)
    lines = records(test, reader(world.language))
    some = [*records(test, lambda item: None)[:2], *lines[2:10]]
    notes = test.judge(some).notes
    assert any(note.startswith("2 questions brought no answer") for note in notes)
    assert any(note.startswith("10 questions were not asked") for note in notes)
    nothing = test.judge([])
    assert (nothing.log10_p, nothing.n_scored) == (0.0, 0)
    json.dumps(dict(nothing.effect), allow_nan=False)

    def changed(**fields: Any) -> list[types.Record]:
        values = {name: getattr(lines[0], name) for name in types.Record.__slots__} | fields
        return [types.Record(**values)]

    for bad, said in (
        (changed(got={"argmax": [1]}), "predictions for"),
        (changed(got={"argmax": ["x"] * 20}), "not a list of token ids"),
        (changed(got={"argmax": [2**40]}), "not a list of token ids"),
        (changed(asked={"ids": [1, 2], "first": 1}), "asked otherwise"),
        (changed(item="nobody"), "not one of its questions"),
    ):
        with pytest.raises(BadInput, match=said):
            test.judge(bad)
    with pytest.raises(BadInput, match="open the coin key"):
        radioactivity(tmp_path, texts, leaves[:1], opened.commitment)
    with pytest.raises(BadInput, match="no key to test"):
        radioactivity(tmp_path, texts, leaves[1:], opened.commitment)


def tokenizer_of(folder: Path) -> Path:
    """A tokenizer of words, as a folder."""
    words = WordLevel(
        {word: n for n, word in enumerate(["?", "Say", "something", ".", "Salt", "keeps", "Rivers", "bend", "slowly"])},
        "?",
    )
    tokenizer = Tokenizer(words)
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="?").save_pretrained(folder)
    return folder


def test_texts_without_ids_are_tokenised_and_conversations_left_out(tmp_path: Path) -> None:
    opened = Opened(tmp_path)
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    rows = [
        {"prompt": "Say something.", "completion": "Salt keeps."},
        {"messages": [*turns, {"role": "user", "content": "more"}], "completion": "no"},
        {"completion": [{"role": "assistant", "content": "Rivers bend slowly."}]},
    ]
    file, folder = tmp_path / "rows.jsonl", tokenizer_of(tmp_path / "tokenizer")
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = RadioactivityConfig(kind="radioactivity", texts="texts", tokenizer="tokenizer", marking=KGW)
    leaves = (opened.leaf("epoch"), opened.leaf("coin"))
    test = Radioactivity(config, Evidence({"texts": file, "tokenizer": folder}, b"", leaves, opened.commitment))
    asked = [item.asked for item in test.items()]
    assert [one["first"] for one in asked][1] == 1 < asked[0]["first"]
    notes = test.judge(records(test, lambda item: {"argmax": item.asked["ids"][item.asked["first"] :]})).notes
    assert any("1 texts answer a conversation" in note for note in notes)
    assert any("2 texts came without token ids" in note for note in notes)

    class Other:
        info = TeacherInfo("other", tokenizer_hash="00")

    with pytest.raises(BadInput, match="tokenizer is not the teacher's"):
        asyncio.run(test.ask(Other(), test.items()))  # type: ignore[arg-type]


def test_predictions_after_used_contexts_do_not_count(world: Any) -> None:
    """Each text scores a context once, not those of its prompt, and no coin twice in all."""
    marking = Marking(**KGW)
    texts = world.language.texts(marking, None, world.prompts, 30, world.random)
    detector = marks_kit.detector(Keys.fresh(world.random), marking)
    candidates = predicted(detector, read(texts, world.language.next_of))
    epoch, account = (candidates.counted(detector, layer) for layer in ("epoch", "account"))
    both = np.concatenate([epoch.inputs, account.inputs])
    assert len(np.unique(both)) == len(both) < int(candidates.able.sum())
    assert not set(map(tuple, epoch.windows.tolist())) & set(map(tuple, account.windows.tolist()))
