"""OpenAI's wire format, once: what goes over the wire, read and written in one place."""

from spiritsafe.wire._replies import MalformedReply, completion_bytes, parse_completion, request_body, snippet

__all__ = ["MalformedReply", "completion_bytes", "parse_completion", "request_body", "snippet"]
