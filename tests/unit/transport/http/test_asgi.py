from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias

import msgspec
import pytest

from headrace.transport.http.messages import HttpRequest, HttpResponse
from tests.support.http_fakes import (
    HOT,
    LIMITS,
    FakeApplication,
    Wire,
    chunked,
    get,
    parts_of,
    post,
    settle,
)

Message: TypeAlias = dict[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]


class App:
    """An ASGI application that a test drives from outside, step by step."""

    def __init__(self) -> None:
        self.scope: Message = {}
        self.calls = 0
        self.cancelled = 0
        self.running = False
        self._receive: Receive | None = None
        self._send: Send | None = None
        self._end: asyncio.Future[None] | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scope, self._receive, self._send = scope, receive, send
        self.calls += 1
        self.running = True
        self._end = asyncio.get_running_loop().create_future()
        try:
            await self._end
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running = False

    async def end(self, error: Exception | None = None) -> None:
        """Return, or raise."""
        assert self._end is not None
        if error is None:
            self._end.set_result(None)
        else:
            self._end.set_exception(error)
        await settle()

    def stop(self) -> None:
        if self._end is not None and not self._end.done():
            self._end.set_result(None)

    async def receive(self) -> Message:
        assert self._receive is not None
        return await self._receive()

    async def begin(self, status: int = 200, **headers: str) -> None:
        lines = [
            (name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()
        ]
        await self._tell({"type": "http.response.start", "status": status, "headers": lines})

    async def body(self, data: bytes, *, more: bool = False) -> None:
        await self._tell({"type": "http.response.body", "body": data, "more_body": more})

    async def answer(self, data: bytes) -> None:
        await self.begin(content_length=str(len(data)))
        await self.body(data)
        await self.end()

    async def _tell(self, message: Message) -> None:
        assert self._send is not None
        await self._send(message)


async def hot(request: HttpRequest) -> HttpResponse:
    return HttpResponse(200, b"", parts_of(request))


@pytest.fixture
def app() -> App:
    return App()


@pytest.fixture
async def wire(app: App) -> AsyncIterator[Wire]:
    application = FakeApplication(hot)
    application.asgi = app
    limits = msgspec.structs.replace(LIMITS, max_body_bytes=2_000_000)
    async with asyncio.TaskGroup() as tasks:
        loop = asyncio.get_running_loop()
        yield Wire(application, loop=loop, tasks=tasks, limits=limits)
        app.stop()  # what a test left running


async def ask(wire: Wire, data: bytes) -> None:
    wire.send(data)
    await settle()


# --- what the application sees -------------------------------------------------------------------


async def test_the_scope_tells_the_request(wire: Wire, app: App) -> None:
    await ask(wire, get("/v2/models/a%20b?x=%31&y", "X-One: 1", "X-Two: a", "X-Two: b"))

    scope = app.scope
    assert scope["type"] == "http"
    assert scope["method"] == "GET"
    assert scope["http_version"] == "1.1"
    assert scope["path"] == "/v2/models/a b"
    assert scope["raw_path"] == b"/v2/models/a%20b"
    assert scope["query_string"] == b"x=%31&y"
    assert scope["client"] == ("192.0.2.7", 50000)
    assert scope["server"] == ("192.0.2.1", 8080)
    assert scope["headers"] == [(b"x-one", b"1"), (b"x-two", b"a, b"), (b"host", b"a")]


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("http://a:8080/livez", "/livez"),
        ("http://a/", "/"),
        ("http://a", "/"),
        ("/http://a/x", "/http://a/x"),
        ("/%ff", "/\ufffd"),
        ("//a/b", "//a/b"),
    ],
)
async def test_a_target_in_absolute_form_is_its_path(
    wire: Wire, app: App, target: str, path: str
) -> None:
    await ask(wire, get(target))
    assert app.scope["path"] == path


async def test_the_body_arrives_as_it_comes(wire: Wire, app: App) -> None:
    request = post("/control", b"hello")
    await ask(wire, request[:-3])
    assert await app.receive() == {"type": "http.request", "body": b"he", "more_body": True}

    waiting = asyncio.ensure_future(app.receive())
    await settle()
    assert not waiting.done()
    wire.send(b"llo")
    assert await waiting == {"type": "http.request", "body": b"llo", "more_body": False}


async def test_a_request_without_a_body_has_an_empty_one(wire: Wire, app: App) -> None:
    await ask(wire, get("/control"))
    assert await app.receive() == {"type": "http.request", "body": b"", "more_body": False}


async def test_after_the_body_only_the_end_of_the_client_is_told(wire: Wire, app: App) -> None:
    await ask(wire, chunked("/control", b"he", b"llo"))
    assert (await app.receive())["body"] == b"hello"
    waiting = asyncio.ensure_future(app.receive())
    await settle()
    assert not waiting.done()

    wire.hang_up()
    assert await waiting == {"type": "http.disconnect"}


