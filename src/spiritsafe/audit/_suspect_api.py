"""A suspect behind an address: asked as anybody could ask it, within a budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from spiritsafe.audit._suspect_calls import Answered, Calls, all_of, identity_of
from spiritsafe.audit._suspect_logprobs import PromptLogprobs, Way
from spiritsafe.collect._jobs import tokens_bound
from spiritsafe.records import Prompt, Reply, Request, Sampling, TeacherInfo
from spiritsafe.teachers import ApiTeacher, TeacherConfig, TeacherError

if TYPE_CHECKING:
    from spiritsafe.audit._suspect_spend import Purse
    from spiritsafe.audit._types import Access

__all__ = ["ApiSuspect", "find_way", "plain", "templated"]

_CONCURRENCY = 32


class ApiSuspect:
    """See `Suspect`.

    way: how it gives log-probabilities of given text; None if it does not.

    render: a prompt as the text the model sees, where the API takes text (`way` echo).
    """

    batch = 1
    concurrency = _CONCURRENCY

    def __init__(
        self,
        config: TeacherConfig,
        purse: Purse,
        *,
        way: Way | None = None,
        render: Callable[[Prompt], str] | None = None,
        backoff_s: float = 0.5,
    ) -> None:
        self._teacher = ApiTeacher(config)
        self._calls = Calls(purse, config.timeout_s, backoff_s)
        self.access: Access = "text" if way is None else "logprobs"
        self.info: TeacherInfo = self._teacher.info
        self._logprobs = None
        if way is not None:
            self._logprobs = PromptLogprobs(self._teacher, config.model_id, self._calls, way, render or plain)

    async def read(self, ids_B: Sequence[Sequence[int]]) -> list[list[int]]:
        """An API cannot be read.

        Raises:
            TeacherError: always.
        """
        raise TeacherError("bad_request", "an API does not say what it would have said: reading needs the weights")

    async def logprob(
        self, prompt_B: Sequence[Prompt], completion_B: Sequence[Sequence[str]]
    ) -> list[list[tuple[float, int]]]:
        """See `Suspect.logprob`.

        Raises:
            TeacherError: the API gives no log-probabilities of given text, or no answer.
            OverBudget: there is no room for another request.
        """
        if self._logprobs is None:
            raise TeacherError("bad_request", "this API gives no log-probabilities of a text it is given")
        pairs = zip(prompt_B, completion_B, strict=True)
        return await all_of([self._logprobs.of(prompt, completions) for prompt, completions in pairs])

    async def works(self) -> bool:
        """True if `logprob` gives what it should."""
        return self._logprobs is not None and await self._logprobs.works()

    async def complete(self, prompt: Prompt, sampling: Sampling, n: int = 1) -> tuple[Reply, ...]:
        """See `Suspect.complete`. An API that gives fewer replies than asked for is asked again for the rest. Refusals
        and empty replies are replies.

        Raises:
            TeacherError: no usable answer.
            OverBudget: there is no room for another request.
        """
        replies: tuple[Reply, ...] = ()
        while len(replies) < n:
            # a seed of its own for each further request, or the same replies would come back
            seed = None if sampling.seed is None else sampling.seed + len(replies)
            replies += await self._ask(Request(prompt, replace(sampling, seed=seed), n - len(replies)))
        return replies[:n]

    async def aclose(self) -> None:
        await self._teacher.aclose()

    async def _ask(self, request: Request) -> tuple[Reply, ...]:
        async def send() -> Answered:
            answer = await self._teacher.complete(request)
            usage = answer.usage if answer.usage_reported else None
            return Answered(answer.replies, usage, *identity_of(answer.raw), _flaw(answer.replies))

        replies: tuple[Reply, ...] = await self._calls.make(*tokens_bound(request), send)
        return replies


async def find_way(config: TeacherConfig, purse: Purse, render: Callable[[Prompt], str]) -> Way | None:
    """How an API gives log-probabilities of given text, found by a trial of six small requests at most.

    Raises:
        TeacherError: it cannot be reached, or refuses the key.
        OverBudget: there is no room for the trial.
    """
    ways: tuple[Way, ...] = ("chat", "echo")
    for way in ways:
        suspect = ApiSuspect(config, purse, way=way, render=render)
        try:
            if await suspect.works():
                return way
        finally:
            await suspect.aclose()
    return None


def plain(prompt: Prompt) -> str:
    """A prompt as text for a model without a chat template, as `tokens.prompt_ids` has it."""
    return "\n".join(m.content for m in prompt.messages) + "\n"


def templated(base: str) -> Callable[[Prompt], str]:
    """Prompts as text by the chat template of `base`: a path or hub id.

    Raises:
        BadInput: there is no usable tokenizer.
    """
    from spiritsafe.teachers import load_tokenizer

    tokenizer = load_tokenizer(base)

    def render(prompt: Prompt) -> str:
        if not tokenizer.chat_template:
            return plain(prompt)
        messages = [{"role": m.role, "content": m.content} for m in prompt.messages]
        try:
            return str(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
        except Exception as error:  # templates are programs: they raise what they like
            raise TeacherError("bad_request", f"{base}: its chat template refuses these messages") from error

    return render


def _flaw(replies: Sequence[Reply]) -> str | None:
    """What is to be told of an answer that is nevertheless one."""
    if any(reply.finish_reason == "content_filter" for reply in replies):
        return "content_filter"
    if all(not reply.text.strip() for reply in replies):
        return "empty"
    return None
