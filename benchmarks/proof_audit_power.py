"""`make proof ARGS=audit_power`: how strong the evidence is, one factor at a time, on real distillations.

SmolLM2-135M writes replies of at most 48 tokens at temperature 1, marked with KGW (k = 1, δ = 3, no surprise spent
first); each has a sealed twin, marked alike. The base student is a 12-layer prune of the teacher, trained by this
project's `train` for two epochs on 128 of the released replies, 256 tokens a step, lr 5e-4. Each other cell changes one
thing. Every student is judged twice, by the product's own tests' arithmetic:

    radioactivity   reads the marked replies it was trained on (reading, supervised): log10 p of the e-value, and the
                    tail at that number of pairs
    twins           by likelihood, released against sealed, on the same replies (at most 128)

Everything is kept in runs/proof/audit-power/, so a second run goes on; results with the code's hash go to
benchmarks/results/audit-power.json, table and figure to the docs.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.audit_students import Corpus, Row, Student, asked, kept, predictions, replies, student, sums
from benchmarks.study import ROOT, Teacher, code, publish_between

from spiritsafe import pvalue
from spiritsafe.runs import atomic_write

RESULTS = ROOT / "benchmarks" / "results" / "audit-power.json"
RUN = ROOT / "runs" / "proof" / "audit-power"
PAGE, FIGURE = ROOT / "docs" / "audit" / "power.md", ROOT / "docs" / "img" / "audit-power.png"
TEXTS, TWINS = 128, 128
_ALIKE = {"account_share": 0.0, "surprise_bits": 0.0}
MARKINGS = {
    **{f"kgw-{k}": {"scheme": "kgw", "context_width": k, "delta": 3.0, **_ALIKE} for k in (1, 2, 3, 4)},
    "gumbel-1": {"scheme": "gumbel-dual", "context_width": 1, **_ALIKE},
    "gumbel-2": {"scheme": "gumbel-dual", "context_width": 2, **_ALIKE},
    "synthid-1": {"scheme": "synthid", "context_width": 1, **_ALIKE},
}


@dataclass(frozen=True)
class Cell:
    """A student. after: what happened to the replies or to the student besides. fresh: marked replies it never saw are
    read instead of those it was trained on.  closed: it writes replies to the prompts instead of reading."""

    factor: str
    value: str
    marking: str = "kgw-1"
    share: float = 1.0
    texts: int = TEXTS
    epochs: int = 2
    layers: int = 12
    lr: float = 5e-4
    step: int = 256
    objective: str = "sft"
    after: str = ""
    fresh: bool = False
    closed: bool = False

    @property
    def name(self) -> str:
        return f"{self.factor}: {self.value}"

    @property
    def student(self) -> str:
        parts = (self.marking, self.share, self.texts, self.epochs, self.layers, self.lr, self.step, self.objective)
        return "-".join(map(str, (*parts, self.after or "as-is")))


BASE = Cell("base", "")
CELLS = (
    BASE,
    *(Cell("epochs", str(n), epochs=n) for n in (1, 3, 5)),
    *(Cell("share of marked data", f"{share:.0%}", share=share) for share in (0.5, 0.25, 0.1, 0.05, 0.01)),
    Cell("scheme", "Gumbel", marking="gumbel-1"),
    Cell("scheme", "SynthID", marking="synthid-1"),
    *(Cell("context width", str(k), marking=f"kgw-{k}") for k in (2, 3, 4)),
    Cell("context width", "2, Gumbel", marking="gumbel-2"),
    *(Cell("replies", str(n), texts=n) for n in (16, 32, 64, 256)),
    *(Cell("layers", str(n), layers=n) for n in (4, 8, 20, 30)),
    Cell("tokens a step", "1,024", step=1024),
    Cell("learning rate", "1e-4", lr=1e-4),
    Cell("objective", "top-64", objective="topk"),
    Cell("then", "replies paraphrased before training", after="paraphrase"),
    Cell("then", "half of the replies from another teacher", after="mixed"),
    Cell("then", "one epoch on 128 unmarked replies", after="clean"),
    Cell("then", "three epochs on 128 unmarked replies", after="clean-3"),
    Cell("asked", "marked replies it never saw", fresh=True),
    Cell("asked", "marked replies it never saw, 5 epochs", epochs=5, fresh=True),
    Cell("asked", "its own replies only", closed=True),
    Cell("asked", "its own replies only, 5 epochs", epochs=5, closed=True),
    Cell("not trained", "", epochs=0),
)


class Study:
    """Makes what cells need, once."""

    def __init__(self, run: Path) -> None:
        self.run, self.teacher = run, Teacher()

    def corpus(self, name: str) -> list[Row]:
        """NAME of a marking, with -sealed or -fresh; plain: unmarked, to the same prompts; clean: to others; other: of
        another teacher."""
        marking = name.removesuffix("-sealed").removesuffix("-fresh")
        first, count, seed = 0, 256 if marking == "kgw-1" else TEXTS, 0
        if name.endswith("-sealed"):
            seed, count = 1, TWINS
        if name.endswith("-fresh") or name in ("clean", "other"):
            first, count = 384, TEXTS
        speaker = None
        if name == "other":  # the same weights, after it learned to write like this project's documentation
            speaker = student(self.teacher, self.run, Student("other-teacher", 30, epochs=1), self.documentation())
        return replies(
            self.teacher,
            self.run,
            Corpus(name, first, count, marking=MARKINGS.get(marking), keys=marking, seed=seed, speaker=speaker),
        )

    def documentation(self) -> list[Row]:
        pages = sorted((ROOT / "docs").rglob("*.md"))
        return [{"prompt": f"Write about {p.stem}.", "completion": p.read_text("utf-8")[:400]} for p in pages]

    def trained_on(self, cell: Cell) -> tuple[list[Row], list[int]]:
        """What the student is trained on, and which of the marked replies that are."""
        marked = self.corpus(cell.marking)[: cell.texts]
        count = max(1, round(cell.share * len(marked)))
        mine = sorted(map(int, np.random.default_rng(1).permutation(len(marked))[:count]))
        rows = list(marked)
        if count < len(marked):
            plain, taken = self.corpus("plain"), set(mine)
            rows = [row if at in taken else plain[at] for at, row in enumerate(marked)]
        if cell.after == "paraphrase":
            said = self.teacher.rewriter(self.run / "paraphrases.json")([row["completion"] for row in rows])
            rows = [row | {"completion": text} for row, text in zip(rows, said, strict=True)]
        if cell.after == "mixed":
            mine = mine[: len(mine) // 2]
            rows = [marked[at] for at in mine] + self.corpus("other")[: len(marked) - len(mine)]
        return rows, mine

    def weights(self, cell: Cell, rows: Sequence[Row]) -> Path:
        how = {"layers": cell.layers, "lr": cell.lr, "step": cell.step, "objective": cell.objective}
        if not cell.epochs:
            return student(self.teacher, self.run, Student(f"untrained-{cell.layers}", cell.layers, epochs=0))
        if cell.after.startswith("clean"):
            plain = Cell("", "", layers=cell.layers, epochs=cell.epochs)
            self.weights(plain, rows)
            epochs = int(cell.after.partition("-")[2] or 1)
            wanted = Student(cell.student, epochs=epochs, start=plain.student, **how)
            return student(self.teacher, self.run, wanted, self.corpus("clean"))
        return student(self.teacher, self.run, Student(cell.student, epochs=cell.epochs, **how), rows)

    def measure(self, cell: Cell) -> dict[str, Any]:
        rows, mine = self.trained_on(cell)
        weights, marked = self.weights(cell, rows), self.corpus(cell.marking)
        shown = self.corpus(f"{cell.marking}-fresh") if cell.fresh else [marked[at] for at in mine]
        found: dict[str, Any] = {"trained_on": len(rows), "marked": len(mine)}
        found["tokens"] = sum(len(marked[at]["tokens"]) for at in mine)
        found["radioactivity"] = self.radioactivity(cell, weights, shown)
        # Gumbel's twins are one text where no surprise is spent; those of other keys would say what KGW's say
        if cell.marking == "kgw-1" and not (cell.fresh or cell.closed):
            found["twins"] = self.twins(cell, weights, [at for at in mine if at < TWINS])
        return found

    def radioactivity(self, cell: Cell, weights: Path, shown: Sequence[Row]) -> dict[str, Any]:
        from spiritsafe.audit._types import Record

        test, name = self.test(cell, shown), f"{cell.student}-{'fresh' if cell.fresh else 'its'}"
        items = test.items()
        if cell.closed:
            got = kept(
                self.run / "said" / f"{cell.student}-writes.json",
                lambda: asked(weights, lambda suspect, some: test.ask(suspect, some), items),
            )
        else:
            texts = [
                (item.asked["ids"][: item.asked["first"]], item.asked["ids"][item.asked["first"] :]) for item in items
            ]
            got = [{"argmax": row} for row in predictions(self.run, name, weights, texts)]
        records = [Record(test.name, item.id, 0.0, 1, item.asked, row) for item, row in zip(items, got, strict=True)]
        outcome = test.judge(records)
        facts = outcome.hypotheses[0].facts
        return {
            "pairs": outcome.n_scored,
            "effect": dict(outcome.effect),
            "log10_p": outcome.log10_p,
            "log10_tail": facts["log10_tail"],
            "rank": outcome.hypotheses[0].rank,
        }

    def test(self, cell: Cell, shown: Sequence[Row]) -> Any:
        """The test on these replies, with the key opened from a commitment."""
        from spiritsafe.audit._evidence import Evidence
        from spiritsafe.audit._plan import RadioactivityConfig
        from spiritsafe.audit.tests.radioactivity import Radioactivity
        from spiritsafe.keys import commit_keys, open_leaf

        texts, opened = self.run / "shown.jsonl", self.run / f"opened-{cell.marking}.json"
        atomic_write(texts, "".join(json.dumps(row) + "\n" for row in shown))
        opened.write_bytes((self.run / f"keys-{cell.marking}.json").read_bytes())  # opening ends the epoch, in the file
        opened.chmod(0o600)
        commitment = commit_keys(opened, slots=1)
        leaf = open_leaf(opened, "2026-11", "epoch", commitment=commitment)
        config = RadioactivityConfig(
            kind="radioactivity", texts="texts", tokenizer="tokenizer", marking=dict(MARKINGS[cell.marking]),
            mode="completions" if cell.closed else "reading", supervised=not cell.fresh, max_tokens=48,
        )  # fmt: skip
        inputs = {"texts": texts, "tokenizer": self.teacher.path}
        return Radioactivity(config, Evidence(inputs, b"proof", (leaf,), commitment, commitment.committed["epoch"]))

    def twins(self, cell: Cell, weights: Path, mine: Sequence[int]) -> dict[str, Any]:
        """The sign test that `twins` makes where every pair is opened: mean log-probability a token, ties left out."""
        released, sealed = self.corpus(cell.marking), self.corpus(f"{cell.marking}-sealed")
        pairs = [(released[at]["prompt"], (released[at]["completion"], sealed[at]["completion"])) for at in mine]
        said = sums(self.run, f"{cell.student}-twins", weights, pairs)
        scores = [[total / n if n else -np.inf for total, n in pair] for pair in said]
        wins, n = sum(a > b for a, b in scores), sum(a != b for a, b in scores)
        return {
            "pairs": n,
            "share": wins / n if n else 0.5,
            "ci95": list(pvalue.clopper_pearson(n, wins)),
            "log10_p": float(pvalue.binomial(n, 0.5, wins)) if n else 0.0,
        }


def main(only: Sequence[str], run: Path, results: Path) -> int:
    run.mkdir(parents=True, exist_ok=True)
    study: dict[str, Any] = {"study": "audit power", "cells": {}}
    if results.exists():
        study = json.loads(results.read_text())
    work = Study(run)
    for cell in CELLS:
        if cell.name in study["cells"] or (only and cell.factor not in only):
            continue
        study["cells"][cell.name] = {"factor": cell.factor, "value": cell.value, "code": code(), **work.measure(cell)}
        atomic_write(results, json.dumps(study, indent=1) + "\n")
        if results == RESULTS and "base: " in study["cells"]:
            publish(study["cells"])
        print(f"{cell.name}: {brief(study['cells'][cell.name])}", file=sys.stderr, flush=True)
    return 0


def publish(cells: Mapping[str, Any]) -> None:
    """The page and its figure, of what there is so far."""
    from benchmarks.audit_power_page import figure, table

    ordered = {cell.name: cells[cell.name] for cell in CELLS if cell.name in cells}
    figure(ordered, FIGURE)
    publish_between(PAGE, table(ordered))


def brief(cell: Mapping[str, Any]) -> str:
    twins = cell.get("twins", {"log10_p": None, "share": None})
    return (
        f"radioactivity {cell['radioactivity']['log10_p']:.1f} ({cell['radioactivity']['effect']['value']:.3f}), "
        f"twins {twins['log10_p']} ({twins['share']})"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], choices=sorted({cell.factor for cell in CELLS}))
    parser.add_argument("--run", type=Path, default=RUN)
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    sys.exit(main(given.only, given.run, given.results))
