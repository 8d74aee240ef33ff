"""Which steps act: what shadow hides, what the graver of two says, what the operator turned on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spiritsafe.serve._config import STEPS, LadderConfig, Step
from spiritsafe.serve._steps import acts, enacted
from spiritsafe.serve._types import Identity, LadderState


def state(step: Step, *, shadow: bool = False, subject: str = "account:a") -> LadderState:
    return LadderState(subject, step, shadow, "why", "watch", 0.0)


def who(account: LadderState | None = None, cluster: LadderState | None = None, *, suspended: bool = False) -> Identity:
    return Identity(
        account="a", name="a", org=None, tier="default", key_id="k", scopes=frozenset(), created=0.0,
        suspended=suspended, cluster="c", account_step=account, cluster_step=cluster,
    )  # fmt: skip


ON = LadderConfig(shadow=False)


def test_effects_are_cumulative_and_observe_is_none() -> None:
    assert enacted(who(), ON) == frozenset()
    assert enacted(who(state("observe")), LadderConfig(shadow=False, steps=STEPS)) == frozenset()
    assert enacted(who(state("price_tier")), ON) == {"notify", "cluster_cap", "price_tier"}


def test_only_steps_turned_on_act_below_the_one_reached() -> None:
    config = LadderConfig(shadow=False, steps=("cluster_cap", "output_policy"))
    assert enacted(who(state("review")), config) == {"cluster_cap", "output_policy"}
    assert not acts(who(state("review")), "price_tier", config)
    assert acts(who(state("review")), "output_policy", config)


def test_the_graver_of_account_and_cluster_acts() -> None:
    assert enacted(who(state("notify"), state("price_tier", subject="cluster:c")), ON) == {
        "notify", "cluster_cap", "price_tier",
    }  # fmt: skip
    assert enacted(who(state("price_tier"), state("notify", subject="cluster:c")), ON) == {
        "notify", "cluster_cap", "price_tier",
    }  # fmt: skip


def test_a_shadow_step_hides_no_acting_one() -> None:
    graver = state("output_policy", shadow=True, subject="cluster:c")
    assert enacted(who(state("notify"), graver), ON) == {"notify"}


@pytest.mark.parametrize("suspended", [False, True])
def test_suspension_acts_through_the_accounts_status(suspended: bool) -> None:
    identity = who(None, state("suspend", subject="cluster:c"), suspended=suspended)
    assert acts(identity, "suspend", ON) is suspended
    assert acts(identity, "output_policy", ON)


@given(st.sampled_from(STEPS), st.booleans(), st.sampled_from(STEPS), st.booleans(), st.booleans(), st.booleans())
def test_shadow_changes_nothing(first: Step, a: bool, second: Step, b: bool, suspended: bool, ladder: bool) -> None:
    identity = who(state(first, shadow=a), state(second, shadow=b), suspended=suspended)
    found = enacted(identity, LadderConfig(shadow=ladder))
    if ladder or (a and b):
        assert found == frozenset()
    reached = max((STEPS.index(step) for step, shadow in ((first, a), (second, b)) if not shadow), default=0)
    assert all(STEPS.index(step) <= reached for step in found)
