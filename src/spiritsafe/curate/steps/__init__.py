"""The steps, one file each. To add one, write its file and list it here; docs/curate.md shows how."""

from spiritsafe.curate._step import Step
from spiritsafe.curate.steps._decontaminate import Decontaminate
from spiritsafe.curate.steps._drop_empty import DropEmpty
from spiritsafe.curate.steps._drop_refusals import DropRefusals
from spiritsafe.curate.steps._drop_truncated import DropTruncated
from spiritsafe.curate.steps._exact_dedup import ExactDedup
from spiritsafe.curate.steps._length import Length
from spiritsafe.curate.steps._near_dedup import NearDedup

__all__ = ["STEPS"]

STEPS: dict[str, type[Step]] = {
    step.name: step for step in (ExactDedup, NearDedup, DropTruncated, DropEmpty, DropRefusals, Length, Decontaminate)
}
