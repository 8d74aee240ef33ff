"""Twins as evidence: doctored pairs and ledgers, hostile files and hostile answers."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import coins_kit as kit
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spiritsafe.audit import _types as types
from spiritsafe.audit.tests._marked_texts import read_texts
from spiritsafe.audit.tests._pairs import released_text
from spiritsafe.errors import BadInput
from spiritsafe.ledger import Event

# Doctored evidence


def _line(number: int, change: Callable[[dict[str, Any]], Any]) -> Callable[[list[dict[str, Any]]], Any]:
    return lambda lines: change(lines[number])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            _line(1, lambda line: line.update(coin=1 - line["coin"])),
            "line 2: the pair of req_1 is not what was committed",
        ),
        (_line(1, lambda line: line.update(first=line["second"], second=line["first"])), "not what was committed to"),
        (_line(1, lambda line: line["request"].update(model="x")), "not what was committed to"),
        (_line(1, lambda line: line.update(salt="0" * 64)), "not what was committed to"),
        (
            _line(1, lambda line: line.update(seq=line["seq"] + 1)),
            "row 3 of the ledger does not commit to a pair of req_1",
        ),
        (_line(1, lambda line: line.update(seq=99)), "does not commit"),
        (_line(1, lambda line: line.update(request_id="req_2")), "does not commit"),
        (_line(1, lambda line: line.pop("seq")), "not an opened pair"),
        (lambda lines: lines.append(lines[0]), "line 5: the pair of req_0 is there twice"),
        (lambda lines: lines.append(kit.pair_line(7, "never", "committed", 0)), "does not commit"),
    ],
)
async def test_a_doctored_pair_is_named(tmp_path: Path, change: Callable[..., Any], says: str) -> None:
    lines = kit.some_pairs(4)
    pairs, ledger = await kit.stored_pairs(tmp_path, lines)
    change(lines)
    with pytest.raises(BadInput, match=says):
        kit.twins(kit.write_lines(pairs, lines), ledger)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda rows: rows[1].update(twin_commit="0" * 64), "row 2: changed or moved"),
        (lambda rows: rows.pop(1), "row 2: missing"),
        (lambda rows: rows[2].update(prev_hash="0" * 64), "changed or moved|does not follow"),
        (lambda rows: rows.append({"kind": "reply"}), "not a ledger row"),
    ],
)
async def test_a_doctored_ledger_is_named(tmp_path: Path, change: Callable[..., Any], says: str) -> None:
    pairs, ledger = await kit.stored_pairs(tmp_path, kit.some_pairs(4))
    rows = [json.loads(line) for line in ledger.read_text().splitlines()]
    change(rows)
    with pytest.raises(BadInput, match=says):
        kit.twins(pairs, kit.write_lines(ledger, rows))


async def test_an_export_of_replies_alone_is_refused_where_events_are_missing(tmp_path: Path) -> None:
    lines = kit.some_pairs(2)
    ledger = await kit.ledger_of(tmp_path, [lines[0], Event(kit.NOW, "terms_accepted", "acct_1"), lines[1]])
    rows = [row for row in map(json.loads, ledger.read_text().splitlines()) if row["kind"] == "reply"]
    with pytest.raises(BadInput, match=r"row 2: missing.*--all"):
        kit.twins(kit.write_lines(tmp_path / "t.jsonl", lines), kit.write_lines(ledger, rows))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"{", "line 1: not JSON"),
        (b"[1]\n", "not a JSON object"),
        (b'"x"', "not a JSON object"),
        (b'{"seq": 1e400}', "not JSON|not an opened"),
        (b"[" * 100_000, "not JSON"),
        (b'{"seq": NaN}', "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b'{"seq": true, "request_id": "x"}', "not an opened pair"),
    ],
)
def test_what_is_no_export(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=says):
        kit.twins(path)
    with pytest.raises(BadInput, match=r"give the file|give an exported"):
        kit.twins(tmp_path / "none.jsonl")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_hostile_pairs_are_refused_or_left_out(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Whatever the committed contents are, and whatever is not covered by the commitment, there is one clear line."""
    path = tmp_path_factory.mktemp("twins") / "t.jsonl"
    finite = json_values.filter(lambda value: _is_json(value))
    first, second, request = data.draw(finite), data.draw(finite), data.draw(finite)
    line = kit.pair_line(0, {"x": first}, {"x": second}, 0, request=request)
    name = data.draw(st.sampled_from([*line, "none of them"]))
    kit.write_lines(path, [line, line | {"request_id": "req_1", name: data.draw(finite)}])
    try:
        test = kit.twins(path)
    except BadInput as error:
        said = str(error)
        assert "\n" not in said and len(said) < 400
    else:
        assert test.items() == [] and test.judge([]).log10_p == 0.0


