"""The three schemes: what marking does to a distribution, and what the sums of scores are under H0."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from marking_kit import Language, fresh_keys, fresh_marker
from scipy.special import digamma
from scipy.stats import binomtest, chisquare

from served import one_thread
from spiritsafe.config import parse_config
from spiritsafe.errors import BadInput
from spiritsafe.watermark._marking import Marking
from spiritsafe.watermark._prf import context_hashes
from spiritsafe.watermark._types import Scheme
from spiritsafe.watermark.schemes import Gumbel, Kgw, SynthId, scheme_for
from spiritsafe.watermark.schemes.gumbel import _winners, _winners_torch
from spiritsafe.watermark.schemes.kgw import _green, _green_torch
from spiritsafe.watermark.schemes.synthid import _tournament, _tournament_torch

pytestmark = pytest.mark.usefixtures("one_thread")
__all__ = ["one_thread"]
SCHEMES: list[Scheme] = [Gumbel(), Kgw(), Kgw(1, 0.5, 1.0), SynthId(), SynthId(3, 52)]
PROBS = torch.tensor([0.5, 0.25, 0.15, 0.07, 0.03, 0.0])


def hashes(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**64, count, np.uint64)


def test_gumbel_draws_from_the_distribution_over_random_contexts() -> None:
    marked = Gumbel().mark(hashes(40_000), PROBS.expand(40_000, -1))
    assert (marked.sum(-1) == 1).all() and set(marked.unique().tolist()) == {0.0, 1.0}
    counts = marked.sum(0).numpy()
    assert counts[-1] == 0
    assert chisquare(counts[:-1], 40_000 * PROBS[:-1].double().numpy() / PROBS.double().sum().item()).pvalue > 1e-4


@pytest.mark.parametrize("depth", [1, 5, 30, 40])
def test_the_tournament_leaves_the_distribution_as_it_is_on_average(depth: int) -> None:
    count = 40_000
    marked = SynthId(2, depth).mark(hashes(count), PROBS.expand(count, -1)).double()
    torch.testing.assert_close(marked.sum(-1), torch.ones(count, dtype=torch.float64), atol=1e-5, rtol=0)
    error = (marked.mean(0) - PROBS).abs()
    assert (error <= 4.5 * marked.std(0) / math.sqrt(count) + 1e-6).all()
    assert marked.std(0)[0] > 0.1  # and it does something


def test_kgw_multiplies_the_odds_of_green_tokens() -> None:
    scheme = Kgw(2, 0.25, 2.0)
    h = hashes(500)
    green = scheme.green(h, 6, "cpu").double()
    expected = PROBS.double() * torch.exp(2.0 * green)
    expected /= expected.sum(-1, keepdim=True)
    torch.testing.assert_close(scheme.mark(h, PROBS.expand(500, -1)).double(), expected, atol=1e-6, rtol=0)
    share = scheme.green(hashes(100), 5000, "cpu").double().mean().item()
    assert abs(share - 0.25) < 4.5 * math.sqrt(0.25 * 0.75 / 500_000)


def test_torch_kernels_mark_as_the_compiled_ones_do() -> None:
    random = np.random.default_rng(3)
    probs = torch.softmax(torch.from_numpy(random.normal(0, 3, (20, 3001))).float(), -1)
    h = hashes(20)
    np.testing.assert_array_equal(_winners(h, probs.numpy()), _winners_torch(h, probs))
    below = Kgw()._below
    np.testing.assert_array_equal(_green(h, 3001, below), _green_torch(h, 3001, "cpu", below))
    for depth in (3, 30, 32, 33, 52):
        torch.testing.assert_close(
            torch.from_numpy(_tournament(h, probs.numpy(), depth)),
            _tournament_torch(h, probs, depth),
            atol=1e-4,
            rtol=1e-3,
        )


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: f"{s.name}-{s.context_width}")
def test_totals_and_sums_are_sums_of_scores(scheme: Scheme) -> None:
    random = np.random.default_rng(1)
    n, k = 53, scheme.context_width
    windows, tokens = random.integers(0, 50_000, (n, k), np.uint32), random.integers(0, 50_000, n, np.uint32)
    keys = fresh_keys(random, 700)
    scores = np.array([scheme.scores(context_hashes(key, windows), tokens) for key in keys])
    np.testing.assert_allclose(scheme.totals(keys, windows, tokens), scores.sum(1), rtol=1e-12)
    assert not scheme.totals(keys, windows[:0], tokens[:0]).any()
    ends = np.array([0, 17, 17, 50])
    parts = [scores[0, a:b].sum() for a, b in ((0, 0), (0, 17), (17, 17), (17, 50))]
    np.testing.assert_allclose(scheme.sums(context_hashes(keys[0], windows), tokens, ends), parts, rtol=1e-12)


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: f"{s.name}-{s.context_width}")
def test_the_tail_is_that_of_the_sums_over_fresh_keys(scheme: Scheme) -> None:
    random = np.random.default_rng(2)
    n = 60
    windows = np.arange(n * scheme.context_width, dtype=np.uint32).reshape(n, -1)
    totals = scheme.totals(fresh_keys(random, 20_000), windows, np.full(n, 7, np.uint32))
    log10_p = np.array([scheme.log10_tail(n, total) for total in np.unique(totals)])
    p = dict(zip(np.unique(totals), 10.0**log10_p, strict=True))
    for level in (0.5, 0.1, 0.01, 0.001):
        hits = sum(p[total] <= level for total in totals)
        exact = max((q for q in p.values() if q <= level), default=0.0)  # discrete sums cannot meet every level
        assert binomtest(hits, len(totals), level, alternative="greater").pvalue > 1e-4
        assert binomtest(hits, len(totals), exact, alternative="two-sided").pvalue > 1e-5
    assert scheme.log10_tail(0, 0.0) == 0.0


@pytest.mark.parametrize(
    ("scheme", "best"), [(Gumbel(), 53 * math.log(2)), (Kgw(), 1), (Kgw(2, 0.1), 1), (SynthId(), 30)]
)
@pytest.mark.parametrize("level", [-1.0, -6.0, -20.0, -100.0])
def test_fewest_is_the_first_length_that_can_reach_the_level(scheme: Scheme, best: float, level: float) -> None:
    n = scheme.fewest(level)
    assert scheme.log10_tail(n, n * best) <= level + 1e-9
    assert n == 1 or scheme.log10_tail(n - 1, (n - 1) * best) > level


def test_the_gumbel_scores_of_marked_text_have_the_mean_that_its_entropy_promises() -> None:
    """E[score] = Σ p H(1/p), H the harmonic number: known for a known language."""
    language, random = Language(40, 1.5), np.random.default_rng(5)
    scheme, count = Gumbel(2), 6000
    keys = hashes(count, 8)
    rows = random.integers(0, 40, count)
    probs = language.probabilities()[rows]
    tokens = scheme.mark(keys, torch.from_numpy(probs).float()).argmax(-1).numpy().astype(np.uint32)
    scores = scheme.scores(keys, tokens)
    promised = (probs * (digamma(1 / probs + 1) + np.euler_gamma)).sum(1).mean()
    assert abs(scores.mean() - promised) < 4.5 * scores.std() / math.sqrt(count)
    assert promised > 1.5


@pytest.mark.parametrize("scheme", [Gumbel(), Kgw(), SynthId()], ids=lambda s: s.name)
def test_marked_text_is_found_and_no_other_key_finds_it(scheme: Scheme) -> None:
    random = np.random.default_rng(11)
    marker = fresh_marker(scheme, random, account_share=0.0)
    (reply,) = Language(60, 2.0).replies([marker], 200)
    ids = np.concatenate([[0, 1], reply]).astype(np.uint32)
    windows = np.lib.stride_tricks.sliding_window_view(ids, 2)[:-1]
    pairs = np.unique(np.column_stack([windows, ids[2:]]), axis=0).astype(np.uint32)
    windows, tokens = np.ascontiguousarray(pairs[:, :2]), np.ascontiguousarray(pairs[:, 2])
    true = scheme.totals(marker._layers.epoch[None], windows, tokens)[0]
    assert scheme.log10_tail(len(tokens), true) < -8
    wrong = scheme.totals(fresh_keys(random, 2000), windows, tokens)
    assert min(scheme.log10_tail(len(tokens), total) for total in wrong) > -6


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"scheme": "kgw", "gama": 0.5}, "did you mean gamma"),
        ({"scheme": "gumbel-dual", "depth": 20}, "depth belongs to scheme synthid"),
        ({"scheme": "kgw", "gamma": 1.0}, "gamma"),
        ({"scheme": "rainbow"}, "scheme"),
        ({"context_width": 0}, "context_width"),
    ],
)
def test_settings_that_make_no_sense_are_refused(given: dict[str, object], complaint: str) -> None:
    with pytest.raises(BadInput, match=complaint):
        parse_config(given, Marking, where="marking")


def test_a_marking_names_its_scheme() -> None:
    kgw = scheme_for(Marking(scheme="kgw", gamma=0.5, delta=1.0, context_width=3))
    assert isinstance(kgw, Kgw) and (kgw.gamma, kgw.delta, kgw.context_width) == (0.5, 1.0, 3)
    synthid = scheme_for(Marking(scheme="synthid", depth=20))
    assert isinstance(synthid, SynthId) and synthid.depth == 20
    assert scheme_for(Marking()).name == "gumbel-dual"
    assert Marking(scheme="synthid", depth=20, gamma=0.5).under("kgw") == Marking(scheme="kgw", gamma=0.5)
