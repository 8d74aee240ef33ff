"""Freeze a plan: everything it rests on read, checked and hashed, before the first query.

Freezing again keeps what was frozen before (PLAN.frozen.1.json, …) and lists its hash in the new plan: tries are
counted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from spiritsafe import __version__
from spiritsafe.audit import _again
from spiritsafe.audit._anchors import ledger_head
from spiritsafe.audit._frozen import FORMAT, PLAN_PREDICATE, Frozen, code_hash, families_of, seed_of
from spiritsafe.audit._inputs import Inputs, describe_commitment, describe_leaf, gather, name_of
from spiritsafe.audit._plan import CanariesConfig, TwinsConfig
from spiritsafe.audit._sign import IN_TOTO, load_signer, sign_dsse, statement
from spiritsafe.audit._unpack import plan_from, read_document
from spiritsafe.audit.tests import open_test
from spiritsafe.errors import BadInput, Refused
from spiritsafe.ledger import canonical_json
from spiritsafe.runs import atomic_write

__all__ = ["Frozen", "freeze", "load_frozen", "plan_from"]

_SECTIONS = ("inputs", "weights", "leaves", "commitments", "plan")


def freeze(plan_file: Path, *, again: bool = False) -> Frozen:
    """Read, check and hash all that PLAN.yaml names, open every test, and write PLAN.frozen.json; a signature and a
    timestamp beside it where the plan asks for them. Nothing is written if anything fails.

    again: a plan frozen before is kept under a number, and counted in the new one.

    Raises:
        BadInput: the plan or an input is unusable, or a key was not committed to.
        Refused: it is frozen already, and not `again`.
        SpiritsafeError: the time-stamping authority gives no timestamp.
    """
    earlier = _again.earlier(plan_file)
    if earlier is not None and not again:
        raise Refused(
            f"{plan_file}: frozen already ({earlier.hash[:12]}…); run it, or freeze anew with --again, which keeps the "
            "old plan and says in the new one that there was one"
        )
    found = gather(plan_file)
    here = _described(found, {})
    seed = found.plan.decoy_seed or seed_of(here["inputs"], here["leaves"])
    heads = {
        name_of(test): ledger_head(found.files[test.ledger], test)
        for test in found.plan.tests
        if isinstance(test, TwinsConfig | CanariesConfig) and test.ledger is not None
    }
    document = _described(found, heads) | {
        "format": FORMAT,
        "families": families_of(found.plan, found.commitments, found.leaves),
        "decoy_seed": seed,
        "superseded": [] if earlier is None else [*earlier.superseded, earlier.hash],
        "abandoned": 0 if earlier is None else earlier.starts,
        "code": {"spiritsafe": __version__, "sha256": code_hash()},
        "frozen_at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    draft = _frozen(plan_file, found, document, b"")
    opened = {name_of(test): open_test(test, draft.evidence(name_of(test))) for test in found.plan.tests}
    for name, test in opened.items():
        if not test.items():
            raise BadInput(f"{plan_file}: {name}: there is nothing to ask: its files hold nothing that can be used")
    document["nulls"] = {name: test.null for name, test in opened.items()}
    raw = canonical_json(document)
    token = signature = None
    if found.plan.tsa is not None:
        from spiritsafe.audit._tsa import timestamp

        token = timestamp(found.plan.tsa, raw)
    if found.signer is not None:
        subject = {"plan.json": hashlib.sha256(raw).hexdigest()}
        signed = statement(subject, PLAN_PREDICATE, {"name": found.plan.name, "frozen_at": document["frozen_at"]})
        signature = canonical_json(sign_dsse(signed, IN_TOTO, load_signer(found.signer)))
    try:
        if earlier is not None:
            _again.keep(plan_file)
        for suffix, content in ((".frozen.tsr", token), (".frozen.sig.json", signature), (".frozen.json", raw)):
            if content is None:
                plan_file.with_suffix(suffix).unlink(missing_ok=True)
            else:
                atomic_write(plan_file.with_suffix(suffix), content)
    except OSError as error:
        raise BadInput(f"{plan_file.parent}: cannot be written ({error.strerror}); check the folder") from None
    return _frozen(plan_file, found, document, raw)


def load_frozen(plan_file: Path) -> Frozen:
    """The frozen plan of PLAN.yaml, if the YAML and every input are still what was frozen.

    Raises:
        Refused: it is not frozen, or something changed since. A change of this package's code is a note only.
        BadInput: PLAN.frozen.json is damaged.
    """
    frozen_file = plan_file.with_suffix(".frozen.json")
    try:
        raw = frozen_file.read_bytes()
    except FileNotFoundError:
        raise Refused(f"{plan_file}: not frozen; run first: spiritsafe audit plan {plan_file}") from None
    except OSError as error:
        raise BadInput(f"{frozen_file}: cannot be read ({error.strerror}); restore it") from None
    document = read_document(frozen_file, raw)
    try:
        found = gather(plan_file)
    except BadInput as error:
        raise Refused(f"{error} (as it was when the plan was frozen; to freeze anew: --again)") from None
    heads = {name: said for name, said in document["commitments"].items() if "ledger_head" in said}
    now = _described(found, heads)
    for section in _SECTIONS:
        if now[section] != document.get(section):
            what = _difference(document.get(section), now[section], section)
            raise Refused(f"{plan_file}: {what} is not what was frozen; restore it, or freeze anew with --again")
    frozen = _frozen(plan_file, found, document, raw)
    for asked, there, what in (
        (found.plan.tsa, frozen.timestamp, "tsr"),
        (found.plan.signer, frozen.signature, "sig.json"),
    ):
        if asked is not None and there is None:
            raise Refused(
                f"{plan_file.with_suffix(f'.frozen.{what}')}: missing; restore it, or freeze anew with --again"
            )
    notes = []
    if document["code"]["sha256"] != code_hash():
        notes.append(
            f"the code that runs is not the code that froze the plan (spiritsafe {document['code']['spiritsafe']}, "
            f"now {__version__})"
        )
    return replace(frozen, notes=tuple(notes))


def _described(found: Inputs, heads: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The parts of the frozen JSON that can be made again from PLAN.yaml and its inputs."""
    commitments: dict[str, dict[str, Any]] = {}
    for name, (file, token) in found.published.items():
        said = dict(heads.get(name, {}))
        if (commitment := found.commitments.get(name)) is not None:
            said = describe_commitment(commitment)
        commitments[name] = said | {"file": file, "timestamp": token}
    return {
        "plan": found.plan.model_dump(mode="json"),
        "inputs": found.listed,
        "weights": found.weights,
        "leaves": {name: [describe_leaf(leaf) for leaf in leaves] for name, leaves in found.leaves.items()},
        "commitments": commitments,
    }


