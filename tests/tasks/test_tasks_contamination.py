"""Contamination finds planted overlaps of every kind and leaves templates and short answers alone."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spiritsafe.errors import BadInput
from spiritsafe.tasks import Contamination, HeldOut, collapse, jaccard, read_held_out, shingles, words

WORDS = st.lists(st.sampled_from("abcdefghij"), max_size=40)


def text_of(rng: random.Random, n: int) -> str:
    return " ".join(f"w{rng.randrange(10_000)}" for _ in range(n))


def test_same_question_in_other_spelling() -> None:
    index = Contamination([HeldOut("q1", "What is a heap?")])
    assert index.find("WHAT  is, a heap", is_question=True) == "asks the same as held-out q1"
    assert index.find("What is a tree?", is_question=True) is None


def test_shared_run_of_thirteen_words() -> None:
    rng = random.Random(1)
    held = text_of(rng, 60)
    index = Contamination([HeldOut("q1", held)])
    planted = " ".join(held.split()[20:33])
    found = index.find(f"{text_of(rng, 80)} {planted} {text_of(rng, 80)}", is_question=False)
    assert found is not None and "shares 13 words with held-out q1" in found and planted in found
    twelve = " ".join(held.split()[20:32])
    assert index.find(f"{text_of(rng, 80)} {twelve} {text_of(rng, 80)}", is_question=False) is None


def test_near_duplicate_without_a_long_run() -> None:
    held = [f"w{i}" for i in range(12)]
    index = Contamination([HeldOut("q1", " ".join(held))])
    assert "near-duplicate of held-out q1" in (index.find(" ".join([*held, "please"]), is_question=True) or "")
    assert (
        Contamination([HeldOut("q1", " ".join(held))], threshold=None).find(" ".join([*held, "x"]), is_question=True)
        is None
    )


def test_short_answers_are_no_sign() -> None:
    index = Contamination([HeldOut("q1", "Is the moon round?"), HeldOut("q1", "Yes, it is.", is_question=False)])
    assert len(index) == 1
    assert index.find("Yes, it is.", is_question=False) is None


def test_templates_are_boilerplate_but_repeats_of_one_prompt_are_not() -> None:
    template = "Explain in two short sentences for a beginner in Python what the following function of the standard library does: {}"
    held = template.format("os.walk")
    training = [(template.format(f"module{i}.function{i}"), f"It does {i}.") for i in range(12)]
    index = Contamination([HeldOut("q1", held)])
    assert index.find(training[0][0], is_question=True) is not None
    index.ignore_common(training)
    assert all(index.find(prompt, is_question=True) is None for prompt, _ in training)
    assert index.find(held, is_question=True) is not None
    again = Contamination([HeldOut("q1", held)])
    again.ignore_common([training[0]] * 50)
    assert again.find(training[0][0], is_question=True) is not None


@given(st.lists(WORDS, min_size=1, max_size=6), WORDS, st.integers(5, 8))
def test_agrees_with_the_definition(held: list[list[str]], text: list[str], n: int) -> None:
    """Against a naive reading of the three signs, over a vocabulary small enough for overlaps to be common."""
    index = Contamination([HeldOut(str(i), " ".join(h)) for i, h in enumerate(held)], ngram=n)

    def runs(units: list[str]) -> set[tuple[str, ...]]:
        return {tuple(units[i : i + n]) for i in range(len(units) - n + 1)}

    overlaps = any(
        h and text and (h == text or runs(h) & runs(text) or jaccard(shingles(h, 5), shingles(text, 5)) >= 0.8)
        for h in held
    )
    assert (index.find(" ".join(text), is_question=True) is not None) == bool(overlaps)


@given(st.text(max_size=60), st.integers(1, 8))
def test_shingles_cover_and_jaccard_is_a_similarity(text: str, size: int) -> None:
    own = shingles(text, size)
    assert len(own) <= max(1, len(text) - size + 1)
    assert bool(own) == bool(text)
    assert jaccard(own, own) == 1.0
    assert jaccard(own, own | {"something else entirely, longer than any"}) < 1.0
    assert collapse(collapse(text)) == collapse(text)


def test_words_of_unspaced_scripts() -> None:
    assert words("堆是什么？Ｈｅａｐ!") == ["堆", "是", "什", "么", "heap"]


def test_reads_benchmarks(tmp_path: Path) -> None:
    lines = [
        {"question": "Why?", "answer": "Because.", "id": 3},
        {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "Hm?"}]},
    ]
    jsonl = tmp_path / "b.jsonl"
    jsonl.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    read = [(h.text, h.is_question) for h in read_held_out(jsonl)]
    assert read == [("Why?", True), ("Because.", False), ("Hm?", True)]
    pq.write_table(pa.table({"stem": ["How?"], "n": [1]}), tmp_path / "b.parquet")
    assert [h.text for h in read_held_out(tmp_path / "b.parquet", ("stem",))] == ["How?"]
    with pytest.raises(BadInput, match=r"it has n, stem"):
        list(read_held_out(tmp_path / "b.parquet"))


@pytest.mark.parametrize(
    ("content", "says"),
    [('{"text": "a"}\n{oops', "b.jsonl:2: not JSON"), ("[1]", "b.jsonl:1: expected an object"), ("", "it has no rows")],
)
def test_bad_benchmarks(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "b.jsonl").write_text(content)
    with pytest.raises(BadInput, match=says):
        list(read_held_out(tmp_path / "b.jsonl"))


def test_missing_benchmarks(tmp_path: Path) -> None:
    for name in ("none.jsonl", "none.parquet"):
        with pytest.raises(BadInput, match="no such file"):
            list(read_held_out(tmp_path / name))
    (tmp_path / "bad.parquet").write_text("x")
    with pytest.raises(BadInput, match="not a readable Parquet"):
        list(read_held_out(tmp_path / "bad.parquet"))
    (tmp_path / "latin.jsonl").write_bytes(b'{"text": "\xff"}')
    with pytest.raises(BadInput, match="UTF-8"):
        list(read_held_out(tmp_path / "latin.jsonl"))
