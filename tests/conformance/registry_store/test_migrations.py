from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from headrace.adapters.sql import migrations, opening
from headrace.adapters.sql.migrations import Migration
from headrace.adapters.sql.registry_store import SqlRegistryStore
from headrace.adapters.sql.settings import PostgresSettings, SqliteSettings, StoreSettings
from headrace.adapters.sql.statements import statement
from headrace.compose import migrate as command
from headrace.domain.errors import InvalidSettings
from headrace.ports.registry_store import AuditQuery, RegistryStore
from tests.conformance.registry_store import samples
from tests.conformance.registry_store.conftest import OpenStore
from tests.support.postgres import Postgres

_SECOND = Migration(2, "more", "CREATE TABLE more (n INTEGER);\nINSERT INTO more VALUES (1);\n")
_BROKEN = Migration(3, "broken", "CREATE TABLE half (n INTEGER);\nCREATE TABLE half (n INTEGER);\n")


@pytest.fixture(params=["sqlite", "postgres"])
def empty(request: pytest.FixtureRequest) -> StoreSettings:
    """A database without a schema."""
    if request.param == "sqlite":
        return SqliteSettings()
    server: Postgres = request.getfixturevalue("postgres")
    return PostgresSettings(dsn=server.dsn(server.create_database()))


async def _open(settings: StoreSettings, data_dir: Path) -> SqlRegistryStore:
    store = await opening.open_store(settings, data_dir=data_dir, now=lambda: samples.START,
                                     migrate=True)  # fmt: skip
    assert isinstance(store, SqlRegistryStore)
    return store


async def test_what_is_pending_is_applied_once(empty: StoreSettings, tmp_path: Path) -> None:
    assert await opening.pending(empty, data_dir=tmp_path) == ["1 registry"]
    assert await opening.pending(empty, data_dir=tmp_path) == ["1 registry"]  # it changed nothing
    when = {"data_dir": tmp_path, "now": lambda: samples.START}
    assert await opening.migrate(empty, **when) == ["1 registry"]  # type: ignore[arg-type]
    assert await opening.migrate(empty, **when) == []  # type: ignore[arg-type]
    assert await opening.pending(empty, data_dir=tmp_path) == []


async def test_of_processes_that_migrate_at_once_one_does_it(
    empty: StoreSettings, tmp_path: Path
) -> None:
    applied = await asyncio.gather(
        *(opening.migrate(empty, data_dir=tmp_path, now=lambda: samples.START) for _ in range(5))
    )
    assert sorted(applied) == [[], [], [], [], ["1 registry"]]


async def test_a_later_migration_keeps_what_is_there(empty: StoreSettings, tmp_path: Path) -> None:
    store = await _open(empty, tmp_path)
    async with store.transaction() as transaction:
        await transaction.put(samples.model())
    known = [*migrations.migrations(), _SECOND]
    assert await migrations.pending(store.database, known) == [_SECOND]
    assert await migrations.migrate(store.database, at=samples.START, known=known) == [_SECOND]
    assert await store.revision() == 1
    assert (await store.database.fetch(statement("n", "SELECT n FROM more"), {}))[0][0] == 1
    await store.close()


async def test_a_migration_that_fails_leaves_nothing_behind(
    empty: StoreSettings, tmp_path: Path
) -> None:
    store = await _open(empty, tmp_path)
    known = [*migrations.migrations(), _SECOND, _BROKEN]
    with pytest.raises(Exception, match="half"):
        await migrations.migrate(store.database, at=samples.START, known=known)
    assert await migrations.pending(store.database, known) == [_SECOND, _BROKEN]
    async with store.database.reading() as connection:
        assert not await connection.has_table("more")
        assert not await connection.has_table("half")
    await store.close()


async def test_a_database_that_a_newer_release_migrated_is_refused(
    empty: StoreSettings, tmp_path: Path
) -> None:
    store = await _open(empty, tmp_path)
    known = [*migrations.migrations(), _SECOND]
    await migrations.migrate(store.database, at=samples.START, known=known)
    await store.close()
    with pytest.raises(
        InvalidSettings, match=r"has schema version 2, and this release knows .* 1:"
    ):
        await _open(empty, tmp_path)
    with pytest.raises(InvalidSettings, match="run the release that migrated it, or a newer one"):
        await opening.pending(empty, data_dir=tmp_path)


async def test_a_migration_that_was_changed_after_it_was_applied_is_refused(
    empty: StoreSettings, tmp_path: Path
) -> None:
    store = await _open(empty, tmp_path)
    known = [*migrations.migrations()]
    known[0] = msgspec.structs.replace(known[0], sql=known[0].sql + "\n")
    with pytest.raises(InvalidSettings, match="migration 1 was changed after it was applied"):
        await migrations.pending(store.database, known)
    with pytest.raises(InvalidSettings, match="migration 1 was changed after it was applied"):
        await migrations.migrate(store.database, at=samples.START, known=known)
    await store.close()


def test_the_command_checks_and_applies(empty: StoreSettings, tmp_path: Path) -> None:
    said: list[str] = []
    for check in (True, False, True, False):
        done = command.run(empty, data_dir=tmp_path, check=check, say=said.append)
        assert done == (len(said) > 1)
    assert said == ["pending: 1 registry", "applied: 1 registry", "the schema is up to date",
                    "the schema is up to date"]  # fmt: skip


async def test_sqlite_is_migrated_by_itself(tmp_path: Path) -> None:
    data_dir = tmp_path / "not" / "there" / "yet"
    store = await opening.open_store(SqliteSettings(), data_dir=data_dir, now=lambda: samples.START)
    assert await store.revision() == 0
    await store.close()
    assert (data_dir / "registry.db").exists()


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE audit_events SET principal = 'eve'",
        "UPDATE audit_events SET principal = 'eve' WHERE sequence = 1",
        "DELETE FROM audit_events",
    ],
)
async def test_the_database_itself_refuses_to_change_the_audit_trail(
    store: RegistryStore, another: OpenStore, sql: str
) -> None:
    async with store.transaction() as transaction:
        await transaction.audit(samples.event())
    assert isinstance(store, SqlRegistryStore)
    with pytest.raises(Exception, match="audit events are only ever added"):
        async with store.database.writing() as connection:
            await connection.run_script([sql])
    again = await another()
    page = await again.audit_trail(AuditQuery(tenant=samples.TENANT))
    assert [event.principal for event in page.items] == ["ann"]
