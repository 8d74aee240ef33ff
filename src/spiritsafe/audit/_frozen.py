"""A frozen plan, read from beside PLAN.yaml or from a case.

PLAN.frozen.json is canonical JSON (keys sorted, no spaces, ASCII); the plan's hash is the SHA-256 of its bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spiritsafe.audit._evidence import Evidence
from spiritsafe.audit._inputs import name_of, with_folders
from spiritsafe.audit._plan import AuditPlan
from spiritsafe.keys import Commitment, Leaf
from spiritsafe.ledger import canonical_json
from spiritsafe.runs import hash_path, hash_value
from spiritsafe.teachers import TeacherConfig

__all__ = ["FORMAT", "PLAN_PREDICATE", "Frozen", "code_hash", "families_of", "seed_of"]

FORMAT = "spiritsafe-plan/1"
PLAN_PREDICATE = "urn:spiritsafe:audit-plan:1"


@dataclass(frozen=True)
class Frozen:
    """A frozen plan with what it names.

    file: PLAN.yaml; folder: where it lies (of a case: plan.json and its folder).
    plan: paths are names in the case.  raw: the frozen JSON; hash: its SHA-256; document: its content.
    inputs: name in the case → file.  weights: name in the plan → path or hub id here; empty for a case.
    leaves: opened keys by test, each covered by its commitment.  families: committed hypotheses by test.
    signer: private key file, where the plan names one (its public key, hex, is in `plan.signer`).
    timestamp, signature: PLAN.frozen.tsr and .sig.json, where they are.
    notes: what a reader must know, such as that this package's code is not what it was at freezing.
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
    notes: tuple[str, ...] = ()

    def evidence(self, test_name: str) -> Evidence:
        """What the test of that name is made of, besides its entry in the plan."""
        return Evidence(
            inputs=with_folders(self.inputs) | {name: Path(source) for name, source in self.weights.items()},
            decoy_seed=self.decoy_seed,
            leaves=self.leaves.get(test_name, ()),
            commitment=self.commitments.get(test_name),
            family=self.families[test_name],
            sequential=self.plan.stop.rule == "e-value" and test_name == name_of(self.plan.tests[0]),
        )

    def control(self, name: str) -> TeacherConfig:
        """A control of the plan, its path leading to the weights on this machine."""
        config = self.plan.controls[name]
        if config.path is None or config.path not in self.weights:
            return config
        # the name stays what the plan calls it, so that a path is in no record
        return config.model_copy(update={"path": self.weights[config.path], "model": config.model or config.path})


def families_of(
    plan: AuditPlan, commitments: Mapping[str, Commitment], leaves: Mapping[str, tuple[Leaf, ...]]
) -> dict[str, int]:
    """How many hypotheses were committed to for each test: every epoch key of the key set, opened or not (every
    account slot where a test opens accounts' keys alone); 1 where a test has one hypothesis."""
    families = {}
    for name in map(name_of, plan.tests):
        opened = {leaf.purpose for leaf in leaves.get(name, ())}
        alone = "account" in opened and "epoch" not in opened
        families[name] = commitments[name].committed["account" if alone else "epoch"] if name in commitments else 1
    return families


def seed_of(inputs: Mapping[str, Any], leaves: Mapping[str, Any]) -> str:
    """The seed of the decoys (hex) where the plan gives none: the hash of its inputs and of which keys it opens."""
    return hashlib.sha256(canonical_json([inputs, leaves])).hexdigest()


def code_hash() -> str:
    """SHA-256 over this package's sources."""
    root = Path(__file__).parents[1]
    return hash_value([[str(file.relative_to(root)), hash_path(file)] for file in sorted(root.rglob("*.py"))])
