"""The whole of curation: files, order, held-out rows, report, failures."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from curate_kit import exchange, run_with
from spiritsafe.config import StrictModel, parse_config
from spiritsafe.curate import STEPS, CurateConfig, curate
from spiritsafe.errors import BadInput, SpiritsafeError
from spiritsafe.exchanges import read_exchanges
from spiritsafe.runs import Run


class Recipe(StrictModel):
    curate: CurateConfig = CurateConfig()


def config(*steps: object) -> CurateConfig:
    return parse_config({"curate": list(steps)}, Recipe, where="recipe.yaml").curate


def test_kept_rows_are_bit_for_bit_what_was_collected(tmp_path: Path) -> None:
    rows = [exchange(f"q{i}", f"answer number {i} " * (i % 5), k=4) for i in range(1100)]
    run = run_with(tmp_path, rows)
    report = curate(run, config("drop_empty"))
    before, after = pq.read_table(run.exchanges), pq.read_table(run.curated)
    stays = [i for i in range(1100) if i % 5]
    assert after.equals(before.take(stays))
    assert after.schema.metadata == before.schema.metadata
    assert (report.kept, report.dropped) == (len(stays), {"drop_empty": 220})
    back = next(read_exchanges(run.curated))
    assert np.array_equal(back.reply.logprobs.top, rows[1].reply.logprobs.top)
    loaded = datasets.Dataset.from_parquet(str(run.curated), cache_dir=str(tmp_path / "cache"))
    assert loaded[0]["completion"] == [{"role": "assistant", "content": rows[1].reply.text}]


def test_held_out_rows_pass_but_for_empty_ones(tmp_path: Path) -> None:
    rows = [
        exchange("a", "same words here"),
        exchange("a", "same words here", sample=1),
        exchange("h1", "I cannot help with that.", split="holdout", finish="length"),
        exchange("h1", "I cannot help with that.", split="holdout", sample=1),
        exchange("h2", " \n", split="holdout"),
    ]
    run = run_with(tmp_path, rows)
    report = curate(run, config("exact_dedup", "drop_refusals", "drop_truncated"))
    assert [e.id for e in read_exchanges(run.curated)] == [rows[i].id for i in (0, 2, 3)]
    assert (report.kept_train, report.kept_holdout) == (1, 2)
    assert report.dropped == {"exact_dedup": 1, "empty_holdout": 1}


def test_report_counts_every_drop_with_reason_and_examples(tmp_path: Path) -> None:
    rows = [exchange(f"q{i}", "cut off", finish="length", tokens=7) for i in range(9)] + [exchange("ok", "x" * 500)]
    run = run_with(tmp_path, rows)
    report = curate(run, config("drop_truncated", {"length": {"max_words": 50}}, {"length": {"min_tokens": 1}}))
    written = json.loads(run.curation.read_text())
    assert written["kept"] == report.kept == 1
    assert written["dropped"]["drop_truncated"]["count"] == 9
    examples = written["dropped"]["drop_truncated"]["examples"]
    assert [e["id"] for e in examples] == [e.id for e in rows[:5]]
    assert examples[0] | {"id": ""} == {"id": "", "why": "cut off at 7 tokens", "prompt": "q0", "completion": "cut off"}
    steps = [(s["name"], s["params"], s["seen"], s["dropped"]) for s in written["steps"]]
    assert steps[0] == ("drop_truncated", {"keep_if_min_tokens": None}, 10, 9)
    assert [s[0] for s in steps[1:]] == ["length", "length#2", "empty_holdout"]
    assert [s[2] for s in steps[1:3]] == [1, 1]
    assert all(s["seconds"] >= 0 for s in written["steps"])
    assert report.to_dict()["dropped"] == {"drop_truncated": 9}


def test_truncated_rows_stay_unless_the_step_is_listed(tmp_path: Path) -> None:
    run = run_with(tmp_path, [exchange("q", "cut off in the mid", finish="length")])
    assert curate(run, CurateConfig()).kept == 1


def test_nothing_left_says_what_dropped_most(tmp_path: Path) -> None:
    rows = [exchange(f"q{i}", "cut", finish="length") for i in range(3)] + [exchange("e", "")]
    run = run_with(tmp_path, rows)
    with pytest.raises(SpiritsafeError, match=r"no training row is left; drop_truncated dropped most \(3\)") as caught:
        curate(run, config("drop_truncated", "drop_empty"))
    assert caught.value.exit_code == 1
    assert not run.curated.exists()
    assert json.loads(run.curation.read_text())["kept"] == 0


def test_only_held_out_rows(tmp_path: Path) -> None:
    with pytest.raises(SpiritsafeError, match="no training rows, only held-out"):
        curate(run_with(tmp_path, [exchange("h", "x", split="holdout")]), CurateConfig())


def test_unusable_exchanges(tmp_path: Path) -> None:
    run = Run.open(tmp_path)
    with pytest.raises(BadInput, match=r"no such file; run `spiritsafe collect` first"):
        curate(run, CurateConfig())
    run.exchanges.write_bytes(b"PAR1 not really")
    with pytest.raises(BadInput, match="not a readable Parquet file"):
        curate(run, CurateConfig())
    with pytest.raises(BadInput, match="has no rows"):
        curate(run_with(tmp_path, []), CurateConfig())


def test_a_damaged_page_is_said_and_leaves_no_output(tmp_path: Path) -> None:
    run = run_with(tmp_path, [exchange(f"q{i}", f"answer {i * 7919} with text", k=2) for i in range(600)])
    data = bytearray(run.exchanges.read_bytes())
    data[8:4000] = bytes(len(data[8:4000]))
    run.exchanges.write_bytes(data)
    with pytest.raises(BadInput, match=r"exchanges\.parquet: damaged"):
        curate(run, CurateConfig())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["exchanges.parquet"]


def test_an_unwritable_folder_is_one_line(tmp_path: Path) -> None:
    run = run_with(tmp_path, [exchange("q", "a b c")])
    run.curated.mkdir()  # what cannot be replaced by a file
    with pytest.raises(SpiritsafeError, match="cannot write"):
        curate(run, CurateConfig())
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize(
    ("steps", "says"),
    [
        (["nere_dedup"], "curate: unknown step nere_dedup; did you mean near_dedup?"),
        (["zzz"], "there are exact_dedup, near_dedup"),
        ([{"near_dedup": {"treshold": 0.9}}], "near_dedup: unknown key treshold; did you mean threshold?"),
        ([{"near_dedup": {"threshold": 2}}], "near_dedup: threshold: Input should be less than or equal to 1"),
        ([{"near_dedup": 3}], "write its parameters as a mapping"),
        ([{"a": {}, "b": {}}], "write a step as its name"),
        ([3], "write a step as its name"),
        ("near_dedup", "write the steps as a list"),
        ([{"length": {}}], "give at least one of min_words"),
        ([{"length": {"min_words": 9, "max_words": 3}}], "min_words is above max_words"),
        ([{"drop_refusals": {"patterns": ["("]}}], "is not a regular expression"),
    ],
)
def test_bad_configs_are_one_line(steps: object, says: str) -> None:
    with pytest.raises(BadInput) as caught:
        parse_config({"curate": steps}, Recipe, where="recipe.yaml")
    assert says in str(caught.value)
    assert str(caught.value).startswith("recipe.yaml: curate")
    assert "\n" not in str(caught.value)


def test_config_survives_a_round_trip() -> None:
    full = config(
        "exact_dedup",
        {"near_dedup": {"threshold": 0.9}},
        {"decontaminate": {"against": "b.jsonl"}},
        {"drop_empty": None},
    )
    dumped = json.loads(json.dumps(full.model_dump(mode="json")))
    assert dumped[1]["near_dedup"]["threshold"] == 0.9 and dumped[3] == "drop_empty"
    assert config(*dumped) == full
    assert config().steps == ()
    assert {s.name for s in CurateConfig().steps} <= set(STEPS)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.sampled_from("pqr"), st.sampled_from(["", "a b c d e f g", "a b c d e f h", "x"]), st.booleans()),
        min_size=1,
        max_size=12,
    ),
    st.permutations(["exact_dedup", "near_dedup", "drop_empty", "decontaminate"]),
)
def test_deterministic_and_every_row_accounted_for(tmp_path_factory: pytest.TempPathFactory, rows, order) -> None:
    exchanges = [
        exchange(p, c, split="train" if train else "holdout", sample=i) for i, (p, c, train) in enumerate(rows)
    ]
    run = run_with(tmp_path_factory.mktemp("run"), exchanges)
    try:
        report = curate(run, config(*order))
    except SpiritsafeError:
        assert json.loads(run.curation.read_text())["kept_train"] == 0
        return
    first = run.curated.read_bytes()
    assert report.kept + sum(report.dropped.values()) == report.rows == len(rows)
    ids = [e.id for e in read_exchanges(run.curated)]
    assert ids == [e.id for e in exchanges if e.id in set(ids)]
    curate(run, config(*order))
    assert run.curated.read_bytes() == first
