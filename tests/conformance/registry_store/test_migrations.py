from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import msgspec
import pytest

from headrace.adapters.sql import migrations, opening
from headrace.adapters.sql.idempotency import SqlIdempotencyStore
from headrace.adapters.sql.migrations import Migration
from headrace.adapters.sql.registry_store import SqlRegistryStore
from headrace.adapters.sql.settings import PostgresSettings, SqliteSettings, StoreSettings
from headrace.adapters.sql.statements import statement
from headrace.compose import migrate as command
from headrace.domain.catalog import ApiKey, Entity, Model
from headrace.domain.errors import InvalidSettings
from headrace.domain.idempotency import IdempotencyKey
from headrace.domain.usage import Usage
from headrace.ports.registry_store import AuditQuery, RegistryStore
from tests.conformance.registry_store import samples
from tests.conformance.registry_store.conftest import OpenStore
from tests.support.postgres import Postgres

_KNOWN = list(migrations.migrations())
_NAMES = ["1 registry", "2 idempotency", "3 batch"]
_NEXT = Migration(
    len(_KNOWN) + 1, "more", "CREATE TABLE more (n INTEGER);\nINSERT INTO more VALUES (1);\n"
)
_BROKEN = Migration(
    len(_KNOWN) + 2,
    "broken",
    "CREATE TABLE half (n INTEGER);\nCREATE TABLE half (n INTEGER);\n",
)


@pytest.fixture(params=["sqlite", "postgres"])
def empty(request: pytest.FixtureRequest) -> StoreSettings:
    """A database without a schema."""
    if request.param == "sqlite":
        return SqliteSettings()
    server: Postgres = request.getfixturevalue("postgres")
    return PostgresSettings(dsn=server.dsn(server.create_database()))


