"""Marks through `model.generate`, with a tiny real model and transformers' own processors and warpers around ours."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import GenerationConfig, LogitsProcessorList

from marked import key_set
from served import one_thread, save_tiny_model
from spiritsafe.errors import BadInput, Refused
from spiritsafe.keys import KeySet
from spiritsafe.teachers import Weights, load_weights
from spiritsafe.watermark._marker import Markers
from spiritsafe.watermark._native import NativeDetector
from spiritsafe.watermark._seen import DocumentSeen
from spiritsafe.watermark._transformers import WatermarkLogitsProcessor

pytestmark = pytest.mark.usefixtures("one_thread")
__all__ = ["one_thread"]
PAD = 257


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    return load_weights(save_tiny_model(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def keys() -> KeySet:
    """The same each time: the tiny model loops under some keys, and then there is little to find."""
    return key_set(3)


def generate(
    weights: Weights, processor: WatermarkLogitsProcessor, ids: Any, length: int = 150, **how: Any
) -> np.ndarray:
    settings = {"do_sample": True, "max_new_tokens": length, "eos_token_id": None, "pad_token_id": PAD} | how
    ids = torch.tensor(ids)
    out = weights.model.generate(
        ids,
        attention_mask=(ids != PAD).long(),
        logits_processor=LogitsProcessorList([processor]),
        generation_config=GenerationConfig(**settings),
    )
    return out.numpy().astype(np.uint32)


def test_rows_carry_their_own_accounts_marks(weights: Weights, keys: KeySet) -> None:
    source = Markers(keys)
    ids = [keys.key_id("2026-11", slot) for slot in (3, 4)]
    processor = WatermarkLogitsProcessor(source, ids, seed=1, pad_token_id=PAD)
    rows = generate(weights, processor, [[1, 2, 3], [4, 5, 6]])
    detector = NativeDetector(keys)
    for row, slot in zip(rows, (3, 4), strict=True):
        n, total = detector.totals_batch(row, np.array([0, len(row)]), 0, np.array([3]))
        assert detector.log10_tail(int(n[0]), float(total[0])) < -6
        reading = detector.read(row, 3)
        reading = reading.take(DocumentSeen().first(reading.inputs))  # the tiny model repeats itself
        _, totals = detector.account_totals(reading, 0, keys.account_keys("2026-11", range(50), "gumbel-dual"))
        assert totals.argmax() == slot
    assert all(m.keyed > 100 for m in processor.markers)


@pytest.mark.parametrize(
    "warpers",
    [{}, {"temperature": 0.6}, {"top_k": 3}, {"top_p": 0.4}, {"min_p": 0.2}, {"typical_p": 0.5}, {"do_sample": False}],
)
def test_what_comes_after_cannot_change_the_token(weights: Weights, keys: KeySet, warpers: dict[str, Any]) -> None:
    def run(**how: Any) -> list[list[int]]:
        processor = WatermarkLogitsProcessor(Markers(keys), seed=2, temperature=0.9, top_k=20, pad_token_id=PAD)
        return generate(weights, processor, [[1, 2, 3]], 40, **how).tolist()

    assert run(**warpers) == run()


def test_settings_can_come_from_the_generation_config(weights: Weights, keys: KeySet) -> None:
    source = Markers(keys)
    config = GenerationConfig(do_sample=True, temperature=0.9, top_k=20, top_p=0.95, pad_token_id=PAD)
    named = WatermarkLogitsProcessor(source, temperature=0.9, top_k=20, top_p=0.95, seed=4, pad_token_id=PAD)
    taken = WatermarkLogitsProcessor.from_config(source, config, seed=4)
    np.testing.assert_array_equal(*(generate(weights, p, [[1, 2]], 30) for p in (named, taken)))
    greedy = WatermarkLogitsProcessor.from_config(source, GenerationConfig(do_sample=False, eos_token_id=[5, 6]))
    generate(weights, greedy, [[1, 2]], 5)
    assert greedy.markers[0].greedy == "kgw"
    with pytest.raises(Refused, match="beam search cannot be marked"):
        WatermarkLogitsProcessor.from_config(source, GenerationConfig(num_beams=2))
    with pytest.raises(Refused, match="min_p"):
        WatermarkLogitsProcessor.from_config(source, GenerationConfig(do_sample=True, min_p=0.1))


def test_a_finished_row_is_left_alone_and_the_others_go_on(weights: Weights, keys: KeySet) -> None:
    source = Markers(keys)
    alone = generate(weights, WatermarkLogitsProcessor(source, seed=3, pad_token_id=PAD), [[1, 2]] * 4, 40)
    eos = int(alone[1, 12])
    assert eos != PAD
    processor = WatermarkLogitsProcessor(source, seed=3, pad_token_id=PAD, eos_token_id=eos)
    together = generate(weights, processor, [[1, 2]] * 4, 40, eos_token_id=eos)
    assert together.shape[1] > 13 and (together[1] == PAD).any()
    for got, full in zip(together, alone, strict=True):
        ends = np.nonzero(full[2:] == eos)[0]
        stop = ends[0] + 3 if len(ends) else len(full)
        np.testing.assert_array_equal(got[:stop], full[: len(got)][:stop])
        assert (got[stop:] == PAD).all()
    marker = processor.markers[1]
    assert marker.keyed + marker.unkeyed + marker.skipped == np.nonzero(together[1, 2:] == eos)[0][0] + 1


def test_a_short_prompts_padding_is_no_context(weights: Weights, keys: KeySet) -> None:
    at_once = Markers(keys)
    at_once.marking = at_once.marking.model_copy(update={"surprise_bits": 0.0})
    processor = WatermarkLogitsProcessor(at_once, seed=3, pad_token_id=PAD)
    generate(weights, processor, [[PAD, PAD, 9], [7, 8, 9]], 1)
    assert [m.unkeyed for m in processor.markers] == [1, 0]


def test_what_cannot_be_marked_is_refused(weights: Weights, keys: KeySet) -> None:
    source = Markers(keys)
    strayed = WatermarkLogitsProcessor(source, pad_token_id=PAD)
    (token,) = (strayed(torch.tensor([[1, 2]]), torch.zeros(1, 50)) == 0).nonzero()[:, 1].tolist()
    with pytest.raises(Refused, match="beam search and assisted decoding cannot be marked"):
        strayed(torch.tensor([[1, 2, (token + 1) % 50]]), torch.zeros(1, 50))
    used = WatermarkLogitsProcessor(source, pad_token_id=PAD)
    generate(weights, used, [[1, 2]], 5)
    with pytest.raises(Refused, match="new processor for each call"):
        generate(weights, used, [[1, 2]], 5)
    with pytest.raises(BadInput, match="2 key ids for 3 rows"):
        generate(weights, WatermarkLogitsProcessor(source, [source.key_id()] * 2), [[1, 2]] * 3, 5)
    with pytest.raises(Refused, match="greedy"):
        WatermarkLogitsProcessor(Markers(keys, "refuse"), temperature=0.0)
