"""Model equality: exact under the null, finds a change, draws that anybody can repeat, hostile input."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import leads_kit as kit
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spiritsafe.audit import _types as types
from spiritsafe.audit._evidence import Evidence
from spiritsafe.audit._plan import EqualityConfig
from spiritsafe.audit.tests import equality, open_test
from spiritsafe.errors import BadInput
from spiritsafe.records import Prompt, Reply, Sampling, TeacherInfo

SENTENCE = "a list is a mutable sequence of objects and it can be sorted in place or joined with another"
WORDS = SENTENCE.split(" ")


def says(rng: np.random.Generator, prompt: int, change: float = 0.0, repeats: bool = False) -> str:
    """A reply to a prompt: half a dozen words, most of them the prompt's own; `change` swaps the favourites."""
    favourites = np.random.default_rng(prompt).permutation(len(WORDS))[:4]
    out = []
    for _ in range(6):
        if rng.random() < 0.7:
            i = int(favourites[rng.integers(4)])
            out.append(WORDS[(i + 1) % len(WORDS)] if rng.random() < change else WORDS[i])
        else:
            out.append(WORDS[int(rng.integers(len(WORDS)))])
    return " ".join([out[0]] * 6 if repeats else out)


def make(folder: Path, rows: Sequence[tuple[str, str]], seed: bytes = b"seed", **config: Any) -> types.Test:
    path = kit.write_replies(folder / "reference.jsonl", rows)
    plan = EqualityConfig(kind="equality", reference="inputs/r", **config)
    return open_test(plan, Evidence({"inputs/r": path}, seed))


def asked_about(item: types.Item) -> int:
    return int(item.asked["messages"][0]["content"].split()[-1])


