"""`audit run` against real servers and tiny weights: order, resume, stops, budgets, changes, controls."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from coins_kit import pair_line, write_lines
from run_kit import Watch, answered, asked, go, is_probe, lines, plan, subject

from mock_api import Behaviour, Body, answer, completion, mock_api
from served import one_thread, save_tiny_model, tiny_tokenizer
from spiritsafe.audit import _suspect_calls as calls
from spiritsafe.audit._plan import AuditPlan
from spiritsafe.audit._run_folder import RunFolder
from spiritsafe.audit._transcript import read_chain, read_transcript
from spiritsafe.audit.tests import open_test
from spiritsafe.collect import _limiter
from spiritsafe.errors import BadInput, Interrupted, Refused, SpiritsafeError

pytestmark = pytest.mark.usefixtures("one_thread", "impatient")
__all__ = ["one_thread"]

EQUALITY = {"kind": "equality", "reference": "reference.jsonl", "samples": 2, "permutations": 99, "max_tokens": 8}
FREE = {"input_per_mtok": 0, "output_per_mtok": 0}


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses between tries of next to nothing, and two tries only."""
    monkeypatch.setattr(calls, "_TRIES", 2)
    monkeypatch.setattr(calls, "_LONGEST_BACKOFF_S", 0.01)
    monkeypatch.setattr(_limiter, "_LONGEST_PAUSE_S", 0.01)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


def only(question: str, behave: Behaviour) -> Behaviour:
    """`behave` for one question, answers for the others."""

    async def mixed(number: int, body: Body, request: web.Request) -> web.StreamResponse:
        chosen = behave if body["messages"][-1]["content"] == question else answer
        return await chosen(number, body, request)

    return mixed


async def refuse(number: int, body: Body, request: web.Request) -> web.StreamResponse:
    return web.Response(status=400, text="not that")


def test_every_item_is_asked_once_and_written_down(tmp_path: Path) -> None:
    frozen, watch = plan(tmp_path), Watch()
    with mock_api() as api:
        folder = go(frozen, api, watch)
        assert asked(api) == {f"q{i}": 2 for i in range(6)}
        received = len(api.received)
        assert go(frozen, api) == folder  # all is answered: nothing is asked, not even a probe
        assert len(api.received) == received
    records = lines(frozen, folder)
    (test,) = (open_test(config, frozen.evidence("equality")) for config in frozen.plan.tests)
    assert {r.item: dict(r.asked) for r in records} == {i.id: dict(i.asked) for i in test.items()}
    assert answered(records) == Counter({item.id: 1 for item in test.items()})
    assert all(r.attempt == 1 and r.got is not None and str(r.got["text"]).startswith("echo: q") for r in records)
    assert test.judge(records).n_scored == 12
    assert [entry["attempt"] for entry in read_chain(folder.attempts, frozen.hash)] == [1, 2]
    assert watch.updates[-1][:3] == ("equality", 12, 12)
    told = subject(folder)
    assert told["address"] == frozen_address(folder, frozen.hash) and told["model"] == "m" and told["access"] == "text"
    assert told["answers"] == {"model": {"m": received}} and told["changes"] == []
    assert str(tmp_path) not in folder.subject.read_text()


def frozen_address(folder: RunFolder, plan_hash: str) -> Any:
    return read_chain(folder.attempts, plan_hash)[0]["suspect"]["address"]


def test_items_leave_in_the_order_of_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from spiritsafe.audit import _suspect_api

    monkeypatch.setattr(_suspect_api.ApiSuspect, "concurrency", 1)
    second = EQUALITY | {"name": "again", "samples": 1}
    frozen = plan(tmp_path, tests=[EQUALITY, second])
    with mock_api() as api:
        folder = go(frozen, api)
    tests = [open_test(config, frozen.evidence(config.name or config.kind)) for config in frozen.plan.tests]
    expected = [(test.name, item.id) for test in tests for item in test.items()]
    assert [(r.test, r.item) for r in lines(frozen, folder)] == expected


