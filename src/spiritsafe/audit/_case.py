"""CASE.zip out of a finished run: everything that the finding rests on, byte for byte, and the means to check it.

Nothing in it comes from a clock or from chance: the same run gives the same bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spiritsafe import __version__
from spiritsafe.audit._anchors import unanchored
from spiritsafe.audit._archive import read_json, write_archive
from spiritsafe.audit._bom import bill_of_materials
from spiritsafe.audit._frozen import code_hash
from spiritsafe.audit._inputs import name_of
from spiritsafe.audit._plan import CanariesConfig, RadioactivityConfig, TwinsConfig
from spiritsafe.audit._results import RESULTS_FORMAT, Finding, finding, outcome_json
from spiritsafe.audit._run_folder import RunFolder
from spiritsafe.audit._sign import IN_TOTO, load_signer, sign_dsse, statement
from spiritsafe.audit._transcript import read_chain, read_transcript
from spiritsafe.audit._types import NOT_ASKED, Outcome, Record, Test
from spiritsafe.audit.tests import open_test
from spiritsafe.errors import BadInput, Refused
from spiritsafe.ledger import canonical_json

if TYPE_CHECKING:
    from spiritsafe.audit._frozen import Frozen

__all__ = [
    "CASE_FORMAT",
    "CASE_PREDICATE",
    "VERIFIER",
    "Case",
    "Judged",
    "Renderer",
    "build_case",
    "code_of",
    "commitments_of",
    "doubts_of",
    "judge",
    "reveal_of",
]

CASE_FORMAT = "spiritsafe-case/1"
CASE_PREDICATE = "urn:spiritsafe:audit-case:1"
_SCRIPTS = Path(__file__).parent / "verifier"
VERIFIER = {name: _SCRIPTS / name for name in ("verify_case.py", "verify_coins.py")}


@dataclass(frozen=True, slots=True)
class Case:
    """What a page about a case is made of, all of it plain JSON.

    plan: the frozen plan.  counts: test → {"planned", "answered", "failed": items, "lines": of the transcript}; what
    was neither answered nor failed was not asked.  doubts: what nothing outside the case vouches for.
    """

    plan: Mapping[str, Any]
    plan_hash: str
    results: Mapping[str, Any]
    subject: Mapping[str, Any]
    attempts: Sequence[Mapping[str, Any]]
    counts: Mapping[str, Mapping[str, int]]
    doubts: Sequence[str] = ()


Renderer = Callable[[Case], str]


@dataclass(frozen=True, slots=True)
class Judged:
    """What a run comes to.  controls: outcomes by control, of the tests that it took.  nulls: by test, in words."""

    outcomes: tuple[Outcome, ...]
    controls: Mapping[str, tuple[Outcome, ...]]
    attempts: int
    finding: Finding
    nulls: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """results.json, but for the code that judged."""
        return {
            "format": RESULTS_FORMAT,
            "tests": [outcome_json(one) for one in self.outcomes],
            "controls": {name: [outcome_json(one) for one in some] for name, some in self.controls.items()},
            "attempts": self.attempts,
            "finding": self.finding.to_dict(),
        }


def build_case(frozen: Frozen, run: RunFolder, out: Path, render: Renderer | None = None) -> Judged:
    """Judge a finished run and write the case. render: makes the page for people; without it there is none.

    Raises:
        Refused: the run is not finished.
        BadInput: its files are damaged, or belong to another plan.
    """
    if not run.subject.is_file():
        raise Refused(f"{run.path}: the run is not finished; run the same command again to go on")
    subject = read_json(run.subject, str(run.subject))
    attempts = read_chain(run.attempts, frozen.hash)
    tests = [open_test(config, frozen.evidence(name_of(config))) for config in frozen.plan.tests]
    records = read_transcript(run.transcript, frozen.hash)
    controls = {
        name: read_transcript(run.control(name), frozen.hash)
        for name in frozen.plan.controls
        if run.control(name).is_file()
    }
    judged = judge(frozen, tests, records, controls, len(attempts))
    results = judged.to_dict() | {"code": code_of()}
    case = Case(frozen.document, frozen.hash, results, subject, attempts, _counts(tests, records), doubts_of(frozen))
    files: dict[str, bytes | Path] = {
        "plan.json": frozen.raw,
        "commitments.json": canonical_json(commitments_of(frozen)),
        "reveal.json": canonical_json(reveal_of(frozen)),
        "subject.json": run.subject,
        "transcripts.jsonl": run.transcript,
        "attempts.jsonl": run.attempts,
        "results.json": canonical_json(results),
        "mlbom.cdx.json": canonical_json(bill_of_materials(frozen.document, subject, judged.finding)),
        **VERIFIER,
        **{name: path for name, path in frozen.inputs.items() if path.is_file()},
        **{f"controls/{name}.jsonl": run.control(name) for name in controls},
    }
    if frozen.timestamp is not None:
        files["plan.tsr"] = frozen.timestamp
    if frozen.signature is not None:
        files["plan.sig.json"] = frozen.signature
    if frozen.plan.signer is not None:
        files["trust/signer.pub"] = f"{frozen.plan.signer}\n".encode()
    if render is not None:
        files["report.html"] = render(case).encode("utf-8", "replace")
    manifest = canonical_json({"format": CASE_FORMAT, "files": {name: _entry(files[name]) for name in sorted(files)}})
    files["manifest.json"] = manifest
    if frozen.plan.signer is not None:
        files["attestation.dsse.json"] = _attestation(frozen, manifest, judged.finding)
    write_archive(out, files)
    return judged


def judge(
    frozen: Frozen,
    tests: Sequence[Test],
    records: Sequence[Record],
    controls: Mapping[str, Sequence[Record]],
    attempts: int,
) -> Judged:
    """Every test on the suspect's records, and on those of each control that has any of it.

    Raises:
        BadInput: a record is not of this plan, or holds what no answer can be.
    """
    outcomes = tuple(test.judge(_of(records, test)) for test in tests)
    innocent = {
        name: tuple(test.judge(mine) for test in tests if (mine := _of(some, test))) for name, some in controls.items()
    }
    nulls = {test.name: test.null for test in tests}
    found = finding(
        outcomes,
        nulls,
        frozen.plan.alpha,
        unanchored=doubts_of(frozen),
        controls=innocent,
    )
    return Judged(outcomes, innocent, attempts, found, nulls)


def code_of() -> dict[str, str]:
    """Whose words a case's sentences are: another version may say the same in others."""
    return {"spiritsafe": __version__, "sha256": code_hash()}


