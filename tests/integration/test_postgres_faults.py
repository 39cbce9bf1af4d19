"""PostgreSQL stopped, restarted and frozen while the registry's store is in use."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from headrace.adapters.sql.opening import open_store
from headrace.adapters.sql.settings import PostgresSettings
from headrace.domain.catalog import Model
from headrace.domain.errors import InvalidSettings, StoreUnavailable
from headrace.domain.usage import Usage
from headrace.ports.registry_store import Query, RegistryStore
from tests.support.postgres import Postgres, running

_START = datetime(2026, 1, 1, tzinfo=UTC)
_RECOVERY_S = 5.0
_TIMEOUT_S = 1.0
_SLACK_S = 1.0  # of a busy machine

Call = Callable[[RegistryStore], Awaitable[Any]]


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    """A server of this file's own, since its tests stop it."""
    with running() as server:
        yield server


@pytest.fixture
def settings(postgres: Postgres) -> Iterator[PostgresSettings]:
    if postgres.process is None:
        postgres.start()
    postgres.resume()
    name = postgres.create_database()
    yield PostgresSettings(
        dsn=postgres.dsn(name),
        pool_size=3,
        connect_timeout_s=_TIMEOUT_S,
        command_timeout_s=_TIMEOUT_S,
    )
    if postgres.process is not None:
        postgres.resume()


@pytest.fixture
async def store(settings: PostgresSettings, tmp_path: Path) -> AsyncIterator[RegistryStore]:
    opened = await open_store(settings, data_dir=tmp_path, now=lambda: _START, migrate=True)
    await _put(opened, "before")
    yield opened
    await opened.close()


def _model(name: str) -> Model:
    return Model(tenant="acme", id=f"mdl_{name}", name=name, created_at=_START, updated_at=_START)


async def _put(store: RegistryStore, name: str) -> int:
    async with store.transaction() as transaction:
        await transaction.put(_model(name))
        return transaction.revision


async def _recovers(store: RegistryStore, *, within_s: float = _RECOVERY_S) -> None:
    deadline = time.monotonic() + within_s
    while True:
        try:
            await _put(store, "after")
        except StoreUnavailable:
            assert time.monotonic() < deadline, f"not back within {within_s} s"
            await asyncio.sleep(0.02)
        else:
            return


async def _until(condition: Callable[[], bool], *, within_s: float = _RECOVERY_S) -> None:
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110 - of any condition, as `eventually` is
            await asyncio.sleep(0.01)


async def _add_usage(store: RegistryStore) -> None:
    await store.add_usage([(("acme", "before", "1"), Usage(requests=1))])


async def _watch_once(store: RegistryStore) -> None:
    async for _ in store.watch():
        return


_CALLS: dict[str, Call] = {
    "get": lambda store: store.get(Model, ("acme", "before")),
    "find": lambda store: store.find(Model, Query(tenant="acme")),
    "changes": lambda store: store.changes(0),
    "everything": lambda store: store.everything(),
    "revision": lambda store: store.revision(),
    "put": lambda store: _put(store, "during"),
    "add usage": _add_usage,
}


async def test_a_server_that_is_gone_is_unavailable_and_comes_back(
    store: RegistryStore, postgres: Postgres
) -> None:
    postgres.stop()
    for name, call in _CALLS.items():
        with pytest.raises(StoreUnavailable) as raised:
            await call(store)
        assert raised.value.retry_after_s == 1, name
        assert "127.0.0.1" not in raised.value.message, name
        assert raised.value.__cause__ is not None, name
    postgres.start()
    await _recovers(store)
    assert await store.get(Model, ("acme", "before")) is not None
    assert await store.get(Model, ("acme", "during")) is None


async def test_a_restart_in_the_middle_of_transactions_loses_and_doubles_nothing(
    store: RegistryStore, postgres: Postgres
) -> None:
    stored: list[str] = []
    unclear: set[str] = set()
    failures = 0
    done = False

    async def write(worker: int) -> None:
        nonlocal failures
        number = 0
        while not done:
            number += 1
            name = f"m-{worker}-{number}"
            try:
                await _put(store, name)
            except StoreUnavailable as error:
                failures += 1
                if "read again" in error.message:
                    unclear.add(name)
                await asyncio.sleep(0.02)
            else:
                stored.append(name)

    workers = [asyncio.create_task(write(worker)) for worker in range(5)]
    await _until(lambda: len(stored) >= 20)
    await asyncio.to_thread(postgres.stop)
    await asyncio.to_thread(postgres.start)
    before = len(stored)
    await _until(lambda: len(stored) >= before + 20)
    done = True
    await asyncio.gather(*workers)
    assert failures
    revision, entities = await store.everything()
    names = [entity.name for entity in entities if isinstance(entity, Model)]
    assert len(names) == len(set(names))
    assert {"before", *stored} <= set(names) <= {"before", *stored, *unclear}
    assert revision == len(names)  # no revision was left behind by what failed


