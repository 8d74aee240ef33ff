"""Request bodies of the public port as JSON Schema: what `wire.parse_ask` and the output policy let through.

An optional field may be null, which counts as absent. Bounds that differ by tier are the widest of any tier.
"""

from __future__ import annotations

from typing import Any

from spiritsafe.serve._config import GuardConfig

__all__ = ["ask_schemas"]

Schema = dict[str, Any]

_BIG = 2**63 - 1
_ANY: Schema = {}
_GIVEN: Schema = {"not": {"type": "null"}}
_FLAG: Schema = {"type": "boolean"}
_TEXT: Schema = {"type": "string"}
_JSON_TEXT: Schema = {"type": ["string", "object"]}
_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
_DETAIL = ("auto", "low", "high", "original")
_URL: Schema = {"type": "string", "pattern": r"^(https?://|data:image/)"}


def ask_schemas(config: GuardConfig) -> dict[str, Schema]:
    """By kind: "chat", "completions", "responses", "embeddings"."""
    tiers = config.tiers.values()
    labels, sampling = _labels(config), _sampling()
    n = _whole(1, max(tier.n for tier in tiers))
    tokens = _whole(1, max(tier.max_tokens for tier in tiers))
    top = _whole(0, max(tier.logprobs for tier in tiers))
    shared = {**labels, **sampling}
    made = {
        "chat": _object(("model", "messages"), **shared, **_chat(n, tokens, top)),
        "completions": _object(("model", "prompt"), **shared, **_completions(n, tokens, top)),
        "responses": _object(("model", "input"), **shared, **_responses(tokens, top)),
        "embeddings": _object(("model", "input"), **labels, **_embeddings()),
    }
    streamed = _needs("stream_options", {"type": "object"}, "stream", {"const": True})
    made["chat"]["allOf"] = [
        streamed,
        _needs("top_logprobs", {"exclusiveMinimum": 0, "type": "integer"}, "logprobs", {"const": True}),
    ]
    made["completions"]["allOf"] = [streamed, _forbids("echo", {"const": True}, "logprobs")]
    made["responses"]["allOf"] = [streamed]
    for name in config.allow_fields:
        for schema in made.values():
            schema["properties"].setdefault(name, _ANY)
    return made


def _labels(config: GuardConfig) -> dict[str, Schema]:
    return {
        "model": {"type": "string", "enum": list(config.models)},
        "user": {"type": "string", "maxLength": 512},
        "safety_identifier": {"type": "string", "maxLength": 512},
        "metadata": {"type": "object", "maxProperties": 64, "additionalProperties": _TEXT},
        "service_tier": _one_of("auto", "default"),
        "prompt_cache_key": {"type": "string", "maxLength": 1024},
        "prompt_cache_retention": _one_of("in_memory", "in-memory", "24h"),
        "cache_salt": {"type": "string", "maxLength": 1024},
    }


def _sampling() -> dict[str, Schema]:
    flags = (
        "stream", "ignore_eos", "include_stop_str_in_output", "no_stop_trim", "skip_special_tokens",
        "spaces_between_special_tokens", "add_special_tokens",
    )  # fmt: skip
    return dict.fromkeys(flags, _FLAG) | {
        "stream_options": _object((), include_usage=_FLAG, include_obfuscation=_FLAG),
        "temperature": _number(0, 2),
        "top_p": _number(0, 1, above=True),
        "top_k": _whole(-1, 2**31 - 1),
        "min_p": _number(0, 1),
        "frequency_penalty": _number(-2, 2),
        "presence_penalty": _number(-2, 2),
        "repetition_penalty": _number(0, 10, above=True),
        "seed": _whole(-(2**63)),
        "stop": {"anyOf": [_TEXT, _list(_TEXT, most=16)]},
        "stop_token_ids": _list(_whole(-(2**63), 2**64 - 1), most=1024),
        "logit_bias": {"type": "object", "additionalProperties": _number(-100, 100)},
        "allowed_token_ids": _list(_whole(-(2**63), 2**64 - 1), most=10**6),
        "bad_words": _list(_TEXT, most=1024),
        "min_tokens": _whole(0),
        "thinking_token_budget": _whole(-1),
        "stream_interval": _whole(1, 1024),
    }


