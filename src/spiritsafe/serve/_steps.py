"""Which steps of the ladder act on who asks, now. Pure: the one place that says so."""

from __future__ import annotations

from spiritsafe.serve._config import STEPS, LadderConfig, Step
from spiritsafe.serve._types import Identity

__all__ = ["acts", "enacted", "gravity"]


def gravity(step: Step) -> int:
    """Rank of a step, 0 for "observe"."""
    return STEPS.index(step)


def enacted(identity: Identity, config: LadderConfig) -> frozenset[Step]:
    """The steps whose effects act on `identity`.

    Reached is the graver of the account's and its cluster's step, of those that are not shadow. All steps up to it act
    that the operator turned on; none while the whole ladder is shadow. "observe" does nothing, so it is never among
    them. "suspend" acts through the account's status alone: an account restored, or linked to a suspended cluster
    later, keeps the effects below it and may ask (nobody reviewed *its* suspension).
    """
    if config.shadow:
        return frozenset()
    states = [state for state in (identity.account_step, identity.cluster_step) if state is not None]
    reached = max((gravity(state.step) for state in states if not state.shadow), default=0)
    return frozenset(
        step for step in STEPS[1 : reached + 1] if step in config.steps and (step != "suspend" or identity.suspended)
    )


def acts(identity: Identity, step: Step, config: LadderConfig) -> bool:
    """True if this step's effect acts on `identity`."""
    if identity.account_step is None and identity.cluster_step is None:
        return False  # of nearly everyone, and several times a request
    return step in enacted(identity, config)