async def test_a_client_that_hangs_up_ends_the_application(wire: Wire, app: App) -> None:
    await ask(wire, post("/control", b"hello")[:-1])
    wire.hang_up()
    await settle()

    assert app.cancelled == 1
    await app.begin()
    await app.body(b"too late")
    assert wire.transport.written == b""


async def test_a_body_that_nobody_reads_is_not_read_ahead(wire: Wire, app: App) -> None:
    request = post("/control", b"x" * 1_000_000)
    for at in range(0, len(request), 50_000):
        if not wire.transport.reading:
            break
        await ask(wire, request[at : at + 50_000])
    assert not wire.transport.reading
    assert at < 400_000

    received = len((await app.receive())["body"])
    assert wire.transport.reading
    while received < 1_000_000:
        await ask(wire, request[at : at + 50_000])
        at += 50_000
        received += len((await app.receive())["body"])
    await app.answer(b"done")
    assert wire.statuses == [200]
    assert not wire.ended


async def test_leave_to_send_the_body_is_given_when_it_is_wanted(wire: Wire, app: App) -> None:
    request = post("/control", b"hello", "Expect: 100-continue")
    await ask(wire, request[:-5])
    assert wire.statuses == []

    waiting = asyncio.ensure_future(app.receive())
    await settle()
    assert wire.statuses == [100]
    wire.send(b"hello")
    assert (await waiting)["body"] == b"hello"
    await app.answer(b"done")
    assert wire.statuses == [100, 200]


async def test_no_leave_is_given_for_a_body_that_nobody_wants(wire: Wire, app: App) -> None:
    await ask(wire, post("/control", b"hello", "Expect: 100-continue")[:-5])
    await app.answer(b"no, thank you")

    assert wire.statuses == [200]
    assert b"\r\nconnection: close\r\n" in wire.last
    assert wire.ended


# --- what the client sees ------------------------------------------------------------------------


async def test_an_answer_of_known_length_is_sent_as_it_is(wire: Wire, app: App) -> None:
    await ask(wire, get("/control"))
    await app.begin(201, content_length="5", x_one="1")
    assert wire.transport.written == b""
    await app.body(b"he", more=True)
    await app.body(b"llo")

    head, _, body = wire.last.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 201 Created\r\ndate: ")
    assert b"content-length: 5\r\nx-one: 1" in head
    assert b"transfer-encoding" not in head
    assert body == b"hello"
    assert not wire.ended


async def test_an_answer_of_unknown_length_is_sent_in_chunks(wire: Wire, app: App) -> None:
    await ask(wire, get("/control"))
    await app.begin()
    await app.body(b"he", more=True)
    await app.body(b"", more=True)
    await app.body(b"llo")

    head, _, body = wire.last.partition(b"\r\n\r\n")
    assert b"transfer-encoding: chunked" in head
    assert body == b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"
    assert not wire.ended


async def test_to_http_1_0_the_end_of_the_connection_is_the_end_of_the_answer(
    wire: Wire, app: App
) -> None:
    await ask(wire, get("/control", version="1.0"))
    await app.begin()
    await app.body(b"he", more=True)
    await app.body(b"llo")

    head, _, body = wire.last.partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head
    assert b"connection: close" in head
    assert body == b"hello"
    assert wire.ended


async def test_an_answer_to_head_has_no_body(wire: Wire, app: App) -> None:
    await ask(wire, get("/control").replace(b"GET", b"HEAD"))
    await app.answer(b"hello")

    head, _, body = wire.last.partition(b"\r\n\r\n")
    assert b"content-length: 5" in head
    assert body == b""
    assert not wire.ended
    assert not wire.transport.aborted


@pytest.mark.parametrize("status", [204, 304])
async def test_a_status_without_a_body_has_none(wire: Wire, app: App, status: int) -> None:
    await ask(wire, get("/control"))
    await app.begin(status)
    await app.body(b"")

    head, _, body = wire.last.partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head
    assert body == b""
    assert not wire.ended


async def test_an_answer_that_is_too_short_does_not_look_whole(wire: Wire, app: App) -> None:
    await ask(wire, get("/control"))
    await app.begin(content_length="5")
    await app.body(b"he")
    assert wire.transport.aborted


async def test_an_answer_that_is_too_long_is_no_second_answer(wire: Wire, app: App) -> None:
    await ask(wire, get("/control"))
    await app.begin(content_length="2")
    await app.body(b"heHTTP/1.1 200 OK\r\n\r\n")
    assert wire.last.endswith(b"\r\n\r\nhe")


