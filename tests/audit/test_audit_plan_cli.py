"""`audit plan` and `audit timestamp`: what they print, what is unanchored, and a commitment that came too late."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from coins_kit import write_lines
from freeze_kit import QUESTION, write_keys, write_plan, write_reference, write_twins

from spiritsafe.audit._anchors import unanchored, warnings
from spiritsafe.audit._freeze import Frozen, _described, _frozen, freeze, seed_of
from spiritsafe.audit._inputs import gather
from spiritsafe.audit._tsa import verify_timestamp
from spiritsafe.cli import main
from timestamps import Authority, running_authority


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Authority]:
    with running_authority(tmp_path_factory.mktemp("tsa")) as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_reference(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[str, str]]:
    """Runs the command line in this process: (stdout, stderr)."""

    def run_cli(*arguments: str, code: int = 0) -> tuple[str, str]:
        with pytest.raises(SystemExit) as left:
            main(list(arguments))
        said = capsys.readouterr()
        assert (left.value.code or 0) == code, said.err
        return said.out, said.err

    return run_cli


def test_what_a_person_reads(folder, cli):
    write_plan(folder, tests=[{"kind": "equality", "reference": "reference.jsonl"}, {"kind": "equality", "name": "more",
                                                                                    "reference": "reference.jsonl"}])  # fmt: skip
    out, err = cli("audit", "plan", "PLAN.yaml")
    assert err == ""
    assert QUESTION in out
    assert re.search(r"hash [0-9a-f]{64}\n", out)
    assert "1. equality (decides): 1 hypothesis\n   null: For every prompt" in out
    assert "2. more: 1 hypothesis\n" in out
    assert "counts only while every test before it rejects" in out
    assert "alpha 0.001, stop rule: all" in out
    assert "unanchored: plan: nothing outside will show when it was frozen" in out


def test_what_a_program_reads(folder, cli):
    write_plan(folder)
    said = json.loads(cli("audit", "plan", "PLAN.yaml", "--json")[0])
    frozen = (folder / "PLAN.frozen.json").read_bytes()
    import hashlib

    assert said["hash"] == hashlib.sha256(frozen).hexdigest()
    assert said["tests"] == [
        {
            "test": "equality",
            "kind": "equality",
            "primary": True,
            "null": json.loads(frozen)["nulls"]["equality"],
            "family": 1,
            "keys_to_open": 0,
        }
    ]
    assert said["superseded"] == []
    assert len(said["unanchored"]) == 1


def test_again_is_refused_unless_asked_for_and_then_said(folder, cli):
    write_plan(folder)
    cli("audit", "plan", "PLAN.yaml")
    assert "frozen already" in cli("audit", "plan", "PLAN.yaml", code=3)[1]
    out, _ = cli("audit", "plan", "PLAN.yaml", "--again")
    assert "replaces 1 frozen before, under which 0 runs were started" in out


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "no such file"),
        ("", "expected a YAML mapping"),
        ("a: [", "not valid YAML"),
        ("name: x\n", "question is missing"),
        ("name: x\nquestion: q\nsubject: {name: s, access: text}\ntests: []\n", "tests"),
        ("name: x\nquestion: q\nsubject: {name: s, acess: text}\ntests: []\n", "did you mean access"),
    ],
)
def test_plans_that_are_none(folder, cli, content, says):
    if content is not None:
        (folder / "PLAN.yaml").write_text(content)
    _, err = cli("audit", "plan", "PLAN.yaml", code=2)
    assert says in err
    assert err.count("\n") == 1


def test_a_commitment_is_timestamped_when_it_is_published(folder, cli, authority):
    write_keys(folder)
    out, _ = cli("audit", "timestamp", "COMMITMENT.json", "--tsa", authority.url)
    assert re.search(r"COMMITMENT\.json existed on \d{4}-\d\d-\d\d at \d\d:\d\d:\d\d UTC", out)
    token = (folder / "COMMITMENT.json.tsr").read_bytes()
    verify_timestamp(token, (folder / "COMMITMENT.json").read_bytes(), authority.roots)
    assert "an older timestamp is worth more" in cli(
        "audit", "timestamp", "COMMITMENT.json", "--tsa", authority.url, code=2
    )[1]  # fmt: skip
    assert (folder / "COMMITMENT.json.tsr").read_bytes() == token


def test_timestamps_of_nothing(folder, cli, authority):
    assert "none.json" in cli("audit", "timestamp", "none.json", "--tsa", authority.url, code=2)[1]
    assert "http" in cli("audit", "timestamp", "reference.jsonl", "--tsa", "tsa.example", code=2)[1]
    assert not list(folder.glob("*.tsr"))


def test_an_empty_file_is_not_timestamped(folder, cli, authority):
    (folder / "empty").touch()
    _, err = cli("audit", "timestamp", "empty", "--tsa", authority.url, code=2)
    assert "empty" in err


async def test_what_twins_are_anchored_in(folder):
    await write_twins(folder)
    bare = freeze(write_plan(folder, tests=[{"kind": "twins", "pairs": "pairs.jsonl"}]))
    assert "without the ledger nothing shows" in unanchored(bare)[1]
    test = {"kind": "twins", "pairs": "pairs.jsonl", "ledger": "ledger.jsonl"}
    with_ledger = freeze(write_plan(folder, tests=[test]), again=True)
    assert "only the ledger itself says" in unanchored(with_ledger)[1]
    (folder / "ledger.jsonl.tsr").write_bytes(b"token")
    assert len(unanchored(freeze(write_plan(folder, tests=[test]), again=True))) == 1


class TestTimes:
    """A commitment has to precede the texts that are marked under it."""

    def _marked(self, folder: Path, rows: list[dict[str, object]]) -> Frozen:
        (folder / "tok").mkdir(exist_ok=True)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (folder / "tok" / name).write_text("{}")
        write_lines(folder / "texts.jsonl", rows)
        test = {
            "kind": "radioactivity", "texts": "texts.jsonl", "tokenizer": "tok", "commitment": "COMMITMENT.json",
            "leaves": ["epoch.json", "coin.json"],
        }  # fmt: skip
        plan = write_plan(folder, tests=[test])
        found = gather(plan)
        document = _described(found, {}) | {"families": {"radioactivity": 1}, "frozen_at": "2099-01-01T00:00:00Z"}
        document["decoy_seed"] = seed_of(document["inputs"], document["leaves"])
        return _frozen(plan, found, document, b"")

    @pytest.mark.parametrize("key", ["ts", "created", "created_at", "timestamp"])
    def test_texts_older_than_the_commitment_are_reported(self, folder, key):
        write_keys(folder)
        yesterday = datetime.now(UTC) - timedelta(days=1)
        at = yesterday.timestamp() if key == "ts" else yesterday.isoformat()
        later = (datetime.now(UTC) + timedelta(days=1)).isoformat()
        (line,) = warnings(self._marked(folder, [{"completion": "x", "created": later}, {"completion": "y", key: at}]))
        assert f"after the first of the texts ({yesterday:%Y-%m-%d %H:%M} UTC)" in line
        assert "keys could have been chosen once the texts were known" in line

    def test_texts_that_came_later_are_not(self, folder):
        write_keys(folder)
        later = (datetime.now(UTC) + timedelta(days=1)).isoformat()
        assert warnings(self._marked(folder, [{"completion": "x", "created": later}, {"completion": "no time"}])) == []

    @pytest.mark.parametrize("value", [None, "yesterday", [], True, 1e30, float("inf"), ""])
    def test_times_that_are_none_say_nothing(self, folder, value):
        write_keys(folder)
        assert warnings(self._marked(folder, [{"completion": "x", "created": value}])) == []

    def test_a_timestamp_counts_and_not_what_the_commitment_says_of_itself(self, folder, cli, authority):
        """Back-dated by its own word; the authority's token is of today."""
        write_keys(folder)
        document = json.loads((folder / "COMMITMENT.json").read_text()) | {"created": "2020-01-01T00:00:00Z"}
        (folder / "COMMITMENT.json").write_text(json.dumps(document))
        rows = [{"completion": "x", "created": (datetime.now(UTC) - timedelta(days=1)).isoformat()}]
        assert warnings(self._marked(folder, rows)) == []
        assert any("no timestamp" in line for line in unanchored(self._marked(folder, rows)))
        cli("audit", "timestamp", "COMMITMENT.json", "--tsa", authority.url)
        (line,) = warnings(self._marked(folder, rows))
        assert "its commitment is timestamped" in line
        assert not any("no timestamp" in line for line in unanchored(self._marked(folder, rows)))

    def test_parquet_tells_times_too(self, folder):
        import pyarrow as pa
        import pyarrow.parquet as pq

        write_keys(folder)
        frozen = self._marked(folder, [{"completion": "x"}])
        old = pa.array([datetime(2020, 1, 1, tzinfo=UTC)])
        pq.write_table(pa.table({"completion": ["x"], "created": old}), folder / "texts.parquet")
        files = dict(frozen.inputs) | {frozen.plan.tests[0].texts: folder / "texts.parquet"}
        from dataclasses import replace

        assert len(warnings(replace(frozen, inputs=files))) == 1

    def test_a_commitment_from_the_future(self, folder):
        write_keys(folder)
        document = json.loads((folder / "COMMITMENT.json").read_text()) | {"created": "2199-01-01T00:00:00Z"}
        (folder / "COMMITMENT.json").write_text(json.dumps(document))
        (line,) = warnings(self._marked(folder, [{"completion": "x"}]))
        assert "after this plan was frozen: check the clocks" in line
