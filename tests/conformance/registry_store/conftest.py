"""A fresh database for each test, on SQLite and on PostgreSQL, and stores that share it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from headrace.adapters.sql.opening import migrate, open_store
from headrace.adapters.sql.settings import PostgresSettings, SqliteSettings, StoreSettings
from headrace.ports.registry_store import RegistryStore
from tests.conformance.registry_store.samples import START
from tests.support.postgres import Postgres, running

OpenStore = Callable[[], Awaitable[RegistryStore]]


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """One server for all tests of a worker."""
    with running() as server:
        yield server


@pytest.fixture(scope="session")
def migrated(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A database to copy."""
    name = postgres.create_database()
    settings = PostgresSettings(dsn=postgres.dsn(name))
    unused = tmp_path_factory.mktemp("unused")
    asyncio.run(migrate(settings, data_dir=unused, now=lambda: START))
    return name


@pytest.fixture(params=["sqlite", "postgres"])
def settings(request: pytest.FixtureRequest) -> StoreSettings:
    """A database that nothing is in yet."""
    if request.param == "sqlite":
        return SqliteSettings()
    server: Postgres = request.getfixturevalue("postgres")
    name = server.create_database(request.getfixturevalue("migrated"))
    return PostgresSettings(dsn=server.dsn(name))


@pytest.fixture
async def another(settings: StoreSettings, tmp_path: Path) -> AsyncIterator[OpenStore]:
    """Opens one more store on the test's database."""
    opened: list[RegistryStore] = []

    async def open_one() -> RegistryStore:
        store = await open_store(settings, data_dir=tmp_path, now=lambda: START)
        opened.append(store)
        return store

    yield open_one
    for store in opened:
        await store.close()


@pytest.fixture
async def store(another: OpenStore) -> RegistryStore:
    return await another()
