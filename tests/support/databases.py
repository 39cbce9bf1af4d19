"""Databases for tests that run on SQLite and on PostgreSQL: each has one of its own, empty.

A `conftest.py` imports the fixtures for the tests beside it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final

import pytest

from headrace.adapters.sql.opening import migrate
from headrace.adapters.sql.settings import PostgresSettings, SqliteSettings, StoreSettings
from tests.support.postgres import Postgres, running

_MIGRATED_AT: Final = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """One server for all tests of a worker."""
    with running() as server:
        yield server


@pytest.fixture(scope="session")
def migrated(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A database to copy, with the schema and nothing else; its name."""
    name = postgres.create_database()
    settings = PostgresSettings(dsn=postgres.dsn(name))
    unused = tmp_path_factory.mktemp("unused")
    asyncio.run(migrate(settings, data_dir=unused, now=lambda: _MIGRATED_AT))
    return name


def fresh_database(kind: str, request: pytest.FixtureRequest) -> StoreSettings:
    """A database that nothing is in yet; on PostgreSQL a copy of the fixture `migrated`."""
    if kind == "sqlite":
        return SqliteSettings()
    server: Postgres = request.getfixturevalue("postgres")
    name = server.create_database(request.getfixturevalue("migrated"))
    return PostgresSettings(dsn=server.dsn(name))
