from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from headrace.ports.registry_store import RegistryStore
from tests.conformance.registry_store import samples
from tests.conformance.registry_store.conftest import OpenStore

_WITHIN_S = 0.5  # the port's promise
_SURELY_S = 10.0  # for what has no promise


class _Watcher:
    """Watches as a follower does: whenever it wakes it looks at the revision."""

    def __init__(self, store: RegistryStore) -> None:
        self._store = store
        self._looked = asyncio.Condition()
        self.revision = -1
        self.looks = 0

    async def run(self) -> None:
        async for _ in self._store.watch():
            revision = await self._store.revision()
            async with self._looked:
                self.revision, self.looks = revision, self.looks + 1
                self._looked.notify_all()

    async def sees(self, revision: int, *, within_s: float) -> None:
        async with asyncio.timeout(within_s), self._looked:
            await self._looked.wait_for(lambda: self.revision >= revision)


@contextlib.asynccontextmanager
async def _watching(store: RegistryStore) -> AsyncIterator[_Watcher]:
    watcher = _Watcher(store)
    task = asyncio.create_task(watcher.run())
    try:
        await watcher.sees(0, within_s=_SURELY_S)
        yield watcher
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _change(store: RegistryStore) -> int:
    async with store.transaction() as transaction:
        await transaction.put(samples.model(id="mdl_1"))
        return transaction.revision


async def test_a_watch_wakes_for_a_change_made_by_another_store(another: OpenStore) -> None:
    here, there = await another(), await another()
    async with _watching(here) as watcher:
        for _ in range(5):
            await watcher.sees(await _change(there), within_s=_WITHIN_S)


async def test_a_watch_wakes_for_a_change_of_its_own_store(store: RegistryStore) -> None:
    async with _watching(store) as watcher:
        for _ in range(5):
            await watcher.sees(await _change(store), within_s=_WITHIN_S)


async def test_several_watches_wake(another: OpenStore) -> None:
    here, there = await another(), await another()
    async with _watching(here) as first, _watching(here) as second:
        revision = await _change(there)
        await first.sees(revision, within_s=_WITHIN_S)
        await second.sees(revision, within_s=_WITHIN_S)


async def test_a_change_while_the_watcher_is_busy_is_not_missed(another: OpenStore) -> None:
    here, there = await another(), await another()
    watch = aiter(here.watch())
    await anext(watch)
    await _change(there)  # before the watcher asks again
    async with asyncio.timeout(_WITHIN_S):
        await anext(watch)
    await cast("Any", watch).aclose()


async def test_a_transaction_that_is_rolled_back_wakes_nobody(another: OpenStore) -> None:
    here, there = await another(), await another()
    async with _watching(here) as watcher:
        looks = watcher.looks

        async def change_and_give_up() -> None:
            async with there.transaction() as transaction:
                await transaction.put(samples.model())
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await change_and_give_up()
        revision = await _change(there)
        await watcher.sees(revision, within_s=_WITHIN_S)
        assert watcher.looks == looks + 1


async def test_a_watch_ends_when_the_store_is_closed(another: OpenStore) -> None:
    store = await another()

    async def watch() -> None:
        async for _ in store.watch():
            pass

    task = asyncio.create_task(watch())
    await store.revision()
    await store.close()
    async with asyncio.timeout(_SURELY_S):
        await task