def test_what_failed_is_written_down_and_asked_again_by_the_next_attempt_only(tmp_path: Path) -> None:
    frozen = plan(tmp_path)
    with mock_api(only("q2", refuse)) as api:
        folder = go(frozen, api)
        assert asked(api)["q2"] == 2  # once an item: a refusal is final
        failed = [r for r in lines(frozen, folder) if r.got is None]
        assert [r.item.rpartition("-")[2] for r in failed] == ["0", "1"] and "answered 400" in str(failed[0].error)
        before = Counter(asked(api))
        api.behave = answer
        go(frozen, api)
        assert asked(api) - before == Counter({"q2": 2})
    records = lines(frozen, folder)
    assert len(records) == 14 and set(answered(records).values()) == {1} and len(answered(records)) == 12
    assert [r.attempt for r in records if r.item == failed[0].item] == [1, 2]
    assert subject(folder)["answers"]["error"] == {"bad_request": 2}


def test_one_item_that_spoils_a_batch_fails_alone(tmp_path: Path, model: Path) -> None:
    rows = [{"prompt": "x" * (900 if i == 3 else i + 1), "completion": "y"} for i in range(6) for _ in range(3)]
    tmp_path.joinpath("long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    frozen = plan(tmp_path, tests=[EQUALITY | {"reference": "long.jsonl", "samples": 1}],
                  subject={"name": "tiny", "access": "weights"})  # fmt: skip
    folder = go(frozen, str(model))
    records = lines(frozen, folder)
    assert len(records) == 6 and [
        i for i, r in enumerate(sorted(records, key=lambda r: len(str(r.asked)))) if r.got is None
    ] == [5]
    assert subject(folder)["weights"] == "tiny" and subject(folder)["revision"]


@pytest.mark.parametrize(("status", "questions"), [(401, 2), (500, 12), (400, 12)])
def test_a_suspect_that_answers_nothing_ends_the_run_with_one_line(tmp_path: Path, status: int, questions: int) -> None:
    frozen, broken = plan(tmp_path), True

    async def behave(number: int, body: Body, request: web.Request) -> web.StreamResponse:
        return web.Response(status=status, text="no") if broken else await answer(number, body, request)

    with mock_api(behave) as api:
        with pytest.raises(SpiritsafeError, match=f"answered {status}.*run again to go on"):
            go(frozen, api)
        assert not answered(read_transcript(RunFolder.of(frozen.file).transcript, frozen.hash))
        broken = False
        folder = go(frozen, api)
    assert len(answered(lines(frozen, folder))) == 12


def test_a_wrong_address_or_key_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frozen = plan(tmp_path / "address")
    with pytest.raises(SpiritsafeError, match=r"unreachable.*run again to go on"):
        go(frozen, "http://127.0.0.1:9/v1")
    assert not read_transcript(RunFolder.of(frozen.file).transcript, frozen.hash)  # a probe, and no question after it
    with pytest.raises(BadInput, match="an address begins with http"):
        go(plan(tmp_path / "scheme"), "htp://127.0.0.1:9/v1")
    monkeypatch.delenv("NO_KEY", raising=False)
    keyed = {"name": "s", "access": "text", "model": "m", "api_key_env": "NO_KEY"}
    with pytest.raises(BadInput, match=r"^subject\.api_key_env: the environment variable NO_KEY is not set"):
        go(plan(tmp_path / "key", subject=keyed), "http://127.0.0.1:9/v1")
    control = {"base_url": "http://127.0.0.1:9/v1", "model": "c", "api_key_env": "NO_KEY", "price": FREE}
    with mock_api() as api, pytest.raises(BadInput, match=r"^controls\.other\.api_key_env"):
        go(plan(tmp_path / "control", controls={"other": control}), api)


