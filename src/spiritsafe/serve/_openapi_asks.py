"""Request bodies of the public port as JSON Schema: what `wire.parse_ask` and the output policy let through.

An optional field may be null, which counts as absent. Bounds that differ by tier are the widest of any tier.
"""

from __future__ import annotations

from spiritsafe.serve._config import GuardConfig
from spiritsafe.serve._openapi_schema import (
    ANY,
    FLAG,
    TEXT,
    Schema,
    forbids,
    list_of,
    needs,
    number,
    object_of,
    one_of,
    typed,
    typed_of,
    whole,
)

__all__ = ["ask_schemas"]

_GIVEN: Schema = {"not": {"type": "null"}}
_JSON_TEXT: Schema = {"type": ["string", "object"]}
_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
_DETAIL = ("auto", "low", "high", "original")
_URL: Schema = {"type": "string", "pattern": r"^(https?://|data:image/)"}


def ask_schemas(config: GuardConfig) -> dict[str, Schema]:
    """By kind: "chat", "completions", "responses", "embeddings"."""
    tiers = config.tiers.values()
    labels, sampling = _labels(config), _sampling()
    n = whole(1, max(tier.n for tier in tiers))
    tokens = whole(1, max(tier.max_tokens for tier in tiers))
    top = whole(0, max(tier.logprobs for tier in tiers))
    shared = {**labels, **sampling}
    made = {
        "chat": object_of(("model", "messages"), **shared, **_chat(n, tokens, top)),
        "completions": object_of(("model", "prompt"), **shared, **_completions(n, tokens, top)),
        "responses": object_of(("model", "input"), **shared, **_responses(tokens, top)),
        "embeddings": object_of(("model", "input"), **labels, **_embeddings()),
    }
    streamed = needs("stream_options", {"type": "object"}, "stream", {"const": True})
    made["chat"]["allOf"] = [
        streamed,
        needs("top_logprobs", {"exclusiveMinimum": 0, "type": "integer"}, "logprobs", {"const": True}),
    ]
    made["completions"]["allOf"] = [streamed, forbids("echo", {"const": True}, "logprobs")]
    made["responses"]["allOf"] = [streamed]
    for name in config.allow_fields:
        for schema in made.values():
            schema["properties"].setdefault(name, ANY)
    return made


def _labels(config: GuardConfig) -> dict[str, Schema]:
    return {
        "model": {"type": "string", "enum": list(config.models)},
        "user": {"type": "string", "maxLength": 512},
        "safety_identifier": {"type": "string", "maxLength": 512},
        "metadata": {"type": "object", "maxProperties": 64, "additionalProperties": TEXT},
        "service_tier": one_of("auto", "default"),
        "prompt_cache_key": {"type": "string", "maxLength": 1024},
        "prompt_cache_retention": one_of("in_memory", "in-memory", "24h"),
        "cache_salt": {"type": "string", "maxLength": 1024},
    }


def _sampling() -> dict[str, Schema]:
    flags = (
        "stream", "ignore_eos", "include_stop_str_in_output", "no_stop_trim", "skip_special_tokens",
        "spaces_between_special_tokens", "add_special_tokens",
    )  # fmt: skip
    return dict.fromkeys(flags, FLAG) | {
        "stream_options": object_of((), include_usage=FLAG, include_obfuscation=FLAG),
        "temperature": number(0, 2),
        "top_p": number(0, 1, above=True),
        "top_k": whole(-1, 2**31 - 1),
        "min_p": number(0, 1),
        "frequency_penalty": number(-2, 2),
        "presence_penalty": number(-2, 2),
        "repetition_penalty": number(0, 10, above=True),
        "seed": whole(-(2**63)),
        "stop": {"anyOf": [TEXT, list_of(TEXT, most=16)]},
        "stop_token_ids": list_of(whole(-(2**63), 2**64 - 1), most=1024),
        "logit_bias": {"type": "object", "additionalProperties": number(-100, 100)},
        "allowed_token_ids": list_of(whole(-(2**63), 2**64 - 1), most=10**6),
        "bad_words": list_of(TEXT, most=1024),
        "min_tokens": whole(0),
        "thinking_token_budget": whole(-1),
        "stream_interval": whole(1, 1024),
    }


def _chat(n: Schema, tokens: Schema, top: Schema) -> dict[str, Schema]:
    flags = (
        "logprobs", "parallel_tool_calls", "include_reasoning", "separate_reasoning", "stream_reasoning",
        "add_generation_prompt", "continue_final_message", "store",
    )  # fmt: skip
    function = object_of(("name",), name=TEXT, description=TEXT, parameters=ANY, strict=FLAG)
    custom = object_of(("name",), name=TEXT, description=TEXT, format=ANY)
    choice = {"anyOf": [one_of("none", "auto", "required"), {"type": "object"}]}
    return dict.fromkeys(flags, FLAG) | {
        "messages": list_of(_message(), least=1),
        "n": n,
        "max_tokens": tokens,
        "max_completion_tokens": tokens,
        "top_logprobs": top,
        "tools": list_of({"anyOf": [typed("function", function=function), typed("custom", custom=custom)]}),
        "tool_choice": choice,
        "functions": list_of(function),
        "function_call": choice,
        "response_format": _format(),
        "prediction": object_of(("content",), type=one_of("content"), content={"anyOf": [TEXT, list_of(_part())]}),
        "chat_template_kwargs": object_of(
            (),
            enable_thinking=FLAG,
            thinking=FLAG,
            reasoning_effort={"type": "string", "maxLength": 16},
            thinking_budget=whole(0),
        ),
        "modalities": {"const": ["text"]},
        "reasoning_effort": one_of(*_EFFORTS),
        "verbosity": one_of("low", "medium", "high"),
    }


