"""Does a model give what a test needs? Found out before the first question."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spiritsafe.audit._plan import AuditPlan, RadioactivityConfig, TestConfig
from spiritsafe.errors import BadInput

if TYPE_CHECKING:
    from spiritsafe.audit._freeze import Frozen
    from spiritsafe.audit._types import Suspect, Test

__all__ = ["check_primary", "misfit"]

_MORE = {"text": 0, "logprobs": 1, "weights": 2}


def misfit(config: TestConfig, test: Test, suspect: Suspect, frozen: Frozen) -> str | None:
    """Why `suspect` cannot take `test`; None if it can."""
    if _MORE[suspect.access] < _MORE[test.access]:
        return f"gives {suspect.access}, and the test needs {test.access}"
    if isinstance(config, RadioactivityConfig) and config.mode == "reading":
        from spiritsafe.teachers import load_tokenizer
        from spiritsafe.tokens import tokenizer_hash

        teacher = load_tokenizer(frozen.evidence(test.name).input(config.tokenizer))
        if suspect.info.tokenizer_hash != tokenizer_hash(teacher):
            return "has another tokenizer than the teacher, so it cannot read the teacher's ids; use mode: completions"
    return None


def check_primary(plan: AuditPlan, primary: Test) -> None:
    """Every control has to take the primary test, as far as that shows beforehand.

    Raises:
        BadInput: one cannot.
    """
    for name, control in plan.controls.items():
        if control.base_url is not None and primary.access == "weights":
            raise BadInput(
                f"control {name}: {primary.name} is the primary test and needs weights; give the control a path"
            )
