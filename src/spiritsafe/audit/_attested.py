"""Check an attestation: who signed it, whether its chain holds, and whether files at hand are the ones it is about.

Needs nothing but the file. What it cannot show: that the signer tells the truth about what was collected; it makes the
signer answerable for having said so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from spiritsafe.audit._attest import ATTESTATION, FORMAT, lineage_faults
from spiritsafe.audit._sign import dsse_payload, read_statement, verify_dsse
from spiritsafe.errors import BadInput
from spiritsafe.keys._file import read_limited
from spiritsafe.runs import hash_path

__all__ = ["AttestationVerification", "verify_attestation"]

Check = Literal["pass", "fail", "unanchored", "not checked"]


@dataclass(frozen=True, slots=True)
class AttestationVerification:
    """What was checked of an attestation.

    signatures: `unanchored` where the key is only in the attestation itself, or nobody signed.
    lineage: the chain from exchanges to student.  files: those at hand, against the hashes.
    faults: one line each.  predicate: what is attested.  subjects: file → SHA-256.
    """

    signatures: Check
    lineage: Check
    files: Check
    faults: tuple[str, ...]
    predicate: Mapping[str, Any]
    subjects: Mapping[str, str]

    @property
    def ok(self) -> bool:
        return "fail" not in (self.signatures, self.lineage, self.files)

    def to_dict(self) -> dict[str, Any]:
        """As `audit verify --json` prints it."""
        return {
            "ok": self.ok,
            "checks": {"signatures": self.signatures, "lineage": self.lineage, "files": self.files},
            "faults": list(self.faults),
            "subjects": dict(self.subjects),
            "attestation": dict(self.predicate),
        }

    def render(self) -> str:
        """For people."""
        said = self.predicate
        lines = [f"{name:<11} {check}" for name, check in self.to_dict()["checks"].items()]
        lines += [f"FAULT: {fault}" for fault in self.faults]
        lines.append(f"\nstudent {said['student']}, attested {said['attested_at']}")
        for teacher in said["teachers"]:
            host = teacher["teacher_host"] or "local weights"
            terms = f"{teacher['terms_id'] or 'unknown terms'} {teacher['terms_version'] or ''}".strip()
            lines.append(
                f"  {teacher['rows_trained_on']} of {teacher['rows']} replies of {teacher['teacher']} ({host}), "
                f"under {terms}, {teacher['usd']:.4f} USD"
            )
        lines += [
            f"  terms overridden at {record['stage']}: {record['accepted']}"
            for record in said["terms"]
            if record["accepted"]
        ]
        if not said["screened"]:
            lines.append("  the training set was not screened for marks")
        for one in said["screened"]:
            lines.append(
                f"  screened for {one['for']} ({one['scheme']}): log10 p {one['log10_p']:.1f} on {one['scored']} tokens"
            )
        return "\n".join(lines)


def verify_attestation(
    path: Path, *, signer: bytes | None = None, files: Path | None = None
) -> AttestationVerification:
    """Check an attestation.

    signer: the public key (32 bytes) it should be signed with, known from elsewhere.
    files: the run directory, or any folder with some of its files (`student/model.safetensors` …), to hold against it.

    Raises:
        BadInput: it cannot be read, or is no attestation.
    """
    envelope = read_limited(path)
    try:
        subjects, said = read_statement(dsse_payload(envelope), ATTESTATION)
        if said.get("format") != FORMAT:
            raise BadInput(f"of format {str(said.get('format'))[:60]!r}, this version reads {FORMAT}")
        faults = lineage_faults(said, subjects)
        _readable(said)
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from None
    except (KeyError, TypeError, AttributeError, ValueError):
        raise BadInput(f"{path}: an attestation with parts missing or of the wrong kind") from None
    lineage: Check = "fail" if faults else "pass"
    signatures, why = _signatures(envelope, said.get("signer"), signer)
    held, wrong = _held(subjects, files)
    return AttestationVerification(signatures, lineage, held, (*why, *faults, *wrong), said, subjects)


def _signatures(envelope: Mapping[str, Any], claimed: Any, signer: bytes | None) -> tuple[Check, list[str]]:
    if signer is None and not envelope["signatures"]:
        return "unanchored", []
    try:
        verify_dsse(envelope, signer if signer is not None else bytes.fromhex(claimed))
    except (BadInput, ValueError, TypeError):
        return "fail", ["it is not signed with the key given" if signer is not None else "its signature does not hold"]
    return ("unanchored" if signer is None else "pass"), []


def _held(subjects: Mapping[str, str], files: Path | None) -> tuple[Check, list[str]]:
    if files is None:
        return "not checked", []
    if not files.is_dir():
        raise BadInput(f"{files}: no such folder; give the run directory, or one with some of its files")
    # names come from the attestation: only those that stay inside the folder are looked at
    inside = {name: files / name for name in subjects if not Path(name).is_absolute() and ".." not in Path(name).parts}
    there = {name: path for name, path in inside.items() if path.is_file()}
    if not there:
        return "fail", [f"{files}: has none of the files attested"]
    wrong = [name for name, path in there.items() if hash_path(path) != subjects[name]]
    return ("fail" if wrong else "pass"), [f"{name}: not the file that was attested" for name in sorted(wrong)]


def _readable(said: Mapping[str, Any]) -> None:
    """Touch all that is printed, so that what is malformed is refused here."""
    AttestationVerification("pass", "pass", "pass", (), said, {}).render()
