"""Who may send a body that is more than small, and what all bodies together may hold."""

from __future__ import annotations

import asyncio
import gc
import io
import random
from collections.abc import AsyncIterator, Callable

import msgspec
import pytest

from headrace.domain.errors import (
    HeadraceError,
    Overloaded,
    PayloadTooLarge,
    RateLimited,
    Unauthenticated,
)
from headrace.transport.http.messages import HttpRequest, HttpResponse
from tests.support.http_fakes import (
    HOT,
    LIMITS,
    FakeApplication,
    Wire,
    chunked,
    get,
    post,
    settle,
)

SMALL = 64 * 1024
BODY = bytes(range(256)) * 400  # 100 KiB, which is more than small
ROOMY = msgspec.structs.replace(LIMITS, max_body_bytes=1_000_000, max_buffered_bytes=500_000)
MANY = msgspec.structs.replace(ROOMY, max_connections=50)
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def head(size: int, *headers: str, target: str = HOT) -> bytes:
    lines = [f"POST {target} HTTP/1.1", "Host: a", *headers, f"Content-Length: {size}"]
    return "\r\n".join([*lines, "", ""]).encode()


class Model:
    """Answers with the length of the body, when it is told to."""

    def __init__(self) -> None:
        self.waiting: list[asyncio.Future[HttpResponse]] = []

    async def __call__(self, request: HttpRequest) -> HttpResponse:
        future: asyncio.Future[HttpResponse] = asyncio.get_running_loop().create_future()
        self.waiting.append(future)
        await future
        return HttpResponse(200, b"", (b"%d" % len(request.body),))

    async def answer(self) -> None:
        """End what is under way, and what then begins."""
        while waiting := [future for future in self.waiting if not future.done()]:
            for future in waiting:
                future.set_result(HttpResponse(200, b""))
            await settle()


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
async def wire(model: Model) -> AsyncIterator[Wire]:
    async with asyncio.TaskGroup() as tasks:
        loop = asyncio.get_running_loop()
        yield Wire(FakeApplication(model), loop=loop, tasks=tasks, limits=ROOMY)


# --- who may send --------------------------------------------------------------------------------


@pytest.mark.parametrize("request_head", [head(SMALL + 1), chunked(HOT)[:-5]])
@pytest.mark.parametrize(
    ("error", "status"),
    [(Unauthenticated("no token"), 401), (RateLimited("slowly", retry_after_s=1.0), 429)],
)
async def test_a_large_body_is_refused_at_its_head_where_the_sender_may_not_send(
    wire: Wire, request_head: bytes, error: HeadraceError, status: int
) -> None:
    wire.application.unwelcome = error
    wire.send(request_head)

    assert wire.statuses == [status]
    assert wire.ended
    assert wire.application.refused[0][0] == HOT.encode()
    assert wire.host.refusals == {status: 1}


async def test_what_a_refused_sender_sends_on_is_thrown_away(wire: Wire) -> None:
    wire.application.unwelcome = Unauthenticated("no token")
    wire.send(head(len(BODY)) + BODY[:1000], BODY[1000:])

    assert wire.statuses == [401]
    assert wire.host.buffered_bytes == 0
    assert wire.application.requests == []


async def test_the_sender_is_told_by_headers_and_address(wire: Wire) -> None:
    wire.send(head(SMALL + 1, "Authorization: Bearer a"))

    headers, peer = wire.application.asked[0]
    assert headers[b"authorization"] == b"Bearer a"
    assert peer == "192.0.2.7"
    assert wire.statuses == []


@pytest.mark.parametrize("request_", [post(HOT, b"x" * SMALL), post(HOT, b""), get(HOT)])
async def test_a_small_body_is_not_asked_for_twice(wire: Wire, request_: bytes) -> None:
    wire.application.unwelcome = Unauthenticated("no token")
    wire.send(request_)

    assert wire.application.asked == []
    assert len(wire.application.requests) == 1


async def test_a_sender_who_may_not_send_is_not_told_to_continue(wire: Wire) -> None:
    expecting = head(SMALL + 1, "Expect: 100-continue")
    wire.send(expecting)
    assert wire.transport.written == CONTINUE

    wire.transport, wire.connection = wire.connect()
    wire.application.unwelcome = Unauthenticated("no token")
    wire.send(expecting)
    assert wire.statuses == [401]


async def test_a_refused_request_waits_for_the_answer_before_it(wire: Wire, model: Model) -> None:
    wire.send(post(HOT, b"first"))
    wire.application.unwelcome = Unauthenticated("no token")
    wire.send(head(SMALL + 1))
    assert wire.statuses == []

    await model.answer()
    assert wire.statuses == [200, 401]


async def test_an_upgrade_gets_no_body_past_the_question(wire: Wire) -> None:
    wire.application.unwelcome = Unauthenticated("no token")
    wire.send(head(len(BODY), "Connection: upgrade", "Upgrade: h2c") + BODY)

    assert wire.statuses == [401]
    assert wire.host.buffered_bytes == 0


