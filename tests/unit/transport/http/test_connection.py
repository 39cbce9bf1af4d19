from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Iterator
from typing import Any

import msgspec
import pytest

from headrace.domain.errors import (
    HeadraceError,
    HeadTooLarge,
    MalformedHttp,
    PayloadTooLarge,
    RequestTimeout,
    ShuttingDown,
    TooManyConnections,
    Unsupported,
)
from headrace.transport.http.connection import Connection
from headrace.transport.http.messages import HttpRequest, HttpResponse
from tests.support.http_fakes import (
    HOT,
    LIMITS,
    FakeApplication,
    FakeTransport,
    Wire,
    chunked,
    get,
    parts_of,
    post,
    settle,
)


class Model:
    """Answers at once with the body of the request, or, `held`, when told to."""

    def __init__(self) -> None:
        self.held = False
        self.waiting: list[asyncio.Future[None]] = []
        self.cancelled = 0

    async def __call__(self, request: HttpRequest) -> HttpResponse:
        if self.held:
            future = asyncio.get_running_loop().create_future()
            self.waiting.append(future)
            try:
                await future
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        return HttpResponse(200, b"", parts_of(request))

    async def release(self) -> None:
        """Let the request that is under way end."""
        self.waiting.pop(0).set_result(None)
        await settle()


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
async def wire(model: Model) -> AsyncIterator[Wire]:
    async with asyncio.TaskGroup() as tasks:
        yield Wire(FakeApplication(model), loop=asyncio.get_running_loop(), tasks=tasks)


def split_everywhere(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    for at in range(1, len(data)):
        yield data[:at], data[at:]


# --- reading -------------------------------------------------------------------------------------


async def test_a_request_is_answered_and_the_connection_stays(wire: Wire) -> None:
    wire.send(post(HOT, b"hello"))

    head, _, body = wire.last.partition(b"\r\n\r\n")
    assert wire.statuses == [200]
    assert body == b"hello"
    assert b"content-length: 5" in head
    assert b"date: " in head
    assert b"connection:" not in head
    assert not wire.ended


async def test_a_handler_sees_the_whole_request(wire: Wire) -> None:
    wire.send(post(f"{HOT}?a=%20b", b"hello", "X-One: 1", "x-two: a", "X-TWO: b"))

    assert wire.application.requests == [
        HttpRequest(
            "POST",
            b"/hot?a=%20b",
            {b"host": b"a", b"x-one": b"1", b"x-two": b"a, b", b"content-length": b"5"},
            b"hello",
            "192.0.2.7",
        )
    ]


@pytest.mark.parametrize("request_", [post(HOT, b"hello"), chunked(HOT, b"he", b"llo")])
async def test_it_does_not_matter_where_reads_end(wire: Wire, request_: bytes) -> None:
    for first, second in split_everywhere(request_):
        wire.send(first, second)
    wire.send(*(bytes([byte]) for byte in request_))

    assert {request.body for request in wire.application.requests} == {b"hello"}
    assert len(wire.statuses) == len(request_)


async def test_a_body_of_many_small_pieces_arrives_whole(wire: Wire) -> None:
    wire.connection.host.limits = msgspec.structs.replace(LIMITS, max_body_bytes=100_000)
    body = bytes(range(256)) * 40
    wire.send(chunked(HOT, *(bytes([byte]) for byte in body))[:-5])
    wire.send(*(b"1\r\n%c\r\n" % byte for byte in body))
    wire.send(b"0\r\n\r\n")

    assert wire.application.requests[0].body == body * 2


async def test_what_a_request_held_is_let_go_with_its_answer(wire: Wire) -> None:
    wire.connection.host.limits = msgspec.structs.replace(LIMITS, max_body_bytes=10**6)
    body = b"x" * 500_000
    wire.send(post(HOT, body))
    wire.application.requests.clear()
    wire.transport.written = b""

    gc.collect()
    held = [o for o in gc.get_referents(wire.connection) if isinstance(o, list) and o]
    assert held == []


async def test_trailers_and_extensions_of_chunks_are_dropped(wire: Wire) -> None:
    request = chunked(HOT, b"hello", trailers=b"Host: b\r\nX: y\r\n")
    wire.send(request.replace(b"5\r\n", b"5;a=b\r\n") + post(HOT, b"next"))

    assert [request.body for request in wire.application.requests] == [b"hello", b"next"]
    assert wire.application.requests[0].headers[b"host"] == b"a"


# --- one after the other -------------------------------------------------------------------------


async def test_pipelined_requests_run_one_after_the_other(wire: Wire, model: Model) -> None:
    model.held = True
    wire.send(post(HOT, b"1") + post(HOT, b"2") + post(HOT, b"3"))
    assert len(wire.application.requests) == 1

    await model.release()
    assert wire.last.endswith(b"\r\n\r\n1")
    assert len(wire.application.requests) == 2

    await model.release()
    await model.release()
    assert wire.statuses == [200, 200, 200]
    assert wire.last.endswith(b"\r\n\r\n3")


async def test_nothing_is_read_while_a_request_waits_behind_another(
    wire: Wire, model: Model
) -> None:
    model.held = True
    wire.send(post(HOT, b"1"))
    assert wire.transport.reading

    wire.send(post(HOT, b"2"))
    assert not wire.transport.reading

    await model.release()
    assert wire.transport.reading


async def test_a_control_request_waits_for_the_one_before(wire: Wire, model: Model) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        del scope, receive
        await send({"type": "http.response.start", "status": 202, "headers": []})
        await send({"type": "http.response.body", "body": b"control"})

    wire.application.asgi = app
    model.held = True
    wire.send(post(HOT, b"1") + get("/control") + post(HOT, b"2"))
    await settle()
    assert wire.statuses == []

    await model.release()
    assert wire.statuses == [200, 202]

    await model.release()
    assert wire.statuses == [200, 202, 200]


# --- the end of a connection ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "request_",
    [
        post(HOT, b"x", "Connection: close"),
        get(HOT, version="1.0"),
        get(HOT, "Connection: keep-alive", version="1.0"),
        post(HOT, b"x", "Connection: close, Upgrade", "Upgrade: h2c"),
    ],
)
async def test_the_last_request_of_a_connection_is_answered_and_it_closes(
    wire: Wire, request_: bytes
) -> None:
    wire.send(request_)

    assert wire.statuses == [200]
    assert b"\r\nconnection: close\r\n" in wire.last
    assert wire.ended


