"""What marking promises about replies: one is the model's own, and several under one key stay as diverse as unmarked."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from marking_kit import Language, fresh_marker, key_set
from scipy.stats import chisquare

from served import one_thread
from spiritsafe.records import Sampling
from spiritsafe.watermark._marker import Markers
from spiritsafe.watermark._native import NativeDetector
from spiritsafe.watermark._types import Scheme
from spiritsafe.watermark.schemes import Gumbel, Kgw, SynthId

pytestmark = pytest.mark.usefixtures("one_thread")
__all__ = ["one_thread"]
N = 8  # replies a prompt


def sequence_law(language: Language, length: int, start: int) -> dict[tuple[int, ...], float]:
    """The model's probability of every reply."""
    p = language.probabilities()
    return {
        reply: float(np.prod([p[a, b] for a, b in itertools.pairwise((start, *reply))]))
        for reply in itertools.product(range(language.vocab), repeat=length)
    }


class Forgetful(set[tuple[int, ...]]):
    """A memory of used contexts that never remembers."""

    def __contains__(self, _: object) -> bool:
        return False


def misfit(
    scheme: Scheme, surprise_bits: float, *, forget: bool = False, replies: int = 12_000, length: int = 6
) -> float:
    """p of a chi-square test of whole replies, each under fresh keys, against the model's law of whole replies.

    Three tokens and one token of context: contexts repeat in every reply.
    """
    language, random = Language(3, 0.7, seed=1), np.random.default_rng(6)
    markers = [fresh_marker(scheme, random, surprise_bits=surprise_bits) for _ in range(replies)]
    if forget:
        for marker in markers:
            marker._used = Forgetful()
    drawn = language.replies(markers, length)
    assert sum(m.skipped for m in markers) > replies / 2 or forget or surprise_bits > 0
    law = sequence_law(language, length, start=1)
    counts: dict[tuple[int, ...], int] = {}
    for reply in map(tuple, drawn.tolist()):
        counts[reply] = counts.get(reply, 0) + 1
    expected, seen, rest = [], [], [0.0, 0]
    for reply, p in law.items():
        if replies * p >= 5:
            expected.append(replies * p)
            seen.append(counts.get(reply, 0))
        else:
            rest = [rest[0] + replies * p, rest[1] + counts.get(reply, 0)]
    return float(chisquare([*seen, rest[1]], [*expected, rest[0]]).pvalue)


@pytest.mark.parametrize("surprise_bits", [0.0, 4.0])
@pytest.mark.parametrize("scheme", [Gumbel(1), SynthId(1, 30)], ids=lambda s: s.name)
def test_a_whole_reply_over_random_keys_is_the_models(scheme: Scheme, surprise_bits: float) -> None:
    assert misfit(scheme, surprise_bits) > 1e-4


def test_the_test_would_notice_a_distortion_and_a_context_used_twice() -> None:
    assert misfit(Kgw(1, 0.25, 6.0), 0.0) < 1e-9
    assert misfit(Gumbel(1), 0.0, forget=True) < 1e-9


def diversity(replies: np.ndarray) -> tuple[int, float]:
    """(distinct replies, mean common prefix of two) of (8, T) tokens."""
    prefixes = []
    for a, b in itertools.combinations(replies, 2):
        differ = np.nonzero(a != b)[0]
        prefixes.append(differ[0] if len(differ) else len(a))
    return len({tuple(r) for r in replies.tolist()}), float(np.mean(prefixes))


def mean_diversity(replies_PNT: np.ndarray) -> np.ndarray:
    return np.mean([diversity(replies) for replies in replies_PNT], axis=0)


@pytest.mark.parametrize("temperature", [0.7, 1.0])
@pytest.mark.parametrize("scheme", ["gumbel-dual", "synthid"])
def test_eight_replies_to_one_prompt_differ_as_unmarked_ones_do(
    tmp_path: Path, scheme: str, temperature: float
) -> None:
    language, prompts, length = Language(50, 2.5), 30, 60

    def replies(surprise_bits: float) -> np.ndarray:
        markers = [
            maker.marker(maker.key_id(), np.random.default_rng([prompt, index]), temperature=temperature)
            for prompt in range(prompts)  # one key for all, as a teacher has
            for index in range(N)
        ]
        for marker in markers:
            marker._unspent = surprise_bits
        starts = [(3, prompt) for prompt in range(prompts) for _ in range(N)]
        return language.replies(markers, length, prompt=starts).reshape(prompts, N, length)

    maker = Markers(key_set(tmp_path, scheme=scheme))
    assert maker.marking.surprise_bits == 16.0
    (free, free_prefix), (marked, marked_prefix) = mean_diversity(replies(1e9)), mean_diversity(replies(16.0))
    assert marked >= free - 0.1 and marked > 7.8
    assert marked_prefix <= free_prefix + 0.5
    if scheme == "gumbel-dual":
        _, careless_prefix = mean_diversity(replies(0.0))
        assert careless_prefix > marked_prefix + 5  # what the surprise gate is for


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_the_real_teachers_replies_stay_diverse_and_are_found(
    smollm2_gguf: Path, tmp_path: Path, temperature: float, capsys: pytest.CaptureFixture[str]
) -> None:
    from spiritsafe.records import Message
    from spiritsafe.teachers import Engine, GenerateJob, load_weights
    from spiritsafe.teachers._sampling import generator
    from spiritsafe.tokens import prompt_ids

    weights = load_weights(smollm2_gguf)
    keys = key_set(tmp_path)
    maker, detector = Markers(keys), NativeDetector(keys)
    asked = ["Explain how a lighthouse works.", "Write a short story about a clockmaker."]
    prompts = [tuple(prompt_ids(weights.tokenizer, (Message("user", text),))) for text in asked]

    def job(prompt: tuple[int, ...], index: int, marked: bool, length: int) -> GenerateJob:
        sampling = Sampling(max_tokens=length, temperature=temperature, seed=7)
        random = generator(7, index)
        marker = maker.marker(maker.key_id(), random, temperature=temperature) if marked else None
        return GenerateJob(prompt, sampling, index, ignore_eos=True, processor=marker)

    rows = {}
    for marked in (False, True):
        jobs = [job(prompt, index, marked, 48) for prompt in prompts for index in range(N)]
        done = Engine(weights).generate(jobs)
        rows[marked] = np.array([g.token_ids for g in done]).reshape(len(prompts), N, 48)
    (free, free_prefix), (kept, kept_prefix) = mean_diversity(rows[False]), mean_diversity(rows[True])
    long = Engine(weights).generate([job(prompt, index, True, 200) for prompt in prompts for index in range(2)])
    found = []
    for g in long:
        ids = np.array(g.token_ids, np.uint32)
        n, total = detector.totals_batch(ids, np.array([0, len(ids)]), 0)
        found.append(detector.log10_tail(int(n[0]), float(total[0])))
    with capsys.disabled():
        print(
            f"\nT={temperature}: distinct of 8 {free:.2f} unmarked, {kept:.2f} marked; common prefix {free_prefix:.1f},"
            f" {kept_prefix:.1f} tokens; 200 tokens, epoch layer: median log10 p {np.median(found):.1f}"
        )
    assert kept >= free - 0.25 and kept_prefix <= free_prefix + 2
    assert np.median(found) < (-2 if temperature < 1 else -10)
