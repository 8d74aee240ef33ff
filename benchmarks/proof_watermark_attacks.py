"""`make proof`: what is left of the marks after every attack, by length, and how much text names an account.

The embedded teacher writes documents of 800 tokens at T = 1.0, each for an account of its own. They, and the key set,
stay in runs/proof/watermark-attacks/, so that a study goes on where it stopped and attacks the same texts. Each attack
is one cell; cells already there for the same documents are kept (`--again` redoes them). Results go to
benchmarks/results/watermark-attacks.json with the hash of the code they came from, the tables into
docs/watermark/attacks.md and trace.md between their markers. About ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from benchmarks.study import ROOT, SUBJECTS, Lines, Teacher, code, publish_between

from spiritsafe.keys import KeySet, load_keys, new_keys
from spiritsafe.runs import atomic_write, hash_value
from spiritsafe.watermark._accounts import Accounts
from spiritsafe.watermark._native import NativeDetector
from spiritsafe.watermark._trace import Tracer, epoch_log10_p
from spiritsafe.watermark.attacks import PowerRow, Text, Tools, markdown, parse_attack, power_table

RUN = ROOT / "runs" / "proof" / "watermark-attacks"
RESULTS = ROOT / "benchmarks" / "results" / "watermark-attacks.json"
DOCS = ROOT / "docs" / "watermark"
LENGTHS, LEVELS, ACCOUNTS = (100, 200, 400, 800), (1e-3, 1e-6), 1_000_000
STEP = 25  # grid of lengths on which naming is read off
ATTACKS = [
    "none",
    "retokenise",
    *(f"{name}:{share}" for name in ("delete", "substitute", "synonym") for share in (10, 30, 50)),
    *(f"copy-paste:{share}x{spans}" for share in (10, 25) for spans in (1, 3)),
    "truncate:50",
    "homoglyph:10",
    "homoglyph:10 normalise",
    "whitespace:10",
    "whitespace:10 normalise",
    "paraphrase:3",
    "mix:2",
    "spoof:20",
]


def main(count: int, tokens: int, only: list[str], again: bool, results: Path, run: Path, accounts: int) -> int:
    unknown = set(only) - {*ATTACKS, "trace"}
    if unknown:
        print(f"unknown cell {', '.join(sorted(unknown))}; there are trace, {', '.join(ATTACKS)}", file=sys.stderr)
        return 2
    say = Lines().say
    run.mkdir(parents=True, exist_ok=True)
    keys = load_keys(run / "keys.json") if (run / "keys.json").exists() else new_keys(run / "keys.json", marking={})
    teacher = Teacher()
    documents = written(run / "documents.json", teacher, keys, count, tokens, say)
    lengths = [length for length in LENGTHS if length <= tokens]
    cells = json.loads(results.read_text()) if results.exists() else {}
    identity = hash_value([documents, keys.id])
    if cells.get("identity") != identity:
        cells = {"study": "watermark attacks", "identity": identity, "attacks": {}}
    cells["documents"] = {
        "count": len(documents),
        "tokens": tokens,
        "temperature": 1.0,
        "model": "SmolLM2-135M-Instruct",
    }
    detector = NativeDetector(keys)
    tools = Tools(tokenizer=teacher.tokenizer, rewrite=teacher.rewriter(run / "paraphrases.json"))
    ids = [document["ids"] for document in documents]
    for attack in [name for name in ATTACKS if not only or name in only]:
        if attack in cells["attacks"] and not again:
            continue
        began = time.perf_counter()
        chain = [] if attack == "none" else [parse_attack(spec, tools) for spec in attack.split()]
        rows = power_table(ids, [(attack, chain)], partial(epoch_log10_p, detector), teacher.tokenizer, LEVELS, lengths)
        cells["attacks"][attack] = {"code": code(), "rows": [asdict(row) for row in rows]}
        save(cells, results)
        say(f"{attack}: {time.perf_counter() - began:.0f} s; {rows[-1].power} of {rows[-1].length} tokens found")
    if (not only or "trace" in only) and ("trace" not in cells or again):
        cells["trace"] = {"code": code(), **naming(keys, documents, tools, tokens, accounts, say)}
        save(cells, results)
    if results == RESULTS:
        publish(cells)
    return 0


def written(
    file: Path, teacher: Teacher, keys: KeySet, count: int, tokens: int, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Marked documents; those on disk are read, more are written if there are too few."""
    kept: list[dict[str, Any]] = json.loads(file.read_text()) if file.exists() else []
    kept = [document for document in kept if len(document["ids"]) >= tokens]
    missing = range(len(kept), count)
    if missing:
        from spiritsafe.records import Sampling
        from spiritsafe.teachers import Engine, GenerateJob
        from spiritsafe.watermark._marker import Markers

        began = time.perf_counter()
        weights, markers = teacher.weights, Markers(keys)
        stop = list(weights.eos_ids)

        def job(n: int) -> Any:
            marker = markers.marker(keys.key_id(keys.current, n + 1), np.random.default_rng(n))

            def never_stop(prompt: Sequence[int], so_far: Sequence[int], logits_V: Any) -> Any:
                logits_V = logits_V.clone()
                logits_V[stop] = -math.inf
                return marker(prompt, so_far, logits_V)

            asked = f"Write a long, detailed essay about {SUBJECTS[n % len(SUBJECTS)]}."
            sampling = Sampling(max_tokens=tokens, temperature=1.0, seed=n)
            return GenerateJob(teacher.prompt(asked), sampling, processor=never_stop)

        done = Engine(weights).generate([job(n) for n in missing])
        kept += [{"slot": n + 1, "ids": list(g.token_ids)} for n, g in zip(missing, done, strict=True)]
        atomic_write(file, json.dumps(kept))
        say(f"wrote {len(missing)} documents in {time.perf_counter() - began:.0f} s")
    return [{"slot": d["slot"], "ids": d["ids"][:tokens]} for d in kept[:count]]


