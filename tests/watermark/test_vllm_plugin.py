"""Marks inside vLLM: whatever the host does with rows, a reply is the one its marker would write alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from vllm_kit import HAVE_VLLM, LANGUAGE, VOCAB, NewerHost, OlderHost, Request, engine_config, interface

from spiritsafe.errors import BadInput, Refused
from spiritsafe.keys import KeySet, load_keys, new_keys
from spiritsafe.watermark import _vllm_rows
from spiritsafe.watermark._marker import Markers
from spiritsafe.watermark._native import NativeDetector
from spiritsafe.watermark._seen import DocumentSeen

PROMPT = [3, 1, 4, 1, 5]
LENGTH = 60


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    path = tmp_path / "keys.json"
    new_keys(path, marking={"surprise_bits": 6.0}, epoch="2026-11")
    monkeypatch.setenv("SPIRITSAFE_KEYS", str(path))
    for name in ("SPIRITSAFE_PASSPHRASE", "SPIRITSAFE_GREEDY"):
        monkeypatch.delenv(name, raising=False)
    return interface(monkeypatch)


@pytest.fixture
def keys(api: Any, tmp_path: Path) -> KeySet:
    return load_keys(tmp_path / "keys.json")


def older(api: Any, late: str = "no") -> OlderHost:
    return OlderHost(api, api.kind(engine_config(), torch.device("cpu"), False), late)


def request(api: Any, seed: int | None, key_id: str | None = None, prompt: list[int] = PROMPT, **how: Any) -> Request:
    extra = None if key_id is None else {"watermark_key_id": key_id}
    return Request(api.Params(seed=seed, extra_args=extra, **how), list(prompt))


def alone(keys: KeySet, asked: Request, length: int = LENGTH) -> list[int]:
    """The reply that the request's own marker writes with nobody else around."""
    extra = asked.params.extra_args or {}
    source = Markers(keys)
    marker = source.marker(
        source.key_id(extra.get("watermark_key_id")),
        np.random.default_rng([asked.params.seed]),
        temperature=asked.params.temperature,
        top_p=asked.params.top_p,
        top_k=asked.params.top_k,
    )
    reply: list[int] = []
    for _ in range(length):
        last = (asked.prompt + reply)[-1]
        reply.append(int(marker(asked.prompt, reply, LANGUAGE[last]).argmax()))
    return reply


def log10_p(keys: KeySet, reply: list[int]) -> float:
    detector, ids = NativeDetector(keys), np.array(PROMPT + reply, np.uint32)
    reading = detector.read(ids, len(PROMPT))
    scores = detector.scores(reading.take(DocumentSeen().first(reading.inputs)), 0)
    values = scores.values[scores.counted]
    return detector.log10_tail(len(values), float(values.sum()))


@pytest.mark.parametrize("late", ["no", "a step", "for good"])
def test_rows_that_swap_move_pause_and_come_back(api: Any, keys: KeySet, late: str) -> None:
    host = older(api, late)
    asked = [request(api, seed, f"{keys.id}/2026-11/{seed}", top_k=40, top_p=0.95) for seed in range(4)]
    first, second, third, fourth = asked
    host.add(first, second)
    host.step()
    host.add(third)
    host.step(prefilling=[third])  # a long prompt, prefilled in two chunks
    host.step(prefilling=[third])
    host.step()
    host.swap(0, 2)
    host.step()
    paused = host.remove(0)  # the last row takes its place
    host.add(fourth)
    for _ in range(5):
        host.step()
    host.add(paused)
    host.swap(1, 3)
    while min(len(r.truth) for r in asked) < LENGTH:
        host.step()
    for r in asked:
        assert r.truth[:LENGTH] == alone(keys, r)


def test_tokens_that_the_host_takes_back_are_forgotten(api: Any) -> None:
    host = older(api)
    host.add(request(api, 1))
    for _ in range(6):
        host.step()
    del host.rows[0].output[3:]  # a failed transfer of the cache: the runner shortens its list
    del host.rows[0].truth[3:]
    host.step()
    (reply,) = host.processor._rows._rows.values()
    assert reply.tokens == host.rows[0].truth