def _chat(n: Schema, tokens: Schema, top: Schema) -> dict[str, Schema]:
    flags = (
        "logprobs", "parallel_tool_calls", "include_reasoning", "separate_reasoning", "stream_reasoning",
        "add_generation_prompt", "continue_final_message", "store",
    )  # fmt: skip
    function = _object(("name",), name=_TEXT, description=_TEXT, parameters=_ANY, strict=_FLAG)
    custom = _object(("name",), name=_TEXT, description=_TEXT, format=_ANY)
    choice = {"anyOf": [_one_of("none", "auto", "required"), {"type": "object"}]}
    return dict.fromkeys(flags, _FLAG) | {
        "messages": _list(_message(), least=1),
        "n": n,
        "max_tokens": tokens,
        "max_completion_tokens": tokens,
        "top_logprobs": top,
        "tools": _list({"anyOf": [_typed("function", function=function), _typed("custom", custom=custom)]}),
        "tool_choice": choice,
        "functions": _list(function),
        "function_call": choice,
        "response_format": _format(),
        "prediction": _object(("content",), type=_one_of("content"), content={"anyOf": [_TEXT, _list(_part())]}),
        "chat_template_kwargs": _object(
            (),
            enable_thinking=_FLAG,
            thinking=_FLAG,
            reasoning_effort={"type": "string", "maxLength": 16},
            thinking_budget=_whole(0),
        ),
        "modalities": {"const": ["text"]},
        "reasoning_effort": _one_of(*_EFFORTS),
        "verbosity": _one_of("low", "medium", "high"),
    }


def _message() -> Schema:
    said = {"anyOf": [_TEXT, _list(_part())]}
    call = _object(
        (),
        id=_TEXT,
        index=_whole(0),
        type=_one_of("function", "custom"),
        function=_object(("name",), name=_TEXT, arguments=_JSON_TEXT),
        custom=_object(("name",), name=_TEXT, input=_TEXT),
    )
    more = {
        "name": _TEXT,
        "tool_calls": _list(call),
        "tool_call_id": _TEXT,
        "function_call": _object(("name",), name=_TEXT, arguments=_JSON_TEXT),
        "refusal": _TEXT,
        "reasoning": _TEXT,
        "reasoning_content": _TEXT,
        "prefix": _FLAG,
    }
    asks = _object(("role", "content"), role=_one_of("system", "developer", "user", "tool"), content=said, **more)
    answers = _object(("role",), role=_one_of("assistant", "function"), content=said, **more)
    return {"anyOf": [asks, answers]}


def _part() -> Schema:
    image = _object(("url",), url=_URL, detail=_one_of(*_DETAIL))
    texts = [_typed(kind, **{kind: _TEXT}) for kind in ("text", "refusal", "thinking")]
    return {"anyOf": [*texts, _typed("image_url", image_url=image)]}


def _format() -> Schema:
    schema = _object(("name",), name=_TEXT, description=_TEXT, schema=_ANY, strict=_FLAG)
    return {"anyOf": [_typed("text"), _typed("json_object"), _typed("json_schema", json_schema=schema)]}


def _prompts() -> Schema:
    token_ids = _list(_whole(0, 2**31 - 1), least=1)
    several = [_list(_TEXT, least=1, most=2048), token_ids, _list(token_ids, least=1, most=2048)]
    return {"anyOf": [_TEXT, *several]}


def _completions(n: Schema, tokens: Schema, top: Schema) -> dict[str, Schema]:
    return {
        "prompt": _prompts(),
        "suffix": _TEXT,
        "echo": _FLAG,
        "n": n,
        "max_tokens": tokens,
        "logprobs": top,
        "response_format": _format(),
    }


def _embeddings() -> dict[str, Schema]:
    return {
        "input": _prompts(),
        "dimensions": _whole(1, 2**16),
        "encoding_format": _one_of("float", "base64"),
    }


