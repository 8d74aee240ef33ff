"""Sketches: alike for prompts that are alike, without a word of them, in bounded work."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asks import CHAT_FULL, RESPONSES_FULL, mutated
from spiritsafe.serve._sketch import Sketch, sketch_of
from spiritsafe.wire import ApiError, Ask, parse_ask

PROMPT = (
    "Translate the following sentence from English into French and answer with nothing but the translation, please."
    " Sentence number 17: the stillman never touches the spirit. Do not add any comment of your own to it."
)


def ask(*texts: str, system: str | None = None, **more: Any) -> Ask:
    """A conversation of user and assistant turns."""
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    return parse_ask("chat", orjson.dumps({"model": "m", "messages": messages, **more}))


def raw(text: str) -> Ask:
    """As `ask`, of a text that no request could carry."""
    return Ask("chat", {}, said=[("user", text)])


def draw(*texts: str, key: bytes = b"", **more: Any) -> Sketch:
    return sketch_of(ask(*texts, **more), key=key)


def alike(a: Sketch, b: Sketch) -> float:
    """Share of permutations that agree: the words pairs' Jaccard similarity, nearly."""
    x, y = (np.frombuffer(base64.b64decode(s.sketch), np.uint8) for s in (a, b))
    return float(np.mean(x == y))


def projection(sketch: Sketch) -> np.ndarray:
    return np.frombuffer(base64.b64decode(sketch.features["projection"]), np.int8).astype(float)


# Alike and not


def test_one_prompt_one_sketch() -> None:
    assert draw(PROMPT) == draw(PROMPT)


def test_digits_and_case_do_not_matter_to_the_skeleton() -> None:
    numbered = draw("Solve problem 17 of the set, with all its parts, now and in full")
    assert numbered.skeleton == draw("solve Problem 4031 of the set, with all its parts, now and in full").skeleton
    assert (
        numbered.features["exact"]
        != draw("Solve problem 18 of the set, with all its parts, now and in full").features["exact"]
    )


def test_a_template_shows_at_its_ends_whatever_fills_it() -> None:
    head, tail = draw(PROMPT).skeleton.split("-")
    filled = draw(PROMPT.replace("the stillman never touches the spirit", "ships pass by night"))
    assert filled.skeleton == f"{head}-{tail}"
    assert draw(PROMPT + " Thanks, that is all I need from you today, my friend.").skeleton.startswith(f"{head}-")
    assert draw("Well now, my good machine, and for the last time today: " + PROMPT).skeleton.endswith(f"-{tail}")


def test_minhash_tells_how_much_two_prompts_share() -> None:
    words = [f"w{i}" for i in range(400)]
    base = draw(" ".join(words[:200]))
    same = [alike(base, draw(" ".join(words[shift : 200 + shift]))) for shift in (0, 20, 66, 200)]
    # word pairs shared: all, 179 of 219, 133 of 265, none
    assert same[0] == 1.0
    assert same == sorted(same, reverse=True)
    assert same[1] == pytest.approx(179 / 219, abs=0.2)
    assert same[2] == pytest.approx(133 / 265, abs=0.2)
    assert same[3] < 0.15
    # every byte speaks for a permutation of its own, not four for one
    x, y = (
        np.frombuffer(base64.b64decode(sketch.sketch), np.uint8) for sketch in (base, draw(" ".join(words[66:266])))
    )
    assert any(len(set(four)) == 2 for four in (x == y).reshape(16, 4).tolist())


def test_the_projection_points_where_the_words_do() -> None:
    def cosine(a: Sketch, b: Sketch) -> float:
        x, y = projection(a), projection(b)
        return float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))

    about_whisky = (
        "The spirit runs from the still through the safe into the receiver and the excise holds the key to it"
    )
    again = "Through the safe the spirit runs from the still, and the excise holds the key to it and to the receiver"
    about_code = "Write a function that reverses a linked list in place without recursion, using three pointers only"
    assert cosine(draw(about_whisky), draw(again)) > 0.7
    assert cosine(draw(about_whisky), draw(about_code)) < 0.5
    assert projection(draw(about_whisky)).shape == (64,)
    assert np.abs(projection(draw("word " * 5000))).max() == 127


