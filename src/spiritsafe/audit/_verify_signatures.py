"""Check 2, signatures: who signed plan and case, and which timestamps hold."""

from __future__ import annotations

import hashlib
from typing import Any

from spiritsafe.audit._archive import parse_json
from spiritsafe.audit._case import CASE_PREDICATE
from spiritsafe.audit._frozen import PLAN_PREDICATE
from spiritsafe.audit._sign import read_statement, verify_dsse
from spiritsafe.audit._verify_check import Check, Given, Opened
from spiritsafe.errors import BadInput

__all__ = ["check_signatures"]


def check_signatures(case: Opened, given: Given, check: Check) -> None:
    """Also notes in `case.stamps` what the timestamps say."""
    named = case.document["plan"].get("signer")
    if named is None:
        for name in ("attestation.dsse.json", "plan.sig.json", "trust/signer.pub"):
            check.must(not case.has(name), f"{name}: there, but the plan names no signer")
        if check.must(given.signer is None, "the plan names no signer, so nothing in it is signed by the key given"):
            check.loose.append("nobody signed the case: nobody answers for what the suspect is said to have answered")
    else:
        _signed(case, named, given, check)
    _timestamps(case, given, check)


def _signed(case: Opened, named: Any, given: Given, check: Check) -> None:
    try:
        key = bytes.fromhex(named)
    except (TypeError, ValueError):
        key = b""
    if not check.must(len(key) == 32, "plan.json: its signer is no Ed25519 public key"):
        return
    if given.signer is None:
        check.loose.append(f"signed by {named[:16]}…, a key that is only in the case: give the signer's with --signer")
    else:
        check.must(given.signer == key, f"the plan names the signer {named[:16]}…, which is not the key given")
    if case.has("trust/signer.pub"):
        check.must(
            case.read("trust/signer.pub") == f"{named}\n".encode(),
            "trust/signer.pub: not the signer that the plan names",
        )
    with check.guarding(case.folder):
        _statement(case, "plan.sig.json", key, PLAN_PREDICATE, {"plan.json": case.plan})
    with check.guarding(case.folder):
        said = _statement(case, "attestation.dsse.json", key, CASE_PREDICATE, {"manifest.json": case.manifest})
        plan_hash = hashlib.sha256(case.plan).hexdigest()
        check.must(said.get("plan") == plan_hash, "attestation.dsse.json: signed for another plan")
        results = parse_json(case.read("results.json"), "results.json")
        finding = results.get("finding") if isinstance(results, dict) else None
        check.must(said.get("finding") == finding, "attestation.dsse.json: signed for another finding")


def _statement(case: Opened, name: str, key: bytes, kind: str, of: dict[str, bytes]) -> dict[str, Any]:
    """The predicate of a statement, if it is signed with that key and of these bytes."""
    if not case.has(name):
        raise BadInput(f"{name}: the plan names a signer, but the signature is not in the case")
    try:
        subjects, predicate = read_statement(verify_dsse(parse_json(case.read(name), name), key), kind)
    except BadInput as error:
        raise BadInput(f"{name}: {error}") from None
    if subjects != {file: hashlib.sha256(raw).hexdigest() for file, raw in of.items()}:
        raise BadInput(f"{name}: signed for other bytes than those of {', '.join(of)} here")
    return predicate


def _timestamps(case: Opened, given: Given, check: Check) -> None:
    tokens = {"plan.json": "plan.tsr"} if case.has("plan.tsr") else {}
    for said in case.document["commitments"].values():
        if isinstance(said, dict) and isinstance(said.get("timestamp"), str):
            tokens[str(said.get("file"))] = said["timestamp"]
    if case.document["plan"].get("tsa") is not None and not case.has("plan.tsr"):
        check.failures.append(
            "plan.tsr: the plan names a time-stamping authority, but its timestamp is not in the case"
        )
    for name, token in sorted(tokens.items()):
        if not case.has(name) or not case.has(token):
            check.failures.append(f"{token[:120]}: the plan names it as a timestamp, but it is not in the case")
            continue
        try:
            case.stamps[name] = _stamp(case.read(token), case.read(name), given)
        except BadInput as error:
            check.failures.append(f"{token}: {error}")


def _stamp(token: bytes, data: bytes, given: Given) -> Any:
    from spiritsafe.audit._tsa import claimed_time, verify_timestamp

    if given.tsa is not None:
        return verify_timestamp(token, data, given.tsa), True
    time = claimed_time(token)
    if time is None:
        raise BadInput("not an RFC 3161 timestamp")
    if not _is_of(token, data):
        raise BadInput("the timestamp is of other bytes than those of the file here")
    return time, False


def _is_of(token: bytes, data: bytes) -> bool:
    from rfc3161_client import decode_timestamp_response

    stamped = decode_timestamp_response(token).tst_info.message_imprint.message
    return stamped in {hashlib.new(name, data).digest() for name in ("sha256", "sha384", "sha512")}
