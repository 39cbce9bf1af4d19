"""A fresh database for each test, on SQLite and on PostgreSQL, and stores that share it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from headrace.adapters.sql.opening import open_store
from headrace.adapters.sql.registry_store import SqlRegistryStore
from headrace.adapters.sql.settings import StoreSettings
from headrace.ports.registry_store import RegistryStore
from tests.conformance.registry_store.samples import START
from tests.support.databases import fresh_database
from tests.support.registry_store import MemoryRegistryStore

OpenStore = Callable[[], Awaitable[SqlRegistryStore]]


@pytest.fixture(params=["sqlite", "postgres"])
def settings(request: pytest.FixtureRequest) -> StoreSettings:
    """A database that nothing is in yet."""
    return fresh_database(request.param, request)


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def settings_or_none(request: pytest.FixtureRequest) -> StoreSettings | None:
    """The same; None is for the fake, which needs none."""
    return None if request.param == "memory" else fresh_database(request.param, request)


@pytest.fixture
async def another(settings: StoreSettings, tmp_path: Path) -> AsyncIterator[OpenStore]:
    """Opens one more store on the test's database."""
    opened: list[SqlRegistryStore] = []

    async def open_one() -> SqlRegistryStore:
        store = await open_store(settings, data_dir=tmp_path, now=lambda: START)
        opened.append(store)
        return store

    yield open_one
    for store in opened:
        await store.close()


@pytest.fixture
async def store(another: OpenStore) -> RegistryStore:
    return await another()


@pytest.fixture
async def either(
    settings_or_none: StoreSettings | None, tmp_path: Path
) -> AsyncIterator[RegistryStore]:
    """The stores, and the fake that tests of their users have."""
    if settings_or_none is None:
        yield MemoryRegistryStore()
        return
    store = await open_store(settings_or_none, data_dir=tmp_path, now=lambda: START)
    yield store
    await store.close()
