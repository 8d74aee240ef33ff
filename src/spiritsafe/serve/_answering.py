"""Answering one reserved request: by a canary, by one of two replies, or simply by the upstream."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

import orjson

from spiritsafe.records import Usage
from spiritsafe.serve._asking import ask_upstream
from spiritsafe.serve._call import Call
from spiritsafe.serve._canaries import CanaryAnswer
from spiritsafe.serve._connection import UpstreamFailure
from spiritsafe.serve._http import Send
from spiritsafe.serve._policy import summary_of, summary_request
from spiritsafe.serve._relay import read_marked, read_whole, relay_stream, replay_stream, send_whole
from spiritsafe.serve._replay import as_stream
from spiritsafe.serve._twins import Choice
from spiritsafe.wire import ApiError

__all__ = ["answer"]


async def answer(call: Call, send: Send) -> None:
    """Answer, with the account closed before the last bytes leave.

    Raises:
        ApiError, UpstreamFailure: there is no reply, and nothing was sent.
        Unavailable: the journal cannot be written.
    """
    guard, ask = call.guard, call.ask
    canary = guard.canaries.answer(
        ask,
        request_id=_reply_id(call),
        created=int(call.arrived),
        count=lambda text: guard.meter.count(call.first.config, text),
    )
    if canary is not None:
        await _send_canary(call, send, canary)
        return
    asyncio.get_running_loop().call_soon(call.draw_sketch)  # while the upstream works
    if guard.ledger.healthy and guard.twins.wanted(ask, call.identity) and await guard.second_replies.reserve(call):
        await _answer_twice(call, send)
        return
    upstream, reply = await ask_upstream(call, call.applied.body)
    if ask.stream:
        await relay_stream(call, upstream, reply, send)
        return
    data, usage = await read_whole(call, upstream, reply)
    shown = call.applied.filter.whole(data)
    if call.applied.summarise:
        await _add_summary(call, shown)
    await send_whole(call, send, orjson.dumps(shown), usage)


async def _send_canary(call: Call, send: Send, canary: CanaryAnswer) -> None:
    call.policy.append(f"canary={canary.canary}")
    call.watermark_key_id = None  # written beforehand, so it carries no mark
    call.guard.metrics.canary()
    said = canary.reply["usage"]
    await _send_made(call, send, canary.reply, Usage(said["prompt_tokens"], said["completion_tokens"]))


async def _answer_twice(call: Call, send: Send) -> None:
    """Ask for two replies, release one by a coin; the other is sealed, both committed to before either leaves."""
    guard = call.guard
    body = {name: value for name, value in call.applied.body.items() if name not in ("stream", "stream_options")}
    outcomes: Sequence[Any] = ()
    try:
        outcomes = await asyncio.gather(_one_of_two(call, body), _one_of_two(call, body), return_exceptions=True)
    finally:
        await _settle_second(call, outcomes)
    came = [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
    if not came:
        failed = outcomes[0]
        assert isinstance(failed, BaseException)
        raise failed
    for failed in outcomes:
        if isinstance(failed, BaseException) and not isinstance(failed, ApiError | UpstreamFailure):
            raise failed
    chosen, choice = came[0], None
    if len(came) == 2:
        choice = await guard.twins.choose(
            request_id=call.id,
            account=call.identity.account,
            model=call.ask.model,
            request=body,
            first=came[0][0],
            second=came[1][0],
            watermark_key_id=call.watermark_key_id,
        )
        if choice is not None:
            chosen = came[choice.released]
    guard.metrics.twin("kept" if choice else "identical" if len(came) == 2 else "failed")
    reply, usage = chosen
    await _send_made(call, send, reply | {"id": _reply_id(call), "created": int(call.arrived)}, usage, choice)


async def _settle_second(call: Call, outcomes: Sequence[Any]) -> None:
    """The second reply is the operator's; where only one came, the customer's is that one."""
    came = [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
    await call.guard.second_replies.settle(call, came[1][1] if len(came) == 2 else None)


async def _one_of_two(call: Call, body: dict[str, Any]) -> tuple[dict[str, Any], Usage]:
    upstream, reply = await ask_upstream(call, body)
    data, usage = await read_whole(call, upstream, reply)
    return call.applied.filter.whole(data), usage


async def _send_made(call: Call, send: Send, reply: dict[str, Any], usage: Usage, choice: Choice | None = None) -> None:
    """Send a reply that is whole already, streamed if it was to be. A twin's commitment is in the ledger first."""
    if choice is not None:
        call.twin_commit = choice.twin_commit
        call.close("ok", usage)
        await call.recorded()
    if not call.ask.stream:
        await send_whole(call, send, orjson.dumps(reply), usage)
        return
    await replay_stream(call, send, b"".join(as_stream(reply, include_usage=call.ask.include_usage)), usage)


async def _add_summary(call: Call, shown: dict[str, Any]) -> None:
    """Put a summary in place of the reasoning that was taken out, made by one more request that the operator pays."""
    reasoning, choices = call.applied.filter.withheld, shown.get("choices") or []
    if not reasoning or len(choices) != 1 or not isinstance(choices[0].get("message"), dict):
        return  # of several replies nobody could say whose it is
    said = None
    with contextlib.suppress(ApiError, UpstreamFailure):
        upstream, answered = await ask_upstream(call, summary_request(reasoning, call.ask.model))
        said = summary_of(await read_marked(call, upstream, answered), call.ask.model, call.guard.config)
    if said is None:
        call.policy.append("summary=failed")
    else:
        choices[0]["message"]["reasoning_content"] = said


def _reply_id(call: Call) -> str:
    return ("chatcmpl-" if call.ask.kind == "chat" else "cmpl-") + call.id.removeprefix("req_")