@pytest.mark.parametrize("repeats", [False, True])
def test_the_null_is_never_rejected_too_often(tmp_path: Path, repeats: bool) -> None:
    seen = []
    for trial in range(500):
        rng = np.random.default_rng([trial, repeats])
        rows = [(f"prompt {p}", says(rng, p, repeats=repeats)) for p in range(3) for _ in range(4)]
        test = make(tmp_path, rows, bytes([trial % 256, trial // 256]), samples=3, permutations=1999)
        seen.append(test.judge(kit.texts(test, lambda i: says(rng, asked_about(i), repeats=repeats))).log10_p)  # noqa: B023
    kit.never_above(seen)
    assert min(seen) < -1


def test_another_model_is_found(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    rows = [(f"prompt {p}", says(rng, p)) for p in range(25) for _ in range(10)]
    test = make(tmp_path, rows, samples=10)
    same = test.judge(kit.texts(test, lambda i: says(rng, asked_about(i))))
    other = test.judge(kit.texts(test, lambda i: says(rng, asked_about(i), change=0.6)))
    assert same.log10_p > -2 and other.log10_p == pytest.approx(-4.0)
    assert other.hypotheses[0].rank == (0, 9_999) and other.n_scored == 250
    assert other.effect["value"] > other.effect["under_null"]
    assert other.most == "lead" and test.access == "text"


def test_the_statistic_is_the_v_statistic_of_the_paper() -> None:
    rng = np.random.default_rng(0)
    texts = [says(rng, p) for p in (1, 1, 1, 2, 2)]
    apart = equality.distances(texts)
    n, m = 3, 2
    kernel = 10_000 - apart
    weights = np.array([1 / n] * n + [-1 / m] * m)
    mmd = weights @ kernel @ weights
    assert equality.discrepancies(apart, n, 0, b"")[0] == pytest.approx(n * m / (n + m) * mmd)


@given(st.lists(st.text(max_size=12), min_size=1, max_size=5))
@settings(max_examples=60, deadline=None)
def test_distances_count_characters(texts: list[str]) -> None:
    apart = equality.distances(texts)
    for i, a in enumerate(texts):
        for j, b in enumerate(texts):
            longest = max(len(a), len(b))
            differ = sum(a[k : k + 1] != b[k : k + 1] for k in range(longest))
            assert apart[i, j] == differ


def test_the_same_draws_in_pure_python() -> None:
    """What a verifier without numpy does, and a golden value: the draws must never change."""
    texts = ["a list is mutable", "a list is a row of objects", "a tuple is not", "it sorts", ""]
    apart, n, total, seed = equality.distances(texts), 3, 5, b"golden"
    theirs = equality.discrepancies(apart, n, 2_345, seed)
    for permutation in (0, 999, 1000, 2344):
        block, row = divmod(permutation, 1000)
        rows = min(1000, 2_345 - 1000 * block)
        drawn = hashlib.shake_256(seed + block.to_bytes(8, "big")).digest(8 * total * rows)
        keys = [int.from_bytes(drawn[8 * (row * total + i) :][:8], "big") for i in range(total)]
        before = sorted(range(total), key=lambda i: keys[i])[:n]
        now = [i for i in range(total) if i not in before]

        def mean(a: list[int], b: list[int]) -> float:
            return sum(apart[i, j] for i in a for j in b) / (len(a) * len(b))

        value = n * 2 / 5 * (2 * mean(before, now) - mean(before, before) - mean(now, now))
        assert theirs[1 + permutation] == pytest.approx(value)
    assert float(theirs[1:].sum()) == pytest.approx(41_342.0)


def test_failures_are_left_out_and_noted(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    rows = [(f"prompt {p}", "the same") for p in range(4) for _ in range(4)]
    test = make(tmp_path, rows, samples=2, permutations=99)
    outcome = test.judge(kit.texts(test, lambda i: None if asked_about(i) == 1 else says(rng, 3)))
    assert outcome.n_scored == 6 and outcome.hypotheses[0].facts["prompts"] == 3
    assert any("2 of 8 requests" in note for note in outcome.notes)
    assert any("cache" in note for note in outcome.notes)
    nothing = test.judge(kit.texts(test, lambda i: None))
    assert nothing.log10_p == 0.0 and nothing.n_scored == 0
    assert test.judge([]).log10_p == 0.0
    again = kit.texts(test, lambda i: None) + kit.texts(test, lambda i: "the same")
    assert test.judge(again).n_scored == 8


async def test_it_asks_what_the_plan_says(tmp_path: Path) -> None:
    test = make(tmp_path, [("prompt 1", "x"), ("prompt 2", "y")], samples=3, max_tokens=7, temperature=0.5)
    said: list[tuple[Prompt, Sampling]] = []

    class Parrot:
        info, access, batch, concurrency = TeacherInfo("parrot"), "text", 4, 2

        async def complete(self, prompt: Prompt, sampling: Sampling, n: int = 1) -> tuple[Reply, ...]:
            said.append((prompt, sampling))
            return (Reply(prompt.messages[-1].content, "stop"),)

    items = test.items()
    assert len({item.id for item in items}) == len(items) == 6 and all(item.tokens_out == 7 for item in items)
    got = await test.ask(Parrot(), items[:4])  # type: ignore[arg-type]
    assert [g["text"] for g in got] == ["prompt 1"] * 3 + ["prompt 2"]
    assert all(sampling == Sampling(max_tokens=7, temperature=0.5) for _, sampling in said)


@pytest.mark.parametrize(
    ("content", "says_what"),
    [
        (b"", "no replies in it"),
        (b"not json\n", "reference.jsonl:1: not valid JSON"),
        (b"[1]\n", "holds a list"),
        (b'{"prompt": 3, "completion": "x"}\n', "prompt has to be text"),
        (b'{"prompt": [], "completion": "x"}\n', "prompt has to be text"),
        (b'{"prompt": "a", "completion": NaN}\n', "not valid JSON"),
        (b'{"prompt": "a", "completion": null}\n', "completion has to be text"),
        (b'{"prompt": "a", "completion": "\xff"}\n', "not valid JSON"),
        (b'{"prompt": ' + b"[" * 5000 + b"]" * 5000 + b"}\n", "not valid JSON"),
        (b'{"prompt": "' + b"a" * (5 << 20) + b'", "completion": "x"}\n', "more than 4 MiB"),
        (b'{"prompt": "a", "completion": "x"}\n' * 2_001, "more than 2,000 replies"),
    ],
)
def test_a_bad_reference_is_one_line(tmp_path: Path, content: bytes, says_what: str) -> None:
    (tmp_path / "reference.jsonl").write_bytes(content)
    plan = EqualityConfig(kind="equality", reference="inputs/r")
    with pytest.raises(BadInput, match=says_what) as caught:
        open_test(plan, Evidence({"inputs/r": tmp_path / "reference.jsonl"}, b""))
    assert "\n" not in str(caught.value)


def test_a_transcript_of_something_else_is_refused(tmp_path: Path) -> None:
    test = make(tmp_path, [("prompt 1", "x")], samples=1)
    (good,) = kit.texts(test, lambda i: "x")
    for bad, what in (
        (replace(good, item="elsewhere-0"), "not one of its questions"),
        (replace(good, asked={"messages": [], "sample": 0}), "asked otherwise"),
        (replace(good, got={"text": 7}), "has no text"),
        (replace(good, got={}), "has no text"),
    ):
        with pytest.raises(BadInput, match=what):
            test.judge([bad])
