"""Signatures: DSSE as its specification writes it, checked by OpenSSL too; keys and statements that are none."""

from __future__ import annotations

import base64
import json
import subprocess

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from spiritsafe.audit._sign import (
    IN_TOTO,
    load_public,
    load_signer,
    pae,
    public_hex,
    read_statement,
    sign_dsse,
    statement,
    verify_dsse,
)
from spiritsafe.errors import BadInput

_TYPE = "urn:test:1"


@pytest.fixture
def key() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


@pytest.fixture
def public(key) -> bytes:
    return key.public_key().public_bytes_raw()


@pytest.fixture
def pem(tmp_path):
    """A key made by OpenSSL, as the documentation says, and its public half."""
    for command in ("genpkey -algorithm ed25519 -out key.pem", "pkey -in key.pem -pubout -out key.pub"):
        subprocess.run(["openssl", *command.split()], cwd=tmp_path, check=True, capture_output=True)
    return tmp_path / "key.pem"


def test_the_encoding_is_the_specifications():
    """The example in secure-systems-lab/dsse, protocol.md, and the bytes, not the characters, are counted."""
    assert pae("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )
    assert pae("é", b"") == b"DSSEv1 2 \xc3\xa9 0 "


@given(st.text(), st.binary(), st.text(), st.binary())
def test_two_payloads_never_share_an_encoding(one_type, one, other_type, other):
    if (one_type, one) != (other_type, other):
        assert pae(one_type, one) != pae(other_type, other)


def test_an_envelope_is_what_it_was_at_the_first_release(key):
    """Ed25519 is deterministic: this envelope is a golden one."""
    assert sign_dsse(b"{}", IN_TOTO, key) == {
        "payload": "e30=",
        "payloadType": "application/vnd.in-toto+json",
        "signatures": [
            {
                "keyid": "56475aa75463474c0285df5dbf2bcab73da651358839e9b77481b2eab107708c",
                "sig": "dWG98CPWh3lAzt/mxzJ7Nc6Avgf2tjap4msM5gNmMV9Lpu+TWkZMk3lP/u6Su450zcqkLQw21MTZfwU07XgjCw==",
            }
        ],
    }


def test_openssl_verifies_what_we_sign(pem, tmp_path):
    envelope = sign_dsse(b"payload", IN_TOTO, load_signer(pem))
    (tmp_path / "signed").write_bytes(pae(IN_TOTO, b"payload"))
    (tmp_path / "sig").write_bytes(base64.b64decode(envelope["signatures"][0]["sig"]))
    command = "pkeyutl -verify -pubin -inkey key.pub -rawin -in signed -sigfile sig"
    assert subprocess.run(["openssl", *command.split()], cwd=tmp_path, capture_output=True, check=False).returncode == 0


def test_public_keys_as_pem_and_as_hex(pem, tmp_path):
    key = load_signer(pem)
    (tmp_path / "hex").write_text(public_hex(key) + "\n")
    assert load_public(tmp_path / "key.pub") == load_public(tmp_path / "hex") == bytes.fromhex(public_hex(key))


def test_the_payload_comes_back(key, public):
    assert verify_dsse(sign_dsse(b"\x00\xff", IN_TOTO, key), public) == b"\x00\xff"


def test_the_url_safe_alphabet_is_read_too(key, public):
    envelope = sign_dsse(b"\xfb\xff\xfe", IN_TOTO, key)
    assert "+" in envelope["payload"] or "/" in envelope["payload"]
    envelope["payload"] = base64.urlsafe_b64encode(b"\xfb\xff\xfe").decode()
    assert verify_dsse(envelope, public) == b"\xfb\xff\xfe"


def test_one_good_signature_among_several_is_enough(key, public):
    envelope = sign_dsse(b"x", IN_TOTO, key)
    other = sign_dsse(b"x", IN_TOTO, Ed25519PrivateKey.generate())
    envelope["signatures"] = other["signatures"] + envelope["signatures"]
    assert verify_dsse(envelope, public) == b"x"


@pytest.mark.parametrize(
    "change",
    [
        lambda e: e | {"payload": base64.b64encode(b"other").decode()},
        lambda e: e | {"signatures": []},
        lambda e: e | {"signatures": [{"sig": base64.b64encode(bytes(64)).decode()}]},
        lambda e: e | {"signatures": [{"sig": "AA=="}]},
        lambda e: e | {"signatures": None},
        lambda e: e | {"payload": None},
        lambda e: e | {"payload": "e30"},
        lambda e: e | {"payload": "!!!!"},
        lambda e: e | {"payloadType": "application/json"},
        lambda e: {},
        lambda e: [],
        lambda e: None,
        lambda e: "envelope",
    ],
)
def test_what_is_not_a_signed_envelope(key, public, change):
    with pytest.raises(BadInput) as caught:
        verify_dsse(change(sign_dsse(b"{}", IN_TOTO, key)), public)
    assert "\n" not in str(caught.value)


def test_the_type_is_signed_too(key, public):
    envelope = sign_dsse(b"x", "application/json", key) | {"payloadType": IN_TOTO}
    with pytest.raises(BadInput, match="no signature of the key"):
        verify_dsse(envelope, public)


def test_another_key_has_not_signed(key):
    with pytest.raises(BadInput, match="no signature of the key"):
        verify_dsse(sign_dsse(b"x", IN_TOTO, key), Ed25519PrivateKey.generate().public_key().public_bytes_raw())


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "no private key in PEM form"),
        (b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "no private key in PEM form"),
        (b"\xff" * 200, "no private key in PEM form"),
    ],
)
def test_files_that_are_no_key(tmp_path, content, says):
    (tmp_path / "key.pem").write_bytes(content)
    with pytest.raises(BadInput, match=says):
        load_signer(tmp_path / "key.pem")
    with pytest.raises(BadInput, match="no public key"):
        load_public(tmp_path / "key.pem")


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out key.pem", "not an Ed25519 key"),
        ("genpkey -algorithm ed25519 -aes256 -pass pass:secret -out key.pem", "is encrypted"),
    ],
)
def test_keys_of_another_kind(tmp_path, command, says):
    subprocess.run(["openssl", *command.split()], cwd=tmp_path, check=True, capture_output=True)
    with pytest.raises(BadInput, match=says):
        load_signer(tmp_path / "key.pem")


