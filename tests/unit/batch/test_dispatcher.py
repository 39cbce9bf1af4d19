from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from headrace.batch.dispatcher import Dispatcher
from headrace.domain.chunks import Chunk, ChunkRef
from headrace.domain.errors import StoreUnavailable
from headrace.domain.jobs import Job
from headrace.ports.job_queue import DeadLetter, Delivery, Message
from tests.support import job_makers
from tests.support.batch_core import HOLDER, Core, failing, some_rows
from tests.support.waiting import until


class Noted:
    """A queue that keeps what it is handed. `fails` names the jobs whose letters it refuses."""

    def __init__(self, core: Core, *, shared: bool = True) -> None:
        self.shared = shared
        self.published: list[Message] = []
        self.letters: list[DeadLetter] = []
        self.states: list[str] = []  # of the chunks, when their letters came
        self.fails: set[ChunkRef] = set()
        self.is_down = False
        self._core = core

    async def publish(self, messages: Sequence[Message]) -> None:
        if self.is_down:
            raise StoreUnavailable("the queue is down")
        self.published += messages

    async def bury(self, letter: DeadLetter) -> None:
        if self.is_down or letter.ref in self.fails:
            raise StoreUnavailable("the queue is down")
        self.letters.append(letter)
        assert letter.ref is not None
        async for chunk in self._core.store.chunks(letter.ref.job):
            if chunk.ref == letter.ref:
                self.states.append(chunk.state)

    async def take(self) -> Delivery:
        raise AssertionError

    async def run(self) -> None: ...

    async def close(self) -> None: ...


def _dispatcher(core: Core, queue: Noted) -> Dispatcher:
    return Dispatcher(
        store=core.store,
        queue=queue,
        settings=core.settings,
        metrics=core.metrics,
        by=HOLDER,
    )


async def _fail(core: Core, job: Job, index: int, times: int) -> None:
    """Let a chunk fail so often."""
    for n in range(times):
        claimed = await job_makers.claimed(core.store, job, index)
        assert await core.store.release_chunk(claimed.claim, story=f"failure {n}")


def _indexes(messages: Sequence[Message]) -> list[int]:
    return [message.ref.index for message in messages]


async def test_a_queue_of_all_is_kept_as_full_as_the_window_says() -> None:
    core = Core(chunk_rows=1, window=3)
    queue = Noted(core)
    dispatcher = _dispatcher(core, queue)
    job = await core.planned(some_rows(5))
    assert await dispatcher.dispatch() == 3
    assert await dispatcher.dispatch() == 0
    assert _indexes(queue.published) == [0, 1, 2]
    await job_makers.run(core.store, [ChunkRef(job.id, 0)])
    assert await dispatcher.dispatch() == 1
    assert _indexes(queue.published) == [0, 1, 2, 3]


async def test_a_queue_of_its_own_gets_what_this_process_is_about_to_take() -> None:
    core = Core(chunk_rows=1, window=64, chunks_in_hand=1)
    queue = Noted(core, shared=False)
    await core.planned(some_rows(9))
    await core.store.queue_chunks(by="another", window=4, shared=False)
    assert await _dispatcher(core, queue).dispatch() == 3
    assert _indexes(queue.published) == [4, 5, 6]


async def test_messages_tell_how_often_their_chunks_failed() -> None:
    core = Core(chunk_rows=1)
    queue = Noted(core)
    job = await core.planned(some_rows(2))
    await _fail(core, job, 1, 2)
    await _dispatcher(core, queue).dispatch()
    assert {(m.ref.index, m.failures) for m in queue.published} == {(0, 0), (1, 2)}
    assert [m.attempt for m in queue.published] == [0, 2]


async def test_what_nobody_took_is_queued_anew_after_a_while() -> None:
    core = Core(chunk_rows=1, requeue_after_s=15.0)
    queue = Noted(core)
    dispatcher = _dispatcher(core, queue)
    await core.planned(some_rows(2))
    await dispatcher.dispatch()
    core.now += 14.0
    assert await dispatcher.repeat() == 0
    core.now += 1.0
    assert await dispatcher.repeat() == 2
    assert _indexes(queue.published) == [0, 1, 0, 1]


@pytest.mark.parametrize(("shared", "times"), [(True, 9), (False, 60)])
async def test_what_a_shared_queue_may_still_have_is_repeated_seldom(
    *, shared: bool, times: int
) -> None:
    core = Core(requeue_after_s=15.0)
    queue = Noted(core, shared=shared)
    dispatcher = _dispatcher(core, queue)
    await core.planned(some_rows(1))
    await dispatcher.dispatch()
    repeated = 0
    for _ in range(60 * 15):
        core.now += 1.0
        repeated += await dispatcher.repeat()
    assert repeated == times


