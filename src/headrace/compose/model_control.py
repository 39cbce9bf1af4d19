"""What operators' wires ask of all models of this process: those of the folder, and registered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from headrace.domain.calls import ANONYMOUS
from headrace.domain.errors import HeadraceError, InvalidRequest
from headrace.domain.names import version_order
from headrace.orchestrator.lifecycle import Models
from headrace.orchestrator.on_demand import OnDemand
from headrace.ports.catalogue import Catalogue
from headrace.ports.model_control import IndexEntry, ModelDescription
from headrace.router.registered import RegisteredModels, internal_name
from headrace.router.resolution import Choice

_TENANT = ANONYMOUS.tenant  # these wires tell of one tenant's models


class FolderControl:
    """The port `ModelControl` over the models of a folder."""

    def __init__(self, models: Models) -> None:
        self._models = models

    async def describe(self, model: str, version: str = "") -> ModelDescription:
        return self._models.describe(model, version)

    def obstacle(self, model: str, version: str = "") -> HeadraceError | None:
        return self._models.obstacle(model, version)

    async def statistics(self, model: str = "", version: str = "") -> Sequence[dict[str, Any]]:
        return self._models.statistics(model, version)

    def index(self) -> Sequence[IndexEntry]:
        return self._models.index()

    async def load(self, model: str, *, config_json: bytes | None = None) -> None:
        await self._models.load(model, config_json=config_json)

    async def unload(self, model: str) -> None:
        await self._models.unload(model)


class WholeControl:
    """The port `ModelControl` over registered models first, and then those of the folder."""

    def __init__(
        self,
        folder: FolderControl,
        *,
        router: RegisteredModels,
        catalogue: Catalogue,
        on_demand: OnDemand,
        registered: Models,
    ) -> None:
        self._folder = folder
        self._router = router
        self._catalogue = catalogue
        self._on_demand = on_demand
        self._registered = registered

    async def describe(self, model: str, version: str = "") -> ModelDescription:
        choice = self._router.choice(_TENANT, model, version)
        if choice is None:
            return await self._folder.describe(model, version)
        found = self._registered.describe(*await self._loaded(choice))
        entry = self._catalogue.entry((_TENANT, choice.model))
        versions = sorted(entry.versions, key=version_order) if entry is not None else ()
        return msgspec.structs.replace(found, name=model, versions=tuple(versions))

    def obstacle(self, model: str, version: str = "") -> HeadraceError | None:
        return self._router.obstacle(_TENANT, model, version)

    async def statistics(self, model: str = "", version: str = "") -> Sequence[dict[str, Any]]:
        if not model:
            return [
                *await self._folder.statistics(),
                *map(_public, self._registered.statistics()),
            ]
        choice = self._router.choice(_TENANT, model, version)
        if choice is None:
            return await self._folder.statistics(model, version)
        name, number = await self._loaded(choice)
        return [_public(each) for each in self._registered.statistics(name, number)]

    def index(self) -> Sequence[IndexEntry]:
        entries = list(self._folder.index())
        for tenant, name in self._catalogue.names():
            if tenant == _TENANT and (entry := self._catalogue.entry((tenant, name))) is not None:
                entries += [self._line(name, v) for v in sorted(entry.versions, key=version_order)]
        return entries

    async def load(self, model: str, *, config_json: bytes | None = None) -> None:
        choice = self._router.choice(_TENANT, model, "")
        if choice is None:
            await self._folder.load(model, config_json=config_json)
        elif config_json is not None:
            msg = f"model '{model}' is of the registry: its configuration comes with its versions"
            raise InvalidRequest(msg)
        else:
            await self._loaded(choice)

    async def unload(self, model: str) -> None:
        if self._catalogue.entry((_TENANT, model)) is None:
            await self._folder.unload(model)
            return
        msg = (
            f"model '{model}' is of the registry, which decides what is served: move its aliases, "
            "or archive its versions"
        )
        raise InvalidRequest(msg)

    def _line(self, model: str, version: str) -> IndexEntry:
        obstacle = self._on_demand.obstacle(internal_name(_TENANT, model), version)
        if obstacle is None:  # ready is what would be tried, and loaded where it has to be
            return IndexEntry(model, version, "READY", "")
        return IndexEntry(model, version, "UNAVAILABLE", obstacle.message)

    async def _loaded(self, choice: Choice) -> tuple[str, str]:
        name = internal_name(_TENANT, choice.model)
        await self._on_demand.loaded(name, choice.version)
        return name, choice.version


def _public(statistics: dict[str, Any]) -> dict[str, Any]:
    return {**statistics, "name": statistics["name"].partition("/")[2]}
