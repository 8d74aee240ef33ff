"""A suspect behind a real server: retries, odd replies, log-probabilities found out by trial, spending."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from logprob_api_kit import chat_way, echo_way, without

from mock_api import Behaviour, Body, answer, completion, mock_api
from served import one_thread, save_tiny_model
from spiritsafe.audit._plan import SubjectConfig
from spiritsafe.audit._suspect import open_suspect
from spiritsafe.audit._suspect_api import ApiSuspect
from spiritsafe.audit._suspect_spend import Journal, Purse
from spiritsafe.audit._suspect_weights import WeightsSuspect
from spiritsafe.errors import BadInput
from spiritsafe.records import Message, Prompt, Sampling
from spiritsafe.spend import Budget, Caps, OverBudget, Price, Spend
from spiritsafe.teachers import TeacherConfig, TeacherError

pytestmark = pytest.mark.usefixtures("one_thread")
__all__ = ["one_thread"]

HELLO = Prompt((Message("user", "hello"),))
SHORT = Sampling(max_tokens=8)
PRICE = Price.model_validate({"input_per_mtok": 1, "output_per_mtok": 2})


def subject(**fields: Any) -> SubjectConfig:
    return SubjectConfig(**{"name": "suspect", "access": "text", "model": "m"} | fields)


def suspect_at(url: str, purse: Purse | None = None, *, timeout_s: float = 10) -> ApiSuspect:
    """Pauses between tries of a hundredth of what is usual."""
    config = TeacherConfig(base_url=url, model="m", timeout_s=timeout_s)
    return ApiSuspect(config, purse or Purse("suspect"), backoff_s=0.005)


async def say(behave: Behaviour, n: int = 1, sampling: Sampling = SHORT) -> tuple[list[str], list[Body]]:
    with mock_api(behave) as api:
        suspect = suspect_at(api.base_url)
        try:
            return [reply.text for reply in await suspect.complete(HELLO, sampling, n)], api.received
        finally:
            await suspect.aclose()


def failing(times: int, status: int, **headers: str) -> Behaviour:
    async def behave(number: int, body: Body, request: web.Request) -> web.StreamResponse:
        return (
            web.Response(status=status, text="no", headers=headers)
            if number <= times
            else await answer(number, body, request)
        )

    return behave


@pytest.mark.parametrize("status", [408, 429, 500, 503])
async def test_what_may_pass_is_tried_again(status: int) -> None:
    texts, received = await say(failing(3, status))
    assert texts == ["echo: hello"] and len(received) == 4


async def test_a_server_that_asks_for_time_gets_it() -> None:
    started = time.monotonic()
    texts, received = await say(failing(1, 429, **{"Retry-After": "1"}))
    assert texts == ["echo: hello"] and len(received) == 2
    assert time.monotonic() - started >= 1.0


@pytest.mark.parametrize(
    ("status", "why", "tries"),
    [(500, "suspect http.* answered 500", 6), (400, "answered 400", 1), (401, r"set subject\.api_key_env", 1)],
)
async def test_tries_come_to_an_end_and_what_is_refused_is_not_tried_again(status: int, why: str, tries: int) -> None:
    received = []

    async def behave(number: int, body: Body, request: web.Request) -> web.StreamResponse:
        received.append(body)
        return web.Response(status=status, text="no")

    with pytest.raises(TeacherError, match=why):
        await say(behave)
    assert len(received) == tries


def hanging(*numbers: int) -> Behaviour:
    """Takes these requests and does not answer them."""

    async def behave(number: int, body: Body, request: web.Request) -> web.StreamResponse:
        if number in numbers:
            await asyncio.sleep(60)
        return await answer(number, body, request)

    return behave


async def test_a_server_that_never_answers_is_given_up() -> None:
    with mock_api(hanging(*range(1, 20))) as api:
        suspect = suspect_at(api.base_url, timeout_s=0.2)
        with pytest.raises(TeacherError, match=r"gave no answer in 0\.2 s") as caught:
            await suspect.complete(HELLO, SHORT)
        await suspect.aclose()
    assert caught.value.kind == "timeout" and len(api.received) == 3


async def test_a_request_that_hangs_is_asked_again_and_stays_paid_for(tmp_path: Path) -> None:
    budget, journal = Budget(Caps(usd=1.0)), Journal(tmp_path / "requests.jsonl")
    with mock_api(hanging(2)) as api:
        suspect = suspect_at(api.base_url, Purse("suspect", budget, PRICE, journal), timeout_s=1)
        for _ in range(2):
            assert (await suspect.complete(HELLO, SHORT))[0].text == "echo: hello"
        await suspect.aclose()
    lines = [json.loads(line) for line in journal.path.read_text().splitlines()]
    journal.close()
    worst = {line["id"]: line["worst"] for line in lines if "worst" in line}
    spent = {line["id"]: line["spent"] for line in lines if "spent" in line}
    assert len(api.received) == 3 and spent[2] == worst[2]  # it may have been worked on, and billed
    assert spent[1] < worst[1] and spent[3] < worst[3]


async def test_refusals_and_empty_replies_are_replies(tmp_path: Path) -> None:
    async def behave(number: int, body: Body, request: web.Request) -> web.StreamResponse:
        if number == 1:
            return web.json_response(completion(body, "", finish="content_filter"))
        refusal = completion(body, "")
        refusal["choices"][0]["message"] = {"role": "assistant", "content": None, "refusal": "I cannot."}
        return web.json_response(refusal)

    journal = Journal(tmp_path / "requests.jsonl")
    with mock_api(behave) as api:
        suspect = suspect_at(api.base_url, Purse("suspect", journal=journal))
        first = await suspect.complete(HELLO, SHORT)
        second = await suspect.complete(HELLO, SHORT)
        await suspect.aclose()
    assert [first[0].text, first[0].finish_reason] == ["", "content_filter"] and second[0].text == ""
    assert len(api.received) == 2
    assert journal.said("suspect")["flaw"] == {"content_filter": 1, "empty": 1}
    journal.close()


async def test_fewer_replies_than_asked_for_are_made_up_with_other_seeds() -> None:
    async def behave(number: int, body: Body, request: web.Request) -> web.StreamResponse:
        return web.json_response(completion(body, f"reply {number}"))

    texts, received = await say(behave, n=3, sampling=Sampling(max_tokens=8, seed=5))
    assert texts == ["reply 1", "reply 2", "reply 3"]
    assert [(body.get("n", 1), body["seed"]) for body in received] == [(3, 5), (2, 6), (1, 7)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny", seed=11)


@pytest.fixture(scope="module")
def local(model: Path) -> WeightsSuspect:
    return WeightsSuspect(str(model), SubjectConfig(name="tiny", access="weights"))


def find(local: WeightsSuspect, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts that this random model tells apart as the trial expects."""
    from spiritsafe.audit import _suspect_logprobs as module

    texts = [module._LIKELY, module._UNLIKELY]
    ((one, n), (two, m)) = asyncio.run(local.logprob([module._ASK], [texts]))[0]
    if one / n < two / m:
        monkeypatch.setattr(module, "_LIKELY", texts[1])
        monkeypatch.setattr(module, "_UNLIKELY", texts[0])


