from __future__ import annotations

import asyncio

import pytest

from headrace.domain.errors import EndpointFailed
from headrace.transport.http.client.connection import ClientConnection
from headrace.transport.http.client.exchange import Answer, Exchange, Outcome
from headrace.transport.http.client.limits import ClientLimits
from tests.support.http_fakes import FakeTransport

LIMITS = ClientLimits(max_head_bytes=1000, max_body_bytes=100_000)
HEAD = b"GET / HTTP/1.1\r\n\r\n"


def answer(body: bytes = b"ok", *lines: bytes, status: int = 200) -> bytes:
    length = b"content-length: %d" % len(body)
    return b"\r\n".join([b"HTTP/1.1 %d x" % status, length, *lines, b"", body])


class Wire:
    """One connection, and what becomes of it."""

    def __init__(self) -> None:
        self.released: list[ClientConnection] = []
        self.lost: list[Exchange | None] = []
        self.connection = ClientConnection(
            limits=LIMITS,
            released=self.released.append,
            lost=lambda _, unanswered: self.lost.append(unanswered),
        )
        self.transport = FakeTransport()
        self.connection.connection_made(self.transport)

    def ask(self, *body: bytes) -> Exchange:
        outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        exchange = Exchange(HEAD, body, 0.0, outcome)
        self.connection.ask(exchange)
        return exchange

    def send(self, *reads: bytes) -> None:
        for read in reads:
            if not self.transport.closing:  # as a transport, which reads no more then
                self.connection.data_received(read)

    def refusal(self, *reads: bytes) -> str:
        """Why this is no answer; the connection is closed, and nothing is to be repeated."""
        exchange = self.ask()
        self.send(*reads)
        error = exchange.outcome.result()
        assert isinstance(error, EndpointFailed)
        assert self.transport.aborted
        assert (self.released, self.lost) == ([], [None])
        return error.reason


@pytest.fixture
def wire() -> Wire:
    return Wire()


def body_of(exchange: Exchange) -> bytes:
    outcome = exchange.outcome.result()
    assert isinstance(outcome, Answer)
    return b"".join(outcome.body)


async def test_a_connection_is_given_back_behind_an_answer_whose_end_is_certain(wire: Wire) -> None:
    for body in (b"one", b"", b"three"):
        exchange = wire.ask(b"asked")
        wire.send(answer(body))
        assert body_of(exchange) == body
    assert wire.released == [wire.connection] * 3
    assert wire.transport.written == (HEAD + b"asked") * 3
    assert (wire.lost, wire.transport.closing) == ([], False)


@pytest.mark.parametrize(
    "whole",
    [
        answer(b"x" * 300, b"X-Twice: a", b"x-twice: b"),
        answer(b"x" * 50_000, b"x-twice: a", b"x-twice: b"),
        b"HTTP/1.1 200 x\r\ntransfer-encoding: chunked\r\nx-twice: a, b\r\n\r\n"
        b"96\r\n%b\r\n96;a=b\r\n%b\r\n0\r\nx-trailer: 1\r\n\r\n" % (b"x" * 150, b"x" * 150),
    ],
    ids=["small", "large", "in chunks"],
)
@pytest.mark.parametrize("size", [1, 7, 300, 60_000])
async def test_however_an_answer_is_cut_into_reads_it_is_the_same(
    wire: Wire, whole: bytes, size: int
) -> None:
    exchange = wire.ask()
    wire.send(*(whole[at : at + size] for at in range(0, len(whole), size)))
    outcome = exchange.outcome.result()
    assert isinstance(outcome, Answer)
    assert (outcome.status, outcome.headers[b"x-twice"]) == (200, b"a, b")
    assert set(body_of(exchange)) == {ord("x")}
    assert len(body_of(exchange)) in {300, 50_000}
    assert wire.released == [wire.connection]


async def test_a_body_is_not_copied(wire: Wire) -> None:
    exchange = wire.ask()
    head, body = answer(b"x" * 90_000)[:-90_000], b"x" * 45_000
    wire.send(head, body, body)
    outcome = exchange.outcome.result()
    assert isinstance(outcome, Answer)
    assert all(part is body for part in outcome.body[-1:])


