"""Teachers that mark: over the wire with the stock client, in process, and into the exchanges a run keeps."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest

from served import one_thread, save_tiny_model, serving
from spiritsafe.cli._main import main
from spiritsafe.collect._jobs import identity
from spiritsafe.config import parse_config
from spiritsafe.errors import BadInput
from spiritsafe.keys import KeySet, load_keys, new_keys, rotate_keys
from spiritsafe.records import Message, Prompt, Request, Sampling
from spiritsafe.teachers import LocalTeacher, TeacherConfig, TeacherError, load_tokenizer, open_teacher
from spiritsafe.tokens import tokenizer_hash
from spiritsafe.watermark._marker import Markers
from spiritsafe.watermark._native import NativeDetector
from spiritsafe.wire import completion_bytes, parse_completion

pytestmark = pytest.mark.usefixtures("one_thread")
__all__ = ["one_thread"]
ASK = {"model": "tiny", "messages": [{"role": "user", "content": "Say something long"}], "max_tokens": 150, "seed": 5}
IDS = {"extra_body": {"return_token_ids": True}}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny"), context=512)


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    path = tmp_path_factory.mktemp("keys") / "keys.json"
    bound = tokenizer_hash(load_tokenizer(model))
    new_keys(path, marking={"scheme": "gumbel-dual"}, epoch="2026-10", tokenizer_hash=bound)
    rotate_keys(path, epoch="2026-11")
    return path


@pytest.fixture(scope="module")
def keys(key_file: Path) -> KeySet:
    return load_keys(key_file)


@pytest.fixture(scope="module")
def base_url(model: Path, keys: KeySet) -> Iterator[str]:
    with serving(LocalTeacher(model, model="tiny", markers=Markers(keys))) as url:
        yield url


@pytest.fixture(scope="module")
def client(base_url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=base_url, api_key="none", max_retries=0)


def log10_p(keys: KeySet, token_ids: Any, **how: Any) -> float:
    detector = NativeDetector(keys, epochs=["2026-11"], **how)
    ids = np.array(token_ids, np.uint32)
    n, total = detector.totals_batch(ids, np.array([0, len(ids)]), 0)
    return detector.log10_tail(int(n[0]), float(total[0]))


def test_every_reply_is_marked_with_the_current_epoch(client: openai.OpenAI, keys: KeySet) -> None:
    answer = client.chat.completions.create(**ASK, n=3, **IDS)
    assert answer.model_extra is not None
    assert answer.model_extra["watermark_key_id"] == f"{keys.id}/2026-11/0"
    assert "watermark_greedy" not in answer.model_extra
    replies = [choice.model_extra["token_ids"] for choice in answer.choices if choice.model_extra]
    assert len({tuple(r) for r in replies}) == 3
    assert np.median([log10_p(keys, reply) for reply in replies]) < -5
    again = client.chat.completions.create(**ASK, n=3, **IDS)
    assert [c.model_extra for c in again.choices] == [c.model_extra for c in answer.choices]


def test_a_request_names_the_account_to_mark_for(client: openai.OpenAI, keys: KeySet) -> None:
    extra = {"return_token_ids": True, "watermark_key_id": f"{keys.id}/2026-11/17"}
    answer = client.chat.completions.create(**ASK, extra_body=extra)
    assert answer.model_extra is not None and answer.model_extra["watermark_key_id"] == extra["watermark_key_id"]
    ids = np.array(answer.choices[0].model_extra["token_ids"], np.uint32)  # type: ignore[index]
    detector = NativeDetector(keys, epochs=["2026-11"])
    _, totals = detector.account_totals(
        detector.read(ids, 0), 0, keys.account_keys("2026-11", range(64), "gumbel-dual")
    )
    assert totals.argmax() == 17


def test_streams_are_the_same_replies_and_name_the_key_first(client: openai.OpenAI, keys: KeySet) -> None:
    whole = client.chat.completions.create(**ASK, **IDS)
    chunks = list(client.chat.completions.create(**ASK, stream=True, **IDS))
    assert chunks[0].model_extra is not None
    assert chunks[0].model_extra["watermark_key_id"] == f"{keys.id}/2026-11/0"
    assert not any("watermark_key_id" in (c.model_extra or {}) for c in chunks[1:])
    streamed = [i for c in chunks if c.choices for i in (c.choices[0].model_extra or {}).get("token_ids", ())]
    assert streamed == whole.choices[0].model_extra["token_ids"]  # type: ignore[index]


def test_log_probabilities_are_those_of_the_unmarked_model(client: openai.OpenAI, model: Path) -> None:
    marked = client.chat.completions.create(**ASK | {"max_tokens": 12}, logprobs=True, top_logprobs=3)
    content = marked.choices[0].logprobs.content  # type: ignore[union-attr]
    assert content is not None
    # under the mark a token would be certain (0) or impossible
    assert all(-25 < entry.logprob < -1e-4 for entry in content)
    assert len({round(entry.logprob, 3) for entry in content}) > 3


@pytest.mark.parametrize(
    ("asked", "complaint"),
    [
        ("{set}/2026-10/3", "2026-10 is retired and marks no more"),
        ("{set}/2031-01/3", "no epoch '2031-01'"),
        ("{set}/2026-11/1048576", "slots go from 0 to 1048575"),
        ("ks_00000000/2026-11/3", "this teacher marks with ks_"),
        ("my account", "write it as KEY_SET/EPOCH/SLOT"),
        (17, "watermark_key_id must be a string"),
    ],
)
def test_key_ids_that_do_not_mark_are_refused(client: openai.OpenAI, keys: KeySet, asked: Any, complaint: str) -> None:
    asked = asked.format(set=keys.id) if isinstance(asked, str) else asked
    with pytest.raises(openai.BadRequestError, match=complaint) as caught:
        client.chat.completions.create(**ASK, extra_body={"watermark_key_id": asked})
    assert caught.value.param == "watermark_key_id"


def test_greedy_requests_say_what_they_became(model: Path, keys: KeySet, client: openai.OpenAI) -> None:
    greedy = ASK | {"temperature": 0}
    answer = client.chat.completions.create(**greedy, **IDS)
    assert answer.model_extra is not None and answer.model_extra["watermark_greedy"] == "kgw"
    reply = answer.choices[0].model_extra["token_ids"]  # type: ignore[index]
    assert log10_p(keys, reply, scheme="kgw") < -1
    with serving(LocalTeacher(model, model="tiny", markers=Markers(keys, "raise"))) as url:
        raised = openai.OpenAI(base_url=url, api_key="none").chat.completions.create(**greedy, **IDS)
        warm = openai.OpenAI(base_url=url, api_key="none").chat.completions.create(**ASK | {"temperature": 0.7}, **IDS)
        assert raised.model_extra is not None and raised.model_extra["watermark_greedy"] == "raise"
        assert raised.choices[0].model_extra == warm.choices[0].model_extra
    with serving(LocalTeacher(model, model="tiny", markers=Markers(keys, "refuse"))) as url:
        refusing = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
        with pytest.raises(openai.BadRequestError, match="a greedy reply cannot carry this mark"):
            refusing.chat.completions.create(**greedy)


def test_the_model_list_keeps_the_marks_to_itself(base_url: str, keys: KeySet) -> None:
    with urllib.request.urlopen(f"{base_url}/models") as answer:
        listed = answer.read().decode()
    assert "tiny" in listed
    assert keys.id not in listed and "watermark" not in listed


def test_a_teacher_without_keys_refuses_to_pretend(model: Path) -> None:
    with serving(LocalTeacher(model, model="tiny")) as url:
        client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
        with pytest.raises(openai.BadRequestError, match="this teacher makes no marks"):
            client.chat.completions.create(**ASK, extra_body={"watermark_key_id": "ks_00000000/2026-11/1"})
        assert "watermark_key_id" not in (client.chat.completions.create(**ASK | {"max_tokens": 2}).model_extra or {})


async def test_local_weights_mark_by_config_and_exchanges_name_the_key(
    model: Path, key_file: Path, keys: KeySet, base_url: str
) -> None:
    request = Request(Prompt((Message("user", "Say something long"),)), Sampling(max_tokens=150, seed=5))
    config = parse_config({"path": str(model), "watermark": {"keys": str(key_file)}}, TeacherConfig, where="teacher")
    local, remote = open_teacher(config), open_teacher(TeacherConfig(model="tiny", base_url=base_url))
    try:
        here, there = await local.complete(request), await remote.complete(request)
        assert here.watermark_key_id == there.watermark_key_id == f"{keys.id}/2026-11/0"
        assert here.replies[0].token_ids == there.replies[0].token_ids is not None
        stored = completion_bytes(here.replies, here.usage, here.model, here.watermark_key_id)
        assert parse_completion(stored).watermark_key_id == here.watermark_key_id
        assert there.raw is not None and parse_completion(there.raw).watermark_key_id == here.watermark_key_id
        assert identity(local.info) != identity(replace(local.info, marks=None))  # its answers are filed apart
        cold = Request(request.prompt, Sampling(max_tokens=5, temperature=0))
        assert (await local.complete(cold)).watermark_key_id == here.watermark_key_id
    finally:
        await local.aclose()
        await remote.aclose()


async def test_an_in_process_greedy_request_can_be_refused(model: Path, key_file: Path) -> None:
    marks = {"keys": str(key_file), "greedy": "refuse"}
    teacher = open_teacher(parse_config({"path": str(model), "watermark": marks}, TeacherConfig, where="teacher"))
    try:
        with pytest.raises(TeacherError, match="greedy") as caught:
            await teacher.complete(Request(Prompt((Message("user", "hi"),)), Sampling(temperature=0)))
        assert caught.value.kind == "bad_request"
    finally:
        await teacher.aclose()


def test_keys_of_another_tokenizer_are_told_at_the_start(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "other.json"
    new_keys(path, marking={}, tokenizer_hash="f" * 64)
    with pytest.raises(BadInput, match=r"its tokenizer .* is not the one that ks_"):
        LocalTeacher(model, markers=Markers(load_keys(path)))
    with pytest.raises(SystemExit) as caught:
        main(["teachers", "run", str(model), "--port", "0", "--watermark", str(path)])
    assert caught.value.code == 2 and "make a key set with this model's tokenizer" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--watermark", "missing.json"], "missing.json"),
        (["--watermark", "missing.json", "--greedy", "ignore"], "greedy"),
    ],
)
def test_the_command_line_says_what_is_wrong(
    model: Path, options: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["teachers", "run", str(model), "--port", "0", *options])
    assert caught.value.code == 2 and complaint in capsys.readouterr().err


def test_only_local_weights_are_marked_by_config() -> None:
    with pytest.raises(BadInput, match="watermark is for local weights"):
        parse_config(
            {"model": "m", "base_url": "http://127.0.0.1:1/v1", "watermark": {"keys": "k"}},
            TeacherConfig,
            where="teacher",
        )
