from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from headrace.domain.errors import ModelFailed
from headrace.domain.tensors import Array
from headrace.orchestrator.outlet import UNREAD_LIMIT, Outlet
from tests.support.waiting import until
from tests.unit.orchestrator.stage import turns


class CountingLoop:
    """The running loop, which counts how often a thread called."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.calls = 0

    @property
    def loop(self) -> Any:
        return self

    def time(self) -> float:
        return self._loop.time()

    def create_future(self) -> asyncio.Future[Any]:
        return self._loop.create_future()

    def call_soon_threadsafe(self, callback: Callable[..., object], *args: Any) -> asyncio.Handle:
        self.calls += 1
        return self._loop.call_soon_threadsafe(callback, *args)


class Line:
    """An outlet, and a thread that fills it."""

    def __init__(self) -> None:
        self.clock = CountingLoop()
        self.ended: asyncio.Future[Sequence[Array]] = asyncio.get_running_loop().create_future()
        self.outlet = Outlet(self.ended, loop=self.clock.loop)
        self.taken: list[bool] = []  # what each put answered, once it did
        self._thread: threading.Thread | None = None

    def fill(self, count: int) -> None:
        """Put 0, 1, 2 and so on from another thread."""

        def put() -> None:
            for i in range(count):
                self.taken.append(self.outlet.put(_answer(i)))

        self._thread = threading.Thread(target=put, daemon=True)
        self._thread.start()

    async def filled(self) -> None:
        """Wait until the thread has put all."""
        await until(lambda: self._thread is not None and not self._thread.is_alive())

    async def read(self, count: int) -> list[int | None]:
        return [_value(await self.outlet.next()) for _ in range(count)]


def _answer(value: int) -> Sequence[Array]:
    return [np.array(value)]


def _value(answer: Sequence[Array] | None) -> int | None:
    return None if answer is None else int(answer[0])


async def test_answers_are_read_in_their_order_and_then_no_more() -> None:
    line = Line()
    line.fill(100)
    assert await line.read(100) == list(range(100))
    line.ended.set_result(())
    assert await line.read(2) == [None, None]


async def test_the_thread_is_held_while_too_many_answers_are_unread() -> None:
    line = Line()
    line.fill(UNREAD_LIMIT + 3)
    await until(lambda: len(line.taken) == UNREAD_LIMIT - 1)  # the last of them is not let go
    await turns()
    assert len(line.taken) == UNREAD_LIMIT - 1
    assert await line.read(2) == [0, 1]
    await until(lambda: len(line.taken) == UNREAD_LIMIT + 1)
    await turns()
    assert len(line.taken) == UNREAD_LIMIT + 1
    assert await line.read(UNREAD_LIMIT + 1) == list(range(2, UNREAD_LIMIT + 3))
    await line.filled()


async def test_a_reader_is_woken_once_for_all_that_came_meanwhile() -> None:
    line = Line()
    reading = asyncio.get_running_loop().create_task(line.read(5))
    await turns()
    for i in range(5):  # the loop has no turn between them
        line.outlet.put(_answer(i))
    assert await reading == [0, 1, 2, 3, 4]
    assert line.clock.calls == 1


async def test_a_reader_that_does_not_wait_is_not_woken() -> None:
    line = Line()
    line.fill(5)
    await line.filled()
    assert await line.read(5) == [0, 1, 2, 3, 4]
    assert line.clock.calls == 0


async def test_an_error_comes_after_the_answers_before_it() -> None:
    line = Line()
    line.outlet.put(_answer(0))
    line.ended.set_exception(ModelFailed("broken"))
    assert await line.read(1) == [0]
    with pytest.raises(ModelFailed, match="broken"):
        await line.outlet.next()


@pytest.mark.parametrize("fails", [True, False])
async def test_a_reader_that_waits_is_told_of_the_end(*, fails: bool) -> None:
    line = Line()
    reading = asyncio.get_running_loop().create_task(line.outlet.next())
    await turns()
    assert not reading.done()
    if fails:
        line.ended.set_exception(ModelFailed("broken"))
        with pytest.raises(ModelFailed):
            await reading
    else:
        line.ended.set_result(())
        assert await reading is None


async def test_a_thread_that_is_held_is_let_go_when_nobody_reads_any_more() -> None:
    line = Line()
    line.fill(UNREAD_LIMIT)
    await until(lambda: len(line.taken) == UNREAD_LIMIT - 1)
    line.outlet.close()
    await line.filled()
    assert line.taken == [True] * (UNREAD_LIMIT - 1) + [False]
    assert not line.outlet.put(_answer(9))


async def test_answers_that_nobody_read_are_forgotten_when_it_is_closed() -> None:
    line = Line()
    line.outlet.put(_answer(0))
    line.outlet.close()
    line.ended.set_exception(ModelFailed("too late"))
    with pytest.raises(ModelFailed, match="too late"):
        await line.outlet.next()


async def test_a_reader_that_was_cancelled_is_not_missed() -> None:
    line = Line()
    loop = asyncio.get_running_loop()
    broken: list[object] = []
    loop.set_exception_handler(lambda _, context: broken.append(context))
    reading = loop.create_task(line.outlet.next())
    await turns()
    reading.cancel()
    line.outlet.put(_answer(0))  # it is woken, and gone
    await asyncio.wait([reading])
    await turns()
    assert reading.cancelled()
    assert await line.read(1) == [0]
    assert broken == []


async def test_it_tells_when_the_thread_went_back_to_its_work() -> None:
    line = Line()
    assert line.outlet.moved == 0
    before = line.clock.time()
    line.outlet.put(_answer(0))
    assert before <= line.outlet.moved <= line.clock.time()


def test_a_thread_whose_loop_is_closed_is_told_that_nobody_reads() -> None:
    outlets: list[Outlet] = []

    async def leave() -> None:
        line = Line()
        outlets.append(line.outlet)
        reading = asyncio.get_running_loop().create_task(line.outlet.next())
        await turns()
        line.outlet._reader, waiting = None, line.outlet._reader  # noqa: SLF001
        reading.cancel()
        await asyncio.wait([reading])
        line.outlet._reader = waiting  # noqa: SLF001 - as of a loop that stopped while it waited

    asyncio.run(leave())
    assert not outlets[0].put(_answer(0))