@pytest.mark.parametrize(
    ("whole", "reason"),
    [
        (b"HTTP/1.1 200 x\r\n\r\n", "neither Content-Length nor chunks"),
        (b"HTTP/1.1 200 x\r\ntransfer-encoding: gzip, chunked\r\n\r\n", "neither Content-Length"),
        (b"HTTP/1.1 204 x\r\n\r\n", "status 204"),
        (b"HTTP/1.1 304 x\r\n\r\n", "status 304"),
        (answer(b"ok", b"content-encoding: gzip"), "Content-Encoding"),
        (b"HTTP/1.1 101 x\r\nupgrade: a\r\nconnection: upgrade\r\n\r\n", "101"),
        (b"HTTP/1.1 101 x\r\n\r\n", "101"),
        (answer(b"ok", b"transfer-encoding: chunked"), ""),
        (answer() + b"HTTP/1.1 200 x\r\n", "behind the end of the answer"),
        (answer() + answer(), "behind the end of the answer"),
        (answer(b"x" * 20_000) + b"x", "behind the end of the answer"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", ""),
        (answer(b"", *[b"a:"] * 202), "200 repeats"),
        (answer(b"", b"x-long: " + b"y" * 40_000), "headers over the limit of 1000 bytes"),
        (b"HTTP/1.1 200 x\r\ncontent-length: 100001\r\n\r\n", "limit of 100000 bytes"),
    ],
)
async def test_what_is_no_certain_answer_is_refused(wire: Wire, whole: bytes, reason: str) -> None:
    assert reason in wire.refusal(whole)


async def test_a_body_that_comes_in_reads_ends_where_it_was_said_to(wire: Wire) -> None:
    head = b"HTTP/1.1 200 x\r\ncontent-length: 20000\r\n\r\n"
    reason = wire.refusal(head + b"x", b"x" * 10_000, b"x" * 10_000)
    assert "behind the end of the answer" in reason


async def test_a_body_in_chunks_is_bounded_without_a_length(wire: Wire) -> None:
    head = b"HTTP/1.1 200 x\r\ntransfer-encoding: chunked\r\n\r\n"
    chunk = b"2710\r\n" + b"x" * 10_000 + b"\r\n"
    assert "over the limit of 100000 bytes" in wire.refusal(head, *[chunk] * 11)


@pytest.mark.parametrize(
    "begun",
    [
        b"HTTP/1.1 200 x\r\nx: ",
        b"HTTP/1.1 200 x\r\ntransfer-encoding: chunked\r\n\r\n1;",
        b"HTTP/1.1 200 x\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nx: ",
    ],
    ids=["header", "chunk extension", "trailer"],
)
async def test_what_drips_between_parts_of_a_body_is_bounded(wire: Wire, begun: bytes) -> None:
    assert "headers over the limit of 1000 bytes" in wire.refusal(begun, *[b"y" * 100] * 20)


async def test_interim_answers_are_passed_over_but_not_without_end(wire: Wire) -> None:
    interim = b"HTTP/1.1 103 x\r\nlink: a\r\n\r\n"
    exchange = wire.ask()
    wire.send(interim * 16 + answer(b"ok", b"own: 1"))
    outcome = exchange.outcome.result()
    assert isinstance(outcome, Answer)
    assert outcome.headers == {b"content-length": b"2", b"own": b"1"}
    exchange = wire.ask()
    wire.send(interim * 16, answer())
    assert body_of(exchange) == b"ok", "each answer may have as many"
    wire.released.clear()
    assert "17 interim answers" in wire.refusal(interim * 16, interim)


@pytest.mark.parametrize(
    "whole",
    [
        answer(b"ok", b"connection: close"),
        b"HTTP/1.0 200 x\r\ncontent-length: 2\r\n\r\nok",
        b"HTTP/1.0 200 x\r\ncontent-length: 2\r\nconnection: keep-alive\r\n\r\nok",
    ],
)
async def test_a_connection_whose_server_promises_no_more_is_closed(
    wire: Wire, whole: bytes
) -> None:
    exchange = wire.ask()
    wire.send(whole)
    assert body_of(exchange) == b"ok"
    assert wire.transport.aborted
    assert (wire.released, wire.lost) == ([], [None])


async def test_an_answer_before_its_request_was_sent_whole_is_the_connections_last(
    wire: Wire,
) -> None:
    exchange = wire.ask(b"x" * 50_000)
    wire.transport.unsent = 1
    wire.send(answer())
    assert body_of(exchange) == b"ok"
    assert (wire.released, wire.transport.aborted) == ([], True)


async def test_bytes_that_nobody_asked_for_close_an_idle_connection(wire: Wire) -> None:
    wire.ask()
    wire.send(answer())
    wire.send(answer())
    assert (wire.transport.aborted, wire.lost) == (True, [None])


async def test_only_a_connection_that_has_answered_before_gives_its_request_back(
    wire: Wire,
) -> None:
    fresh = Wire()
    exchange = fresh.ask()
    fresh.connection.connection_lost(ConnectionResetError("reset"))
    error = exchange.outcome.result()
    assert isinstance(error, EndpointFailed)
    assert "without an answer: reset" in error.reason
    assert fresh.lost == [None]

    wire.ask()
    wire.send(answer())
    exchange = wire.ask()
    wire.connection.connection_lost(None)
    assert not exchange.outcome.done()
    assert wire.lost == [exchange]
    assert exchange.connection is None


async def test_a_request_with_one_byte_of_an_answer_is_not_given_back(wire: Wire) -> None:
    wire.ask()
    wire.send(answer())
    exchange = wire.ask()
    wire.send(b"H")
    wire.connection.eof_received()
    wire.connection.connection_lost(None)
    error = exchange.outcome.result()
    assert isinstance(error, EndpointFailed)
    assert "broke off" in error.message
    assert wire.lost == [None], "and it is told once"


async def test_a_request_that_is_taken_back_closes_its_own_connection_only(wire: Wire) -> None:
    first = wire.ask()
    wire.send(answer())
    second = wire.ask()
    wire.connection.take_back(first)
    assert not wire.transport.closing
    wire.connection.take_back(second)
    assert (wire.transport.aborted, wire.lost) == (True, [None])
    assert not second.outcome.done()
