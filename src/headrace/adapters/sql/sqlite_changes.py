"""Transactions that run at one go on the writer's thread, several of them in one commit.

Each is a savepoint within one transaction of SQLite's: it fails or gives up by itself. All of them
are told how they ended when the disk has them, or none of them is kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final

from headrace.adapters.sql.database import Connection, Parameters, Row, check
from headrace.adapters.sql.sqlite_errors import translating
from headrace.adapters.sql.statements import Statement

#: How a change ended: with an answer, or with an error.
_Outcome = tuple[Any, Exception | None]
#: What a change that waits is told whose turn it is to begin all that wait.
LEAD: Final = object()
_HAS_TABLE: Final = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?"


class Change:
    """A change that is asked for, and who waits for it."""

    __slots__ = ("announces", "begun", "future", "work")

    def __init__(
        self,
        work: Callable[[Connection], Coroutine[Any, Any, Any]],
        future: asyncio.Future[Any],
    ) -> None:
        self.work = work
        self.future = future
        self.begun = False  # the thread has it
        self.announces = False


class Changes:
    """Changes that are committed together, as something to do on a connection's thread."""

    def __init__(
        self,
        changes: Sequence[Change],
        connect: Callable[[], sqlite3.Connection],
        roll_back: Callable[[], object],
    ) -> None:
        self._changes = changes
        self._connect = connect
        self._roll_back = roll_back
        self._loop = changes[0].future.get_loop()

    def __call__(self) -> bool:
        """Run them; there is more to come."""
        try:
            with translating():
                outcomes = self._run(self._connect())
        except Exception as error:  # noqa: BLE001 - handed to those who wait
            outcomes = [(None, error)] * len(self._changes)
            self._roll_back()
        with contextlib.suppress(RuntimeError):  # the loop is closed: the process is ending
            self._loop.call_soon_threadsafe(self._tell, outcomes)
        return True

    def _run(self, raw: sqlite3.Connection) -> list[_Outcome]:
        raw.execute("BEGIN IMMEDIATE")
        outcomes = [_run_one(raw, change) for change in self._changes]
        _commit(raw)
        return outcomes

    def _tell(self, outcomes: Sequence[_Outcome]) -> None:
        for change, (answer, error) in zip(self._changes, outcomes, strict=True):
            if change.future.done():  # nobody waits any more
                continue
            if error is not None:
                change.future.set_exception(error)
            else:
                change.future.set_result(answer)


class _ChangeConnection:
    """See Connection. Nothing is waited for: it is its thread's."""

    def __init__(self, raw: sqlite3.Connection) -> None:
        self._raw = raw
        self.kept = False
        self.announces = False

    async def fetch(self, statement: Statement, parameters: Parameters) -> Sequence[Row]:
        """See Connection.fetch."""
        self._require_open()
        with translating():
            return _fetch(self._raw, statement, check(parameters))

    async def run_many(self, statement: Statement, parameters: Sequence[Parameters]) -> None:
        """See Connection.run_many."""
        self._require_open()
        with translating():
            self._raw.executemany(statement.sql, [check(each) for each in parameters])

    async def run_script(self, statements: Sequence[str]) -> None:
        """See Connection.run_script."""
        self._require_open()
        with translating():
            for statement in statements:
                self._raw.execute(statement)

    async def has_table(self, name: str) -> bool:
        """See Connection.has_table."""
        self._require_open()
        with translating():
            return self._raw.execute(_HAS_TABLE, (name,)).fetchone() is not None

    async def commit(self, *, announce: bool) -> None:
        """See Connection.commit. It lasts when the others' changes do."""
        self._require_open()
        self.kept = True
        self.announces = announce

    def _require_open(self) -> None:
        """A statement after the end would be another's."""
        if self.kept:
            msg = "the transaction has ended"
            raise RuntimeError(msg)


def _fetch(raw: sqlite3.Connection, statement: Statement, parameters: Parameters) -> Sequence[Row]:
    return raw.execute(statement.sql, parameters).fetchall()


def _commit(raw: sqlite3.Connection) -> None:
    raw.execute("COMMIT")


def _run_one(raw: sqlite3.Connection, change: Change) -> _Outcome:
    """Run a change and keep it, if it commits. Raises what ends all of them."""
    if change.future.cancelled():  # nobody waits any more
        return None, None
    raw.execute("SAVEPOINT change")
    connection = _ChangeConnection(raw)
    answer, failure = None, None
    try:
        answer = _driven(change.work(connection))
    except Exception as error:
        if not raw.in_transaction:  # so severe that SQLite has given up everything
            raise
        failure = error
    if failure is not None or not connection.kept:
        raw.execute("ROLLBACK TO change")
    else:
        change.announces = connection.announces
    raw.execute("RELEASE change")
    return answer, failure


def _driven(work: Coroutine[Any, Any, Any]) -> Any:
    """What a coroutine answers that waits for nothing."""
    try:
        work.send(None)
    except StopIteration as end:
        return end.value
    work.close()
    msg = "a change waits for something else than its connection"
    raise RuntimeError(msg)
