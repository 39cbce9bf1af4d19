from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Awaitable, Callable, Iterator, Sequence
from ipaddress import ip_address
from typing import Any

import pytest

from headrace.domain.errors import EndpointBusy, EndpointFailed, EndpointTimeout
from headrace.ports.upstream import Site
from headrace.transport.http.client.connection import ClientConnection
from headrace.transport.http.client.exchange import Answer
from headrace.transport.http.client.limits import ClientLimits
from headrace.transport.http.client.pool import ClientPool
from tests.support.http_fakes import FakeTransport, settle

SITE = Site("h", 8000, ip_address("10.0.0.1"))
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class Endpoint:
    """A pool, the transports that it opened, and its loop's clock, which `wait` puts forward."""

    def __init__(self, patch: pytest.MonkeyPatch, **limits: Any) -> None:
        self.pool = ClientPool(SITE, limits=ClientLimits(**limits))
        self.opened: list[tuple[ClientConnection, FakeTransport]] = []
        self.refuses: BaseException | None = None
        self.connecting: asyncio.Future[None] | None = None  # until when connections take
        self.timers: list[float] = []
        loop = asyncio.get_running_loop()
        real, call_at = loop.time, loop.call_at
        self._ahead_s = 0.0

        def watched(when: float, then: Callable[..., Any], *args: Any, **more: Any) -> Any:
            if getattr(then, "__self__", None) is self.pool:
                self.timers.append(when)
            return call_at(when, then, *args, **more)

        patch.setattr(loop, "time", lambda: real() + self._ahead_s)
        patch.setattr(loop, "call_at", watched)
        patch.setattr(loop, "create_connection", self._create)
        self.now: Callable[[], float] = loop.time

    async def _create(self, make: Callable[[], ClientConnection], *_: Any, **__: Any) -> None:
        if self.connecting is not None:
            await self.connecting
        if self.refuses is not None:
            raise self.refuses
        transport = FakeTransport()
        connection = make()
        connection.connection_made(transport)
        self.opened.append((connection, transport))

    async def ask(
        self,
        head: bytes = b"?",
        body: Sequence[memoryview] = (),
        *,
        for_s: float = 1000,
        may_repeat: Callable[[], bool] | None = None,
    ) -> asyncio.Task[Answer]:
        """Begin a request."""
        task = asyncio.create_task(
            self.pool.exchange(head, body, self.now() + for_s, may_repeat=may_repeat)
        )
        await settle()
        return task

    async def answer(self, number: int, sent: bytes = OK) -> None:
        """What the connection of that number receives."""
        self.opened[number][0].data_received(sent)
        await settle()

    async def wait(self, seconds: float) -> None:
        self._ahead_s += seconds
        await settle()

    @property
    def written(self) -> list[bytes]:
        return [transport.written for _, transport in self.opened]

    @property
    def closed(self) -> list[bool]:
        return [transport.closing for _, transport in self.opened]