# --- what fails again and again ------------------------------------------------------------------


async def test_a_chunk_that_failed_too_often_is_buried_the_letter_first() -> None:
    core = Core(chunk_rows=1, max_chunk_failures=3)
    queue = Noted(core)
    job = await core.planned(some_rows(2))
    await _fail(core, job, 0, 3)
    await _dispatcher(core, queue).dispatch()
    (letter,) = queue.letters
    assert letter.ref == ChunkRef(job.id, 0)
    assert letter.story == ("failure 0", "failure 1", "failure 2")
    assert "3 times" in letter.reason
    assert queue.states == ["queued"]
    assert await job_makers.states_of(core.store, job) == ["dead", "queued"]
    assert _indexes(queue.published) == [1]
    assert core.metrics.dead_letters.value == 1


async def test_a_chunk_that_failed_once_less_is_tried_again() -> None:
    core = Core(chunk_rows=1, max_chunk_failures=3)
    queue = Noted(core)
    job = await core.planned(some_rows(1))
    await _fail(core, job, 0, 2)
    await _dispatcher(core, queue).dispatch()
    assert (queue.letters, len(queue.published)) == ([], 1)


async def test_one_that_cannot_be_buried_does_not_keep_the_others() -> None:
    core = Core(chunk_rows=1, max_chunk_failures=1)
    queue = Noted(core)
    dispatcher = _dispatcher(core, queue)
    job = await core.planned(some_rows(4))
    for index in (0, 1):
        await _fail(core, job, index, 1)
    queue.fails = {ChunkRef(job.id, 0)}
    await dispatcher.dispatch()
    assert sorted(_indexes(queue.published)) == [2, 3]
    assert await job_makers.states_of(core.store, job) == ["queued", "dead", "queued", "queued"]

    queue.fails = set()
    core.now += core.settings.requeue_after_s
    await dispatcher.repeat()
    assert await job_makers.states_of(core.store, job) == ["dead", "dead", "queued", "queued"]
    assert core.metrics.dead_letters.value == 2


async def test_a_store_that_does_not_answer_leaves_a_second_letter_and_one_dead_chunk() -> None:
    core = Core(chunk_rows=1, max_chunk_failures=1)
    queue = Noted(core)
    dispatcher = _dispatcher(core, queue)
    job = await core.planned(some_rows(1))
    await _fail(core, job, 0, 1)
    core.store.gate = failing("bury_chunk", times=1)
    await dispatcher.dispatch()
    assert await job_makers.states_of(core.store, job) == ["queued"]
    assert core.metrics.dead_letters.value == 0
    core.now += core.settings.requeue_after_s
    await dispatcher.repeat()
    assert len(queue.letters) == 2
    assert (await core.read(job)).state == "finalizing"
    assert core.metrics.dead_letters.value == 1


async def test_a_chunk_that_somebody_took_meanwhile_is_not_dead() -> None:
    core = Core(chunk_rows=1, max_chunk_failures=1)
    queue = Noted(core)
    job = await core.planned(some_rows(1))
    await _fail(core, job, 0, 1)

    async def take(name: str) -> None:
        if name == "bury_chunk":
            await job_makers.claimed(core.store, job)

    core.store.gate = take
    await _dispatcher(core, queue).dispatch()
    assert await job_makers.states_of(core.store, job) == ["running"]
    assert core.metrics.dead_letters.value == 0


# --- for ever ------------------------------------------------------------------------------------


async def test_it_goes_on_after_stores_and_queues_that_did_not_answer() -> None:
    core = Core(chunk_rows=1, requeue_after_s=15.0)
    queue = Noted(core)
    dispatcher = _dispatcher(core, queue)
    await core.planned(some_rows(2))
    left = [StoreUnavailable("no answer"), RuntimeError("a defect")]

    async def fail(name: str) -> None:
        if name == "queue_chunks" and left:
            raise left.pop()

    core.store.gate = fail
    running = asyncio.create_task(dispatcher.run())
    await until(lambda: len(queue.published) == 2)
    running.cancel()


async def test_what_a_queue_did_not_take_is_queued_anew() -> None:
    core = Core(chunk_rows=1)
    queue = Noted(core)
    dispatcher = _dispatcher(core, queue)
    await core.planned(some_rows(2))
    queue.is_down = True
    with pytest.raises(StoreUnavailable):
        await dispatcher.dispatch()
    queue.is_down = False
    core.now += core.settings.requeue_after_s
    assert await dispatcher.repeat() == 2
    assert _indexes(queue.published) == [0, 1]


