"""SQLite in one file, used by any number of processes of one machine.

Each connection has a thread of its own, because a statement blocks while it runs or waits for
another process. One connection writes; the others read, beside it and each other (WAL).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import queue
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from headrace.adapters.sql.database import (
    GONE_S,
    NOW_AND_THEN_S,
    Connection,
    Dialect,
    Parameters,
    Row,
    Unusable,
    check,
    unavailable,
)
from headrace.adapters.sql.sqlite_changes import LEAD, Change, Changes
from headrace.adapters.sql.sqlite_errors import translating
from headrace.adapters.sql.sqlite_news import News
from headrace.adapters.sql.statements import Statement, statements
from headrace.domain.errors import StoreUnavailable

T = TypeVar("T")

_logger = logging.getLogger(__name__)
_READERS: Final = 4
_POLL_S: Final = 0.2  # how often a watch looks for the changes of other processes
_NEWS_S: Final = 0.05  # how often the file is asked whether there are any


class SqliteDatabase:
    """See Database."""

    dialect: Dialect = "sqlite"

    def __init__(self, file: Path, *, busy_timeout_s: float) -> None:
        self._file = file
        self._timeout_s = busy_timeout_s
        self._writer = _Thread(file, "write", timeout_s=busy_timeout_s)
        self._turn = asyncio.Lock()  # of this process' writers; others are held off by the file
        self._waiting = 0  # for that turn
        self._changes: list[Change] = []  # that wait for it; the first one takes all along
        self._readers = [
            _Thread(file, f"read-{n}", timeout_s=busy_timeout_s) for n in range(_READERS)
        ]
        self._free = asyncio.Semaphore(_READERS)
        self._watches: set[asyncio.Event] = set()
        self._kept = 0  # changes of this process
        self._closed = False

    async def fetch(self, statement: Statement, parameters: Parameters) -> Sequence[Row]:
        """See Database.fetch."""
        check(parameters)
        reader = await self._take_reader()
        try:
            return await reader.do(_fetch, statement, parameters)
        finally:
            self._give_back(reader)

    @contextlib.asynccontextmanager
    async def reading(self) -> AsyncIterator[Connection]:
        """See Database.reading."""
        async with self._reader() as reader, _transaction(reader, "BEGIN", self) as connection:
            yield connection

    @contextlib.asynccontextmanager
    async def writing(self) -> AsyncIterator[Connection]:
        """See Database.writing."""
        async with self._turns(), _transaction(self._writer, "BEGIN IMMEDIATE", self) as connection:
            yield connection

    async def change(self, work: Callable[[Connection], Coroutine[Any, Any, T]]) -> T:
        """See Database.change. The first that waits for the turn takes along what comes behind it.

        So changes that come together cost one visit to the thread, and one sync of the disk.
        """
        loop = asyncio.get_running_loop()
        change, until = Change(work, loop.create_future()), loop.time() + self._timeout_s
        self._changes.append(change)
        try:
            answer: Any = LEAD
            if self._changes[0] is not change:
                answer = await change.future
            if answer is LEAD:
                change.future = loop.create_future()
                async with self._turns(until - loop.time()):  # it may have waited in the line
                    self._begin_changes()
                    answer = await change.future
        finally:
            if not change.begun:
                self._give_up(change)
        self.note_kept()
        if change.announces:
            self.wake()
        return answer  # type: ignore[no-any-return]

    def _give_up(self, change: Change) -> None:
        """Leave the line; whoever is first then takes the others along."""
        led = self._changes[0] is change
        self._changes.remove(change)
        if led and self._changes and not self._changes[0].future.done():
            self._changes[0].future.set_result(LEAD)

    def _begin_changes(self) -> None:
        self._writer.change(self._changes)
        for each in self._changes:
            each.begun = True
        self._changes = []

    @contextlib.asynccontextmanager
    async def migrating(self) -> AsyncIterator[Connection]:
        """See Database.migrating."""
        await self._create()
        async with self._turns(), _transaction(self._writer, "BEGIN EXCLUSIVE", self) as connection:
            yield connection

    async def wakes(self) -> AsyncIterator[None]:
        """See RegistryStore.watch."""
        clock = asyncio.get_running_loop().time
        changed = asyncio.Event()
        self._watches.add(changed)
        try:
            seen = await self._revision()
            while not self._closed:
                yielded = clock()
                yield
                while not self._closed:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(_POLL_S):
                            await changed.wait()
                    changed.clear()
                    present = await self._revision()
                    patience_s = GONE_S if present is None else NOW_AND_THEN_S
                    if present not in {seen, None} or clock() - yielded >= patience_s:
                        seen = present
                        break
        finally:
            self._watches.discard(changed)

    async def news(self) -> AsyncIterator[None]:
        """See Database.news."""
        news, kept = News(self._file), self._kept
        while not self._closed:
            await asyncio.sleep(_NEWS_S)
            if news.has_come() and kept == self._kept:  # else it may be of this process itself
                yield
            kept = self._kept

    async def close(self) -> None:
        """See Database.close."""
        self._closed = True
        self.wake()
        for thread in (self._writer, *self._readers):
            await thread.close()

    def note_kept(self) -> None:
        """Something was changed here: whoever listens for others' changes does not mean that."""
        self._kept += 1

    def wake(self) -> None:
        """Let this process' watches look at once."""
        for changed in self._watches:
            changed.set()

    async def _revision(self) -> int | None:
        try:
            return int((await self.fetch(statements()["revision"], {}))[0][0])
        except StoreUnavailable:
            return None

    async def _create(self) -> None:
        """Make the file, readable by its owner alone, since it holds hashes of keys."""
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(self._file, os.O_CREAT | os.O_RDWR, 0o600))
        except OSError as error:
            reason = f"the registry's database {self._file} cannot be opened: {error.strerror}"
            raise Unusable(reason) from error
        await self._writer.do(_use_wal, self._timeout_s)

    @contextlib.asynccontextmanager
    async def _reader(self) -> AsyncIterator[_Thread]:
        reader = await self._take_reader()
        try:
            yield reader
        finally:
            self._give_back(reader)

    async def _take_reader(self) -> _Thread:
        if self._free.locked():
            await _within(self._timeout_s, self._free.acquire())
        else:  # at once: a timeout would cost more than the rest
            await self._free.acquire()
        return self._readers.pop()

    def _give_back(self, reader: _Thread) -> None:
        """At once, even if cancelled: what is asked of a thread happens in order."""
        self._readers.append(reader)
        self._free.release()

    @contextlib.asynccontextmanager
    async def _turns(self, timeout_s: float | None = None) -> AsyncIterator[None]:
        if self._turn.locked() or self._waiting:
            self._waiting += 1
            try:
                wait_s = self._timeout_s if timeout_s is None else timeout_s
                await _within(wait_s, self._turn.acquire())
            finally:
                self._waiting -= 1
        else:  # as above
            await self._turn.acquire()
        try:
            yield
        finally:
            self._turn.release()