def test_a_public_key_of_another_kind(tmp_path):
    for command in (
        "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out ec.pem",
        "pkey -in ec.pem -pubout -out ec.pub",
    ):
        subprocess.run(["openssl", *command.split()], cwd=tmp_path, check=True, capture_output=True)
    with pytest.raises(BadInput, match="not an Ed25519 public key"):
        load_public(tmp_path / "ec.pub")


def test_a_missing_key_file(tmp_path):
    with pytest.raises(BadInput, match="cannot be read"):
        load_signer(tmp_path / "none.pem")


def test_a_statement_says_what_the_framework_says():
    made = json.loads(statement({"b": "22", "a": "11"}, _TYPE, {"x": 1}))
    assert made == {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "a", "digest": {"sha256": "11"}}, {"name": "b", "digest": {"sha256": "22"}}],
        "predicateType": _TYPE,
        "predicate": {"x": 1},
    }
    assert read_statement(json.dumps(made).encode(), _TYPE) == ({"a": "11", "b": "22"}, {"x": 1})


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xff",
        b"[]",
        b"{}",
        b"[" * 100_000,
        statement({"a": "1"}, "urn:another", {}),
        statement({"a": "1"}, _TYPE, {}).replace(b"Statement/v1", b"Statement/v0.1"),
        statement({"a": "1"}, _TYPE, {}).replace(b'"1"', b"1"),
        statement({"a": "1"}, _TYPE, {}).replace(b'"predicate":{}', b'"predicate":[]'),
        statement({"a": "1"}, _TYPE, {}).replace(b"sha256", b"md5"),
    ],
)
def test_what_is_no_statement(payload):
    with pytest.raises(BadInput, match="not an in-toto statement"):
        read_statement(payload, _TYPE)
