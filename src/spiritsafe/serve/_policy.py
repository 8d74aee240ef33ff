"""Output policy: what an account may ask for, and what of the reply may leave.

What is over a cap is refused with the cap's name, never cut down quietly: a client that gets less than it asked for
without being told would build on it.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from spiritsafe.serve._config import GuardConfig, OutputRules, Tier
from spiritsafe.serve._reply_filter import ReplyFilter, Showing
from spiritsafe.serve._responses_filter import ResponsesFilter
from spiritsafe.serve._steps import acts
from spiritsafe.serve._thinking import Start, start_after
from spiritsafe.serve._types import Identity
from spiritsafe.watermark._marking import GREEDY_BELOW
from spiritsafe.wire import ApiError, Ask

__all__ = ["Applied", "apply_output", "mark", "output_rules", "summary_of", "summary_request"]

_GRAVITY = ("show", "summarise", "withhold")
_COMPLETIONS_DEFAULT = 16  # what the completions API takes where no limit is given
_LEAST_ROOM, _TEMPLATE_ROOM = 16, 256  # tokens
_LONGEST_SUMMARISED = 24_000  # characters
_PLAIN_START = (Start(),)
_SUMMARISE = (
    "Summarise the following reasoning in at most four sentences for the person who asked the question: what was "
    "considered, and why the answer follows. Do not quote it and do not repeat its steps."
)


@dataclass(slots=True)
class Applied:
    """A request as it may go out.

    body: what to send; the client's, with limits and stream options set.  max_tokens: bound of one reply.
    n: replies to each prompt.  note: the rules that held, for the ledger.
    summarise: whole replies may carry a summary of their reasoning (`filter.withheld`); without one it is withheld.
    bounds: most prompt and completion tokens, once `Meter.worst` has worked them out.
    """

    body: dict[str, Any]
    max_tokens: int
    n: int
    filter: ReplyFilter
    note: str
    summarise: bool = False
    bounds: tuple[int, int] = (0, 0)


def output_rules(config: GuardConfig, identity: Identity) -> OutputRules:
    """The rules for one account: its tier's, and where the ladder's output_policy acts on it, the stricter of both."""
    tier = config.tiers.get(identity.tier) or config.tiers["default"]
    if not acts(identity, "output_policy", config.ladder):
        return tier
    return _stricter(tier, config.ladder.output_policy)


def apply_output(
    ask: Ask, rules: OutputRules, config: GuardConfig, *, marked: bool = False, limit_field: str = "max_tokens"
) -> Applied:
    """Hold a request against the rules, and prepare it and its filter.

    marked: the reply will carry the account's watermark.
    limit_field: what a missing token limit is set in, for chat and completions.

    Raises:
        ApiError: status 400, code "policy": the account may not ask for this; the message says what it may.
    """
    if ask.kind == "embeddings":
        return Applied(ask.body, 0, 1, ReplyFilter(ask.kind, Showing()), _note(rules))
    shows = rules.reasoning in (None, "show")
    _check_logprobs(ask, rules, shows)
    if ask.has_logit_bias and rules.logit_bias is False:
        _refuse("this account may not bias tokens; leave out logit_bias, allowed_token_ids and bad_words", "logit_bias")
    if rules.n is not None and ask.n > rules.n:
        _refuse(f"n is {ask.n}, and this account may ask for at most {rules.n}", "n")
    if marked and config.watermark is not None and config.watermark.greedy == "refuse" and _greedy(ask):
        _refuse(
            f"this account's replies need sampling: temperature {GREEDY_BELOW:g} or more, top_k not 1", "temperature"
        )
    if not shows:
        _check_hidden(ask)
    body = ask.body
    limit = _limit(ask, rules, config, limit_field)
    if ask.kind == "responses":
        body["store"] = False
    elif ask.stream:
        body["stream_options"] = {**(body.get("stream_options") or {}), "include_usage": True}
    showing = Showing(
        top=ask.top_logprobs,
        decimals=rules.logprob_decimals,
        reasoning=shows,
        usage=not ask.stream or ask.include_usage or ask.kind == "responses",
        starts=_PLAIN_START if shows else _starts(ask, config),
        n=ask.n,
    )
    reply_filter = ResponsesFilter(showing) if ask.kind == "responses" else ReplyFilter(ask.kind, showing)
    return Applied(body, limit, ask.n, reply_filter, _note(rules), rules.reasoning == "summarise" and not ask.stream)


def mark(body: dict[str, Any], key_id: str, style: Literal["spiritsafe", "vllm"]) -> dict[str, Any]:
    """A copy of a request's body that asks for the watermark of one key: by this project's own field, or by the one
    that vLLM hands on to its extensions."""
    if style == "vllm":
        return {**body, "vllm_xargs": {"watermark_key_id": key_id}}
    return {**body, "watermark_key_id": key_id}


def summary_request(reasoning: str, model: str) -> dict[str, Any]:
    """The body of a chat request for a short summary of a reply's reasoning, to be paid by the operator."""
    return {
        "model": model,
        "messages": [
            {"role": "system", "content": _SUMMARISE},
            {"role": "user", "content": reasoning[:_LONGEST_SUMMARISED]},
        ],
        "max_tokens": 1024,  # models that reason do so before they summarise
        "temperature": 0.3,
    }