class _SqliteConnection:
    """See Connection."""

    def __init__(self, thread: _Thread, database: SqliteDatabase) -> None:
        self._thread = thread
        self._database = database
        self._ended = False

    async def fetch(self, statement: Statement, parameters: Parameters) -> Sequence[Row]:
        """See Connection.fetch."""
        self.require_open()
        return await self._thread.do(_fetch, statement, check(parameters))

    async def run_many(self, statement: Statement, parameters: Sequence[Parameters]) -> None:
        """See Connection.run_many."""
        self.require_open()
        await self._thread.do(_run_many, statement, [check(each) for each in parameters])

    async def run_script(self, statements: Sequence[str]) -> None:
        """See Connection.run_script."""
        self.require_open()
        for statement in statements:
            await self._thread.do(sqlite3.Connection.execute, statement)

    async def has_table(self, name: str) -> bool:
        """See Connection.has_table."""
        self.require_open()
        return bool(await self._thread.do(_has_table, name))

    async def commit(self, *, announce: bool) -> None:
        """See Connection.commit."""
        self.require_open()
        self._ended = True
        await self._thread.do(_commit)
        self._database.note_kept()
        if announce:
            self._database.wake()

    def require_open(self) -> None:
        """A statement after the end would be a transaction of its own."""
        if self._ended:
            msg = "the transaction has ended"
            raise RuntimeError(msg)

    def end(self) -> None:
        """Roll back what was not committed, after what is still under way."""
        self._ended = True
        self._thread.roll_back()