async def test_the_connection_used_last_is_used_first_and_the_others_grow_old(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    end = Endpoint(monkeypatch, idle_timeout_s=60)
    for _ in range(2):
        await end.ask()
    await end.answer(1)
    await end.answer(0)
    for _ in range(3):
        await end.wait(25)
        await end.ask(b"!")
        await end.answer(0)
    assert end.written == [b"?!!!", b"?"]
    assert end.closed == [False, True]
    assert end.pool.connections == 1
    await end.wait(61)
    assert end.closed == [True, True]
    assert end.pool.connections == 0


async def test_requests_wait_in_turn_and_no_more_than_may(monkeypatch: pytest.MonkeyPatch) -> None:
    end = Endpoint(monkeypatch, max_connections=1, max_pending=2)
    first = await end.ask(b"1")
    second, third = await end.ask(b"2"), await end.ask(b"3")
    assert end.pool.pending == 2
    with pytest.raises(EndpointBusy):
        await (await end.ask(b"4"))
    for _ in range(3):
        await end.answer(0)
    assert end.written == [b"123"]
    assert [task.done() for task in (first, second, third)] == [True] * 3
    assert end.pool.pending == 0


async def test_requests_for_which_a_connection_is_being_made_are_not_too_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    end = Endpoint(monkeypatch, max_connections=2, max_pending=1)
    end.connecting = asyncio.get_running_loop().create_future()
    tasks = [await end.ask() for _ in range(3)]
    assert not any(task.done() for task in tasks)
    with pytest.raises(EndpointBusy):
        await (await end.ask())
    end.connecting.set_result(None)
    await settle()
    assert end.written == [b"?", b"?"]
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


async def test_one_timer_watches_over_all_deadlines(monkeypatch: pytest.MonkeyPatch) -> None:
    end = Endpoint(monkeypatch)
    soon = await end.ask(for_s=10)
    tasks = [await end.ask(for_s=20 + n) for n in range(50)]
    assert len(end.timers) == 1
    sooner = await end.ask(for_s=5)
    assert len(end.timers) == 2
    await end.wait(5)
    assert isinstance(sooner.exception(), EndpointTimeout)
    assert not soon.done()
    await end.wait(15)
    assert isinstance(soon.exception(), EndpointTimeout)
    assert isinstance(tasks[0].exception(), EndpointTimeout)
    assert not tasks[1].done()
    assert end.closed.count(True) == 3, "the endpoint is told of each that is over"
    await end.wait(100)
    assert all(isinstance(task.exception(), EndpointTimeout) for task in tasks)
    assert end.pool.connections == 0


async def test_who_waits_for_a_connection_beyond_the_deadline_leaves_its_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    end = Endpoint(monkeypatch, max_connections=1)
    await end.ask(b"1")
    late = await end.ask(b"2", for_s=5)
    patient = await end.ask(b"3")
    await end.wait(6)
    assert isinstance(late.exception(), EndpointTimeout)
    await end.answer(0)
    await end.answer(0)
    assert end.written == [b"13"]
    assert patient.result().status == 200


async def test_a_request_on_a_dead_kept_connection_goes_out_once_more_and_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    end = Endpoint(monkeypatch)
    await end.ask(b"1")
    await end.answer(0)
    again = await end.ask(b"2")
    end.opened[0][0].connection_lost(None)
    await settle()
    assert end.written == [b"12", b"2"]
    end.opened[1][0].connection_lost(None)
    await settle()
    assert isinstance(again.exception(), EndpointFailed)
    assert len(end.opened) == 2
    assert end.pool.connections == 0


async def test_a_request_that_may_not_go_out_twice_fails_with_its_kept_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    end = Endpoint(monkeypatch, max_connections=1)
    await end.ask(b"1", may_repeat=lambda: pytest.fail("asked of what was answered"))
    await end.answer(0)
    once = await end.ask(b"2", may_repeat=lambda: False)
    waiting = await end.ask(b"3", may_repeat=lambda: True)
    end.opened[0][0].connection_lost(None)
    await settle()
    error = once.exception()
    assert isinstance(error, EndpointFailed)
    assert error.sent
    assert end.written == [b"12", b"3"]
    await end.answer(1)
    assert waiting.result().status == 200
    await end.ask(b"4", may_repeat=lambda: True)
    end.opened[1][0].connection_lost(None)
    await settle()
    assert end.written == [b"12", b"34", b"4"]


async def test_a_repeat_goes_before_those_that_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    end = Endpoint(monkeypatch, max_connections=1)
    await end.ask(b"1")
    await end.answer(0)
    await end.ask(b"2")
    await end.ask(b"3")
    end.opened[0][0].connection_lost(None)
    await settle()
    await end.answer(1)
    assert end.written == [b"12", b"23"]
    assert end.pool.connections == 1


async def test_a_cancelled_request_ends_its_connection_and_whoever_waits_gets_a_new_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    end = Endpoint(monkeypatch, max_connections=1)
    first = await end.ask(b"1")
    second = await end.ask(b"2")
    first.cancel()
    await settle()
    assert (end.closed, end.written) == ([True, False], [b"1", b"2"])
    await end.answer(1)
    assert second.result().status == 200


async def test_a_connection_whose_request_has_gone_meanwhile_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    end = Endpoint(monkeypatch)
    end.connecting = asyncio.get_running_loop().create_future()
    gone = await end.ask(b"1")
    gone.cancel()
    await settle()
    end.connecting.set_result(None)
    await settle()
    await end.ask(b"2")
    assert end.written == [b"2"]


async def test_an_endpoint_that_is_not_reached_was_sent_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    end = Endpoint(monkeypatch)
    end.refuses = ConnectionRefusedError("refused")
    error = (await end.ask()).exception()
    assert isinstance(error, EndpointFailed)
    assert not error.sent
    assert error.reason == "10.0.0.1 port 8000: ConnectionRefusedError: refused"
    assert "10.0.0.1" not in error.message
    end.refuses = None
    await end.ask()
    assert end.written == [b"?"]
    assert end.pool.connections == 1


async def test_a_connection_that_takes_too_long_to_be_made_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    end = Endpoint(monkeypatch, connect_timeout_s=2)
    end.connecting = asyncio.get_running_loop().create_future()
    task = await end.ask()
    await end.wait(3)
    error = task.exception()
    assert isinstance(error, EndpointFailed)
    assert not error.sent
    assert end.pool.connections == 0


async def test_closing_ends_what_is_idle_and_lets_finish_what_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    end = Endpoint(monkeypatch)
    await end.ask()
    busy = await end.ask()
    await end.answer(0)
    await end.pool.close()
    assert end.closed == [True, False]
    with pytest.raises(EndpointFailed, match="asked no more"):
        await (await end.ask())
    await end.answer(1)
    assert busy.result().status == 200
    assert end.closed == [True, True]
    assert end.pool.connections == 0


class Body(bytearray):
    """Bytes that can be referred to weakly."""


@pytest.fixture
def _no_collector() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


async def _broken_off(end: Endpoint, _: asyncio.Task[Answer]) -> None:
    end.opened[-1][0].connection_lost(None)
    await settle()
    end.refuses = None  # which has the frames that it was raised in


async def _too_late(end: Endpoint, _: asyncio.Task[Answer]) -> None:
    await end.wait(6)


async def _cancelled(_: Endpoint, task: asyncio.Task[Answer]) -> None:
    task.cancel()
    await settle()


@pytest.mark.usefixtures("_no_collector")
@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("over", [_broken_off, _too_late, _cancelled])
async def test_the_body_of_a_request_that_is_over_goes_with_its_error(
    monkeypatch: pytest.MonkeyPatch,
    over: Callable[[Endpoint, asyncio.Task[Answer]], Awaitable[None]],
    waits: bool,  # noqa: FBT001
) -> None:
    end = Endpoint(monkeypatch, max_connections=1)
    if waits:
        await end.ask(b"1")
        end.refuses = ConnectionRefusedError("refused")
    body = Body(b"body")
    kept = weakref.ref(body)
    task = await end.ask(b"2", [memoryview(body)], for_s=5)
    del body
    assert kept() is not None
    await over(end, task)
    assert task.cancelled() or task.exception()
    del task
    assert kept() is None
