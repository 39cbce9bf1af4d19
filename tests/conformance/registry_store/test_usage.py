from __future__ import annotations

import asyncio

import pytest

from headrace.domain.errors import StoreUnavailable
from headrace.domain.usage import BOUNDS_S, Usage
from headrace.ports.registry_store import RegistryStore
from tests.conformance.registry_store import samples
from tests.conformance.registry_store.conftest import OpenStore

_KEY = (samples.TENANT, "bert", "1")


def _usage(seconds: float | None, *buckets: int, latency_s: float = 0.5) -> Usage:
    return Usage(
        requests=sum(buckets),
        errors=1,
        latency_s=latency_s,
        buckets=(*buckets, *[0] * (len(BOUNDS_S) + 1 - len(buckets))),
        last_used_at=None if seconds is None else samples.at(seconds),
    )


@pytest.fixture(autouse=True)
async def _some_versions(store: RegistryStore) -> None:
    async with store.transaction() as transaction:
        await transaction.put(samples.model())
        await transaction.put(samples.version("1"))
        await transaction.put(samples.version("2"))


async def test_usage_adds_up(store: RegistryStore) -> None:
    parts = [_usage(5, 1, 2), _usage(3, 0, 1, 0, 4), _usage(None), _usage(6, 0, 0, 0, 0, 7)]
    total = Usage()
    for part in parts:
        await store.add_usage([(_KEY, part)])
        total = total.plus(part)
    assert await store.usage(samples.TENANT, "bert") == {"1": total}


async def test_usage_of_several_versions_is_added_at_once(store: RegistryStore) -> None:
    other = (samples.TENANT, "bert", "2")
    await store.add_usage([(_KEY, _usage(1, 1)), (other, _usage(2, 2)), (_KEY, _usage(0, 3))])
    found = await store.usage(samples.TENANT, "bert")
    assert (found["1"].requests, found["2"].requests) == (4, 2)
    assert found["1"].last_used_at == samples.at(1)


async def test_of_unknown_versions_nothing_is_kept(store: RegistryStore) -> None:
    await store.add_usage([((samples.TENANT, "bert", "3"), _usage(1, 1)), (_KEY, _usage(1, 1))])
    await store.add_usage([(("other", "bert", "1"), _usage(1, 1))])
    await store.add_usage([])
    assert set(await store.usage(samples.TENANT, "bert")) == {"1"}
    assert await store.usage("other", "bert") == {}


async def test_usage_makes_no_revision(store: RegistryStore) -> None:
    await store.add_usage([(_KEY, _usage(1, 1))])
    assert await store.revision() == 1


async def test_writing_a_version_again_keeps_its_usage(store: RegistryStore) -> None:
    await store.add_usage([(_KEY, _usage(1, 1))])
    async with store.transaction() as transaction:
        await transaction.put(samples.version("1", description="better described"))
    assert (await store.usage(samples.TENANT, "bert"))["1"].requests == 1


async def test_stores_add_beside_each_other(another: OpenStore) -> None:
    stores = [await another(), await another()]

    async def add(store: RegistryStore) -> None:
        for _ in range(10):
            await store.add_usage([(_KEY, _usage(1, 1, 1))])

    await asyncio.gather(*(add(store) for store in stores for _ in range(2)))
    found = (await stores[0].usage(samples.TENANT, "bert"))["1"]
    assert (found.requests, found.errors, found.latency_s) == (80, 40, 20.0)
    assert found.buckets[:3] == (40, 40, 0)


async def test_a_closed_store_adds_nothing(store: RegistryStore) -> None:
    await store.close()
    with pytest.raises(StoreUnavailable):
        await store.add_usage([(_KEY, _usage(1, 1))])