@pytest.mark.parametrize("step", [7, 1000, len(BODY)])
@pytest.mark.parametrize("begin", [head(len(BODY)), chunked(HOT)[:-5]])
async def test_a_large_body_arrives_whole_in_parts(wire: Wire, begin: bytes, step: int) -> None:
    parts = [BODY[at : at + step] for at in range(0, len(BODY), step)]
    if b"chunked" in begin:
        parts = [b"%x\r\n%b\r\n" % (len(part), part) for part in parts] + [b"0\r\n\r\n"]
    wire.send(begin, *parts)

    body = wire.application.requests[0].body
    assert isinstance(body, list), "whoever only passes it on needs no copy"
    assert b"".join(body) == BODY


async def test_what_follows_a_large_body_in_the_same_read_is_the_next_request(
    wire: Wire, model: Model
) -> None:
    wire.send(head(len(BODY)) + BODY[:1000], BODY[1000:] + head(3) + b"abc")

    await model.answer()

    assert wire.statuses == [200, 200]
    first, second = (request.body for request in wire.application.requests)
    assert isinstance(first, list)
    assert b"".join(first) == BODY
    assert second == b"abc"


async def test_a_large_body_that_ends_with_a_read_leaves_room_for_the_next_request(
    wire: Wire, model: Model
) -> None:
    wire.send(head(len(BODY)), BODY[:70_000], BODY[70_000:])
    await model.answer()
    wire.send(head(3) + b"abc")
    await model.answer()

    assert wire.statuses == [200, 200]
    assert wire.application.requests[1].body == b"abc"


async def test_a_small_body_that_drips_in_arrives_whole_and_as_bytes(wire: Wire) -> None:
    wire.send(head(5000), *(bytes([byte]) for byte in BODY[:5000]))

    body = wire.application.requests[0].body
    assert type(body) is bytes
    assert body == BODY[:5000]
    assert wire.host.buffered_bytes == 5000


async def test_memory_that_was_only_announced_is_not_taken(wire: Wire) -> None:
    wire.send(head(400_000) + b"x" * 1000)

    assert wire.host.buffered_bytes == 1000


# --- what all hold together ----------------------------------------------------------------------


async def test_bodies_count_from_their_first_piece_to_their_answer(
    wire: Wire, model: Model
) -> None:
    wire.send(head(len(BODY)), BODY[:1000])
    assert wire.host.buffered_bytes == 1000

    wire.send(BODY[1000:])
    assert wire.host.buffered_bytes == len(BODY)

    await model.answer()
    assert wire.statuses == [200]
    assert wire.host.buffered_bytes == 0


async def test_a_body_that_would_not_fit_is_refused_at_its_head(wire: Wire) -> None:
    wire.send(head(300_000) + b"x" * 250_000)
    second, _ = wire.connect()
    assert second.protocol is not None
    second.protocol.data_received(head(250_001))

    assert second.written.startswith(b"HTTP/1.1 503 ")
    assert second.eof
    error = wire.application.refused[-1][2]
    assert isinstance(error, Overloaded)
    assert error.retry_after_s == 1.0
    assert wire.host.buffered_bytes == 250_000


@pytest.mark.parametrize("begin", [head(300_000), chunked(HOT)[:-5] + b"493e0\r\n"])
async def test_a_body_that_fits_no_more_is_refused_under_way(
    wire: Wire, model: Model, begin: bytes
) -> None:
    second, connection = wire.connect()
    connection.data_received(head(300_000) + b"x" * 100_000)
    wire.send(begin + b"x" * 250_000)
    assert wire.host.buffered_bytes == 350_000

    connection.data_received(b"x" * 150_000)
    connection.data_received(b"x")
    assert second.written.startswith(b"HTTP/1.1 503 ")
    assert second.eof
    assert wire.host.buffered_bytes == 250_000

    wire.send(b"x" * 50_000 + b"\r\n0\r\n\r\n")  # the other one is not hurt
    await model.answer()
    assert wire.statuses[0] == 200
    assert wire.host.buffered_bytes == 0


async def test_small_bodies_count_too(wire: Wire) -> None:
    wire.host.limits = msgspec.structs.replace(ROOMY, max_buffered_bytes=99)
    wire.send(post(HOT, b"x" * 60))
    second, connection = wire.connect()
    connection.data_received(post(HOT, b"x" * 40))

    assert second.written.startswith(b"HTTP/1.1 503 ")
    assert wire.host.buffered_bytes == 60


async def test_a_body_for_the_asgi_application_does_not_count(wire: Wire) -> None:
    wire.send(head(len(BODY), target="/other") + BODY)

    assert wire.host.buffered_bytes == 0
    assert wire.application.asked == []
    wire.hang_up()


def too_long(wire: Wire) -> None:
    wire.host.limits = msgspec.structs.replace(ROOMY, max_body_bytes=1)
    wire.send(b"x")
    wire.host.limits = ROOMY


def too_late(wire: Wire) -> None:
    wire.wait(ROOMY.body_timeout_s + 1)


def hung_up(wire: Wire) -> None:
    wire.hang_up()


def closed(wire: Wire) -> None:
    wire.connection.close()


