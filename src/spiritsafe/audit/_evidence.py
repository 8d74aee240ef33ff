"""What a test is made of besides its entry in the plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from spiritsafe.errors import BadInput
from spiritsafe.keys import Commitment, Leaf

__all__ = ["Evidence"]


@dataclass(frozen=True, slots=True)
class Evidence:
    """Inputs, opened keys and what they are held against, for one test.

    inputs: name in the case → file on disk; the plan's entry names its inputs as the case does.
    leaves: opened keys, each already verified against `commitment`.
    family: how many hypotheses were committed to for this test's purpose.
    sequential: this test may be stopped by its e-value (`stop.rule` of the plan, primary test): p comes from that.
    """

    inputs: Mapping[str, Path]
    decoy_seed: bytes
    leaves: tuple[Leaf, ...] = field(default=(), repr=False)
    commitment: Commitment | None = None
    family: int = 1
    sequential: bool = False

    def input(self, name: str) -> Path:
        """The file of that name.

        Raises:
            BadInput: the case does not have it.
        """
        try:
            return self.inputs[name]
        except KeyError:
            raise BadInput(
                f"{name}: the plan names it, but it is not among the inputs; freeze the plan again"
            ) from None
