from __future__ import annotations

import asyncio
import threading

import pytest

from headrace.adapters.artifacts.thread import on_thread


async def test_a_result_and_an_error_come_back() -> None:
    assert await on_thread(max, 1, 2) == 2
    with pytest.raises(ZeroDivisionError):
        await on_thread(lambda: 1 / 0)


async def test_who_is_cancelled_still_waits_for_the_thread() -> None:
    begun, go_on, done = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        go_on.wait(10)
        done.set()

    waiting = asyncio.ensure_future(on_thread(work))
    await asyncio.to_thread(begun.wait, 10)
    waiting.cancel()
    await asyncio.sleep(0)
    assert not waiting.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert done.is_set()
