"""Marks inside llama-cpp-python: a logits processor for one reply of `llama_cpp.Llama`.

Checked against llama-cpp-python 0.3.36. It runs custom processors first in its sampler chain, on raw logits and with
all token ids so far, prompt included; penalties, top-k … and temperature come after, and pass through a choice of one
token. Sampling settings are therefore this processor's own arguments.

Three things go wrong silently or worse there, hence `arguments`, `stop` and `finish`: exceptions of a processor are
printed and ignored (it is called out of C); a request with `logit_bias` runs without any processor (the list is
replaced by what `list.extend` returns, None); a grammar that does not allow the token drawn aborts the whole process.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from spiritsafe.errors import Refused, SpiritsafeError
from spiritsafe.keys import KeyId
from spiritsafe.watermark._marker import Markers, choose_marked

__all__ = ["LlamaLogitsProcessor"]

F32 = NDArray[np.float32]
I32 = NDArray[np.intc]


class LlamaLogitsProcessor:
    """Marks one reply; make a new one for each.

        marks = LlamaLogitsProcessor(markers, temperature=0.8, top_p=0.95)
        reply = llama.create_completion(prompt, **marks.arguments)

        reply = llama.create_chat_completion(messages, **marks.chat_arguments)
        marks.finish(reply["usage"]["completion_tokens"])  # it takes no stopping criterion that could check

    key_id: default: the current epoch and the house slot.
    temperature, top_p, top_k: how to sample; what the call to llama-cpp-python says about sampling has no effect.
        0 temperature is greedy, see `Markers`.
    seed: decides what is not marked; fresh by default.

    Raises:
        Refused: a key id that marks no more, or a greedy request where those are refused; while generating, a reply
            that did not go on with the token chosen (a draft model, a processor after this one, a second reply).
        BadInput: a key id of another key set.
    """

    def __init__(
        self,
        source: Markers,
        key_id: KeyId | None = None,
        *,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int | None = None,
    ) -> None:
        asked = source.key_id(None if key_id is None else str(key_id))
        self.marker = source.marker(
            asked, np.random.default_rng(seed), temperature=temperature, top_p=top_p, top_k=top_k
        )
        self._length = -1
        self._chosen = -1
        self._drawn = 0
        self._failure: Exception | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """For `create_completion`. What cannot go with a mark is in it too, so that giving it twice is an error."""
        return {"logits_processor": [self], "stopping_criteria": self.stop, "logit_bias": None, "grammar": None}

    @property
    def chat_arguments(self) -> dict[str, Any]:
        """For `create_chat_completion`; a `response_format` and a forced `tool_choice` are grammars. Then `finish`."""
        refused = {"logit_bias": None, "grammar": None, "response_format": None, "tool_choice": None}
        return {"logits_processor": [self], **refused}

    def __call__(self, input_ids: I32, scores: F32) -> F32:
        """One step: ids (T,) so far and raw logits (V,) → logits that are 0 for the token drawn, -inf elsewhere."""
        try:
            self._follow(input_ids)
            tail = input_ids[-self.marker.scheme.context_width :].tolist()
            logits_1V = torch.from_numpy(np.ascontiguousarray(scores, np.float32))[None]
            self._chosen = int(choose_marked([self.marker], [tail], logits_1V)[0])
        except Exception as error:
            self._failure = self._failure or error
            raise
        self._length = len(input_ids)
        self._drawn += 1
        only = np.full(len(scores), -np.inf, np.float32)
        only[self._chosen] = 0.0
        return only

    def stop(self, input_ids: I32, logits: F32) -> bool:
        """A stopping criterion that never stops.

        Raises:
            Refused: the token just sampled was not drawn here.
        """
        self._check()
        if len(input_ids) != self._length:
            raise Refused(
                "llama-cpp-python sampled a token without this processor; it drops all processors of a request with"
                " logit_bias: leave that out and put a processor of your own before this one"
            )
        return False

    def finish(self, completion_tokens: int) -> None:
        """Check a reply of so many tokens, where `stop` could not be given.

        Raises:
            Refused: not all of them were drawn here.
        """
        self._check()
        if self._drawn < completion_tokens:
            raise Refused(
                f"{completion_tokens - self._drawn} of {completion_tokens} tokens were sampled without this processor;"
                " discard the reply. llama-cpp-python drops all processors of a request with logit_bias"
            )

    def _check(self) -> None:
        if isinstance(self._failure, SpiritsafeError):
            raise self._failure
        if self._failure is not None:
            raise Refused(f"a token could not be marked; discard the reply: {self._failure}") from self._failure

    def _follow(self, input_ids: I32) -> None:
        """Check that the reply went on with the token chosen."""
        if self._failure is not None:
            raise Refused("this reply is not marked throughout; discard it and make a new processor")
        if self._length < 0:
            return
        if len(input_ids) != self._length + 1 or int(input_ids[-1]) != self._chosen:
            raise Refused(
                "the reply did not go on with the token chosen: it cannot be marked with a draft model or with"
                " a processor after this one; make a new processor for each reply"
            )
