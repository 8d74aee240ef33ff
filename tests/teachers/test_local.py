"""Local weights as a teacher: concurrent callers, replies, cancellation, failure, closing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from served import one_thread, save_tiny_model
from spiritsafe.errors import BadInput
from spiritsafe.records import Message, Prompt, Request, Sampling, Usage
from spiritsafe.runs import hash_path
from spiritsafe.teachers import Engine, GenerateJob, LocalTeacher, Teacher, TeacherError, load_tokenizer, load_weights
from spiritsafe.tokens import template_hash, tokenizer_hash

pytestmark = pytest.mark.usefixtures("one_thread")
__all__ = ["one_thread"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
async def teacher(model: Path) -> AsyncIterator[LocalTeacher]:
    teacher = LocalTeacher(model, model="tiny", max_batch=4)
    yield teacher
    await teacher.aclose()


def ask(text: str, n: int = 1, **sampling: object) -> Request:
    return Request(Prompt((Message("user", text),)), Sampling(**{"max_tokens": 8, "seed": 1} | sampling), n)  # type: ignore[arg-type]


async def test_concurrent_answers_are_those_of_the_engine_alone(teacher: LocalTeacher) -> None:
    requests = [ask("x" * n, n=1 + n % 3, temperature=0.9, seed=n) for n in range(1, 7)]
    answers = await asyncio.gather(*map(teacher.complete, requests))
    for request, answer in zip(requests, answers, strict=True):
        prompt = teacher.prompt_ids(request.prompt.messages)
        jobs = [GenerateJob(prompt, request.sampling, index) for index in range(request.n)]
        alone = Engine(teacher.weights).generate(jobs)
        assert [r.token_ids for r in answer.replies] == [g.token_ids for g in alone]
        assert [(r.text, r.finish_reason) for r in answer.replies] == [(g.text, g.finish_reason) for g in alone]
        assert answer.usage == Usage(len(prompt), sum(len(g.token_ids) for g in alone))
        assert answer.model == "tiny"


async def test_log_probabilities_carry_ids_and_bytes(teacher: LocalTeacher) -> None:
    (reply,) = (await teacher.complete(ask("hello", logprobs=3))).replies
    logprobs = reply.logprobs
    assert logprobs is not None and logprobs.ids is not None and reply.token_ids is not None
    assert logprobs.token_bytes is not None and logprobs.top_bytes is not None
    assert logprobs.top.shape == logprobs.ids.shape == (len(reply.token_ids), 3)
    assert (np.diff(logprobs.top, axis=1) <= 0).all()
    text = b"".join(b for b in logprobs.token_bytes if b != b"<|im_end|>").decode("utf-8", "replace")
    assert text == reply.text


async def test_it_says_who_it_is(teacher: LocalTeacher, model: Path) -> None:
    checked: Teacher = teacher
    tokenizer = load_tokenizer(model)
    assert checked.info.model == "tiny"
    assert checked.info.revision == hash_path(model / "model.safetensors")
    assert checked.info.tokenizer_hash == tokenizer_hash(tokenizer)
    assert checked.info.template_hash == template_hash(tokenizer)


async def test_the_real_vocabulary_is_the_tokenizers(teacher: LocalTeacher) -> None:
    assert teacher.weights.vocab_size == 259
    assert teacher.weights.model.get_output_embeddings().weight.shape[0] == 272
    answer = await teacher.complete(ask("anything", n=16, temperature=2.0, max_tokens=40))
    assert max(max(reply.token_ids or ()) for reply in answer.replies) < 259


async def test_a_request_that_cannot_run_is_refused_for_good(teacher: LocalTeacher) -> None:
    with pytest.raises(TeacherError, match="exceed the model's context of 256") as caught:
        await teacher.complete(ask("hello", max_tokens=250))
    assert caught.value.kind == "bad_request" and not caught.value.transient
    teacher.weights.tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(TeacherError, match="roles must alternate"):
        await teacher.complete(ask("hello"))


async def test_a_cancelled_call_leaves_the_engine(teacher: LocalTeacher) -> None:
    calls = [asyncio.create_task(teacher.complete(ask("long", n=3, max_tokens=200, seed=n))) for n in range(4)]
    while not teacher.engine.busy:
        await asyncio.sleep(0.001)
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    assert (await teacher.complete(ask("next"))).replies
    assert len(teacher.engine._running) <= 1  # its own row, which leaves just after the reply was handed over
    async with asyncio.timeout(10):
        while teacher.engine.busy:
            await asyncio.sleep(0.001)


async def test_a_failing_engine_tells_its_callers_and_recovers(
    teacher: LocalTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(teacher.engine, "_prefill", lambda _: 1 / 0)
        with pytest.raises(TeacherError, match="ZeroDivisionError") as caught:
            await teacher.complete(ask("hello", n=2))
        assert caught.value.kind == "server" and caught.value.transient
    assert (await teacher.complete(ask("hello"))).replies


async def test_closing_tells_who_still_waits(model: Path) -> None:
    teacher = LocalTeacher(model, max_batch=1)
    calls = [asyncio.create_task(teacher.complete(ask("long", max_tokens=200, seed=n))) for n in range(3)]
    await asyncio.sleep(0)
    await teacher.aclose()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(result, TeacherError) and "closed" in str(result) for result in results)
    with pytest.raises(TeacherError, match="closed"):
        await teacher.complete(ask("hello"))


# ── weights ──────────────────────────────────────────────────────────────────────────────────────


def test_what_is_no_model_is_told_in_one_line(tmp_path: Path, model: Path) -> None:
    (tmp_path / "fake.gguf").write_bytes(b"PK\x03\x04 not weights")
    (tmp_path / "cut.gguf").write_bytes(b"GGUF\x03\x00\x00\x00")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{")
    for source, complaint in [
        (tmp_path / "fake.gguf", "not a GGUF file"),
        (tmp_path / "cut.gguf", "cannot be loaded"),
        (tmp_path / "missing.gguf", "no such file or folder"),
        ("no/such/thing/anywhere", "no such file or folder"),
        (tmp_path, "no config.json"),
        (broken, "cannot be loaded"),
    ]:
        with pytest.raises(BadInput, match=complaint) as caught:
            load_weights(source)
        assert "\n" not in str(caught.value) and str(source) in str(caught.value)
    with pytest.raises(BadInput, match="dtype float8"):
        load_weights(model, dtype="float8")


def test_pickled_weights_are_never_read(tmp_path: Path, model: Path) -> None:
    import torch

    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((model / name).read_bytes())
    torch.save(load_weights(model).model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(BadInput, match="cannot be loaded"):
        load_weights(tmp_path)


def test_a_revision_pins_the_file(model: Path) -> None:
    digest = hash_path(model / "model.safetensors")
    assert load_weights(model, revision=digest[:12]).revision == digest
    with pytest.raises(BadInput, match="its revision is"):
        load_weights(model, revision="0" * 12)


def test_an_unreachable_hub_is_told_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    from spiritsafe.teachers import _weights

    monkeypatch.delenv("HTTPS_PROXY", raising=False)
    monkeypatch.delenv("https_proxy", raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    _weights._hub_answers.cache_clear()
    try:
        with pytest.raises(BadInput, match="owner/name: cannot be fetched from the hub"):
            load_weights("owner/name")
    finally:
        _weights._hub_answers.cache_clear()


@pytest.mark.slow
def test_a_gguf_file_loads_and_saves_as_a_plain_folder(smollm2_gguf: Path, tmp_path: Path) -> None:
    import torch

    weights = load_weights(smollm2_gguf)
    assert weights.revision == hash_path(smollm2_gguf)
    assert (weights.vocab_size, weights.eos_ids, weights.context) == (49152, {2}, 8192)
    weights.model.save_pretrained(tmp_path)
    weights.tokenizer.save_pretrained(tmp_path)
    again = load_weights(tmp_path)
    assert (again.tokenizer_hash, again.template_hash) == (weights.tokenizer_hash, weights.template_hash)
    pairs = zip(weights.model.parameters(), again.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
