"""Exchanges become ids: the teacher's own where possible, bytes resolved otherwise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from spiritsafe.records import SparseLogprobs
from spiritsafe.train import Vocabulary, encode_exchange
from train_kit import exchange, tiny_tokenizer


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary.of(tiny_tokenizer())


def by_bytes(tokens: list[bytes], alternatives: list[list[bytes]]) -> SparseLogprobs:
    k = len(alternatives[0])
    top = np.tile(np.log(np.linspace(0.5, 0.1, k, dtype=np.float32)), (len(tokens), 1))
    return SparseLogprobs(
        top[:, 0].copy(), top, token_bytes=tuple(tokens), top_bytes=tuple(tuple(row) for row in alternatives)
    )


def test_own_ids_are_kept_even_where_the_tokenizer_would_split_otherwise(vocabulary: Vocabulary) -> None:
    letters = vocabulary.encode("a") + vocabulary.encode("b")
    e = exchange("ab", tokenizer_hash=vocabulary.hash, token_ids=(*letters, vocabulary.end_of_turn))
    assert encode_exchange(e, vocabulary).completion_ids.tolist() == [*letters, vocabulary.end_of_turn]


def test_another_tokenizers_ids_are_not_taken_for_ours(vocabulary: Vocabulary) -> None:
    e = exchange("the cat", tokenizer_hash="f" * 64, token_ids=(1, 2, 3))
    example = encode_exchange(e, vocabulary)
    assert example.completion_ids.tolist() == [*vocabulary.encode("the cat"), vocabulary.end_of_turn]
    assert example.targets is None


@pytest.mark.parametrize(
    ("finish", "stop", "ends"), [("stop", (), True), ("length", (), False), ("stop", ("x",), False)]
)
def test_end_of_turn_only_where_the_turn_ended(
    vocabulary: Vocabulary, finish: str, stop: tuple[str, ...], ends: bool
) -> None:
    e = exchange("the cat", finish_reason=finish)
    e = replace(e, sampling=replace(e.sampling, stop=stop))
    last = int(encode_exchange(e, vocabulary).completion_ids[-1])
    assert (last == vocabulary.end_of_turn) is ends


def test_bytes_become_ids_and_unknown_alternatives_become_tail(vocabulary: Vocabulary) -> None:
    logprobs = by_bytes([b"a", b"b"], [[b"a", b"\xff\xfe", b"c"], [b"b", b"c", b"c"]])
    example = encode_exchange(exchange("ab", logprobs=logprobs), vocabulary)
    a, b, c = (vocabulary.ids[x] for x in (b"a", b"b", b"c"))
    assert example.completion_ids.tolist() == [a, b, vocabulary.end_of_turn]
    assert example.targets is not None and example.targets.ids is not None
    # Row 0 lost the unknown bytes and closed the gap, row 1 its duplicate; the end of turn knows nothing.
    assert example.targets.ids.tolist() == [[a, c, -1], [b, c, -1], [-1, -1, -1]]
    np.testing.assert_array_equal(example.targets.top[0], [logprobs.top[0, 0], logprobs.top[0, 2], -np.inf])
    assert np.isnan(example.targets.chosen[2])


def test_a_token_we_do_not_have_is_retokenised_and_keeps_no_targets(vocabulary: Vocabulary) -> None:
    logprobs = by_bytes([b"a", b"zqzq", b"b"], [[b"a", b"b"]] * 3)
    example = encode_exchange(exchange("azqzqb", logprobs=logprobs, finish_reason="length"), vocabulary)
    pieces = vocabulary.encode("zqzq")
    assert len(pieces) > 1
    assert example.completion_ids.tolist() == [vocabulary.ids[b"a"], *pieces, vocabulary.ids[b"b"]]
    assert example.targets is not None and example.targets.ids is not None
    assert (example.targets.ids >= 0).any(axis=1).tolist() == [True] + [False] * len(pieces) + [True]


def test_special_tokens_resolve_by_name(vocabulary: Vocabulary) -> None:
    logprobs = by_bytes([b"a", b"<|im_end|>"], [[b"a", b"b"], [b"<|im_end|>", b"b"]])
    example = encode_exchange(exchange("a", logprobs=logprobs), vocabulary)
    assert example.completion_ids.tolist() == [vocabulary.ids[b"a"], vocabulary.end_of_turn]


def test_bytes_that_are_not_text_fall_back_to_the_text(vocabulary: Vocabulary) -> None:
    vocab_without = Vocabulary(vocabulary.tokenizer, vocabulary.hash, {}, vocabulary.end_of_turn)
    example = encode_exchange(exchange("ab", logprobs=by_bytes([b"\xff"], [[b"a", b"b"]])), vocab_without)
    assert example.completion_ids.tolist() == [*vocabulary.encode("ab"), vocabulary.end_of_turn]
    assert example.targets is None


def test_logprobs_that_stop_before_the_end_of_turn_are_padded(vocabulary: Vocabulary) -> None:
    a = vocabulary.ids[b"a"]
    logprobs = SparseLogprobs(np.float32([-0.1]), np.float32([[-0.1, -3.0]]), ids=np.int32([[a, a + 1]]))
    e = exchange("a", tokenizer_hash=vocabulary.hash, token_ids=(a, vocabulary.end_of_turn), logprobs=logprobs)
    targets = encode_exchange(e, vocabulary).targets
    assert targets is not None and targets.ids is not None
    assert targets.ids.tolist() == [[a, a + 1], [-1, -1]]


def test_prompt_goes_through_the_chat_template(vocabulary: Vocabulary) -> None:
    example = encode_exchange(exchange("a", question="the cat"), vocabulary)
    assert (
        vocabulary.tokenizer.decode(example.prompt_ids)
        == "<|im_start|>user\nthe cat<|im_end|>\n<|im_start|>assistant\n"
    )


def test_end_of_turn_is_read_off_the_template() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = "<|endoftext|>"
    assert Vocabulary.of(tokenizer).end_of_turn == tokenizer.convert_tokens_to_ids("<|im_end|>")
    tokenizer.chat_template = None
    assert Vocabulary.of(tokenizer).end_of_turn == tokenizer.eos_token_id
