from __future__ import annotations

import asyncio

import pytest

from headrace.batch.waking import wanted_within


async def test_news_ends_the_wait() -> None:
    event = asyncio.Event()
    waiting = asyncio.create_task(wanted_within(event, 10_000.0))
    await asyncio.sleep(0)
    assert not waiting.done()
    event.set()
    assert await waiting


async def test_old_news_is_news() -> None:
    event = asyncio.Event()
    event.set()
    assert await wanted_within(event, 10_000.0)


async def test_without_news_the_wait_ends_by_itself() -> None:
    assert not await wanted_within(asyncio.Event(), 0.001)


async def test_who_waits_can_be_cancelled() -> None:
    waiting = asyncio.create_task(wanted_within(asyncio.Event(), 10_000.0))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
