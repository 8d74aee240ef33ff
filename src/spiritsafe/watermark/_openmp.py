"""numba's threads are OpenMP's, and so are torch's: where numba starts one a core, torch computes with as many from
then on, whatever OMP_NUM_THREADS said. Several such processes on one machine then wait for each other.
"""

from __future__ import annotations

import os
import sys
from collections.abc import MutableMapping

__all__ = ["limit_numba"]


def limit_numba(environment: MutableMapping[str, str]) -> None:
    """Let numba start no more threads than OMP_NUM_THREADS allows, unless NUMBA_NUM_THREADS says otherwise.

    numba reads its variable when it is imported; nothing is done where it has been.
    """
    first = environment.get("OMP_NUM_THREADS", "").partition(",")[0].strip()  # a list where regions nest
    if first.isdecimal() and 0 < int(first) < (os.cpu_count() or 1) and "numba" not in sys.modules:
        environment.setdefault("NUMBA_NUM_THREADS", first)
