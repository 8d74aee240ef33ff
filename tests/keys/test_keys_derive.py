"""Every key is the HKDF-SHA256 the design says, purposes and fields never meet, and the secret never shows."""

from __future__ import annotations

import copy
import json
import pickle
import traceback
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given
from hypothesis import strategies as st

from spiritsafe.errors import BadInput
from spiritsafe.keys import KeyId, KeySet, decoy_keys, load_keys, new_keys
from spiritsafe.keys._derive import Deriver, encode_fields, encode_slot

MASTER = bytes(range(32))


def hkdf(secret: bytes, salt: bytes, info: bytes, length: int) -> bytes:
    return HKDF(algorithm=SHA256(), length=length, salt=salt, info=info).derive(secret)


def info(purpose: str, scheme: str, tenant: str, slot: bytes, epoch: str) -> bytes:
    fields = (b"1", purpose.encode(), scheme.encode(), tenant.encode(), slot, epoch.encode())
    return b"".join(len(f).to_bytes(4, "big") + f for f in fields)


# Golden vectors, derivation version 1: what old texts were marked with must stay derivable.
GOLDEN = {
    ("epoch", "gumbel-dual", "2026-11", None): "4ad08b22524c6391f9b3faf446073c43fd44df969f70a51dea8c8ae9bee95c90",
    ("coin", "gumbel-dual", "2026-11", None): "669ac2b0c1e6eae0b7d339d9897e700ae6e19b73cef50a5538f9f8343ae08b91",
    ("account", "gumbel-dual", "2026-11", 0): "b6c1779703ce1cde62856491be8d025a78d678215de0f273e590aa854cda43c5",
    ("account", "gumbel-dual", "2026-11", 17): "1f4372108d7e6e8c698fa072204249c2b2e8f118a7e5b52daacdfca24d6dc0b4",
    ("account", "kgw", "2026-11.2", 2**20 - 1): "979a35055913aa53036be7ed546a5c010548b5071956d40c06416df4825feb77",
    ("salt/account", "kgw", "2026-11", 17): "f42da9c06cbd8a4d3d9f5ccf0c79ee641d552f77ff9bd42d217d3bfa126ccab5",
}


@pytest.mark.parametrize("fields", GOLDEN, ids=str)
def test_golden_vectors(fields: tuple[str, str, str, int | None]) -> None:
    purpose, scheme, epoch, slot = fields
    assert Deriver(MASTER, "acme").derive(purpose, scheme, epoch, slot).hex() == GOLDEN[fields]


def test_golden_decoys() -> None:
    assert decoy_keys(b"seed", "epoch", 2).hex() == "afb20f97dc8ed6f7b0949b075e658bfa664b832ddfa5ab0472697b4101ddfa40"


@given(
    st.binary(min_size=32, max_size=32),
    st.text(max_size=9),
    st.text(max_size=9),
    st.text(max_size=9),
    st.none() | st.integers(0, 2**64 - 1),
    st.integers(1, 32),
)
def test_derivation_is_the_library_s_hkdf(
    master: bytes, purpose: str, scheme: str, epoch: str, slot: int | None, length: int
) -> None:
    field = b"" if slot is None else slot.to_bytes(8, "big")
    expected = hkdf(master, b"spiritsafe/keys", info(purpose, scheme, "acme", field, epoch), length)
    assert Deriver(master, "acme").derive(purpose, scheme, epoch, slot, length) == expected


def test_bulk_keys_are_the_single_keys_in_order() -> None:
    deriver = Deriver(MASTER, "acme")
    slots = [5, 0, 2**40, 5]
    singles = [deriver.derive("account", "kgw", "2026-11", slot, 16) for slot in slots]
    assert deriver.keys("account", "kgw", "2026-11", slots) == b"".join(singles)
    assert deriver.keys("account", "kgw", "2026-11", range(0)) == b""


def test_decoys_are_the_library_s_hkdf_and_extend() -> None:
    fields = (b"1", b"decoy", b"epoch", (2).to_bytes(8, "big"))
    expected = hkdf(b"seed", b"spiritsafe/decoys", b"".join(len(f).to_bytes(4, "big") + f for f in fields), 16)
    assert decoy_keys(b"seed", "epoch", 3)[32:] == expected
    assert decoy_keys(b"seed", "epoch", 1000)[:48] == decoy_keys(b"seed", "epoch", 3)
    assert decoy_keys(b"seed", "account", 3) != decoy_keys(b"seed", "epoch", 3)


def parse(encoded: bytes) -> list[bytes]:
    fields = []
    while encoded:
        end = 4 + int.from_bytes(encoded[:4], "big")
        fields.append(encoded[4:end])
        encoded = encoded[end:]
    return fields


@given(st.lists(st.binary(max_size=300), max_size=8))
def test_fields_can_be_read_back_so_no_two_tuples_share_an_info(fields: list[bytes]) -> None:
    assert parse(encode_fields(*fields)) == fields


@given(st.lists(st.binary(max_size=3), max_size=4), st.lists(st.binary(max_size=3), max_size=4))
def test_different_tuples_encode_differently(one: list[bytes], other: list[bytes]) -> None:
    assert (encode_fields(*one) == encode_fields(*other)) == (one == other)


