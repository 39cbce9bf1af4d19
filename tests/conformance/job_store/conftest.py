"""A store with nothing in it for each test: the fake, on SQLite, and on PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Protocol

import pytest

from headrace.adapters.sql.idempotency import SqlIdempotencyStore
from headrace.adapters.sql.job_store import SqlJobStore
from headrace.adapters.sql.opening import open_store
from headrace.adapters.sql.settings import StoreSettings
from headrace.adapters.sql.statements import statement
from headrace.ports.idempotency import IdempotencyStore
from headrace.ports.job_store import JobStore
from tests.support.databases import fresh_database
from tests.support.idempotency import MemoryIdempotencyStore
from tests.support.memory_job_store import MemoryJobStore

_START: Final = datetime(2026, 1, 1, tzinfo=UTC)
_START_S: Final = 1_800_000_000.25
#: More than a database's clock is coarse: SQLite's counts milliseconds.
_MARGIN_S: Final = 0.01
_TIMES: Final = {
    "batch_chunks": ("until_us", "queued_us", "not_before_us", "since_us"),
    "batch_jobs": (
        "created_us", "until_us", "since_us", "expires_at",
        "in_progress_at", "finalizing_at", "cancelling_at",
    ),
}  # fmt: skip


class Stage(Protocol):
    """A store, and what a test does around it."""

    store: JobStore
    keys: IdempotencyStore  # of the same database

    async def another(self) -> JobStore:
        """A store on the same data, as of another process."""
        ...

    async def lapse(self, seconds: float) -> None:
        """Let at least so much time pass by the store's clock."""
        ...

    async def put_back(self, seconds: int) -> None:
        """Put the store's clock back."""
        ...

    async def now(self) -> float:
        """The store's time, seconds since 1970."""
        ...


class _Memory:
    def __init__(self) -> None:
        self._at = _START_S
        keys = MemoryIdempotencyStore(clock=self._now)
        self.keys: IdempotencyStore = keys
        self._first = MemoryJobStore(now=self._now, keys=keys)
        self.store: JobStore = self._first

    async def another(self) -> JobStore:
        return MemoryJobStore(now=self._now, beside=self._first)

    async def lapse(self, seconds: float) -> None:
        self._at += seconds

    async def put_back(self, seconds: int) -> None:
        self._at -= seconds

    async def now(self) -> float:
        return self._at

    def _now(self) -> float:
        return self._at


class _Sql:
    def __init__(self, settings: StoreSettings, folder: Path, opened: AsyncExitStack) -> None:
        self._settings = settings
        self._folder = folder
        self._opened = opened

    async def open(self) -> _Sql:
        registry = await open_store(self._settings, data_dir=self._folder, now=lambda: _START)
        self._opened.push_async_callback(registry.close)
        self.store: JobStore = SqlJobStore(registry.database)
        self.keys: IdempotencyStore = SqlIdempotencyStore(registry.database)
        self._database = registry.database
        return self

    async def another(self) -> JobStore:
        return (await _Sql(self._settings, self._folder, self._opened).open()).store

    async def lapse(self, seconds: float) -> None:
        # nothing to poll for: a database's clock goes at its own pace, and tests wait little of it
        await asyncio.sleep(seconds + _MARGIN_S)

    async def put_back(self, seconds: int) -> None:
        # a database's clock cannot be turned: what it wrote comes from so much later instead
        async with self._database.writing() as connection:
            for table, columns in _TIMES.items():
                moved = ", ".join(
                    f"{column} = CASE WHEN {column} = 0 THEN 0 ELSE {column} + :{column[-2:]} END"
                    for column in columns
                )
                change = statement("put_back", f"UPDATE {table} SET {moved} RETURNING 1")  # noqa: S608
                by: dict[str, int] = {"us": seconds * 1_000_000, "at": seconds}
                given = {name: by[name] for name in change.parameters}
                await connection.fetch(change, given)
            await connection.commit(announce=False)

    async def now(self) -> float:
        return datetime.now(UTC).timestamp()  # the database is on this machine


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def settings(request: pytest.FixtureRequest) -> StoreSettings | None:
    """A database that nothing is in yet; None is for the fake, which needs none."""
    return None if request.param == "memory" else fresh_database(request.param, request)


@pytest.fixture
async def stage(settings: StoreSettings | None, tmp_path: Path) -> AsyncIterator[Stage]:
    """A store with nothing in it."""
    async with AsyncExitStack() as opened:
        yield _Memory() if settings is None else await _Sql(settings, tmp_path, opened).open()


@pytest.fixture
def store(stage: Stage) -> JobStore:
    return stage.store
