"""Freeze a plan: everything it rests on read, checked and hashed, before the first query."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spiritsafe.audit._evidence import Evidence
from spiritsafe.audit._plan import AuditPlan
from spiritsafe.keys import Commitment, Leaf
from spiritsafe.progress import Progress
from spiritsafe.teachers import TeacherConfig

__all__ = ["Frozen", "freeze", "load_frozen", "plan_from"]


@dataclass(frozen=True)
class Frozen:
    """A frozen plan with what it names.

    file: PLAN.yaml; folder: where it lies (of a case: plan.json and its folder).
    plan: paths are names in the case.  raw: the frozen JSON; hash: its SHA-256; document: its content.
    inputs: name in the case → file.  weights: name in the plan → path or hub id here; empty for a case.
    leaves: opened keys by test, each covered by its commitment.  families: committed hypotheses by test.
    signer: private key file, where the plan names one (its public key, hex, is in `plan.signer`).
    timestamp, signature: PLAN.frozen.tsr and .sig.json, where they are.
    """

    file: Path
    folder: Path
    plan: AuditPlan
    raw: bytes = field(repr=False)
    hash: str
    document: Mapping[str, Any] = field(repr=False)
    inputs: Mapping[str, Path]
    weights: Mapping[str, str]
    leaves: Mapping[str, tuple[Leaf, ...]] = field(repr=False)
    commitments: Mapping[str, Commitment]
    families: Mapping[str, int]
    decoy_seed: bytes
    signer: Path | None = None
    timestamp: Path | None = None
    signature: Path | None = None

    def evidence(self, test_name: str) -> Evidence:
        """What the test of that name is made of, besides its entry in the plan."""
        raise NotImplementedError

    def control(self, name: str) -> TeacherConfig:
        """A control of the plan, its path leading to the weights on this machine."""
        raise NotImplementedError


def freeze(plan_file: Path, *, again: bool = False, progress: Progress | None = None) -> Frozen:
    """Read, check and hash all that PLAN.yaml names, and write PLAN.frozen.json."""
    raise NotImplementedError


def load_frozen(plan_file: Path) -> Frozen:
    """The frozen plan of PLAN.yaml, if the YAML and every input are still what was frozen.

    Raises:
        Refused: it is not frozen, or something changed since. A change of this package's code is not refused.
    """
    raise NotImplementedError


def plan_from(document: Mapping[str, Any], folder_of_case: Path) -> Frozen:
    """The same from an unpacked case: `document` is its plan.json.

    Raises:
        BadInput: it is no frozen plan, or inputs or opened keys of the case are not those it names.
    """
    raise NotImplementedError
