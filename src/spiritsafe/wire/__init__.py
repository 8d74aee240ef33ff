"""OpenAI's wire format, once: what goes over the wire, read and written in one place."""

from spiritsafe.wire._answers import answer, answer_choice, chunk, chunk_choice, logprob_entries, usage_fields
from spiritsafe.wire._chat import ChatRequest, parse_chat_request
from spiritsafe.wire._errors import ApiError
from spiritsafe.wire._replies import MalformedReply, completion_bytes, parse_completion, request_body, snippet
from spiritsafe.wire._sse import SSE_DONE, SseEvent, SseParser, sse_event

__all__ = [
    "SSE_DONE",
    "ApiError",
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
    "parse_chat_request",
    "parse_completion",
    "request_body",
    "snippet",
    "sse_event",
    "usage_fields",
]