async def _open(
    settings: StoreSettings, data_dir: Path, *, known: Sequence[Migration] = _KNOWN
) -> SqlRegistryStore:
    """A store whose database was brought up to the last of `known`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(migrations, "migrations", lambda: tuple(known))
        return await opening.open_store(
            settings, data_dir=data_dir, now=lambda: samples.START, migrate=True
        )


async def test_what_is_pending_is_applied_once(empty: StoreSettings, tmp_path: Path) -> None:
    assert await opening.pending(empty, data_dir=tmp_path) == _NAMES
    assert await opening.pending(empty, data_dir=tmp_path) == _NAMES  # it changed nothing
    when = {"data_dir": tmp_path, "now": lambda: samples.START}
    assert await opening.migrate(empty, **when) == _NAMES  # type: ignore[arg-type]
    assert await opening.migrate(empty, **when) == []  # type: ignore[arg-type]
    assert await opening.pending(empty, data_dir=tmp_path) == []


async def test_of_processes_that_migrate_at_once_one_does_it(
    empty: StoreSettings, tmp_path: Path
) -> None:
    applied = await asyncio.gather(
        *(opening.migrate(empty, data_dir=tmp_path, now=lambda: samples.START) for _ in range(5))
    )
    assert sorted(applied) == [[], [], [], [], _NAMES]


async def test_a_later_migration_keeps_what_is_there(empty: StoreSettings, tmp_path: Path) -> None:
    store = await _open(empty, tmp_path)
    async with store.transaction() as transaction:
        await transaction.put(samples.model())
    known = [*_KNOWN, _NEXT]
    assert await migrations.pending(store.database, known) == [_NEXT]
    assert await migrations.migrate(store.database, at=samples.START, known=known) == [_NEXT]
    assert await store.revision() == 1
    assert (await store.database.fetch(statement("n", "SELECT n FROM more"), {}))[0][0] == 1
    await store.close()


async def test_a_migration_that_fails_leaves_nothing_behind(
    empty: StoreSettings, tmp_path: Path
) -> None:
    store = await _open(empty, tmp_path)
    known = [*_KNOWN, _NEXT, _BROKEN]
    with pytest.raises(Exception, match="half"):
        await migrations.migrate(store.database, at=samples.START, known=known)
    assert await migrations.pending(store.database, known) == [_NEXT, _BROKEN]
    async with store.database.reading() as connection:
        assert not await connection.has_table("more")
        assert not await connection.has_table("half")
    await store.close()


async def test_a_database_that_a_newer_release_migrated_is_refused(
    empty: StoreSettings, tmp_path: Path
) -> None:
    store = await _open(empty, tmp_path)
    known = [*_KNOWN, _NEXT]
    await migrations.migrate(store.database, at=samples.START, known=known)
    await store.close()
    with pytest.raises(
        InvalidSettings,
        match=rf"has schema version {_NEXT.version}, and this release knows .* {len(_KNOWN)}:",
    ):
        await _open(empty, tmp_path)
    with pytest.raises(InvalidSettings, match="run the release that migrated it, or a newer one"):
        await opening.pending(empty, data_dir=tmp_path)


async def test_a_migration_that_was_changed_after_it_was_applied_is_refused(
    empty: StoreSettings, tmp_path: Path
) -> None:
    store = await _open(empty, tmp_path)
    known = [*_KNOWN]
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
        assert done == (said[-len(_NAMES) :] != [f"pending: {name}" for name in _NAMES])
    pending, applied = ([f"{word}: {name}" for name in _NAMES] for word in ("pending", "applied"))
    assert said == [*pending, *applied, *["the schema is up to date"] * 2]


@pytest.fixture
async def of_the_first_release(empty: StoreSettings, tmp_path: Path) -> Sequence[Entity]:
    """What is in a database of which only the first migration was applied."""
    store = await _open(empty, tmp_path, known=_KNOWN[:1])
    async with store.transaction() as transaction:
        # of whichever kind they are
        written = [await transaction.put(cast("Model", entity)) for entity in samples.full()]
        await transaction.audit(samples.event())
    await store.add_usage([(("acme", "Bert-2", "7"), Usage(requests=3))])
    await store.close()
    return written


async def test_a_database_of_the_first_release_keeps_what_is_in_it(
    empty: StoreSettings, tmp_path: Path, of_the_first_release: Sequence[Entity]
) -> None:
    assert await opening.pending(empty, data_dir=tmp_path) == _NAMES[1:]
    assert await opening.pending(empty, data_dir=tmp_path) == _NAMES[1:]  # it changed nothing
    if isinstance(empty, PostgresSettings):
        with pytest.raises(
            InvalidSettings, match=r"lacks migration 2 \(idempotency\), 3 \(batch\)"
        ):
            await opening.open_store(empty, data_dir=tmp_path, now=lambda: samples.START)
    store = await _open(empty, tmp_path)
    assert await opening.pending(empty, data_dir=tmp_path) == []
    for entity in of_the_first_release:
        assert await store.get(cast("type[Model]", type(entity)), entity.key) == entity
    assert await store.revision() == 1
    assert len((await store.audit_trail(AuditQuery(tenant=samples.TENANT))).items) == 1
    assert (await store.usage("acme", "Bert-2"))["7"].requests == 3
    # and what is new is at home in it
    key = next(e for e in of_the_first_release if isinstance(e, ApiKey))
    await store.add_key_usage({key.key: samples.at(1)})
    assert await store.key_usage(key.tenant, [key.id]) == {key.id: samples.at(1)}
    claimed = IdempotencyKey("acme", "ann", "k")
    keys = SqlIdempotencyStore(store.database)
    assert await keys.claim(claimed, request="r", holder="h") is None
    await store.close()


def test_the_command_tells_what_a_database_of_the_first_release_lacks(
    empty: StoreSettings, tmp_path: Path
) -> None:
    said: list[str] = []

    async def first_release() -> None:
        await (await _open(empty, tmp_path, known=_KNOWN[:1])).close()

    asyncio.run(first_release())
    assert not command.run(empty, data_dir=tmp_path, check=True, say=said.append)
    assert said == [f"pending: {name}" for name in _NAMES[1:]]


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
