from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from itertools import pairwise

from headrace.batch.turns import Turns, TurnsSettings


class Loop:
    """A clock that moves where a test says so, and online requests that come all the time."""

    def __init__(self, *, online: bool = True, least_share: float = 0.1) -> None:
        self.now = 100.0
        self.last_online = 100.0 if online else 0.0
        self.log: list[str] = []
        self.turns = Turns(
            TurnsSettings(stretch_s=0.001, least_share=least_share, online_for_s=10.0),
            last_online=lambda: self.last_online,
            clock=lambda: self.now,
        )

    async def work(self, name: str, stretches: int) -> None:
        for _ in range(stretches):
            await self.turns.next()
            self.log.append(name)
            self.now += 0.001

    def busy(self, turns: int, *, each_s: float, then: Callable[[], None]) -> None:
        """Something that is done in so many turns of the loop."""
        self.log.append("online")
        self.now += each_s
        if turns > 1:
            loop = asyncio.get_running_loop()
            loop.call_soon(lambda: self.busy(turns - 1, each_s=each_s, then=then))
        else:
            then()


async def test_batch_work_goes_on_when_online_requests_are_done_with() -> None:
    loop = Loop()
    working = asyncio.create_task(loop.work("batch", 1))
    loop.busy(5, each_s=0.0005, then=lambda: loop.log.append("answered"))
    await working
    assert loop.log == [*["online"] * 5, "answered", "batch"]


async def test_batch_work_gets_its_share_however_busy_the_loop_is() -> None:
    loop = Loop(least_share=0.2)
    working = asyncio.gather(*[loop.work("batch", 1) for _ in range(3)])
    await asyncio.sleep(0)
    loop.busy(100, each_s=0.0005, then=lambda: loop.log.append("answered"))
    await working
    assert "answered" not in loop.log
    # four times as long as a stretch is waited, after what was under way
    assert 3 * 8 <= loop.log.count("online") <= 3 * 12


async def test_two_stretches_never_follow_each_other_where_something_waits_between_them() -> None:
    loop = Loop()
    working = [asyncio.create_task(loop.work(name, 20)) for name in ("a", "b", "c")]
    seen: list[int] = []

    async def other() -> None:
        while not all(task.done() for task in working):
            seen.append(len(loop.log))
            await asyncio.sleep(0)

    await other()
    assert max(later - before for before, later in pairwise(seen)) == 1
    assert sorted(loop.log) == ["a"] * 20 + ["b"] * 20 + ["c"] * 20


async def test_all_batch_work_gets_its_turn_in_order() -> None:
    loop = Loop()
    await asyncio.gather(*[loop.work(name, 3) for name in ("a", "b", "c")])
    assert loop.log == ["a", "b", "c"] * 3


async def test_whoever_was_cancelled_takes_no_turn() -> None:
    loop = Loop()
    tasks = [asyncio.create_task(loop.work(name, 1)) for name in ("a", "b")]
    await asyncio.sleep(0)
    tasks[0].cancel()
    await asyncio.wait(tasks)
    assert loop.log == ["b"]
    await loop.work("c", 1)
    assert loop.log == ["b", "c"]


async def test_while_nobody_is_online_a_turn_is_the_loops_next_one() -> None:
    loop = Loop(online=False)
    working = asyncio.create_task(loop.work("batch", 3))
    loop.busy(3, each_s=1.0, then=lambda: None)
    await working
    assert loop.log == ["online", "online", "batch", "online", "batch", "batch"]


async def test_a_stretch_is_due_to_end_only_while_somebody_is_online() -> None:
    loop = Loop()
    await loop.turns.next()
    assert not loop.turns.due
    loop.now += 0.001
    assert loop.turns.due
    await loop.turns.next()
    assert not loop.turns.due
    loop.now += 10
    assert not loop.turns.due
    assert not loop.turns.online


async def test_who_began_earlier_comes_more_often_and_ends_earlier() -> None:
    loop = Loop(online=False)
    ended: list[str] = []

    async def work(name: str) -> None:
        with loop.turns.working() as place:
            for _ in range(12):
                await loop.turns.next(place)
                loop.log.append(name)
        ended.append(name)

    await asyncio.gather(*[work(name) for name in ("a", "b", "c", "d")])
    assert ended[:2] == ["a", "b"]
    first = loop.log[: loop.log.index("a") + 18]
    assert first.count("a") > first.count("b") > first.count("c") > 0
    assert first.count("d") > 0  # however many are ahead


async def test_whoever_has_ended_is_in_nobodys_way() -> None:
    loop = Loop(online=False)
    with contextlib.suppress(ValueError), loop.turns.working():
        raise ValueError
    with loop.turns.working() as place:
        working = asyncio.ensure_future(loop.turns.next(place))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert working.done()


async def test_online_requests_are_given_way_to_whoever_began_earlier() -> None:
    loop = Loop()

    async def work(name: str) -> None:
        with loop.turns.working() as place:
            for _ in range(3):
                await loop.turns.next(place)
                loop.log.append(name)

    await asyncio.gather(*[work(name) for name in ("a", "b", "c")])
    assert loop.log == ["a", "b", "c"] * 3
