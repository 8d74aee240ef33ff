"""`audit run`: put a frozen plan to a suspect and to the controls, and write down everything."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spiritsafe.audit._run_folder import RunFolder
from spiritsafe.progress import Progress

if TYPE_CHECKING:
    from spiritsafe.audit._freeze import Frozen
    from spiritsafe.audit._types import Suspect

__all__ = ["RunFolder", "run_audit"]


async def run_audit(
    frozen: Frozen, source: str, *, progress: Progress | None = None, suspect: Suspect | None = None
) -> RunFolder:
    """Ask all items of the plan; resumes."""
    raise NotImplementedError