class _Thread:
    """A connection, opened when it is first needed, and the thread that alone touches it."""

    def __init__(self, file: Path, name: str, *, timeout_s: float) -> None:
        self._file = file
        self._timeout_s = timeout_s
        self._name = name
        self._jobs: queue.SimpleQueue[Callable[[], bool]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._connection: sqlite3.Connection | None = None
        self._closed = False

    async def do(self, work: Callable[..., T], *arguments: Any) -> T:
        """Run `work(connection, *arguments)` after what was asked before."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._begin()
        self._jobs.put(_Job(future, lambda: work(self._open(), *arguments)))
        return await future

    def change(self, changes: Sequence[Change]) -> None:
        """Run changes in one transaction, after what was asked before; their futures tell."""
        self._begin()
        self._jobs.put(Changes(changes, self._open, self._roll_back))

    def _begin(self) -> None:
        if self._closed:
            raise unavailable("the registry's store is closed")
        if self._thread is None:
            name = f"registry-{self._name}"
            self._thread = threading.Thread(target=self._run, name=name, daemon=True)
            self._thread.start()

    def roll_back(self) -> None:
        """End a transaction, if there is one, after what was asked before."""
        self._jobs.put(self._roll_back)

    async def close(self) -> None:
        """End the thread and the connection."""
        if self._closed or self._thread is None:
            self._closed = True
            return
        self._closed = True
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._jobs.put(_Job(future, self._shut, last=True))
        await future

    def _run(self) -> None:
        while self._jobs.get()():
            pass

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            # mode=rw: a file that was deleted under us must not come back empty
            connection = sqlite3.connect(
                f"{self._file.absolute().as_uri()}?mode=rw",
                uri=True,
                timeout=self._timeout_s,
                isolation_level=None,
                cached_statements=256,
            )
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute("PRAGMA synchronous = FULL")  # what was answered is on the disk
            if self._name != "write":
                connection.execute("PRAGMA query_only = ON")
            self._connection = connection
        return self._connection

    def _roll_back(self) -> bool:
        if self._connection is not None and self._connection.in_transaction:
            try:
                self._connection.execute("ROLLBACK")
            except sqlite3.Error as error:
                # the next one begins on a connection of its own
                _logger.warning("the registry's database: rolling back: %s", error)
                self._shut()
        return True

    def _shut(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class _Job:
    """Something to do on a thread; answers whether there is more to come."""

    def __init__(
        self, future: asyncio.Future[T], work: Callable[[], T], *, last: bool = False
    ) -> None:
        self._future: asyncio.Future[Any] = future
        self._loop = future.get_loop()
        self._work = work
        self._last = last

    def __call__(self) -> bool:
        """Run it."""
        result: object = None
        error: Exception | None = None
        try:
            with translating():
                result = self._work()
        except Exception as raised:  # noqa: BLE001 - handed to the one who waits
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop is closed: the process is ending
            self._loop.call_soon_threadsafe(self._finish, result, error)
        return not self._last

    def _finish(self, result: object, error: Exception | None) -> None:
        if self._future.done():  # nobody waits any more
            return
        if error is not None:
            self._future.set_exception(error)
        else:
            self._future.set_result(result)


@contextlib.asynccontextmanager
async def _transaction(
    thread: _Thread, begin: str, database: SqliteDatabase
) -> AsyncIterator[_SqliteConnection]:
    connection = _SqliteConnection(thread, database)
    try:
        await thread.do(sqlite3.Connection.execute, begin)
        yield connection
    finally:
        connection.end()


async def _within(timeout_s: float, waiting: Any) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await waiting
    except TimeoutError as error:
        raise unavailable() from error


def _fetch(
    connection: sqlite3.Connection, statement: Statement, parameters: Parameters
) -> Sequence[Row]:
    return connection.execute(statement.sql, parameters).fetchall()


def _run_many(
    connection: sqlite3.Connection, statement: Statement, parameters: Sequence[Parameters]
) -> None:
    connection.executemany(statement.sql, parameters)


def _has_table(connection: sqlite3.Connection, name: str) -> bool:
    sql = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?"
    return connection.execute(sql, (name,)).fetchone() is not None


def _commit(connection: sqlite3.Connection) -> None:
    connection.execute("COMMIT")


def _use_wal(connection: sqlite3.Connection, timeout_s: float) -> None:
    """Let reads go on beside a write. The file remembers it."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL").fetchone()
        except sqlite3.OperationalError as error:
            # SQLite does not wait here by itself when two processes switch at once
            busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
            if not busy or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return
