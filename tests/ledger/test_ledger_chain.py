"""The hashed bytes are fixed for ever: golden vectors, and the same numbers from hashlib and json alone."""

from __future__ import annotations

import hashlib
import json
import math

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from ledger_kit import row
from spiritsafe.ledger import Event
from spiritsafe.ledger._chain import GENESIS, canonical, chain_hash, commit_personal
from spiritsafe.ledger._checkpoints import sign_checkpoint
from spiritsafe.ledger._seal import seal

PLAIN = row(7, end_user=None, ip_prefix=None)
PAYLOAD = (
    '{"account":"acct_1","account_slot":null,"features":{"elicits":false,"projection":[1,2,7]},"key_id":"key_3",'
    '"latency_ms":12.5,"logprobs":null,"model":"smollm2-135m","n":1,"org":"acme","personal":{},"pico":7000021,'
    '"policy":"","request_id":"req_000007","skeleton":"5e5e5e5e5e5e5e5e","sketch":null,"status":"ok","stream":false,'
    '"temperature":0.7,"tokens_in":17,"tokens_out":21,"ts":1764000007.0,"turns":1,"twin_commit":null,'
    '"watermark_key_id":null}'
)


def framed(*parts: bytes) -> bytes:
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)


def test_a_rows_payload_is_pinned() -> None:
    assert seal(PLAIN).payload.decode() == PAYLOAD


def test_hashes_are_pinned_and_are_what_the_format_says() -> None:
    first = chain_hash(1, "reply", GENESIS, PAYLOAD.encode())
    assert first == "1956c9888e0b6b72fb2e50e827fcb0594ca2f15e8555172d2ec513abeee676f6"
    parts = (b"spiritsafe-ledger/1", b"1", b"reply", b"0" * 64, PAYLOAD.encode())
    assert first == hashlib.sha256(framed(*parts)).hexdigest()
    event = seal(Event(1764000008.25, "slot_bound", "account:acct_1", {"slot": 17}, id="ev_1"))
    assert event.payload == (
        b'{"data":{"slot":17},"id":"ev_1","name":"slot_bound","subject":"account:acct_1","ts":1764000008.25}'
    )
    assert (
        chain_hash(2, "event", first, event.payload)
        == "a61e8d6040e0ea80fd850ee34a9811eeecc56c7e88299bd1b81d6cc49d5ddb51"
    )


def test_commitments_are_pinned_and_are_what_the_format_says() -> None:
    salt = bytes(range(16))
    found = commit_personal(salt, {"end_user": "müller", "asn": 64500})
    assert found == {
        "end_user": "9e560b7e2949a9619e01660b7806bcf138f40f182ddc21f68788f9acaa2f1e19",
        "asn": "fed2ed6a9e5b4205bf9ee809feca78f1f4e6d7feab8d58e0b499c492feecfc10",
    }
    parts = (b"spiritsafe-personal/1", salt, b"end_user", '"müller"'.encode())
    assert found["end_user"] == hashlib.sha256(framed(*parts)).hexdigest()


def test_a_checkpoints_signature_is_pinned() -> None:
    signer = Ed25519PrivateKey.from_private_bytes(bytes(32))
    checkpoint = sign_checkpoint(signer, 2, "ab" * 32, 1764000009.0004)
    assert (checkpoint.at, checkpoint.public_key) == (
        1764000009.0,
        "3b6a27bcceb6a42d62a3a8d02a6f0d73653215771de243a63ac048a18b59da29",
    )
    assert (
        checkpoint.signature
        == "20a6fcf68cd292278dd6379d1c60e85ce454a7411b599b5579407e6a39555f8f955cf507debfcc5530eb5536ff3ce787ee3a45a0b0b2ae84b7b5e043d9cbe702"
    )
    signed = framed(b"spiritsafe-checkpoint/1", b"2", b"ab" * 32, b"1764000009000")
    signer.public_key().verify(bytes.fromhex(checkpoint.signature), signed)
    assert checkpoint.holds()


def test_equal_values_of_two_rows_look_different() -> None:
    one, two = (json.loads(seal(row(1)).payload)["personal"] for _ in range(2))
    assert set(one) == {"end_user", "ip_prefix"}
    assert not set(one.values()) & set(two.values())


def test_no_personal_value_is_in_the_payload() -> None:
    personal = {"end_user": "u-sentinel", "ip_prefix": "198.51.100.0/24", "user_agent": "agent-sentinel", "asn": 64999}
    payload = seal(row(1, **personal, payment_id="pay-sentinel")).payload.decode()
    for value in (*personal.values(), "pay-sentinel"):
        assert str(value) not in payload


scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text()
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)


@given(st.dictionaries(st.text(), values))
def test_what_was_read_back_has_the_same_bytes(value: dict[str, object]) -> None:
    """Or an exported row could not be verified."""
    once = canonical(value)
    assert canonical(json.loads(once)) == once
    assert canonical(dict(reversed(value.items()))) == once


@given(st.integers(1), st.sampled_from(["reply", "event"]), st.binary(max_size=60), st.data())
def test_no_two_rows_hash_the_same_bytes(seq: int, kind: str, payload: bytes, data: st.DataObject) -> None:
    other = data.draw(st.tuples(st.integers(1), st.sampled_from(["reply", "event"]), st.binary(max_size=60)))
    same = other == (seq, kind, payload)
    assert (chain_hash(seq, kind, GENESIS, payload) == chain_hash(other[0], other[1], GENESIS, other[2])) == same


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"ts": math.nan}, ValueError),
        ({"ts": math.inf}, ValueError),
        ({"ts": 1e18}, ValueError),
        ({"account": "a\0b"}, ValueError),
        ({"request_id": "\0"}, ValueError),
        ({"features": {"x": object()}}, TypeError),
        ({"end_user": "\ud800"}, TypeError),
        ({"pico": 2**70}, TypeError),
    ],
)
def test_what_cannot_be_kept_is_refused(changes: dict[str, object], error: type[Exception]) -> None:
    with pytest.raises(error):
        seal(row(1, **changes))
