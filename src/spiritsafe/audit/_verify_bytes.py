"""Check 1, bytes: the archive is as it was written, and every file is what the manifest says."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from spiritsafe.audit._archive import read_json, unpack
from spiritsafe.audit._case import CASE_FORMAT, VERIFIER
from spiritsafe.audit._unpack import read_document
from spiritsafe.audit._verify_check import Check, Opened

__all__ = ["open_case"]

_NEEDED = (
    "attempts.jsonl", "commitments.json", "mlbom.cdx.json", "plan.json", "results.json", "reveal.json", "subject.json",
    "transcripts.jsonl", *VERIFIER,
)  # fmt: skip
_OUTSIDE = {"manifest.json", "attestation.dsse.json"}  # the manifest cannot list itself, nor what signs it


def open_case(path: Path, folder: Path, check: Check) -> Opened | None:
    """Unpack a case into an empty folder; None if it is none, or so damaged that nothing can be said of it."""
    with check.guarding(folder):
        hashes = unpack(path, folder)
        manifest = read_json(folder / "manifest.json", "manifest.json") if "manifest.json" in hashes else None
        form = manifest.get("format") if isinstance(manifest, dict) else None
        if isinstance(form, str) and form != CASE_FORMAT and form.startswith(f"{CASE_FORMAT.rpartition('/')[0]}/"):
            check.failures.append(
                f"manifest.json: of the form {form[:40]}, and this version of spiritsafe reads {CASE_FORMAT}; verify "
                "the case with the version that made it"
            )
            return None
        if missing := [name for name in ("manifest.json", *_NEEDED) if name not in hashes]:
            check.failures.append(f"{', '.join(missing)}: not in the case")
            return None
        _compare(manifest, hashes, folder, check)
        for name, ours in VERIFIER.items():
            if hashes[name] != hashlib.sha256(ours.read_bytes()).hexdigest():
                check.notes.append(f"{name} in it is of another version of spiritsafe: take it from the source instead")
        plan = (folder / "plan.json").read_bytes()
        document = read_document(Path("plan.json"), plan)
        return Opened(folder, hashes, (folder / "manifest.json").read_bytes(), plan, document)
    return None


def _compare(manifest: Any, hashes: dict[str, str], folder: Path, check: Check) -> None:
    listed = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(listed, dict) or manifest.get("format") != CASE_FORMAT or len(manifest) != 2:
        check.failures.append(f"manifest.json: not a manifest of the form {CASE_FORMAT}")
        return
    for name in sorted({*listed, *hashes} - _OUTSIDE):
        said = listed.get(name)
        if name not in hashes:
            check.failures.append(f"{name[:120]}: the manifest lists it, but the case does not have it")
        elif said is None:
            check.failures.append(f"{name}: the case has it, but the manifest does not list it")
        elif said != {"sha256": hashes[name], "bytes": (folder / name).stat().st_size}:
            check.failures.append(f"{name}: is not what the manifest says; it was changed after the case was made")
    if outside := sorted(_OUTSIDE & set(listed)):
        check.failures.append(f"manifest.json: lists {', '.join(outside)}, which it cannot")
