"""Fields that would slip past the meter or the output policy: refused, whoever allows them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["REFUSED"]

_UNSEEN = "it brings in context that this gateway does not see and cannot count"
_UPSTREAM_TOOL = "it runs something upstream that is billed apart"
_TOKEN_IDS = "token ids would leave outside the output policy"  # noqa: S105
_OPERATORS = "it is for the operator to set"
_UNCOUNTED = "its cost cannot be bounded"
_LOGPROBS = "log-probabilities of that kind leave outside the output policy"
_CACHE = "cache writes may be billed apart"

# Why a field is refused whatever allow_fields says, and the values that ask for nothing.
REFUSED: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "access_programs": ((), _OPERATORS),
    "allowed_callers": ((["direct"],), _UPSTREAM_TOOL),
    "async": ((False,), _UNCOUNTED),
    "audio": ((), "sound cannot be counted"),
    "background": ((False,), "a reply that is fetched later cannot be metered"),
    "background_options": ((), "a reply that is fetched later cannot be metered"),
    "best_of": ((1,), "replies that are drawn and thrown away are billed too; use n"),
    "bootstrap_host": ((), _OPERATORS),
    "bootstrap_port": ((), _OPERATORS),
    "bootstrap_room": ((), _OPERATORS),
    "chat_template": ((), "a template of the client's own can multiply the prompt"),
    "context_management": (([],), _UNCOUNTED),
    "conversation": ((), _UNSEEN),
    "custom_logit_processor": ((), "it changes probabilities outside the output policy"),
    "custom_params": ((), _OPERATORS),
    "data_parallel_rank": ((), _OPERATORS),
    "defer_loading": ((False,), _UNCOUNTED),
    "ec_transfer_params": ((), _OPERATORS),
    "enable_response_messages": ((False,), _TOKEN_IDS),
    "extra_body": (({},), "it is an option of the client library, which unpacks it; over HTTP it means nothing"),
    "image": ((), _UNCOUNTED),
    "input_embeds": ((), _UNSEEN),
    "input_ids": ((), "it replaces the messages that are counted"),
    "kv_transfer_params": ((), _OPERATORS),
    "logprob_token_ids": (([],), _LOGPROBS),
    "lora_path": ((), "it chooses another model"),
    "moderation": ((), _UPSTREAM_TOOL),
    "mm_processor_kwargs": (({},), _UNCOUNTED),
    "media_io_kwargs": (({},), _UNCOUNTED),
    "previous_input_messages": (([],), _UNSEEN),
    "previous_response": ((), _UNSEEN),
    "previous_response_id": ((), _UNSEEN),
    "priority": ((0,), _OPERATORS),
    "prompt": ((), _UNSEEN),
    "prompt_cache_breakpoint": ((), _CACHE),
    "prompt_cache_options": (({},), _CACHE),
    "prompt_embeds": ((), _UNSEEN),
    "prompt_logprobs": ((), _LOGPROBS),
    "request_id": ((), "this gateway names requests"),
    "return_hidden_states": ((False,), "hidden states give the model away"),
    "return_meta_info": ((False,), "the engine's own data stays with the operator"),
    "return_prompt_text": ((False,), "the engine's own data stays with the operator"),
    "return_prompt_token_ids": ((False,), _TOKEN_IDS),
    "return_routed_experts": ((False,), "routing gives the model away"),
    "return_token_ids": ((False,), _TOKEN_IDS),
    "return_tokens_as_token_ids": ((False,), _TOKEN_IDS),
    "rid": ((), "this gateway names requests"),
    "routed_dp_rank": ((), _OPERATORS),
    "session_id": ((), _UNSEEN),
    "session_params": ((), _UNSEEN),
    "use_beam_search": ((False,), "beams that are thrown away are billed too"),
    "vllm_xargs": (({},), "it reaches the engine's extensions, the watermark among them"),
    "watermark_greedy": ((), _OPERATORS),
    "watermark_key_id": ((), "the key belongs to the account, not to the request"),
    "watermarking": ((), _OPERATORS),
    "web_search_options": ((), _UPSTREAM_TOOL),
}
