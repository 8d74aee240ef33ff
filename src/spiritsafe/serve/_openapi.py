"""The public port described for machines: OpenAPI 3.1, served at /openapi.json."""

from __future__ import annotations

from typing import Any

from spiritsafe import __version__
from spiritsafe.serve._config import GuardConfig
from spiritsafe.serve._openapi_asks import ask_schemas
from spiritsafe.serve._openapi_schema import Schema

__all__ = ["openapi"]

_POSTS = {
    "chat": ("/v1/chat/completions", "createChatCompletion", "Answer a conversation."),
    "completions": ("/v1/completions", "createCompletion", "Continue a text."),
    "responses": ("/v1/responses", "createResponse", "Answer by the responses API; nothing is stored."),
    "embeddings": ("/v1/embeddings", "createEmbedding", "Embed texts."),
}
_ERRORS = {
    400: "The request cannot be answered as it stands; `param` names the field.",
    401: "No key, or not a valid one.",
    402: "A budget is used up; waiting does not help.",
    403: "The key, the account or its acceptance of the terms does not allow this.",
    404: "There is no such model.",
    408: "The request did not arrive in time.",
    413: "The body is too large.",
    415: "The body is compressed.",
    429: "A limit is reached; `retry-after` says when to try again, unless that would not help.",
    500: "The guard failed.",
    502: "The model's server failed.",
    503: "The guard or the model's server cannot answer now.",
    504: "The model's server took too long.",
}
_ASKED = (400, 401, 402, 403, 404, 408, 413, 415, 429, 500, 502, 503, 504)
_TEXT: Schema = {"type": "string"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_ID: Schema = {"type": "string", "description": "The request's id, as the ledger has it."}


def openapi(config: GuardConfig) -> dict[str, Any]:
    """The document, with this guard's models and the widest limits of any of its tiers."""
    asks = ask_schemas(config)
    paths: dict[str, Any] = {}
    for kind, (path, operation, summary) in _POSTS.items():
        body = {"required": True, "content": {"application/json": {"schema": _ref(operation)}}}
        answers = _asked(kind) | {str(status): _error(status) for status in _ASKED}
        paths[path] = {
            "post": {"operationId": operation, "summary": summary, "requestBody": body, "responses": answers}
        }
    paths |= _pages(config)
    schemas = {operation: asks[kind] for kind, (_, operation, _) in _POSTS.items()} | _replies()
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Spiritsafe guard",
            "version": __version__,
            "description": "OpenAI's API, with accounts, limits and a meter.",
        },
        "security": [{"key": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            "schemas": schemas,
            "headers": _headers(),
        },
    }


def _asked(kind: str) -> dict[str, Any]:
    content: dict[str, Any] = {"application/json": {"schema": _ref(f"{kind}_reply")}}
    if kind != "embeddings":
        content["text/event-stream"] = {"schema": {"description": "With `stream: true`: OpenAI's server-sent events."}}
    named = ("x-request-id", *_RATES)
    return {"200": {"description": "The reply.", "headers": {n: _header(n) for n in named}, "content": content}}


def _pages(config: GuardConfig) -> dict[str, Any]:
    name = {
        "name": "model",
        "in": "path",
        "required": True,
        "schema": {"type": "string", "enum": list(config.models)},
    }
    metrics = _get("getMetrics", "Metrics, as Prometheus reads them.", None, 401, 403)
    metrics["responses"]["200"]["content"] = {"text/plain": {"schema": _TEXT}}
    if config.metrics_open:
        metrics |= {"security": []}
    ready = _get("ready", "Whether to send requests here.", _ref("readiness"), open_to_all=True)
    ready["responses"]["503"] = ready["responses"]["200"] | {"description": "Send them elsewhere."}
    return {
        "/v1/models": {"get": _get("listModels", "The models this key may use.", _ref("models"), 401, 403)},
        "/v1/models/{model}": {
            "get": _get("getModel", "One model.", _ref("model"), 401, 403, 404) | {"parameters": [name]}
        },
        "/v1/usage": {"get": _get("getUsage", "What the account spent and has left.", _ref("usage"), 401, 403, 503)},
        "/openapi.json": {"get": _get("describe", "This document.", {"type": "object"}, 401, 403)},
        "/metrics": {"get": metrics},
        "/healthz": {"get": _get("alive", "Whether the process runs.", _ref("health"), open_to_all=True)},
        "/readyz": {"get": ready},
    }


