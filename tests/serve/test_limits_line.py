"""The connection to Redis: every way to reach it, and what is done with answers nobody expected."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

import services
from spiritsafe.serve._limits._line import Away, Line, ServerError, _tls


def self_signed(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .sign(key, hashes.SHA256())
    )
    certificate, private = folder / "cert.pem", folder / "key.pem"
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return certificate, private


def redis_with_everything(folder: Path) -> services.Service:
    """A password, a socket, and TLS on the next port."""
    service = services.redis_service(folder)
    certificate, private = self_signed(folder)
    tls_port = services.free_port()
    (folder / "tls_port").write_text(str(tls_port))
    service.command += ["--requirepass", "hunter2", "--unixsocket", str(folder / "redis.sock"), "--tls-port", str(tls_port),
                        "--tls-cert-file", str(certificate), "--tls-key-file", str(private), "--tls-auth-clients", "no"]  # fmt: skip
    return service


@pytest.fixture(scope="module")
def server() -> Iterator[services.Service]:
    with services.running(redis_with_everything) as service:
        yield service


async def connected(url: str, **options: Any) -> Line:
    async def greet() -> None:
        assert await line.call("PING") == b"PONG"

    line = Line(url, options.get("timeout_s", 5.0), greet, options.get("on_lost", lambda: None))
    await line.connect()
    assert line.connected
    return line


async def test_every_way_to_reach_it(server: services.Service, monkeypatch: pytest.MonkeyPatch) -> None:
    tls_port = (server.folder / "tls_port").read_text()
    certificate = server.folder / "cert.pem"
    urls = [
        f"redis://:hunter2@127.0.0.1:{server.port}/3",
        f"redis://default:hunter2@127.0.0.1:{server.port}/3",
        f"unix://:hunter2@{server.folder}/redis.sock?db=3",
        f"rediss://:hunter2@127.0.0.1:{tls_port}/3?ssl_ca_certs={certificate}",
        f"rediss://:hunter2@127.0.0.1:{tls_port}/3?ssl_cert_reqs=none",
    ]
    for number, url in enumerate(urls):
        line = await connected(url)
        assert await line.call("INCR", "reached") == number + 1  # all of them the same database
        line.close()
    monkeypatch.setenv("REDISCLI_AUTH", "hunter2")
    line = await connected(f"redis://127.0.0.1:{server.port}/0")
    assert await line.call("EXISTS", "reached") == 0
    line.close()


async def test_what_is_wrong_is_said_without_the_password(server: services.Service) -> None:
    tls_port = (server.folder / "tls_port").read_text()
    for url, reason in (
        (f"redis://:wr0ng@127.0.0.1:{server.port}/0", "WRONGPASS"),
        (f"redis://127.0.0.1:{server.port}/0", "NOAUTH"),
        (f"redis://:wr0ng@127.0.0.1:{services.free_port()}/0", "Connect call failed"),
        (f"rediss://:wr0ng@127.0.0.1:{tls_port}/0", "certificate verify failed"),
        ("unix://:wr0ng@/nowhere.sock", "No such file"),
    ):
        with pytest.raises(Away, match=reason) as error:
            await connected(url)
        assert "wr0ng" not in str(error.value)


async def test_answers_come_to_those_who_asked(server: services.Service) -> None:
    line = await connected(f"redis://:hunter2@127.0.0.1:{server.port}/0")
    asked = [asyncio.create_task(line.call("ECHO", str(number))) for number in range(500)]
    await asyncio.sleep(0)
    for number in range(0, 500, 3):
        asked[number].cancel()
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert [answer for answer in answers if isinstance(answer, bytes)] == [b"%d" % n for n in range(500) if n % 3]
    with pytest.raises(ServerError, match="unknown command"):
        await line.call("NONSENSE")
    assert await line.call("ECHO", b"\x00\r\n") == b"\x00\r\n"
    line.close()


@pytest.mark.parametrize(
    "garbage", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"$5\r\nab", b"+OK\r\n+OK\r\n+OK\r\n+more\r\n"]
)
async def test_a_server_that_is_no_redis_is_away(garbage: bytes) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(garbage)
        await reader.read(100)
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as fake:
        port = fake.sockets[0].getsockname()[1]
        lost = asyncio.Event()
        line = Line(f"redis://127.0.0.1:{port}/0", 0.2, noone, lost.set)
        await line.connect()

        async def ask_twice() -> None:
            for _ in range(2):
                await line.call("PING")
                await asyncio.sleep(0.05)

        with pytest.raises(Away):
            await ask_twice()
        await asyncio.wait_for(lost.wait(), 5)
        assert not line.connected


async def noone() -> None:
    """Greets nobody."""


def test_certificates_are_checked_unless_told_otherwise() -> None:
    assert _tls({}).verify_mode is ssl.CERT_REQUIRED
    assert _tls({}).check_hostname
    assert _tls({"ssl_cert_reqs": "none"}).verify_mode is ssl.CERT_NONE