async def test_it_queues_at_once_when_it_is_told_of_something() -> None:
    core = Core(chunk_rows=1, look_s=10_000.0)
    queue = Noted(core)
    dispatcher = _dispatcher(core, queue)
    running = asyncio.create_task(dispatcher.run())
    await until(lambda: core.store.calls.get("queue_chunks"))
    await core.planned(some_rows(1))
    dispatcher.wanted.set()
    await until(lambda: queue.published)
    running.cancel()


async def test_nobody_looks_for_more_where_all_was_queued() -> None:
    core = Core(chunk_rows=1, look_s=10_000.0, chunks_in_hand=1)  # and two ahead
    queue = Noted(core, shared=False)
    dispatcher = _dispatcher(core, queue)
    await core.planned(some_rows(2))
    await dispatcher.dispatch()
    assert len(queue.published) == 2
    dispatcher.done()
    assert not dispatcher.wanted.is_set()


@pytest.mark.parametrize("shared", [False, True])
async def test_a_chunk_that_is_done_makes_room_for_one_that_waits(*, shared: bool) -> None:
    core = Core(chunk_rows=1, look_s=10_000.0, chunks_in_hand=1, window=3)
    queue = Noted(core, shared=shared)
    dispatcher = _dispatcher(core, queue)
    job = await core.planned(some_rows(8))
    running = asyncio.create_task(dispatcher.run())
    for index in range(8):
        await until(lambda: len(queue.published) > index)  # noqa: B023
        await core.work(job, [index])
        dispatcher.done()
    running.cancel()


async def test_what_is_repeated_is_done_with_twice() -> None:
    core = Core(chunk_rows=1, chunks_in_hand=1)
    queue = Noted(core, shared=False)
    dispatcher = _dispatcher(core, queue)
    await core.planned(some_rows(8))
    await dispatcher.dispatch()
    core.now += core.settings.requeue_after_s
    assert await dispatcher.repeat() == 3
    for _ in range(3):
        dispatcher.done()  # of the messages that were only late
    dispatcher.wanted.clear()
    dispatcher.done()
    assert dispatcher.wanted.is_set()


async def test_a_chunk_that_is_done_while_others_are_queued_is_looked_at() -> None:
    core = Core(chunk_rows=1, chunks_in_hand=1)
    dispatcher = _dispatcher(core, Noted(core, shared=False))
    await core.planned(some_rows(8))

    async def done(name: str) -> None:
        if name == "queue_chunks":
            dispatcher.done()

    core.store.after_gate = done
    await dispatcher.dispatch()
    assert dispatcher.wanted.is_set()


async def test_a_plan_is_told_as_something_to_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    core = Core(look_s=10_000.0)
    told: list[bool] = []
    queue_chunks = core.store.queue_chunks

    async def noted(**wish: Any) -> Sequence[Chunk]:
        told.append(wish["expected"])
        return await queue_chunks(**wish)

    monkeypatch.setattr(core.store, "queue_chunks", noted)
    dispatcher = _dispatcher(core, Noted(core))
    running = asyncio.create_task(dispatcher.run())
    await until(lambda: told == [False])
    dispatcher.planned()
    await until(lambda: told == [False, True])
    dispatcher.wanted.set()
    await until(lambda: told == [False, True, False])
    running.cancel()


async def test_what_others_changed_is_looked_at_by_a_process_that_has_room_for_it() -> None:
    core = Core(chunk_rows=1, look_s=10_000.0)
    queue = Noted(core, shared=False)
    dispatcher = _dispatcher(core, queue)
    running = asyncio.create_task(dispatcher.run())
    await until(lambda: core.store.calls.get("queue_chunks"))
    await core.planned(some_rows(1))
    dispatcher.heard()
    await until(lambda: queue.published)
    running.cancel()


async def test_what_others_changed_means_nothing_to_a_process_that_has_enough_to_do() -> None:
    core = Core(chunk_rows=1, chunks_in_hand=2)
    dispatcher = _dispatcher(core, Noted(core, shared=False))
    await core.planned(some_rows(2))
    await dispatcher.dispatch()
    dispatcher.heard()
    assert not dispatcher.wanted.is_set()
    dispatcher.done()
    dispatcher.heard()
    assert dispatcher.wanted.is_set()


async def test_whoever_shares_a_queue_with_others_is_told_by_it() -> None:
    core = Core()
    dispatcher = _dispatcher(core, Noted(core, shared=True))
    dispatcher.heard()
    assert not dispatcher.wanted.is_set()
