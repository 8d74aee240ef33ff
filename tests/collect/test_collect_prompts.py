"""Prompts: every format, every fault named where it stands."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spiritsafe.collect import PromptsConfig, assign_splits, load_prompts
from spiritsafe.errors import BadInput
from spiritsafe.records import Message, Prompt


class Said:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def update(self, stage: str, done: float, total: float | None, note: str = "") -> None: ...

    def say(self, message: str) -> None:
        self.lines.append(message)


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def texts(prompts: list[Prompt]) -> list[str]:
    return [p.messages[-1].content for p in prompts]


def test_jsonl_csv_text_and_parquet_give_the_same_prompts(tmp_path: Path) -> None:
    wanted = ["first, with comma", "zwei\u2028Zeilen", "third"]
    jsonl = write(tmp_path / "p.jsonl", "\n".join(json.dumps({"prompt": t}, ensure_ascii=False) for t in wanted))
    csv = write(tmp_path / "p.csv", 'id,prompt\n1,"first, with comma"\n2,zwei\u2028Zeilen\n3,third\n')
    text = write(tmp_path / "p.txt", "\ufefffirst, with comma\n\nzwei\u2028Zeilen\nthird\n")
    parquet = tmp_path / "p.parquet"
    pq.write_table(pa.table({"prompt": wanted}), parquet)
    for path in (jsonl, csv, text, parquet):
        assert texts(load_prompts(PromptsConfig(path=path))) == wanted, path


def test_hugging_face_folder(tmp_path: Path) -> None:
    import datasets

    datasets.Dataset.from_dict({"q": ["a", "b"]}).save_to_disk(str(tmp_path / "d"))
    assert texts(load_prompts(PromptsConfig(path=tmp_path / "d", column="q"))) == ["a", "b"]
    with pytest.raises(BadInput, match=r"d: no column prompt; columns here: q"):
        load_prompts(PromptsConfig(path=tmp_path / "d"))
    with pytest.raises(BadInput, match="not a dataset saved with"):
        load_prompts(PromptsConfig(path=tmp_path))


def test_conversations_work_as_well_as_strings(tmp_path: Path) -> None:
    talk = [{"role": "system", "content": "s"}, {"role": "user", "content": "hi"}]
    path = write(tmp_path / "p.jsonl", json.dumps({"messages": talk}))
    [prompt] = load_prompts(PromptsConfig(path=path, column="messages"))
    assert prompt.messages == (Message("system", "s"), Message("user", "hi"))
    [prompt] = load_prompts(PromptsConfig(path=path, column="messages", system="other"))
    assert prompt.messages == (Message("system", "other"), Message("user", "hi"))
    pq.write_table(pa.table({"messages": [talk]}), tmp_path / "p.parquet")
    assert load_prompts(PromptsConfig(path=tmp_path / "p.parquet", column="messages"))[0].messages[0].content == "s"


def test_duplicates_are_collapsed_and_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "p.txt", "a\nb\na\na\n")
    said = Said()
    assert texts(load_prompts(PromptsConfig(path=path), progress=said)) == ["a", "b"]
    assert said.lines == ["prompts: 2 exact duplicates of 4 prompts collapsed"]


def test_limit_is_the_same_choice_whatever_the_order(tmp_path: Path) -> None:
    lines = [f"prompt {i}" for i in range(50)]
    path = write(tmp_path / "p.txt", "\n".join(lines))
    chosen = texts(load_prompts(PromptsConfig(path=path, limit=10, seed=3)))
    random.Random(0).shuffle(lines)
    write(path, "\n".join(lines))
    again = texts(load_prompts(PromptsConfig(path=path, limit=10, seed=3)))
    assert len(chosen) == 10 and set(chosen) == set(again)
    assert set(chosen) != set(texts(load_prompts(PromptsConfig(path=path, limit=10, seed=4))))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": \n', r"p.jsonl:2: not valid JSON"),
        ("p.jsonl", '{"prompt": "a"}\n["b"]\n', r"p.jsonl:2: holds a list"),
        ("p.jsonl", '{"promt": "a"}\n', r"p.jsonl:1: no column prompt; columns here: promt; did you mean promt\?"),
        ("p.jsonl", '{"prompt": 5}\n', r"p.jsonl:1: column prompt holds int"),
        ("p.jsonl", '{"prompt": []}\n', r"p.jsonl:1: column prompt holds an empty list"),
        ("p.jsonl", '{"prompt": "  "}\n', r"p.jsonl:1: column prompt is empty"),
        ("p.jsonl", '{"prompt": null}\n', r"p.jsonl:1: no column prompt"),
        ("p.jsonl", '{"prompt": [{"role": "user"}]}\n', r"p.jsonl:1: .* without text in role and content"),
        ("p.jsonl", '{"prompt": [{"role": "bot", "content": "x"}]}\n', r"p.jsonl:1: .* role 'bot'"),
        (
            "p.jsonl",
            '{"prompt": [{"role": "assistant", "content": "x"}]}\n',
            r"p.jsonl:1: .* ends with the assistant's",
        ),
        ("p.jsonl", b'{"prompt": "\xff"}\n', r"p.jsonl:1: not UTF-8"),
        ("p.jsonl", "\n\n", r"p.jsonl: has no prompts"),
        ("p.jsonl", "", r"p.jsonl: is empty"),
        ("p.csv", "id,prompt\n1,a,b\n", r"p.csv:2: has more fields than the header"),
        ("p.csv", "id,question\n1,a\n", r"p.csv:2: no column prompt; columns here: id, question"),
        ("p.csv", 'id,prompt\n1,"a\n', r"p.csv:2: not valid CSV"),
        ("p.parquet", "not parquet at all", r"p.parquet: not a readable Parquet file"),
    ],
)
def test_faults_name_file_line_and_column(tmp_path: Path, name: str, content: str | bytes, says: str) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(BadInput, match=says):
        load_prompts(PromptsConfig(path=path))


def test_a_missing_file_and_a_missing_parquet_column(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"nowhere.jsonl: no such file"):
        load_prompts(PromptsConfig(path=tmp_path / "nowhere.jsonl"))
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "p.parquet")
    with pytest.raises(BadInput, match="no column prompt; columns here: text"):
        load_prompts(PromptsConfig(path=tmp_path / "p.parquet"))


def test_stdlib_questions_are_many_short_distinct_and_repeatable() -> None:
    config = PromptsConfig(source="python-stdlib", limit=200)
    prompts = load_prompts(config)
    asked = texts(prompts)
    assert len(set(asked)) == 200
    assert max(map(len, asked)) <= 220
    assert texts(load_prompts(config)) == asked
    assert set(texts(load_prompts(config.model_copy(update={"seed": 1})))) != set(asked)
    assert len({text.split("Python")[0] for text in asked}) > 3


def test_without_a_limit_there_are_thousands() -> None:
    asked = texts(load_prompts(PromptsConfig(source="python-stdlib")))
    assert len(asked) > 3000
    assert any("os.path.join" in text for text in asked)


def test_splits_do_not_depend_on_order() -> None:
    prompts = [Prompt((Message("user", f"q{i}"),)) for i in range(100)]
    splits = assign_splits(prompts, 0.12, seed=7)
    assert sorted(splits.values()).count("holdout") == 12
    assert assign_splits(prompts[::-1], 0.12, seed=7) == splits
    assert assign_splits(prompts, 0.12, seed=8) != splits


@pytest.mark.parametrize(
    ("count", "fraction", "held"), [(10, 0.0, 0), (10, 0.01, 1), (1, 0.5, 0), (2, 1.0, 1), (0, 0.5, 0)]
)
def test_splits_at_the_edges(count: int, fraction: float, held: int) -> None:
    prompts = [Prompt((Message("user", f"q{i}"),)) for i in range(count)]
    assert list(assign_splits(prompts, fraction, seed=0).values()).count("holdout") == held


def test_exactly_one_place_for_prompts() -> None:
    with pytest.raises(ValueError, match="exactly one of path"):
        PromptsConfig()
    with pytest.raises(ValueError, match="exactly one of path"):
        PromptsConfig(path=Path("x"), source="python-stdlib")