def test_a_row_taken_over_by_another_request(api: Any, keys: KeySet) -> None:
    host = older(api)
    host.add(request(api, 1), request(api, 2))
    host.step()
    late = request(api, 3)
    host.rows[0] = late
    host.update(added=[0])  # the old one is not listed as removed
    for _ in range(LENGTH):
        host.step()
    assert late.truth == alone(keys, late)
    assert host.rows[1].truth[:LENGTH] == alone(keys, host.rows[1])


def test_the_newer_runner_slots_and_chunks(api: Any, keys: KeySet) -> None:
    host = NewerHost(api.kind)
    asked = {slot: request(api, slot, f"{keys.id}/2026-11/{slot}") for slot in (5, 2, 0)}
    assert host.add(5, asked[5])
    assert host.add(2, asked[2])
    host.step([5, 2], prefilling=[2])
    host.step([2, 5])
    host.add(0, asked[0])
    for _ in range(LENGTH):
        host.step([0, 2, 5])
    for r in asked.values():
        assert r.truth[:LENGTH] == alone(keys, r)
    # The slot's next tenant is a reply of its own; a prompt shorter than the context is no error.
    host.add(2, request(api, 9, prompt=[7]))
    with patch.object(_vllm_rows, "choose_marked", wraps=_vllm_rows.choose_marked) as chosen:
        host.step([2])
    assert chosen.call_args.args[1] == [[7]]
    for _ in range(LENGTH):
        host.step([2])
    assert host.requests[2].truth[:LENGTH] == alone(keys, host.requests[2])


def test_a_processor_that_runs_twice_changes_nothing(api: Any, keys: KeySet) -> None:
    class Twice:
        def __init__(self) -> None:
            self.each = [api.kind(engine_config(), torch.device("cpu"), False) for _ in range(2)]

        def update_state(self, update: Any) -> None:
            for processor in self.each:
                processor.update_state(update)

        def apply(self, logits: torch.Tensor) -> torch.Tensor:
            return self.each[1].apply(self.each[0].apply(logits))

    host = OlderHost(api, Twice())
    asked = request(api, 4)
    host.add(asked)
    for _ in range(LENGTH):
        host.step()
    assert asked.truth == alone(keys, asked)


def test_marks_are_found_and_name_the_key_set(api: Any, keys: KeySet, tmp_path: Path) -> None:
    host = older(api)
    asked = [request(api, None, temperature=t) for t in (1.0, 1.0, 1.0)]
    host.add(*asked)
    for _ in range(200):
        host.step()
    strangers = new_keys(tmp_path / "other.json", marking={"surprise_bits": 6.0}, epoch="2026-11")
    for r in asked:
        assert log10_p(keys, r.truth) < -6
        assert log10_p(strangers, r.truth) > -4
    assert len({tuple(r.truth) for r in asked}) == 3


def test_every_rank_draws_the_same_tokens(api: Any) -> None:
    def replies(rank: int) -> list[list[int]]:
        config = engine_config()
        config.parallel_config.data_parallel_rank = rank
        host = OlderHost(api, api.kind(config, torch.device("cpu"), False))
        host.add(request(api, None), request(api, None))
        for _ in range(20):
            host.step()
        return [r.truth for r in host.rows]

    assert replies(0) == replies(0)
    assert replies(0) != replies(1)


def test_min_p_and_penalties_are_respected(api: Any) -> None:
    host = older(api)
    strict = request(api, 1, min_p=0.6)
    novel = request(api, 2, presence_penalty=2.0, frequency_penalty=2.0, repetition_penalty=1.5)
    plain = request(api, 2)
    host.add(strict, novel, plain)
    for _ in range(100):
        host.step()
    path = PROMPT[-1:] + strict.truth
    for last, token in zip(path, strict.truth, strict=False):
        assert LANGUAGE[last, token] >= LANGUAGE[last].max() + np.log(0.6) - 1e-5
    assert len(set(novel.truth)) > len(set(plain.truth)) + 10


