"""What the tests of cases share: a real case (plan, ledger, timestamps, signatures, run), and ways to tamper with one."""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import io
import json
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import coins_kit
import numpy as np
import pytest
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

import marked
from spiritsafe.audit._archive import write_archive
from spiritsafe.audit._case import Judged, build_case
from spiritsafe.audit._freeze import Frozen, freeze
from spiritsafe.audit._run import RunFolder, run_audit
from spiritsafe.audit._tsa import timestamp
from spiritsafe.audit._verify import CaseVerification, verify_case
from spiritsafe.keys import commit_keys, load_keys, new_keys, open_accounts, open_leaf
from spiritsafe.keys._commitment import Leaves
from spiritsafe.ledger import Event, canonical_json
from spiritsafe.ledger._evidence import canary_commit, open_canary
from spiritsafe.records import TeacherInfo
from timestamps import Authority

Files = dict[str, bytes]


@dataclass(frozen=True)
class Made:
    """A case, and what somebody who verifies it knows from elsewhere."""

    path: Path
    frozen: Frozen
    run: RunFolder
    judged: Judged
    signer: bytes | None
    roots: bytes | None

    def files(self) -> Files:
        with zipfile.ZipFile(self.path) as archive:
            return {name: archive.read(name) for name in archive.namelist()}

    def verify(self, path: Path | None = None, **given: Any) -> CaseVerification:
        return verify_case(path or self.path, **({"signer": self.signer, "tsa": self.roots} | given))


def pair(number: int, coin: int, **more: Any) -> dict[str, Any]:
    return coins_kit.pair_line(number, f"left of {number}", f"right {number}", coin, **more)


def canary(number: int, published: int, size: int = 8) -> dict[str, Any]:
    variants = [f"answer {chr(97 + i)} of {number}" for i in range(size)]
    return open_canary(f"can_{number}", f"question {number}?", variants, published, number.to_bytes(32, "big"))


def canary_event(one: Mapping[str, Any], ts: float) -> Event:
    salt = bytes.fromhex(one["salt"])
    commit = canary_commit(one["id"], one["prompt"], one["variants"], one["published"], salt)
    data = {"canary": one["id"], "commit": commit, "variants": len(one["variants"])}
    return Event(ts, "canary_committed", f"canary:{one['id']}", data)


