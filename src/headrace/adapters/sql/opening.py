"""Opening the store, and migrating its database."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final

from headrace.adapters.sql import migrations
from headrace.adapters.sql.database import Database, Unusable
from headrace.adapters.sql.registry_store import SqlRegistryStore
from headrace.adapters.sql.settings import PostgresSettings, SqliteSettings, StoreSettings
from headrace.adapters.sql.sqlite import SqliteDatabase
from headrace.domain.errors import InvalidSettings
from headrace.ports.registry_store import Now

_FILE: Final = "registry.db"


async def open_store(
    settings: StoreSettings, *, data_dir: Path, now: Now, migrate: bool = False
) -> SqlRegistryStore:
    """Open the registry's store.

    SQLite's schema is brought up to date by itself; PostgreSQL's is with `migrate` alone, because
    a cluster's other processes still run on it.

    Raises:
        InvalidSettings: the schema is not the one that this release runs on, or there is no such
            database.
        StoreUnavailable: the database does not answer.
    """
    database = _database(settings, data_dir)
    try:
        with _telling_the_operator():
            await _bring_up(database, settings, migrate=migrate, now=now)
    except BaseException:
        await database.close()
        raise
    return SqlRegistryStore(database)


async def migrate(settings: StoreSettings, *, data_dir: Path, now: Now) -> list[str]:
    """Apply the pending migrations and answer their names, such as `1 registry`.

    Raises:
        InvalidSettings, StoreUnavailable: as `open_store` does.
    """
    async with _opened(settings, data_dir) as database:
        applied = await migrations.migrate(database, at=now())
    return [f"{migration.version} {migration.name}" for migration in applied]


async def pending(settings: StoreSettings, *, data_dir: Path) -> list[str]:
    """The names of the migrations that `migrate` would apply. Changes nothing.

    Raises:
        InvalidSettings, StoreUnavailable: as `open_store` does.
    """
    if isinstance(settings, SqliteSettings) and not _file(settings, data_dir).exists():
        todo = list(migrations.migrations())
    else:
        async with _opened(settings, data_dir) as database:
            todo = await migrations.pending(database)
    return [f"{migration.version} {migration.name}" for migration in todo]


async def _bring_up(
    database: Database, settings: StoreSettings, *, migrate: bool, now: Now
) -> None:
    if migrate or isinstance(settings, SqliteSettings):
        await migrations.migrate(database, at=now())
    elif todo := await migrations.pending(database):
        names = ", ".join(f"{migration.version} ({migration.name})" for migration in todo)
        msg = f"the registry's database lacks migration {names}: run `headrace migrate`"
        raise InvalidSettings(msg)


@contextmanager
def _telling_the_operator() -> Iterator[None]:
    """While opening, a database that will never do is a mistake in the settings."""
    try:
        yield
    except Unusable as error:
        raise InvalidSettings(error.reason) from error


@asynccontextmanager
async def _opened(settings: StoreSettings, data_dir: Path) -> AsyncIterator[Database]:
    database = _database(settings, data_dir)
    try:
        with _telling_the_operator():
            yield database
    finally:
        await database.close()


def _database(settings: StoreSettings, data_dir: Path) -> Database:
    match settings:
        case SqliteSettings():
            file = _file(settings, data_dir)
            return SqliteDatabase(file, busy_timeout_s=settings.busy_timeout_s)
        case PostgresSettings():
            # a process that keeps its registry in a file does not pay for the driver
            from headrace.adapters.sql.postgres import PostgresDatabase  # noqa: PLC0415

            return PostgresDatabase(settings)


def _file(settings: SqliteSettings, data_dir: Path) -> Path:
    if settings.path == ":memory:":
        msg = "database.path: the registry needs a file, which its connections share"
        raise InvalidSettings(msg)
    return Path(settings.path) if settings.path else data_dir / _FILE
