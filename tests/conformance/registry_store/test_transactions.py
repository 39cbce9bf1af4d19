from __future__ import annotations

import asyncio
import contextlib

import pytest

from headrace.domain.catalog import Alias, Model, Version
from headrace.domain.errors import AlreadyExists, StoreUnavailable
from headrace.ports.registry_store import AuditQuery, RegistryStore
from tests.conformance.registry_store import samples
from tests.conformance.registry_store.conftest import OpenStore


class _ChangedMyMind(Exception):
    pass


async def test_each_transaction_has_the_next_revision(store: RegistryStore) -> None:
    assert await store.revision() == 0
    for expected in (1, 2, 3):
        async with store.transaction() as transaction:
            assert transaction.revision == expected
            stored = await transaction.put(samples.model(f"m{expected}"))
            assert stored.revision == expected
        assert await store.revision() == expected


async def test_one_transaction_is_one_revision(store: RegistryStore) -> None:
    async with store.transaction() as transaction:
        await transaction.put(samples.model())
        await transaction.put(samples.version())
        await transaction.put(samples.alias())
    assert {change.revision for change in await store.changes(0)} == {1}


async def test_an_exception_rolls_everything_back(store: RegistryStore) -> None:
    async with store.transaction() as transaction:
        await transaction.put(samples.model("kept"))

    async def write() -> None:
        async with store.transaction() as transaction:
            await transaction.put(samples.model())
            await transaction.delete(samples.model("kept"))
            await transaction.audit(samples.event())
            raise _ChangedMyMind

    with pytest.raises(_ChangedMyMind):
        await write()
    assert await store.get(Model, (samples.TENANT, "bert")) is None
    assert await store.get(Model, (samples.TENANT, "kept")) is not None
    assert (await store.audit_trail(AuditQuery(tenant=samples.TENANT))).items == ()
    assert await store.revision() == 1
    assert await store.changes(1) == []


async def test_cancelling_rolls_everything_back(store: RegistryStore) -> None:
    written = asyncio.Event()

    async def write() -> None:
        async with store.transaction() as transaction:
            await transaction.put(samples.model())
            written.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(write())
    await written.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with store.transaction() as transaction:
        assert transaction.revision == 1
        assert await transaction.get(Model, (samples.TENANT, "bert")) is None


async def test_a_transaction_that_wrote_nothing_leaves_no_revision(store: RegistryStore) -> None:
    async with store.transaction() as transaction:
        await transaction.get(Model, (samples.TENANT, "bert"))
        await transaction.delete(samples.model("never there"))
    assert await store.revision() == 0


async def test_what_is_not_committed_is_not_seen_by_others(store: RegistryStore) -> None:
    async with store.transaction() as transaction:
        await transaction.put(samples.model())
        assert await store.get(Model, (samples.TENANT, "bert")) is None
        assert await store.revision() == 0
    assert await store.get(Model, (samples.TENANT, "bert")) is not None


async def test_writers_follow_one_another(another: OpenStore) -> None:
    stores = [await another(), await another()]

    async def count(store: RegistryStore) -> None:
        for _ in range(10):
            async with store.transaction() as transaction:
                found = await transaction.get(Model, (samples.TENANT, "bert"))
                value = found.metadata["n"] if found is not None else 0
                await asyncio.sleep(0)
                await transaction.put(samples.model(id="mdl_1", metadata={"n": value + 1}))

    await asyncio.gather(*(count(store) for store in stores for _ in range(3)))
    found = await stores[0].get(Model, (samples.TENANT, "bert"))
    assert found is not None
    assert found.metadata["n"] == 60
    assert await stores[1].revision() == 60


async def test_of_many_that_create_the_same_one_wins(another: OpenStore) -> None:
    stores = [await another(), await another()]

    async def create(store: RegistryStore, n: int) -> str:
        async with store.transaction() as transaction:
            if await transaction.get(Model, (samples.TENANT, "bert")) is not None:
                return "conflict"
            await transaction.put(samples.model(owner=str(n)))
        return "created"

    outcomes = await asyncio.gather(*(create(stores[n % 2], n) for n in range(20)))
    assert sorted(outcomes) == ["conflict"] * 19 + ["created"]
    assert await stores[0].revision() == 1


async def test_readers_do_not_wait_for_a_writer(another: OpenStore) -> None:
    writer, reader = await another(), await another()
    async with writer.transaction() as transaction, asyncio.timeout(2):
        await transaction.put(samples.model())
        for _ in range(20):
            assert await reader.get(Model, (samples.TENANT, "bert")) is None
            assert await writer.everything() == (0, [])


async def test_a_failed_statement_fails_the_transaction_though_it_was_caught(
    store: RegistryStore,
) -> None:
    async def write() -> None:
        async with store.transaction() as transaction:
            await transaction.put(samples.model("first", id="mdl_1"))
            with contextlib.suppress(AlreadyExists):
                await transaction.put(samples.model("second", id="mdl_1"))

    with pytest.raises(AlreadyExists):
        await write()
    assert await store.revision() == 0
    assert await store.get(Model, (samples.TENANT, "first")) is None


async def test_after_its_end_a_transaction_can_do_nothing(store: RegistryStore) -> None:
    async with store.transaction() as transaction:
        await transaction.put(samples.model())
    with pytest.raises(RuntimeError, match="ended"):
        await transaction.put(samples.model("late"))
    with pytest.raises(RuntimeError, match="ended"):
        await transaction.get(Version, (samples.TENANT, "bert", "1"))
    assert await store.get(Model, (samples.TENANT, "late")) is None


async def test_a_closed_store_says_so_and_another_goes_on(another: OpenStore) -> None:
    closed, open_one = await another(), await another()
    await closed.revision()
    await closed.close()
    await closed.close()
    with pytest.raises(StoreUnavailable):
        await closed.get(Alias, (samples.TENANT, "bert", "live"))
    with pytest.raises(StoreUnavailable):
        async with closed.transaction():
            pass
    assert await open_one.revision() == 0


async def test_what_was_written_is_there_when_the_store_is_opened_again(another: OpenStore) -> None:
    first = await another()
    async with first.transaction() as transaction:
        await transaction.put(samples.model())
    await first.close()
    second = await another()
    assert await second.revision() == 1
    assert await second.get(Model, (samples.TENANT, "bert")) is not None