@pytest.mark.parametrize("name", [".lock", "subject.json"])
def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path, name: str) -> None:
    frozen = plan(tmp_path, prompts=2, samples=1)
    (RunFolder.of(frozen.file).path / name).mkdir(parents=True)
    with mock_api() as api, pytest.raises(SpiritsafeError, match=r"cannot be written .*fix it and run again"):
        go(frozen, api)


def test_a_budget_that_runs_out_leaves_the_rest_recorded_as_not_asked(tmp_path: Path) -> None:
    # 6 requests for the probes at the start, then there is room for 5
    frozen, watch = plan(tmp_path, budget={"requests": 11}), Watch()
    with mock_api() as api:
        folder = go(frozen, api, watch)
        assert len(api.received) == 11
        assert len(api.received) == go_again(frozen, api)
    records = lines(frozen, folder)
    failed = [r for r in records if r.got is None]
    assert len(answered(records)) == 5 and len({r.item for r in records}) == len(records) == 12
    assert {r.error for r in failed} == {"not asked: the plan's budget ran out (budget.requests)"}
    assert any("7 items are recorded as not asked" in line for line in watch.said)
    assert "budget.requests" in subject(folder)["notes"][0]


def go_again(frozen: Any, api: Any) -> int:
    go(frozen, api)
    return len(api.received)


def test_a_budget_for_nothing_is_a_refusal(tmp_path: Path) -> None:
    frozen = plan(tmp_path, budget={"tokens": 100})
    with mock_api() as api, pytest.raises(Refused, match=r"budget\.tokens\).*larger budget"):
        go(frozen, api)
    assert not api.received
    frozen = plan(tmp_path / "usd", budget={"usd": 1.0})
    with mock_api() as api, pytest.raises(BadInput, match="price is unknown"):
        go(frozen, api)
    assert not api.received


def test_a_model_that_changes_while_it_is_asked_is_noticed(tmp_path: Path) -> None:
    frozen, watch = plan(tmp_path, prompts=20), Watch()

    async def behave(number: int, body: Body, request: web.Request) -> web.StreamResponse:
        newer = number > 20
        text = f"{'new' if newer else 'old'} {body['messages'][-1]['content']}"
        more = {"model": "m-2" if newer else "m-1", "system_fingerprint": f"fp_{newer}"}
        return web.json_response(completion(body, text) | more)

    with mock_api(behave) as api:
        folder = go(frozen, api, watch)
    changes = subject(folder)["changes"]
    assert "its answers name 2 models: m-1 (20), m-2" in changes[0]
    assert "2 system fingerprints" in changes[1]
    assert "at the end of attempt 1 3 of 3 probe replies differ from the first" in changes[-1]
    assert [f"note: {change}" for change in changes] == watch.said
    assert [(p["when"], len(p["replies"])) for p in subject(folder)["probes"]] == [
        ("start", 3),
        ("middle", 3),
        ("end", 3),
    ]
    assert len(answered(lines(frozen, folder))) == 40


def test_replies_that_never_repeat_say_nothing_about_change(tmp_path: Path) -> None:
    async def behave(number: int, body: Body, request: web.Request) -> web.StreamResponse:
        return web.json_response(completion(body, f"reply {number}"))

    with mock_api(behave) as api:
        folder = go(plan(tmp_path), api)
    (change,) = subject(folder)["changes"]
    assert "do not repeat" in change


def test_probes_that_get_no_answer_do_not_stop_the_run(tmp_path: Path) -> None:
    async def behave(number: int, body: Body, request: web.Request) -> web.StreamResponse:
        return await (refuse if is_probe(body) else answer)(number, body, request)

    with mock_api(behave) as api:
        frozen = plan(tmp_path)
        folder = go(frozen, api)
    assert len(answered(lines(frozen, folder))) == 12
    assert all("answered 400" in probe["error"] for probe in subject(folder)["probes"])


