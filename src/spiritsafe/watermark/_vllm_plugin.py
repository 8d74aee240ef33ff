"""Marks inside vLLM: one logits processor for both of vLLM 0.33's model runners (group vllm.logits_processors).

Without SPIRITSAFE_KEYS in the environment it does nothing. With it every request is marked, under the key id in
`SamplingParams.extra_args["watermark_key_id"]` (`vllm_xargs` of the OpenAI server) or the house slot's. The key file is
read once, when the server starts; key ids are resolved here, so no request ever carries a key.

vLLM loads every class of the group for whichever runner it uses, and refuses to start where one is not of that runner's
kind. Hence one class of both kinds.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.v1.sample.logits_processor import LogitsProcessor as OlderProcessor
from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as NewerProcessor

from spiritsafe.watermark._vllm_rows import Slots, SwappedRows, check_host, check_request, markers

__all__ = ["WatermarkProcessor"]


class WatermarkProcessor(OlderProcessor, NewerProcessor):  # type: ignore[misc]  # vLLM is not installed where we check
    """Draws the next token itself, marked, and leaves only that token.

    The older runner (V1) makes it with (config, device, is_pin_memory), the newer one (V2) with (config, states).

    Raises:
        BadInput: the key file cannot be used, or is bound to another tokenizer.
        Refused: speculative decoding, vLLM's own watermark, or batch-sharded sampling is on.
    """

    def __init__(self, vllm_config: Any, place: Any, is_pin_memory: bool | None = None) -> None:
        source = markers()
        self._rows: SwappedRows | None = None
        self._slots: Slots | None = None
        if source is None:
            return
        check_host(vllm_config, source)
        if is_pin_memory is None:
            self._slots = Slots(source, vllm_config, place)
        else:
            self._rows = SwappedRows(source, vllm_config)

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Raises ValueError for a request that cannot be marked as it asks."""
        check_request(sampling_params)

    def is_argmax_invariant(self) -> bool:
        """It draws: greedy requests get their token here too."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """V1: rows came, went or moved."""
        if self._rows is not None:
            self._rows.update(batch_update)

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        """V2: a request took a slot."""
        if self._slots is None:
            return False
        self._slots.add(req_idx, sampling_params)
        return True

    def apply(self, logits: torch.Tensor, ctx: Any = None) -> torch.Tensor:
        """Logits (B, V), changed in place: 0 for the token drawn in a marked row, -inf elsewhere."""
        if self._slots is not None:
            return self._slots.apply(logits, ctx)
        return logits if self._rows is None else self._rows.apply(logits)
