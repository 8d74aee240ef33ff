"""Upstreams over TLS: a certificate that does not hold ends it before a request is sent, and nothing falls back to less."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from ssl import SSLContext
from typing import Any

import openai
import pytest

import mock_api
from guard_kit import PRICE, guard_config, guarding
from spiritsafe.errors import BadInput
from spiritsafe.serve._check_upstreams import check_upstreams
from spiritsafe.serve._connection import Timeouts, UpstreamFailure
from spiritsafe.serve._pool import Pool
from spiritsafe.serve._upstreams import Upstreams
from test_gateway import chat, chunks, refused, streaming
from tls_kit import Authority

MODELS = [{"id": "m", "object": "model"}]
BAD: list[tuple[Callable[[Authority, Authority], SSLContext], str]] = [
    (lambda ours, _: ours.server("elsewhere.example"), "mismatch"),
    (lambda ours, _: ours.server("127.0.0.2"), "mismatch"),
    (lambda _, others: others.server("127.0.0.1"), "unable to get local issuer certificate"),
    (lambda ours, _: ours.server("127.0.0.1", ends_days=-1), "expired"),
]


@pytest.fixture
def ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Authority:
    """The authority that this guard trusts, as an operator names it."""
    authority = Authority(tmp_path, "ours")
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    return authority


@pytest.fixture(params=BAD, ids=["name", "address", "authority", "expired"])
def bad(request: pytest.FixtureRequest, ours: Authority, tmp_path: Path) -> tuple[SSLContext, str]:
    make, said = request.param
    return make(ours, Authority(tmp_path, "others")), said


def test_replies_and_streams_come_over_tls(ours: Authority, tmp_path: Path) -> None:
    with mock_api.mock_api(tls=ours.server("127.0.0.1")) as upstream:
        assert upstream.base_url.startswith("https://")
        with guarding(guard_config(tmp_path, upstream.base_url)) as guard:
            client = guard.client(guard.new_key())
            assert chat(client).choices[0].message.content == "echo: What is a spirit safe?"
            upstream.behave = streaming(*chunks("Hello", " there"))
            said = [c.choices[0].delta.content for c in chat(client, stream=True) if c.choices]
            assert said == ["Hello", " there", None]
            assert [row["status"] for row in guard.rows()] == ["ok", "ok"]


def test_a_bad_certificate_ends_it_before_a_request_is_sent(
    bad: tuple[SSLContext, str], ours: Authority, tmp_path: Path
) -> None:
    with mock_api.mock_api(tls=bad[0]) as upstream, guarding(guard_config(tmp_path, upstream.base_url)) as guard:
        client = guard.client(guard.new_key())
        for _ in range(4):  # an upstream that failed often is not asked another way either
            with pytest.raises(openai.InternalServerError) as failed:
                chat(client)
            assert failed.value.status_code == 503 and refused(failed.value)["code"] == "upstream_unavailable"
        assert upstream.received == []
        assert [(row["status"], row["pico"]) for row in guard.rows()] == [("upstream_error", 0)] * 4


async def test_the_failure_and_serve_check_say_what_is_wrong(bad: tuple[SSLContext, str], tmp_path: Path) -> None:
    with mock_api.mock_api(models=MODELS, tls=bad[0]) as upstream:
        pool = Pool(upstream.base_url, Timeouts(5.0, 5.0, 5.0))
        with pytest.raises(UpstreamFailure, match=bad[1]) as failure:
            await pool.request(b"GET", b"/models", ())
        assert failure.value.kind == "connect"
        await pool.aclose()
        (finding,) = await check_upstreams(guard_config(tmp_path, upstream.base_url))
        assert finding.level == "error" and bad[1] in finding.message and "ca_file" in finding.message, finding


async def test_serve_check_finds_nothing_wrong_with_a_good_one(ours: Authority, tmp_path: Path) -> None:
    with mock_api.mock_api(models=MODELS, tls=ours.server("127.0.0.1")) as upstream:
        (finding,) = await check_upstreams(guard_config(tmp_path, upstream.base_url))
        assert finding.level == "ok", finding


def test_the_other_upstream_answers_where_one_has_a_bad_certificate(
    bad: tuple[SSLContext, str], ours: Authority, tmp_path: Path
) -> None:
    with mock_api.mock_api(tls=bad[0]) as wrong, mock_api.mock_api(tls=ours.server("127.0.0.1")) as right:
        upstreams: list[dict[str, Any]] = [
            {"name": name, "base_url": api.base_url, "models": ["m"], "price": PRICE}
            for name, api in (("wrong", wrong), ("right", right))
        ]
        with guarding(guard_config(tmp_path, "", upstreams=upstreams)) as guard:
            client = guard.client(guard.new_key())
            for _ in range(3):
                chat(client)
        assert (len(wrong.received), len(right.received)) == (0, 3)


async def test_each_upstream_believes_the_authority_it_names(tmp_path: Path) -> None:
    """Two private authorities, neither known to the system; a third upstream names the wrong one of them."""
    ours, theirs = Authority(tmp_path, "ours"), Authority(tmp_path, "theirs")
    with (
        mock_api.mock_api(models=MODELS, tls=ours.server("127.0.0.1")) as one,
        mock_api.mock_api(models=MODELS, tls=theirs.server("127.0.0.1")) as two,
    ):
        named = (("one", one, ours), ("two", two, theirs), ("wrong", two, ours))
        upstreams = [
            {"name": name, "base_url": api.base_url, "models": ["m"], "price": PRICE, "ca_file": str(authority.file)}
            for name, api, authority in named
        ]
        config = guard_config(tmp_path, "", upstreams=upstreams)
        found = await check_upstreams(config)
        assert [finding.level for finding in found] == ["ok", "ok", "error"]
        assert "unable to get local issuer" in found[2].message and "ca_file" in found[2].message
        with guarding(config) as guard:
            client = guard.client(guard.new_key())
            replies = await asyncio.gather(*(asyncio.to_thread(chat, client) for _ in range(6)))
        assert len(replies) == 6 and len(one.received) + len(two.received) == 6 and one.received and two.received


@pytest.mark.parametrize(
    ("content", "said"), [(None, "cannot be read"), ("", "holds no certificate"), ("key", "holds no certificate")]
)
async def test_a_file_without_an_authority_is_named(tmp_path: Path, content: str | None, said: str) -> None:
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_text(content)
    upstream = {"name": "u", "base_url": "https://127.0.0.1:1/v1", "models": ["m"], "price": PRICE}
    config = guard_config(tmp_path, "", upstreams=[upstream | {"ca_file": str(file)}])
    (finding,) = await check_upstreams(config)
    assert (finding.level, finding.what) == ("error", "upstreams.u.ca_file") and said in finding.message
    with pytest.raises(BadInput, match=f"upstreams.u.ca_file: {file} {said}"):
        Upstreams(config)


def test_an_authority_for_plain_http_is_a_mistake(tmp_path: Path) -> None:
    upstream = {"name": "u", "base_url": "http://127.0.0.1:1/v1", "models": ["m"], "price": PRICE, "ca_file": "ca.pem"}
    with pytest.raises(BadInput, match="ca_file is for upstreams over https"):
        guard_config(tmp_path, "", upstreams=[upstream])