def pairs(folder: Path, count: int = 60) -> list[dict[str, Any]]:
    folder.mkdir(exist_ok=True)
    coins = random.Random(3)
    made = [pair_line(i, f"one story about {i}", f"some other tale of {i}", coins.randrange(2)) for i in range(count)]
    write_lines(folder / "pairs.jsonl", made)
    return made


def released(made: list[dict[str, Any]], share: float) -> Behaviour:
    """A suspect that repeats what was released of the first `share` of the pairs, and nonsense else."""
    known = {
        line["request"]["messages"][-1]["content"]: line[("first", "second")[line["coin"]]]["choices"][0]["message"]["content"]
        for line in made[: int(share * len(made))]
    }  # fmt: skip

    async def behave(number: int, body: Body, request: web.Request) -> web.StreamResponse:
        return web.json_response(completion(body, known.get(body["messages"][-1]["content"], "some one")))

    return behave


@pytest.mark.parametrize(("share", "batches"), [(1.0, 3), (0.0, 10)])
def test_an_e_value_ends_the_primary_test_at_the_end_of_a_batch(tmp_path: Path, share: float, batches: int) -> None:
    twins = {"kind": "twins", "pairs": "pairs.jsonl", "by": "text", "samples": 1}
    made = pairs(tmp_path)
    with mock_api(released(made, share)) as api, mock_api() as control:
        frozen = plan(tmp_path, tests=[twins, EQUALITY],
                      stop={"rule": "e-value", "batch": 6}, alpha=1e-3,
                      controls={"other": {"base_url": control.base_url, "model": "c", "price": FREE}})  # fmt: skip
        folder = go(frozen, api)
        received = len(api.received)
        go(frozen, api)
        assert len(api.received) == received
    counted = Counter(record.test for record in lines(frozen, folder))
    assert counted == {"twins": 6 * batches, "equality": 12}  # the rule is for the primary test alone
    scored = read_transcript(folder.control("other"), frozen.hash)
    assert Counter(record.test for record in scored) == counted  # a control is asked what the suspect was asked
    test = open_test(frozen.plan.tests[0], frozen.evidence("twins"))
    outcome = test.judge(lines(frozen, folder))
    assert (outcome.log10_p <= -3) == (share == 1.0)
    assert outcome.hypotheses[0].facts["p_by"] == "e-value"


def test_controls_are_scored_on_the_same_items_with_a_transcript_each(tmp_path: Path, model: Path) -> None:
    reading = EQUALITY | {"name": "second"}
    with mock_api() as api, mock_api() as control:
        frozen = plan(
            tmp_path,
            tests=[EQUALITY, reading],
            controls={
                "local": {"path": str(model)},
                "served": {"base_url": control.base_url, "model": "c", "price": FREE},
            },
        )
        folder = go(frozen, api)
        assert asked(control) == asked(api) == {f"q{i}": 4 for i in range(6)}
    items = {(r.test, r.item) for r in lines(frozen, folder)}
    for name in ("local", "served"):
        records = read_transcript(folder.control(name), frozen.hash)
        assert {(r.test, r.item) for r in records} == items and all(r.got is not None for r in records)
    told = subject(folder)["controls"]
    assert told["local"]["revision"] and told["served"]["model"] == "c" and told["served"]["skipped"] == []
    assert str(model.parent) not in folder.subject.read_text()


def test_a_run_belongs_to_one_suspect(tmp_path: Path, model: Path) -> None:
    frozen = plan(tmp_path)
    with mock_api() as api:
        go(frozen, api)
    with mock_api() as other, pytest.raises(Refused, match="begun with another suspect"):
        go(frozen, other)
    assert not asked(other)


def reading_plan(folder: Path, model: Path, **tokenizer: Any) -> Any:
    """A reading-mode plan that opens no key: what fits is found out before any test could judge."""
    folder.mkdir(exist_ok=True)
    return AuditPlan.model_validate(
        {"name": "t", "question": "?", "subject": {"name": "s", "access": "weights"},
         "tests": [{"kind": "radioactivity", "texts": "t", "tokenizer": str(model)}]}
    )  # fmt: skip


