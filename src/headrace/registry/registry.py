"""The registry's use cases, together."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from headrace.ports.artifacts import ArtifactStore, Inspector
from headrace.ports.idempotency import IdempotencyStore
from headrace.ports.registry_store import Now, Reader, RegistryStore
from headrace.registry.aliases import Aliases
from headrace.registry.audit import Audit
from headrace.registry.changes import Invalidate, Ledger, Obey, at_leisure, nobody
from headrace.registry.configured import NOTHING_CONFIGURED, Configured
from headrace.registry.endpoints import Endpoints
from headrace.registry.garbage import Garbage, Holds
from headrace.registry.health import Health, Ping, health
from headrace.registry.ids import NewId, new_id
from headrace.registry.keys import Keys
from headrace.registry.models import Models
from headrace.registry.networks import Network
from headrace.registry.promotion import Promotions
from headrace.registry.resolving import Resolve, resolve
from headrace.registry.routes import Routes
from headrace.registry.statistics import Live, Statistics, nothing
from headrace.registry.targets import Known, nothing_else
from headrace.registry.versions import Versions


def utc_now() -> datetime:
    """The present time."""
    return datetime.now(UTC)


class Registry:
    """Every use case over one store.

    `reader` answers reads by name and id (a cache, or the store itself); `invalidate` is told what
    to forget after each change, and `obey` waited for before a writer is answered. Endpoints may
    only be in the networks `allowed`. Routes may name models that `known` says are served, besides
    the registry's and those of endpoints. `configured` is what the settings file has.
    """

    def __init__(
        self,
        *,
        store: RegistryStore,
        reader: Reader,
        artifacts: ArtifactStore,
        inspector: Inspector,
        allowed: Sequence[Network],
        idempotency: IdempotencyStore,
        invalidate: Invalidate = nobody,
        obey: Obey = at_leisure,
        ping_cache: Ping | None = None,
        live: Live = nothing,
        garbage_grace_s: float = 3600.0,
        now: Now = utc_now,
        clock: Callable[[], float] = time.monotonic,
        new_id: NewId = new_id,
        resolve: Resolve = resolve,
        known: Known = nothing_else,
        configured: Configured = NOTHING_CONFIGURED,
    ) -> None:
        self._store = store
        self._ping_cache = ping_cache
        ledger = Ledger(store=store, now=now, invalidate=invalidate, obey=obey)
        holds = Holds()
        self.models = Models(store=store, reader=reader, ledger=ledger, new_id=new_id)
        self.versions = Versions(
            store=store,
            reader=reader,
            ledger=ledger,
            artifacts=artifacts,
            inspector=inspector,
            holds=holds,
            new_id=new_id,
        )
        self.aliases = Aliases(store=store, reader=reader, ledger=ledger)
        self.promotions = Promotions(
            store=store, ledger=ledger, artifacts=artifacts, inspector=inspector
        )
        self.endpoints = Endpoints(
            store=store,
            reader=reader,
            ledger=ledger,
            allowed=allowed,
            resolve=resolve,
            reserved=[endpoint.key for endpoint in configured.endpoints],
        )
        self.routes = Routes(
            store=store,
            reader=reader,
            ledger=ledger,
            known=known,
            endpoints=configured.endpoints,
            routes=configured.routes,
        )
        self.configured = configured
        self.keys = Keys(store=store, reader=reader, ledger=ledger, new_id=new_id)
        self.audit = Audit(store=store)
        self.idempotency = idempotency
        self.statistics = Statistics(store=store, versions=self.versions, live=live)
        self.garbage = Garbage(
            store=store,
            artifacts=artifacts,
            holds=holds,
            grace_s=garbage_grace_s,
            clock=clock,
        )

    async def health(self) -> Health:
        """Whether store and cache answer."""
        return await health(self._store, self._ping_cache)
