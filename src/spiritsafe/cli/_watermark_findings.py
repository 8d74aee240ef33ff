"""What `watermark detect` found: rows for machines, a table and careful sentences for people."""

from __future__ import annotations

import bisect
import json
import math
from array import array
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spiritsafe.cli._output import print_table
from spiritsafe.errors import BadInput
from spiritsafe.runs import atomic_file

if TYPE_CHECKING:
    from spiritsafe.watermark._corpus import Row

__all__ = ["Findings", "described", "row_file"]

Fields = dict[str, Any]
_SHOWN = 50  # documents: longer tables tell a person nothing
_NAMED = 5  # documents that get a sentence of their own


class Findings:
    """Collects rows. Keeps a number a document, and of the rows themselves only what will be printed.

    all_rows: keep every row.
    """

    def __init__(self, level: float, all_rows: bool) -> None:
        self.level, self._all_rows = level, all_rows
        self.rows: list[Fields] = []
        self.read = self.tokens = 0
        self._log10_ps = array("d")
        self._best: list[tuple[float, int, Fields]] = []  # the most significant, in order

    def add(self, row: Fields) -> None:
        """One more document."""
        log10_p = row["log10_p"]
        self._log10_ps.append(log10_p)
        if self._all_rows:
            self.rows.append(row)
        if len(self._best) < _SHOWN or log10_p < self._best[-1][0]:
            bisect.insort(self._best, (log10_p, len(self._log10_ps), row))
            del self._best[_SHOWN:]

    def count(self, tokens: int) -> None:
        """A document was read, whether or not it has a row."""
        self.read += 1
        self.tokens += tokens

    def marked(self) -> int:
        """How many documents reach the level, corrected for all of them (Holm)."""
        return int((self._corrected() <= math.log10(self.level)).sum())

    def _corrected(self) -> Any:
        import numpy as np

        from spiritsafe import pvalue

        return np.asarray(pvalue.holm(np.array(self._log10_ps)))

    def say(self, pooled: Fields | None) -> None:
        """Print for people."""
        shown = [row for _, _, row in sorted(self._best, key=lambda entry: entry[1])]
        if shown:
            print_table(
                ["document", "tokens", "scored", "log10 p", "rank p", "epoch", "spans"], [_cells(row) for row in shown]
            )
        if shown and len(shown) < self.read:
            print(f"… the {len(shown)} most significant of {self.read}: --json or --out FILE.jsonl has them all")
        for sentence in self._sentences():
            print(sentence)
        if pooled is not None and (self.read > 1 or not shown):
            rank = "" if pooled["rank_p"] is None else f", rank p {pooled['rank_p']:.3g}"
            facts = f"{pooled['n_scored']} scored, log10 p {pooled['log10_p']:.1f}{rank}"
            where = f"all {self.read} as one corpus ({facts})"
            print(_finding(where, pooled, pooled["log10_p"], self.level))

    def _sentences(self) -> Iterator[str]:
        if not self._best:
            return
        corrected = sorted(self._corrected())
        marked = self.marked()
        for (_, _, row), log10_p in zip(self._best[: max(1, min(marked, _NAMED))], corrected, strict=False):
            after = f" (corrected for {self.read} documents)" if self.read > 1 else ""
            yield _finding(row["id"], row, float(log10_p), self.level, after)
        if marked > _NAMED:
            yield f"… {marked} of {self.read} documents reach {self.level:g}, corrected for all of them."


def described(name: str | None, row: Row) -> Fields:
    """A row as it is printed; no id for the corpus."""
    fields = ({} if name is None else {"id": name}) | asdict(row)
    if name is None:
        del fields["spans"]
        return fields
    fields["spans"] = [[span.start, span.end] for span in row.spans]
    fields["span_log10_p"] = [span.log10_p for span in row.spans]
    return fields


@contextmanager
def row_file(out: Path | None) -> Iterator[Callable[[Fields], object] | None]:
    """Writes rows to a file that appears when all are written.

    Raises:
        BadInput: it cannot be written there.
    """
    if out is None:
        yield None
        return
    with ExitStack() as stack:
        try:
            file = stack.enter_context(atomic_file(out))
        except OSError as error:
            raise BadInput(f"--out {out}: cannot be written ({error.strerror}); choose another place") from None
        yield lambda row: file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")


def _cells(row: Fields) -> list[str]:
    return [
        row["id"],
        str(row["n_tokens"]),
        str(row["n_scored"]),
        f"{row['log10_p']:.1f}",
        "–" if row["rank_p"] is None else f"{row['rank_p']:.3g}",
        row["epoch"] or "–",
        " ".join(f"{start}-{end}" for start, end in row["spans"]),
    ]


def _finding(where: str, row: Fields, log10_p: float, level: float, after: str = "") -> str:
    if log10_p <= math.log10(level):
        return (
            f"{where}: marked. A text that does not depend on this key reaches such a score with probability at most"
            f" 10^{log10_p:.1f}{after}."
        )
    if not row["reachable"]:
        return (
            f"{where}: too short. No text with {row['n_scored']} scored tokens can reach {level:g}; it takes at least"
            f" {row['needs_scored']} scored tokens, in practice more."
        )
    return f"{where}: no signal at {level:g}{after}. That is inconclusive: it does not show that the text is unmarked."
