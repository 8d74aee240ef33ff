"""Is the API that answers still the one that answered? A few questions at temperature 0, at start, middle and end.

Not a test: many servers do not repeat themselves at temperature 0, and a model can change without changing these
replies. What differs is noted. The test `equality` is for more than a note.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from spiritsafe.audit._transcript import Chain
from spiritsafe.audit._types import Suspect
from spiritsafe.records import Message, Prompt, Sampling
from spiritsafe.teachers import TeacherError

__all__ = ["Probes", "When"]

When = Literal["start", "middle", "end"]

_PROMPTS = (
    "Write one sentence about the sea.",
    "List five tools that are found in most kitchens.",
    "Explain in one sentence why leaves are green.",
)
_GREEDY = Sampling(max_tokens=24, temperature=0.0)


class Probes:
    """probes.jsonl, a chain like the transcript. The first time each question is put twice, to see if it repeats."""

    def __init__(self, path: Path, plan_hash: str) -> None:
        """Open it.

        Raises:
            BadInput: the file is damaged, or belongs to another plan.
        """
        self._chain, self.entries = Chain.open(path, plan_hash)

    def close(self) -> None:
        self._chain.close()

    @property
    def ended(self) -> bool:
        """True if the last word was one at the end of a run."""
        return bool(self.entries) and self.entries[-1]["when"] == "end"

    async def ask(self, suspect: Suspect, attempt: int, when: When) -> TeacherError | None:
        """Ask and write down. A question that gets no answer is written down as that, and why is returned.

        Raises:
            OverBudget: there is no room for them.
        """
        times = 1 if any(self._replies(entry) for entry in self.entries) else 2
        entry: dict[str, Any] = {"ts": time.time(), "attempt": attempt, "when": when, "replies": None, "error": None}
        replies: list[list[str]] = []
        failure: TeacherError | None = None
        try:
            for question in _PROMPTS:
                prompt = Prompt((Message("user", question),))
                replies.append([(await suspect.complete(prompt, _GREEDY))[0].text for _ in range(times)])
            entry["replies"] = replies
        except TeacherError as error:
            failure, entry["error"] = error, f"{error.kind}: {error}"
        self._chain.append([entry])
        self.entries.append(entry)
        return failure

    def changes(self) -> list[str]:
        """What a reader must know; nothing if every reply stayed the same."""
        answered = [entry for entry in self.entries if self._replies(entry)]
        if not answered:
            return []
        first = self._replies(answered[0])
        steady = [i for i, said in enumerate(first) if len(set(said)) == 1]
        if not steady:
            return ["at temperature 0 its replies do not repeat, so the probes cannot show whether it changed"]
        notes = []
        for entry in answered[1:]:
            other = sum(self._replies(entry)[i][0] != first[i][0] for i in steady)
            if other:
                where = f"at the {entry['when']} of attempt {entry['attempt']}"
                notes.append(
                    f"{where} {other} of {len(steady)} probe replies differ from the first: it may have changed"
                )
        return notes

    @staticmethod
    def _replies(entry: Mapping[str, Any]) -> list[list[str]]:
        replies: list[list[str]] = entry["replies"] or []
        return replies
