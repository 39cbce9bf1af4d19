"""Addresses that answer inference requests."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import msgspec

from headrace.domain.calls import Call
from headrace.domain.catalog import Endpoint, Key
from headrace.domain.errors import AlreadyExists, NotFound
from headrace.domain.names import require_name
from headrace.ports.registry_store import Page, Query, Reader, RegistryStore
from headrace.registry.changes import Ledger
from headrace.registry.content import conform, patched
from headrace.registry.endpoint_content import EndpointContent, endpoint_fields, located
from headrace.registry.networks import Address, Location, Network, require_allowed
from headrace.registry.refusals import InvalidField
from headrace.registry.resolving import Resolve
from headrace.registry.revisions import Match, require


class Endpoints:
    """Create, read, update, delete and list endpoints. `allowed` are the networks they may be in.

    `reserved` are the keys of endpoints that are kept elsewhere: in the settings file.

    The address is looked at here, and once more by whoever connects: a name may answer differently
    by then.
    """

    def __init__(
        self,
        *,
        store: RegistryStore,
        reader: Reader,
        ledger: Ledger,
        allowed: Sequence[Network],
        resolve: Resolve,
        reserved: Collection[Key] = (),
    ) -> None:
        self._store = store
        self._reader = reader
        self._ledger = ledger
        self._allowed = tuple(allowed)
        self._resolve = resolve
        self._reserved = frozenset(reserved)

    async def create(self, call: Call, name: str, content: Mapping[str, Any]) -> Endpoint:
        """Add an endpoint. Raises InvalidRequest, AlreadyExists."""
        require_name("endpoint", name)
        wanted = conform(EndpointContent, content)
        fields = endpoint_fields(wanted)
        key = (call.principal.tenant, name)
        if key in self._reserved:  # states and events are told by this name
            raise AlreadyExists(f"endpoint '{name}' is in the settings file: choose another name")
        await self._require_allowed(wanted)
        async with self._ledger.changes(call) as changes:
            if await changes.transaction.get(Endpoint, key) is not None:
                raise AlreadyExists(f"endpoint '{name}' is there already")
            endpoint = Endpoint(
                tenant=call.principal.tenant,
                name=name,
                created_at=changes.at,
                updated_at=changes.at,
                **fields,
            )
            return await changes.create(endpoint, "endpoint.create")

    async def get(self, call: Call, name: str) -> Endpoint:
        """One endpoint. Raises NotFound."""
        return _found(await self._reader.get(Endpoint, (call.principal.tenant, name)), name)

    async def find(self, call: Call, query: Query) -> Page[Endpoint]:
        """A page of the tenant's endpoints."""
        query = msgspec.structs.replace(query, tenant=call.principal.tenant)
        return await self._store.find(Endpoint, query)

    async def update(
        self, call: Call, name: str, patch: Mapping[str, Any], *, if_match: Match
    ) -> Endpoint:
        """Apply a merge patch.

        Raises InvalidRequest, NotFound, PreconditionRequired, PreconditionFailed.
        """
        key = (call.principal.tenant, name)
        # looked up first: a name must not be resolved while a transaction holds up all others
        before = _found(await self._store.get(Endpoint, key), name)
        require(before, if_match)
        wanted = patched(EndpointContent, before, patch)
        after = msgspec.structs.replace(before, **endpoint_fields(wanted))
        if after == before:
            return before
        await self._require_allowed(wanted)
        async with self._ledger.changes(call) as changes:
            require(
                _found(await changes.transaction.get(Endpoint, key), name),
                frozenset({before.revision}),
            )
            after = msgspec.structs.replace(after, updated_at=changes.at)
            return await changes.replace(before, after, "endpoint.update")

    async def delete(self, call: Call, name: str, *, if_match: Match) -> None:
        """Remove an endpoint. Raises NotFound, PreconditionRequired, PreconditionFailed."""
        async with self._ledger.changes(call) as changes:
            key = (call.principal.tenant, name)
            endpoint = _found(await changes.transaction.get(Endpoint, key), name)
            require(endpoint, if_match)
            await changes.delete(endpoint, "endpoint.delete")

    async def _require_allowed(self, content: EndpointContent) -> None:
        for field, location in located(content).items():
            require_allowed(await self._addresses(field, location), self._allowed, field)

    async def _addresses(self, field: str, location: Location) -> Sequence[Address]:
        if location.address is not None:
            return [location.address]
        addresses: Sequence[Address] = ()
        # a UnicodeError is a label that no name can have
        with contextlib.suppress(OSError, UnicodeError):
            addresses = await self._resolve(location.host, location.port)
        if not addresses:
            raise InvalidField(field, f"the name '{location.host}' has no address")
        return addresses


def _found(endpoint: Endpoint | None, name: str) -> Endpoint:
    if endpoint is None:
        raise NotFound(f"endpoint '{name[:128]}' is not registered")
    return endpoint
