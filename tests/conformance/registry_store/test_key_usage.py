from __future__ import annotations

import asyncio
from datetime import datetime

import pytest

from headrace.domain.catalog import ApiKey, Key
from headrace.domain.errors import StoreUnavailable
from headrace.ports.registry_store import RegistryStore
from tests.conformance.registry_store import samples
from tests.conformance.registry_store.conftest import OpenStore

_IDS = [f"key_{n:026}" for n in range(1, 250)]


@pytest.fixture
async def store(either: RegistryStore) -> RegistryStore:
    """Each store, the fake too, with some keys."""
    async with either.transaction() as transaction:
        for id_ in _IDS:
            await transaction.put(samples.key(id=id_))
    return either


async def test_the_latest_use_stays(store: RegistryStore) -> None:
    key: Key = (samples.TENANT, _IDS[0])
    for seconds in (5.000001, 3, 7.5, 7):
        await store.add_key_usage({key: samples.at(seconds)})
    assert await store.key_usage(samples.TENANT, [_IDS[0]]) == {_IDS[0]: samples.at(7.5)}


async def test_uses_are_found_for_any_number_of_keys(store: RegistryStore) -> None:
    used: dict[Key, datetime] = {
        (samples.TENANT, id_): samples.at(n) for n, id_ in enumerate(_IDS) if n % 3
    }
    await store.add_key_usage(used)
    for ids in ([], _IDS[:1], _IDS[:100], _IDS[:101], _IDS):
        expected = {key[1]: at for key, at in used.items() if key[1] in ids}
        assert await store.key_usage(samples.TENANT, ids) == expected


async def test_keys_of_another_tenant_are_not_found(store: RegistryStore) -> None:
    await store.add_key_usage({(samples.TENANT, _IDS[0]): samples.at(1)})
    assert await store.key_usage("other", _IDS[:2]) == {}


async def test_of_unknown_keys_nothing_is_kept(store: RegistryStore) -> None:
    await store.add_key_usage({("other", _IDS[0]): samples.at(1)})
    await store.add_key_usage({})
    assert await store.key_usage("other", _IDS) == {}


async def test_a_use_is_no_change(store: RegistryStore) -> None:
    before = await store.revision()
    key = (samples.TENANT, _IDS[0])
    read = await store.get(ApiKey, key)
    await store.add_key_usage({key: samples.at(1)})
    assert await store.revision() == before
    assert await store.changes(before) == []
    assert await store.get(ApiKey, key) == read


async def test_writing_a_key_again_keeps_its_use_and_deleting_it_does_not(
    store: RegistryStore,
) -> None:
    await store.add_key_usage({(samples.TENANT, id_): samples.at(1) for id_ in _IDS[:2]})
    async with store.transaction() as transaction:
        await transaction.put(samples.key(id=_IDS[0], revoked_at=samples.at(2)))
        await transaction.delete(samples.key(id=_IDS[1]))
    assert set(await store.key_usage(samples.TENANT, _IDS[:2])) == {_IDS[0]}


async def test_a_closed_store_takes_no_use(store: RegistryStore) -> None:
    await store.close()
    with pytest.raises(StoreUnavailable):
        await store.add_key_usage({(samples.TENANT, _IDS[0]): samples.at(1)})
    with pytest.raises(StoreUnavailable):
        await store.key_usage(samples.TENANT, _IDS)


async def test_processes_that_write_the_same_uses_do_not_hinder_each_other(
    another: OpenStore,
) -> None:
    stores = [await another(), await another()]
    async with stores[0].transaction() as transaction:
        for id_ in _IDS[:20]:
            await transaction.put(samples.key(id=id_))
    keys = [(samples.TENANT, id_) for id_ in _IDS[:20]]

    async def write(store: RegistryStore, order: int) -> None:
        for n in range(10):
            await store.add_key_usage({key: samples.at(n) for key in keys[::order]})

    await asyncio.gather(write(stores[0], 1), write(stores[1], -1))
    found = await stores[0].key_usage(samples.TENANT, _IDS[:20])
    assert set(found.values()) == {samples.at(9)}
