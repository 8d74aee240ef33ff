"""A suspect with weights: what is read and weighed is what the model itself says, however it is batched and chunked."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import torch

from served import one_thread, save_tiny_model
from spiritsafe.audit import _suspect_weights as weights_module
from spiritsafe.audit._plan import SubjectConfig
from spiritsafe.audit._suspect import open_suspect
from spiritsafe.audit._suspect_weights import WeightsSuspect
from spiritsafe.errors import BadInput
from spiritsafe.records import Message, Prompt, Sampling
from spiritsafe.runs import hash_path
from spiritsafe.teachers import TeacherError
from spiritsafe.tokens import prompt_ids

pytestmark = pytest.mark.usefixtures("one_thread")
__all__ = ["one_thread"]

SUBJECT = SubjectConfig(name="tiny", access="weights")
HELLO = Prompt((Message("system", "Be brief."), Message("user", "hello")))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
async def suspect(model: Path) -> AsyncIterator[WeightsSuspect]:
    opened = open_suspect(str(model), SUBJECT)
    assert isinstance(opened, WeightsSuspect)
    yield opened
    await opened.aclose()


@torch.inference_mode()
def logits(suspect: WeightsSuspect, ids: list[int]) -> Any:
    """One row, one pass, the whole vocabulary."""
    return suspect.weights.model(torch.tensor([ids])).logits[0, :, : suspect.weights.vocab_size].double()


@pytest.mark.parametrize("logit_bytes", [1, 4 * 259 * 3, 32 << 20])
async def test_reading_is_the_argmax_at_every_position(
    suspect: WeightsSuspect, monkeypatch: pytest.MonkeyPatch, logit_bytes: int
) -> None:
    monkeypatch.setattr(weights_module, "_LOGIT_BYTES", logit_bytes)
    monkeypatch.setattr(weights_module, "_PASS_TOKENS", 200)
    chance = random.Random(1)
    rows = [[chance.randrange(259) for _ in range(chance.choice([1, 2, 7, 40, 90, 256]))] for _ in range(25)]
    assert await suspect.read(rows) == [logits(suspect, row).argmax(-1).tolist() for row in rows]
    assert await suspect.read([]) == []


async def test_log_probabilities_are_those_of_the_completion_given_the_rendered_prompt(suspect: WeightsSuspect) -> None:
    other = Prompt((Message("user", "x" * 60),))
    completions = [["a reply", "", "another, longer reply é"], ["a reply"]]
    found = await suspect.logprob([HELLO, other], completions)
    tokenizer = suspect.weights.tokenizer
    for prompt, texts, sums in zip([HELLO, other], completions, found, strict=True):
        before = prompt_ids(tokenizer, prompt.messages)
        assert tokenizer.decode(before).endswith("<|im_start|>assistant\n")
        for text, (total, tokens) in zip(texts, sums, strict=True):
            after = tokenizer.encode(text, add_special_tokens=False)
            assert tokens == len(after)
            says = logits(suspect, before + after).log_softmax(-1)
            expected = sum(float(says[len(before) - 1 + i, token]) for i, token in enumerate(after))
            assert total == pytest.approx(expected, rel=1e-5, abs=1e-9)


async def test_scaled_and_capped_heads_are_weighed_as_the_model_does(tmp_path: Path) -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    from served import tiny_tokenizer

    tokenizer = tiny_tokenizer()
    torch.manual_seed(3)
    config = Gemma2Config(
        vocab_size=272, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, head_dim=8,
        num_key_value_heads=2, max_position_embeddings=128, sliding_window=16, final_logit_softcapping=3.0,
        initializer_range=0.4, eos_token_id=tokenizer.eos_token_id, bos_token_id=tokenizer.bos_token_id, pad_token_id=258,
    )  # fmt: skip
    Gemma2ForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    suspect = WeightsSuspect(str(tmp_path), SUBJECT)
    rows = [[1, 2, 3] * 20, [4, 5, 6] * 18, [7]]
    assert await suspect.read(rows) == [logits(suspect, row).argmax(-1).tolist() for row in rows]
    [[(total, tokens)]] = await suspect.logprob([HELLO], [["a reply"]])
    before = prompt_ids(suspect.weights.tokenizer, HELLO.messages)
    after = suspect.weights.tokenizer.encode("a reply", add_special_tokens=False)
    says = logits(suspect, before + after).log_softmax(-1)
    assert total == pytest.approx(sum(float(says[len(before) - 1 + i, t]) for i, t in enumerate(after)), rel=1e-4)
    assert tokens == 7
    await suspect.aclose()


async def test_it_answers_as_anybody_would_be_answered(suspect: WeightsSuspect) -> None:
    replies = await suspect.complete(HELLO, Sampling(max_tokens=5, seed=1), n=3)
    assert len(replies) == 3 and all(0 < len(reply.token_ids or ()) <= 5 for reply in replies)
    assert (await suspect.complete(HELLO, Sampling(max_tokens=5, seed=1)))[0].text == replies[0].text


async def test_it_says_who_it_is(suspect: WeightsSuspect, model: Path) -> None:
    assert suspect.info.revision == hash_path(model / "model.safetensors")
    assert suspect.info.tokenizer_hash == suspect.weights.tokenizer_hash
    assert suspect.access == "weights"


@pytest.mark.parametrize(
    ("row", "why"), [([], "context takes 1 to 256"), ([1] * 257, "257 tokens"), ([259], "vocabulary"), ([-1], "vocab")]
)
async def test_what_it_cannot_read_it_refuses(suspect: WeightsSuspect, row: list[int], why: str) -> None:
    with pytest.raises(TeacherError, match=why) as caught:
        await suspect.read([[1, 2], row])
    assert caught.value.kind == "bad_request"
    assert await suspect.read([[1, 2]])


async def test_a_model_that_computes_no_numbers_is_an_error_not_a_finding(model: Path) -> None:
    suspect = WeightsSuspect(str(model), SUBJECT)
    suspect.weights.model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(TeacherError, match="no finite numbers"):
        await suspect.read([[1, 2, 3]])
    with pytest.raises(TeacherError, match="no finite numbers"):
        await suspect.logprob([HELLO], [["text"]])
    await suspect.aclose()


def test_pickled_weights_are_refused(model: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    for file in model.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    torch.save(load_file(model / "model.safetensors"), tmp_path / "pytorch_model.bin")
    with pytest.raises(BadInput, match="cannot be loaded"):
        open_suspect(str(tmp_path), SUBJECT)
    with pytest.raises(BadInput, match=r"pytorch_model\.bin"):
        open_suspect(str(tmp_path / "pytorch_model.bin"), SUBJECT)


def test_weights_that_are_not_those_of_the_plan_are_refused(model: Path) -> None:
    with pytest.raises(BadInput, match="its revision is"):
        open_suspect(str(model), SUBJECT.model_copy(update={"revision": "0" * 12}))
