"""PostgreSQL, through asyncpg.

Every wait is bounded, and a connection that was left in the middle of something is not used
again: a server that hangs or restarts costs its callers one timeout, and nobody a restart.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from typing import Any, Final, TypeVar

import asyncpg

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
    uncertain,
)
from headrace.adapters.sql.settings import PostgresSettings
from headrace.adapters.sql.statements import Statement
from headrace.domain.errors import (
    AlreadyExists,
    StorageFull,
    StoreUnavailable,
)

T = TypeVar("T")

_logger = logging.getLogger(__name__)
_CHANNEL: Final = "headrace_registry"
_MIGRATION_LOCK: Final = 0x68656164  # any number, the same in every process
_MIGRATION_S: Final = 600  # a migration may rewrite a table; another waits for it
_CLOSE_S: Final = 2.0
#: SQLSTATE classes and codes of a server that cannot answer now.
_UNAVAILABLE: Final = (
    "08",  # the connection failed
    "25006",  # read-only: a standby
    "25P03",  # too long idle in a transaction
    "40",  # rolled back: deadlock, serialization
    "53",  # no memory, no connections left
    "55P03",  # a lock was not given in time
    "57",  # shutting down, starting, or a statement that took too long
    "58",  # its disk
    "XX",  # its own mistake, or a corrupt file
    "0A000",  # a plan that a migration in another process has outdated
)
_DISK_FULL: Final = "53100"
_UNIQUE: Final = "23505"
#: Settings that do not fit the server, as far as it says so.
_REFUSED: Final = ("28", "3D000", "42501")


class PostgresDatabase:
    """See Database."""

    dialect: Dialect = "postgres"

    def __init__(self, settings: PostgresSettings) -> None:
        self._settings = settings
        self._timeout_s = settings.command_timeout_s
        self._pool: Any = None
        self._opening = asyncio.Lock()
        self._turn = asyncio.Lock()  # so that writers in wait do not hold the readers' connections
        self._watches: set[asyncio.Event] = set()
        self._closed = False

    async def fetch(self, statement: Statement, parameters: Parameters) -> Sequence[Row]:
        """See Database.fetch."""
        async with contextlib.AsyncExitStack() as stack:
            with _translating():
                async with asyncio.timeout(self._timeout_s):
                    raw = await stack.enter_async_context(self._connection())
                    return await _fetch(raw, statement, parameters)

    @contextlib.asynccontextmanager
    async def reading(self) -> AsyncIterator[Connection]:
        """See Database.reading."""
        async with contextlib.AsyncExitStack() as stack:
            with _translating():
                async with asyncio.timeout(self._timeout_s):
                    raw = await stack.enter_async_context(self._connection())
                    await raw.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            yield await stack.enter_async_context(_transaction(raw, self._timeout_s))

    @contextlib.asynccontextmanager
    async def writing(self) -> AsyncIterator[Connection]:
        """See Database.writing."""
        async with self._writing(self._timeout_s) as connection:
            yield connection

    async def change(self, work: Callable[[Connection], Coroutine[Any, Any, T]]) -> T:
        """See Database.change."""
        async with self._writing(self._timeout_s) as connection:
            return await work(connection)

    @contextlib.asynccontextmanager
    async def migrating(self) -> AsyncIterator[Connection]:
        """See Database.migrating."""
        async with self._writing(_MIGRATION_S) as connection:
            await connection.run_script(
                [
                    f"SET LOCAL statement_timeout = '{_MIGRATION_S}s'",
                    f"SET LOCAL lock_timeout = '{_MIGRATION_S}s'",
                    f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})",
                ]
            )
            yield connection

    async def wakes(self) -> AsyncIterator[None]:
        """See RegistryStore.watch."""
        changed = asyncio.Event()
        self._watches.add(changed)
        raw: Any = None
        heard = False
        try:
            while not self._closed:
                changed.clear()  # before the yield: what comes during it is not missed
                raw = await self._listening(raw, changed, heard=heard)
                yield
                heard = False
                patience_s = GONE_S if raw is None else NOW_AND_THEN_S
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(patience_s):
                        heard = await changed.wait()
        finally:
            self._watches.discard(changed)
            if raw is not None:
                raw.terminate()

    async def close(self) -> None:
        """See Database.close."""
        self._closed = True
        for changed in self._watches:
            changed.set()
        pool, self._pool = self._pool, None
        if pool is not None:
            try:
                async with asyncio.timeout(_CLOSE_S):
                    await pool.close()
            except (TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                pool.terminate()

    async def news(self) -> AsyncIterator[None]:
        """See Database.news. None comes: it would cost the server a message for each change."""
        await asyncio.get_running_loop().create_future()
        yield

    async def _listening(self, raw: Any, changed: asyncio.Event, *, heard: bool) -> Any:
        """A connection that sets `changed`: `raw` where it is alive, else a new one, or None."""
        try:
            with _translating():
                async with asyncio.timeout(self._timeout_s):
                    if raw is not None and not raw.is_closed() and not heard:
                        await raw.execute("SELECT 1")  # what is cut off hears nothing, for ever
                if raw is not None and not raw.is_closed():
                    return raw
                raw = await asyncpg.connect(self._settings.dsn, **self._arguments())
                raw.add_termination_listener(lambda _: changed.set())
                await raw.add_listener(_CHANNEL, lambda *_: changed.set())
                return raw
        except StoreUnavailable:
            if raw is not None:
                raw.terminate()
            return None

    def _arguments(self) -> dict[str, Any]:
        milliseconds = str(round(self._timeout_s * 1000))
        return {
            "timeout": self._settings.connect_timeout_s,
            "command_timeout": self._timeout_s,
            "server_settings": {
                "application_name": "headrace",
                # the server's own bounds hold where this process is stopped or cut off
                "statement_timeout": milliseconds,
                "lock_timeout": milliseconds,
                "idle_in_transaction_session_timeout": milliseconds,
                "jit": "off",  # no statement here is long enough to be worth compiling
            },
        }

    async def _open_pool(self) -> Any:
        if self._closed:
            raise unavailable("the registry's store is closed")
        async with self._opening:
            if self._pool is None:
                self._pool = await asyncpg.create_pool(
                    self._settings.dsn,
                    min_size=0,
                    max_size=self._settings.pool_size,
                    reset=_keep_session,
                    **self._arguments(),
                )
        return self._pool

    @contextlib.asynccontextmanager
    async def _writing(self, timeout_s: float) -> AsyncIterator[Connection]:
        async with contextlib.AsyncExitStack() as stack:
            with _translating():
                async with asyncio.timeout(self._timeout_s):  # all of it, the wait included
                    await self._turn.acquire()
                    stack.callback(self._turn.release)
                    raw = await stack.enter_async_context(self._connection())
                    # what follows the wait for the lock sees what was committed meanwhile
                    await raw.execute("BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE")
            yield await stack.enter_async_context(_transaction(raw, timeout_s))

    @contextlib.asynccontextmanager
    async def _connection(self) -> AsyncIterator[Any]:
        pool = self._pool if self._pool is not None else await self._open_pool()
        raw = await pool.acquire()
        try:
            yield raw
        except (asyncio.CancelledError, StoreUnavailable, OSError):
            # else giving it back would wait for what it is in the middle of
            with contextlib.suppress(asyncpg.InterfaceError):  # it has gone by itself
                raw.terminate()
            raise
        finally:
            await pool.release(raw)


class _PostgresConnection:
    """See Connection."""

    def __init__(self, raw: Any, timeout_s: float) -> None:
        self._raw = raw
        self._timeout_s = timeout_s
        self.ended = False

    async def fetch(self, statement: Statement, parameters: Parameters) -> Sequence[Row]:
        """See Connection.fetch."""
        self._require_open()
        return await _fetch(self._raw, statement, parameters)

    async def run_many(self, statement: Statement, parameters: Sequence[Parameters]) -> None:
        """See Connection.run_many."""
        self._require_open()
        rows = [_in_order(statement, each) for each in parameters]
        with _translating():
            await self._raw.executemany(statement.numbered, rows)

    async def run_script(self, statements: Sequence[str]) -> None:
        """See Connection.run_script."""
        self._require_open()
        for statement in statements:
            with _translating():
                await self._raw.execute(statement, timeout=self._timeout_s)

    async def has_table(self, name: str) -> bool:
        """See Connection.has_table."""
        self._require_open()
        with _translating():
            return bool(await self._raw.fetchval("SELECT to_regclass($1) IS NOT NULL", name))

    async def commit(self, *, announce: bool) -> None:
        """See Connection.commit."""
        self._require_open()
        if announce:
            await self.run_script([f"NOTIFY {_CHANNEL}"])
        self.ended = True
        try:
            with _translating():
                await self._raw.execute("COMMIT")
        except StoreUnavailable as error:
            raise uncertain() from error.__cause__

    def _require_open(self) -> None:
        """A statement after the end would be a transaction of its own."""
        if self.ended:
            msg = "the transaction has ended"
            raise RuntimeError(msg)


@contextlib.asynccontextmanager
async def _transaction(raw: Any, timeout_s: float) -> AsyncIterator[_PostgresConnection]:
    """A transaction that has begun."""
    connection = _PostgresConnection(raw, timeout_s)
    try:
        yield connection
    except (asyncio.CancelledError, StoreUnavailable):
        connection.ended = True  # the connection is abandoned, and the server rolls back
        raise
    finally:
        if not connection.ended:
            connection.ended = True
            with _translating():
                await raw.execute("ROLLBACK")


async def _fetch(raw: Any, statement: Statement, parameters: Parameters) -> Sequence[Row]:
    values = _in_order(statement, parameters)
    with _translating():
        rows: Sequence[Row] = await raw.fetch(statement.numbered, *values)
        return rows


def _in_order(statement: Statement, parameters: Parameters) -> list[Any]:
    check(parameters)
    return [parameters[name] for name in statement.parameters]


async def _keep_session(_: Any) -> None:
    """Nothing here changes a session's state, so there is nothing to ask the server to undo."""


@contextlib.contextmanager
def _translating() -> Iterator[None]:
    try:
        yield
    except asyncpg.PostgresError as error:
        state = str(error.sqlstate or "")
        if state == _UNIQUE:
            raise AlreadyExists("an object with this id exists already") from error
        if state == _DISK_FULL:
            raise StorageFull("there is no room left for the registry's database") from error
        if state.startswith(_REFUSED):
            raise Unusable(f"database.dsn: the server refuses: {error}") from error
        if state.startswith(_UNAVAILABLE):
            _logger.warning("the registry's database: %s: %s", type(error).__name__, error)
            raise unavailable() from error
        raise
    except asyncpg.ClientConfigurationError as error:
        # its text may hold parts of the address, and with them a password
        reason = "database.dsn: expected postgresql://user:password@host/database"
        raise Unusable(reason) from error
    except asyncpg.DataError:  # an InterfaceError by descent, and no matter of connections
        raise
    except (OSError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
        # TimeoutError is an OSError
        _logger.warning("the registry's database: %s: %s", type(error).__name__, error)
        raise unavailable() from error