def doubts_of(frozen: Frozen) -> list[str]:
    """What nothing outside will vouch for in a case of this plan, whoever checks it."""
    lines = list(unanchored(frozen))
    if frozen.plan.signer is None:
        lines.append("case: nobody signs it, so nobody answers for what the suspect is said to have answered")
    return lines


def commitments_of(frozen: Frozen) -> dict[str, Any]:
    """commitments.json."""
    keys = {name: one.model_dump(mode="json") for name, one in sorted(frozen.commitments.items())}
    ledgers = {
        name_of(test): test.ledger
        for test in frozen.plan.tests
        if isinstance(test, TwinsConfig | CanariesConfig) and test.ledger is not None
    }
    return {"keys": keys, "ledger": ledgers}


def reveal_of(frozen: Frozen) -> dict[str, Any]:
    """reveal.json: what was opened, and nothing else."""
    tests = frozen.plan.tests
    return {
        "leaves": {
            name_of(test): [leaf.model_dump(mode="json") for leaf in frozen.leaves[name_of(test)]]
            for test in tests
            if isinstance(test, RadioactivityConfig) and name_of(test) in frozen.leaves
        },
        "twins": {name_of(test): test.pairs for test in tests if isinstance(test, TwinsConfig)},
        "canaries": {name_of(test): test.canaries for test in tests if isinstance(test, CanariesConfig)},
    }


def _of(records: Sequence[Record], test: Test) -> list[Record]:
    return [record for record in records if record.test == test.name]


def _counts(tests: Sequence[Test], records: Sequence[Record]) -> dict[str, dict[str, int]]:
    counts = {}
    for test in tests:
        mine = _of(records, test)
        last = {record.item: record for record in mine}
        answered = sum(record.got is not None for record in last.values())
        unasked = sum((record.error or "").startswith(NOT_ASKED) for record in last.values())
        counts[test.name] = {
            "planned": len(test.items()),
            "answered": answered,
            "failed": len(last) - answered - unasked,
            "lines": len(mine),
        }
    return counts


def _entry(given: bytes | Path) -> dict[str, Any]:
    digest, size = hashlib.sha256(), 0
    if isinstance(given, bytes):
        return {"sha256": hashlib.sha256(given).hexdigest(), "bytes": len(given)}
    try:
        with given.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
                size += len(chunk)
    except OSError as error:
        raise BadInput(f"{given}: cannot be read ({error.strerror})") from None
    return {"sha256": digest.hexdigest(), "bytes": size}


def _attestation(frozen: Frozen, manifest: bytes, found: Finding) -> bytes:
    assert frozen.signer is not None
    predicate = {"name": frozen.plan.name, "plan": frozen.hash, "finding": found.to_dict()}
    subject = {"manifest.json": hashlib.sha256(manifest).hexdigest()}
    signed = statement(subject, CASE_PREDICATE, predicate)
    return canonical_json(sign_dsse(signed, IN_TOTO, load_signer(frozen.signer)))
