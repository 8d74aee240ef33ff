"""A frozen plan out of a file that anybody may have written: its form, its inputs and opened keys, checked."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spiritsafe.audit._anchors import ledger_head
from spiritsafe.audit._archive import read_json
from spiritsafe.audit._frozen import FORMAT, Frozen, families_of, seed_of
from spiritsafe.audit._inputs import describe_commitment, describe_leaf, hold_leaves, name_of
from spiritsafe.audit._plan import AuditPlan, CanariesConfig, TwinsConfig
from spiritsafe.config import parse_config
from spiritsafe.errors import BadInput
from spiritsafe.keys import Commitment, Leaf, load_commitment
from spiritsafe.ledger import canonical_json
from spiritsafe.runs import hash_path

__all__ = ["plan_from", "read_document"]

_LARGEST = 64 << 20
_INPUT = re.compile(r"inputs/[0-9a-f]{12}-[A-Za-z0-9._-]{1,80}(/[A-Za-z0-9_-][A-Za-z0-9._-]{0,80})?")
_HEX = re.compile(r"([0-9a-f]{2}){1,64}")
_SHAPE = {
    "format": str, "plan": dict, "inputs": dict, "weights": dict, "leaves": dict, "commitments": dict, "nulls": dict,
    "families": dict, "decoy_seed": str, "superseded": list, "abandoned": int, "code": dict, "frozen_at": str,
}  # fmt: skip


def plan_from(document: Mapping[str, Any], folder_of_case: Path) -> Frozen:
    """The frozen plan of an unpacked case: `document` is its plan.json, reveal.json and inputs/ lie in the folder.

    `raw` and `hash` are of the document in canonical form: plan.json has to have these bytes.

    Raises:
        BadInput: it is no frozen plan, or inputs or opened keys of the case are not those it names.
    """
    where = "plan.json"
    if not _fits(document) or document["format"] != FORMAT:
        raise BadInput(f"{where}: not a frozen plan of the form {FORMAT}")
    plan = parse_config(document["plan"], AuditPlan, where)
    if not _same(document["plan"], plan.model_dump(mode="json")):
        raise BadInput(f"{where}: its plan is not written out as freezing does; another reader could read another plan")
    inputs = _inputs(document["inputs"], folder_of_case)
    commitments = _commitments(document["commitments"], inputs, plan)
    leaves = _leaves(document["leaves"], folder_of_case, commitments)
    families = families_of(plan, commitments, leaves)
    if not _same(document["families"], families):
        raise BadInput(f"{where}: its families are not what was committed to: {families}")
    seed = plan.decoy_seed or seed_of(document["inputs"], document["leaves"])
    if document["decoy_seed"] != seed or not _HEX.fullmatch(seed):
        raise BadInput(f"{where}: its decoy seed is neither the plan's nor the hash of its inputs")
    if set(document["nulls"]) != {name_of(test) for test in plan.tests}:
        raise BadInput(f"{where}: its null hypotheses are not those of its tests")
    raw = canonical_json(document)
    token, signature = folder_of_case / "plan.tsr", folder_of_case / "plan.sig.json"
    return Frozen(
        file=folder_of_case / where,
        folder=folder_of_case,
        plan=plan,
        raw=raw,
        hash=hashlib.sha256(raw).hexdigest(),
        document=document,
        inputs=inputs,
        weights={},
        leaves=leaves,
        commitments=commitments,
        families=families,
        decoy_seed=bytes.fromhex(seed),
        timestamp=token if token.is_file() else None,
        signature=signature if signature.is_file() else None,
    )


def read_document(file: Path, raw: bytes) -> dict[str, Any]:
    """A frozen plan, with every part there; `plan_from` checks what they say.

    Raises:
        BadInput: it is damaged or of another format.
    """
    try:
        document = json.loads(raw) if len(raw) <= _LARGEST else None
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict) or not _fits(document):
        raise BadInput(f"{file}: not a frozen plan, or damaged; restore it, or freeze anew with --again")
    return document


def _fits(document: Mapping[str, Any]) -> bool:
    return set(document) == set(_SHAPE) and all(type(document[name]) is kind for name, kind in _SHAPE.items())


def _inputs(listed: Mapping[str, Any], folder: Path) -> dict[str, Path]:
    files = {}
    for name, said in listed.items():
        if not _INPUT.fullmatch(name):
            raise BadInput(f"plan.json: {name[:120]!r} is no name of an input")
        path = folder / name
        if path.is_symlink() or not path.is_file():
            raise BadInput(f"{name}: the plan names it, but the case does not have it")
        if (
            not isinstance(said, dict)
            or hash_path(path) != said.get("sha256")
            or path.stat().st_size != said.get("bytes")
        ):
            raise BadInput(f"{name}: is not the file that was frozen")
        files[name] = path
    return files


def _commitments(said: Mapping[str, Any], inputs: Mapping[str, Path], plan: AuditPlan) -> dict[str, Commitment]:
    """The commitments to keys; those that are ledgers are read too, and have to end and count as the plan says."""
    found = {}
    published = {
        name_of(test): getattr(test, "commitment", None) or getattr(test, "ledger", None) for test in plan.tests
    }
    if {name for name, file in published.items() if file is not None} != set(said):
        raise BadInput("plan.json: its commitments are not those of its tests")
    for test in plan.tests:
        name, file = name_of(test), published[name_of(test)]
        if file is None:
            continue
        claimed = said[name]
        if not isinstance(claimed, dict) or claimed.get("file") != file or file not in inputs:
            raise BadInput(f"{name}: the commitment that its plan names is not in the case")
        if claimed.get("timestamp") is not None and claimed["timestamp"] not in inputs:
            raise BadInput(f"{name}: the timestamp of its commitment is not in the case")
        if isinstance(test, TwinsConfig | CanariesConfig):
            truth: Mapping[str, Any] = ledger_head(inputs[file], test)
        else:
            found[name] = load_commitment(inputs[file])
            truth = describe_commitment(found[name])
        if not _same(claimed, {**truth, "file": file, "timestamp": claimed.get("timestamp")}):
            raise BadInput(f"{name}: {file} is not the commitment that the plan describes")
    return found


def _leaves(
    listed: Mapping[str, Any], folder: Path, commitments: Mapping[str, Commitment]
) -> dict[str, tuple[Leaf, ...]]:
    if not listed:
        return {}
    revealed = read_json(folder / "reveal.json", "reveal.json")
    opened = revealed.get("leaves") if isinstance(revealed, dict) else None
    if not isinstance(opened, dict) or set(opened) != set(listed):
        raise BadInput("reveal.json: does not open keys for the tests that the plan says")
    found = {}
    for name, given in opened.items():
        if name not in commitments or not isinstance(given, list):
            raise BadInput(f"reveal.json: keys of {name[:80]!r} are opened, but its plan has no commitment to them")
        leaves = [parse_config(leaf, Leaf, f"reveal.json, {name}") for leaf in given if isinstance(leaf, dict)]
        if [describe_leaf(leaf) for leaf in leaves] != listed[name]:
            raise BadInput(f"reveal.json: the keys opened for {name} are not those that the plan said would be")
        labels = [(f"reveal.json, {name}", leaf) for leaf in leaves]
        found[name] = hold_leaves(labels, commitments[name], f"the commitment of {name}")
    return found


def _same(one: Any, other: Any) -> bool:
    """Equal as JSON: 1, 1.0 and true are three values."""
    return canonical_json(one) == canonical_json(other)