def test_text_without_spaces_has_words_too() -> None:
    first = draw("请将下面的句子翻译成法语，只回答译文。句子：酒厂的工人从不接触烈酒。非常感谢你的耐心和帮助。" * 2)
    second = draw("请将下面的句子翻译成法语，只回答译文。句子：船在夜里驶过港口的灯塔。非常感谢你的耐心和帮助。" * 2)
    assert alike(first, second) > 0.3
    assert first.skeleton == second.skeleton
    assert first.features["words"] > 20


def test_prompts_of_token_ids_are_sketched_by_their_ids() -> None:
    def of(ids: list[int]) -> Sketch:
        return sketch_of(parse_ask("completions", orjson.dumps({"model": "m", "prompt": ids})))

    assert of(list(range(100, 160))) == of(list(range(100, 160)))
    assert alike(of(list(range(100, 160))), of(list(range(101, 161)))) > 0.8
    assert of(list(range(60))).skeleton != of(list(range(60, 120))).skeleton


def test_another_key_another_sketch() -> None:
    plain, keyed = draw(PROMPT), draw(PROMPT, key=b"k" * 32)
    assert plain.skeleton.split("-")[0] != keyed.skeleton.split("-")[0]
    assert plain.features["exact"] != keyed.features["exact"]
    assert plain.features["projection"] != keyed.features["projection"]
    assert alike(plain, keyed) < 0.15
    assert keyed == draw(PROMPT, key=b"k" * 32)


# Which turns


def test_the_last_user_turn_counts_and_the_one_before_is_known_by_its_hash() -> None:
    first, follow_up = draw("What is a pot still?"), draw("What is a pot still?", "A vessel.", "And a column still?")
    assert follow_up.skeleton == draw("And a column still?").skeleton
    assert follow_up.features["before"] == first.features["exact"]
    assert first.features["before"] is None
    assert (first.features["chars"], first.features["words"]) == (20, 5)


def test_the_system_prompt_is_known_by_its_hash() -> None:
    terse, other = draw("Hi", system="Be terse."), draw("Hi", system="Be kind.")
    assert terse.features["system"] not in (None, other.features["system"])
    assert terse.skeleton == other.skeleton
    assert draw("Hi").features["system"] is None


def test_parts_of_one_turn_belong_together() -> None:
    parts = [{"type": "text", "text": "one two"}, {"type": "text", "text": "three"}]
    split = parse_ask("chat", orjson.dumps({"model": "m", "messages": [{"role": "user", "content": parts}]}))
    assert sketch_of(split).features["words"] == 3


def test_nothing_said_nothing_sketched() -> None:
    for text in ("", "   \n"):
        empty = draw(text)
        assert (empty.skeleton, empty.sketch) == ("", "")
        assert "projection" not in empty.features


# Marks


@pytest.mark.parametrize(
    ("text", "marks"),
    [
        ("What time is it in Oban?", set()),
        ("Think about it STEP BY STEP before you answer", {"cot"}),
        ("Articulate the internal reasoning behind the answer", {"cot"}),
        ("Denke Schritt für Schritt nach", {"cot"}),
        ("Explica tu respuesta paso a paso", {"cot"}),
        ("Рассуждай шаг за шагом", {"cot"}),
        ("请一步一步思考", {"cot"}),
        ("Please explain your answer", {"explain"}),
        ("Grade the essay on a scale of 1 to 10 using this rubric", {"rubric"}),
        ("Reply in JSON only", {"json"}),
        ("The staircase has one step", set()),
    ],
)
def test_what_a_prompt_asks_for(text: str, marks: set[str]) -> None:
    features = draw(text).features
    assert {name for name in ("cot", "explain", "rubric", "json") if features[name]} == marks


