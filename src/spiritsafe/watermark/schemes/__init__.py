"""Spiritsafe's own ways to mark: one file a scheme."""

from __future__ import annotations

from spiritsafe.watermark._marking import Marking
from spiritsafe.watermark._types import Scheme
from spiritsafe.watermark.schemes.gumbel import Gumbel
from spiritsafe.watermark.schemes.kgw import Kgw
from spiritsafe.watermark.schemes.synthid import SynthId

__all__ = ["Gumbel", "Kgw", "SynthId", "scheme_for"]


def scheme_for(marking: Marking) -> Scheme:
    """The scheme that a key set's marking asks for."""
    match marking.scheme:
        case "gumbel-dual":
            return Gumbel(marking.context_width)
        case "kgw":
            return Kgw(marking.context_width, marking.gamma, marking.delta)
        case "synthid":
            return SynthId(marking.context_width, marking.depth)
