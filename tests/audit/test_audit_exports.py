"""The package's names: what users import, and nothing that is not there; and that importing it is cheap."""

from __future__ import annotations

import subprocess
import sys

import pytest

import spiritsafe.audit as audit


def test_every_exported_name_is_there() -> None:
    assert all(getattr(audit, name) is not None for name in audit.__all__)
    assert sorted(name for names in audit._HOMES.values() for name in names) == sorted(audit.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = audit.nothing


def test_the_commands_load_nothing_heavy_until_they_run() -> None:
    code = (
        "import sys; import spiritsafe.cli._audit, spiritsafe.audit; "
        "print(sorted({'torch', 'transformers', 'numba', 'rfc3161_client', 'pyarrow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