def _message() -> Schema:
    said = {"anyOf": [TEXT, list_of(_part())]}
    call = object_of(
        (),
        id=TEXT,
        index=whole(0),
        type=one_of("function", "custom"),
        function=object_of(("name",), name=TEXT, arguments=_JSON_TEXT),
        custom=object_of(("name",), name=TEXT, input=TEXT),
    )
    more = {
        "name": TEXT,
        "tool_calls": list_of(call),
        "tool_call_id": TEXT,
        "function_call": object_of(("name",), name=TEXT, arguments=_JSON_TEXT),
        "refusal": TEXT,
        "reasoning": TEXT,
        "reasoning_content": TEXT,
        "prefix": FLAG,
    }
    asks = object_of(("role", "content"), role=one_of("system", "developer", "user", "tool"), content=said, **more)
    answers = object_of(("role",), role=one_of("assistant", "function"), content=said, **more)
    return {"anyOf": [asks, answers]}


def _part() -> Schema:
    image = object_of(("url",), url=_URL, detail=one_of(*_DETAIL))
    texts = [typed(kind, **{kind: TEXT}) for kind in ("text", "refusal", "thinking")]
    return {"anyOf": [*texts, typed("image_url", image_url=image)]}


def _format() -> Schema:
    schema = object_of(("name",), name=TEXT, description=TEXT, schema=ANY, strict=FLAG)
    return {"anyOf": [typed("text"), typed("json_object"), typed("json_schema", json_schema=schema)]}


def _prompts() -> Schema:
    token_ids = list_of(whole(0, 2**31 - 1), least=1)
    several = [list_of(TEXT, least=1, most=2048), token_ids, list_of(token_ids, least=1, most=2048)]
    return {"anyOf": [TEXT, *several]}


def _completions(n: Schema, tokens: Schema, top: Schema) -> dict[str, Schema]:
    return {
        "prompt": _prompts(),
        "suffix": TEXT,
        "echo": FLAG,
        "n": n,
        "max_tokens": tokens,
        "logprobs": top,
        "response_format": _format(),
    }


def _embeddings() -> dict[str, Schema]:
    return {
        "input": _prompts(),
        "dimensions": whole(1, 2**16),
        "encoding_format": one_of("float", "base64"),
    }


def _responses(tokens: Schema, top: Schema) -> dict[str, Schema]:
    function = typed_of("function", "name", name=TEXT, description=TEXT, parameters=ANY, strict=FLAG, output_schema=ANY)
    custom = typed_of("custom", "name", name=TEXT, description=TEXT, format=ANY)
    schema = typed_of("json_schema", "name", "schema", name=TEXT, description=TEXT, schema=_GIVEN, strict=FLAG)
    formats = {"anyOf": [typed("text"), typed("json_object"), schema]}
    summary = one_of("auto", "concise", "detailed")
    included = ("message.output_text.logprobs", "message.input_image.image_url", "reasoning.encrypted_content")
    return {
        "input": {"anyOf": [TEXT, list_of({"anyOf": _items()}, least=1)]},
        "instructions": TEXT,
        "max_output_tokens": tokens,
        "max_tool_calls": whole(0),
        "top_logprobs": top,
        "include": list_of(one_of(*included), most=16),
        "tools": list_of({"anyOf": [function, custom]}),
        "tool_choice": {"anyOf": [one_of("none", "auto", "required"), {"type": "object"}]},
        "parallel_tool_calls": FLAG,
        "text": object_of((), format=formats, verbosity=one_of("low", "medium", "high")),
        "reasoning": object_of(
            (),
            effort=one_of(*_EFFORTS),
            summary=summary,
            generate_summary=summary,
            context=one_of("auto", "current_turn", "all_turns"),
            mode=one_of("standard"),
        ),
        "truncation": one_of("auto", "disabled"),
        "store": {"const": False},
        "n": {"const": 1},
    }


def _items() -> list[Schema]:
    parts = list_of(
        {
            "anyOf": [
                typed_of("input_text", "text", text=TEXT),
                typed_of("output_text", text=TEXT, annotations=list_of(ANY), logprobs=ANY),
                typed_of("refusal", "refusal", refusal=TEXT),
                typed_of("input_image", "image_url", image_url=_URL, detail=one_of(*_DETAIL)),
            ]
        }
    )
    said = {"anyOf": [TEXT, parts]}
    status = one_of("in_progress", "completed", "incomplete")
    head = {"id": TEXT, "status": status}
    called = {**head, "call_id": TEXT, "name": TEXT, "namespace": TEXT}

    def thought(kind: str) -> Schema:
        return list_of(object_of(("text",), type=one_of(kind), text=TEXT))

    return [
        object_of(
            ("role", "content"),
            type=one_of("message"),
            role=one_of("system", "developer", "user", "assistant"),
            content=said,
            phase=one_of("commentary", "final_answer"),
            **head,
        ),
        typed_of("function_call", "name", arguments=_JSON_TEXT, **called),
        typed_of("function_call_output", "output", output=said, **called),
        typed_of("custom_tool_call", "name", input=TEXT, **called),
        typed_of("custom_tool_call_output", "output", output=said, **called),
        typed_of(
            "reasoning",
            summary=thought("summary_text"),
            content=thought("reasoning_text"),
            encrypted_content=TEXT,
            **head,
        ),
    ]