def signer(folder: Path) -> bytes:
    """A key in `folder`/signer.pem; the public one, 32 bytes."""
    key = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(b"auditor").digest())
    (folder / "signer.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return key.public_key().public_bytes_raw()


def make(
    folder: Path,
    tests: list[dict[str, Any]],
    suspect: Any,
    *,
    authority: Authority | None = None,
    signed: bool = True,
    stamped: tuple[str, ...] = ("ledger.jsonl",),
    render: Any = None,
    **fields: Any,
) -> Made:
    """Freeze a plan of these tests (their inputs are in `folder`), run it, make the case."""
    public = signer(folder) if signed else None
    if authority is not None:
        for name in stamped:
            (folder / f"{name}.tsr").write_bytes(timestamp(authority.url, (folder / name).read_bytes()))
    plan = {
        "name": "case",
        "question": "Was it trained on our replies?",
        "subject": {"name": "suspect", "access": suspect.access},
        "tests": tests,
        "signer": "signer.pem" if signed else None,
        "tsa": None if authority is None else authority.url,
        **fields,
    }
    (folder / "PLAN.yaml").write_text(yaml.safe_dump(plan))
    frozen = freeze(folder / "PLAN.yaml")
    run = asyncio.run(run_audit(frozen, "suspect.gguf", suspect=suspect))
    judged = build_case(frozen, run, folder / "CASE.zip", render)
    return Made(folder / "CASE.zip", frozen, run, judged, public, None if authority is None else authority.roots)


def coins(
    folder: Path,
    *,
    pairs: int = 24,
    canaries: int = 6,
    likes: float = 1.0,
    open_pairs: int | None = None,
    by: str = "likelihood",
    seed: int = 1,
    **more: Any,
) -> Made:
    """A case of twins (primary) and canaries. likes: the share of coins that the suspect knows, from the first on."""
    falls = coins_kit.fresh_coins(seed, pairs)
    lines = [pair(i, coin) for i, coin in enumerate(falls)]
    invented = [canary(i, (3 * i) % 8) for i in range(canaries)]
    events = [canary_event(one, coins_kit.NOW + 1000 + i) for i, one in enumerate(invented)]
    asyncio.run(coins_kit.ledger_of(folder, [*lines, *events]))
    coins_kit.write_lines(folder / "twins.jsonl", lines[:open_pairs])
    coins_kit.write_lines(folder / "canaries.jsonl", invented)
    known = lines[: round(likes * len(lines))]
    released = {line["second" if line["coin"] else "first"]["choices"][0]["message"]["content"] for line in known}
    released |= {one["variants"][one["published"]] for one in invented[: round(likes * canaries)]}

    def logprob(_: Any, text: str) -> float:
        return -1.0 if text in released else -1.1 - (len(text) % 7) / 1000

    def reply(prompt: Any, sample: int) -> str:
        number = prompt.messages[-1].content.strip("?").split()[-1]
        mine = [text for text in sorted(released) if text.split()[-1] == number]
        return mine[sample % len(mine)] if mine else f"nothing of {number}"

    tests = [
        {"kind": "twins", "pairs": "twins.jsonl", "ledger": "ledger.jsonl", "by": by},
        {"kind": "canaries", "canaries": "canaries.jsonl", "ledger": "ledger.jsonl", "by": by},
    ]
    return make(folder, tests, coins_kit.Scripted(logprob, reply), **more)


def again(out: Path, files: Mapping[str, bytes], *, manifest: bool = True) -> Path:
    """Pack files as a case. manifest: make one that fits, as whoever knows how would."""
    packed = dict(files)
    if manifest:
        outside = {"manifest.json", "attestation.dsse.json"}
        listed = {
            name: {"sha256": hashlib.sha256(raw).hexdigest(), "bytes": len(raw)}
            for name, raw in sorted(packed.items())
            if name not in outside
        }
        packed["manifest.json"] = canonical_json({"format": "spiritsafe-case/1", "files": listed})
    write_archive(out, packed)
    return out


def edit(raw: bytes, change: Callable[[Any], Any]) -> bytes:
    """Canonical JSON, changed in place or replaced by what `change` returns."""
    value = json.loads(raw)
    result = change(value)
    return canonical_json(value if result is None else result)


def chain(lines: list[dict[str, Any]], first: str) -> bytes:
    """Lines of a chain, linked anew, as whoever knows how would."""
    prev, out = first, io.BytesIO()
    for number, line in enumerate(lines):
        entry = {key: value for key, value in line.items() if key != "hash"} | {"n": number, "prev": prev}
        prev = hashlib.sha256(canonical_json(entry)).hexdigest()
        out.write(canonical_json(entry | {"hash": prev}) + b"\n")
    return out.getvalue()


def unchain(raw: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in raw.splitlines()]


def small_tokenizer(folder: Path, words: int = 400) -> Path:
    """A tokenizer of words w0, w1, …"""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({f"w{i}": i for i in range(words)}, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="w0").save_pretrained(folder / "tok")
    return folder / "tok"


class Reader(coins_kit.Scripted):
    """Weights that remember a share of what they read, or (in completions) carry on with what they remember."""

    access = "weights"

    def __init__(self, share: float, tokenizer: Path, remembered: list[list[int]]) -> None:
        super().__init__(None, self._write)
        from spiritsafe.teachers import load_tokenizer
        from spiritsafe.tokens import tokenizer_hash

        self.info = TeacherInfo("reader", tokenizer_hash=tokenizer_hash(load_tokenizer(tokenizer)))
        self._share, self._remembered = share, remembered
        self._draws = np.random.default_rng(7)

    async def read(self, ids_B: Any) -> list[list[int]]:
        known = {tuple(text[i : i + 3]) for text in self._remembered for i in range(len(text) - 2)}
        after = {(a, b): c for a, b, c in known}
        found = []
        for ids in ids_B:
            guesses = self._draws.integers(0, 400, len(ids))
            keep = self._draws.random(len(ids)) < self._share
            contexts = [tuple(ids[max(t - 1, 0) : t + 1]) for t in range(len(ids))]
            found.append([
                int(after.get(context, guess)) if kept else int(guess)
                for context, guess, kept in zip(contexts, guesses, keep, strict=True)
            ])  # fmt: skip
        return found

    def _write(self, prompt: Any, sample: int) -> str:
        number = int(prompt.messages[-1].content.split()[-1][1:])
        guesses = self._draws.integers(0, 400, 60)
        said = [int(g) if self._draws.random() > self._share else x
                for g, x in zip(guesses, self._remembered[number][:60], strict=True)]  # fmt: skip
        return " ".join(f"w{x}" for x in said)


def marks(
    folder: Path,
    *,
    share: float = 0.9,
    texts: int = 12,
    tokens: int = 80,
    marking: Mapping[str, Any] | None = None,
    slots: int = 8,
    slot: int | None = 3,
    opened: Sequence[int] = (),
    mode: str = "reading",
    authority: Authority | None = None,
    signed: bool = True,
    created: float | None = None,
    test: Mapping[str, Any] | None = None,
    **more: Any,
) -> Made:
    """A case of radioactivity: texts marked with real keys, of which a suspect remembers a share.

    opened: the accounts' slots whose keys are opened; the one that marked and the next unless given.
    """
    keys = folder / "KEYS.json"
    settings = {"scheme": "gumbel-dual"} | dict(marking or {})
    new_keys(keys, marking=settings, epoch="2026-10")
    commitment = commit_keys(keys, slots=slots)
    (folder / "COMMITMENT.json").write_text(commitment.model_dump_json())
    loaded = load_keys(keys)
    written = [[int(x) for x in marked.write(loaded, "2026-10", slot, tokens, seed)] for seed in range(texts)]
    epoch, coin = (open_leaf(keys, "2026-10", purpose, commitment=commitment) for purpose in ("epoch", "coin"))
    for name, leaf in {"epoch": epoch, "coin": coin}.items():
        (folder / f"{name}.json").write_text(leaf.model_dump_json())
    if slot is not None:
        accounts = open_accounts(keys, "2026-10", opened or (slot, slot + 1), commitment=commitment)
        (folder / "slots.json").write_text(Leaves(leaves=accounts).model_dump_json())
    rows: list[dict[str, Any]] = [
        {"prompt": f"say w{i}", "tokens": ids, "prompt_tokens": [1, i], "created": created or time.time() + 1}
        for i, ids in enumerate(written)
    ]
    coins_kit.write_lines(folder / "texts.jsonl", rows)
    tokenizer = small_tokenizer(folder)
    planned = {
        "kind": "radioactivity", "mode": mode, "texts": "texts.jsonl", "tokenizer": "tok", "marking": settings,
        "commitment": "COMMITMENT.json", "leaves": ["epoch.json", "coin.json"], "decoys": 20,
        "per_account": [] if slot is None else ["slots.json"],
    } | dict(test or {})  # fmt: skip
    suspect = Reader(share, tokenizer, [[1, i, *ids] if mode == "reading" else ids for i, ids in enumerate(written)])
    return make(folder, [planned], suspect, authority=authority, signed=signed, stamped=("COMMITMENT.json",), **more)


def second(path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """The second verifier, on its own: no site-packages, no environment, another folder."""
    from spiritsafe.audit._case import VERIFIER

    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", _ALONE, str(VERIFIER["verify_case.py"].parent), str(path), *options],
        capture_output=True, text=True, cwd="/", check=False,
    )  # fmt: skip


def verifier(name: str) -> Any:
    """A file of the second verifier, as a module."""
    from spiritsafe.audit._case import VERIFIER

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(VERIFIER[f"{name}.py"].parent))
        return importlib.import_module(name)


