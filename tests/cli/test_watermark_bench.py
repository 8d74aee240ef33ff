"""`watermark bench` runs what it times and says so in one object."""

from __future__ import annotations

import json

import pytest

from spiritsafe.cli import main


def test_bench_measures_every_scheme(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["watermark", "bench", "--tokens", "20000", "--accounts", "200", "--rounds", "1"]
    with pytest.raises(SystemExit) as left:
        main([*arguments, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert left.value.code == 0
    assert [row["scheme"] for row in found["schemes"]] == ["gumbel-dual", "kgw", "synthid"]
    assert all(row["read_tokens_per_s"] > 0 and row["mark_ms_per_step"] > 0 for row in found["schemes"])
    assert all(row["trace_s"] >= 0 for row in found["schemes"])
    with pytest.raises(SystemExit):
        main(arguments)
    assert "tokens/s" in capsys.readouterr().out