def _responses(tokens: Schema, top: Schema) -> dict[str, Schema]:
    function = _typed_of(
        "function", "name", name=_TEXT, description=_TEXT, parameters=_ANY, strict=_FLAG, output_schema=_ANY
    )
    custom = _typed_of("custom", "name", name=_TEXT, description=_TEXT, format=_ANY)
    schema = _typed_of("json_schema", "name", "schema", name=_TEXT, description=_TEXT, schema=_GIVEN, strict=_FLAG)
    formats = {"anyOf": [_typed("text"), _typed("json_object"), schema]}
    summary = _one_of("auto", "concise", "detailed")
    included = ("message.output_text.logprobs", "message.input_image.image_url", "reasoning.encrypted_content")
    return {
        "input": {"anyOf": [_TEXT, _list({"anyOf": _items()}, least=1)]},
        "instructions": _TEXT,
        "max_output_tokens": tokens,
        "max_tool_calls": _whole(0),
        "top_logprobs": top,
        "include": _list(_one_of(*included), most=16),
        "tools": _list({"anyOf": [function, custom]}),
        "tool_choice": {"anyOf": [_one_of("none", "auto", "required"), {"type": "object"}]},
        "parallel_tool_calls": _FLAG,
        "text": _object((), format=formats, verbosity=_one_of("low", "medium", "high")),
        "reasoning": _object(
            (),
            effort=_one_of(*_EFFORTS),
            summary=summary,
            generate_summary=summary,
            context=_one_of("auto", "current_turn", "all_turns"),
            mode=_one_of("standard"),
        ),
        "truncation": _one_of("auto", "disabled"),
        "store": {"const": False},
        "n": {"const": 1},
    }


def _items() -> list[Schema]:
    parts = _list(
        {
            "anyOf": [
                _typed_of("input_text", "text", text=_TEXT),
                _typed_of("output_text", text=_TEXT, annotations=_list(_ANY), logprobs=_ANY),
                _typed_of("refusal", "refusal", refusal=_TEXT),
                _typed_of("input_image", "image_url", image_url=_URL, detail=_one_of(*_DETAIL)),
            ]
        }
    )
    said = {"anyOf": [_TEXT, parts]}
    status = _one_of("in_progress", "completed", "incomplete")
    head = {"id": _TEXT, "status": status}
    called = {**head, "call_id": _TEXT, "name": _TEXT, "namespace": _TEXT}

    def thought(kind: str) -> Schema:
        return _list(_object(("text",), type=_one_of(kind), text=_TEXT))

    return [
        _object(
            ("role", "content"),
            type=_one_of("message"),
            role=_one_of("system", "developer", "user", "assistant"),
            content=said,
            phase=_one_of("commentary", "final_answer"),
            **head,
        ),
        _typed_of("function_call", "name", arguments=_JSON_TEXT, **called),
        _typed_of("function_call_output", "output", output=said, **called),
        _typed_of("custom_tool_call", "name", input=_TEXT, **called),
        _typed_of("custom_tool_call_output", "output", output=said, **called),
        _typed_of(
            "reasoning",
            summary=thought("summary_text"),
            content=thought("reasoning_text"),
            encrypted_content=_TEXT,
            **head,
        ),
    ]


def _object(required: tuple[str, ...], **properties: Schema) -> Schema:
    made = {name: schema if name in required else _or_null(schema) for name, schema in properties.items()}
    return {"type": "object", "properties": made, "required": list(required), "additionalProperties": False}


def _typed(kind: str, **properties: Schema) -> Schema:
    """An object with that `type`, and all of the properties."""
    return _typed_of(kind, *properties, **properties)


def _typed_of(kind: str, *required: str, **properties: Schema) -> Schema:
    return _object(("type", *required), type={"const": kind}, **properties)


def _or_null(schema: Schema) -> Schema:
    if not schema:
        return schema
    if set(schema) <= {"type", "enum"} and "enum" in schema:
        return schema | {"type": [schema["type"], "null"], "enum": [*schema["enum"], None]}
    if isinstance(schema.get("type"), str):
        return schema | {"type": [schema["type"], "null"]}
    return {"anyOf": [*schema.get("anyOf", [schema]), {"type": "null"}]}


def _needs(name: str, given: Schema, other: str, value: Schema) -> Schema:
    return {
        "if": {"properties": {name: given}, "required": [name]},
        "then": {"properties": {other: value}, "required": [other]},
    }


def _forbids(name: str, given: Schema, other: str) -> Schema:
    return {
        "if": {"properties": {name: given}, "required": [name]},
        "then": {"properties": {other: {"type": "null"}}},
    }


def _list(items: Schema, *, least: int = 0, most: int | None = None) -> Schema:
    made: Schema = {"type": "array", "items": items}
    return made | ({"minItems": least} if least else {}) | ({} if most is None else {"maxItems": most})


def _whole(least: int, most: int = _BIG) -> Schema:
    return {"type": "integer", "minimum": least, "maximum": most}


def _number(least: float, most: float, *, above: bool = False) -> Schema:
    return {"type": "number", "exclusiveMinimum" if above else "minimum": least, "maximum": most}


def _one_of(*values: str) -> Schema:
    return {"type": "string", "enum": list(values)}
