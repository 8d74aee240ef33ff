"""Output policy: what each account may ask for, under its tier and under the ladder; what goes upstream."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml
from hypothesis import given, settings

from asks import CHAT, CHAT_FULL, COMPLETIONS, EMBEDDINGS, RESPONSES, VALID, mutated
from spiritsafe.serve._config import STEPS, GuardConfig, OutputRules, Tier
from spiritsafe.serve._policy import Applied, apply_output, mark, output_rules, summary_request
from spiritsafe.serve._thinking import Start
from spiritsafe.serve._types import Identity, LadderState
from spiritsafe.watermark._marking import GREEDY_BELOW
from spiritsafe.wire import REFUSED, ApiError, parse_ask


def config(tier: dict[str, Any] | None = None, *, upstream: dict[str, Any] | None = None, **more: Any) -> GuardConfig:
    price = {"input_per_mtok": 1, "output_per_mtok": 2}
    served = {"name": "a", "base_url": "http://127.0.0.1:1/v1", "models": ["m"], "price": price, **(upstream or {})}
    return GuardConfig.model_validate({"upstreams": [served], "tiers": {"default": tier or {}}} | more)


def identity(
    step: str | None = None, *, cluster: str | None = None, shadow: bool = False, tier: str = "default"
) -> Identity:
    states = [None if name is None else LadderState("s", name, shadow, "", "", 0.0) for name in (step, cluster)]  # type: ignore[arg-type]
    return Identity("a", "a", None, tier, "k", frozenset(), 0.0, account_step=states[0], cluster_step=states[1])


def applied(
    kind: Any, body: dict[str, Any], tier: dict[str, Any] | None = None, *, marked: bool = False, **more: Any
) -> Applied:
    settings = config(tier, **more)
    return apply_output(
        parse_ask(kind, orjson.dumps(body)), output_rules(settings, identity()), settings, marked=marked
    )


def refusal(kind: Any, body: dict[str, Any], tier: dict[str, Any] | None = None, **more: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        applied(kind, body, tier, **more)
    assert (caught.value.status, caught.value.code) == (400, "policy")
    return caught.value


# Whose rules


@pytest.mark.parametrize(("step", "place"), list(itertools.product(STEPS, ["account", "cluster"])))
def test_the_ladders_policy_acts_from_its_step_on(step: str, place: str) -> None:
    on = config(ladder={"shadow": False})
    who = identity(step) if place == "account" else identity(cluster=step)
    acts = STEPS.index(step) >= STEPS.index("output_policy")  # type: ignore[arg-type]
    assert (output_rules(on, who).reasoning == "withhold") == acts
    assert isinstance(output_rules(on, who), Tier) != acts


@pytest.mark.parametrize(
    ("ladder", "who"),
    [
        ({"shadow": True}, identity("review")),
        ({"shadow": False}, identity("review", shadow=True)),
        ({"shadow": False, "steps": ["notify", "review"]}, identity("review")),
        ({"shadow": False}, identity("price_tier")),
        ({"shadow": False}, identity()),
    ],
)
def test_it_does_not_act_in_shadow_or_where_it_is_off(ladder: dict[str, Any], who: Identity) -> None:
    settings = config(ladder=ladder)
    assert output_rules(settings, who) is settings.tiers["default"]


def test_of_tier_and_ladder_the_stricter_rule_holds() -> None:
    step = {
        "logprobs": 5,
        "n": 3,
        "max_tokens": 10_000,
        "logprob_decimals": 1,
        "logit_bias": True,
        "reasoning": "summarise",
    }
    tier = {
        "logprobs": 2,
        "n": 8,
        "max_tokens": 100,
        "logit_bias": False,
        "reasoning": "withhold",
        "logit_bias_with_logprobs": True,
    }
    rules = output_rules(config(tier, ladder={"shadow": False, "output_policy": step}), identity("output_policy"))
    assert rules == OutputRules(
        logprobs=2,
        n=3,
        max_tokens=100,
        logprob_decimals=1,
        logit_bias=False,
        reasoning="withhold",
        logit_bias_with_logprobs=True,
    )


def test_the_ladders_default_policy_turns_the_valves_off() -> None:
    rules = output_rules(config({"logprobs": 20}, ladder={"shadow": False}), identity("suspend"))
    assert (rules.logprobs, rules.logit_bias, rules.n, rules.reasoning, rules.max_tokens) == (
        0,
        False,
        1,
        "withhold",
        4096,
    )


def test_an_account_of_a_tier_that_is_gone_gets_the_default_tier() -> None:
    settings = config({"n": 1})
    assert output_rules(settings, identity(tier="gone")).n == 1


# What may be asked


LOGPROBS = {
    "chat": {"logprobs": True, "top_logprobs": 3},
    "completions": {"logprobs": 3},
    "responses": {"top_logprobs": 3},
}
BASE = {"chat": CHAT, "completions": COMPLETIONS, "responses": RESPONSES}


@pytest.mark.parametrize("kind", BASE)
def test_log_probabilities_within_the_cap_or_not_at_all(kind: str) -> None:
    asked = BASE[kind] | LOGPROBS[kind]
    assert "off for this account" in refusal(kind, asked).message
    error = refusal(kind, asked, {"logprobs": 2})
    assert "may see 2" in error.message
    assert error.param in ("logprobs", "top_logprobs")
    shown = applied(kind, asked, {"logprobs": 3, "logprob_decimals": 2}).filter.showing
    assert (shown.top, shown.decimals) == (3, 2)
    assert applied(kind, BASE[kind], {"logprobs": 3}).filter.showing.top is None
    assert "reasoning" in refusal(kind, asked, {"logprobs": 3, "reasoning": "withhold"}).message


@pytest.mark.parametrize("bias", [{"logit_bias": {"1": 5}}, {"allowed_token_ids": [1]}, {"bad_words": ["a"]}])
def test_bias_alone_and_with_log_probabilities(bias: dict[str, Any]) -> None:
    asked = CHAT | bias
    assert applied("chat", asked).body.items() >= bias.items()
    both = asked | LOGPROBS["chat"]
    assert "together with" in refusal("chat", both, {"logprobs": 5}).message
    assert applied("chat", both, {"logprobs": 5, "logit_bias_with_logprobs": True})
    assert refusal("chat", asked, {"logit_bias": False}).param == "logit_bias"


def test_n_over_the_cap_is_refused_with_the_cap() -> None:
    assert "at most 2" in refusal("chat", CHAT | {"n": 3}, {"n": 2}).message
    assert applied("chat", CHAT | {"n": 2}, {"n": 2}).n == 2


@pytest.mark.parametrize(
    ("kind", "extra", "sent", "bound"),
    [
        ("chat", {}, {"max_tokens": 50}, 50),
        ("chat", {"max_tokens": 7}, {"max_tokens": 7}, 7),
        ("chat", {"max_completion_tokens": 7}, {"max_completion_tokens": 7}, 7),
        ("chat", {"max_tokens": None}, {"max_tokens": 50}, 50),
        ("completions", {}, {"max_tokens": 16}, 16),
        ("completions", {"max_tokens": 50}, {"max_tokens": 50}, 50),
        ("responses", {}, {"max_output_tokens": 50}, 50),
        ("responses", {"max_output_tokens": 9}, {"max_output_tokens": 9}, 9),
    ],
)
def test_every_request_leaves_with_a_token_limit(
    kind: str, extra: dict[str, Any], sent: dict[str, Any], bound: int
) -> None:
    out = applied(kind, BASE[kind] | extra, {"max_tokens": 50})
    assert out.max_tokens == bound
    names = {"max_tokens", "max_completion_tokens", "max_output_tokens"}
    assert {name: value for name, value in out.body.items() if name in names and value is not None} == sent


@pytest.mark.parametrize(
    ("kind", "extra"),
    [("chat", {"max_tokens": 51}), ("chat", {"max_completion_tokens": 51}), ("chat", {"max_tokens": 1, "max_completion_tokens": 51}),
     ("completions", {"max_tokens": 51}), ("responses", {"max_output_tokens": 51})],
)  # fmt: skip
def test_a_token_limit_over_the_cap_is_refused(kind: str, extra: dict[str, Any]) -> None:
    error = refusal(kind, BASE[kind] | extra, {"max_tokens": 50})
    assert error.param == list(extra)[-1]
    assert "at most 50" in error.message


def test_a_limit_that_is_set_leaves_room_in_the_context() -> None:
    long = CHAT | {"messages": [{"role": "user", "content": "x" * 600}]}
    assert applied("chat", long, upstream={"context": 1000}).max_tokens == 1000 - 300 - 256
    assert (
        applied(
            "chat", CHAT | {"messages": [{"role": "user", "content": "x" * 6000}]}, upstream={"context": 1000}
        ).max_tokens
        == 16
    )


def test_the_field_of_a_missing_limit_can_be_chosen() -> None:
    settings = config()
    out = apply_output(
        parse_ask("chat", orjson.dumps(CHAT)),
        output_rules(settings, identity()),
        settings,
        limit_field="max_completion_tokens",
    )
    assert out.body["max_completion_tokens"] == 4096
    assert "max_tokens" not in out.body


MARKING = {"watermark": {"keys": "keys.json", "greedy": "refuse"}}


@pytest.mark.parametrize(
    ("extra", "refused"),
    [
        ({"temperature": 0}, True),
        ({"temperature": GREEDY_BELOW / 2}, True),
        ({"temperature": GREEDY_BELOW}, False),
        ({"temperature": 1}, False),
        ({}, False),
        ({"top_k": 1}, True),
        ({"min_p": 1}, True),
        ({"top_k": 2}, False),
    ],
)
def test_greedy_requests_on_marked_tiers(extra: dict[str, Any], refused: bool) -> None:
    asked = CHAT | extra
    if refused:
        assert refusal("chat", asked, {"watermark": True}, marked=True, **MARKING).param == "temperature"
    else:
        assert applied("chat", asked, {"watermark": True}, marked=True, **MARKING)
    assert applied("chat", asked, marked=False, **MARKING)
    assert applied("chat", asked, {"watermark": True}, marked=True, watermark={"keys": "k", "greedy": "kgw"})


# What goes upstream


@pytest.mark.parametrize(
    ("asked", "shown"), [({}, False), ({"include_usage": False}, False), ({"include_usage": True}, True)]
)
def test_streams_always_report_usage_and_show_it_to_who_asked(asked: dict[str, Any], shown: bool) -> None:
    options = {"stream_options": {**asked, "include_obfuscation": False}} if asked else {}
    for kind in ("chat", "completions"):
        out = applied(kind, BASE[kind] | {"stream": True} | options)
        assert out.body["stream_options"]["include_usage"] is True
        assert out.body["stream_options"].get("include_obfuscation", False) is False
        assert out.filter.showing.usage is shown
    assert "stream_options" not in applied("chat", CHAT).body


def test_responses_are_never_stored() -> None:
    for extra in ({}, {"store": None}, {"store": False}):
        out = applied("responses", RESPONSES | extra | {"stream": True})
        assert out.body["store"] is False
        assert "stream_options" not in out.body


def test_embeddings_go_as_they_are() -> None:
    out = applied("embeddings", EMBEDDINGS, {"n": 1, "max_tokens": 1, "reasoning": "withhold"})
    assert (out.body, out.max_tokens, out.n, out.note) == (EMBEDDINGS, 0, 1, "logprobs=0,reasoning=withhold")
    assert out.filter.whole({"data": [{"embedding": [0.5]}], "prompt_token_ids": [1]}) == {
        "data": [{"embedding": [0.5]}]
    }


def test_marks_are_asked_for_as_the_upstream_understands() -> None:
    body = {"model": "m"}
    assert mark(body, "ks_1/e/3", "spiritsafe") == {"model": "m", "watermark_key_id": "ks_1/e/3"}
    assert mark(body, "ks_1/e/3", "vllm") == {"model": "m", "vllm_xargs": {"watermark_key_id": "ks_1/e/3"}}
    assert body == {"model": "m"}


def test_this_projects_own_server_reads_the_mark() -> None:
    from spiritsafe.wire import parse_chat_request

    body = mark(applied("chat", CHAT).body, "ks_1/e/3", "spiritsafe")
    assert parse_chat_request(orjson.dumps(body)).watermark_key_id == "ks_1/e/3"


# Reasoning


def test_reasoning_is_shown_withheld_or_summarised() -> None:
    assert applied("chat", CHAT).filter.showing.reasoning
    withheld = applied("chat", CHAT, {"reasoning": "withhold"})
    assert not withheld.filter.showing.reasoning
    assert not withheld.summarise
    summary = applied("chat", CHAT, {"reasoning": "summarise"})
    assert not summary.filter.showing.reasoning
    assert summary.summarise
    assert not applied("chat", CHAT | {"stream": True}, {"reasoning": "summarise"}).summarise


def said_by_assistant(text: str) -> dict[str, Any]:
    return {"model": "m", "messages": [*CHAT["messages"], {"role": "assistant", "content": text}]}


@pytest.mark.parametrize(
    ("kind", "body", "starts"),
    [
        ("chat", CHAT, (Start(),)),
        ("chat", said_by_assistant("<think>\nLet me"), (Start(opened=True),)),
        ("chat", said_by_assistant("<th"), (Start(tail="<th"),)),
        ("chat", said_by_assistant("<think>x</think>"), (Start(),)),
        ("completions", {"model": "m", "prompt": ["Q", "Q <think>"]}, (Start(), Start(opened=True))),
        ("completions", {"model": "m", "prompt": "Q <think>", "echo": True}, (Start(),)),
        ("responses", {"model": "m", "input": [{"role": "assistant", "content": "[THINK]"}]}, (Start(opened=True),)),
    ],
)
def test_replies_that_begin_inside_the_reasoning_are_known(
    kind: str, body: dict[str, Any], starts: tuple[Start, ...]
) -> None:
    assert applied(kind, body, {"reasoning": "withhold"}).filter.showing.starts == starts


def test_a_template_that_opens_the_reasoning_is_the_operators_to_tell() -> None:
    out = applied("chat", CHAT, {"reasoning": "withhold"}, upstream={"reasoning_open": True})
    reply = {"choices": [{"index": 0, "message": {"content": "SECRET</think>shown"}}]}
    assert out.filter.whole(reply)["choices"][0]["message"]["content"] == "shown"
    cut = {"choices": [{"index": 0, "message": {"content": "SECRET"}, "finish_reason": "length"}]}
    assert out.filter.whole(cut)["choices"][0]["message"]["content"] == ""


@pytest.mark.parametrize(
    ("kind", "body", "param"),
    [
        ("completions", {"model": "m", "prompt": [1, 2]}, "prompt"),
        ("chat", CHAT | {"separate_reasoning": False}, "separate_reasoning"),
    ],
)
def test_ways_around_withholding_are_closed(kind: str, body: dict[str, Any], param: str) -> None:
    assert refusal(kind, body, {"reasoning": "withhold"}).param == param
    assert applied(kind, body)


def test_a_summary_is_asked_for_in_a_request_of_its_own() -> None:
    body = summary_request("long thought " * 10_000, "m")
    ask = parse_ask("chat", orjson.dumps(body))
    assert (ask.model, ask.max_tokens) == ("m", 1024)
    assert ask.text_bytes < 30_000


# The ledger's note


def test_the_note_says_which_rules_held() -> None:
    assert applied("chat", CHAT).note == "logprobs=0"
    assert applied("chat", CHAT, {"logprobs": 4, "reasoning": "withhold"}).note == "logprobs=4,reasoning=withhold"
    settings = config(ladder={"shadow": False})
    rules = output_rules(settings, identity("output_policy"))
    assert (
        apply_output(parse_ask("chat", orjson.dumps(CHAT)), rules, settings).note
        == "ladder,logprobs=0,reasoning=withhold"
    )


# Any request


@given(mutated())
@settings(max_examples=200)
def test_whatever_is_read_is_bounded_or_refused(request: tuple[Any, bytes]) -> None:
    kind, body = request
    settings = config({"logprobs": 4, "n": 2, "max_tokens": 60, "reasoning": "withhold"})
    try:
        out = apply_output(parse_ask(kind, body), output_rules(settings, identity()), settings)
    except ApiError:
        return
    sent = orjson.loads(orjson.dumps(out.body))
    if kind == "embeddings":
        return
    limits = [sent[name] for name in ("max_tokens", "max_completion_tokens", "max_output_tokens") if sent.get(name)]
    assert limits
    assert max(limits) == out.max_tokens <= 60
    assert (sent.get("n") or 1) == out.n <= 2
    assert parse_ask(kind, orjson.dumps(out.body)).top_logprobs in (None, *range(5))


def test_requests_in_full_are_served_where_the_tier_allows_it() -> None:
    generous = {"logprobs": 5, "n": 3, "logit_bias_with_logprobs": True}
    for kind, body in VALID:
        assert applied(kind, body, generous).body.items() >= {"model": "m"}.items()
    assert refusal("chat", CHAT_FULL, generous | {"logit_bias_with_logprobs": False})


# The page


PAGE = (Path(__file__).parents[2] / "docs/guard/output-policy.md").read_text()


def test_the_pages_tiers_are_tiers_and_its_rules_are_all_there_are() -> None:
    tiers = yaml.safe_load(PAGE.split("```yaml\n")[1].split("```")[0])["tiers"]
    assert set(config(tiers["default"], tiers=tiers).tiers) == {"default", "research", "reasoner"}
    assert set(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)) == set(OutputRules.model_fields)


def test_what_the_page_says_is_refused_is_refused() -> None:
    listed = PAGE.split("Each refusal says why:")[1].split("Of two equal keys")[0]
    names = set(re.findall(r"`(\w+)`", listed)) - {"echo", "logprobs", "pro"}  # in pairs, tested with the parser
    assert names <= set(REFUSED), names - set(REFUSED)
