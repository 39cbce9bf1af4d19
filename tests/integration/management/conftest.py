from __future__ import annotations

import ipaddress
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from headrace.adapters.sql.idempotency import SqlIdempotencyStore
from headrace.adapters.sql.opening import open_store
from headrace.adapters.sql.settings import StoreSettings
from headrace.domain.calls import Principal
from headrace.domain.scopes import EVERYTHING
from headrace.ports.endpoint_states import EndpointStates
from headrace.ports.idempotency import IdempotencyStore
from headrace.ports.registry_store import RegistryStore
from headrace.registry.configured import NOTHING_CONFIGURED, Configured
from headrace.registry.networks import Address
from headrace.registry.registry import Registry
from headrace.registry.targets import Known, nothing_else
from headrace.transport.management.application import management_app
from tests.support.databases import fresh_database, migrated, postgres
from tests.support.idempotency import MemoryIdempotencyStore
from tests.unit.registry.fakes import FakeArtifacts, FakeInspector

__all__ = ["migrated", "postgres"]  # fixtures

ALLOWED = [ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("2001:db8::/32")]
NAMES = {
    "models.internal": ["10.1.2.3"],
    "rebound.example": ["10.1.2.3", "169.254.169.254"],
    "loop.example": ["127.0.0.1"],
}


async def resolve(host: str, _port: int) -> list[Address]:
    if host not in NAMES:
        raise OSError(host)
    return [ipaddress.ip_address(address) for address in NAMES[host]]


@pytest.fixture(autouse=True)
def _quiet_asyncio(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "asyncio")


def edge(app: Any, name: str = "ann", tenant: str = "default") -> Any:
    """`app` as the edge asks it, for a caller who may do everything."""

    async def ask(scope: Any, receive: Any, send: Any) -> None:
        scope["headrace.principal"] = Principal(name, tenant, EVERYTHING)
        scope["headrace.request_id"] = "req-1"
        await app(scope, receive, send)

    return ask


class Platform:
    """A registry, the API over it, and clients of it."""

    def __init__(
        self,
        store: RegistryStore,
        artifacts: FakeArtifacts | None = None,
        idempotency: IdempotencyStore | None = None,
        *,
        configured: Configured = NOTHING_CONFIGURED,
        known: Known = nothing_else,
        states: EndpointStates | None = None,
    ) -> None:
        self.store = store
        self.idempotency = idempotency or MemoryIdempotencyStore()
        self.artifacts = artifacts or FakeArtifacts()
        self.inspector = FakeInspector(self.artifacts)
        self.told: list[Any] = []
        self.registry = Registry(
            store=store,
            reader=store,
            artifacts=self.artifacts,
            inspector=self.inspector,
            allowed=ALLOWED,
            resolve=resolve,
            invalidate=self._invalidate,
            idempotency=self.idempotency,
            configured=configured,
            known=known,
        )
        self.app: Any = management_app(self.registry, version="1.2.3", states=states)

    async def _invalidate(self, changes: Any) -> None:
        self.told += changes

    @asynccontextmanager
    async def client(
        self, name: str = "ann", tenant: str = "default"
    ) -> AsyncIterator[httpx.AsyncClient]:
        transport = httpx.ASGITransport(app=edge(self.app, name, tenant))
        async with httpx.AsyncClient(transport=transport, base_url="http://api") as client:
            yield client


def now() -> datetime:
    return datetime.now(UTC)


@pytest.fixture(params=["sqlite", "postgres"])
def store_settings(request: pytest.FixtureRequest) -> StoreSettings:
    return fresh_database(request.param, request)


@pytest.fixture
async def platform(store_settings: StoreSettings, tmp_path: Path) -> AsyncIterator[Platform]:
    store = await open_store(store_settings, data_dir=tmp_path, now=now)
    yield Platform(store, idempotency=SqlIdempotencyStore(store.database))
    await store.close()


@pytest.fixture
async def api(platform: Platform) -> AsyncIterator[httpx.AsyncClient]:
    async with platform.client() as client:
        yield client
