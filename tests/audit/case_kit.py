"""What the tests of cases share: a real case (plan, ledger, timestamps, signatures, run), and ways to tamper with one."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import coins_kit
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from spiritsafe.audit._archive import write_archive
from spiritsafe.audit._case import Judged, build_case
from spiritsafe.audit._freeze import Frozen, freeze
from spiritsafe.audit._run import RunFolder, run_audit
from spiritsafe.audit._transcript import canonical
from spiritsafe.audit._tsa import timestamp
from spiritsafe.audit._verify import CaseVerification, verify_case
from spiritsafe.ledger import Event
from spiritsafe.ledger._evidence import canary_commit, open_canary
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
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
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
        packed["manifest.json"] = canonical({"format": "spiritsafe-case/1", "files": listed})
    write_archive(out, packed)
    return out


def edit(raw: bytes, change: Callable[[Any], Any]) -> bytes:
    """Canonical JSON, changed in place or replaced by what `change` returns."""
    value = json.loads(raw)
    result = change(value)
    return canonical(value if result is None else result)


def chain(lines: list[dict[str, Any]], first: str) -> bytes:
    """Lines of a chain, linked anew, as whoever knows how would."""
    prev, out = first, io.BytesIO()
    for number, line in enumerate(lines):
        entry = {key: value for key, value in line.items() if key != "hash"} | {"n": number, "prev": prev}
        prev = hashlib.sha256(canonical(entry)).hexdigest()
        out.write(canonical(entry | {"hash": prev}) + b"\n")
    return out.getvalue()


def unchain(raw: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in raw.splitlines()]
