"""The upstream client: replies whole whatever the pieces, connections reused, every failure named."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raw_server_kit import RawServer, raw_server
from spiritsafe.serve._connection import Reply, Timeouts, UpstreamFailure
from spiritsafe.serve._pool import Pool

PATIENT = Timeouts(2, 2, 10)
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"


@contextlib.asynccontextmanager
async def pool_to(
    script: Callable[[int, bytes, asyncio.StreamWriter], Awaitable[None]], timeouts: Timeouts = PATIENT
) -> AsyncIterator[tuple[Pool, RawServer]]:
    async with raw_server(script) as server:
        pool = Pool(server.base_url, timeouts)
        try:
            yield pool, server
        finally:
            await pool.aclose()


def saying(*pieces: bytes, close: bool = False) -> Callable[[int, bytes, asyncio.StreamWriter], Awaitable[None]]:
    async def script(number: int, request: bytes, writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        if close:
            writer.close()

    return script


async def ask(pool: Pool, body: bytes = b"{}") -> bytes:
    reply = await pool.request(b"POST", b"/x", [(b"content-type", b"application/json")], body)
    return await reply.read()


async def pieces_of(reply: Reply) -> list[bytes]:
    pieces = []
    while (piece := await reply.next_piece()) is not None:
        pieces.append(piece)
    return pieces


async def test_the_request_is_what_was_asked() -> None:
    async with pool_to(saying(HEAD + b"content-length: 2\r\n\r\n{}")) as (pool, server):
        assert await ask(pool, b'{"a":1}') == b"{}"
    head, _, body = server.requests[0].partition(b"\r\n\r\n")
    assert head.splitlines()[0] == b"POST /v1/x HTTP/1.1"
    assert f"host: 127.0.0.1:{server.port}".encode() in head
    assert body == b'{"a":1}'


@settings(max_examples=25, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=60), max_size=6), st.integers(1, 40), st.booleans())
def test_a_body_arrives_whole_however_it_is_cut(chunks: list[bytes], size: int, chunked: bool) -> None:
    body = b"".join(chunks)
    if chunked:
        wire = HEAD + b"transfer-encoding: chunked\r\n\r\n"
        wire += b"".join(b"%x\r\n%b\r\n" % (len(c), c) for c in chunks) + b"0\r\n\r\n"
    else:
        wire = HEAD + b"content-length: %d\r\n\r\n" % len(body) + body
    pieces = [wire[i : i + size] for i in range(0, len(wire), size)]

    async def main() -> None:
        async with pool_to(saying(*pieces)) as (pool, server):
            assert await ask(pool) == body
            reply = await pool.request(b"POST", b"/x", [])
            assert b"".join(await pieces_of(reply)) == body
            assert server.connections == 1

    asyncio.run(main())


async def test_connections_are_reused_and_as_many_as_needed() -> None:
    async def slow(number: int, request: bytes, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.02)
        writer.write(HEAD + b"content-length: 2\r\n\r\n{}")

    async with pool_to(slow) as (pool, server):
        await asyncio.gather(*(ask(pool) for _ in range(150)))
        assert server.connections == 150
        await asyncio.gather(*(ask(pool) for _ in range(150)))
        assert server.connections == 150


async def test_a_connection_that_closes_is_not_used_again() -> None:
    async with pool_to(saying(HEAD + b"connection: close\r\ncontent-length: 2\r\n\r\n{}")) as (pool, server):
        await ask(pool)
        await ask(pool)
        assert server.connections == 2


async def test_a_body_may_end_with_the_connection() -> None:
    async with pool_to(saying(HEAD + b"\r\n", b'{"a"', b":1}", close=True)) as (pool, _):
        assert await ask(pool) == b'{"a":1}'


async def test_continue_is_not_the_reply() -> None:
    async with pool_to(saying(b"HTTP/1.1 100 Continue\r\n\r\n", HEAD + b"content-length: 2\r\n\r\n{}")) as (pool, _):
        assert await ask(pool) == b"{}"


@pytest.mark.parametrize(
    ("script", "kind"),
    [
        (saying(b"SSH-2.0-OpenSSH\r\n"), "garbage"),
        (saying(b"HTTP/1.1 200 OK\r\nx: " + b"y" * 70_000 + b"\r\n\r\n"), "garbage"),
        (saying(HEAD + b"content-length: 9\r\n\r\n{}", close=True), "broken"),
        (saying(HEAD + b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n", close=True), "broken"),
        (saying(HEAD + b"transfer-encoding: chunked\r\n\r\nzz\r\n", close=True), "garbage"),
        (saying(close=True), "broken"),
    ],
)
async def test_bad_replies_are_failures(
    script: Callable[[int, bytes, asyncio.StreamWriter], Awaitable[None]], kind: str
) -> None:
    async with pool_to(script) as (pool, _):
        with pytest.raises(UpstreamFailure) as failed:
            await ask(pool)
        assert failed.value.kind == kind


async def test_nobody_there() -> None:
    async with raw_server(saying()) as server:
        url = server.base_url
    pool = Pool(url, Timeouts(2, 2, 10))
    with pytest.raises(UpstreamFailure) as failed:
        await ask(pool)
    assert failed.value.kind == "connect"


async def test_silence_before_and_within_a_reply_times_out() -> None:
    for pieces in ((), (HEAD + b"content-length: 9\r\n\r\n{",)):
        async with pool_to(saying(*pieces), Timeouts(2, 0.1, 10)) as (pool, _):
            with pytest.raises(UpstreamFailure) as failed:
                await ask(pool)
            assert failed.value.kind == "timeout"


async def test_a_reply_that_never_ends_times_out() -> None:
    async def drip(number: int, request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + b"transfer-encoding: chunked\r\n\r\n")
        for _ in range(1000):
            writer.write(b"1\r\nx\r\n")
            await writer.drain()
            await asyncio.sleep(0.01)

    async with pool_to(drip, Timeouts(2, 0.2, 0.3)) as (pool, _):
        with pytest.raises(UpstreamFailure, match=r"longer than 0.3 s"):
            await ask(pool)


async def test_giving_up_closes_the_connection() -> None:
    async with pool_to(saying(HEAD + b"content-length: 9\r\n\r\n{")) as (pool, server):
        task = asyncio.create_task(ask(pool))
        while not server.requests:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        for _ in range(100):
            if server.open == 0:
                break
            await asyncio.sleep(0.01)
        assert server.open == 0


async def test_a_slow_reader_holds_the_upstream_back() -> None:
    sent = 0

    async def flood(number: int, request: bytes, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(HEAD + b"content-length: %d\r\n\r\n" % (64 << 20))
        for _ in range(64):
            writer.write(b"x" * (1 << 20))
            await writer.drain()
            sent += 1

    async with pool_to(flood) as (pool, _):
        reply = await pool.request(b"POST", b"/x", [])
        await asyncio.sleep(0.3)
        assert sent < 32  # the rest waits in no buffer of ours
        assert sum(map(len, await pieces_of(reply))) == 64 << 20


async def test_a_large_reply_is_read_whole() -> None:
    async with pool_to(saying(HEAD + b"content-length: %d\r\n\r\n" % (5 << 20), b"x" * (5 << 20))) as (pool, _):
        assert len(await ask(pool)) == 5 << 20


async def test_bytes_nobody_asked_for_close_the_connection() -> None:
    async with pool_to(saying(HEAD + b"content-length: 2\r\n\r\n{}" + b"HTTP/1.1 200 OK\r\n\r\n")) as (pool, server):
        await ask(pool)
        await asyncio.sleep(0.05)
        await ask(pool)
        assert server.connections == 2
