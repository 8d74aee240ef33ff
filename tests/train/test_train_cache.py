"""The logit cache: small, exact where it says so, and loud when damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spiritsafe.errors import BadInput
from spiritsafe.records import SparseLogprobs
from spiritsafe.train import CacheInfo, LogitCache, write_cache
from spiritsafe.train import _cache as module
from spiritsafe.train._cache import decode_rows, encode_rows
from train_kit import random_targets

INFO = CacheInfo("t", "rev", "weights", "tok", "tpl", k=5, temperature=1.0, vocab=300, inputs="in")


def test_a_row_stays_within_the_budget() -> None:
    assert [replace(INFO, k=64, vocab=v).row_bytes for v in (49_152, 65_536, 65_537, 151_936, 1 << 18)] == [
        194,
        194,
        202,
        210,
        210,
    ]
    rows = encode_rows(random_targets(3, 64, 70_000), replace(INFO, k=64, vocab=70_000))
    assert rows.shape == (3, 202)


@settings(max_examples=80, deadline=None)
@given(vocab=st.integers(2, 1 << 18), data=st.data())
def test_ids_survive_packing(vocab: int, data: st.DataObject) -> None:
    k, rows = data.draw(st.integers(1, 70)), data.draw(st.integers(1, 4))
    ids = np.array(data.draw(st.lists(st.integers(-1, vocab - 1), min_size=k * rows, max_size=k * rows))).reshape(
        rows, k
    )
    top = np.where(ids >= 0, np.float32(-1.0), -np.inf).astype(np.float32)
    info = replace(INFO, k=k, vocab=vocab)
    back = decode_rows(encode_rows(SparseLogprobs(np.zeros(rows, np.float32), top, ids.astype(np.int32)), info), info)
    assert back.ids is not None
    np.testing.assert_array_equal(back.ids, ids)


@pytest.mark.parametrize("spread", [0.3, 1.0, 3.0, 10.0])
def test_rounding_costs_less_than_a_thousandth_of_a_nat(spread: float) -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(200, 5000)) * spread
    logp = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    ids = np.argsort(-logp, 1)[:, :64]
    top = np.take_along_axis(logp, ids, 1)
    info = replace(INFO, k=64, vocab=5000)
    back = decode_rows(
        encode_rows(SparseLogprobs(top[:, 0].astype(np.float32), top.astype(np.float32), ids.astype(np.int32)), info),
        info,
    )
    p, q = np.exp(top), np.exp(back.top.astype(np.float64))
    p_tail, q_tail = 1 - p.sum(1), np.clip(1 - q.sum(1), 1e-12, None)
    kl = (p * (np.log(p) - back.top)).sum(1) + p_tail * np.log(p_tail / q_tail)
    assert kl.mean() < 1e-3
    np.testing.assert_allclose(q_tail, p_tail, rtol=0.02, atol=2e-6)


def test_short_rows_extra_alternatives_and_rows_without_a_teacher() -> None:
    targets = random_targets(3, 7, 300)
    assert targets.ids is not None
    targets.ids[1, 2:], targets.top[1, 2:] = -1, -np.inf
    targets.ids[2], targets.top[2] = -1, -np.inf
    back = decode_rows(encode_rows(targets, INFO), INFO)
    assert back.ids is not None
    np.testing.assert_array_equal(back.ids, targets.ids[:, :5])
    np.testing.assert_allclose(np.exp(back.top).sum(1), np.exp(targets.top[:, :5]).sum(1), atol=2e-3)
    assert np.isneginf(back.top[2]).all()


def write(folder: Path, n: int = 9) -> tuple[LogitCache, list[SparseLogprobs]]:
    targets = [random_targets(3 + i % 4, 5, 300, seed=i) for i in range(n)]
    return write_cache(folder, INFO, ((f"e{i}", t) for i, t in enumerate(targets))), targets


def test_examples_come_back_from_several_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SHARD_BYTES", 10 * INFO.row_bytes)
    cache, targets = write(tmp_path / "logits")
    assert len(list((tmp_path / "logits").glob("shard-*.bin"))) > 2
    assert len(cache) == 9 and cache.info == INFO
    for i, expected in enumerate(targets):
        back = cache.targets(f"e{i}")
        assert back.ids is not None
        np.testing.assert_array_equal(back.ids, expected.ids)
        np.testing.assert_allclose(back.top, expected.top, atol=0.1)


def test_the_header_describes_itself(tmp_path: Path) -> None:
    write(tmp_path / "logits")
    header = json.loads((tmp_path / "logits" / "header.json").read_text())
    assert header["schema"] == "logits/1"
    assert asdict(INFO).items() <= header.items()
    assert header["packing"]["row_bytes"] == INFO.row_bytes
    assert header["examples"][1] == ["e1", 3, 4]


def test_a_new_cache_takes_the_old_ones_place_only_when_it_is_whole(tmp_path: Path) -> None:
    folder = tmp_path / "logits"
    write(folder)

    def broken() -> Any:
        yield "x", random_targets(2, 5, 300)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_cache(folder, INFO, broken())
    assert len(LogitCache.open(folder)) == 9
    write(folder, n=2)
    assert len(LogitCache.open(folder)) == 2


def _cut(folder: Path) -> None:
    shard = folder / "shard-00000.bin"
    shard.write_bytes(shard.read_bytes()[:-1])


def _edit(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        header = json.loads((folder / "header.json").read_text())
        change(header)
        (folder / "header.json").write_text(json.dumps(header))

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_cut, "bytes, the header says"),
        (lambda f: (f / "shard-00000.bin").unlink(), r"shard-00000\.bin cannot be read"),
        (lambda f: (f / "header.json").write_text("{"), r"header\.json: damaged"),
        (lambda f: (f / "header.json").unlink(), r"header\.json cannot be read"),
        (_edit(lambda h: h.update(schema="logits/0")), "schema logits/0"),
        (_edit(lambda h: h.pop("k")), r"header\.json: damaged"),
        (_edit(lambda h: h["examples"].append(["far", 1000, 3])), "outside the shards"),
    ],
)
def test_damage_is_named_with_its_remedy(tmp_path: Path, damage: Callable[[Path], Any], message: str) -> None:
    folder = tmp_path / "logits"
    write(folder)
    damage(folder)
    with pytest.raises(BadInput, match=message) as caught:
        LogitCache.open(folder)
    assert "delete" in str(caught.value) and "run train again" in str(caught.value)
