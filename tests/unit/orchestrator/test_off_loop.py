from __future__ import annotations

import asyncio
import threading

import pytest

from headrace.orchestrator.off_loop import off_loop
from tests.unit.orchestrator.stage import turns


async def test_a_function_runs_beside_the_loop_and_its_answer_comes_back() -> None:
    def answer(a: int, *, b: int) -> tuple[int, int, bool]:
        thread = threading.current_thread()
        return a + b, thread.ident or 0, thread.daemon

    total, thread, daemon = await off_loop(answer, 1, b=2)
    assert total == 3
    assert thread != threading.get_ident()
    assert daemon, "one that hangs must not keep the process from ending"


async def test_what_it_raises_is_raised_where_it_is_awaited() -> None:
    error = ValueError("no")

    def fail() -> None:
        raise error

    with pytest.raises(ValueError, match="no") as caught:
        await off_loop(fail)
    assert caught.value is error


@pytest.mark.parametrize("raised", [SystemExit(3), StopIteration(3), KeyboardInterrupt(3)])
async def test_what_no_future_should_carry_becomes_an_error_that_names_it(
    raised: BaseException,
) -> None:
    def fail() -> None:
        raise raised

    with pytest.raises(RuntimeError, match=f"^{type(raised).__name__}: 3$"):
        await off_loop(fail)


async def test_who_does_not_wait_any_more_is_not_told(caplog: pytest.LogCaptureFixture) -> None:
    loop = asyncio.get_running_loop()
    begun, gate = asyncio.Event(), threading.Event()
    threads: list[threading.Thread] = []

    def held() -> int:
        threads.append(threading.current_thread())
        loop.call_soon_threadsafe(begun.set)
        gate.wait()
        return 1

    task = loop.create_task(off_loop(held))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    gate.set()
    await asyncio.to_thread(threads[0].join)
    await turns()
    assert caplog.records == []


def test_a_function_that_outlives_the_loop_ends_in_silence() -> None:
    gate = threading.Event()
    threads: list[threading.Thread] = []

    def held() -> None:
        threads.append(threading.current_thread())
        gate.wait()

    async def leave() -> None:
        task = asyncio.get_running_loop().create_task(off_loop(held))
        await turns()
        task.cancel()

    asyncio.run(leave())
    gate.set()
    (thread,) = threads
    thread.join()