async def test_a_server_that_hangs_holds_nobody_longer_than_the_timeout(
    store: RegistryStore, postgres: Postgres
) -> None:
    postgres.freeze()
    begun = time.monotonic()
    # more callers than connections, so that some wait for a connection or for their turn
    calls = [call(store) for call in _CALLS.values() for _ in range(3)]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    took_s = time.monotonic() - begun
    assert [type(outcome) for outcome in outcomes] == [StoreUnavailable] * len(outcomes)
    assert took_s < _TIMEOUT_S + _SLACK_S
    postgres.resume()
    await _recovers(store)


async def test_a_transaction_that_was_under_way_when_the_server_hung_is_rolled_back(
    store: RegistryStore, postgres: Postgres
) -> None:
    async def write() -> None:
        async with store.transaction() as transaction:
            await transaction.put(_model("during"))
            postgres.freeze()
            await transaction.put(_model("late"))

    begun = time.monotonic()
    with pytest.raises(StoreUnavailable):
        await write()
    assert time.monotonic() - begun < _TIMEOUT_S + _SLACK_S
    postgres.resume()
    await _recovers(store)
    assert await store.get(Model, ("acme", "during")) is None


async def test_a_caller_that_goes_away_from_a_hung_server_goes_at_once(
    store: RegistryStore, postgres: Postgres
) -> None:
    await store.revision()
    postgres.freeze()
    task = asyncio.create_task(store.get(Model, ("acme", "before")))
    await asyncio.sleep(0)
    begun = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.monotonic() - begun < _TIMEOUT_S / 2
    postgres.resume()
    await _recovers(store)


async def test_closing_does_not_wait_for_a_hung_server(
    settings: PostgresSettings, postgres: Postgres, tmp_path: Path
) -> None:
    opened = await open_store(settings, data_dir=tmp_path, now=lambda: _START, migrate=True)
    await opened.revision()
    postgres.freeze()
    begun = time.monotonic()
    await opened.close()
    assert time.monotonic() - begun < 2 + _SLACK_S


async def test_a_process_that_stops_in_a_transaction_holds_the_others_up_for_a_while_only(
    store: RegistryStore, settings: PostgresSettings, tmp_path: Path
) -> None:
    stopped = await open_store(settings, data_dir=tmp_path, now=lambda: _START)

    async def write() -> None:
        async with stopped.transaction() as transaction:
            await transaction.put(_model("never"))
            await _recovers(store)  # the server ends the other's transaction
            await transaction.put(_model("late"))

    with pytest.raises(StoreUnavailable):
        await write()
    assert await store.get(Model, ("acme", "never")) is None
    await stopped.close()


async def test_a_watch_goes_on_when_the_server_comes_back(
    store: RegistryStore, settings: PostgresSettings, postgres: Postgres, tmp_path: Path
) -> None:
    yields = 0

    async def watch() -> None:
        nonlocal yields
        async for _ in store.watch():
            yields += 1

    watching = asyncio.create_task(watch())
    await _until(lambda: yields >= 1)
    await asyncio.to_thread(postgres.stop)
    seen = yields
    await _until(lambda: yields >= seen + 2)  # now and then, though it is gone
    await asyncio.to_thread(postgres.start)
    other = await open_store(settings, data_dir=tmp_path, now=lambda: _START)

    async def hears_at_once() -> bool:
        before = yields
        await _put(other, "told")
        try:
            await _until(lambda: yields > before, within_s=0.5)
        except TimeoutError:
            return False
        return True

    deadline = time.monotonic() + _RECOVERY_S
    in_a_row = 0  # several, so that none of them was a yield of now and then
    while in_a_row < 4:
        assert time.monotonic() < deadline
        in_a_row = in_a_row + 1 if await hears_at_once() else 0
    assert not watching.done()
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    await other.close()


async def test_pending_migrations_keep_the_platform_from_starting(
    settings: PostgresSettings, tmp_path: Path
) -> None:
    with pytest.raises(InvalidSettings, match=r"lacks migration 1 .*run `headrace migrate`"):
        await open_store(settings, data_dir=tmp_path, now=lambda: _START)


@pytest.mark.parametrize(
    ("find", "replace"),
    [("/test_", "/no_such_"), ("postgres@", "nobody_here@"), ("postgresql://", "mysql://")],
    ids=["database", "user", "scheme"],
)
async def test_an_address_that_will_never_do_is_a_mistake_in_the_settings(
    settings: PostgresSettings, tmp_path: Path, find: str, replace: str
) -> None:
    wrong = PostgresSettings(dsn=settings.dsn.replace(find, replace))
    with pytest.raises(InvalidSettings, match=r"database\.dsn: "):
        await open_store(wrong, data_dir=tmp_path, now=lambda: _START)


async def test_a_server_that_is_not_there_yet_is_unavailable(tmp_path: Path) -> None:
    settings = PostgresSettings(dsn="postgresql://127.0.0.1:1/none")
    with pytest.raises(StoreUnavailable):
        await open_store(settings, data_dir=tmp_path, now=lambda: _START)
