"""Calibration on somebody's own innocents: the controls of a case, under secrets that are drawn again.

A control answered once. What it said about twins and canaries cannot depend on coins and draws that are tossed after
that, so each trial is an innocent's trial, whatever the case's own coins were. Keys are drawn anew likewise, but the
texts stay those that the case's key made: such a trial shows what a key that made nothing finds, and not that a key
that made the texts finds no more (docs/audit/calibration.md has that). Other tests have nothing to draw again.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from spiritsafe.audit._calibration import Counted, counted
from spiritsafe.audit._plan import CanariesConfig, RadioactivityConfig, TwinsConfig
from spiritsafe.audit._transcript import read_transcript
from spiritsafe.audit._types import Record, Test
from spiritsafe.audit._unpack import plan_from
from spiritsafe.audit._verify_bytes import open_case
from spiritsafe.audit._verify_check import Check
from spiritsafe.audit.tests import open_test
from spiritsafe.errors import BadInput
from spiritsafe.keys import KEY_BYTES
from spiritsafe.progress import Progress, Silent

if TYPE_CHECKING:
    from spiritsafe.audit._frozen import Frozen
    from spiritsafe.audit._plan import TestConfig
    from spiritsafe.audit.tests.canaries import Canaries
    from spiritsafe.audit.tests.twins import Twins

__all__ = ["calibrate_case"]

_SECRETS = {
    "twins": "coins",
    "canaries": "draws",
    "radioactivity": "keys, over texts of another key",
}

Draw = Callable[[np.random.Generator], Test]


def calibrate_case(
    path: Path, trials: int, progress: Progress | None = None, only: str | None = None
) -> tuple[list[Counted], list[str]]:
    """Rows by test and control at levels 0.01 and the plan's alpha, and a line on each test that has no row. The same
    case gives the same numbers.

    only: the name or kind of the tests wanted; None: all.

    Raises:
        BadInput: not a readable case, one without answers of controls, or no such test in it.
    """
    with tempfile.TemporaryDirectory(prefix="spiritsafe-case-") as name:
        folder, check = Path(name).resolve(), Check("bytes")
        case = open_case(path, folder, check)
        if case is None or check.failures:
            raise BadInput(f"{path}: {check.failures[0]}")
        frozen, first = plan_from(case.document, folder), hashlib.sha256(case.plan).hexdigest()
        controls = {
            name: read_transcript(folder / f"controls/{name}.jsonl", first)
            for name in frozen.plan.controls
            if case.has(f"controls/{name}.jsonl")
        }
        if not any(controls.values()):
            raise BadInput(f"{path}: no control in it answered; name models you know to be innocent under controls")
        wanted = [test for test in frozen.plan.tests if only in (None, test.kind, test.name)]
        if not wanted:
            raise BadInput(f"{path}: no test {only} in its plan")
        return _rows(frozen, wanted, controls, trials, progress or Silent())


def _rows(
    frozen: Frozen,
    tests: Sequence[TestConfig],
    controls: dict[str, list[Record]],
    trials: int,
    progress: Progress,
) -> tuple[list[Counted], list[str]]:
    rows, notes = list[Counted](), list[str]()
    levels = sorted({0.01, frozen.plan.alpha}, reverse=True)
    for config in tests:
        name = config.name or config.kind
        drawn = _drawn(config, frozen)
        if isinstance(drawn, str):
            notes.append(f"{name}: {drawn}")
            continue
        for control, records in controls.items():
            mine = [record for record in records if record.test == name]
            if not mine:
                notes.append(f"{name}: control {control} was not asked, or could not be")
                continue
            random = np.random.default_rng(list(hashlib.sha256(f"{frozen.hash} {name} {control}".encode()).digest()))
            found = list(_trials(drawn, mine, random, trials, f"{name}, {control}", progress))
            secret = _SECRETS[config.kind]
            rows.append(
                Counted(
                    test=name, name=config.kind, redrawn=secret, innocents=control, independent=True,
                    **counted(found, levels),
                )
            )  # fmt: skip
    return rows, notes


def _trials(
    drawn: Draw, records: Sequence[Record], random: np.random.Generator, trials: int, what: str, progress: Progress
) -> Iterator[float]:
    for number in range(trials):
        if number % 100 == 0:
            progress.update(f"calibrate: {what}", number, trials)
        yield drawn(random).judge(records).log10_p


def _drawn(config: TestConfig, frozen: Frozen) -> Draw | str:
    """How to make the test with a fresh secret, or why there is none."""
    evidence = frozen.evidence(config.name or config.kind)
    if isinstance(config, TwinsConfig | CanariesConfig):
        test: Twins | Canaries = open_test(config, evidence)  # type: ignore[assignment]
        return test.redrawn
    if not isinstance(config, RadioactivityConfig):
        return "has no secret that could be drawn again over recorded answers"
    if config.engine is not None:
        return "the engine's key is in its parameters, and is not drawn again"
    epochs = tuple(leaf for leaf in evidence.leaves if leaf.purpose != "account")
    if not any(leaf.purpose == "epoch" for leaf in epochs):
        return "only accounts' keys are opened, and these are not drawn again"
    once = config.model_copy(update={"decoys": 0})

    def drawn(random: np.random.Generator) -> Test:
        fresh = tuple(leaf.model_copy(update={"key": random.bytes(KEY_BYTES).hex()}) for leaf in epochs)
        return open_test(once, replace(evidence, leaves=fresh))

    return drawn
