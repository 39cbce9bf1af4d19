"""Names that callers ask as if they were models, and the targets behind them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeAlias

import msgspec

from headrace.domain.calls import Call
from headrace.domain.catalog import Alias, Model, Route, Target, Version
from headrace.domain.errors import AlreadyExists, Conflict, NotFound
from headrace.domain.names import require_name
from headrace.ports.registry_store import Page, Query, Reader, RegistryStore, Transaction
from headrace.registry.changes import Ledger
from headrace.registry.content import Text, conform, patched
from headrace.registry.endpoints import Weight
from headrace.registry.refusals import InvalidField
from headrace.registry.revisions import Match, require


class _Target(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    model: str
    version: str = ""
    weight: Weight = 1.0


_Targets: TypeAlias = Annotated[tuple[_Target, ...], msgspec.Meta(min_length=1, max_length=64)]


class RouteContent(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What callers say about a route."""

    targets: _Targets
    description: Text = ""


class Routes:
    """Create, read, update, delete and list routes."""

    def __init__(self, *, store: RegistryStore, reader: Reader, ledger: Ledger) -> None:
        self._store = store
        self._reader = reader
        self._ledger = ledger

    async def create(self, call: Call, name: str, content: Mapping[str, Any]) -> Route:
        """Add a route. Raises InvalidRequest, AlreadyExists, and Conflict for unknown targets."""
        require_name("route", name)
        fields = _fields(conform(RouteContent, content))
        async with self._ledger.changes(call) as changes:
            key = (call.principal.tenant, name)
            if await changes.transaction.get(Route, key) is not None:
                raise AlreadyExists(f"route '{name}' is there already")
            await _require_targets(changes.transaction, call, fields["targets"])
            route = Route(
                tenant=call.principal.tenant,
                name=name,
                created_at=changes.at,
                updated_at=changes.at,
                **fields,
            )
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
        """Apply a merge patch; `targets` are replaced as a whole.

        Raises InvalidRequest, NotFound, PreconditionRequired, PreconditionFailed, and Conflict for
        unknown targets.
        """
        async with self._ledger.changes(call) as changes:
            key = (call.principal.tenant, name)
            before = _found(await changes.transaction.get(Route, key), name)
            require(before, if_match)
            fields = _fields(patched(RouteContent, before, patch))
            after = msgspec.structs.replace(before, **fields)
            if after == before:
                return before
            if after.targets != before.targets:
                await _require_targets(changes.transaction, call, after.targets)
            after = msgspec.structs.replace(after, updated_at=changes.at)
            return await changes.replace(before, after, "route.update")

    async def delete(self, call: Call, name: str, *, if_match: Match) -> None:
        """Remove a route. Raises NotFound, PreconditionRequired, PreconditionFailed."""
        async with self._ledger.changes(call) as changes:
            key = (call.principal.tenant, name)
            route = _found(await changes.transaction.get(Route, key), name)
            require(route, if_match)
            await changes.delete(route, "route.delete")


async def _require_targets(transaction: Transaction, call: Call, targets: Sequence[Target]) -> None:
    """Raise Conflict where a target is not there."""
    tenant = call.principal.tenant
    for index, target in enumerate(targets):
        where = f"targets.{index}"
        if await transaction.get(Model, (tenant, target.model)) is None:
            # the name of a route that is no model's too: requests do not go round in circles
            if await transaction.get(Route, (tenant, target.model)) is not None:
                raise Conflict(f"{where}: '{target.model}' is a route, and a route targets models")
            raise Conflict(f"{where}: model '{target.model}' is not registered")
        if not target.version:
            continue
        key = (tenant, target.model, target.version)
        if (
            await transaction.get(Version, key) is None
            and await transaction.get(Alias, key) is None
        ):
            raise Conflict(
                f"{where}: model '{target.model}' has no version or alias '{target.version}'"
            )


def _found(route: Route | None, name: str) -> Route:
    if route is None:
        raise NotFound(f"route '{name[:128]}' is not registered")
    return route


def _fields(content: RouteContent) -> dict[str, Any]:
    for index, target in enumerate(content.targets):
        require_name("model", target.model)
        if target.version:
            require_name("version", target.version)
        if not math.isfinite(target.weight):
            raise InvalidField(f"/targets/{index}/weight", "expected a finite number")
    if not any(target.weight for target in content.targets):
        raise InvalidField("/targets", "all weights are 0, so no request could go anywhere")
    return {
        "description": content.description,
        "targets": tuple(
            Target(model=t.model, version=t.version, weight=t.weight) for t in content.targets
        ),
    }
