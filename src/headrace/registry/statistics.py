"""What versions were asked: what the store has, and what is not yet written to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from headrace.domain.calls import Call
from headrace.domain.usage import Usage
from headrace.ports.registry_store import RegistryStore
from headrace.registry.versions import Versions

#: Answers what this process counted and has not written yet, of a tenant's model, by version.
Live: TypeAlias = Callable[[str, str], Mapping[str, Usage]]


def nothing(_: str, __: str) -> Mapping[str, Usage]:
    """Nothing is counted in this process."""
    return {}


class Statistics:
    """Requests, errors and latencies per version."""

    def __init__(self, *, store: RegistryStore, versions: Versions, live: Live = nothing) -> None:
        self._store = store
        self._versions = versions
        self._live = live

    async def get(self, call: Call, model: str, version: str) -> Usage:
        """Of one version, since it was published. Raises NotFound."""
        await self._versions.get(call, model, version)
        # before the store is asked: what is written in between counts twice for a moment at worst
        unwritten = self._live(call.principal.tenant, model).get(version, Usage())
        written = await self._store.usage(call.principal.tenant, model)
        return written.get(version, Usage()).plus(unwritten)
