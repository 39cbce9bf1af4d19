"""The registry as this process sees it, with the endpoints and routes of its settings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from headrace.domain.calls import OPERATOR
from headrace.domain.catalog import ApiKey, Endpoint, Key, Route
from headrace.ports.catalogue import Catalogue, Entry, Name


class NoRegistry:
    """The port `Catalogue` where there is no registry."""

    revision = 0
    problem = ""

    def entry(self, name: Name) -> None:
        """None is known."""

    def names(self) -> Iterable[Name]:
        return ()

    def every_endpoint(self) -> Iterable[Endpoint]:
        return ()

    def key(self, digest: str) -> None:
        """None is known."""

    def on_change(self, heard: Callable[[frozenset[tuple[str, Key]]], None]) -> None:
        """Nothing ever changes."""


class ConfiguredCatalogue:
    """The port `Catalogue` over `registry` and what the settings add, which all tenants share.

    What a tenant has registered itself goes before.
    """

    def __init__(
        self, registry: Catalogue, *, endpoints: Sequence[Endpoint], routes: Sequence[Route]
    ) -> None:
        self._registry = registry
        self._endpoints = tuple(endpoints)
        self._routes: Mapping[str, Route] = {route.name: route for route in routes}

    @property
    def revision(self) -> int:
        return self._registry.revision

    @property
    def problem(self) -> str:
        return self._registry.problem

    def entry(self, name: Name) -> Entry | None:
        entry = self._registry.entry(name)
        if entry is None:
            route = self._routes.get(name[1])
            return None if route is None else Entry(route=route)
        return entry

    def names(self) -> Iterable[Name]:
        own = list(self._registry.names())
        known = set(own)
        return own + [(OPERATOR, n) for n in self._routes if (OPERATOR, n) not in known]

    def every_endpoint(self) -> Iterable[Endpoint]:
        # those of the settings last: of two with one name theirs is the one that is obeyed
        enabled = [endpoint for endpoint in self._endpoints if endpoint.enabled]
        return [*self._registry.every_endpoint(), *enabled]

    def key(self, digest: str) -> ApiKey | None:
        return self._registry.key(digest)

    def on_change(self, heard: Callable[[frozenset[tuple[str, Key]]], None]) -> None:
        self._registry.on_change(heard)
