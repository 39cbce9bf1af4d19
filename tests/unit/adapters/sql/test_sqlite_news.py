from __future__ import annotations

import asyncio
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from headrace.adapters.sql import sqlite
from headrace.adapters.sql.database import Connection
from headrace.adapters.sql.sqlite import SqliteDatabase
from headrace.adapters.sql.sqlite_news import News
from headrace.adapters.sql.statements import statement

_ADD = statement("add", "INSERT INTO notes (id) VALUES (:id) RETURNING id")


async def _add(connection: Connection) -> None:
    await connection.fetch(_ADD, {"id": 1})
    await connection.commit(announce=False)


def _connected(file: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(file, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL").fetchone()
    connection.execute("CREATE TABLE IF NOT EXISTS notes (id INTEGER)")
    return connection


def _write(connection: sqlite3.Connection, file: Path) -> None:
    """Write at another time than before, however coarse the file system's clock is."""
    connection.execute("INSERT INTO notes VALUES (1)")
    log = f"{file}-wal"
    found = os.stat(log)  # noqa: PTH116
    os.utime(log, ns=(found.st_atime_ns, found.st_mtime_ns + 1_000_000))


def test_a_change_is_news_once(tmp_path: Path) -> None:
    file = tmp_path / "registry.db"
    with closing(_connected(file)) as other:
        news = News(file)
        assert not news.has_come()
        _write(other, file)
        assert news.has_come()
        assert not news.has_come()


def test_reading_is_no_news(tmp_path: Path) -> None:
    file = tmp_path / "registry.db"
    with closing(_connected(file)) as other:
        news = News(file)
        assert other.execute("SELECT COUNT(*) FROM notes").fetchone() == (0,)
        assert not news.has_come()


def test_a_change_that_does_not_make_the_log_longer_is_news(tmp_path: Path) -> None:
    file = tmp_path / "registry.db"
    with closing(_connected(file)) as other:
        for _ in range(8):
            _write(other, file)
        other.execute("PRAGMA wal_checkpoint(RESTART)")  # the log is written from its start
        news, size = News(file), (tmp_path / "registry.db-wal").stat().st_size
        _write(other, file)
        assert (tmp_path / "registry.db-wal").stat().st_size == size
        assert news.has_come()


def test_a_file_that_nobody_has_opened_yet_may_come(tmp_path: Path) -> None:
    file = tmp_path / "registry.db"
    news = News(file)
    assert not news.has_come()
    with closing(_connected(file)):
        assert news.has_come()


async def test_whoever_listens_hears_of_what_another_process_wrote(tmp_path: Path) -> None:
    file = tmp_path / "registry.db"
    with closing(_connected(file)) as other:
        database = SqliteDatabase(file, busy_timeout_s=5.0)
        heard = asyncio.ensure_future(anext(aiter(database.news())))
        await asyncio.sleep(0)
        assert not heard.done()
        _write(other, file)
        async with asyncio.timeout(20):
            await heard
        await database.close()


async def test_what_a_process_changes_itself_is_no_news_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "_NEWS_S", 0.5)  # much longer than a change takes
    looks: list[bool] = []

    def has_come(_: News) -> bool:
        looks.append(True)
        return True

    monkeypatch.setattr(News, "has_come", has_come)
    file = tmp_path / "registry.db"
    with closing(_connected(file)):
        database = SqliteDatabase(file, busy_timeout_s=5.0)
        heard = asyncio.ensure_future(anext(aiter(database.news())))
        while not looks:
            await database.change(_add)
        while len(looks) == 1 and not heard.done():
            async with database.writing() as connection:
                await _add(connection)
        assert not heard.done()
        async with asyncio.timeout(20):  # of what may be another's
            await heard
        await database.close()


async def test_nobody_listens_to_a_database_that_is_closed(tmp_path: Path) -> None:
    database = SqliteDatabase(tmp_path / "registry.db", busy_timeout_s=5.0)
    await database.close()
    assert [news async for news in database.news()] == []
