"""Marks inside llama-cpp-python: over a model of its loop here, over the real thing where it is installed (slow)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from marking_kit import Language, key_set, unique

from spiritsafe.errors import BadInput, Refused
from spiritsafe.keys import KeyId, KeySet
from spiritsafe.watermark._llama_cpp import LlamaLogitsProcessor
from spiritsafe.watermark._marker import Markers
from spiritsafe.watermark._native import NativeDetector

VOCAB, PROMPT = 300, [11, 12, 13]
LANGUAGE = Language(VOCAB, 2.0).logits_VV.numpy()
CANDIDATES = np.dtype([("id", np.intc), ("logit", np.single), ("p", np.single)], align=True)


@pytest.fixture
def keys(tmp_path: Path) -> KeySet:
    return key_set(tmp_path)


class Host:
    """llama-cpp-python's `generate` and its sampler chain as of 0.3.36, around a language that looks back one token.

    The custom sampler is first and works on a strided view of the candidates; what it raises is ignored. Then come
    temperature and a draw. `ids` is the buffer of all tokens; `_input_ids` its part already evaluated.
    """

    def __init__(self, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.ids = np.zeros(2000, np.intc)
        self.calls = 0

    def create_completion(
        self,
        prompt: list[int],
        *,
        length: int,
        logits_processor: list[Callable[..., Any]] | None = None,
        stopping_criteria: Callable[..., bool] | None = None,
        logit_bias: dict[int, float] | None = None,
        grammar: Any = None,
        temperature: float = 0.8,
    ) -> list[int]:
        if logit_bias is not None and logits_processor is not None:
            logits_processor = logits_processor.extend([lambda ids, scores: scores])  # type: ignore[func-returns-value]
        generated = self.generate(prompt, logits_processor or [], stopping_criteria, temperature)
        return [next(generated) for _ in range(length)]

    def generate(self, prompt: list[int], processors: list[Any], stop: Any, temperature: float) -> Iterator[int]:
        tokens, n_tokens = list(prompt), 0
        while True:
            self.ids[n_tokens : n_tokens + len(tokens)] = tokens
            n_tokens += len(tokens)
            candidates = np.zeros(VOCAB, CANDIDATES).view(np.recarray)
            candidates.id, candidates.logit = np.arange(VOCAB), LANGUAGE[self.ids[n_tokens - 1]]
            try:
                for processor in processors:
                    self.calls += 1
                    candidates.logit[:] = processor(self.ids[:n_tokens], candidates.logit)
            except Exception:
                pass
            heated = torch.from_numpy(candidates.logit.copy()) / temperature
            token = int(self.random.choice(VOCAB, p=torch.softmax(heated.double(), -1).numpy()))
            if stop is not None and stop(self.ids[:n_tokens], candidates.logit):
                return
            yield token
            tokens = [token]


def log10_p(keys: KeySet, reply: list[int], **how: Any) -> float:
    detector = NativeDetector(keys, **how)
    scores = detector.scores(unique(detector, np.array(PROMPT + reply, np.uint32)), 0)
    return detector.log10_tail(int(scores.counted.sum()), float(scores.values[scores.counted].sum()))


def test_a_reply_is_marked_whatever_the_host_samples_with(keys: KeySet, tmp_path: Path) -> None:
    replies = []
    for seed, temperature in enumerate((0.8, 5.0)):
        marks = LlamaLogitsProcessor(Markers(keys), seed=3)
        reply = Host(seed).create_completion(PROMPT, length=200, temperature=temperature, **marks.arguments)
        marks.finish(200)
        replies.append(reply)
    assert replies[0] == replies[1]
    assert marks.marker.keyed > 150
    assert log10_p(keys, replies[0]) < -10
    assert log10_p(key_set(tmp_path), replies[0]) > -4


def test_the_reply_of_another_seed_is_another(keys: KeySet) -> None:
    one, other = (
        Host().create_completion(PROMPT, length=30, **LlamaLogitsProcessor(Markers(keys), seed=seed).arguments)
        for seed in (1, 2)
    )
    assert one != other


def test_the_prompt_is_context(keys: KeySet) -> None:
    """With no surprise to spend first, the first token of the reply is marked, on what the prompt ends with."""
    bold = Markers(keys)
    bold.marking = bold.marking.model_copy(update={"surprise_bits": 0.0})
    first = {Host().create_completion(PROMPT, length=1, **LlamaLogitsProcessor(bold).arguments)[0] for _ in range(8)}
    assert len(first) == 1
    marks = LlamaLogitsProcessor(bold)
    Host().create_completion(PROMPT[:1], length=2, **marks.arguments)
    assert (marks.marker.keyed, marks.marker.unkeyed) == (1, 1)


def test_greedy_replies_get_kgw_and_can_be_refused(keys: KeySet) -> None:
    marks = LlamaLogitsProcessor(Markers(keys), temperature=0.0)
    reply = Host().create_completion(PROMPT, length=200, **marks.arguments)
    assert marks.marker.greedy == "kgw"
    assert log10_p(keys, reply, scheme="kgw") < -2
    with pytest.raises(Refused, match="greedy"):
        LlamaLogitsProcessor(Markers(keys, greedy="refuse"), temperature=0.0)


def test_a_request_with_logit_bias_never_goes_out_unmarked(keys: KeySet) -> None:
    host, marks = Host(), LlamaLogitsProcessor(Markers(keys))
    with pytest.raises(TypeError, match="logit_bias"):
        host.create_completion(PROMPT, length=9, logit_bias={5: 1.0}, **marks.arguments)
    with pytest.raises(Refused, match=r"without this processor.*logit_bias"):
        host.create_completion(PROMPT, length=9, **{**marks.arguments, "logit_bias": {5: 1.0}})
    assert host.calls == 0
    chat = LlamaLogitsProcessor(Markers(keys))
    host.create_completion(PROMPT, length=9, logits_processor=[chat], logit_bias={5: 1.0})
    with pytest.raises(Refused, match="9 of 9 tokens"):
        chat.finish(9)


def test_a_grammar_is_an_error_before_it_can_abort_the_process(keys: KeySet) -> None:
    with pytest.raises(TypeError, match="grammar"):
        Host().create_completion(PROMPT, length=9, grammar="x", **LlamaLogitsProcessor(Markers(keys)).arguments)
    chat = LlamaLogitsProcessor(Markers(keys)).chat_arguments
    assert {name for name in chat if chat[name] is None} == {"grammar", "logit_bias", "response_format", "tool_choice"}


def test_a_second_reply_and_a_processor_behind_are_refused(keys: KeySet) -> None:
    marks = LlamaLogitsProcessor(Markers(keys))
    Host().create_completion(PROMPT, length=9, **marks.arguments)
    with pytest.raises(Refused, match="new processor for each reply"):
        Host().create_completion(PROMPT, length=9, **marks.arguments)
    with pytest.raises(Refused, match="new processor for each reply"):
        marks.finish(9)
    other = LlamaLogitsProcessor(Markers(keys))

    def behind(ids: Any, scores: np.ndarray) -> np.ndarray:
        return np.where(np.arange(VOCAB) == 7, 0, -np.inf).astype(np.float32)

    behind_it = {**other.arguments, "logits_processor": [other, behind]}
    with pytest.raises(Refused, match="processor after this one"):
        Host().create_completion(PROMPT, length=200, **behind_it)


def test_a_failure_that_the_host_ignores_stops_the_reply(keys: KeySet, monkeypatch: pytest.MonkeyPatch) -> None:
    marks = LlamaLogitsProcessor(Markers(keys))
    monkeypatch.setattr(marks.marker, "spend", lambda p: 1 / 0)
    with pytest.raises(Refused, match="could not be marked; discard the reply: division by zero"):
        Host().create_completion(PROMPT, length=9, **marks.arguments)


def test_key_ids_are_checked(keys: KeySet) -> None:
    marks = LlamaLogitsProcessor(Markers(keys), KeyId.parse(f"{keys.id}/2026-11/17"))
    assert marks.marker.key_id.slot == 17
    with pytest.raises(BadInput, match="use one of its key ids"):
        LlamaLogitsProcessor(Markers(keys), KeyId.parse("ks_00000000/2026-11/17"))


@pytest.mark.slow
def test_the_real_llama_cpp_python(keys: KeySet, tmp_path: Path, smollm2_gguf: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    llama = llama_cpp.Llama(str(smollm2_gguf), n_ctx=512, n_threads=2, verbose=False)
    prompt = llama.tokenize(b"<|im_start|>user\nTell me a story.<|im_end|>\n<|im_start|>assistant\n", special=True)
    marks = LlamaLogitsProcessor(Markers(keys), seed=1)
    reply = llama.create_completion(prompt, max_tokens=200, temperature=0.1, top_k=3, **marks.arguments)
    marks.finish(reply["usage"]["completion_tokens"])
    text = llama.tokenize(reply["choices"][0]["text"].encode(), add_bos=False, special=True)
    assert len(text) > 100
    assert log10_p(keys, text) < -6
    assert log10_p(key_set(tmp_path), text) > -4
    biased = {**LlamaLogitsProcessor(Markers(keys)).arguments, "logit_bias": {5: 1.0}}
    with pytest.raises(Refused, match="logit_bias"):
        llama.create_completion(prompt, max_tokens=9, **biased)
    chat = LlamaLogitsProcessor(Markers(keys))
    said = llama.create_chat_completion([{"role": "user", "content": "Hello"}], max_tokens=20, **chat.chat_arguments)
    chat.finish(said["usage"]["completion_tokens"])