def test_every_field_separates() -> None:
    deriver = Deriver(MASTER, "acme")
    outputs = [
        deriver.derive(purpose, scheme, epoch, slot)
        for purpose in ("epoch", "account", "coin", "salt/epoch", "salt/account", "salt/coin", "twin-coin", "canary")
        for scheme in ("kgw", "gumbel-dual")
        for epoch in ("2026-11", "2026-1", "12026-1")
        for slot in (None, 0, 1)
    ]
    outputs += [Deriver(MASTER, "acm").derive("epoch", "kgw", "2026-11"), Deriver(MASTER, "a").derive("id", "", "")]
    assert len(set(outputs)) == len(outputs)


@pytest.mark.parametrize("slot", [-1, 2**64])
def test_slots_beyond_64_bits_are_refused(slot: int) -> None:
    with pytest.raises(BadInput, match="a slot is a number from 0"):
        encode_slot(slot)


def test_an_output_longer_than_a_block_is_refused() -> None:
    with pytest.raises(ValueError, match="1 to 32 bytes"):
        Deriver(MASTER, "acme").derive("epoch", "kgw", "2026-11", length=33)


@pytest.fixture
def keys(tmp_path: Path) -> KeySet:
    return new_keys(tmp_path / "keys.json", marking={"scheme": "kgw"}, epoch="2026-11", tenant="acme")


def test_methods_of_a_key_set_are_the_purposes(keys: KeySet) -> None:
    assert keys.epoch_key("2026-11", "kgw") == keys.derive("epoch", "2026-11", "kgw", length=16)
    assert keys.coin_key("2026-11", "kgw") == keys.derive("coin", "2026-11", "kgw", length=16)
    assert keys.account_key("2026-11", 3, "kgw") == keys.derive("account", "2026-11", "kgw", 3, 16)
    assert keys.account_keys(keys.current, range(2, 5), "kgw")[16:32] == keys.account_key("2026-11", 3, "kgw")
    assert (
        len({keys.epoch_key("2026-11", "kgw"), keys.coin_key("2026-11", "kgw"), keys.account_key("2026-11", 0, "kgw")})
        == 3
    )


def test_an_unknown_epoch_is_one_line(keys: KeySet) -> None:
    with pytest.raises(BadInput, match="has no epoch '2026-12'; its latest are 2026-11"):
        keys.epoch_key("2026-12", "kgw")


def failure_with_locals(keys: KeySet) -> str:
    try:
        keys.epoch_key("nowhere", "kgw")
    except BadInput as error:
        return "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
    raise AssertionError("the epoch exists")


def test_the_secret_never_shows(keys: KeySet, tmp_path: Path) -> None:
    master = json.loads((tmp_path / "keys.json").read_text())["master"]["plain"]
    derived = [keys.epoch_key("2026-11", "kgw"), keys.derive("file", "2026-11", "kgw")]
    shown = [
        repr(keys),
        str(keys),
        repr(asdict(keys)),
        repr(keys._deriver),
        repr(replace(keys, tenant="x")),
        f"{[keys]}",
        failure_with_locals(keys),
    ]
    for text in shown:
        for secret in (bytes.fromhex(master), *derived):
            assert secret.hex() not in text
            assert repr(secret) not in text


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_key_sets_are_not_pickled(keys: KeySet, protocol: int) -> None:
    for value in (keys, keys._deriver):
        with pytest.raises(TypeError, match="pass the path"):
            pickle.dumps(value, protocol)


def test_copies_are_the_same_object(keys: KeySet) -> None:
    assert copy.copy(keys) is keys
    assert copy.deepcopy(keys) is keys
    assert copy.copy(keys._deriver) is keys._deriver


def test_a_key_set_equals_itself_read_again(keys: KeySet, tmp_path: Path) -> None:
    again = load_keys(tmp_path / "keys.json")
    assert again == keys
    assert hash(again) == hash(keys)
    assert again.epoch_key("2026-11", "kgw") == keys.epoch_key("2026-11", "kgw")


def test_key_ids_round_trip(keys: KeySet) -> None:
    key_id = keys.key_id("2026-11", 17)
    assert str(key_id) == f"{keys.id}/2026-11/17"
    assert KeyId.parse(str(key_id)) == key_id
    assert keys.key_id(keys.current).slot == 0


@pytest.mark.parametrize(
    "text",
    ["", "ks_1a2b3c4d", "ks_1a2b3c4d/2026-11", "ks_1A2B3C4D/2026-11/1", "ks_1a2b3c4d/2026-11/-1", "ks_1a2b3c4d//1",
     "ks_1a2b3c4d/2026-11/1/2", "ks_1a2b3c4d/2026-11/017", "ks_1a2b3c4d/2026-11/1\n", "ks_1a2b3c4d/2026-11/١"],
)  # fmt: skip
def test_malformed_key_ids_are_refused(text: str) -> None:
    with pytest.raises(BadInput, match="write it as KEY_SET/EPOCH/SLOT"):
        KeyId.parse(text)
