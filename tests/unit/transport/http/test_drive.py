from __future__ import annotations

import asyncio
import gc
from collections.abc import Coroutine
from typing import Any

import pytest

from headrace.transport.http.drive import Drive
from tests.support.http_fakes import settle


class Noted(Drive[str]):
    def __init__(self, coroutine: Coroutine[Any, Any, str]) -> None:
        super().__init__(coroutine, asyncio.get_running_loop())
        self.results: list[str] = []
        self.errors: list[BaseException] = []

    def done(self, result: str) -> None:
        self.results.append(result)

    def failed(self, error: BaseException) -> None:
        self.errors.append(error)


@pytest.fixture
async def future() -> asyncio.Future[str]:
    return asyncio.get_running_loop().create_future()


async def of(future: asyncio.Future[str]) -> str:
    return await future


async def test_a_coroutine_that_never_waits_is_done_at_once() -> None:
    async def answer() -> str:
        return "answer"

    drive = Noted(answer())
    assert drive.results == []
    drive.start()
    assert drive.results == ["answer"]
    assert drive.errors == []


async def test_it_goes_on_when_what_it_waits_for_is_there(future: asyncio.Future[str]) -> None:
    drive = Noted(of(future))
    drive.start()
    await settle()
    assert drive.results == []

    future.set_result("answer")
    await settle()
    assert drive.results == ["answer"]


async def test_it_may_wait_often_and_in_depth() -> None:
    loop = asyncio.get_running_loop()
    futures = [loop.create_future() for _ in range(3)]

    async def inner(future: asyncio.Future[str]) -> str:
        await asyncio.sleep(0)
        return await future

    async def outer() -> str:
        texts = [await inner(future) for future in futures]
        return "".join(texts)

    drive = Noted(outer())
    drive.start()
    for future in reversed(futures):
        await settle()
        assert drive.results == []
        future.set_result("x")
    await settle()
    assert drive.results == ["xxx"]


async def test_an_error_is_handed_on_once(future: asyncio.Future[str]) -> None:
    drive = Noted(of(future))
    drive.start()
    error = ValueError("no")
    future.set_exception(error)
    await settle()

    assert drive.errors == [error]
    assert drive.results == []


async def test_an_error_before_the_first_wait_is_handed_on_as_well() -> None:
    async def broken() -> str:
        raise ValueError("no")

    drive = Noted(broken())
    drive.start()
    assert [type(error) for error in drive.errors] == [ValueError]


async def test_a_cancelled_one_sees_it_where_it_waits(future: asyncio.Future[str]) -> None:
    released = []

    async def careful() -> str:
        try:
            return await future
        finally:
            released.append(True)

    drive = Noted(careful())
    drive.start()
    drive.cancel()
    await settle()

    assert released == [True]
    assert [type(error) for error in drive.errors] == [asyncio.CancelledError]
    assert future.cancelled()


async def test_a_cancelled_one_may_still_have_an_answer(future: asyncio.Future[str]) -> None:
    async def stubborn() -> str:
        try:
            return await future
        except asyncio.CancelledError:
            return "all the same"

    drive = Noted(stubborn())
    drive.start()
    drive.cancel()
    await settle()
    assert drive.results == ["all the same"]
    assert drive.errors == []


async def test_cancelling_is_not_too_late_once_the_result_is_there(
    future: asyncio.Future[str],
) -> None:
    drive = Noted(of(future))
    drive.start()
    future.set_result("answer")
    drive.cancel()
    await settle()

    assert drive.results == []
    assert [type(error) for error in drive.errors] == [asyncio.CancelledError]


async def test_one_that_yields_can_be_cancelled() -> None:
    async def busy() -> str:
        for _ in range(1000):
            await asyncio.sleep(0)
        return "too late"

    drive = Noted(busy())
    drive.start()
    drive.cancel()
    await settle()
    assert [type(error) for error in drive.errors] == [asyncio.CancelledError]


async def test_one_that_cancels_itself_ends_at_its_next_wait(future: asyncio.Future[str]) -> None:
    drives: list[Noted] = []

    async def suicidal() -> str:
        drives[0].cancel()
        return await future

    drives.append(Noted(suicidal()))
    drives[0].start()
    await settle()
    assert [type(error) for error in drives[0].errors] == [asyncio.CancelledError]


async def test_one_that_is_never_started_leaves_nothing(future: asyncio.Future[str]) -> None:
    drive = Noted(of(future))
    drive.cancel()
    del drive
    gc.collect()  # a coroutine that was never awaited would be a warning, and so an error


async def test_cancelling_after_the_end_changes_nothing(future: asyncio.Future[str]) -> None:
    drive = Noted(of(future))
    drive.start()
    future.set_result("answer")
    await settle()
    drive.cancel()
    await settle()
    assert drive.results == ["answer"]
    assert drive.errors == []
