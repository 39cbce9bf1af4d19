"""Names that callers ask as if they were models, and the targets behind them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from headrace.domain.calls import Call
from headrace.domain.catalog import Endpoint, Route
from headrace.domain.errors import AlreadyExists, NotFound
from headrace.domain.names import require_name
from headrace.ports.registry_store import Page, Query, Reader, RegistryStore, Transaction
from headrace.registry.changes import Ledger
from headrace.registry.content import conform, patched
from headrace.registry.revisions import Match, require
from headrace.registry.route_content import RouteContent, route_fields
from headrace.registry.targets import Destinations, Known, nothing_else, targets_of


class Routes:
    """Create, read, update, delete and list routes.

    `known` says what is served besides the registry's models; `endpoints` and `routes` are those of
    the settings file.
    """

    def __init__(
        self,
        *,
        store: RegistryStore,
        reader: Reader,
        ledger: Ledger,
        known: Known = nothing_else,
        endpoints: Sequence[Endpoint] = (),
        routes: Sequence[Route] = (),
    ) -> None:
        self._store = store
        self._reader = reader
        self._ledger = ledger
        self._known = known
        self._endpoints = tuple(endpoints)
        self._reserved = frozenset(route.key for route in routes)

    async def create(self, call: Call, name: str, content: Mapping[str, Any]) -> Route:
        """Add a route. Raises InvalidRequest, AlreadyExists, and Conflict for unknown targets."""
        require_name("route", name)
        fields = route_fields(conform(RouteContent, content))
        key = (call.principal.tenant, name)
        if key in self._reserved:
            raise AlreadyExists(f"route '{name}' is in the settings file: choose another name")
        async with self._ledger.changes(call) as changes:
            if await changes.transaction.get(Route, key) is not None:
                raise AlreadyExists(f"route '{name}' is there already")
            route = Route(
                tenant=call.principal.tenant,
                name=name,
                created_at=changes.at,
                updated_at=changes.at,
                **fields,
            )
            await self._destinations(changes.transaction, route).require(route)
            return await changes.create(route, "route.create")

    async def get(self, call: Call, name: str) -> Route:
        """One route. Raises NotFound."""
        return _found(await self._reader.get(Route, (call.principal.tenant, name)), name)

    async def find(self, call: Call, query: Query) -> Page[Route]:
        """A page of the tenant's routes."""
        query = msgspec.structs.replace(query, tenant=call.principal.tenant)
        return await self._store.find(Route, query)

    async def update(
        self, call: Call, name: str, patch: Mapping[str, Any], *, if_match: Match
    ) -> Route:
        """Apply a merge patch; `sticky` and `policy` are merged, lists replaced as a whole.

        Raises InvalidRequest, NotFound, PreconditionRequired, PreconditionFailed, and Conflict for
        unknown targets.
        """
        async with self._ledger.changes(call) as changes:
            key = (call.principal.tenant, name)
            before = _found(await changes.transaction.get(Route, key), name)
            require(before, if_match)
            fields = route_fields(patched(RouteContent, before, patch))
            after = msgspec.structs.replace(before, **fields)
            if after == before:
                return before
            if targets_of(after) != targets_of(before):
                await self._destinations(changes.transaction, after).require(after)
            after = msgspec.structs.replace(after, updated_at=changes.at)
            return await changes.replace(before, after, "route.update")

    async def delete(self, call: Call, name: str, *, if_match: Match) -> None:
        """Remove a route. Raises NotFound, PreconditionRequired, PreconditionFailed."""
        async with self._ledger.changes(call) as changes:
            key = (call.principal.tenant, name)
            route = _found(await changes.transaction.get(Route, key), name)
            require(route, if_match)
            await changes.delete(route, "route.delete")

    def _destinations(self, transaction: Transaction, route: Route) -> Destinations:
        return Destinations(
            transaction,
            route.tenant,
            known=self._known,
            configured=self._endpoints,
            routes=frozenset(name for tenant, name in self._reserved if tenant == route.tenant),
        )


def _found(route: Route | None, name: str) -> Route:
    if route is None:
        raise NotFound(f"route '{name[:128]}' is not registered")
    return route
