from __future__ import annotations

import asyncio
import contextvars
import random
import time
from collections.abc import Coroutine
from typing import Any

import pytest

from tests.support.simulation.virtual_time import OWNER, Owner, Stuck, VirtualLoop


def loop_of(seed: int) -> VirtualLoop:
    return VirtualLoop(random.Random(seed))  # type: ignore[abstract] # what is used is there


def begin(loop: VirtualLoop, work: Coroutine[Any, Any, None], owner: Owner) -> asyncio.Task[None]:
    context = contextvars.copy_context()
    context.run(OWNER.set, owner)
    return loop.create_task(work, context=context)


def test_waiting_takes_virtual_time_only() -> None:
    async def wait() -> float:
        await asyncio.sleep(3600)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(60):
                await asyncio.Event().wait()
        return asyncio.get_running_loop().time()

    began = time.monotonic()
    assert loop_of(0).run(wait()) == 3660
    assert time.monotonic() - began < 60


def test_a_paused_process_does_nothing_and_then_goes_on_in_order() -> None:
    loop, owner, seen = loop_of(0), Owner(), list[tuple[int, float]]()

    async def count() -> None:
        for number in range(4):
            await asyncio.sleep(1)
            seen.append((number, loop.time()))

    async def main() -> None:
        counting = begin(loop, count(), owner)
        await asyncio.sleep(1.5)
        owner.is_paused = True
        await asyncio.sleep(10)
        assert [number for number, _ in seen] == [0]
        loop.let_go(owner)
        await counting

    loop.run(main())
    assert seen == [(0, 1.0), (1, 11.5), (2, 12.5), (3, 13.5)]


def test_processes_take_turns_in_an_order_that_the_seed_gives() -> None:
    def run(seed: int) -> list[tuple[str, int]]:
        loop, seen = loop_of(seed), list[tuple[str, int]]()

        async def count(name: str) -> None:
            for number in range(3):
                asyncio.get_running_loop().call_soon(seen.append, (name, number))
                await asyncio.sleep(0)

        async def main() -> None:
            await asyncio.gather(*[begin(loop, count(name), Owner()) for name in "abc"])

        loop.run(main())
        return seen

    assert run(1) == run(1)
    orders = {tuple(run(seed)) for seed in range(10)}
    assert len(orders) > 1
    for order in orders:
        for name in "abc":
            assert [number for other, number in order if other == name] == [0, 1, 2]


def test_waiting_for_what_never_comes_is_told() -> None:
    async def wait() -> None:
        await asyncio.Event().wait()

    loop = loop_of(0)
    with pytest.raises(Stuck, match="everybody waits"):
        loop.run(wait())
    loop.close()