async def test_what_the_application_says_after_its_answer_is_not_sent(wire: Wire, app: App) -> None:
    await ask(wire, get("/control"))
    await app.begin(content_length="2")
    await app.body(b"he")
    sent = wire.transport.written
    await app.begin()
    await app.body(b"llo")
    await app.end()
    assert wire.transport.written == sent


async def test_an_application_may_end_the_connection(wire: Wire, app: App) -> None:
    await ask(wire, get("/control"))
    await app.begin(content_length="2", connection="close")
    await app.body(b"he")
    assert wire.last.count(b"connection: close") == 1
    assert wire.ended


async def test_an_answer_before_the_end_of_the_body_is_the_last(wire: Wire, app: App) -> None:
    # the rest of the body would be read as a request
    await ask(wire, post("/control", get(HOT))[:-10])
    await app.answer(b"no")
    wire.send(get(HOT)[-10:] + get(HOT))

    assert wire.statuses == [200]
    assert b"connection: close" in wire.last
    assert wire.transport.eof


async def test_a_slow_client_holds_its_answer_back(wire: Wire, app: App) -> None:
    await ask(wire, get("/control"))
    await app.begin()
    wire.transport.stall()
    sending = asyncio.ensure_future(app.body(b"x" * 1000, more=True))
    await settle()
    assert not sending.done()

    wire.transport.take()
    await sending
    await app.body(b"")
    assert wire.last.endswith(b"0\r\n\r\n")


async def test_requests_behind_a_control_request_wait_for_its_answer(wire: Wire, app: App) -> None:
    await ask(wire, get("/control") + post(HOT, b"1") + get("/control"))
    assert wire.statuses == []
    await app.answer(b"first")
    await settle()
    assert wire.statuses == [200, 200]
    assert app.calls == 2
    await app.answer(b"second")
    assert wire.last.endswith(b"second")


# --- what goes wrong -----------------------------------------------------------------------------


async def test_an_application_that_fails_is_a_500_that_tells_nothing(
    wire: Wire, app: App, caplog: pytest.LogCaptureFixture
) -> None:
    await ask(wire, get("/control"))
    await app.begin()
    await app.end(RuntimeError("the secret"))

    assert wire.statuses == [500]
    assert wire.last.endswith(b"\r\n\r\ninternal error")
    assert wire.ended
    assert "the secret" in caplog.text
    assert len(caplog.records) == 1


async def test_an_application_that_forgets_to_answer_is_a_500(
    wire: Wire, app: App, caplog: pytest.LogCaptureFixture
) -> None:
    await ask(wire, get("/control"))
    await app.end()
    assert wire.statuses == [500]
    assert "left unanswered" in caplog.text


@pytest.mark.parametrize("error", [RuntimeError("no"), None])
async def test_half_an_answer_does_not_look_whole(
    wire: Wire, app: App, error: Exception | None
) -> None:
    await ask(wire, get("/control"))
    await app.begin()
    await app.body(b"he", more=True)
    await app.end(error)
    assert wire.statuses == [200]
    assert wire.transport.aborted


@pytest.mark.parametrize("before", [b"", get("/control")])
async def test_a_body_that_grows_over_the_limit_is_a_413(
    wire: Wire, app: App, before: bytes
) -> None:
    await ask(wire, before + chunked("/control", *[b"x" * 500_000] * 5))
    if before:
        assert wire.statuses == []
        await app.answer(b"first")
        await settle()

    assert wire.statuses == ([200, 413] if before else [413])
    assert wire.ended
    assert not app.running
    assert wire.host.refusals == {413: 1}


@pytest.mark.parametrize("data", [b"zz\r\n", b"1\r\n" + b"x" * 3_000_000])
async def test_an_error_of_the_client_is_not_written_into_an_answer(
    wire: Wire, app: App, data: bytes
) -> None:
    await ask(wire, chunked("/control", b"he")[:-5])
    await app.begin()
    await app.body(b"half", more=True)
    await ask(wire, data)

    assert wire.statuses == [200]
    assert wire.transport.aborted


async def test_half_an_answer_to_a_client_that_sends_no_more_is_cut_off(
    wire: Wire, app: App
) -> None:
    await ask(wire, chunked("/control", b"he")[:-5])
    await app.begin()
    await app.body(b"half", more=True)
    wire.wait(31)

    assert wire.statuses == [200]
    assert wire.transport.aborted


async def test_while_the_server_drains_every_answer_is_the_last(wire: Wire, app: App) -> None:
    await ask(wire, get("/control"))
    wire.host.draining = True
    await app.answer(b"bye")
    assert b"connection: close" in wire.last
    assert wire.ended


async def test_an_application_that_is_cut_off_says_so(wire: Wire, app: App) -> None:
    await ask(wire, get("/control"))
    wire.connection.cancel()
    await settle()
    assert app.cancelled == 1
    assert wire.statuses == [503]