def test_a_schema_asks_for_json() -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "a", "schema": {}}}
    assert draw("Hello there", response_format=schema).features["json"]
    assert not draw("Hello there", response_format={"type": "text"}).features["json"]
    assert sketch_of(parse_ask("responses", orjson.dumps(RESPONSES_FULL))).features["json"]
    assert draw("Hello", tools=CHAT_FULL["tools"]).features["tools"]


def test_leaning_on_what_was_said() -> None:
    assert draw("And what about the second of these?").features["refers"]
    assert not draw("Describe the distillation of malt whisky.").features["refers"]


@pytest.mark.parametrize(
    ("text", "furniture"),
    [
        ("Tell me a joke", 0),
        ("### Instruction:\nDo it\n\n### Input:\nx\n", 2),
        ("<task>do</task>\n---\n1. one\n2. two\n```py\n```\n{{slot}}", 4),
    ],
)
def test_furniture_of_templates(text: str, furniture: int) -> None:
    assert draw(text).features["template"] >= furniture
    assert (draw(text).features["template"] == 0) == (furniture == 0)


@pytest.mark.parametrize(
    ("text", "script"),
    [("Hello", "latin"), ("Grüße aus Köln", "latin"), ("Привет, мир", "cyrillic"), ("你好，世界", "han"), ("こんにちは", "kana"),
     ("안녕하세요", "hangul"), ("مرحبا", "arabic"), ("नमस्ते", "indic"), ("Γειά σου", "greek"), ("שלום", "hebrew"), ("สวัสดี", "thai"), ("👍👍", "other")],
)  # fmt: skip
def test_scripts(text: str, script: str) -> None:
    assert draw(text).features["script"] == script


# What is kept


def test_no_word_of_a_prompt_is_kept_unless_asked_for() -> None:
    said = ask(PROMPT, "Certainly", PROMPT + " Distinctive", system="Confidential instructions")
    kept = orjson.dumps([sketch_of(said).skeleton, sketch_of(said).sketch, sketch_of(said).features]).decode().lower()
    for word in ("translate", "stillman", "spirit", "distinctive", "confidential", "certainly"):
        assert word not in kept
    full = sketch_of(said, keep_prompt=True).features["prompt"]
    assert full == [
        ["system", "Confidential instructions"],
        ["user", PROMPT],
        ["assistant", "Certainly"],
        ["user", PROMPT + " Distinctive"],
    ]


def test_a_sketch_is_small_whatever_the_prompt() -> None:
    for text in ("x", PROMPT, PROMPT * 1000, "汉" * 100_000):
        assert len(orjson.dumps(draw(text).features)) < 600


# Hostile


@pytest.mark.parametrize(
    "text",
    ["a" * 1_000_000, "汉" * 1_000_000, " " * 1_000_000, "a " * 500_000, "\0" * 1000, "\ud800\udc00\ud800", "é" * 9000,
     "\u2028" * 100, "İ" * 9000, "ß" * 9000, "1" * 100_000, "\ud800 step by step"],
    ids=range(12),
)  # fmt: skip
def test_hostile_prompts_are_sketched(text: str) -> None:
    sketch = sketch_of(raw(text), keep_prompt=False)
    orjson.dumps(sketch.features)
    assert sketch.features["chars"] == len(text)


def test_of_a_long_text_only_the_ends_are_looked_at() -> None:
    start, end = "begin here " * 1000, " end there" * 1000
    a, b = (draw(start + middle * 50_000 + end) for middle in ("first ", "other "))
    assert a == b


@given(st.text(st.characters(), max_size=200))
def test_any_text_is_sketched(text: str) -> None:
    sketch = sketch_of(raw(text), key=b"k")
    assert bool(sketch.sketch) == bool(text.split())
    if sketch.sketch:
        assert len(base64.b64decode(sketch.sketch)) == 64
        assert len(sketch.skeleton) == 33


@given(mutated())
@settings(max_examples=150)
def test_any_request_is_sketched(request: tuple[Any, bytes]) -> None:
    try:
        read = parse_ask(*request)
    except ApiError:
        return
    orjson.dumps(sketch_of(read, keep_prompt=True).features)
