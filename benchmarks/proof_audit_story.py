"""`make proof ARGS=audit_story`: from a guard to a verified case, for a model that copied and for one that did not.

SmolLM2-135M, marked and twinned, behind a real guard. Three accounts ask it, of 10,000 whose keys were committed to;
one of them, the copier, distils what it gets. An innocent student is made in the same way, of the same teacher's
unmarked replies to the same prompts. One plan is put to both students. This exits with 1 unless

    the copier's case is proof, with log10 p ≤ -6, and names the copier's account alone of the 10,000
    the innocent's case is inconclusive, and names nobody
    `audit verify` and the second verifier, alone on Python's standard library, accept both

Everything goes through the command line and HTTP, as users have it. All is kept in runs/proof/audit-story/, so a second
run goes on; results go to benchmarks/results/audit-story.json, the table to docs/audit/story.md.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.audit_guard import MODEL, SPIRITSAFE, guarded, spiritsafe, teaching
from benchmarks.audit_students import PROMPTS
from benchmarks.study import ROOT, code, embedded_weights, publish_between
from tests.timestamps import Authority, running_authority

from spiritsafe.runs import atomic_write

RESULTS = ROOT / "benchmarks" / "results" / "audit-story.json"
RUN = ROOT / "runs" / "proof" / "audit-story"
PAGE = ROOT / "docs" / "audit" / "story.md"
EPOCH, SLOTS, ALPHA, PROOF = "2026-11", 10_000, 1e-3, -6.0
ASKED = PROMPTS[::16]  # 48: every way to ask, about two subjects
CUSTOMERS = {"ada": ASKED[::12], "copier": [p for i, p in enumerate(ASKED) if i % 6], "bert": ASKED[6::12]}
SUSPECTS = ("copier", "innocent")
RECIPE = """\
name: {name}
teacher:
  model: {model}
  base_url: {url}
  api_key_env: {key}
  terms: apache-2.0
  price: {{input_per_mtok: 0.1, output_per_mtok: 0.4}}
prompts: {{path: prompts.jsonl, column: prompt}}
collect: {{budget_usd: 1, max_tokens: 48, temperature: 1.0, logprobs: 0, seed: null, reuse: false}}
curate: [exact_dedup, drop_empty]
student: {{init: MODEL.gguf}}
train: {{objective: sft, epochs: 5, lr: 3.0e-4, batch_tokens: 256, checkpoint_every: 20}}
evaluate: {{holdout: 0.02}}
"""
PLAN = """\
name: suspect-{name}
question: Was this model trained on replies that our guard released, and to which account?
subject: {{name: {name}, access: weights}}
alpha: {alpha}
tests:
  - kind: radioactivity
    mode: reading
    texts: twins.jsonl
    tokenizer: MODEL.gguf
    marking: {{scheme: gumbel-dual}}
    commitment: commitment.json
    leaves: [epoch.json, coin.json]
    per_account: [slots.json]
  - kind: twins
    pairs: twins.jsonl
    ledger: ledger.jsonl
    by: likelihood
controls:
  untouched: {{path: MODEL.gguf}}
signer: auditor.pem
tsa: {tsa}
"""


class Desk:
    """A folder in which commands are typed. What was done is not done again; commands.jsonl has time and memory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def has(self, name: str) -> bool:
        return (self.folder / name).exists()

    def write(self, name: str, text: str) -> None:
        if not self.has(name):
            atomic_write(self.folder / name, text)

    def spiritsafe(self, line: str, makes: str = "", **environment: str) -> None:
        self.command([str(SPIRITSAFE), *line.split()], f"spiritsafe {line}", makes, environment)

    def command(
        self, command: Sequence[str], line: str, makes: str = "", environment: dict[str, str] | None = None
    ) -> str:
        """What it printed; "" if what it `makes` is there."""
        if makes and self.has(makes):
            return ""
        said = self.folder / f"said-{os.getpid()}.txt"
        began = time.perf_counter()
        with said.open("wb") as out:
            child = os.posix_spawnp(
                command[0], command, os.environ | (environment or {}),
                file_actions=[(os.POSIX_SPAWN_DUP2, out.fileno(), 1), (os.POSIX_SPAWN_DUP2, out.fileno(), 2)],
            )  # fmt: skip
            _, status, used = os.wait4(child, 0)
        row = {"command": line, "seconds": time.perf_counter() - began, "peak_mb": used.ru_maxrss / 1024}
        with (self.folder / "commands.jsonl").open("a") as log:
            log.write(json.dumps(row) + "\n")
        print(f"{row['seconds']:6.0f} s {row['peak_mb']:5.0f} MB  $ {line}", file=sys.stderr, flush=True)
        text = said.read_text(errors="replace")
        said.unlink()
        if os.waitstatus_to_exitcode(status) != 0:
            raise SystemExit(f"{line}: failed\n{text[-2000:]}")
        return text