def summary_of(reply: dict[str, Any], model: str, config: GuardConfig) -> str | None:
    """The summary in the reply to `summary_request`, without the reasoning that led to it; None if there is none."""
    shown = ReplyFilter("chat", Showing(reasoning=False, starts=_template_starts(model, config))).whole(reply)
    choices = shown.get("choices") or [{}]
    message = choices[0].get("message")
    text = message.get("content") if isinstance(message, dict) else None
    return text.strip() or None if isinstance(text, str) else None


def _check_logprobs(ask: Ask, rules: OutputRules, shows: bool) -> None:
    if ask.top_logprobs is None:
        return
    param = "logprobs" if ask.kind != "responses" else "top_logprobs"
    if not rules.logprobs:
        _refuse("log-probabilities are off for this account; leave them out", param)
    if ask.top_logprobs > rules.logprobs:
        _refuse(
            f"{ask.top_logprobs} log-probabilities per token asked for; this account may see {rules.logprobs}", param
        )
    if not shows:
        _refuse(
            "log-probabilities would spell out reasoning, which is not shown to this account; leave them out", param
        )
    if ask.has_logit_bias and not rules.logit_bias_with_logprobs:
        _refuse("biased tokens together with log-probabilities are off for this account; leave out one", param)


def _check_hidden(ask: Ask) -> None:
    """What would carry reasoning past the filter."""
    if ask.kind == "completions" and ask.token_ids:
        _refuse("prompts as token ids are off for this account; send text", "prompt")
    if ask.body.get("separate_reasoning") is False:
        _refuse("separate_reasoning must stay on for this account; leave it out", "separate_reasoning")


def _greedy(ask: Ask) -> bool:
    cold = ask.temperature is not None and ask.temperature < GREEDY_BELOW
    return cold or ask.body.get("top_k") == 1 or ask.body.get("min_p") == 1


def _limit(ask: Ask, rules: OutputRules, config: GuardConfig, limit_field: str) -> int:
    """The bound of one reply's tokens; set in the body if the client set none, so that it is one."""
    most = rules.max_tokens
    assert most is not None  # every tier has one
    body, field = ask.body, "max_output_tokens" if ask.kind == "responses" else limit_field
    if ask.max_tokens is None:
        rooms = [upstream.context for upstream in config.upstreams if upstream.context and ask.model in upstream.models]
        if ask.kind == "completions":
            most = min(most, _COMPLETIONS_DEFAULT)
        elif rooms:  # servers refuse what could outgrow their context
            most = min(most, max(_LEAST_ROOM, min(rooms) - ask.text_bytes // 2 - _TEMPLATE_ROOM))
        body[field] = most
        return most
    if ask.max_tokens > most:
        used = "max_completion_tokens" if body.get("max_completion_tokens") is not None else field
        _refuse(f"{used} is {ask.max_tokens}, and this account may ask for at most {most}", used)
    return ask.max_tokens


def _starts(ask: Ask, config: GuardConfig) -> tuple[Start, ...]:
    """Where the replies begin: inside the reasoning, if the template or the client's own text opens it."""
    if ask.kind == "completions":
        if ask.body.get("echo"):
            return (Start(),)
        return tuple(start_after(text) for role, text in ask.said if role == "user")
    if (starts := _template_starts(ask.model, config)) != _PLAIN_START:
        return starts
    # a server may continue the last message; its fields stand in any order
    trailing = list(itertools.takewhile(lambda said: said[0] == "assistant", reversed(ask.said)))
    return (max((start_after(text) for _, text in trailing), default=Start()),)


def _template_starts(model: str, config: GuardConfig) -> tuple[Start, ...]:
    """Where replies to a chat begin that ends with the user's word."""
    opened = any(upstream.reasoning_open for upstream in config.upstreams if model in upstream.models)
    return (Start(opened=True),) if opened else _PLAIN_START


def _stricter(tier: Tier, step: OutputRules) -> OutputRules:
    def least(name: str) -> int | None:
        values = [value for value in (getattr(tier, name), getattr(step, name)) if value is not None]
        return min(values) if values else None

    reasoning = max((rules.reasoning or "show" for rules in (tier, step)), key=_GRAVITY.index)
    return OutputRules(
        logprobs=least("logprobs"),
        logprob_decimals=least("logprob_decimals"),
        logit_bias=tier.logit_bias and step.logit_bias is not False,
        logit_bias_with_logprobs=tier.logit_bias_with_logprobs and step.logit_bias_with_logprobs is not False,
        n=least("n"),
        max_tokens=least("max_tokens"),
        reasoning=reasoning,
    )


def _note(rules: OutputRules) -> str:
    note = f"logprobs={rules.logprobs or 0}"
    if rules.reasoning not in (None, "show"):
        note += f",reasoning={rules.reasoning}"
    return note if isinstance(rules, Tier) else f"ladder,{note}"


def _refuse(message: str, param: str) -> NoReturn:
    raise ApiError(400, message, param=param, code="policy")
