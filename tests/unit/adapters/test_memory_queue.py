from __future__ import annotations

import logging

import pytest

from headrace.adapters.memory_queue import MemoryQueue
from headrace.domain.chunks import ChunkRef
from headrace.ports.job_queue import DeadLetter, Message


def message(index: int, failures: int = 0) -> Message:
    return Message(ref=ChunkRef("job", index), failures=failures)


async def indices(queue: MemoryQueue, count: int) -> list[int]:
    found = [(await queue.take()).message for _ in range(count)]
    return [taken.ref.index for taken in found if taken is not None]


async def test_fresh_messages_go_ahead_of_those_that_failed() -> None:
    queue = MemoryQueue()
    await queue.publish([message(1, failures=1), message(2, failures=2), message(3), message(4)])
    assert await indices(queue, 4) == [3, 4, 1, 2]


async def test_messages_that_failed_are_not_forgotten_over_fresh_ones() -> None:
    queue = MemoryQueue()
    await queue.publish([message(1, failures=1), *(message(index) for index in range(100, 200))])
    assert 1 in await indices(queue, 20)


async def test_the_last_dead_letters_are_kept_and_all_are_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    queue = MemoryQueue()
    for number in range(1500):
        await queue.bury(DeadLetter(reason="strange", ref=ChunkRef("job", number)))
    assert len(queue.letters) == 1000
    assert queue.letters[-1].ref == ChunkRef("job", 1499)
    assert len(caplog.records) == 1500
    assert caplog.records[0].getMessage() == "chunk 0 of job job is given up: strange"
