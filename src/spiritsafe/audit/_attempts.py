"""attempts.jsonl: every start of a run, one a line, a chain like the transcript.

`{"attempt": 1, "ts": …, "suspect": {…}, "spiritsafe": version}`
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import spiritsafe
from spiritsafe.audit._transcript import Chain
from spiritsafe.errors import Refused

__all__ = ["Attempts"]


class Attempts:
    """The starts of one run."""

    def __init__(self, path: Path, plan_hash: str) -> None:
        """Open it.

        Raises:
            BadInput: the file is damaged, or belongs to another plan.
        """
        self._path = path
        self._chain, self._entries = Chain.open(path, plan_hash)
        self.number = len(self._entries)

    def begin(self, suspect: Mapping[str, Any]) -> None:
        """One more attempt. suspect: what makes it this one and no other.

        Raises:
            Refused: an earlier attempt asked another suspect.
        """
        for entry in self._entries:
            if entry.get("suspect") != dict(suspect):
                raise Refused(
                    f"{self._path.parent}: begun with another suspect ({_named(entry.get('suspect'))}, now "
                    f"{_named(suspect)}); give that one, or freeze a plan of its own for this one"
                )
        self.number += 1
        entry = {"attempt": self.number, "ts": time.time(), "suspect": dict(suspect)}
        self._chain.append([entry | {"spiritsafe": spiritsafe.__version__}])
        self._entries.append(entry)

    def close(self) -> None:
        self._chain.close()


def _named(suspect: object) -> str:
    said = suspect if isinstance(suspect, Mapping) else {}
    return " ".join(str(said[key])[:40] for key in ("address", "weights", "model", "revision") if said.get(key))
