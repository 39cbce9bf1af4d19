"""Where a route may send requests, and whether that is there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

from headrace.domain.catalog import (
    Alias,
    Endpoint,
    Model,
    Route,
    RouteRule,
    Shadow,
    Target,
    Version,
)
from headrace.ports.registry_store import Query, Reader
from headrace.registry.pages import all_of
from headrace.registry.refusals import Dangling

#: Whether something beyond the registry serves a tenant's model of that name.
Known: TypeAlias = Callable[[str, str], bool]
PlacedTargets: TypeAlias = list[tuple[str, Target]]


def nothing_else(_tenant: str, _model: str) -> bool:
    """All models are the registry's."""
    return False


def placed(
    *,
    targets: Sequence[Target],
    rules: Sequence[RouteRule],
    fallbacks: Sequence[Target],
    shadows: Sequence[Shadow],
) -> Iterator[PlacedTargets]:
    """The sets of a route's targets, each target with its JSON pointer in the route."""
    yield [(f"/targets/{index}", target) for index, target in enumerate(targets)]
    for at, rule in enumerate(rules):
        yield [(f"/rules/{at}/targets/{index}", each) for index, each in enumerate(rule.targets)]
    yield [(f"/fallbacks/{index}", target) for index, target in enumerate(fallbacks)]
    yield [(f"/shadows/{index}/target", shadow.target) for index, shadow in enumerate(shadows)]


def targets_of(route: Route) -> PlacedTargets:
    """Every target of a route, of whatever set."""
    sets = placed(
        targets=route.targets,
        rules=route.rules,
        fallbacks=route.fallbacks,
        shadows=route.shadows,
    )
    return [each for targets in sets for each in targets]


class Destinations:
    """What targets may name, as one transaction sees it.

    That is what the registry has, what `known` says, and what endpoints serve: those of the tenant
    in the store, and `configured` ones. `routes` are the names of the settings file's routes.
    """

    def __init__(
        self,
        reader: Reader,
        tenant: str,
        *,
        known: Known,
        configured: Sequence[Endpoint],
        routes: frozenset[str],
    ) -> None:
        self._reader = reader
        self._tenant = tenant
        self._known = known
        self._configured = configured
        self._routes = routes
        self._endpoints: list[Endpoint] | None = None  # looked up when first needed

    async def require(self, route: Route) -> None:
        """Raise Dangling, which names the field, where a target is not there."""
        seen = set()
        for pointer, target in targets_of(route):
            named = (target.model, target.version)
            if named not in seen:
                seen.add(named)
                await self._require(route.name, pointer, target)

    async def _require(self, route: str, pointer: str, target: Target) -> None:
        key = (self._tenant, target.model)
        if await self._reader.get(Model, key) is not None:
            if await self._has_version(target) or await self._is_listed(target.model):
                return
            raise Dangling(
                f"{pointer}/version",
                f"model '{target.model}' has no version or alias '{target.version}'",
            )
        if await self._is_listed(target.model):
            return
        # a route's own name is the model behind it; another's would send requests in circles
        if target.model != route and await self._is_route(target.model):
            raise Dangling(
                f"{pointer}/model", f"'{target.model}' is a route, and a route targets models"
            )
        if not await self._is_anything_served():
            raise Dangling(
                f"{pointer}/model",
                f"model '{target.model}' is not registered, and no endpoint serves it",
            )

    async def _has_version(self, target: Target) -> bool:
        key = (self._tenant, target.model, target.version)
        return (
            not target.version
            or await self._reader.get(Version, key) is not None
            or await self._reader.get(Alias, key) is not None
        )

    async def _is_listed(self, model: str) -> bool:
        return self._known(self._tenant, model) or any(
            model in endpoint.models for endpoint in await self._all_endpoints()
        )

    async def _is_route(self, name: str) -> bool:
        return (
            name in self._routes or await self._reader.get(Route, (self._tenant, name)) is not None
        )

    async def _is_anything_served(self) -> bool:
        """Whether an endpoint serves what nothing else does. This process has what is known."""
        return any(
            not endpoint.models and endpoint.protocol != "in-process"
            for endpoint in await self._all_endpoints()
        )

    async def _all_endpoints(self) -> list[Endpoint]:
        if self._endpoints is None:
            stored = await all_of(self._reader, Endpoint, Query(tenant=self._tenant))
            mine = (e for e in self._configured if e.tenant == self._tenant)
            self._endpoints = [*mine, *stored]
        return self._endpoints
