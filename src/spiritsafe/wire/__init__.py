"""OpenAI's wire format, once: what goes over the wire, read and written in one place."""

from spiritsafe.wire._answers import answer, answer_choice, chunk, chunk_choice, logprob_entries, usage_fields
from spiritsafe.wire._ask import parse_ask
from spiritsafe.wire._ask_types import Ask, AskKind, text_size
from spiritsafe.wire._chat import ChatRequest, parse_chat_request
from spiritsafe.wire._errors import ApiError
from spiritsafe.wire._refused import REFUSED
from spiritsafe.wire._replies import MalformedReply, completion_bytes, parse_completion, request_body, snippet
from spiritsafe.wire._sse import SSE_DONE, SseEvent, SseParser, sse_event

__all__ = [
    "REFUSED",
    "SSE_DONE",
    "ApiError",
    "Ask",
    "AskKind",
    "ChatRequest",
    "MalformedReply",
    "SseEvent",
    "SseParser",
    "answer",
    "answer_choice",
    "chunk",
    "chunk_choice",
    "completion_bytes",
    "logprob_entries",
    "parse_ask",
    "parse_chat_request",
    "parse_completion",
    "request_body",
    "snippet",
    "sse_event",
    "text_size",
    "usage_fields",
]