def main(run: Path, results: Path, model: Path) -> int:
    run.mkdir(parents=True, exist_ok=True)
    os.chdir(run)
    desk = Desk(run)
    if not desk.has("MODEL.gguf"):
        (run / "MODEL.gguf").symlink_to(model)
    desk.write("prompts.jsonl", "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in CUSTOMERS["copier"]))
    with running_authority(run / "tsa") as authority:
        publish_keys(desk, authority)
        serve(desk)
        serve_unmarked(desk)
        for name in SUSPECTS:
            for stage, makes in (("curate", "curation.json"), ("train", "student/config.json")):
                desk.spiritsafe(f"{stage} {name}.yaml", f"runs/{name}/{makes}")
        open_evidence(desk, authority)
        found = {name: audit(desk, authority, name) for name in SUSPECTS}
    return judge(desk, found, results)


def publish_keys(desk: Desk, authority: Authority) -> None:
    """Before anything is served."""
    desk.spiritsafe(f"watermark keys new keys.json --epoch {EPOCH}", "keys.json")
    desk.spiritsafe(f"watermark keys commit keys.json --slots {SLOTS} --out commitment.json", "commitment.json")
    desk.spiritsafe(f"audit timestamp commitment.json --tsa {authority.url}", "commitment.json.tsr")


def serve(desk: Desk) -> None:
    """Accounts ask the guard, the copier by its recipe. Then exports, once."""
    ledger = desk.folder / "ledger.jsonl"
    if not ledger.exists():
        with guarded(desk.folder, "MODEL.gguf", keys=desk.folder / "keys.json") as guard:
            accounts = desk.folder / "accounts.json"
            keys = json.loads(accounts.read_text()) if accounts.exists() else {}
            for name, prompts in CUSTOMERS.items():
                if name not in keys:
                    keys[name] = guard.account(name)
                    atomic_write(accounts, json.dumps(keys), 0o600)
                key = keys[name][1]
                if name != "copier":
                    if not desk.has(f"{name}.asked"):
                        guard.ask(key, prompts, max_tokens=48, temperature=1.0)
                        desk.write(f"{name}.asked", "")
                    continue
                recipe = RECIPE.format(name=name, model=MODEL, url=f"{guard.url}/v1", key="GUARD_KEY")
                desk.write(f"{name}.yaml", recipe)
                desk.spiritsafe(f"collect {name}.yaml", f"runs/{name}/exchanges.parquet", GUARD_KEY=key)
            slots = {name: spiritsafe(guard.config, "accounts", "show", keys[name][0])["slot"] for name in CUSTOMERS}
            atomic_write(desk.folder / "slots-bound.json", json.dumps(slots))
            desk.spiritsafe("evidence twins export --out twins.jsonl --config guard.yaml", "twins.jsonl")
            desk.spiritsafe("ledger export --all --no-personal --out ledger.jsonl --config guard.yaml", "ledger.jsonl")


def serve_unmarked(desk: Desk) -> None:
    """The same prompts, to the same teacher without guard and keys."""
    innocent, folder = "runs/innocent/exchanges.parquet", desk.folder / "unmarked"
    if not desk.has(innocent):
        folder.mkdir(exist_ok=True)
        with teaching(folder, "MODEL.gguf") as url:
            desk.write("innocent.yaml", RECIPE.format(name="innocent", model=MODEL, url=url, key="null"))
            desk.spiritsafe("collect innocent.yaml", innocent)


def open_evidence(desk: Desk, authority: Authority) -> None:
    desk.spiritsafe(f"audit timestamp ledger.jsonl --tsa {authority.url}", "ledger.jsonl.tsr")
    opening = f"watermark keys open keys.json --commitment commitment.json --epoch {EPOCH}"
    for what, makes in (("--purpose coin", "coin"), (f"--slot 0-{SLOTS - 1}", "slots"), ("--purpose epoch", "epoch")):
        desk.spiritsafe(f"{opening} {what} --out {makes}.json", f"{makes}.json")
    desk.command(["openssl", *(line := "genpkey -algorithm ed25519 -out auditor.pem").split()], f"openssl {line}",
                 "auditor.pem")  # fmt: skip
    desk.command(["openssl", *(line := "pkey -in auditor.pem -pubout -out auditor.pub").split()], f"openssl {line}",
                 "auditor.pub")  # fmt: skip


def audit(desk: Desk, authority: Authority, name: str) -> dict[str, Any]:
    """Freeze, run, verify twice; what the case says."""
    plan, case = f"suspect-{name}.yaml", f"suspect-{name}.case.zip"
    if not desk.has(f"suspect-{name}.frozen.json"):  # the authority's port is another at each start
        atomic_write(desk.folder / plan, PLAN.format(name=name, alpha=ALPHA, tsa=authority.url))
    desk.spiritsafe(f"audit plan {plan}", f"suspect-{name}.frozen.json")
    desk.spiritsafe(f"audit run {plan} --suspect runs/{name}/student", case)
    desk.spiritsafe(f"audit verify {case} --signer auditor.pub --tsa tsa/ca.crt")
    alone = desk.folder / "alone"
    with zipfile.ZipFile(desk.folder / case) as archive:
        for name in (name for name in archive.namelist() if name.startswith("verify_")):
            archive.extract(name, alone)
        results = json.loads(archive.read("results.json"))
    python = [sys.executable, "-I", "-S", str(alone / "verify_case.py"), case]
    desk.command(python, f"python3 -I -S verify_case.py {case}")
    return {
        "finding": {key: results["finding"][key] for key in ("class", "log10_p", "test", "n_scored", "decided")},
        "tests": {one["test"]: summary(one) for one in results["tests"]},
        "untouched": {one["test"]: one["log10_p"] for one in results["controls"]["untouched"]},
        "case_mb": (desk.folder / case).stat().st_size / 1e6,
    }


def summary(outcome: dict[str, Any]) -> dict[str, Any]:
    accounts = [one for one in outcome["hypotheses"] if one["facts"].get("layer") == "account"]
    best = sorted(accounts, key=lambda one: one["log10_p"])[:2]
    return {
        "log10_p": outcome["log10_p"],
        "n": outcome["n_scored"],
        "effect": outcome["effect"]["value"],
        "ci95": outcome["effect"]["ci95"],
        "accounts_tried": len(accounts),
        "pairs_of_accounts": best[0]["n_scored"] if best else 0,
        "strongest": [
            {"slot": one["facts"]["slot"], "log10_p": one["log10_p"], "log10_p_family": one["facts"]["log10_p_family"]}
            for one in best
        ],
        "named": [one["facts"]["slot"] for one in accounts if one["facts"]["log10_p_family"] <= math.log10(ALPHA)],
    }


def judge(desk: Desk, found: dict[str, dict[str, Any]], results: Path) -> int:
    slots = json.loads((desk.folder / "slots-bound.json").read_text())
    copier, innocent = (found[name] for name in SUSPECTS)
    wrong = [
        what
        for holds, what in (
            (copier["finding"]["class"] == "proof", "the copier's case is no proof"),
            (copier["finding"]["log10_p"] <= PROOF, f"the copier's log10 p is not below {PROOF}"),
            ("radioactivity" in copier["finding"]["decided"], "the copier's marks decide nothing"),
            (copier["tests"]["radioactivity"]["accounts_tried"] == SLOTS, f"not {SLOTS} accounts were tried"),
            (copier["tests"]["radioactivity"]["named"] == [slots["copier"]], "not the copier alone is named"),
            (innocent["finding"]["class"] == "inconclusive", "the innocent's case is not inconclusive"),
            (innocent["tests"]["radioactivity"]["named"] == [], "somebody is named for the innocent"),
        )
        if not holds
    ]
    commands = [json.loads(line) for line in (desk.folder / "commands.jsonl").read_text().splitlines()]
    study = {"study": "audit story", "code": code(), "slots": slots, "cases": found, "wrong": wrong}
    atomic_write(results, json.dumps(study | {"commands": commands}, indent=1) + "\n")
    for line in wrong:
        print(f"WRONG: {line}", file=sys.stderr)
    if results == RESULTS and not wrong:
        publish_between(PAGE, table(found))
    return 1 if wrong else 0


def table(found: dict[str, dict[str, Any]]) -> str:
    lines = ["| | copier | innocent | untouched teacher |", "|---|---|---|---|"]
    rows: list[tuple[str, Any]] = [("finding", lambda one: f"**{one['finding']['class']}**")]
    rows += [
        ("twins: log10 p", lambda one: f"{one['tests']['twins']['log10_p']:.1f}"),
        ("radioactivity: log10 p", lambda one: f"{one['tests']['radioactivity']['log10_p']:.1f}"),
        ("twins: released preferred", lambda one: share(one["tests"]["twins"])),
        ("accounts named, of 10,000", lambda one: named(one["tests"]["radioactivity"])),
        ("strongest account, log10 p of all 10,000", lambda one: strongest(one["tests"]["radioactivity"], 0)),
        ("second, log10 p of all 10,000", lambda one: strongest(one["tests"]["radioactivity"], 1)),
    ]
    for label, say in rows:
        control = ""
        if label.endswith(": log10 p"):
            control = f"{found['copier']['untouched'][label.partition(':')[0]]:.1f}"
        lines.append(f"| {label} | {say(found['copier'])} | {say(found['innocent'])} | {control} |")
    return "\n".join(lines) + "\n"


def share(test: dict[str, Any]) -> str:
    low, high = test["ci95"]
    return f"{test['effect']:.0%} of {test['n']} ({low:.0%} to {high:.0%})"


def named(test: dict[str, Any]) -> str:
    return ", ".join(f"slot {slot}" for slot in test["named"]) or "none"


def strongest(test: dict[str, Any], place: int) -> str:
    one = test["strongest"][place]
    return f"slot {one['slot']}: {one['log10_p_family']:.1f}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=RUN)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--model", type=Path, default=None, help="another teacher than SmolLM2-135M: a .gguf or folder")
    given = parser.parse_args()
    model = given.model or embedded_weights()
    sys.exit(main(given.run.absolute(), given.results.absolute(), model.absolute()))