@pytest.mark.parametrize("behind", [post(HOT, b"2"), b"\x00garbage"])
@pytest.mark.parametrize("held", [True, False])
async def test_nothing_behind_the_last_request_is_heard(
    wire: Wire, model: Model, behind: bytes, *, held: bool
) -> None:
    model.held = held
    wire.send(post(HOT, b"1", "Connection: close") + behind)
    if held:
        await model.release()

    assert wire.statuses == [200]
    assert wire.ended
    assert wire.host.refusals == {}


async def test_an_answer_is_not_destroyed_by_what_was_not_read(wire: Wire) -> None:
    # a plain close with unread input makes the kernel reset the connection
    wire.send(b"POST /hot HTTP/1.1\r\nHost: a\r\nContent-Length: 5000\r\n\r\nabc")

    assert wire.statuses == [413]
    assert wire.transport.eof
    assert not wire.transport.closing
    assert wire.transport.reading
    wire.send(b"x" * 4997)
    wire.wait(2.5)
    assert wire.transport.aborted


async def test_while_the_server_drains_every_answer_is_the_last(wire: Wire, model: Model) -> None:
    model.held = True
    wire.send(post(HOT, b"1") + post(HOT, b"2"))
    wire.host.draining = True
    await model.release()

    assert wire.statuses == [200]
    assert b"\r\nconnection: close\r\n" in wire.last
    assert wire.ended
    assert len(wire.application.requests) == 1


async def test_a_client_that_hangs_up_cancels_what_it_asked(wire: Wire, model: Model) -> None:
    model.held = True
    wire.send(post(HOT, b"1") + post(HOT, b"2"))
    wire.hang_up()
    await settle()
    gc.collect()  # a coroutine that was never awaited would be a warning, and so an error

    assert model.cancelled == 1
    assert wire.statuses == []
    assert wire.host.connections == set()


