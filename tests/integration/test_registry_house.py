"""What the registry of a process does by itself, with a real database."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from headrace.adapters.sql.idempotency import SqlIdempotencyStore
from headrace.adapters.sql.opening import open_store
from headrace.adapters.sql.registry_store import SqlRegistryStore
from headrace.adapters.sql.settings import SqliteSettings
from headrace.adapters.sql.statements import statement
from headrace.batch.settings import BatchSettings
from headrace.compose import registry
from headrace.compose.registry import RegistryHouse
from headrace.domain.calls import Call, Principal
from headrace.domain.idempotency import IdempotencyKey
from headrace.ports.idempotency import KeptAnswer
from headrace.registry.configured import NOTHING_CONFIGURED
from headrace.registry.targets import nothing_else
from headrace.settings import Settings, StorageSettings
from headrace.telemetry.metrics import Metrics
from tests.support.waiting import until

_KEYS = statement("keys", "SELECT key FROM idempotency_keys")


def _now() -> datetime:
    return datetime.now(UTC)


def _opened(
    tmp_path: Path, batch: BatchSettings | None = None
) -> contextlib.AbstractAsyncContextManager[RegistryHouse]:
    settings = Settings(
        storage=StorageSettings(data_dir=str(tmp_path)), batch=batch or BatchSettings()
    )
    return registry.opened(
        settings,
        metrics=Metrics(version="0"),
        version="0",
        configured=NOTHING_CONFIGURED,
        known=nothing_else,
    )


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[RegistryHouse]:
    async with _opened(tmp_path) as house:
        yield house


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqlRegistryStore]:
    """What a house keeps, as another process sees it."""
    store = await open_store(SqliteSettings(), data_dir=tmp_path, now=_now)
    yield store
    await store.close()


async def test_idempotency_keys_whose_time_is_over_are_forgotten(
    house: RegistryHouse, store: SqlRegistryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_GARBAGE_EVERY_S", 0.01)
    keys = SqlIdempotencyStore(store.database)
    for name, kept_s in (("over", 0.0), ("kept", 60.0)):
        key = IdempotencyKey("acme", "ann", name)
        await keys.claim(key, request="r", holder="h")
        await keys.keep(key, KeptAnswer(201, {}, ""), holder="h", kept_s=kept_s)
    running = asyncio.ensure_future(house.run())

    async def over_is_gone() -> bool:
        return [row[0] for row in await store.database.fetch(_KEYS, {})] == ["kept"]

    await until(over_is_gone)
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running


async def test_the_use_of_keys_is_kept(house: RegistryHouse, store: SqlRegistryStore) -> None:
    call = Call(request_id="r", principal=Principal("ann", "acme"))
    key, _ = await house.use_cases.keys.create(call, "ci", {})
    at = datetime(2026, 1, 1, tzinfo=UTC)
    await house.keep_key_usage({key.key: at})
    assert await store.key_usage("acme", [key.id]) == {key.id: at}


@pytest.mark.parametrize("enabled", [True, False])
async def test_the_document_has_batches_where_they_are_offered(
    tmp_path: Path, *, enabled: bool
) -> None:
    async with _opened(tmp_path, BatchSettings(enabled=enabled)) as house:
        transport = httpx.ASGITransport(app=await house.app())
        async with httpx.AsyncClient(transport=transport, base_url="http://api") as client:
            paths = (await client.get("/api/v1/openapi.json")).json()["paths"]
    assert ("/v1/batches" in paths) is enabled
    assert "/v1/embeddings" in paths
    assert "/api/v1/models" in paths
