"""Where did this model come from: plan, run, case, verify, attest; one file a test in `tests/`.

Names are imported when asked for: what needs torch loads where it is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spiritsafe.audit._attest import attest
    from spiritsafe.audit._attested import AttestationVerification, verify_attestation
    from spiritsafe.audit._case import Case, build_case
    from spiritsafe.audit._evidence import Evidence
    from spiritsafe.audit._freeze import freeze, load_frozen, plan_from
    from spiritsafe.audit._frozen import Frozen
    from spiritsafe.audit._plan import AuditPlan
    from spiritsafe.audit._results import Finding
    from spiritsafe.audit._run import RunFolder, run_audit
    from spiritsafe.audit._screen import Screen, screen
    from spiritsafe.audit._suspect import open_suspect
    from spiritsafe.audit._tsa import timestamp, verify_timestamp
    from spiritsafe.audit._verify import CaseVerification, verify_case
    from spiritsafe.audit.tests import open_test

__all__ = [
    "AttestationVerification",
    "AuditPlan",
    "Case",
    "CaseVerification",
    "Evidence",
    "Finding",
    "Frozen",
    "RunFolder",
    "Screen",
    "attest",
    "build_case",
    "freeze",
    "load_frozen",
    "open_suspect",
    "open_test",
    "plan_from",
    "run_audit",
    "screen",
    "timestamp",
    "verify_attestation",
    "verify_case",
    "verify_timestamp",
]

_HOMES = {
    "_attest": ("attest",),
    "_attested": ("AttestationVerification", "verify_attestation"),
    "_case": ("Case", "build_case"),
    "_evidence": ("Evidence",),
    "_freeze": ("freeze", "load_frozen", "plan_from"),
    "_frozen": ("Frozen",),
    "_plan": ("AuditPlan",),
    "_results": ("Finding",),
    "_run": ("RunFolder", "run_audit"),
    "_screen": ("Screen", "screen"),
    "_suspect": ("open_suspect",),
    "_tsa": ("timestamp", "verify_timestamp"),
    "_verify": ("CaseVerification", "verify_case"),
    "tests": ("open_test",),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