@pytest.mark.parametrize("end", [too_long, too_late, hung_up, closed])
async def test_half_a_body_is_given_back_with_its_connection(
    wire: Wire, end: Callable[[Wire], None]
) -> None:
    for begin in (head(len(BODY)), head(SMALL)):
        wire.transport, wire.connection = wire.connect()
        wire.send(begin + b"x" * 1000)
        assert wire.host.buffered_bytes == 1000

        end(wire)
        assert wire.host.buffered_bytes == 0


async def test_half_a_chunked_body_that_is_malformed_is_given_back(wire: Wire) -> None:
    wire.send(chunked(HOT, BODY)[:-5] + b"no chunk\r\n")

    assert wire.statuses == [400]
    assert wire.host.buffered_bytes == 0


async def test_what_is_refused_holds_nothing_while_its_refusal_waits_for_its_turn(
    wire: Wire,
) -> None:
    wire.send(post(HOT, b"first"), chunked(HOT, BODY)[:-5] + b"no chunk\r\n")

    assert wire.statuses == []
    assert wire.host.buffered_bytes == len(b"first")
    assert not [held for held in gc.get_referents(wire.connection) if isinstance(held, io.BytesIO)]


async def test_a_body_is_given_back_once_its_cancelled_handler_has_ended(wire: Wire) -> None:
    wire.send(post(HOT, BODY))
    wire.hang_up()
    assert wire.host.buffered_bytes == len(BODY)  # the handler has it still

    await settle()
    assert wire.host.buffered_bytes == 0


async def test_a_body_that_waits_for_its_turn_is_given_back_with_its_connection(
    wire: Wire,
) -> None:
    wire.send(post(HOT, b"1") + post(HOT, b"22") + post(HOT, b"333") + head(9) + b"4444")
    assert wire.host.buffered_bytes == 10

    wire.hang_up()
    assert wire.host.buffered_bytes == 1  # of the handler that was begun

    await settle()
    assert wire.host.buffered_bytes == 0


async def test_the_body_of_a_handler_that_fails_is_given_back(wire: Wire) -> None:
    async def fail(request: HttpRequest) -> HttpResponse:
        raise RuntimeError(request.method)

    wire.application.answer = fail
    wire.send(post(HOT, BODY))

    assert wire.statuses == [500]
    assert wire.host.buffered_bytes == 0


async def test_the_body_of_a_request_that_is_cut_off_is_given_back(wire: Wire) -> None:
    wire.send(post(HOT, BODY))
    wire.connection.cancel()
    await settle()

    assert wire.statuses == [503]
    assert wire.host.buffered_bytes == 0


def any_part(dice: random.Random) -> bytes:
    return dice.choice(
        [
            post(HOT, b"x" * dice.randrange(200)),
            post(HOT, b"x" * 70_000),
            head(80_000) + b"x" * dice.randrange(80_000),
            head(500) + b"x" * 100,
            chunked(HOT, b"x" * dice.randrange(1, 90_000)),
            chunked(HOT, b"x" * 1000)[:-5],
            b"x" * dice.randrange(1, 50_000),
        ]
    )


async def something_happens(wire: Wire, model: Model, dice: random.Random) -> None:
    """Something happens to one connection, or to all; which may end with it."""
    match dice.randrange(16):
        case 0:
            wire.connection.cancel()
        case 1:
            wire.connection.close()
        case 2:
            wire.connection.expire()
        case 3:
            wire.hang_up()
        case 4:
            wire.application.unwelcome = dice.choice([None, None, Unauthenticated("no token")])
        case 5:
            await model.answer()
        case 6:
            await settle()
        case 7:
            wire.transport.stall()
        case _ if wire.transport.reading and not wire.transport.closing:
            wire.send(any_part(dice))


@pytest.mark.parametrize("seed", range(20))
async def test_nothing_stays_counted_however_connections_end(model: Model, seed: int) -> None:
    dice = random.Random(seed)
    async with asyncio.TaskGroup() as tasks:
        loop = asyncio.get_running_loop()
        wire = Wire(FakeApplication(model), loop=loop, tasks=tasks, limits=MANY)
        clients = [wire.connect() for _ in range(30)]
        for _ in range(300):
            client = wire.transport, wire.connection = dice.choice(clients)
            await something_happens(wire, model, dice)
            assert 0 <= wire.host.buffered_bytes <= MANY.max_buffered_bytes
            if wire.connection.lost or wire.transport.closing:
                if not wire.connection.lost:
                    wire.hang_up()
                clients.remove(client)
                clients.append(wire.connect())
        assert wire.host.peak_bytes > MANY.max_buffered_bytes // 4
        for _, connection in clients:
            connection.connection_lost(None)
        await settle()

        assert wire.host.buffered_bytes == 0


async def test_a_request_that_is_over_the_body_limit_is_not_asked_about(wire: Wire) -> None:
    wire.send(head(1_000_001))

    assert wire.statuses == [413]
    assert isinstance(wire.application.refused[0][2], PayloadTooLarge)
    assert wire.application.asked == []
