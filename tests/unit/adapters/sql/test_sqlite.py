"""What SQLite alone does: its file, its locks, its threads."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from headrace.adapters.sql.opening import open_store
from headrace.adapters.sql.registry_store import SqlRegistryStore
from headrace.adapters.sql.settings import SqliteSettings
from headrace.domain.catalog import Model
from headrace.domain.errors import InvalidSettings, StorageFull, StoreUnavailable

_START = datetime(2026, 1, 1, tzinfo=UTC)


async def _open(data_dir: Path, *, path: str = "", busy_timeout_s: float = 5.0) -> SqlRegistryStore:
    settings = SqliteSettings(path=path, busy_timeout_s=busy_timeout_s)
    store = await open_store(settings, data_dir=data_dir, now=lambda: _START)
    assert isinstance(store, SqlRegistryStore)
    return store


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqlRegistryStore]:
    opened = await _open(tmp_path, busy_timeout_s=0.05)
    yield opened
    await opened.close()


def _model(name: str = "bert", description: str = "") -> Model:
    return Model(tenant="acme", id=f"mdl_{name}", name=name, description=description,
                 created_at=_START, updated_at=_START)  # fmt: skip


async def _put(store: SqlRegistryStore, model: Model) -> None:
    async with store.transaction() as transaction:
        await transaction.put(model)


async def test_the_file_is_its_owners_alone(store: SqlRegistryStore, tmp_path: Path) -> None:
    await _put(store, _model())
    files = list(os.scandir(tmp_path))
    assert len(files) == 3  # with the log and its index
    for file in files:
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file.name


async def test_reads_go_on_beside_writes_of_other_processes(
    store: SqlRegistryStore, tmp_path: Path
) -> None:
    other = sqlite3.connect(tmp_path / "registry.db", isolation_level=None)
    assert other.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    other.execute("BEGIN EXCLUSIVE")
    assert await store.get(Model, ("acme", "bert")) is None
    other.close()


async def test_a_file_that_another_process_keeps_locked_is_unavailable_and_comes_back(
    store: SqlRegistryStore, tmp_path: Path
) -> None:
    other = sqlite3.connect(tmp_path / "registry.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable) as raised:
        await _put(store, _model())
    assert raised.value.retry_after_s == 1
    assert isinstance(raised.value.__cause__, sqlite3.OperationalError)
    assert await store.get(Model, ("acme", "bert")) is None  # reading works all the time
    other.execute("ROLLBACK")
    other.close()
    await _put(store, _model())


async def test_waiting_for_another_process_does_not_hold_the_event_loop(tmp_path: Path) -> None:
    store = await _open(tmp_path, busy_timeout_s=30)
    other = sqlite3.connect(tmp_path / "registry.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    writing = asyncio.create_task(_put(store, _model()))
    for _ in range(10):
        assert await store.get(Model, ("acme", "bert")) is None
    assert not writing.done()
    other.execute("ROLLBACK")
    other.close()
    await writing
    await store.close()


async def test_writers_of_one_process_wait_no_longer_than_the_timeout(
    store: SqlRegistryStore,
) -> None:
    async with store.transaction():
        with pytest.raises(StoreUnavailable):
            await _put(store, _model())


async def test_no_room_is_told_as_such_and_changes_nothing(store: SqlRegistryStore) -> None:
    async def write() -> None:
        async with store.transaction() as transaction:
            await transaction.put(_model("small"))
            connection = transaction._connection  # noqa: SLF001 - a full disk, as SQLite sees it
            await connection.run_script(["PRAGMA max_page_count = 1"])
            await transaction.put(_model("large", "x" * 1_000_000))

    with pytest.raises(StorageFull):
        await write()
    assert await store.revision() == 0
    assert await store.get(Model, ("acme", "small")) is None


async def test_a_cancelled_statement_leaves_the_connection_in_order(
    store: SqlRegistryStore,
) -> None:
    for _ in range(20):
        task = asyncio.create_task(_put(store, _model()))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await _put(store, _model("after"))
    assert await store.get(Model, ("acme", "after")) is not None


async def test_readers_cannot_write(store: SqlRegistryStore) -> None:
    with pytest.raises(StoreUnavailable):
        async with store.database.reading() as connection:
            await connection.run_script(["DELETE FROM models"])


async def test_a_file_that_is_no_database_is_a_mistake_in_the_settings(tmp_path: Path) -> None:
    (tmp_path / "registry.db").write_bytes(b"this is a text, and a long one at that" * 100)
    with pytest.raises(InvalidSettings, match="is not a SQLite file"):
        await _open(tmp_path)


async def test_a_folder_that_cannot_be_made_is_a_mistake_in_the_settings(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InvalidSettings, match=r"registry.db cannot be opened"):
        await _open(tmp_path / "file")


async def test_a_database_in_memory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match="needs a file"):
        await _open(tmp_path, path=":memory:")


async def test_the_path_can_be_chosen(tmp_path: Path) -> None:
    store = await _open(tmp_path / "unused", path=str(tmp_path / "a b?c#d%20.db"))
    assert await store.revision() == 0
    await store.close()
    assert (tmp_path / "a b?c#d%20.db").exists()
    assert not (tmp_path / "unused").exists()
