"""What the tests of lineage, equality and similarity share: JSONL, records as a transcript gives them back, size."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from spiritsafe.audit import _types as types


def write_replies(path: Path, rows: Sequence[tuple[str, str]]) -> Path:
    path.write_text("".join(json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in rows), "utf-8")
    return path


def record(item: types.Item, got: Mapping[str, Any] | None, test: str, error: str | None = None) -> types.Record:
    """A record that has been through JSON."""
    asked, back = json.loads(json.dumps([dict(item.asked), got]))
    return types.Record(test=test, item=item.id, ts=1.0, attempt=1, asked=asked, got=back, error=error)


def texts(test: types.Test, said: Callable[[types.Item], str | None]) -> list[types.Record]:
    """The transcript of a suspect that says `said(item)`; None is a failure."""
    out = []
    for item in test.items():
        text = said(item)
        got = None if text is None else {"text": text}
        out.append(record(item, got, test.name, "server: no answer" if text is None else None))
    return out


def never_above(log10_p: Sequence[float], alphas: Sequence[float] = (1e-2, 1e-3)) -> None:
    """No sign (exact binomial, 1 %) that nulls are rejected more often than they may be."""
    seen = np.asarray(log10_p)
    for alpha in alphas:
        rejected = int((seen <= np.log10(alpha) + 1e-12).sum())
        assert stats.binomtest(rejected, seen.size, alpha, alternative="greater").pvalue > 0.01, (alpha, rejected)