# -I keeps the script's folder off the path; the two files have to find each other and nothing else
_ALONE = """
import runpy, sys
folder = sys.argv.pop(1)
sys.path.insert(0, folder)
sys.argv[0] = folder + "/verify_case.py"
runpy.run_path(sys.argv[0], run_name="__main__")
assert not any(name.partition(".")[0] in ("spiritsafe", "numpy", "orjson", "pydantic") for name in sys.modules)
"""


def replan(files: Files, change: Callable[[Any], Any]) -> Files:
    """Another plan, and chains that begin with its hash."""
    out = dict(files) | {"plan.json": edit(files["plan.json"], change)}
    first = hashlib.sha256(out["plan.json"]).hexdigest()
    for name in files:
        if name in ("transcripts.jsonl", "attempts.jsonl") or name.startswith("controls/"):
            out[name] = chain(unchain(files[name]), first)
    return out


def retell(files: Files, change: Callable[[list[dict[str, Any]]], Any], name: str = "transcripts.jsonl") -> Files:
    """Other lines in a chain, linked as they should be."""
    lines = unchain(files[name])
    told = change(lines)
    return dict(files) | {name: chain(lines if told is None else told, hashlib.sha256(files["plan.json"]).hexdigest())}


def refreeze(files: Files, name: str, raw: bytes) -> Files:
    """Another content for an input (the end of its name), and a plan that says so in every place."""
    (old,) = [one for one in files if one.startswith("inputs/") and one.endswith(name)]
    digest = hashlib.sha256(raw).hexdigest()
    new = f"inputs/{digest[:12]}-{old.partition('-')[2]}"

    def change(plan: Any) -> Any:
        plan = json.loads(json.dumps(plan).replace(old, new))
        plan["inputs"][new].update(sha256=digest, bytes=len(raw))
        inputs, leaves = plan["inputs"], plan["leaves"]
        plan["decoy_seed"] = hashlib.sha256(canonical_json([inputs, leaves])).hexdigest()
        return plan

    out = replan({(new if one == old else one): content for one, content in files.items()}, change)
    out[new] = raw
    for one in ("reveal.json", "commitments.json"):
        out[one] = files[one].replace(old.encode(), new.encode())
    return out
