"""What must fit before training under `topk`, and what the message says when it does not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from spiritsafe.errors import BadInput
from spiritsafe.exchanges import read_exchanges
from spiritsafe.records import SparseLogprobs
from spiritsafe.tokens import token_bytes_table
from spiritsafe.train import StudentConfig, TrainConfig, Vocabulary, encode_exchange, train
from spiritsafe.train._preflight import check_head, check_topk
from train_kit import exchange, random_targets, save_tiny, tiny_model, tiny_tokenizer, training_run

CONFIG = TrainConfig(epochs=1, batch_tokens=400, precision="fp32")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny(tmp_path_factory.mktemp("teacher")))


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary.of(tiny_tokenizer())


def check(vocabulary: Vocabulary, *exchanges: object) -> None:
    check_topk(exchanges, [encode_exchange(e, vocabulary) for e in exchanges], vocabulary, "curated.parquet")  # type: ignore[arg-type]


def test_another_tokenizer_or_template_is_refused(vocabulary: Vocabulary) -> None:
    with pytest.raises(BadInput, match=r"another tokenizer .* set train\.objective: sft"):
        check(vocabulary, exchange("the cat", tokenizer_hash="f" * 64))
    with pytest.raises(BadInput, match=r"another chat template .* biases every log-probability"):
        check(vocabulary, exchange("the cat", tokenizer_hash=vocabulary.hash, template_hash="f" * 64))


def test_ids_beyond_the_vocabulary_are_refused(vocabulary: Vocabulary) -> None:
    targets = random_targets(1, 3, 250)
    assert targets.ids is not None
    targets.ids[0, 2] = 5000
    with pytest.raises(BadInput, match="token id 5000, the student's vocabulary ends at"):
        check(vocabulary, exchange("a", tokenizer_hash=vocabulary.hash, token_ids=(70,), logprobs=targets))


def test_an_api_that_hides_its_tokenizer_is_found_out_by_its_tokens(vocabulary: Vocabulary) -> None:
    table = token_bytes_table(vocabulary.tokenizer)

    def said(text: str, pieces: list[bytes]) -> object:
        top = np.log(np.full((len(pieces), 2), 0.4, np.float32))
        row = tuple((piece, b"z") for piece in pieces)
        return exchange(text, logprobs=SparseLogprobs(top[:, 0], top, token_bytes=tuple(pieces), top_bytes=row))

    own = [table[i] for i in vocabulary.encode("the cat sat")]
    check(vocabulary, said("the cat sat", own))
    with pytest.raises(BadInput, match="in only 0 of 1 answers, so it uses another one"):
        check(vocabulary, said("the cat sat", [bytes([b]) for b in b"the cat sat"]))


def test_a_head_smaller_than_the_tokenizer_is_refused() -> None:
    tokenizer = tiny_tokenizer()
    check_head(tiny_model(len(tokenizer) + 9), tokenizer, "m")
    with pytest.raises(BadInput, match="m: the model has 100 outputs but its tokenizer"):
        check_head(tiny_model(100), tokenizer, "m")


def test_topk_without_logprobs_or_weights_says_what_to_do(tmp_path: Path, teacher: str) -> None:
    run = training_run(tmp_path / "run", logprobs=0)
    with pytest.raises(BadInput, match=r"collect\.logprobs: 20, .*teacher\.path.*train\.objective: sft"):
        train(run, CONFIG, StudentConfig(init=teacher), teacher_source=None)
    train(run, CONFIG.model_copy(update={"objective": "sft"}), StudentConfig(init=teacher), teacher_source=None)
    assert run.student.exists()


def test_a_temperature_needs_the_teachers_weights(tmp_path: Path, teacher: str) -> None:
    run = training_run(tmp_path / "run")
    warm = CONFIG.model_copy(update={"temperature": 2.0})
    with pytest.raises(BadInput, match="an API's log-probabilities are at temperature 1"):
        train(run, warm, StudentConfig(init=teacher), teacher_source=None)
    train(run, warm, StudentConfig(init=teacher), teacher_source=teacher)
    assert '"source":"weights"' in (run.logits / "header.json").read_text()


def test_a_padded_teacher_and_a_bare_student_share_the_real_vocabulary(tmp_path: Path, teacher: str) -> None:
    padded = str(save_tiny(tmp_path / "padded", pad=25))
    run = training_run(tmp_path / "run", logprobs=0)
    train(run, CONFIG, StudentConfig(init=teacher), teacher_source=padded)
    assert f'"vocab":{len(tiny_tokenizer())}' in (run.logits / "header.json").read_text()


def test_logprobs_by_bytes_alone_train(tmp_path: Path, teacher: str, vocabulary: Vocabulary) -> None:
    """What an API gives: no ids and no hashes, only bytes."""
    from dataclasses import replace

    from spiritsafe.exchanges import write_exchanges

    table = token_bytes_table(vocabulary.tokenizer)
    run = training_run(tmp_path / "run")
    known = training_run(tmp_path / "known")
    changed = []
    for e in read_exchanges(run.curated):
        own = e.reply.logprobs
        if own is not None and own.ids is not None and e.reply.token_ids is not None:
            by_bytes = SparseLogprobs(
                own.chosen,
                own.top,
                token_bytes=tuple(table[i] for i in e.reply.token_ids),
                top_bytes=tuple(tuple(table[i] for i in row) for row in own.ids),
            )
            e = replace(e, reply=replace(e.reply, token_ids=None, logprobs=by_bytes))
            e = replace(e, teacher=replace(e.teacher, tokenizer_hash=None, template_hash=None))
        changed.append(e)
    write_exchanges(run.curated, changed)
    a = train(run, CONFIG, StudentConfig(init=teacher), teacher_source=None)
    b = train(known, CONFIG, StudentConfig(init=teacher), teacher_source=None)
    assert a.final_loss == pytest.approx(b.final_loss, rel=1e-3)
