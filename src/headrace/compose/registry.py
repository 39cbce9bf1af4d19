"""The registry of one process: its store, its cache, what follows it, and the use cases over it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import datetime
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Final

from headrace.adapters.artifacts.store import Artifacts
from headrace.adapters.inspection import ChildInspector
from headrace.adapters.memory_cache import MemoryCache, MemoryCacheSettings
from headrace.adapters.sql.idempotency import SqlIdempotencyStore
from headrace.adapters.sql.opening import open_store
from headrace.adapters.sql.registry_store import SqlRegistryStore
from headrace.domain.catalog import Key
from headrace.domain.errors import HeadraceError, InvalidSettings
from headrace.ports.cache import Cache
from headrace.ports.endpoint_states import EndpointStates
from headrace.ports.idempotency import IdempotencyStore
from headrace.registry.cached_reader import CachedReader
from headrace.registry.catalogue import CatalogueFollower
from headrace.registry.configured import Configured
from headrace.registry.registry import Registry, utc_now
from headrace.registry.targets import Known
from headrace.router.usage import UsageRecorder
from headrace.settings import CacheSettings, Settings
from headrace.telemetry.metrics import Metrics
from headrace.transport.http.host import AsgiApp

_logger = logging.getLogger(__name__)
_GARBAGE_EVERY_S: Final = 3600.0
_OBEY_S: Final = 1.0
_LEFT_S: Final = 3600.0
_INSPECT: Final = "headrace.compose.inspect"


def data_dir(settings: Settings) -> Path:
    """The directory for what this process keeps; it may not exist yet."""
    chosen = settings.storage.data_dir
    if chosen:
        return Path(chosen).expanduser().absolute()
    home = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(home).absolute() / "headrace"


def allowed_networks(settings: Settings) -> list[IPv4Network | IPv6Network]:
    """Where registered endpoints may be. Raises InvalidSettings."""
    try:
        return [ip_network(network) for network in settings.registry.endpoint_networks]
    except ValueError as error:
        raise InvalidSettings(f"registry.endpoint_networks: {error}") from None


class RegistryHouse:
    """All parts of the registry in this process; make it with `opened`."""

    def __init__(
        self,
        *,
        settings: Settings,
        store: SqlRegistryStore,
        idempotency: IdempotencyStore,
        cache: Cache,
        metrics: Metrics,
        version: str,
        artifacts: Artifacts,
        configured: Configured,
        known: Known,
    ) -> None:
        self._settings = settings
        self._version = version
        self._store = store
        self.database = store.database
        self.idempotency = idempotency
        self._cache = cache
        self.artifacts = artifacts
        self.usage = UsageRecorder(now=utc_now)
        self.catalogue = CatalogueFollower(store=store, now=utc_now, metrics=metrics)
        self._reader = CachedReader(
            store=store, cache=cache, settings=settings.registry_reads, metrics=metrics
        )
        self.catalogue.on_change(self._reader.heard)
        self.use_cases = Registry(
            store=store,
            reader=self._reader,
            artifacts=artifacts,
            inspector=ChildInspector(
                settings.inspection,
                entry_module=_INSPECT,
                default_max_batch_size=settings.orchestrator.default_max_batch_size,
            ),
            allowed=allowed_networks(settings),
            idempotency=idempotency,
            invalidate=self._reader.invalidate,
            obey=self._obey,
            ping_cache=self._reader.ping,
            live=self.usage.of,
            known=known,
            configured=configured,
        )
        #: What the router of this process knows of endpoints, once there is one.
        self.states: EndpointStates | None = None
        self._app: asyncio.Future[AsgiApp] | None = None

    async def app(self) -> AsgiApp:
        """See Management.app: FastAPI costs memory and time that most processes never need."""
        if self._app is None:
            self._app = asyncio.ensure_future(asyncio.to_thread(self._make_app))
        return await asyncio.shield(self._app)

    async def run(self) -> None:
        """Follow the store, keep the cache right, write usage, collect garbage. Never returns."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.catalogue.run())
            tasks.create_task(self._sweep())
            tasks.create_task(self._reader.run())
            tasks.create_task(_again(self._settings.registry.usage_flush_s, self.keep_usage))
            tasks.create_task(_again(_GARBAGE_EVERY_S, self.use_cases.garbage.collect))
            tasks.create_task(_again(_GARBAGE_EVERY_S, self.idempotency.forget))

    async def _sweep(self) -> None:
        """Remove what uploads of a process that died have left behind."""
        try:
            await self.artifacts.sweep(older_than_s=_LEFT_S)
        except (HeadraceError, OSError) as error:
            _logger.warning("leftovers of uploads cannot be removed: %s", error)

    async def _obey(self, revision: int) -> None:
        """Before a writer has its answer, this process itself obeys what was written."""
        await self.catalogue.reached(revision, _OBEY_S)

    async def keep_usage(self) -> None:
        """Write what was counted to the store; it is counted on where that fails."""
        taken = self.usage.take()
        if not taken:
            return
        try:
            await self._store.add_usage(taken)
        except BaseException:
            self.usage.put_back(taken)
            raise

    async def keep_key_usage(self, used: Mapping[Key, datetime]) -> None:
        """Write when API keys (by key) were last used. Raises StoreUnavailable, StorageFull."""
        await self._store.add_key_usage(used)

    async def close(self) -> None:
        """Keep the last counts, and let go of connections."""
        try:
            async with asyncio.timeout(1.0):
                await self.keep_usage()
        except (HeadraceError, TimeoutError) as error:
            _logger.warning("the last counts of usage are lost: %s", error)
        await self._cache.close()
        await self._store.close()

    def _make_app(self) -> AsgiApp:
        from headrace.transport.management.application import management_app
        from headrace.transport.openai import document

        return management_app(
            self.use_cases,
            version=self._version,
            states=self.states,
            beside=document.document(batches=self._settings.batch.enabled),
        )


@contextlib.asynccontextmanager
async def opened(
    settings: Settings, *, metrics: Metrics, version: str, configured: Configured, known: Known
) -> AsyncIterator[RegistryHouse]:
    """Open the registry's stores, and close them in the end.

    `configured` is what the settings have beside it, `known` whether something else has a model.

    Raises:
        InvalidSettings: the database does not fit this release, or the data directory cannot be
            used.
        StoreUnavailable: the database does not answer.
    """
    folder = data_dir(settings)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        msg = f"storage.data_dir: {folder} cannot be made: {error.strerror}"
        raise InvalidSettings(msg) from error
    store = await open_store(settings.database, data_dir=folder, now=utc_now)
    house = RegistryHouse(
        settings=settings,
        store=store,
        idempotency=SqlIdempotencyStore(store.database),
        cache=_cache(settings.cache),
        metrics=metrics,
        version=version,
        artifacts=Artifacts(settings.artifacts, data_dir=folder),
        configured=configured,
        known=known,
    )
    try:
        yield house
    finally:
        await house.close()


def _cache(settings: CacheSettings) -> Cache:
    if isinstance(settings, MemoryCacheSettings):
        return MemoryCache(settings, clock=time.monotonic)
    from headrace.adapters.redis.cache import RedisCache

    return RedisCache(settings)


async def _again(every_s: float, work: Callable[[], object]) -> None:
    while True:
        await asyncio.sleep(every_s)
        try:
            await work()  # type: ignore[misc]
        except HeadraceError as error:
            _logger.warning("%s", error.message)
        except Exception:  # the root of a task
            _logger.exception("work of the registry failed")
