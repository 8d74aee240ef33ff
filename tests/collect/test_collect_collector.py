"""Collecting: every prompt once, with its costs, and never paid for twice."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from aiohttp import web

from collecting import PRICE, QUICK, Watch, ask, go, rows
from mock_api import Body, MockApi, completion
from spiritsafe.collect import CollectConfig, collect
from spiritsafe.collect._store import Store
from spiritsafe.errors import SpiritsafeError
from spiritsafe.exchanges import read_exchanges
from spiritsafe.records import Message, Prompt, Reply, Request, SparseLogprobs, TeacherInfo, Usage
from spiritsafe.runs import Run
from spiritsafe.teachers import Answer, TeacherConfig

pytestmark = pytest.mark.usefixtures("no_long_waits")


def test_every_prompt_once_in_order_with_its_costs_and_split(tmp_path: Path, api: MockApi) -> None:
    prompts, watch = ask(100), Watch()
    teacher = TeacherConfig(base_url=api.base_url, model="m", price=PRICE)
    config = CollectConfig(**QUICK, budget_usd=1.0, temperature=0.7, stop=("\n",))
    terms = SimpleNamespace(terms_id="apache-2.0", terms_version="2026-11")
    run = Run.open(tmp_path / "r")
    summary = collect(run, teacher, prompts, config, holdout=0.1, seed=3, terms=terms, progress=watch)
    exchanges = list(read_exchanges(run.exchanges))
    assert [e.prompt for e in exchanges] == prompts
    assert [e.reply.text for e in exchanges[:2]] == ["echo: q0", "echo: q1"]
    assert Counter(e.split for e in exchanges) == {"train": 90, "holdout": 10}
    first = exchanges[0]
    assert (first.terms_id, first.terms_version, first.teacher.host, first.sampling.stop) == (
        "apache-2.0", "2026-11", "127.0.0.1", ("\n",),
    )  # fmt: skip
    assert first.sampling.seed == api_seed(api, "q0") and len({b["seed"] for b in api.received}) == 100
    assert summary.usd == pytest.approx(100 * (10 * 1e-6 + 4 * 2e-6)) == pytest.approx(sum(e.usd for e in exchanges))
    assert (summary.exchanges, summary.answered, summary.tokens_in, summary.tokens_out, summary.requests) == (
        100, 100, 1000, 400, 100,
    )  # fmt: skip
    assert summary.to_dict()["budget_usd"] == 1.0
    assert watch.updates[-1][:2] == (100, 100) and "tok/s" in watch.updates[-1][2] and "/$1" in watch.updates[-1][2]


def api_seed(api: MockApi, text: str) -> int:
    return next(int(b["seed"]) for b in api.received if b["messages"][-1]["content"] == text)


def test_a_rerun_asks_only_what_is_new(tmp_path: Path, api: MockApi) -> None:
    go(tmp_path / "r", api, ask(20))
    summary = go(tmp_path / "r", api, ask(30))
    assert len(api.received) == 30 and summary.exchanges == 30 and summary.requests == 30
    changed = go(tmp_path / "r", api, ask(30), temperature=0.5)  # another question to the teacher
    assert len(api.received) == 60 and changed.exchanges == 30


def test_a_second_recipe_never_pays_twice(tmp_path: Path, api: MockApi) -> None:
    go(tmp_path / "a", api, ask(20))
    watch = Watch()
    summary = go(tmp_path / "b", api, ask(25), watch)
    assert len(api.received) == 25
    assert (summary.reused, summary.requests) == (20, 5)
    assert summary.usd == pytest.approx(5 * 18e-6)
    assert "20 answers copied from sibling runs at no cost" in watch.said[0]
    assert [e.extra.get("reused_from") for e in rows(tmp_path / "b")] == ["a"] * 20 + [None] * 5
    go(tmp_path / "c", api, ask(20), reuse=False)
    assert len(api.received) == 45


def test_samples_come_from_one_request_where_n_is_honoured(tmp_path: Path, api: MockApi) -> None:
    go(tmp_path / "r", api, ask(5), samples=4)
    assert len(api.received) == 5 and api.received[0]["n"] == 4
    exchanges = rows(tmp_path / "r")
    assert [(e.prompt.messages[0].content, e.sample) for e in exchanges[:5]] == [
        ("q0", 0), ("q0", 1), ("q0", 2), ("q0", 3), ("q1", 0),
    ]  # fmt: skip
    assert sum(e.usage.input_tokens for e in exchanges) == 50 and sum(e.usage.output_tokens for e in exchanges) == 80
    assert sum(e.usd for e in exchanges) == pytest.approx(5 * (10e-6 + 16 * 2e-6))


def test_a_teacher_that_ignores_n_is_asked_again_for_the_rest(tmp_path: Path, api: MockApi) -> None:
    async def one(number: int, body: Body, request: web.Request) -> web.StreamResponse:
        return web.json_response(completion(body, f"answer {number}"))

    api.behave = one
    summary = go(tmp_path / "r", api, ask(5), samples=3)
    exchanges = rows(tmp_path / "r")
    assert len(api.received) == 15 and summary.answered == 5
    assert [e.sample for e in exchanges] == [0, 1, 2] * 5
    assert len({e.reply.text for e in exchanges}) == 15 and len({e.id for e in exchanges}) == 15
    go(tmp_path / "r", api, ask(5), samples=3)
    assert len(api.received) == 15


def test_logprobs_are_kept_and_their_absence_is_said(tmp_path: Path, api: MockApi) -> None:
    async def behave(number: int, body: Body, request: web.Request) -> web.StreamResponse:
        data = completion(body, "x")
        if body["messages"][-1]["content"] != "q1":
            top = [{"token": "x", "logprob": -0.1, "bytes": [120]}, {"token": "y", "logprob": -3.0, "bytes": [121]}]
            data["choices"][0]["logprobs"] = {"content": [top[0] | {"top_logprobs": top}]}
        return web.json_response(data)

    api.behave, watch = behave, Watch()
    summary = go(tmp_path / "r", api, ask(3), watch, logprobs=2)
    kept = [e.reply.logprobs for e in rows(tmp_path / "r")]
    assert kept[0] is not None and kept[0].top_bytes == ((b"x", b"y"),)
    assert kept[1] is None
    assert summary.noted["without logprobs"] == 1 and "1 answers came without logprobs" in watch.said[0]


class InProcess:
    """A teacher without a wire, as local weights are: token ids and log-probabilities by id."""

    info = TeacherInfo("tiny", revision="r1", tokenizer_hash="t", template_hash="c")

    async def complete(self, request: Request) -> Answer:
        await asyncio.sleep(0)
        said = request.prompt.messages[-1].content
        if said == "broken":
            raise ValueError("out of memory")
        logprobs = SparseLogprobs(
            np.asarray([-0.25, -1.5], np.float32),
            np.asarray([[-0.25, -2.0], [-1.5, -np.inf]], np.float32),
            np.asarray([[3, 4], [2, -1]], np.int32),
        )
        return Answer((Reply(said.upper(), "stop", (3, 2), logprobs),), Usage(5, 2), "tiny")

    async def aclose(self) -> None: ...


def test_local_weights_go_the_same_way_for_free(tmp_path: Path) -> None:
    run, config = Run.open(tmp_path / "r"), CollectConfig(budget_usd=0, logprobs=2)
    local = TeacherConfig(path="somewhere/tiny")
    summary = collect(run, local, ask(50), config, teacher=InProcess())
    assert (summary.answered, summary.usd, summary.price_known) == (50, 0.0, True)
    first = next(read_exchanges(run.exchanges))
    assert first.teacher == InProcess.info and first.reply.text == "Q0" and first.reply.token_ids == (3, 2)
    assert first.reply.logprobs is not None and first.reply.logprobs.ids is not None
    assert first.reply.logprobs.ids.tolist() == [[3, 4], [2, -1]]
    assert first.reply.logprobs.token_bytes is None


def test_a_teacher_that_breaks_stops_collection_and_keeps_what_was_answered(tmp_path: Path) -> None:
    prompts = [*ask(20), Prompt((Message("user", "broken"),)), *ask(20, "later")]
    local, config = TeacherConfig(path="somewhere/tiny"), CollectConfig(logprobs=0, concurrency=1)
    with pytest.raises(SpiritsafeError, match="collection failed: ValueError") as error:
        collect(Run.open(tmp_path / "r"), local, prompts, config, teacher=InProcess())
    assert isinstance(error.value.__cause__, ValueError)
    with Store(tmp_path / "r" / "requests.sqlite") as store:
        assert sum(known.state == "answered" for known in store.known().values()) == 20
