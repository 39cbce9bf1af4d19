"""The client of endpoints, against servers on bare sockets that do what no server should."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from ipaddress import ip_address

import pytest

from headrace.domain.errors import EndpointBusy, EndpointFailed, EndpointTimeout
from headrace.ports.upstream import Site
from headrace.transport.http.client.exchange import Answer
from headrace.transport.http.client.limits import ClientLimits
from headrace.transport.http.client.pool import ClientPool
from headrace.transport.http.drive import Drive
from tests.support.waiting import until

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
GET = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"
_LENGTH = re.compile(rb"(?i)content-length: (\d+)")


class Visitor:
    """One connection, as the server sees it."""

    def __init__(
        self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.number = number  # from 1
        self.reader = reader
        self.writer = writer
        self.gone = False

    async def request(self) -> bytes:
        """The next request; b"" once the client is gone."""
        try:
            head = await self.reader.readuntil(b"\r\n\r\n")
            length = _LENGTH.search(head)
            return head + await self.reader.readexactly(int(length[1]) if length else 0)
        except (asyncio.IncompleteReadError, ConnectionError):
            self.gone = True
            return b""

    def answer(self, *parts: bytes) -> None:
        self.writer.writelines(parts)

    async def answer_all(self, answer: bytes = OK) -> None:
        while await self.request():
            self.answer(answer)


class Server:
    """Runs `serve` for each connection, and closes it after that."""

    def __init__(self, serve: Callable[[Visitor], Awaitable[None]]) -> None:
        self.visitors: list[Visitor] = []
        self.port = 0
        self._serve = serve
        self._tasks: list[asyncio.Task[None]] = []

    async def _visit(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.append(task)
        visitor = Visitor(len(self.visitors) + 1, reader, writer)
        self.visitors.append(visitor)
        with contextlib.suppress(asyncio.CancelledError, ConnectionError):
            await self._serve(visitor)
        writer.close()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Server]:
        server = await asyncio.start_server(self._visit, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)


class Client:
    """A pool, and the short way to ask it."""

    def __init__(self, port: int, limits: ClientLimits) -> None:
        site = Site("localhost", port, ip_address("127.0.0.1"))
        self.pool = ClientPool(site, limits=limits)

    async def ask(self, *body: bytes, within_s: float = 10.0) -> Answer:
        size = sum(map(len, body))
        head = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % size
        return await self.exchange(head if body else GET, body, within_s)

    async def exchange(self, head: bytes, body: Sequence[bytes], within_s: float) -> Answer:
        deadline = asyncio.get_running_loop().time() + within_s
        return await self.pool.exchange(head, body, deadline)

    async def refused(self) -> EndpointFailed:
        with pytest.raises(EndpointFailed) as caught:
            await self.ask()
        return caught.value


@contextlib.asynccontextmanager
async def between(
    serve: Callable[[Visitor], Awaitable[None]], limits: ClientLimits | None = None
) -> AsyncIterator[tuple[Server, Client]]:
    async with Server(serve).running() as server:
        client = Client(server.port, limits or ClientLimits())
        try:
            yield server, client
        finally:
            await client.pool.close()


def body_of(answer: Answer) -> bytes:
    return b"".join(answer.body)


# --- what is kept and what is not ----------------------------------------------------------------


async def test_requests_one_after_another_share_a_connection() -> None:
    async with between(Visitor.answer_all) as (server, client):
        for _ in range(3):
            assert body_of(await client.ask()) == b"ok"
        assert len(server.visitors) == 1
        assert client.pool.connections == 1


async def test_requests_at_once_have_a_connection_each_and_the_last_used_is_used_first() -> None:
    async with between(Visitor.answer_all) as (server, client):
        await asyncio.gather(*[client.ask() for _ in range(4)])
        assert (len(server.visitors), client.pool.connections) == (4, 4)
        await client.ask()
        assert len(server.visitors) == 4


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\nConnection: keep-alive\r\n\r\nok",
    ],
)
async def test_a_connection_that_is_to_be_closed_is_not_used_again(answer: bytes) -> None:
    async def serve(visitor: Visitor) -> None:
        await visitor.answer_all(answer)

    async with between(serve) as (server, client):
        assert body_of(await client.ask()) == b"ok"
        assert body_of(await client.ask()) == b"ok"
        assert len(server.visitors) == 2


@pytest.mark.parametrize(
    "answer",
    [
        b"\x00\x01 garbage\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\nof unknown length",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok!",
        b"HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Encoding: gzip\r\n\r\nok",
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 102 Processing\r\n\r\n" * 17 + OK,
        OK + OK,
        OK + b"H",
        b"HTTP/1.1 200 OK\r\nContent-Length: 40000\r\n\r\n" + b"x" * 40001,
        b"HTTP/1.1 200 OK\r\nContent-Length: 700000\r\n\r\n" + b"x" * 710_000,
    ],
)
async def test_what_is_no_certain_answer_is_a_failure_and_ends_the_connection(
    answer: bytes,
) -> None:
    async def serve(visitor: Visitor) -> None:
        await visitor.answer_all(answer if visitor.number == 1 else OK)

    async with between(serve) as (server, client):
        error = await client.refused()
        assert "127.0.0.1" not in error.message
        assert error.reason
        assert body_of(await client.ask()) == b"ok"
        await until(lambda: server.visitors[0].gone)
        assert len(server.visitors) == 2


@pytest.mark.parametrize(
    "part",
    [
        b"HTTP/1.1 200 OK\r\nConte",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 90000\r\n\r\n" + b"x" * 60000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n",
    ],
)
@pytest.mark.parametrize("reused", [True, False])
async def test_an_answer_that_is_broken_off_is_a_failure(part: bytes, *, reused: bool) -> None:
    async def serve(visitor: Visitor) -> None:
        if reused:
            await visitor.request()
            visitor.answer(OK)
        await visitor.request()
        visitor.answer(part)

    async with between(serve) as (server, client):
        if reused:
            await client.ask()
        error = await client.refused()
        assert error.message == "the endpoint broke off its answer"
        assert len(server.visitors) == 1


async def test_a_kept_connection_that_is_closed_as_it_is_asked_costs_nobody_an_error() -> None:
    async def serve(visitor: Visitor) -> None:
        await visitor.request()
        visitor.answer(OK)
        if visitor.number == 1:
            await visitor.request()  # and closes without a word
        else:
            await visitor.answer_all()

    async with between(serve) as (server, client):
        await client.ask()
        assert body_of(await client.ask(b"once more")) == b"ok"
        assert (len(server.visitors), client.pool.connections) == (2, 1)


async def test_a_request_is_repeated_once_at_most() -> None:
    async def serve(visitor: Visitor) -> None:
        await visitor.request()
        if visitor.number == 1:
            visitor.answer(OK)
            await visitor.request()

    async with between(serve) as (server, client):
        await client.ask()
        assert "without an answer" in (await client.refused()).message
        assert (len(server.visitors), client.pool.connections) == (2, 0)


async def test_a_new_connection_that_is_closed_is_a_failure_at_once() -> None:
    async def serve(visitor: Visitor) -> None:
        await visitor.request()

    async with between(serve) as (server, client):
        assert "without an answer" in (await client.refused()).message
        assert len(server.visitors) == 1


async def test_bytes_that_nobody_asked_for_end_an_idle_connection() -> None:
    async def serve(visitor: Visitor) -> None:
        await visitor.request()
        visitor.answer(OK)
        if visitor.number == 1:
            await idle.wait()
            visitor.answer(OK)
        await visitor.answer_all(OK.replace(b"ok", b"2."))

    idle = asyncio.Event()
    async with between(serve) as (server, client):
        await client.ask()
        idle.set()
        await until(lambda: server.visitors[0].gone)
        assert client.pool.connections == 0
        assert body_of(await client.ask()) == b"ok"


async def test_a_connection_answered_before_its_request_was_sent_whole_is_not_used_again() -> None:
    async def serve(visitor: Visitor) -> None:
        await visitor.reader.readuntil(b"\r\n\r\n")
        visitor.answer(OK)
        await asyncio.Event().wait()

    async with between(serve) as (server, client):
        answer = await client.ask(b"x" * 30_000_000)
        assert answer.status == 200
        assert client.pool.connections == 0
        assert len(server.visitors) == 1


async def test_connections_idle_for_too_long_are_closed() -> None:
    async with between(Visitor.answer_all, ClientLimits(idle_timeout_s=0.05)) as (server, client):
        await asyncio.gather(client.ask(), client.ask())
        await until(lambda: client.pool.connections == 0)
        await until(lambda: all(visitor.gone for visitor in server.visitors))


# --- answers -------------------------------------------------------------------------------------


async def test_an_answer_in_chunks_and_pieces_is_whole() -> None:
    async def serve(visitor: Visitor) -> None:
        while await visitor.request():
            answer = b"HTTP/1.1 200 OK\r\nX-A: 1\r\nx-a: 2\r\nTransfer-Encoding: chunked\r\n\r\n"
            answer += b"3\r\nabc\r\n4;x=y\r\ndefg\r\n0\r\nTrailer: x\r\n\r\n"
            for byte in answer:
                visitor.answer(bytes([byte]))
                await visitor.writer.drain()
                await asyncio.sleep(0)

    async with between(serve) as (server, client):
        for _ in range(2):
            answer = await client.ask()
            assert body_of(answer) == b"abcdefg"
            assert answer.headers[b"x-a"] == b"1, 2"
        assert len(server.visitors) == 1


async def test_large_bodies_go_both_ways_unchanged() -> None:
    size = 3_000_000
    received: list[bytes] = []

    async def serve(visitor: Visitor) -> None:
        while request := await visitor.request():
            body = request.partition(b"\r\n\r\n")[2]
            received.append(body)
            visitor.answer(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size, body)

    sent = [bytes([n]) * (size // 3) for n in range(3)]
    async with between(serve) as (server, client):
        for _ in range(3):
            assert body_of(await client.ask(*sent)) == b"".join(sent)
        assert received == [b"".join(sent)] * 3
        assert len(server.visitors) == 1


async def test_interim_answers_are_skipped() -> None:
    async def serve(visitor: Visitor) -> None:
        await visitor.answer_all(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" * 2 + OK)

    async with between(serve) as (server, client):
        for _ in range(10):
            answer = await client.ask()
            assert (answer.status, body_of(answer)) == (200, b"ok")
            assert b"link" not in answer.headers
        assert len(server.visitors) == 1


@pytest.mark.parametrize(
    ("limits", "answer"),
    [
        (ClientLimits(max_head_bytes=500), b"HTTP/1.1 200 OK\r\nX: %b\r\n\r\n" % (b"x" * 600)),
        (ClientLimits(), b"HTTP/1.1 200 OK\r\nX: %b" % (b"x" * 700_000)),
        (ClientLimits(), b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 300 + b"\r\n"),
        (ClientLimits(max_body_bytes=9), b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n"),
        (
            ClientLimits(max_body_bytes=9),
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"5\r\nhello\r\n" * 2,
        ),
        (
            ClientLimits(),
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;%b" % (b"x" * 700_000),
        ),
    ],
)
async def test_an_answer_over_a_limit_is_a_failure(limits: ClientLimits, answer: bytes) -> None:
    async def serve(visitor: Visitor) -> None:
        await visitor.request()
        visitor.answer(answer)
        await asyncio.Event().wait()

    async with between(serve, limits) as (_, client):
        assert "over the limit" in (await client.refused()).reason


async def test_no_task_is_needed_to_ask() -> None:
    ended: asyncio.Future[object] = asyncio.get_running_loop().create_future()

    class Asked(Drive[Answer]):
        def done(self, result: Answer) -> None:
            ended.set_result(result)

        def failed(self, error: BaseException) -> None:
            ended.set_result(error)

    async def serve(visitor: Visitor) -> None:
        await visitor.request()
        visitor.answer(OK)
        await visitor.request()
        await visitor.request()

    async with between(serve) as (server, client):
        loop = asyncio.get_running_loop()
        Asked(client.ask(), loop).start()
        assert isinstance(await ended, Answer)
        ended = loop.create_future()
        asked = Asked(client.ask(), loop)
        asked.start()
        asked.cancel()
        assert isinstance(await ended, asyncio.CancelledError)
        await until(lambda: server.visitors[0].gone)


# --- time and room -------------------------------------------------------------------------------


async def test_an_answer_that_drips_is_over_at_the_deadline_and_the_server_is_told() -> None:
    async def serve(visitor: Visitor) -> None:
        await visitor.request()
        visitor.answer(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        for _ in range(1000):
            visitor.answer(b"x")
            await asyncio.wait([asyncio.create_task(visitor.request())], timeout=0.01)

    async with between(serve) as (server, client):
        begun = asyncio.get_running_loop().time()
        with pytest.raises(EndpointTimeout):
            await client.ask(within_s=0.2)
        assert asyncio.get_running_loop().time() - begun < 2
        assert client.pool.connections == 0
        await until(lambda: server.visitors[0].gone)


async def test_each_request_ends_by_its_own_deadline() -> None:
    async def serve(visitor: Visitor) -> None:
        await visitor.request()
        await visitor.request()

    async with between(serve) as (_, client):
        ended: list[float] = []

        async def ask(within_s: float) -> None:
            with pytest.raises(EndpointTimeout):
                await client.ask(within_s=within_s)
            ended.append(within_s)

        await asyncio.gather(ask(0.3), ask(0.1), ask(0.2))
        assert ended == [0.1, 0.2, 0.3]
        with pytest.raises(EndpointTimeout):
            await client.ask(within_s=0.05)


async def test_a_request_past_its_deadline_is_not_sent() -> None:
    async with between(Visitor.answer_all) as (server, client):
        with pytest.raises(EndpointTimeout):
            await client.ask(within_s=0.0)
        assert not server.visitors


async def test_a_cancelled_request_ends_its_connection_and_no_other() -> None:
    async def serve(visitor: Visitor) -> None:
        if visitor.number == 1:
            await visitor.request()
            await visitor.request()
        else:
            await visitor.answer_all()

    async with between(serve) as (server, client):
        task = asyncio.create_task(client.ask())
        await until(lambda: server.visitors)
        other = await client.ask()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: server.visitors[0].gone)
        assert body_of(other) == b"ok"
        assert client.pool.connections == 1


async def test_requests_wait_for_a_connection_in_turn_and_no_more_than_may() -> None:
    released = asyncio.Event()
    order: list[bytes] = []

    async def serve(visitor: Visitor) -> None:
        while request := await visitor.request():
            order.append(request[-1:])
            await released.wait()
            visitor.answer(OK)

    async with between(serve, ClientLimits(max_connections=1, max_pending=2)) as (server, client):
        tasks = [asyncio.create_task(client.ask(b"1"))]
        await until(lambda: order)
        tasks += [asyncio.create_task(client.ask(name)) for name in (b"2", b"3")]
        await until(lambda: client.pool.pending == 2)
        with pytest.raises(EndpointBusy):
            await client.ask(b"4")
        released.set()
        await asyncio.gather(*tasks)
        assert order == [b"1", b"2", b"3"]
        assert (len(server.visitors), client.pool.pending) == (1, 0)


async def test_a_request_that_stops_waiting_for_a_connection_leaves_its_place() -> None:
    async def serve(visitor: Visitor) -> None:
        await visitor.request()
        await visitor.request()

    async with between(serve, ClientLimits(max_connections=1)) as (server, client):
        first = asyncio.create_task(client.ask())
        await until(lambda: server.visitors)
        with pytest.raises(EndpointTimeout):
            await client.ask(within_s=0.05)
        second = asyncio.create_task(client.ask())
        await until(lambda: client.pool.pending == 1)
        second.cancel()
        await until(second.done)
        assert client.pool.pending == 0
        first.cancel()
        await until(first.done)


async def test_those_that_wait_get_a_new_connection_when_one_is_lost() -> None:
    async def serve(visitor: Visitor) -> None:
        await visitor.request()
        if visitor.number > 1:
            visitor.answer(OK)

    async with between(serve, ClientLimits(max_connections=1)) as (server, client):
        outcomes = await asyncio.gather(client.ask(), client.ask(), return_exceptions=True)
        assert isinstance(outcomes[0], EndpointFailed)
        assert isinstance(outcomes[1], Answer)
        assert len(server.visitors) == 2


async def test_a_port_where_nobody_listens_is_a_failure_for_all_that_wait() -> None:
    async with Server(Visitor.answer_all).running() as server:
        port = server.port
    client = Client(port, ClientLimits(max_connections=2))
    outcomes = await asyncio.gather(*[client.ask() for _ in range(6)], return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [EndpointFailed] * 6
    for outcome in outcomes:
        assert isinstance(outcome, EndpointFailed)
        assert str(port) not in outcome.message
        assert f"127.0.0.1 port {port}" in outcome.reason
    assert (client.pool.connections, client.pool.pending) == (0, 0)
    await client.pool.close()


async def test_closing_ends_idle_connections_now_and_busy_ones_when_they_have_answered() -> None:
    released = asyncio.Event()

    async def serve(visitor: Visitor) -> None:
        while await visitor.request():
            if visitor.number == 2:
                await released.wait()
            visitor.answer(OK)

    async with between(serve) as (server, client):
        first, busy = asyncio.create_task(client.ask()), asyncio.create_task(client.ask())
        await first
        await client.pool.close()
        await until(lambda: server.visitors[0].gone)
        assert client.pool.connections == 1
        released.set()
        assert body_of(await busy) == b"ok"
        assert client.pool.connections == 0
        assert "asked no more" in (await client.refused()).message


async def test_a_coded_answer_is_taken_as_it_is_where_one_was_asked_for() -> None:
    coded = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Encoding: gzip\r\n\r\nok"

    async def serve(visitor: Visitor) -> None:
        await visitor.answer_all(coded)

    async with between(serve) as (_, client):
        deadline = asyncio.get_running_loop().time() + 10
        answer = await client.pool.exchange(GET, (), deadline, coded=True)
        assert (answer.headers[b"content-encoding"], body_of(answer)) == (b"gzip", b"ok")
        await client.refused()


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n123456789012",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nc\r\n123456789012\r\n0\r\n\r\n",
    ],
)
async def test_one_answer_may_have_a_lower_limit_than_others(answer: bytes) -> None:
    async def serve(visitor: Visitor) -> None:
        await visitor.answer_all(answer)

    async with between(serve) as (_, client):
        deadline = asyncio.get_running_loop().time() + 10
        for _ in range(2):
            assert len(body_of(await client.ask())) == 12
            with pytest.raises(EndpointFailed, match="limit of 11 bytes"):
                await client.pool.exchange(GET, (), deadline, max_body_bytes=11)