def _get(
    operation: str, summary: str, schema: Schema | None, *errors: int, open_to_all: bool = False
) -> dict[str, Any]:
    done: dict[str, Any] = {"description": "Done."}
    if schema is not None:
        done["content"] = {"application/json": {"schema": schema}}
    answers = {"200": done} | {str(status): _error(status) for status in errors}
    made: dict[str, Any] = {"operationId": operation, "summary": summary, "responses": answers}
    return made | {"security": []} if open_to_all else made


def _error(status: int) -> dict[str, Any]:
    made: dict[str, Any] = {
        "description": _ERRORS[status],
        "content": {"application/json": {"schema": _ref("error")}},
    }
    if status in (402, 429):
        made["headers"] = {name: _header(name) for name in (*_RATES, "retry-after", "retry-after-ms", "x-should-retry")}
    if status == 401:
        made["headers"] = {"www-authenticate": _header("www-authenticate")}
    return made


_RATES = tuple(f"x-ratelimit-{what}-{of}" for what in ("limit", "remaining", "reset") for of in ("requests", "tokens"))


def _headers() -> dict[str, Any]:
    """None of them is always there: a limit that does not exist has no header."""
    rates = {name: {"schema": _TEXT, "description": "Of the tightest limit."} for name in _RATES}
    return rates | {
        "x-request-id": {"schema": _ID},
        "retry-after": {"schema": {"type": "integer", "minimum": 0}, "description": "Seconds."},
        "retry-after-ms": {"schema": {"type": "integer", "minimum": 0}, "description": "The same in milliseconds."},
        "x-should-retry": {"schema": {"type": "string", "enum": ["false"]}},
        "www-authenticate": {"schema": {"type": "string", "enum": ["Bearer"]}},
    }


def _replies() -> dict[str, Schema]:
    """Replies come from the model's server: what every one has is said, what it adds is let through."""
    windows = ("today", "month", "lifetime")
    spent = _open(requests=_COUNT, input_tokens=_COUNT, output_tokens=_COUNT, usd={"type": "number", "minimum": 0})
    limit = _open(rule=_TEXT, of=_TEXT, limit={"type": "number"})
    card = _open(id=_TEXT, object={"const": "model"}, created=_COUNT, owned_by=_TEXT)
    error = _open(message=_TEXT, type=_TEXT, param={"type": ["string", "null"]}, code={"type": ["string", "null"]})
    choices = {"type": "array", "items": {"type": "object"}}
    return {
        "chat_reply": _open(object={"const": "chat.completion"}, choices=choices),
        "completions_reply": _open(object={"const": "text_completion"}, choices=choices),
        "responses_reply": _open(object={"const": "response"}, output={"type": "array", "items": {"type": "object"}}),
        "embeddings_reply": _open(object={"const": "list"}, data={"type": "array", "items": {"type": "object"}}),
        "error": _open(error=error),
        "model": card,
        "models": _open(object={"const": "list"}, data={"type": "array", "items": _ref("model")}),
        "health": _open(status={"const": "ok"}),
        "readiness": _open(status=_TEXT),
        "spent": spent,
        "usage": _open(
            object={"const": "usage"},
            account=_TEXT,
            name=_TEXT,
            tier=_TEXT,
            at=_TEXT,
            **dict.fromkeys(windows, _ref("spent")),
            limits={"type": "array", "items": limit},
            models={"type": "array", "items": _open(model=_TEXT, **dict.fromkeys(windows, _ref("spent")))},
            days={"type": "array", "items": {"allOf": [_open(date=_TEXT), _ref("spent")]}},
        ),
    }


def _open(**properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _header(name: str) -> Schema:
    return {"$ref": f"#/components/headers/{name}"}
