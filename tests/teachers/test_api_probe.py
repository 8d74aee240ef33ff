"""The probe finds out what a server really offers, and counts what it used."""

from __future__ import annotations

from typing import Any

import pytest
from aiohttp import web

from mock_api import Behaviour, completion, mock_api
from spiritsafe.spend import Price
from spiritsafe.teachers import TeacherConfig, TeacherError, probe


def server(*, limit: int, clips: bool = False, honours_n: bool = True, seeded: bool = True) -> Behaviour:
    async def behave(number: int, body: dict[str, Any], request: web.Request) -> web.Response:
        asked = body.get("top_logprobs", 0)
        if asked > limit and not clips:
            return web.json_response({"error": {"message": f"top_logprobs must be at most {limit}"}}, status=400)
        text = "red" if "seed" in body and seeded else f"red {number}"
        data = completion(body, *[text] * (body.get("n", 1) if honours_n else 1))
        if given := min(asked, limit):
            top = [{"token": f"t{i}", "logprob": -1.0 - i, "bytes": [65]} for i in range(given)]
            data["choices"][0]["logprobs"] = {
                "content": [{"token": "t0", "logprob": -1.0, "bytes": [65], "top_logprobs": top}]
            }
        return web.json_response(data)

    return behave


async def report(behave: Behaviour, **config: Any) -> Any:
    with mock_api(behave, models=[{"id": "m", "owned_by": "openai"}]) as api:
        found = await probe(TeacherConfig(base_url=api.base_url, model="m", **config))
    assert found.calls == len(api.received) <= 16
    assert found.tokens == sum(a["usage"]["total_tokens"] for a in api.answered if "usage" in a)
    return found


@pytest.mark.parametrize("limit", [0, 1, 5, 20, 64, 97])
async def test_the_logprob_limit_is_found_exactly_by_refusals(limit: int) -> None:
    assert (await report(server(limit=limit))).max_logprobs == limit


@pytest.mark.parametrize("limit", [0, 5, 64])
async def test_and_from_servers_that_just_give_fewer(limit: int) -> None:
    assert (await report(server(limit=limit, clips=True))).max_logprobs == limit


async def test_a_rich_and_a_poor_teacher() -> None:
    price = Price.model_validate({"input_per_mtok": 1, "output_per_mtok": 2})
    rich = await report(server(limit=300), price=price)
    assert rich.n_honoured and rich.seed_repeats and rich.usage_reported and rich.price_known
    assert rich.max_logprobs == 256 and rich.models == ("m",)
    assert rich.usd == pytest.approx(rich.tokens * 1e-6, rel=1)
    assert "256 or more" in rich.render()
    poor = await report(server(limit=0, honours_n=False, seeded=False))
    assert not poor.n_honoured and poor.seed_repeats is False and not poor.price_known and poor.usd is None
    assert "none: train.objective topk needs them" in poor.render()
    assert poor.to_dict()["max_logprobs"] == 0


async def test_a_rate_limited_probe_waits_as_told() -> None:
    inner = server(limit=20)

    async def behave(number: int, body: dict[str, Any], request: web.Request) -> web.StreamResponse:
        if number in (1, 4):
            return web.Response(status=429, headers={"Retry-After": "0.05"})
        return await inner(number, body, request)

    assert (await report(behave)).max_logprobs == 20


@pytest.mark.parametrize("status", [401, 404])
async def test_a_teacher_that_answers_nothing_is_an_error(status: int) -> None:
    async def behave(number: int, body: dict[str, Any], request: web.Request) -> web.Response:
        return web.Response(status=status)

    with mock_api(behave) as api, pytest.raises(TeacherError, match=f"answered {status}"):
        await probe(TeacherConfig(base_url=api.base_url, model="m"))