def test_penalties_are_the_hosts_own(api: Any) -> None:
    r = request(api, 1, presence_penalty=0.5, frequency_penalty=0.25, repetition_penalty=2.0, prompt=[1, 2])
    reply = _vllm_rows._Reply(lambda: None, r.params, r.prompt, [])  # type: ignore[arg-type, return-value]
    reply.tokens = [2, 3, 3, -1]
    logits = torch.tensor([4.0, 4.0, -4.0, 4.0, 1.0])
    _vllm_rows._penalise(logits, reply)
    assert logits.tolist() == [4.0, 2.0, -8.0 - 0.75, 2.0 - 1.0, 1.0]


def test_greedy_requests_are_marked_with_kgw(api: Any, keys: KeySet) -> None:
    host = older(api)
    cold = request(api, 1, temperature=0.0)
    host.add(cold)
    for _ in range(LENGTH):
        host.step()
    assert cold.truth == alone(keys, cold)


def test_without_a_key_file_nothing_is_touched(api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPIRITSAFE_KEYS")
    logits = torch.randn(2, VOCAB)
    processor = api.kind(engine_config(), torch.device("cpu"), False)
    processor.update_state(api.Update(1, [], [(0, api.Params(), [1], [])], []))
    assert processor.apply(logits) is logits
    newer = api.kind(engine_config(), None)
    assert not newer.add_request(0, api.Params())
    assert newer.apply(logits, None) is logits
    api.kind.validate_params(api.Params())
    with pytest.raises(ValueError, match="set SPIRITSAFE_KEYS"):
        api.kind.validate_params(api.Params(extra_args={"watermark_key_id": "ks_00000000/2026-11/1"}))


@pytest.mark.parametrize(
    ("asked", "message"),
    [("ks_00000000/2026-11/1", "use one of its key ids"), ("nonsense", "key id"), (7, "expected a key id as text")],
)
def test_bad_key_ids_are_refused_at_admission(api: Any, asked: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        api.kind.validate_params(api.Params(extra_args={"watermark_key_id": asked}))


def test_requests_at_admission(api: Any, keys: KeySet, monkeypatch: pytest.MonkeyPatch) -> None:
    api.kind.validate_params(api.Params(extra_args={"watermark_key_id": f"{keys.id}/2026-11/12", "other": 1}))
    api.kind.validate_params(api.Params(temperature=0.0))
    monkeypatch.setenv("SPIRITSAFE_GREEDY", "refuse")
    with pytest.raises(ValueError, match="greedy"):
        api.kind.validate_params(api.Params(temperature=0.0))
    monkeypatch.setenv("SPIRITSAFE_GREEDY", "maybe")
    with pytest.raises(ValueError, match="SPIRITSAFE_GREEDY=maybe"):
        api.kind.validate_params(api.Params())


def test_settings_that_would_break_marks_stop_the_server(api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for changes in ({"speculative_config": object()}, {"watermark_config": object()}, {"sharded": True}):
        with pytest.raises(Refused, match="switch it off"):
            api.kind(engine_config(**changes), torch.device("cpu"), False)
    monkeypatch.setenv("SPIRITSAFE_KEYS", "/nowhere/keys.json")
    with pytest.raises(BadInput, match="nowhere"):
        api.kind(engine_config(), None)


@pytest.mark.skipif(not HAVE_VLLM, reason="vLLM is not installed; the same protocol was exercised with stand-ins")
def test_the_class_is_one_that_both_of_vllms_loaders_take(api: Any) -> None:
    from vllm.v1.sample.logits_processor import _load_logitsprocs_by_fqcns
    from vllm.v1.sample.logits_processor.state import BatchUpdateBuilder, LogitsProcessors
    from vllm.v1.worker.gpu.sample.logits_processor.loader import _load_v2_logitsprocs_by_fqcns

    name = "spiritsafe.watermark._vllm_plugin:WatermarkProcessor"
    assert _load_logitsprocs_by_fqcns([name]) == _load_v2_logitsprocs_by_fqcns([name]) == [api.kind]
    processor = api.kind(engine_config(), torch.device("cpu"), False)
    assert LogitsProcessors([processor]).non_argmax_invariant == [processor]
    builder = BatchUpdateBuilder()
    builder.added.append((0, api.Params(seed=1), PROMPT, []))
    processor.update_state(builder.get_and_reset(1))
    assert int((processor.apply(torch.randn(1, VOCAB)) == 0).sum()) == 1
