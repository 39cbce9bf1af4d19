"""Answers that are read as they come, from servers on sockets that do what no server should."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from ipaddress import ip_address

import pytest

from headrace.domain.errors import EndpointFailed, EndpointTimeout, why
from headrace.ports.upstream import Site
from headrace.transport.http.client.limits import ClientLimits
from headrace.transport.http.client.streamed import StreamedExchange
from tests.support.waiting import settled, until

HEAD = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def exchanging(serve: Serve, timeout_s: float = 10.0) -> AsyncIterator[StreamedExchange]:
    """An exchange with a server that does `serve` with its one connection."""

    under_way = 0

    async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal under_way
        under_way += 1
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            await serve(reader, writer)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        under_way -= 1

    server = await asyncio.start_server(served, "127.0.0.1", 0)
    site = Site("127.0.0.1", server.sockets[0].getsockname()[1], ip_address("127.0.0.1"))
    exchange = StreamedExchange(
        site,
        limits=ClientLimits(max_head_bytes=2000),
        deadline=asyncio.get_running_loop().time() + timeout_s,
    )
    try:
        yield exchange
    finally:
        exchange.close()
        server.close()
        await until(lambda: not under_way)


def answering(*parts: bytes) -> Serve:
    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for part in parts:
            writer.write(part)
            await writer.drain()

    return serve


@pytest.mark.parametrize(
    "parts",
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwords",),
        (CHUNKED, b"2\r\nwo\r\n", b"3\r\nrds\r\n0\r\nx-trailer: 1\r\n\r\n"),
        (b"HTTP/1.1 100 Continue\r\n\r\n", CHUNKED + b"5\r\nwords\r\n0\r\n\r\n"),
    ],
)
async def test_an_answer_is_read_to_its_end(parts: tuple[bytes, ...]) -> None:
    async with exchanging(answering(*parts)) as exchange:
        await exchange.ask(HEAD, b"")
        assert exchange.status == 200
        assert await exchange.rest(100) == b"words"
        assert await exchange.piece() == b""


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"", "without an answer"),
        (b"\x16\x03\x01 no HTTP\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\n\r\nwords", "neither Content-Length nor chunks"),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n", "101"),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 1\r\n\r\nx", "Encoding"),
        (b"HTTP/1.1 200 OK\r\nx: " + b"y" * 4000, "headers over the limit"),
        (CHUNKED + b"5\r\nwo", "broke off"),
        (CHUNKED + b"zz\r\n", "not HTTP"),
    ],
)
async def test_what_is_no_whole_answer_is_the_endpoints_failure(answer: bytes, reason: str) -> None:
    async with exchanging(answering(answer)) as exchange:
        with pytest.raises(EndpointFailed) as failed:
            await _whole(exchange)
        assert reason in f"{failed.value.message}; {why(failed.value)}"


async def test_a_body_over_its_limit_is_not_read_on() -> None:
    async with exchanging(answering(CHUNKED, b"64\r\n" + b"x" * 100 + b"\r\n")) as exchange:
        await exchange.ask(HEAD, b"")
        with pytest.raises(EndpointFailed, match="over the limit of 99 bytes"):
            await exchange.rest(99)


async def test_the_deadline_ends_an_answer_that_has_begun() -> None:
    async def stall(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED + b"1\r\nx\r\n")
        await reader.read()

    async with exchanging(stall, timeout_s=0.2) as exchange:
        await exchange.ask(HEAD, b"")
        assert await exchange.piece() == b"x"
        with pytest.raises(EndpointTimeout):
            await exchange.piece()


async def test_who_reads_slowly_slows_the_endpoint_down() -> None:
    sent = 0
    chunk = b"8000\r\n" + b"x" * 0x8000 + b"\r\n"

    async def pour(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(CHUNKED)
        for _number in range(2000):
            writer.write(chunk)
            await writer.drain()
            sent += 1
        writer.write(b"0\r\n\r\n")

    async with exchanging(pour, timeout_s=60) as exchange:
        await exchange.ask(HEAD, b"")
        await settled(lambda: sent)
        assert sent < 2000
        assert len(await exchange.rest(2**30)) == 2000 * 0x8000


async def test_a_connection_that_is_being_made_is_given_up_with_the_exchange(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = asyncio.get_running_loop()

    async def never(*_: object, **__: object) -> None:
        await loop.create_future()

    monkeypatch.setattr(loop, "create_connection", never)
    exchange = StreamedExchange(
        Site("a", 9, ip_address("127.0.0.1")),
        limits=ClientLimits(connect_timeout_s=600),
        deadline=loop.time() + 0.05,
    )
    with pytest.raises(EndpointTimeout):
        await exchange.ask(HEAD, b"")
    assert len(asyncio.all_tasks()) == 2
    exchange.close()
    await until(lambda: len(asyncio.all_tasks()) == 1)


async def _whole(exchange: StreamedExchange) -> bytes:
    await exchange.ask(HEAD, b"")
    return await exchange.rest(1000)
