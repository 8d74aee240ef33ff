"""`make proof ARGS=audit_null`: does any test of an audit find innocents more often than it says?

Innocents are 23 real models (`audit_null_students`), 20 of them trained. Each is asked once what an audit asks; a trial
is a fresh secret over these answers (coins, draws, keys, permutations), judged by the product's own tests. Where
answers depend on the secret, as predictions in marked texts do, the key that made the texts is tried: real corpora of
the embedded teacher, and by the thousand with a small language for a teacher.

Everything is kept in runs/proof/audit-null/, so a second run goes on. Rows go to benchmarks/results/audit-null.json, to
src/spiritsafe/audit/calibration.json (`spiritsafe audit calibrate` prints it) and docs/audit/calibration.md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from benchmarks import audit_null_coins as coins
from benchmarks import audit_null_leads as leads
from benchmarks import audit_null_marks as marks
from benchmarks.audit_null_answers import SAMPLED, Asked
from benchmarks.audit_null_students import INNOCENTS, MARKED, Innocent
from benchmarks.study import ROOT, Teacher, code, publish_between

from spiritsafe import pvalue
from spiritsafe.audit._calibration import Calibration, Row, counted, judges_hash, too_often
from spiritsafe.audit._frozen import code_hash
from spiritsafe.runs import atomic_write

RUN = ROOT / "runs" / "proof" / "audit-null"
RESULTS = ROOT / "benchmarks" / "results" / "audit-null.json"
SHIPPED = ROOT / "src" / "spiritsafe" / "audit" / "calibration.json"
PAGE = ROOT / "docs" / "audit" / "calibration.md"


def real(of: Callable[[Innocent], bool] = lambda one: True) -> Callable[[Sequence[Innocent]], str]:
    return lambda some: f"{sum(map(of, some))} real models"


def _small(some: Sequence[Innocent]) -> str:
    return "3 of a small language"


def _tiny(some: Sequence[Innocent]) -> str:
    return "tiny decoders"


@dataclass(frozen=True)
class Cell:
    """Rows of the table: one, or one a layer of keys.

    who: what to call the innocents, of those that take part.  run: → p-values (log10) by layer, a trial each.
    """

    test: str
    name: str
    redrawn: str
    who: Callable[[Sequence[Innocent]], str]
    run: Callable[[Asked, np.random.Generator, int], Iterator[Mapping[str, float]]]
    trials: int = 690
    levels: tuple[float, ...] = (1e-2, 1e-3)
    independent: bool = True

    @property
    def seed(self) -> int:
        return int.from_bytes(hashlib.sha256(f"{self.test} {self.name}".encode()).digest()[:4], "big")


def small() -> Iterator[Cell]:
    """Cells that no real model has a part in."""
    for scheme, width in (("kgw", 1), ("kgw", 2), ("gumbel", 1), ("gumbel", 2), ("synthid", 2)):
        for mode in ("reading", "supervised", "unsupervised"):
            run = marks.language(scheme, width, mode)
            how = "reading" if mode == "reading" else f"completions, {mode}"
            name = f"{how}, {scheme}, k = {width}, small"
            yield Cell("radioactivity", name, "keys that made the texts", _small, run, 250)
    yield Cell("lineage", "strangers", "initialisations", _tiny, leads.lineage_strangers, 1000)


def radioactivity() -> Iterator[Cell]:
    test = "radioactivity"
    for name in ("kgw with accounts", "gumbel with accounts", "kgw, k = 2", "synthid, k = 2"):
        run = marks.recorded(MARKED[name], "reading kgw with accounts")
        yield Cell(test, f"reading, {name}", "keys, over texts of another key", real(), run)
    for name in ("kgw with accounts", "gumbel with accounts", "synthid, k = 2"):
        run = marks.recorded(MARKED[name], "completions")
        yield Cell(test, f"completions, unsupervised, {name}", "keys, over what was written", real(), run)
    made = f"nothing: the keys that made {len(MARKED)} corpora"
    yield Cell(test, "reading, real corpora", made, real(), marks.made, independent=False)
    yield Cell(test, "completions, supervised, real corpora", made, real(), marks.made_supervised, independent=False)


def coin_tests() -> Iterator[Cell]:
    for name, run, trials in (
        ("likelihood", coins.twins, 4600),
        ("likelihood, e-value, stopped at its best", coins.twins_stopping, 1150),
        ("likelihood, budget exhausted", coins.twins_stopped, 1150),
        ("text", coins.twins_by_text, 1150),
    ):
        yield Cell("twins", name, "coins", real(), run, trials)
    for name, run, trials in (
        ("likelihood", coins.canaries("canaries"), 4600),
        ("likelihood, budget exhausted", coins.canaries_stopped, 1150),
        ("text", coins.canaries("canaries-text"), 1150),
    ):
        yield Cell("canaries", name, "draws", real(), run, trials)


def lead_tests() -> Iterator[Cell]:
    who = real(lambda one: one.name in SAMPLED)
    yield Cell("equality", "same model twice", "which replies were first", who, leads.equality, 600)
    who = real(lambda one: one.name != "teacher")
    what, levels = "suspect and controls", (0.1, 0.05)
    yield Cell("similarity", f"{leads.CONTROLS} controls", what, who, leads.similarity, 230, levels)
    who = real(lambda one: one.student.layers == 4)
    yield Cell("lineage", "units and coordinates reordered", "orders", who, leads.lineage_reordered, 204)


CELLS = (*small(), *radioactivity(), *coin_tests(), *lead_tests())


def main(only: Sequence[str], names: Sequence[str], share: float, run: Path, results: Path) -> int:
    innocents = [one for one in INNOCENTS if one.name in (names or one.name)]
    asked = Asked(Teacher(), run, innocents)
    study = json.loads(results.read_text()) if results.exists() else {"study": "audit null", "cells": {}}
    for cell in CELLS:
        name, trials = f"{cell.test}: {cell.name}", max(1, round(cell.trials * share))
        known = study["cells"].get(name)
        if only and cell.test not in only:
            continue
        if known and (known["asked"], known["models"]) >= (trials, len(innocents)) and known["judges"] == judges_hash():
            continue
        began = time.perf_counter()
        found = list(cell.run(asked, np.random.default_rng(cell.seed), trials))
        rows = [row_of(cell, layer, [one[layer] for one in found if layer in one], asked) for layer in layers(found)]
        study["cells"][name] = {
            "asked": trials,
            "models": len(innocents),
            "judges": judges_hash(),
            "rows": [row.model_dump() for row in rows],
        }
        atomic_write(results, json.dumps(study, indent=1) + "\n")
        said = ", ".join(f"{row.rejected} of {row.trials}" for row in rows)
        print(f"{name}: {said} in {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    rows = [Row.model_validate(row) for cell in study["cells"].values() for row in cell["rows"]]
    if results == RESULTS and not only and share == 1:
        trained = sum(one.student.epochs > 0 for one in innocents)
        atomic_write(SHIPPED, Calibration(students=trained, rows=tuple(rows)).model_dump_json(indent=1) + "\n")
        publish_between(PAGE, table(rows))
    return int(bool(too_often(rows)))


def layers(found: Sequence[Mapping[str, float]]) -> list[str]:
    return sorted({layer for one in found for layer in one}, reverse=True)


def row_of(cell: Cell, layer: str, p: list[float], asked: Asked) -> Row:
    return Row(
        test=cell.test,
        name=cell.name + (", account's key" if layer == "account" else ""),
        redrawn=cell.redrawn,
        innocents=cell.who(asked.innocents),
        independent=cell.independent,
        **counted(p, cell.levels),
        seed=cell.seed,
        code=code(),
        package=code_hash(),
        judges=judges_hash(),
        date=time.strftime("%Y-%m-%d", time.gmtime()),
    )


def table(rows: Sequence[Row]) -> str:
    """For the page; a share stands with its 95 % interval."""
    above = {(row.test, row.name) for row, _ in too_often(rows)}
    lines = [
        "| test | redrawn | innocents | trials | rejected at each level (95 % interval) | smallest p | |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        rejected = "; ".join(f"{level}: {_share(row, level)}" for level in row.rejected)
        verdict = "**above nominal**" if (row.test, row.name) in above else "not above" if row.independent else "seen"
        lines.append(
            f"| {row.test}: {row.name} | {row.redrawn} | {row.innocents} | {row.trials} | {rejected} |"
            f" {10**row.smallest:.2g} | {verdict} |"
        )
    return "\n".join(lines) + "\n"


def _share(row: Row, level: str) -> str:
    count = row.rejected[level]
    if not row.independent:
        return str(count)
    low, high = pvalue.clopper_pearson(row.trials, count)
    return f"{count} ({low:.2%} to {high:.2%})"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], choices=sorted({cell.test for cell in CELLS}))
    parser.add_argument("--innocents", nargs="+", default=[], choices=[one.name for one in INNOCENTS], metavar="NAME")
    parser.add_argument("--share", type=float, default=1.0, help="this share of all trials, to try it out")
    parser.add_argument("--run", type=Path, default=RUN)
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    sys.exit(main(given.only, given.innocents, given.share, given.run, given.results))