def test_a_suspect_that_reads_other_ids_is_told_to_use_completions(tmp_path: Path, model: Path) -> None:
    from spiritsafe.audit._fit import misfit
    from spiritsafe.audit._plan import SubjectConfig
    from spiritsafe.audit._suspect_weights import WeightsSuspect

    (config,) = reading_plan(tmp_path, model).tests
    other = tiny_tokenizer()
    other.add_tokens(["<|another|>"])
    other.save_pretrained(tmp_path / "other")

    class Asked:
        name, access = "radioactivity", "weights"

    class Inputs:
        def __init__(self, path: Path) -> None:
            self.path = path

        def evidence(self, name: str) -> Inputs:
            return self

        def input(self, name: str) -> Path:
            return self.path

    suspect = WeightsSuspect(str(model), SubjectConfig(name="s", access="weights"))
    test: Any = Asked()
    same: Any = Inputs(model)
    foreign: Any = Inputs(tmp_path / "other")
    assert misfit(config, test, suspect, same) is None
    assert "use mode: completions" in str(misfit(config, test, suspect, foreign))
    asyncio.run(suspect.aclose())


def test_a_suspect_that_gives_too_little_is_told_before_the_first_question(tmp_path: Path) -> None:
    pairs(tmp_path)
    twins = {"kind": "twins", "pairs": "pairs.jsonl", "by": "likelihood"}
    frozen = plan(tmp_path, tests=[twins])
    with mock_api() as api, pytest.raises(BadInput, match="twins: the suspect gives text, and the test needs logprobs"):
        go(frozen, api)
    assert not api.received and not RunFolder.of(frozen.file).attempts.read_bytes()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_by_hand_loses_nothing_and_the_next_run_goes_on(tmp_path: Path, number: signal.Signals) -> None:
    frozen = plan(tmp_path, prompts=40)

    async def behave(count: int, body: Body, request: web.Request) -> web.StreamResponse:
        if count == 30:
            threading.Timer(0.01, os.kill, (os.getpid(), number)).start()
        await asyncio.sleep(0.05)
        return await answer(count, body, request)

    with mock_api(behave) as api:
        with pytest.raises(Interrupted, match="run the same command to go on"):
            go(frozen, api)
        first, saved = asked(api), answered(lines(frozen, RunFolder.of(frozen.file)))
        assert sum(first.values()) == len(saved) < 80  # what was under way came in and was saved
        folder = go(frozen, api)
        assert asked(api) == {f"q{i}": 2 for i in range(40)}
    assert set(answered(lines(frozen, folder)).values()) == {1}


def test_two_runs_of_one_plan_do_not_mix(tmp_path: Path) -> None:
    frozen = plan(tmp_path)
    caught: list[str] = []

    async def behave(number: int, body: Body, request: web.Request) -> web.StreamResponse:
        if number == 1:
            done = threading.Event()

            def second() -> None:
                try:
                    go(frozen, api)
                except BadInput as error:
                    caught.append(str(error))
                done.set()

            threading.Thread(target=second).start()
            await asyncio.to_thread(done.wait, 10)
        return await answer(number, body, request)

    with mock_api(behave) as api:
        go(frozen, api)
    assert len(caught) == 1 and "another audit works there" in caught[0]


def test_an_item_asked_differently_in_an_earlier_attempt_is_not_mixed_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    from spiritsafe.audit.tests.equality import Equality

    frozen = plan(tmp_path)
    with mock_api() as api:
        go(frozen, api)
        items = Equality.items

        def changed(self: Equality) -> Sequence[Any]:
            return [replace(item, asked={**item.asked, "new": 1}) for item in items(self)]

        monkeypatch.setattr(Equality, "items", changed)
        with pytest.raises(BadInput, match="asked differently in an earlier attempt"):
            go(frozen, api)
