"""Timestamps against a real authority: `openssl ts` behind HTTP."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services import free_port
from spiritsafe.audit._tsa import claimed_time, timestamp, verify_timestamp
from spiritsafe.errors import BadInput, SpiritsafeError
from timestamps import Authority, running_authority

_DATA = b'{"root": "what was published"}'


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Authority]:
    with running_authority(tmp_path_factory.mktemp("tsa")) as running:
        yield running


@pytest.fixture(scope="module")
def token(authority: Authority) -> bytes:
    return timestamp(authority.url, _DATA)


def test_a_timestamp_holds_for_its_data_and_says_now(authority, token):
    when = verify_timestamp(token, _DATA, authority.roots)
    assert when.tzinfo is UTC
    assert abs(when - datetime.now(UTC)) < timedelta(minutes=5)
    assert claimed_time(token) == when


def test_openssl_itself_takes_the_file(authority, token, tmp_path):
    """What we keep is what everybody's tools verify."""
    (tmp_path / "data").write_bytes(_DATA)
    (tmp_path / "data.tsr").write_bytes(token)
    command = [
        "openssl",
        "ts",
        "-verify",
        "-data",
        "data",
        "-in",
        "data.tsr",
        "-CAfile",
        str(authority.folder / "ca.crt"),
    ]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode == 0


def test_other_data_is_refused(authority, token):
    with pytest.raises(BadInput, match="Mismatch between messages"):
        verify_timestamp(token, _DATA + b" ", authority.roots)


def test_another_root_is_refused(token, tmp_path):
    with running_authority(tmp_path) as other, pytest.raises(BadInput, match="does not hold"):
        verify_timestamp(token, _DATA, other.roots)


def test_roots_have_to_be_certificates(token):
    with pytest.raises(BadInput, match="not PEM"):
        verify_timestamp(token, _DATA, b"-----BEGIN NOTHING-----")


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_damaged_token_is_accepted(authority, token, data):
    """Any byte changed, or the end cut off: refused in one line, or (where DER has more than one spelling of the same)
    still the time that was signed."""
    when = verify_timestamp(token, _DATA, authority.roots)
    place = data.draw(st.integers(0, len(token) - 1))
    if data.draw(st.booleans()):
        damaged = token[:place]
    else:
        damaged = token[:place] + bytes([token[place] ^ data.draw(st.integers(1, 255))]) + token[place + 1 :]
    try:
        found = verify_timestamp(damaged, _DATA, authority.roots)
    except BadInput:
        return
    assert found == when


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=400))
def test_noise_is_no_timestamp(authority, noise):
    assert claimed_time(noise) is None
    with pytest.raises(BadInput):
        verify_timestamp(noise, _DATA, authority.roots)


def test_an_old_answer_to_another_request_is_not_taken(authority, token):
    """The nonce: a stored response, true as it is, is not an answer to what is asked now."""
    authority.body = token
    try:
        with pytest.raises(SpiritsafeError, match="something else than was asked"):
            timestamp(authority.url, _DATA)
    finally:
        authority.body = None


def test_an_authority_that_refuses(authority):
    authority.body = authority.stamp(b"not a request")
    try:
        with pytest.raises(SpiritsafeError, match=r"refused|no timestamp|not an RFC 3161"):
            timestamp(authority.url, _DATA)
    finally:
        authority.body = None


@pytest.mark.parametrize(("status", "body"), [(500, b""), (200, b"<html>hello</html>"), (200, b""), (404, b"x")])
def test_an_authority_that_is_broken(authority, status, body):
    authority.status, authority.body = status, body
    try:
        with pytest.raises(SpiritsafeError) as caught:
            timestamp(authority.url, _DATA)
        assert "\n" not in str(caught.value)
        assert authority.url in str(caught.value)
    finally:
        authority.status, authority.body = 200, None


def test_an_authority_that_is_not_there():
    with pytest.raises(SpiritsafeError, match="no timestamp"):
        timestamp(f"http://127.0.0.1:{free_port()}/", _DATA)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://example.org/", "example.org", ""])
def test_only_http_is_asked(url):
    with pytest.raises(BadInput, match="http"):
        timestamp(url, _DATA)
