"""Verify a case offline: five checks, each `pass`, `fail` or `unanchored`, and what then remains of its finding."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spiritsafe.audit._case import Judged
from spiritsafe.audit._results import Finding, finding
from spiritsafe.audit._transcript import read_chain, read_transcript
from spiritsafe.audit._types import Record
from spiritsafe.audit._unpack import plan_from
from spiritsafe.audit._verify_bytes import open_case
from spiritsafe.audit._verify_check import Check, Given, Opened, State
from spiritsafe.audit._verify_order import check_order
from spiritsafe.audit._verify_plan import check_plan
from spiritsafe.audit._verify_recompute import check_recompute
from spiritsafe.audit._verify_signatures import check_signatures
from spiritsafe.audit.tests import open_test
from spiritsafe.progress import Progress, Silent

__all__ = ["CHECKS", "CaseVerification", "verify_case"]

CHECKS = ("bytes", "signatures", "time_order", "plan", "recompute")


@dataclass(frozen=True, slots=True)
class CaseVerification:
    """checks: state by check.  unseen: of these, what was not looked at, as another had failed.
    reasons: a line each for what is not `pass`.  notes: what else to know."""

    checks: Mapping[str, State]
    unseen: frozenset[str]
    reasons: Mapping[str, tuple[str, ...]]
    notes: tuple[str, ...]
    finding: Finding

    @property
    def ok(self) -> bool:
        return "fail" not in self.checks.values()

    def to_dict(self) -> dict[str, Any]:
        """As `audit verify --json` prints it."""
        found = self.finding
        return {
            "ok": self.ok,
            "checks": dict(self.checks),
            "finding": {"class": found.grade, "log10_p": found.log10_p, "statement": found.statement},
        }


def verify_case(
    path: Path, *, signer: bytes | None = None, tsa: bytes | None = None, progress: Progress | None = None
) -> CaseVerification:
    """Check a case that anybody may have written. Nothing is fetched, and nothing in it is run.

    signer: the public key (32 bytes) that the one who verifies knows from elsewhere.  tsa: roots, PEM, likewise.
    """
    watch = progress or Silent()
    checks = {name: Check(name) for name in CHECKS}
    given = Given(signer, tsa)
    judged: Judged | None = None
    alpha = 0.0
    with tempfile.TemporaryDirectory(prefix="spiritsafe-case-") as name:
        folder = Path(name).resolve()
        watch.update("verify: bytes", 0, len(CHECKS))
        case = open_case(path, folder, checks["bytes"])
        if case is None:
            for later in CHECKS[1:]:
                checks[later].leave("the case cannot be opened")
        else:
            watch.update("verify: signatures", 1, len(CHECKS))
            with checks["signatures"].guarding(folder):
                check_signatures(case, given, checks["signatures"])
            judged = _rest(case, given, checks, watch)
            alpha = case.document["plan"].get("alpha", 0.0)
    return CaseVerification(
        checks={name: check.state for name, check in checks.items()},
        unseen=frozenset(name for name, check in checks.items() if not check.looked),
        reasons={name: tuple(check.failures or check.loose) for name, check in checks.items()},
        notes=tuple(note for check in checks.values() for note in check.notes),
        finding=_found(checks, judged, alpha),
    )


def _rest(case: Opened, given: Given, checks: Mapping[str, Check], watch: Progress) -> Judged | None:
    """Checks 3 to 5, which need the plan and the transcripts."""
    plan, order, again = checks["plan"], checks["time_order"], checks["recompute"]
    judged = looked = None
    with plan.guarding(case.folder):
        frozen = plan_from(case.document, case.folder)
        tests = [open_test(config, frozen.evidence(config.name or config.kind)) for config in frozen.plan.tests]
        first = hashlib.sha256(case.plan).hexdigest()
        attempts = read_chain(case.folder / "attempts.jsonl", first)
        records = read_transcript(case.folder / "transcripts.jsonl", first)
        controls: dict[str, list[Record]] = {}
        for name in frozen.plan.controls:
            if case.has(f"controls/{name}.jsonl"):
                controls[name] = read_transcript(case.folder / f"controls/{name}.jsonl", first)
        everything = [*records, *(record for some in controls.values() for record in some)]
        looked = True
        watch.update("verify: order in time", 2, len(CHECKS))
        with order.guarding(case.folder):
            check_order(case, frozen, attempts, everything, given, order)
        watch.update("verify: plan kept", 3, len(CHECKS))
        with plan.guarding(case.folder):
            check_plan(case, frozen, tests, attempts, records, controls, plan)
        watch.update("verify: recompute", 4, len(CHECKS))
        with again.guarding(case.folder):
            judged = check_recompute(case, frozen, tests, len(attempts), records, controls, again)
    if not looked:
        for check in (order, again):
            check.leave("see the check of the plan")
    watch.update("verify", len(CHECKS), len(CHECKS))
    return judged


def _found(checks: Mapping[str, Check], judged: Judged | None, alpha: float) -> Finding:
    failed = [name for name, check in checks.items() if check.failures]
    if failed or judged is None:
        what = ", ".join(name.replace("_", " ") for name in failed if checks[name].looked)
        return Finding("inconclusive", 0.0, "", 0, f"Nothing follows from this case: it fails the check of {what}.", ())
    loose = [line for check in checks.values() for line in check.loose]
    return finding(judged.outcomes, judged.nulls, alpha, unanchored=loose, controls=judged.controls)
