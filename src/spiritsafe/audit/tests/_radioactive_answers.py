"""What a suspect read or wrote, back from a transcript that anybody may have written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from spiritsafe.audit._types import Item, Record
from spiritsafe.audit.tests._answers import answers
from spiritsafe.audit.tests._radioactive_reading import Wrote
from spiritsafe.errors import BadInput
from spiritsafe.watermark._prf import U32

__all__ = ["Answers", "read_answers"]

_IDS = 2**31


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """In the items' order.  wrote: what counts.  marked: the marked texts of all that was asked, answered or not."""

    wrote: tuple[Wrote, ...]
    marked: tuple[Wrote, ...]
    failed: int


def read_answers(records: Sequence[Record], test: str, items: Mapping[str, Item], *, reading: bool) -> Answers:
    """The last answer to each item.

    Raises:
        BadInput: an item that was not planned or was asked otherwise, or an answer that is none.
    """
    got = answers(records, test, items)
    for record in records:
        if record.test == test and dict(record.asked) != dict(items[record.item].asked):
            raise BadInput(f"transcript of {test}: item {record.item} was asked otherwise than planned")
    wrote, marked, failed = [], [], 0
    for name, item in items.items():
        if name not in got:
            continue
        asked, answer, where = item.asked, got[name], f"transcript of {test}, item {name}"
        prompt = _array(asked["ids"][: asked["first"]] if reading else asked["prompt_ids"])
        if not reading:
            ids = _array(asked.get("marked_ids", ()))
            marked.append(Wrote(prompt, ids, ids))
        if answer is None:
            failed += 1
        elif reading:
            ids = _array(asked["ids"][asked["first"] :])
            wrote.append(Wrote(prompt, ids, _ids(where, answer.get("argmax"), len(ids))))
        else:
            ids = _ids(where, answer.get("ids"), None)
            wrote.append(Wrote(prompt, ids, ids))
    return Answers(tuple(wrote), tuple(marked), failed)


def _array(ids: Sequence[int]) -> U32:
    return np.array(ids, np.uint32)


def _ids(where: str, value: Any, count: int | None) -> U32:
    if not isinstance(value, list) or not all(type(x) is int and 0 <= x < _IDS for x in value):
        raise BadInput(f"{where}: its answer is not a list of token ids")
    if count is not None and len(value) != count:
        raise BadInput(f"{where}: {len(value)} predictions for {count} tokens")
    return _array(value)