def _is_json(value: Any) -> bool:
    try:
        return bool(orjson.loads(orjson.dumps(value)) == value)
    except (TypeError, ValueError):
        return False


# The transcript


@settings(deadline=None, max_examples=300)
@given(json_values, st.sampled_from(["likelihood", "text"]), st.sampled_from(["got", "first", "replies"]))
def test_hostile_answers_are_refused(got: Any, by: Any, where: str) -> None:
    test = _judging(by)
    answer = {"first": [-1.0, 2], "second": [-1.5, 2], "replies": ["left"]}
    answer = got if where == "got" else answer | {where: got}
    if not isinstance(answer, dict | None):
        answer = {"first": answer}
    try:
        outcome = test.judge([types.Record("twins", "req_0", kit.NOW, 1, {}, answer)])
    except BadInput as error:
        said = str(error)
        assert said.startswith("transcript of twins, req_0: ") and len(said) < 200
    else:
        assert -0.31 <= outcome.log10_p <= 0 and outcome.n_scored <= 1


_TESTS: dict[str, types.Test] = {}


def _judging(by: str) -> types.Test:
    """One test for all examples: its file is read once."""
    if by not in _TESTS:
        with tempfile.TemporaryDirectory() as folder:
            _TESTS[by] = kit.twins(kit.write_lines(Path(folder) / "t.jsonl", kit.some_pairs(1, coins=[0])), by=by)
    return _TESTS[by]


@pytest.mark.parametrize(
    "value",
    [
        [math.nan, 2],
        [math.inf, 2],
        [-1.0, 0.5],
        [-1.0, -1],
        [-1.0, True],
        [True, 1],
        ["-1", 1],
        [-1.0],
        "ab",
        [10**400, 3],
    ],
)
def test_numbers_that_are_none(value: Any) -> None:
    got = {"first": value, "second": [-1.0, 2]}
    with pytest.raises(BadInput, match="sum of log-probabilities"):
        _judging("likelihood").judge([types.Record("twins", "req_0", kit.NOW, 1, {}, got)])


async def test_a_suspect_that_answers_with_a_book_is_cut_short(tmp_path: Path) -> None:
    test = kit.twins(kit.write_lines(tmp_path / "t.jsonl", kit.some_pairs(1)), by="text", samples=1)
    (record,) = await kit.asked(test, kit.Scripted(reply=lambda *_: "x" * 10**6))
    assert record.got is not None and len(record.got["replies"][0]) == 200_000
    assert test.judge([record]).hypotheses[0].facts["ties"] == 1
    with pytest.raises(BadInput, match="200,000 characters at most"):
        test.judge([kit.record("twins", "req_0", {"replies": ["x" * 200_001]})])


def test_an_unknown_item_is_refused_and_other_tests_lines_are_not_looked_at() -> None:
    test = _judging("likelihood")
    with pytest.raises(BadInput, match="'req_9' is not one of its questions"):
        test.judge([kit.record("twins", "req_9", None)])
    assert test.judge([kit.record("canaries", "req_9", None)]).n_scored == 0


def test_what_was_released_is_a_text_that_may_be_marked(tmp_path: Path) -> None:
    """A test of marks reads an export of twins as the texts that went out."""
    lines = [kit.pair_line(1, "first", "second", 1), kit.pair_line(2, "first", "second", 0)]
    asked = [[{"role": "user", "content": f"question {n}"}] for n in (1, 2)]
    assert [released_text(line) for line in lines] == [
        {"messages": asked[0], "completion": "second"},
        {"messages": asked[1], "completion": "first"},
    ]
    assert released_text(lines[0] | {"coin": 2}) is None
    assert released_text(lines[0] | {"second": {"choices": []}}) is None
    kit.write_lines(tmp_path / "twins.jsonl", [lines[0] | {"coin": "1"}])
    with pytest.raises(BadInput, match="no text in it"):
        read_texts(tmp_path / "twins.jsonl", lambda: None, None)