@pytest.mark.parametrize("way", ["chat", "echo"])
def test_an_api_weighs_as_its_weights_do(
    way: str, local: WeightsSuspect, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find(local, monkeypatch)
    behave = (chat_way if way == "chat" else echo_way)(local.weights)
    prompts = [HELLO, Prompt((Message("system", "Be brief."), Message("user", "Why? é")))]
    completions = [["a reply", "", "\nanother é reply"], ["yes"]]
    with mock_api(behave) as api:
        base = str(model) if way == "echo" else None
        suspect = open_suspect(api.base_url, subject(access="logprobs", base=base))
        assert suspect.access == "logprobs"

        async def both() -> list[Any]:
            found = await suspect.logprob(prompts, completions)
            replies = await suspect.complete(HELLO, SHORT)
            await suspect.aclose()
            assert replies[0].text == "echo: hello"
            return found

        found = asyncio.run(both())
    for got, expected in zip(found, asyncio.run(local.logprob(prompts, completions)), strict=True):
        assert [tokens for _, tokens in got] == [tokens for _, tokens in expected]
        assert [total for total, _ in got] == pytest.approx([total for total, _ in expected], rel=1e-5)


@pytest.mark.parametrize("how", ["refused", "missing", "ignored", "garbage", "constant", "null"])
def test_an_api_that_does_not_weigh_is_asked_for_text(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from spiritsafe.audit import _suspect_calls as calls

    monkeypatch.setattr(calls, "_TRIES", 1)
    with mock_api(without(how)) as api:
        suspect = open_suspect(api.base_url, subject(access="logprobs"))
        assert suspect.access == "text"
        with pytest.raises(TeacherError, match="gives no log-probabilities"):
            asyncio.run(suspect.logprob([HELLO], [["x"]]))
        asyncio.run(suspect.aclose())


def test_addresses_the_plan_does_not_allow_are_refused_before_anything_is_sent() -> None:
    with mock_api() as api:
        for fields, why in (({"access": "weights"}, "give the weights"), ({"model": None}, r"subject\.model")):
            with pytest.raises(BadInput, match=why):
                open_suspect(api.base_url, subject(**fields))
        with pytest.raises(BadInput, match="price is unknown"):
            open_suspect(api.base_url, subject(), budget=Budget(Caps(usd=1.0)))
        with pytest.raises(BadInput, match="base_url"):
            open_suspect("http://user:key@host/v1", subject())
        assert not api.received


def test_an_api_cannot_be_read() -> None:
    with pytest.raises(TeacherError, match="needs the weights"):
        asyncio.run(suspect_at("http://127.0.0.1:9/v1").read([[1]]))


async def test_under_concurrency_the_bill_stays_under_the_cap_and_ends_in_a_refusal(tmp_path: Path) -> None:
    in_flight = []

    async def behave(number: int, body: Body, request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(0.01)
        in_flight.append(api.in_flight)
        return await answer(number, body, request)

    billed = (10 * 1 + 4 * 2) * 1e-6  # what the server says a call used
    budget, journal = Budget(Caps(usd=0.006)), Journal(tmp_path / "requests.jsonl")
    with mock_api(behave) as api:
        suspect = suspect_at(api.base_url, Purse("suspect", budget, PRICE, journal))
        done = await asyncio.gather(*(suspect.complete(HELLO, SHORT) for _ in range(400)), return_exceptions=True)
        await suspect.aclose()
    refused = [one for one in done if isinstance(one, OverBudget)]
    assert len(refused) + len(api.received) == 400 and refused
    assert len(api.received) * billed == pytest.approx(budget.spent.usd) == pytest.approx(journal.spent.usd)
    worst = (len("hello") + 16 + 256 + 2 * 8) * 1e-6
    assert 0.006 - worst - 1e-12 < budget.spent.usd <= 0.006  # the cap is used up to the last whole request
    assert max(in_flight) > 1 and budget.reserved == Spend()
    journal.close()


async def test_what_is_broken_off_counts_at_its_worst_case(tmp_path: Path) -> None:
    async def behave(number: int, body: Body, request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(30)
        return await answer(number, body, request)

    budget, journal = Budget(Caps(usd=1.0)), Journal(tmp_path / "requests.jsonl")
    with mock_api(behave) as api:
        suspect = suspect_at(api.base_url, Purse("suspect", budget, PRICE, journal))
        task = asyncio.ensure_future(suspect.complete(HELLO, SHORT))
        while not api.received:
            await asyncio.sleep(0.01)
        assert journal.spent == budget.reserved != Spend()
        again = Journal(tmp_path / "requests.jsonl")  # as after a kill
        assert again.spent == budget.reserved
        again.close()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await suspect.aclose()
    assert budget.spent == journal.spent != Spend()
    assert budget.spent.requests == 1 and budget.reserved == Spend()
    journal.close()


def test_the_journal_survives_a_torn_line_and_names_a_damaged_one(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    journal = Journal(path)
    journal.end(journal.begin("suspect", Spend(9, 9, 1)), Spend(2, 3, 1), {"model": "m"})
    journal.begin("control x", Spend(5, 5, 1))
    journal.close()
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"id":3,"who":"sus')
    journal = Journal(path)
    assert journal.spent == Spend(7, 8, 2)
    assert journal.said("suspect") == {"model": {"m": 1}} and journal.said("control x") == {}
    assert journal.begin("suspect", Spend()) == 3
    journal.close()
    path.write_bytes(whole + b"[]\n")
    with pytest.raises(BadInput, match="line 4 is damaged"):
        Journal(path)