def naming(
    keys: KeySet,
    documents: Sequence[dict[str, Any]],
    tools: Tools,
    tokens: int,
    accounts: int,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """How much text names its account among a million, and who is named in whole, mixed and forged documents.

    Whether the true account is named depends on its own p-value and the number of accounts alone; that nobody else is
    gets looked at over all accounts, on the longest texts.
    """
    alone = {d["slot"]: Tracer(keys, Accounts(("it",), (d["slot"],)), level=1e-6 / accounts) for d in documents}
    lengths = list(range(STEP, tokens + 1, STEP))
    named = {
        length: mean(bool(alone[d["slot"]].trace(_ids(d["ids"][:length])).candidates) for d in documents)
        for length in lengths
    }
    everyone = Accounts([f"acct_{slot}" for slot in range(1, accounts + 1)], range(1, accounts + 1))
    tracer = Tracer(keys, everyone, top=5)
    tracer.account_keys(0)

    def traced(texts: Sequence[Text]) -> list[list[int]]:
        encoded = [tools.tokenizer.encode(text.text, add_special_tokens=False) for text in texts]
        return [[c.slot for c in tracer.trace(_ids(one)).candidates] for one in encoded]

    whole = [[c.slot for c in tracer.trace(_ids(d["ids"])).candidates] for d in documents]
    texts = [Text(str(d["slot"]), tools.tokenizer.decode(d["ids"], skip_special_tokens=True)) for d in documents]
    mixed = traced(parse_attack("mix:2", tools).run(texts, 0))
    pairs = [{d["slot"] for d in documents[i : i + 2]} for i in range(0, len(documents), 2)]
    victims = {d["slot"] for d in documents}
    forged = traced(parse_attack("spoof:20", tools).run(texts, 0))
    thief = traced(parse_attack("spoof:20", tools).run(texts[:1], 0))
    say(f"traced {len(whole) + len(mixed) + len(forged) + len(thief)} texts among {accounts} accounts")
    return {
        "accounts": accounts,
        "level": 1e-6,
        "named_by_length": {str(length): share for length, share in named.items()},
        "tokens_for_50": next((length for length in lengths if named[length] >= 0.5), None),
        "tokens_for_95": next((length for length in lengths if named[length] >= 0.95), None),
        "whole": {
            "texts": len(whole),
            "right": sum(d["slot"] in slots for d, slots in zip(documents, whole, strict=True)),
            "wrong": sum(bool(set(slots) - {d["slot"]}) for d, slots in zip(documents, whole, strict=True)),
        },
        "mixed": {
            "texts": len(mixed),
            "both": sum(pair <= set(slots) for pair, slots in zip(pairs, mixed, strict=True)),
            "wrong": sum(bool(set(slots) - pair) for pair, slots in zip(pairs, mixed, strict=True)),
        },
        "forged_from_all": {
            "texts": len(forged),
            "naming_a_source": sum(bool(set(slots) & victims) for slots in forged),
            "naming_others": sum(bool(set(slots) - victims) for slots in forged),
        },
        "forged_from_one": {
            "texts": len(thief),
            "naming_the_source": sum(documents[0]["slot"] in slots for slots in thief),
            "naming_others": sum(bool(set(slots) - {documents[0]["slot"]}) for slots in thief),
        },
    }


def _ids(ids: Sequence[int]) -> Any:
    return np.asarray(ids, np.uint32)


def save(cells: dict[str, Any], results: Path) -> None:
    results.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(results, json.dumps(cells, indent=1) + "\n")


def publish(cells: dict[str, Any]) -> None:
    """Put the tables between their markers in the docs."""
    rows = [
        PowerRow(**{**row, "levels": tuple(row["levels"]), "power": tuple(row["power"])})
        for attack in ATTACKS
        for row in cells["attacks"].get(attack, {}).get("rows", ())
    ]
    facts = cells["documents"]
    about = (
        f"{facts['count']} documents by {facts['model']} at T = {facts['temperature']:g}, key set new for this study."
    )
    publish_between(DOCS / "attacks.md", markdown(rows) + "\n" + about + "\n")
    if trace := cells.get("trace"):
        shares = {int(length): share for length, share in trace["named_by_length"].items()}
        lines = ["| tokens | account named |", "|---|---|"]
        lines += [f"| {length} | {100 * shares[length]:.0f} % |" for length in sorted(shares) if length % 100 == 0]
        lines += [
            "",
            f"50 % named from {trace['tokens_for_50']} tokens, 95 % from {trace['tokens_for_95']}. {about}",
            "",
        ]
        publish_between(DOCS / "trace.md", "\n".join(lines))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=800)
    parser.add_argument("--only", nargs="+", default=[], metavar="CELL")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--run", type=Path, default=RUN)
    parser.add_argument("--accounts", type=int, default=ACCOUNTS)
    given = parser.parse_args()
    sys.exit(main(given.documents, given.tokens, given.only, given.again, given.results, given.run, given.accounts))