async def test_a_handler_that_fails_is_a_500_that_tells_nothing(
    wire: Wire, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(request: HttpRequest) -> HttpResponse:
        del request
        raise RuntimeError("the secret")

    wire.application.answer = broken
    wire.send(post(HOT, b""))

    assert wire.statuses == [500]
    assert wire.last.endswith(b"\r\n\r\ninternal error")
    assert wire.ended
    assert "the secret" in caplog.text


async def test_a_request_that_is_cut_off_is_told_so(wire: Wire, model: Model) -> None:
    model.held = True
    wire.send(post(HOT, b"1"))
    wire.connection.cancel()
    await settle()

    assert wire.statuses == [503]
    assert wire.ended


async def test_a_connection_is_busy_until_its_client_has_the_answer(
    wire: Wire, model: Model
) -> None:
    model.held = True
    assert not wire.connection.busy
    wire.send(b"POST ")
    assert wire.connection.busy
    wire.send(post(HOT, b"1").removeprefix(b"POST "))
    assert wire.connection.busy
    wire.connection.close_if_idle()
    assert not wire.ended

    wire.transport.stall()
    await model.release()
    assert wire.connection.busy
    wire.transport.take()
    assert not wire.connection.busy
    wire.connection.close_if_idle()
    assert wire.ended


# --- refusals ------------------------------------------------------------------------------------

TOO_LARGE = b"x" * (LIMITS.max_body_bytes + 1)


@pytest.mark.parametrize(
    ("status", "says", "parts"),
    [
        (400, b"no Host header", [b"GET /hot HTTP/1.1\r\n\r\n"]),
        (400, b"several Host headers", [get(HOT, "Host: b")]),
        (400, b"HTTP/2.0", [b"GET /hot HTTP/2.0\r\nHost: a\r\n\r\n"]),
        (400, b"HTTP/0.9", [b"GET /hot\r\n\r\n"]),
        (400, b"malformed", [b"\x16\x03\x01"]),
        (400, b"must end in chunked", [post(HOT, b"", "Transfer-Encoding: gzip")[:-21] + b"\r\n"]),
        (501, b"only chunked", [chunked(HOT).replace(b": chunked", b": gzip, chunked")]),
        (501, b"CONNECT", [b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n"]),
        (413, b"limit of 1000 bytes", [post(HOT, TOO_LARGE)]),
        (413, b"limit of 1000 bytes", [chunked(HOT, TOO_LARGE[:600], TOO_LARGE[:600])]),
        (413, b"limit of 1000 bytes", [chunked("/control", TOO_LARGE[:600], TOO_LARGE[:600])]),
        (431, b"limit of 2000 bytes", [get(HOT, "X: " + "a" * 2000)]),
        (431, b"limit of 2000 bytes", [get(HOT + "?" + "a" * 2000)]),
        (
            431,
            b"limit of 2000 bytes",
            [get(HOT, *[f"{'X' * 7}{n}: {'a' * 99}" for n in range(20)])],
        ),
        (431, b"200 headers", [get(HOT, *[f"X{n}: a" for n in range(200)])]),
        (431, b"200 headers", [get(HOT, *["X: a" for _ in range(250)])]),
        (431, b"limit of 2000 bytes", [b"GET /hot HTTP/1.1\r\nX: ", *[b"a" * 500] * 5]),
        (431, b"limit of 2000 bytes", [chunked(HOT)[:-2], b"X: ", *[b"a" * 500] * 5]),
    ],
)
async def test_what_cannot_be_served_is_refused_and_the_connection_ends(
    wire: Wire, status: int, says: bytes, parts: list[bytes]
) -> None:
    wire.send(*parts)
    await settle()

    assert wire.statuses == [status]
    assert says in wire.last
    assert b"\r\nconnection: close\r\n" in wire.last
    assert wire.ended
    assert wire.host.refusals == {status: 1}
    assert wire.application.requests == []


async def test_what_follows_a_refused_request_in_the_same_read_is_not_heard(wire: Wire) -> None:
    wire.send(b"GET /hot HTTP/1.1\r\n\r\n" + post(HOT, b"2") + post(HOT, b"3"))

    assert wire.statuses == [400]
    assert wire.application.requests == []


async def test_a_good_request_is_answered_before_the_bad_one_behind_it(
    wire: Wire, model: Model
) -> None:
    model.held = True
    wire.send(post(HOT, b"1") + b"\x00garbage")
    assert wire.statuses == []

    await model.release()
    assert wire.statuses == [200, 400]
    assert wire.ended


async def test_what_was_read_of_a_body_is_no_part_of_the_next_head(wire: Wire) -> None:
    wire.connection.host.limits = msgspec.structs.replace(LIMITS, max_body_bytes=10**6)
    wire.send(post(HOT, b"x" * 50_000) + b"POST ")
    wire.send(post(HOT, b"2").removeprefix(b"POST "))

    assert wire.statuses == [200, 200]


async def test_the_framing_of_a_long_upload_is_no_endless_head(wire: Wire) -> None:
    wire.send(chunked(HOT)[:-5])
    for _ in range(900):
        wire.send(b"1\r\n", b"x", b"\r\n")
    wire.send(b"0\r\n", b"\r\n")

    assert wire.statuses == [200]


async def test_one_connection_too_many_is_refused_and_counted(wire: Wire) -> None:
    for _ in range(LIMITS.max_connections - 1):
        transport, _ = wire.connect()
        assert transport.written == b""

    transport, connection = wire.connect()
    assert transport.written.startswith(b"HTTP/1.1 503 ")
    assert transport.eof
    assert wire.host.refusals == {503: 1}

    connection.connection_lost(None)
    wire.hang_up()
    transport, _ = wire.connect()
    assert transport.written == b""


NAMED = "X-Request-Id: 7"
HOST = {b"host": b"a"}
MINE = {b"x-request-id": b"7"}


@pytest.mark.parametrize(
    ("data", "error", "known"),
    [
        (
            f"GET /hot HTTP/1.1\r\n{NAMED}\r\n\r\n".encode(),
            MalformedHttp,
            (b"/hot", MINE),
        ),
        (
            f"GET /hot HTTP/1.1\r\n{NAMED}\r\nY: 1\r\nX\r\n\r\n".encode(),
            MalformedHttp,
            (b"/hot", MINE),
        ),
        (b"\x16\x03\x01", MalformedHttp, (b"", {})),
        (get(HOT, NAMED, "X: " + "a" * 2000), HeadTooLarge, (b"/hot", MINE)),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", Unsupported, (b"a:1", HOST)),
        (
            post(HOT, TOO_LARGE, NAMED),
            PayloadTooLarge,
            (b"/hot", HOST | MINE | {b"content-length": b"1001"}),
        ),
    ],
)
@pytest.mark.parametrize("before", [b"", post(HOT, b"", "X-Request-Id: 6")])
async def test_a_refusal_knows_what_was_read_of_its_own_request(
    wire: Wire,
    before: bytes,
    data: bytes,
    error: type[HeadraceError],
    known: tuple[bytes, dict[bytes, bytes]],
) -> None:
    wire.send(before + data)

    ((target, headers, told),) = wire.application.refused
    assert type(told) is error
    assert (target, headers) == known


async def test_a_late_request_is_refused_by_what_was_read_of_it(wire: Wire) -> None:
    wire.send(b"GET /hot HTTP/1.1\r\nX-Request-Id: 7\r\nX: ")
    wire.wait(11)

    ((target, headers, error),) = wire.application.refused
    assert (target, headers, type(error)) == (b"/hot", MINE, RequestTimeout)


async def test_one_connection_too_many_may_try_again(wire: Wire) -> None:
    for _ in range(LIMITS.max_connections):
        wire.connect()

    ((target, headers, error),) = wire.application.refused
    assert (target, headers, type(error)) == (b"", {}, TooManyConnections)
    assert error.retry_after_s == 1.0


async def test_a_request_that_is_cut_off_may_be_tried_again(wire: Wire, model: Model) -> None:
    model.held = True
    wire.send(post(HOT, b"1", NAMED))
    wire.connection.cancel()
    await settle()

    ((target, headers, error),) = wire.application.refused
    assert (target, type(error), error.retry_after_s) == (b"/hot", ShuttingDown, 1.0)
    assert headers[b"x-request-id"] == b"7"


async def test_a_defect_in_reading_is_logged_and_is_not_the_clients_mistake(
    wire: Wire, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("the secret")

    monkeypatch.setattr(wire.application, "handler", broken)
    wire.send(post(HOT, b"1", NAMED))

    assert wire.statuses == [500]
    assert wire.ended
    assert b"the secret" not in wire.last
    assert "the secret" in caplog.text
    ((target, headers, _),) = wire.application.refused
    assert target == b"/hot"
    assert headers[b"x-request-id"] == b"7"


@pytest.mark.parametrize(
    ("name", "peer"),
    [
        (("192.0.2.7", 5), "192.0.2.7"),
        (("2001:db8::7", 5, 0, 0), "2001:db8::7"),
        (("::ffff:192.0.2.7", 5, 0, 0), "192.0.2.7"),
        (("::ffff:1", 5, 0, 0), "::ffff:1"),
        ("", ""),  # a Unix socket
        (None, ""),
    ],
)
async def test_a_handler_sees_where_a_request_comes_from(
    wire: Wire, name: object, peer: str
) -> None:
    transport = FakeTransport(name)
    connection = transport.protocol = Connection(wire.host)
    connection.connection_made(transport)
    connection.data_received(post(HOT, b""))

    assert [request.peer for request in wire.application.requests] == [peer]


# --- upgrades and expectations -------------------------------------------------------------------


async def test_a_wish_for_an_upgrade_is_not_heard_but_the_request_is(wire: Wire) -> None:
    wish = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AA")
    for first, second in split_everywhere(post(HOT, b"hello", *wish)):
        wire.send(first, second)
    wire.send(post(HOT, b"hello", *wish) * 50)
    wire.send(
        chunked(HOT, b"he", b"llo").replace(b"Host", b"Connection: Upgrade\r\nUpgrade: a\r\nHost")
    )
    wire.send(post(HOT, b"hello"))

    assert {request.body for request in wire.application.requests} == {b"hello"}
    assert set(wire.statuses) == {200}
    assert (
        len(wire.statuses) == len(wire.application.requests) == len(post(HOT, b"hello", *wish)) + 51
    )
    assert not wire.ended


async def test_bytes_of_the_other_protocol_are_no_request(wire: Wire) -> None:
    wire.send(get(HOT, "Connection: Upgrade", "Upgrade: h2c") + b"\x00\x00\x12\x04")

    assert wire.statuses == [200, 400]
    assert wire.ended


async def test_leave_to_send_the_body_is_given_once_and_only_where_it_is_asked(wire: Wire) -> None:
    asking = post(HOT, b"hello", "Expect: 100-continue")
    wire.send(asking[:-5])
    assert wire.statuses == [100]

    wire.send(b"hello")
    assert wire.statuses == [100, 200]

    wire.send(post(HOT, b"hello", "Expect: something"))
    wire.send(asking.replace(b"HTTP/1.1", b"HTTP/1.0"))
    assert wire.statuses == [100, 200, 200, 200]


async def test_leave_to_send_a_body_does_not_overtake_an_answer(wire: Wire, model: Model) -> None:
    model.held = True
    wire.send(post(HOT, b"1"))
    wire.send(post(HOT, b"2", "Expect: 100-continue")[:-1])
    await model.release()

    assert wire.statuses == [200]


# --- time ----------------------------------------------------------------------------------------


async def test_a_connection_without_a_request_closes_in_the_end(wire: Wire) -> None:
    wire.wait(74)
    assert not wire.ended
    wire.wait(2)
    assert wire.transport.closing
    assert wire.statuses == []


async def test_the_time_for_a_request_begins_anew_with_every_answer(wire: Wire) -> None:
    for _ in range(3):
        wire.wait(70)
        wire.send(post(HOT, b"x"))
    assert wire.statuses == [200, 200, 200]
    wire.wait(76)
    assert wire.transport.closing


async def test_a_head_that_does_not_end_is_a_408(wire: Wire) -> None:
    wire.send(b"POST /hot HTTP/1.1\r\n")
    for _ in range(5):
        wire.wait(1.9)
        wire.send(b"X: y\r\n")
    assert not wire.ended
    wire.wait(1)

    assert wire.statuses == [408]
    assert wire.ended


@pytest.mark.parametrize("target", [HOT, "/control"])
async def test_a_body_that_does_not_end_is_a_408(wire: Wire, target: str) -> None:
    async def reading(scope: Any, receive: Any, send: Any) -> None:
        del scope, send
        while True:
            await receive()

    wire.application.asgi = reading
    wire.send(post(target, b"x" * 900)[:-900])
    for _ in range(5):
        wire.wait(5.9)
        wire.send(b"x")
        await settle()
    assert not wire.ended
    wire.wait(1)
    await settle()

    assert wire.statuses == [408]
    assert wire.ended


def _upload(size: int) -> bytes:
    return b"PUT /upload HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size


async def test_an_upload_may_be_of_any_size_and_take_its_time_while_it_goes_on(wire: Wire) -> None:
    taken = 0

    async def taking(scope: Any, receive: Any, send: Any) -> None:
        nonlocal taken
        del scope
        more = True
        while more:
            message = await receive()
            taken += len(message["body"])
            more = message["more_body"]
        await send({"type": "http.response.start", "status": 201, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    wire.application.asgi = taking
    piece, count = b"x" * 2**20, 8
    wire.send(_upload(count * 2**20))
    for _ in range(count):
        wire.wait(29)
        wire.send(piece)
        await settle()
    assert wire.statuses == [201]
    assert taken == count * 2**20


async def test_an_upload_that_goes_on_no_more_is_a_408(wire: Wire) -> None:
    async def taking(scope: Any, receive: Any, send: Any) -> None:
        del scope, send
        while True:
            await receive()

    wire.application.asgi = taking
    wire.send(_upload(99_999_999))
    wire.send(b"x" * 2**20)
    await settle()
    for _ in range(5):
        wire.wait(5.9)
        wire.send(b"x")
        await settle()
    assert not wire.ended
    wire.wait(1)
    await settle()
    assert wire.statuses == [408]


async def test_the_time_that_the_application_takes_for_a_body_is_not_the_clients(
    wire: Wire,
) -> None:
    gate = asyncio.Event()

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        del scope
        await gate.wait()
        while (await receive())["more_body"]:
            pass
        await send({"type": "http.response.start", "status": 201, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    wire.application.asgi = slow
    size = 2**20
    wire.send(_upload(size))
    wire.send(b"x" * (size - 1))
    await settle()
    assert not wire.transport.reading
    wire.wait(1000)
    assert wire.statuses == []
    gate.set()
    await settle()
    assert wire.transport.reading
    wire.send(b"x")
    await settle()
    assert wire.statuses == [201]


@pytest.mark.parametrize(("part", "seconds"), [(b"POST /hot HT", 10), (post(HOT, b"22")[:-1], 30)])
async def test_half_a_request_behind_another_has_its_time_too(
    wire: Wire, model: Model, part: bytes, seconds: float
) -> None:
    model.held = True
    wire.send(post(HOT, b"1") + part)
    wire.wait(100)
    await model.release()
    assert wire.statuses == [200]

    wire.wait(seconds - 1)
    assert wire.statuses == [200]
    wire.wait(2)
    assert wire.statuses == [200, 408]


async def test_a_model_takes_its_time(wire: Wire, model: Model) -> None:
    model.held = True
    wire.send(post(HOT, b"1"))
    wire.wait(1000)
    await model.release()

    assert wire.statuses == [200]


# --- clients that do not take their answers ------------------------------------------------------


async def test_a_client_that_takes_nothing_is_cut_off(wire: Wire) -> None:
    wire.transport.stall()
    wire.send(post(HOT, b"x"))
    wire.wait(59)
    assert not wire.transport.aborted
    wire.wait(2)
    assert wire.transport.aborted


async def test_a_client_that_takes_little_is_not_cut_off(wire: Wire) -> None:
    wire.transport.stall()
    wire.send(post(HOT, b"x" * 500))
    for _ in range(5):
        wire.transport.take(10)
        wire.wait(61)
    assert not wire.transport.aborted
    wire.wait(61)
    assert wire.transport.aborted


async def test_a_client_that_only_asks_is_neither_read_nor_answered_for_ever(wire: Wire) -> None:
    wire.transport.stall()
    wire.send(post(HOT, b"1"), post(HOT, b"2") + post(HOT, b"3"))

    assert wire.statuses == [200]
    assert not wire.transport.reading
    wire.wait(61)
    assert wire.transport.aborted
    wire.hang_up()
    gc.collect()
    assert len(wire.application.requests) == 1


async def test_a_client_that_takes_its_answers_after_all_gets_the_others(wire: Wire) -> None:
    wire.transport.stall()
    wire.send(post(HOT, b"1"), post(HOT, b"2") + post(HOT, b"3"))
    wire.transport.take()

    assert wire.statuses == [200, 200, 200]
    assert wire.transport.reading
    wire.wait(74)
    assert not wire.ended
    wire.wait(2)
    assert wire.ended


async def test_a_client_that_took_a_large_answer_idles_no_longer_than_others(wire: Wire) -> None:
    wire.transport.stall()
    wire.send(post(HOT, b"x"))
    wire.wait(50)
    wire.transport.take()
    wire.wait(74)
    assert not wire.ended
    wire.wait(2)
    assert wire.transport.closing


@pytest.mark.parametrize("behind", [b"", b"GET /"])
async def test_the_last_answer_has_no_longer_than_others(wire: Wire, behind: bytes) -> None:
    wire.transport.stall()
    wire.send(post(HOT, b"x", "Connection: close") + behind)
    assert wire.ended
    wire.wait(59)
    wire.transport.take(5)
    wire.wait(2)
    assert not wire.transport.aborted
    wire.wait(61)
    assert wire.transport.aborted
