"""The batched engine: what a row generates must not depend on who shares the batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from served import one_thread, save_tiny_model, tiny_tokenizer
from spiritsafe.errors import BadInput
from spiritsafe.records import Message, Sampling
from spiritsafe.teachers import Engine, GenerateJob, Weights, load_weights, top_k_logprobs
from spiritsafe.teachers._sampling import choose, generator
from spiritsafe.teachers._text import TextStream
from spiritsafe.tokens import prompt_ids

pytestmark = pytest.mark.usefixtures("one_thread")
__all__ = ["one_thread"]

PROMPTS = [tuple(range(5, 5 + n)) for n in (1, 3, 40, 17, 90, 3)]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    return load_weights(save_tiny_model(tmp_path_factory.mktemp("tiny")))


def plain_logits(weights: Weights, ids: Sequence[int]) -> torch.Tensor:
    with torch.inference_mode():
        return weights.model(torch.tensor([list(ids)])).logits[0, :, : weights.vocab_size].float()


def plain_greedy(weights: Weights, prompt: Sequence[int], steps: int) -> list[int]:
    ids = list(prompt)
    for _ in range(steps):
        ids.append(int(plain_logits(weights, ids)[-1].argmax()))
    return ids[len(prompt) :]


def test_greedy_rows_of_mixed_lengths_equal_one_at_a_time_without_a_cache(weights: Weights) -> None:
    jobs = [GenerateJob(p, Sampling(max_tokens=12, temperature=0), ignore_eos=True) for p in PROMPTS]
    got = Engine(weights).generate(jobs)
    assert [list(g.token_ids) for g in got] == [plain_greedy(weights, p, 12) for p in PROMPTS]


@pytest.mark.parametrize("max_batch", [1, 2, 5, 32])
def test_a_seed_gives_the_same_tokens_in_any_batch(weights: Weights, max_batch: int) -> None:
    def job(index: int) -> GenerateJob:
        sampling = Sampling(
            max_tokens=4 + 7 * (index % 3), temperature=0.5 + 0.3 * index, top_p=1 - 0.1 * index, seed=9
        )
        return GenerateJob(PROMPTS[index], sampling, index)

    alone = [Engine(weights).generate([job(index)])[0].token_ids for index in range(6)]
    together = [g.token_ids for g in Engine(weights, max_batch).generate([job(index) for index in range(6)])]
    assert together == alone


def test_rows_that_join_late_change_nothing(weights: Weights) -> None:
    engine, done = Engine(weights, max_batch=3), {}
    jobs = [GenerateJob(p, Sampling(max_tokens=10, temperature=1, seed=n)) for n, p in enumerate(PROMPTS)]
    for number, job in enumerate(jobs):
        engine.submit(job, lambda g, number=number: done.__setitem__(number, g))
        engine.step()
        engine.step()
    while engine.busy:
        engine.step()
    assert [done[n].token_ids for n in range(6)] == [g.token_ids for g in Engine(weights).generate(jobs)]


def test_replies_of_one_seed_differ_and_seeds_decide(weights: Weights) -> None:
    def run(seed: int | None, index: int) -> tuple[int, ...]:
        return (
            Engine(weights).generate([GenerateJob(PROMPTS[2], Sampling(max_tokens=12, seed=seed), index)])[0].token_ids
        )

    assert run(1, 0) == run(1, 0)
    assert len({run(1, 0), run(1, 1), run(2, 0), run(-1, 0), run(None, 0)}) == 5


def test_log_probabilities_are_those_of_a_plain_forward_pass(weights: Weights) -> None:
    jobs = [
        GenerateJob(p, Sampling(max_tokens=6, temperature=0.3, top_p=0.8, seed=n, logprobs=k), ignore_eos=True)
        for n, (p, k) in enumerate(zip(PROMPTS, (0, 1, 5, 20, 3, 300), strict=True))
    ]
    for job, got in zip(jobs, Engine(weights).generate(jobs), strict=True):
        if not job.sampling.logprobs:
            assert got.logprobs is None
            continue
        k = min(job.sampling.logprobs, weights.vocab_size)
        expected = plain_logits(weights, job.prompt_ids + got.token_ids)[len(job.prompt_ids) - 1 : -1].log_softmax(-1)
        top = expected.topk(k)
        assert got.logprobs is not None and got.logprobs.top.shape == (6, k)
        np.testing.assert_allclose(got.logprobs.top, top.values, atol=1e-4)
        np.testing.assert_allclose(got.logprobs.chosen, expected[range(6), list(got.token_ids)], atol=1e-4)
        assert got.logprobs.ids is not None and got.logprobs.ids.max() < weights.vocab_size
        if k < 100:  # far down, ties within float noise may swap
            assert (got.logprobs.ids == top.indices.numpy()).all()


def test_scoring_equals_generating(weights: Weights) -> None:
    jobs = [
        GenerateJob(p, Sampling(max_tokens=3 + n, seed=n, logprobs=4), ignore_eos=True) for n, p in enumerate(PROMPTS)
    ]
    done = Engine(weights).generate(jobs)
    pairs = [(job.prompt_ids, g.token_ids) for job, g in zip(jobs, done, strict=True)]
    for batch_tokens in (1, 120, 4096):
        for scored, g in zip(top_k_logprobs(weights, pairs, 4, batch_tokens=batch_tokens), done, strict=True):
            assert g.logprobs is not None and g.logprobs.ids is not None and scored.ids is not None
            np.testing.assert_allclose(scored.chosen, g.logprobs.chosen, atol=1e-4)
            np.testing.assert_allclose(scored.top, g.logprobs.top, atol=1e-4)
            assert (scored.ids == g.logprobs.ids).all() and scored.token_bytes == g.logprobs.token_bytes
    with pytest.raises(BadInput, match=r"pair 1 .*empty"):
        top_k_logprobs(weights, [((1,), (2,)), ((1,), ())], 4)
    with pytest.raises(BadInput, match="more than the model's context"):
        top_k_logprobs(weights, [((1,) * 200, (2,) * 57)], 4)


def force(*tokens: int):
    """A logits processor that makes a row say exactly these tokens."""

    def processor(_: Sequence[int], generated: Sequence[int], logits: torch.Tensor) -> torch.Tensor:
        forced = torch.full_like(logits, -torch.inf)
        forced[tokens[len(generated)]] = 0
        return forced

    return processor


def test_a_row_ends_at_eos_and_frees_its_place(weights: Weights) -> None:
    eos = next(iter(weights.eos_ids))
    engine, lengths = Engine(weights, max_batch=2), []
    short = GenerateJob(PROMPTS[1], Sampling(max_tokens=50), processor=force(70, 71, eos))
    long = GenerateJob(PROMPTS[2], Sampling(max_tokens=9, temperature=0), ignore_eos=True)
    for job in (short, long, short):
        engine.submit(job, lambda g: lengths.append((len(g.token_ids), g.finish_reason)))
    steps = 0
    while engine.busy:
        engine.step()
        steps += 1
    assert lengths == [(3, "stop"), (3, "stop"), (9, "length")]
    assert steps <= 10  # the third began in the first one's place, while the second ran


def test_eos_counts_as_a_token_but_not_as_text(weights: Weights) -> None:
    eos = next(iter(weights.eos_ids))
    hi = weights.tokenizer.encode("hi")
    job = GenerateJob(PROMPTS[1], Sampling(max_tokens=50, logprobs=2), processor=force(*hi, eos))
    (got,) = Engine(weights).generate([job])
    assert (got.text, got.token_ids, got.finish_reason) == ("hi", (*hi, eos), "stop")
    assert got.logprobs is not None and got.logprobs.token_bytes == (b"h", b"i", b"<|im_end|>")


@pytest.mark.parametrize(
    ("stop", "text", "reason"),
    [
        (("cd",), "ab", "stop"),
        (("de", "bc"), "a", "stop"),
        (("abcdef",), "", "stop"),
        (("fx", "efg"), "abcdef", "length"),
        (("é",), "abcdef", "length"),
    ],
)
def test_stop_strings_cut_the_text_and_end_the_row(
    weights: Weights, stop: tuple[str, ...], text: str, reason: str
) -> None:
    said = weights.tokenizer.encode("abcdef")
    job = GenerateJob(PROMPTS[0], Sampling(max_tokens=6, stop=stop), processor=force(*said))
    shown: list[str] = []
    engine, done = Engine(weights), []
    engine.submit(job, done.append, lambda delta: shown.append(delta.text))
    while engine.busy:
        engine.step()
    assert (done[0].text, done[0].finish_reason) == (text, reason)
    assert "".join(shown) == text
    assert Engine(weights).generate([job])[0].text == text


def test_a_processor_bends_sampling_but_not_the_reported_log_probabilities(weights: Weights) -> None:
    forced = GenerateJob(PROMPTS[2], Sampling(max_tokens=2, logprobs=1), processor=force(3, 4))
    (got,) = Engine(weights).generate([forced])
    assert got.token_ids == (3, 4)
    expected = plain_logits(weights, [*PROMPTS[2], 3])[-2:].log_softmax(-1)[[0, 1], [3, 4]]
    assert got.logprobs is not None
    np.testing.assert_allclose(got.logprobs.chosen, expected, atol=1e-4)


def test_a_cancelled_row_leaves_and_the_others_go_on(weights: Weights) -> None:
    jobs = [GenerateJob(p, Sampling(max_tokens=8, temperature=0), ignore_eos=True) for p in PROMPTS[:3]]
    expected = [g.token_ids for g in Engine(weights).generate(jobs)]
    engine, done = Engine(weights, max_batch=2), {}
    tickets = [engine.submit(job, lambda g, n=n: done.__setitem__(n, g.token_ids)) for n, job in enumerate(jobs)]
    engine.step()
    engine.step()
    tickets[0].cancel()
    while engine.busy:
        engine.step()
    assert done == {1: expected[1], 2: expected[2]}


@pytest.mark.parametrize(
    ("job", "complaint"),
    [
        (GenerateJob((), Sampling()), "prompt is empty"),
        (
            GenerateJob((1,) * 250, Sampling(max_tokens=7)),
            "250 tokens and max_tokens 7 exceed the model's context of 256",
        ),
        (GenerateJob((1,), Sampling(max_tokens=0)), "at least 1"),
        (GenerateJob((259,), Sampling()), "outside the vocabulary of 259"),
        (GenerateJob((-1,), Sampling()), "outside the vocabulary"),
    ],
)
def test_jobs_that_cannot_run_are_refused(weights: Weights, job: GenerateJob, complaint: str) -> None:
    with pytest.raises(BadInput, match=complaint):
        Engine(weights).generate([job])


def test_a_full_context_can_be_used_to_its_last_position(weights: Weights) -> None:
    job = GenerateJob((1,) * 200, Sampling(max_tokens=56, temperature=0), ignore_eos=True)
    (got,) = Engine(weights).generate([job])
    assert list(got.token_ids) == plain_greedy(weights, job.prompt_ids, 56)


def test_sliding_windows_hide_what_lies_outside_them(tmp_path: Path) -> None:
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(1)
    config = MistralConfig(
        vocab_size=259, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=8, initializer_range=0.4, eos_token_id=256, max_position_embeddings=256,
    )  # fmt: skip
    MistralForCausalLM(config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    weights = load_weights(tmp_path)
    jobs = [GenerateJob(p, Sampling(max_tokens=12, temperature=0), ignore_eos=True) for p in PROMPTS]
    assert [list(g.token_ids) for g in Engine(weights).generate(jobs)] == [
        plain_greedy(weights, p, 12) for p in PROMPTS
    ]


def test_layers_with_and_without_windows_each_get_their_mask(tmp_path: Path) -> None:
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    torch.manual_seed(1)
    config = Gemma3TextConfig(
        vocab_size=259, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, head_dim=8,
        num_key_value_heads=2, sliding_window=8, eos_token_id=256, max_position_embeddings=256, initializer_range=0.3,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    )  # fmt: skip
    Gemma3ForCausalLM(config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    weights = load_weights(tmp_path)
    jobs = [GenerateJob(p, Sampling(max_tokens=12, temperature=0), ignore_eos=True) for p in PROMPTS]
    assert [list(g.token_ids) for g in Engine(weights).generate(jobs)] == [
        plain_greedy(weights, p, 12) for p in PROMPTS
    ]


def test_state_the_engine_cannot_keep_is_refused(weights: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights.model.config, "layer_types", ["linear_attention", "full_attention"], raising=False)
    with pytest.raises(BadInput, match="linear_attention"):
        Engine(weights)


# ── sampling ─────────────────────────────────────────────────────────────────────────────────────


def test_draws_follow_the_softmax() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -torch.inf, -1.0])
    source, count, heat = generator(3, 0), 20_000, 0.7
    drawn = choose(logits.expand(count, -1), [heat] * count, [1.0] * count, list(source.random(count)))
    expected = torch.softmax(logits / heat, -1).numpy()
    np.testing.assert_allclose(np.bincount(drawn, minlength=5) / count, expected, atol=0.015)
    assert 3 not in drawn


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-53])
def test_no_draw_lands_on_a_token_of_probability_zero(uniform: float) -> None:
    logits = torch.tensor([[-torch.inf, 0.0, 0.0, -torch.inf]])
    assert choose(logits, [1.0], [1.0], [uniform]) == [1 if uniform == 0 else 2]


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 700), st.floats(0.05, 1), st.integers(0, 2**32 - 1), st.floats(0.1, 5))
def test_the_nucleus_is_the_smallest_set_that_reaches_top_p(size: int, top_p: float, seed: int, spread: float) -> None:
    logits = torch.from_numpy(np.random.default_rng(seed).normal(size=size) * spread).float()
    probs = torch.softmax(logits, -1).double()
    order = probs.argsort(descending=True)
    # half a float's noise either way is neither in nor out
    surely = int((probs[order].cumsum(0) < top_p - 1e-5).sum()) + 1
    maybe = int((probs[order].cumsum(0) < top_p + 1e-5).sum()) + 1
    uniforms = [n / 400 for n in range(400)]
    drawn = set(choose(logits.expand(400, -1), [1.0] * 400, [top_p] * 400, uniforms))
    assert drawn <= set(order[:maybe].tolist())
    heavy = {int(t) for t in order[:surely] if probs[t] > 0.006}
    assert heavy <= drawn


# ── text ─────────────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 258), max_size=30), st.lists(st.text(min_size=1, max_size=3), max_size=2))
def test_pieces_join_to_the_text_and_never_show_half_a_character(ids: list[int], stop: list[str]) -> None:
    tokenizer = tiny_tokenizer()
    stream, pieces = TextStream(tokenizer, stop), []
    for token in ids:
        pieces.append(stream.push(token))
        if stream.stopped:
            break
    pieces.append(stream.finish())
    whole = tokenizer.decode(ids, skip_special_tokens=True)
    cut = min((at for at in (whole.find(s) for s in stop) if at >= 0), default=len(whole))
    assert stream.stopped == (cut < len(whole))
    assert "".join(pieces) == whole[:cut]


def test_a_character_comes_whole() -> None:
    tokenizer = tiny_tokenizer()
    stream = TextStream(tokenizer)
    assert [stream.push(token) for token in tokenizer.encode("aé😀")] == ["a", "", "é", "", "", "", "😀"]


# ── the real model ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_greedy_equals_transformers_generate(smollm2_gguf: Path) -> None:
    weights = load_weights(smollm2_gguf)
    questions = [
        "Hi",
        "What is a list?",
        "Explain os.path.join in one sentence.",
        "Name three colours of autumn leaves. " * 6,
    ]
    prompts = [tuple(prompt_ids(weights.tokenizer, (Message("user", q),))) for q in questions]
    got = Engine(weights).generate([GenerateJob(p, Sampling(max_tokens=24, temperature=0)) for p in prompts])
    for prompt, reply in zip(prompts, got, strict=True):
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            expected = weights.model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False
            )
        assert list(reply.token_ids) == expected[0, len(prompt) :].tolist()
        assert reply.text == weights.tokenizer.decode(reply.token_ids, skip_special_tokens=True)
