"""Lineage: exact where it claims to be, finds what was kept, sets aside what the base explains, hostile input."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import leads_kit as kit
import numpy as np
import pytest
import torch
import weights_kit as wk
from benchmarks.small_decoders import trained

from spiritsafe.audit import _types as types
from spiritsafe.audit._evidence import Evidence
from spiritsafe.audit._plan import LineageConfig
from spiritsafe.audit.tests import _tensors as tensors
from spiritsafe.audit.tests import _units as counting
from spiritsafe.audit.tests import open_test
from spiritsafe.teachers import TeacherError


def make(teacher: Path, base: Path | None = None, siblings: Mapping[str, Path] | None = None) -> types.Test:
    paths = {"weights/t": teacher, "weights/b": base} | {f"weights/{n}": p for n, p in (siblings or {}).items()}
    plan = LineageConfig(
        kind="lineage",
        teacher="weights/t",
        base="weights/b" if base else None,
        siblings={name: f"weights/{name}" for name in siblings or {}},
    )
    return open_test(plan, Evidence({n: p for n, p in paths.items() if p}, b""))


async def found(test: types.Test, suspect: wk.Arrays) -> types.Outcome:
    """Ask and judge; judge a second time without any weights at hand, as a verifier does."""
    items = test.items()
    (got,) = await test.ask(wk.suspect(suspect), items)
    outcome = test.judge([kit.record(items[0], got, test.name)])
    elsewhere = open_test(test._config, Evidence({}, b""))  # type: ignore[attr-defined]
    assert elsewhere.judge([kit.record(items[0], got, test.name)]) == outcome
    json.dumps([outcome.effect, [dict(h.facts) for h in outcome.hypotheses]], allow_nan=False)
    return outcome


@pytest.mark.parametrize("structure", ["plain", "outliers", "hubs"])
async def test_strangers_are_never_called_kin_too_often(tmp_path: Path, structure: str) -> None:
    seen = []
    rng = np.random.default_rng(len(structure))
    scale = np.ones((1, 24))
    scale[0, :3] = 40.0  # rows that are little but three coordinates, the same ones in both models
    for trial in range(300):
        models = []
        for layers in (3, 2 if trial % 2 else 3):
            arrays = wk.decoder(rng, layers)
            if structure == "outliers":
                arrays = {n: t * torch.tensor(scale, dtype=torch.float32) for n, t in arrays.items()}
            if structure == "hubs":  # nearly all units of a layer alike
                arrays = {n: 0.1 * t + t[:1] for n, t in arrays.items()}
            models.append(arrays)
        test = make(wk.save(tmp_path / "teacher", models[0]))
        seen.append((await found(test, models[1])).log10_p)
    kit.never_above(seen)


async def test_models_trained_on_the_same_data_from_other_seeds_are_strangers(tmp_path: Path) -> None:
    suspect = trained(1, seed=99)[0]
    seen, counts = [], []
    for teacher in trained(300, seed=1):
        outcome = await found(make(wk.save(tmp_path / "teacher", teacher)), suspect)
        seen.append(outcome.log10_p)
        counts.append(outcome.hypotheses[0].statistic)
    kit.never_above(seen)
    assert 0.05 < np.mean(counts) < 1.3  # about as many as chance puts in their place, and not none: the test looks


@pytest.mark.parametrize("keep", [[0, 1, 2, 3], [0, 3], [1, 2, 3], [0, 1, 1, 2, 3], [2, 0]])
async def test_kept_layers_are_found_wherever_they_stand(tmp_path: Path, keep: list[int]) -> None:
    rng = np.random.default_rng(3)
    teacher = wk.decoder(rng)
    outcome = await found(make(wk.save(tmp_path / "t", teacher)), wk.moved(wk.keep_layers(teacher, keep), rng, 0.5))
    units = outcome.hypotheses[0]
    assert units.log10_p < -60 and outcome.log10_p < -20 and outcome.family == 2
    assert units.statistic > 0.9 * 48 * len(set(keep))
    assert outcome.most == "lead"
    assert any("No base was declared" in note for note in outcome.notes)


async def test_reordered_units_leave_the_coordinates_and_both_together_escape(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    teacher = wk.decoder(rng)
    test = make(wk.save(tmp_path / "t", teacher))
    units_only = await found(test, wk.reordered(wk.moved(teacher, rng, 0.2), rng))
    assert units_only.hypotheses[0].log10_p > -2 and units_only.hypotheses[1].log10_p < -15
    assert units_only.log10_p < -15
    both = await found(test, wk.reordered(teacher, rng, coordinates=True))
    assert both.log10_p > -2  # the page says so


async def test_a_shared_base_accuses_nobody(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    base = wk.decoder(rng)
    teacher, innocent = wk.moved(base, rng, 0.3), wk.moved(base, rng, 0.3)
    outcome = await found(make(wk.save(tmp_path / "t", teacher), wk.save(tmp_path / "b", base)), innocent)
    assert outcome.log10_p == 0.0
    assert abs(outcome.effect["own_change"]) < 0.3 and outcome.effect["base"] > 0.9
    assert any("explains" in note for note in outcome.notes)
    # without the base it would be called kin, which it is
    assert (await found(make(tmp_path / "t"), innocent)).log10_p < -60


async def test_an_unrelated_base_explains_nothing(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    teacher, other = wk.decoder(rng), wk.decoder(rng, layers=2)
    test = make(wk.save(tmp_path / "t", teacher), wk.save(tmp_path / "b", other))
    outcome = await found(test, wk.moved(teacher, rng, 0.3))
    assert outcome.log10_p < -60 and outcome.effect["own_change"] is None


async def test_the_teachers_own_change_stands_out_among_siblings(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    base = wk.decoder(rng)
    teacher = wk.moved(base, rng, 0.3)
    drift = wk.moved(base, rng, 0.2)  # what all fine-tunes have in common, the teacher's among them
    teacher = {n: teacher[n] + drift[n] - base[n] for n in base}
    siblings = {f"s{i}": wk.save(tmp_path / f"s{i}", wk.moved(drift, rng, 0.3)) for i in range(9)}
    siblings["stranger"] = wk.save(tmp_path / "stranger", wk.decoder(rng))
    test = make(wk.save(tmp_path / "t", teacher), wk.save(tmp_path / "b", base), siblings)
    derived = await found(test, wk.moved(wk.keep_layers(teacher, [0, 2, 3]), rng, 0.3))
    assert derived.log10_p == pytest.approx(-1.0)  # 1/(9 + 1), and never less
    assert derived.effect["own_change"] == pytest.approx(1.0, abs=0.1)
    assert derived.hypotheses[0].rank == (0, 9) and any("stranger" in note for note in derived.notes)
    innocent = await found(test, wk.moved(drift, rng, 0.3))
    assert 0.1 < innocent.effect["own_change"] < 0.6 and innocent.log10_p > -1.0
    copy_of_base = await found(test, base)
    assert copy_of_base.effect["own_change"] == 0.0 and copy_of_base.log10_p == 0.0


def test_the_rank_among_siblings_is_exact() -> None:
    """One trial: a base, a teacher, a common drift, and a hundred models from it, one of which is the suspect."""
    rng = np.random.default_rng(8)
    plan = LineageConfig(kind="lineage", teacher="t", base="b", siblings={f"s{i}": f"s{i}" for i in range(99)})
    test = open_test(plan, Evidence({}, b""))
    kin = {"found": 16, "of": 16, "orders": 1, "choices": 1}
    seen = []
    for _ in range(600):
        change, drift = rng.normal(size=(2, 64))
        drift += rng.random() * change  # what fine-tunes of this base have in common, with the teacher's too
        others = rng.normal(size=(100, 64)) + drift * rng.random((100, 1))
        shares = [[float(x), float(change @ change)] for x in others @ change]
        models = [{"units": kin, "coordinates": None, "change": share} for share in shares]
        got = {
            "suspect": models[0],
            "base": {"units": kin, "coordinates": None},
            "siblings": {f"s{i}": m for i, m in enumerate(models[1:])},
        }
        seen.append(test.judge([kit.record(test.items()[0], got, "lineage")]).log10_p)
    kit.never_above(seen)
    assert min(seen) == pytest.approx(-2.0)


async def test_other_widths_cannot_be_compared(tmp_path: Path) -> None:
    rng = np.random.default_rng(9)
    outcome = await found(make(wk.save(tmp_path / "t", wk.decoder(rng))), wk.decoder(rng, d=16))
    assert outcome.log10_p == 0.0 and outcome.n_scored == 0
    assert any("differ in width" in note for note in outcome.notes)


async def test_an_api_cannot_be_asked(tmp_path: Path) -> None:
    test = make(wk.save(tmp_path / "t", wk.decoder(np.random.default_rng(0))))
    with pytest.raises(TeacherError, match="only answers"):
        await test.ask(object(), test.items())  # type: ignore[arg-type]
    failed = test.judge([kit.record(test.items()[0], None, "lineage", "bad_request")])
    assert failed.log10_p == 0.0 and "could not be compared" in failed.notes[0]
    assert test.judge([]).n_scored == 0


@pytest.mark.parametrize("constant", [0.0, 1.0, float("nan"), float("inf"), 1e38])
async def test_degenerate_weights_match_nothing(tmp_path: Path, constant: float) -> None:
    arrays = {n: torch.full_like(t, constant) for n, t in wk.decoder(np.random.default_rng(0)).items()}
    outcome = await found(make(wk.save(tmp_path / "t", arrays)), arrays)
    assert outcome.log10_p == 0.0 and outcome.hypotheses[0].statistic == 0


def test_counting_in_blocks_is_counting(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    a = rng.normal(size=(50, 6)).astype(np.float32)
    b = a[rng.permutation(50)]
    b[::2] = a[::2]
    products = a @ b.T
    best = [i for i in range(50) if products[i, i] >= max(products[i].max(), products[:, i].max())]
    expected = sum(len([x for x in products[i] if x == products[i, i]]) == 1 for i in best)  # b has a few rows twice
    whole = counting.in_place(a, b)
    monkeypatch.setattr(counting, "_ROWS", 7)
    assert counting.in_place(a, b) == whole == expected > 5


def test_other_architectures_are_read(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    gate, up = (torch.tensor(rng.normal(size=(12, 8)), dtype=torch.bfloat16) for _ in range(2))
    layouts = {
        "phi": {"model.layers.0.mlp.gate_up_proj.weight": torch.cat([gate, up])},
        "gpt2": {"h.0.mlp.c_fc.weight": gate.T.contiguous(), "wte.weight": torch.ones(5, 8)},
        "neox": {"gpt_neox.layers.0.mlp.dense_h_to_4h.weight": gate},
        "two towers": {f"vision.encoder.layers.{i}.mlp.fc1.weight": torch.ones(3, 3) for i in range(1)}
        | {f"text.layers.{i}.mlp.fc1.weight": gate.clone() for i in range(2)},
    }
    for name, arrays in layouts.items():
        with tensors.open_decoder(wk.save(tmp_path / name, arrays)) as read:
            assert (read.units[0], read.width) == (12, 8), name
            assert np.array_equal(read.matrices(0)[0], gate.float().numpy()), name
    with tensors.open_decoder(tmp_path / "phi" / "model.safetensors") as read:
        assert np.array_equal(read.matrices(0, 5)[1], up.float().numpy()[:5])
