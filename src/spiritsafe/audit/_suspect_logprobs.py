"""Log-probabilities of given text from an API: two ways that servers have, and a trial that shows whether one works.

chat: `/chat/completions` with `prompt_logprobs` and the completion as an unfinished last message (vLLM): the server's
    own template and tokenizer.
echo: `/completions` with `echo` and `logprobs` (vLLM, Together, Fireworks, …): the prompt is rendered here.

Either way the server tells a log-probability for every token of a text. The prompt is asked for alone and with each
completion; what comes after the tokens both have in common is the completion's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import orjson

from spiritsafe.audit._suspect_calls import Answered, Calls, all_of, identity_of
from spiritsafe.records import Message, Prompt, Usage
from spiritsafe.teachers import ApiTeacher, TeacherError

__all__ = ["PromptLogprobs", "Way"]

Way = Literal["chat", "echo"]
Row = tuple[str, float | None]

_ASK = Prompt((Message("user", "Say the days of the week."),))
_LIKELY, _UNLIKELY = "Monday, Tuesday, Wednesday, Thursday", "Thursday qx Monday, zv Wednesday jj Tuesday"
_PER_MESSAGE, _TEMPLATE = 16, 256  # tokens that a chat template may add


class PromptLogprobs:
    """Sums of log-probabilities by one of the two ways. render: a prompt as text, for `echo`."""

    def __init__(
        self, teacher: ApiTeacher, model: str, calls: Calls, way: Way, render: Callable[[Prompt], str]
    ) -> None:
        self._teacher, self._model, self._calls = teacher, model, calls
        self.way = way
        self._render = render

    async def works(self) -> bool:
        """True if it gives finite log-probabilities that tell a likely text from an unlikely one."""
        try:
            (likely, n), (unlikely, m) = await self.of(_ASK, (_LIKELY, _UNLIKELY))
        except TeacherError as error:
            if error.kind in ("bad_request", "malformed", "server"):
                return False
            raise
        return n > 0 and m > 0 and likely / n > unlikely / m

    async def of(self, prompt: Prompt, completions: Sequence[str]) -> list[tuple[float, int]]:
        """(sum of natural-log probabilities, tokens) of each completion; (0.0, 0) of an empty one.

        Raises:
            TeacherError: the API gives none.
        """
        texts = [text for text in completions if text]
        asked, *whole = await all_of([self._rows(prompt, text) for text in ("", *texts)])
        sums = iter([_rest(asked, rows) for rows in whole])
        return [next(sums) if text else (0.0, 0) for text in completions]

    async def _rows(self, prompt: Prompt, completion: str) -> list[Row]:
        """Each token of prompt and completion with its log-probability; the first has none."""
        try:
            return await (self._chat if self.way == "chat" else self._echo)(prompt, completion)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError):
            raise _nothing() from None

    async def _chat(self, prompt: Prompt, completion: str) -> list[Row]:
        messages = [{"role": m.role, "content": m.content} for m in prompt.messages]
        body: dict[str, Any] = {"model": self._model, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0}
        if completion:
            messages.append({"role": "assistant", "content": completion})
            body |= {"add_generation_prompt": False, "continue_final_message": True}
        size = sum(_bytes(m["content"]) + _PER_MESSAGE for m in messages) + _TEMPLATE
        data = await self._ask("chat/completions", body | {"messages": messages}, size)
        rows: list[Row] = []
        for entry in data["prompt_logprobs"]:
            ((token, said),) = entry.items() if entry else (("", {"logprob": None}),)
            rows.append((token, said["logprob"]))
        return rows

    async def _echo(self, prompt: Prompt, completion: str) -> list[Row]:
        text = self._render(prompt) + completion
        body = {"model": self._model, "prompt": text, "max_tokens": 1, "temperature": 0, "echo": True, "logprobs": 1}
        data = await self._ask("completions", body, _bytes(text) + _PER_MESSAGE)
        said = data["choices"][0]["logprobs"]
        rows = list(zip(said["tokens"], said["token_logprobs"], strict=True))
        return rows[: data["usage"]["prompt_tokens"]]  # without the token that it had to make

    async def _ask(self, path: str, body: dict[str, Any], tokens_in: int) -> Any:
        async def send() -> Answered:
            raw = await self._teacher.post(path, body)
            try:
                data = orjson.loads(raw)
                used = data.get("usage") or {}
                known = isinstance(used.get("prompt_tokens"), int)
                usage = Usage(used["prompt_tokens"], int(used.get("completion_tokens") or 0)) if known else None
            except (ValueError, TypeError, AttributeError):
                raise _nothing(billed=True) from None
            return Answered(data, usage, *identity_of(raw))

        return await self._calls.make(tokens_in, 1, send)


def _rest(asked: Sequence[Row], whole: Sequence[Row]) -> tuple[float, int]:
    """What `whole` has after the tokens it shares with `asked`."""
    same = 0
    while same < min(len(asked), len(whole)) and asked[same][0] == whole[same][0]:
        same += 1
    values = [value for _, value in whole[same:]]
    # some APIs write "too small to say" as -9999
    numbers = [float(v) for v in values if isinstance(v, int | float) and -9999 < v <= 1e-3]
    if not numbers or len(numbers) < len(values) or not all(map(math.isfinite, numbers)):
        raise _nothing()
    return math.fsum(numbers), len(numbers)


def _nothing(*, billed: bool = False) -> TeacherError:
    return TeacherError("malformed", "the suspect gives no log-probabilities of a text it is given", billed=billed)


def _bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))
