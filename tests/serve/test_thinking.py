"""Reasoning between tags is taken out, wherever the stream is cut."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spiritsafe.serve._thinking import Start, Thinking, Withheld, start_after

PAIRS = [
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
]

OUTSIDE = Start()


def whole(text: str, start: Start = OUTSIDE) -> str:
    thinking = Thinking(start, whole=True)
    return thinking.feed(text) + thinking.finish()


def streamed(pieces: list[str], start: Start = OUTSIDE) -> str:
    thinking = Thinking(start)
    return "".join(thinking.feed(piece) for piece in pieces) + thinking.finish()


def cuts(text: str, at: list[int]) -> list[str]:
    edges = [0, *sorted(min(cut, len(text)) for cut in at), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(edges)]


@pytest.mark.parametrize(("opener", "closer"), PAIRS)
def test_what_stands_between_the_tags_goes(opener: str, closer: str) -> None:
    text = f"{opener}secret{closer}\n\nanswer"
    assert whole(text) == "answer"
    for cut in range(len(text) + 1):
        assert streamed([text[:cut], text[cut:]]) == "answer"
    assert streamed(list(text)) == "answer"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("no reasoning", "no reasoning"),
        ("a <think>secret</think> b", "a b"),
        ("a<think>secret</think>b<think>secret</think>c", "abc"),
        ("<think>secret, cut short", ""),
        ("<think>a<think>secret</think>answer", "answer"),
        ("<think>a </thinking> secret</think>answer", "answer"),
        ("<think></think>answer", "answer"),
        ("a < b and [x] </p> <thin ice>", "a < b and [x] </p> <thin ice>"),
        ("ends with <thi", "ends with <thi"),
        ("", ""),
    ],
)
def test_whole_and_streamed_agree(text: str, shown: str) -> None:
    assert whole(text) == shown
    assert streamed(list(text)) == shown


def test_a_closing_tag_without_its_opening_one_takes_along_what_came_before() -> None:
    assert whole("secret</think>answer") == "answer"
    assert whole("<think>x</think>secret</think>answer") == "answer"
    # in a stream the beginning has left, but the tag does not
    assert streamed(["shown", "</think>answer"]) == "shownanswer"


def test_a_reply_that_begins_inside_the_reasoning() -> None:
    inside = Start(opened=True)
    for text in ("secret</think>answer", "secret[/THINK]answer"):
        assert whole(text, inside) == streamed(list(text), inside) == "answer"
    assert whole("secret, cut short", inside) == streamed(["secret", " more"], inside) == ""


@pytest.mark.parametrize(
    ("prompt", "opened", "tail"),
    [
        ("", False, ""),
        ("Hello", False, ""),
        ("<think>", True, ""),
        ("<think>\nLet me see", True, ""),
        ("<think>x</think>", False, ""),
        ("<think>x</think><think>", True, ""),
        ("Hello <thi", False, "<thi"),
        ("<think>x</thi", True, "</thi"),
        ("a <", False, "<"),
    ],
)
def test_where_a_prompt_leaves_off(prompt: str, opened: bool, tail: str) -> None:
    assert start_after(prompt) == Start(opened, tail)


def test_a_tag_split_between_prompt_and_reply_is_a_tag() -> None:
    start = start_after("Assistant: <thi")
    assert streamed(list("nk>secret</think>answer"), start) == whole("nk>secret</think>answer", start) == "answer"
    # and where it is none, only the reply is shown
    assert streamed(list("s is it"), start) == whole("s is it", start) == "s is it"
    assert whole("nk>answer", start_after("<think>secret</thi")) == "answer"


words = st.sampled_from(
    [*[tag for pair in PAIRS for tag in pair], "<", "[", "◁", "think", "</", ">", " ", "\n", "a", "secret", "é"]
)


@given(st.lists(words, max_size=12).map("".join), st.lists(st.integers(0, 80), max_size=10), st.booleans())
def test_a_stream_shows_the_same_wherever_it_is_cut(text: str, at: list[int], opened: bool) -> None:
    start = Start(opened)
    assert streamed(cuts(text, at), start) == streamed([text], start)


@given(st.lists(words, max_size=12).map("".join))
def test_a_whole_text_never_shows_more_than_a_stream(text: str) -> None:
    assert streamed([text]).replace(" ", "").replace("\n", "").endswith(whole(text).replace(" ", "").replace("\n", ""))


@given(
    st.sampled_from(PAIRS),
    st.text(alphabet="ab <[◁/think>", max_size=20).filter(
        lambda text: all(tag not in text + "x" for pair in PAIRS for tag in pair)
    ),
    st.lists(st.integers(0, 80), max_size=10),
)
def test_no_secret_leaves_and_no_answer_is_lost(pair: tuple[str, str], answer: str, at: list[int]) -> None:
    text = f"{answer}{pair[0]}S1 <th [TH S2 </thin S3{pair[1]}{answer}"
    shown = streamed(cuts(text, at))
    assert shown == answer + answer.lstrip() == whole(text)


def test_several_replies_are_kept_apart() -> None:
    withheld = Withheld((Start(), Start(opened=True)), n=2)
    # replies 0 and 1 continue the first prompt, 2 and 3 the second
    assert withheld.whole("a</think>b", 0) == "b"
    assert [withheld.piece(i, "x", i) for i in range(4)] == ["x", "x", "", ""]
    assert withheld.piece(1, "<think>", 1) == ""
    assert [withheld.piece(i, "y", i) for i in range(4)] == ["y", "", "", ""]
    assert withheld.piece(9, "far", 9) == ""
    assert withheld.thoughts == ["a"]