def _frozen(plan_file: Path, found: Inputs, document: Mapping[str, Any], raw: bytes) -> Frozen:
    token, signature = plan_file.with_suffix(".frozen.tsr"), plan_file.with_suffix(".frozen.sig.json")
    return Frozen(
        file=plan_file,
        folder=plan_file.parent,
        plan=found.plan,
        raw=raw,
        hash=hashlib.sha256(raw).hexdigest(),
        document=document,
        inputs=found.files,
        weights=found.sources,
        leaves=found.leaves,
        commitments=found.commitments,
        families=document["families"],
        decoy_seed=bytes.fromhex(document["decoy_seed"]),
        signer=found.signer,
        timestamp=token if token.is_file() else None,
        signature=signature if signature.is_file() else None,
    )


def _difference(before: Any, now: Any, where: str) -> str:
    """The first place, dotted, where two JSON values differ; inputs by their base name."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted({*before, *now}):
            if before.get(key) != now.get(key):
                if where in ("inputs", "weights"):
                    return f"the file {str(key).partition('-')[2]}"
                return _difference(before.get(key), now.get(key), f"{where}.{key}")
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        place = next(i for i, pair in enumerate(zip(before, now, strict=True)) if pair[0] != pair[1])
        return _difference(before[place], now[place], f"{where}.{place}")
    return where
