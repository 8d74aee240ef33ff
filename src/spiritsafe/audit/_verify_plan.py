"""Check 4, plan kept: what the plan says was asked, all of it, nothing else, and what was answered not again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from spiritsafe.audit._anchors import ledger_head
from spiritsafe.audit._archive import read_json
from spiritsafe.audit._case import commitments_of, reveal_of
from spiritsafe.audit._frozen import code_hash
from spiritsafe.audit._inputs import name_of
from spiritsafe.audit._plan import CanariesConfig, TwinsConfig
from spiritsafe.audit._types import Item, Record, Test
from spiritsafe.audit._verify_check import Check, Opened
from spiritsafe.ledger import canonical_json

if TYPE_CHECKING:
    from spiritsafe.audit._frozen import Frozen

__all__ = ["check_plan"]


def check_plan(
    case: Opened,
    frozen: Frozen,
    tests: Sequence[Test],
    attempts: Sequence[Mapping[str, Any]],
    records: Sequence[Record],
    controls: Mapping[str, Sequence[Record]],
    check: Check,
) -> None:
    """tests: opened from the case.  controls: their records, by name."""
    document, folder = frozen.document, case.folder
    check.must(frozen.raw == case.plan, "plan.json: not in the one spelling that a frozen plan has")
    for name, expected in (("commitments.json", commitments_of(frozen)), ("reveal.json", reveal_of(frozen))):
        found = read_json(folder / name, name)
        check.must(found == expected, f"{name}: says something else than the plan and the inputs")
    if document["nulls"] != {test.name: test.null for test in tests}:
        if document["code"].get("sha256") == code_hash():
            check.failures.append("plan.json: its null hypotheses are not its tests'")
        else:
            check.notes.append("another version of spiritsafe worded the plan's hypotheses; here they are as ours says")
    for config in frozen.plan.tests:
        if isinstance(config, TwinsConfig | CanariesConfig) and config.ledger is not None:
            name = name_of(config)
            said, now = document["commitments"].get(name, {}), ledger_head(frozen.inputs[config.ledger], config)
            check.must(now.items() <= said.items(), f"{name}: the ledger is not the one the plan was frozen with")
    expected_inputs = set(document["inputs"])
    extra = sorted(name for name in case.hashes if name.startswith("inputs/") and name not in expected_inputs)
    check.must(not extra, f"{', '.join(extra)[:200]}: an input that the plan does not name")
    _subject(case, frozen, attempts, check)
    if not check.must(bool(attempts), "attempts.jsonl: empty, though there are answers"):
        return
    items = {test.name: list(test.items()) for test in tests}
    asked = _Asked(tests, items, len(attempts), check)
    counted = asked.follow("transcripts.jsonl", records)
    for place, test in enumerate(tests):
        enough: Sequence[Item] = items[test.name]
        if place == 0 and frozen.plan.stop.rule == "e-value":
            enough = _until(frozen, test, enough, records)
        asked.complete("transcripts.jsonl", test, enough, counted)
        for name, some in controls.items():
            mine = [record for record in some if record.test == test.name]
            if mine or place == 0:
                asked.complete(f"controls/{name}.jsonl", test, enough, {(r.test, r.item) for r in mine})
    for name, some in controls.items():
        asked.follow(f"controls/{name}.jsonl", some)
    _controls(case, frozen, controls, check)


class _Asked:
    def __init__(self, tests: Sequence[Test], items: Mapping[str, Sequence[Item]], attempts: int, check: Check) -> None:
        self._asked = {
            (name, item.id): canonical_json(dict(item.asked)) for name, some in items.items() for item in some
        }
        self._places = {test.name: place for place, test in enumerate(tests)}
        self._attempts, self._check = attempts, check

    def follow(self, where: str, records: Sequence[Record]) -> set[tuple[str, str]]:
        """Line by line; what was asked."""
        check, answered, seen = self._check, set[tuple[str, str]](), set[tuple[str, str]]()
        at = (1, 0)
        for number, record in enumerate(records, 1):
            key, line = (record.test, record.item), f"{where}, line {number}"
            planned = self._asked.get(key)
            if planned is None:
                check.failures.append(f"{line}: {record.test[:40]} {record.item[:60]!r} is not asked by the plan")
            elif planned != canonical_json(dict(record.asked)):
                check.failures.append(f"{line}: {record.item[:60]!r} was asked otherwise than the plan says")
            elif key in answered:
                check.failures.append(
                    f"{line}: {record.item[:60]!r} was answered, and asked again: answers were chosen"
                )
            elif record.attempt > self._attempts:
                check.failures.append(f"{line}: attempt {record.attempt}, but attempts.jsonl has {self._attempts}")
            elif (now := (record.attempt, self._places[record.test])) < at:
                check.failures.append(f"{line}: {record.test} {record.item[:60]!r} is out of order")
            else:
                at = now
            if check.failures and len(check.failures) >= 20:
                break
            seen.add(key)
            if record.got is not None:
                answered.add(key)
        return seen

    def complete(self, where: str, test: Test, items: Sequence[Item], seen: set[tuple[str, str]]) -> None:
        missing = [item.id for item in items if (test.name, item.id) not in seen]
        if missing:
            self._check.failures.append(
                f"{where}: {len(missing)} of {len(items)} questions of {test.name} have no line: {missing[0][:60]!r} …"
            )


def _until(frozen: Frozen, test: Test, items: Sequence[Item], records: Sequence[Record]) -> Sequence[Item]:
    """The items up to where the e-value said enough. Going on after that is no fault: an e-value may be looked at
    whenever."""
    evalue: Any = getattr(test, "evalue")  # noqa: B009 — only tests that have one may be stopped
    last = {record.item: record for record in records if record.test == test.name}
    enough, size = math.log10(frozen.families[test.name] / frozen.plan.alpha), frozen.plan.stop.batch
    for end in range(size, len(items) + size, size):
        some = items[:end]
        if evalue([last[item.id] for item in some if item.id in last]) >= enough:
            return some
    return items


def _subject(case: Opened, frozen: Frozen, attempts: Sequence[Mapping[str, Any]], check: Check) -> None:
    subject = read_json(case.folder / "subject.json", "subject.json")
    said = frozen.plan.subject
    if not check.must(isinstance(subject, dict), "subject.json: not a JSON object"):
        return
    check.must(
        subject.get("name") == said.name, f"subject.json: the plan asks {said.name}, not {subject.get('name')!s:.60}"
    )
    first = attempts[0].get("suspect") if attempts else None
    for number, entry in enumerate(attempts, 1):
        check.must(
            entry.get("attempt") == number and entry.get("suspect") == first, f"attempt {number} asked another suspect"
        )
    if isinstance(first, dict):
        other = [key for key, value in first.items() if subject.get(key) != value]
        check.must(not other, f"subject.json: its {', '.join(other)[:60]} is not that of the attempts")


def _controls(case: Opened, frozen: Frozen, controls: Mapping[str, Sequence[Record]], check: Check) -> None:
    there = {name for name in case.hashes if name.startswith("controls/")}
    known = {f"controls/{name}.jsonl" for name in frozen.plan.controls}
    check.must(there <= known, f"{', '.join(sorted(there - known))[:200]}: a control that the plan does not name")
    skipped = read_json(case.folder / "subject.json", "subject.json").get("controls", {})
    for name in frozen.plan.controls:
        excused = isinstance(skipped, dict) and isinstance(skipped.get(name), dict) and skipped[name].get("skipped")
        if name not in controls and not excused:
            check.failures.append(f"controls/{name}.jsonl: the plan names this control, but it was not asked")
        elif name not in controls:
            check.notes.append(f"control {name} was not asked: {str(excused)[:120]}")
