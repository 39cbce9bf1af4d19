"""Changes that wait for each other are committed together, and fail each by itself."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from headrace.adapters.sql.database import Connection
from headrace.adapters.sql.sqlite import SqliteDatabase
from headrace.adapters.sql.statements import statement
from headrace.domain.errors import AlreadyExists, Conflict, StoreUnavailable

_ADD = statement("add", "INSERT INTO notes (id) VALUES (:id) RETURNING id")
_ALL = statement("all", "SELECT id FROM notes ORDER BY id")
_Change = Callable[[Connection], Coroutine[Any, Any, str]]


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[SqliteDatabase]:
    opened = SqliteDatabase(tmp_path / "registry.db", busy_timeout_s=0.2)
    async with opened.migrating() as connection:
        await connection.run_script(["CREATE TABLE notes (id TEXT PRIMARY KEY)"])
        await connection.commit(announce=False)
    yield opened
    await opened.close()


def _adding(id_: str, *, error: Exception | None = None, commits: bool = True) -> _Change:
    async def add(connection: Connection) -> str:
        rows = await connection.fetch(_ADD, {"id": id_})
        if error is not None:
            raise error
        if commits:
            await connection.commit(announce=False)
        return str(rows[0][0])

    return add


async def _notes(database: SqliteDatabase) -> list[str]:
    return [row[0] for row in await database.fetch(_ALL, {})]


async def test_changes_that_come_together_fail_each_by_itself(database: SqliteDatabase) -> None:
    outcomes = await asyncio.gather(
        database.change(_adding("a")),
        database.change(_adding("b", error=Conflict("no"))),
        database.change(_adding("a")),
        database.change(_adding("c", commits=False)),
        database.change(_adding("d")),
        return_exceptions=True,
    )
    assert outcomes[0] == "a"
    assert isinstance(outcomes[1], Conflict)
    assert isinstance(outcomes[2], AlreadyExists)
    assert list(outcomes[3:]) == ["c", "d"]
    assert await _notes(database) == ["a", "d"]


async def test_what_is_answered_lasts(database: SqliteDatabase, tmp_path: Path) -> None:
    await asyncio.gather(*(database.change(_adding(f"n{n:02}")) for n in range(20)))
    other = sqlite3.connect(tmp_path / "registry.db")
    assert other.execute("SELECT COUNT(*) FROM notes").fetchone() == (20,)
    other.close()


async def test_nothing_is_kept_of_changes_whose_commit_fails(
    database: SqliteDatabase, tmp_path: Path
) -> None:
    await database.change(_adding("a"))
    other = sqlite3.connect(tmp_path / "registry.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    outcomes = await asyncio.gather(
        *(database.change(_adding(id_)) for id_ in "bcd"), return_exceptions=True
    )
    assert all(isinstance(outcome, StoreUnavailable) for outcome in outcomes)
    other.close()
    assert await database.change(_adding("e")) == "e"
    assert await _notes(database) == ["a", "e"]


async def test_a_change_after_its_commit_is_a_mistake(database: SqliteDatabase) -> None:
    async def twice(connection: Connection) -> None:
        await connection.fetch(_ADD, {"id": "a"})
        await connection.commit(announce=False)
        await connection.fetch(_ADD, {"id": "b"})

    with pytest.raises(RuntimeError, match="has ended"):
        await database.change(twice)
    assert await _notes(database) == []


async def test_a_change_that_waits_for_something_else_is_refused(
    database: SqliteDatabase,
) -> None:
    async def sleepy(_: Connection) -> None:
        await asyncio.sleep(0)

    with pytest.raises(RuntimeError, match="waits for something else"):
        await database.change(sleepy)
    assert await database.change(_adding("a")) == "a"


async def test_whoever_gives_up_takes_nobody_along(database: SqliteDatabase) -> None:
    changes = [asyncio.create_task(database.change(_adding(id_))) for id_ in "abcd"]
    await asyncio.sleep(0)
    changes[0].cancel()  # it had the turn, for all of them
    changes[2].cancel()
    assert await changes[1] == "b"
    assert await changes[3] == "d"
    assert {"b", "d"} <= set(await _notes(database))
    assert await database.change(_adding("e")) == "e"


async def test_changes_wait_for_a_transaction_that_is_under_way(database: SqliteDatabase) -> None:
    async with database.writing() as connection:
        await connection.fetch(_ADD, {"id": "a"})
        waiting = [asyncio.create_task(database.change(_adding(id_))) for id_ in "bc"]
        await asyncio.sleep(0.01)
        assert not any(task.done() for task in waiting)
    assert await asyncio.gather(*waiting) == ["b", "c"]
    assert await _notes(database) == ["b", "c"]  # the transaction was not committed


async def test_a_change_whose_turn_does_not_come_changes_nothing(database: SqliteDatabase) -> None:
    async with database.writing() as connection:
        with pytest.raises(StoreUnavailable):
            await database.change(_adding("a"))
        await connection.commit(announce=False)
    assert await database.change(_adding("b")) == "b"
    assert await _notes(database) == ["b"]


async def test_changes_whose_turn_does_not_come_give_up_together(
    database: SqliteDatabase,
) -> None:
    async with database.writing():
        began = asyncio.get_running_loop().time()
        outcomes = await asyncio.gather(
            *(database.change(_adding(id_)) for id_ in "abcdefgh"), return_exceptions=True
        )
        took_s = asyncio.get_running_loop().time() - began
    assert all(isinstance(outcome, StoreUnavailable) for outcome in outcomes)
    assert took_s < 4 * 0.2  # and not one after the other
    assert await database.change(_adding("b")) == "b"


async def test_whoever_gives_up_ahead_of_the_turn_leaves_it_to_the_next(
    database: SqliteDatabase,
) -> None:
    async with database.writing():
        waiting = [asyncio.create_task(database.change(_adding(id_))) for id_ in "abcde"]
        await asyncio.sleep(0.01)
        for which in (0, 1, 3):
            waiting[which].cancel()
        await asyncio.sleep(0)
        waiting[2].cancel()  # which has been told that it is the first one now
    assert await waiting[4] == "e"
    assert await _notes(database) == ["e"]


async def test_a_closed_database_is_unavailable(tmp_path: Path) -> None:
    database = SqliteDatabase(tmp_path / "registry.db", busy_timeout_s=0.2)
    await database.close()
    outcomes = await asyncio.gather(
        *(database.change(_adding(id_)) for id_ in "ab"), return_exceptions=True
    )
    assert all(isinstance(outcome, StoreUnavailable) for outcome in outcomes)
